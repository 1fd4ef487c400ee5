"""The brain found by threshold, as the Tmax network's authors found it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from reperfuse.errors import InputError

CORNER = 8
"""The air is looked for in the eight corners of the grid, each an eighth of the grid wide along every axis: no head
reaches there."""

AIR_SPREADS = 3.0
"""Standard deviations above its median to which air is taken to reach; where that is above the threshold, the threshold
is raised, and to this many standard deviations at least. On phantoms that is so at SNR 12 and below, never at 30."""

MOST_OF_THE_WAY = 0.5
"""A raised threshold lies no further than this part of the way from air to the robust maximum: corners that hold more
than air have a wide spread, and tissue must not be cut for it."""

LEAST_HEAD = 0.01
"""Part of the grid that a head fills at least: a raised threshold that leaves less has found grains of noise in an
image that holds no air to tell from a head, and the plain rule stands."""


def threshold_mask(signal: ArrayLike, fraction: float = 0.10) -> NDArray[np.bool_]:
    """The brain: everything brighter than a fraction of the maximum, as one piece without holes.

    A voxel belongs to the brain where its temporal mean exceeds ``fraction`` of the robust maximum M (the 99.5th
    percentile of the positive voxels, so that one bright vessel does not set the scale). That rule takes air to be
    dark. Where the air itself, with its spread, reaches ``fraction``·M (little signal over noise, or a constant added
    to every voxel), the threshold becomes A + ``fraction``·(M − A), A the median of the grid's corners, and
    `AIR_SPREADS` of their standard deviations above A at least. Corners without signal (a round field of view, an image
    whose skull was removed) tell nothing, nor do images in which next to nothing is brighter than that, and the plain
    rule stands.

    The largest face-connected component is kept and its holes are filled, in the volume and then in every slice along
    k, because ventricles that leave the slab through its first or last slice are no holes of the volume (on a grid
    stored in another order the mask can therefore differ by a few voxels). Slices of zeros or NaN, along any axis, were
    not acquired: they are in no mask and do not cut the head in two.

    Parameters
    ----------
    signal
        Shape (I, J, K) or (I, J, K, T); NaN and infinity count as not measured.
    fraction
        Threshold as a fraction of the robust maximum, between 0 and 1; the paper's 0.10 was found by eye.

    Returns
    -------
    Mask of shape (I, J, K).

    Raises
    ------
    InputError
        If no voxel of the signal is positive.

    References
    ----------
    The threshold of 10 % and the "image adjusted to fill whole brain volume" are those of the Tmax network's
    preprocessing (Horos and MATLAB); percentile, air, component and slice-wise filling are ours, the text leaves them
    open.

    Examples
    --------
    >>> image = np.zeros((7, 7, 7)); image[1:6, 1:6, 1:6] = 100; image[3, 3, 3] = 0; image[0, 0, 0] = 5
    >>> int(threshold_mask(image).sum())
    125
    """
    signal = np.asarray(signal)
    if signal.ndim not in (3, 4):
        raise ValueError(f"signal has {signal.ndim} axes, expected (I, J, K) or (I, J, K, T)")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected a number between 0 and 1")
    mean = _temporal_mean(signal)
    if not (mean > 0).any():
        raise InputError(
            "No voxel of the image is positive, so no brain can be found: check that the series has pixels."
        )
    acquired = np.ix_(*((mean > 0).any(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)))
    stack = mean[acquired]
    highest = float(np.percentile(stack[stack > 0], 99.5))
    plain, raised = fraction * highest, _above_air(mean, highest, fraction)
    piece = _largest_piece(stack > max(plain, raised))
    if raised > plain and piece.mean() < LEAST_HEAD:
        piece = _largest_piece(stack > plain)
    piece = ndimage.binary_fill_holes(piece)
    for k in range(piece.shape[2]):
        piece[:, :, k] = ndimage.binary_fill_holes(piece[:, :, k])
    brain = np.zeros(mean.shape, dtype=bool)
    brain[acquired] = piece
    return brain


def _temporal_mean(signal: NDArray[np.generic]) -> NDArray[np.floating]:
    """Mean over the measured frames, shape (I, J, K); 0 where none is."""
    finite = np.isfinite(signal)
    if signal.ndim == 3:
        return np.where(finite, signal, 0)
    if finite.all() and np.abs(signal).max() < np.finfo(np.float32).max / signal.shape[3]:
        return np.asarray(signal.mean(axis=3, dtype=np.float32))
    total = np.sum(signal, axis=3, where=finite, dtype=np.float64)
    return np.asarray(total / np.maximum(finite.sum(axis=3), 1))


def _largest_piece(bright: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, _ = ndimage.label(bright)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax()) & bright


def _above_air(image: NDArray[np.floating], highest: float, fraction: float) -> float:
    """A fraction of the way from air to the robust maximum; 0 where air stays below that fraction of the maximum."""
    # Lost slices at an end of the stack hide no corner; the background of an image without its skull has to stay.
    across = int(np.argmin(image.shape))
    stack = np.moveaxis(image, across, 0)
    stack = stack[(stack > 0).any(axis=(1, 2))]
    ends = [np.r_[: max(n // CORNER, 1), n - max(n // CORNER, 1) : n] for n in stack.shape]
    corners = stack[np.ix_(*ends)]
    air = float(np.median(corners))
    spread = 1.4826 * float(np.median(np.abs(corners - air)))
    if not 0 < air < highest or air + AIR_SPREADS * spread <= fraction * highest:
        return 0.0
    way = max(fraction * (highest - air), min(AIR_SPREADS * spread, MOST_OF_THE_WAY * (highest - air)))
    return air + way
