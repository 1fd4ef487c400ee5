"""The store, runs, lineage and registry, on a store of its own for every test."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import read_json, write_json
from reperfuse.tracking import runs, store

SERVED = Path(tracking.__file__).parent.parent / "stages" / "served_model.py"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_database: Path) -> Iterator[Path]:
    """An empty repository with a store, as the current folder."""
    repository = tmp_path / "my checkout"
    (repository / ".git").mkdir(parents=True)
    (repository / "mlruns").mkdir()
    shutil.copy(fresh_database, repository / "mlruns" / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.chdir(repository)
    yield repository


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "models" / "lesion", seed=0)


def saved_model(folder: Path, seed: int) -> Path:
    torch = pytest.importorskip("torch")
    from reperfuse.networks import build_network, save_network

    torch.manual_seed(seed)
    save_network(folder, "unet3d", {"widths": [2, 4]}, build_network("unet3d", widths=(2, 4)))
    return folder


def lose_the_store(root: Path, fresh_database: Path) -> None:
    shutil.rmtree(root / "mlruns")
    (root / "mlruns").mkdir()
    shutil.copy(fresh_database, root / "mlruns" / "mlflow.db")


def logged(run: tracking.Run, model: Path) -> str:
    example = np.zeros((2, 1, 8, 8, 8), dtype=np.float32)
    return tracking.log_model(
        run, model, input_example=example, pip_requirements=["torch==2.13.0"], code_path=SERVED, name="unet3d"
    )


def data_of(run: tracking.Run):  # type: ignore[no-untyped-def]
    return tracking.client().get_run(run.id).data


# ---- the store ------------------------------------------------------------------------------------------------------
def test_the_root_is_the_nearest_parent_with_dvc_yaml_or_git(tmp_path: Path) -> None:
    (tmp_path / "outer" / ".git").mkdir(parents=True)
    inner = tmp_path / "outer" / "inner"
    (inner / "deep").mkdir(parents=True)
    assert tracking.repository_root(inner / "deep") == tmp_path / "outer"
    (inner / "dvc.yaml").touch()
    assert tracking.repository_root(inner / "deep") == inner


def test_a_copy_made_by_dvc_exp_run_has_the_root_of_its_original(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "dvc.yaml").touch()
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmpab12" / "src"
    copy.mkdir(parents=True)
    (copy.parent / "dvc.yaml").touch()
    (copy.parent / ".git").mkdir()
    assert tracking.repository_root(copy) == tmp_path
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(copy)
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


def test_outside_a_repository_the_root_is_where_one_stands(tmp_path: Path) -> None:
    assert tracking.repository_root(tmp_path) == tmp_path


def test_the_uri_is_absolute_from_whatever_folder_the_command_runs(root: Path, monkeypatch) -> None:
    expected = f"sqlite:///{root}/mlruns/mlflow.db"
    (root / "src").mkdir()
    for folder in (root, root / "src"):
        monkeypatch.chdir(folder)
        assert tracking.tracking_uri() == expected
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db")
        assert tracking.tracking_uri() == expected
        monkeypatch.delenv("MLFLOW_TRACKING_URI")


def test_a_server_is_taken_as_it_is_and_a_folder_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking.tracking_uri() == "http://127.0.0.1:5000" and store.artifact_root() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI=\./mlruns is a folder"):
        tracking.tracking_uri()


def test_a_file_that_is_no_database_is_named(root: Path) -> None:
    (root / "mlruns" / "mlflow.db").write_text("not a database, but long enough to look like something" * 30)
    with pytest.raises(InputError, match=r"mlflow\.db is not an MLflow database"):
        tracking.client()


def test_importing_tracking_imports_no_heavy_library() -> None:
    heavy = "('mlflow', 'torch', 'pandas', 'numpy', 'matplotlib', 'sqlalchemy')"
    code = f"import sys, reperfuse.tracking; sys.exit(','.join(m for m in {heavy} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FIRST_USE = """
