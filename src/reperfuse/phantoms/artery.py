"""Arterial inputs in closed form: three families of first pass, each with recirculation and washout.

Ca(t) = A·D·[f(t − t0) + r·((1 − w)·f₂(t − t0 − Δ) + w·(f ⊗ e)(t − t0 − Δ))], all of f, f₂ and e of area one:
f the first pass, f₂ the second pass, broader by `SECOND_PASS_WIDTH`, e = exp(−t/τ)/τ the slow washout of blood that has
mixed with the rest of the body. So the area is A·D for the first pass and A·D·(1 + r) in all, whatever the family.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammainc, gammaln, log_ndtr

ARTERIAL_AREA = 30.4
"""A: area of Ca over the first pass [unit of Ca · s], ∫ t³ exp(−t/1.5) dt, that of the signal-domain reference of
Chakwizira et al. (2022)."""

RECIRCULATION_DELAY_S = 14.0
"""Δ: how much later than the first pass the second one begins [s]; 10 to 20 s at a normal cardiac output."""

SECOND_PASS_WIDTH = 2.5
"""Width of the second pass over that of the first: it has been through the whole circulation once."""

WASHOUT_S = 60.0
"""τ: time constant [s] of the washout, the distribution into the body's interstitium. Renal clearance is slower than
any DSC series."""

GAUSSIAN_LEAD = 3.0
"""A Gaussian first pass has its peak this many widths after its arrival; 0.13 % of it come before."""


def _gamma_variate(t: np.ndarray, shape: float, scale_s: float) -> np.ndarray:
    x = np.maximum(t, 0.0) / scale_s
    return np.where(x > 0, np.exp(shape * np.log(np.where(x > 0, x, 1.0)) - x - gammaln(shape + 1)), 0.0) / scale_s


def _gamma_pass(t: np.ndarray, shape: float, width_s: float, injection_s: float) -> np.ndarray:
    return _gamma_variate(t, shape, width_s / np.sqrt(shape + 1))


def _gamma_washout(t: np.ndarray, shape: float, width_s: float, injection_s: float) -> np.ndarray:
    # ∫ g(s)·exp(−(t − s)/τ)/τ ds: completing the exponent leaves an incomplete gamma function.
    scale, late = width_s / np.sqrt(shape + 1), np.maximum(t, 0.0)
    ratio = 1 - scale / WASHOUT_S
    return np.exp(-late / WASHOUT_S) / WASHOUT_S * ratio ** -(shape + 1) * gammainc(shape + 1, late / scale * ratio)


def _gaussian_pass(t: np.ndarray, shape: float, width_s: float, injection_s: float) -> np.ndarray:
    return np.exp(-0.5 * (t / width_s - GAUSSIAN_LEAD) ** 2) / (width_s * np.sqrt(2 * np.pi))


def _gaussian_washout(t: np.ndarray, shape: float, width_s: float, injection_s: float) -> np.ndarray:
    # The exponentially modified Gaussian, by logarithms so that neither factor overflows.
    late = t - GAUSSIAN_LEAD * width_s
    tail = log_ndtr(late / width_s - width_s / WASHOUT_S)
    return np.exp(0.5 * (width_s / WASHOUT_S) ** 2 - late / WASHOUT_S + tail) / WASHOUT_S


def _injection_pass(t: np.ndarray, shape: float, width_s: float, injection_s: float) -> np.ndarray:
    # A boxcar through a gamma-variate: the difference of its distribution function at both ends.
    scale = width_s / np.sqrt(shape + 1)
    ended = gammainc(shape + 1, np.maximum(t - injection_s, 0.0) / scale)
    return (gammainc(shape + 1, np.maximum(t, 0.0) / scale) - ended) / injection_s


def _injection_washout(t: np.ndarray, shape: float, width_s: float, injection_s: float) -> np.ndarray:
    # y = g ⊗ e obeys τ·y' = g − y, so its integral is that of g less τ·y.
    def integral(late: np.ndarray) -> np.ndarray:
        passed = gammainc(shape + 1, np.maximum(late, 0.0) * np.sqrt(shape + 1) / width_s)
        return passed - WASHOUT_S * _gamma_washout(late, shape, width_s, injection_s)

    return (integral(t) - integral(t - injection_s)) / injection_s


Pass = Callable[[np.ndarray, float, float, float], np.ndarray]

ARTERIAL_FAMILIES: dict[str, tuple[Pass, Pass]] = {
    "gamma_variate": (_gamma_pass, _gamma_washout),
    "gaussian": (_gaussian_pass, _gaussian_washout),
    "injection": (_injection_pass, _injection_washout),
}
"""First pass f(t) and its washout (f ⊗ e)(t), both of area one, from t, shape a, width [s] and injection [s].

gamma_variate: tᵃ·exp(−t/β)/(a!·β^(a+1)), β = width/√(a+1), so the width is its standard deviation. gaussian: the form
of the population average of Parker et al. (2006), Gaussians for the passes and a washout. injection: a boxcar, the
injector's, through the gamma-variate transit of heart and lungs."""


