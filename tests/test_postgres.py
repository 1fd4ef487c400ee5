"""MLflow, Optuna and Prefect on a PostgreSQL of our own: by URL alone, shared by several processes."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from reperfuse.databases import database_lock
from reperfuse.errors import InputError

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[1]

PASSWORD = "s3cr3t-of-the-tests"


def programs() -> Path:
    """Where initdb and pg_ctl are; Debian keeps them off the PATH."""
    found = [Path(path).parent for path in [shutil.which("initdb")] if path]
    found += sorted((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), reverse=True)
    if not found:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) are not installed.")
    return found[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], patience_s: float, why: str = "") -> None:
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up, why
        time.sleep(0.2)


@dataclass(frozen=True)
class Server:
    """A PostgreSQL on loopback that asks for a password."""

    url: str
    """Without a database's name."""
    start: Callable[[], None]
    stop: Callable[[], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    binaries, port = programs(), free_port()
    # PostgreSQL refuses to run as root, and no other account may enter pytest's own folder.
    account = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="reperfuse-postgres-") as folder:
        room = Path(folder)
        (room / "password").write_text(PASSWORD)
        if account:
            shutil.chown(room, **account)

        def run(*words: str) -> None:
            quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
            done = subprocess.run(words, cwd=room, **quiet, **account)
            assert done.returncode == 0, done.stdout + done.stderr

        run(f"{binaries}/initdb", "-D", "data", "-U", "ada", "-A", "scram-sha-256", "--pwfile", "password", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        control = [f"{binaries}/pg_ctl", "-D", "data", "-w", "-l", "log"]
        one = Server(
            f"postgresql://ada:{PASSWORD}@127.0.0.1:{port}",
            lambda: run(*control, "-o", options, "start"),
            lambda: run(*control, "-m", "fast", "stop"),
        )
        one.start()
        try:
            yield one
        finally:
            one.stop()


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> str:
    """URL of an empty database."""
    import psycopg2

    name = f"test_{abs(hash(request.node.name))}"
    connection = psycopg2.connect(f"{server.url}/postgres")
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{server.url}/{name}"


def answer(url: str, query: str) -> list[tuple]:
    """Rows of a query."""
    import psycopg2

    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()
    finally:
        connection.close()


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "OPTUNA_", "PREFECT_"))
    }
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"} | more


def processes(code: str, folders: list[Path], **more: str) -> "list[subprocess.Popen[str]]":
    """Python processes that run `code`, one in each folder."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-c", code]
    return [subprocess.Popen(command, cwd=folder, env=environment(**more), **pipes) for folder in folders]


# ---- the lock
def test_a_lock_holds_off_another_connection_and_is_gone_with_a_killed_process(database: str) -> None:
    code = f"""
import sys, time; from reperfuse.databases import database_lock
with database_lock({database!r}, "a lock"):
    print("held", flush=True); time.sleep(60)
"""
    (holder,) = processes(code, [ROOT])
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with database_lock(database, "another lock"):
        pass
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database "
    held += "WHERE datname = current_database())"
    assert answer(database, held) == [(1,)]
    holder.kill()
    before = time.monotonic()
    with database_lock(database, "a lock"):
        assert time.monotonic() - before < 10 and answer(database, held) == [(1,)]
    holder.communicate()


def test_a_database_that_cannot_be_had_is_one_sentence_without_the_password(server: Server, tmp_path: Path) -> None:
    from reperfuse.training.studies import DatabasePlace

    with pytest.raises(InputError, match=r"ada:\*\*\*@127.* does not answer .*nowhere.*: start that database") as said:
        DatabasePlace(f"{server.url}/nowhere", "lesion").exists()
    assert PASSWORD not in str(said.value)
    code = "from reperfuse import tracking; tracking.client()"
    (process,) = processes(code, [tmp_path], MLFLOW_TRACKING_URI=f"{server.url}/nowhere")
    assert "does not answer" in (text := process.communicate(timeout=60)[0]) and PASSWORD not in text


# ---- MLflow
REMEMBERING = """
import sys
from pathlib import Path
import numpy as np, pandas as pd
from reperfuse import tracking
from reperfuse.tracking.registry import CHAMPION
served = Path(tracking.__file__).parent.parent / "stages" / "served_model.py"
with tracking.run("lesion", "study first") as study, tracking.run("lesion", "trial 000", parent_id=study.id) as trial:
    for step in range(5):
        trial.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
    trial.log_table(pd.DataFrame({"dice": [0.5]}), "tables/scores.csv")
    example = np.zeros((2, 1, 4, 4, 4), np.float32)
    for folder in ("one", "two"):
        uri = tracking.log_model(trial, folder, input_example=example, pip_requirements=[], code_path=served)
        version = tracking.register(uri, "lesion")
        tracking.promote("lesion", version.version)
