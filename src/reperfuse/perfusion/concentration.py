"""From signal to contrast agent: bolus arrival, baseline, ΔR2*.

A DSC series falls into three parts: leading frames in which the magnetisation has not reached its steady state (too
bright), the baseline, and the passage of the bolus, where T2* shortening makes the signal drop.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperfuse.errors import InputError

NOISE_FLOOR = 0.02
"""Smallest signal taken at face value, as a fraction of baseline. Below it a magnitude image shows noise, not contrast
agent; at TE 30 ms it caps ΔR2* at 130 1/s, above any tissue and above most arteries."""

UNSTEADY_FRACTION = 0.02
"""A leading frame this much above baseline has not reached its steady state."""

MIN_FRAMES = 5
"""Fewer frames cannot hold a baseline and a passage."""

MEAN_BOLUS_FRACTION = 0.01
"""Smallest drop of the mean signal that is called a bolus; clinical series show 0.1 to 0.5."""


def mean_curve(signal: ArrayLike) -> NDArray[np.float64]:
    """The mean signal of each frame, shape (T,), over the voxels measured in it.

    Samples that are not finite or not positive do not count; frames without any are interpolated in time.

    Parameters
    ----------
    signal
        Shape (..., T), one voxel or many.
    """
    signal = np.asarray(signal)
    signal = signal.reshape(-1, signal.shape[-1])
    measured = np.isfinite(signal) & (signal > 0)
    count = measured.sum(axis=0)
    if not count.any():
        raise InputError("The series has no signal: every frame is zero or not a number.")
    total = np.where(measured, signal, 0).sum(axis=0, dtype=np.float64)
    there = np.flatnonzero(count)
    return np.interp(np.arange(count.size), there, total[there] / count[there])


def unsteady_frames(mean_signal: ArrayLike) -> int:
    """How many leading frames are brighter than the baseline and must be left out.

    Parameters
    ----------
    mean_signal
        Signal averaged over the brain, shape (T,).

    Examples
    --------
    >>> unsteady_frames([160, 120, 101, 100, 100, 100, 100, 80, 60, 70, 80])
    2
    """
    signal, _, _, level, noise = _baseline_level(mean_signal)
    steady = np.flatnonzero(signal <= level + max(UNSTEADY_FRACTION * level, 4 * noise))
    return int(steady[0])


def bolus_arrival(mean_signal: ArrayLike) -> int:
    """Index of the first frame in which the mean signal has left its baseline for the bolus.

    The last frame before the lowest one in which −ln(S/S0) is below 5 % of its peak, or in the noise, ends the
    baseline. Arteries fill a frame or two before this.

    Parameters
    ----------
    mean_signal
        Signal averaged over the brain, shape (T,).

    Raises
    ------
    InputError
        If there are fewer than 5 frames, no signal, no drop that stands out of the noise, or no baseline before it.

    Examples
    --------
    >>> bolus_arrival([160, 120, 101, 100, 100, 100, 100, 80, 60, 70, 80])
    7
    """
    signal, foot, lowest, level, noise = _baseline_level(mean_signal)
    drop = np.log(level / np.maximum(signal, 1e-3 * level))
    if drop[lowest] < max(MEAN_BOLUS_FRACTION, 5 * noise / level):
        raise InputError(
            "No contrast bolus passes: the mean signal never falls clearly below its baseline; "
            "check that this is a DSC series."
        )
    if foot == 0:
        raise InputError(
            "The bolus is there from the first frame on, so there is no baseline: the series began too late."
        )
    quiet = np.flatnonzero(drop[:lowest] <= max(0.05 * drop[lowest], 3 * noise / level))
    return int(quiet[-1]) + 1 if quiet.size else 0


def baseline_frames(mean_signal: ArrayLike) -> slice:
    """The frames between steady state and the first arteries, as a slice.

    Two frames before the arrival of the mean curve are left out where enough remain, because arteries lead the tissue.

    Raises
    ------
    InputError
        If there is no bolus, or it is there from the first frame on.

    Examples
    --------
    >>> baseline_frames([160, 120, 101, 100, 100, 100, 100, 80, 60, 70, 80])
    slice(2, 5, None)
    """
    start, arrival = unsteady_frames(mean_signal), bolus_arrival(mean_signal)
    return slice(start, max(arrival - 2, min(start + 3, arrival), start + 1))


def delta_r2star(
    signal: ArrayLike, te: float, *, baseline: slice | None = None, noise_floor: float = NOISE_FLOOR
) -> NDArray[np.float32]:
    """The change of transverse relaxation rate, which is proportional to the concentration of contrast agent.

    ΔR2*(t) = −ln(S(t)/S0)/TE with S0 the mean over the baseline frames.

    Guards. S/S0 below `noise_floor` counts as `noise_floor`. Samples that are not finite or not positive were not
    measured (ingest fills a missing image with zeros): they are interpolated linearly in time between their measured
    neighbours. Frames before the baseline are not in steady state and become 0. A voxel that has no baseline, or where
    less than half of the frames are measured, becomes 0 everywhere.

    Parameters
    ----------
    signal
        Shape (..., T).
    te
        Echo time [s].
    baseline
        Baseline frames; found on the mean over all voxels when not given (`baseline_frames`).
    noise_floor
        Smallest S/S0 believed.

    Returns
    -------
    ΔR2*, shape (..., T) [1/s], finite everywhere.

    Raises
    ------
    InputError
        If TE is not a plausible number of seconds, or no bolus or baseline is found.

    Examples
    --------
    >>> signal = 100 * np.exp(-0.03 * np.array([0, 0, 0, 0, 10, 30, 20, 5.0]))
    >>> delta_r2star(signal, te=0.03, baseline=slice(0, 4)).round(3).tolist()
    [0.0, 0.0, 0.0, 0.0, 10.0, 30.0, 20.0, 5.0]
    """
    if not 0 < te < 0.5:
        raise InputError(f"An echo time of {te} s is implausible: give TE in seconds, such as 0.03.")
    signal = np.asarray(signal, dtype=np.float32)
    measured = np.isfinite(signal) & (signal > 0)
    if baseline is None:
        baseline = baseline_frames(mean_curve(signal))
    signal, believed = _filled(signal, measured)
    s0 = signal[..., baseline].mean(axis=-1, keepdims=True)
    believed &= np.isfinite(s0[..., 0]) & (s0[..., 0] > 0)
    ratio = signal / np.where(believed[..., None], s0, 1)
    np.clip(ratio, noise_floor, None, out=ratio)
    result = np.log(ratio, out=ratio)
    result *= np.float32(-1 / te)
    result += 0  # no negative zeros
    result[~believed] = 0
    result[..., : baseline.indices(signal.shape[-1])[0]] = 0
    return result


def _filled(signal: NDArray[np.float32], measured: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The signal with unmeasured samples interpolated in time, and which voxels have half of theirs measured."""
    believed = measured.mean(axis=-1) >= 0.5
    filled = np.where(believed[..., None], signal, np.float32(1))
    n_frames = signal.shape[-1]
    flat, seen = filled.reshape(-1, n_frames), measured.reshape(-1, n_frames)
    gappy = np.flatnonzero(believed.ravel() & ~seen.all(axis=1))
    if not gappy.size:
        return filled, believed
    # A missing image leaves the same gap in every voxel of its slice: one interpolation per pattern of gaps.
    patterns, which = np.unique(seen[gappy], axis=0, return_inverse=True)
    order = np.argsort(which.ravel(), kind="stable")
    groups = np.split(gappy[order], np.cumsum(np.bincount(which.ravel()))[:-1])
    for good, rows in zip(patterns, groups, strict=True):
        known = flat[rows][:, good]
        places = np.interp(np.arange(n_frames), np.flatnonzero(good), np.arange(known.shape[1]))
        low = np.minimum(places.astype(int), known.shape[1] - 2)
        weight = (places - low).astype(np.float32)
        flat[rows] = known[:, low] * (1 - weight) + known[:, low + 1] * weight
    return flat.reshape(signal.shape), believed


