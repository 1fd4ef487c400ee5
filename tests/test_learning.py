"""A search and its trainings as files and runs: what is scored, what is kept, what starts where."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import read_json, sha256_of
from reperfuse.networks import build_network, load_network, save_network
from reperfuse.params import Params, PerfusionParams, PerfusionTrain, Tune
from reperfuse.stages import fitting, learning
from reperfuse.stages.fitting import Objective, channels_of, first_weights, network_arguments, state_folder
from reperfuse.stages.learning import rival_folders, rivals_of, train_arm, tune_arm
from reperfuse.stages.processed import write_index, write_subject, write_table
from reperfuse.stages.promotion import gate_of
from reperfuse.training.fit import KEPT
from reperfuse.training.samples import Subject
from reperfuse.training.tune import StudySummary, Trial

ARM = "perfusion"
PEOPLE = [f"sub-{n}" for n in range(5)]
GROUPS = {"signal": [0, 3], "matched": [3, 8]}
SPACING_MM = (2.0, 2.0, 5.0)
NETWORKS = ["tmax_2layer", "tmax_1layer"]

TRAIN = PerfusionTrain(
    network="tmax_2layer",
    init_from=None,
    loss="mse",
    epochs=3,
    steps_per_epoch=2,
    batch_size=1,
    patch_size=(8, 8, 4),
    accelerator="cpu",
)


def params(train: PerfusionTrain = TRAIN, **tuned: object) -> PerfusionParams:
    tune = Tune(n_trials=2, sampler="grid", prune=False, epochs=1, space={"network": {"choices": NETWORKS}})
    return PerfusionParams(train=train, tune=tune.model_copy(update=tuned))


def score(predicted: np.ndarray, target: np.ndarray, mask: np.ndarray, spacing_mm: tuple) -> dict[str, float]:
    error = (predicted - target)[mask > 0]
    rmse = float(np.sqrt(np.mean(error**2)))
    return {"rmse_s": rmse, "mae_s": float(np.abs(error).mean()), "voxel_ml": math.prod(spacing_mm) / 1000}


def late_by(seconds: float):
    """A method that errs by that much; it has no prediction for one of the subjects."""
    return lambda participant: {"baseline_late": target_of(participant) + seconds} if participant != PEOPLE[1] else {}


OBJECTIVE = Objective(ARM, "rmse_s", False, score, late_by(2.0))


def target_of(participant: str) -> np.ndarray:
    return np.load(Path("data/processed") / ARM / participant / "target.npy")[0]


def workspace(root: Path) -> None:
    """Processed subjects with two groups of channels, the last one held out, in a repository of its own."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    rng = np.random.default_rng(0)
    affine = np.diag([*SPACING_MM, 1.0]).tolist()
    for participant in PEOPLE:
        image = rng.normal(size=(8, 8, 8, 4))
        target = np.stack([3 + image[0], image[1]]).astype(np.float32)
        described = {"affine": affine, "inputs": GROUPS, "targets": ["tmax", "cbf"]}
        described["source"] = {"files_sha256": participant, "intensity_median": 1.0, "intensity_spread": 0.5}
        write_subject(root / "data/processed" / ARM / participant, image, target, np.ones((8, 8, 4), bool), described)
    folds = pd.DataFrame({"participant_id": PEOPLE, "side": ["train"] * 4 + ["holdout"], "fold": [0, 1, 0, 1, pd.NA]})
    write_table(root / "results" / ARM / "folds.csv", folds)
    cohort = pd.DataFrame({"participant_id": PEOPLE, "centre": "R1", "image": "somewhere", "te_s": 0.03})
    write_table(root / "results" / ARM / "cohort.csv", cohort)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    workspace(tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    write_index(ARM)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "w"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """A workspace that was tuned and trained with a rival."""
    root = tmp_path_factory.mktemp("finished")
    workspace(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_index(ARM)
        asked = params(rivals="network")
        tune_arm(asked, 1, OBJECTIVE)
        train_arm(asked, 1, OBJECTIVE)
        yield root


def runs(kind: str) -> list:
    store = tracking.client()
    experiment = store.get_experiment_by_name(ARM)
    return list(store.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'", order_by=["start_time ASC"]))


# ---- what a search leaves -------------------------------------------------------------------------------------------
def test_every_metric_of_every_trial_is_in_the_table_and_in_its_run(finished: Path) -> None:
    trials = pd.read_csv(finished / "results" / ARM / "tune" / "trials.csv")
    assert trials["network"].tolist() == NETWORKS and (trials["voxel_ml"] == math.prod(SPACING_MM) / 1000).all()
    assert (trials["mae_s"] <= trials["value"]).all()
    for row, run in zip(trials.to_dict("records"), runs("trial"), strict=True):
        assert run.data.metrics["cv/rmse_s_mean"] == pytest.approx(row["value"])
        assert run.data.metrics["cv/mae_s_mean"] == pytest.approx(row["mae_s"])
        history = tracking.client().get_metric_history(run.info.run_id, "cv/mae_s")
        assert [point.step for point in history] == [0, 1]
    for run in runs("fold"):
        assert {"val/rmse_s", "val/mae_s", "val/voxel_ml", "subject/mae_s", "train/loss"} <= set(run.data.metrics)


def test_validation_has_all_metrics_of_the_chosen_trial_for_each_training_subject_once(finished: Path) -> None:
    table = pd.read_csv(finished / "results" / ARM / "tune" / "validation.csv")
    best = json.loads((finished / "results" / ARM / "tune" / "best.json").read_text())
    assert table.columns.tolist() == ["participant_id", "fold", "rmse_s", "mae_s", "voxel_ml"]
    assert sorted(table["participant_id"]) == PEOPLE[:4] and table["fold"].tolist() == [0, 0, 1, 1]
    assert table["rmse_s"].mean() == pytest.approx(best["cv_score"])
    assert best["cv_scores"] == pytest.approx({name: table[name].mean() for name in ("rmse_s", "mae_s", "voxel_ml")})


def test_baselines_are_scored_on_the_subjects_that_the_search_validated_on(here: Path) -> None:
    seen = []

    def baselines(participant: str) -> dict[str, np.ndarray]:
        seen.append(participant)
        return late_by(2.0)(participant) | {"baseline_exact": target_of(participant)}

    table = learning.baseline_scores(replace(OBJECTIVE, baselines=baselines), PEOPLE[:4], None)
    assert seen == PEOPLE[:4] and table is not None
    table = table.set_index("method")
    assert table.columns.tolist() == ["rmse_s", "mae_s", "voxel_ml"]
    assert table.loc["baseline_late", ["rmse_s", "mae_s"]].tolist() == pytest.approx([2.0, 2.0], abs=1e-6)
    assert table.loc["baseline_exact", "rmse_s"] == 0
    of_another_target = learning.baseline_scores(replace(OBJECTIVE, baselines=baselines), PEOPLE[:1], "cbf")
    assert of_another_target is not None and of_another_target["rmse_s"].min() > 1


def test_baselines_without_any_prediction_leave_an_empty_table_and_an_arm_without_them_none(here: Path) -> None:
    nothing = learning.baseline_scores(replace(OBJECTIVE, baselines=lambda participant: {}), PEOPLE[:4], None)
    assert nothing is not None and nothing.empty and nothing.columns.tolist() == ["method", "rmse_s"]
    assert learning.baseline_scores(replace(OBJECTIVE, baselines=None), PEOPLE[:4], None) is None


def test_the_study_keeps_the_table_of_baselines(finished: Path) -> None:
    (study,) = runs("study")
    logged = tracking.read_table(study.info.run_id, "tables/baselines.csv")
    pd.testing.assert_frame_equal(logged, pd.read_csv(finished / "results" / ARM / "tune" / "baselines.csv"))
    assert logged["method"].tolist() == ["baseline_late"]
    assert study.data.metrics["cv/mae_s"] == pytest.approx(
        pd.read_csv(finished / "results" / ARM / "tune" / "validation.csv")["mae_s"].mean()
    )


# ---- models and rivals ----------------------------------------------------------------------------------------------
def test_a_model_says_what_it_reads_and_gives(finished: Path) -> None:
    network, described = load_network(finished / "models" / ARM)
    assert described["kwargs"] == {"in_channels": 3}
    extra = described["extra"]
    assert (extra["inputs"], extra["target"], extra["init"]) == (["signal"], "tmax", {})
    assert network(torch.zeros(1, 3, 4, 4, 4)).shape == (1, 1, 4, 4, 4)


def test_a_rival_stands_beside_the_model_and_its_run_under_the_models(finished: Path) -> None:
    best = json.loads((finished / "results" / ARM / "tune" / "best.json").read_text())
    winner, other = best["overrides"]["network"], next(iter(best["rivals"]))
    assert {winner, other} == set(NETWORKS)
    assert [path.name for path in (finished / "models" / ARM / "rivals").iterdir()] == [other]
    _, described = load_network(finished / "models" / ARM / "rivals" / other)
    assert described["network"] == other and described["extra"]["arm"] == ARM
    (model,), (rival,) = runs("model"), runs("rival")
    assert rival.data.tags["mlflow.parentRunId"] == model.info.run_id
    assert rival.data.params["train.network"] == other and model.data.params["train.network"] == winner
    steps = [point.step for point in tracking.client().get_metric_history(rival.info.run_id, "train/loss")]
    assert steps == [1, 2, 3] and rival.data.metrics["cv/rmse_s"] == pytest.approx(best["rivals"][other]["cv_score"])
    assert model.data.metrics["cv/mae_s"] == pytest.approx(best["cv_scores"]["mae_s"])


def test_without_rivals_the_folder_is_there_and_empty_and_the_state_is_gone(here: Path) -> None:
    (here / "models" / ARM / "rivals" / "of-yesterday").mkdir(parents=True)
    tune_arm(params(n_trials=1), 1, replace(OBJECTIVE, baselines=None))
    assert not (here / "results" / ARM / "tune" / "baselines.csv").exists()
    train_arm(params(n_trials=1), 1, OBJECTIVE)
    assert list((here / "models" / ARM / "rivals").iterdir()) == []
    assert not list((here / ".reperfuse").rglob("last.ckpt"))


class Stop(Exception):
    """Stands for whatever ends a process in the middle of a training."""


def test_a_training_that_is_stopped_at_a_rival_repeats_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = params(rivals="network")
    tune_arm(asked, 1, OBJECTIVE)
    save = learning._save

    def stop_at_the_rival(folder: Path, *rest: object) -> None:
        if folder.parent.name == "rivals":
            raise Stop
        save(folder, *rest)

    monkeypatch.setattr(learning, "_save", stop_at_the_rival)
    with pytest.raises(Stop):
        train_arm(asked, 1, OBJECTIVE)
    monkeypatch.setattr(learning, "_save", save)
    weights = (here / "models" / ARM / "model.safetensors").read_bytes()
    train_arm(asked, 1, OBJECTIVE)
    assert (here / "models" / ARM / "model.safetensors").read_bytes() == weights
    for kind in ("model", "rival"):
        (run,) = runs(kind)
        steps = [point.step for point in tracking.client().get_metric_history(run.info.run_id, "train/loss")]
        assert steps == [1, 2, 3] and run.info.status == "FINISHED"


def summary_of(*trials: tuple[object, str, float | None]) -> StudySummary:
    records = [Trial(n, {"network": network}, state, value) for n, (network, state, value) in enumerate(trials)]
    best = min((trial for trial in records if trial.state == "complete"), key=lambda trial: trial.value)
    return StudySummary(best.overrides, best.value, best.number, [], pd.DataFrame(), records)


def test_the_rival_of_a_choice_is_its_best_complete_trial_else_its_best_pruned_one() -> None:
    asked = params(rivals="network", space={"network": {"choices": ["a", "b", "c", "d"]}}).tune
    summary = summary_of(
        *[("a", "complete", 1.0), ("a", "complete", 0.5)],
        *[("b", "complete", 3.0), ("b", "complete", 2.0), ("b", "pruned", 0.1)],
        *[("c", "pruned", 5.0), ("c", "pruned", 4.0), ("c", "failed", None)],
        ("d", "failed", None),
    )
    found = rivals_of(summary, asked, OBJECTIVE)
    assert {name: rival["trial"] for name, rival in found.items()} == {"b": 3, "c": 6}
    assert rivals_of(summary, params().tune, OBJECTIVE) == {}


def test_a_choice_that_is_a_list_or_nothing_gets_a_folder_too() -> None:
    asked = params(rivals="inputs", space={"inputs": {"choices": [["signal", "aif"], ["maps"], None, "1e-4"]}}).tune
    assert list(rival_folders(asked).values()) == ["signal-aif", "maps", "None", "0.0001"]


@pytest.mark.parametrize(
    ("rivals", "space"),
    [
        ("loss", {"network": {"choices": NETWORKS}}),
        ("learning_rate", {"learning_rate": {"low": 1e-4, "high": 1e-2}}),
        ("inputs", {"inputs": {"choices": [["a"], "a"]}}),
        ("inputs", {"inputs": {"choices": [[]]}}),
    ],
)
def test_rivals_that_cannot_be_named_are_refused_before_the_search(here: Path, rivals: str, space: dict) -> None:
    with pytest.raises(InputError, match=rf"tune\.\w+.*{rivals}"):
        tune_arm(params(rivals=rivals, space=space), 1, OBJECTIVE)
    assert not (here / "mlruns").exists()


# ---- what a network starts from -------------------------------------------------------------------------------------
def test_a_network_gets_the_channels_of_its_inputs(here: Path) -> None:
    folder = here / "data/processed" / ARM / PEOPLE[0]
    counts = {names: channels_of([Subject(PEOPLE[0], folder, names)]) for names in [(), ("signal",), ("matched",)]}
    assert counts == {(): 8, ("signal",): 3, ("matched",): 5}
    assert network_arguments(TRAIN, 5) == {"in_channels": 5}
    fixed = TRAIN.model_copy(update={"network_kwargs": {"in_channels": 5, "hidden": 4}})
    assert network_arguments(fixed, 5) == {"in_channels": 5, "hidden": 4}
    with pytest.raises(InputError, match=r"in_channels = 5, but the images have 3"):
        network_arguments(fixed, 3)


def test_a_network_that_fixes_its_channels_is_not_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fitting.NETWORKS, "tmax_2layer", lambda hidden=1: torch.nn.Conv3d(3, hidden, 1))
    assert network_arguments(TRAIN, 5) == {}


def test_subjects_with_different_channels_are_refused(here: Path) -> None:
    folders = [here / "data/processed" / ARM / participant for participant in PEOPLE[:2]]
    np.save(folders[0] / "image.npy", np.zeros((6, 8, 8, 4), np.float32))
    with pytest.raises(InputError, match=r"6 \(.*sub-0\) and 8 \(.*sub-1\)"):
        channels_of([Subject(folder.name, folder) for folder in folders])


def test_a_training_starts_from_the_weights_that_are_named(here: Path) -> None:
    earlier = build_network("tmax_2layer", in_channels=3)
    save_network(here / "earlier", "tmax_2layer", {"in_channels": 3}, earlier)
    network = build_network("tmax_2layer", in_channels=3)
    said = first_weights(network, TRAIN.model_copy(update={"init_from": "earlier"}))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), earlier.parameters(), strict=True))
    assert said["fitted"] == said["total"] > 0 and said["sha256"] == tracking.model_digest("earlier")
    assert first_weights(network, TRAIN) == {}


