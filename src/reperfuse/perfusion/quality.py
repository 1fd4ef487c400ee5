"""Quality flags: what may be wrong with a series, in a sentence for whoever reads the maps.

A flag is not an error: there are maps, and the reader decides. Each function looks at one thing, takes plain numbers
and curves, and returns a `Flag` or None. Limits are constants, with the reason for each; those found on the digital
reference object say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOTION_MM = 2.0
"""Largest displacement [mm] that may stay uncorrected: one voxel in the plane, as far as a border then moves."""

CORRECTED_MOTION_MM = 5.0
"""Largest displacement [mm] that realignment is trusted with: about one slice. Beyond it frames were excited in part
by another slice's pulse, which moving the images does not mend."""

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

AIF_CNR = 20.0
"""Peak of the AIF over its noise below which it is noisy. White noise of 1/20 of the peak stands at 8 % of the AIF's
largest singular value (60 frames, five in the bolus), amid those that a deconvolution keeps."""

SATURATED_FRACTION = 0.9
"""Part of the reliable ceiling of ΔR2* from which a peak counts as cut: noise takes a single frame that far below."""

TE_RANGE_S = (0.015, 0.105)
"""Echo times [s] of DSC: gradient echoes 20 to 50 ms, spin echoes up to 100 ms."""

TR_RANGE_S = (0.4, 3.0)
"""Frame intervals [s] of DSC: faster needs fewer slices than a brain has, and slower sees the 5 to 6 s of an arterial
first pass in two frames."""

AIF_WIDTH_RANGE_S = (2.5, 25.0)
"""Width [s] of an arterial bolus at half its height: an injection lasts 3 to 8 s and spreads on its way through heart
and lungs. A width beyond says that the frame interval is wrong, rather than the heart."""

LEAST_BASELINE_FRAMES = 4
"""Frames before the bolus below which S0 is poor: of three, its error is 0.6 of a voxel's noise and enters every
sample of ΔR2*, and so the area, with the same sign."""

MISSING_FRACTION = 0.01
"""Part of the brain's voxels that may be unmeasured in one frame beyond what is usual in the series; a missing slice
takes several per cent."""

UNEVEN_FRACTION = 0.05
"""Deviation of a frame interval from the median one, as a part of it, that is still called even."""


@dataclass(frozen=True)
class Flag:
    """Something about a series that its reader should know."""

    name: str
    """One of `FLAGS`."""
    sentence: str
    """What was found, what follows for the maps, and what to do."""
    value: float | None = None
    """The number that raised it; None where none could be measured."""

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}"


def motion(
    displacement_mm: ArrayLike,
    lost: ArrayLike | None = None,
    *,
    corrected: bool = False,
    limit_mm: float = MOTION_MM,
    corrected_limit_mm: float = CORRECTED_MOTION_MM,
) -> Flag | None:
    """Raised by a head that moved further than the maps bear, or by frames that realignment could not save.

    Parameters
    ----------
    displacement_mm
        Displacement of each frame, shape (T,) [mm]; NaN for a frame that could not be placed.
    lost
        Frames that could not be saved, shape (T,).
    corrected
        Whether the maps were made from realigned frames.
    """
    moved = np.asarray(displacement_mm, dtype=np.float64)
    known = moved[np.isfinite(moved)]
    largest = float(known.max()) if known.size else None
    n_lost = 0 if lost is None else int(np.count_nonzero(lost))
    limit = corrected_limit_mm if corrected else limit_mm
    if not n_lost and (largest is None or largest <= limit):
        return None
    said = "The head moved" + (f" by up to {largest:.1f} mm" if largest is not None else "")
    if corrected:
        said += " and the frames were realigned"
    if n_lost:
        said += f"; {_frames(n_lost)} could not be saved"
    advice = (
        "look for bright and dark rims at borders before believing small volumes"
        if corrected
        else "switch motion correction on, or do not read volumes from these maps"
    )
    return Flag("motion", f"{said}: {advice}.", largest)


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
    smooth = _median_of_three(curve)
    peak = int(smooth.argmax())
    if not smooth[peak] > 0:
        return None
    after = (curve.size - 1 - peak) * dt
    tail = float(curve[-max(2, round(TAIL_S / dt)) :].mean() / smooth[peak])
    if after >= least_after_peak_s and tail <= tail_fraction:
        return None
    return Flag(
        "truncated_bolus",
        f"The series ends {after:.0f} s after the peak of the bolus, with {min(max(tail, 0), 1):.0%} of its height "
        "still there: CBV and MTT are too small and late tissue may be missed; scan on for 60 s after the injection.",
        after,
    )


