"""The tune flow: the search as a stage, workers that join it and end with it, and nothing left behind by a timeout."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from conftest import Workspace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # flows/ lies beside src/, it is not installed

from flows import states  # noqa: E402
from flows import tune as room  # noqa: E402
from flows.command import Ended  # noqa: E402

TRIALS = "number,state,value,lr\n0,complete,0.2,0.1\n1,failed,,1.0\n2,complete,0.6,0.01\n3,pruned,0.7,0.02\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stages of both arms by name, and the results of a search."""
    stages = [f"{arm}-{verb}" for arm in ("lesion", "perfusion") for verb in ("cohort", "folds", "tune", "train")]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: {} for name in stages}}, sort_keys=False))
    folder = tmp_path / "results/lesion/tune"
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text(TRIALS)
    best = {"overrides": {"lr": 0.01}, "metric": "dice", "cv_score": 0.6, "trial": 2}
    (folder / "best.json").write_text(json.dumps(best))
    monkeypatch.setattr(room, "ROOT", tmp_path)
    monkeypatch.setattr(room, "JOIN_DELAY_S", 0.01)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def begin(checkout: Path) -> None:
    record = checkout / ".reperfuse/lesion/0123/tune/study.json"
    record.parent.mkdir(parents=True)
    record.touch()


class Future:
    """What `submit` gives, already over."""

    def __init__(self, state: Any) -> None:
        self.state = state


def run_body(
    monkeypatch: pytest.MonkeyPatch, *, fails: str = "", joined: Any = None, **parameters: Any
) -> tuple[list[str], Any, list[Any]]:
    """The steps, the ending and the artifacts of the flow's body, with every step replaced by its name."""
    steps: list[str] = []
    artifacts: list[Any] = []

    def step(name: str) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            steps.append(name)
            return states.refused("mend it.") if name == fails else room.Completed(message=f"{name} ran.")

        return call

    def submit(arm: str, number: int, began: float, over: threading.Event) -> Future:
        steps.append(f"worker {number}")
        return Future(joined or room.Completed(message="done"))

    monkeypatch.setattr(room, "named", lambda task, name: step(name))
    monkeypatch.setattr(room.worker, "submit", submit)
    monkeypatch.setattr(room, "wait", lambda _: None)
    monkeypatch.setattr(room, "_stop_workers", lambda arm: steps.append(f"stop {arm}"))
    monkeypatch.setattr(room, "create_markdown_artifact", lambda text, **_: artifacts.append(text))
    monkeypatch.setattr(room, "create_table_artifact", lambda rows, **_: artifacts.append(rows))
    return steps, room.tune.fn(**parameters), artifacts


