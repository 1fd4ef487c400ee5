"""How a head moves during a series, and a frame of it as the scanner sees it."""

import numpy as np
from scipy.ndimage import affine_transform

HEAD_RADIUS_MM = 80.0
"""Radius [mm] of the ball over which `head_displacement_mm` averages, that of Jenkinson's measure."""

DEGREES_PER_MM = 0.5
"""Rotation [degrees] that comes with 1 mm of translation: a nod turns about the neck, some 100 mm below the brain."""


def rigid_matrix(parameters: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """Where the head goes, as a (4, 4) matrix in scanner coordinates: x' = Rz·Ry·Rx·(x − c) + c + t.

    Parameters
    ----------
    parameters
        Shape (6,): t [mm] along x, y, z; rotations [degrees] about x, y, z, right-handed.
    centre_mm
        c, shape (3,) [mm].

    Examples
    --------
    >>> turn = rigid_matrix(np.array([0, 0, 0, 0, 0, 90.0]), np.array([10.0, 0, 0]))
    >>> (turn @ (11.0, 0, 0, 1)).round(6).tolist()
    [10.0, 1.0, 0.0, 1.0]
    """
    cos, sin = np.cos(np.deg2rad(parameters[3:])), np.sin(np.deg2rad(parameters[3:]))
    about_x = np.array(((1, 0, 0), (0, cos[0], -sin[0]), (0, sin[0], cos[0])))
    about_y = np.array(((cos[1], 0, sin[1]), (0, 1, 0), (-sin[1], 0, cos[1])))
    about_z = np.array(((cos[2], -sin[2], 0), (sin[2], cos[2], 0), (0, 0, 1)))
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x
    matrix[:3, 3] = centre_mm + parameters[:3] - matrix[:3, :3] @ centre_mm
    return matrix


def head_displacement_mm(trajectory: np.ndarray) -> np.ndarray:
    """Root mean square displacement of the head in each frame, shape (T,) [mm].

    Over a ball of radius r about the centre of rotation, d² = r²·tr((R − 1)ᵀ(R − 1))/5 + |t|², r = `HEAD_RADIUS_MM`.

    Parameters
    ----------
    trajectory
        Shape (T, 6), rows as in `rigid_matrix`.

    References
    ----------
    Jenkinson M. Measuring transformation error by RMS deviation. FMRIB technical report TR99MJ1, 1999.

    Examples
    --------
    >>> head_displacement_mm(np.array([[0, 0, 0, 0, 0, 0], [3.0, 4, 0, 0, 0, 0]])).tolist()
    [0.0, 5.0]
    """
    turned = np.array([rigid_matrix(row, np.zeros(3))[:3, :3] - np.eye(3) for row in trajectory])
    return np.sqrt(HEAD_RADIUS_MM**2 / 5 * (turned**2).sum((1, 2)) + (np.asarray(trajectory)[:, :3] ** 2).sum(1))


def head_trajectory(
    n_frames: int, rng: np.random.Generator, *, drift_mm: float = 0.0, jump_mm: float = 0.0, jumps: int = 0
) -> np.ndarray:
    """Rigid position of the head in each frame, shape (T, 6) [mm, degrees]: a slow drift and sudden jumps.

    The first frame is the place of rest. A drift goes steadily one way, as a head sinks into its cushion; a jump is
    kept or, every second time, taken back after some frames. `DEGREES_PER_MM` gives the rotations.

    Parameters
    ----------
    n_frames
        T.
    rng
        Directions, and when the jumps are.
    drift_mm
        Translation of the drift at the end of the series [mm].
    jump_mm
        Translation of each jump [mm].
    jumps
        How many.
    """

    def direction() -> np.ndarray:
        move, turn = rng.standard_normal((2, 3))
        return np.concatenate((move / np.linalg.norm(move), DEGREES_PER_MM * turn / np.linalg.norm(turn)))

    place = np.linspace(0, 1, n_frames)[:, None] * drift_mm * direction()
    first, last = max(1, n_frames // 6), max(2, n_frames - n_frames // 6)
    for jump in range(jumps):
        start = int(rng.integers(first, last))
        end = start + int(rng.integers(2, max(3, n_frames // 8))) if jump % 2 else n_frames
        place[start:end] += jump_mm * direction()
    return place


def moved_frame(frame: np.ndarray, affine: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """A frame as the scanner sees it when the head has moved, shape (I, J, K), never negative.

    The scanner sees at x what rests at M⁻¹x, M the `rigid_matrix` about the middle of the grid; cubic splines read it
    there. Beyond the edge of the grid the head goes on as it is at the edge.

    Parameters
    ----------
    frame
        Noise-free frame of the head at rest, shape (I, J, K).
    affine
        (4, 4), voxel index to scanner coordinates [mm].
    parameters
        Shape (6,), as in `rigid_matrix`.

    Examples
    --------
    >>> ball = np.zeros((9, 9, 9), np.float32); ball[4, 4, 4] = 1
    >>> seen = moved_frame(ball, np.diag([2.0, 2, 2, 1]), np.array([2.0, 0, 0, 0, 0, 0]))
    >>> [int(i) for i in np.unravel_index(seen.argmax(), seen.shape)]
    [5, 4, 4]
    """
    if not np.any(parameters):
        return frame
    centre = affine[:3, :3] @ ((np.array(frame.shape) - 1) / 2) + affine[:3, 3]
    back = np.linalg.inv(affine) @ np.linalg.inv(rigid_matrix(parameters, centre)) @ affine
    seen = affine_transform(frame, back[:3, :3], back[:3, 3], order=3, mode="nearest", output=np.float32)
    return np.maximum(seen, 0.0)
