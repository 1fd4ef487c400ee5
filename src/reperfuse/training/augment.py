"""Training samples changed on the fly, by name: where their voxels are taken from, then what they hold.

What rotates and scales is drawn before a sample is cut (`turn`), so that the voxels that turn into view are read from
the volume in place of black corners, and only then; the rest works on the sample as it was cut (`finish`). All
randomness is that of the NumPy generator that is given, MONAI's too: the same generator, the same sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandGaussianNoise,
    RandScaleIntensity,
    RandScaleIntensityFixedMean,
)
from monai.transforms.spatial.array import RandSimulateLowResolution
from monai.transforms.utils import create_rotate, create_scale
from scipy import ndimage

from reperfuse.training.windows import Arrays, Matrix, turned_window

PUBLISHED_PERCENTILES = (0.0, 2.0), (98.0, 100.0)
"""Where the ends of `published`'s window may lie [percent of the voxels inside the mask]: our choice, for the study
that windows, rotates and zooms gives no number. About the 1 and 99 of `preprocessing.intensity.window`."""

PUBLISHED_ROTATION_DEG = 15.0
"""Largest rotation of `published` in the plane, either way [°]; our choice: a head tilts no further in a scanner."""

PUBLISHED_ZOOM = (0.9, 1.1)
"""Magnification of `published` in the plane [-]; our choice: heads differ in size by about that."""

STRONG_SHARES = {
    "rotation": 0.2,
    "scaling": 0.2,
    "noise": 0.1,
    "blur": 0.1,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.125,
    "gamma_inverted": 0.1,
    "gamma": 0.3,
    "mirror": 0.5,
}
"""Share of samples that each change of `strong` reaches; `mirror` counts per axis. Those of nnU-Net, which gives 0.2
and 0.25 to blur and low resolution and then passes over every second channel: all channels share them here."""

STRONG_ROTATION_DEG = 30.0
"""Largest rotation of `strong` about each axis, either way [°]; nnU-Net's in three dimensions. Its 180° in a plane is
not taken over: heads lie upright."""

STRONG_SCALE = (0.7, 1.4)
"""How much of the volume a sample of `strong` spans, in its own size [-]; nnU-Net's."""

STRONG_NOISE = 0.1
"""Largest standard deviation of the noise of `strong` [image's standard deviation]; nnU-Net's, whose code takes what it
calls a variance of up to 0.1 for a deviation."""

STRONG_BLUR = (0.5, 1.0)
"""Standard deviation of the Gaussian of `strong`, drawn per axis [voxels]; nnU-Net's."""

STRONG_BRIGHTNESS = STRONG_CONTRAST = 0.25
"""Largest change, either way, of the factor on the image, and on its difference to its mean [-]; nnU-Net's."""

STRONG_RESOLUTION = (0.5, 1.0)
"""Voxels per axis that low resolution leaves, in those there are [-]; nnU-Net's."""

STRONG_GAMMA = (0.7, 1.5)
"""Power on the image between its minimum and maximum [-]; nnU-Net's. Mean and standard deviation are restored."""

THIN = 3
"""An axis with less than 1/3 of the voxels of the longest is left alone by `strong`, a single slice among them: thick
slices are neither rotated into each other nor smoothed together. nnU-Net's `ANISO_THRESHOLD`."""


def no_turn(size: Sequence[int], rng: np.random.Generator) -> Matrix | None:
    """None: the sample is cut as it lies."""
    return None


@dataclass(frozen=True)
class Augmentation:
    """A way to change samples: `finish` of (image, target, mask) as cut, and `turn`, which says how they are cut.

    `turn` gives the matrix of `turned_window` for a sample of so many voxels, or None. As a function of arrays and a
    generator an augmentation does both, with zeros for what lies beyond the arrays.
    """

    finish: Callable[[Arrays, np.random.Generator], Arrays]
    turn: Callable[[Sequence[int], np.random.Generator], Matrix | None] = no_turn

    def __call__(self, arrays: Arrays, rng: np.random.Generator) -> Arrays:
        """The sample turned and finished."""
        image, target, mask = arrays
        turn = self.turn(mask.shape, rng)
        if turn is not None:
            arrays = turned_window([image], target, mask, (0, 0, 0), mask.shape, turn)
        return self.finish(arrays, rng)


