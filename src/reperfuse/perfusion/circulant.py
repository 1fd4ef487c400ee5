"""Deconvolution on the block-circulant matrix: a filter in frequency.

Curves are padded with zeros to L = 2T, so that tissue which fills before the AIF appears at a negative lag instead of
wrapping on to a positive one. The circulant matrix of the padded dt·Ca is diagonal in frequency: its singular values
are the moduli |s_k| of the Fourier transform s of its first column, k = 0 … T at ω_k = πk/T per sample. Every method
here is F_k·g_k/s_k with F the transform of the curve and g_k its filter factors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperfuse.errors import InputError
from reperfuse.perfusion.cores import over_chunks

CSVD_THRESHOLD = 0.1
"""Fraction of the largest singular value below which cSVD drops a component. cSVD needs less than sSVD for the same
flow: at 0.1 all 14 curves of the OSIPI reference are within its tolerance of CBF, at 0.11 that of CBF 70 is not.
Against noise in Tmax (SNR 20) 0.2 is the steadier choice."""

TIKHONOV_LAMBDA = (0.05, 1.0)
"""Range of λ that a rule chooses from, as a fraction of the largest singular value.

Below 0.05 noise of SNR 50 makes most of the residue; and without a lower end noise-free curves take a λ that no
measured one takes, so that their Tmax means something else: on the phantoms of `oscillation.OSCILLATION_LIMIT` at SNR
50, Tmax > 6 s has 1.14–1.18 times the volume that it has without noise if λ starts at 0.01, 1.08–1.11 from 0.05."""

TIKHONOV_STEPS = 32
"""Values of λ in that range, evenly spaced in ln λ: 10 % apart, which moves CBF by about 2.5 %."""

RULES = ("lcurve", "gcv")
"""How λ is chosen for each curve; see `tikhonov`."""

CHUNK_CURVES = 4096
"""Curves worked on at a time by one core: 4096·(T + 1) numbers stay in its cache."""


def arterial_spectrum(aif: NDArray[np.float64], dt: float) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Fourier transform of dt·Ca padded to 2T, and its moduli over the largest, both of shape (T + 1,).

    Moduli are rounded to nine digits: bins whose moduli are equal by symmetry then are equal, whatever the units.
    """
    spectrum = np.fft.rfft(dt * aif, 2 * aif.size)
    modulus = np.abs(spectrum)
    return spectrum, np.round(modulus / modulus.max(), 9)


def checked_threshold(threshold: float) -> float:
    """The threshold, a fraction of the largest singular value; refused where it is none."""
    if not 0 < threshold <= 1:
        raise InputError(f"A singular value threshold of {threshold} cannot be used: give a fraction above 0, up to 1.")
    return float(threshold)


def circulant_svd(
    tissue: NDArray[Any], aif: NDArray[np.float64], dt: float, *, threshold: float = CSVD_THRESHOLD
) -> NDArray[Any]:
    """CBF·R(t) by truncated singular values of the block-circulant matrix (cSVD), shape (..., 2T).

    The filter is g_k = 1 where |s_k| ≥ threshold·max|s|, else 0, the same for every curve. Linear in tissue.

    References
    ----------
    Wu O et al., Magn Reson Med 2003;50:164–174.
    """
    spectrum, modulus = arterial_spectrum(aif, dt)
    kept = modulus >= checked_threshold(threshold)
    return _filtered(tissue, np.divide(1, spectrum, out=np.zeros_like(spectrum), where=kept))


