"""Training samples as coarser scans would have shown them, by name: what makes a network stand thick slices.

Only the image changes; what is to be learned stays as it was drawn. It happens to a sample as it was cut from its
volume and before `augment`, as a scanner comes before noise and contrast. All but one of the family are slices in the
sense of `preprocessing.geometry.thick_slices`, and differ in how thick these are, how far apart, and along which axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import RandSimulateLowResolution

from reperfuse.imaging.volume import Volume
from reperfuse.preprocessing.geometry import AXES, thick_slices
from reperfuse.preprocessing.slices import FWHM_PER_SIGMA

THICKEST_MM = 10.0
"""Largest thickness of `slices` [mm]: the clinic's end of the question. The smallest is 1, research's; what is below a
sample's own spacing leaves it as it is."""

LOW_RESOLUTION_SHARE, LOW_RESOLUTION = 0.25, (0.5, 1.0)
"""Share of samples that nnU-Net makes coarser, and the voxels per axis that are left, in those there were [-]."""

SYNTHSEG_NATIVE, SYNTHSEG_ISOTROPIC = 0.05, 0.1
"""Share of samples that SynthSeg leaves at their resolution, and of those that it makes coarser along all axes [-]."""

SYNTHSEG_MOST_MM = {"all": 4.0, "one": 8.0}
"""Largest spacing that SynthSeg draws along all axes alike, or along one of them [mm]."""

SYNTHSEG_SIGMA = 0.75
"""Standard deviation of SynthSeg's blur, in slice thicknesses or spacings, whichever is smaller [-]. Thicker than a
slice of that thickness is, whose profile has 1/2.355 = 0.42."""

SYNTHSEG_NATIVE_SIGMA = 0.5
"""Standard deviation of SynthSeg's blur along an axis that keeps its spacing [voxels]."""

ANISOTROPY = (1.5, 5.0)
"""How many times farther apart TorchIO takes its samples [-]."""


@dataclass(frozen=True)
class Slices:
    """Slices along one axis: arguments of `thick_slices`."""

    axis: str
    thickness_mm: float
    spacing_mm: float
    offset_mm: float = 0.0


Acquisition = Callable[[np.ndarray, Sequence[float], np.random.Generator], np.ndarray]
"""From an image (C, I, J, K), the spacing of its voxels (3,) [mm] and a generator to the image as it is seen."""


def as_acquired(draw: Callable[[dict[str, float], np.random.Generator], Sequence[Slices]]) -> Acquisition:
    """An acquisition that sees the slices that `draw` gives, one axis after the other.

    Parameters
    ----------
    draw
        From the spacing [mm] along each axis that a sample has more than one voxel of, by its name, to slices.
    """

    def seen(image: np.ndarray, spacing_mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
        own = {name: float(spacing_mm[axis]) for name, axis in AXES.items() if image.shape[1 + axis] > 1}
        drawn = [slices for slices in draw(own, rng) if slices.thickness_mm > own[slices.axis]] if own else []
        if not drawn:
            return image
        volume = Volume(np.moveaxis(image, 0, -1), np.diag([*map(float, spacing_mm), 1.0]))
        for slices in drawn:
            volume = thick_slices(
                volume,
                slices.thickness_mm,
                slices.axis,
                spacing_mm=slices.spacing_mm,
                offset_mm=slices.offset_mm,
            )
        return np.asarray(np.moveaxis(volume.data, -1, 0), dtype=image.dtype)

    return seen


def as_it_is(image: np.ndarray, spacing_mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The image."""
    return image


def random_slices(own: dict[str, float], rng: np.random.Generator) -> list[Slices]:
    """Slices of U(1, 10) mm without gap along one random axis, that lie in the head as chance has it.

    What the study of resolution asks of a network, with every thickness equally often. Gaussian profile.
    """
    axis = str(rng.choice(list(own)))
    thickness = float(rng.uniform(1.0, THICKEST_MM))
    return [Slices(axis, thickness, thickness, float(rng.uniform(-0.5, 0.5) * thickness))]


def synthseg_slices(own: dict[str, float], rng: np.random.Generator) -> list[Slices]:
    """The resolutions of SynthSeg: a tenth of the samples coarser along all axes, most of the others along one.

    The spacing is uniform between a voxel's and `SYNTHSEG_MOST_MM`, the slice thickness uniform between a voxel's and
    the spacing, and the blur that of `SYNTHSEG_SIGMA`, which is here a thickness that blurs as much. Its jitter of the
    blur by 3 % is left out.

    References
    ----------
    Billot B et al. SynthSeg: segmentation of brain MRI scans of any contrast and resolution without retraining. Med
    Image Anal 2023;86:102789.
    """
    if rng.random() < SYNTHSEG_NATIVE:
        coarse: dict[str, float] = {}
    elif rng.random() < SYNTHSEG_ISOTROPIC:
        spacing = float(rng.uniform(min(own.values()), max(SYNTHSEG_MOST_MM["all"], *own.values())))
        coarse = {axis: max(spacing, voxel) for axis, voxel in own.items()}
    else:
        axis = str(rng.choice(list(own)))
        coarse = {axis: float(rng.uniform(own[axis], max(SYNTHSEG_MOST_MM["one"], own[axis])))}
    slices = []
    for axis, voxel in own.items():
        spacing = coarse.get(axis, voxel)
        sigma = SYNTHSEG_NATIVE_SIGMA * voxel
        if axis in coarse:
            sigma = SYNTHSEG_SIGMA * float(rng.uniform(voxel, spacing))
        slices.append(Slices(axis, float(np.hypot(FWHM_PER_SIGMA * sigma, voxel)), spacing))
    return slices


def anisotropic_samples(own: dict[str, float], rng: np.random.Generator) -> list[Slices]:
    """Samples 1.5 to 5 times as far apart along one random axis, without a slice profile, as TorchIO takes them.

    Thin slices with gaps: what lies between them is not seen, and what is finer than their spacing is aliased. They
    are read off by linear interpolation, where TorchIO takes the nearest voxel.

    References
    ----------
    Pérez-García F, Sparks R, Ourselin S. TorchIO. Comput Methods Programs Biomed 2021;208:106236.
    """
    axis = str(rng.choice(list(own)))
    # A hair above the voxel's own, which would mean no slices at all; it blurs by 1e-3 of a voxel.
    return [Slices(axis, own[axis] * (1 + 1e-6), own[axis] * float(rng.uniform(*ANISOTROPY)))]


def low_resolution(image: np.ndarray, spacing_mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """A quarter of the samples with half to all of their voxels per axis, as nnU-Net makes them: nearest, then cubic.

    The same factor along all axes, at most two. Along an axis of one voxel nothing changes.

    References
    ----------
    Isensee F et al. nnU-Net. Nat Methods 2021;18:203-211, supplementary note on augmentation.
    """
    if rng.random() >= LOW_RESOLUTION_SHARE or min(image.shape[1:]) < 2:
        return image
    change = RandSimulateLowResolution(1.0, zoom_range=LOW_RESOLUTION)
    change.set_random_state(state=np.random.RandomState(rng.bit_generator))
    changed: Any = change(torch.from_numpy(np.require(image, np.float32, ["C", "W"])))
    changed = changed.as_tensor() if isinstance(changed, MetaTensor) else changed
    return np.asarray(changed.numpy(), dtype=image.dtype)


ACQUISITIONS: dict[str, Acquisition] = {
    "none": as_it_is,
    "slices": as_acquired(random_slices),
    "synthseg": as_acquired(synthseg_slices),
    "anisotropy": as_acquired(anisotropic_samples),
    "low_resolution": low_resolution,
}
"""Name to acquisition."""
