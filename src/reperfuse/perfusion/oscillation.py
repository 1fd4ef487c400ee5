"""Deconvolution whose truncation is each voxel's own: as little as keeps the residue function from oscillating (oSVD).

Truncating the block-circulant matrix (see `perfusion.circulant`) keeps the frequencies where the AIF is strong. How
many a voxel can afford depends on its noise, which shows as oscillation of the residue function.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperfuse.errors import InputError
from reperfuse.perfusion.circulant import arterial_spectrum, checked_threshold
from reperfuse.perfusion.cores import over_chunks

OSCILLATION_LIMIT = 0.06
"""Largest oscillation index a voxel's residue function may have at a frame interval of `LIMIT_DT_S`.

Wu et al. set it by SNR; what suits depends on TR too (`oscillation_limit`). Measured here on phantoms of T 60, TR
1.5 s, TE 30 ms, CBV 2–5 mL/100 g, MTT 3–14 s, delay 0–9 s (ranges are over exponential, Lorentzian and gamma residues;
volume is that of Tmax > 6 s over the same without noise):

    limit                          0.018      0.035      0.05       0.06       0.08
    SNR 50, Tmax against delay r   0.95–0.96  0.96       0.95–0.96  0.95–0.96  0.94–0.96
    SNR 50, volume                 1.03–1.07  1.10–1.13  1.07–1.09  1.05–1.07  1.03–1.05
    SNR 50, median CBF over truth  0.64–0.75  0.72–0.85  0.75–0.88  0.77–0.90  0.79–0.92
    SNR 20, Tmax against delay r   0.88–0.89  0.87–0.90  0.84–0.89  0.82–0.88  0.75–0.83
    SNR 20, volume                 1.09–1.14  1.17–1.22  1.13–1.17  1.12–1.16  1.10–1.14

