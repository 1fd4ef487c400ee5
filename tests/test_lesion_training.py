"""The lesion arm's strong recipe and its search across networks, killed in the middle and carried on."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
from conftest import Workspace

pytestmark = pytest.mark.slow

RECIPE = {
    "network": "dynunet",
    "network_kwargs": {"widths": [4, 8, 16]},
    "patch_size": [16, 16, 16],
    "augment": "strong",
    "schedule": "polynomial",
    "ema": 0.9,
    "epochs": 12,
    "steps_per_epoch": 3,
}


def begun(workspace: Workspace, *command: str) -> subprocess.Popen:
    """A verb in a process group of its own, its output to be read line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "reperfuse", *command],
        cwd=workspace.root,
        env=workspace.environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_at(process: subprocess.Popen, line_begins: str) -> list[str]:
    """SIGKILL the process and all it started as soon as it says so; what it said until then."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(line_begins):
            break
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "".join(said)
    return said


def scores_of(workspace: Workspace) -> pd.DataFrame:
    """Hold-out scores of the model."""
    workspace.run("reperfuse", "evaluate", "lesion")
    scores = pd.read_csv(workspace.root / "results/lesion/evaluate/scores.csv").query("method == 'model'")
    return scores.set_index("participant_id").select_dtypes("number")


def test_the_strong_recipe_killed_in_the_middle_ends_with_the_metrics_of_an_unbroken_training(
    spare: Workspace,
) -> None:
    best = spare.root / "results/lesion/tune/best.json"
    content = json.loads(best.read_text(encoding="utf-8"))
    best.write_text(json.dumps(content | {"overrides": {}}), encoding="utf-8")
    spare.edit_params(lambda params: params["lesion"]["train"].update(RECIPE))
    kill_at(begun(spare, "train", "lesion"), "epoch 5/12")
    assert "epoch 5/12" not in (said := spare.run("reperfuse", "train", "lesion").stderr) and "epoch 12/12" in said
    resumed, history = scores_of(spare), pd.read_csv(spare.root / "models/lesion/history.csv")
    said = spare.run("reperfuse", "train", "lesion").stderr
    assert "epoch 1/12" in said  # the state of a finished training is gone: this one is unbroken
    unbroken = scores_of(spare)
    pd.testing.assert_frame_equal(resumed, unbroken, atol=1e-4, rtol=0)
    timeless = pd.read_csv(spare.root / "models/lesion/history.csv").drop(columns="seconds")
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), timeless, atol=1e-4, rtol=0)


def test_two_workers_search_across_networks_and_a_killed_search_is_carried_on(
    spare: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reperfuse import tracking

    networks = ["unet3d", "unet2plus1d", "dynunet"]
    space = {"network": {"choices": networks}, "learning_rate": {"choices": [0.002, 0.01]}}
    spare.edit_params(
        lambda params: params["lesion"]["tune"].update(
            {"sampler": "grid", "n_trials": 6, "workers": 2, "epochs": 1, "prune": True, "space": space}
        )
    )
    spare.edit_params(lambda params: params["lesion"]["train"].update({"network_kwargs": {"widths": [4, 8, 16]}}))
    before = set(studies(spare, monkeypatch, "study"))
    kill_at(begun(spare, "tune", "lesion"), "trial 3:")
    spare.run("reperfuse", "tune", "lesion")
    trials = pd.read_csv(spare.root / "results/lesion/tune/trials.csv")
    assert set(trials["state"]) <= {"complete", "pruned"} and 1 <= trials["continues"].notna().sum() <= 2
    assert sorted(zip(trials["network"], trials["learning_rate"], strict=True)) == sorted(
        (network, rate) for network in networks for rate in (0.002, 0.01)
    )
    (study,) = set(studies(spare, monkeypatch, "study")) - before
    of_trials = studies(spare, monkeypatch, "trial")
    under = [run for run, parent in of_trials.items() if parent == study]
    assert len(under) == 6  # a trial that was carried on went on in its own run
    folds = [parent for parent in studies(spare, monkeypatch, "fold").values() if parent in under]
    n_folds = sum(name.startswith("fold_") for name in trials)
    assert all(1 <= folds.count(run) <= n_folds for run in under) and folds.count(under[0]) == n_folds
    assert tracking.client().get_run(study).info.status == "FINISHED"


def studies(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str) -> dict[str, str | None]:
    """Runs of the lesion arm of one kind → the run each lies under."""
    from reperfuse import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.root}/mlruns/mlflow.db")
    store = tracking.client()
    experiment = store.get_experiment_by_name("lesion")
    assert experiment is not None
    runs = store.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'", max_results=1000)
    return {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}


def test_a_training_starts_from_a_registered_model_and_says_so(spare: Workspace) -> None:
    folder = spare.root / "models/lesion"
    best = spare.root / "results/lesion/tune/best.json"
    content = json.loads(best.read_text(encoding="utf-8"))
    best.write_text(json.dumps(content | {"overrides": {}}), encoding="utf-8")
    spare.run("reperfuse", "promote", "lesion")
    registered = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    start = {"init_from": "models:/lesion/1", "epochs": 1, "learning_rate": 1e-9}
    spare.edit_params(lambda params: params["lesion"]["train"].update(start))
    said = spare.run("reperfuse", "train", "lesion").stdout
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    init = described["extra"]["init"]
    assert described["kwargs"] == registered["kwargs"] and init["fitted"] == init["total"] and init["anew"] == []
    assert f"{init['total']} of {init['total']} tensors start from models:/lesion/1\n" in said
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run["params"]["init/fitted"] == str(init["total"])
