"""`reperfuse maps`: one examination in, maps and a verdict on their quality out; bad input never makes a silent map."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from reperfuse.errors import InputError
from reperfuse.imaging.dicom_write import write_dsc_series
from reperfuse.imaging.volume import Volume, load_volume, save_volume
from reperfuse.params import PerfusionMaps
from reperfuse.perfusion.deconvolution import METHODS
from reperfuse.perfusion.maps import MAPS
from reperfuse.phantoms.dsc import DscPhantom
from reperfuse.stages.maps import maps

STILL = PerfusionMaps(motion_correction=False)
CONTRACT = {
    "tmax_volume_ml",
    "core_volume_ml",
    "core_method",
    "mismatch_volume_ml",
    "mismatch_ratio",
    "hypoperfusion_intensity_ratio",
    "target_mismatch",
    "te_s",
    "tr_s",
    "n_frames",
    "motion_mm_max",
    "flags",
}


@pytest.fixture(scope="module")
def done(series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("maps") / "out"
    maps(series, out, settings=STILL)
    return out


def written(phantom: DscPhantom, path: Path, **changes: object) -> Path:
    """The phantom's series, changed, as NIfTI with sidecar."""
    save_volume(path, replace(phantom.signal, **changes))
    return path


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def map_of(out: Path, name: str) -> np.ndarray:
    return load_volume(out / f"{name}.nii.gz").data


# what is written


def test_everything_of_the_contract_is_written(done: Path) -> None:
    names = {f"{name}.nii.gz" for name in MAPS} | {"aif.csv", "summary.json", "qc.png"}
    assert names <= {path.name for path in done.iterdir()}
    assert set(summary_of(done)) >= CONTRACT
    assert set(summary_of(done)["tmax_volume_ml"]) == {"4", "6", "8", "10"}


def test_maps_lie_on_the_source_grid_are_finite_and_say_their_unit(done: Path, phantom: DscPhantom) -> None:
    units = {"cbf": "mL/100 g/min", "cbv": "mL/100 g", "mtt": "s", "tmax": "s", "ttp": "s", "delay": "s"}
    for name, unit in units.items():
        volume = load_volume(done / f"{name}.nii.gz")
        assert volume.on_grid_of(phantom.signal) and np.isfinite(volume.data).all() and volume.data.any()
        assert not volume.data[phantom.truth["tissue"] == 0].any()
        description = bytes(nib.load(done / f"{name}.nii.gz").header["descrip"]).decode().rstrip("\0")
        assert description.endswith(f"[{unit}]") and description.lower().startswith(name)


def test_the_curve_that_was_used_is_written_with_its_times(done: Path, phantom: DscPhantom) -> None:
    table = pd.read_csv(done / "aif.csv")
    assert np.allclose(table["time_s"], np.arange(60) * 1.5)
    assert np.corrcoef(table["aif_delta_r2star_per_s"], phantom.aif)[0, 1] > 0.98


def test_volumes_of_the_phantom_are_near_those_of_its_truth(done: Path, phantom: DscPhantom) -> None:
    summary = summary_of(done)
    truth = phantom.facts["tmax_above_6s_ml"]
    assert summary["tmax_volume_ml"]["6"] == pytest.approx(truth, rel=0.25)
    assert summary["core_method"] == "rcbf" and summary["core_volume_ml"] < summary["tmax_volume_ml"]["6"]


def test_the_same_series_gives_the_same_bytes(series: Path, done: Path, tmp_path: Path) -> None:
    maps(series, tmp_path / "again", settings=STILL)
    for path in sorted(done.iterdir()):
        if path.suffix != ".png":
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_can_be_named(method: str, series: Path, tmp_path: Path) -> None:
    assert maps(series, tmp_path / "out", settings=STILL, method=method)["method"] == method


def test_dicom_gives_what_nifti_gives_and_no_person_comes_out(phantom: DscPhantom, done: Path, tmp_path: Path) -> None:
    write_dsc_series(tmp_path / "dicom", phantom.signal, patient_id="SECRET-4711", patient_name="Bolus^Berta")
    out = tmp_path / "out"
    maps(tmp_path / "dicom", out, settings=STILL)
    volume = load_volume(out / "tmax.nii.gz")
    # The DICOM grid runs the other way along some axes: compare places in space.
    assert summary_of(out)["tmax_volume_ml"]["6"] == pytest.approx(summary_of(done)["tmax_volume_ml"]["6"], rel=0.03)
    assert volume.data.shape == phantom.signal.data.shape[:3]
    for path in out.rglob("*"):
        assert not any(word in path.read_bytes() for word in (b"4711", b"Berta", str(tmp_path).encode()))