print(trial.id)
"""


def saved_models(folder: Path) -> None:
    import torch

    from reperfuse.networks import build_network, save_network

    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        save_network(folder / name, "unet3d", {"widths": [2, 4]}, build_network("unet3d", widths=(2, 4)))


def test_two_processes_remember_register_and_promote_at_once(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reperfuse import tracking

    (tmp_path / ".git").mkdir()
    saved_models(tmp_path)
    both = processes(REMEMBERING, [tmp_path, tmp_path], MLFLOW_TRACKING_URI=database)
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and all(len(text.split()) == 1 for text in said), said
    # Two pairs of study and trial, no version twice although both came with the same two models.
    assert answer(database, "SELECT status, count(*) FROM runs GROUP BY status") == [("FINISHED", 4)]
    assert answer(database, "SELECT count(*) FROM metrics WHERE key = 'train/loss'") == [(10,)]
    assert answer(database, "SELECT version FROM model_versions ORDER BY version") == [(1,), (2,)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    assert tracking.read_table(said[0].strip(), "tables/scores.csv")["dice"].tolist() == [0.5]
    assert (tmp_path / "mlruns" / "artifacts" / "lesion").is_dir() and not (tmp_path / "mlruns" / "mlflow.db").exists()
    first = tracking.champion("lesion")
    assert first is not None and {first.version, tracking.rollback("lesion").version} == {"1", "2"}
    assert tracking.rollback("lesion").version == first.version
    assert PASSWORD not in tracking.store_name()
    assert not subprocess.run(["grep", "-r", "-l", PASSWORD, tmp_path], capture_output=True, text=True).stdout


def test_metrics_logged_while_the_database_starts_again_are_all_there_once(
    server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reperfuse import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    with tracking.run("lesion", "model x") as run:
        run.log_metrics({"train/loss": 3.0}, step=0)
        server.stop()
        late = threading.Timer(3.0, server.start)
        late.start()
        run.log_metrics({"train/loss": 2.0}, step=1)
        late.join()
        run.log_metrics({"train/loss": 1.0}, step=2)
    history = tracking.client().get_metric_history(run.id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]


# ---- Optuna
WORKER = """
import json, math, os, sys, time
from pathlib import Path
from reperfuse.training import studies
from reperfuse.training.tune import tune
studies.HEARTBEAT_S, studies.GRACE_S = 1, 4

def score(overrides, fold, folder):
    with open("../attempts.txt", "a") as file:
        file.write(f"{overrides['x']} {fold} {os.getpid()}\\n")
    if Path("sleepy").exists() and (fold, overrides["x"]) == (1, json.loads(Path("sleepy").read_text())):
        Path("asleep").touch()
        time.sleep(600)
    time.sleep(0.3)
    return [{"dice": -abs(overrides["x"] - 2) + 0.1 * fold + 0.01 * subject} for subject in range(3)]
shared = None
if url := os.environ.get("OPTUNA_STORAGE"):
    shared = studies.DatabasePlace(url, "lesion-0123-tune")
summary = tune(score, metric="dice", space={"x": {"choices": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}}, n_trials=None,
    n_folds=2, state_dir=Path("state"), sampler="grid", prune=False, shared=shared)
