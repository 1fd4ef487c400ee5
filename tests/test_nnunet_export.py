"""What nnU-Net gets of a cohort, and what is taken back from it, lie on the same axes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks.nnunet_export import DATASET, axis_sums, export, predictions
from reperfuse.errors import InputError
from reperfuse.training.samples import Subject


def subject(folder: Path, name: str, lesion: bool = True) -> Subject:
    """Two channels of noise and a lesion off centre, on a cube, whose shape tells no axes apart."""
    rng = np.random.default_rng(len(name))
    target = np.zeros((1, 9, 9, 9), np.uint8)
    target[0, 1:3, 4, 6:9] = 3 * lesion
    (folder / name).mkdir(parents=True)
    np.save(folder / name / "image.npy", rng.normal(size=(2, 9, 9, 9)).astype(np.float32))
    np.save(folder / name / "target.npy", target)
    np.save(folder / name / "mask.npy", np.ones((9, 9, 9), np.uint8))
    return Subject(name, folder / name)


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Subject, Subject]:
    train, test = subject(tmp_path, "sub-1"), subject(tmp_path, "sub-22")
    export([train], [test], tmp_path / "peer", 2.5)
    return tmp_path / "peer", train, test


def answered(folder: Path, name: str, image: np.ndarray, probability: np.ndarray) -> None:
    (folder / "predictions").mkdir()
    sums = dict(zip(("sums_i", "sums_j", "sums_k"), axis_sums(image), strict=True))
    np.savez(folder / "predictions" / f"{name}.npz", probability=probability, **sums)


def test_images_and_labels_are_exported_voxel_for_voxel(exported):
    folder, train, _ = exported
    image, target, _ = train.load()
    for number in (0, 1):
        read = nib.load(folder / DATASET / "imagesTr" / f"sub-1_000{number}.nii.gz")
        np.testing.assert_array_equal(read.get_fdata(dtype=np.float32), image[number])
        assert read.header.get_zooms() == (2.5, 2.5, 2.5)
    label = nib.load(folder / DATASET / "labelsTr" / "sub-1.nii.gz").get_fdata()
    np.testing.assert_array_equal(label, target[0] > 0)


def test_truths_of_test_subjects_stay_at_home(exported):
    folder, _, _ = exported
    assert [file.name for file in folder.rglob("sub-22*")] and not list((folder / DATASET / "labelsTr").glob("sub-22*"))


def test_a_prediction_comes_back_as_it_was_written(exported):
    folder, _, test = exported
    probability = np.random.default_rng(0).random((9, 9, 9), np.float32)
    answered(folder, "sub-22", test.load()[0][0], probability)
    np.testing.assert_array_equal(predictions(folder, "sub-22"), probability)


@pytest.mark.parametrize("turned", [np.transpose, np.flip, lambda a: np.flip(a, 1), lambda a: a.swapaxes(0, 1)])
def test_a_prediction_on_other_axes_is_refused(exported, turned):
    folder, _, test = exported
    answered(folder, "sub-22", turned(test.load()[0][0]), np.zeros((9, 9, 9), np.float32))
    with pytest.raises(InputError, match="other axes"):
        predictions(folder, "sub-22")


def test_a_missing_prediction_names_its_file(exported):
    with pytest.raises(InputError, match=r"sub-22\.npz is missing"):
        predictions(exported[0], "sub-22")


def test_an_export_is_refused_that_nnunet_could_not_use(exported, tmp_path):
    folder, train, test = exported
    with pytest.raises(InputError, match="exists already"):
        export([train], [test], folder, 2.5)
    with pytest.raises(InputError, match="sub-1 would be trained and tested on"):
        export([train], [train, test], tmp_path / "both", 2.5)
    with pytest.raises(InputError, match="has a lesion"):
        export([subject(tmp_path, "sub-333", lesion=False)], [test], tmp_path / "healthy", 2.5)
