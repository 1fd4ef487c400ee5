"""The gate between a trained model and the alias champion."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import write_json
from reperfuse.networks import build_network, save_network
from reperfuse.params import Params, Promote
from reperfuse.stages.processed import write_table
from reperfuse.stages.promotion import Decision, decide, promote, study_of

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


# ---- the resolution studies -----------------------------------------------------------------------------------------
def study(
    coarse: list[float], *, levels: tuple[float, ...] = (2.0, 10.0), facet: object = "k", metric: str = "dice"
) -> pd.DataFrame:
    """A study in which the subjects have those scores at the coarsest level and 0.5 at the others."""
    lesion = metric == "dice"
    rows = [
        {
            "participant_id": f"sub-{n}",
            "method": method,
            "axis" if lesion else "snr": facet,
            "thickness_mm" if lesion else "tr_s": level,
            metric: 9.0 if method != "model" else score if level == levels[-1] else 0.5,
        }
        for n, score in enumerate(coarse)
        for level in levels
        for method in ("model", "baseline_x")
    ]
    return pd.DataFrame(rows)


def judged(ours: pd.DataFrame | None, theirs: pd.DataFrame | None, gate: Promote = GATE, gain: float = 0.1) -> Decision:
    """The decision on a challenger whose scores on the images as they are exceed the champion's by `gain`."""
    champion = [0.5, 0.6, 0.7]
    challenger = scores([score + gain for score in champion])
    return decide(challenger, scores(champion), "dice", gate, studied=ours, champion_studied=theirs)


def test_a_challenger_that_is_better_as_acquired_and_worse_with_thick_slices_is_refused() -> None:
    decision = judged(study([0.2, 0.3, 0.4]), study([0.3, 0.4, 0.5]))
    assert not decision.promote
    assert decision.reason == (
        "mean dice differs from the champion's by +0.100 on 3 subjects, within the margin of 0.02, but mean dice at "
        "slices of 10 mm differs from the champion's by -0.100 on 3 subjects, beyond the margin of 0.02"
    )


@pytest.mark.parametrize(("change", "promoted"), [(0.0, True), (0.1, True), (-0.02, True), (-0.021, False)])
def test_the_margin_decides_at_the_coarsest_level_too(change: float, promoted: bool) -> None:
    decision = judged(study([0.3 + change, 0.4 + change, 0.5 + change]), study([0.3, 0.4, 0.5]))
    assert decision.promote is promoted and "slices of 10 mm" in decision.reason


def test_a_good_study_saves_no_challenger_that_is_worse_as_acquired() -> None:
    decision = judged(study([0.9, 0.9, 0.9]), study([0.3, 0.4, 0.5]), gain=-0.1)
    assert not decision.promote and "slices" not in decision.reason


def test_without_a_margin_the_studies_decide_nothing() -> None:
    off = Promote(non_inferiority_margin=0.02, minimum_subjects=3, resolution_margin=None)
    decision = judged(study([0.1, 0.1, 0.1]), study([0.9, 0.9, 0.9]), off)
    assert decision.promote and "slices" not in decision.reason
    assert decide(scores([0.5, 0.6, 0.7]), None, "dice", off).reason.endswith("there was no champion")
    assert judged(None, None, off).reason.endswith("within the margin of 0.02")


def test_the_margin_of_the_studies_is_the_other_one_where_it_is_left_out() -> None:
    assert GATE.resolution_margin == 0.02
    with pytest.raises(ValueError, match="resolution_margin"):
        Promote(non_inferiority_margin=0.02, resolution_margin=-0.1)


def test_too_few_subjects_in_both_studies_keep_the_champion() -> None:
    decision = judged(study([0.9, 0.9]), study([0.3, 0.4, 0.5]))
    assert not decision.promote and "too few to decide: 2" in decision.reason and "10 mm" in decision.reason
    undefined = study([float("nan"), 0.9, 0.9])
    assert "too few to decide: 2" in judged(undefined, study([0.3, 0.4, 0.5])).reason


def test_where_one_was_not_studied_the_other_conditions_decide_and_it_is_said() -> None:
    ours, theirs = study([0.3, 0.4, 0.5]), study([0.9, 0.9, 0.9])
    assert judged(ours, None).promote
    assert "the champion's resolution was not studied" in judged(ours, None).reason
    assert judged(None, theirs).promote and "its resolution was not studied" in judged(None, theirs).reason
    first = decide(scores([0.5, 0.6, 0.7]), None, "dice", GATE)
    assert first.promote and "its resolution was not studied" in first.reason
    assert not judged(ours, None, gain=-0.1).promote


