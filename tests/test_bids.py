"""One row per subject, with what is really on disk."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq, linprog
from scipy.spatial.transform import Rotation

from reperfuse.cohort.bids import lesion_cohort, perfusion_cohort
from reperfuse.cohort.checks import check_overlap, check_same_grid
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


def with_image(root, name, place, affine=AFFINE, shape=(6, 7, 8)):
    """One more image of a subject, in anat or dwi."""
    path = root / name / "ses-1" / f"{place.format(f'{name}_ses-1')}.nii.gz"
    save_volume(path, Volume(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), affine))


def test_modalities_are_listed_in_one_order_with_a_path_each(tmp_path):
    lesion_subject(tmp_path, "sub-a")
    for place in ("anat/{}_FLAIR", "dwi/{}_ADC", "dwi/{}_dwi"):
        with_image(tmp_path, "sub-a", place, np.diag([1.0, 1, 1, 1]))
    lesion_subject(tmp_path, "sub-b")
    table = lesion_cohort(tmp_path)
    assert table.modalities.tolist() == ["t1w dwi adc flair", "t1w"]
    assert table.columns.tolist()[-5:] == ["modalities", "t1w", "dwi", "adc", "flair"]
    assert table[["t1w", "dwi", "adc", "flair"]].notna().to_numpy().tolist() == [[True] * 4, [True] + [False] * 3]
    assert table.adc[0] == "sub-a/ses-1/dwi/sub-a_ses-1_ADC.nii.gz"
    assert all((tmp_path / path).is_file() for path in table.loc[0, ["t1w", "dwi", "adc", "flair"]])
    assert (table.image == table.t1w).all()


def test_the_image_is_the_one_on_the_masks_grid(tmp_path):
    lesion_subject(tmp_path, "sub-a")
    with_image(tmp_path, "sub-a", "dwi/{}_dwi")
    t1w = next((tmp_path / "sub-a").rglob("*_T1w.nii.gz"))
    save_volume(t1w, Volume(np.ones((9, 9, 9), np.int16), AFFINE))
    (row,) = lesion_cohort(tmp_path).itertuples()
    assert row.image == row.dwi
    assert (row.n_i, row.n_j, row.n_k) == (6, 7, 8)


def test_an_image_twice_is_named(tmp_path):
    lesion_subject(tmp_path, "sub-a")
    with_image(tmp_path, "sub-a", "anat/{}_run-2_T1w")
    with pytest.raises(InputError, match=r"sub-a/ses-1 has 2 T1w images"):
        lesion_cohort(tmp_path)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (Volume(np.full((6, 7, 8), 3, np.uint8), AFFINE), "holds the value 3"),
        (Volume(np.full((6, 7, 8), -1, np.int16), AFFINE), "holds the value -1"),
        (Volume(np.full((6, 7, 8), 0.5, np.float32), AFFINE), "holds the value 0.5"),
        (Volume(np.full((6, 7, 8), np.nan, np.float32), AFFINE), "holds the value nan"),
        (Volume(np.ones((6, 7, 9), np.uint8), AFFINE), "lies on the grid of no image"),
        (Volume(np.ones((6, 7, 8, 2), np.uint8), AFFINE), "lies on the grid of no image"),
        (Volume(np.ones((6, 7, 8), np.uint8), AFFINE + np.outer([1, 0, 0, 0], [0, 0, 0, 2])), "grid of no image"),
    ],
)
def test_a_mask_changed_by_hand_is_named(tmp_path, mask, sentence):
    lesion_subject(tmp_path, "sub-a")
    path = next((tmp_path / "derivatives").rglob("*_mask.nii.gz"))
    save_volume(path, mask)
    with pytest.raises(InputError, match=sentence) as told:
        lesion_cohort(tmp_path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("part", ["derivatives/lesion/sub-a", "sub-a"])
@pytest.mark.parametrize("kept", [0, 30])
def test_a_file_damaged_in_the_tree_is_named(tmp_path, part, kept):
    lesion_subject(tmp_path, "sub-a")
    path = next((tmp_path / part).rglob("*.nii.gz"))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=path.name):
        lesion_cohort(tmp_path)


def test_only_headers_of_images_are_read(tmp_path):
    lesion_subject(tmp_path, "sub-a")
    path = next((tmp_path / "sub-a").rglob("*_T1w.nii.gz"))
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:352]))
    assert len(lesion_cohort(tmp_path)) == 1


def turned(degrees, centre, spacing=(1.0, 1, 1), shape=(10, 10, 10)):
    """A grid turned about k whose middle lies at `centre`."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Volume(np.zeros(shape, np.uint8), affine)


