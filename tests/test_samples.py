"""Patches come from where they say, the same for the same seed, and nothing is kept that grows with the cohort."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from reperfuse.errors import InputError
from reperfuse.training import samples
from reperfuse.training.predict import predict_volume
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


# ---- groups of channels and several targets -------------------------------------------------------------------------
GROUPS = {"signal": [0, 3], "aif": [3, 5], "maps": [5, 6]}


@pytest.fixture
def grouped(tmp_path):
    """A half-precision image whose channel c holds c plus less than one, three groups, two targets."""
    subject = make_subject(tmp_path, "grouped")
    rng = np.random.default_rng(0)
    image = np.arange(6)[:, None, None, None] + 0.9 * rng.random((6, *SHAPE))
    np.save(subject.folder / "image.npy", image.astype(np.float16))
    np.save(subject.folder / "target.npy", np.stack([np.full(SHAPE, 7.0), np.full(SHAPE, 8.0)]).astype(np.float32))
    described = {"inputs": GROUPS, "targets": ["tmax", "cbv"]}
    (subject.folder / "subject.json").write_text(json.dumps(described), encoding="utf-8")
    return subject


@pytest.mark.parametrize(
    ("inputs", "channels"),
    [
        ((), [0, 1, 2, 3, 4, 5]),
        (("signal",), [0, 1, 2]),
        (("aif", "maps"), [3, 4, 5]),
        (("maps", "signal"), [5, 0, 1, 2]),
        (("signal", "maps", "aif"), [0, 1, 2, 5, 3, 4]),
    ],
)
def test_groups_come_in_the_order_they_are_asked_for(grouped, inputs, channels):
    image, _, _ = replace(grouped, inputs=inputs).load()
    assert np.floor(image).max(axis=(1, 2, 3)).tolist() == channels


@pytest.mark.parametrize("inputs", [(), ("aif",), ("signal", "aif"), ("signal", "aif", "maps")])
def test_groups_that_are_neighbours_in_the_file_are_mapped_not_loaded(grouped, inputs):
    assert all(isinstance(array, np.memmap) for array in replace(grouped, inputs=inputs).load())


def test_a_patch_of_groups_is_cut_from_them_alone(grouped):
    chosen = replace(grouped, inputs=("maps", "signal"))
    assert all(isinstance(part, np.memmap) for part in chosen.parts()[0])
    patch = PatchSamples([chosen], n_samples=1, patch_size=(4, 3, 2), seed=3)[0]["image"]
    whole = PatchSamples([grouped], n_samples=1, patch_size=(4, 3, 2), seed=3)[0]["image"]
    assert torch.equal(patch, whole[[5, 0, 1, 2]])


@pytest.mark.parametrize(("target", "value"), [(None, 7), ("tmax", 7), ("cbv", 8)])
def test_the_target_asked_for_is_learned_or_else_the_first(grouped, target, value):
    _, truth, _ = replace(grouped, target=target).load()
    assert truth.shape == (1, *SHAPE) and (truth == value).all()


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [({"inputs": ("matched",)}, "perfusion.preprocess.inputs"), ({"target": "mtt"}, "perfusion.preprocess.targets")],
)
def test_what_was_not_processed_is_refused_with_the_remedy(grouped, asked, parameter):
    with pytest.raises(InputError, match=rf"signal, aif, maps.*{parameter}|tmax, cbv.*{parameter}"):
        replace(grouped, **asked).load()
    (grouped.folder / "subject.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=rf"names none.*{parameter}"):
        replace(grouped, **asked).load()


@pytest.mark.parametrize("patch_size", [None, (4, 4, 4)])
def test_half_precision_images_become_single_before_anything_is_computed_from_them(grouped, patch_size):
    image = np.load(grouped.folder / "image.npy")
    np.save(grouped.folder / "image.npy", image * np.float16(8000))  # its variance does not fit half precision
    sample = PatchSamples([grouped], n_samples=1, patch_size=patch_size, augment="light")[0]["image"]
    assert sample.dtype == torch.float32 and torch.isfinite(sample).all()


def test_a_network_predicts_from_a_half_precision_image_in_single_precision(grouped):
    seen = []

    class Witness(nn.Module):
        def forward(self, image):
            seen.append(image.dtype)
            return image[:, :1]

    answer = predict_volume(Witness(), grouped.load()[0])
    assert seen == [torch.float32] and answer.dtype == np.float32