def test_the_stages_before_the_search_run_first_and_none_after_it(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    steps, ending, _ = run_body(monkeypatch, arm="lesion", workers=3)
    assert steps == ["lesion-cohort", "lesion-folds", "worker 2", "worker 3", "lesion-tune"]
    assert ending.is_completed() and "Trial 2 is the best: dice 0.6." in ending.message


def test_the_artifacts_show_the_best_trial_and_all_of_them_best_first(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    *_, (text, rows) = run_body(monkeypatch, arm="lesion", workers=1)
    assert "| lr | 0.01 |" in text and "dice 0.6" in text
    assert [row["number"] for row in rows] == ["2", "0", "3", "1"]


@pytest.mark.parametrize("stage", ["lesion-folds", "lesion-tune"])
def test_a_stage_that_fails_fails_the_run_with_its_sentence(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, stage: str
):
    steps, ending, artifacts = run_body(monkeypatch, fails=stage, arm="lesion")
    assert ending.is_failed() and ending.message == f"{stage} failed: mend it." and artifacts == []
    # What joined a search whose stage failed would search on alone.
    assert steps[2:] == (["worker 2", "lesion-tune", "stop lesion"] if stage == "lesion-tune" else [])


def test_a_worker_that_fails_is_named_and_does_not_fail_the_run(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    _, ending, _ = run_body(monkeypatch, joined=states.failed(Ended(-9, (), 1.0), "Join"), arm="lesion", workers=3)
    assert ending.is_completed() and "2 of 2 further workers failed: Join ended with exit code -9" in ending.message


def joining(checkout: Path, monkeypatch: pytest.MonkeyPatch, *codes: int, over: threading.Event) -> tuple[Any, int]:
    """The state of a worker whose `reperfuse tune --join` ends with these codes, and how often it was called."""
    left = list(codes)

    def ended(*_: Any, **__: Any) -> Ended:
        return Ended(left.pop(0), ("reperfuse: No search of lesion is running: start one.",), 1.0)

    monkeypatch.setattr(room, "streamed", ended)
    state = room.worker.fn("lesion", 2, time.time() - 5, over)
    return state, len(codes) - len(left)


def test_a_worker_waits_until_the_search_has_begun(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    old = checkout / ".reperfuse/lesion/old/tune/study.json"
    old.parent.mkdir(parents=True)
    old.touch()
    os.utime(old, (0, 0))
    threading.Timer(0.3, begin, [checkout]).start()
    started = time.monotonic()
    state, calls = joining(checkout, monkeypatch, 0, over=threading.Event())
    assert state.is_completed() and calls == 1 and time.monotonic() - started > 0.25


def test_a_worker_asks_again_while_the_study_is_being_made(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    begin(checkout)
    state, calls = joining(checkout, monkeypatch, 2, 2, 0, over=threading.Event())
    assert state.is_completed() and calls == 3


def test_a_worker_that_comes_too_late_ends_well(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    over = threading.Event()
    threading.Timer(0.2, over.set).start()
    state, calls = joining(checkout, monkeypatch, over=over)
    assert state.is_completed() and "too late" in state.message and calls == 0


def test_a_worker_that_is_refused_again_and_again_says_why(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    begin(checkout)
    refusals = [2] * room.JOIN_ATTEMPTS
    state, _ = joining(checkout, monkeypatch, *refusals, over=threading.Event())
    assert state.name == states.REFUSED and state.message.startswith("No search of lesion is running")
    state, calls = joining(checkout, monkeypatch, -9, over=threading.Event())
    assert calls == 1 and states.worth_retrying(None, None, state)


# ---- prefect.yaml


def test_both_arms_have_a_deployment_and_its_form_explains_every_parameter():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    ours = [one for one in deployments if one["entrypoint"] == "flows/tune.py:tune"]
    assert {one["name"]: one["parameters"] for one in ours} == {
        arm: {"arm": arm, "workers": 2} for arm in ("lesion", "perfusion")
    }
    assert all(field.get("description") for field in room.tune.parameters.properties.values())
    with pytest.raises(Exception, match="less than or equal to 64"):
        room.tune.validate_parameters({"arm": "lesion", "workers": 100})


# ---- with Prefect itself, on a server of its own


def a_server_of_its_own(tmp_path: Path) -> dict[str, str]:
    """Variables with which a flow starts its own server, however busy the machine is."""
    return {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "240",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


STAND_IN = """
import os, pathlib, subprocess, sys, time
pathlib.Path("pids").mkdir(exist_ok=True)
if "--join" not in sys.argv:
    record = pathlib.Path(".reperfuse/lesion/0123/tune/study.json")
    record.parent.mkdir(parents=True)
    record.touch()
child = subprocess.Popen(["sleep", "600"])
for pid in (os.getpid(), child.pid):
    pathlib.Path("pids", str(pid)).touch()
print("searching", flush=True)
child.wait()
"""


@pytest.mark.services
def test_a_timeout_stops_the_search_its_workers_and_all_their_children(tmp_path: Path):
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "reperfuse").mkdir()
    (root / "reperfuse/__init__.py").write_text("__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n")
    (root / "reperfuse/__main__.py").write_text(STAND_IN)
    stages = {"lesion-tune": {"cmd": f"{sys.executable} -m reperfuse tune lesion"}}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for words in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(words, cwd=root, check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = kept | a_server_of_its_own(tmp_path)
    code = "from flows.tune import tune; tune.with_options(timeout_seconds=20)('lesion', workers=3)"
    said = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert said.returncode == 1 and "exceeded timeout of 20" in said.stderr
    pids = [int(path.name) for path in (root / "pids").iterdir()]
    assert len(pids) == 6, said.stderr  # the stage and two workers, each with a child
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


@pytest.mark.slow
@pytest.mark.services
def test_two_processes_tune_a_small_arm_to_its_exact_number_of_trials(ingested: Workspace, tmp_path: Path):
    shutil.copytree(ingested.root, tmp_path / "workspace")
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(ROOT / "flows", workspace.root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    workspace.edit_params(lambda content: content["lesion"]["tune"].update({"n_trials": 40}))
    code = "from flows.tune import tune; print(tune('lesion', workers=2, return_state=True))"
    options = {
        "cwd": workspace.root,
        "env": workspace.environment(**a_server_of_its_own(tmp_path), OMP_NUM_THREADS="1"),
    }
    said = subprocess.run([sys.executable, "-c", code], **options, capture_output=True, text=True)
    assert "Completed('lesion-tune ran in" in said.stdout, said.stdout + said.stderr
    trials = pd.read_csv(workspace.root / "results/lesion/tune/trials.csv")
    assert len(trials) == 40 and not set(trials["state"]) & {"running", "failed"}
    # Both worked, and none at what the other had.
    ended = re.findall(r"Task run '(.+?)' - trial (\d+) (?:complete|pruned)", said.stderr)
    assert sorted(int(number) for _, number in ended) == list(range(40))
    assert {task for task, _ in ended} == {"lesion-tune", "worker 2"}