def _baseline_level(mean_signal: ArrayLike) -> tuple[NDArray[np.float64], int, int, float, float]:
    """The checked mean curve, where its slope begins and ends, its baseline and its noise (standard deviation)."""
    signal = np.asarray(mean_signal, dtype=np.float64)
    if signal.ndim != 1:
        raise ValueError(f"mean_signal has {signal.ndim} axes, expected (T,)")
    if signal.size < MIN_FRAMES:
        raise InputError(f"{signal.size} frames are too few to find a bolus: give the whole series.")
    if not np.isfinite(signal).all() or not signal.max() > 0:
        raise InputError("The series has no signal: every frame is zero or not a number.")
    # The lower quartile of the steps, not their median: in a short series the bolus may make most of them.
    noise = float(np.quantile(np.abs(np.diff(signal)), 0.25)) / (0.3186 * np.sqrt(2))
    # A running mean of three keeps one bad frame from being taken for the bolus.
    smooth = np.convolve(np.pad(signal, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    lowest = int(smooth.argmin())
    # Up the slope, back in time: past half of the depth, then on until the curve is flat. Leading frames that are too
    # bright do not mislead this walk, as they would a maximum or a mean over everything before the bolus.
    half = (np.median(smooth[: lowest + 1]) + smooth[lowest]) / 2
    foot = lowest
    while foot > 0 and smooth[foot] <= half:
        foot -= 1
    while foot > 0 and smooth[foot - 1] - smooth[foot] > 0.03 * (smooth[foot] - smooth[lowest]):
        foot -= 1
    level = float(np.median(signal[foot // 2 : max(foot, 1)]))
    return signal, foot, lowest, level, noise
