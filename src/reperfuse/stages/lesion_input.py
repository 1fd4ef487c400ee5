"""From the images of a subject to what a lesion network sees: one grid, one brain, a channel for each modality."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reperfuse.cohort.checks import check_image, without_nan
from reperfuse.cohort.lesion_names import MODALITIES
from reperfuse.errors import InputError
from reperfuse.evaluation.operating_point import OperatingPoint
from reperfuse.imaging.volume import Volume, load_volume
from reperfuse.params import LesionPreprocess
from reperfuse.preprocessing.brain import threshold_mask
from reperfuse.preprocessing.geometry import pad_to_multiple, reorient, resample
from reperfuse.preprocessing.intensity import roi_minmax, window, zscore
from reperfuse.stages.trained import TrainedModel

NORMALISATIONS = {"zscore": zscore, "roi_minmax": roi_minmax, "window": window}


@dataclass(frozen=True, eq=False)
class Scan:
    """The images of one subject as they were acquired, or would have been with thicker slices."""

    images: Mapping[str, Volume]
    """By modality, each on its own grid."""
    brain: np.ndarray | None = None
    """What the skull strip keeps, on the model's grid: found on the images as they came, whatever their slices."""


def read_images(root: Path, who: str, paths: Mapping[str, str], settings: LesionPreprocess) -> dict[str, Volume]:
    """The images of one subject by modality, those that it has, in the order of `settings.modalities`.

    Parameters
    ----------
    root
        The BIDS tree.
    paths
        Modality → path relative to `root`, of all that the subject `who` has.

    Raises
    ------
    InputError
        If the subject has none of them, or one is unreadable, not 3D, or shows nothing.
    """
    found = [name for name in settings.modalities if name in paths]
    if not found:
        raise InputError(
            f"{who} has {' and '.join(paths)}, none of lesion.preprocess.modalities "
            f"({', '.join(settings.modalities)}): name what the subjects have in params.yaml, or take this one out of "
            "the tree."
        )
    return {name: read_image(root / paths[name]) for name in found}


