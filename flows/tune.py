"""The flow that tunes one arm with several workers: the search as DVC's stage, and processes that join it."""

import contextlib
import csv
import json
import os
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows.command import REPERFUSE, ROOT, stop_family, streamed
from flows.experiment import named, stage, stage_names
from flows.states import failed, run_logger, worth_retrying

SEARCH_PATIENCE_S = 7 * 24 * 3600.0
"""After so long a run is stopped with all its processes [s]: a week; the search goes on where it was when run again."""

JOIN_DELAY_S = 3.0
"""How often a worker looks whether the search has begun [s]."""

JOIN_ATTEMPTS = 20
"""How often a worker asks to join a search that has just begun; between its run and its study lie seconds."""

TOP_TRIALS = 100
"""Rows of the table in the UI; results/<arm>/tune/trials.csv has all."""


@task(
    name="worker",
    task_run_name="worker {number}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=worth_retrying,
)
def worker(arm: str, number: int, began: float, over: threading.Event) -> State:
    """The state of one more process at the search, which it joins once the search has begun.

    Parameters
    ----------
    number
        Its number, for the log; the stage itself is worker 1.
    began
        When the run began [s since 1970]: a search whose record is older is not yet this run's.
    over
        Set when the stage has ended.
    """
    log = run_logger()
    for _ in range(JOIN_ATTEMPTS):
        while not over.is_set() and not search_has_begun(ROOT, arm, began):
            over.wait(JOIN_DELAY_S)
        if over.is_set():
            return Completed(message="It came too late: nothing was left to search.")
        ended = streamed((*REPERFUSE, "tune", arm, "--join"), root=ROOT, log=log.info)
        if not ended.code or over.is_set():
            return Completed(message=f"It worked for {ended.seconds:.0f} s.")
        if ended.code != 2:
            break
        over.wait(JOIN_DELAY_S)
    return failed(ended, f"reperfuse tune {arm} --join")


# Prefect's form takes its help texts from a Google-style `Args:` section; numpydoc sections stay unread there.
@flow(name="tune", flow_run_name="tune {arm}: {workers} workers", timeout_seconds=SEARCH_PATIENCE_S)
def tune(arm: Literal["lesion", "perfusion"], workers: Annotated[int, Field(ge=1, le=64)] = 2) -> State:
    """Search the hyperparameters of one arm with several workers on this machine.

    The stages before the search are brought up to date, DVC runs the search itself if it is stale, and further
    workers join it while it lasts. The best trial and the table of all are kept as artifacts; nothing is trained or
    promoted with them: run `experiment` for that. A run of more than a week is stopped, and goes on when run again.

    Args:
        arm: Arm whose `tune` section in params.yaml is searched.
        workers: Processes at the search in all, at most 64. Those of `tune.workers` in params.yaml, which the stage
            starts by itself, come in addition.
    """
    began = time.time()
    # Else each process would take every core, and they would get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    state: Any = None
    for name in _up_to_the_search(arm):
        state = named(stage, name)(name, False, return_state=True, wait_for=[state] if state else None)
        if not state.is_completed():
            return Failed(message=f"{name} failed: {state.message}")
    over = threading.Event()
    try:
        others = [worker.submit(arm, number, began, over) for number in range(2, workers + 1)]
        # Here and not in a thread: a timeout or a cancellation wakes the main thread alone, which stops its command.
        name = f"{arm}-tune"
        state = named(stage, name)(name, False, return_state=True)
        over.set()
        if not state.is_completed():
            _stop_workers(arm)
        wait(others)
    except BaseException:
        over.set()
        _stop_workers(arm)
        raise
    if not state.is_completed():
        return Failed(message=f"{name} failed: {state.message}")
    best = show(ROOT, arm)
    lost = [other.state for other in others if not other.state.is_completed()]
    said = f" {len(lost)} of {len(others)} further workers failed: {lost[0].message}" if lost else ""
    return Completed(message=f"{state.message} {best}{said}")


def _up_to_the_search(arm: str) -> list[str]:
    names = stage_names(ROOT, arm)
    return names[: names.index(f"{arm}-tune")]


def _stop_workers(arm: str) -> None:
    """Stop the processes that joined; the threads that wait for them hear nothing, and they would search on alone."""
    command = [*REPERFUSE, "tune", arm, "--join"]
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline() == command:  # Prefect may have a server of its own among our children
                stop_family(child.pid)


def search_has_begun(root: Path, arm: str, began: float) -> bool:
    """Whether a search of this arm has opened its run since `began` [s since 1970]."""
    return any(path.stat().st_mtime >= began for path in root.glob(f".reperfuse/{arm}/*/tune/study.json"))


def show(root: Path, arm: str) -> str:
    """The best trial in one sentence; it and the table of all are kept as artifacts of the run."""
    folder = root / f"results/{arm}/tune"
    best = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = best_first(list(csv.DictReader(file)), best["cv_score"])
    sentence = f"Trial {best['trial']} is the best: {best['metric']} {best['cv_score']:.4g}."
    chosen = [f"| {name} | {value} |" for name, value in best["overrides"].items()]
    note = f"Mean over the validation subjects of all folds; optimistic, as the best of {len(rows)} trials is."
    text = "\n".join([f"# {arm}", "", sentence, "", "| parameter | value |", "|---|---|", *chosen, "", note, ""])
    create_markdown_artifact(text, key=f"{arm}-best-trial", description=f"Best trial of the last search, {arm} arm")
    create_table_artifact(rows[:TOP_TRIALS], key=f"{arm}-trials", description=f"Trials of the {arm} arm, best first")
    return sentence


def best_first(rows: list[dict[str, str]], best: float) -> list[dict[str, str]]:
    """Rows of trials.csv by how close they come to the best; then what was pruned, then what failed.

    Examples
    --------
    >>> rows = [{"state": "failed", "value": ""}, {"state": "complete", "value": "0.1"}]
    >>> rows += [{"state": "pruned", "value": "0.7"}, {"state": "complete", "value": "0.6"}]
    >>> [row["value"] for row in best_first(rows, 0.6)]
    ['0.6', '0.1', '0.7', '']
    """
    states = ("complete", "pruned", "failed")
    return sorted(
        rows, key=lambda row: (states.index(row["state"]), abs(float(row["value"]) - best) if row["value"] else 0.0)
    )
