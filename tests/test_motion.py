import warnings

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.dsc import dsc_phantom
from reperfuse.preprocessing.geometry import reorient
from reperfuse.preprocessing.motion import DISAGREEMENT_MM, estimate_motion, realigned

SHAPE, FRAMES, TR = (48, 48, 10), 11, 3.0
# The bolus is at its height in frames 3 to 5.
REST = [0.0] * 6


def rigid(parameters, centre):
    """Where the head goes: mm and degrees (rotation vector) about the centre."""
    turn = Rotation.from_rotvec(np.deg2rad(parameters[3:])).as_matrix()
    return nib.affines.from_matvec(turn, centre + np.array(parameters[:3]) - turn @ centre)


def seen(frame, affine, matrix):
    back = np.linalg.inv(affine) @ np.linalg.inv(matrix) @ affine
    return np.maximum(ndimage.affine_transform(frame, back[:3, :3], back[:3, 3], order=3, mode="nearest"), 0)


def noisy(clean, sigma, seed=0):
    rng = np.random.default_rng(seed)
    parts = rng.normal(scale=sigma, size=(2, *clean.shape))
    return np.hypot(clean + parts[0], parts[1]).astype(np.float32)


@pytest.fixture(scope="module")
def head():
    phantom = dsc_phantom(SHAPE, n_frames=FRAMES, tr_s=TR, snr=np.inf, seed=3)
    return phantom.signal, phantom.truth["brain"] > 0


def series(head, moves, snr=30):
    """Noisy frames, and where the head truly is in each, as matrices."""
    signal, brain = head
    centre = nib.affines.apply_affine(signal.affine, (np.array(SHAPE) - 1) / 2)
    matrices = np.stack([rigid(moves.get(t, REST), centre) for t in range(FRAMES)])
    clean = np.stack([seen(signal.data[..., t], signal.affine, matrices[t]) for t in range(FRAMES)], axis=-1)
    return noisy(clean, signal.data[brain, 0].mean() / snr), matrices


def errors_mm(motion, matrices, head):
    """Root mean square distance between where the brain was found and where it is, per frame."""
    signal, brain = head
    truth = matrices @ np.linalg.inv(matrices[motion.reference])
    points = np.c_[nib.affines.apply_affine(signal.affine, np.argwhere(brain)), np.ones(brain.sum())].T
    return np.sqrt((((motion.matrices - truth) @ points)[:, :3] ** 2).sum(1).mean(1))


JUMPS = {
    2: [-6, 5, 3, -4, 3, -8],
    4: [4, -8, 2, 3, -3, 6],  # at the height of the bolus, and for good
    5: [4, -5, 4, 4, -3, 6],
    6: [4, -5, 4, 4, -3, 6],
    8: [8, 2, -4, -8, 0, 2],
}


@pytest.fixture(scope="module")
def moving(head):
    frames, matrices = series(head, JUMPS)
    return frames, matrices, estimate_motion(frames, head[0].affine)


def test_a_head_at_rest_is_left_alone_bit_for_bit(head):
    frames, _ = series(head, {})
    motion = estimate_motion(frames, head[0].affine)
    assert not motion.applied and not motion.lost.any()
    assert motion.displacement_mm.max() < 0.3
    assert realigned(frames, head[0].affine, motion) is frames


def test_jumps_of_eight_millimetres_and_degrees_are_found_to_half_a_millimetre_bolus_included(moving, head):
    _, matrices, motion = moving
    errors = errors_mm(motion, matrices, head)
    assert motion.applied and not motion.lost.any()
    assert errors.mean() < 0.25 and errors.max() < 0.5
    np.testing.assert_array_equal(np.flatnonzero(motion.resampled), sorted(JUMPS))


def test_displacement_is_that_of_a_ball_of_80_mm(moving):
    _, matrices, motion = moving
    truth = matrices @ np.linalg.inv(matrices[motion.reference])
    rng = np.random.default_rng(1)
    ball = rng.normal(size=(20000, 3))
    ball *= 80 * rng.random((20000, 1)) ** (1 / 3) / np.linalg.norm(ball, axis=1, keepdims=True)
    points = np.c_[ball + motion.centre_mm, np.ones(len(ball))].T
    expected = np.sqrt((((truth - np.eye(4)) @ points)[:, :3] ** 2).sum(1).mean(1))
    np.testing.assert_allclose(motion.displacement_mm, expected, atol=0.6)


