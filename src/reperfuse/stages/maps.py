"""The maps verb: one DSC examination in; maps, volumes, quality flags and a page to look at out."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from reperfuse import __version__
from reperfuse.errors import InputError
from reperfuse.evaluation.perfusion_qc import qc_figure
from reperfuse.imaging.volume import Volume
from reperfuse.params import PerfusionMaps
from reperfuse.perfusion import mismatch
from reperfuse.perfusion.aif import Aif, NoArtery, aif_from_mask, doubts, find_aif, measured, relative_ttp
from reperfuse.perfusion.bolus import baseline_frames, bolus_arrival, first_pass, mean_curve
from reperfuse.perfusion.concentration import delta_r2star, noise_sigma, reliable_ceiling
from reperfuse.perfusion.deconvolution import METHODS
from reperfuse.perfusion.leakage import leakage_correction, leakage_reference
from reperfuse.perfusion.maps import image_of, maps_of_curves, time_to_peak
from reperfuse.perfusion.quality import quality_flags
from reperfuse.perfusion.tissue import normal_white_matter, tissue_mask
from reperfuse.perfusion.vof import find_vof, rescaled_to_vof
from reperfuse.preprocessing.brain import threshold_mask
from reperfuse.preprocessing.geometry import resample_time
from reperfuse.preprocessing.motion import Motion, estimate_motion, realigned
from reperfuse.preprocessing.registration import rigid_align
from reperfuse.stages.maps_input import Given, even_times_s, read_examination, read_given
from reperfuse.stages.maps_output import (
    RTTP,
    clear,
    write_curves,
    write_images,
    write_motion,
    write_page,
    write_summary,
)

WHITE_MATTER_CBF = 22.0
"""CBF of normal white matter [mL/100 g/min] to which flow is scaled if asked (PET; Leenders 1990, Brain 113:27-47)."""


FLOW_METHODS = ("osvd", "tikhonov")
"""Methods whose CBF tells a core; for the others it is taken from the first. A fixed threshold lets noise raise the
maximum of a residue where there is hardly flow: on three phantoms at SNR 50 (`dsc_phantom`, seeds 1 to 3) the core by
cSVD has 0.04 to 0.10 of its true volume, by sSVD 0.25 to 0.32, by oSVD 0.63 to 0.67, by Tikhonov 0.66 to 0.71."""

UNEVEN = 0.05
"""Frame times may stray from even spacing by this part of it before curves are resampled in time."""


@dataclass(frozen=True)
class Bolus:
    """The passage of the bolus, in ΔR2* at even times."""

    brain: np.ndarray
    """Shape (I, J, K)."""
    image: np.ndarray
    """ΔR2* everywhere, shape (I, J, K, T) [1/s]."""
    dt: float
    """Time between frames [s]."""
    baseline: slice
    """Frames before the bolus."""
    arrival_s: float
    """When the mean tissue leaves its baseline [s]."""
    ceiling: np.ndarray
    """ΔR2* above which a voxel's signal is in the noise floor, shape (I, J, K) [1/s]."""
    voxel_noise: float
    """Median standard deviation of ΔR2* over the brain [1/s]."""
    s0: np.ndarray
    """Mean signal before the bolus, shape (I, J, K)."""

    @property
    def curves(self) -> np.ndarray:
        """ΔR2* of the brain, shape (n, T) [1/s]."""
        return np.asarray(self.image[self.brain])


