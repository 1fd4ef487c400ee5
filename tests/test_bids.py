"""One row per subject, with what is really on disk."""

import json

import numpy as np
import pytest

from reperfuse.cohort.bids import lesion_cohort, perfusion_cohort
from reperfuse.cohort.checks import check_same_grid
from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume, save_volume

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def lesion_subject(root, name, voxels=3, session="ses-1"):
    anat = f"{name}/{session}/anat" if session else f"{name}/anat"
    stem = f"{name}_{session}" if session else name
    mask = np.zeros((6, 7, 8), np.uint8)
    mask.flat[:voxels] = 1
    save_volume(root / anat / f"{stem}_T1w.nii.gz", Volume(np.arange(336, dtype=np.int16).reshape(6, 7, 8), AFFINE))
    save_volume(root / "derivatives/lesion" / anat / f"{stem}_label-L_desc-T1lesion_mask.nii.gz", Volume(mask, AFFINE))


def perfusion_patient(root, name, reference=True):
    signal = Volume(np.ones((6, 7, 2, 12), np.int16), AFFINE, np.arange(12) * 1.5, te_s=0.03, tr_s=1.5)
    save_volume(root / name / "perf" / f"{name}_dsc.nii.gz", signal)
    if reference:
        path = root / "derivatives/reference" / name / "perf" / f"{name}_desc-reference_tmax.nii.gz"
        save_volume(path, Volume(np.ones((6, 7, 2), np.float32), AFFINE))


def test_lesion_rows_are_sorted_and_carry_volume_grid_and_centre(tmp_path):
    lesion_subject(tmp_path, "sub-r002s001", voxels=5)
    lesion_subject(tmp_path, "sub-r001s002", voxels=0, session=None)
    (tmp_path / "participants.tsv").write_text("participant_id\tcentre\nsub-r002s001\tR002\nsub-r001s002\tn/a\n")
    table = lesion_cohort(tmp_path)
    assert list(table.participant_id) == ["sub-r001s002", "sub-r002s001"]
    assert list(table.centre) == ["unknown", "R002"]
    assert table.lesion_volume_ml.tolist() == pytest.approx([0, 5 * 0.02])
    assert (table[["n_i", "n_j", "n_k"]] == [6, 7, 8]).all(axis=None)
    assert (table[["spacing_i_mm", "spacing_j_mm", "spacing_k_mm"]] == [2, 2, 5]).all(axis=None)
    assert all((tmp_path / path).is_file() for path in [*table.image, *table["mask"]])


def test_a_subject_with_two_sessions_is_one_row(tmp_path):
    lesion_subject(tmp_path, "sub-a", session="ses-2")
    lesion_subject(tmp_path, "sub-a", session="ses-1", voxels=7)
    (row,) = lesion_cohort(tmp_path).itertuples()
    assert (row.session, row.n_sessions) == ("ses-1", 2)
    assert "ses-1" in row.image
    assert "ses-1" in row.mask


def test_a_perfusion_row_without_reference_says_so(tmp_path):
    perfusion_patient(tmp_path, "sub-b")
    perfusion_patient(tmp_path, "sub-a", reference=False)
    table = perfusion_cohort(tmp_path)
    assert list(table.participant_id) == ["sub-a", "sub-b"]
    assert list(table.reference.notna()) == [False, True]
    assert (table[["n_i", "n_j", "n_k", "n_frames"]] == [6, 7, 2, 12]).all(axis=None)
    assert (table[["te_s", "tr_s"]] == [0.03, 1.5]).all(axis=None)
    assert (tmp_path / table.reference[1]).is_file()


@pytest.mark.parametrize("cohort", [lesion_cohort, perfusion_cohort])
def test_a_tree_without_subjects_asks_for_ingest(cohort, tmp_path):
    with pytest.raises(InputError, match="run `reperfuse ingest` first"):
        cohort(tmp_path)


def test_a_subject_without_mask_is_named(tmp_path):
    lesion_subject(tmp_path, "sub-a")
    next((tmp_path / "derivatives").rglob("*_mask.nii.gz")).unlink()
    with pytest.raises(InputError, match="sub-a has 0 masks"):
        lesion_cohort(tmp_path)


def test_a_damaged_series_is_named(tmp_path):
    perfusion_patient(tmp_path, "sub-a")
    (tmp_path / "sub-a/perf/sub-a_dsc.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"sub-a_dsc.nii.gz is missing or damaged"):
        perfusion_cohort(tmp_path)


def test_times_come_from_the_sidecar(tmp_path):
    perfusion_patient(tmp_path, "sub-a")
    path = tmp_path / "sub-a/perf/sub-a_dsc.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"EchoTime": 0.045}))
    assert perfusion_cohort(tmp_path).te_s[0] == 0.045


@pytest.mark.parametrize(("shift", "same"), [(1e-7, True), (5e-4, True), (0.1, False)])
def test_grids_are_one_up_to_rounding(shift, same):
    image = Volume(np.zeros((3, 3, 3)), AFFINE)
    moved = Volume(image.data, AFFINE + shift * np.outer([1, 1, 1, 0], [1, 1, 1, 1]))
    if same:
        check_same_grid(moved, "mask", image, "image")
    else:
        with pytest.raises(InputError, match="mask lies elsewhere in space than image"):
            check_same_grid(moved, "mask", image, "image")
