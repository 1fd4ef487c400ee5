"""Demo data: where files lie, that they are reproducible, and that nothing else is touched."""

import re
from pathlib import Path

import numpy as np
import pytest
from nilearn.datasets import load_mni152_template

from reperfuse.errors import InputError
from reperfuse.files import read_json, sha256_of
from reperfuse.imaging.dicom_read import read_dsc
from reperfuse.imaging.volume import Volume, load_volume, save_volume
from reperfuse.phantoms.dsc import dsc_phantom
from reperfuse.stages.demo_data import demo_data, truth_folder
from reperfuse.stages.demo_lesion import FLOOR_ML, T1W, lesion_plan, lesion_subject, real_lesion_plan
from reperfuse.stages.demo_perfusion import DROPPED_IMAGES, HABITS, perfusion_plan


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
    plans = [plan for _, plan in perfusion_plan(14, 2026, True)]
    assert sum(plan["tr_s"] <= min(asked.tr_s) for plan in plans) == len(plans) - 1  # the published one is 1.5 s
    assert all(plan["snr"] > 1.05 * max(asked.snr) for plan in plans)
    published = [plan for plan in plans if plan["shape"] == (128, 128, 24)]
    assert [(plan["n_frames"], plan["tr_s"]) for plan in published] == [(60, 1.5)]


@pytest.mark.parametrize("full_size", [True, False])
def test_the_latest_tissue_has_its_bolus_within_the_series(full_size):
    for _, plan in perfusion_plan(3, 2026, full_size):
        phantom = dsc_phantom((32, 32, 8), plan["n_frames"], plan["tr_s"], 0.03, np.inf, 1, residue=plan["residue"])
        latest = phantom.truth["delay"] == phantom.truth["delay"].max()
        darkest = phantom.signal.data[latest].argmin(axis=-1)
        assert darkest.max() * plan["tr_s"] < 0.6 * (plan["n_frames"] - 1) * plan["tr_s"]


def test_one_subject_of_ten_has_no_lesion_and_small_cohorts_have_none_such():
    for count, free in ((2, 0), (6, 0), (9, 0), (10, 1), (20, 2)):
        volumes = [plan["volume_ml"] for _, plan in lesion_plan(count, 2026)]
        assert volumes.count(0.0) == free
        assert min(volume for volume in volumes if volume) >= FLOOR_ML


