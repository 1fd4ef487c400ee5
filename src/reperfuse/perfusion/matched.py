"""What a curve says about its arrival, for any TR and number of frames: its match with curves the artery would make.

Tissue that the bolus reaches after d, with residue function R, follows T(t) = (Ca ⊗ R)(t − d). A curve C with white
noise of standard deviation σ and an unknown baseline tells about (d, R) by its matches alone,

    z(d, R) = ⟨C − C̄, T − T̄⟩ / (σ·‖T − T̄‖),

because the log-likelihood of (d, R), at the best flow, is z²/2 up to a constant (z > 0). The delays and residue
functions of the bank are fixed, so there are as many features for any TR and any number of frames; shape and arrival of
the artery are in the templates, and whoever reads the features need not learn to deconvolve.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import Akima1DInterpolator
from scipy.signal import lfilter
from scipy.special import gammaincc

from reperfuse.errors import InputError
from reperfuse.perfusion.cores import over_chunks
from reperfuse.perfusion.maps import maps_of_curves

DELAYS_S = np.arange(-5.0, 18.0)
"""Delays of the bank [s]: those of a brain, −3 to 15 s, and two seconds more on either side."""

MTTS_S = (2.0, 3.7, 6.8, 12.0, 20.0)
"""Mean transit times of its residue functions [s], evenly in their logarithm."""

COMPARTMENTS = (1, 3, 20)
"""Well-mixed compartments that its blood passes one after the other: one makes the exponential, many nearly a box."""

DISPERSIONS_S = (0.0, 2.0)
"""Means of the exponential transport function between artery and tissue [s]."""

TEMPERATURES = (1.0, 4.0, 16.0, 64.0, 256.0)
"""Log-likelihoods are divided by these before they are weights. 1 is the likelihood itself; the others let more of the
bank speak, where a curve lies between its residue functions or noise is not what was assumed."""

WINDOW_S = 75.0
"""Frames later than this after the artery's peak are left out [s]: there is little but recirculation."""

FINE_S = 0.25
"""Step in which artery and residue function are convolved [s]; a third of what a delay can be told by at SNR 100."""

CHUNK_VOXELS = 1 << 10
"""Voxels at a time: their matches, 3 MB, stay in cache."""

N_KERNELS = len(MTTS_S) * len(COMPARTMENTS) * len(DISPERSIONS_S)
N_CONTEXT = 3 + N_KERNELS
N_FEATURES = 4 * len(TEMPERATURES) + 2 * N_KERNELS + len(DELAYS_S) + 3 + N_CONTEXT
"""Features of a curve, in this order: for each of `TEMPERATURES` mean and spread of delay, then of Tmax, over the
residue functions of the bank [s]; each one's best delay less the mean at the middle temperature [s]; log of 1 + what
its log-likelihood lacks; the square root of the profile likelihood over `DELAYS_S`, its sum one; log of the best match,
of 1 + the misfit, and of the curvature at the best match; and what all curves of a series share, `Bank.context`."""

DELAY_FEATURE, TMAX_FEATURE = 4, 6
"""Columns of the mean delay and the mean Tmax at the second temperature, the most accurate of them: where an estimate
of either can start from."""


@dataclass(frozen=True)
class Bank:
    """Templates for one artery and one TR."""

    templates: NDArray[np.float32]
    """Without mean and of length one, in columns, delays fastest, shape (T', N_KERNELS·len(DELAYS_S))."""
    tmax_offset_s: NDArray[np.float32]
    """Tmax by oSVD without noise less the delay, of each residue function, shape (N_KERNELS,) [s]."""
    context: NDArray[np.float32]
    """log TR, log of the window's length over a minute, log of the artery's width at half maximum, Tmax offsets."""


def matched_features(curves: ArrayLike, aif: ArrayLike, dt: float, noise: ArrayLike) -> NDArray[np.float32]:
    """Features of delay and Tmax of every curve, shape (n, N_FEATURES), finite.

    Parameters
    ----------
    curves
        ΔR2* of tissue, shape (n, T) [1/s].
    aif
        ΔR2* of the artery in any unit, shape (T,).
    dt
        Time between frames [s].
    noise
        Standard deviation of the noise of each curve, shape (n,), or one for all [1/s].

    Raises
    ------
    InputError
        If the AIF has no positive maximum, or noise is not positive.
    ValueError
        If shapes do not fit.

    Examples
    --------
    A later curve, the same features but for the delay:

    >>> t = np.arange(0, 90, 1.5)
    >>> aif = np.where(t > 10, (t - 10.0) ** 3 * np.exp(-(t - 10) / 1.5), 0)
    >>> tissue = np.convolve(aif, np.exp(-t / 5))[:60]
    >>> prompt, late = matched_features(np.stack([tissue, np.roll(tissue, 4)]), aif, 1.5, 1.0)[:, DELAY_FEATURE]
    >>> round(float(late - prompt), 1)
    6.0
    """
    curves, aif = np.asarray(curves, dtype=np.float32), np.asarray(aif, dtype=np.float64)
    if curves.ndim != 2 or aif.shape != curves.shape[1:]:
        raise ValueError(f"AIF has shape {aif.shape}, tissue curves {curves.shape}: expected (T,) and (n, T)")
    sigma = np.broadcast_to(np.asarray(noise, dtype=np.float32), len(curves))
    if not (sigma > 0).all():
        raise InputError("The noise of a curve is not positive: leave out voxels that were not measured.")
    bank = bank_of(aif, dt)
    found = np.empty((len(curves), N_FEATURES), np.float32)

    def chunk(part: slice) -> None:
        np.concatenate(list(_features(curves[part], sigma[part], bank)), axis=1, out=found[part])

    over_chunks(chunk, len(curves), CHUNK_VOXELS)
    return found


