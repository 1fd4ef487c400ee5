"""What people bring: any nesting, bad files beside good ones, a power cut in the middle."""

import hashlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from reperfuse.cohort import inbox as inbox_module
from reperfuse.cohort.bids import perfusion_cohort
from reperfuse.cohort.dsc import check_dsc
from reperfuse.cohort.inbox import ingest_lesion, ingest_perfusion
from reperfuse.errors import InputError
from reperfuse.imaging.deidentify import pseudonym
from reperfuse.imaging.dicom_write import study_uid_for, write_dsc_series, write_map_series
from reperfuse.imaging.volume import Volume, load_volume

KEY = b"a key that is 32 bytes, or so..."
AFFINE = np.array([[-3.0, 0, 0, 20], [0, -3, 0, 30], [0, 0, 6, -10], [0, 0, 0, 1]])
ATLAS = "space-MNI152NLin2009aSym"
ANNA = {"patient_id": "MRN-4711-A", "patient_name": "Lindqvist^Anna", "institution": "Sankt Eriks"}
BERT = {"patient_id": "MRN-0815-B", "patient_name": "Oyelaran^Bert", "institution": "Sankt Eriks"}


# ---- what is brought ------------------------------------------------------------------------------------------------
def write_patient(folder, who=ANNA, *, slices=1, frames=20, reference="s", **series):
    """A DSC series and, where asked for, its Tmax map; the files of the DSC series."""
    rng = np.random.default_rng(len(who["patient_id"]) + ord(who["patient_id"][-1]))
    signal = rng.integers(100, 900, (10, 12, slices, frames)).astype(np.float32)
    volume = Volume(signal, AFFINE, np.arange(frames) * 1.5, te_s=0.03, tr_s=1.5)
    files = write_dsc_series(folder / "dsc", volume, **who, **series)
    if reference:
        write_reference(folder / "tmax", who, shape=(10, 12, slices), units=None if reference == "none" else reference)
    return files


def write_reference(folder, who=ANNA, *, shape=(10, 12, 1), scale=1.0, affine=AFFINE, **series):
    tmax = np.random.default_rng(1).integers(0, 9000, shape) / 1000 * scale
    study = study_uid_for(who["patient_id"])
    return write_map_series(folder, Volume(tmax, affine), study_uid=study, **who, **series)


def write_subject(folder, name="sub-r001s001", *, mask=None, t1w=None, mask_affine=AFFINE, session="ses-1"):
    """A T1w image and a mask as ATLAS R2.0 names and nests them."""
    anat = folder / name / session / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(map(ord, name)))
    t1w = rng.integers(1, 200, (6, 7, 8)).astype(np.float32) if t1w is None else t1w
    if mask is None:
        mask = rng.integers(0, 2, (6, 7, 8))
    image = nib.Nifti1Image(t1w, AFFINE)
    image.header["descrip"] = b"Lindqvist^Anna 19500201"
    nib.save(image, anat / f"{name}_{session}_{ATLAS}_T1w.nii.gz")
    if mask is not False:
        path = anat / f"{name}_{session}_{ATLAS}_label-L_desc-T1lesion_mask.nii.gz"
        nib.save(nib.Nifti1Image(np.asarray(mask).astype(np.float32), mask_affine), path)
    return anat


