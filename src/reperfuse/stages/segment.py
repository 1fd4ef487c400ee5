"""The segment verb: the lesion of one image, as a mask on the grid that the image came on."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import ndimage

from reperfuse.cohort.checks import check_image, without_nan
from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume, load_volume, save_volume
from reperfuse.params import LesionPreprocess
from reperfuse.stages.lesion import ARM, THRESHOLD, model_grid, network_input, on_grid_of
from reperfuse.stages.trained import CHAMPION, TrainedModel, champion_uri, load_model

ENDINGS = (".nii", ".nii.gz")


def segment(
    image_path: Path, out: Path, *, model: str = CHAMPION, probability: Path | None = None, mirror: bool = False
) -> None:
    """Write the mask (0 and 1, uint8) and, where asked for, the probability (float32); print volume and count.

    Parameters
    ----------
    image_path
        T1w image, NIfTI, 3D, in any orientation and spacing.
    out, probability
        NIfTI files to write, on the image's grid, each whole or not at all.
    model
        `champion`, `models:/…`, `runs:/…` or the folder of a model of the lesion arm.
    mirror
        Whether the answers for all eight mirror images are averaged, which takes eight times as long.

    Raises
    ------
    InputError
        If the image is not one 3D image that shows something, the model is none of this arm, or a file that was named
        for writing is no NIfTI or the image itself.
    """
    _check_outputs(image_path, out, probability)
    image = load_volume(image_path)
    if image.data.ndim == 4:
        raise InputError(f"{image_path} has {image.n_frames} frames: give one 3D image, such as one of its frames.")
    image, notes = without_nan(image, "voxels")
    check_image(image, str(image_path))
    trained = load_model(ARM, champion_uri(ARM) if model == CHAMPION else model, LesionPreprocess)
    found = lesion_probability(image, trained, mirror=mirror)
    mask = found > trained.scored_with.get(THRESHOLD, 0.5)
    save_volume(out, Volume(mask, image.affine), np.uint8, description="lesion")
    if probability is not None:
        save_volume(probability, Volume(found, image.affine), np.float32, description="lesion probability")
    count = ndimage.label(mask, ndimage.generate_binary_structure(3, 3))[1]
    volume_ml = mask.sum() * float(np.prod(image.spacing_mm)) / 1000
    for note in notes:
        print(note)
    print(f"{out}: {volume_ml:.2f} mL in {count} lesion{'s' * (count != 1)}. Research use only.")


def lesion_probability(image: Volume, trained: TrainedModel[LesionPreprocess], *, mirror: bool = False) -> np.ndarray:
    """Probability of lesion on the image's own grid, shape (I, J, K), float32."""
    grid = model_grid(image, trained.preprocess)
    array, _ = network_input(grid, trained.preprocess)
    answer = mirrored(trained.predict)(array) if mirror else trained.predict(array)
    return on_grid_of(image, answer, grid)


def mirrored(predict: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """`predict`, averaged over the eight mirror images of its argument (C, I, J, K), each answer turned back.

    Examples
    --------
    >>> first = mirrored(lambda image: image[0] * (np.arange(3) == 0)[:, None, None])
    >>> first(np.ones((1, 3, 1, 1)))[:, 0, 0].tolist()
    [0.5, 0.0, 0.5]
    """

    def mean(array: np.ndarray) -> np.ndarray:
        flips = [axes for n in range(4) for axes in combinations(range(3), n)]
        answers = (np.flip(predict(np.flip(array, tuple(axis + 1 for axis in axes)).copy()), axes) for axes in flips)
        return np.asarray(sum(answers) / len(flips))

    return mean


def _check_outputs(image: Path, out: Path, probability: Path | None) -> None:
    asked = [path for path in (out, probability) if path is not None]
    for path in asked:
        if not path.name.endswith(ENDINGS):
            raise InputError(f"{path} is no name for a NIfTI file: end it in .nii.gz.")
    if len({path.resolve() for path in (image, *asked)}) <= len(asked):
        raise InputError(f"{image} and what is written must be different files: name another with --out.")
