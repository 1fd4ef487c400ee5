"""What each service is: its command, its environment, its address, and how we know that it is well."""

import contextlib
import os
import re
import shlex
import socket
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import psutil

from flows import api
from flows.command import ROOT
from reperfuse.errors import InputError
from reperfuse.files import atomic_path
from reperfuse.params import ARMS
from reperfuse.tracking import tracking_uri
from reperfuse.tracking.server import LOOPBACK, USER, free_port, password_for

HOME = ROOT / ".reperfuse" / "services"
"""State, settings and logs of the services, readable by their owner only."""

LOGS = HOME / "logs"
ENV = HOME / "env"
DOTENV = ROOT / ".env"

PREFECT_HOME = ROOT / ".reperfuse" / "prefect"
"""Prefect's own folder for this checkout: database, leases. A user's ~/.prefect stays untouched."""

USUAL_PORTS = {"prefect": 4200, "mlflow": 5000, "optuna": 8080}

MARKER = "# Written by the services of this checkout while they are up; `make down` removes it."
"""First line of a .env that is ours to overwrite and to remove."""

KINSHIP = "REPERFUSE_SERVICE"
"""Variable that a service hands on to every process below it: who carries it belongs to the service."""


@dataclass(frozen=True)
class Service:
    """A process that is kept up; `url` is for people, `health` answers 200 when all is well (a worker has neither)."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    url: str = ""
    health: str = ""

    config: str = field(default="", repr=False)
    """Content of its own settings file, where it takes no environment variables."""

    @property
    def config_file(self) -> Path:
        """Where `config` is written, for its owner only, before the process starts."""
        return HOME / f"{self.name}.toml"

    @property
    def log(self) -> Path:
        """What the process says."""
        return LOGS / f"{self.name}.log"


@dataclass(frozen=True)
class Family:
    """All services of one start, and the environment of whatever talks to them."""

    services: tuple[Service, ...]
    settings: dict[str, str] = field(repr=False)
    tracking: str
    """Where MLflow is: our own server, or the one that MLFLOW_TRACKING_URI names; empty without one."""

    def named(self, start: str) -> tuple[Service, ...]:
        """The services whose name begins with `start`."""
        return tuple(service for service in self.services if service.name.startswith(start))


def family(
    *,
    host: str = LOOPBACK,
    ports: dict[str, int | None] | None = None,
    workers: int = 1,
    optuna: str | None = None,
    mlflow: bool = True,
) -> Family:
    """The services as they are wanted, on ports that are free now.

    Parameters
    ----------
    host
        Address that Prefect and MLflow listen on; any but this machine's own needs REPERFUSE_PASSWORD.
    ports
        Port of `prefect`, `mlflow` and `optuna`; None takes the usual one, or any free one.
    workers
        Number of Prefect workers.
    optuna
        Storage of the Optuna dashboard; empty finds the newest search, None starts no dashboard.
    mlflow
        Whether the MLflow server is wanted.

    Raises
    ------
    InputError
        If a port is taken, the password is missing, or there is no search to show.
    """
    password = password_for(host)
    wanted = ports or {}
    # Whoever listens everywhere is asked by the loopback address, and anyone else by his own.
    near = LOOPBACK if host == "0.0.0.0" else host
    store = tracking_uri()
    external = store.startswith(("http://", "https://"))

    prefect_port = free_port(host, wanted.get("prefect"), USUAL_PORTS["prefect"])
    prefect_url = f"http://{near}:{prefect_port}"
    mlflow_url = store if external else ""
    if mlflow and not external:
        mlflow_port = free_port(host, wanted.get("mlflow"), USUAL_PORTS["mlflow"])
        mlflow_url = f"http://{near}:{mlflow_port}"
    shared = settings(prefect_url, mlflow_url if mlflow and not external else "", password)

    services = []
    if mlflow and not external:
        own = {"MLFLOW_TRACKING_URI": store} | ({"REPERFUSE_PASSWORD": password} if password else {})
        words = ["reperfuse", "ui", "--host", host, "--port", str(mlflow_port)]
        services += [_service("mlflow", words, own, mlflow_url, f"{mlflow_url}/health")]

    # The UI asks the address it was loaded from, also through a tunnel or a proxy.
    own = {"PREFECT_UI_API_URL": os.environ.get("PREFECT_UI_API_URL", "/api")}
    if password:
        own["PREFECT_SERVER_API_AUTH_STRING"] = f"{USER}:{password}"
    words = ["prefect", "--no-prompt", "server", "start", "--host", host, "--port", str(prefect_port)]
    services += [_service("prefect", words, shared | own, prefect_url, f"{prefect_url}/api/health")]

    if optuna is not None:
        port = free_port(LOOPBACK, wanted.get("optuna"), USUAL_PORTS["optuna"])
        url = f"http://{LOOPBACK}:{port}"  # it knows no password, so it stays here
        words = ["optuna_dashboard._cli", "--host", LOOPBACK, "--port", str(port), "--server", "wsgiref"]
        config = f"[optuna_dashboard]\nstorage = '''{optuna or newest_search()}'''\n"
        dashboard = _service("optuna", words, {}, url, f"{url}/api/studies")
        command = (*dashboard.command, "--from-config", str(dashboard.config_file))
        services += [replace(dashboard, command=command, config=config)]

    for number in range(1, workers + 1):
        name = worker_name(number)
        words = ["prefect", "--no-prompt", "worker", "start", "--pool", api.POOL, "--type", "process", "--name", name]
        services += [_service(f"worker-{number}", words, shared)]
    return Family(tuple(services), shared, mlflow_url)


def settings(prefect_url: str, mlflow_url: str, password: str | None) -> dict[str, str]:
    """Environment of everything that talks to the services; `mlflow_url` counts only with a password."""
    shared = {
        "PREFECT_HOME": str(PREFECT_HOME),
        "PREFECT_PROFILES_PATH": str(PREFECT_HOME / "profiles.toml"),
        "PREFECT_API_URL": f"{prefect_url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # In memory, a restarted server forgets who runs, and running flows end themselves.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Without these two, `--watch` shows that a stage began and ended, and not what it said.
        "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
        "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
        "REPERFUSE_ROOT": str(ROOT),
    }
    if password:
        shared["PREFECT_API_AUTH_STRING"] = f"{USER}:{password}"
        if mlflow_url:
            # Artifacts travel through this server, and who writes past it could not be read by the others.
            shared |= {
                "MLFLOW_TRACKING_URI": mlflow_url,
                "MLFLOW_TRACKING_USERNAME": USER,
                "MLFLOW_TRACKING_PASSWORD": password,
            }
    return shared


def worker_name(number: int) -> str:
    """Name of a worker in Prefect's books: of this machine, so that another machine's runs are never taken for ours."""
    return f"worker-{number}@{socket.gethostname()}"


def newest_search() -> str:
    """OPTUNA_STORAGE, else the journal that a search of this checkout wrote to last.

    Raises
    ------
    InputError
        If there has been no search.
    """
    if storage := os.environ.get("OPTUNA_STORAGE"):
        return storage
    found = [path for arm in ARMS for path in (ROOT / ".reperfuse" / arm).glob("**/optuna.journal")]
    if not found:
        raise InputError(
            f"{ROOT / '.reperfuse'} has no search yet (optuna.journal): run `dvc repro`, or leave --optuna out."
        )
    return str(max(found, key=lambda path: path.stat().st_mtime))


def is_well(name: str, health: str, created: float, known: dict[str, str]) -> bool:
    """Whether a service answers.

    Parameters
    ----------
    name
        Its name in the table.
    health
        URL that answers 200; empty for a worker, which is well when the server heard of it.
    created
        When its process began [s since 1970]: a heartbeat from before is its forerunner's.
    known
        Environment of whatever talks to the services.
    """
    if health:
        return api.answered(health)[0] == 200
    try:
        heartbeats = api.workers_online(known)
    except InputError:
        return False
    heard = heartbeats.get(worker_name(int(name.rpartition("-")[2])))
    return heard is not None and datetime.fromisoformat(heard).timestamp() >= created


def kin(name: str = "") -> list[psutil.Process]:
    """Processes that a service of this checkout started, and all below them, whoever has adopted them since.

    Parameters
    ----------
    name
        Name of the service; of all services when empty.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            known = process.environ()
            ours = known.get("REPERFUSE_ROOT") == str(ROOT) and known.get(KINSHIP)
            if ours and ours == (name or ours) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def write_settings(known: dict[str, str]) -> bool:
    """Write what a terminal has to know; False where a .env of the user's own is in the way.

    Prefect reads `.env` of the folder it is called in, after the environment and before its own files, so
    `prefect` in the checkout finds the services by itself. Other programs need `.reperfuse/services/env`.
    """
    write_private(ENV, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in known.items()))
    if DOTENV.exists() and not is_our_dotenv():
        return False
    lines = [f"{name}={_dotenv_quoted(value)}" for name, value in known.items() if name.startswith("PREFECT_")]
    write_private(DOTENV, "\n".join([MARKER, *lines]) + "\n")
    return True