# ---- what becomes of it ---------------------------------------------------------------------------------------------
class Place:
    """An inbox with a tree and a quarantine beside it."""

    def __init__(self, folder):
        self.inbox, self.out, self.quarantine = folder / "inbox", folder / "bids", folder / "quarantine"
        self.inbox.mkdir()

    def perfusion(self, **choice):
        return list(ingest_perfusion(self.inbox, self.out, self.quarantine, key=KEY, **choice))

    def lesion(self):
        return list(ingest_lesion(self.inbox, self.out, self.quarantine))

    def ids(self):
        return sorted(path.name for path in self.out.glob("sub-*"))

    def quarantined(self):
        return sorted(path.parent.name for path in self.quarantine.glob("*/*/reason.txt"))


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    """What was brought a moment ago is complete, unless a test says otherwise."""
    monkeypatch.setattr(inbox_module, "QUIET_S", 0.0)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def bytes_of(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def clocks_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refusal(outcomes):
    (outcome,) = outcomes
    assert not outcome.accepted
    return outcome.reason


# ---- perfusion ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("habits", ["philips", "siemens", "ge"])
def test_a_patient_comes_out_as_written(place, habits):
    write_patient(place.inbox / "any" / "where", slices=5, habits=habits)
    (outcome,) = place.perfusion()
    name = pseudonym(ANNA["patient_id"], KEY)
    assert (outcome.participant_id, outcome.accepted, outcome.unchanged) == (name, True, False)
    dsc = load_volume(place.out / name / "perf" / f"{name}_dsc.nii.gz")
    assert dsc.data.shape == (10, 12, 5, 20)
    assert (dsc.te_s, dsc.tr_s) == (0.03, 1.5)
    np.testing.assert_allclose(dsc.frame_times_s, np.arange(20) * 1.5, atol=0.02)
    tmax = load_volume(place.out / "derivatives/reference" / name / "perf" / f"{name}_desc-reference_tmax.nii.gz")
    assert tmax.data.dtype == np.float32
    expected = np.random.default_rng(1).integers(0, 9000, (10, 12, 5)) / 1000
    back = np.linalg.solve(tmax.affine, AFFINE)  # readers may turn axes; compare by place
    indices = np.rint(back @ np.vstack([np.indices((10, 12, 5)).reshape(3, -1), np.ones(600)])).astype(int)[:3]
    np.testing.assert_allclose(tmax.data[tuple(indices)].reshape(10, 12, 5), expected, atol=1e-3)


def test_nothing_written_names_a_person(place):
    write_patient(place.inbox / "Lindqvist_Anna")
    write_patient(place.inbox / "Oyelaran_Bert", BERT, frames=8)
    assert [outcome.accepted for outcome in place.perfusion()].count(True) == 1
    written = b"".join(
        os.fsencode(path) + (nib.load(path).header.binaryblock if path.name.endswith(".gz") else path.read_bytes())
        for path in place.out.rglob("*")
        if path.is_file()
    ).lower()
    study = study_uid_for(ANNA["patient_id"])
    for secret in ("lindqvist", "anna", "mrn-4711", "sankt", "19500201", "20240314", study, "2.25.", "im_0001"):
        assert secret.encode() not in written


def test_two_patients_in_one_folder_are_two(place):
    for number, who in enumerate((ANNA, BERT)):
        write_patient(place.inbox / str(number), who)
    mixed = place.inbox / "mixed"
    mixed.mkdir()
    for number, path in enumerate(sorted(p for p in place.inbox.rglob("IM_*"))):
        path.rename(mixed / f"{number:05d}")
    assert [outcome.accepted for outcome in place.perfusion()] == [True, True]
    assert place.ids() == sorted(pseudonym(who["patient_id"], KEY) for who in (ANNA, BERT))


def test_one_patient_over_two_folders_is_one(place):
    files = write_patient(place.inbox / "a")
    other = place.inbox / "b" / "deeper"
    other.mkdir(parents=True)
    for path in files[::2]:
        path.rename(other / path.name)
    (outcome,) = place.perfusion()
    assert outcome.accepted
    assert outcome.source == place.inbox
    assert (
        load_volume(place.out / outcome.participant_id / "perf" / f"{outcome.participant_id}_dsc.nii.gz").n_frames == 20
    )


def test_three_percent_missing_are_filled_with_zeros_and_told(place):
    for path in write_patient(place.inbox, slices=5)[7:97:30]:
        path.unlink()
    (outcome,) = place.perfusion()
    assert outcome.accepted
    assert "3 of 100" in outcome.reason
    entry = json.loads((place.out / "manifest.json").read_text())["subjects"][outcome.participant_id]
    assert any("3 of 100" in repair for repair in entry["repairs"])
    dsc = load_volume(place.out / outcome.participant_id / "perf" / f"{outcome.participant_id}_dsc.nii.gz")
    assert (dsc.data == 0).all(axis=(0, 1)).sum() == 3


def test_eight_percent_missing_are_quarantined_and_the_others_continue(place):
    for path in write_patient(place.inbox / "a", slices=5)[5:85:10]:
        path.unlink()
    write_patient(place.inbox / "b", BERT)
    outcomes = {outcome.participant_id: outcome for outcome in place.perfusion()}
    anna, bert = (outcomes[pseudonym(who["patient_id"], KEY)] for who in (ANNA, BERT))
    assert bert.accepted
    assert not anna.accepted
    assert "8 of 100" in anna.reason
    assert place.ids() == [bert.participant_id]
    assert place.quarantined() == [anna.participant_id]


def test_quarantine_is_private_whole_and_idempotent(place):
    for path in write_patient(place.inbox / "a", slices=5)[5:85:10]:
        path.unlink()
    place.perfusion()
    before, clocks = bytes_of(place.quarantine), clocks_of(place.quarantine)
    originals = sorted(hash_ for name, hash_ in before.items() if "/files/" in name)
    assert originals == sorted(bytes_of(place.inbox).values())
    assert all(
        path.stat().st_mode & 0o077 == 0 for path in place.quarantine.rglob("*") if ".gitignore" not in path.name
    )
    assert place.quarantine.stat().st_mode & 0o777 == 0o700
    place.perfusion()
    assert clocks_of(place.quarantine) == clocks


def test_a_mended_patient_leaves_quarantine(place):
    files = write_patient(place.inbox, slices=5)
    aside = place.inbox.parent / "aside"
    aside.mkdir()
    for path in files[5:85:10]:
        shutil.move(path, aside)
    assert not place.perfusion()[0].accepted
    for path in aside.iterdir():
        shutil.move(path, files[0].parent)
    assert place.perfusion()[0].accepted
    assert place.quarantined() == []


def test_a_text_file_named_dcm_is_its_own_row(place):
    write_patient(place.inbox / "a")
    stray = place.inbox / "notes.dcm"
    stray.write_text("call the ward")
    good, bad = place.perfusion()
    assert good.accepted
    assert (bad.accepted, bad.source) == (False, stray)
    assert "notes.dcm" in bad.reason
    assert place.quarantined() == [bad.participant_id]
    stray.unlink()
    write_patient(place.inbox / "c", BERT)[0].rename(stray)
    assert all(outcome.accepted for outcome in place.perfusion())
    assert place.quarantined() == []


def test_an_inbox_with_nothing_but_strays_says_so_row_by_row(place):
    for number in range(3):
        (place.inbox / f"{number}.dcm").write_text("no image")
    assert [outcome.accepted for outcome in place.perfusion()] == [False] * 3
    assert len(place.quarantined()) == 3


def test_a_folder_full_of_strays_is_one_row(place):
    for number in range(30):
        (place.inbox / f"{number}.dcm").write_text("no image")
    assert "30 files" in refusal(place.perfusion())


def test_a_stray_in_a_patients_folder_is_left_out_and_told(place):
    files = write_patient(place.inbox)
    (files[0].parent / "notes.dcm").write_text("call the ward")
    (outcome,) = place.perfusion()
    assert outcome.accepted
    assert "1 unreadable" in outcome.reason


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_a_truncated_dicom_never_passes_in_silence(place, kept):
    path = write_patient(place.inbox, slices=5)[3]
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    (outcome,) = place.perfusion()
    if outcome.accepted:
        assert "1 of 100" in outcome.reason
    else:
        assert path.name in outcome.reason


def test_a_series_too_short_for_a_bolus_is_refused(place):
    write_patient(place.inbox, frames=8, reference=None)
    assert "8 frames" in refusal(place.perfusion())


def test_a_series_without_echo_time_is_refused(place):
    volume = Volume(np.ones((10, 12, 2, 12), np.float32) * np.arange(12), AFFINE, tr_s=1.5)
    write_dsc_series(place.inbox / "a", volume, **ANNA)
    assert "echo time" in refusal(place.perfusion())


def test_a_patient_without_a_series_over_time_is_refused(place):
    write_reference(place.inbox / "a")
    assert "frames over time" in refusal(place.perfusion())


def test_a_patient_without_reference_is_accepted_and_told(place):
    write_patient(place.inbox, reference=None)
    (outcome,) = place.perfusion()
    assert outcome.accepted
    assert "No Tmax reference" in outcome.reason
    assert not list(place.out.rglob("*_tmax.nii.gz"))


def test_of_two_series_over_time_the_longer_is_taken_and_told(place):
    write_patient(place.inbox / "a", frames=20)
    write_patient(place.inbox / "b", frames=12, reference=None, series_number=9)
    (outcome,) = place.perfusion()
    assert outcome.accepted
    assert "2 series over time" in outcome.reason
    assert "20 frames" in outcome.reason


def test_a_series_called_perfusion_goes_before_a_longer_one(place):
    write_patient(place.inbox / "a", frames=12)
    write_patient(place.inbox / "b", frames=20, reference=None, series_number=9, series_description="fMRI rest")
    (outcome,) = place.perfusion()
    assert "12 frames" in outcome.reason
    shutil.rmtree(place.inbox / "a")
    assert "No series over time is called perfusion" in place.perfusion()[0].reason


def dsc(data=None, spacing=3.0, times=None, te_s=0.03):
    times = np.arange(12) * 1.5 if times is None else np.asarray(times, dtype=float)
    data = np.arange(64 * 2 * len(times)).reshape(8, 8, 2, -1) if data is None else data
    step = float(np.median(np.diff(times)))
    return Volume(data, np.diag([spacing, spacing, 6, 1]), times, te_s=te_s, tr_s=step)


@pytest.mark.parametrize(
    ("series", "sentence"),
    [
        ({"times": [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12]}, "gap of 3.00 s where 1.00 s"),
        ({"times": np.arange(12) * 8}, "frame distance 8 s"),
        ({"te_s": 0.9}, "echo time 0.9 s"),
        ({"spacing": 200}, "voxels of 200"),
        ({"data": np.arange(7 * 9 * 2 * 12).reshape(7, 9, 2, 12)}, "no head scan"),
        ({"data": np.ones((8, 8, 2, 12))}, "is 1 in every voxel"),
    ],
)
def test_a_series_from_which_no_perfusion_comes_is_refused(series, sentence):
    check_dsc(dsc())
    with pytest.raises(InputError, match=sentence):
        check_dsc(dsc(**series))


def test_a_map_of_another_study_is_not_this_ones_reference(place):
    write_patient(place.inbox / "a", reference=None)
    other = {key: value for key, value in ANNA.items() if key != "patient_id"}
    tmax = Volume(np.random.default_rng(1).integers(0, 9000, (10, 12, 1)) / 1000, AFFINE)
    write_map_series(
        place.inbox / "b", tmax, study_uid=study_uid_for("earlier"), patient_id=ANNA["patient_id"], **other
    )
    (outcome,) = place.perfusion()
    assert outcome.accepted
    assert "No Tmax reference in the study" in outcome.reason


def test_milliseconds_become_seconds(place):
    write_patient(place.inbox, reference="ms")
    (outcome,) = place.perfusion()
    tmax = load_volume(next(place.out.rglob("*_tmax.nii.gz"))).data
    assert outcome.accepted
    assert 8 < tmax.max() < 9


def test_a_reference_without_unit_needs_the_scale(place):
    write_patient(place.inbox, reference="none")
    assert "--reference-scale" in refusal(place.perfusion())
    (outcome,) = place.perfusion(reference_scale=0.001)
    assert outcome.accepted
    assert 8 < load_volume(next(place.out.rglob("*_tmax.nii.gz"))).data.max() < 9
    assert place.quarantined() == []


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ({"shape": (10, 12, 4)}, "bring both to one grid"),
        ({"affine": AFFINE + np.outer([1, 0, 0, 0], [0, 0, 0, 1])}, "lies elsewhere in space"),
        ({"scale": 7.0}, "--reference-scale"),
        ({"scale": 0.0}, "is 0 in every voxel"),
    ],
)
def test_a_reference_that_cannot_be_the_series_own_is_refused(place, reference, sentence):
    write_patient(place.inbox / "a", reference=None)
    write_reference(place.inbox / "b", **reference)
    assert sentence in refusal(place.perfusion())