A lower limit blurs flow away and, between 0.02 and 0.05, moves more voxels past 6 s; a higher one lets noise of SNR 20
choose Tmax."""

LIMIT_DT_S = 1.5
"""Frame interval at which `OSCILLATION_LIMIT` was measured [s]."""

LOWEST_THRESHOLD = 0.1
"""Fraction of the largest singular value below which nothing is kept, however smooth the residue: that of cSVD, for
its reason (OSIPI's CBF 70 needs 0.1 or less). Without a lower end, noise-free curves take thresholds that no measured
curve takes, and their Tmax means something else: from 0.02, Tmax > 6 s at SNR 50 has 1.17–1.21 times the volume that it
has without noise, from 0.1 1.05–1.07; and noise-free CBF changes with delay, see `oscillation_svd`."""

BLOCK_CURVES = 25000
"""Curves one core searches at a time. Large, so that the last few unsettled curves are worked on together."""

SLICE_CURVES = 1024
"""Curves synthesised at a time: six arrays of (T/2 + 1) × 1024 float32 are 760 kB and stay in a core's cache."""

SHRINK_BELOW = 0.75
"""Settled curves are taken out when fewer than this fraction is still searched; copying costs more before that."""


def oscillation_index(residue: ArrayLike) -> NDArray[Any]:
    """Oscillation index of residue functions, shape (..., L) to (...).

    OI = 1/(L·max|f|)·Σ_k |f(k+1) − 2f(k) + f(k−1)| over all L lags, indices modulo L; 0 for a residue of zeros.

    Wu et al. leave out the two differences that cross the end of the array. Lags of a circulant method have no end:
    lag 0 follows lag −1, and that is where an undelayed residue jumps. With the whole circle the index does not depend
    on delay.

    References
    ----------
    Wu O et al., Magn Reson Med 2003;50:164–174.

    Examples
    --------
    >>> oscillation_index([[0.0, 1.0, 0.0, -1.0], [1.0, 1.0, 1.0, 1.0]]).tolist()
    [1.0, 0.0]
    """
    f = np.asarray(residue)
    bends = np.abs(np.roll(f, 1, axis=-1) - 2 * f + np.roll(f, -1, axis=-1)).mean(axis=-1)
    height = np.abs(f).max(axis=-1)
    return np.divide(bends, height, out=np.zeros_like(bends), where=height > 0)


def oscillation_limit(dt: float) -> float:
    """The oscillation index allowed at a frame interval of `dt` [s]: `OSCILLATION_LIMIT`·(dt/1.5 s)².

    The index is a mean second difference, and that of one and the same smooth residue grows with the square of the
    interval it is sampled at. A limit that did not grow would smooth more at a coarse TR: at 0.05 for every TR,
    noise-free Tmax exceeds the delay by 2.5 s at TR 1 to 2 s, by 3.3 s at 2.5 s and by 4.1 s at 3 s; grown, by 2.5 to
    2.8 s throughout.

    Examples
    --------
    >>> round(oscillation_limit(3.0) / oscillation_limit(1.5), 6)
    4.0
    """
    return float(OSCILLATION_LIMIT * (dt / LIMIT_DT_S) ** 2)


def oscillation_svd(
    tissue: NDArray[Any],
    aif: NDArray[np.float64],
    dt: float,
    *,
    limit: float | None = None,
    lowest: float = LOWEST_THRESHOLD,
    threshold: float | None = None,
) -> NDArray[Any]:
    """CBF·R(t) by cSVD with the smallest threshold that keeps each curve's oscillation index within `limit`, (..., 2T).

    Candidates are all thresholds that make a difference: the distinct moduli of the AIF's spectrum over the largest,
    from 1 down to `lowest`. The oscillation index need not be monotone in the threshold; of several thresholds with
    OI ≤ limit the smallest is taken. If none has, it is the largest (1, in general the mean alone).

    Scaling a curve scales its residue, and delay by whole frames moves it, but sums of curves do not give sums of
    residues, as their thresholds differ. With `threshold`, every curve has that one, and the method is `csvd`.

    Without noise, thresholds of phantom curves (four residue families, MTT 2–14 s, delay −6…9 s) all end at `lowest`,
    so CBF depends on delay as little as that of cSVD: by 0.3 % over whole frames, 1.8 % over fractions of one (with
    the maximum interpolated). With `lowest` 0.02, where they do not, by 0.5 % and 16 %.

    Parameters
    ----------
    limit
        Of `oscillation_index`; more regularisation where smaller.
    lowest
        Smallest threshold that may be taken.
    threshold
        One for all curves instead.

    References
    ----------
    Wu O et al., Magn Reson Med 2003;50:164–174. There thresholds come from a fixed list; see `oscillation_index` for
    the other difference.

    Examples
    --------
    >>> t = np.arange(60.0)
    >>> aif = np.where(t > 10, (t - 10.0) ** 3 * np.exp(-(t - 10) / 1.5), 0)
    >>> curve = 0.01 * np.convolve(aif, np.exp(-t / 4))[:60]
    >>> noisy = curve + np.random.default_rng(0).normal(0, 0.1 * curve.max(), 60)
    >>> residue = oscillation_svd(np.stack([curve, noisy]), aif, 1.0)
    >>> bool((oscillation_index(residue) <= OSCILLATION_LIMIT).all())
    True
    """
    limit = oscillation_limit(dt) if limit is None else limit
    if not (np.isfinite(limit) and limit > 0):
        raise InputError(f"An oscillation limit of {limit} cannot be used: give a number above 0.")
    lowest = checked_threshold(lowest if threshold is None else threshold)
    waves = _waves(aif, dt, lowest, tissue.dtype)
    curves = tissue.reshape(-1, aif.size)
    residue = np.empty((len(curves), 2 * aif.size), tissue.dtype)

    def solve(part: slice) -> None:
        coefficients = waves.analysis @ curves[part].T
        if threshold is None:
            finest = _finest_levels(waves, coefficients, limit)
            for wave, level in enumerate(waves.level):
                kept = level <= finest
                coefficients[wave] *= kept
                coefficients[wave + waves.level.size] *= kept
        np.matmul(coefficients.T, waves.synthesis, out=residue[part])

    over_chunks(solve, len(curves), BLOCK_CURVES)
    return residue.reshape(*tissue.shape[:-1], 2 * aif.size)


@dataclass(frozen=True)
class _Waves:
    """The m frequencies of an AIF at or above the lowest threshold, and what turns them into residue functions.

    Even frequencies come first, then odd ones, each by falling modulus: cos(πk(T − j)/T) = ±cos(πkj/T) with the sign of
    k's parity, so that both sums over half the lags give, added and subtracted, all of them.
    """

    analysis: NDArray[Any]
    """(2m, T): tissue to the amplitudes of cosines and of sines of CBF·R without truncation."""
    synthesis: NDArray[Any]
    """(2m, 2T): those amplitudes to the residue at all lags."""
    level: NDArray[np.intp]
    """(m,): index among the distinct moduli, falling, of each frequency's."""
    ends: list[tuple[int, int]]
    """Per level, where its even and its odd frequencies end."""
    n_even: int
    quarter: NDArray[Any]
    """(2, h, m): cosine and sine of the frequencies at lags 0 … T/2, h = T//2 + 1."""
    bend: NDArray[Any]
    """The same after second differences, which multiply frequency ω by 2cos ω − 2 (here with the sign turned)."""
    counts: NDArray[Any]
    """(2h,): how often each entry of `_folded` pairs stands for a lag, over 2T."""


def _waves(aif: NDArray[np.float64], dt: float, lowest: float, dtype: np.dtype[Any]) -> _Waves:
    n = aif.size
    spectrum, modulus = arterial_spectrum(aif, dt)
    k = np.argsort(-modulus, kind="stable")
    k = k[modulus[k] >= lowest]
    k = np.concatenate([k[k % 2 == 0], k[k % 2 == 1]])
    moduli = np.unique(modulus[k])[::-1]
    level = np.searchsorted(-moduli, -modulus[k])
    n_even = int((k % 2 == 0).sum())
    omega = np.pi * k / n
    # (1/L)·Σ over all L frequencies is one over 0 … T with the inner ones twice.
    scale = np.where((k == 0) | (k == n), 1, 2) / (2 * n * spectrum[k])
    forward = scale[:, None] * np.exp(-1j * np.outer(omega, np.arange(n)))
    phase = np.outer(omega, np.arange(2 * n))
    lags = np.outer(np.arange(n // 2 + 1), omega)
    quarter = np.stack([np.cos(lags), np.sin(lags)])
    # Lags 0 and T, and T/2 and −T/2, are their own mirror images: half the four lags of the others.
    counts = np.full(n // 2 + 1, 2.0)
    counts[0] = 1
    if n % 2 == 0:
        counts[-1] = 1
    return _Waves(
        analysis=np.concatenate([forward.real, -forward.imag]).astype(dtype),
        synthesis=np.concatenate([np.cos(phase), np.sin(phase)]).astype(dtype),
        level=level,
        ends=[
            (int((level[:n_even] <= last).sum()), n_even + int((level[n_even:] <= last).sum()))
            for last in range(len(moduli))
        ],
        n_even=n_even,
        quarter=quarter.astype(dtype),
        bend=(quarter * (2 - 2 * np.cos(omega))).astype(dtype),
        counts=(np.tile(counts, 2) / (2 * n)).astype(dtype),
    )


def _finest_levels(waves: _Waves, coefficients: NDArray[Any], limit: float) -> NDArray[np.intp]:
    """The largest level (smallest threshold) with OI ≤ limit of each column of `coefficients`, (2m, n) to (n,).

    From the smallest threshold up, over the curves not yet settled. The maximum is synthesised only where it decides:
    leaving out waves of amplitudes b moves it by at most their sum.
    """
    m, n = len(waves.level), coefficients.shape[1]
    found = np.zeros(n, dtype=np.intp)
    rows = np.arange(n)
    searched = np.ones(n, dtype=bool)
    finest = len(waves.ends) - 1
    work = np.empty(6 * waves.quarter.shape[1] * min(n, SLICE_CURVES), coefficients.dtype)
    height = _heights(waves, coefficients, finest, work)
    slack = np.zeros_like(height)
    for level in range(finest, 0, -1):
        bends = _mean_bends(waves, coefficients, level, work) / limit
        within = searched & (bends <= height - slack)
        near = np.flatnonzero(searched & ~within & (bends <= height + slack))
        if level < finest and near.size:
            height[near] = _heights(waves, coefficients.take(near, axis=1), level, work)
            slack[near] = 0
            within[near] = bends[near] <= height[near]
        found[rows[within]] = level
        searched &= ~within
        left = np.count_nonzero(searched)
        if left == 0:
            break
        for start, end in zip(waves.ends[level - 1], waves.ends[level], strict=True):
            for k in range(start, end):
                slack += np.hypot(coefficients[k], coefficients[m + k])
        if left < SHRINK_BELOW * rows.size:
            still = np.flatnonzero(searched)
            rows, height, slack, searched = rows[still], height[still], slack[still], searched[still]
            coefficients = coefficients.take(still, axis=1)
    return found


def _mean_bends(waves: _Waves, coefficients: NDArray[Any], level: int, work: NDArray[Any]) -> NDArray[Any]:
    """Mean over all lags of the residue's absolute second difference, (2m, n) to (n,)."""
    found = np.empty(coefficients.shape[1], coefficients.dtype)
    for start in range(0, found.size, SLICE_CURVES):
        part = slice(start, start + SLICE_CURVES)
        pairs, out = _folded(waves.bend, waves, coefficients[:, part], level, work)
        np.maximum(pairs[0::2], pairs[1::2], out=out)  # |a + b| + |a − b| = 2·max(|a|, |b|)
        np.matmul(waves.counts, out.reshape(waves.counts.size, -1), out=found[part])
    return found


def _heights(waves: _Waves, coefficients: NDArray[Any], level: int, work: NDArray[Any]) -> NDArray[Any]:
    """Maximum of the residue's absolute value over all lags, (2m, n) to (n,)."""
    found = np.empty(coefficients.shape[1], coefficients.dtype)
    for start in range(0, found.size, SLICE_CURVES):
        part = slice(start, start + SLICE_CURVES)
        pairs, out = _folded(waves.quarter, waves, coefficients[:, part], level, work)
        np.add(pairs[0::2], pairs[1::2], out=out)  # max(|a + b|, |a − b|) = |a| + |b|
        np.maximum.reduce(out.reshape(waves.counts.size, -1), axis=0, out=found[part])
    return found


def _folded(
    table: NDArray[Any], waves: _Waves, coefficients: NDArray[Any], level: int, work: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sums of cosines |a| and of sines |b| at lags j and at T − j, j ≤ T/2: (4, h, n); the residue there is a ± b.

    And a buffer (2, h, n) beside them. Both lie in `work`, as fresh memory would cost as much as the arithmetic.
    """
    (even, odd), first_odd, m, h = waves.ends[level], waves.n_even, len(waves.level), table.shape[1]
    n = coefficients.shape[1]
    planes = work[: 6 * h * n].reshape(6, h, n)
    for half in (0, 1):
        np.matmul(table[half, :, :even], coefficients[half * m : half * m + even], out=planes[half])
        between = slice(half * m + first_odd, half * m + odd)
        np.matmul(table[half, :, first_odd:odd], coefficients[between], out=planes[4 + half])
    np.add(planes[:2], planes[4:], out=planes[2:4])
    np.subtract(planes[:2], planes[4:], out=planes[4:])
    np.abs(planes[2:], out=planes[2:])
    return planes[2:], planes[:2]
