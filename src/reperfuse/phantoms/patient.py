"""A stroke patient from an anatomy and a lesion: the one course that every lesion cohort takes, drawn or real."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.anatomy import Anatomy, subject_warp, warped_anatomy
from reperfuse.phantoms.appearance import scanner, seen, with_lesion
from reperfuse.phantoms.confounders import with_confounders

Truth = dict[str, float | int | str | bool | list[float]]


@dataclass(frozen=True)
class Lesion:
    """A lesion on the grid of a subject."""

    mask: np.ndarray
    """Shape (I, J, K), bool; may be empty."""
    depth: np.ndarray
    """Same shape: 0 in the middle of the lesion, 1 at its border."""
    facts: Truth


@dataclass(frozen=True)
class LesionPhantom:
    """A T1w with a lesion, its mask, and what was drawn."""

    t1w: Volume
    """uint16. A phantom is skull-stripped, 0 outside the brain, and (197, 233, 189) at 1 mm."""
    mask: Volume
    """Same grid, uint8, 0 or 1."""
    truth: Truth
    """volume_ml, centre_mm (MNI, of the largest component as placed; empty without one), hemisphere (left, right,
    none), n_components (as placed); of the look gliosis, cavity_share, border_mm; of the head warp_mm, warp_lipschitz,
    ventricles_left and _right, age, atrophy, wmh_ml, n_spaces, n_lacunes, cavities_ml, confounder_ml (hyperintensities
    and small cavities outside the mask); of the scanner contrast, blur_mm, bias, snr, centre; seed."""


PutLesion = Callable[[Anatomy, np.ndarray, np.random.Generator], Lesion]
"""From the subject's anatomy, the voxels of the source anatomy it comes from (3, I, J, K), and a random generator."""


def stroke_patient(
    anatomy: Anatomy, put_lesion: PutLesion, seed: int, *, centre: int, warp_mm: float, stripped: bool
) -> tuple[np.ndarray, np.ndarray, Truth]:
    """T1w (uint16) and lesion mask (uint8) of one subject on the anatomy's grid, and what was drawn.

    The anatomy is warped, ages, suffers the lesion, and is imaged at its centre. Each of these steps has a random
    generator of its own, all from `seed` and `centre`: the same subject without its lesion is the same elsewhere.

    Parameters
    ----------
    put_lesion
        Gives the lesion; called on the aged anatomy. Lesions are inside the brain.
    stripped
        Whether the image is 0 outside the brain, as of a skull-stripped T1w.
    """
    of_warp, of_age, of_lesion, of_look, of_scan = np.random.default_rng([seed, centre]).spawn(5)
    grid_mm, by = anatomy.grid_mm, scanner(centre)
    warp, moved = subject_warp(anatomy, of_warp, warp_mm)
    where = warp.where(anatomy.t1w.shape, grid_mm)
    subject, confounders, aged = with_confounders(warped_anatomy(anatomy, where), of_age)
    lesion = put_lesion(subject, where, of_lesion)
    t1w, look = with_lesion(subject.t1w, lesion.mask, lesion.depth, grid_mm, of_look)
    image = seen(t1w, subject.brain if stripped else None, grid_mm, by, of_scan)
    voxel_ml = grid_mm**3 / 1000
    truth: Truth = {
        **moved,
        **aged,
        **lesion.facts,
        **look,
        "volume_ml": float(lesion.mask.sum() * voxel_ml),
        "confounder_ml": float((confounders & ~lesion.mask).sum() * voxel_ml),
        "contrast": list(by.contrast),
        "blur_mm": list(by.blur_mm),
        "bias": by.bias,
        "snr": by.snr,
        "centre": centre,
        "seed": seed,
    }
    return image, lesion.mask.astype(np.uint8), truth
