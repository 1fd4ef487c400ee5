"""The registry: versions registered once per content, and the aliases that say which one is in use."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from reperfuse.errors import InputError
from reperfuse.tracking.models import DIGEST
from reperfuse.tracking.store import client, store_lock, store_name, tracking_uri

CHAMPION, PREVIOUS = "champion", "previous"
"""Aliases: the version in use, and the one before it."""


@dataclass(frozen=True)
class Version:
    """A registered version of a model; `metrics` and `params` are those of its run, as far as the store has it."""

    name: str
    version: str
    run_id: str
    uri: str
    digest: str
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)


def register(model_uri: str, name: str, tags: Mapping[str, Any] | None = None) -> Version:
    """The version of `name` that holds the model at `model_uri`; a model registered before keeps its version.

    Parameters
    ----------
    model_uri
        What `log_model` returned.
    name
        lesion or perfusion.
    tags
        Added to the version, new or old.
    """
    from mlflow.exceptions import MlflowException

    store = client()
    model_id = model_uri.removeprefix("models:/")
    model = store.get_logged_model(model_id)
    digest = model.tags[DIGEST]
    with store_lock():
        known = find_registered(name, digest)
        if known is None:
            try:
                store.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            with _default_store():
                made = store.create_model_version(
                    name, f"models:/{model_id}", run_id=model.source_run_id, tags={DIGEST: digest}, model_id=model_id
                )
            listed = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
            listed.append({"name": name, "version": made.version})
            store.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(listed)})  # the UI's link
            known = _version(made)
    _show_scores(model)
    if tags:
        tag_version(name, known.version, tags)
    return _version(store.get_model_version(name, known.version))


def _show_scores(model: Any) -> None:
    """Give a logged model the headline scores of its run, so that the Models page of the UI compares them."""
    from mlflow.entities import Metric

    store = client()
    headlines = [
        key
        for key in store.get_run(model.source_run_id).data.metrics
        if key.startswith(("cv/", "holdout/")) and key.count("/") == 1
    ]
    scores = []
    for key in headlines:
        last = max(store.get_metric_history(model.source_run_id, key), key=lambda m: (m.step, m.timestamp))
        scores.append(Metric(key, last.value, last.timestamp, last.step, model_id=model.model_id))
    if scores:
        store.log_batch(model.source_run_id, metrics=scores)


def find_registered(name: str, digest: str) -> Version | None:
    """The version of `name` whose files have this `model_digest`, the newest if there are several."""
    versions = client().search_model_versions(f"name = '{name}' and tag.`{DIGEST}` = '{digest}'")
    return _version(max(versions, key=lambda v: int(v.version))) if versions else None


def tag_version(name: str, version: str | int, tags: Mapping[str, Any]) -> None:
    """Set tags of a registered version, such as the decision on it and why."""
    for key, value in tags.items():
        client().set_model_version_tag(name, str(version), key, str(value))


def set_alias(name: str, alias: str, version: str | int) -> None:
    """Let `alias` of model `name` point to `version`."""
    client().set_registered_model_alias(name, alias, str(version))


def get_alias(name: str, alias: str) -> Version | None:
    """The version that `alias` of model `name` points to, if any."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(client().get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def champion(name: str) -> Version | None:
    """The version of model `name` in use, if any."""
    return get_alias(name, CHAMPION)


def promote(name: str, version: str | int, *, compared: bool = False, against: str | None = None) -> Version:
    """Make `version` the champion and the champion `previous`; promoting the champion changes nothing.

    Parameters
    ----------
    compared
        Whether it was held against the champion, which then has to be the one still.
    against
        Version of that champion, None where there was none.

    Raises
    ------
    InputError
        If the champion is another one than the version was compared with.
    """
    with store_lock():
        current = champion(name)
        if compared and (None if current is None else current.version) != against:
            raise InputError(
                f"The champion of {name} changed while version {version} was compared with it: "
                f"run `reperfuse promote {name}` again."
            )
        if current is not None and current.version != str(version):
            set_alias(name, PREVIOUS, current.version)  # first: a kill in between loses neither
        if current is None or current.version != str(version):
            set_alias(name, CHAMPION, version)
    promoted = champion(name)
    assert promoted is not None
    return promoted


def rollback(name: str, *, mark: str | None = None) -> Version:
    """Swap champion and `previous`; a second rollback undoes the first.

    Parameters
    ----------
    mark
        Tag that says "true" of the version that goes, and "false" of the one that comes back.

    Raises
    ------
    InputError
        If there is no previous champion.
    """
    with store_lock():
        current, previous = champion(name), get_alias(name, PREVIOUS)
        if previous is None or current is None or previous.version == current.version:
            raise InputError(f"Model {name} in {store_name()} has no previous champion to go back to.")
        if mark is not None:  # first: a kill in between must not leave a way back
            tag_version(name, current.version, {mark: "true"})
            tag_version(name, previous.version, {mark: "false"})
        set_alias(name, CHAMPION, previous.version)
        set_alias(name, PREVIOUS, current.version)
    return previous


def _version(info: Any) -> Version:
    from mlflow.exceptions import MlflowException

    try:
        data = client().get_run(info.run_id).data
        metrics, params = dict(data.metrics), dict(data.params)
    except MlflowException:  # its run was thrown away; the version stands on its own
        metrics, params = {}, {}
    return Version(
        name=info.name,
        version=str(info.version),
        run_id=info.run_id or "",
        uri=f"models:/{info.name}/{info.version}",
        digest=info.tags.get(DIGEST, ""),
        aliases=tuple(info.aliases),
        tags=dict(info.tags),
        metrics=metrics,
        params=params,
    )


@contextmanager
def _default_store() -> Iterator[None]:
    """MLflow's registry resolves `models:/m-…` against the global store: let that be this one, for a moment."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri()
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before