def test_two_references_are_one_too_many(place):
    write_patient(place.inbox / "a")
    write_reference(place.inbox / "b", series_description="rapid Tmax", series_number=7)
    reason = refusal(place.perfusion())
    assert "rapid Tmax" in reason
    assert "leave one" in reason


def test_a_picture_of_the_map_is_no_second_reference(place):
    write_patient(place.inbox / "a")
    write_reference(place.inbox / "b", series_description="Tmax colour overlay", series_number=7)
    assert place.perfusion()[0].accepted


def test_another_key_is_noticed_before_it_doubles_the_cohort(place):
    write_patient(place.inbox)
    place.perfusion()
    before = bytes_of(place.out)
    with pytest.raises(InputError, match="another pseudonym key"):
        list(ingest_perfusion(place.inbox, place.out, place.quarantine, key=b"another key"))
    assert bytes_of(place.out) == before


def test_who_would_be_named_is_refused(place, monkeypatch):
    """The check before the door: a reader that lets a name through must not get it into the tree."""
    read = inbox_module.write_patient

    def leaky(folder, participant_id, own, **choice):
        return [*read(folder, participant_id, own, **choice), f"scan of {own[0].patient}"]

    monkeypatch.setattr(inbox_module, "write_patient", leaky)
    write_patient(place.inbox)
    refusal(place.perfusion())
    assert place.ids() == []