# ---- none and light -------------------------------------------------------------------------------------------------
def no_augmentation(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """The sample as it is."""
    return arrays


def light_augmentation(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """The sample mirrored along each axis with probability ½, its image times U(0.9, 1.1) plus U(−0.1, 0.1)·SD.

    The shift is in the image's own standard deviation, so that it means the same under any normalisation.
    """
    image, target, mask = mirrored(arrays, rng)
    scale, shift = rng.uniform(0.9, 1.1), rng.uniform(-0.1, 0.1)
    return (image * scale + shift * image.std()).astype(np.float32), target, mask


def mirrored(
    arrays: Arrays, rng: np.random.Generator, axes: Sequence[int] = (-1, -2, -3), share: float = 0.5
) -> Arrays:
    """The sample mirrored along each of `axes` by itself with probability `share`."""
    flipped = tuple(axis for axis in axes if rng.random() < share)
    image, target, mask = (np.flip(array, flipped) for array in arrays)
    return image, target, mask


# ---- published ------------------------------------------------------------------------------------------------------
def published_turn(size: Sequence[int], rng: np.random.Generator) -> Matrix:
    """Rotation and zoom in the plane of the first two axes, each uniform between its bounds, for every sample."""
    angle = rng.uniform(-PUBLISHED_ROTATION_DEG, PUBLISHED_ROTATION_DEG)
    zoom = rng.uniform(*PUBLISHED_ZOOM)
    return turn_matrix((0, 0, angle), (1 / zoom, 1 / zoom, 1))


def published_augmentation(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """Windowing of the image inside its mask, then mirroring along the first two axes with probability ½ each.

    y = clip((x − low)/(high − low), 0, 1)·(q₉₉ − q₁) + q₁ with low and high the percentiles drawn from
    `PUBLISHED_PERCENTILES`, and q₁ and q₉₉ those of the sample: normalised to the scale the sample came in, for that is
    the scale of the images that the network is asked about later. Each channel has its own, by the same percentiles. A
    channel that is constant between them stays as it is.

    The study made three such copies of each slice once; here every sample is drawn anew.

    References
    ----------
    "Stroke detection by image segmentation with residual U-Net", §2.2: windowing with normalisation, random flipping,
    random rotation and random zooming, on slices of ATLAS R2.0.
    """
    image, target, mask = arrays
    inside = mask > 0
    asked = [rng.uniform(*ends) for ends in PUBLISHED_PERCENTILES]
    if inside.any():
        changed = image.copy()
        for channel, values in zip(changed, image[:, inside], strict=True):
            low, high, first, last = np.percentile(values, [*asked, 1, 99])
            if high > low:
                channel[inside] = np.clip((values - low) / (high - low), 0, 1) * (last - first) + first
        image = changed
    return mirrored((image, target, mask), rng, axes=(-3, -2))


# ---- strong ---------------------------------------------------------------------------------------------------------
def strong_turn(size: Sequence[int], rng: np.random.Generator) -> Matrix | None:
    """Rotation about each axis and one scaling for all, a fifth of the samples each; thin axes are left alone."""
    rotates, scales = (rng.random() < STRONG_SHARES[name] for name in ("rotation", "scaling"))
    angles = rng.uniform(-STRONG_ROTATION_DEG, STRONG_ROTATION_DEG, 3)
    scale = rng.uniform(*STRONG_SCALE)
    wide = np.ones(3, bool)
    wide[thin_axes(size)] = False
    # About an axis the plane of the two others turns.
    angles[[not np.delete(wide, axis).all() for axis in range(3)]] = 0
    if not (scales and wide.any()) and not (rotates and angles.any()):
        return None
    return turn_matrix(angles if rotates else (0, 0, 0), np.where(wide, scale, 1) if scales else (1, 1, 1))


def strong_augmentation(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """Noise, blur, brightness, contrast, low resolution, gamma of the negative and of the image, mirroring.

    In this order, each for its own share of the samples (`STRONG_SHARES`) and by one draw for all channels, which may
    be the frames of one series. Before it `strong_turn` rotates and scales.

    References
    ----------
    Isensee F, Jaeger PF, Kohl SAA, Petersen J, Maier-Hein KH. nnU-Net: a self-configuring method for deep
    learning-based biomedical image segmentation. Nat Methods 2021;18:203–211, supplementary note on augmentation.
    """
    image, target, mask = arrays
    thin = [1 + axis for axis in thin_axes(mask.shape)]
    # As channels, thin axes are smoothed and thinned out by nothing that goes along the others.
    front = range(len(thin))
    lying = np.moveaxis(image, thin, front)
    # PyTorch takes no array that is read-only or runs backwards.
    packed = np.require(lying.reshape(-1, *lying.shape[1 + len(thin) :]), np.float32, ["C", "W"])
    changed = _changed(packed, rng).reshape(lying.shape)
    return mirrored((np.moveaxis(changed, front, thin), target, mask), rng, share=STRONG_SHARES["mirror"])


def _changed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The intensities of `strong_augmentation` on an image (C, …) of one, two or three axes."""
    share, spread = STRONG_SHARES, float(image.std())
    gamma: dict[str, Any] = {"gamma": STRONG_GAMMA, "retain_stats": True}
    linear = ("linear", "bilinear", "trilinear")[image.ndim - 2]
    draw = np.random.RandomState(rng.bit_generator)  # the same stream in the shape that MONAI takes

    def by_monai(*transforms: Any) -> None:
        nonlocal image
        tensor: Any = torch.from_numpy(image)
        for transform in transforms:
            tensor = transform.set_random_state(state=draw)(tensor)
        tensor = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
        image = tensor.numpy().astype(np.float32, copy=False)

    by_monai(RandGaussianNoise(share["noise"], std=STRONG_NOISE * spread))
    # Not by MONAI's GaussianSmooth, which takes 0 for what lies beyond: a patch would darken towards its border.
    if rng.random() < share["blur"]:
        sigma = rng.uniform(*STRONG_BLUR, image.ndim - 1)
        image = ndimage.gaussian_filter(image, (0, *sigma), mode="nearest")
    by_monai(
        RandScaleIntensity(STRONG_BRIGHTNESS, share["brightness"]),
        RandScaleIntensityFixedMean(share["contrast"], STRONG_CONTRAST, preserve_range=True),
        RandSimulateLowResolution(share["low_resolution"], upsample_mode=linear, zoom_range=STRONG_RESOLUTION),
        RandAdjustContrast(share["gamma_inverted"], invert_image=True, **gamma),
        RandAdjustContrast(share["gamma"], **gamma),
    )
    return image


# ---- geometry -------------------------------------------------------------------------------------------------------
def thin_axes(size: Sequence[int]) -> list[int]:
    """Axes along which a sample has less than 1/`THIN` of the voxels of its longest.

    Examples
    --------
    >>> thin_axes((64, 64, 1)), thin_axes((32, 32, 8)), thin_axes((192, 224, 176))
    ([2], [2], [])
    """
    return [axis for axis, length in enumerate(size) if THIN * length < max(size)]


def turn_matrix(angles_deg: Sequence[float] | np.ndarray, scale: Sequence[float] | np.ndarray) -> Matrix:
    """Rotation about the three axes [°], and before it `scale` along each [-], shape (3, 3).

    Examples
    --------
    >>> turn_matrix((0, 0, 90), (1, 2, 1)).round(6).tolist()
    [[0.0, -2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    rotation = create_rotate(3, tuple(np.deg2rad(angles_deg).tolist()))
    return np.asarray(rotation @ create_scale(3, tuple(scale)), dtype=np.float64)[:3, :3]


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(no_augmentation),
    "light": Augmentation(light_augmentation),
    "published": Augmentation(published_augmentation, published_turn),
    "strong": Augmentation(strong_augmentation, strong_turn),
}
"""Name to augmentation, a function of (image, target, mask) and a random generator."""
