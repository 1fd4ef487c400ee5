"""Processes that share a search: who of them lives, and how the journal they all write survives the death of one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class SystemLock:
    """The operating system's lock, gone with its process; Optuna's own stays for 30 s after a kill."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Wait for it."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let it go."""
        self._lock.release()


def mend_journal(journal: Path) -> None:
    """Cut a line that a kill left half-written, before the next one is glued to it."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


@contextmanager
def at_work(state_dir: Path) -> Iterator[str]:
    """A name for this worker, and a lock that the operating system holds for as long as the process lives."""
    worker = uuid.uuid4().hex[:12]
    path = state_dir / "workers" / f"{worker}.lock"
    path.parent.mkdir(exist_ok=True)
    with FileLock(path):
        try:
            yield worker
        finally:
            path.unlink(missing_ok=True)


def is_alive(state_dir: Path, worker: str) -> bool:
    """Whether the process that goes by that name still runs; what a dead one left is cleared away."""
    path = state_dir / "workers" / f"{worker}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            pass
    except Timeout:
        return True
    path.unlink(missing_ok=True)
    return False