@pytest.mark.parametrize(
    "trace", [{"Patient": ANNA["patient_id"]}, {"When": "2024-03-14"}, {"Study": "1.2.840.1.5.6.7"}]
)
def test_a_sidecar_with_a_trace_of_the_person_is_refused(place, monkeypatch, trace):
    monkeypatch.setattr("reperfuse.cohort.dsc.dsc_sidecar", lambda volume, hashes: trace)
    write_patient(place.inbox)
    assert "still holds" in refusal(place.perfusion())
    assert place.ids() == []


# ---- lesion ---------------------------------------------------------------------------------------------------------
def test_a_subject_keeps_its_names_and_gets_its_centre(place):
    write_subject(place.inbox / "ATLAS_2" / "Training" / "R001")
    (outcome,) = place.lesion()
    assert outcome == inbox_module.Outcome("sub-r001s001", outcome.source, True, "")
    anat = place.out / "sub-r001s001/ses-1/anat"
    image = nib.load(anat / f"sub-r001s001_ses-1_{ATLAS}_T1w.nii.gz")
    assert image.shape == (6, 7, 8)
    assert bytes(image.header["descrip"]).strip(b"\0") == b""
    mask = nib.load(
        place.out
        / f"derivatives/lesion/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_{ATLAS}_label-L_desc-T1lesion_mask.nii.gz"
    )
    assert mask.get_data_dtype() == np.uint8
    assert (place.out / "participants.tsv").read_text() == "participant_id\tcentre\nsub-r001s001\tR001\n"
    for folder in (place.out, place.out / "derivatives/lesion"):
        assert json.loads((folder / "dataset_description.json").read_text())["Name"]