@dataclass(frozen=True)
class ArterialInput:
    """Ca(t) of one patient: call it with times [s] to get the concentration at them.

    Parameters
    ----------
    family
        Key of `ARTERIAL_FAMILIES`.
    arrival_s
        t0, when the first pass begins [s].
    width_s
        Standard deviation of the (instantaneous) first pass [s]; its full width at half maximum is about 2.3 of it.
    shape
        a of the gamma variate: small is skewed, large is symmetric. Without effect on "gaussian".
    injection_s
        Length of the boxcar of "injection" [s]: 20 mL at 5 mL/s take 4 s.
    recirculation
        r, area of all that follows the first pass over the first pass.
    washout
        w, the part of r that comes back slowly instead of as a second pass.
    recirculation_delay_s
        Δ [s].
    dose
        D, amount of contrast agent over the usual one.

    Raises
    ------
    KeyError
        When called, if `family` is none of `ARTERIAL_FAMILIES`.

    References
    ----------
    Thompson HK et al. Indicator transit time considered as a gamma variate. Circ Res 1964;14:502-515.
    Parker GJM et al. Experimentally-derived functional form for a population-averaged high-temporal-resolution arterial
    input function for dynamic contrast-enhanced MRI. Magn Reson Med 2006;56:993-1000.

    Examples
    --------
    >>> t = np.arange(0, 1000, 0.01)
    >>> aifs = [ArterialInput(family, recirculation=0.3, washout=0.5) for family in ARTERIAL_FAMILIES]
    >>> [round(float(aif(t).sum() * 0.01 / ARTERIAL_AREA), 3) for aif in aifs]
    [1.3, 1.3, 1.3]
    """

    family: str = "gamma_variate"
    arrival_s: float = 15.0
    width_s: float = 3.0
    shape: float = 3.0
    injection_s: float = 4.0
    recirculation: float = 0.15
    washout: float = 0.0
    recirculation_delay_s: float = RECIRCULATION_DELAY_S
    dose: float = 1.0

    @property
    def first_pass_area(self) -> float:
        """Area of the first pass [unit of Ca · s]."""
        return ARTERIAL_AREA * self.dose

    @property
    def area(self) -> float:
        """Area of Ca over all time, recirculation included [unit of Ca · s]."""
        return self.first_pass_area * (1 + self.recirculation)

    def first_pass(self, time_s: np.ndarray) -> np.ndarray:
        """Ca without what recirculates, any shape of times [s]."""
        late = np.asarray(time_s, dtype=np.float64) - self.arrival_s
        first, _ = ARTERIAL_FAMILIES[self.family]
        return self.first_pass_area * first(late, self.shape, self.width_s, self.injection_s)

    def __call__(self, time_s: np.ndarray) -> np.ndarray:
        """Ca at the times, any shape [s]."""
        again = np.asarray(time_s, dtype=np.float64) - self.arrival_s - self.recirculation_delay_s
        first, washed_out = ARTERIAL_FAMILIES[self.family]
        ca = self.first_pass(time_s)
        back = self.first_pass_area * self.recirculation
        if back * (1 - self.washout):
            wide = (SECOND_PASS_WIDTH * self.width_s, SECOND_PASS_WIDTH * self.injection_s)
            ca = ca + back * (1 - self.washout) * first(again, self.shape, *wide)
        if back * self.washout:
            ca = ca + back * self.washout * washed_out(again, self.shape, self.width_s, self.injection_s)
        return ca


def arterial_concentration(
    time_s: np.ndarray,
    *,
    arrival_s: float = 15.0,
    shape: float = 3.0,
    scale_s: float = 1.5,
    recirculation: float = 0.15,
) -> np.ndarray:
    """Arterial concentration Ca(t): a gamma-variate first pass and a later, broader second one.

    Ca(t) = A·[g(t − t0; a, β) + r·g(t − t0 − Δ; a, 2.5β)], g(t; a, β) = tᵃ·exp(−t/β)/(a!·β^(a+1)) of area one,
    A = `ARTERIAL_AREA`, Δ = `RECIRCULATION_DELAY_S`: the first family of `ArterialInput`, by β instead of its width.

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

    Examples
    --------
    >>> t = np.arange(0, 200, 0.01)
    >>> ca = arterial_concentration(t, arrival_s=10.0)
    >>> round(float(t[ca.argmax()]), 2), round(float(ca.sum() * 0.01 / ARTERIAL_AREA), 3)
    (14.5, 1.15)
    """
    late = np.asarray(time_s, dtype=np.float64) - arrival_s
    again = _gamma_variate(late - RECIRCULATION_DELAY_S, shape, SECOND_PASS_WIDTH * scale_s)
    return ARTERIAL_AREA * (_gamma_variate(late, shape, scale_s) + recirculation * again)
