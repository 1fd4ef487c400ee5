"""How a chronic lesion looks on a T1w, and how the scanner of a centre shows a head."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from reperfuse.phantoms.anatomy import TISSUE_T1
from reperfuse.phantoms.fields import rician, smooth_field

CENTRE_SALT = 1152
"""Seed of what belongs to a centre, so that a centre looks the same in every cohort."""

WITHOUT_CAVITY = 0.3
"""Share of lesions that are gliotic throughout; our choice."""

GLIOSIS = (0.2, 0.9)
"""Range of the intensity of gliosis, 0 CSF and 1 grey matter [-]; our choice."""


@dataclass(frozen=True)
class Scanner:
    """What the images of one centre share."""

    contrast: tuple[float, float, float]
    """Intensity of CSF, grey and white matter [-]."""
    blur_mm: tuple[float, float, float]
    """Standard deviation of the point spread along each axis [mm]; slices are thick along one."""
    bias: float
    """Standard deviation of the logarithm of the bias field [-]."""
    snr: float
    """Intensity of white matter over the noise's standard deviation [-]."""
    scale: float
    """Stored value of an intensity of 1."""


def scanner(centre: int) -> Scanner:
    """The scanner of a centre; the same number gives the same scanner in every cohort.

    >>> scanner(3) == scanner(3), scanner(3) == scanner(4)
    (True, False)
    """
    rng = np.random.default_rng([CENTRE_SALT, centre])
    white = rng.uniform(0.82, 1.0)
    grey = white * rng.uniform(0.62, 0.84)
    csf = grey * rng.uniform(0.15, 0.55)
    blur = rng.uniform(0.0, 0.8) * np.ones(3)
    blur[rng.integers(3)] += rng.uniform(0.0, 0.8)
    return Scanner(
        contrast=(float(csf), float(grey), float(white)),
        blur_mm=(float(blur[0]), float(blur[1]), float(blur[2])),
        bias=float(rng.uniform(0.1, 0.35)),
        snr=float(rng.uniform(15.0, 40.0)),
        scale=float(rng.uniform(300.0, 1500.0)),
    )


def seen(
    t1w: np.ndarray, visible: np.ndarray | None, grid_mm: float, by: Scanner, rng: np.random.Generator
) -> np.ndarray:
    """The image, uint16, that a scanner makes of `t1w` (tissues at `TISSUE_T1`).

    Tissue intensities are mapped to the scanner's, each moved by 2 % for the subject; then come its point spread, its
    bias field and Rician noise.

    Parameters
    ----------
    visible
        Where there is an image at all (a skull-stripped one): 0 outside and at least 1 inside. None is everywhere.
    """
    tissue = np.array([0.0, *TISSUE_T1.values(), 4.0])
    shown = np.array([0.0, *(c * rng.normal(1, 0.02) for c in by.contrast), by.contrast[2] + 3.0])
    image = t1w.astype(np.float32)  # a copy
    where = image > 0
    image[where] = np.interp(image[where], tissue, shown)
    sigmas = [blur / grid_mm if blur > 0.3 * grid_mm else 0.0 for blur in by.blur_mm]
    if any(sigmas):
        image = ndimage.gaussian_filter(image, sigmas, truncate=3.0)
    image *= np.exp(np.float32(by.bias) * smooth_field(t1w.shape, (grid_mm,) * 3, 50.0, rng))
    image = rician(image, by.contrast[2] / by.snr, rng) * np.float32(by.scale * rng.uniform(0.9, 1.1))
    stored = np.clip(np.rint(image), 0 if visible is None else 1, 65535).astype(np.uint16)
    return stored if visible is None else stored * visible


def with_lesion(
    t1w: np.ndarray, mask: np.ndarray, depth: np.ndarray, grid_mm: float, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, float]]:
    """`t1w` with a chronic stroke where `mask` is, and what was drawn.

    Gliosis is anything between CSF and grey matter (`GLIOSIS`), uneven, darker towards the middle, with a blurred
    border; it never brightens what is there. The deepest part of it, from none to 0.85, is a cavity as dark as CSF. A
    rim of gliosis is always left, and in lesions of less than a millilitre half of the volume.

    Parameters
    ----------
    mask
        Shape of `t1w`, bool; empty is legal and changes nothing.
    depth
        Same shape: 0 in the middle of the lesion, 1 at its border; read within the mask alone.

    Returns
    -------
    t1w, facts
        facts: gliosis [-], cavity_share [-], border_mm.
    """
    volume_ml = float(mask.sum() * grid_mm**3 / 1000)
    largest = 0.5 if volume_ml < 1 else 0.85
    share = np.clip(rng.normal(0.15 + 0.24 * np.log10(1 + volume_ml), 0.2), 0.0, largest)
    share = float(share * (rng.random() > WITHOUT_CAVITY))
    gliosis, uneven = rng.uniform(*GLIOSIS), rng.uniform(0.04, 0.12)
    radius_mm = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    border_mm = float(min(rng.uniform(0.5, 2.0), 0.3 * radius_mm))
    facts = {"gliosis": float(gliosis), "cavity_share": share, "border_mm": border_mm}
    if not mask.any():
        return t1w, dict.fromkeys(facts, 0.0)
    margin = int(np.ceil(4 * max(border_mm, 0.5) / grid_mm)) + 1
    box = tuple(
        slice(max(0, s.start - margin), s.stop + margin) for s in ndimage.find_objects(mask.astype(np.uint8))[0]
    )
    inside, deep, under = mask[box], np.where(mask[box], depth[box], 1), t1w[box]
    texture = smooth_field(under.shape, (grid_mm,) * 3, max(3.0, grid_mm), rng)
    csf, grey = TISSUE_T1["csf"], TISSUE_T1["grey"]
    pale = csf + (grey - csf) * (gliosis + 0.2 * (deep - 0.5)) + uneven * texture
    lesion = ndimage.gaussian_filter(inside.astype(np.float32), border_mm / grid_mm)
    changed = under + lesion * np.minimum(np.maximum(pale, csf) - under, 0)
    if share > 0:
        hole = inside & (deep <= np.quantile(deep[inside], share))
        hollow = ndimage.gaussian_filter(hole.astype(np.float32), 0.5 / grid_mm)
        changed += hollow * (csf + 0.01 * texture - changed)
    out = t1w.copy()
    out[box] = changed
    return out, facts
