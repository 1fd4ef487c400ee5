"""Runs: how they are opened, named, nested, resumed, and brought back from files when the store was lost."""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from reperfuse.errors import InputError
from reperfuse.files import read_json, write_json
from reperfuse.tracking.names import PRESET_VARIABLE, RUN_KINDS, flattened, readable
from reperfuse.tracking.store import client, experiment_id, store_lock

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PARAM_LENGTH = 500
"""Characters of a parameter that are kept: what MLflow takes (6000) no table can show."""

TAG_LENGTH = 5000
"""Characters of a tag that are kept; MLflow takes 8000."""

_BATCH = 100  # MLflow's limit on parameters and tags a call; metrics have 1000


class RunRecord(TypedDict, total=False):
    """What run.json holds: enough to find a run in the store, or to make it again."""

    run_id: str
    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    metrics: dict[str, float | None]
    lineage: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A run of the store; there is no active run, so several may be open at once, in several processes.

    Attributes
    ----------
    id
        Its id in the store.
    experiment
        Name of its experiment, the arm.
    name
        What the UI shows.
    origin
        The id by which run.json knows it; differs from `id` when it was brought back to a new store.
    """

    id: str
    experiment: str
    name: str
    origin: str

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Write parameters, nested ones as `train.epochs`, the way params.yaml and `dvc exp run -S` name them.

        MLflow never changes a parameter. A stage that comes back with another value leaves the old one
        and says the new one in the tag `changed.NAME`.
        """
        from mlflow.entities import Param, RunTag

        store = client()
        known = store.get_run(self.id).data.params
        flat = {key: text[:PARAM_LENGTH] for key, text in flattened(params).items()}
        changed = [RunTag(f"changed.{key}", text) for key, text in flat.items() if known.get(key, text) != text]
        fresh = [Param(key, text) for key, text in flat.items() if key not in known]
        for batch in _batches(fresh, _BATCH):
            store.log_batch(self.id, params=batch)
        for batch in _batches(changed, _BATCH):
            store.log_batch(self.id, tags=batch)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write numbers; what is None or not finite is undefined and left out.

        Parameters
        ----------
        metrics
            Name, such as `holdout/dice`, to number; `METRIC_GROUPS` has the groups.
        step
            Epoch, slice thickness [mm], …: a curve's abscissa, whole as MLflow wants it.
        """
        from mlflow.entities import Metric

        if step is not None and step != int(step):
            raise ValueError(f"MLflow counts steps in whole numbers, not {step}: choose a finer unit")
        now = int(time.time() * 1000)
        numbers = {key: float(value) for key, value in metrics.items() if value is not None}
        entries = [Metric(k, v, now, int(step or 0)) for k, v in numbers.items() if math.isfinite(v)]
        store = client()
        for batch in _batches(entries, 1000):
            store.log_batch(self.id, metrics=batch)

    def log_figure(self, figure: "Figure", path: str) -> None:
        """Save a Matplotlib figure as artifact `path`, such as `figures/best.png`."""
        client().log_figure(self.id, figure, path)

    def log_table(self, table: "pd.DataFrame", path: str) -> None:
        """Save a table as artifact `path`, such as `tables/scores.csv`; a second time replaces it."""
        if not path.endswith(".csv"):
            raise ValueError(f"{path}: tables are kept as .csv, which the UI shows and a second writing replaces")
        client().log_text(self.id, table.to_csv(index=False), path)

    def log_text(self, text: str, path: str) -> None:
        """Save `text` as artifact `path`."""
        client().log_text(self.id, text, path)

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file, or a folder with what is in it, to the artifacts, under `folder`."""
        store = client()
        if Path(path).is_dir():
            store.log_artifacts(self.id, str(path), folder)
        else:
            store.log_artifact(self.id, str(path), folder)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; a second time replaces them. `mlflow.note.content` is the description, as Markdown."""
        from mlflow.entities import RunTag

        store = client()
        entries = [RunTag(key, readable(value)[:TAG_LENGTH]) for key, value in tags.items()]
        for batch in _batches(entries, _BATCH):
            store.log_batch(self.id, tags=batch)

    def log_lineage(self, lineage: Mapping[str, str]) -> None:
        """Keep what `lineage` found: tags `lineage.*`, the commit where the UI looks for it, the data as dataset."""
        tags = {f"lineage.{key}": value for key, value in lineage.items()}
        if (commit := lineage.get("git_commit", "none")) != "none":
            tags["mlflow.source.git.commit"] = commit
        self.set_tags(tags)
        if (revision := lineage.get("data_revision", "none")) != "none":
            self.log_dataset(f"bids/{self.experiment}", revision)

    def log_dataset(self, name: str, revision: str, context: str = "training") -> None:
        """Name the data of this run, such as `bids/lesion` at DVC revision `revision`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"dvc": f"data/{name}", "md5": revision})
        dataset = Dataset(name, revision[:36], "dvc", source)  # 36 characters: an md5 with ".dir"
        client().log_inputs(self.id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])


