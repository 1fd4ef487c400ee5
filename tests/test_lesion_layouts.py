"""Sets with several images per subject: every layout ends as one tree, each image on its own grid."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from lesion_files import AFFINES, ATLAS, DWI_AFFINE, FLAIR_AFFINE, FLAT, LOOSE, RELEASED, SHAPES, SOOP, write_set

from reperfuse.cohort.bids import lesion_cohort
from reperfuse.cohort.inbox import ingest_lesion
from reperfuse.cohort.lesion_names import lesion_file
from reperfuse.imaging.volume import load_volume


@pytest.fixture
def door(tmp_path):
    """The outcomes of ingesting tmp_path/inbox into tmp_path/bids."""
    return lambda: list(ingest_lesion(tmp_path / "inbox", tmp_path / "bids", tmp_path / "quarantine"))


def noise(*shape):
    return np.random.default_rng(len(shape)).random(shape)


def refusal(outcomes):
    (outcome,) = outcomes
    assert not outcome.accepted
    return outcome.reason


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("sub-strokecase0001_ses-0001_dwi.nii.gz", "dwi"),
        ("sub-strokecase0001_ses-0001_adc.nii.gz", "adc"),
        ("sub-strokecase0001_ses-0001_ADC.nii", "adc"),
        ("sub-strokecase0001_ses-0001_flair.nii.gz", "flair"),
        ("sub-strokecase0001_FLAIR.nii.gz", "flair"),
        ("sub-1_rec-TRACE_dwi.nii.gz", "dwi"),
        ("sub-1_rec-ADC_dwi.nii.gz", "adc"),
        ("sub-r001s001_ses-1_space-orig_desc-brain_T1w.nii.gz", "t1w"),
        ("c0001s0004t01_t1w_stx.nii.gz", "t1w"),
        ("sub-strokecase0001_ses-0001_msk.nii.gz", None),
        ("sub-1_space-TRACE_desc-lesionAcute_mask.nii.gz", None),
        ("031768_LesionSmooth_2_stx.nii.gz", None),
    ],
)
def test_a_name_says_what_a_file_shows(name, modality):
    assert lesion_file(Path(name)).modality == modality


@pytest.mark.parametrize(
    "name", ["sub-1_desc-brain_mask.nii.gz", "sub-1_dwi.json", "sub-1_T2w.nii.gz", "dwi.nii.gz", "._sub-1_dwi.nii.gz"]
)
def test_other_names_say_nothing(name):
    assert lesion_file(Path(name)) is None


@pytest.mark.parametrize("layout", [RELEASED, FLAT, LOOSE, SOOP], ids=["released", "flat", "loose", "soop"])
def test_each_image_keeps_its_grid_and_the_mask_lies_beside_the_dwi(tmp_path, door, layout):
    written = write_set(tmp_path / "inbox", layout=layout)
    (outcome,) = door()
    assert (outcome.accepted, outcome.reason) == (True, "")
    session = "ses-0001" if "{ses}" in layout["dwi"] else None
    folder = Path("sub-strokecase0001", *([session] if session else []))
    stem = "_".join(folder.parts)
    for name, place in {"dwi": "dwi/{}_dwi", "adc": "dwi/{}_ADC", "flair": "anat/{}_FLAIR"}.items():
        image = load_volume(tmp_path / "bids" / folder / f"{place.format(stem)}.nii.gz")
        np.testing.assert_array_equal(image.data, load_volume(written[name]).data)
        np.testing.assert_allclose(image.affine, AFFINES[name])
    (mask,) = (tmp_path / "bids/derivatives/lesion" / folder / "dwi").glob("*_mask.nii.gz")
    np.testing.assert_array_equal(load_volume(mask).data, load_volume(written["mask"]).data)
    (row,) = lesion_cohort(tmp_path / "bids").itertuples()
    assert (row.modalities, row.image, row.session) == ("dwi adc flair", row.dwi, session)


def test_a_missing_modality_is_allowed_and_marked(tmp_path, door):
    write_set(tmp_path / "inbox", flair=None)
    (outcome,) = door()
    assert (outcome.accepted, outcome.reason) == (True, "FLAIR is missing.")
    entry = json.loads((tmp_path / "bids/manifest.json").read_text())["subjects"]["sub-strokecase0001"]
    assert entry["repairs"] == ["FLAIR is missing."]
    (row,) = lesion_cohort(tmp_path / "bids").itertuples()
    assert (row.modalities, row.flair, row.t1w) == ("dwi adc", None, None)


def test_without_dwi_the_mask_lies_on_the_adc(tmp_path, door):
    write_set(tmp_path / "inbox", dwi=None)
    assert door()[0].reason == "DWI is missing."
    (row,) = lesion_cohort(tmp_path / "bids").itertuples()
    assert row.image == row.adc
    assert "/dwi/" in row.mask


def test_a_mask_on_the_flair_lies_beside_the_flair(tmp_path, door):
    mask = nib.Nifti1Image(np.ones(SHAPES["flair"], np.uint8), FLAIR_AFFINE)
    write_set(tmp_path / "inbox", mask=mask)
    assert door()[0].accepted
    (row,) = lesion_cohort(tmp_path / "bids").itertuples()
    assert row.image == row.flair
    assert "/anat/" in row.mask
    assert (row.n_i, row.n_j, row.n_k) == SHAPES["flair"]


def test_a_t1w_image_with_mask_misses_nothing(tmp_path, door):
    layout = {**ATLAS, "flair": "{sub}_{ses}_FLAIR.nii.gz"}
    write_set(tmp_path / "inbox", layout=layout)
    write_set(tmp_path / "inbox", "sub-r001s002", ATLAS)
    assert [outcome.reason for outcome in door()] == ["", ""]
    table = lesion_cohort(tmp_path / "bids")
    assert table.modalities.tolist() == ["t1w", "t1w flair"]
    assert (table.image == table.t1w).all()


def test_both_sets_go_into_one_tree_and_its_title_follows(tmp_path, door):
    def title():
        return json.loads((tmp_path / "bids/dataset_description.json").read_text())["Name"]

    write_set(tmp_path / "inbox", "sub-r001s001", ATLAS)
    door()
    assert title() == "Stroke lesions on T1w MRI"
    shutil.rmtree(tmp_path / "inbox")
    write_set(tmp_path / "inbox")
    door()
    assert title() == "Stroke lesions on MRI"
    shutil.rmtree(tmp_path / "inbox")
    write_set(tmp_path / "inbox", "sub-r001s001", ATLAS)
    door()
    assert title() == "Stroke lesions on MRI"
    table = lesion_cohort(tmp_path / "bids")
    assert dict(zip(table.participant_id, table.modalities, strict=True)) == {
        "sub-r001s001": "t1w",
        "sub-strokecase0001": "dwi adc flair",
    }


def test_a_mask_on_no_images_grid_is_refused(tmp_path, door):
    write_set(tmp_path / "inbox", mask=np.ones((5, 5, 5), np.uint8))
    assert "on the grid of no image (DWI, ADC, FLAIR)" in refusal(door())


def test_images_without_a_common_place_are_refused(tmp_path, door):
    elsewhere = FLAIR_AFFINE + np.outer([1, 0, 0, 0], [0, 0, 0, 400])
    write_set(tmp_path / "inbox", flair=nib.Nifti1Image(noise(*SHAPES["flair"]), elsewhere))
    reason = refusal(door())
    assert "FLAIR.nii.gz and sub-strokecase0001_ses-0001_dwi.nii.gz have no place in common" in reason
    assert not (tmp_path / "bids/sub-strokecase0001").exists()


def test_a_subject_without_image_is_refused(tmp_path, door):
    write_set(tmp_path / "inbox", dwi=None, adc=None, flair=None)
    assert "a lesion mask but no image in ses-0001" in refusal(door())


def test_one_file_under_two_names_is_refused(tmp_path, door):
    written = write_set(tmp_path / "inbox")
    shutil.copy(written["dwi"], written["adc"])
    assert "are the same file" in refusal(door())


def test_two_images_of_one_modality_are_one_too_many(tmp_path, door):
    write_set(tmp_path / "inbox")
    image = nib.Nifti1Image(noise(6, 7, 8), DWI_AFFINE)
    nib.save(image, tmp_path / "inbox/sub-strokecase0001_ses-0001_run-2_dwi.nii.gz")
    assert "There are 2 DWI images in ses-0001" in refusal(door())


def test_the_dwi_in_the_masks_space_is_taken(tmp_path, door):
    written = write_set(tmp_path / "inbox")
    image = nib.Nifti1Image(noise(4, 4, 4), DWI_AFFINE)
    nib.save(image, tmp_path / "inbox/sub-strokecase0001_ses-0001_space-MNI_dwi.nii.gz")
    assert door()[0].accepted
    (row,) = lesion_cohort(tmp_path / "bids").itertuples()
    np.testing.assert_array_equal(load_volume(tmp_path / "bids" / row.dwi).data, load_volume(written["dwi"]).data)


def test_a_diffusion_series_of_one_frame_is_an_image_and_of_several_is_refused(tmp_path, door):
    write_set(tmp_path / "inbox", dwi=noise(6, 7, 8, 1))
    assert door()[0].accepted
    assert load_volume(next((tmp_path / "bids").rglob("*_dwi.nii.gz"))).data.shape == (6, 7, 8)
    write_set(tmp_path / "inbox", dwi=noise(6, 7, 8, 3))
    assert "dwi.nii.gz has 3 frames: a DWI image has one" in refusal(door())


def test_nan_is_counted_per_modality(tmp_path, door):
    adc = noise(6, 7, 8)
    adc[0, 0, :5] = np.nan
    write_set(tmp_path / "inbox", adc=adc)
    assert "5 ADC voxels without a value set to 0." in door()[0].reason


def test_of_several_images_a_note_says_which(tmp_path, door):
    flair = nib.Nifti1Image(noise(14, 30, 9), FLAIR_AFFINE)
    flair.set_sform(None, 0)
    flair.set_qform(None, 0)
    write_set(tmp_path / "inbox", flair=flair)
    assert door()[0].reason.startswith("FLAIR: The NIfTI header states no orientation")


def test_what_is_missing_in_one_of_two_sessions_is_said_of_that_one(tmp_path, door):
    write_set(tmp_path / "inbox")
    write_set(tmp_path / "inbox", ses="ses-0002", adc=None)
    assert door()[0].reason == "ADC is missing in ses-0002."
    (row,) = lesion_cohort(tmp_path / "bids").itertuples()
    assert (row.session, row.n_sessions, row.modalities) == ("ses-0001", 2, "dwi adc flair")


def test_a_second_run_changes_nothing(tmp_path, door):
    write_set(tmp_path / "inbox", flair=None)
    (first,) = door()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "bids").rglob("*")}
    (second,) = door()
    assert second.unchanged
    assert second.reason == first.reason
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()} == {
        path: clock for path, clock in before.items() if path.is_file()
    }


@pytest.mark.realdata
def test_a_real_case_of_isles22_goes_through(tmp_path, door, shared_data):
    """Its mask is invented: the case was published without one."""
    shutil.copytree(shared_data / "lesions/deepisles_case0001", tmp_path / "inbox")
    dwi = load_volume(next((tmp_path / "inbox").glob("*_dwi.nii.gz")))
    mask = nib.Nifti1Image((dwi.data > np.percentile(dwi.data, 99.5)).astype(np.uint8), dwi.affine)
    nib.save(mask, tmp_path / "inbox/sub-strokecase0001_ses-0001_msk.nii.gz")
    (outcome,) = door()
    assert (outcome.accepted, outcome.reason) == (True, "FLAIR is missing.")
    (row,) = lesion_cohort(tmp_path / "bids").itertuples()
    assert (row.modalities, row.n_i, row.n_j, row.n_k) == ("dwi adc", 112, 112, 73)
    assert (row.spacing_i_mm, row.spacing_j_mm, row.spacing_k_mm) == pytest.approx((2, 2, 2), abs=0.01)
    assert row.lesion_volume_ml == pytest.approx(0.005 * dwi.data.size * 0.008, rel=0.01)
    np.testing.assert_array_equal(load_volume(tmp_path / "bids" / row.dwi).data, dwi.data)
