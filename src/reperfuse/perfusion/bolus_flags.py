"""Flags of the bolus as the mean tissue shows it: whether it comes, has a baseline, ends, and stands out of noise."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperfuse.perfusion.bolus import (
    MIN_FRAMES,
    NoBaseline,
    NoBolus,
    baseline_frames,
    noise_level,
    without_single_frames,
)
from reperfuse.perfusion.flag import Flag, frames_said

LEAST_AFTER_PEAK_S = 15.0
"""Seconds that a series must go on after the peak of the mean tissue curve. On phantoms (SNR 50, cSVD) the volume of
Tmax > 6 s is off by 12 to 18 % where it ends after 9 s, by at most 5 % from 12 s on; slower tissue needs the rest."""

TAIL_FRACTION = 0.4
"""Height of the last frames over the peak of the mean tissue curve above which its fall is cut off: recirculation and
leakage leave 0.1 to 0.3 of the peak, half of a first pass more."""

TAIL_S = 3.0
"""Length of the end of the curve that is averaged [s], two frames at least."""

BOLUS_DROP = 0.01
"""Smallest fall of the mean signal, as −ln(S/S0), that is called a bolus; clinical series show 0.1 to 0.5."""

BOLUS_NOISE = 5.0
"""The fall also stands this many standard deviations out of the noise of the mean signal."""

TISSUE_CNR = 4.0
"""Peak of the mean tissue curve over the noise of one voxel, both ΔR2*, below which Tmax is noise: on phantoms (cSVD at
0.2) one normal voxel in seven then shows Tmax > 6 s; at 7 one in thirty, at 11 one in a thousand."""

LEAST_BASELINE_FRAMES = 4
"""Frames before the bolus below which S0 is poor: of three, its error is 0.6 of a voxel's noise and enters every
sample of ΔR2*, and so the area, with the same sign."""

UNRETURNED_FRACTION = 0.05
"""How far the end of the mean tissue curve may lie below 0, over its peak; of 130 drawn phantoms, over the full ranges
and at any SNR, one has −0.056 and none of the others more than −0.03."""

NEGATIVE_FRACTION = 0.05
"""Part of the tissue whose area under the curve may be below 0 by more than its noise."""

SECOND_FRACTION, SECOND_RISE = 0.5, 0.35
"""Height of another bolus, and its rise from the trough between both, over the peak of the mean tissue curve. With
recirculation of 0.05 to 0.4 in the artery, 130 drawn phantoms rise again by 0.24 at most."""


def no_bolus(
    mean_signal: ArrayLike,
    baseline: slice | None = None,
    *,
    least_drop: float = BOLUS_DROP,
    least_noise: float = BOLUS_NOISE,
) -> Flag | None:
    """Raised where the mean signal never falls as contrast agent makes it; its value is the largest −ln(S/S0).

    Parameters
    ----------
    mean_signal
        Signal averaged over the brain, shape (T,).
    baseline
        Frames before the bolus, whose median is S0, as far as one was found. Where none was, `bolus.baseline_frames`
        says why, so that this flag and the search for a baseline do not contradict each other; S0 is then the median
        of all frames.
    """
    signal = np.asarray(mean_signal, dtype=np.float64)
    before = signal if baseline is None else signal[baseline]
    level = float(np.median(before)) if before.size else 0.0
    if not (np.isfinite(signal).all() and level > 0):
        return Flag("no_bolus", "The series has no signal: check that the right series was given.", None)
    lowest = max(float(without_single_frames(signal).min()), 1e-3 * level)
    drop = float(np.log(level / lowest))
    if baseline is None and signal.size >= MIN_FRAMES:
        try:
            baseline_frames(signal)
        except NoBaseline:
            return None
        except NoBolus:
            pass
        else:
            return None
    elif drop >= max(least_drop, least_noise * noise_level(signal) / level):
        return None
    return Flag(
        "no_bolus",
        f"No contrast bolus can be seen: the mean signal falls by {-np.expm1(-drop):.1%}, no more than it varies "
        "otherwise; check that this is a DSC series and that the injection worked; maps of it mean nothing.",
        drop,
    )


def early_bolus(baseline: slice | None, n_frames: int, *, least_frames: int = LEAST_BASELINE_FRAMES) -> Flag | None:
    """Raised by too few frames before the bolus; its value is their number.

    Parameters
    ----------
    baseline
        Frames before the bolus, or None where there are none.
    n_frames
        Frames of the series.
    """
    n = 0 if baseline is None else len(range(*baseline.indices(n_frames)))
    if n >= least_frames:
        return None
    return Flag(
        "early_bolus",
        f"Only {frames_said(n)} in steady state came before the bolus (at least {least_frames} are "
        "wanted): the baseline is poor, so CBF and CBV are too; inject 10 s or more after the scan has started.",
        float(n),
    )


def truncated_bolus(
    mean_delta_r2star: ArrayLike,
    dt: float,
    *,
    least_after_peak_s: float = LEAST_AFTER_PEAK_S,
    tail_fraction: float = TAIL_FRACTION,
) -> Flag | None:
    """Raised by a series that ends before the bolus has left the tissue; its value is the seconds after the peak.

    Parameters
    ----------
    mean_delta_r2star
        ΔR2* averaged over the brain, shape (T,) [1/s].
    dt
        Time between frames [s].
    """
    curve = np.asarray(mean_delta_r2star, dtype=np.float64)
    smooth = without_single_frames(curve)
    peak = int(smooth.argmax())
    if not smooth[peak] > 0:
        return None
    after = (curve.size - 1 - peak) * dt
    tail = _end_level(curve, dt) / smooth[peak]
    if after >= least_after_peak_s and tail <= tail_fraction:
        return None
    return Flag(
        "truncated_bolus",
        f"The series ends {after:.0f} s after the peak of the bolus, with {min(max(tail, 0), 1):.0%} of its height "
        "still there: CBV and MTT are too small and late tissue may be missed; scan on for 60 s after the injection.",
        after,
    )


def low_cnr(mean_delta_r2star: ArrayLike, voxel_noise: float, *, least: float = TISSUE_CNR) -> Flag | None:
    """Raised where the bolus in one voxel drowns in its noise; its value is the contrast-to-noise ratio.

    CNR = max of the mean tissue curve / noise of a voxel, both ΔR2* [1/s].

    Parameters
    ----------
    mean_delta_r2star
        ΔR2* averaged over the brain, shape (T,) [1/s].
    voxel_noise
        Median over the brain of the standard deviation of ΔR2*, σ/(S0·TE) [1/s].
    """
    if not voxel_noise > 0:
        return None
    cnr = float(without_single_frames(np.asarray(mean_delta_r2star, dtype=np.float64)).max()) / float(voxel_noise)
    if cnr >= least:
        return None
    return Flag(
        "low_cnr",
        f"In a single voxel the bolus is only {max(cnr, 0):.1f} times the noise (at least {least:g} is wanted): "
        "Tmax will be speckled and volumes too large; smooth the series first, or repeat it with a larger dose.",
        cnr,
    )


def second_bolus(
    mean_delta_r2star: ArrayLike, dt: float, *, least: float = SECOND_FRACTION, rise: float = SECOND_RISE
) -> Flag | None:
    """Raised by two boluses in one series; its value is the height of the other one over that of the higher.

    Parameters
    ----------
    mean_delta_r2star
        ΔR2* averaged over the brain, shape (T,) [1/s].
    dt
        Time between frames [s].
    least, rise
        Height of the other peak, and its rise from the trough between both, over the highest.
    """
    smooth = without_single_frames(np.asarray(mean_delta_r2star, dtype=np.float64))
    peak = int(smooth.argmax())
    if not smooth[peak] > 0:
        return None
    best, place = 0.0, 0
    for side in (np.arange(peak, smooth.size), np.arange(peak, -1, -1)):
        curve = smooth[side] / smooth[peak]
        risen = curve - np.minimum.accumulate(curve)
        other = int(np.where(risen >= rise, curve, 0).argmax())
        if risen[other] >= rise and curve[other] > best:
            best, place = float(curve[other]), int(side[other])
    if best < least:
        return None
    return Flag(
        "second_bolus",
        f"Another bolus with {best:.0%} of the height passes {abs(place - peak) * dt:.0f} s "
        f"{'after' if place > peak else 'before'} the highest: maps mix both, and CBV and Tmax may be wrong; cut the "
        "series to the frames of one injection.",
        best,
    )


def unreturned_baseline(
    mean_delta_r2star: ArrayLike,
    dt: float,
    negative_fraction: float | None = None,
    *,
    allowed: float = UNRETURNED_FRACTION,
    allowed_fraction: float = NEGATIVE_FRACTION,
) -> Flag | None:
    """Raised where ΔR2* ends below 0; its value is the end of the mean curve over its peak.

    Signal that ends brighter than it began drifts, or has leaked contrast agent whose T1 shortening shows. What is
    lost below 0 is missing from the area, down to a CBV of 0.

    Parameters
    ----------
    mean_delta_r2star
        ΔR2* averaged over the brain, shape (T,) [1/s].
    dt
        Time between frames [s].
    negative_fraction
        Part of the tissue with an area below 0 beyond its noise (`concentration.negative_areas`).
    """
    curve = np.asarray(mean_delta_r2star, dtype=np.float64)
    peak = float(without_single_frames(curve).max())
    if not peak > 0:
        return None
    tail = _end_level(curve, dt) / peak
    many = negative_fraction is not None and negative_fraction > allowed_fraction
    if tail >= -allowed and not many:
        return None
    said = [f"the mean curve ends {-tail:.0%} of its peak below zero"] if tail < -allowed else []
    said += [f"areas are negative in {negative_fraction:.0%} of the tissue"] if many else []
    return Flag(
        "unreturned_baseline",
        f"In ΔR2* {' and '.join(said)} (drift, or T1 of leaked agent): CBV and MTT are too small, down to 0; "
        "switch leakage_correction on or set integration to first_pass.",
        tail,
    )


def _end_level(curve: NDArray[np.float64], dt: float) -> float:
    """Mean of the last `TAIL_S` of a curve, of two frames at least."""
    return float(curve[-max(2, round(TAIL_S / dt)) :].mean())
