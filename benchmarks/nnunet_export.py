"""A lesion cohort as nnU-Net v2 reads it, and the probabilities that `nnunet_peer.py` left beside it.

    export(train, test, folder, spacing_mm)
    # PEER_PYTHON benchmarks/nnunet_peer.py folder --patch 48 48 48 --batch 2 --minutes 5
    probability = predictions(folder, test[0].participant_id)

nnU-Net brings a torch of its own with torchvision, and lives in another environment: folders are all that is shared.
"""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from reperfuse.errors import InputError
from reperfuse.files import write_json
from reperfuse.training.samples import Subject

DATASET = Path("raw", "Dataset001_Lesions")
"""nnU-Net wants a number and a name; `nnunet_peer.py` looks for the same."""


def export(train: Sequence[Subject], test: Sequence[Subject], folder: Path, spacing_mm: float) -> None:
    """Write subjects as an nnU-Net raw dataset: images of both sides, labels of those for training alone.

    Channels are called noNorm, so that nnU-Net leaves the intensities as they are: z-scores within the brain
    already, 0 outside. What the target holds above 0 becomes label 1.

    Raises
    ------
    InputError
        If a dataset is there already, a subject is on both sides, or nobody to train on has a lesion.
    """
    folder = folder / DATASET
    if folder.exists():
        raise InputError(f"{folder} exists already: remove it, as nnU-Net would train on whatever lies in it.")
    if both := {s.participant_id for s in train} & {s.participant_id for s in test}:
        raise InputError(f"{', '.join(sorted(both))} would be trained and tested on: split the cohort by subject.")
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    channels, voxels = 0, 0
    for subjects, side in ((train, "Tr"), (test, "Ts")):
        for subject in subjects:
            image, target, _ = subject.load()
            channels = len(image)
            for number, channel in enumerate(image):
                file = folder / f"images{side}" / f"{subject.participant_id}_{number:04d}.nii.gz"
                nib.save(nib.Nifti1Image(np.asarray(channel, np.float32), affine), file)
            if side == "Tr":
                lesion = np.asarray(target[0] > 0, np.uint8)
                voxels += int(lesion.sum())
                nib.save(nib.Nifti1Image(lesion, affine), folder / "labelsTr" / f"{subject.participant_id}.nii.gz")
    if not voxels:
        raise InputError(f"Nobody in {folder / 'labelsTr'} has a lesion: nnU-Net cannot plan without one.")
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {str(number): "noNorm" for number in range(channels)},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": len(train),
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "NibabelIO",
        },
    )


def predictions(folder: Path, name: str) -> np.ndarray:
    """Probability of a lesion of one test subject, shape (I, J, K) of its exported image, float32.

    Raises
    ------
    InputError
        If it is missing, of another shape, or belongs to an image with other sums along its axes, as after a swap or
        a flip of axes.
    """
    path = folder / "predictions" / f"{name}.npz"
    if not path.exists():
        raise InputError(f"{path} is missing: run nnunet_peer.py on {folder} first.")
    with np.load(path, allow_pickle=False) as read:
        probability, sums = read["probability"], [read[f"sums_{axis}"] for axis in "ijk"]
    image = nib.load(folder / DATASET / "imagesTs" / f"{name}_0000.nii.gz").get_fdata(dtype=np.float32)
    same = [
        seen.shape == ours.shape and np.allclose(seen, ours, rtol=1e-3, atol=1e-2)
        for seen, ours in zip(sums, axis_sums(image), strict=True)
    ]
    if probability.shape != image.shape or not all(same):
        raise InputError(
            f"{path} holds {probability.shape} of another image, or with other axes, than the {image.shape} exported: "
            "export into an empty folder and run nnunet_peer.py again."
        )
    return probability


def axis_sums(image: np.ndarray) -> list[np.ndarray]:
    """Sum over each plane across the first, second and third axis: no swap and no flip of axes leaves them alone."""
    return [image.sum(axis=others, dtype=np.float64) for others in ((1, 2), (0, 2), (0, 1))]
