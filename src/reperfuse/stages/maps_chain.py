"""The physics of `reperfuse maps` in its order: bolus, arteries, maps, tissue, verdict."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.params import PerfusionMaps
from reperfuse.perfusion import mismatch
from reperfuse.perfusion.aif import Aif, NoArtery, aif_from_mask, find_aif, measured
from reperfuse.perfusion.bolus import baseline_frames, bolus_arrival, first_pass, mean_curve, outlier_frames
from reperfuse.perfusion.concentration import delta_r2star, noise_sigma, reliable_ceiling
from reperfuse.perfusion.leakage import leakage_correction, leakage_reference
from reperfuse.perfusion.maps import image_of, maps_of_curves
from reperfuse.perfusion.time_to_peak import LATE_TTP_S, relative_ttp, time_to_peak
from reperfuse.perfusion.tissue import normal_white_matter, tissue_mask
from reperfuse.perfusion.vof import find_vof, rescaled_to_vof
from reperfuse.preprocessing.geometry import resample_time
from reperfuse.preprocessing.registration import rigid_align
from reperfuse.stages.maps_input import Given, even_times_s

RTTP = "rttp"
"""Time to peak behind normal tissue [s], which stands for Tmax where no artery was found."""

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
    noise: np.ndarray
    """Standard deviation of ΔR2* before the bolus, shape (I, J, K) [1/s]; 0 where there is no signal."""
    voxel_noise: float
    """Its median over the brain [1/s]."""
    s0: np.ndarray
    """Mean signal before the bolus, shape (I, J, K)."""

    @cached_property
    def curves(self) -> np.ndarray:
        """ΔR2* of the brain, shape (n, T) [1/s]."""
        return np.asarray(self.image[self.brain])

    @property
    def brain_noise(self) -> np.ndarray:
        """Standard deviation of these curves before the bolus, shape (n,) [1/s]."""
        return np.asarray(self.noise[self.brain])


@dataclass(frozen=True)
class Arteries:
    """What feeds and drains the brain."""

    found: Aif | None
    """The artery as measured; None where there is none."""
    vof: Aif | None
    """The venous output; None where none stands out."""
    used: Aif | None
    """The artery that tissue is deconvolved with: as measured, or scaled to the area of the vein."""


def mean_image(data: np.ndarray) -> np.ndarray:
    """Mean over the measured frames of each voxel, shape (I, J, K)."""
    measured = np.isfinite(data) & (data > 0)
    total = np.sum(data, axis=3, where=measured, dtype=np.float64)
    return np.asarray(total / np.maximum(measured.sum(axis=3), 1), dtype=np.float32)


def voxel_ml_of(series: Volume) -> float:
    """Volume of a voxel [mL]."""
    return abs(float(np.linalg.det(series.affine[:3, :3]))) / 1000


def without_outliers(series: Volume, brain: np.ndarray) -> Volume:
    """The series with frames that stand out by themselves (`bolus.outlier_frames`) as NaN, which is bridged in time."""
    wrong = outlier_frames(mean_curve(series.data[brain]))
    return replace(series, data=np.where(wrong, np.float32(np.nan), series.data)) if wrong.any() else series


def bolus_of(series: Volume, brain: np.ndarray, mean_signal: np.ndarray) -> Bolus:
    """ΔR2* at even times; raises InputError where no bolus passes or it has no baseline."""
    assert series.te_s is not None and series.tr_s is not None and series.frame_times_s is not None
    baseline, arrival = baseline_frames(mean_signal), bolus_arrival(mean_signal)
    times = series.frame_times_s
    curves = delta_r2star(series.data, series.te_s, baseline=baseline)
    even = even_times_s(series)
    if even.size != times.size or np.abs(times - even).max() > UNEVEN * series.tr_s:
        curves = resample_time(curves, times, even)
    sigma = noise_sigma(series.data, baseline)
    s0 = mean_image(series.data[..., baseline])
    noise = np.divide(sigma, s0 * series.te_s, out=np.zeros_like(s0), where=s0 > 0)
    lit = brain & (s0 > 0) & (curves != 0).any(axis=3)
    return Bolus(
        brain=brain,
        image=curves,
        dt=series.tr_s,
        baseline=slice(*np.searchsorted(even, times[[baseline.start, baseline.stop]] - series.tr_s / 2)),
        arrival_s=float(times[arrival]),
        ceiling=reliable_ceiling(series.data, series.te_s, baseline, sigma=sigma),
        noise=noise,
        voxel_noise=float(np.median(noise[lit])),
        s0=s0,
    )


def steady_series(series: Volume, bolus: Bolus) -> Volume:
    """The signal that the curves stand for, S0·exp(−TE·ΔR2*), shape (I, J, K, T): whole, steady and at even times.

    Where the series was all that, it is the series; a voxel that was not measured is level.
    """
    assert series.te_s is not None
    signal = np.exp(-series.te_s * bolus.image)
    signal *= bolus.s0[..., None]
    times = np.arange(signal.shape[3]) * bolus.dt
    return Volume(signal, series.affine, frame_times_s=times, te_s=series.te_s, tr_s=bolus.dt)


def arteries_of(bolus: Bolus, given: Given, settings: PerfusionMaps) -> Arteries:
    """Artery and vein: as given, or found; raises InputError where a given artery has no bolus."""
    if given.aif is not None:
        found = measured(Aif(curve=given.aif, voxels=np.empty((0, 3), dtype=np.intp), source="file"), bolus.dt)
    elif given.artery is not None:
        found = aif_from_mask(bolus.image, given.artery, ceiling=bolus.ceiling, dt=bolus.dt)
    else:
        try:
            found = find_aif(bolus.image, bolus.dt, bolus.brain, ceiling=bolus.ceiling)
        except NoArtery:
            return Arteries(None, None, None)
    if not found.curve.sum() > 0:
        if found.source == "auto":
            return Arteries(None, None, None)
        raise InputError(
            f"{given.aif_file}: the curve of this artery has no positive area; give another, in ΔR2* [1/s]."
        )
    vof = find_vof(bolus.image, bolus.dt, bolus.brain, aif=found, ceiling=bolus.ceiling)
    # A curve from a file is taken as it is: whoever measured it knows its area.
    scaled = settings.partial_volume_correction and vof is not None and found.source != "file"
    return Arteries(found, vof, rescaled_to_vof(found, vof, bolus.dt) if scaled else found)


def maps_of(bolus: Bolus, arteries: Arteries, settings: PerfusionMaps, method: str) -> dict[str, np.ndarray]:
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


def counted_tissue(
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


def normalise_to_white_matter(
    found: dict[str, np.ndarray], bolus: Bolus, where: np.ndarray, affine: np.ndarray
) -> None:
    """Flow and volume by one factor, so that MTT stays what it is."""
    try:
        white = normal_white_matter(found["cbv"], found["cbf"], bolus.s0, found["tmax"], where, affine)
    except InputError as error:
        raise InputError(f"{error} Set perfusion.maps.white_matter_normalisation to false.") from error
    factor = np.float32(WHITE_MATTER_CBF / found["cbf"][white].mean(dtype=np.float64))
    for name in ("cbf", "cbv"):
        found[name] *= factor


def verdict_of(
    series: Volume,
    bolus: Bolus,
    arteries: Arteries,
    found: dict[str, np.ndarray],
    where: np.ndarray,
    given: Given,
    settings: PerfusionMaps,
    *,
    flow_method: str,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Volumes and mismatch for the summary, late tissue and core for the page, and how well the ADC map fits.

    `flow_method` is the deconvolution that gave CBF, whatever gave Tmax.
    """
    voxel_ml = voxel_ml_of(series)
    islands: Any = {"min_island_ml": settings.minimum_island_ml}
    tmax = found.get("tmax")
    core, core_method, of_adc = None, None, {}
    if given.adc is not None:
        try:
            on_grid, place = rigid_align(given.adc.data, given.adc.affine, bolus.s0, series.affine)
            core = mismatch.adc_core(on_grid, bolus.brain, voxel_ml, below_mm2_s=settings.core_adc * 1e-6, **islands)
        except InputError as error:
            raise InputError(f"{given.adc_file}: {error}") from error
        core_method = "adc"
        of_adc = {
            "adc_coverage": mismatch.adc_coverage(on_grid, bolus.brain),
            "adc_shift_mm": place.displacement_mm,
            "adc_core_fraction": float(core[bolus.brain].mean()),
        }
    elif tmax is not None and "cbf" in found:
        flow = found["cbf"]
        if flow_method not in FLOW_METHODS:
            flow = maps_of(bolus, arteries, settings, FLOW_METHODS[0])["cbf"]
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
    slow = mismatch.hypoperfused(relative, where, voxel_ml, threshold_s=LATE_TTP_S, **islands)
    late = slow if tmax is None else mismatch.hypoperfused(tmax, where, voxel_ml, **islands)
    verdict["relative_ttp_volume_ml"] = mismatch.volume_ml(slow, voxel_ml)
    return verdict, {"hypoperfused": late, "core": core}, of_adc


def described(arteries: Arteries) -> dict[str, Any] | None:
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
