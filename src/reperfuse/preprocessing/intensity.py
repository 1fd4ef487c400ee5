"""Intensities brought to one scale, and what they were before.

The rules share their edges: numbers come out as float32; an image that is constant where it is measured becomes
0; voxels outside a mask become 0; NaN and infinity are refused, because a minimum or a mean over them would spoil every
voxel silently (ingest replaces NaN by 0).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperfuse.errors import InputError

Image = NDArray[np.float32]

WINDOW_PERCENTILES = (1.0, 99.0)
"""Ends of `window`; our choice, since the study that windows gives none: vessels, scalp and noise lie beyond."""

FOREGROUND = 0.1
"""Part of the robust maximum above which a voxel is tissue and not air, as for the threshold skull strip."""

MOST_VALUES = 1_000_000
"""Voxels that are looked at, evenly through the image: a median of so many is known to a thousandth."""


def roi_minmax(image: ArrayLike, mask: ArrayLike | None = None) -> Image:
    """The image between 0 and 1 by the minimum and maximum of its region of interest.

    y = (x − min) / (max − min + 1e-7), min and max taken over the mask (everywhere without one). The 1e-7 is the
    published guard: it maps a constant region to 0 and keeps the maximum just below 1.

    Parameters
    ----------
    image
        Any shape.
    mask
        Same shape as `image`, or a shape that broadcasts to it from the left, as (I, J, K) does to (I, J, K, T).

    Raises
    ------
    InputError
        If the mask is empty, or the image holds NaN or infinity.

    Examples
    --------
    >>> roi_minmax([2.0, 4.0, 6.0]).round(4).tolist()
    [0.0, 0.5, 1.0]
    """
    image, inside, values = _measured(image, mask)
    low, high = float(values.min()), float(values.max())
    return _outside_zero((image - np.float32(low)) / np.float32(high - low + 1e-7), inside)


def zscore(image: ArrayLike, mask: ArrayLike | None = None) -> Image:
    """The image with mean 0 and standard deviation 1 over its mask.

    y = (x − mean) / sd, both over the mask (everywhere without one); a constant region becomes 0.

    Raises
    ------
    InputError
        If the mask is empty, or the image holds NaN or infinity.

    Examples
    --------
    >>> zscore([0.0, 1.0, 3.0], mask=[False, True, True]).tolist()
    [0.0, -1.0, 1.0]
    """
    image, inside, values = _measured(image, mask)
    # float64 sums: over ten million voxels float32 loses the third digit of the deviation.
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    scale = 1.0 / deviation if deviation > 0 else 0.0
    return _outside_zero((image - np.float32(mean)) * np.float32(scale), inside)


def window(image: ArrayLike, mask: ArrayLike | None = None) -> Image:
    """The image between 0 and 1 by percentiles of its mask, cut beyond them.

    y = clip((x − low) / (high − low), 0, 1) with `WINDOW_PERCENTILES` of the mask (of everything without one) as low
    and high: a few bright voxels do not set the scale, as they do in `roi_minmax`. Where both ends agree all becomes 0.

    Raises
    ------
    InputError
        If the mask is empty, or the image holds NaN or infinity.

    References
    ----------
    Windowing before a residual 2D U-Net on ATLAS R2.0, there as augmentation and without numbers.

    Examples
    --------
    >>> window(np.arange(101.0))[[0, 1, 50, 99, 100]].round(3).tolist()
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    image, inside, values = _measured(image, mask)
    low, high = (float(end) for end in np.percentile(values, WINDOW_PERCENTILES))
    scale = np.float32(1 / (high - low) if high > low else 0)
    return _outside_zero(np.clip((image - np.float32(low)) * scale, 0, 1), inside)


def zero_one(signal: ArrayLike, mask: ArrayLike | None = None) -> Image:
    """The signal scaled so that its smallest value is 0 and its largest is exactly 1, over all frames at once.

    y = (x − min) / (max − min): one scale for a whole (I, J, K, T) series, so that the depth of the bolus survives;
    a constant signal becomes 0. With a mask (the skull strip) everything outside is 0.

    Raises
    ------
    InputError
        If the mask is empty, or the signal holds NaN or infinity.

    Examples
    --------
    >>> zero_one([10, 20, 15]).tolist()
    [0.0, 1.0, 0.5]
    """
    signal, inside, values = _measured(signal, mask)
    low, high = values.min(), values.max()
    scale = np.float32(high - low)
    return _outside_zero((signal - low) / scale if scale > 0 else np.zeros_like(signal), inside)


def intensities(image: NDArray[np.generic]) -> dict[str, float]:
    """Median and interquartile range of what is brighter than air, in the image's own unit; NaN for an empty image.

    A series counts by its mean over time. The two follow a change of scale or of coil; the spread, a ratio,
    follows a change of contrast alone.

    Parameters
    ----------
    image
        Shape (I, J, K) or (I, J, K, T).

    Returns
    -------
    dict
        `intensity_median`, and `intensity_spread`, the interquartile range divided by the median.

    Examples
    --------
    >>> intensities(np.array([[[0.0, 4.0, 5.0, 6.0]]]))
    {'intensity_median': 5.0, 'intensity_spread': 0.2}
    """
    flat = image.reshape(-1) if image.ndim == 3 else image.reshape(-1, image.shape[-1])
    some = flat[:: max(1, len(flat) // MOST_VALUES)].astype(np.float64)
    values = some if some.ndim == 1 else some.mean(axis=1)
    tissue = values[values > FOREGROUND * np.percentile(values, 99.5)] if values.size else values
    if not tissue.size:
        return {"intensity_median": float("nan"), "intensity_spread": float("nan")}
    low, median, high = np.percentile(tissue, [25, 50, 75])
    return {"intensity_median": float(median), "intensity_spread": float((high - low) / median)}


def _measured(image: ArrayLike, mask: ArrayLike | None) -> tuple[Image, NDArray[np.bool_] | None, Image]:
    """The image as float32, the mask shaped to multiply it, and the values inside the mask."""
    image = np.asarray(image, dtype=np.float32)
    inside = None
    values = image
    if mask is not None:
        inside = np.asarray(mask, dtype=bool)
        if inside.shape != image.shape[: inside.ndim]:
            raise ValueError(f"mask has shape {inside.shape}, the image {image.shape}")
        values = image[inside]
        inside = inside.reshape(inside.shape + (1,) * (image.ndim - inside.ndim))
    if not values.size:
        raise InputError("The mask has no voxel: give a mask that covers the brain, or none.")
    if not np.isfinite(values.min()) or not np.isfinite(values.max()):
        raise InputError(
            "The image holds NaN or infinity: bring it through `reperfuse ingest`, which replaces NaN by 0."
        )
    return image, inside, values


def _outside_zero(image: Image, inside: NDArray[np.bool_] | None) -> Image:
    # np.where, not a product: outside the mask an image may hold NaN.
    return image if inside is None else np.where(inside, image, np.float32(0))
