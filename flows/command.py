"""A command whose lines are heard as they appear, and which never outlives us."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
"""Root of the repository: every command runs there, wherever the worker was started."""

REPERFUSE = (sys.executable, "-m", "reperfuse")
DVC = (sys.executable, "-m", "dvc")

STOP_PATIENCE_S = 10.0
"""Time a command has between the interrupt and the kill [s]; a training writes its checkpoint meanwhile."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
_PROGRESS_BAR = re.compile(r"[━╸╺█▏▎▍▌▋▊▉]{2}|\d+%\|.*\||^\s*\d+%\s*$")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, the readable lines it printed and its duration [s]."""

    code: int
    lines: tuple[str, ...]
    seconds: float


def readable(line: str) -> str:
    """`line` without colours; empty when it is only a progress bar.

    Examples
    --------
    >>> readable("\\x1b[1mfold 2\\x1b[0m  dice 0.61\\n")
    'fold 2  dice 0.61'
    >>> readable("Epoch 3:  40%|████      | 4/10 [00:02<00:03, 1.9it/s]")
    ''
    """
    text = _ANSI.sub("", line).rstrip()
    return "" if _PROGRESS_BAR.search(text) else text


def streamed(argv: tuple[str, ...], *, root: Path, log: Callable[[str], None]) -> Ended:
    """Run `argv` in `root`, hand each readable line to `log` as it appears, and say how it ended.

    Whatever interrupts the wait (cancelled in the UI, worker stopped, Ctrl-C) stops the command and
    all its children before it goes on, so that no training lives on behind a cancelled run.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        argv,
        cwd=root,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        # Universal newlines make the \r of a progress bar a line of its own, which `readable` drops.
        for line in process.stdout:
            if text := readable(line):
                lines.append(text)
                log(text)
        code = process.wait()
    except BaseException:
        stop_family(process.pid)
        process.wait()
        raise
    return Ended(code, tuple(lines), time.monotonic() - started)


def stop_family(pid: int) -> None:
    """Interrupt a process and its children, and kill what is left after `STOP_PATIENCE_S`."""
    try:
        parent = psutil.Process(pid)
        stop_all([*parent.children(recursive=True), parent])
    except psutil.NoSuchProcess:
        return


def stop_all(processes: list[psutil.Process]) -> None:
    """Interrupt processes, and kill what is left after `STOP_PATIENCE_S`."""
    for process in processes:
        _signal(process, signal.SIGINT)
    for process in psutil.wait_procs(processes, timeout=STOP_PATIENCE_S)[1]:
        _signal(process, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """The environment of every command: this interpreter's `python`, whole lines, no colours, no telemetry."""
    return os.environ | {
        # `python` in a DVC stage is whatever PATH finds first.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "400",  # rich would break a sentence after 80 columns
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
    }


def _signal(process: psutil.Process, signum: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signum)
