"""The segment verb: the lesion of one image, as a mask on the grid that the image came on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from reperfuse.cohort.lesion_names import MODALITIES
from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume, save_volume
from reperfuse.params import LesionPreprocess
from reperfuse.stages.lesion import ARM
from reperfuse.stages.lesion_input import (
    channels_of,
    network_input,
    on_grid_of,
    on_model_grid,
    operating_point,
    read_image,
)
from reperfuse.stages.trained import CHAMPION, TrainedModel, champion_uri, load_model

ENDINGS = (".nii", ".nii.gz")


def segment(
    image_path: Path,
    out: Path,
    *,
    model: str = CHAMPION,
    others: Mapping[str, Path] | None = None,
    brain: Path | None = None,
    probability: Path | None = None,
    mirror: bool | None = None,
) -> None:
    """Write the mask (0 and 1, uint8) and, where asked for, the probability (float32); print volume and count.

    Parameters
    ----------
    image_path
        NIfTI, 3D, in any orientation and spacing: a T1w, or the first modality that the model takes.
    out, probability
        NIfTI files to write, on the image's grid, each whole or not at all.
    model
        `champion`, `models:/…`, `runs:/…` or the folder of a model of the lesion arm.
    others
        Further modalities of the model → their images, each on its own grid; those not given count as missing.
    brain
        Brain mask, for a model that was trained behind given ones.
    mirror
        Whether the answers for all eight mirror images are averaged, which takes eight times as long; None does what
        the model was scored with.

    Raises
    ------
    InputError
        If an image is not one 3D image that shows something, the model is none of this arm or does not take a modality
        that was given, or a file that was named for writing is no NIfTI or one of the images.
    """
    others = dict(others or {})
    _check_outputs([image_path, *others.values(), *([brain] if brain else [])], out, probability)
    trained = load_model(ARM, champion_uri(ARM) if model == CHAMPION else model, LesionPreprocess)
    images = _images(image_path, others, trained)
    if brain is not None and trained.preprocess.skull_strip != "given":
        raise InputError(f"The model's skull strip is {trained.preprocess.skull_strip}, not given: leave --brain out.")
    image = next(iter(images.values()))
    found = lesion_probability(images, trained, brain=brain, mirror=mirror)
    mask = operating_point(trained.scored_with).mask(found, image.spacing_mm)
    save_volume(out, Volume(mask, image.affine), np.uint8, description="lesion")
    if probability is not None:
        save_volume(probability, Volume(found, image.affine), np.float32, description="lesion probability")
    count = ndimage.label(mask, ndimage.generate_binary_structure(3, 3))[1]
    volume_ml = mask.sum() * float(np.prod(image.spacing_mm)) / 1000
    for note in dict.fromkeys(note for one in images.values() for note in one.notes):
        print(note)
    missing = [name for name in _taken(trained) if name not in images]
    if missing:
        print(f"Without {' and '.join(missing)}, which the model takes as well: name them with --modality.")
    print(f"{out}: {volume_ml:.2f} mL in {count} lesion{'s' * (count != 1)}. Research use only.")


def named_images(given: Sequence[str]) -> dict[str, Path]:
    """Modality → file, of texts such as `adc=FILE`.

    Raises
    ------
    InputError
        If a text is not of this form.

    Examples
    --------
    >>> named_images(["adc=a.nii.gz"])["adc"].name
    'a.nii.gz'
    """
    found = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path or name.lower() not in MODALITIES or name.lower() in found:
            raise InputError(f"--modality {text}: give NAME=FILE once per image, NAME of {', '.join(MODALITIES)}.")
        found[name.lower()] = Path(path)
    return found


def _taken(trained: TrainedModel[LesionPreprocess]) -> tuple[str, ...]:
    """The modalities that a model takes."""
    return trained.inputs or trained.preprocess.modalities


def _images(image_path: Path, others: Mapping[str, Path], trained: TrainedModel[LesionPreprocess]) -> dict[str, Volume]:
    """Images by modality, the one to be segmented first."""
    first, *further = _taken(trained)
    for name in others:
        if name not in further:
            known = f"takes {', '.join(further)} beside it" if further else "takes no other"
            raise InputError(f"--modality {name}: the model segments {first} and {known}.")
    return {first: read_image(image_path)} | {name: read_image(path) for name, path in others.items()}


def lesion_probability(
    images: Mapping[str, Volume],
    trained: TrainedModel[LesionPreprocess],
    *,
    brain: Path | None = None,
    mirror: bool | None = None,
) -> np.ndarray:
    """Probability of lesion on the grid of the first of the images, shape (I, J, K), float32."""
    grid = on_model_grid(images, trained.preprocess, brain)
    array = channels_of(network_input(grid, trained.preprocess)[0], trained)
    return on_grid_of(next(iter(images.values())), trained.predict(array, mirror=mirror), grid)


def _check_outputs(images: Sequence[Path], out: Path, probability: Path | None) -> None:
    asked = [path for path in (out, probability) if path is not None]
    for path in asked:
        if not path.name.endswith(ENDINGS):
            raise InputError(f"{path} is no name for a NIfTI file: end it in .nii.gz.")
    if len({path.resolve() for path in (*images, *asked)}) < len(images) + len(asked):
        raise InputError(
            f"{images[0]} and what else is read or written must be different files: name another with --out."
        )