def test_images_and_masks_in_separate_folders_find_each_other(place):
    write_subject(place.inbox / "images")
    mask = next(place.inbox.rglob("*_mask.nii.gz"))
    (place.inbox / "masks").mkdir()
    mask.rename(place.inbox / "masks" / mask.name)
    assert place.lesion()[0].accepted


def test_several_masks_of_release_1_become_their_union(place):
    folder = place.inbox / "Site3" / "031768" / "t01"
    folder.mkdir(parents=True)
    masks = np.zeros((2, 6, 7, 8), np.uint8)
    masks[0, 1:3], masks[1, 2:4] = 1, 255
    nib.save(
        nib.Nifti1Image(np.arange(336, dtype=np.float32).reshape(6, 7, 8), AFFINE),
        folder / "031768_t1w_deface_stx.nii.gz",
    )
    for number, mask in zip(("", "_1"), masks, strict=True):
        nib.save(nib.Nifti1Image(mask, AFFINE), folder / f"031768_LesionSmooth{number}_stx.nii.gz")
    (outcome,) = place.lesion()
    assert "union of 2" in outcome.reason
    (path,) = place.out.rglob("*_mask.nii.gz")
    np.testing.assert_array_equal(load_volume(path).data, masks.any(axis=0))
    assert "sub-031768\tSite3" in (place.out / "participants.tsv").read_text()


