"""A store that another process holds: nothing is lost, and nothing is there twice."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reperfuse import tracking

HOLDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("COMMIT")
"""

DURATIONS = [2.0, pytest.param(25.0, marks=pytest.mark.slow)]
"""How long the store is held [s]: less, and more, than the 20 s that MLflow waits by itself."""


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_database: Path) -> Path:
    """The store of an empty repository, which is the current folder."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "mlruns").mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(fresh_database, tmp_path / "mlruns" / "mlflow.db"))


@contextmanager
def held(database: Path, seconds: float) -> Iterator[None]:
    """The block runs while another process holds the database, which it does for so long."""
    command = [sys.executable, "-c", HOLDER, str(database), str(seconds)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert holder.poll() is None
    yield
    assert holder.wait(timeout=60) == 0


@pytest.mark.parametrize("seconds", DURATIONS)
def test_metrics_logged_while_the_store_is_held_are_all_there_once(database: Path, seconds: float) -> None:
    with tracking.run("lesion", "model x") as run:
        store = tracking.client()
        run.log_metrics({"train/loss": 3.0}, step=0)
        with held(database, seconds):
            # Straight to MLflow, which gives up after 20 s; what opens the store waits for a minute by itself.
            store.log_metric(run.id, "train/loss", 2.0, step=1)
            run.log_metrics({"train/loss": 1.0, "train/learning_rate": 0.1}, step=2)
    assert [(point.step, point.value) for point in store.get_metric_history(run.id, "train/loss")] == [
        (0, 3.0),
        (1, 2.0),
        (2, 1.0),
    ]
    assert len(store.get_metric_history(run.id, "train/learning_rate")) == 1
    assert store.get_run(run.id).info.status == "FINISHED"


@pytest.mark.parametrize("seconds", DURATIONS)
def test_a_version_promoted_while_the_store_is_held_is_champion_and_the_one_before_it_is_kept(
    database: Path, seconds: float
) -> None:
    store = tracking.client()
    with tracking.run("lesion", "model x") as run:
        store.create_registered_model("lesion")
        for version in ("1", "2"):
            assert str(store.create_model_version("lesion", "file:///nowhere", run_id=run.id).version) == version
    tracking.promote("lesion", 1)
    with held(database, seconds):
        assert tracking.promote("lesion", 2).version == "2"
    champion, previous = (tracking.get_alias("lesion", alias) for alias in ("champion", "previous"))
    assert champion is not None and previous is not None and (champion.version, previous.version) == ("2", "1")
    assert tracking.promote("lesion", 2).version == "2" and len(store.search_model_versions("name = 'lesion'")) == 2
