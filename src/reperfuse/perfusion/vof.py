"""The venous output function, and the area it lends to an artery that is mixed with tissue.

What enters the brain leaves it: the large veins carry the artery's curve, later and wider, with the same area under it,
and the sinuses are wide enough to hold voxels of blood alone.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_dilation, binary_erosion

from reperfuse.perfusion.aif import Aif, measured, reliability_of
from reperfuse.perfusion.vessels import (
    ABOVE_TISSUE,
    MAX_CANDIDATES,
    MAX_ROUGHNESS,
    MIN_CLUSTER,
    MIN_SNR,
    OF_THE_HIGHEST,
    bolus_of,
    clusters,
    noise_of,
    purest,
    roughness_of,
    smoothed,
)

AFTER_ARTERY_S = 1.5
"""A vein rises at least this much after the artery [s]; the passage through a brain takes no less than 2 s."""

MARGIN = 0.06
"""How far outside the brain mask veins are looked for, over the mask's extent in-plane: 9 mm around a brain of 15 cm.
Dural sinuses run along the skull, so they lie outside a tight mask and in the rim of a generous one."""

DEPTH = 0.03
"""How far inside the mask's border, likewise. Further in, grey matter of high CBV is as high, late and wide as a vein:
of 100 drawn phantoms the vein's area was right in 90 with the whole mask searched, in 96 with its rim."""

MIN_VOXELS, MAX_VOXELS = 20, 30
"""Voxels averaged. More than for the artery: a sinus has them, and the area of the few highest is that of their noise
(5 voxels exceed the true area by 4 % in the median and 17 % at worst of twenty, 20 by 2 and 10 %)."""


def find_vof(
    delta_r2star: ArrayLike,
    dt: float,
    mask: ArrayLike | None = None,
    *,
    aif: Aif,
    ceiling: ArrayLike | None = None,
    margin: int | None = None,
) -> Aif | None:
    """The mean curve of a cluster of voxels that fill after the artery, high, narrow and with a large area.

    As `aif.find_aif`, but along the border of the brain; candidates rise at least `AFTER_ARTERY_S` after the artery;
    and clusters and their voxels are ranked by steepness² · area: veins are steeper than tissue, and the purest of them
    have the largest area. (Area alone would choose grey matter, which relaxes signal more per contrast agent.)

    Parameters
    ----------
    delta_r2star
        ΔR2*, shape (I, J, K, T) [1/s], also outside the brain: the sinuses are not in it.
    dt
        Time between frames [s].
    mask
        The brain, shape (I, J, K), tight or with the sinuses: its border is searched, from `DEPTH` inside to `margin`
        outside, slice by slice. Everything is when not given.
    aif
        The artery, by which late is judged.
    ceiling
        ΔR2* above which a voxel's signal is in the noise floor, shape (I, J, K) [1/s]. Clipped voxels have lost area;
        they are used, and the result is `saturated`, only where no others are left.
    margin
        How far outside the mask veins are looked for [voxels]; `MARGIN` of its extent when not given. 0 searches the
        whole of the mask and nothing else: for a mask of the sinuses' surroundings.

    Returns
    -------
    Aif
        The venous curve, or None where nothing looks like a vein.

    Examples
    --------
    >>> t = np.arange(0, 90, 1.5)
    >>> series = 4 * np.exp(-0.5 * ((t - 33) / 7) ** 2) * np.ones((6, 6, 4, 1))
    >>> series[0, 0] = 30 * np.exp(-0.5 * ((t - 24) / 3) ** 2)
    >>> series[5, 5] = 22 * np.exp(-0.5 * ((t - 31) / 4) ** 2)
    >>> artery = Aif(curve=series[0, 0, 0], voxels=np.array([[0, 0, 0]]))
    >>> vof = find_vof(series, 1.5, aif=artery)
    >>> set(map(tuple, vof.voxels[:, :2].tolist()))
    {(5, 5)}
    """
    curves_4d = np.asarray(delta_r2star)
    if curves_4d.ndim != 4:
        raise ValueError(f"delta_r2star has {curves_4d.ndim} axes, expected (I, J, K, T)")
    where = np.ones(curves_4d.shape[:3], bool) if mask is None else np.asarray(mask, dtype=bool)
    if not where.any():
        return None
    heights = smoothed(curves_4d[where], dt).max(axis=1)
    heights = heights[heights > 0]  # the others were not measured
    if not heights.size:
        return None
    usual = float(np.median(heights))
    where = where if mask is None else _border(where, margin)
    voxels, curves = np.argwhere(where), curves_4d[where]

    smooth = smoothed(curves, dt)
    bolus = bolus_of(smooth, dt)
    artery = bolus_of(smoothed(np.asarray(aif.curve, dtype=np.float64)[None], dt), dt)
    tall = np.flatnonzero(
        (bolus.height > ABOVE_TISSUE * usual) & (bolus.half_rise_s >= artery.half_rise_s + AFTER_ARTERY_S)
    )
    noise = noise_of(curves[tall])
    area = curves[tall].sum(axis=1)
    clear = (bolus.height[tall] > MIN_SNR * noise) & (area > 0)
    clear &= roughness_of(curves[tall], smooth[tall]) < MAX_ROUGHNESS
    chosen, noise = tall[clear], noise[clear]
    clipped = np.zeros(len(curves), dtype=bool)
    if ceiling is not None:
        clipped[chosen] = (curves[chosen] > np.asarray(ceiling)[where][chosen, None]).any(axis=1)
    for use in (~clipped[chosen], np.ones(chosen.size, bool)):
        if np.count_nonzero(use) < MIN_CLUSTER:
            continue
        best = _largest_vein(curves, smooth, dt, chosen[use], float(np.median(noise[use])))
        if best is not None:
            found = Aif(curves[best].mean(axis=0, dtype=np.float64), voxels[best], saturated=bool(clipped[best].any()))
            return replace(measured(found, dt), reliability=reliability_of(curves[best]))
    return None


