import numpy as np
import pytest
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.preprocessing.brain import threshold_mask


def head(shape=(24, 24, 10)):
    """A ball of signal 100 with dark ventricles through every slice, in noise of 2."""
    i, j, k = np.ogrid[tuple(slice(n) for n in shape)]
    ball = (i - 11.5) ** 2 + (j - 11.5) ** 2 + 0 * k < 81
    ventricle = (i - 11.5) ** 2 + (j - 11.5) ** 2 + 0 * k < 6
    noise = np.random.default_rng(0).uniform(0, 4, shape)
    return np.where(ball & ~ventricle, 100.0, 0) + noise, ball


def test_the_mask_is_the_whole_brain_with_ventricles_that_leave_the_slab():
    image, ball = head()
    assert (threshold_mask(image) == ball).all()


def test_the_mask_is_one_piece():
    image, ball = head()
    image[0, 0, :] = 100
    image[23, 20:, 3:6] = 100
    mask = threshold_mask(image)
    assert ndimage.label(mask)[1] == 1 and (mask == ball).all()


def test_the_mask_does_not_depend_on_the_scanner_units():
    image, _ = head()
    assert (threshold_mask(image) == threshold_mask(1234.5 * image)).all()


def test_a_series_is_judged_by_its_temporal_mean():
    image, _ = head()
    series = image[..., None] * np.array([1.5, 0.5, 1.0])
    assert (threshold_mask(series) == threshold_mask(image)).all()


def test_a_bright_vessel_does_not_set_the_scale():
    image, ball = head()
    image[12, 5, 5] = 1e5
    assert (threshold_mask(image) == ball).all()


def test_a_higher_fraction_never_adds_a_voxel():
    image = ndimage.gaussian_filter(head()[0], 3)
    low, high = threshold_mask(image, 0.1), threshold_mask(image, 0.6)
    assert not (high & ~low).any() and high.sum() < low.sum()


def test_nan_counts_as_background():
    image, ball = head()
    image[0, 0, 0] = np.nan
    assert (threshold_mask(image) == ball).all()


def test_an_image_without_signal_is_refused():
    with pytest.raises(InputError, match="No voxel"):
        threshold_mask(np.zeros((4, 4, 4)))
