"""Slices: where those of a stack lie, and what each of them sees of the voxels, as matrices (slice, voxel).

All lengths are in source voxels and positions are counted from the centre of the first, unless a name says mm.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import make_interp_spline

from reperfuse.errors import InputError

FWHM_PER_SIGMA = 2.355
"""Full width at half maximum of a Gaussian over its standard deviation, 2·sqrt(2·ln 2)."""


def slice_centres(
    n: int, source_mm: float, thickness_mm: float, spacing_mm: float, offset_mm: float = 0.0
) -> NDArray[np.float64]:
    """Where the slices of the stack of `thick_slices` are centred, in source voxels from the first, shape (m,).

    Parameters
    ----------
    n, source_mm
        Source voxels along the axis and their spacing [mm].

    Raises
    ------
    InputError
        If the spacing is not positive, or no slice would lie in the image.

    Examples
    --------
    >>> slice_centres(20, 1.0, 5.0, 5.0).tolist()
    [2.0, 7.0, 12.0, 17.0]
    """
    if not (spacing_mm > 0 and np.isfinite(spacing_mm) and np.isfinite(thickness_mm)):
        raise InputError(
            f"A slice spacing of {spacing_mm:g} mm for slices of {thickness_mm:g} mm cannot be sampled: give positive "
            "millimetres."
        )
    thickness, step = snapped(thickness_mm / source_mm), snapped(spacing_mm / source_mm)
    m = max(1, int(np.ceil((n - thickness) / step - 1e-6)) + 1)
    centres = first_centre(n, m, step) + offset_mm / source_mm + step * np.arange(m, dtype=np.float64)
    if not (centres[-1] > -0.5 and centres[0] < n - 0.5):  # nan fails too
        raise InputError(
            f"An offset of {offset_mm:g} mm moves the slices out of the image, {n * source_mm:g} mm long: give a "
            "smaller one."
        )
    return centres


def slice_shape(profile: ArrayLike) -> NDArray[np.float64]:
    """A measured slice profile as the shape of a slice: centre of mass 0, full width at half maximum 1, integral 1.

    Between its positions the profile is a line, beyond them 0. The half maxima are those next to the highest weight, so
    that side lobes, negative ones too, widen nothing.

    Parameters
    ----------
    profile
        Position, increasing, in any unit, and weight, in any unit, shape (N, 2), N at least 3.

    Raises
    ------
    InputError
        If positions do not increase, or the weights make no slice.

    Examples
    --------
    >>> slice_shape([[3, 0], [7, 50], [11, 0]]).tolist()  # a triangle as wide as 4 at half its height
    [[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    table = np.asarray(profile, dtype=float)
    if table.ndim != 2 or table.shape[1] != 2 or len(table) < 3 or not np.isfinite(table).all():
        raise InputError("A slice profile needs at least 3 positions, each with its weight: measure more of them.")
    x, weight = table.T
    if not (np.diff(x) > 0).all():
        raise InputError("The positions of a slice profile must increase: sort them, each once.")
    if not _integral(x, weight) > 0:
        raise InputError("The weights of a slice profile must sum to more than 0: check their sign and baseline.")
    top = int(np.argmax(weight))
    below = weight < weight[top] / 2
    if not (below[:top].any() and below[top:].any()):
        raise InputError(
            "A slice profile must fall below half of its maximum on both sides: measure it further from its centre."
        )
    left, right = np.flatnonzero(below[:top])[-1], top + np.flatnonzero(below[top:])[0]
    half = [np.interp(weight[top] / 2, weight[[a, b]], x[[a, b]]) for a, b in ((left, left + 1), (right, right - 1))]
    x = (x - _integral(x, weight, moment=True) / _integral(x, weight)) / (half[1] - half[0])
    return np.stack([x, weight / _integral(x, weight)], axis=1)


def _integral(x: NDArray[Any], weight: NDArray[Any], *, moment: bool = False) -> float:
    """∫ weight dx of straight lines between the positions, or ∫ x·weight dx, by Simpson's rule, which is exact."""
    by = x if moment else np.ones_like(x)
    middle = (by[1:] + by[:-1]) / 2 * (weight[1:] + weight[:-1]) / 2
    return float((np.diff(x) / 6 * (by[:-1] * weight[:-1] + 4 * middle + by[1:] * weight[1:])).sum())


def first_centre(n: int, m: int, step: float) -> float:
    """Position of the first of `m` samples `step` apart that share the centre of `n` voxels [voxels]."""
    return ((n - 1) - (m - 1) * step) / 2


def snapped(ratio: float) -> float:
    """The ratio, or the whole number that header rounding moved it from."""
    return float(round(ratio)) if abs(ratio - round(ratio)) < 1e-4 else float(ratio)


def slice_weights(
    positions: NDArray[Any], n: int, thickness: float, profile: str | NDArray[Any]
) -> NDArray[np.float64]:
    """Matrix (m, n) of the slices centred at `positions`; every row sums to 1. All lengths in source voxels."""
    f = (positions - np.floor(positions))[:, None]
    if isinstance(profile, str):
        offsets, rows = (_box_rows if profile == "box" else _gaussian_rows)(f, thickness)
    else:
        offsets, rows = _measured_rows(f, thickness, profile)
    rows /= rows.sum(1, keepdims=True)
    columns = (np.floor(positions).astype(int)[:, None] + offsets) % (2 * n)
    columns = np.where(columns < n, columns, 2 * n - 1 - columns)  # mirrored at the voxel's outer face
    weights = np.zeros((len(positions), n))
    np.add.at(weights, (np.arange(len(positions))[:, None], columns), rows)
    return weights


def _box_rows(f: NDArray[Any], thickness: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Source voxels (O,) and their weights (m, O) for slices `f` (m, 1), from 0 to 1, beyond a voxel's centre."""
    reach = int(np.ceil(thickness / 2)) + 1
    offsets = np.arange(-reach, reach + 2)
    low, high = f - thickness / 2, f + thickness / 2
    return offsets, np.clip(np.minimum(high, offsets + 0.5) - np.maximum(low, offsets - 0.5), 0, None)


def _gaussian_rows(f: NDArray[Any], thickness: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """As `_box_rows`, for a Gaussian."""
    variance = max(thickness**2 - 1, 0) / FWHM_PER_SIGMA**2
    reach = int(np.ceil(4 * np.sqrt(variance))) + 1
    offsets = np.arange(-reach, reach + 2)
    # Between two voxels: a Gaussian about each of them, mixed by distance, so that the first moment is the slice's
    # centre; less the f(1 − f) that mixing adds, so that the variance is σ². As σ → 0 this is linear interpolation.
    own = np.maximum(variance - f * (1 - f), 1e-12)
    here, there = (np.exp(-((offsets - c) ** 2) / (2 * own)) for c in (0, 1))
    return offsets, (1 - f) * here / here.sum(1, keepdims=True) + f * there / there.sum(1, keepdims=True)


def _measured_rows(f: NDArray[Any], thickness: float, shape: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """As `_box_rows`, for a shape of `slice_shape`."""
    x, weight = shape.T
    # Narrower by as much as averaging over a voxel, variance 1/12, widens a Gaussian: right for a bell and, unlike the
    # shape's own variance, defined where negative side lobes leave none.
    width = np.sqrt(max(thickness**2 - 1 - FWHM_PER_SIGMA**2 / 12, 1e-12))
    reach = int(np.ceil(np.abs(x).max() * width)) + 2
    offsets = np.arange(-reach, reach + 2)
    slope = np.diff(weight) / np.diff(x)
    cumulated = np.append(0, np.cumsum(np.diff(x) * (weight[1:] + weight[:-1]) / 2))

    def up_to(edge: NDArray[Any]) -> NDArray[Any]:
        edge = np.clip(edge / width, x[0], x[-1])
        i = np.clip(np.searchsorted(x, edge, side="right") - 1, 0, len(x) - 2)
        return cumulated[i] + (edge - x[i]) * (weight[i] + slope[i] * (edge - x[i]) / 2)

    rows = up_to(offsets - f + 0.5) - up_to(offsets - f - 0.5)
    rows /= rows.sum(1, keepdims=True)
    # Averaging over voxels moves the centre of mass, of a narrow profile as far as the nearest voxel: moved back by
    # mixing with the next one, which as the width goes to 0 is linear interpolation.
    beyond = (rows * offsets).sum(1, keepdims=True) - f
    moved = np.where(beyond > 0, np.roll(rows, -1, axis=1), np.roll(rows, 1, axis=1))
    return offsets, (1 - np.abs(beyond)) * rows + np.abs(beyond) * moved


def linear_weights(positions: NDArray[Any], n: int) -> NDArray[np.float64]:
    """Matrix (m, n) that reads n samples at m positions by linear interpolation, ends held."""
    positions = np.clip(positions, 0, n - 1)
    low = np.minimum(positions.astype(int), max(n - 2, 0))
    weights = np.zeros((len(positions), n))
    rows = np.arange(len(positions))
    weights[rows, low] = 1 - (positions - low)
    if n > 1:
        weights[rows, low + 1] = positions - low
    return weights


def nearest_weights(positions: NDArray[Any], n: int) -> NDArray[np.float64]:
    """Matrix (m, n) that reads the nearest of n samples at m positions; of two as near the later one."""
    return np.eye(n)[np.clip(np.floor(positions + 0.5).astype(int), 0, n - 1)]


def cubic_weights(positions: NDArray[Any], n: int) -> NDArray[np.float64]:
    """Matrix (m, n) of the cubic spline through n samples, not-a-knot, at m positions; ends held."""
    if n < 4:  # too few for a cubic
        return linear_weights(positions, n)
    return np.asarray(make_interp_spline(np.arange(n), np.eye(n), k=3)(np.clip(positions, 0, n - 1)))


INTERPOLATIONS = {"linear": linear_weights, "nearest": nearest_weights, "cubic": cubic_weights}
"""Name to the matrix that reads samples between their places."""
