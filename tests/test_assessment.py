"""What the hold-out's stage writes and says about methods that fail."""

from pathlib import Path

import pandas as pd
import pytest
from studied import PATIENTS, StoodIn, error_study

from reperfuse.stages import assessment
from reperfuse.stages.assessment import evaluate_arm


def test_on_the_hold_out_a_method_without_a_map_has_no_file_and_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assessment, "holdout", lambda arm: list(PATIENTS))
    monkeypatch.setattr(assessment.tracking, "resume", lambda record: StoodIn())
    scores = evaluate_arm(error_study(failing="sub-2"))
    assert scores["mae_s"].isna().tolist() == [False, False, False, True, False, False]
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.nii.gz")}
    assert len(kept) == 5 and not any("sub-2/baseline_osvd" in name for name in kept)
    assert "sub-2: baseline_osvd has no prediction" in capsys.readouterr().out
    summary = pd.read_csv(tmp_path / "results/perfusion/evaluate/summary.csv")
    assert dict(zip(summary["method"], summary["n"], strict=True)) == {"model": 3, "baseline_osvd": 2}
