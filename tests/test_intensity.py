import numpy as np
import pytest

from reperfuse.errors import InputError
from reperfuse.preprocessing.intensity import WINDOW_PERCENTILES, roi_minmax, window, zero_one, zscore

RULES = [roi_minmax, window, zscore, zero_one]
every_rule = pytest.mark.parametrize("rule", RULES)


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(300, 40, (6, 5, 4)).astype(np.float32)


@pytest.fixture
def mask():
    mask = np.zeros((6, 5, 4), bool)
    mask[1:5, 1:4, 1:3] = True
    return mask


@every_rule
def test_gain_and_offset_of_the_scanner_vanish(rule, image, mask):
    np.testing.assert_allclose(rule(3 * image + 70, mask), rule(image, mask), atol=1e-4)


@every_rule
def test_a_constant_image_becomes_zero(rule):
    assert (rule(np.full((3, 3, 3), 417.3)) == 0).all()


@every_rule
def test_outside_the_mask_stands_zero_and_has_no_say(rule, image, mask):
    spoilt = np.where(mask, image, np.nan)
    scaled = rule(spoilt, mask)
    assert (scaled[~mask] == 0).all()
    np.testing.assert_array_equal(scaled, rule(image, mask))


@every_rule
def test_a_mask_covers_every_frame_of_a_series(rule, image, mask):
    series = np.stack([image, image + 5], axis=-1)
    assert (rule(series, mask)[~mask] == 0).all()


@every_rule
def test_numbers_come_out_as_float32(rule):
    assert rule(np.arange(8, dtype=np.int16)).dtype == np.float32


@every_rule
def test_nan_is_refused(rule):
    with pytest.raises(InputError, match="NaN"):
        rule([1.0, np.nan, 3.0])


@every_rule
def test_an_empty_mask_is_refused(rule, image):
    with pytest.raises(InputError, match="no voxel"):
        rule(image, np.zeros(image.shape))


@every_rule
def test_a_mask_on_another_grid_is_an_error(rule, image):
    with pytest.raises(ValueError, match="shape"):
        rule(image, np.ones((5, 6, 4)))


def test_roi_minmax_is_the_published_formula(image, mask):
    low, high = image[mask].min(), image[mask].max()
    np.testing.assert_allclose(roi_minmax(image, mask)[mask], ((image - low) / (high - low + 1e-7))[mask], atol=1e-6)


def test_zscore_has_mean_zero_and_deviation_one_over_the_mask(image, mask):
    inside = zscore(image, mask)[mask]
    assert abs(inside.mean()) < 1e-5 and abs(inside.std() - 1) < 1e-5


def test_zero_one_keeps_the_depth_of_the_bolus():
    signal = np.array([[100.0, 100, 50, 90], [200, 200, 150, 200]])
    scaled = zero_one(signal)
    assert scaled.min() == 0 and scaled.max() == 1
    np.testing.assert_allclose(np.diff(scaled), np.diff(signal) / 150, atol=1e-6)


def test_window_is_cut_at_its_percentiles_and_straight_between_them(image, mask):
    found, values = window(image, mask), image[mask]
    low, high = np.percentile(values, WINDOW_PERCENTILES)
    assert found.min() == 0 and found.max() == 1
    between = mask & (image > low) & (image < high)
    np.testing.assert_allclose(found[between], ((image - low) / (high - low))[between], atol=1e-6)
    assert (found[mask & (image <= low)] == 0).all() and (found[mask & (image >= high)] == 1).all()


def test_a_few_bright_voxels_do_not_set_the_scale_of_the_window():
    tissue = np.random.default_rng(0).normal(100, 10, 5000)
    bright = np.append(tissue, [5000.0] * 3)
    np.testing.assert_allclose(window(bright)[:5000], window(tissue), atol=0.02)
    assert np.abs(roi_minmax(bright)[:5000] - roi_minmax(tissue)).max() > 0.5