# what the user may give


def test_a_mask_says_where_maps_are_made(phantom: DscPhantom, series: Path, tmp_path: Path) -> None:
    half = phantom.truth["brain"].copy()
    half[:, :, 6:] = 0
    save_volume(tmp_path / "mask.nii.gz", Volume(half, phantom.signal.affine))
    maps(series, tmp_path / "out", settings=STILL, mask=tmp_path / "mask.nii.gz")
    cbf = map_of(tmp_path / "out", "cbf")
    assert cbf.any() and not cbf[half == 0].any()


def test_the_written_aif_can_be_given_back(series: Path, done: Path, tmp_path: Path) -> None:
    maps(series, tmp_path / "out", settings=STILL, aif=str(done / "aif.csv"))
    assert summary_of(tmp_path / "out")["aif"]["source"] == "file"
    np.testing.assert_allclose(map_of(tmp_path / "out", "tmax"), map_of(done, "tmax"), atol=0.02)


def test_an_artery_mask_gives_the_aif(phantom: DscPhantom, series: Path, tmp_path: Path) -> None:
    artery = (phantom.truth["tissue"] == 4).astype(np.uint8)
    save_volume(tmp_path / "artery.nii.gz", Volume(artery, phantom.signal.affine))
    maps(series, tmp_path / "out", settings=STILL, aif=str(tmp_path / "artery.nii.gz"))
    found = summary_of(tmp_path / "out")["aif"]
    assert found["source"] == "mask" and 0 < found["n_voxels"] <= int(artery.sum())


def test_core_comes_from_an_adc_map_of_any_grid(phantom: DscPhantom, series: Path, tmp_path: Path) -> None:
    from reperfuse.preprocessing.geometry import resample

    adc = 800.0 - 400.0 * (phantom.truth["core"] > 0)
    fine = resample(Volume(adc.astype(np.float32), phantom.signal.affine), spacing_mm=(3.0, 3.0, 5.0))
    save_volume(tmp_path / "adc.nii.gz", fine)
    maps(series, tmp_path / "out", settings=STILL, adc=tmp_path / "adc.nii.gz")
    summary = summary_of(tmp_path / "out")
    assert summary["core_method"] == "adc"
    assert summary["core_volume_ml"] == pytest.approx(phantom.facts["core_ml"], rel=0.35)
    assert summary["mismatch_ratio"] == pytest.approx(summary["tmax_volume_ml"]["6"] / summary["core_volume_ml"])


def test_frames_at_uneven_times_are_brought_to_one_interval_and_it_is_said(
    phantom: DscPhantom, done: Path, tmp_path: Path
) -> None:
    from reperfuse.preprocessing.geometry import resample_time

    even = phantom.signal.frame_times_s
    times = even + np.where(np.arange(60) % 2, 0.4, 0)
    frames = resample_time(phantom.signal.data, even, times)
    maps(written(phantom, tmp_path / "dsc.nii.gz", data=frames, frame_times_s=times), tmp_path / "out", settings=STILL)
    assert "uneven_times" in summary_of(tmp_path / "out")["flags"]
    assert "uneven_times" not in summary_of(done)["flags"]
    assert np.abs(map_of(tmp_path / "out", "tmax") - map_of(done, "tmax")).mean() < 0.3


def test_a_frame_that_never_came_leaves_time_as_it_was(phantom: DscPhantom, done: Path, tmp_path: Path) -> None:
    kept = np.delete(np.arange(60), 40)  # its neighbours are 3 s apart
    times, frames = phantom.signal.frame_times_s[kept], phantom.signal.data[..., kept]
    maps(written(phantom, tmp_path / "dsc.nii.gz", data=frames, frame_times_s=times), tmp_path / "out", settings=STILL)
    summary = summary_of(tmp_path / "out")
    assert "missing_frames" in summary["flags"] and summary["tr_s"] == pytest.approx(1.5, rel=0.03)
    assert np.abs(map_of(tmp_path / "out", "tmax") - map_of(done, "tmax")).mean() < 0.3