@pytest.mark.parametrize(
    ("other", "meet"),
    [
        (turned(0, (0, 0, 0)), True),
        (turned(45, (3, 2, 1), spacing=(-1, 2, 5)), True),
        (turned(0, (9.9, 0, 0)), True),
        (turned(0, (10.1, 0, 0)), False),
        (turned(0, (0, 0, -10.1)), False),
        (turned(45, (11.9, 0, 0)), True),  # half a side and half a diagonal: 12.07
        (turned(45, (12.2, 0, 0)), False),
        (turned(45, (9, 9, 0)), False),  # the boxes around both overlap
        (turned(0, (0, 0, 0), shape=(1, 1, 1)), True),
        (turned(0, (500, 500, 500), spacing=(100, 100, 100)), True),
    ],
)
def test_boxes_meet_or_are_apart_whatever_their_turn(other, meet):
    image = turned(0, (0, 0, 0))
    for pair in ((image, other), (other, image)):
        if meet:
            check_overlap(pair[0], "one", pair[1], "two")
        else:
            with pytest.raises(InputError, match="one and two have no place in common"):
                check_overlap(pair[0], "one", pair[1], "two")


def common_depth_mm(one, other):
    """How deep the deepest point common to two boxes lies in both [mm], negative where there is none."""
    sides, bounds = [], []
    for volume in (one, other):
        half = np.array(volume.data.shape) / 2 * volume.spacing_mm
        axes = (volume.affine[:3, :3] / volume.spacing_mm).T
        middle = axes @ (volume.affine @ [*(np.array(volume.data.shape) - 1) / 2, 1])[:3]
        sides += [axes, -axes]
        bounds += [half + middle, half - middle]
    faces = np.column_stack([np.concatenate(sides), np.ones(12)])
    return linprog([0, 0, 0, -1], A_ub=faces, b_ub=np.concatenate(bounds), bounds=(None, None)).x[3]


@settings(max_examples=40, deadline=None)
@given(
    angles=arrays(float, (2, 3), elements=st.floats(0, 360)),
    spacings=arrays(float, (2, 3), elements=st.floats(0.5, 6)),
    towards=arrays(float, 3, elements=st.floats(-1, 1)),
)
def test_boxes_meet_until_the_last_point_common_to_both(angles, spacings, towards):
    assume(np.linalg.norm(towards) > 0.1)

    def boxes(distance_mm):
        for angle, spacing, middle in zip(angles, spacings, (np.zeros(3), distance_mm * towards), strict=True):
            affine = np.eye(4)
            affine[:3, :3] = Rotation.from_euler("xyz", angle, degrees=True).as_matrix() * spacing
            affine[:3, 3] = middle - affine[:3, :3] @ [2.5, 3.5, 9.5]
            yield Volume(np.zeros((6, 8, 20), np.uint8), affine)

    touching_mm = brentq(lambda distance: common_depth_mm(*boxes(distance)), 0, 5000, xtol=1e-3)
    one, other = boxes(touching_mm - 0.05)
    check_overlap(one, "one", other, "two")
    one, other = boxes(touching_mm + 0.05)
    with pytest.raises(InputError, match="no place in common"):
        check_overlap(one, "one", other, "two")


@pytest.mark.parametrize(("shift", "same"), [(1e-7, True), (5e-4, True), (0.1, False)])
def test_grids_are_one_up_to_rounding(shift, same):
    image = Volume(np.zeros((3, 3, 3)), AFFINE)
    moved = Volume(image.data, AFFINE + shift * np.outer([1, 1, 1, 0], [1, 1, 1, 1]))
    if same:
        check_same_grid(moved, "mask", image, "image")
    else:
        with pytest.raises(InputError, match="mask lies elsewhere in space than image"):
            check_same_grid(moved, "mask", image, "image")
