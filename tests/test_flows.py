"""The flows: what a stage's end means, and what a run says; test_services.py runs them on real servers."""

import importlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_repository import ROOT  # flows/ is found through it

from flows import command, experiment, states
from flows import ingest as ingest_room
from flows.command import Ended


@pytest.fixture
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of the tiny repository, with data for the lesion arm; the flows run there."""
    root = tmp_path / "tiny repository"
    shutil.copytree(template, root)
    (root / "data/bids/lesion").mkdir(parents=True)
    (root / "data/bids/lesion/x.txt").write_text("1")
    monkeypatch.setattr(experiment, "ROOT", root)
    monkeypatch.setattr(ingest_room, "ROOT", root)
    return root


# ---- what the end of a command means


def test_lines_reach_the_log_as_they_appear_without_colours_and_progress_bars(tmp_path: Path):
    code = r"print('\x1b[31mfold 1\x1b[0m'); print('\r 10%|#  | 1/9\r 90%|## | 8/9'); print('done ━━━━━━ 100%')"
    heard: list[str] = []
    ended = command.streamed((sys.executable, "-c", code), root=tmp_path, log=heard.append)
    assert (ended.code, heard, ended.lines) == (0, ["fold 1"], ("fold 1",))


def test_an_interrupted_wait_leaves_no_process_behind(tmp_path: Path):
    inner = "import time, os; print(os.getpid(), flush=True); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    heard: list[str] = []

    def interrupt(line: str) -> None:
        heard.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command.streamed((sys.executable, "-c", outer), root=tmp_path, log=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(heard[0]), 0)


def test_an_input_error_is_not_tried_again_and_a_crash_is():
    mended_by_a_person = states.failed(Ended(2, ("reading", "reperfuse: inbox is empty: fill it."), 1.0), "Ingest")
    assert mended_by_a_person.message == "inbox is empty: fill it."
    assert not states.worth_retrying(None, None, mended_by_a_person)
    killed = states.failed(Ended(-9, (), 1.0), "Ingest")
    assert killed.is_failed() and states.worth_retrying(None, None, killed)


@pytest.mark.parametrize(("exit_code", "retry"), [("2", False), ("1", True), ("-9", True)])
def test_the_exit_code_of_a_stage_is_read_through_dvc(exit_code: str, retry: bool):
    error = f"ERROR: failed to reproduce 'lesion-train': failed to run: python x, exited with {exit_code}"
    state = experiment.stage_state("lesion-train", Ended(255, ("scan.nii.gz is cut in half.", error), 1.0), ROOT)
    assert state.message.endswith("scan.nii.gz is cut in half.")
    assert states.worth_retrying(None, None, state) is retry


# ---- stages, with DVC itself


def test_stages_come_from_dvc_yaml_in_its_order(repository: Path):
    assert experiment.stage_names(repository, "perfusion") == ["perfusion-cohort", "perfusion-train"]


def test_a_stage_runs_once_then_is_unchanged_and_comes_back_from_the_cache(repository: Path):
    assert "ran in" in experiment.stage.fn("lesion-cohort", False).message
    assert experiment.stage.fn("lesion-cohort", False).name == experiment.UNCHANGED
    (repository / "results/lesion/cohort.csv").unlink()
    assert experiment.stage.fn("lesion-cohort", False).name == experiment.RESTORED
    assert "ran in" in experiment.stage.fn("lesion-cohort", True).message


def test_a_missing_dependency_is_one_sentence_with_a_remedy(repository: Path):
    state = experiment.stage.fn("perfusion-cohort", False)
    assert state.name == states.REFUSED and state.message.startswith("data/bids/perfusion is missing: ")


def test_a_repository_locked_by_another_dvc_is_waited_for(repository: Path, caplog: pytest.LogCaptureFixture):
    (repository / ".dvc/tmp").mkdir(exist_ok=True)
    code = "import fcntl, time, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(5)"
    holder = subprocess.Popen([sys.executable, "-c", code, repository / ".dvc/tmp/lock"], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    state = experiment.stage.fn("lesion-cohort", False)
    assert holder.wait() == 0 and state.is_completed()
    assert "Another DVC command holds this repository" in caplog.text


def test_files_in_use_by_another_dvc_are_waited_for(repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any):
    monkeypatch.setattr(experiment, "BUSY_DELAY_S", 0.5)
    assert experiment.stage.fn("lesion-cohort", False).is_completed()
    (repository / "slow").touch()
    other = subprocess.Popen([*command.DVC, "repro", "--single-item", "lesion-train"], cwd=repository)
    while not (repository / "pid").exists():
        time.sleep(0.1)

    def end_the_other(_: float) -> None:
        (repository / "slow").unlink()
        os.kill(int((repository / "pid").read_text()), signal.SIGTERM)

    monkeypatch.setattr(time, "sleep", end_the_other)
    state = experiment.stage.fn("lesion-train", False)
    other.wait()
    assert state.is_completed() and f"(PID {other.pid})" in caplog.text


# ---- a run, without a server: the order of its steps


def run_body(monkeypatch: pytest.MonkeyPatch, fails: str = "", **parameters: Any) -> tuple[list[str], Any, list[str]]:
    """The steps, the ending and the artifacts of the flow's body, with every step replaced by its name."""
    steps: list[str] = []
    artifacts: list[str] = []

    def step(name: str) -> Any:
        def call(*arguments: Any, **_: Any) -> Any:
            steps.append(name)
            return states.refused("mend it.") if name == fails else experiment.Completed(message="done")

        return call

    monkeypatch.setattr(experiment, "named", lambda task, name: step(name))
    monkeypatch.setattr(experiment, "ingest", step("ingest"))
    monkeypatch.setattr(experiment, "create_markdown_artifact", lambda text, **_: artifacts.append(text))
    return steps, experiment.experiment.fn(**parameters), artifacts


