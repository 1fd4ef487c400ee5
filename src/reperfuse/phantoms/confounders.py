"""What looks like a stroke lesion on a T1w and is none: wide sulci, white-matter hyperintensities, small cavities.

What tells them from a lesion, so that the task can be learned:

- sulci and ventricles are as dark as a cavity, but have no gliotic rim, and lie where every brain has them;
- white-matter hyperintensities (hypointense on T1w) are about as dark as grey matter, have no cavity, cap and line the
  ventricles, and lie on both sides alike;
- perivascular spaces and lacune-like cavities are small (up to 0.12 mL), smooth ellipsoids, dark as CSF to their very
  edge, without a rim, in the basal ganglia and the white matter. A lesion of their size is irregular and gliotic in
  half of its volume at least. Below the voxel size the two cannot be told apart, in the phantom as in a patient.
"""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from reperfuse.phantoms.anatomy import TISSUE_T1, Anatomy
from reperfuse.phantoms.fields import smooth_field

SULCUS = 0.60
"""Intensity below which tissue is taken to share its voxel with a sulcus [-], between CSF and grey matter: an average
of many brains has no sulcus as dark as CSF, a subject has."""

GROWTH_MM = 2.0
"""How far sulci and ventricles grow into the tissue beside them in the oldest brain [mm]; our choice."""

DEEP_GREY_MM = ((8.0, -26.0, -10.0), (36.0, 22.0, 18.0))
"""Box (|x|, y, z) [mm, MNI] around basal ganglia, capsules and thalamus, where most perivascular spaces and lacunes
are; by eye on the template."""

DEEP_SHARE = 0.6
"""Share of the small cavities that lie there; the others are in white matter anywhere. Our choice."""

SPACES, LACUNES = 16.0, 2.0
"""Expected numbers of perivascular spaces and of lacune-like cavities in the oldest brain; the youngest has none."""


def with_confounders(anatomy: Anatomy, rng: np.random.Generator) -> tuple[Anatomy, np.ndarray, dict[str, float | int]]:
    """The anatomy of an ageing brain, where hyperintensities and small cavities are (bool), and what was drawn.

    One number, the age between 0 and 1, sets how much of each is expected.

    Returns
    -------
    anatomy, mask, facts
        facts: age, atrophy (mean share of widening), wmh_ml, n_spaces, n_lacunes, cavities_ml.
    """
    age = float(rng.uniform())
    t1w, atrophy = _wide_sulci(anatomy, age, rng)
    t1w, pale = _pale_white_matter(t1w, anatomy, age, rng)
    t1w, holes, n_spaces, n_lacunes = _small_cavities(t1w, anatomy, age, rng)
    voxel_ml = anatomy.grid_mm**3 / 1000
    facts: dict[str, float | int] = {
        "age": age,
        "atrophy": atrophy,
        "wmh_ml": float(pale.sum() * voxel_ml),
        "n_spaces": n_spaces,
        "n_lacunes": n_lacunes,
        "cavities_ml": float(holes.sum() * voxel_ml),
    }
    return replace(anatomy, t1w=t1w), pale | holes, facts


