"""The order of a retraining and what it says, without a server: every step is replaced by how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_repository import ROOT  # flows/ is found through it

from flows import experiment, retrain, states
from flows.command import Ended

STAGES = ["lesion-cohort", "lesion-preprocess", "lesion-folds", "lesion-train"]

KNOWN = {"arm": "lesion", "champion": "3", "champion_revision": "1.dir", "revision": "1.dir", "news": False}


@pytest.fixture
def body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the flow's body; gives the steps that were made and how it ended."""
    monkeypatch.setattr(retrain, "ROOT", tmp_path)
    monkeypatch.setattr(retrain, "stage_names", lambda root, arm: STAGES)
    monkeypatch.setattr(retrain, "create_markdown_artifact", lambda text, **_: None)
    steps: list[str] = []

    def run(endings: dict[str, Any], *, data: bool = True, delivered: bool = False, **parameters: Any) -> Any:
        if data:
            (tmp_path / "data/bids").mkdir(parents=True)
            (tmp_path / "data/bids/lesion.dvc").touch()
        if delivered:
            (tmp_path / "inbox/lesion").mkdir(parents=True)
            (tmp_path / "inbox/lesion/scan.nii.gz").touch()

        def step(name: str) -> Any:
            def call(*_: Any, **__: Any) -> Any:
                steps.append(name)
                return endings.get(name, experiment.Completed(message="done"))

            return call

        for room in (experiment, retrain):
            monkeypatch.setattr(room, "named", lambda task, name: step(name))
        monkeypatch.setattr(retrain, "ingest", step("ingest"))
        return steps, retrain.retrain.fn(arm="lesion", **parameters)

    return run


def compared(**changes: Any) -> Any:
    found = KNOWN | changes
    return experiment.Completed(message=retrain.news(found), data=found)


def decided(name: str, reason: str) -> Any:
    return experiment.Completed(name=name, message=reason)


def test_without_new_data_it_stops_behind_the_ingest(body: Any):
    steps, ending = body({"lesion-news": compared()}, delivered=True)
    assert steps == ["ingest", "lesion-news"]
    assert ending.name == retrain.NOTHING_NEW and "version 3, was trained on" in ending.message


@pytest.mark.parametrize(("changes", "force"), [({"news": True}, False), ({"champion": None}, False), ({}, True)])
def test_with_new_data_without_a_champion_or_by_force_the_stages_run_and_the_gate_decides(
    body: Any, changes: dict[str, Any], force: bool
):
    gate = decided(retrain.KEPT, "version 4 is registered and not promoted: worse.")
    steps, ending = body({"lesion-news": compared(**changes), "lesion-decide": gate}, force=force)
    assert steps == ["lesion-news", *STAGES[:3], "lesion-drift", STAGES[3], "lesion-decide"]
    assert ending.is_completed() and (ending.name, ending.message) == (retrain.KEPT, f"lesion: {gate.message}")


def test_a_stage_that_fails_leaves_the_champion_alone(body: Any):
    steps, ending = body({"lesion-news": compared(news=True), "lesion-train": states.refused("too few subjects.")})
    assert "lesion-decide" not in steps
    assert ending.is_failed() and ending.message == "lesion: lesion-train failed: too few subjects."


def test_an_inbox_of_which_nothing_could_be_taken_is_told_and_older_news_are_still_trained_on(body: Any):
    refusal = states.refused("No subject of inbox/lesion was accepted.")
    gate = decided(retrain.PROMOTED, "version 4 is the champion.")
    endings = {"ingest": refusal, "lesion-news": compared(news=True), "lesion-decide": gate}
    _, ending = body(endings, delivered=True)
    assert ending.name == retrain.PROMOTED and ending.message.endswith("The inbox brought nothing: " + refusal.message)


def test_an_ingest_that_crashed_stops_it(body: Any):
    steps, ending = body({"ingest": experiment.Failed(message="killed")}, delivered=True)
    assert steps == ["ingest"] and ending.is_failed()


def test_an_arm_without_data_is_no_failure(body: Any):
    steps, ending = body({}, data=False)
    assert steps == [] and ending.name == retrain.NOTHING_NEW and "put some into inbox/lesion" in ending.message


def test_one_inbox_is_not_read_for_both_arms():
    ending = retrain.retrain.fn(inbox="somewhere")
    assert ending.name == states.REFUSED and "name the arm" in ending.message


def test_of_two_arms_the_stronger_word_names_the_run(monkeypatch: pytest.MonkeyPatch):
    said = {"lesion": decided(retrain.KEPT, "worse"), "perfusion": decided(retrain.NOTHING_NEW, "nothing new")}
    monkeypatch.setattr(retrain, "_retrained", lambda arm, inbox, force: said[arm])
    ending = retrain.retrain.fn()
    assert (ending.name, ending.message) == (retrain.KEPT, "lesion: worse · perfusion: nothing new")
    said["perfusion"] = experiment.Failed(message="broken")
    assert retrain.retrain.fn().is_failed()


@pytest.mark.parametrize(
    ("last", "name"),
    [
        ("lesion: version 2 is the champion: better.", retrain.PROMOTED),
        ("lesion: version 2 is registered and not promoted: worse.", retrain.KEPT),
        ("lesion: version 2 is the champion already.", retrain.KEPT),
    ],
)
def test_the_decision_is_the_state_and_its_page_the_artifact(
    last: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pages: list[str] = []

    def streamed(words: tuple[str, ...], **_: Any) -> Ended:
        page = Path(words[words.index("--report") + 1])
        page.parent.mkdir(parents=True)
        page.write_text("# decided")
        return Ended(0, (last,), 1.0)

    monkeypatch.setattr(retrain, "ROOT", tmp_path)
    monkeypatch.setattr(retrain, "streamed", streamed)
    monkeypatch.setattr(retrain, "create_markdown_artifact", lambda text, **_: pages.append(text))
    state = retrain.decide.fn("lesion")
    assert (state.name, state.message) == (name, last.removeprefix("lesion: ")) and pages == ["# decided"]


def test_the_drift_of_processed_data_is_a_table(monkeypatch: pytest.MonkeyPatch):
    features = [{"feature": "te_s", "shifted": True}, {"feature": "tr_s", "shifted": False}]
    found = KNOWN | {"news": True, "new": ["a"], "changed": [], "gone": [], "features": features}
    tables: list[Any] = []
    monkeypatch.setattr(retrain, "streamed", lambda words, **_: Ended(0, (json.dumps(found),), 1.0))
    monkeypatch.setattr(retrain, "create_table_artifact", lambda table, **_: tables.append(table))
    state = retrain.measure_drift.fn("lesion", True)
    assert state.message == "1 new subjects, 0 with other files, 0 gone; shifted: te_s." and tables == [features]
    assert retrain.measure_drift.fn("lesion", False).data == found and len(tables) == 1


def test_the_sentence_of_a_promotion_is_the_one_that_the_flow_reads():
    said = (ROOT / "src/reperfuse/stages/promotion.py").read_text()
    assert "is registered and not promoted" in said and "is the champion already" in said
