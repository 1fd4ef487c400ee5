"""What a study writes, says and logs about methods that fail and levels that cannot be reached."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reperfuse.errors import InputError
from reperfuse.evaluation.resolution import curve, study_table
from reperfuse.imaging.volume import Volume
from reperfuse.stages import assessment
from reperfuse.stages.assessment import Assessment, Case, evaluate_arm, log_curves, resolution_arm, study_scalars

PATIENTS = ("sub-1", "sub-2", "sub-3")


def error_study(arm: str = "perfusion", failing: str | None = None) -> Assessment:
    """Patients whose own number is their image; the model errs by it, oSVD by ten times as much."""

    def load(participant: str) -> Case:
        image = Volume(np.full((2, 2, 2), float(participant[-1])), np.eye(4))
        return Case(image, image)

    def deconvolved(image: Volume) -> np.ndarray | None:
        return None if failing is not None and image.data.min() == float(failing[-1]) else 10 * image.data

    return Assessment(
        arm=arm,
        metric="mae_s",
        methods={"model": lambda image: image.data, "baseline_osvd": deconvolved},
        load=load,
        on_truth_grid=lambda prediction, case: prediction,
        score=lambda method, prediction, case: {"mae_s": float(prediction.mean())},
        bootstrap={"samples": 100, "level": 0.95, "seed": 0},
    )


class Logged:
    """Stands in for a run; keeps what is logged by name and step."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, int | None], float] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.points |= {(name, step): float(value) for name, value in metrics.items()}


@pytest.fixture(autouse=True)
def three_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment, "holdout", lambda arm: list(PATIENTS))


def run_study(out: Path, asked: Assessment | None = None, **kwargs: Any) -> pd.DataFrame:
    arguments: dict[str, Any] = {
        "levels": (1.0, 2.0),
        "level_name": "tr_s",
        "facets": (50.0, 20.0),
        "degrade": lambda image, level, snr: Volume(image.data * level * 100 / snr, image.affine),
        "out": out,
    }
    return resolution_arm(asked or error_study(), **(arguments | kwargs))


def test_a_study_writes_a_row_for_each_patient_method_noise_and_interval(tmp_path: Path) -> None:
    scores = run_study(tmp_path)
    assert list(scores.columns) == ["participant_id", "method", "snr", "tr_s", "mae_s"] and len(scores) == 3 * 2 * 2 * 2
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "scores.csv"), scores)
    row = scores.query("participant_id == 'sub-3' and method == 'model' and snr == 20 and tr_s == 2")
    assert row["mae_s"].tolist() == [30]


def test_numbers_of_the_study_stand_for_all_noises_and_for_each(tmp_path: Path) -> None:
    run_study(tmp_path)
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["mae_s_rise_2s_snr50"] == pytest.approx(4) and numbers["mae_s_rise_2s_snr20"] == pytest.approx(10)
    assert numbers["mae_s_rise_2s"] == pytest.approx(7)


def test_a_study_of_one_facet_has_the_names_it_always_had() -> None:
    rows = [
        {"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": level, "dice": 1 / level / n}
        for n in (1, 2)
        for level in (2.0, 5.0)
    ]
    table, run = study_table(rows), Logged()
    ends = ("", "_low", "_high")
    named = {f"{name}{end}" for name in ("resolution_auc", "dice_drop_5mm") for end in ends}
    assert set(study_scalars(table, "dice", level_name="thickness_mm", seed=0)) == named
    log_curves(run, curve(table), "thickness_mm")  # type: ignore[arg-type]
    assert set(run.points) == {("resolution/dice", 2), ("resolution/dice", 5)}


def test_curves_of_all_methods_are_logged_for_each_noise_and_on_the_whole(tmp_path: Path) -> None:
    run = Logged()
    log_curves(run, curve(run_study(tmp_path), level_name="tr_s"), "tr_s")  # type: ignore[arg-type]
    assert len(run.points) == 2 * 2 * 3
    assert run.points[("resolution/mae_s_snr20", 2000)] == pytest.approx(20)
    assert run.points[("resolution/mae_s_snr50", 2000)] == pytest.approx(8)
    assert run.points[("resolution/mae_s", 2000)] == pytest.approx(14)
    assert run.points[("resolution/baseline_osvd/mae_s_snr20", 1000)] == pytest.approx(100)


def test_a_level_out_of_reach_is_left_out_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def reach(image: Volume, levels: Any, facets: Any) -> Any:
        return (levels[1:], facets[1:]) if image.data.min() == 2 else (levels, facets)

    scores = run_study(tmp_path, reach=reach)
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(said) == 1 and said[0].startswith("sub-2: left out tr_s 1 and snr 50")
    there = scores[scores["participant_id"] == "sub-2"]
    assert set(there["tr_s"]) == {2.0} and set(there["snr"]) == {20.0}
    assert len(scores) == 2 * (4 + 1 + 4)


def test_a_study_that_nobody_reaches_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"perfusion\.resolution of params\.yaml"):
        run_study(tmp_path, reach=lambda image, levels, facets: ([], facets))
    assert not list(tmp_path.iterdir())


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


def test_on_the_hold_out_a_method_without_a_map_has_no_file_and_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assessment.tracking, "resume", lambda record: Run())
    scores = evaluate_arm(error_study(failing="sub-2"))
    assert scores["mae_s"].isna().tolist() == [False, False, False, True, False, False]
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.nii.gz")}
    assert len(kept) == 5 and not any("sub-2/baseline_osvd" in name for name in kept)
    assert "sub-2: baseline_osvd has no prediction" in capsys.readouterr().out
    summary = pd.read_csv(tmp_path / "results/perfusion/evaluate/summary.csv")
    assert dict(zip(summary["method"], summary["n"], strict=True)) == {"model": 3, "baseline_osvd": 2}


class Run(Logged):
    """Stands in for a run that a stage comes back to."""

    origin = "run"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *raised: object) -> None:
        return None

    def log_table(self, table: pd.DataFrame, path: str) -> None:
        assert len(table) and path
