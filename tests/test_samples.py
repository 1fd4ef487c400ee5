"""Patches come from where they say, the same for the same seed, and nothing is kept that grows with the cohort."""

import numpy as np
import pytest
import torch

from reperfuse.errors import InputError
from reperfuse.training import samples
from reperfuse.training.samples import EpochSampler, PatchSamples, Subject, light_augmentation

SHAPE = (12, 10, 8)


def make_subject(folder, name, lesion=None, shape=SHAPE, channels=1):
    """A subject whose image holds each voxel's flat index, so that a patch tells where it was cut."""
    (folder / name).mkdir(parents=True)
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape).repeat(channels, 0)
    target = np.zeros((1, *shape), np.uint8)
    if lesion is not None:
        target[0][lesion] = 1
    for key, array in {"image": image, "target": target, "mask": np.ones(shape, np.uint8)}.items():
        np.save(folder / name / f"{key}.npy", array)
    return Subject(name, folder / name)


@pytest.fixture
def cohort(tmp_path):
    return [make_subject(tmp_path, f"sub-{i}", lesion=(slice(2, 4), 5, 6)) for i in range(3)]


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in ("image", "target", "mask"))


def test_a_sample_is_fixed_by_seed_and_index(cohort):
    first, again, other = (
        PatchSamples(cohort, n_samples=5, patch_size=(4, 4, 4), augment="light", foreground_fraction=0.5, seed=seed)
        for seed in (1, 1, 2)
    )
    for index in (9, 3, 0, 3):  # in any order, as workers and resumed trainings ask
        assert same(first[index], again[index])
    assert not all(same(first[index], other[index]) for index in range(10))


def test_epochs_differ_and_do_not_overlap(cohort):
    data = PatchSamples(cohort, n_samples=4, patch_size=(4, 4, 4))
    sampler = EpochSampler(len(data))
    first = list(sampler)
    sampler.set_epoch(2)
    assert first == [0, 1, 2, 3] and list(sampler) == [8, 9, 10, 11]
    assert not all(same(data[a], data[b]) for a, b in zip(first, sampler, strict=True))


def test_every_subject_is_seen_equally_often(tmp_path):
    cohort = [make_subject(tmp_path, f"sub-{i}", shape=(2, 2, 2 + i)) for i in range(4)]
    data = PatchSamples(cohort, n_samples=3)
    sizes = [data[index]["mask"].shape[-1] for index in range(12)]
    assert sorted(sizes) == sorted([2, 3, 4, 5] * 3)


def test_a_patch_is_a_window_of_the_volume(cohort):
    patch = PatchSamples(cohort, n_samples=9, patch_size=(4, 3, 2))[7]
    corner = np.unravel_index(int(patch["image"][0, 0, 0, 0]), SHAPE)
    volume = torch.arange(float(np.prod(SHAPE))).reshape(SHAPE)
    window = tuple(slice(start, start + size) for start, size in zip(corner, (4, 3, 2), strict=True))
    assert torch.equal(patch["image"][0], volume[window])
    assert patch["target"].shape == patch["mask"].shape == (1, 4, 3, 2)
    assert patch["mask"].dtype == torch.bool and patch["target"].dtype == torch.float32


def test_patches_reach_every_corner_of_the_volume(cohort):
    data = PatchSamples(cohort, n_samples=200, patch_size=(10, 8, 6))
    corners = {int(data[index]["image"][0, 0, 0, 0]) for index in range(200)}
    assert len(corners) == 3**3


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_foreground_patches_hold_the_lesion(cohort, fraction):
    data = PatchSamples(cohort, n_samples=60, patch_size=(3, 3, 3), foreground_fraction=fraction)
    share = np.mean([bool(data[index]["target"].any()) for index in range(60)])
    assert share == 1 if fraction else share < 0.5


def test_a_foreground_patch_is_centred_where_the_border_allows(tmp_path):
    inside = make_subject(tmp_path, "a", lesion=(5, 4, 4))
    corner = make_subject(tmp_path, "b", lesion=(0, 0, 0))
    options = {"n_samples": 1, "patch_size": (5, 5, 5), "foreground_fraction": 1.0}
    assert PatchSamples([inside], **options)[0]["target"][0, 2, 2, 2] == 1
    assert PatchSamples([corner], **options)[0]["target"][0, 0, 0, 0] == 1


def test_a_subject_without_lesion_gives_patches_all_the_same(tmp_path):
    healthy = make_subject(tmp_path, "healthy")
    data = PatchSamples([healthy], n_samples=1, patch_size=(4, 4, 4), foreground_fraction=1.0)
    assert not data[0]["target"].any()


def test_a_volume_smaller_than_the_patch_is_filled_up_outside_the_mask(cohort):
    patch = PatchSamples(cohort, n_samples=1, patch_size=(16, 10, 9), foreground_fraction=1.0)[0]
    assert patch["image"].shape == (1, 16, 10, 9)
    assert patch["mask"].sum() == np.prod(SHAPE) and not patch["image"][0, 12:].any()


def test_augmentation_moves_image_target_and_mask_together():
    rng = np.random.default_rng(0)
    mask = rng.random(SHAPE) > 0.5
    arrays = mask[None].astype(np.float32), mask[None], mask
    for seed in range(20):
        image, target, moved = light_augmentation(arrays, np.random.default_rng(seed))
        assert np.array_equal(target[0], moved) and np.array_equal(image[0] > image.mean(), moved)


def test_the_remembered_foreground_is_bounded(cohort, monkeypatch):
    monkeypatch.setattr(samples, "KEPT_SUBJECTS", 2)
    monkeypatch.setattr(samples, "KEPT_VOXELS", 1)
    data = PatchSamples(cohort, n_samples=9, patch_size=(3, 3, 3), foreground_fraction=1.0)
    before = [data[index] for index in range(9)]
    assert len(data._foreground) == 2 and all(len(voxels) == 1 for voxels in data._foreground.values())
    assert all(same(data[index], sample) for index, sample in enumerate(before))


def test_volumes_are_mapped_not_loaded(cohort):
    assert all(isinstance(array, np.memmap) for array in cohort[0].load())


@pytest.mark.parametrize("name", ["image", "target", "mask"])
def test_a_missing_or_damaged_array_is_named(tmp_path, name):
    subject = make_subject(tmp_path, "sub")
    path = subject.folder / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{name}.npy cannot be read"):
        subject.load()
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}.npy is missing"):
        subject.load()


def test_arrays_of_different_shape_are_refused(tmp_path):
    subject = make_subject(tmp_path, "sub")
    np.save(subject.folder / "mask.npy", np.ones((3, 3, 3), np.uint8))
    with pytest.raises(InputError, match="do not belong together"):
        subject.load()


def test_nobody_to_train_on_and_unknown_augmentation_are_refused(cohort):
    with pytest.raises(InputError, match="no subject"):
        PatchSamples([], n_samples=1)
    with pytest.raises(InputError, match="none, light"):
        PatchSamples(cohort, n_samples=1, augment="heavy")