@contextmanager
def run(
    experiment: str,
    name: str,
    *,
    parent_id: str | None = None,
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    lineage: Mapping[str, str] | None = None,
    state: Path | str | None = None,
    stopped_by: tuple[type[BaseException], ...] = (),
) -> Iterator[Run]:
    """A new run; it ends FINISHED, FAILED on an exception, KILLED on Ctrl-C.

    Parameters
    ----------
    experiment
        The arm.
    name
        What the UI shows; `run_name` makes it.
    parent_id
        Id of the run it nests under, which may have been opened by another process.
    tags, params, lineage
        What is known before work begins.
    state
        Where the run's record is kept while work goes on. A process that was killed left it there, and the next
        one continues that run instead of opening another.
    stopped_by
        Exceptions that stop a run on purpose, such as a pruned trial: KILLED, not FAILED. They still propagate.

    Examples
    --------
    >>> from reperfuse import tracking
    >>> with tracking.run("lesion", "study unet3d") as study:               # doctest: +SKIP
    ...     with tracking.run("lesion", "trial 000", parent_id=study.id) as trial:
    ...         trial.log_metrics({"cv/dice": 0.61})
    """
    record = None if state is None else Path(state)
    if record is not None and record.exists():
        opened = _found(read_json(record)) or _created(experiment, name, parent_id)
        client().update_run(opened.id, status="RUNNING")
    else:
        opened = _created(experiment, name, parent_id)
    if record is not None:
        write_json(record, {"run_id": opened.origin, "experiment": experiment, "name": name})
    with _status(opened, stopped_by):
        if tags:
            opened.set_tags(tags)
        if params:
            opened.log_params(params)
        if lineage:
            opened.log_lineage(lineage)
        yield opened


def read_table(run_id: str, path: str) -> "pd.DataFrame":
    """A table that `Run.log_table` kept with a run, `path` as given there.

    Raises
    ------
    InputError
        If the run has no such artifact.
    """
    import pandas as pd
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="reperfuse-table-") as room:
        try:
            # Ids and centres are text, or 01 would come back as 1.
            return pd.read_csv(
                client().download_artifacts(run_id, path, room), dtype={"participant_id": str, "centre": str}
            )
        except (MlflowException, OSError) as error:
            raise InputError(f"Run {run_id} in the store has no {path}: promote its model again.") from error


