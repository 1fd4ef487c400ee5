"""Bolus kinetics in closed form: residue functions, the tissue curve, and the Tmax they stand for.

Written apart from the deconvolution room, which is tested with it.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter
from scipy.special import gammainc, gammaincc

TMAX_SIGMA_S = 1.6
"""Bandwidth of the Tmax truth: standard deviation [s] of the Gaussian through which the residue function is seen.

A regularised deconvolution keeps the frequencies where the AIF's spectrum exceeds about 20 % of its maximum. For
Ca ∝ t³ exp(−t/β), β = 1.5 s, the spectrum is (1 + ω²β²)^−2, which falls to 20 % at ω = 0.74 rad/s; the Gaussian that
falls to one half there has σ = sqrt(2 ln 2)/0.74 = 1.6 s. Without it, the maximum of an exponential residue would sit
at its first instant, which no deconvolution of finite bandwidth reports."""

FINE_STEP_S = 0.1
"""Width [s] of the cells of Ca in the convolution. C is within 2e-4 of its peak of what it would be without cells, for
an artery as narrow as 2 s; halving it changes C by less than 1e-4 for the usual one."""


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


Residue = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Running integral of a residue function, Q(t, MTT)."""

RESIDUES: dict[str, Residue] = {
    "exponential": _exponential,
    "gamma": _gamma,
    "lorentzian": _lorentzian,
    "box": _box,
}
"""Running integrals Q(t) = ∫₀ᵗ R of the residue functions, t ≥ 0, Q(∞) = MTT.

R = exp(−t/MTT); (1 + 2t/MTT)·exp(−2t/MTT); 1/(1 + (πt/2MTT)²); 1 for t < MTT. Integrals, because a sub-step delay
shifts them exactly while R itself jumps at its first instant. Between exponential and box: `gamma_residue`."""


GAMMA_TABLE_END, GAMMA_TABLE_SIZE = 40.0, 16001
"""Largest t/MTT of the table of `gamma_residue`, and its points: beyond 40 MTT less than 1e-6 is left for α ≥ 0.3."""


