"""When curves peak: between frames, and relative to normal tissue, which needs no artery."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperfuse.errors import InputError
from reperfuse.perfusion.vessels import ALIVE, smoothed

LATE_TTP_S = 4.5
"""Time to peak [s] behind normal tissue that stands for Tmax > 6 s where no artery was found (median difference of
the two volumes: 6.9 mL; Wouters 2017, Front Neurol 8:539). Such a volume is never reported under Tmax."""


def vertex(curves: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Height and place (in samples) of each curve's maximum, by the parabola through three samples; (n, T) to (n,)."""
    rows, last = np.arange(len(curves)), curves.shape[1] - 1
    k = curves.argmax(axis=1)
    before, top, after = (curves[rows, np.clip(k + s, 0, last)] for s in (-1, 0, 1))
    bend = before - 2 * top + after
    inner = (k > 0) & (k < last) & (bend < 0)
    shift = np.where(inner, (before - after) / np.where(inner, 2 * bend, 1), 0)
    return top - (before - after) * shift / 4, k + shift


def time_to_peak(tissue: NDArray[Any], dt: float) -> NDArray[Any]:
    """Time of each curve's maximum after the first frame [s], between frames by a parabola; (n, T) to (n,).

    Examples
    --------
    >>> time_to_peak(np.array([[0, 1, 4, 4, 1, 0.0]]), 2.0).tolist()
    [5.0]
    """
    return np.asarray(vertex(tissue)[1] * dt)


def relative_ttp(delta_r2star: ArrayLike, dt: float, *, late_s: float = LATE_TTP_S) -> NDArray[np.float32]:
    """Time to peak of each voxel minus that of normal tissue, shape (n,) [s]: what needs no artery.

    Normal is what is not late: the reference is the median TTP of all voxels that are not more than `late_s` after it,
    found by repetition from the first quartile on. As long as most of the brain is normal, the late part does not move
    it, and neither hemisphere nor midline need be known.

    A voxel without a bolus (never positive: not measured) has none, and is given as 0.

    Parameters
    ----------
    delta_r2star
        Curves of the brain, shape (n, T) [1/s].
    dt
        Time between frames [s].
    late_s
        Relative TTP above which tissue is late [s].

    Raises
    ------
    InputError
        If there are no curves.

    Examples
    --------
    >>> t = np.arange(0, 60, 1.5)
    >>> curves = np.exp(-0.5 * ((t - np.array([20.0, 20.0, 21.0, 20.0, 28.0])[:, None]) / 4) ** 2)
    >>> relative_ttp(curves, 1.5).round(1).tolist()
    [0.0, 0.0, 1.0, 0.0, 8.0]
    """
    curves = np.asarray(delta_r2star)
    if curves.ndim != 2:
        raise ValueError(f"delta_r2star has {curves.ndim} axes, expected (n, T)")
    if not len(curves):
        raise InputError("There is no tissue, so no time to peak: give a mask that covers the brain.")
    smooth = smoothed(curves, dt)
    height = smooth.max(axis=1)
    reached = height > ALIVE * max(float(height.max()), 0)
    if not reached.any():
        return np.zeros(len(curves), dtype=np.float32)
    ttp = time_to_peak(smooth, dt)
    seen = ttp[reached]
    reference, before = float(np.quantile(seen, 0.25)), np.inf
    while abs(reference - before) > 0.01 * dt:
        before, reference = reference, max(float(np.median(seen[seen - reference <= late_s])), reference)
    return np.where(reached, ttp - reference, 0).astype(np.float32)