def no_bolus(
    mean_signal: ArrayLike, *, least_drop: float = BOLUS_DROP, least_noise: float = BOLUS_NOISE
) -> Flag | None:
    """Raised where the mean signal never falls as contrast agent makes it; its value is the largest −ln(S/S0).

    Parameters
    ----------
    mean_signal
        Signal averaged over the brain, shape (T,). The reference S0 is its median, so that bright first frames do not
        count.
    """
    signal = np.asarray(mean_signal, dtype=np.float64)
    level = float(np.median(signal))
    if not (np.isfinite(signal).all() and level > 0):
        return Flag("no_bolus", "The series has no signal: check that the right series was given.", None)
    lowest = max(float(_median_of_three(signal).min()), 1e-3 * level)
    drop = float(np.log(level / lowest))
    if drop >= max(least_drop, least_noise * _noise(signal) / level):
        return None
    return Flag(
        "no_bolus",
        f"The mean signal falls by only {-np.expm1(-drop):.1%}, so no contrast bolus can be seen: check that this is a "
        "DSC series and that the injection worked; these maps mean nothing.",
        drop,
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
    cnr = float(_median_of_three(np.asarray(mean_delta_r2star, dtype=np.float64)).max()) / float(voxel_noise)
    if cnr >= least:
        return None
    return Flag(
        "low_cnr",
        f"In a single voxel the bolus is only {max(cnr, 0):.1f} times the noise (at least {least:g} is wanted): "
        "Tmax will be speckled and volumes too large; smooth the series first, or repeat it with a larger dose.",
        cnr,
    )


def saturated_aif(
    aif: ArrayLike, ceiling: float | None = None, *, saturated: bool = False, fraction: float = SATURATED_FRACTION
) -> Flag | None:
    """Raised where the artery's signal reached the noise floor, so that its peak is cut; its value is the peak [1/s].

    Parameters
    ----------
    aif
        Curve, shape (T,) [1/s].
    ceiling
        Highest ΔR2* that can be told from the noise floor in its voxels [1/s].
    saturated
        What the search for the artery found by itself.
    """
    peak = float(np.max(aif))
    reached = ceiling is not None and np.isfinite(ceiling) and peak >= fraction * ceiling
    if not (saturated or reached):
        return None
    return Flag(
        "saturated_aif",
        f"The artery's signal falls into the noise at the bolus peak ({peak:.0f} 1/s), so the AIF is cut off at its "
        "top: CBF and CBV are too large and Tmax may shift; choose a smaller or a branch artery, or scale to the vein.",
        peak,
    )


def noisy_aif(aif: ArrayLike, noise: float | None = None, *, least: float = AIF_CNR) -> Flag | None:
    """Raised where the AIF's peak stands too little above its noise; its value is their ratio.

    Parameters
    ----------
    aif
        Curve, shape (T,) [1/s].
    noise
        Its standard deviation [1/s]; from the curve's own second differences when not given.
    """
    curve = np.asarray(aif, dtype=np.float64)
    sigma = _noise(curve) if noise is None else float(noise)
    if not sigma > 0:
        return None
    cnr = float(curve.max()) / sigma
    if cnr >= least:
        return None
    return Flag(
        "noisy_aif",
        f"The AIF's peak is only {max(cnr, 0):.0f} times its noise (at least {least:g} is wanted): every map "
        "inherits that noise; give an AIF from more voxels with an artery mask.",
        cnr,
    )


DOUBTS = {
    "noisy": "its curve is noisy",
    "tissue": "it hardly stands out of tissue",
    "coarse": "few frames fall into its bolus",
    "partial volume": "it had to be scaled up much to the vein's area",
}
"""What `aif.doubts` may say beside saturation, in words."""


def doubtful_aif(doubts: Sequence[str]) -> Flag | None:
    """Raised by an artery that may be none, or a poor one; its value is the number of reasons.

    Parameters
    ----------
    doubts
        Of `aif.doubts`; saturation has a flag of its own.
    """
    reasons = [DOUBTS[doubt] for doubt in doubts if doubt in DOUBTS]
    if not reasons:
        return None
    return Flag(
        "doubtful_aif",
        f"The artery is open to doubt ({', '.join(reasons)}): look at its voxels and its curve, and give an artery "
        "mask if they are not in a vessel; every map but TTP rests on it.",
        float(len(reasons)),
    )


def implausible_te(te_s: float, *, plausible_s: tuple[float, float] = TE_RANGE_S) -> Flag | None:
    """Raised by an echo time that no DSC sequence has; its value is that echo time [s]."""
    low, high = plausible_s
    if low <= te_s <= high:
        return None
    return Flag(
        "implausible_te",
        f"An echo time of {1000 * te_s:g} ms is outside the {1000 * low:g} to {1000 * high:g} ms of DSC: check it in "
        "the protocol and give it in seconds; maps do not depend on it, ΔR2* in aif.csv does, and a wrong one may mean "
        "that this is another series.",
        float(te_s),
    )


def implausible_tr(
    tr_s: float,
    aif: ArrayLike | None = None,
    *,
    plausible_s: tuple[float, float] = TR_RANGE_S,
    width_s: tuple[float, float] = AIF_WIDTH_RANGE_S,
) -> Flag | None:
    """Raised by a frame interval that no DSC has, or at which the arterial bolus lasts too short or too long a time.

    Parameters
    ----------
    tr_s
        Time between frames [s], the flag's value.
    aif
        Curve, shape (T,), to measure the bolus with.
    """
    low, high = plausible_s
    if not low <= tr_s <= high:
        return Flag(
            "implausible_tr",
            f"A frame interval of {tr_s:g} s is outside the {low:g} to {high:g} s of DSC: check it in the protocol and "
            "give it in seconds, since every time in the maps scales with it; if it is right, Tmax is no finer.",
            float(tr_s),
        )
    if aif is None:
        return None
    width = _width(np.asarray(aif, dtype=np.float64)) * tr_s
    if width_s[0] <= width <= width_s[1]:
        return None
    return Flag(
        "implausible_tr",
        f"At a frame interval of {tr_s:g} s the arterial bolus would last {width:.1f} s at half its height, outside "
        f"the {width_s[0]:g} to {width_s[1]:g} s of a patient: check the frame interval, and the chosen artery.",
        float(tr_s),
    )


def missing_frames(
    measured: ArrayLike, frame_times_s: ArrayLike | None = None, *, allowed: float = MISSING_FRACTION
) -> Flag | None:
    """Raised by frames that lack images or never came; its value is how many.

    Parameters
    ----------
    measured
        Part of the brain's voxels with a finite, positive signal in each frame, shape (T,), 0 to 1.
    frame_times_s
        Shape (T,) [s]; a gap of n intervals counts as n − 1 frames that never came.
    """
    part = np.asarray(measured, dtype=np.float64)
    incomplete = int(np.count_nonzero(part < np.median(part) - allowed))
    absent = 0
    if frame_times_s is not None and np.size(frame_times_s) > 2:
        steps = np.diff(np.asarray(frame_times_s, dtype=np.float64))
        intervals = steps / np.median(steps)
        whole = np.round(intervals)
        # Unevenness is not a gap: only steps near a whole number of intervals are.
        absent = int((whole - 1)[(whole > 1) & (np.abs(intervals - whole) < 0.2)].sum())
    if not incomplete + absent:
        return None
    said = [f"{_frames(incomplete)} incomplete"] if incomplete else []
    said += [f"{_frames(absent)} never came"] if absent else []
    return Flag(
        "missing_frames",
        f"Images are missing ({', '.join(said)}) and were bridged in time: where that meets the bolus its peak "
        "may be wrong; export the series again if it is complete elsewhere.",
        float(incomplete + absent),
    )


def uneven_times(frame_times_s: ArrayLike, *, allowed: float = UNEVEN_FRACTION) -> Flag | None:
    """Raised by frames that do not come at one interval, whole gaps aside; its value is the largest deviation [s]."""
    steps = np.diff(np.asarray(frame_times_s, dtype=np.float64))
    if not steps.size:
        return None
    usual = float(np.median(steps))
    off = float(np.abs(steps - usual * np.maximum(np.round(steps / usual), 1)).max())
    if off <= allowed * usual:
        return None
    return Flag(
        "uneven_times",
        f"The frames come unevenly, up to {off:.2f} s off their interval of {usual:.2f} s, and were resampled to one: "
        "times in the maps are good to about that; check the acquisition times if this is not expected.",
        off,
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
        f"Only {_frames(n)} in steady state came before the bolus (at least {least_frames} are "
        "wanted): the baseline is poor, so CBF and CBV are too; inject 10 s or more after the scan has started.",
        float(n),
    )


def no_artery(late_ml: float | None = None) -> Flag:
    """The flag of a series in which no artery was found; its value is the volume of late relative TTP [mL], if any."""
    late = "" if late_ml is None else f" ({late_ml:.0f} mL are more than 4.5 s behind normal tissue)"
    return Flag(
        "no_artery",
        f"No artery was found, so there is no deconvolution; time to peak relative to normal tissue stands in{late}: "
        "give an artery mask or an AIF file for Tmax, CBF and MTT.",
        late_ml,
    )


FLAGS = (
    "no_bolus",
    "early_bolus",
    "truncated_bolus",
    "motion",
    "missing_frames",
    "uneven_times",
    "implausible_te",
    "implausible_tr",
    "low_cnr",
    "no_artery",
    "saturated_aif",
    "noisy_aif",
    "doubtful_aif",
)
"""All names, in the order in which `quality_flags` gives them: what spoils most comes first."""


def quality_flags(
    *,
    te_s: float | None = None,
    tr_s: float | None = None,
    frame_times_s: ArrayLike | None = None,
    measured: ArrayLike | None = None,
    mean_signal: ArrayLike | None = None,
    baseline: slice | None = None,
    mean_delta_r2star: ArrayLike | None = None,
    voxel_noise: float | None = None,
    artery_found: bool = True,
    late_ttp_ml: float | None = None,
    aif: ArrayLike | None = None,
    aif_noise: float | None = None,
    aif_ceiling: float | None = None,
    aif_saturated: bool = False,
    aif_doubts: Sequence[str] = (),
    displacement_mm: ArrayLike | None = None,
    lost: ArrayLike | None = None,
    motion_corrected: bool = False,
) -> tuple[Flag, ...]:
    """Every flag that what is known of a series raises, in the order of `FLAGS`; what is None is not judged.

    Parameters
    ----------
    te_s, tr_s
        Echo time and time between frames [s].
    frame_times_s
        As acquired, before resampling, shape (T,) [s].
    measured
        Part of the brain's voxels measured in each frame, shape (T,).
    mean_signal
        Over the brain, shape (T,). Where it shows no bolus, what rests on a bolus is not judged.
    baseline
        Frames before the bolus; with `mean_signal` and without a slice there were none.
    mean_delta_r2star
        Over the brain, shape (T,) [1/s].
    voxel_noise
        Median standard deviation of ΔR2* of a voxel [1/s].
    artery_found, late_ttp_ml
        Whether an artery was, and the volume of late relative TTP that stands in [mL].
    aif, aif_noise, aif_ceiling, aif_saturated, aif_doubts
        Curve, shape (T,), its noise and its reliable ceiling [1/s]; whether its search found it saturated, and what
        else speaks against it (`aif.doubts`).
    displacement_mm, lost, motion_corrected
        Displacement of each frame [mm], frames that could not be saved, shape (T,), and whether they were realigned.

    Examples
    --------
    >>> [flag.name for flag in quality_flags(te_s=0.003, tr_s=1.5, displacement_mm=[0, 0.2, 7.0])]
    ['motion', 'implausible_te']
    """
    empty = None if mean_signal is None else no_bolus(mean_signal)
    found: list[Flag | None] = [empty]
    if empty is None:
        if mean_signal is not None:
            found.append(early_bolus(baseline, np.size(mean_signal)))
        if mean_delta_r2star is not None and tr_s is not None:
            found.append(truncated_bolus(mean_delta_r2star, tr_s))
        if mean_delta_r2star is not None and voxel_noise is not None:
            found.append(low_cnr(mean_delta_r2star, voxel_noise))
        if not artery_found:
            found.append(no_artery(late_ttp_ml))
        elif aif is not None:
            found += [saturated_aif(aif, aif_ceiling, saturated=aif_saturated), noisy_aif(aif, aif_noise)]
            noisy = found[-1] is not None
            found.append(doubtful_aif([doubt for doubt in aif_doubts if not (noisy and doubt == "noisy")]))
    if displacement_mm is not None:
        found.append(motion(displacement_mm, lost, corrected=motion_corrected))
    if measured is not None:
        found.append(missing_frames(measured, frame_times_s))
    if frame_times_s is not None:
        found.append(uneven_times(frame_times_s))
    if te_s is not None:
        found.append(implausible_te(te_s))
    if tr_s is not None:
        found.append(implausible_tr(tr_s, aif if empty is None and artery_found else None))
    raised = [flag for flag in found if flag is not None]
    return tuple(sorted(raised, key=lambda flag: FLAGS.index(flag.name)))


def _frames(n: int) -> str:
    return "1 frame" if n == 1 else f"{n} frames"


def _median_of_three(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """The running median of three samples, the ends held: a single bad frame is no bolus."""
    if curve.size < 3:
        return curve
    inner = np.median(np.stack([curve[:-2], curve[1:-1], curve[2:]]), axis=0)
    return np.concatenate([inner[:1], inner, inner[-1:]])


def _noise(curve: NDArray[np.float64]) -> float:
    """Standard deviation of the noise of one curve, from the lower quartile of its second differences.

    Second differences leave out drifts; the quartile leaves out the bolus, which may take half of a short series.
    """
    if curve.size < 5:
        return 0.0
    return float(np.quantile(np.abs(np.diff(curve, n=2)), 0.25)) / (0.3186 * np.sqrt(6))


def _width(curve: NDArray[np.float64]) -> float:
    """Width of the highest peak at half its height, between samples [frames]."""
    peak, half = int(curve.argmax()), float(curve.max()) / 2
    if not half > 0:
        return 0.0
    low = high = peak
    while low > 0 and curve[low - 1] > half:
        low -= 1
    while high < curve.size - 1 and curve[high + 1] > half:
        high += 1
    before = (curve[low] - half) / (curve[low] - curve[low - 1]) if low > 0 else 0.0
    after = (curve[high] - half) / (curve[high] - curve[high + 1]) if high < curve.size - 1 else 0.0
    return float(high - low + before + after)
