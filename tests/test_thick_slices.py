"""Laws of the acquisition model: what a stack of thick slices keeps of an object, and where."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_geometry import PROFILES, affine_of, every_affine, every_axis, every_profile, noise

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.preprocessing.geometry import thick_slices
from reperfuse.preprocessing.slices import slice_centres, slice_shape

orientations = st.sampled_from(["RAS", "LAS", "LPS", "oblique"])
axes = st.sampled_from(["i", "j", "k"])
profiles = st.sampled_from(list(PROFILES))


def lines(values, axis="k", affine=None):
    """Curves along one axis, shape (n,) or (channels, n), as a volume with the channels along another axis."""
    values = np.atleast_2d(values)[:, None, :]
    turned = {"k": (0, 1, 2), "j": (1, 2, 0), "i": (2, 0, 1)}[axis]
    return Volume(values.transpose(turned), np.eye(4) if affine is None else affine)


def along(volume, axis="k"):
    """The curves of `lines`, shape (channels, n)."""
    back = {"k": (0, 1, 2), "j": (2, 0, 1), "i": (1, 2, 0)}[axis]
    return volume.data.transpose(back)[:, 0, :]


def gain(profile, thickness, f, source=1.0):
    """What a stack keeps of a wave of f cycles per mm: the Fourier transform of what slices of `thickness` add."""
    if profile == "gaussian":
        return np.exp(-2 * np.pi**2 * (thickness**2 - source**2) / 2.355**2 * f**2)
    if profile == "box":  # the source's voxels are boxes themselves
        return np.sinc(f * thickness) / np.sinc(f * source)
    x, weight = PROFILES[profile].T
    fine = np.linspace(x[0], x[-1], 20_001)
    p = np.interp(fine, x, weight)
    p /= np.trapezoid(p, fine)
    centre = np.trapezoid(p * fine, fine)
    high = fine[p >= p.max() / 2]
    width = np.sqrt(thickness**2 - source**2) / (high[-1] - high[0])
    return np.trapezoid(p * np.exp(2j * np.pi * f * width * (fine - centre)), fine)


def kept(profile, thickness, period, **of):
    """The complex amplitude of a wave in each slice of a stack, at the place where the affine puts the slice."""
    wave = 2 * np.pi * np.arange(240) / period
    stack = thick_slices(lines([np.cos(wave), np.sin(wave)]), thickness, profile=PROFILES[profile], **of)
    z = stack.affine[2, 3] + stack.affine[2, 2] * np.arange(stack.data.shape[2])
    real, imaginary = along(stack)
    inside = (z > 40) & (z < 200)
    return ((real + 1j * imaginary) * np.exp(-2j * np.pi * z / period))[inside]


# what is kept


@settings(max_examples=25, deadline=None)
@given(orientations, axes, profiles, st.floats(0.3, 3))
def test_any_profile_of_the_source_s_own_thickness_changes_no_bit(kind, axis, profile, zoom):
    affine = affine_of(kind) @ np.diag([zoom, zoom, zoom, 1])
    volume = noise((5, 6, 7), affine)
    same = thick_slices(volume, volume.spacing_mm["ijk".index(axis)], axis, profile=PROFILES[profile], keep_thick=True)
    np.testing.assert_array_equal(same.data, volume.data)
    np.testing.assert_allclose(same.affine, affine, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(orientations, axes, profiles, st.floats(2.5, 8))
def test_a_contiguous_stack_keeps_the_integral(kind, axis, profile, thickness):
    # Of one voxel's worth the stack keeps 1 up to a ripple, by where the voxel lies between the slices, of twice the
    # profile's Fourier transform at one cycle per slice; nothing for a box, which has its zeros there.
    affine = affine_of(kind)
    spacing = np.linalg.norm(affine[:3, "ijk".index(axis)])
    volume = lines(np.eye(160)[70:90], axis, affine)
    stack = thick_slices(volume, thickness * spacing, axis, profile=PROFILES[profile], keep_thick=True)
    integral = along(stack, axis).sum(1) * thickness
    harmonics = range(1, 1 + int(4 * thickness))
    ripple = 0 if profile == "box" else 2 * sum(abs(gain(profile, thickness, k / thickness)) for k in harmonics)
    assert np.abs(integral - 1).max() <= 1.15 * ripple + (1e-6 if profile == "box" else 0.02)
    assert integral.mean() == pytest.approx(1, abs=0.02)


@every_profile
@pytest.mark.parametrize("period", [12, 16.3, 25])
def test_a_coarse_wave_survives_with_the_gain_of_the_profile(profile, period):
    name = next(n for n, p in PROFILES.items() if p is profile)
    for thickness, of in [(5, {}), (8, {"spacing_mm": 3.0}), (6, {"offset_mm": 1.7})]:
        amplitude = kept(name, thickness, period, keep_thick=True, **of)
        steps = name == "box" and "offset_mm" in of  # a box that ends within a voxel sees that the source has steps
        atol = 0.002 if name == "gaussian" else 0.02 if steps else 0.01
        np.testing.assert_allclose(amplitude, gain(name, thickness, 1 / period), atol=atol)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["gaussian", "box", "bell"]), st.sampled_from([5, 8, 10]), st.floats(0.25, 1))
def test_a_wave_no_longer_than_a_slice_is_removed_where_leaving_slices_out_would_alias_it(profile, thickness, part):
    period = max(part * thickness, 2.05)
    most = {"gaussian": 0.04, "bell": 0.04, "box": 0.25}[profile]  # the side lobe of a sinc is 0.217
    assert np.abs(kept(profile, thickness, period, keep_thick=True)).max() < most
    every_nth = kept("gaussian", 1, period, spacing_mm=thickness, offset_mm=0.5, keep_thick=True)
    np.testing.assert_allclose(np.abs(every_nth), 1, atol=1e-6)


@every_profile
def test_the_response_to_a_point_is_as_wide_at_half_its_height_as_the_slice_is_thick(profile):
    point = np.zeros(400)
    point[200] = 1
    seen = along(thick_slices(lines(point), 40.0, profile=profile, spacing_mm=1.0, keep_thick=True))[0]
    assert np.count_nonzero(seen >= seen.max() / 2) == pytest.approx(40, abs=1.5)


@every_axis
@every_affine
@every_profile
def test_what_varies_in_plane_stays_as_it_is(axis, affine, profile):
    number = "ijk".index(axis)
    plane = np.expand_dims(np.random.default_rng(1).normal(size=(6, 7)), number)
    line = np.random.default_rng(2).normal(size=30).reshape([30 if a == number else 1 for a in range(3)])
    stack = thick_slices(Volume(plane * line, affine), 3.3, axis, profile=profile, keep_thick=True)
    alone = thick_slices(Volume(line, affine), 3.3, axis, profile=profile, keep_thick=True)
    np.testing.assert_allclose(stack.data, plane * alone.data, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.permutations(["i", "j", "k"]), profiles, profiles, orientations, st.booleans())
def test_slicing_along_two_axes_commutes(order, one, other, kind, keep):
    first, second = order[:2]
    volume = noise((14, 13, 15), affine_of(kind))
    a = {"axis": first, "thickness_mm": 3.1, "profile": PROFILES[one], "offset_mm": 0.4, "keep_thick": keep}
    b = {"axis": second, "thickness_mm": 4.0, "profile": PROFILES[other], "spacing_mm": 5.0, "keep_thick": keep}
    ab, ba = thick_slices(thick_slices(volume, **a), **b), thick_slices(thick_slices(volume, **b), **a)
    np.testing.assert_allclose(ab.data, ba.data, atol=1e-5)
    np.testing.assert_allclose(ab.affine, ba.affine, atol=1e-9)


# where it is


@settings(max_examples=60, deadline=None)
@given(
    orientations,
    axes,
    profiles,
    st.floats(1, 5),
    st.floats(0.6, 8),
    st.floats(-4, 4),
    st.tuples(*[st.floats(-1, 1)] * 3),
)
def test_every_slice_has_the_value_of_a_ramp_in_the_world_at_the_centre_that_the_affine_gives(
    kind, axis, profile, thickness, spacing, offset, slope
):
    affine, number = affine_of(kind), "ijk".index(axis)
    shape = [70 if a == number else 3 for a in range(3)]

    def ramp(volume):
        places = np.stack(np.meshgrid(*map(np.arange, volume.data.shape), indexing="ij"), -1)
        return nib.affines.apply_affine(volume.affine, places) @ np.array(slope)

    source = Volume(np.zeros(shape), affine)
    source = replace(source, data=ramp(source))
    own = source.spacing_mm[number]
    of = {"profile": PROFILES[profile], "spacing_mm": spacing * own, "offset_mm": offset * own}
    stack = thick_slices(source, thickness * own, axis, keep_thick=True, **of)
    assert stack.spacing_mm[number] == pytest.approx(spacing * own, rel=1e-3)
    step = abs(np.array(slope) @ affine[:3, number])  # of the ramp, from voxel to voxel
    # A box takes the source as constant within each voxel: as steps, which are at most 1/8 voxel·mm beside the ramp.
    allowed = 1e-5 + (step / (8 * thickness) if profile == "box" else 0)
    centres = slice_centres(70, own, thickness * own, spacing * own, offset * own)
    away = 4 * thickness + 2  # the profiles' tails
    inside = np.flatnonzero((centres > away) & (centres < 69 - away))
    assert inside.size or spacing > 5
    np.testing.assert_allclose(stack.data.take(inside, number), ramp(stack).take(inside, number), atol=allowed)
    if inside.size > 1:
        back = thick_slices(source, thickness * own, axis, **of)
        between = np.arange(int(np.ceil(centres[inside[0]])), int(centres[inside[-1]]) + 1)
        np.testing.assert_allclose(back.data.take(between, number), source.data.take(between, number), atol=allowed)


@every_axis
@every_affine
@every_profile
def test_the_response_to_a_point_is_centred_where_the_point_is(axis, affine, profile):
    number = "ijk".index(axis)
    own = float(np.linalg.norm(affine[:3, number]))
    at = [40 if a == number else 1 for a in range(3)]
    point = np.zeros([81 if a == number else 3 for a in range(3)])
    point[tuple(at)] = 1
    for offset in (0.0, 0.3, -1.8):
        stack = thick_slices(
            Volume(point, affine), 4 * own, axis, profile=profile, spacing_mm=own, offset_mm=offset, keep_thick=True
        )
        seen = nib.affines.apply_affine(stack.affine, ndimage.center_of_mass(stack.data))
        np.testing.assert_allclose(seen, nib.affines.apply_affine(affine, at), atol=0.03)


@every_axis
@every_profile
@pytest.mark.parametrize("voxels", [3, -2])
def test_shifting_the_stack_by_whole_voxels_is_shifting_the_head_the_other_way(axis, profile, voxels):
    number = "ijk".index(axis)
    volume = noise([60 if a == number else 4 for a in range(3)], affine_of("oblique"))
    own = volume.spacing_mm[number]
    moved = thick_slices(volume, 3 * own, axis, profile=profile, offset_mm=voxels * own, keep_thick=True)
    rolled = replace(volume, data=np.roll(volume.data, -voxels, axis=number))
    still = thick_slices(rolled, 3 * own, axis, profile=profile, keep_thick=True)
    inside = range(5, 15)
    np.testing.assert_allclose(moved.data.take(inside, number), still.data.take(inside, number), atol=1e-6)
    shift = moved.affine[:3, 3] - still.affine[:3, 3]
    np.testing.assert_allclose(shift, voxels * volume.affine[:3, number], atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(orientations, axes, profiles, st.floats(1, 6), st.floats(0.7, 8), st.floats(-3, 3), st.booleans())
def test_a_flipped_array_gives_the_same_stack_in_the_world(kind, axis, profile, thickness, spacing, offset, keep):
    number = "ijk".index(axis)
    volume = noise((12, 14, 16), affine_of(kind))

    def flipped(one):
        turn = np.eye(4)
        turn[number, number], turn[number, 3] = -1, one.data.shape[number] - 1
        return replace(one, data=np.flip(one.data, number), affine=one.affine @ turn)

    weights = PROFILES[profile]  # its positions grow with the axis, as offsets do
    mirrored = weights if isinstance(weights, str) else weights[::-1] * (-1, 1)
    own = volume.spacing_mm[number]
    of = {"thickness_mm": thickness * own, "axis": axis, "spacing_mm": spacing * own, "keep_thick": keep}
    plain = thick_slices(volume, profile=weights, offset_mm=offset, **of)
    other = flipped(thick_slices(flipped(volume), profile=mirrored, offset_mm=-offset, **of))
    np.testing.assert_allclose(other.affine, plain.affine, atol=1e-9)
    np.testing.assert_allclose(other.data, plain.data, atol=1e-5)


@every_axis
def test_an_object_in_the_gap_between_slices_leaves_no_trace(axis):
    number = "ijk".index(axis)
    stack = thick_slices(noise((40, 40, 40)), 4, axis, profile="box", spacing_mm=8.0, keep_thick=True)
    centres = slice_centres(40, 1.0, 4.0, 8.0)
    np.testing.assert_allclose(stack.affine[number, 3], centres[0])
    seen = np.abs(np.arange(40)[:, None] - centres).min(1) < 2
    assert 0 < seen.sum() < 25
    for voxel in range(3, 37):
        slab = np.zeros((40, 40, 40))
        slab[(slice(None),) * number + (voxel,)] = 1
        found = thick_slices(Volume(slab, np.eye(4)), 4, axis, profile="box", spacing_mm=8.0, keep_thick=True)
        assert found.data.any() == seen[voxel]


# measured profiles


def test_a_measured_gaussian_is_the_gaussian():
    volume = noise((3, 3, 80))
    for thickness, spacing in [(2, 2), (5, 5), (5, 3.7), (8, 10)]:
        of = {"spacing_mm": spacing, "keep_thick": True}
        measured, named = (
            thick_slices(volume, thickness, profile=PROFILES[p], **of).data for p in ("bell", "gaussian")
        )
        np.testing.assert_allclose(measured, named, atol=0.03 if thickness == 2 else 0.005)


def test_a_measured_rectangle_is_the_box():
    edge = np.array([[-2.0001, 0], [-2, 7], [2, 7], [2.0001, 0]])
    slope = np.cumsum(np.cumsum(noise((1, 1, 120)).data, axis=2), axis=2)
    volume = Volume(slope / slope.std(), np.eye(4))
    measured, box = (thick_slices(volume, 9, profile=p, keep_thick=True).data for p in (edge, "box"))
    np.testing.assert_allclose(measured, box, atol=0.01)


@settings(max_examples=25, deadline=None)
@given(st.floats(-50, 50), st.floats(0.1, 20), st.floats(0.01, 100), st.sampled_from(["bell", "lopsided", "lobed"]))
def test_only_the_shape_of_a_measured_profile_counts(shift, stretch, height, name):
    volume, profile = noise((2, 2, 40)), PROFILES[name]
    other = profile * (stretch, height) + (shift, 0)
    same = thick_slices(volume, 5, profile=other).data
    np.testing.assert_allclose(same, thick_slices(volume, 5, profile=profile).data, atol=1e-5)


def test_the_shape_is_a_slice_one_wide_of_weight_one_about_its_centre_of_mass():
    for name in ("bell", "lopsided", "lobed"):
        x, weight = slice_shape(PROFILES[name]).T
        fine = np.linspace(x[0], x[-1], 50_001)
        p = np.interp(fine, x, weight)
        high = fine[p >= p.max() / 2]
        assert np.trapezoid(p, fine) == pytest.approx(1, abs=1e-6)
        assert np.trapezoid(p * fine, fine) == pytest.approx(0, abs=1e-6)
        assert high[-1] - high[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("thickness", [3.0, 5.0, 9.5])
@pytest.mark.parametrize("name", ["bell", "lopsided"])
def test_a_measured_profile_adds_the_variance_that_the_source_lacks(name, thickness):
    x, weight = slice_shape(PROFILES[name]).T
    fine = np.linspace(x[0], x[-1], 50_001)
    own = np.trapezoid(np.interp(fine, x, weight) * fine**2, fine)
    weights = along(
        thick_slices(lines(np.eye(120)), thickness, profile=PROFILES[name], spacing_mm=1.0, keep_thick=True)
    )
    for n in range(50, 60):
        row, places = weights[:, n], np.arange(120)
        variance = row @ places**2 - (row @ places) ** 2
        assert np.sqrt(variance) == pytest.approx(np.sqrt((thickness**2 - 1) * own), rel=0.01)


@pytest.mark.parametrize(
    ("words", "profile"),
    [
        ("at least 3", [[0, 0], [1, 1]]),
        ("at least 3", [0, 1, 0]),
        ("at least 3", [[0, 0], [1, np.nan], [2, 0]]),
        ("increase", [[0, 0], [2, 1], [1, 0]]),
        ("increase", [[0, 0], [1, 1], [1, 1], [2, 0]]),
        ("more than 0", [[0, 0], [1, -1], [2, 0]]),
        ("more than 0", [[0, 0], [1, 0], [2, 0]]),
        ("half of its maximum", [[0, 0.6], [1, 1], [2, 0]]),
        ("half of its maximum", [[0, 0], [1, 1], [2, 0.7]]),
        ("half of its maximum", [[0, 1], [1, 0.5], [2, 0]]),
    ],
)
def test_a_profile_of_no_slice_is_refused(words, profile):
    with pytest.raises(InputError, match=words):
        thick_slices(noise(), 3.0, profile=profile)


@pytest.mark.parametrize("offset", [40.0, -40.0, float("nan"), float("inf")])
def test_a_stack_beside_the_image_is_refused(offset):
    with pytest.raises(InputError, match="out of the image"):
        thick_slices(noise(), 3.0, offset_mm=offset)
