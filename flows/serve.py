"""The services of this checkout: MLflow, Prefect, its workers and, on request, the Optuna dashboard.

`python -m flows.serve` keeps them up in this terminal until Ctrl-C, `… up` in the background until `… down`, and
`… status` tells how they are. One supervisor holds the lock, watches, and starts again what died.
`python -m flows.serve --run experiment/demo` brings Prefect up, runs one deployment and ends with its exit code.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from filelock import FileLock, Timeout

from flows.command import ROOT
from flows.services import DOTENV, HOME, LOGS, family, is_well, read_settings
from flows.supervisor import Supervisor, is_running, read_state, stop_leftovers, supervisor
from reperfuse.errors import InputError

LOCK = HOME / "serve.lock"

YOUNG_S = 60.0
"""A process younger than this that does not answer is still starting [s]; on busy cores Prefect takes half of it."""

DOWN_PATIENCE_S = 180.0
"""Time the supervisor has to stop everything [s]."""


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
    for line in said:
        if str(DOTENV) in line:
            print(line)
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
        young = phase == "starting" or time.time() - one["created"] < YOUNG_S
        state = "starting" if young else "not answering"
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


def at_least_one(text: str) -> int:
    """A number of workers as typed.

    Raises
    ------
    ValueError
        If it is none, which argparse says in its own sentence.
    """
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Exit code of the command line: 0, that of `--run`, 1, 2 with a sentence, or 130 after Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("command", nargs="?", choices=["up", "down", "status"], help="without one: stay until Ctrl-C")
    parser.add_argument("--run", metavar="FLOW/NAME", help="run this deployment, watch it, stop everything")
    parser.add_argument("--host", default="127.0.0.1", help="address of Prefect and MLflow (needs REPERFUSE_PASSWORD)")
    for name, usual in (("", "4200"), ("mlflow-", "5000"), ("optuna-", "8080")):
        parser.add_argument(f"--{name}port", type=int, metavar="PORT", help=f"default: {usual}, or any free one")
    parser.add_argument("--workers", type=at_least_one, default=1, metavar="N", help="Prefect workers (default: 1)")
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
