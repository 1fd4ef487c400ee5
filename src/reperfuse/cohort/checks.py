"""What every image must be before it enters a tree: finite, of a head's size, on one grid with its partner."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume

SPACING_BOUNDS_MM = (0.1, 30.0)
"""Voxel size [mm] of a head scan, gap included; outside it the unit or the slice positions are wrong."""


def without_nan(volume: Volume, what: str) -> tuple[Volume, list[str]]:
    """The volume with 0 for NaN and infinities, and a note with their number.

    >>> holes = Volume(np.array([1, np.nan, np.inf]).reshape(3, 1, 1), np.eye(4))
    >>> without_nan(holes, "voxels")[1]
    ['2 voxels without a value set to 0.']
    """
    if volume.data.dtype.kind != "f":
        return volume, []
    finite = np.isfinite(volume.data)
    n = int(finite.size - np.count_nonzero(finite))
    if n == 0:
        return volume, []
    return replace(volume, data=np.where(finite, volume.data, 0)), [f"{n} {what} without a value set to 0."]


def compact(data: NDArray[Any]) -> NDArray[Any]:
    """The same values in 16-bit integers where they are such, else in float32; half the size on disk.

    >>> compact(np.array([0.0, 4095.0])).dtype, compact(np.array([0.5])).dtype
    (dtype('int16'), dtype('float32'))
    """
    low, high = data.min(), data.max()
    for dtype in (np.int16, np.uint16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            cast = data.astype(dtype)
            if np.array_equal(cast, data):
                return cast
    return data.astype(np.float32)


def check_image(volume: Volume, name: str) -> None:
    """Refuse an image whose voxels have no possible size, or that shows nothing."""
    low, high = SPACING_BOUNDS_MM
    if not all(low <= length <= high for length in volume.spacing_mm):
        spacing = " × ".join(f"{length:g}" for length in volume.spacing_mm)
        raise InputError(f"{name} has voxels of {spacing} mm, outside {low:g}–{high:g} mm: check its geometry.")
    if np.ptp(volume.data) == 0:
        raise InputError(f"{name} is {volume.data.flat[0]:g} in every voxel: export or copy it again.")


def check_same_grid(volume: Volume, name: str, like: Volume, like_name: str) -> None:
    """Refuse two images whose voxels are not at the same places; neither is resampled here."""
    sizes = [" × ".join(map(str, one.data.shape[:3])) for one in (volume, like)]
    if sizes[0] != sizes[1]:
        raise InputError(f"{name} has {sizes[0]} voxels and {like_name} {sizes[1]}: bring both to one grid.")
    if not volume.on_grid_of(like):
        raise InputError(f"{name} lies elsewhere in space than {like_name} (affines differ): bring both to one grid.")
