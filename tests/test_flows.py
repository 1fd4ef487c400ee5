"""The flows: what a stage's end means, what a run says, and real services that bring it to Completed."""

import contextlib
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from reperfuse.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # flows/ lies beside src/, it is not installed

from flows import command, experiment, serve, states  # noqa: E402
from flows import ingest as ingest_room  # noqa: E402
from flows.command import Ended  # noqa: E402

PYTHON = shlex.quote(sys.executable)

FAKE_CLI = """
import json, sys, time
from pathlib import Path
words = sys.argv[1:]
with open("said.txt", "a") as said:
    said.write(" ".join(words) + "\\n")
if words[0] == "ingest":
    if not Path(words[1]).exists():
        sys.exit(print("reperfuse: " + words[1] + " is empty: put series into it.", file=sys.stderr) or 2)
    folder = Path(words[words.index("--out") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.txt").write_text("1")
    __import__("subprocess").run([sys.executable, "-m", "dvc", "add", "--quiet", str(folder)], check=True)
    rows = [{"participant": "sub-1", "outcome": "accepted", "why": ""}]
    if Path(words[1], "growing").exists():
        rows[0]["outcome"] = "left"
    Path(words[words.index("--json") + 1]).write_text(json.dumps(rows))
    print("1 subject accepted")
    sys.exit(0 if rows[0]["outcome"] == "accepted" else 2)
elif words[0] == "demo-data":
    Path(words[1], words[3]).mkdir(parents=True, exist_ok=True)
elif words[0] == "promote":
    print(words[1], "is champion: no champion before it.")
"""

TRAIN = """
import json, pathlib, sys, time
arm = sys.argv[1]
folder = pathlib.Path("results", arm, "evaluate")
folder.mkdir(parents=True, exist_ok=True)
if pathlib.Path("broken").exists():
    sys.exit(print("fold 0 has no subjects: lower folds.n_folds.", file=sys.stderr) or 2)
if pathlib.Path("slow").exists():
    pathlib.Path("pid").write_text(str(__import__("os").getpid()))
    time.sleep(120)
json.dump({"dice": 0.61, "hd95_mm": None}, open(folder / "metrics.json", "w"))
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC repository with these flows, two tiny stages per arm and a stand-in for the command line."""
    root = tmp_path_factory.mktemp("repository") / "tiny repository"  # a name with a space
    root.mkdir()
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", root)
    (root / "reperfuse").mkdir()
    # The rooms below, such as reperfuse.errors, stay those of the installed package.
    (root / "reperfuse/__init__.py").write_text("__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n")
    (root / "reperfuse/__main__.py").write_text(FAKE_CLI)
    (root / "train.py").write_text(TRAIN)
    (root / "params.yaml").write_text("x: 1\n")
    stages: dict[str, Any] = {}
    for arm in experiment.ARMS:
        out = f"results/{arm}/cohort.csv"
        code = (
            f"import pathlib; p = pathlib.Path('{out}'); p.parent.mkdir(parents=True, exist_ok=True); p.write_text('1')"
        )
        stages[f"{arm}-cohort"] = {"cmd": f'python -c "{code}"', "deps": [f"data/bids/{arm}"], "outs": [out]}
        metrics = [{f"results/{arm}/evaluate/metrics.json": {"cache": False}}]
        stages[f"{arm}-train"] = {"cmd": f"python train.py {arm}", "deps": [out], "params": ["x"], "metrics": metrics}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (root / ".gitignore").write_text("/.reperfuse/\n__pycache__/\n")
    for words in (
        "git init -q -b main",
        "git config user.email a@example.org",
        "git config user.name a",
        f"{PYTHON} -m dvc init -q",
        f"{PYTHON} -m dvc config core.analytics false",
        "git add .",
        "git commit -q -m tiny",
    ):
        subprocess.run(shlex.split(words), cwd=root, check=True)
    return root


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
    (repository / "slow").unlink()
    monkeypatch.setattr(time, "sleep", lambda s: os.kill(int((repository / "pid").read_text()), signal.SIGTERM))
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

    monkeypatch.setattr(experiment, "_named", lambda task, name: step(name))
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
    monkeypatch.setattr(ingest_room, "create_markdown_artifact", lambda *_, **__: None)
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
    assert {"ingest/inbox", "experiment/demo", "experiment/lesion", "experiment/perfusion"} <= names


@pytest.mark.parametrize("deployment", deployments(), ids=lambda one: one["name"])
def test_a_deployment_names_parameters_its_flow_takes(deployment: dict[str, Any]):
    flow = flow_of(deployment)
    for parameters in [deployment["parameters"], *(s["parameters"] for s in deployment.get("schedules", []))]:
        flow.validate_parameters({**deployment["parameters"], **parameters})
        assert parameters.keys() <= inspect.signature(flow.fn).parameters.keys()
    assert deployment["concurrency_limit"]["limit"] == 1 and deployment["description"]


@pytest.mark.parametrize("flow", [experiment.experiment, ingest_room.ingest], ids=lambda flow: flow.name)
def test_the_form_in_the_ui_explains_every_parameter(flow: Any):
    for name, field in flow.parameters.properties.items():
        assert field.get("description"), name


def test_a_schedule_is_off_until_someone_switches_it_on():
    assert all(not one["active"] for deployment in deployments() for one in deployment.get("schedules", []))


def test_the_demo_of_the_flow_and_of_make_hold_out_the_same_patients():
    assert f"REPERFUSE_PSEUDONYM_KEY={experiment.DEMO_KEY}\n" in (ROOT / "Makefile").read_text()


# ---- services