def test_an_empty_mask_is_legal(place):
    write_subject(place.inbox, mask=np.zeros((6, 7, 8)))
    (outcome,) = place.lesion()
    assert outcome.accepted
    assert "no lesion" in outcome.reason


def test_nan_becomes_zero_and_is_counted(place):
    t1w = np.ones((6, 7, 8), np.float32)
    t1w[0] = np.nan
    t1w[1] = 1.5
    write_subject(place.inbox, t1w=t1w)
    (outcome,) = place.lesion()
    assert outcome.accepted
    assert "56 T1w voxels" in outcome.reason
    assert (load_volume(next(place.out.rglob("*_T1w.nii.gz"))).data[0] == 0).all()


@pytest.mark.parametrize(
    ("subject", "sentence"),
    [
        ({"mask": np.full((6, 7, 8), 3)}, "holds the value 3"),
        ({"mask": np.full((6, 7, 8), 0.5)}, "holds the value 0.5"),
        ({"mask": np.full((6, 7, 8), 255)}, "holds the value 255"),
        ({"mask": np.ones((6, 7, 9))}, "bring both to one grid"),
        ({"mask_affine": AFFINE * 1.01}, "lies elsewhere in space"),
        ({"mask": False}, "no lesion mask"),
        ({"t1w": np.ones((6, 7, 8, 2), np.float32)}, "2 frames"),
        ({"t1w": np.ones((6, 7, 8), np.float32)}, "in every voxel"),
    ],
)
def test_a_subject_that_cannot_be_used_is_quarantined_with_a_sentence(place, subject, sentence):
    write_subject(place.inbox / "a", "sub-r001s001", **subject)
    write_subject(place.inbox / "b", "sub-r001s002")
    bad, good = place.lesion()
    assert good.accepted
    assert not bad.accepted
    assert sentence in bad.reason
    assert (place.quarantine / "lesion/sub-r001s001/reason.txt").read_text() == bad.reason + "\n"
    assert place.ids() == ["sub-r001s002"]


def test_affines_that_differ_by_rounding_are_one_grid(place):
    write_subject(place.inbox, mask_affine=AFFINE + 1e-7)
    assert place.lesion()[0].accepted