@dataclass(frozen=True)
class Arteries:
    """What feeds and drains the brain."""

    found: Aif | None
    """The artery as measured; None where there is none."""
    vof: Aif | None
    """The venous output; None where none stands out."""
    used: Aif | None
    """The artery that tissue is deconvolved with: as measured, or scaled to the area of the vein."""


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

    Without an artery rttp.nii.gz stands for the maps that need one. Without a bolus there is a summary alone, and the
    error is raised after it is written.

    Raises
    ------
    InputError
        If the input cannot be used; no map is written then.
    """
    chosen = method or settings.method
    if chosen not in METHODS:
        raise InputError(f"--method is {chosen!r}: name one of {', '.join(METHODS)}.")
    series = read_examination(source, te_s=te_s, tr_s=tr_s)
    given = read_given(series, mask=mask, aif=aif, adc=adc)
    clear(out)
    with Progress(transient=True, disable=not Console().is_terminal) as bar:
        try:
            summary = _examined(series, given, out, settings, chosen, bar)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
    print(_said(summary, out))
    return summary


def _examined(
    series: Volume, given: Given, out: Path, settings: PerfusionMaps, method: str, bar: Progress
) -> dict[str, Any]:
    """The chain, from signal to summary."""
    brain = given.brain
    if brain is None:
        brain = threshold_mask(_mean_image(series.data), settings.brain_fraction)
    signal = series.data[brain]
    evidence: dict[str, Any] = {
        "te_s": series.te_s,
        "tr_s": series.tr_s,
        "frame_times_s": series.frame_times_s,
        "measured": (np.isfinite(signal) & (signal > 0)).mean(axis=0),
        "mean_signal": mean_curve(signal),
    }
    motion = None
    if settings.motion_correction:
        series, motion = _at_rest(series, brain, bar)
        evidence |= {
            "displacement_mm": motion.displacement_mm,
            "lost": motion.lost,
            "motion_corrected": motion.applied,
            "mean_signal": mean_curve(series.data[brain]),
        }
    task = bar.add_task("maps", total=5)
    facts = _facts(series, motion, settings, method)
    try:
        bolus = _bolus(series, brain, evidence["mean_signal"])
    except InputError:
        nothing = mismatch.mismatch_summary(None, brain, _voxel_ml(series), thresholds_s=settings.tmax_thresholds_s)
        write_summary(out, facts | nothing, quality_flags(**evidence))
        raise
    bar.advance(task)

    arteries = _arteries(bolus, given, settings)
    bar.advance(task)
    found = _maps(bolus, arteries, settings, method)
    bar.advance(task)
    where = _tissue(bolus, arteries, found, settings, series.spacing_mm)
    if settings.white_matter_normalisation and "tmax" in found:
        _normalise(found, bolus, where, series.affine)
    verdict, outlines = _verdict(series, bolus, arteries, found, where, given, settings, method)
    bar.advance(task)

    tissue = bolus.curves.mean(axis=0)
    evidence |= {
        "baseline": bolus.baseline,
        "mean_delta_r2star": tissue,
        "voxel_noise": bolus.voxel_noise,
        "artery_found": arteries.found is not None,
        "late_ttp_ml": verdict["relative_ttp_volume_ml"],
    }
    if arteries.found is not None:
        evidence |= {"aif": arteries.found.curve, "aif_saturated": arteries.found.saturated}
        evidence["aif_doubts"] = doubts(arteries.used or arteries.found, bolus.dt)
        if len(arteries.found.voxels):
            evidence["aif_ceiling"] = float(bolus.ceiling[tuple(arteries.found.voxels.T)].mean())
    flags = quality_flags(**evidence)
    summary = facts | verdict | {"aif": _described(arteries), "bolus_arrival_s": bolus.arrival_s}
    write_images(out, found, series.affine)
    write_curves(out, bolus.dt, arteries.used, arteries.vof, tissue)
    if motion is not None:
        write_motion(out, motion, series.frame_times_s)
    page = qc_figure(
        found,
        brain=bolus.brain,
        affine=series.affine,
        baseline_image=bolus.s0,
        frame_times_s=np.arange(tissue.size) * bolus.dt,
        tissue=tissue,
        aif=None if arteries.used is None else arteries.used.curve,
        vof=None if arteries.vof is None else arteries.vof.curve,
        aif_voxels=None if arteries.found is None else arteries.found.voxels,
        vof_voxels=None if arteries.vof is None else arteries.vof.voxels,
        baseline=bolus.baseline,
        arrival_s=bolus.arrival_s,
        summary=summary,
        flags=flags,
        title=f"Perfusion maps, {method}",
        **outlines,
    )
    write_page(out, page)
    return write_summary(out, summary, flags)


def _said(summary: dict[str, Any], out: Path) -> str:
    """The summary in a few lines for the terminal, flags in words."""
    late, core = summary["tmax_volume_ml"].get("6"), summary["core_volume_ml"]
    if late is None:
        volumes = f"no artery; relative TTP is late in {summary['relative_ttp_volume_ml']:.0f} mL"
    else:
        volumes = f"Tmax > 6 s in {late:.0f} mL"
    if core is not None:
        volumes += f", core {core:.0f} mL ({summary['core_method']})"
    if summary["target_mismatch"] is not None:
        volumes += f", target mismatch {'yes' if summary['target_mismatch'] else 'no'}"
    flags = [f"  ! {sentence}" for sentence in summary["flag_sentences"].values()]
    return "\n".join([f"{volumes}; look at {out / 'qc.png'} first.", *flags])


def _mean_image(data: np.ndarray) -> np.ndarray:
    """Mean over the measured frames of each voxel, shape (I, J, K)."""
    measured = np.isfinite(data) & (data > 0)
    total = np.sum(data, axis=3, where=measured, dtype=np.float64)
    return np.asarray(total / np.maximum(measured.sum(axis=3), 1), dtype=np.float32)


def _voxel_ml(series: Volume) -> float:
    return abs(float(np.linalg.det(series.affine[:3, :3]))) / 1000


def _at_rest(series: Volume, brain: np.ndarray, bar: Progress) -> tuple[Volume, Motion]:
    """The series with the head where it was in the reference, frames that cannot be saved as NaN."""
    task = bar.add_task("motion", total=series.n_frames)
    motion = estimate_motion(series.data, series.affine, mask=brain, progress=lambda *_: bar.advance(task))
    return replace(series, data=realigned(series.data, series.affine, motion)), motion


def _facts(series: Volume, motion: Motion | None, settings: PerfusionMaps, method: str) -> dict[str, Any]:
    """What the summary says whatever is found."""
    known = None if motion is None else motion.displacement_mm[np.isfinite(motion.displacement_mm)]
    return {
        "te_s": series.te_s,
        "tr_s": series.tr_s,
        "n_frames": series.n_frames,
        "motion_mm_max": None if known is None or not known.size else float(known.max()),
        "motion_corrected": motion is not None and motion.applied,
        "frames_lost": 0 if motion is None else int(np.count_nonzero(motion.lost)),
        "method": method,
        "settings": settings.model_dump(mode="json"),
        "notes": list(series.notes),
        "reperfuse": __version__,
        "aif": None,
        "bolus_arrival_s": None,
        "relative_ttp_volume_ml": None,
    }


def _bolus(series: Volume, brain: np.ndarray, mean_signal: np.ndarray) -> Bolus:
    """ΔR2* at even times; raises InputError where no bolus passes or it has no baseline."""
    assert series.te_s is not None and series.tr_s is not None and series.frame_times_s is not None
    baseline, arrival = baseline_frames(mean_signal), bolus_arrival(mean_signal)
    times = series.frame_times_s
    curves = delta_r2star(series.data, series.te_s, baseline=baseline)
    even = even_times_s(series)
    if even.size != times.size or np.abs(times - even).max() > UNEVEN * series.tr_s:
        curves = resample_time(curves, times, even)
    sigma = noise_sigma(series.data, baseline)
    s0 = _mean_image(series.data[..., baseline])
    lit = brain & (s0 > 0)
    return Bolus(
        brain=brain,
        image=curves,
        dt=series.tr_s,
        baseline=slice(*np.searchsorted(even, times[[baseline.start, baseline.stop]] - series.tr_s / 2)),
        arrival_s=float(times[arrival]),
        ceiling=reliable_ceiling(series.data, series.te_s, baseline, sigma=sigma),
        voxel_noise=float(np.median(sigma[lit] / s0[lit])) / series.te_s,
        s0=s0,
    )


def _arteries(bolus: Bolus, given: Given, settings: PerfusionMaps) -> Arteries:
    if given.aif is not None:
        found = measured(Aif(curve=given.aif, voxels=np.empty((0, 3), dtype=np.intp), source="file"), bolus.dt)
    elif given.artery is not None:
        found = aif_from_mask(bolus.image, given.artery, ceiling=bolus.ceiling, dt=bolus.dt)
    else:
        try:
            found = find_aif(bolus.image, bolus.dt, bolus.brain, ceiling=bolus.ceiling)
        except NoArtery:
            return Arteries(None, None, None)
    vof = find_vof(bolus.image, bolus.dt, bolus.brain, aif=found, ceiling=bolus.ceiling)
    # A curve from a file is taken as it is: whoever measured it knows its area.
    scaled = settings.partial_volume_correction and vof is not None and found.source != "file"
    return Arteries(found, vof, rescaled_to_vof(found, vof, bolus.dt) if scaled else found)


def _maps(bolus: Bolus, arteries: Arteries, settings: PerfusionMaps, method: str) -> dict[str, np.ndarray]:
    """Name to map, shape (I, J, K)."""
    curves = bolus.curves
    if arteries.used is None:
        values = {"ttp": time_to_peak(curves, bolus.dt), RTTP: relative_ttp(curves, bolus.dt)}
    else:
        corrected = None
        if settings.leakage_correction:
            corrected, _, _ = leakage_correction(curves, bolus.dt, leakage_reference(curves))
        window = first_pass(curves.mean(axis=0)) if settings.integration == "first_pass" else slice(None)
        values = maps_of_curves(
            curves,
            arteries.used.curve,
            bolus.dt,
            method=method,
            hematocrit_correction=settings.hematocrit_correction,
            volume_curves=corrected,
            window=window,
        )
    return {name: image_of(found, bolus.brain) for name, found in values.items()}


def _tissue(
    bolus: Bolus, arteries: Arteries, found: dict[str, np.ndarray], settings: PerfusionMaps, spacing_mm: Any
) -> np.ndarray:
    """Where volumes are counted, shape (I, J, K)."""
    never = float("inf")
    area = np.where(bolus.brain, np.maximum(bolus.image.sum(axis=3), 0), 0)
    vessels = None
    if arteries.found is not None and settings.exclude_vessels:
        vessels = np.zeros(bolus.brain.shape, dtype=bool)
        vessels[tuple(arteries.found.voxels.T)] = True
    limits = {} if settings.exclude_csf else {"csf_signal": never}
    if not settings.exclude_vessels:
        limits |= {"vessel_cbv": never, "vessel_cbf": never}
    return tissue_mask(bolus.brain, area, found.get("cbf"), bolus.s0, spacing_mm=spacing_mm, vessels=vessels, **limits)


def _normalise(found: dict[str, np.ndarray], bolus: Bolus, where: np.ndarray, affine: np.ndarray) -> None:
    """Flow and volume by one factor, so that MTT stays what it is."""
    white = normal_white_matter(found["cbv"], found["cbf"], bolus.s0, found["tmax"], where, affine)
    factor = np.float32(WHITE_MATTER_CBF / found["cbf"][white].mean(dtype=np.float64))
    for name in ("cbf", "cbv"):
        found[name] *= factor


def _verdict(
    series: Volume,
    bolus: Bolus,
    arteries: Arteries,
    found: dict[str, np.ndarray],
    where: np.ndarray,
    given: Given,
    settings: PerfusionMaps,
    method: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Volumes and mismatch for the summary, and hypoperfused tissue and core for the page."""
    voxel_ml = _voxel_ml(series)
    islands: Any = {"min_island_ml": settings.minimum_island_ml}
    tmax = found.get("tmax")
    core, core_method = None, None
    if given.adc is not None:
        try:
            on_grid, _ = rigid_align(given.adc.data, given.adc.affine, bolus.s0, series.affine)
            core = mismatch.adc_core(on_grid, bolus.brain, voxel_ml, below_mm2_s=settings.core_adc * 1e-6, **islands)
        except InputError as error:
            raise InputError(f"{given.adc_file}: {error}") from error
        core_method = "adc"
    elif tmax is not None:
        flow = found["cbf"]
        if method not in FLOW_METHODS:
            flow = _maps(bolus, arteries, settings, FLOW_METHODS[0])["cbf"]
        core = mismatch.rcbf_core(
            flow, tmax, where, series.affine, brain=bolus.brain, rcbf=settings.core_rcbf, **islands
        )
        core_method = None if core is None else "rcbf"
    verdict = mismatch.mismatch_summary(
        tmax,
        where,
        voxel_ml,
        core=core,
        core_method=core_method,
        thresholds_s=settings.tmax_thresholds_s,
        **islands,
    )
    # Also where Tmax is known: two that disagree are a reason to look at the artery.
    relative = image_of(relative_ttp(bolus.curves, bolus.dt), bolus.brain)
    slow = mismatch.hypoperfused(relative, where, voxel_ml, threshold_s=mismatch.LATE_TTP_S, **islands)
    late = slow if tmax is None else mismatch.hypoperfused(tmax, where, voxel_ml, **islands)
    verdict["relative_ttp_volume_ml"] = mismatch.volume_ml(slow, voxel_ml)
    return verdict, {"hypoperfused": late, "core": core}


def _described(arteries: Arteries) -> dict[str, Any] | None:
    """What the summary says of the artery."""
    if arteries.found is None or arteries.used is None:
        return None
    return {
        "source": arteries.found.source,
        "n_voxels": len(arteries.found.voxels),
        "saturated": arteries.found.saturated,
        "peak_per_s": float(arteries.found.curve.max()),
        "area_scale": arteries.used.scale,
        "vof_voxels": 0 if arteries.vof is None else len(arteries.vof.voxels),
    }