def test_a_busy_port_is_one_sentence():
    with socket.socket() as taken:
        taken.bind((serve.HOST, 0))
        taken.listen()
        with pytest.raises(InputError, match=r"is taken on 127\.0\.0\.1"):
            serve.free_port(taken.getsockname()[1])
    assert serve.free_port(None) > 0


def test_importing_the_services_leaves_the_home_folder_of_the_user_alone(tmp_path: Path):
    code = "import os, flows.serve; print(os.listdir(os.environ['HOME']))"
    environment = {**os.environ, "HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"


def start_services(root: Path) -> int:
    """Start server and worker as a Makefile or an init script does, and give the process to signal."""
    # `&` in a shell without a terminal starts its command with SIGINT ignored, which children would inherit.
    shell = f"{PYTHON} -m flows.serve >> serve.out 2>&1 & echo $!"
    environment = {**os.environ, "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3", "COLUMNS": "400"}
    pid = int(subprocess.run(["sh", "-c", shell], cwd=root, env=environment, capture_output=True, check=True).stdout)
    wait_for(lambda: (root / ".reperfuse/prefect/env").exists(), 300, lambda: (root / "serve.out").read_text())
    return pid


def end(pid: int, signum: int = signal.SIGINT) -> None:
    """Send a signal and wait for the end; in a container nobody may collect the zombie."""
    os.kill(pid, signum)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 120)


def wait_for(condition: Callable[[], bool], patience_s: float, why: Callable[[], str] = str) -> None:
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up, why()
        time.sleep(0.2)


def prefect(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """What `prefect WORDS` says in a terminal that has read the services' env file."""
    line = f". .reperfuse/prefect/env && {PYTHON} -m prefect {shlex.join(words)}"
    return subprocess.run(
        ["sh", "-c", line], cwd=root, env={**os.environ, "COLUMNS": "400"}, capture_output=True, text=True
    )


def runs(root: Path) -> list[dict[str, Any]]:
    """The runs that the server knows."""
    url = re.search(r"PREFECT_API_URL=(\S+)", (root / ".reperfuse/prefect/env").read_text())
    assert url
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url[1]}/flow_runs/filter", data=b'{"limit": 200}', headers=headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)


def services_of(root: Path) -> list[psutil.Process]:
    """Processes of server, worker and flow runs that belong to the checkout `root`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("REPERFUSE_ROOT") == str(root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def up(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny repository whose services are up."""
    root = tmp_path_factory.mktemp("services") / "tiny repository"
    shutil.copytree(template, root)
    pid = start_services(root)
    yield root
    end(pid)
    assert services_of(root) == []


@pytest.mark.services
def test_the_demo_runs_to_completed_and_the_second_time_nothing_is_stale(up: Path):
    first = prefect(up, "deployment", "run", "experiment/demo", "--watch")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Running stage 'perfusion-train'" in first.stdout and "perfusion is champion" in first.stdout
    assert (up / "data/bids/lesion.dvc").exists()
    second = prefect(up, "deployment", "run", "experiment/demo", "--watch")
    assert second.returncode == 0 and "perfusion-train is unchanged" in second.stdout
    assert "Running stage" not in second.stdout
    assert "experiment all" in [run["name"] for run in runs(up)]


@pytest.mark.services
def test_a_stage_that_refuses_fails_the_run_at_once_with_its_sentence(up: Path):
    (up / "broken").touch()
    said = prefect(up, "deployment", "run", "experiment/lesion", "--param", "force=true", "--watch")
    (up / "broken").unlink()
    assert said.returncode == 1
    assert "lesion-train failed: fold 0 has no subjects: lower folds.n_folds." in said.stdout
    assert "Traceback" not in said.stdout and "Retry" not in said.stdout


@pytest.mark.services
def test_a_cron_run_appears_and_fires(up: Path):
    # fastapi and sqlalchemy releases have made schedules vanish without a word; pip check sees nothing.
    (up / "inbox/perfusion").mkdir(parents=True, exist_ok=True)
    assert prefect(up, "deployment", "schedule", "create", "ingest/inbox", "--cron", "* * * * *").returncode == 0
    wait_for(lambda: any(run["auto_scheduled"] for run in runs(up)), 120)
    wait_for(lambda: any(run["auto_scheduled"] and run["state"]["type"] == "COMPLETED" for run in runs(up)), 240)


@pytest.mark.services
def test_a_second_start_in_the_same_checkout_is_one_sentence(up: Path):
    said = subprocess.run([sys.executable, "-m", "flows.serve"], cwd=up, capture_output=True, text=True)
    assert said.returncode == 2 and "up already" in said.stdout + said.stderr


@pytest.mark.services
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_services_that_stop_in_a_training_leave_nothing_and_the_next_run_goes_on(
    template: Path, tmp_path: Path, signum: int
):
    root = tmp_path / "tiny repository"
    shutil.copytree(template, root)
    (root / "slow").touch()
    pid = start_services(root)
    assert prefect(root, "deployment", "run", "experiment/demo").returncode == 0
    wait_for(lambda: (root / "pid").exists(), 300)
    training = int((root / "pid").read_text())
    end(pid, signum)
    (root / "slow").unlink()
    if signum == signal.SIGINT:
        assert not psutil.pid_exists(training) and services_of(root) == []
    (root / ".reperfuse/prefect/env").unlink(missing_ok=True)
    pid = start_services(root)
    try:
        assert not psutil.pid_exists(training)
        assert {run["state"]["name"] for run in runs(root)} <= {"Crashed", "Completed"}
        said = prefect(root, "deployment", "run", "experiment/demo", "--watch")
        assert said.returncode == 0 and "AwaitingConcurrencySlot" not in said.stdout
    finally:
        end(pid)
    assert services_of(root) == []
