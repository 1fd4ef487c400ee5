"""The whole way, small: what is stale, what is kept, what comes back, and where DVC, MLflow and state meet."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Workspace

from reperfuse.evaluation.operating_point import SMALLEST_ML, THRESHOLDS
from reperfuse.files import read_json
from reperfuse.stages.lesion_input import operating_point

ARMS = ("lesion", "perfusion")


def read(workspace: Workspace, path: str) -> dict:
    return json.loads((workspace.root / path).read_text(encoding="utf-8"))


def runs(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, arm: str, query: str = "") -> list:
    from reperfuse import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.root}/mlruns/mlflow.db")
    store = tracking.client()
    experiment = store.get_experiment_by_name(arm)
    assert experiment is not None
    return list(store.search_runs([experiment.experiment_id], query, max_results=1000))


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


# ---- what a finished pipeline looks like ----------------------------------------------------------------------------
def test_a_finished_pipeline_is_not_stale(finished: Workspace) -> None:
    assert "up to date" in finished.run("dvc", "repro").stdout


@pytest.mark.parametrize("arm", ARMS)
def test_tuning_and_training_never_see_the_hold_out(finished: Workspace, arm: str) -> None:
    folds = pd.read_csv(finished.root / "results" / arm / "folds.csv")
    held_out = set(folds.loc[folds["side"] == "holdout", "participant_id"])
    validated = set(pd.read_csv(finished.root / "results" / arm / "tune" / "validation.csv")["participant_id"])
    scored = set(pd.read_csv(finished.root / "results" / arm / "evaluate" / "scores.csv")["participant_id"])
    assert held_out and not validated & held_out
    assert scored == held_out
    assert validated == set(folds.loc[folds["side"] == "train", "participant_id"])


def test_processed_patients_say_which_channels_and_targets_they_hold(finished: Workspace) -> None:
    asked = yaml.safe_load((finished.root / "params.yaml").read_text(encoding="utf-8"))["perfusion"]["preprocess"]
    folders = [path.parent for path in (finished.root / "data/processed/perfusion").glob("*/subject.json")]
    assert len(folders) == 4
    for folder in folders:
        described = json.loads((folder / "subject.json").read_text(encoding="utf-8"))
        runs_of_channels = [described["inputs"][name] for name in asked["inputs"]]
        image, target = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("image", "target"))
        assert [start for start, _ in runs_of_channels] == [0, *(stop for _, stop in runs_of_channels[:-1])]
        assert image.dtype == np.float16 and len(image) == runs_of_channels[-1][1]
        assert described["targets"] == asked["targets"] and len(target) == len(asked["targets"])


def test_the_perfusion_model_stands_beside_deconvolution_in_the_search_and_on_the_hold_out(finished: Workspace) -> None:
    results = finished.root / "results" / "perfusion"
    trials, baselines = (pd.read_csv(results / "tune" / f"{name}.csv") for name in ("trials", "baselines"))
    assert set(baselines["method"]) == {"baseline_ssvd", "baseline_osvd"}
    assert set(baselines.columns) - {"method", "rmse_s"} <= set(trials.columns)
    assert baselines.notna().all(axis=None)
    scores = pd.read_csv(results / "evaluate" / "scores.csv")
    expected = {"model", "baseline_mean", "baseline_ssvd", "baseline_osvd", "baseline_learned"}
    assert all(set(of_one["method"]) == expected for _, of_one in scores.groupby("participant_id"))
    assert scores["mae_s"].notna().all()


def test_the_lesion_models_operating_point_was_chosen_by_the_search(finished: Workspace) -> None:
    chosen = read(finished, "results/lesion/tune/best.json")["scored_with"]
    assert read(finished, "models/lesion/model.json")["extra"]["scored_with"] == chosen
    point = operating_point(chosen)
    assert not chosen["mirror"] and point.probability_threshold in THRESHOLDS and point.smallest_ml in SMALLEST_ML


@pytest.mark.parametrize("arm", ARMS)
def test_runs_nest_as_study_trial_fold(finished: Workspace, monkeypatch: pytest.MonkeyPatch, arm: str) -> None:
    found = runs(finished, monkeypatch, arm)
    by_id = {run.info.run_id: run for run in found}
    kinds = {run.info.run_id: run.data.tags["kind"] for run in found}
    for run in found:
        parent = run.data.tags.get("mlflow.parentRunId")
        assert {"fold": "trial", "trial": "study"}.get(kinds[run.info.run_id]) == (kinds[parent] if parent else None)
        assert run.info.status == "FINISHED"
    assert sorted(set(kinds.values())) == ["fold", "model", "study", "trial"]
    study = next(run for run in by_id.values() if kinds[run.info.run_id] == "study")
    assert study.data.tags["lineage.data_revision"] != "none"


@pytest.mark.parametrize(("arm", "metric", "steps"), [("lesion", "dice", [4, 8]), ("perfusion", "mae_s", [1500, 3000])])
def test_the_resolution_study_is_a_curve_in_mlflow(
    finished: Workspace, monkeypatch: pytest.MonkeyPatch, arm: str, metric: str, steps: list[int]
) -> None:
    from reperfuse import tracking

    model = runs(finished, monkeypatch, arm, "tags.kind = 'model'")[0]
    history = tracking.client().get_metric_history(model.info.run_id, f"resolution/{metric}")
    assert sorted(point.step for point in history) == steps
    assert f"holdout/{metric}" in model.data.metrics


@pytest.mark.parametrize("arm", ARMS)
def test_the_champion_from_the_registry_predicts_what_the_trained_model_did(
    finished: Workspace, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    from reperfuse import tracking
    from reperfuse.networks import load_network
    from reperfuse.training.predict import predict_volume

    if not finished_has_champion(finished, monkeypatch, arm):
        pytest.skip("the small model did not beat its baselines, so the gate kept it from being champion")
    trained, described = load_network(finished.root / "models" / arm)
    channels = described["kwargs"]["in_channels"]
    image = np.random.default_rng(0).normal(size=(channels, 16, 16, 8)).astype(np.float32)
    registered, _ = load_network(tracking.fetch_model(f"models:/{arm}@champion"))
    np.testing.assert_array_equal(predict_volume(trained, image), predict_volume(registered, image))


def finished_has_champion(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, arm: str) -> bool:
    from reperfuse import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.root}/mlruns/mlflow.db")
    return tracking.champion(arm) is not None


def test_the_small_perfusion_model_beats_its_baselines_and_is_champion(
    finished: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished_has_champion(finished, monkeypatch, "perfusion")


@pytest.mark.services
@pytest.mark.parametrize("arm", ARMS)
def test_a_study_over_processes_is_the_same_bit_for_bit(spare: Workspace, arm: str) -> None:
    model = ["--model", f"models/{arm}"] if arm == "lesion" else []  # the pipeline's own, and one that is named
    for out, options in (("threads", []), ("processes", ["--runner", "dask", "--workers", "2"])):
        spare.run("reperfuse", "resolution", arm, *model, "--out", out, *options)
    tables = sorted(path.name for path in (spare.root / "threads").glob("*.csv"))
    assert "scores.csv" in tables
    for name in tables:
        assert (spare.root / "processes" / name).read_bytes() == (spare.root / "threads" / name).read_bytes(), name


@pytest.mark.parametrize("arm", ARMS)
def test_the_report_stands_alone_and_says_what_it_is_not_for(finished: Workspace, arm: str) -> None:
    page = (finished.root / "reports" / f"{arm}.html").read_text(encoding="utf-8")
    assert "Research use only" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert page.count("data:image/") >= 6


@pytest.mark.parametrize("arm", ARMS)
def test_nobody_is_named_in_what_is_versioned_or_reported(finished: Workspace, arm: str) -> None:
    import pydicom

    files = [path for path in (finished.root / "inbox" / "perfusion").rglob("*") if path.is_file()]
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    persons = [str(header.PatientName), header.PatientID, header.StudyInstanceUID, header.InstitutionName]
    for path in [*(finished.root / "results" / arm).rglob("*"), *(finished.root / "data/bids" / arm).rglob("*.json")]:
        if path.suffix in (".json", ".csv"):
            text = path.read_text(encoding="utf-8")
            assert not [person for person in persons if person in text], path


# ---- only what depends on a change runs again -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("section", "name", "value", "stages"),
    [
        ("report", "n_overlays", 1, ["report"]),
        ("resolution", "profile", "box", ["resolution"]),
        ("evaluate", "bootstrap_samples", 200, ["evaluate", "resolution", "report"]),
        ("train", "epochs", 3, ["tune", "train"]),
        ("promote", "minimum_subjects", 2, []),
    ],
)
def test_one_parameter_makes_only_its_dependants_stale(
    spare: Workspace, section: str, name: str, value: object, stages: list[str]
) -> None:
    # DVC's dry run names what must run; stages behind it follow only where its outputs turn out different.
    spare.edit_params(lambda content: content["lesion"][section].update({name: value}))
    assert spare.stale("lesion-report") == [f"lesion-{stage}" for stage in stages]
    assert spare.stale("perfusion-report") == []


@pytest.mark.parametrize(
    ("room", "stages"),
    [
        ("evaluation/figures.py", ["report"]),
        ("evaluation/baselines.py", ["evaluate", "resolution"]),
        ("training/tune.py", ["tune"]),
        ("perfusion/maps.py", []),
        ("tracking/runs.py", []),
    ],
)
def test_one_rooms_code_makes_only_its_dependants_stale(spare: Workspace, room: str, stages: list[str]) -> None:
    append(spare.root / "src" / "reperfuse" / room, "\n# changed\n")
    assert set(spare.stale("lesion-report")) == {f"lesion-{stage}" for stage in stages}


# ---- where DVC, MLflow and resumable state meet ---------------------------------------------------------------------
def test_outputs_restored_after_a_lost_store_still_end_in_a_champion(
    spare: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(spare, "models/perfusion/run.json")
    shutil.rmtree(spare.root / "mlruns")
    for folder in ("models", "results", "reports"):
        shutil.rmtree(spare.root / folder)
    assert "Running stage" not in spare.run("dvc", "repro", "perfusion-report").stdout
    assert "is the champion" in spare.run("reperfuse", "promote", "perfusion").stdout
    restored = runs(spare, monkeypatch, "perfusion")
    assert [run.data.tags["reperfuse.restored_from"] for run in restored] == [before["run_id"]]
    assert restored[0].data.metrics["holdout/mae_s"] == pytest.approx(
        read(spare, "results/perfusion/evaluate/metrics.json")["mae_s"]
    )
    assert "already" in spare.run("reperfuse", "promote", "perfusion").stdout
    assert len(runs(spare, monkeypatch, "perfusion")) == 1
    # The champion before it was the lost store's alone.
    said = spare.run("reperfuse", "rollback", "perfusion", check=False)
    assert said.returncode == 2 and "has no previous champion to go back to." in said.stderr


def test_an_experiment_in_a_temporary_copy_logs_to_the_same_store(
    spare: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reperfuse import tracking

    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", str(spare.root)]
    subprocess.run([*git, "commit", "--quiet", "--all", "--message", "finished"], check=True)
    run_id = read(spare, "models/perfusion/run.json")["run_id"]
    params = (spare.root / "params.yaml").read_text(encoding="utf-8")

    def evaluations() -> int:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{spare.root}/mlruns/mlflow.db")
        return len(tracking.client().get_metric_history(run_id, "holdout/mae_s"))

    before = evaluations()
    identity = {"GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "t@example.org"}
    identity |= {"GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "t@example.org"}
    change = "perfusion.evaluate.bootstrap_samples=150"
    spare.run("dvc", "exp", "run", "--temp", "-S", change, "perfusion-evaluate", **identity)
    assert evaluations() == before + 1
    assert (spare.root / "params.yaml").read_text(encoding="utf-8") == params


def test_a_killed_training_continues_in_its_own_run(spare: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = 40
    spare.edit_params(lambda content: content["perfusion"]["train"].update({"epochs": epochs, "steps_per_epoch": 4}))
    command = [sys.executable, "-m", "reperfuse", "train", "perfusion"]
    process = subprocess.Popen(command, cwd=spare.root, env=spare.environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 4/"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = {run.info.run_id for run in runs(spare, monkeypatch, "perfusion", "tags.kind = 'model'")}
    said = spare.run("reperfuse", "train", "perfusion").stderr
    assert "epoch 4/" not in said and f"epoch {epochs}/{epochs}" in said
    assert {run.info.run_id for run in runs(spare, monkeypatch, "perfusion", "tags.kind = 'model'")} == started
    assert read(spare, "models/perfusion/run.json")["run_id"] in started
    history = pd.read_csv(spare.root / "models" / "perfusion" / "history.csv")
    assert history["epoch"].tolist() == list(range(1, epochs + 1))


def test_a_worker_joins_a_search_and_the_count_of_trials_holds(spare: Workspace) -> None:
    spare.edit_params(lambda content: content["perfusion"]["tune"].update({"n_trials": 5, "workers": 2}))
    spare.run("reperfuse", "tune", "perfusion")
    trials = pd.read_csv(spare.root / "results" / "perfusion" / "tune" / "trials.csv")
    assert len(trials) == 5 and set(trials["state"]) <= {"complete", "pruned"}


def test_a_study_of_a_registered_model_goes_beside_the_pipelines_own(spare: Workspace) -> None:
    before = (spare.root / "results/perfusion/resolution/scores.csv").read_bytes()
    spare.run("reperfuse", "resolution", "perfusion", "--model", "models:/perfusion@champion", "--out", "study")
    assert (spare.root / "study" / "scores.csv").read_bytes() == before
    spare.run("reperfuse", "resolution", "perfusion", "--model", "models/perfusion")
    beside = spare.root / "results/perfusion/resolution-of-models-perfusion"
    assert (beside / "scores.csv").read_bytes() == before
    assert (spare.root / "results/perfusion/resolution/scores.csv").read_bytes() == before
    # It has no report: its pictures lie beside its tables, and its run is its own.
    assert {path.name for path in beside.glob("*.png")} == {"resolution_snr50.png", "resolution_snr20.png"}
    assert read_json(beside / "run.json")["run_id"] != read_json(spare.root / "models/perfusion/run.json")["run_id"]


def test_a_rival_is_judged_beside_the_model_and_decides_nothing(spare: Workspace) -> None:
    folder = spare.root / "models" / "perfusion"
    (folder / "rivals" / "twin").mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        shutil.copy(folder / name, folder / "rivals" / "twin" / name)
    spare.run("reperfuse", "evaluate", "perfusion")
    scores = pd.read_csv(spare.root / "results/perfusion/evaluate/scores.csv").set_index(["method", "participant_id"])
    pd.testing.assert_frame_equal(scores.loc["rival_twin"], scores.loc["model"])
    assert "already" in spare.run("reperfuse", "promote", "perfusion").stdout
