import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.preprocessing.geometry import pad_to_multiple, reorient, resample, resample_time, thick_slices

SPACING = (1.0, 1.2, 0.9)


ACROSS = np.linspace(-9, 9, 181)
PROFILES = {
    "gaussian": "gaussian",
    "box": "box",
    "bell": np.stack([ACROSS, 70 * np.exp(-((ACROSS - 1) ** 2) / 8)], axis=1),
    "lopsided": np.array([[0, 0], [1, 0.2], [2, 1], [3, 0.9], [5, 0.3], [8, 0]]),
    "lobed": np.stack([ACROSS, np.sinc(ACROSS / 4) * np.exp(-(ACROSS**2) / 18)], axis=1),
}
"""Slice profiles: those with a name, and measured ones, of which one is a Gaussian and one has negative side lobes."""


def affine_of(kind):
    turned = nib.eulerangles.euler2mat(0.3, -0.2, 0.15) if kind == "oblique" else np.eye(3)
    flips = {"RAS": (1, 1, 1), "LAS": (-1, 1, 1), "LPS": (-1, -1, 1), "oblique": (-1, 1, 1)}[kind]
    return nib.affines.from_matvec(turned @ np.diag(np.multiply(SPACING, flips)), (-20, 13, 5))


every_affine = pytest.mark.parametrize("affine", [affine_of(k) for k in ("RAS", "LAS", "LPS", "oblique")])
every_axis = pytest.mark.parametrize("axis", ["i", "j", "k"])
every_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)


def blob(affine=None, shape=(40, 36, 44), at=(21.3, 16.2, 24.7), width=3.0):
    """A smooth ball, far from the borders."""
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    far = sum((g - c) ** 2 for g, c in zip(grid, at, strict=True))
    return Volume(np.exp(-far / (2 * width**2)).astype(np.float32), np.eye(4) if affine is None else affine)


def noise(shape=(12, 11, 30), affine=None, seed=0):
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Volume(data, np.eye(4) if affine is None else affine)


def centre_mm(volume):
    return nib.affines.apply_affine(volume.affine, ndimage.center_of_mass(volume.data.astype(float)))


def integral(volume):
    return float(volume.data.sum(dtype=float) * np.prod(volume.spacing_mm))


# reorient


@every_affine
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "SLA"])
def test_reorienting_moves_no_voxel_in_space_and_can_be_undone(affine, codes):
    volume = noise((5, 6, 7), affine)
    turned = reorient(volume, codes)
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    back = reorient(turned, "".join(nib.aff2axcodes(affine)))
    np.testing.assert_array_equal(back.data, volume.data)
    np.testing.assert_allclose(back.affine, affine, atol=1e-9)
    place = np.argwhere(turned.data == volume.data[1, 2, 3])[0]
    np.testing.assert_allclose(
        nib.affines.apply_affine(turned.affine, place), nib.affines.apply_affine(affine, (1, 2, 3))
    )


def test_reorienting_keeps_time():
    series = Volume(np.zeros((3, 4, 5, 2)), affine_of("LAS"), frame_times_s=np.array([0, 1.5]), te_s=0.03, tr_s=1.5)
    turned = reorient(series, "SPL")
    assert turned.data.shape == (5, 4, 3, 2) and turned.te_s == 0.03 and turned.frame_times_s[1] == 1.5


@pytest.mark.parametrize("codes", ["RAX", "RRS", "RA", "RLS"])
def test_an_impossible_orientation_is_refused(codes):
    with pytest.raises(InputError, match="Orientation"):
        reorient(noise(), codes)


# resample


@every_affine
def test_resampling_to_the_same_grid_changes_nothing(affine):
    volume = noise(affine=affine)
    np.testing.assert_allclose(resample(volume, like=volume).data, volume.data, atol=1e-5)
    np.testing.assert_allclose(resample(volume, spacing_mm=volume.spacing_mm).data, volume.data, atol=1e-5)


@every_affine
def test_resampling_leaves_things_where_they_are(affine):
    volume = blob(affine)
    coarse = resample(volume, spacing_mm=2.0)
    np.testing.assert_allclose(coarse.spacing_mm, 2.0)
    np.testing.assert_allclose(centre_mm(coarse), centre_mm(volume), atol=0.05)
    np.testing.assert_allclose(centre_mm(resample(coarse, like=volume)), centre_mm(volume), atol=0.05)
    assert integral(coarse) == pytest.approx(integral(volume), rel=0.01)


