"""From signal to contrast agent: ΔR2*, its noise, how far it can be believed, and its integral.

The frames of the baseline and of the bolus are found in `perfusion.bolus`.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, polygamma

from reperfuse.errors import InputError
from reperfuse.perfusion.bolus import (
    baseline_frames,
    bolus_arrival,
    first_pass,
    mean_curve,
    unsteady_frames,
)

__all__ = [
    "baseline_frames",
    "bolus_arrival",
    "delta_r2star",
    "first_pass",
    "integrated",
    "mean_curve",
    "negative_areas",
    "noise_sigma",
    "reliable_ceiling",
    "unsteady_frames",
]

NOISE_FLOOR = 0.02
"""Smallest signal taken at face value, as a fraction of baseline. Below it a magnitude image shows noise, not contrast
agent; at TE 30 ms it caps ΔR2* at 130 1/s, above any tissue and above most arteries."""

FLOOR_SIGMAS = 2.0
"""Signal [noise σ] below which a magnitude image no longer follows its true value. The logarithm of a Rician magnitude
with true value A is biased by ½·E₁(A²/2σ²): 0.02 at A = 2σ (0.8 1/s at TE 30 ms), 0.28 at 1σ, without bound below."""

MIN_MEASURED = 0.5
"""Part of its frames that a voxel must have been measured in."""

SOLID_SIGMAS = 5.0
"""Voxels whose baseline is this many σ above 0 tell the noise; air does not, where magnitudes scatter by 0.66 σ."""

NEGATIVE_SIGMAS = 3.0
"""An area this many standard deviations below 0 is not noise: one in 700 is."""

CHUNK_VOXELS = 1 << 15
"""Voxels at a time, so that temporaries stay small beside the series."""


def delta_r2star(
    signal: ArrayLike,
    te: float,
    *,
    baseline: slice | None = None,
    noise_floor: float = NOISE_FLOOR,
    ceiling: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """The change of transverse relaxation rate, which is proportional to the concentration of contrast agent.

    ΔR2*(t) = −ln(S(t)/S0)/TE with S0 the geometric mean over the baseline frames, so that ΔR2* has mean 0 there.

    The geometric mean because magnitude noise is Rician: it lifts the mean of S by σ²/2S, but leaves the mean of ln S
    in place down to about 2σ (see `FLOOR_SIGMAS`). With the arithmetic mean every ΔR2* would be too high by
    (σ/S0)²/(2·TE): at S0/σ = 10, TE 30 ms and 90 s, 7 % of the CBV of grey and 15 % of that of white matter.

    Guards. S/S0 below `noise_floor` counts as `noise_floor`, and ΔR2* above `ceiling` as `ceiling`. Samples that are
    not finite or not positive were not measured (ingest fills a missing image with zeros): they are interpolated
    linearly in time between their measured neighbours. Frames before the baseline are not in steady state and become
    0. A voxel that was not measured in the baseline, or in less than half of the frames, becomes 0 everywhere.

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
    ceiling
        Largest ΔR2* believed, shape (...) or one number [1/s], such as `reliable_ceiling`; only `noise_floor` when not
        given. It takes the spikes off black arteries, but also, where the signal is within noise of it, some of what is
        true: leave it out where curves are averaged later.

    Returns
    -------
    ΔR2*, shape (..., T) [1/s], finite everywhere.

    Raises
    ------
    InputError
        If TE is not a plausible number of seconds, or no bolus or baseline is found.
    ValueError
        If the baseline holds no frame.

    Examples
    --------
    >>> signal = 100 * np.exp(-0.03 * np.array([0, 0, 0, 0, 10, 30, 20, 5.0]))
    >>> delta_r2star(signal, te=0.03, baseline=slice(0, 4)).round(3).tolist()
    [0.0, 0.0, 0.0, 0.0, 10.0, 30.0, 20.0, 5.0]
    """
    _check_te(te)
    series = np.asarray(signal)
    n_frames = series.shape[-1]
    flat = series.reshape(-1, n_frames)
    if baseline is None:
        baseline = baseline_frames(mean_curve(flat))
    _check_baseline(baseline, n_frames)
    highest = np.float32(-np.log(noise_floor) / te)
    ceilings = None if ceiling is None else np.broadcast_to(np.asarray(ceiling, np.float32), series.shape[:-1]).ravel()

    result = np.empty(flat.shape, dtype=np.float32)
    for start in range(0, len(flat), CHUNK_VOXELS):
        part = slice(start, start + CHUNK_VOXELS)
        curves = np.log(_filled(flat[part], baseline), out=result[part])
        curves -= curves[:, baseline].mean(axis=1, keepdims=True)
        curves *= np.float32(-1 / te)
        curves += 0  # no negative zeros
        np.minimum(curves, highest if ceilings is None else np.minimum(ceilings[part, None], highest), out=curves)
    result[:, : baseline.indices(n_frames)[0]] = 0
    return result.reshape(series.shape)


def noise_sigma(signal: ArrayLike, baseline: slice) -> NDArray[np.float32]:
    """The standard deviation of the noise of each voxel [scanner units], pooled as far as the voxels agree.

    A voxel's own estimate of σ² is v = Σ(S(t+1) − S(t))²/(2(n − 1)) over its n baseline frames: in steps, which drift
    does not enter. Few frames make it poor (at n = 5 by 45 %), so it is drawn towards the median of all voxels,

        ln σ² = c + w·(ln v − c),  w = τ²/(τ² + s²),

    s² the sampling variance of ln v and τ² by how much its variance among voxels exceeds that (empirical Bayes): noise
    that is the same everywhere is pooled entirely, noise that differs from voxel to voxel is left to each. Air does
    not enter the median. With fewer than three baseline frames v comes from the second differences of the whole series,
    the lower quartile of their sizes, which the bolus does not enter.

    Parameters
    ----------
    signal
        Shape (..., T); voxels of the brain, or an image of which a part is brain.
    baseline
        Baseline frames (`baseline_frames`).

    Returns
    -------
    Shape (...), finite; 0 where the series has no noise.

    Raises
    ------
    ValueError
        If the baseline holds no frame.

    References
    ----------
    Shrinkage of log variances in the manner of Smyth GK. Stat Appl Genet Mol Biol 2004;3:3; ours estimates centre and
    spread by quantiles, against voxels at moving edges.

    Examples
    --------
    >>> signal = 100 + 4 * np.random.default_rng(0).standard_normal((500, 20))
    >>> sigma = noise_sigma(signal, slice(0, 8))
    >>> bool(np.abs(sigma - 4).max() < 0.5)
    True
    """
    series = np.asarray(signal)
    n_frames = series.shape[-1]
    flat = series.reshape(-1, n_frames)
    n = _check_baseline(baseline, n_frames)
    variance, level = np.zeros(len(flat)), np.zeros(len(flat))
    for start in range(0, len(flat), CHUNK_VOXELS):
        part = slice(start, start + CHUNK_VOXELS)
        frames = flat[part, baseline] if n >= 3 else flat[part]
        measured = np.isfinite(frames) & (frames > 0)
        frames = np.where(measured, frames, np.nan).astype(np.float64)
        variance[part] = _step_variance(frames) if n >= 3 else _quiet_variance(frames)
        level[part] = np.where(measured, frames, 0).sum(axis=1) / np.maximum(measured.sum(axis=1), 1)
    # Successive steps share a frame, which costs a third of the degrees of freedom.
    freedom = 2 * (n - 1) ** 2 / (3 * n - 4) if n >= 3 else n_frames / 6
    return np.sqrt(_pooled(variance, level, freedom)).astype(np.float32).reshape(series.shape[:-1])


def reliable_ceiling(
    signal: ArrayLike,
    te: float,
    baseline: slice,
    *,
    sigma: ArrayLike | None = None,
    floor_sigmas: float = FLOOR_SIGMAS,
    noise_floor: float = NOISE_FLOOR,
) -> NDArray[np.float32]:
    """The ΔR2* of each voxel above which its signal is in the noise floor: saturated, not to be believed [1/s].

    ln(S0/(k·σ))/TE with k = `floor_sigmas`; not below 0 (a voxel that is noise already in the baseline) and not above
    the cap of `delta_r2star`, −ln(noise_floor)/TE. The mean curve of voxels whose true signal reaches the floor
    exceeds the mean of their ceilings: E[ln S] falls to ln(1.06 σ) where nothing is left of the signal.

    Parameters
    ----------
    signal
        Shape (..., T) [scanner units].
    te
        Echo time [s].
    baseline
        Baseline frames (`baseline_frames`).
    sigma
        Noise of each voxel, shape (...) or one number [scanner units]; `noise_sigma` when not given.
    floor_sigmas
        Signal [σ] that still counts as signal.
    noise_floor
        As for `delta_r2star`.

    Raises
    ------
    InputError
        If TE is not a plausible number of seconds.

    Examples
    --------
    >>> signal = np.full((1, 20), 100.0)
    >>> ceiling = reliable_ceiling(signal, 0.03, slice(0, 8), sigma=5.0)  # ln(100/10)/0.03
    >>> round(float(ceiling[0]), 1)
    76.8
    """
    _check_te(te)
    series = np.asarray(signal)
    flat = series.reshape(-1, series.shape[-1])
    _check_baseline(baseline, series.shape[-1])
    noise = noise_sigma(series, baseline) if sigma is None else np.asarray(sigma, dtype=np.float32)
    frames = flat[:, baseline]
    measured = np.isfinite(frames) & (frames > 0)
    logs = np.log(np.where(measured, frames, 1), dtype=np.float32)
    s0 = np.exp(logs.sum(axis=1) / np.maximum(measured.sum(axis=1), 1)).reshape(series.shape[:-1])
    room = s0 / np.maximum(floor_sigmas * noise, noise_floor * s0)
    ceiling = np.log(np.maximum(room, 1)) / te
    return np.where(measured.any(axis=1).reshape(ceiling.shape), ceiling, 0).astype(np.float32)


def integrated(curves: ArrayLike, dt: float, window: slice = slice(None)) -> NDArray[np.float64]:
    """The area under each curve, Σ C·dt over the frames of `window`, shape (...) [unit of the curves · s].

    The rectangle rule, which is that of the deconvolution's discrete model. A ratio of areas (CBV) takes the same rule
    and the same window for tissue and artery. Over the whole series (the default) recirculation is in both and cancels;
    over the first pass alone, tissue that fills late is cut short: a window for maps of late tissue it is not.

    Parameters
    ----------
    curves
        Shape (..., T).
    dt
        Time between frames [s].
    window
        Frames, such as `first_pass`.

    Examples
    --------
    >>> integrated([0, 1, 3, 1, 0, 0.5], 2.0).tolist(), integrated([0, 1, 3, 1, 0, 0.5], 2.0, slice(0, 5)).tolist()
    (11.0, 10.0)
    """
    return np.asarray(np.asarray(curves)[..., window].sum(axis=-1, dtype=np.float64) * dt)


def negative_areas(delta_r2star: ArrayLike, noise: ArrayLike, baseline: slice) -> float:
    """Part of the voxels whose curve has an area below 0 by more than its noise explains; 0 to 1.

    The area Σ ΔR2* over T frames has the variance σ²·(T + T²/n): T samples, and T times the error of S0, which is the
    mean of n baseline frames. Counted is what lies below −`NEGATIVE_SIGMAS` of its standard deviation.

    Parameters
    ----------
    delta_r2star
        Shape (n, T) [1/s].
    noise
        Standard deviation of ΔR2* of each voxel, σ/(S0·TE), shape (n,) or one number [1/s].
    baseline
        Baseline frames.

    Examples
    --------
    >>> curves = np.ones((4, 50)) * np.array([1.0, 0.1, -0.1, -1.0])[:, None]
    >>> negative_areas(curves, 0.3, slice(0, 10))
    0.25
    """
    curves = np.asarray(delta_r2star)
    n_frames = curves.shape[-1]
    spread = np.asarray(noise) * np.sqrt(n_frames + n_frames**2 / _check_baseline(baseline, n_frames))
    return float((curves.sum(axis=-1, dtype=np.float64) < -NEGATIVE_SIGMAS * spread).mean()) if len(curves) else 0.0


def _check_te(te: float) -> None:
    if not 0 < te < 0.5:
        raise InputError(f"An echo time of {te} s is implausible: give TE in seconds, such as 0.03.")


def _check_baseline(baseline: slice, n_frames: int) -> int:
    """The number of baseline frames."""
    n = len(range(*baseline.indices(n_frames)))
    if not n:
        raise ValueError(f"baseline {baseline} holds none of the {n_frames} frames")
    return n


def _filled(signal: NDArray[Any], baseline: slice) -> NDArray[np.float32]:
    """The signal with unmeasured samples interpolated in time, shape (n, T); 1 where too little was measured."""
    filled = signal.astype(np.float32)
    measured = np.isfinite(filled) & (filled > 0)
    believed = (measured.mean(axis=1) >= MIN_MEASURED) & measured[:, baseline].any(axis=1)
    filled[~believed] = 1
    gappy = np.flatnonzero(believed & ~measured.all(axis=1))
    if not gappy.size:
        return filled
    seen, frame = measured[gappy], np.arange(signal.shape[1])
    before = np.maximum.accumulate(np.where(seen, frame, -1), axis=1)
    after = np.minimum.accumulate(np.where(seen, frame, frame.size)[:, ::-1], axis=1)[:, ::-1]
    row, gap = np.nonzero(~seen)
    low, high = before[row, gap], after[row, gap]
    low, high = np.where(low < 0, high, low), np.where(high == frame.size, low, high)  # held at the ends
    voxel = gappy[row]
    weight = ((gap - low) / np.maximum(high - low, 1)).astype(np.float32)
    filled[voxel, gap] = filled[voxel, low] * (1 - weight) + filled[voxel, high] * weight
    return filled


def _step_variance(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the mean squared step between measured neighbours in time; 0 where there are none. (n, T) to (n,)."""
    steps = np.diff(frames, axis=1)
    there = np.isfinite(steps)
    return 0.5 * np.sum(steps**2, axis=1, where=there, dtype=np.float64) / np.maximum(there.sum(axis=1), 1)


