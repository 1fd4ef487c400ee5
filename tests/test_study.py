"""What a study writes, says, logs and keeps, about failing methods, levels out of reach and a killed run too."""

import json
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from studied import PATIENTS, StoodIn, error_study

from reperfuse.errors import InputError
from reperfuse.evaluation.resolution import curve, study_table
from reperfuse.imaging.volume import Volume
from reperfuse.stages import study as room
from reperfuse.stages.assessment import Assessment
from reperfuse.stages.study import Study, log_curves, resolution_arm, study_scalars


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoodIn:
    """Three held out, no store, and unfinished work under the test's own folder; the run that all is logged to."""
    run = StoodIn()
    monkeypatch.setattr(room, "holdout", lambda arm: list(PATIENTS))
    monkeypatch.setattr(room, "_run_of", lambda arm, model: run)
    monkeypatch.setattr(room, "resumable", lambda arm, stage, said, code: tmp_path / "state" / str(hash(tuple(said))))
    cohort = pd.DataFrame({"participant_id": PATIENTS, "hypoperfused_ml": [0.5, 20.0, 80.0]})
    monkeypatch.setattr(room, "read_cohort", lambda arm: cohort)
    return run


def degraded(image: Volume, level: float, snr: float) -> Volume:
    return Volume(image.data * level * 100 / snr, image.affine)


def run_study(folder: Path, asked: Assessment | None = None, **kwargs: Any) -> pd.DataFrame:
    arguments: dict[str, Any] = {
        "level_name": "tr_s",
        "levels": dict.fromkeys((50.0, 20.0), (1.0, 2.0)),
        "degrade": degraded,
        "sizes": "hypoperfused_ml",
        "about": {},
    }
    return resolution_arm(asked or error_study(), Study(**(arguments | kwargs)), out=folder / "out").scores


def test_a_study_writes_a_row_for_each_patient_method_noise_and_interval(tmp_path: Path) -> None:
    scores = run_study(tmp_path)
    assert list(scores.columns) == ["participant_id", "method", "snr", "tr_s", "mae_s"] and len(scores) == 3 * 2 * 2 * 2
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "scores.csv"), scores)
    row = scores.query("participant_id == 'sub-3' and method == 'model' and snr == 20 and tr_s == 2")
    assert row["mae_s"].tolist() == [30]


def test_numbers_of_the_study_stand_for_all_noises_and_for_each(tmp_path: Path) -> None:
    run_study(tmp_path)
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["mae_s_rise_2s_snr50"] == pytest.approx(4) and numbers["mae_s_rise_2s_snr20"] == pytest.approx(10)
    assert numbers["mae_s_rise_2s"] == pytest.approx(7)


def test_a_study_of_one_facet_has_the_names_it_always_had() -> None:
    rows = [
        {"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": level, "dice": 1 / level / n}
        for n in (1, 2)
        for level in (2.0, 5.0)
    ]
    table, run = study_table(rows), StoodIn()
    ends = ("", "_low", "_high")
    named = {f"{name}{end}" for name in ("resolution_auc", "dice_drop_5mm") for end in ends}
    assert set(study_scalars(table, "dice", level_name="thickness_mm", seed=0)) == named
    log_curves(run, curve(table), "thickness_mm")  # type: ignore[arg-type]
    assert set(run.points) == {("resolution/dice", 2), ("resolution/dice", 5)}


def test_curves_of_all_methods_are_logged_for_each_noise_and_on_the_whole(tmp_path: Path, workspace: StoodIn) -> None:
    run_study(tmp_path)
    curves = {name for name, step in workspace.points if step is not None}
    assert len(curves) == 2 * 3
    assert workspace.points[("resolution/mae_s_snr20", 2000)] == pytest.approx(20)
    assert workspace.points[("resolution/mae_s_snr50", 2000)] == pytest.approx(8)
    assert workspace.points[("resolution/mae_s", 2000)] == pytest.approx(14)
    assert workspace.points[("resolution/baseline_osvd/mae_s_snr20", 1000)] == pytest.approx(100)


def test_tables_and_sentences_are_logged_beside_the_numbers(tmp_path: Path, workspace: StoodIn) -> None:
    run_study(tmp_path)
    tables = {f"tables/resolution_{name}.csv" for name in ("scores", "curve", "hypotheses", "sizes")}
    assert workspace.artifacts >= tables | {"resolution/study.md"}
    assert ("resolution/resolution_auc", None) in workspace.points