@every_affine
@pytest.mark.parametrize("spacing", [0.8, 2.0, (1.7, 3.1, 2.6)])
def test_another_spacing_keeps_the_centre_of_the_field_of_view(affine, spacing):
    def middle(volume):
        return nib.affines.apply_affine(volume.affine, (np.array(volume.data.shape) - 1) / 2)

    volume = noise(affine=affine)
    np.testing.assert_allclose(middle(resample(volume, spacing_mm=spacing)), middle(volume), atol=1e-9)


def test_a_ramp_in_space_is_read_exactly_on_an_oblique_grid():
    source = Volume(np.zeros((20, 20, 20), np.float32), affine_of("RAS"))
    weights = np.array([0.3, -0.7, 1.1])

    def ramp(volume):
        places = np.stack(np.meshgrid(*(np.arange(n) for n in volume.data.shape), indexing="ij"), -1)
        return nib.affines.apply_affine(volume.affine, places) @ weights

    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0.3) * 0.9, (-14, 20, 10))
    target = Volume(np.zeros((8, 8, 8), np.float32), turn)
    found = resample(Volume(ramp(source).astype(np.float32), source.affine), like=target).data
    inside = found != 0
    assert inside.mean() > 0.5
    np.testing.assert_allclose(found[inside], ramp(target)[inside], atol=1e-3)


def test_outside_the_field_of_view_stands_zero():
    small = Volume(np.ones((4, 4, 4), np.float32), np.eye(4))
    large = Volume(np.zeros((8, 8, 8)), nib.affines.from_matvec(np.eye(3), (-2, -2, -2)))
    found = resample(small, like=large).data
    assert found.sum() == 64 and (found[2:6, 2:6, 2:6] == 1).all()


def test_the_mni_grid_at_2_mm_has_its_usual_size():
    assert resample(Volume(np.zeros((197, 233, 189), np.uint8), np.eye(4)), spacing_mm=2).data.shape == (98, 116, 94)


def test_what_a_coarse_grid_cannot_hold_is_removed():
    checkerboard = Volume(np.indices((39, 39, 39)).sum(0) % 2 * 1.0, np.eye(4))
    assert resample(checkerboard, spacing_mm=3.0).data[2:-2, 2:-2, 2:-2].std() < 0.02
    assert resample(checkerboard, spacing_mm=3.0, antialias=False).data.std() > 0.2


@pytest.mark.parametrize("spacing", [2.0, 3.0, (2, 3, 2), 0.7])
def test_a_mask_stays_binary_and_keeps_its_volume(spacing):
    ball = Volume((blob(width=6).data > 0.4).astype(np.uint8), np.eye(4))
    other = resample(ball, spacing_mm=spacing, mask=True)
    assert other.data.dtype == np.uint8 and set(np.unique(other.data)) == {0, 1}
    assert integral(other) == pytest.approx(integral(ball), rel=0.10)


def test_nearest_neighbour_invents_no_label():
    labels = Volume(np.random.default_rng(0).integers(0, 5, (9, 9, 9)).astype(np.int16) * 7, np.eye(4))
    found = resample(labels, spacing_mm=1.7, order=0).data
    assert found.dtype == np.int16 and set(np.unique(found)) <= set(np.unique(labels.data))


def test_a_series_is_resampled_frame_by_frame():
    frames = [blob(), blob(width=5)]
    series = Volume(np.stack([f.data for f in frames], -1), np.eye(4), tr_s=2.0)
    together = resample(series, spacing_mm=2.5)
    for t, frame in enumerate(frames):
        np.testing.assert_allclose(together.data[..., t], resample(frame, spacing_mm=2.5).data, atol=1e-6)


# pad_to_multiple


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 20)] * 3), st.integers(1, 16), st.integers(0, 2))
def test_padding_reaches_the_next_multiple_and_is_undone_by_its_slices(shape, multiple, channels):
    array = np.random.default_rng(0).normal(size=(2,) * channels + shape)
    padded, undo = pad_to_multiple(array, multiple)
    for n, p, kept in zip(shape, padded.shape[channels:], undo[channels:], strict=True):
        assert p % multiple == 0 and 0 <= p - n < multiple
        assert kept.start == (p - n) // 2
    np.testing.assert_array_equal(padded[undo], array)
    assert padded.sum() == pytest.approx(array.sum())


# thick_slices


@every_affine
@every_axis
@every_profile
def test_slices_as_thick_as_the_source_change_nothing(affine, axis, profile):
    volume = noise(affine=affine)
    own = volume.spacing_mm["ijk".index(axis)]
    for keep in (False, True):
        same = thick_slices(volume, own, axis, profile=profile, keep_thick=keep)
        np.testing.assert_array_equal(same.data, volume.data)
        np.testing.assert_allclose(same.affine, affine, atol=1e-9)


