import warnings

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.dsc import dsc_phantom
from reperfuse.preprocessing.geometry import reorient
from reperfuse.preprocessing.registration import Rigid, displacement_mm, rigid_align

SHAPE = (56, 56, 10)


@pytest.fixture(scope="module")
def images():
    """A T2*-weighted head, and an ADC-like map of it [10⁻⁶ mm²/s]: bright fluid, flat tissue, a dark lesion."""
    phantom = dsc_phantom(SHAPE, n_frames=2, snr=np.inf, seed=5)
    tissue = phantom.truth["tissue"]
    adc = np.select([tissue == 3, phantom.truth["core"] > 0, phantom.truth["brain"] > 0], [2600.0, 450.0, 800.0], 0.0)
    rng = np.random.default_rng(0)
    adc += (adc > 0) * rng.normal(scale=40, size=SHAPE)
    weighted = phantom.signal.data[..., 0] + rng.normal(scale=15, size=SHAPE).astype(np.float32)
    return weighted, adc.astype(np.float32), phantom.signal.affine


def misplaced(affine, translation=(4.0, -3.0, 3.0), degrees=(2.0, -2.0, 5.0)):
    """A header that puts the image elsewhere, and the matrix that does."""
    off = nib.affines.from_matvec(Rotation.from_rotvec(np.deg2rad(degrees)).as_matrix(), translation)
    return off @ affine, off


def residual_mm(found: Rigid, truth):
    return displacement_mm(np.linalg.inv(truth) @ found.matrix, found.centre_mm, radius_mm=70.0)


def test_another_contrast_is_brought_back_from_a_wrong_place(images):
    weighted, adc, affine = images
    wrong, off = misplaced(affine)
    aligned, found = rigid_align(adc, wrong, weighted, affine)
    assert residual_mm(found, off) < 1.0
    by_header, _ = rigid_align(adc, wrong, weighted, affine, search=False)
    known = np.isfinite(aligned) & np.isfinite(by_header)
    error, untouched = (np.abs(x - adc)[known].mean() for x in (aligned, by_header))
    assert error < 0.4 * untouched


def test_an_image_that_lies_where_its_header_says_stays(images):
    weighted, adc, affine = images
    _, found = rigid_align(adc, affine, weighted, affine)
    assert found.displacement_mm < 0.7


def test_headers_alone_move_nothing_on_the_same_grid(images):
    weighted, adc, affine = images
    aligned, found = rigid_align(adc, affine, weighted, affine, search=False)
    np.testing.assert_allclose(aligned, adc, rtol=1e-5, atol=1e-3)
    assert not found.searched and found.displacement_mm == 0


@pytest.mark.parametrize("codes", ["LPS", "ARI"])
def test_the_storage_of_either_image_does_not_matter(images, codes):
    weighted, adc, affine = images
    wrong, _ = misplaced(affine)
    straight, found = rigid_align(adc, wrong, weighted, affine)
    turned, grid = reorient(Volume(adc, wrong), codes), reorient(Volume(weighted, affine), codes)
    other, again = rigid_align(turned.data, turned.affine, grid.data, grid.affine)
    np.testing.assert_allclose(again.matrix, found.matrix, atol=0.01)
    back = reorient(Volume(other, grid.affine), "RAS").data
    np.testing.assert_allclose(back, straight, atol=2.0)


def test_labels_stay_labels(images):
    weighted, _, affine = images
    mask = (weighted > 300).astype(np.uint8)
    wrong, _ = misplaced(affine)
    aligned, _ = rigid_align(mask, wrong, weighted, affine, search=False, nearest=True)
    assert aligned.dtype == np.uint8 and set(np.unique(aligned)) == {0, 1}


def test_what_was_not_measured_is_nan_and_does_not_spread(images):
    weighted, adc, affine = images
    holed = adc.copy()
    holed[20:30, 20:30, 5] = np.nan
    holed[:, :, -1] = np.inf
    aligned, _ = rigid_align(holed, affine, weighted, affine, search=False)
    np.testing.assert_array_equal(np.isnan(aligned), ~np.isfinite(holed))
    finite = np.isfinite(aligned)
    np.testing.assert_allclose(aligned[finite], adc[finite], rtol=1e-4, atol=0.1)


def test_beyond_the_field_of_view_stands_nan(images):
    weighted, adc, affine = images
    aligned, _ = rigid_align(adc[:, :, 3:], affine @ nib.affines.from_matvec(np.eye(3), (0, 0, 3)), weighted, affine)
    assert np.isnan(aligned[:, :, :2]).all() and np.isfinite(aligned[:, :, 4:-1]).mean() > 0.95


def test_images_of_two_places_are_refused(images):
    weighted, adc, affine = images
    far = nib.affines.from_matvec(np.eye(3), (0, 0, 500)) @ affine
    with pytest.raises(InputError, match="overlap"):
        rigid_align(adc, far, weighted, affine)


@pytest.mark.parametrize("empty", [np.zeros(SHAPE), np.full(SHAPE, np.nan)])
def test_an_empty_image_is_refused(images, empty):
    weighted, _, affine = images
    with pytest.raises(InputError, match=r"zeros|positive"):
        rigid_align(empty, affine, weighted, affine)
    with pytest.raises(InputError, match=r"zeros|positive"):
        rigid_align(weighted, affine, empty, affine)


def test_a_turn_about_the_centre_displaces_a_ball_as_jenkinson_says():
    turn = Rotation.from_rotvec([0, 0, 0.1]).as_matrix()
    centre = np.array([10.0, -20, 30])
    matrix = nib.affines.from_matvec(turn, centre - turn @ centre)
    # Mean square distance from the axis is 2r²/5, each point moves 2·sin(0.05) of it.
    assert displacement_mm(matrix, centre) == pytest.approx(2 * np.sin(0.05) * 80 * np.sqrt(2 / 5))


@pytest.mark.parametrize("scale", [1e30, 3e38, 1e-30])
def test_the_size_of_the_numbers_does_not_matter_and_nothing_reaches_the_terminal(images, capfd, scale):
    weighted, adc, affine = images
    wrong, _ = misplaced(affine)
    _, straight = rigid_align(adc, wrong, weighted, affine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found = rigid_align(adc / adc.max() * scale, wrong, weighted / weighted.max() * scale, affine)
    assert capfd.readouterr() == ("", "")
    np.testing.assert_allclose(found.matrix, straight.matrix, atol=0.2)
    assert found.searched