def rescaled_to_vof(aif: Aif, vof: Aif | None, dt: float) -> Aif:
    """The artery with the area of the vein, which holds as much blood in the end; `scale` says by how much it grew.

    The areas are those over the series, recirculation in both. The vein runs late by the lag L of its centre of energy,
    so what it has carried when the series ends is what the artery had carried L earlier: ∫₀ᵀ VOF = ∫₀ᵀ⁻ᴸ AIF. Comparing
    both up to T would take the artery's last L seconds for partial volume.

    An artery larger than the vein stays as it is: mixing with tissue and clipping lose area, so it is the vein that is
    not pure. Shape is not mended, though mixing changes it too.

    Parameters
    ----------
    aif, vof
        Artery and vein; without a vein the artery stays as it is.
    dt
        Time between frames [s].

    References
    ----------
    Kjølby BF et al. Analysis of partial volume effects on arterial input functions using gradient echo: a simulation
    study. Magn Reson Med 2009;61:1300–1309.

    Examples
    --------
    >>> t = np.arange(0, 90, 1.5)
    >>> artery = Aif(curve=10 * np.exp(-0.5 * ((t - 20) / 3) ** 2), voxels=np.array([[0, 0, 0]]))
    >>> vein = Aif(curve=15 * np.exp(-0.5 * ((t - 26) / 4) ** 2), voxels=np.array([[5, 5, 0]]))
    >>> round(rescaled_to_vof(artery, vein, 1.5).scale, 2)
    2.0
    """
    if vof is None:
        return aif
    artery, vein = np.asarray(aif.curve, dtype=np.float64), np.asarray(vof.curve, dtype=np.float64)
    if artery.shape != vein.shape:
        raise ValueError(f"The artery has {artery.size} samples, the vein {vein.size}")
    lag = max(_centre(vein) - _centre(artery), 0.0)
    carried = np.interp(artery.size - 1 - lag, np.arange(artery.size), np.cumsum(artery))
    if not carried > 0:
        return aif
    scale = max(float(vein.sum() / carried), 1.0)
    return replace(aif, curve=scale * artery, scale=scale * aif.scale, area=scale * aif.area)


def _largest_vein(
    curves: NDArray[Any], smooth: NDArray[Any], dt: float, among: NDArray[np.intp], noise: float
) -> NDArray[np.intp] | None:
    """Rows of the voxels to average; None where no cluster stands out."""
    if among.size < MIN_CLUSTER:
        return None
    height, worth = smooth[among].max(axis=1), _worth(curves[among], smooth[among], dt)
    order = np.argsort(-worth, kind="stable")
    order = order[height[order] >= OF_THE_HIGHEST * np.sort(height)[-min(10, height.size)]]
    among = among[order[:MAX_CANDIDATES]]
    if among.size < MIN_CLUSTER:
        return None
    labels = clusters(smooth[among], noise, dt)
    groups = [among[labels == n] for n in np.flatnonzero(np.bincount(labels) >= MIN_CLUSTER)]
    if not groups:
        return None
    highest = smooth.max(axis=1)
    groups = [purest(group, highest, noise, MIN_VOXELS, MAX_VOXELS) for group in groups]
    plain, smoother = (
        np.stack([c[group].mean(axis=0, dtype=np.float64) for group in groups]) for c in (curves, smooth)
    )
    return groups[int(_worth(plain, smoother, dt).argmax())]


def _worth(curves: NDArray[Any], smooth: NDArray[Any], dt: float) -> NDArray[Any]:
    """Steepness² · area."""
    bolus = bolus_of(smooth, dt)
    steep = np.divide(bolus.height, bolus.width_s, out=np.zeros_like(bolus.width_s), where=bolus.width_s > 0)
    return steep**2 * np.maximum(curves.sum(axis=1), 0)


def _border(mask: NDArray[np.bool_], margin: int | None) -> NDArray[np.bool_]:
    """What lies within `margin` voxels outside and `DEPTH` inside the mask's border, slice by slice."""
    if margin == 0:
        return mask
    extent = float((np.ptp(np.argwhere(mask)[:, :2], axis=0) + 1).mean())
    outside = max(1, round(MARGIN * extent)) if margin is None else margin
    inside = max(1, round(DEPTH * extent))
    around = np.ones((3, 3, 1), bool)
    widened = binary_dilation(mask, around, iterations=outside)
    return np.asarray(widened & ~binary_erosion(mask, around, iterations=inside))


def _centre(curve: NDArray[np.float64]) -> float:
    """Centre of energy of a curve's positive part [samples]: of the first pass, as squares see little else."""
    energy = np.maximum(curve, 0) ** 2
    return float(np.average(np.arange(curve.size), weights=energy)) if energy.any() else 0.0
