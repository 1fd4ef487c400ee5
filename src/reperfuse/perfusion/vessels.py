"""What tells blood vessels from tissue: height, width and time of their curves, and how alike the curves are.

Tissue and veins hold what arteries brought, C = Ca ⊗ h with h ≥ 0. A convolution adds widths and delays, so nothing
downstream is narrower, steeper or earlier than its artery; and mixing an artery's signal with tissue's, or losing its
peak in the noise, only widens what is seen. Hence one measure for all: the steepest early curve is nearest to Ca.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

SMOOTHING_S = 1.3
"""Standard deviation [s] of the three-frame kernel that curves are seen through: weights (1, 2, 1)/4 at TR 1.5 s, none
to speak of at TR 4 s. Narrower than any bolus that has passed heart and lungs."""

MAX_CANDIDATES = 400
"""Curves that go into the clustering; its cost grows with their square."""

MIN_CLUSTER = 3
"""Voxels that must agree to be a vessel: noise makes one look like anything, seldom three alike."""

SHAPE_CORRELATION = 0.96
"""Mean correlation at which curves have one shape, noise taken out of it; 0.95 to 0.98 find the same arteries in 194 to
197 of 200 drawn phantoms. Noise-free, an artery and tissue of MTT 4 s without delay are at 0.9."""

MIN_SNR = 6.0
"""Peak of a voxel's curve over its noise, at least."""

ALIVE = 1e-4
"""Height over the highest curve's below which a curve is 0 but for rounding: a voxel that was not measured, or holds
the same number in every frame. Noise alone stands a hundred times higher."""

MAX_ROUGHNESS = 0.3
"""Energy that smoothing may take from a curve, over what it leaves: a first pass of 6 s loses 0.01 at TR 1.5 s, a spike
of one frame more than all. At a TR above 3 s smoothing does nothing, and only `MIN_CLUSTER` guards against spikes."""

ABOVE_TISSUE = 1.2
"""Height of a voxel of a vessel over the median height, at least; on drawn phantoms arteries have 1.3 (mixed with
tissue, beside grey matter of CBV 7) to 5. What is not so high is tissue, and leaves room among the candidates."""

OF_THE_HIGHEST = 0.4
"""Height of a candidate over the tenth highest, at least: lower ones are mostly tissue."""

ENOUGH = 0.02
"""Noise of the mean curve over its height that is small enough: highest and purest voxels first, more are averaged only
until this is reached, since every further one holds less blood."""

FWHM_OF_GAUSSIAN = 2 * np.sqrt(2 * np.log(2) / np.pi)
"""FWHM of a Gaussian over ∫C²/max(C)²."""


class Bolus(NamedTuple):
    """Height, width and time of each curve; fields of shape (n,)."""

    height: NDArray[Any]
    """Maximum [1/s]."""
    width_s: NDArray[Any]
    """Width at half height [s] of the Gaussian of equal ∫C²/max(C)². Unlike the width read off at half height it uses
    every sample, so it hardly depends on where in a coarse frame the peak falls; and squares see little of tails."""
    half_rise_s: NDArray[Any]
    """When the curve rises through half of its height [s], between frames."""


def bolus_of(curves: NDArray[Any], dt: float) -> Bolus:
    """Height, width and time of (smoothed) curves, shape (n, T).

    A curve that is never positive has no bolus: its width is 0, and it rises at the end of the series.

    Examples
    --------
    >>> t = np.arange(0, 60, 1.5)
    >>> bolus = bolus_of(3 * np.exp(-0.5 * ((t - 21) / 2.5) ** 2)[None], 1.5)
    >>> round(float(bolus.width_s[0]), 1), round(float(bolus.half_rise_s[0]), 1)  # 2.355 · 2.5; 21 less half of it
    (5.9, 18.1)
    """
    rows, n_frames = np.arange(len(curves)), curves.shape[1]
    peak = curves.argmax(axis=1)
    height = curves[rows, peak]
    rises = height > 0
    # Clipped first: what is far below zero, over a height of next to nothing, overflows.
    relative = np.clip(curves, 0, np.where(rises, height, 0)[:, None]) / np.where(rises, height, 1)[:, None]
    width = FWHM_OF_GAUSSIAN * dt * np.einsum("nt,nt->n", relative, relative)
    low = (relative < 0.5) & (np.arange(n_frames) < peak[:, None])
    last = np.where(low.any(axis=1), n_frames - 1 - low[:, ::-1].argmax(axis=1), 0)
    before, after = relative[rows, last], relative[rows, np.minimum(last + 1, n_frames - 1)]
    step = np.where(after > before, (0.5 - before) / np.where(after > before, after - before, 1), 0)
    half_rise = np.where(rises, last + np.where(low.any(axis=1), step, 0), n_frames - 1)
    return Bolus(height, width, dt * half_rise)


