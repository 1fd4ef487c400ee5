"""A patient's own DSC series as a coarser acquisition would have given it: fewer frames, more noise."""

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np

from reperfuse.imaging.volume import Volume
from reperfuse.perfusion.concentration import baseline_frames, mean_curve, noise_sigma
from reperfuse.preprocessing.geometry import resample_time

TOLERANCE = 0.05
"""A level counts as reached when the series' own TR or SNR is at most this part short of it: headers round TR, and an
SNR is known to a few percent."""

MOST_KEPT = 0.999
"""A new frame that keeps this part of the noise variance of one native frame is that frame, up to rounded times."""


def degraded(series: Volume, times_s: np.ndarray, tr_s: float, snr: float, brain: np.ndarray, *, seed: int) -> Volume:
    """The series sampled every `tr_s` from its first frame on, with noise added until S0/σ is `snr`.

    The new frames are interpolated linearly in time, which averages noise: a frame made of native frames with the
    weights w keeps Σw² of their variance σ₀², half of it midway between two. So each frame is given what it lacks,

        M' = |M + n₁ + i·n₂|,  n₁, n₂ ~ N(0, σ² − Σw²·σ₀²),  σ = S0/snr,

    and σ is the same in all of them. Where a frame is native (Σw² = 1) M' is a Rician magnitude of exactly σ, since M
    is one of σ₀ and circular noise does not see its phase. At the series' own TR and SNR nothing changes. Samples that
    were not measured (zero or not finite) stay so, and so does what would be interpolated from them.

    Parameters
    ----------
    series
        Shape (I, J, K, T).
    times_s
        Of its frames, shape (T,) [s].
    tr_s
        New interval [s], not below the series' own.
    snr
        S0/σ, S0 the mean baseline signal of the brain.
    brain
        Shape (I, J, K).
    seed
        With the series itself and the level it settles the noise: the same patient at the same level gets the same.

    Raises
    ------
    InputError
        If no bolus or baseline is found in the series.

    References
    ----------
    Gudbjartsson H, Patz S. The Rician distribution of noisy MRI data. Magn Reson Med 1995;34:910-914.
    """
    s0, own_sigma = signal_and_noise(series, brain)
    new_times = np.arange(times_s[0], times_s[-1] + 1e-6, tr_s)
    measured = np.isfinite(series.data) & (series.data > 0)
    frames = resample_time(np.where(measured, series.data, 0), times_s, new_times)
    # The weights themselves: what interpolation makes of an impulse in each frame.
    kept = np.square(resample_time(np.eye(len(times_s)), times_s, new_times)).sum(axis=0)
    kept = np.where(kept > MOST_KEPT, 1.0, kept)
    lacking = np.sqrt(np.maximum((s0 / snr) ** 2 - kept * own_sigma**2, 0))
    rng = np.random.default_rng([seed, _fingerprint(series), round(1000 * tr_s), round(1000 * snr)])
    for frame, sigma in enumerate(lacking):  # by frame: noise for a whole series at once would double its memory
        if sigma > 0:
            real, imaginary = rng.standard_normal((2, *brain.shape), dtype=np.float32) * np.float32(sigma)
            frames[..., frame] = np.hypot(frames[..., frame] + real, imaginary)
    if not measured.all():
        frames[resample_time(~measured, times_s, new_times) > 0] = 0
    return replace(series, data=frames, frame_times_s=new_times, tr_s=tr_s)


def within_reach(
    series: Volume, times_s: np.ndarray, brain: np.ndarray, tr_s: Sequence[float], snr: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Those of the intervals [s] and SNRs that are not finer, nor less noisy, than the series itself."""
    s0, own_sigma = signal_and_noise(series, brain)
    own_tr_s = float(np.median(np.diff(times_s)))
    return (
        [level for level in tr_s if level >= (1 - TOLERANCE) * own_tr_s],
        [level for level in snr if level * own_sigma <= (1 + TOLERANCE) * s0],
    )


def signal_and_noise(series: Volume, brain: np.ndarray) -> tuple[float, float]:
    """S0, the mean baseline signal of the brain, and σ, the median over its voxels [both scanner units].

    Raises
    ------
    InputError
        If no bolus or baseline is found in the series.
    """
    curves = series.data[brain]
    baseline = baseline_frames(mean_curve(curves))
    return float(curves[:, baseline].mean()), float(np.median(noise_sigma(curves, baseline)))


def _fingerprint(series: Volume) -> int:
    """A number that is the series' own, wherever it lies and whatever it is called."""
    return crc32(np.ascontiguousarray(series.data[..., 0]).tobytes())