def test_a_level_out_of_reach_is_left_out_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def reach(image: Volume, levels: Any) -> Any:
        return {20.0: (2.0,)} if image.data.min() == 2 else levels

    scores = run_study(tmp_path, reach=reach)
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(said) == 1 and said[0].startswith("sub-2: left out tr_s 1, 2 at SNR 50 and tr_s 1 at SNR 20")
    there = scores[scores["participant_id"] == "sub-2"]
    assert set(there["tr_s"]) == {2.0} and set(there["snr"]) == {20.0}
    assert len(scores) == 2 * (4 + 1 + 4)


def test_a_study_that_nobody_reaches_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"perfusion\.resolution of params\.yaml"):
        run_study(tmp_path, reach=lambda image, levels: {})
    assert not (tmp_path / "out").exists()


def test_a_method_without_a_map_is_undefined_there_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scores = run_study(tmp_path, error_study(failing="sub-4"))  # sub-2 at TR 1 s and SNR 50 looks like that
    undefined = scores[scores["mae_s"].isna()]
    where = ["participant_id", "method", "snr", "tr_s"]
    assert sorted(undefined[where].itertuples(index=False, name=None)) == [
        ("sub-1", "baseline_osvd", 50.0, 2.0),
        ("sub-2", "baseline_osvd", 50.0, 1.0),
    ]
    said = [line for line in capsys.readouterr().out.splitlines() if "has no mae_s" in line]
    assert len(said) == 2 and "sub-2: baseline_osvd has no mae_s at tr_s 1 at snr50" in said[1]


def test_several_at_once_find_what_one_after_the_other_finds(tmp_path: Path) -> None:
    alone = run_study(tmp_path / "1")
    pd.testing.assert_frame_equal(run_study(tmp_path / "2", about={"again": 1}, workers=3), alone)


def test_several_are_really_studied_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=30)

    def degrade(image: Volume, level: float, snr: float) -> Volume:
        if level == 1 and snr == 50:
            together.wait()  # breaks unless all three are here
        return degraded(image, level, snr)

    assert len(run_study(tmp_path, degrade=degrade, workers=3)) == 24


def test_a_study_that_was_stopped_goes_on_behind_its_last_whole_patient(tmp_path: Path) -> None:
    seen: list[float] = []

    def killed(image: Volume, level: float, snr: float) -> Volume:
        if image.data.min() == 3 and level == 2:
            raise KeyboardInterrupt
        seen.append(float(image.data.min()))
        return degraded(image, level, snr)

    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, degrade=killed)
    assert not (tmp_path / "out").exists() and seen.count(1) == 4
    seen.clear()

    def again(image: Volume, level: float, snr: float) -> Volume:
        seen.append(float(image.data.min()))
        return degraded(image, level, snr)

    scores = run_study(tmp_path, degrade=again)
    assert set(seen) == {3.0}
    pd.testing.assert_frame_equal(scores, run_study(tmp_path / "unbroken", about={"another": 1}))
    assert not list((tmp_path / "state").glob("*/*.json"))  # nothing is left of it


def test_unfinished_work_on_another_model_is_not_taken_up(tmp_path: Path) -> None:
    def killed(image: Volume, level: float, snr: float) -> Volume:
        if image.data.min() == 3:
            raise KeyboardInterrupt
        return degraded(image, level, snr)

    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, degrade=killed)
    seen: list[float] = []

    def again(image: Volume, level: float, snr: float) -> Volume:
        seen.append(float(image.data.min()))
        return degraded(image, level, snr)

    run_study(tmp_path, error_study(digest="another model"), degrade=again)
    assert set(seen) == {1.0, 2.0, 3.0}


def test_an_error_in_one_patient_ends_the_study_with_that_error(tmp_path: Path) -> None:
    def broken(image: Volume, level: float, snr: float) -> Volume:
        if image.data.min() == 2:
            raise InputError("sub-2 cannot be read: mend it.")
        return degraded(image, level, snr)

    with pytest.raises(InputError, match="sub-2 cannot be read"):
        run_study(tmp_path, degrade=broken, workers=2)


def test_a_second_scoring_on_the_coarse_grid_stands_beside_the_first(tmp_path: Path) -> None:
    asked = error_study()
    names = room.THICK_GRID
    seen = Assessment(
        **{**vars(asked), "score": lambda method, prediction, case: dict.fromkeys(["mae_s", *names], prediction.mean())}
    )

    def on_coarse_grid(prediction: Any, case: Any, level: float, facet: Any) -> Any:
        return None if level == 1 else (prediction / 2, case)

    scores = run_study(tmp_path, seen, on_coarse_grid=on_coarse_grid)
    fine, coarse = scores[scores["tr_s"] == 1], scores[scores["tr_s"] == 2]
    assert (fine["dice_thick"] == fine["dice"]).all() and (coarse["dice_thick"] == coarse["dice"] / 2).all()