def test_realigned_frames_are_close_to_those_of_a_head_at_rest(moving, head):
    frames, _, motion = moving
    still, _ = series(head, {})
    brain = ndimage.binary_erosion(head[1], np.ones((3, 3, 3)))
    mended = realigned(frames, head[0].affine, motion)
    for t in JUMPS:
        known = brain & np.isfinite(mended[..., t])
        before, after = (np.sqrt(np.mean((x[known, t] - still[known, t]) ** 2)) for x in (frames, mended))
        assert after < 0.5 * before
        assert mended[known, t].mean() == pytest.approx(still[known, t].mean(), rel=0.01)


def test_frames_that_did_not_move_keep_every_bit(moving, head):
    frames, _, motion = moving
    mended = realigned(frames, head[0].affine, motion)
    np.testing.assert_array_equal(mended[..., ~motion.resampled], frames[..., ~motion.resampled])


def test_what_a_frame_has_not_seen_is_nan(head):
    frames, _ = series(head, {10: [0, 0, 16, 0, 0, 0]})
    frames = frames[..., 7:]
    motion = estimate_motion(frames, head[0].affine)
    mended = realigned(frames, head[0].affine, motion)
    # The head went up by two slices of 8 mm: what the reference has in its highest was above the field of view.
    assert not motion.lost.any() and motion.displacement_mm[3] == pytest.approx(16, abs=0.7)
    assert np.isnan(mended[:, :, -1, 3]).all() and np.isfinite(mended[:, :, :-3, 3]).mean() > 0.98
    assert np.isfinite(mended[..., :3]).all()


@pytest.mark.parametrize("codes", ["LAS", "LPI", "SAR"])
def test_the_order_of_storage_does_not_matter(moving, head, codes):
    frames, _, _ = moving
    few = [0, 1, 4, 10]
    straight = estimate_motion(frames[..., few], head[0].affine)
    turned = reorient(Volume(frames[..., few], head[0].affine), codes)
    other = estimate_motion(turned.data, turned.affine)
    np.testing.assert_allclose(other.parameters, straight.parameters, atol=0.02)
    back = reorient(Volume(realigned(turned.data, turned.affine, other), turned.affine), "RAS").data
    np.testing.assert_allclose(back, realigned(frames[..., few], head[0].affine, straight), rtol=0.01, atol=2)


def test_an_oblique_grid_turns_the_answer_with_it(moving, head):
    frames, _, _ = moving
    few = [0, 1, 4, 10]
    affine = head[0].affine
    tilt = nib.affines.from_matvec(Rotation.from_euler("xyz", (0.3, -0.2, 0.15)).as_matrix(), (5, -9, 30))
    straight, oblique = estimate_motion(frames[..., few], affine), estimate_motion(frames[..., few], tilt @ affine)
    expected = tilt @ straight.matrices @ np.linalg.inv(tilt)
    np.testing.assert_allclose(oblique.matrices, expected, atol=0.02)


def test_the_same_series_gives_the_same_answer_twice(moving, head):
    frames, _, _ = moving
    few = [0, 1, 8]
    first, second = (estimate_motion(frames[..., few], head[0].affine) for _ in range(2))
    np.testing.assert_array_equal(first.parameters, second.parameters)


def test_a_frame_whose_slices_disagree_is_lost_and_its_neighbours_are_not(head):
    frames, _ = series(head, {})
    elsewhere, _ = series(head, {t: [4, -3, 0, 0, 0, 0] for t in range(FRAMES)})
    frames[:, :, 1::2, 7] = elsewhere[:, :, 1::2, 7]
    frames = frames[..., 4:]
    motion = estimate_motion(frames, head[0].affine)
    assert np.flatnonzero(motion.lost).tolist() == [3]
    assert motion.disagreement_mm[3] > DISAGREEMENT_MM and motion.applied
    mended = realigned(frames, head[0].affine, motion)
    assert np.isnan(mended[..., 3]).all()
    np.testing.assert_array_equal(mended[..., :3], frames[..., :3])


def test_a_frame_of_something_else_is_lost(head):
    frames, _ = series(head, {})
    frames[..., 8] = noisy(np.zeros(SHAPE), frames.mean())
    motion = estimate_motion(frames[..., 5:], head[0].affine)
    assert np.flatnonzero(motion.lost).tolist() == [3] and np.isnan(motion.displacement_mm[3])


def test_nan_infinite_and_negative_voxels_do_not_hide_a_movement(head):
    frames, matrices = series(head, {t: [5, -4, 0, 0, 0, 5] for t in (5, 6, 7)})
    rng = np.random.default_rng(2)
    for value in (np.nan, np.inf, -np.inf, -300.0):
        frames[rng.random(frames.shape) < 0.01] = value
    frames[20:26, 20:26, 5, 6] = np.nan
    motion = estimate_motion(frames, head[0].affine)
    assert errors_mm(motion, matrices, head).max() < 0.6 and not motion.lost.any()
    assert np.isnan(realigned(frames, head[0].affine, motion)[22:25, 22:25, 4:7, 6]).any()


