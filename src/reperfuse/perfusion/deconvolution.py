"""The residue function by deconvolution.

Tissue holds what arteries brought and flow has not yet washed out: C(t) = CBF·(Ca ⊗ R)(t), with R the fraction of
contrast agent still in the tissue. Sampled every `dt` by the rectangle rule this is C = A·(CBF·R) with A a Toeplitz
matrix of dt·Ca; each method is one regularised inverse of such a matrix.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import toeplitz

from reperfuse.errors import InputError

SSVD_THRESHOLD = 0.2
"""Fraction of the largest singular value below which sSVD drops a component; Østergaard 1996."""

CSVD_THRESHOLD = 0.1
"""The same for cSVD, which needs less for the same flow: at 0.1 all 14 curves of the OSIPI reference are within its
tolerance of CBF, at 0.2 the highest flows are not. Against noise in Tmax (SNR 20) 0.2 is the steadier choice."""


def residue_function(
    tissue: ArrayLike, aif: ArrayLike, dt: float, method: str = "ssvd", **options: Any
) -> NDArray[np.floating[Any]]:
    """Flow times residue, CBF·R(t), of every tissue curve.

    Solves C(t) = CBF·(Ca ⊗ R)(t) for CBF·R, unnormalised: its maximum is CBF, the time of its maximum Tmax.

    Parameters
    ----------
    tissue
        C, shape (..., T), in the unit of the AIF (ΔR2* [1/s] for both, for instance).
    aif
        Ca, shape (T,).
    dt
        Time between frames [s].
    method
        A name in `METHODS`: "ssvd" (causal: a tissue that fills before the artery is misread) or "csvd" (insensitive to
        delay of either sign).
    **options
        Of the method, such as ``threshold``.

    Returns
    -------
    CBF·R(t) [1/s], float32 for float32 tissue, else float64. Shape (..., T) for "ssvd", sample k at lag k·dt. Shape
    (..., 2T) for the circulant methods, sample k at lag k·dt for k ≤ T and (k − 2T)·dt for k > T (see `lags`).

    Raises
    ------
    InputError
        If the AIF is zero everywhere or not finite, or `dt` is not positive.
    ValueError
        If the shapes do not fit or the method is unknown.

    Examples
    --------
    Delaying the tissue by five frames moves the peak and leaves its height alone:

    >>> t = np.arange(60.0)
    >>> aif = np.where(t > 10, (t - 10.0) ** 3 * np.exp(-(t - 10) / 1.5), 0)
    >>> tissue = 0.01 * np.convolve(aif, np.exp(-t / 4))[:60]
    >>> prompt, late = residue_function(np.stack([tissue, np.roll(tissue, 5)]), aif, 1.0, "csvd")
    >>> int(late.argmax() - prompt.argmax()), bool(abs(late.max() / prompt.max() - 1) < 0.01)
    (5, True)
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    tissue = np.asarray(tissue)
    aif = np.asarray(aif, dtype=np.float64)
    if aif.ndim != 1 or tissue.shape[-1:] != aif.shape:
        raise ValueError(f"AIF has shape {aif.shape}, tissue curves {tissue.shape}: expected (T,) and (..., T)")
    if not (np.isfinite(dt) and dt > 0):
        raise InputError(f"A frame interval of {dt} s cannot be used: give TR in seconds, larger than 0.")
    if not np.isfinite(aif).all():
        raise InputError("The AIF holds NaN or infinity; check the artery mask.")
    if not aif.any():
        raise InputError("The AIF is zero everywhere; check the artery mask.")
    if tissue.dtype != np.float32:
        tissue = tissue.astype(np.float64)
    return METHODS[method](tissue, aif, float(dt), **options)


def lags(n_frames: int, dt: float, n_samples: int) -> NDArray[np.float64]:
    """Lag of each sample of a residue function of `n_samples` (T or 2T) from curves of `n_frames` = T [s].

    Examples
    --------
    >>> lags(3, 2.0, 6).tolist()
    [0.0, 2.0, 4.0, 6.0, -4.0, -2.0]
    """
    k = np.arange(n_samples)
    return np.where(k > n_frames, k - 2 * n_frames, k) * float(dt)


def standard_svd(
    tissue: NDArray[Any], aif: NDArray[np.float64], dt: float, *, threshold: float = SSVD_THRESHOLD
) -> NDArray[Any]:
    """CBF·R(t) by truncated singular values of the lower triangular Toeplitz matrix, shape (..., T).

    References
    ----------
    Østergaard L et al., Magn Reson Med 1996;36:715–725. Unlike there, the AIF is not smoothed between frames (weights
    1/6, 4/6, 1/6), because that acts as a second, unnamed regularisation.
    """
    _check_threshold(threshold)
    u, s, vt = np.linalg.svd(toeplitz(dt * aif, np.zeros_like(aif)))
    kept = s >= threshold * s[0]
    inverse = (u[:, kept] / s[kept]) @ vt[kept]  # of the transpose: curves are rows
    return tissue @ inverse.astype(tissue.dtype)


def circulant_svd(
    tissue: NDArray[Any], aif: NDArray[np.float64], dt: float, *, threshold: float = CSVD_THRESHOLD
) -> NDArray[Any]:
    """CBF·R(t) by truncated singular values of the block-circulant matrix, shape (..., 2T).

    Curves are padded with zeros to 2T, so that tissue which fills before the AIF appears at a negative lag instead of
    wrapping on to a positive one. The singular values of a circulant matrix are the moduli of the Fourier transform of
    its first column, and dropping them is a filter in frequency; the inverse is again circulant, and those T rows of it
    that meet the curves (the padding is zero) are built once. Cutting it to T × T would be sSVD again.

    References
    ----------
    Wu O et al., Magn Reson Med 2003;50:164–174.
    """
    _check_threshold(threshold)
    n = aif.size
    spectrum = np.fft.rfft(dt * aif, 2 * n)
    kept = np.abs(spectrum) >= threshold * np.abs(spectrum).max()
    column = np.fft.irfft(np.divide(1, spectrum, out=np.zeros_like(spectrum), where=kept), 2 * n)
    inverse = column[(np.arange(2 * n) - np.arange(n)[:, None]) % (2 * n)]
    return tissue @ inverse.astype(tissue.dtype)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise InputError(f"A singular value threshold of {threshold} cannot be used: give a fraction above 0, up to 1.")


METHODS: dict[str, Callable[..., NDArray[Any]]] = {"ssvd": standard_svd, "csvd": circulant_svd}
"""Name to method: (tissue (..., T), aif (T,), dt [s], **options) to CBF·R, (..., T) or (..., 2T) [1/s]."""