@every_affine
@every_axis
@every_profile
def test_thick_slices_lie_where_their_integral_is_centred(affine, axis, profile):
    volume = blob(affine)
    for thickness, spacing in [(3.7, None), (5.0, 6.0), (8.0, 4.0)]:
        thick = thick_slices(volume, thickness, axis, profile=profile, spacing_mm=spacing, keep_thick=True)
        assert thick.spacing_mm["ijk".index(axis)] == pytest.approx(spacing or thickness)
        np.testing.assert_allclose(centre_mm(thick), centre_mm(volume), atol=0.15)
        assert integral(thick) == pytest.approx(integral(volume), rel=0.03)


@every_axis
@every_profile
def test_brought_back_they_stand_on_the_source_grid_in_place_with_the_same_mean(axis, profile):
    volume = blob(affine_of("oblique"))
    back = thick_slices(volume, 6.0, axis, profile=profile)
    assert back.data.shape == volume.data.shape and back.data.dtype == np.float32
    np.testing.assert_array_equal(back.affine, volume.affine)
    np.testing.assert_allclose(centre_mm(back), centre_mm(volume), atol=0.15)
    assert back.data.mean() == pytest.approx(volume.data.mean(), rel=0.03)


@settings(max_examples=25, deadline=None)
@given(st.floats(1, 60), st.floats(0.5, 60), st.sampled_from(list(PROFILES.values())))
def test_a_constant_stays_constant_at_any_thickness_and_spacing(thickness, spacing, profile):
    flat = Volume(np.full((3, 4, 30), 7.0, np.float32), np.eye(4))
    np.testing.assert_allclose(thick_slices(flat, thickness, profile=profile, spacing_mm=spacing).data, 7, rtol=1e-5)


@every_profile
def test_thick_slices_are_linear(profile):
    a, b = noise(seed=1), noise(seed=2)
    mixed = Volume(2 * a.data - 3 * b.data, np.eye(4))
    expected = 2 * thick_slices(a, 4.3, profile=profile).data - 3 * thick_slices(b, 4.3, profile=profile).data
    np.testing.assert_allclose(thick_slices(mixed, 4.3, profile=profile).data, expected, atol=1e-5)


def test_axes_are_separable():
    volume = noise()
    ik = thick_slices(thick_slices(volume, 3, "i"), 5, "k").data
    ki = thick_slices(thick_slices(volume, 5, "k"), 3, "i").data
    np.testing.assert_allclose(ik, ki, atol=1e-6)


@every_axis
def test_other_axes_are_not_blurred(axis):
    spike = np.zeros((21, 21, 21), np.float32)
    spike[10, 10, 10] = 1
    seen = thick_slices(Volume(spike, np.eye(4)), 5, axis).data
    others = tuple(n for n in range(3) if n != "ijk".index(axis))
    assert np.count_nonzero(seen.max(axis="ijk".index(axis))) == 1
    assert np.count_nonzero(seen.max(axis=others)) > 5


def test_the_gaussian_adds_the_blur_that_the_source_lacks():
    volume = Volume(noise().data, np.diag([1, 1, 2.0, 1]))
    sigma = np.sqrt(6.0**2 - 2.0**2) / 2.355 / 2.0
    expected = ndimage.gaussian_filter1d(volume.data, sigma, axis=2, mode="reflect")
    seen = thick_slices(volume, 6.0, spacing_mm=2.0, keep_thick=True)
    assert seen.data.shape[2] == 28 and seen.affine[2, 3] == 2.0  # the stack leaves out the outermost source slices
    np.testing.assert_allclose(seen.data, expected[..., 1:29], atol=1e-3)


@pytest.mark.parametrize("spacing", [2.5, 3.7])
def test_between_source_slices_the_profile_keeps_centre_and_width(spacing):
    volume = Volume(np.eye(60, dtype=np.float32)[None], np.eye(4))  # every source slice is one channel along j
    response = thick_slices(volume, 5.0, spacing_mm=spacing, keep_thick=True)
    places = nib.affines.apply_affine(response.affine, [[0, 0, n] for n in range(response.data.shape[2])])[:, 2]
    for n in range(4, len(places) - 4):
        weights = response.data[0, :, n]
        centre = np.average(np.arange(60), weights=weights)
        variance = np.average((np.arange(60) - centre) ** 2, weights=weights)
        assert centre == pytest.approx(places[n], abs=1e-4)
        assert np.sqrt(variance) == pytest.approx(np.sqrt(24) / 2.355, rel=5e-3)