def test_a_cohort_without_a_floor_reaches_below_it_and_has_the_centres_asked_for():
    plans = list(lesion_plan(60, 0, floor_ml=0.0, centres=7))
    assert 0 < min(plan["volume_ml"] for _, plan in plans if plan["volume_ml"]) < FLOOR_ML
    assert {plan["centre"] for _, plan in plans} == set(range(1, 8))
    assert len({folder for folder, _ in plans}) == 60


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder like that of the real lesions: the template as T1w, and balls of 1 to 12 voxels across as masks."""
    folder = tmp_path_factory.mktemp("real")
    template = load_mni152_template(resolution=4)
    save_volume(folder / T1W, Volume(np.asarray(template.dataobj, np.float32) * 100, template.affine))
    distance = np.linalg.norm(np.moveaxis(np.indices(template.shape), 0, -1) - (15, 30, 25), axis=-1)
    for number in range(12):
        ball = (distance <= 0.5 + 0.5 * number).astype(np.uint8)
        if number % 2:
            path = folder / "lesymap" / "lesions" / f"Subject_{number:03d}.nii.gz"
            save_volume(path, Volume(ball, template.affine))
        else:  # another grid and orientation, as the acute masks have
            affine = template.affine @ np.array([[-1, 0, 0, len(ball) - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
            path = folder / "soop_masks" / f"bwsrsub-{number}_lesion.nii.gz"
            save_volume(path, Volume(np.ascontiguousarray(ball[::-1]), affine))
    return folder


def test_real_lesions_are_spread_over_their_volumes_and_none_is_there_twice(real):
    plans = [plan for _, plan in real_lesion_plan(6, 0, real)]
    sizes = sorted(int(re.search(r"(\d+)(_lesion)?\.nii", plan["mask"]).group(1)) for plan in plans)
    assert all(low <= size < low + 2 for size, low in zip(sizes, range(0, 12, 2), strict=True))
    assert [plan["mask"] for plan in plans] != [plan["mask"] for _, plan in real_lesion_plan(6, 1, real)]
    assert sum(plan["mask"] is None for _, plan in real_lesion_plan(11, 0, real)) == 1


def test_real_lesions_make_an_atlas_tree_where_they_lie_in_the_head(real, tmp_path):
    demo_data(tmp_path / "inbox", arms=["lesion"], subjects=10, real=real, workers=1)
    masks = sorted((tmp_path / "inbox").rglob("*_mask.nii.gz"))
    truths = {path.parent.name: read_json(path) for path in (tmp_path / "inbox-truth").rglob("truth.json")}
    assert len(masks) == len(truths) == 10
    for path in masks:
        mask = load_volume(path)
        image = load_volume(Path(str(path).replace("label-L_desc-T1lesion_mask", "T1w")))
        truth = truths[path.name.split("_")[0]]
        assert image.affine == pytest.approx(mask.affine) and image.data.shape == mask.data.shape
        assert mask.data.sum() * 0.064 == pytest.approx(truth["volume_ml"])
        assert (truth["mask"] is None) == (truth["volume_ml"] == 0)
        if truth["mask"]:
            # The ball's place, or its mirror image, but for the warp.
            there = np.array(truth["centre_mm"]) * (-1 if truth["mirrored"] else 1, 1, 1)
            source = load_volume(real / truth["mask"])
            ball = (np.argwhere(source.data) @ source.affine[:3, :3].T + source.affine[:3, 3]).mean(0)
            assert np.linalg.norm(there - ball) < 20
    assert "LESYMAP" in read_json(tmp_path / "inbox" / "lesion" / "dataset_description.json")["License"]


def test_real_data_that_are_not_there_or_too_few_are_one_sentence(real, tmp_path):
    with pytest.raises(InputError, match=r"ch2\.nii\.gz is missing"):
        demo_data(tmp_path / "inbox", arms=["lesion"], real=tmp_path, workers=1)
    with pytest.raises(InputError, match="holds 12 lesion masks, and 27 lesions"):
        demo_data(tmp_path / "inbox", arms=["lesion"], subjects=30, real=real, workers=1)
    assert not list(tmp_path.iterdir())


def test_phantoms_and_real_lesions_replace_each_other_in_a_demo_of_the_same_subjects(real, tmp_path):
    for source in (None, real):
        demo_data(tmp_path / "inbox", arms=["lesion"], subjects=2, real=source, full_size=False, workers=1)
    truths = [read_json(path) for path in (tmp_path / "inbox-truth").rglob("truth.json")]
    assert len(truths) == 2 and all("mask" in truth for truth in truths)


REAL = Path(__file__).parents[2] / "shared" / "data" / "lesions"


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/lesions is not there")
def test_a_real_lesion_in_a_real_head_keeps_its_size_and_the_skull_stays():
    mask = str(next((REAL / "lesymap" / "lesions").glob("*.nii.gz")).relative_to(REAL))
    patient = lesion_subject(centre=1, seed=0, real=REAL, mask=mask)
    assert patient.t1w.data.shape == (181, 217, 181)
    source = load_volume(REAL / mask)
    # The warp, ventricles and the brain's edge move it by a third at most.
    assert patient.truth["volume_ml"] == pytest.approx(np.count_nonzero(source.data) / 1000, rel=0.35)
    head = patient.t1w.data > 0.4 * np.percentile(patient.t1w.data, 90)
    assert head[:, 100, 100].nonzero()[0].min() < 25  # scalp, far outside the brain


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/lesions is not there")
def test_an_acute_mask_of_another_grid_lies_where_its_header_says():
    path = sorted((REAL / "soop_masks").glob("*.nii.gz"))[0]
    source = load_volume(path)
    patient = lesion_subject(centre=1, seed=0, real=REAL, mask=str(path.relative_to(REAL)))
    middle = (np.argwhere(source.data) @ source.affine[:3, :3].T + source.affine[:3, 3]).mean(0)
    points = np.argwhere(patient.mask.data) @ patient.mask.affine[:3, :3].T + patient.mask.affine[:3, 3]
    there = points.mean(0) * (-1 if patient.truth["mirrored"] else 1, 1, 1)
    assert np.linalg.norm(there - middle) < 15
