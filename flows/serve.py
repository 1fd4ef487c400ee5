"""Prefect's server and a worker, brought up together on loopback and stopped together.

`python -m flows.serve` stays in the foreground until Ctrl-C. `python -m flows.serve --run experiment/demo`
brings them up, runs one deployment, watches it and ends with its exit code.
"""

import argparse
import contextlib
import hashlib
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
from filelock import FileLock, Timeout

from flows.command import ROOT, stop_family
from reperfuse.errors import InputError
from reperfuse.files import read_json, write_json, write_text

HOST = "127.0.0.1"
POOL = "reperfuse"

HOME = ROOT / ".reperfuse" / "prefect"
"""Prefect's own folder for this checkout: database, settings, logs. A user's ~/.prefect stays untouched."""

USUAL_PORT = 4200
START_PATIENCE_S = 240.0
STOP_PATIENCE_S = 30.0

Processes = dict[str, "subprocess.Popen[bytes]"]


def settings(port: int) -> dict[str, str]:
    """Environment of everything that talks to this server."""
    return {
        "PREFECT_HOME": str(HOME),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # In memory, a restarted server forgets who runs, and running flows end themselves.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Without these two, `--watch` shows that a stage began and ended, and not what it said.
        "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
        "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
        "REPERFUSE_ROOT": str(ROOT),
    }


def free_port(wanted: int | None) -> int:
    """`wanted` if nothing listens there; without a wish, 4200 or else any free port.

    Raises
    ------
    InputError
        If the wanted port is taken.
    """
    for port in (wanted,) if wanted else (USUAL_PORT, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise InputError(f"Port {wanted} is taken on {HOST}: leave --port out, or name another.")


@contextlib.contextmanager
def services(port: int) -> Iterator[tuple[dict[str, str], Processes]]:
    """Server, work pool, deployments and worker, up while the block runs; gives their environment and processes.

    Raises
    ------
    InputError
        If something does not come up; the sentence names the log to read.
    """
    environment = os.environ | settings(port)
    logs = HOME / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    _stop_leftovers()
    with contextlib.ExitStack() as stack:
        server = _service(stack, ["server", "start", "--host", HOST, "--port", str(port)], "server", environment)
        _wait_until_healthy(port, server)
        # Before the worker starts, for what an earlier one left; after it has ended, for what it was doing.
        settle_runs(port)
        stack.callback(lambda: settle_runs(port) if server.poll() is None else None)
        _deploy(environment)
        worker = _service(stack, ["worker", "start", "--pool", POOL, "--type", "process"], "worker", environment)
        lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings(port).items())
        write_text(HOME / "env", lines)
        stack.callback((HOME / "env").unlink, missing_ok=True)
        processes = {"server": server, "worker": worker}
        write_json(
            HOME / "processes.json", {str(one.pid): psutil.Process(one.pid).create_time() for one in processes.values()}
        )
        stack.callback(_deaf_to_a_second_interrupt)
        yield environment, processes


def settle_runs(port: int) -> int:
    """Number of runs that lost their worker, which are stopped and marked as crashed.

    Prefect leaves them `Running` for ever, and the next run of the deployment waits for their place until the
    lease runs out. DVC and the resumable state make it cheap to run them again.
    """
    # Prefect reads its home folder when it is imported, and would create one in the user's.
    os.environ.update(settings(port))
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    unfinished = FlowRunFilter(
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
        )
    )
    with SyncPrefectClient(f"http://{HOST}:{port}/api") as client:
        runs = client.read_flow_runs(flow_run_filter=unfinished)
        for run in runs:
            if run.infrastructure_pid:
                _stop_engine(int(run.infrastructure_pid))
            reason = "The services stopped while it ran; run it again, it goes on where it was."
            client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
    return len(runs)


def _stop_engine(pid: int) -> None:
    """Stop the process of a flow run, unless its number has gone to someone else meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        if "prefect.engine" in psutil.Process(pid).cmdline():
            stop_family(pid)


def _stop_leftovers() -> None:
    """Stop server and worker of this checkout that a killed `flows.serve` left behind."""
    (HOME / "env").unlink(missing_ok=True)
    if not (HOME / "processes.json").exists():
        return
    for pid, created in read_json(HOME / "processes.json").items():
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(int(pid)).create_time() == created:
                stop_family(int(pid))


def _deaf_to_a_second_interrupt() -> None:
    """Let an impatient Ctrl-C not leave a server behind; stopping takes seconds."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _service(
    stack: contextlib.ExitStack, words: list[str], name: str, environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """A `prefect` process that `stack` stops, in a session of its own: Ctrl-C reaches it only through us."""
    with (HOME / "logs" / f"{name}.log").open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "--no-prompt", *words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stack.callback(_stop_service, process)
    return process


def _stop_service(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)  # does nothing to a process that has ended
    try:
        process.wait(STOP_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_healthy(port: int, server: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < give_up and server.poll() is None:
        # http.client goes straight there; urllib would ask a proxy.
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/api/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.3)
    raise InputError(f"Prefect's server did not come up: {HOME / 'logs' / 'server.log'} says why.")


def _deploy(environment: dict[str, str]) -> None:
    """Create the work pool and the deployments, unless these flows and this prefect.yaml are deployed already.

    Deploying again would put every schedule back to what the file says, and undo a switch made in the UI.
    """
    stamp = HOME / "deployed"
    digest = hashlib.sha256()
    for source in (ROOT / "prefect.yaml", *sorted((ROOT / "flows").glob("*.py"))):
        digest.update(source.read_bytes())
    if (HOME / "prefect.db").exists() and stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    log = HOME / "logs" / "deploy.log"
    for words in (["work-pool", "create", POOL, "--type", "process", "--overwrite"], ["deploy", "--all"]):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        with log.open("ab") as file:
            ended = subprocess.run(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        if ended.returncode:
            raise InputError(f"`prefect {' '.join(words)}` failed: {log} says why.")
    write_text(stamp, digest.hexdigest())


def main(arguments: list[str] | None = None) -> int:
    """Exit code of the command line: 0, that of `--run`, 2 with a sentence, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--port", type=int, help="port of the server on 127.0.0.1 (default: 4200, or a free one)")
    parser.add_argument("--run", metavar="FLOW/NAME", help="run this deployment, watch it, stop everything")
    options = parser.parse_args(arguments)

    # A shell starts `command &` with SIGINT ignored, and children inherit that: a handler of our own ends it.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    HOME.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(HOME / "serve.lock", timeout=0):
            return _up(free_port(options.port), options.run)
    except Timeout:
        print(f"The services of this checkout are up already: `. {HOME / 'env'}` points a terminal at them.")
        return 2
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def _up(port: int, run: str | None) -> int:
    print(f"Starting Prefect's server and a worker on {HOST}:{port}, logs in {HOME / 'logs'} ...", flush=True)
    with services(port) as (environment, processes):
        print(f"Prefect is up: http://{HOST}:{port}", flush=True)
        if run:
            words = ["deployment", "run", run, "--watch"]
            return subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", *words], env=environment).returncode
        print(f"In another terminal, in {ROOT}:\n  . .reperfuse/prefect/env", flush=True)
        print("  prefect deployment run 'experiment/demo' --watch\nCtrl-C stops server and worker.", flush=True)
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    raise InputError(f"Prefect's {name} ended by itself: {HOME / 'logs' / name}.log says why.")
            time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
