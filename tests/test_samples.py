"""Patches come from where they say, the same for the same seed, and nothing is kept that grows with the cohort."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from reperfuse.errors import InputError
from reperfuse.params import Params, load_params
from reperfuse.training import augment as augmentations
from reperfuse.training import samples
from reperfuse.training.augment import AUGMENTATIONS, STRONG_SHARES
from reperfuse.training.fit import FitSettings
from reperfuse.training.predict import predict_volume
from reperfuse.training.samples import EpochSampler, PatchSamples, Subject
from reperfuse.training.sampling import Sampling

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


@pytest.mark.parametrize("augment", ["none", "light"])
@pytest.mark.parametrize(
    ("patch_size", "fraction"), [(None, 0.0), ((4, 3, 2), 0.0), ((4, 3, 2), 0.5), ((16, 4, 4), 0.5), ((5, 5, 5), 1.0)]
)
def test_the_stream_of_patches_follows_from_seed_epoch_and_index_alone(cohort, augment, patch_size, fraction):
    options = {"patch_size": patch_size, "foreground_fraction": fraction, "augment": augment}
    data = PatchSamples(cohort, n_samples=5, seed=7, **options)
    for index in range(15):
        rng = np.random.default_rng([7, index // 5, index % 5])
        order = np.random.default_rng([7, index // 3]).permutation(3)
        arrays = [np.array(array) for array in cohort[order[index % 3]].load()]
        if patch_size is not None:
            room = np.maximum(np.subtract(SHAPE, patch_size), 0)
            corner = rng.integers(0, room, endpoint=True)
            if rng.random() < fraction:
                voxels = np.argwhere(arrays[1][0])
                corner = np.clip(voxels[rng.integers(len(voxels))] - np.array(patch_size) // 2, 0, room)
            wide = [np.pad(array, [(0, 0)] * (array.ndim - 3) + [(0, 16)] * 3) for array in arrays]
            (i, j, k), (a, b, c) = corner, patch_size
            arrays = [array[..., i : i + a, j : j + b, k : k + c] for array in wide]
        if augment == "light":
            for axis in (-1, -2, -3):
                if rng.random() < 0.5:
                    arrays = [np.flip(array, axis) for array in arrays]
            scale, shift = rng.uniform(0.9, 1.1), rng.uniform(-0.1, 0.1)
            arrays[0] = arrays[0] * scale + shift * arrays[0].std()
        found = data[index]
        assert np.allclose(found["image"], arrays[0], rtol=1e-6)
        assert np.array_equal(found["target"], arrays[1]) and np.array_equal(found["mask"][0], arrays[2] > 0)


# ---- rejection ------------------------------------------------------------------------------------------------------
def rejecting(subjects, share, tries=200, **options):
    sampling = Sampling("rejection", lesion_share=share, tries=tries)
    return PatchSamples(subjects, n_samples=40, patch_size=(4, 4, 4), sampling=sampling, **options)


def share_held(sample, subject):
    return float(sample["target"].sum()) / float(subject.load()[1].sum())


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_a_patch_kept_by_rejection_holds_its_share_of_the_lesion(tmp_path, share):
    subject = make_subject(tmp_path, "sub", lesion=(slice(3, 6), slice(2, 5), slice(1, 3)))
    data = rejecting([subject], share, tries=500)
    held = [share_held(data[index], subject) for index in range(40)]
    assert min(held) >= share and (share == 1 or min(held) < share + 0.2)
    corners = {int(data[index]["image"][0, 0, 0, 0]) for index in range(40)}
    assert len(corners) > 1  # not always the fullest


def test_a_lesion_that_fits_no_patch_gives_the_fullest_of_the_tries(tmp_path):
    subject = make_subject(tmp_path, "sub", lesion=(slice(0, 12), slice(4, 6), slice(3, 5)))
    few, many = ([share_held(rejecting([subject], 0.9, tries)[i], subject) for i in range(40)] for tries in (1, 300))
    assert many == pytest.approx([4 / 12] * 40) and min(few) < 4 / 12


def test_rejection_takes_any_patch_of_a_subject_without_lesion(tmp_path):
    data = rejecting([make_subject(tmp_path, "healthy")], 0.4)
    assert len({int(data[index]["image"][0, 0, 0, 0]) for index in range(40)}) > 20


def test_the_first_patch_that_holds_enough_is_taken_so_that_more_tries_change_nothing(tmp_path):
    subject = make_subject(tmp_path, "sub", lesion=(5, 4, 4))
    once, often = (rejecting([subject], 0.4, tries) for tries in (100, 400))
    assert all(share_held(once[index], subject) == share_held(often[index], subject) == 1 for index in range(40))


def test_a_lesion_is_read_once_however_many_patches_are_tried(cohort, monkeypatch):
    reads = []
    foreground = PatchSamples._foreground
    monkeypatch.setattr(PatchSamples, "_foreground", lambda *a: reads.append(a[1]) or foreground(*a))
    data = rejecting(cohort, 0.4)
    [data[index] for index in range(30)]
    assert sorted(reads) == [0, 1, 2]


# ---- slices ---------------------------------------------------------------------------------------------------------
def slicing(subjects, n_samples=60, patch_size=None, **options):
    return PatchSamples(subjects, n_samples=n_samples, patch_size=patch_size, sampling=Sampling("slices", **options))


def places(data, axis):
    """Numbers of the slices of a dataset along an axis."""
    return [int(np.unravel_index(int(data[i]["image"].min()), SHAPE)[axis]) for i in range(len(data))]


@pytest.mark.parametrize("axis", range(3))
def test_a_slice_is_a_plane_of_the_volume_with_its_axis_last(cohort, axis):
    data = slicing(cohort, slice_axis="ijk"[axis])
    volume = np.arange(float(np.prod(SHAPE))).reshape(SHAPE)
    found = places(data, axis)
    assert set(found) == set(range(SHAPE[axis]))
    for index, number in enumerate(found):
        sample = data[index]
        assert np.array_equal(sample["image"][0, ..., 0], volume.take(number, axis))
        assert sample["image"].shape == sample["target"].shape == sample["mask"].shape
        assert np.array_equal(sample["target"][0, ..., 0], cohort[0].load()[1][0].take(number, axis))


def test_slices_come_from_their_range(cohort):
    assert set(places(slicing(cohort, slice_range=(0.5, 0.75), slice_axis="i"), 0)) == {6, 7, 8}
    assert set(places(slicing(cohort, slice_range=(0.51, 0.52)), 2)) == {4}


@pytest.mark.parametrize(
    ("slices", "extent", "expected"),
    [
        ("lesion", (0.0, 1.0), {2, 3}),
        ("empty", (0.0, 1.0), {0, 1, *range(4, 12)}),
        ("any", (0.0, 0.5), set(range(6))),
        ("lesion", (0.25, 1.0), {3}),
        ("lesion", (0.5, 0.75), {6, 7, 8}),  # none there: any of the range
        ("empty", (0.17, 0.33), {2, 3}),
    ],
)
def test_slices_with_or_without_lesion_and_what_is_done_where_there_are_none(cohort, slices, extent, expected):
    assert set(places(slicing(cohort, slices=slices, slice_range=extent, slice_axis="i"), 0)) == expected


def test_a_canvas_cuts_and_fills_a_plane_evenly(cohort):
    sample = slicing(cohort, patch_size=(8, 14, 1))[0]
    assert sample["image"].shape == (1, 8, 14, 1)
    assert sample["mask"][0, :, 2:12, 0].all() and sample["mask"].sum() == 8 * 10
    whole = slicing(cohort)[0]["image"]
    assert torch.equal(sample["image"][:, :, 2:12], whole[:, 2:10])
    turned = slicing(cohort, patch_size=(1, 10, 6), slice_axis="i")[0]["image"]
    assert torch.equal(turned, slicing(cohort, slice_axis="i")[0]["image"][:, :, 1:7])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize(
    ("kind", "patch_size"), [("patches", (6, 6, 6)), ("patches", None), ("rejection", (6, 6, 6)), ("slices", None)]
)
def test_every_sample_is_fixed_by_seed_and_index_and_of_one_shape(cohort, kind, patch_size, augment):
    options = {"patch_size": patch_size, "augment": augment, "sampling": Sampling(kind), "foreground_fraction": 0.5}
    first, again, other = (PatchSamples(cohort, n_samples=8, seed=seed, **options) for seed in (1, 1, 2))
    for index in (15, 3, 0, 3):
        assert same(first[index], again[index])
        shape = (12, 10, 1) if kind == "slices" else patch_size or SHAPE
        assert all(first[index][key].shape == (1, *shape) for key in ("image", "target", "mask"))
        assert first[index]["target"].unique().tolist() in ([0], [0, 1], [1])
    whole = kind == "patches" and patch_size is None and augment == "none"
    assert whole or not all(same(first[index], other[index]) for index in range(16))


def test_a_turned_patch_shows_what_lies_beside_it_and_no_black_corner(tmp_path, monkeypatch):
    subject = make_subject(tmp_path, "sub", lesion=(20, 20, 20), shape=(40, 40, 40))
    np.save(subject.folder / "image.npy", np.ones((1, 40, 40, 40), np.float32))
    only = {"rotation": 1.0, "scaling": 1.0}
    monkeypatch.setattr(augmentations, "STRONG_SHARES", {name: only.get(name, 0.0) for name in STRONG_SHARES})
    data = PatchSamples([subject], n_samples=9, patch_size=(8, 8, 8), foreground_fraction=1.0, augment="strong")
    for index in range(9):
        assert torch.allclose(data[index]["image"], torch.ones(1), atol=1e-5) and data[index]["mask"].all()


@pytest.mark.parametrize(
    ("sampling", "patch_size", "words"),
    [
        ({"kind": "rejection"}, None, "rejection draws patches: set patch_size"),
        ({"kind": "slices"}, (8, 8, 8), "set patch_size to 1 along it"),
        ({"kind": "slices", "slice_axis": "i"}, (8, 8, 1), "planes across i"),
        ({"kind": "blocks"}, None, "patches, rejection, slices"),
        ({"kind": "slices", "slice_axis": "z"}, None, "i, j, k"),
        ({"kind": "slices", "slices": "some"}, None, "any, lesion, empty"),
        ({"kind": "slices", "slice_range": (0.9, 0.7)}, None, "must rise"),
        ({"kind": "slices", "slice_range": (0.7, 1.1)}, None, "must rise"),
        ({"kind": "rejection", "lesion_share": 0}, (8, 8, 8), "lesion_share must lie above 0"),
        ({"kind": "rejection", "tries": 0}, (8, 8, 8), "tries be 1 or more"),
    ],
)
def test_sampling_that_cannot_be_is_refused_in_a_sentence(cohort, sampling, patch_size, words):
    with pytest.raises(InputError, match=words):
        PatchSamples(cohort, n_samples=1, patch_size=patch_size, sampling=Sampling(**sampling))


@pytest.mark.parametrize("arm", ["lesion", "perfusion"])
def test_params_have_the_fields_and_the_defaults_of_the_record(arm):
    train = getattr(Params(), arm).train
    assert train.sampling.model_dump() == asdict(Sampling())
    assert FitSettings(sampling=train.sampling.model_dump()).sampling == Sampling()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("{patch_size: null, sampling: {kind: rejection}}", "lesion.train.sampling.*set patch_size"),
        ("{sampling: {kind: slices}}", "lesion.train.sampling.*one voxel thick"),
        ("{sampling: {slice_range: [0.9, 0.7]}}", "sampling.slice_range.*must rise"),
        ("{sampling: {lesion_share: 1.5}}", "sampling.lesion_share"),
        ("{sampling: {kinds: slices}}", "did you mean kind"),
        ("{augment: heavy}", "published"),
    ],
)
def test_params_of_sampling_that_cannot_be_are_refused_in_a_sentence(tmp_path, train, words):
    (tmp_path / "params.yaml").write_text(f"lesion: {{train: {train}}}", encoding="utf-8")
    with pytest.raises(InputError, match=words):
        load_params(tmp_path / "params.yaml")


def test_the_remembered_foreground_is_bounded(cohort, monkeypatch):
    monkeypatch.setattr(samples, "KEPT_SUBJECTS", 2)
    monkeypatch.setattr(samples, "KEPT_VOXELS", 1)
    data = PatchSamples(cohort, n_samples=9, patch_size=(3, 3, 3), foreground_fraction=1.0)
    before = [data[index] for index in range(9)]
    assert len(data._remembered) == 2 and all(len(voxels) == 1 for voxels in data._remembered.values())
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
    [({"inputs": ("matched",)}, "preprocess.inputs"), ({"target": "mtt"}, "perfusion.preprocess.targets")],
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


@pytest.mark.parametrize("augment", ["none", "light"])
def test_tensors_are_made_of_arrays_of_their_own(grouped, augment, monkeypatch):
    made, from_numpy = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: made.append(array) or from_numpy(array))
    PatchSamples([grouped], n_samples=1, augment=augment)[0]  # a whole volume of single precision: mapped, read-only
    assert len(made) == 3 and all(array.flags.writeable and array.flags.c_contiguous for array in made)


def test_a_network_predicts_from_a_half_precision_image_in_single_precision(grouped):
    seen = []

    class Witness(nn.Module):
        def forward(self, image):
            seen.append(image.dtype)
            return image[:, :1]

    answer = predict_volume(Witness(), grouped.load()[0])
    assert seen == [torch.float32] and answer.dtype == np.float32
