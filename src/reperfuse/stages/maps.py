"""The maps verb: one DSC examination in; maps, volumes, quality flags and a page to look at out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from reperfuse import __version__
from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.params import PerfusionMaps
from reperfuse.perfusion.aif import doubts
from reperfuse.perfusion.bolus import mean_curve
from reperfuse.perfusion.concentration import negative_areas
from reperfuse.perfusion.mismatch import mismatch_summary
from reperfuse.perfusion.quality import quality_flags
from reperfuse.preprocessing.brain import threshold_mask
from reperfuse.preprocessing.motion import Motion, estimate_motion, realigned
from reperfuse.stages import maps_chain as chain
from reperfuse.stages.maps_input import Given, read_examination, read_given
from reperfuse.stages.maps_method import Method, chosen_method, maps_by
from reperfuse.stages.maps_output import clear, guard, write_all, write_summary

WITHHELD_UNDER = ("no_bolus", "implausible_tr", "unmeasured_tissue", "doubtful_adc")
"""Flags under which the rule for treatment is not applied: its seconds or its volumes are not known."""


def maps(
    source: Path,
    out: Path,
    *,
    settings: PerfusionMaps,
    method: str | None = None,
    te_s: float | None = None,
    tr_s: float | None = None,
    mask: Path | None = None,
    aif: str = "auto",
    adc: Path | None = None,
) -> dict[str, Any]:
    """OUT/{cbf,cbv,mtt,tmax,ttp,delay}.nii.gz, aif.csv, motion.csv, summary.json and qc.png; returns the summary.

    With a learned method also tmax_sd and delay_sd. Without an artery rttp.nii.gz stands for the maps that need one.
    Without a bolus there is a summary alone, and the error is raised after it is written. What an earlier run left in
    OUT goes once the input has been read.

    Raises
    ------
    InputError
        If the input cannot be used, or the method is not there; no map is written then.
    """
    chosen = chosen_method(settings.method, "perfusion.maps.method") if method is None else chosen_method(method)
    inputs = [path for path in (source, mask, Path(aif), adc) if path is not None]
    guard(out, inputs)
    series, stated_tr_s = read_examination(source, te_s=te_s, tr_s=tr_s)
    given = read_given(series, mask=mask, aif=aif, adc=adc)
    clear(out)
    with Progress(transient=True, disable=not Console().is_terminal) as bar:
        try:
            summary = _examined(series, given, out, settings, chosen, bar, {"stated_tr_s": stated_tr_s})
        except InputError as error:
            named = any(str(path) in str(error) for path in (*inputs, out))
            raise error if named else InputError(f"{source}: {error}") from error
    print(_said(summary, out))
    return summary


def _examined(
    series: Volume,
    given: Given,
    out: Path,
    settings: PerfusionMaps,
    method: Method,
    bar: Progress,
    evidence: dict[str, Any],
) -> dict[str, Any]:
    """The chain, from signal to summary; `evidence` is what the flags are judged by."""
    brain = given.brain
    if brain is None:
        brain = threshold_mask(chain.mean_image(series.data), settings.brain_fraction)
    series = chain.without_outliers(series, brain)
    signal = series.data[brain]
    evidence |= {
        "te_s": series.te_s,
        "tr_s": series.tr_s,
        "frame_times_s": series.frame_times_s,
        "measured": (np.isfinite(signal) & (signal > 0)).mean(axis=0),
    }
    motion = None
    if settings.motion_correction:
        series, motion = _at_rest(series, brain, bar)
        if motion.applied and given.brain is None:  # the first mask is smeared over all places of the head
            brain = threshold_mask(chain.mean_image(series.data), settings.brain_fraction)
        evidence |= {
            "displacement_mm": motion.displacement_mm,
            "lost": motion.lost,
            "motion_corrected": motion.applied,
        }
    task = bar.add_task("maps", total=4)
    facts = _facts(series, brain, given, motion, settings, method)
    evidence["brain_volume_ml"] = facts["brain_ml"]
    try:
        evidence["mean_signal"] = mean_curve(series.data[brain])
        bolus = chain.bolus_of(series, brain, evidence["mean_signal"])
    except InputError:
        nothing = mismatch_summary(None, brain, chain.voxel_ml_of(series), thresholds_s=settings.tmax_thresholds_s)
        print("\n".join(_flag_lines(write_summary(out, facts | nothing, quality_flags(**evidence)))))
        raise
    bar.advance(task)

    arteries = chain.arteries_of(bolus, given, settings)
    bar.advance(task)
    found, of_method = maps_by(method, series, bolus, arteries, settings)
    facts |= of_method | {"notes": facts["notes"] + of_method["notes"]}
    bar.advance(task)
    where = chain.counted_tissue(bolus, arteries, found, settings, series.spacing_mm)
    if settings.white_matter_normalisation and "cbf" in found:
        chain.normalise_to_white_matter(found, bolus, where, series.affine)
    verdict, outlines, of_adc = chain.verdict_of(
        series, bolus, arteries, found, where, given, settings, flow_method=method.deconvolution
    )
    flags = quality_flags(**(evidence | _evidence(bolus, arteries, verdict) | of_adc))
    if {flag.name for flag in flags} & set(WITHHELD_UNDER):
        verdict["target_mismatch"] = None
    summary = facts | verdict | {"aif": chain.described(arteries), "bolus_arrival_s": bolus.arrival_s}
    bar.advance(task)
    return write_all(
        out,
        found,
        series,
        bolus=bolus,
        arteries=arteries,
        motion=motion,
        outlines=outlines,
        summary=summary,
        flags=flags,
    )


def _at_rest(series: Volume, brain: np.ndarray, bar: Progress) -> tuple[Volume, Motion]:
    """The series with the head where it was in the reference, frames that cannot be saved as NaN."""
    task = bar.add_task("motion", total=series.n_frames)
    motion = estimate_motion(series.data, series.affine, mask=brain, progress=lambda *_: bar.advance(task))
    return replace(series, data=realigned(series.data, series.affine, motion)), motion


def _evidence(bolus: chain.Bolus, arteries: chain.Arteries, verdict: dict[str, Any]) -> dict[str, Any]:
    """What the flags judge once there are maps."""
    curves = bolus.curves
    dead = (curves == 0).all(axis=1)
    tissue = curves[~dead].mean(axis=0) if not dead.all() else curves.mean(axis=0)
    evidence: dict[str, Any] = {
        "baseline": bolus.baseline,
        "mean_delta_r2star": tissue,
        "unmeasured_fraction": float(dead.mean()),
        "negative_fraction": negative_areas(curves, bolus.voxel_noise, bolus.baseline),
        "voxel_noise": bolus.voxel_noise,
        "artery_found": arteries.found is not None,
        "late_ttp_ml": verdict["relative_ttp_volume_ml"],
    }
    if arteries.found is not None:
        evidence |= {
            "aif": arteries.found.curve,
            "aif_saturated": arteries.found.saturated,
            "aif_doubts": doubts(arteries.used or arteries.found, bolus.dt, tissue),
        }
        if len(arteries.found.voxels):
            evidence["aif_ceiling"] = float(bolus.ceiling[tuple(arteries.found.voxels.T)].mean())
    return evidence


def _facts(
    series: Volume, brain: np.ndarray, given: Given, motion: Motion | None, settings: PerfusionMaps, method: Method
) -> dict[str, Any]:
    """What the summary says whatever is found."""
    known = None if motion is None else motion.displacement_mm[np.isfinite(motion.displacement_mm)]
    return method.facts | {
        "te_s": series.te_s,
        "tr_s": series.tr_s,
        "n_frames": series.n_frames,
        "brain_ml": round(float(np.count_nonzero(brain)) * chain.voxel_ml_of(series), 3),
        "mask_source": "threshold" if given.brain is None else "file",
        "motion_mm_max": None if known is None or not known.size else float(known.max()),
        "motion_corrected": motion is not None and motion.applied,
        "frames_lost": 0 if motion is None else int(np.count_nonzero(motion.lost)),
        "settings": settings.model_dump(mode="json"),
        "notes": list(series.notes),
        "reperfuse": __version__,
        "aif": None,
        "bolus_arrival_s": None,
        "relative_ttp_volume_ml": None,
    }


def _said(summary: dict[str, Any], out: Path) -> str:
    """The summary in a few lines for the terminal, notes and flags in words."""
    late, core = summary["tmax_volume_ml"].get("6"), summary["core_volume_ml"]
    if late is None:
        volumes = f"No artery; relative TTP is late in {summary['relative_ttp_volume_ml']:.0f} mL"
    else:
        volumes = f"Tmax > 6 s in {late:.0f} mL"
    if core is not None:
        volumes += f", core {core:.0f} mL ({summary['core_method']})"
    if summary["target_mismatch"] is not None:
        volumes += f", target mismatch {'yes' if summary['target_mismatch'] else 'no'}"
    notes = [f"  - {note}" for note in summary["notes"]]
    return "\n".join([f"{volumes}; look at {out / 'qc.png'} first.", *notes, *_flag_lines(summary)])


def _flag_lines(summary: dict[str, Any]) -> list[str]:
    return [f"  ! {sentence}" for sentence in summary["flag_sentences"].values()]
