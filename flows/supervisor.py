"""What keeps the services up: starts them in order, watches, starts again what died, and leaves nothing behind."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
import yaml

from flows import api
from flows.command import ROOT, STOP_PATIENCE_S, stop_all
from flows.services import (
    DOTENV,
    ENV,
    HOME,
    KINSHIP,
    LOGS,
    Family,
    Service,
    forget_settings,
    is_well,
    kin,
    worker_name,
    write_private,
    write_settings,
)
from reperfuse.errors import InputError
from reperfuse.files import read_json, write_json

STATE = HOME / "processes.json"

START_PATIENCE_S = 240.0
"""Time for everything to come up [s]; the first start makes two databases."""

SERVICE_PATIENCE_S = 30.0
"""Time a service has between the interrupt and the kill [s]; a worker ends its runs meanwhile."""

RESTARTS, RESTART_WINDOW_S = 5, 600.0
"""A service that dies more often than this within the window is given up: something is wrong with it."""

LONGEST_PAUSE_S = 30.0
"""Longest pause before a service is started again [s]; it doubles from one second."""

LOG_BYTES = 20_000_000
"""A log longer than this is put aside (`.1`) when its service starts."""


@dataclass
class Kept:
    """A service, the process that is it now, and how often that one had to be replaced."""

    service: Service
    process: "subprocess.Popen[bytes]"
    created: float
    deaths: list[float] = field(default_factory=list)
    restarts: int = 0
    due: float | None = None
    given_up: bool = False

    def died(self, now: float) -> bool:
        """Note a death at `now` [s, monotonic]; whether the service is to be started again."""
        self.deaths = [one for one in self.deaths if now - one < RESTART_WINDOW_S] + [now]
        self.given_up = len(self.deaths) > RESTARTS
        self.due = now + min(2.0 ** (len(self.deaths) - 1), LONGEST_PAUSE_S)
        return not self.given_up


class Supervisor:
    """What keeps a family of services up, and takes all of it down at the end of a `with` block."""

    def __init__(self, wanted: Family) -> None:
        self.family = wanted
        self.kept: list[Kept] = []
        self.phase = "starting"

    def __enter__(self) -> "Supervisor":
        stop_leftovers()
        self._write_state()
        try:
            self._start_all()
        except BaseException:
            self._stop_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_all()

    def watch(self) -> None:
        """Look after the services for ever: start again what died, and give up what dies too often."""
        while True:
            for one in self.kept:
                if not one.given_up:
                    self._look_after(one)
            time.sleep(0.5)

    def _start_all(self) -> None:
        known = self.family.settings
        for service in (*self.family.named("prefect"), *self.family.named("mlflow"), *self.family.named("optuna")):
            self._start(service)
        self._wait_until_well("prefect")
        # Before a worker starts, for what an earlier one left behind.
        self._settle_runs()
        deploy(known)
        for service in self.family.named("worker"):
            self._start(service)
        self._wait_until_well("")
        self.phase = "up"
        if not write_settings(known):
            print(f"{DOTENV} is your own and stays as it is; in another terminal first: . {ENV}", flush=True)
        self._write_state()

    def _start(self, service: Service) -> Kept:
        process = started(service)
        kept = Kept(service, process, psutil.Process(process.pid).create_time())
        self.kept.append(kept)
        self._write_state()
        return kept

    def _wait_until_well(self, start: str) -> None:
        waiting = [one for one in self.kept if one.service.name.startswith(start)]
        give_up = time.monotonic() + START_PATIENCE_S
        while waiting := [one for one in waiting if not self._is_well(one)]:
            for one in waiting:
                if one.process.poll() is not None or time.monotonic() > give_up:
                    raise InputError(f"{one.service.name} did not come up: {one.service.log} says why.")
            time.sleep(0.2)

    def _is_well(self, one: Kept) -> bool:
        return is_well(one.service.name, one.service.health, one.created, self.family.settings)

    def _look_after(self, one: Kept) -> None:
        name = one.service.name
        if one.due is None and one.process.poll() is not None:
            again = one.died(time.monotonic())
            then = "it is started again" if again else f"given up after {RESTARTS} restarts; `down`, then `up`"
            print(f"{name} ended by itself (exit code {one.process.returncode}): {then}. {one.service.log}", flush=True)
            # What it started is nobody's now: the port of a server, the training of a worker.
            stop_kin(name)
            self._write_state()
        elif one.due is not None and time.monotonic() >= one.due:
            try:
                if name.startswith("worker"):
                    self._settle_runs(name)
            except InputError:
                return  # Prefect's server is away too; it comes back first
            one.process = started(one.service)
            one.created = psutil.Process(one.process.pid).create_time()
            one.restarts, one.due = one.restarts + 1, None
            self._write_state()

    def _settle_runs(self, name: str = "") -> None:
        """Mark what a worker that is gone was running; with several workers, nobody's runs may be another's."""
        workers = self.family.named("worker")
        gone: set[str | None] = {worker_name(number) for number, one in enumerate(workers, 1) if name in ("", one.name)}
        api.crash_runs(self.family.settings, gone | {None} if len(gone) == len(workers) else gone)

    def _stop_all(self) -> None:
        # An impatient second Ctrl-C must not leave a server behind.
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        self.phase = "stopping"
        self._write_state()
        workers = [one for one in self.kept if one.service.name.startswith("worker")]
        stop(workers)
        if workers:
            # A server that is away cannot note it: then the next start does.
            with contextlib.suppress(InputError):
                self._settle_runs()
        stop([one for one in self.kept if one not in workers])
        stop_leftovers()

    def _write_state(self) -> None:
        own = psutil.Process()
        services = [
            {
                "name": one.service.name,
                "url": one.service.url,
                "health": one.service.health,
                "pid": one.process.pid,
                "created": one.created,
                "restarts": one.restarts,
                "given_up": one.given_up,
                "log": str(one.service.log),
            }
            for one in self.kept
        ]
        if self.family.tracking and not self.family.named("mlflow"):
            services.insert(0, {"name": "mlflow", "url": self.family.tracking, "external": True})
        write_json(STATE, {"pid": own.pid, "created": own.create_time(), "phase": self.phase, "services": services})


def started(service: Service) -> "subprocess.Popen[bytes]":
    """The process of `service`, in a session of its own: Ctrl-C reaches it only through us."""
    LOGS.mkdir(parents=True, exist_ok=True)
    if service.log.exists() and service.log.stat().st_size > LOG_BYTES:
        service.log.replace(service.log.with_suffix(".log.1"))
    if service.config:
        write_private(service.config_file, service.config)
    environment = {name: value for name, value in os.environ.items() if name != "REPERFUSE_PASSWORD"}
    with service.log.open("ab") as file:
        return subprocess.Popen(
            service.command,
            cwd=ROOT,
            env=environment | service.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(kept: list[Kept]) -> None:
    """Interrupt services together, and kill those that take too long."""
    for one in kept:
        one.process.send_signal(signal.SIGINT)  # does nothing to a process that has ended
    give_up = time.monotonic() + SERVICE_PATIENCE_S
    for one in kept:
        try:
            one.process.wait(max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


def stop_leftovers() -> list[str]:
    """Names of the services of which something still ran, which is stopped, and the traces of all removed."""
    names = stop_kin()
    forget_settings()
    STATE.unlink(missing_ok=True)
    mend_dvc_lock()
    return names


def stop_kin(name: str = "") -> list[str]:
    """Stop what a service started, or all of them did, and give the names of those of which something still ran.

    Only the topmost processes are interrupted, and they end those below them: a second interrupt would hit DVC
    while it gives back its locks, and leave half a file.
    """
    left = kin(name)
    pids, names = {process.pid for process in left}, set()
    for process in left:
        with contextlib.suppress(psutil.Error):
            names.add(process.environ()[KINSHIP])
            if process.ppid() not in pids:
                process.send_signal(signal.SIGINT)
    psutil.wait_procs(left, timeout=1.5 * STOP_PATIENCE_S)
    stop_all(kin(name))
    return sorted(names)


def mend_dvc_lock() -> None:
    """Remove DVC's list of files in use where a killed DVC left it torn: every later command would stumble on it."""
    path = ROOT / ".dvc" / "tmp" / "rwlock"
    for pause in (1.0, 0.0):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(pause)  # another DVC may be writing it at this moment
        else:
            return
    path.unlink(missing_ok=True)


