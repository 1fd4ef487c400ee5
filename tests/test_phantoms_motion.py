"""Laws of the moving head."""

import numpy as np
import pytest

from reperfuse.phantoms.fields import smooth_field
from reperfuse.phantoms.motion import HEAD_RADIUS_MM, head_displacement_mm, head_trajectory, moved_frame, rigid_matrix

AFFINE = np.array([[4.0, 0, 0, -38], [0, 4, 0, -46], [0, 0, 6, -25], [0, 0, 0, 1]])
PLACES = [(2.0, 0, 0, 0, 0, 0), (0, -3, 1, 0, 0, 2.0), (1, 2, -2, 3.0, -2, 1)]


@pytest.fixture
def frame():
    return 100 + smooth_field((20, 24, 10), (4.0, 4.0, 6.0), 20.0, np.random.default_rng(0))


@pytest.mark.parametrize("place", PLACES)
def test_a_rigid_matrix_keeps_lengths_and_turns_about_the_centre(place):
    centre = np.array([5.0, -3, 2])
    matrix = rigid_matrix(np.array(place), centre)
    turn = matrix[:3, :3]
    assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-12) and np.linalg.det(turn) == pytest.approx(1)
    assert matrix @ (*centre, 1) == pytest.approx((*(centre + place[:3]), 1))


def test_rotations_follow_one_another_about_x_then_y_then_z():
    # x is left alone by the first quarter turn, becomes −z by the second, which the third leaves alone.
    matrix = rigid_matrix(np.array([0, 0, 0, 90.0, 90, 90]), np.zeros(3))
    assert matrix[:3, :3] @ (1, 0, 0) == pytest.approx((0, 0, -1), abs=1e-12)
    assert matrix[:3, :3] @ (0, 1, 0) == pytest.approx((0, 1, 0), abs=1e-12)


def test_a_head_at_rest_is_seen_as_it_is(frame):
    assert moved_frame(frame, AFFINE, np.zeros(6)) is frame


def test_a_move_of_whole_voxels_shifts_the_image_by_as_many(frame):
    seen = moved_frame(frame, AFFINE, np.array([8.0, -4, 6, 0, 0, 0]))
    assert seen[2:, :-1, 1:] == pytest.approx(frame[:-2, 1:, :-1], rel=1e-4)


def test_a_quarter_turn_turns_the_image(frame):
    square = frame[:, :20]
    affine = np.diag([4.0, 4, 6, 1])
    seen = moved_frame(square, affine, np.array([0, 0, 0, 0, 0, 90.0]))
    assert seen == pytest.approx(np.rot90(square, -1, axes=(1, 0)), rel=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_what_rests_at_a_point_is_seen_where_the_head_took_it(place):
    x, y, z = np.meshgrid(*(np.arange(n) for n in (30, 30, 16)), indexing="ij")
    affine = np.diag([4.0, 4, 6, 1])
    at = np.array([62.0, 54, 42])
    blob = 100 * np.exp(-((4 * x - at[0]) ** 2 + (4 * y - at[1]) ** 2 + (6 * z - at[2]) ** 2) / (2 * 8.0**2))
    seen = moved_frame(blob.astype(np.float32), affine, np.array(place))
    mean = [float((seen * axis).sum() / seen.sum()) * step for axis, step in ((x, 4), (y, 4), (z, 6))]
    centre = affine[:3, :3] @ ((np.array(blob.shape) - 1) / 2)
    assert mean == pytest.approx((rigid_matrix(np.array(place), centre) @ (*at, 1))[:3], abs=0.05)


def test_moving_there_and_back_gives_a_smooth_image_again(frame):
    there = moved_frame(frame, AFFINE, np.array([3.0, 1, -2, 0, 0, 0]))
    back = moved_frame(there, AFFINE, np.array([-3.0, -1, 2, 0, 0, 0]))
    assert back[3:-3, 3:-3, 2:-2] == pytest.approx(frame[3:-3, 3:-3, 2:-2], rel=5e-3)


@pytest.mark.parametrize("place", PLACES)
def test_displacement_is_the_root_mean_square_over_a_ball(place):
    points = np.random.default_rng(0).uniform(-1, 1, (200_000, 3))
    points = HEAD_RADIUS_MM * points[(points**2).sum(1) <= 1]
    matrix = rigid_matrix(np.array(place), np.zeros(3))
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    expected = np.sqrt(((moved - points) ** 2).sum(1).mean())
    assert head_displacement_mm(np.array([place]))[0] == pytest.approx(expected, rel=5e-3)


def test_a_drift_ends_where_it_should_and_begins_at_rest():
    trajectory = head_trajectory(50, np.random.default_rng(1), drift_mm=2.0)
    along = np.linalg.norm(trajectory[:, :3], axis=1)
    assert not trajectory[0].any() and along[-1] == pytest.approx(2.0) and (np.diff(along) > 0).all()


def test_jumps_are_sudden_and_as_many_and_as_long_as_asked_for():
    trajectory = head_trajectory(60, np.random.default_rng(2), jump_mm=4.0, jumps=1)
    steps = np.linalg.norm(np.diff(trajectory[:, :3], axis=0), axis=1)
    assert (steps > 1e-9).sum() == 1 and steps.max() == pytest.approx(4.0)
    assert not head_trajectory(60, np.random.default_rng(2)).any()
    still = np.linalg.norm(np.diff(head_trajectory(60, np.random.default_rng(3), jump_mm=4.0, jumps=4), axis=0), axis=1)
    assert 2 <= (still > 1e-9).sum() <= 6