def test_the_stages_of_both_arms_run_in_order_and_end_in_promotion(repository: Path, monkeypatch: pytest.MonkeyPatch):
    steps, ending, _ = run_body(monkeypatch, arm="all")
    assert steps == [f"{arm}-{step}" for arm in experiment.ARMS for step in ("cohort", "train", "promote")]
    assert ending.is_completed()


def test_an_arm_that_fails_stops_there_and_leaves_the_other_alone(repository: Path, monkeypatch: pytest.MonkeyPatch):
    steps, ending, artifacts = run_body(monkeypatch, fails="lesion-cohort", arm="all")
    assert steps == ["lesion-cohort", "perfusion-cohort", "perfusion-train", "perfusion-promote"]
    assert ending.is_failed() and "lesion-cohort failed: mend it." in ending.message
    assert len(artifacts) == 2


def test_the_demo_makes_data_only_for_an_arm_that_has_none(repository: Path, monkeypatch: pytest.MonkeyPatch):
    (repository / "data/bids/lesion.dvc").touch()
    steps, *_ = run_body(monkeypatch, arm="all", demo_data=True)
    assert steps[:3] == ["lesion-cohort", "lesion-train", "lesion-promote"]
    assert steps[3:5] == ["perfusion-demo-data", "ingest"]


def test_chosen_stages_run_alone_and_promote_nothing(repository: Path, monkeypatch: pytest.MonkeyPatch):
    assert run_body(monkeypatch, arm="lesion", stages=["train"])[0] == ["lesion-train"]
    steps, ending, _ = run_body(monkeypatch, arm="lesion", stages=["trian"])
    assert steps == [] and ending.is_failed() and "no stage lesion-trian, choose from lesion-cohort" in ending.message


def test_the_summary_shows_steps_metrics_and_the_report(repository: Path):
    (repository / "results/lesion/evaluate").mkdir(parents=True)
    (repository / "results/lesion/evaluate/metrics.json").write_text(json.dumps({"dice": 0.61237, "hd95_mm": None}))
    (repository / "reports").mkdir()
    (repository / "reports/lesion.html").touch()
    text = experiment.summary(repository, "lesion", {"lesion-train": experiment.Completed(message="ran in 3 s.")})
    assert "| lesion-train | Completed | ran in 3 s. |" in text
    assert "| dice | 0.6124 |" in text and "| hd95_mm | undefined |" in text
    assert "reports/lesion.html" in text


