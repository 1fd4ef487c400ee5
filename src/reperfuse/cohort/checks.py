"""What every image must be before it enters a tree: finite, of a head's size, at the same place as its partner."""

import gzip
import zlib
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume

SPACING_BOUNDS_MM = (0.1, 30.0)
"""Voxel size [mm] of a head scan, gap included; outside it the unit or the slice positions are wrong."""

LEVEL_TOLERANCE = 1e-3
"""A scale factor in the header makes 0.99999 of a mask's 1."""


def check_whole(path: Path) -> None:
    """Refuse a .gz file whose checksum fails: readers of NIfTI stop at the last voxel, short of the checksum."""
    if not path.name.endswith(".gz"):
        return
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} is cut short or damaged: copy it again from its source.") from error


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


def check_binary(data: NDArray[Any], name: str, *, tolerance: float = 0.0) -> None:
    """Refuse a mask, or the levels of one, with other values than 0 and 1.

    >>> check_binary(np.array([0, 1, 0.9999]), "mask.nii.gz", tolerance=LEVEL_TOLERANCE)
    """
    levels = np.unique(data).astype(float)
    wrong = levels[~(np.minimum(np.abs(levels), np.abs(levels - 1)) <= tolerance)]  # NaN compares as false
    if wrong.size:
        raise InputError(f"{name} holds the value {wrong[-1]:g}: a lesion mask has 0 and 1 only; mend the mask.")


def check_overlap(volume: Volume, name: str, like: Volume, like_name: str) -> None:
    """Refuse two images that share no place in space: no header brings them together."""
    if not _boxes_meet(volume, like):
        raise InputError(f"{name} and {like_name} have no place in common (affines): export both with their geometry.")


def _boxes_meet(one: Volume, other: Volume) -> bool:
    """Whether the boxes of two grids intersect, whatever their obliquity.

    Two convex bodies are apart if and only if a plane separates them, and for boxes it is parallel to a face of one
    or to an edge of each (separating axes: Gottschalk et al. 1996, Proc. SIGGRAPH, 171-180).
    """
    edges = [volume.affine[:3, :3] / volume.spacing_mm for volume in (one, other)]
    normals = [np.cross(box[:, a], box[:, b]) for box in edges for a, b in combinations(range(3), 2)]
    normals += [np.cross(a, b) for a, b in product(edges[0].T, edges[1].T)]
    axes = np.array([normal for normal in normals if np.linalg.norm(normal) > 1e-6])  # parallel edges span no plane
    lows, highs = [], []
    for volume in (one, other):
        corners = np.array(list(product(*((-0.5, n - 0.5) for n in volume.data.shape[:3]))))
        along = (corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]) @ axes.T
        lows.append(along.min(axis=0))
        highs.append(along.max(axis=0))
    return bool((np.maximum(*lows) < np.minimum(*highs)).all())
