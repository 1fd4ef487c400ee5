"""The services of this checkout: MLflow, Prefect, its workers and, on request, the Optuna dashboard.

`python -m flows.serve` keeps them up in this terminal until Ctrl-C, `… up` in the background until `… down`, and
`… status` tells how they are. One supervisor holds the lock, watches, and starts again what died.
`python -m flows.serve --run experiment/demo` brings Prefect up, runs one deployment and ends with its exit code.
"""

import argparse
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
from filelock import FileLock, Timeout

from flows import api
from flows.command import ROOT, stop_all
from flows.services import (
    DOTENV,
    ENV,
    HOME,
    KINSHIP,
    LOGS,
    Family,
    Service,
    family,
    forget_settings,
    is_well,
    kin,
    read_settings,
    worker_name,
    write_private,
    write_settings,
)
from reperfuse.errors import InputError
from reperfuse.files import read_json, write_json

STATE = HOME / "processes.json"
LOCK = HOME / "serve.lock"

START_PATIENCE_S = 240.0
"""Time for everything to come up [s]; the first start makes two databases."""

STOP_PATIENCE_S = 30.0
"""Time a service has between the interrupt and the kill [s]; a worker ends its runs meanwhile."""

DOWN_PATIENCE_S = 180.0
"""Time the supervisor has to stop everything [s]."""

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
            stop_all(kin(name))
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
    give_up = time.monotonic() + STOP_PATIENCE_S
    for one in kept:
        try:
            one.process.wait(max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


def stop_leftovers() -> list[str]:
    """Names of the services of which something still ran, which is stopped, and the traces of all removed."""
    left = kin()
    names = set()
    for process in left:
        with contextlib.suppress(psutil.Error):
            names.add(process.environ()[KINSHIP])
    stop_all(left)
    forget_settings()
    STATE.unlink(missing_ok=True)
    return sorted(names)


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


# ---- what can be typed


def up(arguments: list[str]) -> int:
    """Start the services in the background and wait until all are healthy: exit code 0, or that of the start."""
    if supervisor() is not None:
        print("The services of this checkout are up already; `down` first to start them in another way.")
        return status(as_json=False)
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / "supervisor.log"
    with log.open("ab") as file:
        begin = file.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while (known := read_state()).get("pid") != child.pid or known["phase"] != "up":
            if child.poll() is not None:
                said = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
                print(said[-1] if said else f"The services ended at once: {log}", file=sys.stderr)
                return child.returncode or 1
            time.sleep(0.2)
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        child.wait()
        raise
    said = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    print(*[line for line in said if str(DOTENV) in line], sep="\n", end="")
    return status(as_json=False)


def down() -> int:
    """Stop the services of this checkout, whoever started them; 0 also when nothing was up."""
    known = read_state()
    stopped = [f"{one['name']} (PID {one['pid']})" for one in known.get("services", []) if not one.get("external")]
    keeper = supervisor()
    if keeper is not None:
        keeper.send_signal(signal.SIGTERM)
    try:
        with FileLock(LOCK, timeout=DOWN_PATIENCE_S if keeper else 0):
            left = stop_leftovers()
    except Timeout:
        print(f"The supervisor{f' (PID {keeper.pid})' if keeper else ''} does not end: {LOGS} says what it does.")
        return 1
    if keeper is None:
        stopped = left
    print(f"Stopped {', '.join(stopped)}." if stopped else "Nothing was up.")
    return 0


def status(*, as_json: bool) -> int:
    """Print how every service is; 0 when all are healthy, else 1."""
    known, settings = read_state(), read_settings()
    rows = [condition(one, settings, known["phase"]) for one in known.get("services", [])]
    well = bool(rows) and supervisor() is not None and all(row["state"] in ("healthy", "external") for row in rows)
    if as_json:
        print(json.dumps({"healthy": well, "services": rows}, indent=2))
    elif not rows:
        print("Nothing is up; `make up` starts the services.")
    else:
        if supervisor() is None:
            print("The supervisor is gone, nobody looks after these: `make down`, then `make up`.")
        print(table(rows))
    return 0 if well else 1


def condition(one: dict[str, Any], settings: dict[str, str], phase: str) -> dict[str, Any]:
    """A row of the table: name, state, url, pid, uptime_s, restarts and log of one service in processes.json."""
    if one.get("external"):
        return {"name": one["name"], "state": "external", "url": one["url"]}
    runs = is_running(one["pid"], one["created"])
    if one["given_up"]:
        state = "given up"
    elif not runs:
        state = "restarting"
    elif settings and is_well(one["name"], one["health"], one["created"], settings):
        state = "healthy"
    else:
        state = "starting" if phase == "starting" else "not answering"
    uptime = round(time.time() - one["created"]) if runs else None
    return {name: one[name] for name in ("name", "url", "pid", "restarts", "log")} | {
        "state": state,
        "uptime_s": uptime,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of `condition` as aligned text.

    Examples
    --------
    >>> print(table([{"name": "mlflow", "state": "external", "url": "http://tracking:5000"}]))
    service  state     url                   pid  uptime  restarts  log
    mlflow   external  http://tracking:5000  -    -       -         -
    """
    lines = [["service", "state", "url", "pid", "uptime", "restarts", "log"]]
    for row in rows:
        seconds = row.get("uptime_s")
        uptime = "-" if seconds is None else f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        cells = [row["name"], row["state"], row["url"], row.get("pid"), uptime, row.get("restarts"), row.get("log")]
        lines.append(["-" if cell in (None, "") else str(cell) for cell in cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


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


def stay(options: argparse.Namespace) -> int:
    """Keep the services up until a signal, or for as long as `--run` takes; the exit code of that run."""
    ports = {"prefect": options.port, "mlflow": options.mlflow_port, "optuna": options.optuna_port}
    wanted = family(
        host=options.host,
        ports=ports,
        workers=options.workers,
        optuna=options.optuna,
        mlflow=not options.run,
    )
    print(f"Starting {', '.join(one.name for one in wanted.services)}, logs in {LOGS} ...", flush=True)
    with Supervisor(wanted) as keeper:
        if options.run:
            words = ["deployment", "run", options.run, "--watch"]
            command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
            return subprocess.run(command, cwd=ROOT, env=os.environ | wanted.settings).returncode
        status(as_json=False)
        print(f"In another terminal, in {ROOT}: prefect deployment run 'experiment/demo' --watch", flush=True)
        keeper.watch()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit code of the command line: 0, that of `--run`, 1, 2 with a sentence, or 130 after Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("command", nargs="?", choices=["up", "down", "status"], help="without one: stay until Ctrl-C")
    parser.add_argument("--run", metavar="FLOW/NAME", help="run this deployment, watch it, stop everything")
    parser.add_argument("--host", default="127.0.0.1", help="address of Prefect and MLflow (needs REPERFUSE_PASSWORD)")
    for name, usual in (("", "4200"), ("mlflow-", "5000"), ("optuna-", "8080")):
        parser.add_argument(f"--{name}port", type=int, metavar="PORT", help=f"default: {usual}, or any free one")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="Prefect workers (default: 1)")
    parser.add_argument(
        "--optuna", nargs="?", const="", metavar="STORAGE", help="the Optuna dashboard, of the newest search or STORAGE"
    )
    parser.add_argument("--json", action="store_true", help="status for programs")
    options = parser.parse_args(words)

    # A shell starts `command &` with SIGINT ignored, and children inherit that: a handler of our own ends it.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if options.command == "up":
            return up([word for word in words if word != "up"])
        if options.command == "down":
            return down()
        if options.command == "status":
            return status(as_json=options.json)
        with FileLock(LOCK, timeout=0):
            return stay(options)
    except Timeout:
        print("The services of this checkout are up already: `python -m flows.serve status`.", file=sys.stderr)
        return 2
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