def bank_of(aif: NDArray[np.float64], dt: float) -> Bank:
    """The bank of an artery."""
    if not (np.isfinite(aif).all() and aif.max() > 0):
        raise InputError("The AIF has no positive maximum; check the artery mask.")
    times = np.arange(aif.size) * dt
    n = min(aif.size, int((aif.argmax() * dt + WINDOW_S) / dt) + 1)
    fine = np.arange(0, times[-1] + 1e-9, FINE_S)
    # Akima's curve goes through the samples without the swings of a spline before a steep rise.
    arterial = Akima1DInterpolator(times, aif)(fine)
    size = 1 << int(np.ceil(np.log2(2 * fine.size)))
    tissue = np.fft.irfft(np.fft.rfft(arterial, size) * np.fft.rfft(_kernels(fine.size), size), size)[:, : fine.size]
    # Sample j is what has come in until the middle of cell j.
    place = (times[:n, None] - DELAYS_S) / FINE_S - 0.5
    below = np.clip(np.floor(place).astype(int), 0, fine.size - 2)
    share = np.clip(place - below, 0, 1)
    curves = np.where(place < 0, 0, tissue[:, below] * (1 - share) + tissue[:, below + 1] * share)
    prompt = np.ascontiguousarray(curves[:, :, np.searchsorted(DELAYS_S, 0)], dtype=np.float32)
    offset = maps_of_curves(prompt, aif[:n], dt, method="osvd")["tmax"]
    templates = curves.transpose(1, 0, 2).reshape(n, -1)
    templates = templates - templates.mean(axis=0)
    width_s = np.count_nonzero(aif > aif.max() / 2) * dt
    context = np.array([np.log(dt), np.log(n * dt / 60), np.log(width_s), *offset], np.float32)
    # Delays beyond the end of a short series leave templates of zeros, which match nothing.
    length = np.maximum(np.linalg.norm(templates, axis=0), np.finfo(np.float64).tiny)
    return Bank((templates / length).astype(np.float32), offset, context)


@cache
def _all_kernels(n: int) -> NDArray[np.float64]:
    t = (np.arange(n) + 0.5) * FINE_S
    plain = np.stack([gammaincc(c, c * t / mtt) for c in COMPARTMENTS for mtt in MTTS_S])
    banks = []
    for mean_s in DISPERSIONS_S:
        keep = np.exp(-FINE_S / mean_s) if mean_s else 0.0
        banks.append(lfilter([1 - keep], [1, -keep], plain, axis=1))
    return np.concatenate(banks)


def _kernels(n: int) -> NDArray[np.float64]:
    """Residue functions of the bank at the middle of `n` cells, shape (N_KERNELS, n)."""
    return _all_kernels(1 << int(np.ceil(np.log2(n))))[:, :n]


def _features(curves: NDArray[np.float32], sigma: NDArray[np.float32], bank: Bank) -> Iterator[NDArray[np.float32]]:
    """Groups of features of a chunk of curves, each of shape (n, ·)."""
    n = len(bank.templates)
    centred = (curves[:, :n] - curves[:, :n].mean(axis=1, keepdims=True)) / sigma[:, None]
    z = (centred @ bank.templates).reshape(len(curves), N_KERNELS, len(DELAYS_S))
    delay, height, bend = _summit(z)
    likelihood = np.square(height) / 2
    best = likelihood.max(axis=1, keepdims=True)
    lacking = best - likelihood
    means = []
    for temperature in TEMPERATURES:
        weight = np.exp(-lacking / temperature)
        weight /= weight.sum(axis=1, keepdims=True)
        for values in (delay, delay + bank.tmax_offset_s):
            mean = (weight * values).sum(axis=1, keepdims=True)
            means.append(mean)
            yield np.concatenate(
                [mean, np.sqrt((weight * np.square(values - mean)).sum(axis=1, keepdims=True))], axis=1
            )
    yield delay - means[len(TEMPERATURES) // 2 * 2]
    yield np.log1p(lacking)
    profile = np.square(np.maximum(z.max(axis=1), 0)) / 2
    evidence = np.exp(profile - profile.max(axis=1, keepdims=True))
    yield np.sqrt(evidence / evidence.sum(axis=1, keepdims=True))
    misfit = np.maximum(np.square(centred).sum(axis=1, keepdims=True) - 2 * best, 0) / max(n - 4, 1)
    yield np.log(np.maximum(np.sqrt(2 * best), 0.3))
    yield np.log1p(misfit)
    yield np.log(np.maximum(np.take_along_axis(bend, likelihood.argmax(axis=1)[:, None], axis=1), 1e-5))
    yield np.broadcast_to(bank.context, (len(curves), N_CONTEXT))


def _summit(z: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each residue function its best delay [s], the match there (not below 0), and the relative curvature.

    Between the delays of the bank by a parabola, which is what an autocorrelation is near its maximum.
    """
    at = z.argmax(axis=2, keepdims=True)
    inner = np.clip(at, 1, z.shape[2] - 2)
    before, top, after = (np.take_along_axis(z, inner + s, axis=2)[..., 0] for s in (-1, 0, 1))
    curvature = before - 2 * top + after
    shift = np.clip((before - after) / (2 * np.minimum(curvature, -1e-6)), -0.5, 0.5)
    edge = (at != inner)[..., 0]
    step = DELAYS_S[1] - DELAYS_S[0]
    delay = np.where(edge, DELAYS_S[at[..., 0]], DELAYS_S[inner[..., 0]] + shift * step)
    height = np.where(edge, np.take_along_axis(z, at, axis=2)[..., 0], top - (before - after) * shift / 4)
    bend = -curvature / 2 / np.maximum(top, 1e-3)
    return delay.astype(np.float32), np.maximum(height, 0), bend