def read_settings() -> dict[str, str]:
    """What `write_settings` wrote; empty while nothing is up."""
    if not ENV.exists():
        return {}
    words = shlex.split(ENV.read_text(encoding="utf-8"))
    return dict(word.split("=", 1) for word in words if word != "export")


def forget_settings() -> None:
    """Remove what `write_settings` wrote."""
    ENV.unlink(missing_ok=True)
    for config in HOME.glob("*.toml"):
        config.unlink()
    if is_our_dotenv():
        DOTENV.unlink()


def is_our_dotenv() -> bool:
    """Whether the checkout's .env was written by us."""
    return DOTENV.exists() and DOTENV.read_text(encoding="utf-8", errors="replace").startswith(MARKER)


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all, readable by its owner only."""
    with atomic_path(path) as inside:
        inside.touch(mode=0o600)
        inside.write_text(text, encoding="utf-8")


def _service(name: str, words: list[str], environment: dict[str, str], url: str = "", health: str = "") -> Service:
    kinship = {"REPERFUSE_ROOT": str(ROOT), KINSHIP: name}
    return Service(name, (sys.executable, "-m", *words), environment | kinship, url, health)


def _dotenv_quoted(value: str) -> str:
    """`value` as python-dotenv reads it, which quotes unlike a shell."""
    return "'" + re.sub(r"(['\\])", r"\\\1", value) + "'"