@pytest.mark.parametrize("suffix", ["T1w", "mask"])
def test_a_nifti_cut_in_half_is_quarantined(place, suffix):
    write_subject(place.inbox)
    path = next(place.inbox.rglob(f"*_{suffix}.nii.gz"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert path.name in refusal(place.lesion())
    assert place.ids() == []


def test_the_same_scan_under_two_names_is_taken_once(place):
    anat = write_subject(place.inbox)
    for path in list(anat.iterdir()):
        shutil.copy(path, place.inbox / path.name.replace("s001_", "s002_"))
    first, second = place.lesion()
    assert first.accepted
    assert "sub-r001s001" in second.reason


def test_copies_of_a_file_count_once(place):
    anat = write_subject(place.inbox / "a")
    shutil.copytree(anat, place.inbox / "backup")
    (outcome,) = place.lesion()
    assert (outcome.accepted, outcome.reason) == (True, "")


def test_of_two_spaces_the_one_with_the_mask_is_taken(place):
    anat = write_subject(place.inbox)
    native = nib.Nifti1Image(np.arange(60, dtype=np.float32).reshape(3, 4, 5), AFFINE)
    nib.save(native, anat / "sub-r001s001_ses-1_space-orig_T1w.nii.gz")
    assert place.lesion()[0].accepted
    assert ATLAS in next(place.out.rglob("*_T1w.nii.gz")).name


def test_a_brain_mask_is_no_lesion(place):
    anat = write_subject(place.inbox, mask=False)
    brain = nib.Nifti1Image(np.ones((6, 7, 8), np.float32), AFFINE)
    nib.save(brain, anat / f"sub-r001s001_ses-1_{ATLAS}_desc-brain_mask.nii.gz")
    assert "no lesion mask" in refusal(place.lesion())


def test_an_orphan_of_an_interrupted_run_is_cleared(place):
    write_subject(place.inbox)
    place.lesion()
    orphan = place.out / "derivatives/lesion/sub-r009s009/ses-1/anat"
    orphan.mkdir(parents=True)
    place.lesion()
    assert not orphan.exists()


def test_a_changed_source_replaces_the_subject(place):
    write_subject(place.inbox)
    place.lesion()
    write_subject(place.inbox, mask=np.ones((6, 7, 8)))
    (outcome,) = place.lesion()
    assert (outcome.accepted, outcome.unchanged) == (True, False)
    assert load_volume(next(place.out.rglob("*_mask.nii.gz"))).data.all()


def test_a_subject_that_turns_bad_keeps_its_accepted_version(place):
    write_subject(place.inbox)
    place.lesion()
    before = bytes_of(place.out)
    write_subject(place.inbox, mask=np.full((6, 7, 8), 3))
    assert "accepted earlier stays" in refusal(place.lesion())
    assert bytes_of(place.out) == before


def test_a_damaged_tree_is_written_again(place):
    write_subject(place.inbox)
    place.lesion()
    before = bytes_of(place.out)
    next(place.out.rglob("*_T1w.nii.gz")).write_bytes(b"")
    (outcome,) = place.lesion()
    assert not outcome.unchanged
    assert bytes_of(place.out) == before


def test_the_manifest_holds_hashes_and_no_paths_of_the_inbox(place):
    write_subject(place.inbox / "Lindqvist Anna")
    place.lesion()
    text = (place.out / "manifest.json").read_text()
    entry = json.loads(text)["subjects"]["sub-r001s001"]
    assert entry["sources"] == sorted(bytes_of(place.inbox).values())
    assert entry["written"] == {name: h for name, h in bytes_of(place.out).items() if "sub-r001s001" in name}
    assert "Lindqvist" not in text


# ---- both -----------------------------------------------------------------------------------------------------------
def bring(place, arm):
    if arm == "lesion":
        for number in (1, 2, 3):
            write_subject(place.inbox, f"sub-r001s00{number}", mask=np.full((6, 7, 8), 3) if number == 2 else None)
        return place.lesion
    write_patient(place.inbox / "a", frames=12)
    write_patient(place.inbox / "b", BERT, frames=8)
    (place.inbox / "notes.dcm").write_text("call the ward")
    return place.perfusion


@pytest.mark.parametrize("arm", ["lesion", "perfusion"])
def test_running_twice_changes_nothing(place, arm):
    run = bring(place, arm)
    first = run()
    before, clocks = bytes_of(place.out), (clocks_of(place.out), clocks_of(place.quarantine))
    second = run()
    assert bytes_of(place.out) == before
    assert (clocks_of(place.out), clocks_of(place.quarantine)) == clocks
    assert [o.unchanged for o in second] == [o.accepted for o in first]
    assert [o.reason for o in second] == [o.reason for o in first]


@pytest.mark.parametrize(("arm", "step"), [("lesion", 1), ("perfusion", 5)])  # reading DICOM again and again takes long
def test_a_run_killed_at_any_rename_loses_nothing(place, arm, step):
    run = bring(place, arm)
    run()
    whole, kept = bytes_of(place.out), bytes_of(place.quarantine)
    for survived in range(0, 1000, step):
        for folder in (place.out, place.quarantine):
            shutil.rmtree(folder, ignore_errors=True)
        child = os.fork()
        if child == 0:
            _die_at_rename(survived)
            run()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        # Who shows is whole, even before anybody tidies up.
        assert shown_of(place).items() <= whole.items()
        assert all(shown_of(place, i) == {n: h for n, h in whole.items() if i in n} for i in place.ids())
        run()
        assert bytes_of(place.out) == whole
        assert bytes_of(place.quarantine) == kept
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert survived > 10


def shown_of(place, participant_id="sub-"):
    """Files of one or all subjects in the tree, without what is still being staged."""
    return {n: h for n, h in bytes_of(place.out).items() if f"/{participant_id}" in f"/{n}" and ".partial" not in n}


def _die_at_rename(survived):
    """Make this process kill itself instead of its rename number `survived`."""
    rename, count = os.replace, iter(range(survived))

    def replace(*names):
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*names)

    os.replace = replace


def test_a_replacement_killed_at_any_rename_ends_as_the_new_version(place):
    write_subject(place.inbox)
    place.lesion()
    old = place.out.rename(place.out.with_name("old"))
    write_subject(place.inbox, mask=np.ones((6, 7, 8)))
    place.lesion()
    new = bytes_of(place.out)
    versions = [{n: h for n, h in tree.items() if "/sub-" in f"/{n}"} for tree in (bytes_of(old), new)]
    for survived in range(1000):
        shutil.rmtree(place.out)
        shutil.copytree(old, place.out)
        child = os.fork()
        if child == 0:
            _die_at_rename(survived)
            place.lesion()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert not place.ids() or shown_of(place) in versions
        place.lesion()
        assert bytes_of(place.out) == new
        if status == 0:
            break


def test_a_centre_that_changes_in_a_killed_run_ends_as_the_new_one(place):
    folder = place.inbox / "Site1"
    for name, data in (("t1w", np.arange(336.0)), ("LesionSmooth", np.ones(336))):
        folder.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(data.reshape(6, 7, 8), AFFINE), folder / f"031768_{name}_stx.nii.gz")
    place.lesion()
    old = place.out.rename(place.out.with_name("old"))
    folder.rename(place.inbox / "Site2")
    for survived in range(1000):
        shutil.rmtree(place.out, ignore_errors=True)
        shutil.copytree(old, place.out)
        child = os.fork()
        if child == 0:
            _die_at_rename(survived)
            place.lesion()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        place.lesion()
        assert (place.out / "participants.tsv").read_text() == "participant_id\tcentre\nsub-031768\tSite2\n"
        if status == 0:
            break
    assert survived > 5