def deploy(known: dict[str, str]) -> None:
    """Create the work pool and the deployments, unless these flows and this prefect.yaml are deployed already.

    Deploying again would put every schedule back to what the file says, and undo a switch made in the UI.
    """
    digest = hashlib.sha256()
    for source in (ROOT / "prefect.yaml", *sorted((ROOT / "flows").glob("*.py"))):
        digest.update(source.read_bytes())
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    if api.is_deployed(known, digest.hexdigest(), [one["name"] for one in declared]):
        return
    log = LOGS / "deploy.log"
    for words in (["work-pool", "create", api.POOL, "--type", "process", "--overwrite"], ["deploy", "--all"]):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        with log.open("ab") as file:
            ended = subprocess.run(
                command, cwd=ROOT, env=os.environ | known, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        if ended.returncode:
            raise InputError(f"`prefect {' '.join(words)}` failed: {log} says why.")
    api.note_deployed(known, digest.hexdigest())


def read_state() -> dict[str, Any]:
    """What the supervisor last wrote about its services; empty when there is none."""
    try:
        return dict(read_json(STATE))
    except (InputError, FileNotFoundError):
        return {}


def supervisor() -> psutil.Process | None:
    """The process that keeps the services of this checkout up, if there is one."""
    known = read_state()
    if known and is_running(known["pid"], known["created"]):
        return psutil.Process(known["pid"])
    return None


def is_running(pid: int, created: float) -> bool:
    """Whether the process that began at `created` still runs, and its number has not gone to another."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
    return False