def smoothed(curves: NDArray[Any], dt: float) -> NDArray[Any]:
    """The curves, shape (n, T), under a three-frame Gaussian of `SMOOTHING_S`, ends held."""
    side = float(np.exp(-0.5 * (dt / SMOOTHING_S) ** 2))
    padded = np.pad(curves, ((0, 0), (1, 1)), mode="edge")
    result = padded[:, :-2] + padded[:, 2:]
    result *= side
    result += curves
    result /= 1 + 2 * side
    return result


def noise_of(curves: NDArray[Any]) -> NDArray[Any]:
    """Standard deviation of the noise of each curve, shape (n,).

    From the lower quartile of second differences, which no slope enters; at a TR of 3 s the bolus makes half of them.
    """
    bends = np.abs(np.diff(curves, n=2, axis=1))
    quartile = (bends.shape[1] - 1) // 4
    return np.partition(bends, quartile, axis=1)[:, quartile] / (0.3186 * np.sqrt(6))


def roughness_of(curves: NDArray[Any], smooth: NDArray[Any]) -> NDArray[Any]:
    """Energy that smoothing took from each curve over what it left, shape (n,)."""
    left = np.einsum("nt,nt->n", smooth, smooth)
    rest = curves - smooth
    return np.einsum("nt,nt->n", rest, rest) / np.maximum(left, np.finfo(np.float32).tiny)


def clusters(curves: NDArray[Any], noise: float, dt: float) -> NDArray[np.intp]:
    """A label from 0 for each smoothed curve; curves of one label have one shape (average linkage).

    Correlations are corrected for attenuation: noise of variance σ² lets two curves of one shape and variance s² (noise
    included) correlate by 1 − σ²/s² only, and is divided out, so that one limit holds at any SNR.

    Parameters
    ----------
    curves
        Shape (n, T).
    noise
        Standard deviation of the noise before smoothing.
    dt
        Time between frames [s].
    """
    side = float(np.exp(-0.5 * (dt / SMOOTHING_S) ** 2))
    left = noise**2 * (1 + 2 * side**2) / (1 + 2 * side) ** 2
    centred = curves - curves.mean(axis=1, keepdims=True)
    variance = np.maximum((centred**2).mean(axis=1), np.finfo(np.float32).tiny)
    centred /= np.sqrt(curves.shape[1] * variance)[:, None]
    reliable = np.sqrt(np.clip(1 - left / variance, 0.3, 1))
    distance = 1 - np.minimum(centred @ centred.T / (reliable[:, None] * reliable), 1)
    np.fill_diagonal(distance, 0)
    tree = hierarchy.linkage(squareform(distance, checks=False), method="average")
    return hierarchy.fcluster(tree, t=1 - SHAPE_CORRELATION, criterion="distance").astype(np.intp) - 1


def purest(order: NDArray[np.intp], height: NDArray[Any], noise: float, least: int, most: int) -> NDArray[np.intp]:
    """The first of `order`, as many as bring the noise of their mean below `ENOUGH` of their height."""
    needed = (noise / (ENOUGH * float(np.median(height[order[:least]])))) ** 2
    return order[: int(np.clip(np.ceil(needed), least, most))]
