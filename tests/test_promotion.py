"""The gate between a trained model and the alias champion."""

import pandas as pd
import pytest

from reperfuse.params import Promote
from reperfuse.stages.promotion import decide

GATE = Promote(non_inferiority_margin=0.02, minimum_subjects=3)


def scores(model: list[float], baseline: float = 0.1, metric: str = "dice") -> pd.DataFrame:
    rows = [{"participant_id": f"sub-{n}", "method": "model", metric: score} for n, score in enumerate(model)]
    rows += [{"participant_id": f"sub-{n}", "method": "baseline_x", metric: baseline} for n in range(len(model))]
    return pd.DataFrame(rows)


def test_the_first_model_that_beats_its_baselines_is_champion() -> None:
    assert decide(scores([0.5, 0.6, 0.7]), None, "dice", GATE).promote


def test_a_model_that_loses_to_a_baseline_is_kept_out() -> None:
    decision = decide(scores([0.05, 0.06, 0.07]), None, "dice", GATE)
    assert not decision.promote and "baseline_x" in decision.reason


def test_a_rival_is_no_baseline() -> None:
    rival = scores([0.5, 0.6, 0.7], 0.9).replace("baseline_x", "rival_unet3d")
    assert decide(rival, None, "dice", GATE).promote
    both = pd.concat([rival, scores([0.5, 0.6, 0.7], 0.8).query("method != 'model'")])
    decision = decide(both, None, "dice", GATE)
    assert not decision.promote and "baseline_x" in decision.reason


def test_a_baseline_is_compared_on_the_subjects_it_has_a_score_for() -> None:
    table = scores([0.9, 0.9, 0.1], 0.5)
    assert decide(table, None, "dice", GATE).promote
    table.loc[(table["method"] == "baseline_x") & (table["participant_id"] != "sub-2"), "dice"] = float("nan")
    assert "0.100 does not beat baseline_x with 0.500" in decide(table, None, "dice", GATE).reason
    table.loc[table["method"] == "baseline_x", "dice"] = float("nan")
    assert decide(table, None, "dice", GATE).promote


def test_a_model_with_undefined_scores_is_kept_out() -> None:
    assert not decide(scores([float("nan")] * 3), None, "dice", GATE).promote


@pytest.mark.parametrize(("change", "promoted"), [(0.05, True), (-0.01, True), (-0.03, False)])
def test_the_margin_decides_against_a_champion(change: float, promoted: bool) -> None:
    champion = [0.5, 0.6, 0.7]
    decision = decide(scores([score + change for score in champion]), scores(champion), "dice", GATE)
    assert decision.promote is promoted and "margin" in decision.reason


@pytest.mark.parametrize(("change", "promoted"), [(-0.5, True), (0.01, True), (0.03, False)])
def test_for_an_error_lower_is_better(change: float, promoted: bool) -> None:
    champion = [1.5, 1.6, 1.7]
    challenger = scores([score + change for score in champion], 9.0, "mae_s")
    assert decide(challenger, scores(champion, 9.0, "mae_s"), "mae_s", GATE).promote is promoted


def test_too_few_shared_subjects_keep_the_champion() -> None:
    decision = decide(scores([0.9, 0.9]), scores([0.5, 0.5]), "dice", GATE)
    assert not decision.promote and "too few to decide" in decision.reason
