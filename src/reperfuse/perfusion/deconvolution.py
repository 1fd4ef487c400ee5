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
from reperfuse.perfusion.circulant import checked_threshold, circulant_svd, tikhonov
from reperfuse.perfusion.oscillation import oscillation_svd

SSVD_THRESHOLD = 0.2
"""Fraction of the largest singular value below which sSVD drops a component; Østergaard 1996."""


def residue_function(
    tissue: ArrayLike, aif: ArrayLike, dt: float, method: str = "osvd", **options: Any
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
        A name in `METHODS`: "ssvd" (causal: a tissue that fills before the artery is misread), or one of
        `DELAY_INVARIANT`: "csvd" (one threshold for all), "osvd" (each voxel's own, by oscillation) or "tikhonov"
        (each voxel's own λ, by L-curve or cross-validation).
    **options
        Of the method: ``threshold`` for each of them, ``limit`` and ``lowest`` of "osvd", ``rule`` of "tikhonov".

    Returns
    -------
    CBF·R(t) [1/s], float32 for float32 tissue, else float64. Shape (..., T) for "ssvd", sample k at lag k·dt. Shape
    (..., 2T) for the circulant methods, sample k at lag k·dt for k ≤ T and (k − 2T)·dt for k > T (see `lags`).

    Raises
    ------
    InputError
        If the AIF is zero everywhere or not finite, tissue is not finite, `dt` is not positive, or an option is out of
        its range.
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
    # A curve's sum is finite for all but absurd values, and costs a fraction of looking at each.
    with np.errstate(over="ignore", invalid="ignore"):
        sums = tissue @ np.ones(aif.size, tissue.dtype)
    if not np.isfinite(sums).all() and not np.isfinite(tissue).all():
        raise InputError("The tissue curves hold NaN or infinity; leave those voxels out or set them to zero.")
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
    checked_threshold(threshold)
    u, s, vt = np.linalg.svd(toeplitz(dt * aif, np.zeros_like(aif)))
    kept = s >= threshold * s[0]
    inverse = (u[:, kept] / s[kept]) @ vt[kept]  # of the transpose: curves are rows
    return tissue @ inverse.astype(tissue.dtype)


METHODS: dict[str, Callable[..., NDArray[Any]]] = {
    "ssvd": standard_svd,
    "csvd": circulant_svd,
    "osvd": oscillation_svd,
    "tikhonov": tikhonov,
}
"""Name to method: (tissue (..., T), aif (T,), dt [s], **options) to CBF·R, (..., T) or (..., 2T) [1/s].

Each takes `threshold`, a fraction of the largest singular value, the same for all curves: larger is more
regularisation. "osvd" and "tikhonov" choose each curve's own without it."""

DELAY_INVARIANT = frozenset({"csvd", "osvd", "tikhonov"})
"""Methods that claim that a delay of either sign moves the residue function and leaves its height alone; they are
circulant and give 2T lags."""