def test_a_frame_that_was_never_acquired_is_no_movement(head):
    frames, _ = series(head, {})
    frames[..., 5] = 0
    frames[:, :, 3, 7] = 0
    motion = estimate_motion(frames[..., 5:], head[0].affine)
    assert not motion.applied and motion.displacement_mm[0] == 0


def quiet(capfd, frames, affine, mask=None):
    """The motion, estimated and put right without a word on the terminal: warnings are errors, ITK writes by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        motion = estimate_motion(frames, affine, mask=mask)
        realigned(frames, affine, motion)
    assert capfd.readouterr() == ("", "")
    return motion


@pytest.mark.parametrize(("scale", "kind"), [(1e30, "f4"), (3e38, "f4"), (1e300, "f8"), (1e-30, "f4")])
def test_the_size_of_the_numbers_does_not_matter_and_nothing_reaches_the_terminal(head, capfd, scale, kind):
    frames, _ = series(head, {6: [5, -4, 0, 0, 0, 5]})
    frames = frames[..., 4:8].astype(kind)
    straight = estimate_motion(frames, head[0].affine)
    other = quiet(capfd, (frames / frames.max() * scale).astype(kind), head[0].affine)
    np.testing.assert_allclose(other.parameters, straight.parameters, atol=0.02)
    np.testing.assert_array_equal(other.resampled, straight.resampled)


@pytest.mark.parametrize("case", ["constant", "constant in time and brain", "one voxel", "two voxels", "air"])
def test_a_series_in_which_no_motion_can_be_seen_has_none_that_is_known(head, capfd, case):
    frames, _ = series(head, {})
    frames, mask = frames[..., :4], head[1]
    if case.startswith("constant"):
        frames, mask = np.full_like(frames, 100), mask if "brain" in case else None
    elif "voxel" in case:
        mask = np.zeros(SHAPE, bool)
        mask[24, 24, 5] = True
        mask[25, 24, 5] = case == "two voxels"
    else:
        frames, mask = np.where(mask[..., None], frames, 0), np.zeros(SHAPE, bool)
        mask[:3] = True
    motion = quiet(capfd, frames, head[0].affine, mask)
    assert not motion.applied and np.isnan(motion.displacement_mm).all()


def test_a_frame_of_one_value_is_lost_among_others(head, capfd):
    frames, _ = series(head, {})
    frames[..., 7] = 300
    assert np.flatnonzero(quiet(capfd, frames[..., 5:], head[0].affine).lost).tolist() == [2]


def test_one_broken_voxel_costs_no_frame(head, capfd):
    frames, _ = series(head, {})
    frames = frames[..., 5:].astype(np.float64)
    frames[24, 24, 5, 2] = 1e300
    assert not quiet(capfd, frames, head[0].affine).lost.any()


def test_noise_in_place_of_a_brain_says_nothing_about_motion(head, capfd):
    frames, _ = series(head, {})
    corner = np.zeros(SHAPE, bool)
    corner[:5, :5] = True
    motion = quiet(capfd, frames[..., :4], head[0].affine, corner)
    assert not motion.applied and np.isnan(motion.displacement_mm).all() and np.isnan(motion.parameters).all()


@pytest.mark.parametrize("n_slices", [1, 2, 3])
def test_few_slices_are_moved_in_their_plane_alone(head, n_slices):
    signal, brain = head
    part = slice(5, 5 + n_slices)
    frames, _ = series(head, {t: [5, -4, 0, 0, 0, 5] for t in (5, 6, 7)})
    motion = estimate_motion(frames[:, :, part], signal.affine, mask=brain[:, :, part])
    assert motion.resampled.sum() == 3
    np.testing.assert_allclose(motion.parameters[:, 2:5], 0, atol=1e-6)
    np.testing.assert_allclose(motion.parameters[6, [5]], np.deg2rad(5), atol=0.012)


def test_a_series_of_zeros_is_refused():
    with pytest.raises(InputError, match="positive"):
        estimate_motion(np.zeros((16, 16, 4, 5)), np.eye(4))


def test_progress_ends_at_the_last_frame(head):
    told = []
    frames, _ = series(head, {})
    estimate_motion(frames[..., :3], head[0].affine, progress=lambda done, n: told.append((done, n)))
    assert told[-1] == (3, 3) and [done for done, _ in told] == sorted(done for done, _ in told)
