"""What a sample holds: a window of memory-mapped volumes, straight or turned, and nothing but zeros beyond them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Image (C, I, J, K) float32, target (1, I, J, K) and mask (I, J, K)."""

Matrix = NDArray[np.float64]
"""3 × 3, from an offset to the centre of a sample [voxels] to that in the volume."""


def window(
    parts: Sequence[np.ndarray], target: np.ndarray, mask: np.ndarray, corner: Sequence[int], size: Sequence[int]
) -> Arrays:
    """The voxels from `corner` on, `size` of them; zeros outside the mask where the volume ends.

    Parameters
    ----------
    parts
        The image as runs of channels (c, I, J, K), of which only the window is read.
    target, mask
        Shape (1, I, J, K) and (I, J, K).
    corner
        First voxel along each axis; may lie before the volume.
    """
    low = [max(start, 0) for start in corner]
    high = [min(start + length, have) for start, length, have in zip(corner, size, mask.shape, strict=True)]
    where: tuple[Any, ...] = (..., *(slice(*ends) for ends in zip(low, high, strict=True)))
    # In single precision from here on: the deviation of a half-precision image may not fit half precision.
    image = np.concatenate([part[where] for part in parts], dtype=np.float32)
    target, mask = np.asarray(target[where]), np.asarray(mask[where])
    missing = [
        (first - start, start + length - last)
        for start, length, first, last in zip(corner, size, low, high, strict=True)
    ]
    if any(map(any, missing)):
        image, target = (np.pad(array, [(0, 0), *missing]) for array in (image, target))
        mask = np.pad(mask, missing)
    return image, target, mask


def turned_window(
    parts: Sequence[np.ndarray],
    target: np.ndarray,
    mask: np.ndarray,
    corner: Sequence[int],
    size: Sequence[int],
    turn: Matrix,
) -> Arrays:
    """As `window`, rotated and scaled about its own centre: voxel c + o holds what lies at c + `turn`·o.

    What turns into view is read from the volume, as far as it goes, so that corners are black only where the volume
    ends. Everything is interpolated once and linearly. A target of whole numbers is a label and stays 0 or 1, 1 from
    one half on, as the mask. Another is a value: its mean over those of its eight neighbours that are inside the mask,
    weighted as in linear interpolation, for beyond the mask it is not known.
    """
    half = (np.array(size) - 1) / 2
    middle = np.array(corner) + half
    reach = np.abs(turn) @ half
    # Rounding must not fetch a slice more than there is to see.
    low = np.clip(np.floor(middle - reach + 1e-6).astype(int), 0, np.array(mask.shape) - 1)
    high = np.clip(np.ceil(middle + reach - 1e-6).astype(int) + 1, low + 1, mask.shape)
    arrays = window(parts, target, mask, low.tolist(), (high - low).tolist())
    return _resampled(arrays, turn, middle - low, size)


def _resampled(arrays: Arrays, turn: Matrix, centre: NDArray[np.float64], size: Sequence[int]) -> Arrays:
    image, target, mask = arrays
    inside = mask[None] > 0
    is_label = target.dtype.kind in "biu"
    values = target > 0 if is_label else np.where(inside, target, 0)
    stack = np.concatenate([image, values, inside], dtype=np.float32)
    grid = functional.affine_grid(_theta(turn, centre, mask.shape, size), [1, len(stack), *size], align_corners=False)
    found = functional.grid_sample(torch.from_numpy(stack)[None], grid, align_corners=False)[0].numpy()
    image, values, share = np.split(found, [len(image), -1])
    inside = share >= 0.5
    if is_label:
        target = (values >= 0.5).astype(target.dtype)
    else:
        target = np.where(inside, values / np.maximum(share, 0.5), 0).astype(target.dtype)
    return image, target, inside[0].astype(mask.dtype)


def _theta(turn: Matrix, centre: NDArray[np.float64], have: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    # PyTorch's grids run from −1 to 1 over the outer edges of the voxels, last axis first: voxel v of n lies at
    # (2v + 1)/n − 1, and the offset of −1 … 1 from the centre of a sample of s voxels is s/2 times that.
    scale = 2 / np.array(have)
    matrix = scale[:, None] * turn * np.array(size) / 2
    shift = scale * (centre + 0.5) - 1
    return torch.from_numpy(np.column_stack([matrix[::-1, ::-1], shift[::-1]]).astype(np.float32))[None]
