"""Bolus kinetics in closed form: arterial input, residue functions, the tissue curve, and the Tmax they stand for.

Written apart from the deconvolution room, which is tested with it.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter
from scipy.special import gammaln

ARTERIAL_AREA = 30.4
"""Area of Ca over the first pass [unit of Ca · s]: ∫ t³ exp(−t/1.5) dt, the AIF of the same reference."""

TMAX_SIGMA_S = 1.6
"""Bandwidth of the Tmax truth: standard deviation [s] of the Gaussian through which the residue function is seen.

A regularised deconvolution keeps the frequencies where the AIF's spectrum exceeds about 20 % of its maximum. For
Ca ∝ t³ exp(−t/β), β = 1.5 s, the spectrum is (1 + ω²β²)^−2, which falls to 20 % at ω = 0.74 rad/s; the Gaussian that
falls to one half there has σ = sqrt(2 ln 2)/0.74 = 1.6 s. Without it, the maximum of an exponential residue would sit
at its first instant, which no deconvolution of finite bandwidth reports."""

FINE_STEP_S = 0.1
"""Width [s] of the cells of Ca in the convolution; halving it changes C by less than 1e-4 of its peak."""


def _exponential(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
    return mtt * -np.expm1(-t / mtt)


def _gamma(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
    # Transit times distributed as t·exp(−t/θ)/θ², θ = MTT/2: R = (1 + t/θ)·exp(−t/θ).
    theta = mtt / 2
    return mtt - (t + mtt) * np.exp(-t / theta)


def _lorentzian(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
    return (2 / np.pi) * mtt * np.arctan((np.pi / 2) * t / mtt)


def _box(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
    return np.minimum(t, mtt)


RESIDUES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "exponential": _exponential,
    "gamma": _gamma,
    "lorentzian": _lorentzian,
    "box": _box,
}
"""Running integrals Q(t) = ∫₀ᵗ R of the residue functions, t ≥ 0, Q(∞) = MTT.