def paths_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Modality → path of what a row of the cohort has."""
    return {name: row[name] for name in MODALITIES if isinstance(row[name], str)}


def read_image(path: Path) -> Volume:
    """One 3D image that shows something, without NaN; what was repaired is told in its notes.

    Raises
    ------
    InputError
        If it is unreadable, not 3D, or shows nothing.
    """
    image = load_volume(path)
    if image.data.ndim != 3:
        raise InputError(f"{path} has {image.n_frames} frames: give one 3D image, such as one of its frames.")
    image, notes = without_nan(image, "voxels")
    check_image(image, str(path))
    return Volume(image.data, image.affine, notes=(*image.notes, *notes))


def given_brain(root: Path, image: str, settings: LesionPreprocess) -> Path | None:
    """The brain mask given for an image of the tree, in derivatives/brain; None where the skull strip needs none.

    Raises
    ------
    InputError
        If there should be one, and there is none or several.
    """
    if settings.skull_strip != "given":
        return None
    folder = root / "derivatives" / "brain" / Path(image).parent
    found = sorted(folder.glob("*_mask.nii.gz"))
    if len(found) != 1:
        raise InputError(
            f"{folder} holds {len(found)} brain masks (*_mask.nii.gz), not one: put it there, or keep one."
        )
    return found[0]


def brain_of(images: Mapping[str, Volume], settings: LesionPreprocess, given: Path | None = None) -> np.ndarray | None:
    """What the skull strip keeps of `images`, on the model's grid before padding; None where nothing is stripped.

    Found once, it can be given to `on_model_grid` for the same images at other resolutions.

    Parameters
    ----------
    given
        File of the brain mask, on any grid, for `skull_strip: given`.

    Raises
    ------
    InputError
        If the brain cannot be found.
    """
    if settings.skull_strip == "none":
        return None
    _, first = _reference(images, settings)
    return _brain(first, _resampled(first, settings), settings, given)


def on_model_grid(
    images: Mapping[str, Volume], settings: LesionPreprocess, brain: Path | np.ndarray | None = None
) -> Volume:
    """The images on the model's grid, (I, J, K, C), a channel for each of `settings.modalities`, 0 for one not there.

    The first modality that is there gives the grid: its field of view in RAS at `spacing_mm`, or in `grid_shape`
    voxels, padded by zeros to `pad_multiple`. The others are brought onto it by what the headers say. What the skull
    strip takes away becomes 0.

    Parameters
    ----------
    images
        Modality → image, any orientation and spacing.
    brain
        File of the brain mask, on any grid, for `skull_strip: given`; or what `brain_of` found.

    Raises
    ------
    InputError
        If the brain cannot be found.
    """
    reference, first = _reference(images, settings)
    grid = _resampled(first, settings)

    def channel(name: str) -> np.ndarray:
        if name == reference:
            return grid.data
        return resample(images[name], like=grid).data if name in images else np.zeros_like(grid.data)

    data = np.stack([channel(name) for name in settings.modalities], axis=-1).astype(np.float32)
    inside = brain if isinstance(brain, np.ndarray) else _brain(first, grid, settings, brain)
    if inside is not None:
        data = data * inside[..., None]
    padded, undo = pad_to_multiple(np.moveaxis(data, -1, 0), settings.pad_multiple)
    corner = [part.start for part in undo[1:]]
    affine = grid.affine.copy()
    affine[:3, 3] -= grid.affine[:3, :3] @ corner
    return Volume(np.moveaxis(padded, 0, -1), affine)


def _reference(images: Mapping[str, Volume], settings: LesionPreprocess) -> tuple[str, Volume]:
    """The modality that gives the grid, and its image with axes toward Right, Anterior, Superior."""
    name = next(name for name in settings.modalities if name in images)
    return name, reorient(images[name], "RAS")


def _resampled(first: Volume, settings: LesionPreprocess) -> Volume:
    spacing: Any = settings.spacing_mm
    if settings.grid_shape is not None:
        spacing = np.multiply(first.spacing_mm, first.data.shape) / settings.grid_shape
    return resample(first, spacing_mm=spacing)


def _brain(first: Volume, grid: Volume, settings: LesionPreprocess, given: Path | None) -> np.ndarray | None:
    """What the skull strip keeps, on `grid`; None where nothing is stripped."""
    rule = settings.skull_strip
    if rule == "none":
        return None
    if rule == "threshold":
        return threshold_mask(grid.data, settings.threshold_fraction)
    if rule == "given":
        if given is None:
            raise InputError("The model was trained behind given brain masks: name one with --brain.")
        found = load_volume(given)
    elif rule == "template":
        # Loads SimpleITK and the template, which no other rule needs.
        from reperfuse.preprocessing.template import template_mask

        return template_mask(grid)
    else:
        from reperfuse.stages.skull_strip import brain_by_program

        found = brain_by_program(first, rule)
    inside = resample(Volume((found.data > 0).astype(np.uint8), found.affine), like=grid, mask=True).data > 0
    if not inside.any():
        raise InputError(f"{given or rule}: the brain mask lies nowhere in the image: check its affine.")
    return inside


def network_input(grid: Volume, settings: LesionPreprocess) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees, (C, I, J, K), and the mask (I, J, K) that its intensities are taken from.

    `grid` is from `on_model_grid`, degraded or not. A channel of a modality that is missing stays 0.
    """
    channels = np.moveaxis(grid.data, -1, 0)
    there = [channel for channel in channels if channel.any()]
    brain = threshold_mask(there[0] if there else channels[0], settings.threshold_fraction)
    if settings.normalisation in NORMALISATIONS:
        rule = NORMALISATIONS[settings.normalisation]
        channels = np.stack([rule(channel, brain) if channel.any() else channel for channel in channels])
    return np.asarray(channels, dtype=np.float32), brain


def channels_of(array: np.ndarray, trained: TrainedModel[LesionPreprocess]) -> np.ndarray:
    """The channels of `network_input` that a model takes, in its order: those of `train.inputs` where it names some."""
    modalities = trained.preprocess.modalities
    return array[[modalities.index(name) for name in trained.inputs]] if trained.inputs else array


def operating_point(scored_with: Mapping[str, Any]) -> OperatingPoint:
    """How a model's probabilities become a mask; one half, nothing taken away, for a model that says nothing."""
    default = OperatingPoint()
    return OperatingPoint(
        float(scored_with.get("probability_threshold") or default.probability_threshold),
        float(scored_with.get("smallest_ml") or default.smallest_ml),
    )


def on_grid_of(like: Volume, probability: np.ndarray, grid: Volume) -> np.ndarray:
    """A network's answer on the model's `grid`, brought to the voxels of `like`: shape of that, float32."""
    answer = Volume(probability.astype(np.float32), grid.affine)
    return np.asarray(resample(answer, like=like, order=1, antialias=False).data, dtype=np.float32)
