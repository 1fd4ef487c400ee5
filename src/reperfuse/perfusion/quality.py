"""Quality flags: what may be wrong with a series, in a sentence for whoever reads the maps.

A flag is not an error: there are maps, and the reader decides. Each function of the three rooms of flags looks at one
thing, takes plain numbers and curves, and returns a `Flag` or None; here all of them are asked. Limits are constants,
with the reason for each; those found on the digital reference object say so.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from reperfuse.perfusion.acquisition_flags import (
    contradicting_times,
    doubtful_adc,
    implausible_brain,
    implausible_te,
    implausible_tr,
    missing_frames,
    motion,
    uneven_times,
    unmeasured_tissue,
)
from reperfuse.perfusion.artery_flags import (
    DOUBTS,
    doubtful_aif,
    implausible_aif,
    no_artery,
    noisy_aif,
    saturated_aif,
)
from reperfuse.perfusion.bolus_flags import (
    early_bolus,
    low_cnr,
    no_bolus,
    second_bolus,
    truncated_bolus,
    unreturned_baseline,
)
from reperfuse.perfusion.flag import FLAGS, Flag

__all__ = [
    "DOUBTS",
    "FLAGS",
    "Flag",
    "contradicting_times",
    "doubtful_adc",
    "doubtful_aif",
    "early_bolus",
    "implausible_aif",
    "implausible_brain",
    "implausible_te",
    "implausible_tr",
    "low_cnr",
    "missing_frames",
    "motion",
    "no_artery",
    "no_bolus",
    "noisy_aif",
    "quality_flags",
    "saturated_aif",
    "second_bolus",
    "truncated_bolus",
    "uneven_times",
    "unmeasured_tissue",
    "unreturned_baseline",
]


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
    stated_tr_s: float | None = None,
    unmeasured_fraction: float | None = None,
    brain_volume_ml: float | None = None,
    negative_fraction: float | None = None,
    adc_coverage: float | None = None,
    adc_shift_mm: float | None = None,
    adc_core_fraction: float | None = None,
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
        Frames before the bolus; with `mean_signal` and without a slice either they or the bolus was not found.
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
    stated_tr_s
        Frame interval that another source states, to be held against `tr_s` [s].
    unmeasured_fraction, brain_volume_ml
        Part of the brain without a usable curve, and its volume [mL].
    negative_fraction
        Part of the tissue with an area below 0 beyond its noise (`concentration.negative_areas`).
    adc_coverage, adc_shift_mm, adc_core_fraction
        Part of the brain that the ADC map measures, how far registration moved it [mm], and the part that is core.

    Examples
    --------
    >>> [flag.name for flag in quality_flags(te_s=0.003, tr_s=1.5, displacement_mm=[0, 0.2, 7.0])]
    ['motion', 'implausible_te']
    """
    empty = None if mean_signal is None else no_bolus(mean_signal, baseline)
    found: list[Flag | None] = [empty]
    if empty is None:
        cut = None
        if mean_signal is not None:
            found.append(early_bolus(baseline, np.size(mean_signal)))
        if mean_delta_r2star is not None and tr_s is not None:
            cut = truncated_bolus(mean_delta_r2star, tr_s)
            found += [
                cut,
                second_bolus(mean_delta_r2star, tr_s),
                unreturned_baseline(mean_delta_r2star, tr_s, negative_fraction),
            ]
        if mean_delta_r2star is not None and voxel_noise is not None:
            found.append(low_cnr(mean_delta_r2star, voxel_noise))
        if not artery_found:
            found.append(no_artery(late_ttp_ml))
        elif aif is not None:
            found += [saturated_aif(aif, aif_ceiling, saturated=aif_saturated), noisy_aif(aif, aif_noise)]
            noisy = found[-1] is not None
            found.append(doubtful_aif([doubt for doubt in aif_doubts if not (noisy and doubt == "noisy")]))
            # A series that ends too early cuts the artery's curve too: that says nothing of the artery.
            if tr_s is not None and cut is None:
                found.append(implausible_aif(aif, tr_s))
    if displacement_mm is not None:
        found.append(motion(displacement_mm, lost, corrected=motion_corrected))
    if measured is not None:
        found.append(missing_frames(measured, frame_times_s))
    if frame_times_s is not None:
        found.append(uneven_times(frame_times_s))
    if te_s is not None:
        found.append(implausible_te(te_s))
    if tr_s is not None:
        found.append(implausible_tr(tr_s))
        if stated_tr_s is not None:
            found.append(contradicting_times(stated_tr_s, tr_s))
    if unmeasured_fraction is not None:
        found.append(unmeasured_tissue(unmeasured_fraction))
    if brain_volume_ml is not None:
        found.append(implausible_brain(brain_volume_ml))
    found.append(doubtful_adc(adc_coverage, adc_shift_mm, adc_core_fraction))
    raised = [flag for flag in found if flag is not None]
    return tuple(sorted(raised, key=lambda flag: FLAGS.index(flag.name)))
