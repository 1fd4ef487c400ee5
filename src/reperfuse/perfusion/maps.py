"""Perfusion maps: from a DSC series to CBF, CBV, MTT, Tmax, TTP and delay."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.perfusion.aif import Aif, find_aif
from reperfuse.perfusion.concentration import delta_r2star, integrated
from reperfuse.perfusion.deconvolution import residue_function
from reperfuse.perfusion.time_to_peak import time_to_peak, vertex

KAPPA_H = 0.73
"""k_H = (1 − 0.45)/(1 − 0.25): plasma fraction of blood in large vessels over that in capillaries; contrast agent is
in plasma only, and hematocrit is 45 % in arteries and about 25 % in capillaries."""

RHO = 1.04
"""Density of brain tissue [g/mL], which turns flow per volume into flow per mass."""

CHUNK_VOXELS = 1 << 16
"""Voxels deconvolved at a time: 2T floats each, so that memory does not grow with the image."""

DELAY_THRESHOLD = 0.2
"""Truncation of the cSVD behind `delay`. On phantoms of SNR 20 it errs by more than 5 s in 2 % of voxels, where 0.1
errs in 13 %; in return arrival is early by 0.2 s (MTT 12 s) to 0.9 s (MTT 3 s)."""

LAG_RANGE_S = (-10.0, 45.0)
"""Where the residue's maximum is looked for [s]. No tissue fills 10 s before the artery that was found, nor is its
residue highest 45 s after it: a maximum out there is noise, which in a voxel without flow may lie anywhere."""

MAPS = ("cbf", "cbv", "mtt", "tmax", "ttp", "delay")

UNITS = {"cbf": "mL/100 g/min", "cbv": "mL/100 g", "mtt": "s", "tmax": "s", "ttp": "s", "delay": "s"}
"""Unit of each map."""


def perfusion_maps(
    volume: Volume,
    *,
    method: str = "osvd",
    mask: ArrayLike | None = None,
    aif: Aif | ArrayLike | None = None,
    **options: Any,
) -> dict[str, NDArray[np.float32]]:
    """The maps of a DSC series, each of shape (I, J, K), finite and 0 outside the mask; see `maps_of_curves`.

    Parameters
    ----------
    volume
        Shape (I, J, K, T) with echo time and either frame times or repetition time.
    method
        Of deconvolution, a name in `perfusion.deconvolution.METHODS`.
    mask
        Brain, shape (I, J, K). When not given: wherever the baseline is above 10 % of its 99.5th percentile.
    aif
        Curve (T,) [1/s] or an `Aif`; found by `find_aif` when not given.
    **options
        Of `maps_of_curves` or of the method.

    Raises
    ------
    InputError
        If TE or TR is missing, frames are unevenly spaced, the mask is empty or on another grid, the AIF does not fit,
        or no bolus or artery is found.
    """
    dt = frame_interval(volume)
    if volume.te_s is None:
        raise InputError("The series does not say its echo time: give it (--te, in seconds).")
    where = _brain(volume, mask)
    curves = delta_r2star(volume.data[where], volume.te_s)
    arterial = _arterial_curve(aif, curves, where, dt)
    found = maps_of_curves(curves, arterial, dt, method=method, **options)
    return {name: image_of(values, where) for name, values in found.items()}


def maps_of_curves(
    curves: NDArray[np.float32],
    aif: NDArray[np.float64],
    dt: float,
    *,
    method: str = "osvd",
    hematocrit_correction: bool = True,
    volume_curves: NDArray[np.float32] | None = None,
    window: slice = slice(None),
    lag_range_s: tuple[float, float] = LAG_RANGE_S,
    **options: Any,
) -> dict[str, NDArray[np.float32]]:
    """The maps of tissue curves, each of shape (n,) and finite.

    cbf
        6000·(k_H/ρ)·max(CBF·R) [mL/100 g/min].
    cbv
        100·(k_H/ρ)·∫C/∫Ca over `window` [mL/100 g]; not below 0. Over the whole series recirculation is in both.
    mtt
        60·CBV/CBF [s] (central volume theorem).
    tmax
        Time of the maximum of the residue function, relative to the AIF [s]. Negative where the tissue fills first,
        with circulant methods only. It exceeds the arterial delay, because truncation rounds the step of R.
    ttp
        Time of the maximum of ΔR2* after the first frame [s].
    delay
        Arterial arrival relative to the AIF [s]: where the cSVD residue function rises through half of its maximum,
        whatever `method` is, since a step that truncation has rounded still passes its half near its own place.

    Maxima lie between frames at the vertex of the parabola through the highest sample and its neighbours (at the ends
    of a curve, on the sample); heights are the vertex's, which makes CBF independent of fractions of a frame of delay.

    Parameters
    ----------
    curves
        ΔR2* of tissue, shape (n, T) [1/s].
    aif
        ΔR2* of the artery, shape (T,) [1/s].
    dt
        Time between frames [s].
    method, **options
        Of `residue_function`.
    hematocrit_correction
        Apply k_H/ρ to CBF and CBV alike (MTT does not change); False takes it as 1.
    volume_curves
        What CBV is integrated from, shape (n, T) [1/s]: curves corrected for leakage, for instance.
    window
        Frames of the CBV integrals: all, or the first pass alone, which cuts the late tail of slow tissue.
    lag_range_s
        Where the maximum of the residue is looked for [s].

    Raises
    ------
    InputError
        If the AIF has no positive area.
    """
    area = float(integrated(aif, dt, window))
    if not area > 0:
        raise InputError("The AIF has no positive area; check the artery mask.")
    integrand = curves if volume_curves is None else volume_curves
    scale = KAPPA_H / RHO if hematocrit_correction else 1.0
    found = {name: np.zeros(len(curves), dtype=np.float32) for name in MAPS}
    for start in range(0, len(curves), CHUNK_VOXELS):
        part = slice(start, start + CHUNK_VOXELS)
        tissue = curves[part]
        residue, first_lag = _by_lag(residue_function(tissue, aif, dt, method, **options), aif.size, dt, lag_range_s)
        flow, place = vertex(residue)
        found["cbf"][part] = np.maximum(6000 * scale * flow, 0)
        found["cbv"][part] = np.maximum(100 * scale * integrated(integrand[part], dt, window) / area, 0)
        found["tmax"][part] = (place + first_lag) * dt
        found["ttp"][part] = time_to_peak(tissue, dt)
        found["delay"][part] = arrival_delay(tissue, aif, dt, lag_range_s=lag_range_s)
    flowing = found["cbf"] > 0
    found["mtt"][flowing] = 60 * found["cbv"][flowing] / found["cbf"][flowing]
    for name in ("tmax", "ttp", "delay"):
        found[name][~flowing] = 0
    return found


def frame_interval(volume: Volume) -> float:
    """The time between frames of a series [s], from its frame times, else its repetition time.

    Raises
    ------
    InputError
        If neither is there, TR is not positive, or frame times stray from even spacing by more than 5 % of it.
    """
    if volume.data.ndim != 4:
        raise InputError("The image has no time axis: perfusion maps need a series of shape (I, J, K, T).")
    if volume.frame_times_s is not None and len(volume.frame_times_s) > 1:
        times = np.asarray(volume.frame_times_s, dtype=float)
        dt = float((times[-1] - times[0]) / (len(times) - 1))
        if not dt > 0:
            raise InputError("The frame times do not increase: check the series' times or give TR (--tr, in seconds).")
        if np.abs(times - times[0] - dt * np.arange(len(times))).max() > 0.05 * dt:
            raise InputError(
                "The frames are unevenly spaced in time: resample them to one interval first "
                "(preprocessing.geometry.resample_time)."
            )
        return dt
    if volume.tr_s is None or not (np.isfinite(volume.tr_s) and volume.tr_s > 0):
        raise InputError(f"A repetition time of {volume.tr_s} s cannot be used: give TR (--tr, in seconds).")
    return float(volume.tr_s)


def arrival_delay(
    tissue: NDArray[Any], aif: NDArray[Any], dt: float, *, lag_range_s: tuple[float, float] = LAG_RANGE_S
) -> NDArray[Any]:
    """Arrival of the bolus relative to the AIF [s], at the rising half-maximum of the cSVD residue; (n, T) to (n,).

    Examples
    --------
    >>> t = np.arange(0, 90, 1.5)
    >>> aif = np.where(t > 10, (t - 10.0) ** 3 * np.exp(-(t - 10) / 1.5), 0)
    >>> tissue = 0.01 * np.convolve(aif, np.exp(-t / 6))[:60]
    >>> prompt, late = arrival_delay(np.stack([tissue, np.roll(tissue, 4)]), aif, 1.5)
    >>> round(float(late - prompt), 3)
    6.0
    """
    found = residue_function(tissue, aif, dt, "csvd", threshold=DELAY_THRESHOLD)
    residue, first_lag = _by_lag(found, len(aif), dt, lag_range_s)
    rows = np.arange(len(residue))
    peak = residue.argmax(axis=1)
    half = residue[rows, peak] / 2
    low = (residue <= half[:, None]) & (np.arange(residue.shape[1]) < peak[:, None])
    last = residue.shape[1] - 1 - low[:, ::-1].argmax(axis=1)
    last = np.where(low.any(axis=1), last, peak)
    after = np.minimum(last + 1, residue.shape[1] - 1)
    rise = residue[rows, after] - residue[rows, last]
    step = np.divide(half - residue[rows, last], rise, out=np.zeros_like(rise), where=rise > 0)
    return (last + np.where(low.any(axis=1), step, 0) + first_lag) * dt


def _brain(volume: Volume, mask: ArrayLike | None) -> NDArray[np.bool_]:
    shape = volume.data.shape[:3]
    if mask is not None:
        where = np.asarray(mask) > 0
        if where.shape != shape:
            raise InputError(
                f"The mask has shape {where.shape}, the series {shape}: resample the mask to the series' grid."
            )
    else:
        level = np.nan_to_num(volume.data[..., :3].mean(axis=3, dtype=np.float32), posinf=0.0, neginf=0.0)
        where = level > max(0.1 * float(np.percentile(level, 99.5)), 0)
    if not where.any():
        raise InputError(
            "The mask has no voxel: give a mask that covers the brain, or check that the series has signal."
        )
    return where


def _arterial_curve(
    aif: Aif | ArrayLike | None, curves: NDArray[np.float32], where: NDArray[np.bool_], dt: float
) -> NDArray[np.float64]:
    if aif is None:
        series = np.zeros((*where.shape, curves.shape[1]), dtype=np.float32)
        series[where] = curves
        aif = find_aif(series, dt, where)
    curve = np.asarray(aif.curve if isinstance(aif, Aif) else aif, dtype=np.float64)
    if curve.shape != curves.shape[1:]:
        raise InputError(f"The AIF has {curve.size} samples, the series {curves.shape[1]} frames: give one per frame.")
    return curve


def _by_lag(
    residue: NDArray[Any], n_frames: int, dt: float, lag_range_s: tuple[float, float]
) -> tuple[NDArray[Any], int]:
    """The residue with lags in rising order, within the range, and the first lag [samples]."""
    first = 0
    if residue.shape[-1] > n_frames:  # circulant: samples start at lag −(T − 1)
        residue, first = np.roll(residue, n_frames - 1, axis=-1), 1 - n_frames
    low = max(int(np.ceil(lag_range_s[0] / dt)), first)
    high = min(int(np.floor(lag_range_s[1] / dt)), first + residue.shape[-1] - 1)
    return residue[..., low - first : high + 1 - first], low


def image_of(values: NDArray[np.float32], where: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The image, shape (I, J, K), of the values at the voxels of a mask; 0 elsewhere."""
    image = np.zeros(where.shape, dtype=np.float32)
    image[where] = values
    return image
