"""One function over many items: `local` in this process, `dask` in several, of one machine or many.

Both are an `Each` of `cohort.inbox`: name and result of every item as they come. A process that dies is replaced and
its item tried again; `WorkerLost` stands for what several died over. What the function itself raises is raised here.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Literal

from reperfuse import __version__
from reperfuse.errors import InputError, WorkerLost

if TYPE_CHECKING:
    from distributed import Client

    from reperfuse.cohort.inbox import Each

AHEAD = 2
"""Items per worker that are handed out at a time: one in work, one waiting. All at once would fill the scheduler."""

PATIENCE_S = 30
"""Time [s] for a scheduler to answer, and for its first worker to be there."""

LEAVE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""What a worker of ours begins with: Ctrl-C reaches the whole terminal, and only the parent shall act on it."""


@dataclass(frozen=True)
class Runner:
    """Where the items of a verb are worked on.

    Parameters
    ----------
    kind
        `local`: in this process. `dask`: in worker processes, of this machine or of a cluster.
    workers
        How many at once; None is the verb's own choice.
    scheduler
        Address of a running Dask cluster, such as tcp://host:8786; None starts workers on this machine.

    Raises
    ------
    InputError
        If the choices exclude one another.
    """

    kind: Literal["local", "dask"] = "local"
    workers: int | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.scheduler is not None and self.kind != "dask":
            raise InputError("--scheduler belongs to Dask: add --runner dask.")
        if self.scheduler is not None and self.workers is not None:
            raise InputError("The workers of a scheduler are started with it: leave out --workers or --scheduler.")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def fan_out(runner: Runner, folder: Path, *, workers: int, stop: threading.Event | None = None) -> Iterator["Each"]:
    """A way to spread items as `runner` says; its processes end with the block.

    Parameters
    ----------
    folder
        A folder of the workspace that every worker must see.
    workers
        How many at once, where `runner` does not say.
    stop
        Set when nobody waits for results any more; a function in a thread may look at it.
    """
    if runner.kind == "local":
        yield _over_threads(runner.workers or workers, stop or threading.Event())
    else:
        with _client(runner, workers) as client:
            _check_workers(client, runner, folder)
            yield _over_dask(client)


def _over_threads(workers: int, stop: threading.Event) -> "Each":
    def each(function: Callable[[Any], Any], items: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        with ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(function, item): name for name, item in items.items()}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    return each


def _over_dask(client: "Client") -> "Each":
    def each(function: Callable[[Any], Any], items: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        from distributed import as_completed

        names, done = iter(items), as_completed(loop=client.loop)
        pending: dict[Any, str] = {}
        try:
            while True:
                # Asked again each time: workers of a cluster come and go.
                room = max(1, AHEAD * sum(client.nthreads().values())) - len(pending)
                for _, name in zip(range(room), names, strict=False):
                    future = client.submit(function, items[name], pure=False)
                    pending[future] = name
                    done.add(future)
                if not pending:
                    return
                future = next(done)
                name = pending.pop(future)
                yield name, _result_of(future, name)
                future.release()
        finally:
            if client.status == "running":
                client.cancel(list(pending))

    return each


def _result_of(future: Any, name: str) -> Any:
    """What a function gave, or `WorkerLost`; what it raised is raised."""
    from distributed.scheduler import KilledWorker

    if future.cancelled():
        raise InputError("The Dask scheduler is gone: start it again, then the same command.")
    try:
        return future.result()
    except KilledWorker as lost:
        return WorkerLost(
            f"{name}: {lost.allowed_failures + 1} worker processes died over it, mostly for want of memory: give fewer "
            "--workers or a larger machine, and the same command again."
        )


@contextmanager
def _client(runner: Runner, workers: int) -> Iterator["Client"]:
    """A client of the cluster that `runner` names, else of one that is started here and ends with the block."""
    import logging

    from distributed import Client, LocalCluster

    if runner.scheduler is not None:
        try:
            client = Client(runner.scheduler, timeout=PATIENCE_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"No Dask scheduler answers at {runner.scheduler}: start one (`dask scheduler`) or mend the address."
            ) from error
        with client:
            yield client
        return

    with (
        LocalCluster(
            n_workers=runner.workers or workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # without one Dask would insist on port 8787
            scheduler_kwargs={"dashboard": False},
            security=True,  # TLS: no other user of this machine may hand in work
            silence_logs=logging.CRITICAL,  # a worker that dies is our sentence to say
            preload=[LEAVE_CTRL_C],
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _check_workers(client: "Client", runner: Runner, folder: Path) -> None:
    """Refuse workers that do not have this package, or do not see `folder`."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE_S)
    except TimeoutError as error:
        raise InputError(
            f"The Dask scheduler {runner.scheduler} has no workers: start some with `dask worker {runner.scheduler}`."
        ) from error

    # A function within a function travels as it is: the others would be looked up in the very package that may be
    # missing there.
    def lacks(path: str, version: str) -> str | None:
        import os
        from importlib import import_module
        from importlib.util import find_spec

        if find_spec("reperfuse") is None or import_module("reperfuse").__version__ != version:
            return f"has no reperfuse {version}: install it there."
        return (
            None if os.path.exists(path) else f"does not see {os.path.dirname(path)}: mount it there under this name."
        )

    with NamedTemporaryFile(dir=folder, prefix=".seen-by-workers.") as token:
        said = client.run(lacks, os.path.abspath(token.name), __version__)
    for worker, sentence in said.items():
        if sentence is not None:
            raise InputError(f"The Dask worker {worker} {sentence}")
