"""Where the trials of a search are kept, how its workers take turns at them, and how one that died is noticed.

Two places with the same face: a journal in the state folder, for processes of one file system, and a PostgreSQL
database, for machines that share nothing else.
"""

import threading
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial

from reperfuse.databases import POSTGRESQL, database_lock, without_password
from reperfuse.errors import InputError
from reperfuse.training.workers import SystemLock, at_work, is_alive, mend_journal

HEARTBEAT_S = 10
"""How often a worker tells the database that it is at its trial [s]."""

GRACE_S = 60
"""After so long without a heartbeat a worker counts as dead [s]: several beats, for a database that is away a while."""


@dataclass(frozen=True)
class JournalPlace:
    """A journal in a folder; the operating system knows which process lives, and lets go the locks of a dead one."""

    folder: Path
    name: str = "tune"
    """Of the study."""
    wait_s: float = 0.5
    """How often a worker without work looks whether another one died and left some [s]."""

    def __str__(self) -> str:
        return str(self.folder)

    def exists(self) -> bool:
        """Whether a search was begun here."""
        return self._journal.exists()

    def lock(self) -> FileLock:
        """Holds the other workers of the search off."""
        return FileLock(self.folder / "tune.lock")

    def storage(self) -> BaseStorage:
        """Optuna's storage, without a line that a kill left half-written; opened under the lock."""
        lock = SystemLock(self.folder / "journal.lock")
        lock.acquire()
        try:
            mend_journal(self._journal)
        finally:
            lock.release()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return JournalStorage(JournalFileBackend(str(self._journal), lock_obj=lock))  # type: ignore[arg-type]

    def at_work(self) -> AbstractContextManager[str]:
        """A name for this worker, and a locked file for as long as it lives."""
        return at_work(self.folder)

    def sign(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """Say, under the lock, that this worker has begun the trial: here, its locked file does."""

    def beating(self, study: optuna.Study, trial: optuna.Trial) -> AbstractContextManager[None]:
        """Go on saying so inside the block: here, its locked file does."""
        return nullcontext()

    def dead(self, study: optuna.Study, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those of the trials whose worker is no more: nobody holds its file."""
        return [trial for trial in running if not is_alive(self.folder, trial.user_attrs["worker"])]

    @property
    def _journal(self) -> Path:
        return self.folder / "optuna.journal"


@dataclass(frozen=True)
class DatabasePlace:
    """A PostgreSQL database; workers send heartbeats, and the database's clock judges them.

    Raises
    ------
    InputError
        If the URL is none of PostgreSQL; the methods, if the database does not answer.
    """

    url: str = field(repr=False)
    name: str
    """One that no other search in the database has."""
    wait_s: float = 2.0

    def __str__(self) -> str:
        return f"study {self.name} of {without_password(self.url)}"

    def __post_init__(self) -> None:
        if not POSTGRESQL.match(self.url):
            raise InputError(
                f"OPTUNA_STORAGE={without_password(self.url)} is no PostgreSQL database: give "
                "postgresql://USER@HOST/DATABASE, or unset it to search with a journal file on this machine."
            )

    def exists(self) -> bool:
        """Whether a search was begun here."""
        with self.lock():
            return self.name in optuna.get_all_study_names(self.storage())

    def lock(self) -> AbstractContextManager[None]:
        """Holds the other workers of the search off, on whatever machine."""
        return database_lock(self.url, f"reperfuse search {self.name}")

    def storage(self) -> BaseStorage:
        """Optuna's storage; a database without tables gets them."""
        with warnings.catch_warnings(), database_lock(self.url, "reperfuse optuna tables"):
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
            try:
                return RDBStorage(
                    self.url,
                    # A trial lasts hours: a connection that was cut meanwhile is made anew.
                    engine_kwargs={"pool_pre_ping": True},
                    heartbeat_interval=HEARTBEAT_S,
                    grace_period=GRACE_S,
                )
            except RuntimeError as error:
                raise InputError(
                    f"{without_password(self.url)} was made by another version of Optuna: back it up, then run "
                    "`optuna storage upgrade`, which reads OPTUNA_STORAGE too."
                ) from error

    @contextmanager
    def at_work(self) -> Iterator[str]:
        """A name alone: what tells that it lives is the heartbeat of its trial."""
        yield uuid.uuid4().hex[:12]

    def sign(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """The first heartbeat: without one, a trial would never be missed."""
        study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

    @contextmanager
    def beating(self, study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
        """Heartbeats from a thread; Optuna sends them only for `Study.optimize`, and stops at the first failure."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_S):
                # The database is away, perhaps not for long; who finds it so will say so.
                with suppress(optuna.exceptions.StorageInternalError):
                    self.sign(study, trial)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(HEARTBEAT_S)

    def dead(self, study: optuna.Study, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those without a heartbeat for `GRACE_S`."""
        stale = study._storage._get_stale_trial_ids(study._study_id)  # type: ignore[attr-defined]
        return [trial for trial in running if trial._trial_id in stale]


Place = JournalPlace | DatabasePlace
"""What `tune` asks of both is the same."""
