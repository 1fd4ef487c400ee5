"""Where MLflow keeps things: one store per repository, made once, whoever comes first."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reperfuse.databases import POSTGRESQL, database_lock, without_password
from reperfuse.errors import InputError
from reperfuse.files import atomic_path

if TYPE_CHECKING:
    import sqlite3

    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

PAUSES_S = (0.1, 0.5, 2.0, 8.0, 20.0)
"""Pauses before a call that the database refused is made again [s]; on a locked SQLite, MLflow waits 20 s each time."""

_REFUSED = ("database is locked", "connection to server")
"""What SQLite says while another process writes, and psycopg2 while PostgreSQL is away or starts again."""

_LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns of MLflow's schema that hold absolute paths of artifacts."""


def repository_root(start: Path | str | None = None) -> Path:
    """The folder that owns mlruns/ and .reperfuse/: the nearest parent of `start` with a dvc.yaml or a .git.

    `dvc exp run --temp` and `--queue` work in a copy below .dvc/tmp/exps/; there the answer is the repository
    the copy was made from, so that there is one store. Without any repository it is `start` itself.

    Parameters
    ----------
    start
        A folder; the current one when left out.
    """
    here = Path(start if start is not None else Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if folder.name == "exps" and folder.parent.name == "tmp" and folder.parent.parent.name == ".dvc":
            return repository_root(folder.parent.parent.parent)
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").exists() or (folder / ".git").exists():
            return folder
    return here


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else `sqlite:////…/mlruns/mlflow.db` of the repository; SQLite paths are absolute.

    Raises
    ------
    InputError
        If MLFLOW_TRACKING_URI is a folder: MLflow has given up its file store.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        return f"sqlite:///{repository_root() / 'mlruns' / 'mlflow.db'}"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{repository_root() / uri.removeprefix('sqlite:///')}"
    if "://" not in uri or uri.startswith("file:"):
        raise InputError(
            f"MLFLOW_TRACKING_URI={uri} is a folder, which MLflow no longer takes: "
            "unset it, or give sqlite:////absolute/path.db, postgresql://user@host/db or http://server."
        )
    return uri


def store_name() -> str:
    """`tracking_uri` as it may be shown: without a password."""
    return without_password(tracking_uri())


def artifact_root(uri: str | None = None) -> Path | None:
    """Folder of the artifacts: beside a SQLite database, mlruns/artifacts for another one, None with a server."""
    uri = uri or tracking_uri()
    database = _database(uri)
    if database is not None:
        return database.parent / "artifacts"
    return None if uri.startswith(("http://", "https://")) else repository_root() / "mlruns" / "artifacts"


def client() -> "MlflowClient":
    """A client of the store, which is created on first use; calls wait while SQLite is held or PostgreSQL is away."""
    uri = tracking_uri()
    database = _database(uri)
    if database is not None or POSTGRESQL.match(uri):
        # MLflow's pooled connections would outlive a fork, and a database that was made or started again.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    if database is not None:
        _settle(database)
    return _client(uri)


def experiment_id(name: str) -> str:
    """The id of experiment `name`, created or brought back from the bin when need be."""
    from mlflow.exceptions import MlflowException

    store = client()
    experiment = store.get_experiment_by_name(name)
    if experiment is None:
        root = artifact_root()
        location = None if root is None else str(root / name)
        kind = {"mlflow.experimentKind": "custom_model_development"}  # else the UI offers prompts and judges
        try:
            return str(store.create_experiment(name, artifact_location=location, tags=kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = store.get_experiment_by_name(name)  # another process was quicker
            assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        store.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


@contextmanager
def store_lock() -> Iterator[None]:
    """Holds other processes off while a look-up and the writing that follows belong together.

    Those of this repository; with PostgreSQL, everyone at that database.
    """
    if POSTGRESQL.match(uri := tracking_uri()):
        with database_lock(uri, "reperfuse mlflow store"):
            yield
        return
    root = artifact_root()
    with _file_lock((root.parent if root is not None else repository_root() / "mlruns") / ".reperfuse.lock"):
        yield


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").split("?")[0]) if uri.startswith("sqlite:///") else None


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    except OSError as error:
        raise InputError(
            f"{path.parent} cannot be written to ({error.strerror}), where MLflow's store lives: "
            "mend its permissions or set MLFLOW_TRACKING_URI."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _settle(database: Path) -> None:
    """Make `database` if it is missing, whole or not at all, and follow a checkout that was moved."""
    artifacts = database.parent / "artifacts"
    if database.exists() and not _strangers(database, artifacts):
        return
    with _file_lock(database.parent / f".{database.name}.lock"):
        if not database.exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            # MLflow makes its tables in some fifty migrations: two processes at it together spoil the
            # database, and so does one that is killed; hence the lock, and the new name at the end.
            _client.cache_clear()
            with atomic_path(database) as partial:
                SqlAlchemyStore(f"sqlite:///{partial}", str(artifacts))
        for old in _strangers(database, artifacts):
            _log.warning("The checkout was moved: MLflow's artifact locations change from %s to %s.", old, artifacts)
            _relocate(database, old, artifacts)


def _strangers(database: Path, artifacts: Path) -> list[str]:
    """Folders like `artifacts` elsewhere to which the store still points: where the checkout was before."""
    import sqlite3

    with _sqlite(database) as connection:
        try:
            rows = connection.execute("SELECT artifact_location FROM experiments").fetchall()
        except sqlite3.OperationalError:
            return []  # no such table, or locked for a minute: MLflow's own calls say better what is wrong
        except sqlite3.DatabaseError as error:
            raise InputError(f"{database} is not an MLflow database ({error}): move it away or restore it.") from error
    parents = {Path(location).parent for (location,) in rows if location and location.startswith("/")}
    return sorted(str(p) for p in parents if p != artifacts and p.parts[-2:] == artifacts.parts[-2:])


def _relocate(database: Path, old: str, new: Path) -> None:
    with _sqlite(database) as connection:
        for table, columns in _LOCATIONS.items():
            for column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (str(new), len(old) + 1, len(old) + 1, old + "/"),
                )


@contextmanager
def _sqlite(database: Path) -> Iterator["sqlite3.Connection"]:
    import sqlite3

    connection = sqlite3.connect(database, timeout=60)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


@lru_cache(maxsize=8)
def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints a traceback before it raises, also where `_Patient` only has to wait.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # The first to come makes the tables, in some fifty migrations that two machines together would spoil. The lock also
    # says in one sentence that nobody answers, where MLflow would try for minutes and end in a traceback.
    with database_lock(uri, "reperfuse mlflow tables") if POSTGRESQL.match(uri) else nullcontext():
        store = MlflowClient(tracking_uri=uri, registry_uri=uri)
        try:
            store.get_experiment_by_name("Default")
        except MlflowException as error:
            if "out-of-date database schema" in str(error):
                shown = without_password(uri)
                raise InputError(
                    f"{shown} was made by another version of MLflow: copy the database, then run "
                    f"`mlflow db upgrade {shown}`."
                ) from error
            raise
    return _Patient(store, uri)  # type: ignore[return-value]


class _Patient:
    """An MlflowClient whose calls are made again while another process holds SQLite, or PostgreSQL is away.

    A call that found SQLite locked was rolled back whole, and one that found no server was never heard, so repeating
    them is safe.
    """

    def __init__(self, store: "MlflowClient", uri: str) -> None:
        self._store, self._uri = store, uri

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        return self._patiently(attribute) if callable(attribute) else attribute

    def _patiently(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def patient(*args: Any, **kwargs: Any) -> Any:
            for pause_s in PAUSES_S:
                try:
                    return call(*args, **kwargs)
                except Exception as error:
                    if not _is_refusal(error):
                        raise
                time.sleep(pause_s)
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not _is_refusal(error):
                    raise
                trouble = "held by another process" if _database(self._uri) else "away"
                raise InputError(
                    f"{without_password(self._uri)} has been {trouble} for too long: "
                    "see what keeps it, and start again; nothing is lost."
                ) from error

        return patient


def _is_refusal(error: Exception) -> bool:
    return any(words in str(error) for words in _REFUSED)