def recorded(run_id: str) -> RunRecord:
    """What the store knows of a run, in the form of its run.json.

    Raises
    ------
    InputError
        If the store does not know it.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = client().get_run(run_id)
        experiment = client().get_experiment(found.info.experiment_id).name
    except MlflowException as error:
        raise InputError(f"The store does not know the run {run_id}: promote its model again.") from error
    lineage = {k.removeprefix("lineage."): v for k, v in found.data.tags.items() if k.startswith("lineage.")}
    return {
        "run_id": run_id,
        "experiment": experiment,
        "name": found.info.run_name,
        "tags": {k: v for k, v in found.data.tags.items() if not k.startswith("lineage.")},
        "params": dict(found.data.params),
        "metrics": dict(found.data.metrics),
        "lineage": lineage,
    }


def find_text(run_id: str, path: str) -> str | None:
    """A text that `Run.log_text` or `Run.log_artifact` kept with a run; None where the run has no such artifact.

    Raises
    ------
    InputError
        If the store does not know the run, or cannot be asked.
    """
    if not _kept(run_id, path):
        return None
    with tempfile.TemporaryDirectory(prefix="reperfuse-text-") as room:
        # A patch keeps the ends of lines and the bytes that it came with.
        content = Path(client().download_artifacts(run_id, path, room)).read_bytes()
    return content.decode(errors="surrogateescape")


def find_table(run_id: str, path: str) -> "pd.DataFrame | None":
    """As `read_table`; None where the store knows the run and says that it has no such artifact.

    Raises
    ------
    InputError
        If the store does not know the run, or cannot be asked.
    """
    return read_table(run_id, path) if _kept(run_id, path) else None


def _kept(run_id: str, path: str) -> bool:
    """Whether a run has an artifact of that path."""
    from mlflow.exceptions import MlflowException

    try:
        found = {artifact.path for artifact in client().list_artifacts(run_id, os.path.dirname(path) or None)}
    except (MlflowException, OSError) as error:
        raise InputError(f"The artifacts of run {run_id} cannot be listed: promote its model again.") from error
    return path in found


@contextmanager
def resume(record: RunRecord | Mapping[str, Any] | Path | str) -> Iterator[Run]:
    """The run that a run.json names, opened again; a store that lost it gets it back from the record, once.

    What is brought back has the record's parameters, metrics and tags, and the tags `reperfuse.restored` and
    `reperfuse.restored_from`; curves and artifacts are lost, except what stages log again.

    Raises
    ------
    InputError
        If the record is missing or names no run.
    """
    content: Mapping[str, Any] = read_json(record) if isinstance(record, str | Path) else record
    if not isinstance(content, Mapping) or not {"run_id", "experiment", "name"} <= set(content):
        where = record if isinstance(record, str | Path) else "The record"
        raise InputError(f"{where} names no run (run_id, experiment, name): run the stage that writes it again.")
    with store_lock():
        opened = _found(content) or _restored(content)
    client().update_run(opened.id, status="RUNNING")
    with _status(opened):
        yield opened


def run_record(
    run: Run, params: Mapping[str, Any], metrics: Mapping[str, Any], lineage: Mapping[str, str]
) -> RunRecord:
    """What to write as run.json beside an output: enough to make the run again if the store is lost.

    Parameters are flattened as in the store; undefined metrics stay as null.
    """
    tags = client().get_run(run.id).data.tags
    return {
        "run_id": run.origin,
        "experiment": run.experiment,
        "name": run.name,
        "tags": {k: v for k, v in tags.items() if not k.startswith(("mlflow.", "lineage.", "reperfuse."))},
        "params": flattened(params),
        "metrics": {k: None if v is None or not math.isfinite(v) else float(v) for k, v in metrics.items()},
        "lineage": dict(lineage),
    }


def _batches(entries: list[Any], size: int) -> Iterable[list[Any]]:
    return (entries[start : start + size] for start in range(0, len(entries), size))


def _created(experiment: str, name: str, parent_id: str | None = None, **tags: str) -> Run:
    # MLflow would fill in the account and the script's path: neither belongs in a store that is shared.
    tags = {"mlflow.user": "reperfuse", "mlflow.source.name": "reperfuse", "mlflow.source.type": "LOCAL", **tags}
    if parent_id is not None:
        tags["mlflow.parentRunId"] = parent_id
    if (kind := name.split(" ")[0]) in RUN_KINDS:
        tags["kind"] = kind
    if preset := os.environ.get(PRESET_VARIABLE):
        tags["experiment"] = preset
    info = client().create_run(experiment_id(experiment), tags=tags, run_name=name).info
    return Run(info.run_id, experiment, name, tags.get("reperfuse.restored_from", info.run_id))


def _found(record: Mapping[str, Any]) -> Run | None:
    """The run of the record in this store: itself, or the one that was brought back in its place."""
    from mlflow.exceptions import MlflowException

    store = client()
    origin, experiment = str(record["run_id"]), str(record["experiment"])
    try:
        info = store.get_run(origin).info
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        query = f"tags.`reperfuse.restored_from` = '{_quotable(origin)}'"
        runs = store.search_runs([experiment_id(experiment)], query, max_results=1)
        if not runs:
            return None
        info = runs[0].info
    if info.lifecycle_stage == "deleted":  # thrown away in the UI, but its files are still in use
        store.restore_run(info.run_id)
    return Run(info.run_id, experiment, info.run_name, origin)


def _restored(record: Mapping[str, Any]) -> Run:
    tags = {"reperfuse.restored": "true", "reperfuse.restored_from": str(record["run_id"])}
    again = _created(str(record["experiment"]), str(record["name"]), **tags)
    again.set_tags(record.get("tags") or {})
    again.log_params(record.get("params") or {})
    again.log_metrics(record.get("metrics") or {})
    again.log_lineage(record.get("lineage") or {})
    return again


def _quotable(run_id: str) -> str:
    if not run_id.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"{run_id!r} is no run id: the run.json that has it was changed; run its stage again.")
    return run_id


@contextmanager
def _status(opened: Run, stopped_by: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Closes the run with the status that fits how the block ended."""
    status = "FINISHED"
    try:
        yield
    except (KeyboardInterrupt, *stopped_by):  # type: ignore[misc]  # mypy cannot see through the star
        status = "KILLED"
        raise
    except BaseException:
        status = "FAILED"
        raise
    finally:
        client().set_terminated(opened.id, status)
