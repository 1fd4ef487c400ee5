"""Smooth random fields and Rician noise, which every phantom needs."""

import numpy as np


def smooth_field(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], scale_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian random field, mean 0 and variance 1 in expectation at every voxel, float32.

    White noise on a lattice of step `scale_mm` is seen through a Gaussian window of standard deviation
    `scale_mm`, one axis at a time; the correlation of two points r apart is about exp(−r²/(4 scale²)). The
    work is three small matrix products, whatever the grid, and the field is the same on any grid of the same extent.

    Parameters
    ----------
    shape
        Grid, any number of axes.
    spacing_mm
        Voxel size [mm], one per axis.
    scale_mm
        Step of the lattice and width of the window [mm].
    rng
        Source of the lattice.

    Examples
    --------
    >>> field = smooth_field((40, 50, 30), (2.0, 2.0, 2.0), 10.0, np.random.default_rng(0))
    >>> field.shape, field.dtype.name, bool(abs(np.diff(field, axis=0)).max() < 1)
    ((40, 50, 30), 'float32', True)
    """
    windows = []
    for n, step in zip(shape, spacing_mm, strict=True):
        extent = n * step
        knots = np.arange(-2, np.ceil(extent / scale_mm) + 3) * scale_mm
        centres = (np.arange(n) + 0.5) * step
        window = np.exp(-0.5 * ((centres[:, None] - knots) / scale_mm) ** 2)
        windows.append((window / np.sqrt((window**2).sum(1, keepdims=True))).astype(np.float32))
    field = rng.standard_normal([w.shape[1] for w in windows], dtype=np.float32)
    for window in windows:
        # Each product consumes the first axis and appends the fine one, so after all axes the order is back.
        field = np.tensordot(field, window, axes=(0, 1))
    return np.ascontiguousarray(field)


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of `signal` with complex Gaussian noise, |S + σ(n₁ + i n₂)|, float32, never negative.

    Parameters
    ----------
    signal
        Noise-free magnitude, any shape.
    sigma
        Standard deviation of the noise in either channel, in the unit of `signal`.
    rng
        Source of the noise.

    References
    ----------
    Gudbjartsson H, Patz S. The Rician distribution of noisy MRI data. Magn Reson Med 1995;34:910-914.

    Examples
    --------
    >>> air = rician(np.zeros(100_000, np.float32), 2.0, np.random.default_rng(0))
    >>> bool(abs(air.mean() / 2.0 - np.sqrt(np.pi / 2)) < 0.01)
    True
    """
    real = rng.standard_normal(signal.shape, dtype=np.float32) * np.float32(sigma) + signal
    imaginary = rng.standard_normal(signal.shape, dtype=np.float32) * np.float32(sigma)
    return np.hypot(real, imaginary)