def gamma_residue(alpha: float) -> Residue:
    """Residue function of transit times distributed as Gamma(α, MTT/α), as its running integral Q(t, MTT).

    R(t) = Γ(α, x)/Γ(α), x = αt/MTT, and Q(t) = t·R(t) + MTT·P(α + 1, x), with P the lower incomplete gamma function
    over Γ. α = 1 is the exponential, α = 2 the "gamma" of `RESIDUES`, α → ∞ the box. Q is linear in MTT at fixed t/MTT,
    so it is read from a table of that ratio, linearly; the error is below 1e-5 of MTT for α ≥ 0.7.

    Parameters
    ----------
    alpha
        Shape α > 0; the transit times spread by MTT/√α.

    Raises
    ------
    ValueError
        If α is not positive.

    Examples
    --------
    >>> t, mtt = np.array([1.0, 4.0, 12.0]), np.array([4.0])
    >>> bool(np.allclose(gamma_residue(1.0)(t, mtt), RESIDUES["exponential"](t, mtt), atol=1e-4))
    True
    """
    if not alpha > 0:
        raise ValueError(f"The shape of a gamma residue must be positive, not {alpha}.")
    ratio = np.linspace(0, GAMMA_TABLE_END, GAMMA_TABLE_SIZE)
    x = alpha * ratio
    table = (ratio * gammaincc(alpha, x) + gammainc(alpha + 1, x)).astype(np.float32)
    slope = np.append(np.diff(table), np.float32(0))
    per_unit = np.float32((GAMMA_TABLE_SIZE - 1) / GAMMA_TABLE_END)

    def integral(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
        place = np.minimum(t * (per_unit / mtt), np.float32(GAMMA_TABLE_SIZE - 1))
        below = place.astype(np.int32)
        return mtt * (table[below] + (place - below) * slope[below])

    return integral


def residue_of_shape(residue: str, alpha: float | None) -> str | Residue:
    """The residue function of that name, a key of `RESIDUES`; "gamma" of the shape α if there is one."""
    return gamma_residue(alpha) if residue == "gamma" and alpha is not None else residue


def _residue_cells(
    lags: np.ndarray,
    step: float,
    mtt: np.ndarray,
    delay: np.ndarray,
    residue: str | Residue,
    dispersion_s: float,
    transport: str,
) -> np.ndarray:
    """∫ of the delayed, dispersed residue over the cells that start at `lags`, `step` s wide; shape (n, len(lags))."""
    edges = np.append(lags, lags[-1] + step).astype(np.float32)
    late = np.maximum(edges - delay[:, None].astype(np.float32), 0)
    integral = RESIDUES[residue] if isinstance(residue, str) else residue
    cells = np.diff(integral(late, mtt[:, None].astype(np.float32)), axis=1)
    if dispersion_s > 0:
        cells = lfilter(*TRANSPORTS[transport](step, dispersion_s), cells, axis=1).astype(np.float32)
    return cells


def _exponential_transport(step: float, mean_s: float) -> tuple[list[float], list[float]]:
    # Within a cell agent flows in evenly and out in proportion to what is held, z' = x/step − z/mean. What flows out of
    # the cell is what was held, and came, and is not held any more.
    keep = float(np.exp(-step / mean_s))
    held = mean_s * (1 - keep) / step
    return [1 - held, held - keep], [1.0, -keep]


def _cellwise_transport(step: float, mean_s: float) -> tuple[list[float], list[float]]:
    keep = np.exp(-step / mean_s)
    return [1 - keep], [1, -keep]


TRANSPORTS = {"exponential": _exponential_transport, "cellwise": _cellwise_transport}
"""Coefficients of the recursive filter that disperses cells by exp(−t/mean)/mean, area kept. "exponential" is exact for
what is even within a cell; "cellwise" lets a cell out at its beginning, so its mean is half a cell (0.05 s) too short:
the demo data are made with it, and stay the bytes they were."""


def tissue_concentration(
    cbf: np.ndarray,
    mtt: np.ndarray,
    delay: np.ndarray,
    frame_times_s: np.ndarray,
    arterial: Callable[[np.ndarray], np.ndarray],
    *,
    residue: str | Residue = "exponential",
    dispersion_s: float = 0.0,
    transport: str = "exponential",
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
        Key of `RESIDUES`, or `gamma_residue` of any shape.
    dispersion_s
        Mean of an exponential transport function between artery and tissue [s]; 0 for none.
    transport
        Key of `TRANSPORTS`.
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
    >>> from reperfuse.phantoms.artery import arterial_concentration
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
        cells = _residue_cells(lags, step_s, mtt[part], delay[part], residue, dispersion_s, transport)
        curves[part] = cells @ sampled
    return curves * (np.asarray(cbf, np.float32)[:, None] / 6000)


def venous_concentration(
    frame_times_s: np.ndarray, arterial: Callable[[np.ndarray], np.ndarray], *, lag_s: float, spread_s: float
) -> np.ndarray:
    """Concentration in a dural sinus at the frame times, shape (T,): Ca after the transit of the brain.

    Cv = Ca ⊗ h, h(t) = exp(−(t − lag + spread)/spread)/spread from t = lag − spread on: of area one, so that nothing is
    lost, with mean `lag_s` and standard deviation `spread_s`.

    Parameters
    ----------
    frame_times_s
        Shape (T,) [s].
    arterial
        Function that gives Ca at any times [s].
    lag_s
        Mean transit time from the artery to the sinus [s].
    spread_s
        Standard deviation of the transit times [s].
    """
    one = np.ones(1)
    delay = (lag_s - spread_s) * one
    return tissue_concentration(6000 / spread_s * one, spread_s * one, delay, frame_times_s, arterial)[0]


def residue_tmax(
    mtt: np.ndarray,
    delay: np.ndarray,
    *,
    residue: str | Residue = "exponential",
    dispersion_s: float = 0.0,
    transport: str = "exponential",
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
        Key of `RESIDUES`, or `gamma_residue` of any shape.
    dispersion_s
        Mean of the exponential transport function between artery and tissue [s].
    transport
        Key of `TRANSPORTS`.
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
    cells = _residue_cells(lags, step, table, np.zeros_like(table), residue, dispersion_s, transport)
    seen = gaussian_filter1d(cells.astype(np.float64), sigma_s / step, axis=1, truncate=6.0)
    peak = np.clip(seen.argmax(1), 1, len(lags) - 2)
    row = np.arange(len(table))
    before, at, after = seen[row, peak - 1], seen[row, peak], seen[row, peak + 1]
    # Vertex of the parabola through the three highest samples: the table is not bound to the step.
    shift = 0.5 * (before - after) / np.minimum(before - 2 * at + after, -1e-30)
    late = lags[0] + step * (peak + 0.5 + np.clip(shift, -0.5, 0.5))
    return np.asarray(delay + np.interp(mtt, table, late))