def test_other_values_become_an_experiment_and_leave_the_workspace_alone(
    repository: Path, monkeypatch: pytest.MonkeyPatch
):
    tables: list[str] = []
    monkeypatch.setattr(experiment, "create_markdown_artifact", lambda text, **_: tables.append(text))
    subprocess.run([*command.DVC, "add", "-q", "data/bids/lesion"], cwd=repository, check=True)
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    subprocess.run(["git", "commit", "-qm", "data"], cwd=repository, check=True)
    state = experiment.dvc_experiment.fn("lesion", ["lesion-cohort", "lesion-train"], False, {"x": "5"})
    assert state.is_completed() and "dvc exp apply" in state.message
    assert (repository / "params.yaml").read_text() == "x: 1\n"
    assert "| dice" in tables[0] and "x=5" in tables[0]


# ---- ingest


def test_ingest_calls_the_verb_and_refuses_with_its_sentence(repository: Path, monkeypatch: pytest.MonkeyPatch):
    tables: list[Any] = []
    monkeypatch.setattr(ingest_room, "create_table_artifact", lambda rows, **_: tables.append(rows))
    state = ingest_room.ingest_inbox.fn("perfusion", "inbox", "data/bids/perfusion", "quarantine", 0.1)
    assert (state.name, state.message) == (states.REFUSED, "inbox is empty: put series into it.")
    (repository / "inbox").mkdir()
    assert ingest_room.ingest_inbox.fn("perfusion", "inbox", "data/bids/perfusion", "quarantine", None).is_completed()
    said = (repository / "said.txt").read_text().splitlines()
    options = "--out data/bids/perfusion --arm perfusion --quarantine quarantine"
    assert said[0].startswith(f"ingest inbox {options} --reference-scale 0.1 --json ")
    assert tables == [[{"participant": "sub-1", "outcome": "accepted", "why": ""}]]


def test_ingest_passes_its_workers_on_and_tries_again_what_was_being_written(
    repository: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ingest_room, "create_table_artifact", lambda *_, **__: None)
    (repository / "inbox").mkdir()
    (repository / "inbox/growing").touch()
    state = ingest_room.ingest_inbox.fn("lesion", "inbox", "data/bids/lesion", "quarantine", None, "dask", 3)
    assert "--runner dask --workers 3 --json" in (repository / "said.txt").read_text()
    assert "still being written" in state.message and states.worth_retrying(None, None, state)


# ---- prefect.yaml


def deployments() -> list[dict[str, Any]]:
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def flow_of(deployment: dict[str, Any]) -> Any:
    path, name = deployment["entrypoint"].split(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


def test_the_promised_deployments_exist():
    names = {f"{flow_of(one).name}/{one['name']}" for one in deployments()}
    arms = {f"{flow}/{arm}" for flow in ("experiment", "tune") for arm in experiment.ARMS}
    assert names == {"ingest/inbox", "experiment/demo", "retrain/weekly"} | arms


@pytest.mark.parametrize("deployment", deployments(), ids=lambda one: one["name"])
def test_a_deployment_names_parameters_its_flow_takes(deployment: dict[str, Any]):
    flow = flow_of(deployment)
    for parameters in [deployment["parameters"], *(s.get("parameters", {}) for s in deployment.get("schedules", []))]:
        flow.validate_parameters({**deployment["parameters"], **parameters})
        assert parameters.keys() <= inspect.signature(flow.fn).parameters.keys()
    assert deployment["concurrency_limit"]["limit"] == 1 and deployment["description"]


@pytest.mark.parametrize("flow", {flow_of(one).name: flow_of(one) for one in deployments()}.values(), ids=str)
def test_the_form_in_the_ui_explains_every_parameter(flow: Any):
    for name, field in flow.parameters.properties.items():
        assert field.get("description"), name


def test_retraining_is_due_every_week_and_an_inbox_is_read_on_a_schedule_only_once_that_is_switched_on():
    on = {one["slug"]: one["active"] for deployment in deployments() for one in deployment.get("schedules", [])}
    assert on == {"nightly-perfusion": False, "nightly-lesion": False, "weekly": True}


def test_the_demo_of_the_flow_and_of_make_hold_out_the_same_patients():
    assert f"REPERFUSE_PSEUDONYM_KEY={experiment.DEMO_KEY}\n" in (ROOT / "Makefile").read_text()