def test_a_centre_filled_in_by_hand_lasts_in_the_perfusion_arm(place):
    write_patient(place.inbox / "a", frames=12, reference=None)
    (anna,) = place.perfusion()
    table = place.out / "participants.tsv"
    assert table.read_text() == f"participant_id\tcentre\n{anna.participant_id}\tn/a\n"
    table.write_text(f"participant_id\tcentre\tage\n{anna.participant_id}\tUppsala\t71\n")
    write_patient(place.inbox / "b", BERT, frames=12, reference=None)
    place.perfusion()
    cohort = perfusion_cohort(place.out).set_index("participant_id")
    assert cohort.centre[anna.participant_id] == "Uppsala"
    assert sorted(cohort.centre) == ["Uppsala", "unknown"]
    assert f"{anna.participant_id}\tUppsala\t71\n" in table.read_text()


@pytest.mark.parametrize("run", [Place.lesion, Place.perfusion])
def test_an_empty_or_missing_or_foreign_inbox_is_one_sentence(place, run):
    with pytest.raises(InputError, match="is empty"):
        run(place)
    (place.inbox / "readme.txt").write_text("nothing here")
    with pytest.raises(InputError, match="holds no"):
        run(place)
    shutil.rmtree(place.inbox)
    with pytest.raises(InputError, match="is not a folder"):
        run(place)
    assert not place.out.exists()


def test_an_inbox_around_the_tree_is_refused(place):
    write_subject(place.inbox)
    place.out = place.inbox / "bids"
    with pytest.raises(InputError, match="lie within one another"):
        place.lesion()


@pytest.fixture
def nobody():
    """This process without the rights of root, for whom nothing is read-only."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


@pytest.fixture
def open_place():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield Place(folder)
    shutil.rmtree(folder)


def test_a_read_only_out_is_one_sentence(open_place, request):
    write_subject(open_place.inbox)
    open_place.out.mkdir()
    open_place.out.chmod(0o555)
    request.getfixturevalue("nobody")
    with pytest.raises(InputError, match=r"bids cannot be written to .*: choose another"):
        open_place.lesion()


def test_an_out_below_a_file_is_one_sentence(place):
    write_subject(place.inbox)
    place.out.write_text("a file")
    with pytest.raises(InputError, match="cannot be written to"):
        place.lesion()
