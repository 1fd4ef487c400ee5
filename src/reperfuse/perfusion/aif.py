"""The arterial input function, found in the series itself."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster import hierarchy

from reperfuse.errors import InputError

MAX_CANDIDATES = 400
"""Candidates that go into the clustering; its cost grows with their square."""

MAX_VOXELS = 30
"""Voxels averaged at most; more would reach into partial volume."""

SHAPE_CORRELATION = 0.95
"""Curves of one vessel agree at least this well at SNR 20; an artery and a vein that follows it by 2 s do not."""

MAX_ROUGHNESS = 0.3
"""Energy that smoothing may take from a curve: a first pass of 6 s loses 0.01 at TR 1.5 s and 0.08 at TR 3 s, a spike
of one frame all."""

NARROWER = 0.95
"""An artery is at most this part of the mean tissue's width at half height."""

NO_ARTERY = "No voxel looks like an artery (early, high, narrow): give an AIF file or an artery mask."


@dataclass(frozen=True)
class Aif:
    """An arterial input function and where it was measured."""

    curve: NDArray[np.float64]
    """ΔR2* of the artery, shape (T,) [1/s]."""
    voxels: NDArray[np.intp]
    """Array indices i, j, k of the voxels it is the mean of, shape (n, 3)."""


def find_aif(delta_r2star: ArrayLike, dt: float, mask: ArrayLike | None = None) -> Aif:
    """The mean curve of a cluster of voxels that fill early, high and narrow.

    1. Candidates: voxels whose (lightly smoothed) peak reaches half of the tenth highest peak, stands out of tissue and
       noise, and comes no later than the bolus of the mean tissue.
    2. Rough ones go: those that lose more than `MAX_ROUGHNESS` of their energy to the smoothing.
    3. What remains is clustered by shape (average linkage, cut at `SHAPE_CORRELATION`). Of the clusters with at least
       three voxels that are clearly narrower at half height than the mean tissue, the one with the smallest sum of
       first moment and width is the artery: veins have arteries' height but come later and wider.
    4. The mean of its highest voxels, at most `MAX_VOXELS`, is the AIF.

    Parameters
    ----------
    delta_r2star
        ΔR2*, shape (I, J, K, T) [1/s].
    dt
        Time between frames [s].
    mask
        Where to look, shape (I, J, K); everywhere when not given.

    Raises
    ------
    InputError
        If nothing looks like an artery.

    References
    ----------
    In its steps after Mouridsen K et al., Magn Reson Med 2006;55:524–531. Ours: height instead of area for the
    candidates; a fixed limit of roughness, where dropping the roughest quarter drops the arteries first if they are
    few, being sharp; and hierarchical clustering, which needs no seed.
    """
    curves_4d = np.asarray(delta_r2star)
    if curves_4d.ndim != 4:
        raise ValueError(f"delta_r2star has {curves_4d.ndim} axes, expected (I, J, K, T)")
    where = np.ones(curves_4d.shape[:3], bool) if mask is None else np.asarray(mask, dtype=bool)
    if not where.any():
        raise InputError("The mask has no voxel, so no artery can be found in it: give a mask that covers the brain.")
    voxels, curves = np.argwhere(where), curves_4d[where]

    smooth = _smoothed(curves)
    height, peak = smooth.max(axis=1), smooth.argmax(axis=1)
    tissue = smooth.mean(axis=0)
    # From the lower quartile of the steps: at a TR of 3 s the bolus makes half of them.
    noise = np.quantile(np.abs(np.diff(curves, axis=1)), 0.25, axis=1) / (0.3186 * np.sqrt(2))
    tenth = np.sort(height)[-min(10, height.size)]
    chosen = np.flatnonzero(
        (height >= 0.5 * tenth)
        & (height > 6 * noise)
        & (height > 1.5 * np.median(height))
        & (peak <= tissue.argmax())
        & (peak > 0)
    )
    if chosen.size < 3:
        raise InputError(NO_ARTERY)
    chosen = chosen[np.argsort(-height[chosen], kind="stable")][:MAX_CANDIDATES]
    rough = ((curves[chosen] - smooth[chosen]) ** 2).sum(axis=1) / (smooth[chosen] ** 2).sum(axis=1)
    chosen = chosen[rough < MAX_ROUGHNESS]
    if chosen.size < 3:
        raise InputError(NO_ARTERY)

    labels = _clusters(smooth[chosen])
    sizes = np.bincount(labels)
    means = {n: smooth[chosen[labels == n]].mean(axis=0) for n in np.flatnonzero(sizes >= min(3, sizes.max()))}
    widest = NARROWER * _moment_and_width(tissue, dt)[1]
    times = {n: _moment_and_width(curve, dt) for n, curve in means.items()}
    narrow = {n: moment + width for n, (moment, width) in times.items() if width < widest}
    if not narrow:
        raise InputError(NO_ARTERY)
    cluster = min(narrow, key=lambda n: narrow[n])
    members = chosen[labels == cluster][:MAX_VOXELS]  # still in order of height
    return Aif(curve=curves[members].mean(axis=0, dtype=np.float64), voxels=voxels[members])


def _smoothed(curves: NDArray[Any]) -> NDArray[Any]:
    """The curves under weights 1/4, 1/2, 1/4, ends held."""
    padded = np.pad(curves, ((0, 0), (1, 1)), mode="edge")
    return (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4


def _clusters(curves: NDArray[Any]) -> NDArray[Any]:
    """A label from 0 for each curve; curves of one label correlate by `SHAPE_CORRELATION` on average."""
    tree = hierarchy.linkage(curves, method="average", metric="correlation")
    return hierarchy.fcluster(tree, t=1 - SHAPE_CORRELATION, criterion="distance") - 1


def _moment_and_width(curve: NDArray[Any], dt: float) -> tuple[float, float]:
    """First moment of the bolus above half of its maximum, and its width there, both between samples [s]."""
    peak, half = int(curve.argmax()), 0.5 * float(curve.max())
    low = high = peak
    while low > 0 and curve[low - 1] > half:
        low -= 1
    while high < curve.size - 1 and curve[high + 1] > half:
        high += 1
    before = float((curve[low] - half) / (curve[low] - curve[low - 1])) if low > 0 else 0.0
    after = float((curve[high] - half) / (curve[high] - curve[high + 1])) if high < curve.size - 1 else 0.0
    moment = float(np.average(np.arange(low, high + 1), weights=curve[low : high + 1]))
    return dt * moment, dt * (high - low + before + after)
