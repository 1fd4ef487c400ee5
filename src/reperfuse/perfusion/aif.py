"""The arterial input function: found in the series itself, from a mask, and what stands in where there is none."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperfuse.errors import InputError
from reperfuse.perfusion.vessels import (
    ABOVE_TISSUE,
    ALIVE,
    MAX_CANDIDATES,
    MAX_ROUGHNESS,
    MIN_CLUSTER,
    MIN_SNR,
    OF_THE_HIGHEST,
    Bolus,
    bolus_of,
    clusters,
    noise_of,
    purest,
    roughness_of,
    smoothed,
)

LATENESS_S = 3.5
"""Lateness [s] that costs a curve a factor e of steepness. A sinus is 10 to 30 % less steep than a pure artery, but may
be steeper than one mixed with tissue, and rises 3 s after it or more; tissue with a delay of −3 s rises 2 s before its
artery and has half of its steepness. On drawn phantoms 2.5 to 5 s tell both apart; without lateness a third fails."""

LATEST_S = 2.0
"""An artery rises at most this much after the mean tissue [s]: the mean tissue of a delay of −3 s, the least there is,
and of MTT 2 s rises so much before. Where there are only veins, which rise later still, there is no artery."""

STANDS_OUT = 1.45
"""Steepness (with lateness) of an artery over the 90th percentile of all voxels, at least; arteries are far less than a
tenth of a brain. On drawn phantoms arteries reach 1.5 to 16, nearly all more than 2; in tissue without any the steepest
cluster has 1.35 to 2. No limit parts the two, so this one is lenient, and below 2 the artery is doubted (`doubts`)."""

MIN_VOXELS, MAX_VOXELS = 5, 30
"""Voxels averaged: fewer let noise choose them, more reach into partial volume."""

AS_NARROW = 1.05
"""Width of voxels below their ceiling over that of the steepest, at most, to be taken instead: equal but for noise.
What keeps a curve below the ceiling may be tissue in the voxel, which spoils its shape more than a lost peak does; if
all arteries are black at their peak, the clipped ones correlate with the truth by 0.99, those just below by 0.97."""

NEAR_CEILING = 0.9
"""Peak over ceiling from which a mean curve counts as saturated even if its voxels are below: noise decided which."""

LATE_ARTERY_S = 0.5
"""An artery that rises this much after the mean tissue [s] is doubted, whoever chose it. On 92 drawn phantoms over the
full ranges the artery found rises 0.2 to 12 s before it, but for one (1.6 s after) that is a poor curve."""

LEAST_OVER_TISSUE = 1.4
"""Height of an artery over that of the mean tissue, at least; the same arteries have 1.47 (mixed with tissue) to 5."""

AREA_RANGE = (0.01, 3.0)
"""Area of the mean tissue curve over that of its artery; the same have 0.07 to 1.05. It is CBV as a fraction, but
tissue relaxes signal several times more per contrast agent than blood. Beyond, one of the two is in another unit."""

NO_ARTERY = "No voxel looks like an artery (early, high, narrow): give an AIF file or an artery mask."


class NoArtery(InputError):
    """Nothing in the series looks like an artery; relative TTP can stand in."""


@dataclass(frozen=True)
class Aif:
    """An arterial (or venous) curve, where it was measured, and how good it is."""

    curve: NDArray[np.float64]
    """ΔR2* of the vessel, shape (T,) [1/s]."""
    voxels: NDArray[np.intp]
    """Array indices i, j, k of the voxels it is the mean of, shape (n, 3); none for a curve from a file."""
    source: str = "auto"
    """auto, mask or file."""
    saturated: bool = False
    """Its peak lies in the noise floor, so it is cut; there were no better voxels."""
    scale: float = 1.0
    """Factor already applied to the curve to give it the vein's area (`vof.rescaled_to_vof`): 1.3 means that the voxels
    held about three quarters of blood."""
    snr: float = np.nan
    """Peak over the noise of the curve (from its second differences). Below 40 the shape may be off."""
    roughness: float = np.nan
    """Energy a 1.3 s smoothing takes from the curve over what it leaves. A bolus has 0.00 to 0.03."""
    width_s: float = np.nan
    """Width of the first pass at half height [s]. Patients have 4 to 12."""
    arrival_s: float = np.nan
    """When the curve rises through half of its height [s] after the first frame."""
    area: float = np.nan
    """∫ΔR2* dt over the series, recirculation included [no unit]."""
    reliability: float = np.nan
    """Correlation to be expected with the same curve without noise, from how alike its voxels are (`reliability_of`).
    Falls with noise and with voxels of different vessels; below 0.985 the curve should be looked at."""
    stands_out: float = np.nan
    """Its steepness over the 90th percentile of the voxels searched: at least `STANDS_OUT`; below 2 perhaps tissue."""


def find_aif(
    delta_r2star: ArrayLike, dt: float, mask: ArrayLike | None = None, *, ceiling: ArrayLike | None = None
) -> Aif:
    """The mean curve of a cluster of voxels that fill early, high and narrow.

    1. Candidates: voxels that stand out of tissue and noise, are not rough, and rise no later than `LATEST_S` after the
       mean tissue.
    2. They are ranked by steepness, height over width, which loses a factor e for each `LATENESS_S` of lateness; the
       first `MAX_CANDIDATES` are clustered by shape.
    3. The steepest cluster is the artery, judged by the mean of the voxels it would lend: its steepest, only as many as
       the noise asks for. If it does not stand out of all voxels by `STANDS_OUT`, there is no artery.

    Voxels that exceed their `ceiling` are avoided unless the others are wider (`AS_NARROW`). If clipped ones are taken,
    they are the least clipped, since a cut peak is wide too, and the artery is `saturated`.

    Parameters
    ----------
    delta_r2star
        ΔR2*, shape (I, J, K, T) [1/s].
    dt
        Time between frames [s].
    mask
        Where to look, shape (I, J, K), mostly tissue, since that is what an artery has to stand out of: the brain.
        Everywhere when not given, which suits series without air.
    ceiling
        ΔR2* above which a voxel's signal is in the noise floor, shape (I, J, K) [1/s].

    Raises
    ------
    NoArtery
        If nothing looks like an artery.
    InputError
        If the mask has no voxel.

    References
    ----------
    In its steps after Mouridsen K et al., Magn Reson Med 2006;55:524–531. Ours: steepness instead of area for the
    candidates; a fixed limit of roughness, where dropping the roughest quarter drops the arteries first if they are
    few, being sharp; and hierarchical clustering, which needs no seed.

    Examples
    --------
    >>> t = np.arange(0, 60, 1.5)
    >>> tissue = 5 * np.exp(-0.5 * ((t - 30) / 6) ** 2) * np.ones((4, 4, 4, 1))
    >>> tissue[0, 0] = 30 * np.exp(-0.5 * ((t - 24) / 3) ** 2)
    >>> aif = find_aif(tissue, 1.5)
    >>> len(aif.voxels), round(float(aif.curve.max())), round(aif.width_s)
    (4, 30, 7)
    """
    curves_4d = _checked(delta_r2star)
    where = np.ones(curves_4d.shape[:3], bool) if mask is None else np.asarray(mask, dtype=bool)
    if not where.any():
        raise InputError("The mask has no voxel, so no artery can be found in it: give a mask that covers the brain.")
    voxels, curves = np.argwhere(where), curves_4d[where]
    # Voxels that were not measured are no tissue that an artery has to stand out of.
    height = np.where(np.isfinite(curves).all(axis=1), curves.max(axis=1), 0)
    alive = height > ALIVE * height.max()
    if not alive.any():
        raise NoArtery(NO_ARTERY)
    if not alive.all():
        voxels, curves = voxels[alive], curves[alive]

    smooth = smoothed(curves, dt)
    bolus = bolus_of(smooth, dt)
    tissue = bolus_of(smooth.mean(axis=0, keepdims=True, dtype=np.float64), dt)
    chosen = np.flatnonzero(
        (bolus.height > ABOVE_TISSUE * float(np.median(bolus.height)))
        & (bolus.half_rise_s <= tissue.half_rise_s + LATEST_S)
        & (smooth.argmax(axis=1) > 0)
    )
    noise = noise_of(curves[chosen])
    clear = (bolus.height[chosen] > MIN_SNR * noise) & (roughness_of(curves[chosen], smooth[chosen]) < MAX_ROUGHNESS)
    if np.count_nonzero(clear) < MIN_CLUSTER:
        raise NoArtery(NO_ARTERY)
    chosen, noise = chosen[clear], noise[clear]
    highest = np.full(len(curves), np.inf) if ceiling is None else np.asarray(ceiling, dtype=np.float64)[where][alive]
    clipped = curves[chosen].max(axis=1) > highest[chosen]

    best = _steepest_cluster(smooth, dt, chosen, bolus, float(np.median(noise)))
    # Not "<", which would let pass what is not a number.
    if best is None or not _stands_out(smooth[best], dt, bolus) >= STANDS_OUT:
        raise NoArtery(NO_ARTERY)
    if clipped.any() and not clipped.all():
        whole = _steepest_cluster(smooth, dt, chosen[~clipped], bolus, float(np.median(noise)))
        if whole is not None and _width(smooth[whole], dt) <= AS_NARROW * _width(smooth[best], dt):
            best = whole
    curve = curves[best].mean(axis=0, dtype=np.float64)
    if not curve.sum() > 0:  # a baseline that fell by more than the bolus rose; no volume is measured with such a curve
        raise NoArtery(NO_ARTERY)
    found = Aif(
        curve=curve,
        voxels=voxels[best],
        saturated=bool(curve.max() >= NEAR_CEILING * np.median(highest[best])),
        reliability=reliability_of(curves[best]),
    )
    found = measured(found, dt)
    return replace(found, stands_out=_stands_out(smooth[best], dt, bolus))


def aif_from_mask(
    delta_r2star: ArrayLike, mask: ArrayLike, ceiling: ArrayLike | None = None, dt: float | None = None
) -> Aif:
    """The mean curve of the voxels of a mask; of those that are not clipped, if there are any.

    Parameters
    ----------
    delta_r2star
        ΔR2*, shape (I, J, K, T) [1/s].
    mask
        The artery, shape (I, J, K).
    ceiling
        ΔR2* above which a voxel's signal is in the noise floor, shape (I, J, K) [1/s]. If all voxels exceed it, the
        curve is `saturated` and comes from those that exceed it in the fewest frames.
    dt
        Time between frames [s]; without it the numbers that need it stay NaN.

    Raises
    ------
    InputError
        If the mask has no voxel, lies on another grid, or covers no bolus.

    Examples
    --------
    >>> series = np.zeros((2, 2, 1, 5)); series[0, 0, 0] = [0, 0, 6, 3, 1]
    >>> aif_from_mask(series, series[..., 2] > 0).curve.tolist()
    [0.0, 0.0, 6.0, 3.0, 1.0]
    """
    curves_4d = _checked(delta_r2star)
    where = np.asarray(mask) > 0
    if where.shape != curves_4d.shape[:3]:
        raise InputError(
            f"The artery mask has shape {where.shape}, the series {curves_4d.shape[:3]}: resample it to the series."
        )
    if not where.any():
        raise InputError("The artery mask has no voxel: mark at least one voxel of an artery.")
    voxels, curves = np.argwhere(where), curves_4d[where]
    clipped = np.zeros(len(curves), dtype=np.intp)
    if ceiling is not None:
        clipped = (curves > np.asarray(ceiling)[where][:, None]).sum(axis=1)
    least = clipped == clipped.min()
    curve = curves[least].mean(axis=0, dtype=np.float64)
    if not curve.max() > 0:
        raise InputError("The artery mask covers no bolus: its mean ΔR2* is never positive; check where it lies.")
    found = Aif(curve, voxels[least], "mask", bool(clipped.min() > 0), reliability=reliability_of(curves[least]))
    return found if dt is None else measured(found, dt)


def measured(aif: Aif, dt: float) -> Aif:
    """The same with everything filled in that the curve alone tells: snr, roughness, width, arrival and area.

    Examples
    --------
    >>> t = np.arange(0, 60, 1.0)
    >>> aif = Aif(curve=20 * np.exp(-0.5 * ((t - 20) / 3) ** 2), voxels=np.empty((0, 3), int), source="file")
    >>> round(measured(aif, 1.0).area), round(measured(aif, 1.0).width_s, 1)
    (150, 7.1)
    """
    curve = np.asarray(aif.curve, dtype=np.float64)[None]
    smooth, noise = smoothed(curve, dt), float(noise_of(curve)[0])
    bolus = bolus_of(curve, dt)
    return replace(
        aif,
        snr=float(curve.max() / noise) if noise > 0 else np.inf,
        roughness=float(roughness_of(curve, smooth)[0]),
        width_s=float(bolus.width_s[0]),
        arrival_s=float(bolus.half_rise_s[0]),
        area=float(curve.sum() * dt),
    )


def doubts(aif: Aif, dt: float, tissue: ArrayLike | None = None) -> tuple[str, ...]:
    """Why a curve should be looked at before it is believed: none for a good one.

    saturated: the peak is cut. noisy: SNR below 40 or reliability below 0.985. tissue: it hardly stands out of tissue.
    coarse: fewer than 1.5 frames to the width of the bolus. partial volume: scaled to the vein by more than 1.5. What
    is not known (NaN) raises no doubt. Beside the tissue it feeds, wherever the artery comes from: late: it rises more
    than `LATE_ARTERY_S` after the tissue. low: it is less than `LEAST_OVER_TISSUE` times as high. area: the ratio of
    areas is outside `AREA_RANGE`.

    Parameters
    ----------
    aif
        The artery.
    dt
        Time between frames [s].
    tissue
        Mean ΔR2* of the brain, shape (T,) [1/s]; without it nothing is said of lateness, height and area.

    Examples
    --------
    >>> t = np.arange(0, 60, 1.0)
    >>> curve = 20 * np.exp(-0.5 * ((t - 20) / 3) ** 2)
    >>> good = measured(Aif(curve, np.empty((0, 3), int), "file"), 1.0)
    >>> doubts(good, 1.0), doubts(replace(good, scale=2.5), 1.0)
    ((), ('partial volume',))
    >>> doubts(good, 1.0, tissue=2 * np.exp(-0.5 * ((t - 16) / 4) ** 2))
    ('late',)
    """
    raised = {
        "saturated": aif.saturated,
        "noisy": aif.snr < 40 or aif.reliability < 0.985,
        "tissue": aif.stands_out < 2.0,
        "coarse": aif.width_s < 1.5 * dt,
        "partial volume": aif.scale > 1.5,
    }
    if tissue is not None:
        both = np.stack([np.asarray(curve, dtype=np.float64) for curve in (aif.curve, tissue)])
        (height, normal), _, (rise, fed) = bolus_of(smoothed(both, dt), dt)
        area, volume = both.sum(axis=1)
        raised |= {
            "late": rise > fed + LATE_ARTERY_S,
            # As scaled to the vein it may be high, and still be tissue.
            "low": not raised["tissue"] and height < LEAST_OVER_TISSUE * aif.scale * normal,
            # Tissue without area speaks against the baseline, not against the artery.
            "area": volume > 0 and not AREA_RANGE[0] * area <= volume <= AREA_RANGE[1] * area,
        }
    return tuple(name for name, is_so in raised.items() if is_so)


def reliability_of(curves: NDArray[Any]) -> float:
    """Correlation to be expected between the mean of curves, shape (n, T), and that mean without its noise.

    √(n·p/(1 + (n − 1)·p)) with p the mean correlation of two of the curves (the Spearman–Brown formula): if all share
    one shape and differ by noise, p is the part of their variance that is no noise. NaN for a single curve.

    Examples
    --------
    >>> rng, shape = np.random.default_rng(0), np.exp(-0.5 * ((np.arange(50) - 20) / 4) ** 2)
    >>> noisy = shape + rng.normal(0, 0.3, (20, 50))
    >>> expected, true = reliability_of(noisy), float(np.corrcoef(noisy.mean(axis=0), shape)[0, 1])
    >>> abs(expected - true) < 0.02
    True
    """
    if len(curves) < 2:
        return float("nan")
    centred = curves - curves.mean(axis=1, keepdims=True, dtype=np.float64)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    n = len(curves)
    alike = max((float((centred.sum(axis=0) ** 2).sum()) - n) / (n * (n - 1)), 0.0)
    return float(np.sqrt(n * alike / (1 + (n - 1) * alike)))


def steepness(bolus: Bolus) -> NDArray[Any]:
    """ln(height/width) of each curve less its lateness over `LATENESS_S`, shape (n,); −∞ without a bolus.

    Examples
    --------
    >>> steepness(bolus_of(np.array([[0, 0, 2.0, 0, 0], [0, 0, 0, 0, 0]]), 1.5)).round(2).tolist()
    [-0.64, -inf]
    """
    rises = (bolus.height > 0) & (bolus.width_s > 0)
    # In double precision: a height of next to nothing over a width must not become 0.
    height, width = (np.where(rises, np.asarray(f, dtype=np.float64), 1) for f in (bolus.height, bolus.width_s))
    return np.where(rises, np.log(height / width) - bolus.half_rise_s / LATENESS_S, -np.inf)


def _steepest_cluster(
    smooth: NDArray[Any],
    dt: float,
    among: NDArray[np.intp],
    bolus: Bolus,
    noise: float,
) -> NDArray[np.intp] | None:
    """Rows of the voxels to average; None where no cluster is an artery."""
    if among.size < MIN_CLUSTER:
        return None
    highest = np.sort(bolus.height[among])[-min(10, among.size)]
    among = among[bolus.height[among] >= OF_THE_HIGHEST * highest]
    among = among[np.argsort(-steepness(Bolus(*(f[among] for f in bolus))), kind="stable")][:MAX_CANDIDATES]
    if among.size < MIN_CLUSTER:
        return None
    labels = clusters(smooth[among], noise, dt)
    groups = [among[labels == n] for n in np.flatnonzero(np.bincount(labels) >= MIN_CLUSTER)]
    groups = [purest(group, bolus.height, noise, MIN_VOXELS, MAX_VOXELS) for group in groups]
    if not groups:
        return None
    return max(groups, key=lambda group: _steepness_of_mean(smooth[group], dt))


def _steepness_of_mean(curves: NDArray[Any], dt: float) -> float:
    return float(steepness(bolus_of(curves.mean(axis=0, keepdims=True, dtype=np.float64), dt))[0])


def _stands_out(curves: NDArray[Any], dt: float, everywhere: Bolus) -> float:
    """Steepness of the mean of curves over the 90th percentile of all that have a bolus; NaN if none has."""
    usual = steepness(everywhere)
    usual = usual[np.isfinite(usual)]
    return float(np.exp(_steepness_of_mean(curves, dt) - np.quantile(usual, 0.9))) if usual.size else float("nan")


def _checked(delta_r2star: ArrayLike) -> NDArray[Any]:
    curves_4d = np.asarray(delta_r2star)
    if curves_4d.ndim != 4:
        raise ValueError(f"delta_r2star has {curves_4d.ndim} axes, expected (I, J, K, T)")
    return curves_4d


def _width(curves: NDArray[Any], dt: float) -> float:
    return float(bolus_of(curves.mean(axis=0, keepdims=True, dtype=np.float64), dt).width_s[0])