def _wide_sulci(anatomy: Anatomy, age: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """T1w with sulci and ventricles grown by up to `GROWTH_MM` and sulci as dark as CSF, more in some lobes."""
    inside = anatomy.brain  # a skull has no sulci
    field = smooth_field(inside.shape, (anatomy.grid_mm,) * 3, 35.0, rng)[inside]
    share = np.clip(np.float32(0.25 + 0.6 * age) + np.float32(0.35) * field, 0, 1)
    csf, sulcus = np.float32(TISSUE_T1["csf"]), np.float32(SULCUS)
    reach = int(np.ceil(GROWTH_MM / anatomy.grid_mm))
    t1w, lowest = anatomy.t1w[inside], ndimage.minimum_filter(anatomy.t1w, 2 * reach + 1)[inside]
    above = np.clip(t1w - csf, 0, sulcus - csf)
    grown = t1w - share * (above - above**2 / (sulcus - csf))
    # What borders on CSF fills with it; white matter does not turn grey at its edge.
    near = share * np.clip((sulcus - lowest) / (sulcus - csf), 0, 1) * np.float32(GROWTH_MM / (reach * anatomy.grid_mm))
    grown += near * np.minimum(csf + np.float32(0.1) - grown, 0)
    out = anatomy.t1w.copy()
    out[inside] = grown
    return out, float(share.mean())


def _pale_white_matter(
    t1w: np.ndarray, anatomy: Anatomy, age: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """T1w with hyperintensities around the ventricles, and where they are."""
    x, y, z = anatomy.mesh_mm
    around = np.exp(-0.5 * (((np.abs(x) - 22) / 14) ** 2 + ((y + 12) / 40) ** 2 + ((z - 20) / 14) ** 2))
    field = smooth_field(t1w.shape, (anatomy.grid_mm,) * 3, max(4.0, anatomy.grid_mm), rng)
    # The same field on both sides, as hyperintensities nearly are in patients: the warp and the tissue tell them apart.
    across = np.rint((-anatomy.axes_mm[0] - anatomy.origin_mm[0]) / anatomy.grid_mm).astype(int)
    field = (field + field[np.clip(across, 0, len(across) - 1)]) / np.float32(np.sqrt(2))
    white = 0.5 * (TISSUE_T1["grey"] + TISSUE_T1["white"])
    # Their border is a ramp, a voxel or two wide.
    amount = np.clip(2.0 * (field + np.float32(2.0 * age) * around - 2.35), 0, 1)
    amount *= anatomy.brain & (t1w > white)
    return t1w * (1 - amount * np.float32(rng.uniform(0.12, 0.28))), amount > 0.5


def _small_cavities(
    t1w: np.ndarray, anatomy: Anatomy, age: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """T1w with perivascular spaces and lacune-like cavities, where they are, and how many of each."""
    n_spaces, n_lacunes = int(rng.poisson(SPACES * age)), int(rng.poisson(LACUNES * age))
    t1w, holes = t1w.copy(), np.zeros(t1w.shape, bool)
    white = np.flatnonzero(anatomy.brain & (t1w > 0.5 * (TISSUE_T1["grey"] + TISSUE_T1["white"])))
    for number in range(n_spaces + n_lacunes):
        if rng.random() < DEEP_SHARE:
            middle = rng.uniform(*DEEP_GREY_MM) * (rng.choice((-1, 1)), 1, 1)
        else:
            voxel = np.unravel_index(white[rng.integers(len(white))], t1w.shape)
            middle = anatomy.origin_mm + np.array(voxel) * anatomy.grid_mm
        # A space follows its vessel towards the ventricles; a lacune is nearly a ball.
        along = -middle * (1, 0.5, 0.3) + rng.normal(0, 8, 3)
        radius, longer = (
            (rng.uniform(0.6, 1.3), rng.uniform(2, 5)) if number < n_spaces else (rng.uniform(1.5, 2.8), 1.2)
        )
        reach = radius * longer + anatomy.grid_mm
        box = tuple(
            slice(*np.searchsorted(axis, (middle[a] - reach, middle[a] + reach)))
            for a, axis in enumerate(anatomy.axes_mm)
        )
        offset = np.stack(
            np.meshgrid(*(axis[box[a]] - middle[a] for a, axis in enumerate(anatomy.axes_mm)), indexing="ij"), axis=-1
        )
        length = offset @ (along / np.linalg.norm(along))
        across = np.sqrt(np.maximum((offset**2).sum(-1) - length**2, 0))
        edge = radius * np.sqrt(np.clip(1 - (length / (radius * longer)) ** 2, 0, None))
        # The share of the voxel that is filled.
        filled = np.clip((edge - across) / anatomy.grid_mm + 0.5, 0, 1) * (edge > 0) * anatomy.brain[box]
        t1w[box] += (filled * np.minimum(TISSUE_T1["csf"] - t1w[box], 0)).astype(np.float32)
        holes[box] |= filled > 0.5
    return t1w, holes, n_spaces, n_lacunes