summary.trials.drop(columns="seconds").to_csv("trials.csv", index=False)
print(summary.best_overrides["x"], summary.best_fold_scores)
"""


def workers(room: Path, count: int, *, sleepy_at: float | None = None, **more: str) -> "dict[Path, subprocess.Popen]":
    """Workers by their folders, each its own: they share no file. At that x they fall asleep in the second fold."""
    folders = [room / f"machine-{k}" for k in range(count)]
    for folder in folders:
        folder.mkdir(parents=True)
        if sleepy_at is not None:
            (folder / "sleepy").write_text(str(sleepy_at))
    return dict(zip(folders, processes(WORKER, folders, **more), strict=True))


def killed_asleep(running: "dict[Path, subprocess.Popen]") -> None:
    """Kill the worker that has fallen asleep in a trial, as soon as one has, and take it out of `running`."""
    wait_for(lambda: any((folder / "asleep").exists() for folder in running), 60)
    folder = next(folder for folder in running if (folder / "asleep").exists())
    process = running.pop(folder)
    process.kill()
    process.communicate()


def attempts(tmp_path: Path, x: float, fold: int) -> int:
    return sum(line.startswith(f"{x} {fold} ") for line in (tmp_path / "attempts.txt").read_text().splitlines())


def test_two_workers_without_a_common_disk_share_a_search_and_one_that_is_killed_is_replaced_once(
    database: str, tmp_path: Path
) -> None:
    running = workers(tmp_path, 2, sleepy_at=3.0, OPTUNA_STORAGE=database)
    killed_asleep(running)
    ((folder, living),) = running.items()
    (folder / "sleepy").unlink()  # the trial is deadly once
    said = living.communicate(timeout=60)[0]
    assert living.returncode == 0, said
    trials = pd.read_csv(folder / "trials.csv").set_index("x")
    assert sorted(trials.index) == [0, 1, 2, 3, 4, 5] and set(trials["state"]) == {"complete"}
    assert trials["continues"].dropna().index.tolist() == [3.0]
    assert [attempts(tmp_path, float(x), 1) for x in range(6)] == [1, 1, 1, 2, 1, 1]
    # One that joins when all is over finds every score, also those of the machine that is gone; so does a journal.
    (late,) = workers(tmp_path / "late", 1, OPTUNA_STORAGE=database).values()
    (alone,) = workers(tmp_path / "journal", 1).values()
    assert late.communicate(timeout=60)[0] == said == alone.communicate(timeout=60)[0] and said.startswith("2.0 [[")


def test_a_trial_that_kills_a_second_worker_is_given_up_and_the_search_ends(database: str, tmp_path: Path) -> None:
    running = workers(tmp_path, 3, sleepy_at=3.0, OPTUNA_STORAGE=database)
    killed_asleep(running)
    killed_asleep(running)
    ((folder, living),) = running.items()
    said = living.communicate(timeout=60)[0]
    assert living.returncode == 0, said
    trials = pd.read_csv(folder / "trials.csv").set_index("x")
    assert len(trials) == 6 and trials["state"].value_counts().to_dict() == {"complete": 5, "failed": 1}
    assert trials.loc[3.0, "reason"] == "Its process died (time 2)." and attempts(tmp_path, 3.0, 1) == 2


# ---- Prefect
RUNS = "SELECT state_type::text, count(*) FROM flow_run GROUP BY state_type"

FLOW = """
import os
from pathlib import Path
from prefect import flow

@flow
def tiny(number: int):
    Path(f"done-{number}").write_text(str(os.getppid()))
"""

DEPLOYMENT = """
name: tiny
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{{ $REPERFUSE_ROOT }}"
deployments:
  - name: one
    entrypoint: tiny.py:tiny
    work_pool: {name: reperfuse}
"""


@contextmanager
def service(*words: str, folder: Path, env: dict[str, str]) -> Iterator[None]:
    """A `prefect` process in the background, stopped at the end of the block."""
    with (folder / "services.log").open("ab") as log:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as said:
            return bool(said.status == 200)
    except OSError:
        return False


def test_prefect_runs_a_deployment_with_two_workers_and_remembers_it_there(database: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(FLOW)
    (tmp_path / "prefect.yaml").write_text(DEPLOYMENT)
    port = free_port()
    env = environment(
        PREFECT_HOME=str(tmp_path / "home"),
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_SERVER_DATABASE_CONNECTION_URL=database.replace("postgresql://", "postgresql+asyncpg://"),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        DO_NOT_TRACK="1",
        REPERFUSE_ROOT=str(tmp_path),
    )

    def prefect(*words: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "services.log").read_text()[-3000:]
        return done.stdout

    with ExitStack() as up:
        up.enter_context(
            service("server", "start", "--host", "127.0.0.1", "--port", str(port), folder=tmp_path, env=env)
        )
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api/health"), 120)
        prefect("work-pool", "create", "reperfuse", "--type", "process")
        prefect("deploy", "--all")
        for name in ("first", "second"):
            # One run at a time each, so that three runs at once need both.
            words = ("worker", "start", "--pool", "reperfuse", "--type", "process", "--name", name, "--limit", "1")
            up.enter_context(service(*words, folder=tmp_path, env=env))
        for number in range(2):
            prefect("deployment", "run", "tiny/one", "--param", f"number={number}")
        prefect("deployment", "run", "tiny/one", "--param", "number=2", "--watch")
        wait_for(lambda: all((tmp_path / f"done-{number}").exists() for number in range(3)), 60)
        wait_for(lambda: answer(database, RUNS) == [("COMPLETED", 3)], 60)
    assert len({(tmp_path / f"done-{number}").read_text() for number in range(3)}) == 2
    assert not (tmp_path / "home" / "prefect.db").exists()
