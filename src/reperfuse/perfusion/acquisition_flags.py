"""Flags of what was acquired and given: motion, times, missing images, the brain and the ADC map."""

import numpy as np
from numpy.typing import ArrayLike

from reperfuse.perfusion.flag import Flag, frames_said

MOTION_MM = 2.0
"""Largest displacement [mm] that may stay uncorrected: one voxel in the plane, as far as a border then moves."""

CORRECTED_MOTION_MM = 5.0
"""Largest displacement [mm] that realignment is trusted with: about one slice. Beyond it frames were excited in part
by another slice's pulse, which moving the images does not mend."""

TE_RANGE_S = (0.015, 0.105)
"""Echo times [s] of DSC: gradient echoes 20 to 50 ms, spin echoes up to 100 ms."""

TR_RANGE_S = (0.4, 3.0)
"""Frame intervals [s] of DSC: faster needs fewer slices than a brain has, and slower sees the 5 to 6 s of an arterial
first pass in two frames."""

MISSING_FRACTION = 0.01
"""Part of the brain's voxels that may be unmeasured in one frame beyond the series' fullest frame; a missing slice
takes several per cent."""

UNEVEN_FRACTION = 0.05
"""Deviation of a frame interval from the median one, as a part of it, that is still called even."""

STATED_FRACTION = 0.05
"""Difference of two statements of the frame interval, over the one in use, from which they contradict each other: times
are then wrong by as much, and a Tmax of 6 s by 0.3 s."""

UNMEASURED_FRACTION = 0.02
"""Part of the brain without a usable curve: of 1000 mL it hides 20 mL, more than the 15 mL a decision turns on."""

BRAIN_ML = (300.0, 2500.0)
"""Volume [mL] of what is taken for brain: a few slices of a small head at least, more than the largest head at most;
adults have 1000 to 1700."""

ADC_COVERAGE, ADC_SHIFT_MM, ADC_CORE_FRACTION = 0.9, 20.0, 0.5
"""Part of the brain that an ADC map covers, at least; the displacement [mm] that registration finds between two series
of one examination, at most; and the part of the brain that is core, at most: a hemisphere is half."""


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
        said += f"; {frames_said(n_lost)} could not be saved"
    advice = (
        "look for bright and dark rims at borders before believing small volumes"
        if corrected
        else "switch motion correction on, or do not read volumes from these maps"
    )
    return Flag("motion", f"{said}: {advice}.", largest)


def missing_frames(
    measured: ArrayLike, frame_times_s: ArrayLike | None = None, *, allowed: float = MISSING_FRACTION
) -> Flag | None:
    """Raised by frames that lack images or never came; its value is how many.

    Parameters
    ----------
    measured
        Part of the brain's voxels with a finite, positive signal in each frame, shape (T,), 0 to 1. The fullest frame
        says what can be measured; the usual one does not where most are incomplete.
    frame_times_s
        Shape (T,) [s]; a gap of n intervals counts as n − 1 frames that never came.
    """
    part = np.asarray(measured, dtype=np.float64)
    incomplete = int(np.count_nonzero(part < part.max(initial=0) - allowed))
    absent = 0
    if frame_times_s is not None and np.size(frame_times_s) > 2:
        steps = np.diff(np.asarray(frame_times_s, dtype=np.float64))
        intervals = steps / np.median(steps)
        whole = np.round(intervals)
        # Unevenness is not a gap: only steps near a whole number of intervals are.
        absent = int((whole - 1)[(whole > 1) & (np.abs(intervals - whole) < 0.2)].sum())
    if not incomplete + absent:
        return None
    said = [f"{frames_said(incomplete)} incomplete"] if incomplete else []
    said += [f"{frames_said(absent)} never came"] if absent else []
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


def implausible_tr(tr_s: float, *, plausible_s: tuple[float, float] = TR_RANGE_S) -> Flag | None:
    """Raised by a frame interval that no DSC has; its value is that interval [s]."""
    low, high = plausible_s
    if low <= tr_s <= high:
        return None
    return Flag(
        "implausible_tr",
        f"A frame interval of {tr_s:g} s is outside the {low:g} to {high:g} s of DSC: check it in the protocol and "
        "give it in seconds, since every time in the maps scales with it; if it is right, Tmax is no finer.",
        float(tr_s),
    )


def contradicting_times(stated_tr_s: float, tr_s: float, *, allowed: float = STATED_FRACTION) -> Flag | None:
    """Raised by a stated frame interval that is not the one in use; its value is the stated one [s].

    Parameters
    ----------
    stated_tr_s
        What another source says: the repetition time beside frame times, or a header beside what was given [s].
    tr_s
        What the maps were made with [s].
    """
    if abs(stated_tr_s - tr_s) <= allowed * tr_s:
        return None
    return Flag(
        "contradicting_times",
        f"The series states a frame interval of {stated_tr_s:.3g} s, but {tr_s:.3g} s was used: every time in the maps "
        "scales with it, Tmax volumes too; find out which one is right and give it in seconds.",
        float(stated_tr_s),
    )


def unmeasured_tissue(fraction: float, *, allowed: float = UNMEASURED_FRACTION) -> Flag | None:
    """Raised by brain without a usable curve; its value is the part of the brain that is so.

    Parameters
    ----------
    fraction
        Part of the brain's voxels whose signal is missing before the bolus or in half of the frames, 0 to 1.
    """
    if fraction <= allowed:
        return None
    return Flag(
        "unmeasured_tissue",
        f"In {fraction:.0%} of the brain there is no usable curve, so it is blank in every map and in no volume: check "
        "that the series is complete and that the brain mask lies on it, and read no volume until then.",
        float(fraction),
    )


def implausible_brain(volume_ml: float, *, plausible_ml: tuple[float, float] = BRAIN_ML) -> Flag | None:
    """Raised by a brain mask too small or too large for a brain; its value is its volume [mL]."""
    low, high = plausible_ml
    if low <= volume_ml <= high:
        return None
    return Flag(
        "implausible_brain",
        f"The brain has {volume_ml:.0f} mL here, outside {low:g} to {high:g} mL: check the mask and the voxel size, "
        "with which all volumes are wrong; a slab that covers part of the head may rightly be smaller.",
        float(volume_ml),
    )


def doubtful_adc(
    coverage: float | None = None, shift_mm: float | None = None, core_fraction: float | None = None
) -> Flag | None:
    """Raised by an ADC map whose core should not be believed unseen; its value is the number of reasons.

    Parameters
    ----------
    coverage
        Part of the brain that the map measures on the grid of the series (`mismatch.adc_coverage`), 0 to 1.
    shift_mm
        How far registration moved it [mm].
    core_fraction
        Part of the brain that is core, 0 to 1.
    """
    reasons = []
    if coverage is not None and not coverage >= ADC_COVERAGE:
        reasons.append(f"it covers {coverage:.0%} of the brain")
    if shift_mm is not None and not shift_mm <= ADC_SHIFT_MM:
        reasons.append(f"registration moved it by {shift_mm:.0f} mm")
    if core_fraction is not None and not core_fraction <= ADC_CORE_FRACTION:
        reasons.append(f"{core_fraction:.0%} of the brain would be core")
    if not reasons:
        return None
    return Flag(
        "doubtful_adc",
        f"The ADC map is open to doubt ({', '.join(reasons)}): core and mismatch may be wrong; check that it is of "
        "this examination and lies on the series, or leave it out.",
        float(len(reasons)),
    )