def test_the_box_is_the_mean_over_whole_slices():
    volume = noise((4, 4, 30))
    seen = thick_slices(volume, 5.0, profile="box", keep_thick=True)
    np.testing.assert_allclose(seen.data, volume.data.reshape(4, 4, 6, 5).mean(-1), atol=1e-6)
    assert seen.affine[2, 3] == pytest.approx(2.0)
    assert seen.data.mean() == pytest.approx(volume.data.mean(), abs=1e-6)


@pytest.mark.parametrize(("thickness", "weights"), [(1.5, [0.25, 1, 0.25]), (3.5, [0.25, 1, 1, 1, 0.25])])
def test_the_box_shares_the_voxels_at_its_edges(thickness, weights):
    volume = noise((4, 4, 30))
    seen = thick_slices(volume, thickness, profile="box", spacing_mm=1.0, keep_thick=True)
    reach = len(weights) // 2
    expected = volume.data[..., 15 - reach : 16 + reach] @ weights / thickness
    np.testing.assert_allclose(seen.data[..., 15 - round(seen.affine[2, 3])], expected, atol=1e-5)


@pytest.mark.parametrize("profile", ["gaussian", "box", PROFILES["bell"]])
def test_what_a_slice_cannot_hold_is_removed_and_not_aliased(profile):
    wave = Volume(np.broadcast_to(np.sin(2 * np.pi * np.arange(90) / 4), (2, 2, 90)).astype(np.float32), np.eye(4))
    assert np.abs(thick_slices(wave, 10, profile=profile).data[..., 20:-20]).max() < 0.14
    assert np.abs(thick_slices(wave, 12, profile=profile).data[..., 24:-24]).max() < 0.002


def test_thicker_slices_keep_less():
    kept = [thick_slices(noise((4, 4, 90)), t).data.std() for t in (1, 2, 3, 5, 8, 10)]
    assert (np.diff(kept) < 0).all()


def test_a_gap_is_left_out():
    volume = noise((2, 2, 61))
    gapped = thick_slices(volume, 1.0, spacing_mm=4.0, keep_thick=True)
    np.testing.assert_array_equal(gapped.data, volume.data[..., ::4])


def test_a_series_thickens_frame_by_frame():
    series = Volume(np.stack([noise().data, noise(seed=3).data], -1), np.eye(4), tr_s=1.5)
    thick = thick_slices(series, 4, "j")
    np.testing.assert_allclose(thick.data[..., 1], thick_slices(noise(seed=3), 4, "j").data, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "of"),
    [
        ("thinner", {"thickness_mm": 0.5}),
        ("Axis", {"thickness_mm": 2, "axis": "z"}),
        ("profile", {"thickness_mm": 2, "profile": "sinc"}),
        ("spacing", {"thickness_mm": 2, "spacing_mm": 0}),
        ("thinner", {"thickness_mm": float("nan")}),
    ],
)
def test_impossible_slices_are_refused(words, of):
    with pytest.raises(InputError, match=words):
        thick_slices(noise(), **of)


def test_a_thickness_read_from_a_float32_header_is_taken_as_meant():
    volume = noise(affine=np.diag([1, 1, np.float32(1.1), 1]).astype(float))
    np.testing.assert_array_equal(thick_slices(volume, 1.1).data, volume.data)


# resample_time


def test_curves_read_at_their_own_times_are_themselves():
    data = noise((3, 3, 3)).data
    np.testing.assert_array_equal(resample_time(data, [0, 1.5, 4], [0, 1.5, 4]), data)


def test_a_line_in_time_is_read_exactly_and_held_beyond_its_ends():
    times = np.array([0, 1.4, 3.1, 4.4, 6.0])
    found = resample_time(2 * times + 1, times, [-1, 0.7, 2.0, 5.9, 9])
    np.testing.assert_allclose(found, [1, 2.4, 5, 12.8, 13])


def test_resampling_in_time_is_linear():
    times, new = np.array([0, 1, 2.5, 4]), np.linspace(0, 4, 9)
    a, b = np.random.default_rng(0).normal(size=(2, 5, 4))
    np.testing.assert_allclose(
        resample_time(2 * a + b, times, new), 2 * resample_time(a, times, new) + resample_time(b, times, new)
    )


def test_times_that_do_not_increase_are_refused():
    with pytest.raises(InputError, match="increase"):
        resample_time([1.0, 2, 3], [0, 2, 2], [1])
