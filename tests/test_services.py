"""The services: what they are told without a server, and real ones brought up, watched, killed and taken down."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_repository import PYTHON, ROOT, STEPS  # flows/ is found through it

from flows import api, serve, services, supervisor
from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.tracking import server

PASSWORD = "a-long-enough-phrase"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without services, where the settings of others are not known."""
    for name in ("REPERFUSE_PASSWORD", "MLFLOW_TRACKING_URI", "OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    for name, place in {"ROOT": "", "HOME": "home", "LOGS": "home/logs", "ENV": "home/env", "DOTENV": ".env"}.items():
        monkeypatch.setattr(services, name, tmp_path / place)
    (tmp_path / "home").mkdir()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what a start is told, without a server


def test_a_busy_port_is_one_sentence():
    with socket.socket() as taken:
        taken.bind((server.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=r"on 127\.0\.0\.1 is taken"):
            server.free_port(server.LOOPBACK, port, 4200)
        assert server.free_port(server.LOOPBACK, None, port) != port


def test_what_is_no_port_or_no_address_of_this_machine_is_called_so():
    with pytest.raises(InputError, match="80000 is no port"):
        server.free_port(server.LOOPBACK, 80000, 4200)
    for host in ("192.0.2.1", "no-such-host.invalid"):  # reserved for examples
        with pytest.raises(InputError, match=f"{host} is no IPv4 address or name of this machine"):
            server.free_port(host, None, 4200)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "gpu-server"])
def test_an_address_that_others_reach_demands_a_password(home: Path, host: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="set REPERFUSE_PASSWORD"):
        services.family(host=host)
    monkeypatch.setenv("REPERFUSE_PASSWORD", PASSWORD)
    assert server.password_for(host) == PASSWORD


@pytest.mark.parametrize(("young_s", "state"), [(1e9, "starting"), (0.0, "not answering")])
def test_a_service_that_was_just_started_again_is_starting(monkeypatch: pytest.MonkeyPatch, young_s, state):
    monkeypatch.setattr(serve, "YOUNG_S", young_s)
    own = {"pid": os.getpid(), "created": psutil.Process().create_time(), "given_up": False, "restarts": 1}
    one = own | {"name": "mlflow", "url": "", "health": "http://127.0.0.1:1/health", "log": ""}
    assert serve.condition(one, {"PREFECT_API_URL": "unused"}, "up")["state"] == state


@pytest.mark.parametrize("weak", ["elevenchars", "with a space in it", "quote'quote'quote", "dollar${HOME}dollar"])
def test_a_weak_password_or_one_that_shells_read_differently_is_refused(monkeypatch: pytest.MonkeyPatch, weak: str):
    monkeypatch.setenv("REPERFUSE_PASSWORD", weak)
    with pytest.raises(InputError, match="12 characters or more"):
        server.password_for("127.0.0.1")