from reperfuse import tracking
with tracking.run("lesion", "study first") as study, tracking.run("lesion", "trial 000", parent_id=study.id) as trial:
    for step in range(5):
        trial.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
"""


def test_two_processes_make_the_store_at_once_and_neither_is_heard(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_USE],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and said == ["", ""], said
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as database:
        assert database.execute("SELECT status, count(*) FROM runs GROUP BY status").fetchall() == [("FINISHED", 4)]
        assert database.execute("SELECT count(*) FROM experiments WHERE name = 'lesion'").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM metrics").fetchone() == (10,)
    assert not list((tmp_path / "mlruns").glob("*.partial"))


def test_a_store_that_another_process_is_making_is_awaited_not_replaced(root: Path, fresh_database: Path) -> None:
    database = root / "mlruns" / "mlflow.db"
    database.unlink()
    with store._file_lock(database.with_name(".mlflow.db.lock")):
        late = threading.Thread(target=tracking.client)
        late.start()
        late.join(timeout=0.5)
        shutil.copy(fresh_database, database)
        theirs = database.stat().st_ino
    late.join()
    assert database.stat().st_ino == theirs


@pytest.mark.parametrize(
    ("uri", "words", "sentence"),
    [
        ("sqlite:////s.db", "database is locked", r"s\.db has been held by another process"),
        (
            "postgresql://ada:secret@host/db",
            'connection to server at "host" failed: Connection refused',
            r"^postgresql://ada:\*\*\*@host/db has been away",
        ),
    ],
)
def test_a_call_is_made_again_while_the_database_cannot_be_had(monkeypatch, uri, words, sentence) -> None:
    class Busy:
        calls = 0

        def log(self) -> str:
            self.calls += 1
            if self.calls < 3:
                raise RuntimeError(words)
            return "done"

    busy = Busy()
    monkeypatch.setattr(store.time, "sleep", lambda _: None)
    assert store._Patient(busy, uri).log() == "done" and busy.calls == 3  # type: ignore[arg-type]
    busy.calls = -100
    with pytest.raises(InputError, match=sentence):
        store._Patient(busy, uri).log()  # type: ignore[arg-type]


def test_a_checkout_that_moved_keeps_its_runs_and_their_files(root: Path, model: Path, tmp_path, monkeypatch) -> None:
    with tracking.run("lesion", "model unet3d") as run:
        run.log_text("hello", "note.txt")
        tracking.promote("lesion", tracking.register(logged(run, model), "lesion").version)
    elsewhere = tmp_path / "elsewhere"
    root.rename(elsewhere)
    monkeypatch.chdir(elsewhere)
    with tracking.run("lesion", "model unet3d") as later:
        later.log_text("world", "note.txt")
    for one, text in ((run, "hello"), (later, "world")):
        assert (Path(tracking.client().get_run(one.id).info.artifact_uri) / "note.txt").read_text() == text
    assert elsewhere in tracking.fetch_model("models:/lesion@champion").parents
    assert not root.exists()


# ---- runs -----------------------------------------------------------------------------------------------------------
def test_runs_nest_by_parent_and_say_what_they_are(root: Path) -> None:
    with (
        tracking.run("lesion", tracking.run_name("study", "unet3d"), tags={"sampler": "tpe"}) as study,
        tracking.run("lesion", tracking.run_name("trial", 7), parent_id=study.id) as trial,
        tracking.run("lesion", tracking.run_name("fold", 1), parent_id=trial.id) as fold,
    ):
        fold.log_metrics({"val/dice": 0.5}, step=2)
    info = tracking.client().get_run(fold.id)
    assert info.data.tags["mlflow.parentRunId"] == trial.id and info.data.tags["kind"] == "fold"
    assert data_of(trial).tags["mlflow.parentRunId"] == study.id
    assert info.info.run_name == "fold 1" and info.info.status == "FINISHED"
    assert data_of(study).tags["sampler"] == "tpe"


class Pruned(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "status"), [(KeyboardInterrupt, "KILLED"), (Pruned, "KILLED"), (ZeroDivisionError, "FAILED")]
)
def test_the_status_says_how_a_run_ended(root: Path, raised: type[BaseException], status: str) -> None:
    with pytest.raises(raised), tracking.run("lesion", "trial 000", stopped_by=(Pruned,)) as run:
        raise raised
    assert tracking.client().get_run(run.id).info.status == status


def test_ctrl_c_in_a_real_process_leaves_its_run_killed(root: Path) -> None:
    code = "import time\nfrom reperfuse import tracking\nwith tracking.run('lesion', 'fold 0'):\n"
    code += "    print('open', flush=True)\n    time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline() == b"open\n"
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    (run,) = tracking.client().search_runs([store.experiment_id("lesion")])
    assert run.info.status == "KILLED"


def test_parameters_are_flat_readable_and_cut_to_what_a_table_can_show(root: Path) -> None:
    with tracking.run("lesion", "model x", params={"train": {"epochs": 3, "amp": True}, "list_mm": [2, 5]}) as run:
        run.log_params({"long": "x" * 10_000, "none": None, "lr": np.float64(1e-3), "name": "tpe", "empty": {}})
    params = data_of(run).params
    assert params["train.epochs"] == "3" and params["train.amp"] == "true" and params["list_mm"] == "2, 5"
    assert params["none"] == "null" and params["lr"] == "0.001" and params["name"] == "tpe" and params["empty"] == "{}"
    assert len(params["long"]) == runs.PARAM_LENGTH


def test_a_parameter_keeps_its_first_value_and_a_change_is_a_tag(root: Path) -> None:
    with tracking.run("lesion", "model x", params={"threshold": 0.5}) as run:
        run.log_params({"threshold": 0.4, "new": 1})
    assert data_of(run).params == {"threshold": "0.5", "new": "1"}
    assert data_of(run).tags["changed.threshold"] == "0.4"


def test_no_call_carries_more_than_an_mlflow_server_takes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tracking.client()._store  # type: ignore[attr-defined]
    sent: list[tuple[str, int]] = []
    log_batch = inner.log_batch

    def spy(run_id: str, **entries: list) -> None:  # type: ignore[type-arg]
        sent.extend((kind, len(batch)) for kind, batch in entries.items())
        log_batch(run_id, **entries)

    monkeypatch.setattr(inner, "log_batch", spy)
    with tracking.run("lesion", "model x", params={f"p{i}": i for i in range(250)}) as run:
        run.log_metrics({f"m{i}": i for i in range(1100)})
    assert sent == [("params", 100), ("params", 100), ("params", 50), ("metrics", 1000), ("metrics", 100)]
    assert len(data_of(run).params) == 250 and len(data_of(run).metrics) == 1100


def test_undefined_metrics_are_left_out_and_steps_draw_a_curve(root: Path) -> None:
    with tracking.run("lesion", "model x") as run:
        for thickness, dice in ((2, 0.8), (5, 0.6), (10, 0.4)):
            run.log_metrics({"resolution/dice": dice, "hd95_mm": None, "x": np.nan, "y": np.inf}, step=thickness)
        with pytest.raises(ValueError, match="whole numbers"):
            run.log_metrics({"resolution/dice": 0.5}, step=2.5)  # type: ignore[arg-type]
    history = tracking.client().get_metric_history(run.id, "resolution/dice")
    assert [(m.step, m.value) for m in history] == [(2, 0.8), (5, 0.6), (10, 0.4)]
    assert set(data_of(run).metrics) == {"resolution/dice"}


def test_figures_tables_and_files_land_under_their_paths(root: Path, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    (tmp_path / "report.html").write_text("<p>")
    with tracking.run("lesion", "model x") as run:
        run.log_figure(Figure(), "evaluate/best.png")
        for value in (1, 2):
            run.log_table(pd.DataFrame({"dice": [value]}), "evaluate/scores.csv")
        run.log_artifact(tmp_path / "report.html", "report")
    files = Path(tracking.client().get_run(run.id).info.artifact_uri)
    assert {str(p.relative_to(files)) for p in files.rglob("*.*")} == {
        "evaluate/best.png",
        "evaluate/scores.csv",
        "report/report.html",
    }
    assert tracking.read_table(run.id, "evaluate/scores.csv")["dice"].tolist() == [2]
    with pytest.raises(InputError, match=r"has no lost\.csv"):
        tracking.read_table(run.id, "lost.csv")


def test_a_table_that_a_run_never_had_is_told_from_a_store_that_cannot_be_asked(root: Path) -> None:
    with tracking.run("lesion", "model x") as run:
        run.log_table(pd.DataFrame({"dice": [1]}), "tables/scores.csv")
    found = tracking.find_table(run.id, "tables/scores.csv")
    assert found is not None and found["dice"].tolist() == [1]
    assert tracking.find_table(run.id, "tables/others.csv") is None
    assert tracking.find_table(run.id, "elsewhere/scores.csv") is None
    with pytest.raises(InputError, match="cannot be listed"):
        tracking.find_table("0" * 32, "tables/scores.csv")


def test_a_killed_process_leaves_a_record_and_the_next_continues_its_run(root: Path) -> None:
    state = root / ".reperfuse" / "run.json"
    with pytest.raises(KeyboardInterrupt), tracking.run("lesion", "study x", state=state) as first:
        raise KeyboardInterrupt
    with tracking.run("lesion", "study x", state=state) as second:
        assert tracking.client().get_run(first.id).info.status == "RUNNING"
    assert second.id == first.id and tracking.client().get_run(first.id).info.status == "FINISHED"


# ---- resume ---------------------------------------------------------------------------------------------------------
def recorded(root: Path) -> tuple[tracking.Run, Path]:
    known = {"git_commit": "abc", "data_revision": "d" * 32 + ".dir", "seed": "1"}
    with tracking.run("lesion", "model unet3d", tags={"sampler": "tpe"}, params={"a": {"b": 1}}, lineage=known) as run:
        run.log_metrics({"cv/dice": 0.5})
        content = tracking.run_record(run, {"a": {"b": 1}}, {"cv/dice": 0.5, "cv/hd95_mm": None}, known)
    write_json(root / "run.json", content)
    return run, root / "run.json"


def test_resuming_opens_the_same_run(root: Path) -> None:
    run, path = recorded(root)
    with tracking.resume(path) as again:
        again.log_metrics({"holdout/dice": 0.4})
    assert again.id == run.id and data_of(run).metrics == {"cv/dice": 0.5, "holdout/dice": 0.4}


def test_a_lost_store_gets_the_run_back_once(root: Path, fresh_database: Path) -> None:
    before, path = recorded(root)
    there = data_of(before)
    lose_the_store(root, fresh_database)
    with tracking.resume(path) as first:
        pass
    with tracking.resume(read_json(path)) as second:
        pass
    assert first.id == second.id != before.id
    again = data_of(first)
    assert again.params == there.params and again.metrics == there.metrics
    extra = {"reperfuse.restored": "true", "reperfuse.restored_from": before.id}
    assert again.tags == there.tags | extra
    inputs = tracking.client().get_run(first.id).inputs.dataset_inputs
    assert [(i.dataset.name, i.dataset.digest) for i in inputs] == [("bids/lesion", "d" * 32 + ".dir")]


def test_a_store_lost_twice_still_gives_one_run_under_the_first_id(root: Path, fresh_database: Path) -> None:
    before, path = recorded(root)
    for _ in range(2):
        lose_the_store(root, fresh_database)
        with tracking.resume(path) as run:
            record = tracking.run_record(run, {}, {}, {})
        assert record["run_id"] == before.id
        write_json(path, record)
    assert len(tracking.client().search_runs([store.experiment_id("lesion")])) == 1


def test_a_run_thrown_away_in_the_ui_comes_back_when_its_files_are_used(root: Path) -> None:
    run, path = recorded(root)
    tracking.client().delete_run(run.id)
    with tracking.resume(path) as again:
        assert again.id == run.id
    assert tracking.client().get_run(run.id).info.lifecycle_stage == "active"


def test_a_record_without_a_run_is_refused_by_name(root: Path) -> None:
    write_json(root / "run.json", {"metrics": {}})
    with pytest.raises(InputError, match=r"run\.json names no run"), tracking.resume(root / "run.json"):
        pass


# ---- lineage --------------------------------------------------------------------------------------------------------
def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_lineage_knows_commit_dirt_data_and_environment(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1\n")
    (tmp_path / "data" / "bids").mkdir(parents=True)
    (tmp_path / "data/bids/lesion.dvc").write_text("outs:\n- md5: 0123.dir\n  path: lesion\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-m", "x")
    (tmp_path / "dvc.lock").write_text("changes while a pipeline runs")
    clean = tracking.lineage(tmp_path, arm="lesion", seed=7)
    assert len(clean["git_commit"]) == 40 and clean["git_dirty"] == "false" and clean["data_revision"] == "0123.dir"
    assert clean["seed"] == "7" and clean["mlflow"].startswith("3.") and clean["requirements_lock"] == "none"
    assert tracking.code_changes(tmp_path) == ""
    (tmp_path / "src" / "a.py").write_text("2\n")
    assert tracking.lineage(tmp_path, arm="lesion", seed=7)["git_dirty"] == "true"
    assert "+2" in tracking.code_changes(tmp_path)
    assert tracking.data_revision(tmp_path, "perfusion") == "none"


def test_lineage_outside_git_says_none(tmp_path: Path) -> None:
    assert tracking.lineage(tmp_path, arm="lesion", seed=0)["git_commit"] == "none"


def test_no_person_and_no_host_reaches_the_store(root: Path, model: Path, monkeypatch) -> None:
    for name in ("USER", "LOGNAME", "USERNAME", "LNAME"):
        monkeypatch.setenv(name, "jane.doe")
    monkeypatch.setattr("socket.gethostname", lambda: "ward-7")
    monkeypatch.setattr("platform.node", lambda: "ward-7")
    with tracking.run("lesion", "model x", lineage=tracking.lineage(root, arm="lesion", seed=0)) as run:
        uri = logged(run, model)
    tracking.register(uri, "lesion")
    assert data_of(run).tags["mlflow.user"] == "reperfuse"
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as database:
        dump = "\n".join(database.iterdump())
    files = [p for p in (root / "mlruns/artifacts").rglob("*") if p.name == "MLmodel" or p.suffix == ".yaml"]
    texts = [dump, *(p.read_text() for p in files)]
    assert len(texts) > 1 and not any(word in text for text in texts for word in ("jane.doe", "ward-7"))


# ---- models ---------------------------------------------------------------------------------------------------------
def test_a_model_comes_back_through_the_registry_with_the_same_prediction(root: Path, model: Path, monkeypatch) -> None:
    import mlflow.pyfunc
    import torch

    from reperfuse.networks import load_network

    image = np.random.default_rng(0).normal(size=(3, 1, 16, 8, 12)).astype(np.float32)
    with torch.inference_mode():
        before = load_network(model)[0](torch.from_numpy(image)).numpy()
        with tracking.run("lesion", "model unet3d") as run:
            tracking.promote("lesion", tracking.register(logged(run, model), "lesion").version)
        for uri in ("models:/lesion@champion", "models:/lesion/1", f"runs:/{run.id}/unet3d", str(model)):
            fetched = load_network(tracking.fetch_model(uri))[0](torch.from_numpy(image)).numpy()
            np.testing.assert_array_equal(fetched, before)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri())
    served = mlflow.pyfunc.load_model("models:/lesion@champion")
    np.testing.assert_allclose(served.predict(image), before, atol=1e-6)
    assert served.metadata.signature.inputs.inputs[0].shape == (-1, 1, -1, -1, -1)


def test_the_same_files_are_logged_and_registered_once(root: Path, model: Path, tmp_path: Path) -> None:
    with tracking.run("lesion", "model a") as run:
        run.log_metrics({"holdout/dice": 0.5})
        uri = logged(run, model)
        assert logged(run, model) == uri
    first = tracking.register(uri, "lesion", tags={"decision": "kept"})
    assert tracking.register(uri, "lesion").version == first.version == "1"
    with tracking.run("lesion", "model b") as other:
        assert tracking.register(logged(other, model), "lesion").run_id == run.id
        second = tracking.register(logged(other, saved_model(tmp_path / "b", seed=1)), "lesion")
    assert second.version == "2" and second.run_id == other.id
    assert first.metrics == {"holdout/dice": 0.5} and first.tags["decision"] == "kept"
    assert first.digest == tracking.model_digest(model) != second.digest
    assert [(m.key, m.value) for m in tracking.client().get_logged_model(uri[8:]).metrics] == [("holdout/dice", 0.5)]
    assert len(tracking.client().get_metric_history(run.id, "holdout/dice")) == 1


def test_another_description_is_another_model(model: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(model, tmp_path / "changed")
    write_json(changed / "model.json", read_json(changed / "model.json") | {"threshold": 0.3})
    assert tracking.model_digest(changed) != tracking.model_digest(model)


def test_promoting_moves_aliases_once_and_rollback_swaps_them(root: Path, tmp_path: Path) -> None:
    with tracking.run("lesion", "model a") as run:
        for seed in range(3):
            tracking.register(logged(run, saved_model(tmp_path / str(seed), seed)), "lesion")
    assert tracking.champion("lesion") is None and tracking.champion("perfusion") is None

    def aliases() -> list[str | None]:
        found = [tracking.get_alias("lesion", alias) for alias in ("champion", "previous")]
        return [version and version.version for version in found]

    tracking.promote("lesion", "1")
    assert aliases() == ["1", None]
    with pytest.raises(InputError, match="no previous champion"):
        tracking.rollback("lesion")
    for _ in range(2):
        assert tracking.promote("lesion", 2).version == "2"
        assert aliases() == ["2", "1"]
    tracking.promote("lesion", 3)
    assert aliases() == ["3", "2"]
    assert tracking.rollback("lesion").version == "2" and aliases() == ["2", "3"]
    assert tracking.rollback("lesion").version == "3" and aliases() == ["3", "2"]


def test_a_champion_returns_from_files_after_the_store_is_lost(root: Path, model: Path, fresh_database: Path) -> None:
    _, path = recorded(root)
    digests = []
    for _ in range(2):
        with tracking.resume(path) as run:
            version = tracking.promote("lesion", tracking.register(logged(run, model), "lesion").version)
        digests.append((version.version, version.digest))
        lose_the_store(root, fresh_database)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("uri", ["models:/lesion@champion", "models:/lesion/9", "models:/m-0", "runs:/0/model"])
def test_a_model_that_is_not_there_is_one_sentence(root: Path, uri: str) -> None:
    with pytest.raises(InputError, match=f"^{uri} is not in sqlite:.*reperfuse promote"):
        tracking.fetch_model(uri)


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        tracking.fetch_model(tmp_path)


def test_a_taken_port_is_named_before_the_ui_starts(root: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=f"Port {taken.getsockname()[1]} .* is taken"):
            tracking.serve_ui(taken.getsockname()[1])
