"""Real lesion masks in a real T1w: the shape and place of a lesion are real, its look and the scanner are simulated.

The course is that of the lesion phantom (`patient`): the anatomy is warped together with the mask, ages, and is seen
through the scanner of a centre. There is one anatomy, so heads differ by their warp, and by their sides, alone.
"""

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
from nilearn.image import resample_img
from scipy import ndimage

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.anatomy import TISSUE_T1, Anatomy, warped
from reperfuse.phantoms.patient import Lesion, LesionPhantom, Truth, stroke_patient

SURE = 0.9
"""Probability in the template's tissue maps from which a voxel is taken for that tissue [-]."""

VENTRICLES_MM = ((-25.0, -45.0, 8.0), (25.0, 30.0, 28.0))
"""Box (x, y, z) [mm, MNI] in which CSF is that of the lateral ventricles."""

DARKEST = 2.0
"""Percentile of the intensities in that box that is taken for CSF: the ventricles are at least twice as much of it."""


def real_anatomy(t1w: Volume) -> Anatomy:
    """A T1w in MNI space, with or without its skull, as an anatomy: tissues at `TISSUE_T1`.

    Brain, grey and white matter are where the MNI152 template has them, brought to the image's grid by the headers; the
    medians of the image there, and the dark end of the ventricles, are the knots of a piecewise linear map. What is
    brighter than white matter (fat, vessels) goes on with the last slope.

    Raises
    ------
    ValueError
        If the axes of the image do not point to right, anterior and superior, its voxels are no cubes, or its tissues
        are not in the order of a T1w.
    """
    grid_mm = float(t1w.affine[0, 0])
    if grid_mm <= 0 or not np.allclose(t1w.affine[:3, :3], grid_mm * np.eye(3), atol=1e-3):
        raise ValueError("an anatomy has cubic voxels along right, anterior and superior: reorient and resample it")
    shape, data = t1w.data.shape, np.asarray(t1w.data, np.float32)

    def there(image: nib.Nifti1Image) -> np.ndarray:
        moved = resample_img(image, t1w.affine, shape, interpolation="nearest", force_resample=True, copy_header=True)
        return np.asarray(moved.dataobj)

    brain = there(load_mni152_brain_mask(resolution=1)) > 0
    grey, white = (
        float(np.median(data[brain & (there(tissue) > SURE)]))
        for tissue in (load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    )
    anatomy = Anatomy(data, brain, t1w.affine[:3, 3], grid_mm)
    box = tuple(
        slice(*np.searchsorted(axis, (low, high)))
        for axis, low, high in zip(anatomy.axes_mm, *VENTRICLES_MM, strict=True)
    )
    csf = float(np.percentile(data[box], DARKEST))
    if not 0 < csf < grey < white:
        raise ValueError(f"CSF {csf:g}, grey matter {grey:g} and white matter {white:g} are not those of a T1w")
    knots = np.array([0.0, csf, grey, white])
    tissue = np.array([0.0, *TISSUE_T1.values()])
    slope = (tissue[3] - tissue[2]) / (white - grey)
    top = max(float(data.max()), white + 1)
    scaled = np.interp(data, [*knots, top], [*tissue, tissue[3] + slope * (top - white)]).astype(np.float32)
    return Anatomy(scaled, brain, anatomy.origin_mm, grid_mm)


def semi_real_patient(
    anatomy: Anatomy, mask: np.ndarray, seed: int, *, centre: int = 0, warp_mm: float = 6.0
) -> LesionPhantom:
    """T1w and mask of one subject: the anatomy with the lesion of a real patient.

    Head and lesion are mirrored together with probability one half. Ventricles and cisterns that the mask covers, being
    those of another head, are taken out of it, and so is what lies outside the brain; a lesion is never lost by that.

    Parameters
    ----------
    mask
        Shape of the anatomy, bool; empty for a subject without a lesion.
    warp_mm
        As of the phantom, but larger by default: with one anatomy, all that makes heads differ.

    Examples
    --------
    >>> head = np.full((40, 44, 36), 0.87, np.float32)
    >>> anatomy = Anatomy(head, head > 0, np.array([-80.0, -100.0, -60.0]), 4.0)
    >>> mask = np.zeros(head.shape, bool); mask[8:12, 20:24, 18:21] = True
    >>> patient = semi_real_patient(anatomy, mask, 1)
    >>> patient.t1w.data.shape, 1.5 < patient.truth["volume_ml"] < 6
    ((40, 44, 36), True)
    """
    mirrored = bool(np.random.default_rng([seed, centre, 1]).random() < 0.5)
    if mirrored:
        origin = anatomy.origin_mm.copy()
        origin[0] = -anatomy.axes_mm[0][-1]
        anatomy = Anatomy(anatomy.t1w[::-1], anatomy.brain[::-1], origin, anatomy.grid_mm)
        mask = mask[::-1]

    def put_lesion(subject: Anatomy, where: np.ndarray, rng: np.random.Generator) -> Lesion:
        return _lesion(subject, warped(mask.astype(np.float32), where) if mask.any() else np.zeros(mask.shape))

    t1w, label, truth = stroke_patient(anatomy, put_lesion, seed, centre=centre, warp_mm=warp_mm, stripped=False)
    affine = np.diag([*[anatomy.grid_mm] * 3, 1.0])
    affine[:3, 3] = anatomy.origin_mm
    return LesionPhantom(Volume(t1w, affine), Volume(label, affine), {**truth, "mirrored": mirrored})


def _lesion(subject: Anatomy, share: np.ndarray) -> Lesion:
    """The lesion whose `share` of each voxel the warp has left."""
    mask, depth = np.zeros(share.shape, bool), np.ones(share.shape, np.float32)
    if not share.any():
        return Lesion(mask, depth, {"centre_mm": [], "hemisphere": "none", "n_components": 0})
    whole = share >= min(0.5, float(share.max()))  # a lesion of few voxels may fill none by half
    box = tuple(slice(max(0, s.start - 4), s.stop + 4) for s in ndimage.find_objects(whole.astype(np.uint8))[0])
    csf = subject.brain[box] & (subject.t1w[box] < 0.5 * (TISSUE_T1["csf"] + TISSUE_T1["grey"]))
    # Sulci are thinner than two openings: they belong to the lesion around them.
    part = whole[box] & subject.brain[box] & ~ndimage.binary_opening(csf, iterations=2)
    mask[box] = part if part.any() else whole[box]
    # A border of zeros: the lesion also ends where the box does.
    inside = ndimage.distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1, 1:-1]
    depth[box] = 1 - inside / inside.max()
    labels, n = ndimage.label(mask[box], np.ones((3, 3, 3)))
    points = np.argwhere(labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())) + [s.start for s in box]
    middle = subject.origin_mm + points.mean(0) * subject.grid_mm
    facts: Truth = {
        "centre_mm": [round(float(c), 1) for c in middle],
        "hemisphere": "left" if middle[0] < 0 else "right",
        "n_components": int(n),
    }
    return Lesion(mask, depth, facts)
