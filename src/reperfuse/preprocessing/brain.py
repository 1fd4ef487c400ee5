"""The brain found by threshold, as the Tmax network's authors found it."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from reperfuse.errors import InputError


def threshold_mask(signal: ArrayLike, fraction: float = 0.10) -> NDArray[np.bool_]:
    """The brain: everything brighter than a fraction of the maximum, as one piece without holes.

    A voxel belongs to the brain where its temporal mean exceeds ``fraction`` of the robust maximum (the 99.5th
    percentile of the positive voxels, so that one bright vessel does not set the scale). The largest face-connected
    component is kept and its holes are filled, in the volume and then in every slice along k, because ventricles that
    leave the slab through its first or last slice are no holes of the volume.

    Parameters
    ----------
    signal
        Shape (I, J, K) or (I, J, K, T); NaN counts as 0.
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
    preprocessing (Horos and MATLAB); percentile, component and slice-wise filling are ours, the text leaves them open.

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
    mean = signal if signal.ndim == 3 else signal.mean(axis=3, dtype=np.float32)
    mean = np.nan_to_num(mean, nan=0.0, posinf=0.0, neginf=0.0)
    positive = mean[mean > 0]
    if not positive.size:
        raise InputError(
            "No voxel of the image is positive, so no brain can be found: check that the series has pixels."
        )
    bright = mean > fraction * np.percentile(positive, 99.5)
    labels, _ = ndimage.label(bright)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    brain = ndimage.binary_fill_holes(labels == sizes.argmax())
    for k in range(brain.shape[2]):
        brain[:, :, k] = ndimage.binary_fill_holes(brain[:, :, k])
    return brain
