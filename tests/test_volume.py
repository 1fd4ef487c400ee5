"""Volumes and their NIfTI files."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume, load_volume, save_volume, sidecar_path

OBLIQUE = np.array([[-1.9, 0.3, 0.1, 90.0], [0.3, 1.9, 0.4, -100.0], [0.0, -0.2, 4.9, -30.0], [0, 0, 0, 1]])


def bolus(shape=(5, 4, 3, 6), **kwargs):
    data = np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)
    times = {"frame_times_s": 1.5 * np.arange(shape[3]), "te_s": 0.03, "tr_s": 1.5} if len(shape) == 4 else {}
    return Volume(data, OBLIQUE, **times | kwargs)


@given(
    arrays(
        st.sampled_from([np.uint8, np.int16, np.float32]),
        st.tuples(*[st.integers(1, 5)] * 3),
        elements=st.integers(0, 99),
    )
)
@settings(max_examples=20, deadline=None)
def test_a_volume_comes_back_as_it_was_saved(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("v") / "image.nii.gz"
    save_volume(path, Volume(data, OBLIQUE))
    loaded = load_volume(path)
    assert loaded.data.dtype == data.dtype and np.array_equal(loaded.data, data)
    np.testing.assert_allclose(loaded.affine, OBLIQUE, atol=1e-5)


def test_a_dynamic_volume_keeps_its_times_through_the_sidecar(tmp_path):
    volume = bolus()
    save_volume(tmp_path / "dsc.nii.gz", volume)
    loaded = load_volume(tmp_path / "dsc.nii.gz")
    np.testing.assert_allclose(loaded.frame_times_s, volume.frame_times_s)
    assert (loaded.te_s, loaded.tr_s, loaded.n_frames) == (0.03, 1.5, 6)


def test_without_a_sidecar_frame_spacing_comes_from_a_header_that_states_its_unit(tmp_path):
    save_volume(tmp_path / "dsc.nii.gz", bolus())
    (tmp_path / "dsc.json").unlink()
    assert load_volume(tmp_path / "dsc.nii.gz").tr_s == 1.5
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3, 3), np.float32), np.eye(4)), tmp_path / "bare.nii.gz")
    assert load_volume(tmp_path / "bare.nii.gz").tr_s is None


def test_the_same_volume_gives_the_same_bytes_and_no_free_text(tmp_path):
    for name in ("one.nii.gz", "other.nii.gz"):
        save_volume(tmp_path / name, bolus())
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "other.nii.gz").read_bytes()
    assert (tmp_path / "one.nii.gz").read_bytes()[3:8] == bytes(5)  # gzip: no name, no time
    header = nib.load(tmp_path / "one.nii.gz").header
    assert not any(bytes(header[field].tobytes()).strip(b"\0") for field in ("descrip", "db_name", "aux_file"))
    assert not len(header.extensions)


def test_values_that_do_not_fit_the_type_on_disk_are_refused(tmp_path):
    for values, dtype in ((0.5, np.uint8), (300, np.uint8), (np.nan, np.int16)):
        with pytest.raises(ValueError, match="do not fit"):
            save_volume(tmp_path / "x.nii.gz", Volume(np.full((2, 2, 2), values), np.eye(4)), dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.5, 0.02, 0.0])
def test_a_nifti_cut_short_is_one_sentence_that_names_it(tmp_path, ending, share):
    path = tmp_path / f"cut{ending}"
    save_volume(path, bolus((32, 32, 8)))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=f"cut{ending}"):
        load_volume(path)


def test_what_is_not_nifti_is_refused_by_name(tmp_path):
    (tmp_path / "text.nii.gz").write_text("hello")
    with gzip.open(tmp_path / "zipped.nii.gz", "wb") as file:
        file.write(b"hello" * 200)
    for name in ("text.nii.gz", "zipped.nii.gz", "absent.nii.gz", "image.mha"):
        with pytest.raises(InputError, match=name):
            load_volume(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        {"EchoTime": 30},
        {"EchoTime": "30 ms"},
        {"RepetitionTime": -1},
        {"FrameTimes": [0, 1]},
        {"FrameTimes": ["a"] * 6},
        [],
    ],
)
def test_a_sidecar_that_does_not_fit_is_refused(tmp_path, content):
    save_volume(tmp_path / "dsc.nii.gz", bolus())
    sidecar_path(tmp_path / "dsc.nii.gz").write_text(json.dumps(content))
    with pytest.raises(InputError, match="dsc"):
        load_volume(tmp_path / "dsc.nii.gz")


def test_axes_of_length_one_after_the_third_are_dropped(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 3, 1, 1), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 3, 1, 6), np.float32), np.eye(4)), tmp_path / "five.nii.gz")
    assert load_volume(tmp_path / "mask.nii.gz").data.shape == (4, 4, 3)
    assert load_volume(tmp_path / "five.nii.gz").data.shape == (4, 4, 3, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": np.zeros((2, 2))},
        {"affine": np.diag([1, 1, 0, 1.0])},
        {"affine": np.full((4, 4), np.nan)},
        {"frame_times_s": [0, 1, 1]},
        {"frame_times_s": [0, 1]},
        {"te_s": 0.0},
        {"tr_s": float("nan")},
    ],
)
def test_what_makes_no_image_makes_no_volume(wrong):
    right = {"data": np.zeros((2, 2, 2, 3)), "affine": np.eye(4), "frame_times_s": [0, 1, 2.0]}
    Volume(**right)
    with pytest.raises(ValueError):
        Volume(**right | wrong)
