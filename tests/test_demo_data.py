"""Demo data: where files lie, that they are reproducible, and that nothing else is touched."""

import re
from pathlib import Path

import numpy as np
import pytest

from reperfuse.errors import InputError
from reperfuse.files import read_json, sha256_of
from reperfuse.imaging.dicom_read import read_dsc
from reperfuse.imaging.volume import load_volume
from reperfuse.phantoms.dsc import dsc_phantom
from reperfuse.stages.demo_data import DROPPED_IMAGES, HABITS, _perfusion_plan, demo_data, truth_folder


@pytest.fixture(scope="module")
def inbox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "inbox"
    demo_data(folder, subjects={"perfusion": 3, "lesion": 2}, full_size=False, workers=1)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_lesion_arm_is_named_as_atlas_r2_names_it(inbox):
    pattern = re.compile(
        r"(R\d{3})/(sub-r\d{3}s\d{3})/ses-1/anat/\2_ses-1_space-MNI152NLin2009aSym_"
        r"(T1w|label-L_desc-T1lesion_mask)\.nii\.gz"
    )
    files = [path.relative_to(inbox / "lesion").as_posix() for path in (inbox / "lesion").rglob("*.nii.gz")]
    assert len(files) == 4 and all(pattern.fullmatch(name) for name in files)
    assert read_json(inbox / "lesion" / "dataset_description.json")["DatasetType"] == "raw"
    assert len({name.split("/")[0] for name in files}) == 2


def test_every_patient_has_a_series_and_a_map_and_one_misses_two_images(inbox):
    patients = sorted((inbox / "perfusion").iterdir())
    counts = []
    for patient, habit in zip(patients, HABITS.values(), strict=True):
        counts.append(len(list((patient / str(habit["dsc"])).iterdir())))
        assert len(list((patient / str(habit["map"])).iterdir())) == 8
    assert counts == [480, 480, 480 - len(DROPPED_IMAGES)]


def test_what_is_read_back_is_what_was_simulated(inbox):
    patient = sorted((inbox / "perfusion").iterdir())[0]
    truth = truth_folder(inbox) / "perfusion" / patient.name
    volume = read_dsc(patient)
    s0, brain = load_volume(truth / "s0.nii.gz"), load_volume(truth / "brain.nii.gz").data > 0
    assert volume.data.shape == (32, 32, 8, 60)
    assert volume.te_s == pytest.approx(read_json(truth / "truth.json")["te_s"])
    assert volume.affine == pytest.approx(s0.affine, abs=1e-3)
    difference = volume.data[..., :6].mean(-1)[brain] - s0.data[brain]
    assert np.abs(difference).mean() < read_json(truth / "truth.json")["sigma"]


def test_truth_lies_beside_the_inbox_and_never_inside(inbox):
    truth = truth_folder(inbox)
    assert truth.is_dir() and not truth.is_relative_to(inbox)
    assert not [path for path in inbox.rglob("*") if "truth" in path.name or path.name == "manifest.json"]
    for patient in (inbox / "perfusion").iterdir():
        assert {"tmax.nii.gz", "delay.nii.gz", "truth.json"} <= {
            p.name for p in (truth / "perfusion" / patient.name).iterdir()
        }


def test_two_processes_write_the_same_bytes_as_one(inbox, tmp_path):
    demo_data(tmp_path / "inbox", subjects={"perfusion": 3, "lesion": 2}, full_size=False, workers=2)
    assert contents(tmp_path / "inbox") == contents(inbox)
    assert contents(tmp_path / "inbox-truth") == contents(truth_folder(inbox))


def test_another_seed_writes_other_lesions(inbox, tmp_path):
    demo_data(tmp_path / "inbox", arms=["lesion"], subjects=2, seed=1, full_size=False, workers=1)
    assert not set(contents(tmp_path / "inbox").values()) & {
        digest for name, digest in contents(inbox / "lesion").items() if name.endswith(".nii.gz")
    }


def test_fewer_subjects_leave_nothing_of_the_larger_demo(tmp_path):
    for n in (3, 2):
        demo_data(tmp_path / "inbox", arms=["lesion"], subjects=n, full_size=False, workers=1)
    assert len(list((tmp_path / "inbox").rglob("*_T1w.nii.gz"))) == 2
    assert len(list((tmp_path / "inbox-truth").rglob("truth.json"))) == 2


def test_an_inbox_of_somebody_else_is_refused_and_left_alone(tmp_path):
    scan = tmp_path / "inbox" / "lesion" / "R001" / "scan.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"scan\.nii\.gz.*empty folder"):
        demo_data(tmp_path / "inbox", arms=["lesion"], subjects=1, full_size=False, workers=1)
    assert scan.read_bytes() == b"precious" and not (tmp_path / "inbox-truth").exists()


@pytest.mark.parametrize("arguments", [{"arms": ["liver"]}, {"subjects": 0}])
def test_an_unknown_arm_or_no_subjects_is_one_sentence(tmp_path, arguments):
    with pytest.raises(InputError):
        demo_data(tmp_path / "inbox", full_size=False, **arguments)
    assert not list(tmp_path.iterdir())


def test_patients_of_full_size_are_fine_and_quiet_enough_for_the_resolution_study_to_degrade():
    from reperfuse.params import Params

    asked = Params().perfusion.resolution
    plans = [plan for _, plan in _perfusion_plan(14, 2026, True)]
    assert sum(plan["tr_s"] <= min(asked.tr_s) for plan in plans) == len(plans) - 1  # the published one is 1.5 s
    assert all(plan["snr"] > 1.05 * max(asked.snr) for plan in plans)
    published = [plan for plan in plans if plan["shape"] == (128, 128, 24)]
    assert [(plan["n_frames"], plan["tr_s"]) for plan in published] == [(60, 1.5)]


@pytest.mark.parametrize("full_size", [True, False])
def test_the_latest_tissue_has_its_bolus_within_the_series(full_size):
    for _, plan in _perfusion_plan(3, 2026, full_size):
        phantom = dsc_phantom((32, 32, 8), plan["n_frames"], plan["tr_s"], 0.03, np.inf, 1, residue=plan["residue"])
        latest = phantom.truth["delay"] == phantom.truth["delay"].max()
        darkest = phantom.signal.data[latest].argmin(axis=-1)
        assert darkest.max() * plan["tr_s"] < 0.6 * (plan["n_frames"] - 1) * plan["tr_s"]