def test_weights_that_fit_nothing_are_an_error_only_when_they_were_named(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_network(here / "other", "unet3d", {"widths": [2, 4]}, build_network("unet3d", widths=[2, 4]))
    network = build_network("tmax_2layer", in_channels=3)
    with pytest.raises(InputError, match=r"None of the weights of other fits tmax_2layer"):
        first_weights(network, TRAIN.model_copy(update={"init_from": "other"}))
    monkeypatch.setattr(fitting, "learned_folder", lambda: here / "other")
    assert first_weights(network, TRAIN.model_copy(update={"init_from": "learned"}))["fitted"] == 0


def test_where_the_weights_started_is_in_the_run_and_in_the_model(here: Path) -> None:
    save_network(here / "earlier", "tmax_2layer", {"in_channels": 3}, build_network("tmax_2layer", in_channels=3))
    asked = params(TRAIN.model_copy(update={"init_from": "earlier"}), space={"loss": {"choices": ["mse"]}})
    tune_arm(asked, 1, replace(OBJECTIVE, baselines=None))
    train_arm(asked, 1, OBJECTIVE)
    (model,), (fold, _) = runs("model"), runs("fold")
    _, described = load_network(here / "models" / ARM)
    init = described["extra"]["init"]
    assert init["from"] == "earlier" and init["fitted"] == init["total"]
    record = json.loads((here / "models" / ARM / "run.json").read_text())
    for params_of in (model.data.params, fold.data.params, record["params"]):
        assert (params_of["init/fitted"], params_of["init/total"]) == (str(init["fitted"]), str(init["total"]))


def test_which_layers_were_taken_is_told_and_kept_where_others_begin_anew(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of another depth: what both have is taken, from a file alone, and the rest is named."""
    kwargs = {"in_channels": 8, "widths": [2, 4]}
    save_network(here / "earlier", "unet3d", kwargs, build_network("unet3d", **kwargs))
    weights = here / "earlier.safetensors"
    (here / "earlier" / "model.safetensors").rename(weights)
    chosen = TRAIN.model_copy(
        update={"network": "unet3d", "network_kwargs": {"widths": [2, 4, 6]}, "init_from": str(weights)}
    )
    with tracking.run(ARM, "fold 0") as run:
        fitted = fitting.fit_arm(OBJECTIVE, chosen, 0, train=PEOPLE[:2], state=here / "state", run=run)
        table = pd.read_csv(tracking.client().download_artifacts(run.id, "tables/first_weights.csv", str(here)))
    anew = fitted.init["anew"]
    assert 0 < fitted.init["fitted"] == fitted.init["total"] - len(anew) and "first.0.weight" not in anew
    assert table.loc[table["from"] == "anew", "tensor"].tolist() == anew
    assert set(table["from"]) == {"anew", str(weights)} and len(table) == fitted.init["total"]
    said = capsys.readouterr().out
    assert f"{fitted.init['fitted']} of {fitted.init['total']} tensors start from {weights}; anew: " in said
    assert fitted.init["sha256"] == sha256_of(weights)


def test_a_network_of_the_whole_image_names_all_groups_and_one_of_another_target_names_that(here: Path) -> None:
    asked = {"network": "unet3d", "network_kwargs": {"widths": [2, 4]}, "target": "cbf"}
    state = here / "state"
    with tracking.run(ARM, "fold 0") as run:
        chosen = TRAIN.model_copy(update=asked)
        fitted = fitting.fit_arm(OBJECTIVE, chosen, 0, train=PEOPLE[:2], validation=PEOPLE[2:3], state=state, run=run)
    assert (fitted.inputs, fitted.target) == (("signal", "matched"), "cbf")
    assert fitted.network_kwargs["in_channels"] == 8
    image, target, mask = Subject(PEOPLE[2], here / "data/processed" / ARM / PEOPLE[2], target="cbf").load()
    with torch.inference_mode():
        predicted = fitted.result.network(torch.from_numpy(np.array(image))[None])[0, 0].numpy()
    said = fitted.result.scores[PEOPLE[2]]["rmse_s"]
    assert said == pytest.approx(score(predicted, target[0], mask, SPACING_MM)["rmse_s"], rel=1e-3)


def test_features_of_a_network_that_starts_anew_are_standardised_by_its_training_subjects(here: Path) -> None:
    for participant in PEOPLE:
        path = here / "data/processed" / ARM / participant / "subject.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": {"matched": [0, 8]}}))
    chosen = TRAIN.model_copy(update={"network": "tmax_matched"})
    with tracking.run(ARM, "fold 0") as run:
        fitted = fitting.fit_arm(
            OBJECTIVE, chosen, 0, train=PEOPLE[:2], validation=PEOPLE[2:3], state=here / "state", run=run
        )
    features = np.concatenate([Subject(who, here / "data/processed" / ARM / who).load()[0] for who in PEOPLE[:2]], 1)
    scale = fitted.result.network.get_submodule("scale")
    np.testing.assert_allclose(scale.mean, features.reshape(8, -1).mean(1), atol=1e-3)
    np.testing.assert_allclose(scale.deviation, features.reshape(8, -1).std(1), rtol=0.01)


def test_a_network_that_knows_its_features_takes_no_others(here: Path) -> None:
    chosen = TRAIN.model_copy(update={"network": "tmax_matched", "inputs": ("signal", "matched")})
    with tracking.run(ARM, "fold 0") as run, pytest.raises(InputError, match="knows what each of its channels is"):
        fitting.fit_arm(OBJECTIVE, chosen, 0, train=PEOPLE[:2], state=here / "state", run=run)


def test_a_fold_that_lost_all_its_subjects_is_left_out_of_the_search(here: Path) -> None:
    folds = pd.read_csv(here / "results" / ARM / "folds.csv")
    folds.loc[folds["fold"] == 1, "fold"] = 2
    write_table(here / "results" / ARM / "folds.csv", folds.astype({"fold": "Int64"}))
    tune_arm(params(), 1, OBJECTIVE)
    trials = pd.read_csv(here / "results" / ARM / "tune" / "trials.csv")
    assert {"fold_0", "fold_1"} <= set(trials) and "fold_2" not in trials
    validated = pd.read_csv(here / "results" / ARM / "tune" / "validation.csv").set_index("participant_id")["fold"]
    assert validated.to_dict() == folds.dropna().set_index("participant_id")["fold"].astype(int).to_dict()
    assert trials["value"].notna().all()


def test_a_search_that_mirrors_scores_the_mean_over_mirror_images(here: Path) -> None:
    subject = Subject("sub-0", Path("data/processed") / ARM / "sub-0")
    seen: list[np.ndarray] = []

    def kept(predicted: np.ndarray, *_: object) -> dict[str, float]:
        seen.append(predicted)
        return {"rmse_s": 0.0}

    def left(image: np.ndarray) -> np.ndarray:
        return image[0] * (np.arange(8) < 4)[:, None, None]

    for mirror in (False, True):
        replace(OBJECTIVE, score=kept, mirror=mirror).of_subject(left, subject)
    image = subject.load()[0][0]
    np.testing.assert_array_equal(seen[0], left(image[None]))
    np.testing.assert_allclose(seen[1], image / 2, rtol=1e-6)


# ---- state ----------------------------------------------------------------------------------------------------------
def test_what_a_model_is_used_with_is_settled_by_the_searchs_validation_subjects_alone(
    here: Path,
) -> None:
    """The scores kept for it are in no table and in no run, and the held-out subject is not among them."""
    seen: list[list[dict[str, float]]] = []

    def with_kept(predicted: np.ndarray, target: np.ndarray, mask: np.ndarray, spacing_mm: tuple) -> dict[str, float]:
        return score(predicted, target, mask, spacing_mm) | {f"{KEPT}mean": float(target.mean())}

    def settle(scores: list[dict[str, float]]) -> dict[str, float]:
        seen.append(scores)
        return {"threshold": max(of_subject[f"{KEPT}mean"] for of_subject in scores)}

    objective = replace(OBJECTIVE, score=with_kept, settle=settle, about={"threshold": None, "other": 3})
    tune_arm(params(), 7, objective)
    train_arm(params(), 7, objective)
    validated = [float(target_of(participant).mean()) for participant in PEOPLE[:4]]
    assert sorted(of_subject[f"{KEPT}mean"] for of_subject in seen[0]) == pytest.approx(sorted(validated), abs=1e-6)
    scored_with = json.loads(Path("models", ARM, "model.json").read_text())["extra"]["scored_with"]
    assert scored_with == {"threshold": pytest.approx(max(validated), abs=1e-6), "other": 3}
    for table in ("trials", "validation", "baselines"):
        columns = pd.read_csv(Path("results", ARM, "tune", f"{table}.csv")).columns
        assert not [name for name in columns if KEPT in name], table
    for kind in ("study", "trial", "fold", "model"):
        assert not [name for run in runs(kind) for name in run.data.metrics if KEPT in name], kind


def test_a_parameter_that_enters_the_scores_starts_a_search_anew(here: Path) -> None:
    for threshold in (6.0, 6.0, 4.0):
        tune_arm(params(), 1, replace(OBJECTIVE, about={"threshold": threshold}))
    assert len(runs("study")) == 2


def test_state_is_another_with_other_weights_to_start_from_and_the_same_with_more_trials(here: Path) -> None:
    def save() -> None:
        save_network(here / "earlier", "tmax_2layer", {"in_channels": 3}, build_network("tmax_2layer", in_channels=3))

    def folders() -> list[Path]:
        named = TRAIN.model_copy(update={"init_from": "earlier"})
        space = {"space": {"init_from": {"choices": [None, "earlier"]}}}
        return [state_folder(ARM, "tune", 0, *asked) for asked in ((TRAIN, {}), (named, {}), (TRAIN, space))]

    save()
    before = folders()
    assert before == folders() and len(set(before)) == 3
    save()
    assert [a == b for a, b in zip(before, folders(), strict=True)] == [True, False, False]


def test_joining_needs_a_search_that_runs(here: Path) -> None:
    with pytest.raises(InputError, match="without --join"):
        tune_arm(params(), 1, OBJECTIVE, join=True)


def test_a_model_says_whose_images_it_was_trained_on_and_under_which_gate(finished: Path) -> None:
    subjects = pd.read_csv(finished / "models" / ARM / "subjects.csv")
    assert subjects["participant_id"].tolist() == list(PEOPLE)
    assert {"side", "files_sha256", "centre", "te_s", "intensity_median"} <= set(subjects) and "image" not in subjects
    record = read_json(finished / "models" / ARM / "run.json")
    assert gate_of(record, Params(), ARM) == params().promote