def test_te_and_tr_of_the_command_line_win(phantom: DscPhantom, series: Path, tmp_path: Path) -> None:
    summary = maps(series, tmp_path / "out", settings=STILL, te_s=0.06, tr_s=3.0)
    assert summary["te_s"] == 0.06 and summary["tr_s"] == 3.0


def test_a_motion_that_was_corrected_leaves_a_mask_of_one_head(phantom: DscPhantom, done: Path, tmp_path: Path) -> None:
    data = phantom.signal.data.copy()
    data[..., 30:] = np.roll(data[..., 30:], 3, axis=0)  # 14 mm
    summary = maps(written(phantom, tmp_path / "dsc.nii.gz", data=data), tmp_path / "out", settings=PerfusionMaps())
    assert summary["motion_corrected"] and "motion" in summary["flags"]
    assert summary["brain_ml"] == pytest.approx(summary_of(done)["brain_ml"], rel=0.03)


# what must not be lost


def test_an_input_is_never_overwritten(phantom: DscPhantom, tmp_path: Path) -> None:
    path = written(phantom, tmp_path / "cbf.nii.gz")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"cbf\.nii\.gz is given and would be overwritten"):
        maps(path, tmp_path, settings=STILL)
    assert path.read_bytes() == before


def test_somebody_elses_summary_is_left_alone(series: Path, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match="not of this command"):
        maps(series, tmp_path, settings=STILL)


