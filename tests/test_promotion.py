"""The gate between a trained model and the alias champion."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.evaluation.paired import mean_bound
from reperfuse.files import read_json, write_json
from reperfuse.networks import build_network, save_network
from reperfuse.params import Arm, Params, Promote
from reperfuse.stages import promotion
from reperfuse.stages.drift import Drift, drift_of
from reperfuse.stages.gate import Decision, Evidence, decide, subgroups
from reperfuse.stages.processed import write_table
from reperfuse.stages.promotion import gate_of, promote, rollback, study_of
from reperfuse.tracking import registry

GATE = Promote(
    non_inferiority_margin=0.02, minimum_subjects=3, better_by=0.04, subgroup_margin=0.05, subgroup_subjects=3
)


def scores(model: list[float], baseline: float = 0.1, metric: str = "dice") -> pd.DataFrame:
    rows = [{"participant_id": f"sub-{n}", "method": "model", metric: score} for n, score in enumerate(model)]
    rows += [{"participant_id": f"sub-{n}", "method": "baseline_x", metric: baseline} for n in range(len(model))]
    return pd.DataFrame(rows)


def people(trained_on: int, held_out: int = 3, **columns: object) -> pd.DataFrame:
    """Subjects that a model was trained on, and those of the hold-out, sub-0, sub-1, …"""
    names = [f"sub-{n}" for n in range(held_out)] + [f"sub-t{n}" for n in range(trained_on)]
    sides = ["holdout"] * held_out + ["train"] * trained_on
    about = {"participant_id": names, "side": sides, "files_sha256": names, "centre": "R1"} | columns
    return pd.DataFrame(about)


def against(
    challenger: pd.DataFrame, champion: pd.DataFrame, metric: str = "dice", gate: Promote = GATE, grown: bool = True
) -> Decision:
    """The decision on a challenger, `grown` trained on twice the subjects, by its scores."""
    held_out = challenger["participant_id"].nunique()
    ours, theirs = people(20 if grown else 10, held_out), people(10, held_out)
    return decide(Evidence(challenger, subjects=ours), Evidence(champion, subjects=theirs), metric, gate)


def alone(challenger: pd.DataFrame, gate: Promote = GATE, metric: str = "dice") -> Decision:
    """The decision where there is no champion."""
    return decide(Evidence(challenger), None, metric, gate)


def test_the_first_model_that_beats_its_baselines_is_champion() -> None:
    decision = alone(scores([0.5, 0.6, 0.7]))
    assert decision.promote and decision.reason.endswith("there was no champion")


def test_a_model_that_loses_to_a_baseline_is_kept_out() -> None:
    assert not alone(scores([0.5] * 3, 0.5)).promote
    for decision in (alone(scores([0.05, 0.06, 0.07])), against(scores([0.05] * 3), scores([0.01] * 3))):
        assert not decision.promote and "baseline_x" in decision.reason


def test_a_rival_is_no_baseline() -> None:
    rival = scores([0.5, 0.6, 0.7], 0.9).replace("baseline_x", "rival_unet3d")
    assert alone(rival).promote
    both = pd.concat([rival, scores([0.5, 0.6, 0.7], 0.8).query("method != 'model'")])
    assert not alone(both).promote and "baseline_x" in alone(both).reason


def test_a_baseline_is_compared_on_the_subjects_it_has_a_score_for() -> None:
    table = scores([0.9, 0.9, 0.1], 0.5)
    assert alone(table).promote
    table.loc[(table["method"] == "baseline_x") & (table["participant_id"] != "sub-2"), "dice"] = float("nan")
    assert "0.100 does not beat baseline_x with 0.500" in alone(table).reason
    table.loc[table["method"] == "baseline_x", "dice"] = float("nan")
    assert alone(table).promote


def test_a_model_with_undefined_scores_is_kept_out() -> None:
    assert not alone(scores([float("nan")] * 3)).promote


@pytest.mark.parametrize(("change", "promoted"), [(0.05, True), (-0.01, True), (-0.02, True), (-0.03, False)])
def test_the_margin_decides_against_a_champion(change: float, promoted: bool) -> None:
    champion = [0.5, 0.6, 0.7]
    decision = against(scores([score + change for score in champion]), scores(champion))
    assert decision.promote is promoted and "margin of 0.02" in decision.reason


@pytest.mark.parametrize(("change", "promoted"), [(-0.5, True), (0.01, True), (0.03, False)])
def test_for_an_error_lower_is_better(change: float, promoted: bool) -> None:
    champion = [1.5, 1.6, 1.7]
    challenger = scores([score + change for score in champion], 9.0, "mae_s")
    assert against(challenger, scores(champion, 9.0, "mae_s"), "mae_s").promote is promoted


def test_what_might_be_worse_by_more_than_the_margin_is_not_within_it() -> None:
    # The mean is better by 0.01, but three subjects that differ by ±0.1 leave room for -0.15.
    decision = against(scores([0.6, 0.61, 0.51]), scores([0.5, 0.6, 0.6]))
    assert not decision.promote and "+0.007 on 3 subjects, at least -0." in decision.reason
    assert "beyond the margin" in decision.reason


@pytest.mark.parametrize("n", [3, 10, 40])
def test_a_challenger_that_is_worse_by_the_margin_passes_as_seldom_as_the_confidence_says(n: int) -> None:
    trials, margin = 2000, 0.02
    gains = np.random.default_rng(n).normal(-margin, 0.05, (trials, n))
    passed = np.mean([mean_bound(of_one, 0.95) >= -margin for of_one in gains])
    assert abs(passed - 0.05) < 4 * (0.05 * 0.95 / trials) ** 0.5


@pytest.mark.parametrize(
    ("gain", "grown", "promoted"), [(0.04, False, True), (0.03, False, False), (0.03, True, True), (0.0, True, True)]
)
def test_a_challenger_is_better_or_knows_more(gain: float, grown: bool, promoted: bool) -> None:
    champion = [0.5, 0.6, 0.7]
    decision = against(scores([score + gain for score in champion]), scores(champion), grown=grown)
    assert decision.promote is promoted
    if not promoted:
        assert decision.reason == (
            "mean dice is not better by 0.04, and it was trained on 10 subjects, the champion on 10, "
            "which are not 10% more"
        )


def test_the_same_number_of_subjects_is_no_more_data_even_where_no_share_is_asked_for() -> None:
    gate = GATE.model_copy(update={"more_data": 0.0})
    champion = scores([0.5, 0.6, 0.7])
    assert not against(champion, champion, gate=gate, grown=False).promote
    assert against(champion, champion, gate=gate).promote


@pytest.mark.parametrize(("before", "now", "promoted"), [(50, 55, True), (100, 110, True), (50, 54, False)])
def test_just_the_share_of_more_subjects_is_enough(before: int, now: int, promoted: bool) -> None:
    same = scores([0.5, 0.6, 0.7])  # 50 * 1.1 is 55.00000000000001
    assert decide(
        Evidence(same, subjects=people(now)), Evidence(same, subjects=people(before)), "dice", GATE
    ).promote is (promoted)


def test_too_few_shared_subjects_keep_the_champion() -> None:
    decision = against(scores([0.9, 0.9]), scores([0.5, 0.5]))
    assert not decision.promote and decision.reason.startswith("too few to decide: 2 hold-out subjects")


def test_who_came_later_or_has_other_files_than_then_is_not_compared() -> None:
    ours, theirs = scores([0.9, 0.9, 0.9, 0.1]), scores([0.5, 0.5, 0.5])
    known = people(10)
    same = people(20, 4)
    assert decide(Evidence(ours, subjects=same), Evidence(theirs, subjects=known), "dice", GATE).promote
    relabelled = same.assign(files_sha256=["other", *same["files_sha256"][1:]])
    decision = decide(Evidence(ours, subjects=relabelled), Evidence(theirs, subjects=known), "dice", GATE)
    assert not decision.promote
    assert "too few to decide: 2" in decision.reason and "1 with other files than then left out" in decision.reason


def test_a_challenger_does_not_gain_by_failing_where_the_champion_did_not() -> None:
    ours = scores([0.9, 0.9, 0.9, 0.9], metric="mae_s", baseline=9.0)
    ours.loc[(ours["method"] == "model") & (ours["participant_id"] == "sub-0"), "mae_s"] = float("nan")
    theirs = scores([1.5] * 4, metric="mae_s", baseline=9.0)
    decision = against(ours, theirs, "mae_s")
    assert not decision.promote and "undefined for 1 subjects whose champion's is not" in decision.reason
    assert against(ours, ours, "mae_s").promote  # where the champion failed too


def test_whether_files_changed_is_said_to_be_unknown_where_it_is() -> None:
    decision = decide(Evidence(scores([0.9] * 3)), Evidence(scores([0.5] * 3)), "dice", GATE)
    assert decision.promote and "whether their files are those of then is not known" in decision.reason


# ---- subgroups ------------------------------------------------------------------------------------------------------
def in_groups(gains: list[float], **columns: list[object]) -> Decision:
    """The decision on a challenger with those gains on the hold-out, who are described by `columns`."""
    champion = [0.5] * len(gains)
    ours = people(0, len(gains), **columns)
    return decide(
        Evidence(scores([0.5 + gain for gain in gains]), subjects=ours),
        Evidence(scores(champion), subjects=ours),
        "dice",
        GATE.model_copy(update={"non_inferiority_margin": 1.0, "resolution_margin": None}),
    )


def test_a_centre_that_falls_behind_keeps_the_champion_though_the_mean_is_better() -> None:
    decision = in_groups([0.3] * 5 + [-0.06] * 3, centre=["R1"] * 5 + ["R2"] * 3)
    assert not decision.promote and decision.reason == "worse by more than 0.05 in centre R2 by 0.060 on 3"
    assert in_groups([0.3] * 5 + [-0.05] * 3, centre=["R1"] * 5 + ["R2"] * 3).promote


def test_a_class_of_lesion_size_that_falls_behind_keeps_the_champion() -> None:
    volumes = [0.5, 0.6, 0.7, 60.0, 70.0, 80.0]
    decision = in_groups([-0.1] * 3 + [0.4] * 3, lesion_volume_ml=volumes)
    assert not decision.promote and "in < 1 mL by 0.100 on 3" in decision.reason


def test_two_subjects_are_no_group() -> None:
    assert in_groups([0.3] * 5 + [-0.2] * 2, centre=["R1"] * 5 + ["R2"] * 2).promote


def test_a_subject_belongs_to_its_centre_and_its_class_and_to_nothing_it_does_not_have() -> None:
    table = people(0, 2, centre=["R1", None], lesion_volume_ml=[0.0, float("nan")])
    assert subgroups(table) == {"centre R1": ["sub-0"], "no lesion": ["sub-0"]}


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
    return decide(Evidence(challenger, ours), Evidence(scores(champion), theirs), "dice", gate)


def test_a_challenger_that_is_better_as_acquired_and_worse_with_thick_slices_is_refused() -> None:
    decision = judged(study([0.2, 0.3, 0.4]), study([0.3, 0.4, 0.5]))
    assert not decision.promote
    assert decision.reason == (
        "mean dice at slices of 10 mm differs from the champion's by -0.100 on 3 subjects, at least -0.100 with 95% "
        "confidence, beyond the margin of 0.02"
    )


@pytest.mark.parametrize(("change", "promoted"), [(0.0, True), (0.1, True), (-0.02, True), (-0.021, False)])
def test_the_margin_decides_at_the_coarsest_level_too(change: float, promoted: bool) -> None:
    decision = judged(study([0.3 + change, 0.4 + change, 0.5 + change]), study([0.3, 0.4, 0.5]))
    assert decision.promote is promoted and "slices of 10 mm" in decision.reason


def test_a_good_study_saves_no_challenger_that_is_worse_as_acquired() -> None:
    decision = judged(study([0.9, 0.9, 0.9]), study([0.3, 0.4, 0.5]), gain=-0.1)
    assert not decision.promote and "slices" not in decision.reason
    assert [one.met for one in decision.conditions if one.name == "resolution"] == [True]  # asked all the same


def test_the_studies_have_a_margin_of_their_own() -> None:
    ours, theirs = study([0.25, 0.35, 0.45]), study([0.3, 0.4, 0.5])
    assert not judged(ours, theirs).promote
    assert judged(ours, theirs, GATE.model_copy(update={"resolution_margin": 0.06})).promote


def test_whose_files_were_replaced_is_not_compared_in_the_studies_either() -> None:
    known = people(10, 4)
    now = people(20, 4).assign(files_sha256=["other", *people(20, 4)["files_sha256"][1:]])
    table, theirs = scores([0.5, 0.6, 0.7, 0.8]), study([0.5] * 4)
    ours = Evidence(table, study([0.0, 0.5, 0.5, 0.5]), now)
    assert decide(ours, Evidence(table, theirs, known), "dice", GATE).promote
    assert not decide(
        Evidence(table, ours.studied, people(20, 4)), Evidence(table, theirs, known), "dice", GATE
    ).promote


def test_with_less_confidence_more_passes() -> None:
    ours, theirs = scores([0.5, 0.61, 0.7]), scores([0.5, 0.6, 0.71])
    assert against(ours, theirs, gate=GATE.model_copy(update={"confidence": 0.8})).promote
    strict = GATE.model_copy(update={"confidence": 0.999})
    assert "beyond the margin" in against(ours, theirs, gate=strict).reason


def test_without_a_margin_the_studies_decide_nothing() -> None:
    off = GATE.model_copy(update={"resolution_margin": None})
    decision = judged(study([0.1, 0.1, 0.1]), study([0.9, 0.9, 0.9]), off)
    assert decision.promote and "slices" not in decision.reason
    assert "resolution" not in {one.name for one in judged(None, None, off).conditions}


def test_the_margin_of_the_studies_is_the_other_one_where_it_is_left_out() -> None:
    assert GATE.resolution_margin == 0.02
    with pytest.raises(ValueError, match="resolution_margin"):
        Promote(non_inferiority_margin=0.02, better_by=0.0, subgroup_margin=0.1, resolution_margin=-0.1)


def test_too_few_subjects_in_both_studies_keep_the_champion() -> None:
    decision = judged(study([0.9, 0.9]), study([0.3, 0.4, 0.5]))
    assert not decision.promote and "too few to decide: 2" in decision.reason and "10 mm" in decision.reason
    undefined = study([float("nan"), 0.9, 0.9])
    assert "too few to decide: 2" in judged(undefined, study([0.3, 0.4, 0.5])).reason


def test_a_champion_without_a_study_is_compared_without_one_and_it_is_said() -> None:
    assert judged(study([0.3, 0.4, 0.5]), None).promote
    assert "the champion's resolution was not studied" in judged(study([0.3, 0.4, 0.5]), None).reason
    assert not judged(study([0.3, 0.4, 0.5]), None, gain=-0.1).promote


def test_a_challenger_must_have_been_studied_where_the_champion_was() -> None:
    theirs = study([0.4, 0.4, 0.4], levels=(2.0, 10.0))
    assert judged(None, theirs).reason == "its resolution was not studied, as the champion's was"
    finer = study([0.9, 0.9, 0.9], levels=(2.0, 5.0))
    assert judged(finer, theirs).reason == "it was not studied at slices of 10 mm, as the champion was"
    assert not judged(study([0.9, 0.9, 0.9], facet="i"), theirs).promote


def test_studies_are_compared_at_the_coarsest_level_of_the_champions() -> None:
    ours = study([0.1, 0.1, 0.1], levels=(2.0, 5.0, 10.0))  # 0.5 at 5 mm
    decision = judged(ours, study([0.45, 0.45, 0.45], levels=(2.0, 5.0)))
    assert decision.promote and "slices of 5 mm differs from the champion's by +0.050" in decision.reason


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
    better = scores([1.0, 1.1, 1.2], 9.0, "mae_s")
    ours, theirs = (
        pd.concat(study([2.0 + by] * 3, levels=(1.5, 3.0), facet=snr, metric="mae_s") for snr in (50.0, 20.0))
        for by in (change, 0.0)
    )
    decision = decide(Evidence(better, ours), Evidence(table, theirs), "mae_s", GATE)
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


def trained(
    dice: list[float], coarse: list[float] | None, *, trained_on: int | None = None, gate: Promote | None = None
) -> None:
    """A model with its run, its hold-out scores and, where they are given, its resolution study, its number of
    training subjects and the gate it was trained under, as files."""
    shutil.rmtree("results", ignore_errors=True)
    kwargs = {"widths": [2, 4]}
    save_network("models/lesion", "unet3d", kwargs, build_network("unet3d", **kwargs), extra={"arm": "lesion"})
    params = {} if gate is None else {"promote": gate.model_dump(mode="json")}
    with tracking.run("lesion", "model unet3d", params=params) as run:
        write_json(Path("models/lesion/run.json"), tracking.run_record(run, params, {}, {}))
    if trained_on is not None:
        write_table(Path("models/lesion/subjects.csv"), people(trained_on, len(dice)))
    write_table(Path("results/lesion/evaluate/scores.csv"), scores(dice))
    write_json(Path("results/lesion/evaluate/metrics.json"), {"dice": 0.5})
    write_json(Path("results/lesion/evaluate/run.json"), {"run_id": run.origin})
    if coarse is not None:
        write_table(Path("results/lesion/resolution/scores.csv"), study(coarse))
        write_json(Path("results/lesion/resolution/run.json"), {"run_id": run.origin})


def gated(**changes: object) -> Params:
    """Parameters with the gate of these tests."""
    params = Params()
    lesion = params.lesion.model_copy(update={"promote": GATE.model_copy(update=changes)})
    return params.model_copy(update={"lesion": lesion})


def test_the_gate_finds_the_studies_where_the_stages_and_the_store_keep_them(here: Path) -> None:
    params = gated()
    trained([0.5, 0.6, 0.7], None)
    assert "version 1 is the champion" in promote("lesion", params)
    trained([0.6, 0.7, 0.8], [0.3, 0.3, 0.3])
    assert "version 2 is the champion" in (said := promote("lesion", params))
    assert "the champion's resolution was not studied" in said
    trained([0.7, 0.8, 0.9], [0.2, 0.2, 0.2])
    said = promote("lesion", params)
    assert "version 3 is registered and not promoted" in said and "slices of 10 mm" in said and "-0.100" in said
    assert tracking.champion("lesion").version == "2"


def test_the_decision_is_kept_with_the_run_with_the_version_and_in_a_file(here: Path) -> None:
    trained([0.5, 0.6, 0.7], None, trained_on=10)
    promote("lesion", gated())
    trained([0.4, 0.5, 0.6], None, trained_on=20)
    promote("lesion", gated(), report=Path("decision.md"))
    version = tracking.find_registered("lesion", tracking.model_digest("models/lesion"))
    assert version is not None
    tags, page = tracking.recorded(version.run_id)["tags"], Path("decision.md").read_text()
    assert tags["decision"] == version.tags["decision"] == "kept" and tags["decision.against"] == "1"
    assert tags["decision.reason"] == version.tags["reason"] and "beyond the margin of 0.02" in tags["decision.reason"]
    assert "- *not worse*, **not met**: " in page and "- *gain*, met: it was trained on 20 subjects" in page
    assert tracking.find_text(version.run_id, "decision/decision.md") == page


def test_a_model_is_judged_by_the_gate_of_its_training_and_not_by_one_that_was_changed_since(here: Path) -> None:
    trained([0.5, 0.6, 0.7], None, trained_on=10)
    promote("lesion", gated())
    lax = {"non_inferiority_margin": 1.0, "subgroup_margin": 1.0}
    trained([0.4, 0.5, 0.6], None, trained_on=20, gate=GATE)
    assert "not promoted" in promote("lesion", gated(**lax))
    trained([0.41, 0.51, 0.61], None, trained_on=20, gate=GATE.model_copy(update=lax))
    assert "within the margin of 1" in promote("lesion", gated())
    record = {"params": {"promote.non_inferiority_margin": "0.5", "promote.better_by": "0.1"}}
    assert gate_of({}, gated(), "lesion") == GATE
    with pytest.raises(ValueError, match="subgroup_margin"):  # half a gate is none
        gate_of(record, gated(), "lesion")


def test_the_same_model_trained_again_under_another_gate_is_judged_by_its_first(here: Path) -> None:
    trained([0.5, 0.6, 0.7], None, trained_on=10)
    promote("lesion", gated())
    trained([0.4, 0.5, 0.6], None, trained_on=20, gate=GATE)
    assert "not promoted" in promote("lesion", gated())
    record = read_json(Path("models/lesion/run.json"))
    record["params"] |= {"promote.non_inferiority_margin": "1.0", "promote.subgroup_margin": "1.0"}
    with tracking.run("lesion", "model unet3d", params=record["params"]) as run:
        write_json(Path("models/lesion/run.json"), record | {"run_id": run.id})
    write_json(Path("results/lesion/evaluate/run.json"), {"run_id": run.id})
    assert "beyond the margin of 0.02" in promote("lesion", gated())


def test_a_version_that_was_rolled_back_stays_out_until_it_is_rolled_back_to(here: Path) -> None:
    trained([0.5, 0.6, 0.7], None)
    promote("lesion", gated())
    trained([0.6, 0.7, 0.8], None)
    assert "version 2 is the champion" in promote("lesion", gated())
    assert rollback("lesion") == "lesion: version 1 is the champion again, in the place of version 2."
    assert "taken out of use" in promote("lesion", gated()) and tracking.champion("lesion").version == "1"
    rollback("lesion")
    assert "already" in promote("lesion", gated()) and tracking.champion("lesion").version == "2"


def test_a_rollback_that_is_killed_before_its_end_leaves_no_way_back(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dice in ([0.5, 0.6, 0.7], [0.6, 0.7, 0.8]):
        trained(dice, None)
        promote("lesion", gated())

    def killed(name: str, alias: str, version: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(registry, "set_alias", killed)
        rollback("lesion")
    assert tracking.get_alias("lesion", "champion").tags["rolled_back"] == "true"


def test_the_study_of_a_model_before_it_is_not_a_models_own(here: Path) -> None:
    trained([0.5, 0.6, 0.7], [0.3, 0.3, 0.3])
    assert study_of("lesion") is not None
    write_json(Path("results/lesion/resolution/run.json"), {"run_id": "another"})
    assert study_of("lesion") is None
    shutil.rmtree("results/lesion/resolution")
    assert study_of("lesion") is None


def test_scores_of_a_model_before_it_judge_no_model(here: Path) -> None:
    trained([0.5, 0.6, 0.7], None)
    with tracking.run("lesion", "model unet3d") as run:  # trained again and not yet evaluated
        write_json(Path("models/lesion/run.json"), tracking.run_record(run, {}, {}, {}))
    with pytest.raises(InputError, match=r"scores of another model .* `dvc repro lesion-evaluate` first"):
        promote("lesion", gated())
    assert tracking.champion("lesion") is None


def test_a_champion_that_changed_since_it_was_compared_with_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dice in ([0.5, 0.6, 0.7], [0.4, 0.5, 0.6]):
        trained(dice, None)
        promote("lesion", gated())

    def meanwhile(arm: Arm, champion: tracking.Version) -> Drift:
        tracking.promote(arm, 2)
        return drift_of(arm, champion)

    monkeypatch.setattr(promotion, "drift_of", meanwhile)
    trained([0.6, 0.7, 0.8], None)
    with pytest.raises(InputError, match=r"changed while version 3 .* `reperfuse promote lesion` again"):
        promote("lesion", gated())
    assert tracking.champion("lesion").version == "2"


def test_a_store_that_lost_its_tables_is_an_error_and_no_champion_without_a_study(here: Path) -> None:
    trained([0.5, 0.6, 0.7], [0.3, 0.3, 0.3])
    promote("lesion", gated())
    for table in (here / "mlruns").rglob("tables"):
        shutil.rmtree(table)
    trained([0.6, 0.7, 0.8], [0.9, 0.9, 0.9])
    with pytest.raises(InputError, match=r"has no tables/scores\.csv"):
        promote("lesion", gated())


def test_the_tables_that_a_store_lost_come_back_with_the_champions_files(here: Path) -> None:
    trained([0.5, 0.6, 0.7], None, trained_on=10)
    promote("lesion", gated())
    for table in (here / "mlruns").rglob("tables"):
        shutil.rmtree(table)
    assert "already" in promote("lesion", gated())
    trained([0.6, 0.7, 0.8], None, trained_on=10)
    assert "version 2 is the champion" in promote("lesion", gated())