def test_studies_are_compared_at_the_coarsest_level_that_both_have() -> None:
    ours = study([0.1, 0.1, 0.1], levels=(2.0, 5.0, 10.0))  # 0.5 at 5 mm
    theirs = study([0.45, 0.45, 0.45], levels=(2.0, 5.0))
    decision = judged(ours, theirs)
    assert decision.promote and "slices of 5 mm differs from the champion's by +0.050" in decision.reason
    apart = judged(ours, study([0.9, 0.9, 0.9], levels=(3.0, 8.0)))
    assert apart.promote and "share no level" in apart.reason
    assert "share no level" in judged(ours, study([0.9, 0.9, 0.9], facet="i")).reason


def test_each_facet_has_its_own_coarsest_level_and_a_subject_is_the_mean_of_those_that_both_have() -> None:
    ours = pd.concat([study([0.4, 0.4, 0.4]), study([0.6, 0.6, 0.6], levels=(2.0, 5.0), facet="i")])
    theirs = pd.concat([study([0.5, 0.5, 0.5]), study([0.5, 0.5, 0.5], levels=(2.0, 5.0), facet="i")])
    decision = judged(ours, theirs)
    assert decision.promote and "slices of 10 mm (axis_k) and slices of 5 mm (axis_i)" in decision.reason
    # Without the champion's scores along i the subject is compared along k alone, where it lost 0.1.
    of_one = theirs[(theirs["axis"] == "k") | (theirs["participant_id"] != "sub-0")]
    decision = judged(ours, of_one)
    assert not decision.promote and "by -0.033 on 3 subjects" in decision.reason


@pytest.mark.parametrize(("change", "promoted"), [(-0.5, True), (0.01, True), (0.03, False)])
def test_for_an_error_lower_is_better_at_the_coarsest_level_too(change: float, promoted: bool) -> None:
    table = scores([1.5, 1.6, 1.7], 9.0, "mae_s")
    ours, theirs = (
        pd.concat(study([2.0 + by] * 3, levels=(1.5, 3.0), facet=snr, metric="mae_s") for snr in (50.0, 20.0))
        for by in (change, 0.0)
    )
    decision = decide(table, table, "mae_s", GATE, studied=ours, champion_studied=theirs)
    assert decision.promote is promoted and f"at a TR of 3 s differs from the champion's by {change:+.3f}" in (
        decision.reason
    )


# ---- files and the store --------------------------------------------------------------------------------------------
@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def trained(dice: list[float], coarse: list[float] | None) -> None:
    """A model with its run, its hold-out scores and, where `coarse` is given, its resolution study, as files."""
    shutil.rmtree("results", ignore_errors=True)
    kwargs = {"widths": [2, 4]}
    save_network("models/lesion", "unet3d", kwargs, build_network("unet3d", **kwargs), extra={"arm": "lesion"})
    with tracking.run("lesion", "model unet3d") as run:
        write_json(Path("models/lesion/run.json"), tracking.run_record(run, {}, {}, {}))
    write_table(Path("results/lesion/evaluate/scores.csv"), scores(dice))
    write_json(Path("results/lesion/evaluate/metrics.json"), {"dice": 0.5})
    if coarse is not None:
        write_table(Path("results/lesion/resolution/scores.csv"), study(coarse))
        write_json(Path("results/lesion/resolution/run.json"), {"run_id": run.origin})


def test_the_gate_finds_the_studies_where_the_stages_and_the_store_keep_them(here: Path) -> None:
    params = Params()
    trained([0.5, 0.6, 0.7], None)
    assert "version 1 is the champion" in (said := promote("lesion", params)) and "not studied" in said
    trained([0.6, 0.7, 0.8], [0.3, 0.3, 0.3])
    assert "version 2 is the champion" in (said := promote("lesion", params))
    assert "the champion's resolution was not studied" in said
    trained([0.7, 0.8, 0.9], [0.2, 0.2, 0.2])
    said = promote("lesion", params)
    assert "version 3 is registered and not promoted" in said and "slices of 10 mm" in said and "-0.100" in said
    assert tracking.champion("lesion").version == "2"


def test_the_study_of_a_model_before_it_is_not_a_models_own(here: Path) -> None:
    trained([0.5, 0.6, 0.7], [0.3, 0.3, 0.3])
    assert study_of("lesion") is not None
    write_json(Path("results/lesion/resolution/run.json"), {"run_id": "another"})
    assert study_of("lesion") is None
    shutil.rmtree("results/lesion/resolution")
    assert study_of("lesion") is None


def test_a_store_that_lost_its_tables_is_an_error_and_no_champion_without_a_study(here: Path) -> None:
    trained([0.5, 0.6, 0.7], [0.3, 0.3, 0.3])
    promote("lesion", Params())
    for table in (here / "mlruns").rglob("tables"):
        shutil.rmtree(table)
    trained([0.6, 0.7, 0.8], [0.9, 0.9, 0.9])
    with pytest.raises(InputError, match=r"has no tables/scores\.csv"):
        promote("lesion", Params())
