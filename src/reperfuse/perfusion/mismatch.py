"""Hypoperfused volume, core and mismatch: what a decision about reperfusion is made of.

Volumes are counted in tissue (`perfusion.tissue`), without small islands. Where something is undefined the answer is
None, never 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import generate_binary_structure, label

from reperfuse.errors import InputError
from reperfuse.perfusion.tissue import (
    MIN_REFERENCE_ML,
    NORMAL_TMAX_S,
    Mask,
    contralateral_normal,
    hemispheres,
)

TMAX_THRESHOLDS_S = (4.0, 6.0, 8.0, 10.0)
"""Tmax [s] above which volumes are reported; 4 s is benign oligaemia, 10 s tissue that collaterals hardly reach."""

HYPOPERFUSED_S = 6.0
"""Tmax [s] above which tissue is critically hypoperfused (DEFUSE 3)."""

SEVERE_S = 10.0
"""Tmax [s] of the numerator of the hypoperfusion intensity ratio (Olivot 2014, Stroke 45:1018-1023)."""

MIN_ISLAND_ML = 1.0
"""Volume [mL] below which a connected piece does not count. Ours: about 50 voxels of 1.7 × 1.7 × 6.5 mm, more than the
clumps that noise makes in white matter, and far below the 15 mL on which a decision turns."""

ADC_CORE_MM2_S = 620e-6
"""ADC [mm²/s] below which tissue is infarct core (DEFUSE 3)."""

ADC_FLOOR_MM2_S = 200e-6
"""ADC [mm²/s] below which a voxel shows background, bone, blood products or the rim that resampling leaves: the ADC of
dying tissue falls to 300 to 400."""

ADC_UNITS = {"mm2/s": 1.0, "1e-3 mm2/s": 1e-3, "1e-6 mm2/s": 1e-6}
"""Units in which ADC maps are stored, and each in mm²/s. Scanners write integers of 1e-6, software the others."""

ADC_BRAIN_MM2_S = (500e-6, 1800e-6)
"""Where the median ADC of a brain lies [mm²/s]: 700 to 900 in tissue, higher with wide ventricles, lower with a
hemisphere infarcted. The units differ by 1000, so that one of them fits at most."""

CORE_RCBF = 0.30
"""CBF over that of normal contralateral tissue below which hypoperfused tissue is core: the rule of DEFUSE 3 for CT
perfusion, a substitute here where no ADC map is given."""

TARGET_RATIO, TARGET_VOLUME_ML, TARGET_CORE_ML = 1.8, 15.0, 70.0
"""DEFUSE 3: mismatch ratio and volume [mL] at least, core [mL] less than (Albers 2018, N Engl J Med 378:708-718)."""


def without_small_islands(
    mask: ArrayLike, voxel_ml: float, *, min_island_ml: float = MIN_ISLAND_ML, connectivity: int = 6
) -> Mask:
    """The mask without its connected pieces smaller than `min_island_ml`.

    Parameters
    ----------
    mask
        Shape (I, J, K).
    voxel_ml
        Volume of a voxel [mL].
    connectivity
        6: voxels of a piece share faces; 18: edges; 26: corners. 6 by default, since noise joins at corners first.
        Nested masks stay nested whichever it is.

    Examples
    --------
    >>> row = np.array([1, 1, 1, 0, 1], bool)[:, None, None]
    >>> without_small_islands(row, 1.0, min_island_ml=2).ravel().astype(int).tolist()
    [1, 1, 1, 0, 0]
    """
    if connectivity not in (6, 18, 26):
        raise ValueError(f"connectivity is {connectivity}, expected 6, 18 or 26")
    if not (np.isfinite(voxel_ml) and voxel_ml > 0):
        raise ValueError(f"voxel_ml is {voxel_ml}, expected a positive volume")
    pieces, _ = label(np.asarray(mask) > 0, generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity]))
    # A piece of exactly the limit counts, whatever rounding says of n·voxel_ml.
    large = np.bincount(pieces.ravel()) * voxel_ml >= min_island_ml * (1 - 1e-9)
    large[0] = False
    return np.asarray(large[pieces], dtype=bool)


def hypoperfused(
    tmax: ArrayLike,
    where: ArrayLike,
    voxel_ml: float,
    *,
    threshold_s: float = HYPOPERFUSED_S,
    min_island_ml: float = MIN_ISLAND_ML,
    connectivity: int = 6,
) -> Mask:
    """Tissue that the bolus reaches later than `threshold_s`, small islands removed, shape (I, J, K).

    Parameters
    ----------
    tmax
        Tmax [s], shape (I, J, K); what is not finite is not counted. Relative TTP works alike, with its own threshold
        (`time_to_peak.LATE_TTP_S`).
    where
        Tissue (`tissue_mask`).
    voxel_ml
        Volume of a voxel [mL].
    """
    tissue = np.asarray(where) > 0
    if np.shape(tmax) != tissue.shape:
        raise ValueError(f"the tissue mask has shape {tissue.shape}, Tmax {np.shape(tmax)}: both share one grid")
    late = np.nan_to_num(np.asarray(tmax, dtype=np.float64), nan=-np.inf, posinf=-np.inf) > threshold_s
    return without_small_islands(tissue & late, voxel_ml, min_island_ml=min_island_ml, connectivity=connectivity)


def hypoperfused_volumes(
    tmax: ArrayLike,
    where: ArrayLike,
    voxel_ml: float,
    thresholds_s: Sequence[float] = TMAX_THRESHOLDS_S,
    *,
    min_island_ml: float = MIN_ISLAND_ML,
    connectivity: int = 6,
) -> dict[str, float]:
    """Volume [mL] of tissue with Tmax above each threshold, keyed by the threshold in seconds.

    Examples
    --------
    >>> tmax = np.repeat([1.0, 5.0, 7.0, 12.0], 10).reshape(4, 10, 1)
    >>> hypoperfused_volumes(tmax, np.ones(tmax.shape), voxel_ml=0.1)
    {'4': 3.0, '6': 2.0, '8': 1.0, '10': 1.0}
    """
    return {
        f"{threshold:g}": volume_ml(
            hypoperfused(
                tmax, where, voxel_ml, threshold_s=threshold, min_island_ml=min_island_ml, connectivity=connectivity
            ),
            voxel_ml,
        )
        for threshold in thresholds_s
    }


def volume_ml(mask: ArrayLike, voxel_ml: float) -> float:
    """Volume of a mask [mL], rounded to 1e-6 mL, so that sums of voxels read as people write them."""
    return round(float(np.count_nonzero(mask)) * float(voxel_ml), 6)


def rcbf_core(
    cbf: ArrayLike,
    tmax: ArrayLike,
    where: ArrayLike,
    affine: ArrayLike,
    *,
    brain: ArrayLike | None = None,
    rcbf: float = CORE_RCBF,
    threshold_s: float = HYPOPERFUSED_S,
    normal_tmax_s: float = NORMAL_TMAX_S,
    min_reference_ml: float = MIN_REFERENCE_ML,
    min_island_ml: float = MIN_ISLAND_ML,
    connectivity: int = 6,
) -> Mask | None:
    """Core by flow: hypoperfused tissue whose CBF is below 30 % of normal contralateral tissue; None without a normal.

    core = {Tmax > 6 s} ∩ {CBF < 0.30 · mean CBF of the other hemisphere's tissue with Tmax < 4 s}, small islands
    removed from the hypoperfused tissue first and from the core then. A factor on all CBF changes nothing.

    The flow of a core is low, and noise raises the maximum it is read from. On phantoms at SNR 50 the volume is 0.88 of
    the truth by oSVD, 0.86 by Tikhonov (0.66 and 0.39 at SNR 25), but 0.44 by sSVD and 0.18 by cSVD, whose thresholds
    do not follow the noise: take oSVD where this volume matters.

    Parameters
    ----------
    cbf, tmax
        CBF in any unit and Tmax [s], shape (I, J, K).
    where
        Tissue (`tissue_mask`).
    affine
        (4, 4), voxel index to RAS+ [mm]: gives left, right and the voxels' volume.
    brain
        Whole brain, for its midline; `where` when not given.
    """
    affine = np.asarray(affine, dtype=np.float64)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    sides = hemispheres(where if brain is None else brain, affine)
    normal = contralateral_normal(
        cbf, tmax, where, sides, voxel_ml, normal_tmax_s=normal_tmax_s, min_reference_ml=min_reference_ml
    )
    if not np.isfinite(normal).any():
        return None
    islands: dict[str, Any] = {"min_island_ml": min_island_ml, "connectivity": connectivity}
    late = hypoperfused(tmax, where, voxel_ml, threshold_s=threshold_s, **islands)
    return without_small_islands(late & (np.asarray(cbf) < rcbf * normal), voxel_ml, **islands)


def adc_mm2_s(adc: ArrayLike, brain: ArrayLike) -> NDArray[np.float64]:
    """The ADC map in mm²/s, whichever of `ADC_UNITS` it came in, told by the median over the brain.

    Raises
    ------
    InputError
        If the map is on another grid, or its median is no brain's in any of the units.

    Examples
    --------
    >>> scanner = np.array([[[800, 820, 500]]])
    >>> float(adc_mm2_s(scanner, scanner > 0)[0, 0, 2])
    0.0005
    """
    values = np.asarray(adc, dtype=np.float64)
    inside = np.asarray(brain) > 0
    if values.shape != inside.shape:
        raise InputError(
            f"The ADC map has shape {values.shape}, the perfusion series {inside.shape}: "
            "register it to the series' grid first."
        )
    measured = inside & np.isfinite(values) & (values > 0)
    if not measured.any():
        raise InputError("The ADC map has no value in the brain: check that it is registered to the perfusion series.")
    median = float(np.median(values[measured]))
    low, high = ADC_BRAIN_MM2_S
    for scale in ADC_UNITS.values():
        if low <= median * scale <= high:
            return np.asarray(values * scale, dtype=np.float64)
    raise InputError(
        f"The median of the ADC map over the brain is {median:g}, which is no brain's in mm2/s, 1e-3 mm2/s or "
        "1e-6 mm2/s: check that it is an ADC map, its rescale slope, and its registration."
    )


def adc_coverage(adc: ArrayLike, brain: ArrayLike) -> float:
    """Part of the brain in which the ADC map was measured: is finite and above 0; 0 to 1.

    Examples
    --------
    >>> adc_coverage(np.array([[[800.0, np.nan, 0, 700]]]), np.ones((1, 1, 4)))
    0.5
    """
    inside = np.asarray(adc)[np.asarray(brain) > 0]
    return float((np.isfinite(inside) & (inside > 0)).mean()) if inside.size else 0.0


def adc_core(
    adc: ArrayLike,
    brain: ArrayLike,
    voxel_ml: float,
    *,
    below_mm2_s: float = ADC_CORE_MM2_S,
    above_mm2_s: float = ADC_FLOOR_MM2_S,
    min_island_ml: float = MIN_ISLAND_ML,
    connectivity: int = 6,
) -> Mask:
    """Core by diffusion: brain with ADC below 620·10⁻⁶ mm²/s, hypoperfused now or not, small islands removed.

    Parameters
    ----------
    adc
        On the grid of the brain, in any of `ADC_UNITS`, shape (I, J, K). NaN and 0 were not measured: such a voxel is
        no core, and `adc_coverage` says how much of the brain is unknown.
    brain
        Whole brain: fluid cannot be that low, and the core's centre may be without a bolus.
    voxel_ml
        Volume of a voxel [mL].
    below_mm2_s, above_mm2_s
        Between these the ADC is core's [mm²/s].
    """
    values = adc_mm2_s(adc, brain)
    low = (np.asarray(brain) > 0) & (values > above_mm2_s) & (values < below_mm2_s)
    return without_small_islands(low, voxel_ml, min_island_ml=min_island_ml, connectivity=connectivity)


def mismatch_summary(
    tmax: ArrayLike | None,
    where: ArrayLike,
    voxel_ml: float,
    *,
    core: ArrayLike | None = None,
    core_method: str | None = None,
    thresholds_s: Sequence[float] = TMAX_THRESHOLDS_S,
    hypoperfused_s: float = HYPOPERFUSED_S,
    severe_s: float = SEVERE_S,
    target_ratio: float = TARGET_RATIO,
    target_volume_ml: float = TARGET_VOLUME_ML,
    target_core_ml: float = TARGET_CORE_ML,
    min_island_ml: float = MIN_ISLAND_ML,
    connectivity: int = 6,
) -> dict[str, Any]:
    """Volumes, mismatch, hypoperfusion intensity and the DEFUSE 3 rule, as in summary.json; what is undefined is None.

    tmax_volume_ml
        Volume of Tmax > 4, 6, 8, 10 s [mL].
    core_volume_ml, core_method
        Volume of the core [mL] and "adc" or "rcbf"; None without a core map.
    mismatch_volume_ml
        V(Tmax > 6 s) − V(core) [mL], a difference of volumes as in the trial, and 0 where the core is larger, as after
        reperfusion; None without a core map.
    mismatch_ratio
        V(Tmax > 6 s)/V(core); None where there is no core.
    hypoperfusion_intensity_ratio
        V(Tmax > 10 s)/V(Tmax > 6 s), between 0 and 1; None where nothing is hypoperfused.
    target_mismatch
        Ratio ≥ 1.8, mismatch ≥ 15 mL and core < 70 mL; with a core of 0 mL the volume decides; None without core map.

    Parameters
    ----------
    tmax
        Tmax [s], shape (I, J, K); None where no artery was found, and all that rests on it is None.
    where
        Tissue (`tissue_mask`).
    voxel_ml
        Volume of a voxel [mL].
    core, core_method
        From `adc_core` or `rcbf_core`, shape (I, J, K), with "adc" or "rcbf".

    References
    ----------
    Albers GW et al., N Engl J Med 2018;378:708-718 (DEFUSE 3).

    Examples
    --------
    >>> tmax = np.repeat([1.0, 7.0, 12.0], 400).reshape(3, 20, 20)
    >>> core = (tmax > 10) & (np.arange(20) < 10)
    >>> found = mismatch_summary(tmax, np.ones(tmax.shape), 0.1, core=core, core_method="rcbf")
    >>> found["mismatch_volume_ml"], found["mismatch_ratio"], found["target_mismatch"]
    (60.0, 4.0, True)
    """
    if (core is None) != (core_method is None):
        raise ValueError("core and core_method are given together or not at all")
    if core_method not in (None, "adc", "rcbf"):
        raise ValueError(f"core_method is {core_method!r}, expected 'adc', 'rcbf' or None")
    islands: dict[str, Any] = {"min_island_ml": min_island_ml, "connectivity": connectivity}
    volumes: dict[str, float | None] = {f"{threshold:g}": None for threshold in thresholds_s}
    late_ml = intensity = None
    if tmax is not None:
        needed = dict.fromkeys((*thresholds_s, hypoperfused_s, severe_s))
        asked = hypoperfused_volumes(tmax, where, voxel_ml, tuple(needed), **islands)
        volumes = {threshold: asked[threshold] for threshold in volumes}
        late_ml = asked[f"{hypoperfused_s:g}"]
        intensity = asked[f"{severe_s:g}"] / late_ml if late_ml > 0 else None
    core_ml = None if core is None else volume_ml(np.asarray(core) > 0, voxel_ml)
    mismatch = ratio = target = None
    if core_ml is not None and late_ml is not None:
        mismatch = round(max(late_ml - core_ml, 0.0), 6)
        ratio = late_ml / core_ml if core_ml > 0 else None
        target = mismatch >= target_volume_ml and core_ml < target_core_ml and (ratio is None or ratio >= target_ratio)
    return {
        "tmax_volume_ml": volumes,
        "core_volume_ml": core_ml,
        "core_method": core_method,
        "mismatch_volume_ml": mismatch,
        "mismatch_ratio": ratio,
        "hypoperfusion_intensity_ratio": intensity,
        "target_mismatch": target,
    }