def test_a_file_in_place_of_the_folder_is_refused(series: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot be written to"):
        maps(series, tmp_path / "out", settings=STILL)
    with pytest.raises(InputError, match="cannot be written to"):
        maps(series, tmp_path / "out" / "below", settings=STILL)


def test_what_an_earlier_run_left_stays_until_the_new_input_is_read(done: Path, series: Path, tmp_path: Path) -> None:
    maps(series, tmp_path / "out", settings=STILL)
    with pytest.raises(InputError):
        maps(series, tmp_path / "out", settings=STILL, te_s=30.0)
    assert (tmp_path / "out" / "cbf.nii.gz").read_bytes() == (done / "cbf.nii.gz").read_bytes()


# what cannot be used, and what can in spite of itself


def refused(source: Path, out: Path, **options: object) -> str:
    with pytest.raises(InputError) as refusal:
        maps(source, out, settings=STILL, **options)
    assert not list(out.glob("*.nii.gz"))
    return str(refusal.value)


def test_no_te_anywhere_is_refused(phantom: DscPhantom, tmp_path: Path) -> None:
    said = refused(written(phantom, tmp_path / "dsc.nii.gz", te_s=None), tmp_path / "out")
    assert "dsc.nii.gz" in said and "echo time" in said and "--te" in said


@pytest.mark.parametrize("te", [0.0, -0.03, 30.0, np.nan])
def test_an_impossible_te_is_refused(te: float, series: Path, tmp_path: Path) -> None:
    assert "--te" in refused(series, tmp_path / "out", te_s=te)


@pytest.mark.parametrize("tr", [0.0, -1.5, np.inf])
def test_tr_zero_is_refused(tr: float, series: Path, tmp_path: Path) -> None:
    assert "--tr" in refused(series, tmp_path / "out", tr_s=tr)


def test_tr_zero_in_the_sidecar_is_refused(phantom: DscPhantom, tmp_path: Path) -> None:
    path = written(phantom, tmp_path / "dsc.nii.gz")
    (tmp_path / "dsc.json").write_text('{"EchoTime": 0.03, "RepetitionTime": 0}')
    assert "RepetitionTime" in refused(path, tmp_path / "out")


def test_three_frames_are_refused(phantom: DscPhantom, tmp_path: Path) -> None:
    path = written(
        phantom, tmp_path / "dsc.nii.gz", data=phantom.signal.data[..., :3], frame_times_s=np.arange(3) * 1.5
    )
    assert "3 frames" in refused(path, tmp_path / "out")


def test_an_all_zero_series_is_refused(phantom: DscPhantom, tmp_path: Path) -> None:
    path = written(phantom, tmp_path / "dsc.nii.gz", data=0 * phantom.signal.data)
    said = refused(path, tmp_path / "out")
    assert "dsc.nii.gz" in said and "every voxel" in said


def test_a_mask_without_voxels_is_refused(phantom: DscPhantom, series: Path, tmp_path: Path) -> None:
    empty = Volume(np.zeros(phantom.signal.data.shape[:3], np.uint8), phantom.signal.affine)
    save_volume(tmp_path / "mask.nii.gz", empty)
    assert "mask.nii.gz has no voxel" in refused(series, tmp_path / "out", mask=tmp_path / "mask.nii.gz")
    assert "mask.nii.gz has no voxel" in refused(series, tmp_path / "out", aif=str(tmp_path / "mask.nii.gz"))


def test_an_adc_map_of_another_place_is_refused(phantom: DscPhantom, series: Path, tmp_path: Path) -> None:
    affine = phantom.signal.affine.copy()
    affine[:3, 3] += 1000
    save_volume(tmp_path / "adc.nii.gz", Volume(np.full((48, 48, 8), 800, np.float32), affine))
    assert "adc.nii.gz" in refused(series, tmp_path / "out", adc=tmp_path / "adc.nii.gz")


@pytest.mark.parametrize("tr", [1500.0, 0.0015])
def test_an_interval_in_milliseconds_is_refused(tr: float, series: Path, tmp_path: Path) -> None:
    assert "--tr in seconds" in refused(series, tmp_path / "out", tr_s=tr)


def test_an_interval_against_the_frame_times_is_flagged(series: Path, done: Path, tmp_path: Path) -> None:
    assert "contradicting_times" in maps(series, tmp_path / "out", settings=STILL, tr_s=2.0)["flags"]
    assert "contradicting_times" not in summary_of(done)["flags"]


def test_a_slice_that_was_never_measured_is_flagged_and_costs_that_slice_only(
    phantom: DscPhantom, done: Path, tmp_path: Path
) -> None:
    data = phantom.signal.data.copy()
    data[:, :, 4, 20:] = 0
    summary = maps(written(phantom, tmp_path / "dsc.nii.gz", data=data), tmp_path / "out", settings=STILL)
    assert "unmeasured_tissue" in summary["flags"] and summary["target_mismatch"] is None
    assert np.array_equal(map_of(tmp_path / "out", "cbf")[..., :4] > 0, map_of(done, "cbf")[..., :4] > 0)


def test_one_dark_frame_is_bridged_and_said(phantom: DscPhantom, done: Path, tmp_path: Path) -> None:
    data = phantom.signal.data.copy()
    data[..., 45] *= 0.01
    summary = maps(written(phantom, tmp_path / "dsc.nii.gz", data=data), tmp_path / "out", settings=STILL)
    assert "missing_frames" in summary["flags"]
    assert np.abs(map_of(tmp_path / "out", "tmax") - map_of(done, "tmax")).mean() < 0.1


def test_an_artery_drawn_into_late_tissue_is_doubted(phantom: DscPhantom, series: Path, tmp_path: Path) -> None:
    save_volume(tmp_path / "artery.nii.gz", Volume(phantom.truth["lesion"], phantom.signal.affine))
    summary = maps(series, tmp_path / "out", settings=STILL, aif=str(tmp_path / "artery.nii.gz"))
    assert "doubtful_aif" in summary["flags"]


def test_an_adc_map_of_half_a_head_decides_nothing(phantom: DscPhantom, series: Path, tmp_path: Path) -> None:
    adc = np.where(np.arange(8) < 4, 800.0, 0) * np.ones((48, 48, 1))
    save_volume(tmp_path / "adc.nii.gz", Volume(adc.astype(np.float32), phantom.signal.affine))
    summary = maps(series, tmp_path / "out", settings=STILL, adc=tmp_path / "adc.nii.gz")
    assert "doubtful_adc" in summary["flags"] and summary["target_mismatch"] is None


def test_a_gap_of_hours_is_refused(phantom: DscPhantom, tmp_path: Path) -> None:
    times = phantom.signal.frame_times_s.copy()
    times[40:] += 1e6
    path = written(phantom, tmp_path / "dsc.nii.gz", frame_times_s=times)
    assert "gap" in refused(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("time_s,aif_delta_r2star_per_s\n", "no rows"),
        ("time_s,aif_delta_r2star_per_s\n0,0\n90,0\n", "mine.csv"),
        ("time_s,aif_delta_r2star_per_s\n0,1\n90000,3\n", "seconds"),
        ("time_s,aif_delta_r2star_per_s\n0,1\n10,3\n", "whole curve"),
        ("time_s,aif_delta_r2star_per_s\n0,1\n0,3\n", "increase"),
        ("aif_delta_r2star_per_s\n1\n2\n", "60 frames"),
    ],
)
def test_a_curve_that_cannot_be_the_artery_is_refused_by_name(
    content: str, words: str, series: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text(content)
    said = refused(series, tmp_path / "out", aif=str(tmp_path / "mine.csv"))
    assert "mine.csv" in said and words in said


def test_an_unknown_method_lists_the_known(series: Path, tmp_path: Path) -> None:
    assert "osvd" in refused(series, tmp_path / "out", method="fourier")


def test_an_aif_file_without_the_column_is_refused(series: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("t,c\n0,1\n")
    assert "aif_delta_r2star_per_s" in refused(series, tmp_path / "out", aif=str(tmp_path / "mine.csv"))


def test_without_a_bolus_no_map_is_written_but_a_summary_with_the_flag(phantom: DscPhantom, tmp_path: Path) -> None:
    flat = np.repeat(phantom.signal.data[..., :1], 60, axis=3)
    path = written(phantom, tmp_path / "dsc.nii.gz", data=flat)
    assert "bolus" in refused(path, tmp_path / "out")
    summary = summary_of(tmp_path / "out")
    assert "no_bolus" in summary["flags"] and summary["tmax_volume_ml"]["6"] is None
    assert set(summary) >= CONTRACT


def test_nan_infinity_and_negative_signal_leave_usable_maps(phantom: DscPhantom, done: Path, tmp_path: Path) -> None:
    data = phantom.signal.data.copy()
    data[20, 20, 4, :] = np.nan
    data[22, 20, 4, 5] = np.inf
    data[24, 20, 4, ::4] = -5
    out = tmp_path / "out"
    maps(written(phantom, tmp_path / "dsc.nii.gz", data=data), out, settings=STILL)
    for name in MAPS:
        assert np.isfinite(map_of(out, name)).all()
    assert map_of(out, "cbf")[20, 20, 4] == 0
    assert np.abs(map_of(out, "tmax") - map_of(done, "tmax")).mean() < 0.05


def test_missing_frames_are_flagged_and_bridged(phantom: DscPhantom, done: Path, tmp_path: Path) -> None:
    data = phantom.signal.data.copy()
    data[..., 44] = 0
    data[..., 3, 30] = 0
    maps(written(phantom, tmp_path / "dsc.nii.gz", data=data), tmp_path / "out", settings=STILL)
    assert "missing_frames" in summary_of(tmp_path / "out")["flags"]
    assert "missing_frames" not in summary_of(done)["flags"]


def test_without_an_artery_relative_ttp_stands_in_and_it_is_said(phantom: DscPhantom, tmp_path: Path) -> None:
    # Every voxel shows the same passage, the lesion 6 s later: no artery, no vein.
    truth, rng = phantom.truth, np.random.default_rng(0)
    white = truth["tissue"] == 2
    passage = -np.log(phantom.signal.data[white & (truth["lesion"] == 0)].mean(axis=0) / truth["s0"][white].mean())
    late = np.where(np.arange(60) < 4, 0, np.roll(passage, 4))
    curves = rng.uniform(0.7, 1.3, (48, 48, 8, 1)) * np.where(truth["lesion"][..., None] > 0, late, passage)
    data = (truth["s0"][..., None] * np.exp(-curves) + rng.normal(0, 4, curves.shape)).astype(np.float32)
    out = tmp_path / "out"
    out.mkdir()
    (out / "tmax.nii.gz").write_bytes(b"of an earlier run")
    (out / "notes.txt").write_bytes(b"somebody's own")
    maps(written(phantom, tmp_path / "dsc.nii.gz", data=data), out, settings=STILL)
    summary = summary_of(out)
    assert "no_artery" in summary["flags"] and summary["tmax_volume_ml"]["6"] is None
    assert (out / "rttp.nii.gz").exists() and not (out / "tmax.nii.gz").exists() and (out / "notes.txt").exists()
    assert summary["relative_ttp_volume_ml"] == pytest.approx(phantom.facts["lesion_ml"], rel=0.15)


def test_relative_ttp_is_there_to_compare_with_when_an_artery_is_found(done: Path) -> None:
    summary = summary_of(done)
    assert summary["relative_ttp_volume_ml"] == pytest.approx(summary["tmax_volume_ml"]["6"], rel=0.5)


def test_the_command_says_one_sentence_and_exits_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reperfuse", "maps", "nowhere", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
