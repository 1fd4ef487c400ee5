"""The brain found by bringing a template onto the image."""

from functools import lru_cache

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from numpy.typing import NDArray
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.preprocessing.brain import threshold_mask
from reperfuse.preprocessing.geometry import resample

WORKING_MM = 3.0
"""Voxel size [mm] at which the two are compared: twelve parameters are not seen better at 1 mm."""

BRAIN_HEIGHT_MM, SCALP_MM = 140.0, 10.0
"""A head's first guess: the brain lies in the uppermost 140 mm of it, 10 mm below its top."""

RIM_MM = 9.0
"""The comparison reaches this far beyond the template's brain [mm], so that its border counts and a face does not."""

UNIT_MM = 70.0
"""The unit of length while searching, about a brain's radius: a change of the matrix then moves the brain's border as
far as an equal change of the shift, and one step size fits both."""

FIRST_STEP_MM, LAST_STEP_MM, STEPS = 4.0, 0.02, 150
"""Step of the search at its beginning and end, and the most steps at each resolution."""

BINS = 32
"""Bins of intensity in the joint histogram."""


@lru_cache(maxsize=1)
def _template() -> tuple[Volume, Volume]:
    """T1w and brain mask of MNI152 on a grid of 2 mm."""
    t1w, mask = load_mni152_template(resolution=2), load_mni152_brain_mask(resolution=2)
    affine = np.asarray(t1w.affine, dtype=np.float64)
    brain = np.asarray(mask.dataobj) > 0
    return Volume(np.asarray(t1w.dataobj, np.float32) * brain, affine), Volume(brain.astype(np.uint8), affine)


def template_mask(volume: Volume) -> NDArray[np.bool_]:
    """The brain of a T1w image, with or without its skull: the MNI152 brain mask, brought onto it by an affine map.

    The map has twelve parameters and maximises Mattes' mutual information of template and image within the template's
    brain and `RIM_MM` around, rigid first. It is tried from the place the header gives and from the place where a head
    of this height has its brain, and the better one counts. A brain of a shape that no affine map reaches (a large
    resection, an infant) is not fitted: look at some masks before training on them.

    Parameters
    ----------
    volume
        Shape (I, J, K), any orientation that its affine tells to within about 30°.

    Returns
    -------
    Mask of shape (I, J, K).

    Raises
    ------
    InputError
        If no voxel is positive, or template and image have too little in common to be compared.

    References
    ----------
    Mattes D et al. PET-CT image registration in the chest using free-form deformations. IEEE TMI 2003;22:120-128.
    Fonov VS et al. Unbiased average age-appropriate atlases for pediatric studies. NeuroImage 2011;54:313-327 (the
    template, 2009a).
    """
    t1w, brain = _template()
    head = _axis_aligned(volume)
    middle = brain.affine[:3, :3] @ np.argwhere(brain.data).mean(0) + brain.affine[:3, 3]
    rim = ndimage.binary_dilation(brain.data > 0, iterations=round(RIM_MM / 2))
    compared = resample(Volume(rim.astype(np.uint8), brain.affine), spacing_mm=WORKING_MM, mask=True)
    fixed, moving = (_as_itk(one, middle) for one in (resample(t1w, spacing_mm=WORKING_MM), head))
    where = sitk.Cast(_as_itk(compared, middle), sitk.sitkUInt8)
    starts = [np.zeros(3), _brain_of_head(head) - middle]
    try:
        _, onto = min((_registered(fixed, moving, where, start) for start in starts), key=lambda found: found[0])
    except RuntimeError as error:
        raise InputError(
            "The template brain cannot be brought onto the image: give a brain mask, or check the orientation in its "
            "header."
        ) from error
    # From working coordinates, about the template's middle, to the scanner's.
    to_image = nib.affines.from_matvec(onto[:3, :3], onto[:3, 3] * UNIT_MM + middle - onto[:3, :3] @ middle)
    placed = Volume(brain.data, to_image @ brain.affine)
    return np.asarray(resample(placed, like=Volume(volume.data, volume.affine), mask=True).data > 0)


def _axis_aligned(volume: Volume) -> Volume:
    """The image on an isotropic RAS grid of `WORKING_MM` over all that it covers."""
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in volume.data.shape[:3]])).reshape(3, -1).T
    world = corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    low, high = world.min(0), world.max(0)
    affine = np.diag([WORKING_MM] * 3 + [1.0])
    affine[:3, 3] = low + WORKING_MM / 2
    shape = tuple(np.maximum(np.ceil((high - low) / WORKING_MM), 1).astype(int))
    return resample(volume, like=Volume(np.broadcast_to(np.uint8(0), shape), affine))


def _brain_of_head(head: Volume) -> NDArray[np.float64]:
    """Where the middle of the brain is by the outline of the head: x, y, z [mm]."""
    places = np.argwhere(threshold_mask(head.data)) * WORKING_MM + head.affine[:3, 3]
    top = places[:, 2].max()
    upper = places[places[:, 2] > top - BRAIN_HEIGHT_MM]
    x, y = (upper[:, :2].min(0) + upper[:, :2].max(0)) / 2
    return np.array([x, y, top - SCALP_MM - BRAIN_HEIGHT_MM / 2])


def _registered(
    fixed: sitk.Image, moving: sitk.Image, where: sitk.Image, shift_mm: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Negative mutual information, and the affine (4, 4) from template to image in working coordinates."""
    rigid = sitk.Euler3DTransform()
    rigid.SetTranslation((shift_mm / UNIT_MM).tolist())
    _optimise(fixed, moving, where, rigid, (4, 2))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    value = _optimise(fixed, moving, where, affine, (2, 1))
    return value, nib.affines.from_matvec(np.reshape(affine.GetMatrix(), (3, 3)), affine.GetTranslation())


def _optimise(
    fixed: sitk.Image, moving: sitk.Image, where: sitk.Image, at: sitk.Transform, shrink: tuple[int, ...]
) -> float:
    """Move `at`, in place, to the least negative mutual information, which is returned."""
    search = sitk.ImageRegistrationMethod()
    search.SetMetricAsMattesMutualInformation(BINS)
    search.SetMetricFixedMask(where)
    search.SetInterpolator(sitk.sitkLinear)
    search.SetOptimizerAsRegularStepGradientDescent(
        FIRST_STEP_MM / UNIT_MM, LAST_STEP_MM / UNIT_MM, STEPS, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-9
    )
    search.SetShrinkFactorsPerLevel(list(shrink))
    search.SetSmoothingSigmasPerLevel([(factor - 1) * WORKING_MM / UNIT_MM for factor in shrink])
    search.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    # Sums in a fixed order, so that a mask is the same wherever it is made.
    search.SetNumberOfThreads(1)
    search.SetInitialTransform(at, inPlace=True)
    search.Execute(fixed, moving)
    return float(search.GetMetricValue())


def _as_itk(volume: Volume, middle: NDArray[np.float64]) -> sitk.Image:
    """An axis-aligned image in working coordinates: RAS about `middle`, in units of `UNIT_MM`."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T, dtype=np.float32))
    image.SetSpacing((np.diag(volume.affine)[:3] / UNIT_MM).tolist())
    image.SetOrigin(((volume.affine[:3, 3] - middle) / UNIT_MM).tolist())
    return image