def _quiet_variance(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """The noise variance by the lower quartile of the second differences; 0 where there are none. (n, T) to (n,)."""
    bends = np.abs(np.diff(frames, n=2, axis=1))
    bends.sort(axis=1)  # what is not a number goes last
    count = np.isfinite(bends).sum(axis=1)
    quartile = bends[np.arange(len(bends)), count // 4]
    return np.where(count > 0, (np.nan_to_num(quartile) / (0.3186 * np.sqrt(6))) ** 2, 0)


def _pooled(variance: NDArray[np.float64], level: NDArray[np.float64], freedom: float) -> NDArray[np.float64]:
    """Variances drawn towards their common value as far as they agree; `freedom` is that of each estimate."""
    solid = (variance > 0) & (level > SOLID_SIGMAS * np.sqrt(variance))
    if solid.sum() < 2:
        return variance
    logs = np.log(variance[solid])
    # The median of χ²/freedom lies below 1, the mean of its logarithm further still.
    centre = np.median(logs) - 3 * np.log(1 - 2 / (9 * freedom))
    sampling = float(polygamma(1, freedom / 2))
    low, high = np.quantile(logs, [0.25, 0.75])
    true = max(((high - low) / 1.349) ** 2 - sampling, 0.0)
    own = np.log(np.where(variance > 0, variance, 1)) - digamma(freedom / 2) + np.log(freedom / 2)
    own = np.where(variance > 0, own, centre)
    return np.exp(centre + true / (true + sampling) * (own - centre))
