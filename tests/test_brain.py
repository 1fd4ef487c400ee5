import numpy as np
import pytest
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.phantoms.dsc import drawn_phantom, dsc_phantom
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


@pytest.fixture(scope="module")
def patient():
    """A series without noise, the size of its tissue's signal, and the brain with its vessels."""
    phantom = dsc_phantom((40, 40, 10), n_frames=12, snr=np.inf, seed=4)
    brain = np.isin(phantom.truth["tissue"], (1, 2, 3, 4, 5))
    return phantom.signal.data, float(phantom.truth["s0"][phantom.truth["brain"] > 0].mean()), brain


def measured(patient, snr, pedestal=0.0):
    clean, level, _ = patient
    real, imaginary = np.random.default_rng(7).normal(scale=level / snr, size=(2, *clean.shape))
    return np.hypot(clean + real, imaginary) + pedestal


def dice(one, two):
    return 2 * (one & two).sum() / (one.sum() + two.sum())


@pytest.mark.parametrize("value", [0.0, np.nan, -5.0])
@pytest.mark.parametrize("lost", [[4], [0], [9], [3, 4, 6], [0, 1, 5]])
@pytest.mark.parametrize("snr", [10, 50])
def test_lost_slices_are_in_no_mask_and_take_no_other_voxel_from_it(patient, value, lost, snr):
    image = measured(patient, snr)
    whole = threshold_mask(image)
    image[:, :, lost] = value
    mask = threshold_mask(image)
    kept = np.setdiff1d(np.arange(10), lost)
    assert not mask[:, :, lost].any()
    # Holes of the volume may open into a lost slice, and the robust maximum is of the remaining slices.
    assert dice(mask[:, :, kept], whole[:, :, kept]) > 0.995


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1), (1, 2, 0)])
def test_lost_slices_are_bridged_along_any_axis_of_storage(patient, order):
    image = measured(patient, 50).mean(axis=3)
    image[:, :, 4] = np.nan
    mask = threshold_mask(image.transpose(order)).transpose(np.argsort(order))
    assert dice(mask, threshold_mask(image)) > 0.99


def test_a_slice_lost_in_one_frame_is_judged_by_the_others(patient):
    image = measured(patient, 50)
    holed = image.copy()
    holed[:, :, 4, 5] = np.nan
    assert dice(threshold_mask(holed), threshold_mask(image)) > 0.999


@pytest.mark.parametrize("pedestal", [0.0, 1000.0])
@pytest.mark.parametrize("snr", [8, 10, 12, 15, 20, 50])
def test_air_is_never_called_brain_however_bright_it_is(patient, snr, pedestal):
    image, brain = measured(patient, snr, pedestal), patient[2]
    assert dice(threshold_mask(image), brain) > 0.999
    assert dice(threshold_mask(image[..., 0]), brain) > 0.95


def test_dark_air_leaves_the_rule_of_ten_per_cent_as_published():
    for phantom in (dsc_phantom((40, 40, 8), 12, snr=30, seed=2), drawn_phantom(3, (32, 32, 8), snr=30)):
        mean = phantom.signal.data.mean(axis=3)
        labels, _ = ndimage.label(mean > 0.1 * np.percentile(mean[mean > 0], 99.5))
        brain = ndimage.binary_fill_holes(labels == np.bincount(labels[labels > 0]).argmax())
        for k in range(8):
            brain[..., k] = ndimage.binary_fill_holes(brain[..., k])
        np.testing.assert_array_equal(threshold_mask(phantom.signal.data), brain)


@pytest.mark.parametrize("background", [0.0, np.nan])
def test_a_brain_without_its_skull_is_kept_whole_even_if_it_is_a_box(background):
    image = np.full((20, 20, 12), background)
    image[3:17, 2:18, 1:11] = np.random.default_rng(0).uniform(60, 140, (14, 16, 10))
    np.testing.assert_array_equal(threshold_mask(image), np.isfinite(image) & (image > 0))


def test_an_image_of_noise_alone_is_not_reduced_to_a_few_grains():
    noise = np.random.default_rng(0).rayleigh(10, (40, 40, 8))
    assert threshold_mask(noise).mean() > 0.9


def test_a_field_of_one_value_is_all_brain():
    assert threshold_mask(np.full((8, 8, 4), 7.0)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30, 3e38])
def test_no_size_of_the_numbers_changes_the_mask_or_warns(patient, scale):
    image = measured(patient, 50)
    huge = (image / image.max() * scale).astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert dice(threshold_mask(huge), threshold_mask(image)) > 0.999