def test_no_password_is_in_a_command_and_every_client_knows_it(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REPERFUSE_PASSWORD", PASSWORD)
    wanted = services.family(workers=2)
    assert [one.name for one in wanted.services] == ["mlflow", "prefect", "worker-1", "worker-2"]
    assert not any(PASSWORD in word for one in wanted.services for word in one.command)
    assert PASSWORD not in repr(wanted) and PASSWORD not in " ".join(server.server_command(1, "0.0.0.0", PASSWORD))
    assert wanted.settings["PREFECT_API_AUTH_STRING"] == f"reperfuse:{PASSWORD}"
    assert wanted.settings["MLFLOW_TRACKING_URI"] == wanted.services[0].url


def test_mlflow_answers_to_the_names_of_this_machine_unless_told_others(home: Path, monkeypatch: pytest.MonkeyPatch):
    hosts = server.server_environment(5000, "127.0.0.2", None)["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"127.0.0.2:*", "localhost:*", socket.gethostname()} <= set(hosts) and "*" not in hosts
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "tracking.lab")
    assert server.server_environment(5000, "0.0.0.0", PASSWORD)["MLFLOW_SERVER_ALLOWED_HOSTS"] == "tracking.lab"


def test_a_tracking_server_that_is_there_already_is_only_shown(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    wanted = services.family()
    assert wanted.tracking == "http://tracking:5000" and not wanted.named("mlflow")
    assert (
        serve.condition({"name": "mlflow", "url": wanted.tracking, "external": True}, {}, "up")["state"] == "external"
    )


def test_a_service_inherits_the_database_of_prefect_and_not_the_password(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "LOGS", services.LOGS)
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://db/prefect")
    monkeypatch.setenv("REPERFUSE_PASSWORD", PASSWORD)
    assert not any("DATABASE" in name for one in services.family().services for name in one.environment)
    code = "import os; print(os.environ['PREFECT_SERVER_DATABASE_CONNECTION_URL'], 'REPERFUSE_PASSWORD' in os.environ)"
    one = services.Service("x", (sys.executable, "-c", code), {})
    assert supervisor.started(one).wait(60) == 0
    assert one.log.read_text() == "postgresql+asyncpg://db/prefect False\n"


def test_the_dashboard_shows_the_newest_search_and_stays_on_this_machine(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REPERFUSE_PASSWORD", PASSWORD)
    with pytest.raises(InputError, match="no search yet"):
        services.family(host="0.0.0.0", optuna="")
    for age, name in enumerate(["lesion/new", "perfusion/old/fold"]):
        journal = home / ".reperfuse" / name / "optuna.journal"
        journal.parent.mkdir(parents=True)
        journal.touch()
        os.utime(journal, (1e9 - age, 1e9 - age))
    (dashboard,) = services.family(host="0.0.0.0", optuna="").named("optuna")
    assert dashboard.command[dashboard.command.index("--host") + 1] == "127.0.0.1"
    assert "lesion/new/optuna.journal" in dashboard.config
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://u:secret@db/optuna")
    (dashboard,) = services.family(optuna="").named("optuna")
    assert "secret" in dashboard.config and "secret" not in " ".join(dashboard.command)


def test_the_settings_are_read_back_by_a_shell_by_prefect_and_by_us(home: Path):
    known = {"PREFECT_HOME": "/it's a \\ home", "PREFECT_API_AUTH_STRING": "a:#!%b", "OTHER": "it's here"}
    assert services.write_settings(known) and services.read_settings() == known
    shell = subprocess.run(["sh", "-c", '. home/env; echo "$OTHER"'], cwd=home, capture_output=True, text=True)
    assert shell.stdout == "it's here\n"
    from dotenv import dotenv_values

    assert dotenv_values(home / ".env") == {name: value for name, value in known.items() if name != "OTHER"}
    assert {path.stat().st_mode & 0o777 for path in (services.ENV, services.DOTENV)} == {0o600}
    services.forget_settings()
    assert not services.ENV.exists() and not services.DOTENV.exists()


def test_a_dotenv_of_the_users_own_is_left_alone(home: Path):
    (home / ".env").write_text("MINE=1\n")
    assert not services.write_settings({"PREFECT_API_URL": "http://127.0.0.1:1/api"})
    services.forget_settings()
    assert (home / ".env").read_text() == "MINE=1\n"


def test_a_service_that_dies_again_and_again_is_started_later_and_later_and_given_up():
    kept = supervisor.Kept(services.Service("x", (), {}), None, 0.0)  # type: ignore[arg-type]
    pauses = []
    for death in range(supervisor.RESTARTS):
        assert kept.died(float(death)) and kept.due is not None
        pauses.append(kept.due - death)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert not kept.died(100.0) and kept.given_up
    kept.deaths = [0.0] * supervisor.RESTARTS
    assert kept.died(supervisor.RESTART_WINDOW_S + 1)


CHILD = """
import signal, time
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(open("heard", "a").write("x")))
open("ready", "w")
while not heard:
    time.sleep(0.05)
time.sleep(0.5)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
try:
    child.wait()
except KeyboardInterrupt:
    child.send_signal(2)
    child.wait()
"""


def test_what_a_service_started_is_interrupted_once(home: Path):
    # The second interrupt would hit DVC while it writes its lock file.
    environment = {**os.environ, "REPERFUSE_ROOT": str(home), services.KINSHIP: "x"}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], cwd=home, env=environment)
    wait_for((home / "ready").exists, 30)
    assert supervisor.stop_kin("another") == [] and supervisor.stop_kin("x") == ["x"]
    assert (home / "heard").read_text() == "x" and parent.wait(10) == 0 and services.kin() == []


@pytest.mark.parametrize(("text", "stays"), [("", False), ('{"read": ', False), ('{"read": {}, "write": {}}', True)])
def test_a_torn_lock_of_dvc_is_removed(home: Path, monkeypatch: pytest.MonkeyPatch, text: str, stays: bool):
    monkeypatch.setattr(supervisor, "ROOT", home)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    (home / ".dvc/tmp").mkdir(parents=True)
    (home / ".dvc/tmp/rwlock").write_text(text)
    supervisor.mend_dvc_lock()
    assert (home / ".dvc/tmp/rwlock").exists() is stays


def test_only_the_runs_of_the_worker_that_died_are_settled(monkeypatch: pytest.MonkeyPatch):
    named = {"ours": "worker-1@here", "sibling": "worker-2@here", "elsewhere": "worker-1@there", "nobody": None}
    common = {"work_pool_name": api.POOL, "created": "1", "parent_task_run_id": None}
    runs = [{"id": key, "labels": {api.WORKER: name} if name else {}} | common for key, name in named.items()]
    called = {"labels": {}, "work_pool_name": None, "created": "2"}
    runs += [{"id": f"{one}-calls", **called, "parent_task_run_id": one} for one in ("ours", "sibling")]
    crashed: list[str] = []

    def server(_: dict[str, str], method: str, path: str, body: Any = None) -> Any:
        if path.startswith("/task_runs/"):
            return {"flow_run_id": path.rpartition("/")[2]}
        return runs if path.endswith("filter") else crashed.append(path.split("/")[2])

    monkeypatch.setattr(api, "prefect", server)
    assert api.crash_runs({}, {"worker-1@here"}) == 2 and crashed == ["ours", "ours-calls"]
    assert api.crash_runs({}, {"worker-1@here", "worker-2@here", None}) == 5


def test_importing_the_services_leaves_the_home_folder_of_the_user_alone(tmp_path: Path):
    code = "import os, flows.serve; print(os.listdir(os.environ['HOME']))"
    environment = {**os.environ, "HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"


# ---- real services


def flows_serve(root: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """What `python -m flows.serve WORDS` says in the checkout `root`."""
    known = {**os.environ, "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3", "COLUMNS": "400", **environment}
    return subprocess.run(
        [sys.executable, "-m", "flows.serve", *words], cwd=root, env=known, capture_output=True, text=True
    )


def rows(root: Path) -> dict[str, dict[str, Any]]:
    """What `status --json` says, by the name of the service."""
    return {row["name"]: row for row in json.loads(flows_serve(root, "status", "--json").stdout)["services"]}


def prefect(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """What `prefect WORDS` says in a terminal that only stands in the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "prefect", *words],
        cwd=root,
        env={**environment, "COLUMNS": "400"},
        capture_output=True,
        text=True,
    )


def settings_of(root: Path) -> dict[str, str]:
    words = shlex.split((root / ".reperfuse/services/env").read_text())
    return dict(word.split("=", 1) for word in words if word != "export")


def runs(root: Path) -> list[dict[str, Any]]:
    """The runs that the server knows."""
    return api.prefect(settings_of(root), "POST", "/flow_runs/filter", {"limit": 200})


def kin(root: Path) -> list[psutil.Process]:
    """Processes of all services and runs of the checkout `root`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("REPERFUSE_ROOT") == str(root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def listening(root: Path) -> set[tuple[str, int]]:
    """Addresses on which anything of the checkout `root` listens."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in kin(root)
        for connection in process.net_connections("all")
        if connection.status == psutil.CONN_LISTEN
    }


def steps(root: Path, arm: str = "lesion") -> list[tuple[int, int]]:
    """PID and number of every step that the training of the tiny repository made."""
    log = root / f"steps-{arm}.txt"
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []  # type: ignore[misc]


def wait_for(condition: Callable[[], bool], patience_s: float, why: Callable[[], str] = str) -> None:
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up, why()
        time.sleep(0.2)


def start_in_a_shell(root: Path) -> int:
    """Start the services as a Makefile or an init script does, and give the process to signal."""
    # `&` in a shell without a terminal starts its command with SIGINT ignored, which children would inherit.
    shell = f"{PYTHON} -m flows.serve >> serve.out 2>&1 & echo $!"
    pid = int(subprocess.run(["sh", "-c", shell], cwd=root, capture_output=True, check=True).stdout)
    wait_for(lambda: (root / ".reperfuse/services/env").exists(), 300, lambda: (root / "serve.out").read_text())
    return pid


def end(pid: int, signum: int = signal.SIGINT) -> None:
    """Send a signal and wait for the end; in a container nobody may collect the zombie."""
    os.kill(pid, signum)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 120)


@pytest.fixture(scope="module")
def up(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny repository whose services were brought up by `up`, and leave nothing when they are taken down."""
    root = tmp_path_factory.mktemp("services") / "tiny repository"
    shutil.copytree(template, root)
    said = flows_serve(root, "up")
    assert said.returncode == 0, said.stdout + said.stderr
    yield root
    ports = listening(root)
    said = flows_serve(root, "down")
    assert said.returncode == 0 and "mlflow (PID" in said.stdout and "worker-1 (PID" in said.stdout
    assert kin(root) == [] and len(ports) >= 2
    for host, port in ports:
        assert server.free_port(host, port, port) == port
    assert not (root / ".env").exists() and not (root / ".reperfuse/services/env").exists()


@pytest.mark.services
def test_up_brings_up_what_status_calls_healthy_and_says_so_the_second_time(up: Path):
    assert {name: row["state"] for name, row in rows(up).items()} == dict.fromkeys(
        ("mlflow", "prefect", "worker-1"), "healthy"
    )
    again = flows_serve(up, "up")
    assert again.returncode == 0 and "up already" in again.stdout
    foreground = flows_serve(up)
    assert foreground.returncode == 2 and "up already" in foreground.stderr


@pytest.mark.services
def test_everything_listens_on_this_machine_only(up: Path):
    assert {host for host, _ in listening(up)} == {"127.0.0.1"}


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
def test_a_killed_worker_comes_back_and_the_next_run_goes_on_behind_the_checkpoint(up: Path):
    worker = rows(up)["worker-1"]["pid"]
    (up / "slow").touch()
    (up / "steps-lesion.txt").unlink(missing_ok=True)
    asked = ["deployment", "run", "experiment/lesion", "--param", "force=true", "--param", "demo_data=true"]
    assert prefect(up, *asked).returncode == 0
    wait_for(lambda: len(steps(up)) > 5, 120)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: rows(up)["worker-1"]["state"] == "healthy" and rows(up)["worker-1"]["restarts"] == 1, 60)
    (first,) = {pid for pid, _ in steps(up)}
    assert not psutil.pid_exists(first)
    newest = max((run for run in runs(up) if run["deployment_id"]), key=lambda run: run["created"])
    assert newest["state"]["name"] == "Crashed"
    (up / "slow").unlink()
    said = prefect(up, *asked, "--watch")
    assert said.returncode == 0 and "AwaitingConcurrencySlot" not in said.stdout
    second = [step for pid, step in steps(up) if pid != first]
    reached = max(step for pid, step in steps(up) if pid == first)
    assert 5 <= reached <= second[0] <= reached + 1 and {step for _, step in steps(up)} == set(range(STEPS))


@pytest.mark.services
def test_metrics_logged_while_the_mlflow_server_is_killed_are_all_there_once(up: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(up)
    before = rows(up)["mlflow"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", before["url"])
    with tracking.run("lesion", "through the server") as run:
        for step in range(30):
            run.log_metrics({"loss": 1 / (step + 1)}, step=step)
            if step == 10:
                for process in psutil.Process(before["pid"]).children():
                    process.kill()
    assert rows(up)["mlflow"]["restarts"] == 1 and rows(up)["mlflow"]["url"] == before["url"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    history = tracking.client().get_metric_history(run.id, "loss")
    assert sorted((one.step, one.value) for one in history) == [(step, 1 / (step + 1)) for step in range(30)]


@pytest.mark.services
def test_artifacts_written_through_the_server_and_past_it_are_read_by_both(up: Path, monkeypatch: pytest.MonkeyPatch):
    import pandas as pd

    monkeypatch.chdir(up)
    table = pd.DataFrame({"dice": [0.5, 0.25]})
    doors = {"direct": None, "server": rows(up)["mlflow"]["url"]}

    def go_by(door: str) -> None:
        if doors[door]:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", str(doors[door]))
        else:
            monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    for experiment, (written_by, read_by) in enumerate([("direct", "server"), ("server", "direct")]):
        go_by(written_by)
        with tracking.run(f"experiment {experiment}", "a table") as run:
            run.log_table(table, "tables/scores.csv")
        go_by(read_by)
        pd.testing.assert_frame_equal(tracking.read_table(run.id, "tables/scores.csv"), table)


@pytest.mark.services
def test_a_cron_run_appears_and_fires(up: Path):
    # fastapi and sqlalchemy releases have made schedules vanish without a word; pip check sees nothing.
    (up / "inbox/perfusion").mkdir(parents=True, exist_ok=True)
    assert prefect(up, "deployment", "schedule", "create", "ingest/inbox", "--cron", "* * * * *").returncode == 0
    wait_for(lambda: any(run["auto_scheduled"] for run in runs(up)), 120)
    wait_for(lambda: any(run["auto_scheduled"] and run["state"]["type"] == "COMPLETED" for run in runs(up)), 240)


def train_until_stopped(root: Path, pid: int, signum: int) -> int:
    """Run the demo slowly, send the supervisor `pid` a signal in its training, and give the PID of that training."""
    (root / "slow").touch()
    (root / "pid").unlink(missing_ok=True)
    assert prefect(root, "deployment", "run", "experiment/demo").returncode == 0
    wait_for(lambda: (root / "pid").exists() and len(steps(root)) > 5, 300)
    end(pid, signum)
    return int((root / "pid").read_text())


@pytest.mark.services
def test_services_that_stop_in_a_training_leave_nothing_and_the_next_run_goes_on(template: Path, tmp_path: Path):
    root = tmp_path / "tiny repository"
    shutil.copytree(template, root)
    first = train_until_stopped(root, start_in_a_shell(root), signal.SIGKILL)
    assert flows_serve(root, "status").returncode == 1 and psutil.pid_exists(first)
    said = flows_serve(root, "down")
    assert said.returncode == 0 and "worker-1" in said.stdout
    assert not psutil.pid_exists(first) and kin(root) == []

    pid = start_in_a_shell(root)
    ours = [run for run in runs(root) if not run["auto_scheduled"]]
    assert ours and {run["state"]["name"] for run in ours} <= {"Crashed", "Completed"}
    second = train_until_stopped(root, pid, signal.SIGINT)
    assert not psutil.pid_exists(second) and kin(root) == []

    (root / "slow").unlink()
    said = flows_serve(root, "--run", "experiment/demo")
    assert said.returncode == 0 and "AwaitingConcurrencySlot" not in said.stdout
    assert len({pid for pid, _ in steps(root)}) == 3 and kin(root) == []
    made = [step for _, step in steps(root)]
    assert made == sorted(made) and set(made) == set(range(STEPS))


@pytest.mark.services
def test_with_a_password_nobody_comes_in_without_it(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pandas as pd

    root = tmp_path / "tiny repository"
    shutil.copytree(template, root)
    said = flows_serve(root, "up", "--workers", "2", "--host", "127.0.0.2", REPERFUSE_PASSWORD=PASSWORD)
    try:
        assert said.returncode == 0 and "worker-2" in said.stdout, said.stdout + said.stderr
        here = rows(root)
        asked = f"{here['prefect']['url']}/api/flows/filter", f"{here['mlflow']['url']}/api/2.0/mlflow/experiments/get"
        for url in asked:
            method = "POST" if "filter" in url else "GET"
            assert api.answered(url, method, {})[0] == 401
            assert api.answered(url, method, {}, "reperfuse:something-else")[0] == 401
            assert api.answered(url, method, {}, f"reperfuse:{PASSWORD}")[0] != 401
        assert prefect(root, "deployment", "run", "ingest/inbox", "--watch").returncode == 1  # an empty inbox
        for name, value in settings_of(root).items():
            if name.startswith("MLFLOW_"):
                monkeypatch.setenv(name, value)
        monkeypatch.chdir(root)
        with tracking.run("lesion", "from far away") as run:
            run.log_table(pd.DataFrame({"dice": [0.5]}), "tables/scores.csv")
        assert tracking.read_table(run.id, "tables/scores.csv")["dice"].tolist() == [0.5]
        assert not any(PASSWORD in word for process in kin(root) for word in process.cmdline())
    finally:
        assert flows_serve(root, "down").returncode == 0
    logs = [path for path in (root / ".reperfuse").rglob("*") if path.is_file() and path.suffix != ".db"]
    assert logs and not any(PASSWORD.encode() in path.read_bytes() for path in logs)