def tikhonov(
    tissue: NDArray[Any],
    aif: NDArray[np.float64],
    dt: float,
    *,
    threshold: float | None = None,
    rule: str = "lcurve",
) -> NDArray[Any]:
    """CBF·R(t) by Tikhonov regularisation of order 0 on the block-circulant matrix, shape (..., 2T).

    Minimises ‖A·x − C‖² + λ²‖x‖² over x = CBF·R, which is the filter g_k = |s_k|²/(|s_k|² + λ²). Order 0, that is the
    norm of x and not of a derivative of it, because R jumps at its arrival and a derivative would punish that.

    With `threshold` λ is that fraction of max|s| for all curves, and the result is linear in tissue. Else each curve
    has its own λ out of `TIKHONOV_STEPS` values in `TIKHONOV_LAMBDA`, and the result scales with the curve but is not
    additive. With w_k = 1 for k = 0 and k = T, else 2, and ρ = Σ w_k(1 − g_k)²|F_k|², η = Σ w_k g_k²|F_k/s_k|², the
    squared norms (times L) of A·x − C and x:

    lcurve
        The corner of the curve (ln ρ, ln η), where its curvature is largest:
        κ = (2ρη/|η'|)·(λ²η'ρ + 2λρη + λ⁴ηη')/(λ⁴η² + ρ²)^(3/2), η' = dη/dλ = −(4/λ)·Σ w_k g_k²(1 − g_k)|F_k/s_k|².
    gcv
        The minimum of ρ/(Σ w_k(1 − g_k))², generalised cross-validation. On the phantoms of
        `oscillation.OSCILLATION_LIMIT` at SNR 50 it gives 0.72–0.85 of CBF and Tmax that correlates with delay by
        0.90–0.92, the L-curve 0.75–0.88 and 0.91–0.94; hence the default.

    References
    ----------
    Hansen PC, O'Leary DP, SIAM J Sci Comput 1993;14:1487–1503 (L-curve).
    Golub GH, Heath M, Wahba G, Technometrics 1979;21:215–223 (GCV).

    Examples
    --------
    Noise asks for a larger λ and so for a smoother, lower residue:

    >>> t = np.arange(60.0)
    >>> aif = np.where(t > 10, (t - 10.0) ** 3 * np.exp(-(t - 10) / 1.5), 0)
    >>> curve = 0.01 * np.convolve(aif, np.exp(-t / 4))[:60]
    >>> noisy = curve + np.random.default_rng(0).normal(0, 0.1 * curve.max(), 60)
    >>> clean_height, noisy_height = tikhonov(np.stack([curve, noisy]), aif, 1.0).max(axis=-1)
    >>> bool(noisy_height < clean_height)
    True
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(RULES)}")
    n = aif.size
    spectrum, modulus = arterial_spectrum(aif, dt)
    largest = float(np.abs(spectrum).max())
    if threshold is not None:
        lambda_ = checked_threshold(threshold)
        return _filtered(tissue, spectrum.conj() / (largest**2 * (modulus**2 + lambda_**2)))

    k, t = np.arange(n + 1), np.arange(n)
    weight = np.where((k == 0) | (k == n), 1.0, 2.0)
    grid = np.geomspace(*TIKHONOV_LAMBDA, TIKHONOV_STEPS)
    shrink = 1 / (modulus**2 + grid[:, None] ** 2)  # g/|s|², with max|s| as the unit; (λ, k)
    score = _tikhonov_score(rule, modulus, weight, grid, shrink, tissue.dtype)
    wave = np.exp(-1j * np.pi / n * np.outer(t, k))
    back = (weight * spectrum.conj() / (2 * n * largest**2))[:, None] * np.exp(
        1j * np.pi / n * np.outer(k, np.arange(2 * n))
    )
    dtype = tissue.dtype
    analysis = np.concatenate([wave.real, wave.imag], axis=1).astype(dtype)
    synthesis = np.concatenate([back.real, -back.imag]).astype(dtype)
    shrink = shrink.astype(dtype)

    curves = tissue.reshape(-1, n)
    residue = np.empty((len(curves), 2 * n), dtype)

    def solve(part: slice) -> None:
        transform = (curves[part] @ analysis).reshape(-1, 2, n + 1)
        power = (transform**2).sum(axis=1)
        # Of unit sum, so that the scores neither overflow nor depend on units.
        total = power.sum(axis=1, keepdims=True)
        np.divide(power, total, out=power, where=total > 0)
        transform *= shrink[score(power).argmax(axis=1), None]
        np.matmul(transform.reshape(len(transform), -1), synthesis, out=residue[part])

    over_chunks(solve, len(curves), CHUNK_CURVES)
    return residue.reshape(*tissue.shape[:-1], 2 * n)


def _filtered(tissue: NDArray[Any], inverse_spectrum: NDArray[np.complex128]) -> NDArray[Any]:
    """Curves through one filter g_k/s_k, (..., T) to (..., 2T).

    The inverse is again circulant, and those T rows of it that meet the curves (the padding is zero) are built once.
    Cutting it to T × T would be sSVD again.
    """
    n = inverse_spectrum.size - 1
    column = np.fft.irfft(inverse_spectrum, 2 * n)
    inverse = column[(np.arange(2 * n) - np.arange(n)[:, None]) % (2 * n)]
    return tissue @ inverse.astype(tissue.dtype)


def _tikhonov_score(
    rule: str,
    modulus: NDArray[np.float64],
    weight: NDArray[np.float64],
    grid: NDArray[np.float64],
    shrink: NDArray[np.float64],
    dtype: np.dtype[Any],
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """What each λ of the grid is worth, larger is better: from |F_k|², shape (n, T + 1), to (n, λ). See `tikhonov`."""
    misfit = grid[:, None] ** 2 * shrink  # 1 − g
    residual = (weight * misfit**2).T.astype(dtype)
    if rule == "gcv":
        freedom = (misfit @ weight).astype(dtype) ** 2
        return lambda power: -(power @ residual) / freedom
    norm = (weight * modulus**2 * shrink**2).T.astype(dtype)
    slope = (-4 / grid[:, None] * weight * misfit * modulus**2 * shrink**2).T.astype(dtype)
    step = grid.astype(dtype)

    def curvature(power: NDArray[Any]) -> NDArray[Any]:
        rho, eta, change = power @ residual, power @ norm, power @ slope
        bend = step**2 * change * rho + 2 * step * rho * eta + step**4 * eta * change
        below = np.abs(change) * (step**4 * eta**2 + rho**2) ** 1.5
        # A curve of zeros has no corner; any λ gives zero.
        return np.divide(2 * rho * eta * bend, below, out=np.zeros_like(rho), where=below > 0)

    return curvature
