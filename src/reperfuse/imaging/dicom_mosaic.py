"""The slices of a Siemens mosaic: where its tiles are cut and where they lie."""

import math
import re
import struct
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from reperfuse.errors import InputError

_COUNT = Tag(0x0019, 0x100A)
_CSA_IMAGE = [Tag(0x0029, element) for element in (0x1010, 0x1110, 0x1210)]
_CSA_SERIES = [Tag(0x0029, element) for element in (0x1020, 0x1120, 0x1220)]
MOSAIC_TAGS = [_COUNT, *_CSA_IMAGE, *_CSA_SERIES]
"""Siemens' own header, wherever its private block was reserved; the reservations may be stripped."""


def mosaic_slices(
    dataset: Dataset,
    sheet: NDArray[Any],
    position: NDArray[np.float64],
    orientation: NDArray[np.float64],
    pixel_spacing: tuple[float, float],
    slice_spacing: float,
    where: str,
) -> tuple[NDArray[Any], NDArray[np.float64], list[str]]:
    """Tiles, shape (K, rows, columns), their positions, shape (K, 3) [mm, LPS], and notes on what had to be assumed.

    ImagePositionPatient is the corner that one slice as large as the whole sheet would have. Sheet and slices have
    their centre in common, so the first tile's corner lies half the difference in size further along rows and columns.
    Where the next slices lie comes from the CSA header: its normal, or else the slice positions of its protocol. They
    may lie against the cross product of rows and columns.

    Parameters
    ----------
    dataset
        For the private tags, MOSAIC_TAGS.
    sheet
        Tiles row after row; what follows the last slice is empty.
    position, orientation, pixel_spacing, slice_spacing
        As in the header [mm].
    where
        The file, for messages.

    Raises
    ------
    InputError
        If the number of slices cannot be known or does not fit the sheet.
    """
    rows, columns = sheet.shape
    notes: list[str] = []
    csa = _csa(dataset)
    count = int(_csa_value(csa, "NumberOfImagesInMosaic") or _number_of(dataset.get(_COUNT)) or 0)
    count = count or _slices_of_protocol(dataset)
    if count:
        side = math.ceil(math.sqrt(count))
    else:
        side, count = _tiles_by_sight(sheet, where)
        notes.append(f"The mosaic header does not say how many slices there are; {count} tiles hold signal.")
    if rows % side or columns % side:
        raise InputError(
            f"{where} is a mosaic of {count} slices that does not divide into {side} x {side} tiles: export it again."
        )
    tile_rows, tile_columns = rows // side, columns // side
    along_row, along_column = orientation[:3] * pixel_spacing[1], orientation[3:] * pixel_spacing[0]
    normal = np.cross(along_row, along_column)
    normal /= np.linalg.norm(normal)
    onward = _csa_value(csa, "SliceNormalVector")
    if onward is None:
        onward = _protocol_direction(dataset, position + along_row * columns / 2 + along_column * rows / 2)
    if onward is None:
        notes.append("The mosaic header does not say where its slices lie; they were taken by the right-hand rule.")
    elif np.dot(onward, normal) < 0:
        normal = -normal
    corner = position + along_row * (columns - tile_columns) / 2 + along_column * (rows - tile_rows) / 2
    tiles = sheet.reshape(side, tile_rows, side, tile_columns).swapaxes(1, 2).reshape(-1, tile_rows, tile_columns)
    return tiles[:count], corner + np.arange(count)[:, None] * slice_spacing * normal, notes


def _tiles_by_sight(sheet: NDArray[Any], where: str) -> tuple[int, int]:
    """Tiles per side and slices of a mosaic whose header was stripped: whatever follows the last slice is zero.

    A division fits if no tile before the last one is empty and the signal ends where the last tile ends. It is taken if
    no other division into tiles of even sides and at least 32 pixels fits: a wrong guess would misplace every slice.
    """
    rows, columns = sheet.shape
    fitting = []
    for side in range(2, min(rows, columns) // 32 + 1):
        if rows % side or columns % side or (rows // side) % 2 or (columns // side) % 2:
            continue
        filled = sheet.reshape(side, rows // side, side, columns // side).any(axis=(1, 3)).ravel()
        count = int(filled.nonzero()[0].max(initial=-1)) + 1
        if not (side - 1) ** 2 < count < side**2 or not filled[:count].all():
            continue
        last_row, last_column = divmod(count - 1, side)
        below, beyond = (last_row + 1) * rows // side, (last_column + 1) * columns // side
        if sheet[below - 1].any() and sheet[last_row * rows // side : below, beyond - 1].any():
            fitting.append((side, count))
    if len(fitting) != 1:
        raise InputError(f"{where} is a mosaic that does not say how many slices it has: export it with its header.")
    return fitting[0]


def _csa(dataset: Dataset) -> dict[str, Any] | None:
    """The Siemens CSA image header, None where de-identification removed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel announces on import that its DICOM part is young
        from nibabel.nicom import csareader
    for tag in _CSA_IMAGE:
        if tag in dataset:
            try:
                return csareader.read(dataset[tag].value)
            except (csareader.CSAReadError, struct.error, UnicodeDecodeError):
                continue
    return None


def _slices_of_protocol(dataset: Dataset) -> int:
    """Number of slices in the protocol text of the CSA series header, 0 where there is none."""
    for tag in _CSA_SERIES:
        found = re.search(rb"sSliceArray\.lSize\s*=\s*(\d+)", dataset[tag].value) if tag in dataset else None
        if found:
            return int(found[1])
    return 0


def _protocol_direction(dataset: Dataset, first_centre: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """From the first slice of a mosaic towards the others, by the slice positions of the protocol; None without them.

    The protocol lists slices from one end to the other; the mosaic may begin at either (ucImageNumbTra and its like).
    """
    pattern = rb"sSliceArray\.asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*(-?[\d.]+(?:[eE][-+]?\d+)?)"
    for tag in _CSA_SERIES:
        positions: dict[int, list[float]] = {}
        for number, axis, value in re.findall(pattern, dataset[tag].value) if tag in dataset else []:
            positions.setdefault(int(number), [0.0, 0.0, 0.0])[(b"Sag", b"Cor", b"Tra").index(axis)] = float(value)
        if len(positions) > 1:
            first, last = np.array(positions[min(positions)]), np.array(positions[max(positions)])
            begins_last = np.linalg.norm(first_centre - last) < np.linalg.norm(first_centre - first)
            return first - last if begins_last else last - first
    return None


def _number_of(element: Any) -> float | None:
    """The value of a private element, which is bytes where the file does not say its type."""
    value = getattr(element, "value", None)
    if isinstance(value, bytes):
        return float(int.from_bytes(value[:2], "little"))
    return float(value) if isinstance(value, int | float) else None


def _csa_value(csa: dict[str, Any] | None, name: str) -> Any:
    """One value or a list of them; None where the header lacks it."""
    items = csa["tags"].get(name, {}).get("items", []) if csa else []
    return None if not items else items[0] if len(items) == 1 else items