R = exp(−t/MTT); (1 + 2t/MTT)·exp(−2t/MTT); 1/(1 + (πt/2MTT)²); 1 for t < MTT. Integrals, because a sub-step delay
shifts them exactly while R itself jumps at its first instant."""


def arterial_concentration(
    time_s: np.ndarray,
    *,
    arrival_s: float = 15.0,
    shape: float = 3.0,
    scale_s: float = 1.5,
    recirculation: float = 0.15,
) -> np.ndarray:
    """Arterial concentration Ca(t): a gamma-variate first pass and a later, broader second one.

    Ca(t) = A·[g(t − t0; a, β) + r·g(t − t0 − 14 s; a, 2.5β)], g(t; a, β) = tᵃ·exp(−t/β)/(a!·β^(a+1)) of area one,
    A = `ARTERIAL_AREA`.

    Parameters
    ----------
    time_s
        Times [s], any shape.
    arrival_s
        Arrival t0 of the bolus [s].
    shape, scale_s
        a and β [s]; the first pass peaks a·β after its arrival.
    recirculation
        Area r of the second pass over that of the first.

    References
    ----------
    Thompson HK et al. Indicator transit time considered as a gamma variate. Circ Res 1964;14:502-515.

    Examples
    --------
    >>> t = np.arange(0, 200, 0.01)
    >>> ca = arterial_concentration(t, arrival_s=10.0)
    >>> round(float(t[ca.argmax()]), 2), round(float(ca.sum() * 0.01 / ARTERIAL_AREA), 3)
    (14.5, 1.15)
    """

    def bolus(late: np.ndarray, width: float) -> np.ndarray:
        t = np.maximum(late, 0.0) / width
        return np.where(t > 0, np.exp(shape * np.log(np.where(t > 0, t, 1.0)) - t - gammaln(shape + 1)), 0.0) / width

    late = np.asarray(time_s, dtype=np.float64) - arrival_s
    return ARTERIAL_AREA * (bolus(late, scale_s) + recirculation * bolus(late - 14.0, 2.5 * scale_s))


def _residue_cells(
    lags: np.ndarray, step: float, mtt: np.ndarray, delay: np.ndarray, residue: str, dispersion_s: float
) -> np.ndarray:
    """∫ of the delayed, dispersed residue over the cells that start at `lags`, `step` s wide; shape (n, len(lags))."""
    edges = np.append(lags, lags[-1] + step).astype(np.float32)
    late = np.maximum(edges - delay[:, None].astype(np.float32), 0)
    cells = np.diff(RESIDUES[residue](late, mtt[:, None].astype(np.float32)), axis=1)
    if dispersion_s > 0:
        # Exponential vascular transport function of mean `dispersion_s`, area kept.
        keep = np.exp(-step / dispersion_s)
        cells = lfilter([1 - keep], [1, -keep], cells, axis=1).astype(np.float32)
    return cells


def tissue_concentration(
    cbf: np.ndarray,
    mtt: np.ndarray,
    delay: np.ndarray,
    frame_times_s: np.ndarray,
    arterial: Callable[[np.ndarray], np.ndarray],
    *,
    residue: str = "exponential",
    dispersion_s: float = 0.0,
    step_s: float = FINE_STEP_S,
) -> np.ndarray:
    """Tissue concentration C(t) = CBF·∫ Ca(t − u)·R(u − delay) du at the frame times, shape (n, T), float32.

    Ca is taken constant over cells of `step_s` and R is integrated over each cell in closed form, so the area under
    C is CBF·MTT times that of Ca whatever the step, and delays need not be multiples of it. (The rectangle rule at
    the frame interval would add dt/2 to every MTT.)

    Parameters
    ----------
    cbf
        Flow, shape (n,) [mL/100 g/min].
    mtt, delay
        Mean transit time and arrival after the artery, shape (n,) [s]; delays may be negative.
    frame_times_s
        Sample times, shape (T,) [s].
    arterial
        Function that gives Ca at any times [s].
    residue
        Key of `RESIDUES`.
    dispersion_s
        Mean of an exponential transport function between artery and tissue [s]; 0 for none.
    step_s
        Cell width [s].

    Returns
    -------
    numpy.ndarray
        C in the unit of Ca times mL/g (blood per gram of tissue), k_H/ρ = 1.

    Raises
    ------
    KeyError
        If `residue` is none of `RESIDUES`.

    Examples
    --------
    >>> t = np.arange(0, 120, 1.5)
    >>> c = tissue_concentration(np.r_[60.0], np.r_[4.0], np.r_[2.0], t, arterial_concentration)
    >>> round(100 * float(c.sum() * 1.5 / (arterial_concentration(t).sum() * 1.5)), 2)  # CBV
    4.0
    """
    times = np.asarray(frame_times_s, dtype=np.float64)
    first = min(0.0, float(np.floor(np.min(delay, initial=0.0))))
    lags = np.arange(first, times.max() + step_s, step_s)
    sampled = arterial(times[None, :] - (lags[:, None] + step_s / 2)).astype(np.float32)
    curves = np.empty((len(cbf), len(times)), np.float32)
    for start in range(0, len(cbf), 8192):  # 8192 × ~900 float32: 30 MB at a time
        part = slice(start, start + 8192)
        curves[part] = _residue_cells(lags, step_s, mtt[part], delay[part], residue, dispersion_s) @ sampled
    return curves * (np.asarray(cbf, np.float32)[:, None] / 6000)


def residue_tmax(
    mtt: np.ndarray,
    delay: np.ndarray,
    *,
    residue: str = "exponential",
    dispersion_s: float = 0.0,
    sigma_s: float = TMAX_SIGMA_S,
) -> np.ndarray:
    """Tmax [s]: time of the maximum of the delayed residue function seen at finite bandwidth.

    Tmax = argmax_t (R(t − delay) ⊗ g_σ)(t) = delay + argmax_t (R ⊗ g_σ)(t). The second term depends on MTT alone; it is
    computed on a table of 200 transit times (0.2 s to 40 s, errors below 0.01 s) and interpolated.

    Parameters
    ----------
    mtt, delay
        Any shape [s].
    residue
        Key of `RESIDUES`.
    dispersion_s
        Mean of the exponential transport function between artery and tissue [s].
    sigma_s
        Standard deviation of the Gaussian g_σ [s].

    Examples
    --------
    >>> early, late = residue_tmax(np.r_[4.0, 4.0], np.r_[0.0, 6.0])
    >>> round(float(late - early), 6)
    6.0
    >>> bool(residue_tmax(np.r_[12.0], np.r_[0.0])[0] > early)  # slow transit looks late to a deconvolution
    True
    """
    step = 0.05
    lags = np.arange(-6 * sigma_s, 40.0 + 6 * sigma_s, step)
    table = np.geomspace(0.2, 40.0, 200)
    cells = _residue_cells(lags, step, table, np.zeros_like(table), residue, dispersion_s).astype(np.float64)
    seen = gaussian_filter1d(cells, sigma_s / step, axis=1, truncate=6.0)
    peak = np.clip(seen.argmax(1), 1, len(lags) - 2)
    row = np.arange(len(table))
    before, at, after = seen[row, peak - 1], seen[row, peak], seen[row, peak + 1]
    # Vertex of the parabola through the three highest samples: the table is not bound to the step.
    shift = 0.5 * (before - after) / np.minimum(before - 2 * at + after, -1e-30)
    late = lags[0] + step * (peak + 0.5 + np.clip(shift, -0.5, 0.5))
    return np.asarray(delay + np.interp(mtt, table, late))
