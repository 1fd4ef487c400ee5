"""Tuning and training, the same for both arms: an arm says only how a prediction is scored."""

import importlib.metadata
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import read_json, write_json
from reperfuse.networks import load_network, save_network
from reperfuse.params import Train, Tune
from reperfuse.stages import layout
from reperfuse.stages.dataset import subjects_table
from reperfuse.stages.fitting import ArmParams, Fitted, Objective, fit_arm, init_params, state_folder, with_overrides
from reperfuse.stages.processed import read_folds, write_table
from reperfuse.stages.search import search, study_to_join
from reperfuse.training.fit import shown
from reperfuse.training.losses import ACTIVATIONS
from reperfuse.training.samples import Subject
from reperfuse.training.space import Choices, label_of, read_space
from reperfuse.training.tune import StudySummary, best_of, mean_score, metric_means

__all__ = ["Objective", "log_model_of", "train_arm", "tune_arm", "with_overrides"]


DECIDING = ("cohort", "preprocess", "folds", "tune", "promote")
"""Sections of the parameters that are recorded with a model, beside what was chosen for `train`."""


# ---- tune -----------------------------------------------------------------------------------------------------------
def tune_arm(settings: ArmParams, seed: int, objective: Objective, *, join: bool = False) -> None:
    """Search `settings.tune.space` with cross-validation; write results/<arm>/tune.

    best.json holds the chosen overrides, their cross-validated scores and the rivals to train beside them, trials.csv
    every trial, validation.csv the chosen trial's scores per validation subject, and baselines.csv, for an arm that
    has some, the mean scores of other methods on the same subjects. With `join` this process only works on a search
    that runs elsewhere.
    """
    arm, asked = objective.arm, settings.tune
    rival_folders(asked)
    folds = read_folds(arm)
    training = folds[folds["side"] == "train"]
    present = sorted(training["fold"].unique())
    # Of a fold whose patients all left (no artery, no reference) nothing could be validated.
    training = training.assign(fold=training["fold"].map({fold: place for place, fold in enumerate(present)}))
    about = {name: getattr(asked, name) for name in ("space", "epochs", "sampler")} | dict(objective.about)
    state = state_folder(arm, "tune", seed, settings.train, about)
    if join:
        search(settings, seed, objective, training, state=state, study_id=study_to_join(arm, state), join=True)
        return
    with tracking.run(
        arm,
        tracking.run_name("study", settings.train.network),
        tags={"kind": "study"},
        params={"seed": seed} | {name: getattr(settings, name).model_dump(mode="json") for name in ("tune", "train")},
        lineage=tracking.lineage(Path.cwd(), arm=arm, seed=seed),
        state=state / "study.json",
    ) as study:
        summary = search(settings, seed, objective, training, state=state, study_id=study.id)
        baselines = baseline_scores(objective, training["participant_id"].tolist(), settings.train.target)
        means = metric_means(summary.best_fold_scores)
        study.log_metrics(tracking.grouped("cv", means))
        study.log_params({"best": summary.best_overrides})
        study.log_table(summary.trials, "tables/trials.csv")
        if baselines is not None:
            study.log_table(baselines, "tables/baselines.csv")
    out = layout.results(arm) / "tune"
    write_table(out / "trials.csv", summary.trials)
    write_table(out / "validation.csv", _validation(summary, training, present, objective.metric))
    if baselines is not None:
        write_table(out / "baselines.csv", baselines)
    write_json(
        out / "best.json",
        {
            "overrides": summary.best_overrides,
            "metric": objective.metric,
            "cv_score": summary.best_value,
            "cv_scores": means,
            "trial": summary.best_number,
            "study_run_id": study.origin,
            "scored_with": objective.settled(summary.best_fold_scores),
            "rivals_by": asked.rivals,
            "rivals": rivals_of(summary, asked, objective),
        },
    )


def baseline_scores(objective: Objective, participants: Sequence[str], target: str | None) -> pd.DataFrame | None:
    """`method` and the mean of each metric over the participants it has a prediction for; None without baselines."""
    if objective.baselines is None:
        return None
    found: dict[str, list[dict[str, float]]] = {}
    for participant in track(participants, description=f"baselines {objective.arm}"):
        subject = Subject(participant, layout.processed(objective.arm) / participant, target=target)
        for method, prediction in objective.baselines(participant).items():
            found.setdefault(method, []).append(objective.of_prediction(prediction, subject))
    names = {name: None for scores in found.values() for of_subject in scores for name in shown(of_subject)}
    rows = [
        {"method": method} | {name: mean_score([scores], name) for name in names} for method, scores in found.items()
    ]
    return pd.DataFrame(rows, columns=["method", *(names or [objective.metric])])


def _validation(summary: StudySummary, training: pd.DataFrame, present: Sequence[int], metric: str) -> pd.DataFrame:
    """The chosen trial's scores of every validation subject: participant_id, fold of folds.csv, metric, others."""
    parts = []
    for fold, scores in enumerate(summary.best_fold_scores):
        people = training.loc[training["fold"] == fold, "participant_id"]
        of_fold = pd.DataFrame([shown(of_subject) for of_subject in scores])
        parts.append(of_fold.assign(participant_id=people.to_list(), fold=present[fold]))
    table = pd.concat(parts, ignore_index=True)
    first = ["participant_id", "fold", metric]
    return table[[*first, *table.columns.difference(first)]]


# ---- rivals ---------------------------------------------------------------------------------------------------------
def rival_folders(asked: Tune) -> dict[Any, str]:
    """Label of each choice of `tune.rivals` → what its folder, and with `rival_` before it its method, is called.

    Raises
    ------
    InputError
        If that name has no choices in the space, or two of them would share a folder.
    """
    if asked.rivals is None:
        return {}
    searched = read_space(asked.space).get(asked.rivals)
    if not isinstance(searched, Choices):
        raise InputError(
            f"tune.rivals in params.yaml is {asked.rivals}, which has no choices in tune.space: name one that has, "
            "or null."
        )
    folders = {label: re.sub(r"[^\w.]+", "-", str(label)).strip("-.") for label in searched.labels}
    if len(set(folders.values()) - {""}) < len(folders):
        raise InputError(f"Two choices of tune.space.{asked.rivals} cannot be told apart by a folder's name.")
    return folders


def rivals_of(summary: StudySummary, asked: Tune, objective: Objective) -> dict[str, dict[str, Any]]:
    """Folder → the best trial of each choice of `tune.rivals` but the winner's, as best.json has it.

    A trial that was pruned counts where no other of its choice was finished; a choice whose trials all failed is left
    out, and said to be.
    """
    found: dict[str, dict[str, Any]] = {}
    if (name := asked.rivals) is None:
        return found
    for label, folder in rival_folders(asked).items():
        if label == label_of(summary.best_overrides[name]):
            continue
        trials = [trial for trial in summary.records if label_of(trial.overrides[name]) == label]
        scored = [trial for trial in trials if trial.value is not None]
        complete = [trial for trial in scored if trial.state == "complete"]
        if not scored:
            print(f"{name}={label} has no trial that succeeded, so no rival is trained for it.", flush=True)
            continue
        best = best_of(complete or scored, objective.direction)
        found[folder] = {
            "trial": best.number,
            "overrides": best.overrides,
            "cv_score": best.value,
            "scored_with": objective.settled(best.fold_scores),
        }
    return found


# ---- train ----------------------------------------------------------------------------------------------------------
def train_arm(settings: ArmParams, seed: int, objective: Objective) -> None:
    """Train on all training subjects with what the search chose; write models/<arm> and log the model.

    The gate of `settings.promote` is recorded with it: by that one, and by no later one, `promote` judges it.
    models/<arm>/rivals/<choice>/ holds the networks to show beside it, if `tune.rivals` asked for some; each is a run
    under the model's.
    """
    arm = objective.arm
    best = read_json(layout.best_json(arm))
    chosen = with_overrides(settings.train, best["overrides"])
    folds = read_folds(arm)
    participants = folds.loc[folds["side"] == "train", "participant_id"].tolist()
    state = state_folder(arm, "train", seed, chosen, {})
    out = layout.models(arm)
    # Before the training: what is edited meanwhile did not take part.
    lineage, changes = tracking.lineage(Path.cwd(), arm=arm, seed=seed), tracking.code_changes(Path.cwd())
    params = (
        {"seed": seed}
        | {name: getattr(settings, name).model_dump(mode="json") for name in DECIDING}
        | {"train": chosen.model_dump(mode="json")}
    )
    with tracking.run(
        arm,
        # Data, parameters and code by their fingerprint: two trainings of one network are told apart.
        tracking.run_name("model", chosen.network, state.parent.name[:6]),
        tags={"kind": "model", "study_run_id": best["study_run_id"]},
        params=params,
        lineage=lineage,
        state=state / "run.json",
    ) as run:
        fitted = fit_arm(objective, chosen, seed, train=participants, state=state, run=run)
        metrics = _time_taken(fitted) | tracking.grouped("cv", best["cv_scores"])
        run.log_metrics(metrics)
        _save(out, settings, objective, chosen, fitted, len(participants), best["scored_with"])
        write_table(out / "history.csv", pd.DataFrame(fitted.result.history))
        write_table(out / "subjects.csv", subjects_table(arm))
        (out / tracking.CHANGES).write_bytes(changes.encode(errors="surrogateescape"))  # an output of DVC: always there
        if changes:
            run.log_artifact(out / tracking.CHANGES)
        log_model_of(run, out)
        metrics |= {"train/loss": fitted.result.history[-1]["loss"]}
        write_json(out / "run.json", tracking.run_record(run, params | init_params(fitted.init), metrics, lineage))
        spent = _train_rivals(settings, seed, objective, best, participants, run)
    # Only now: a killed process finds all that was trained again, and trains none of it twice.
    for folder in (state, *spent):
        shutil.rmtree(folder, ignore_errors=True)


def _train_rivals(
    settings: ArmParams,
    seed: int,
    objective: Objective,
    best: Mapping[str, Any],
    participants: Sequence[str],
    model: tracking.Run,
) -> list[Path]:
    """Write models/<arm>/rivals, a folder for each rival in best.json; returns where their states are kept."""
    out = layout.models(objective.arm) / "rivals"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    states = []
    for name, rival in best["rivals"].items():
        chosen = with_overrides(settings.train, rival["overrides"])
        state = state_folder(objective.arm, "rival", seed, chosen, {"rival": name})
        with tracking.run(
            objective.arm,
            tracking.run_name("rival", name),
            parent_id=model.id,
            tags={"kind": "rival", "study_run_id": best["study_run_id"]},
            params={"seed": seed, "train": chosen.model_dump(mode="json")},
            state=state / "run.json",
        ) as run:
            fitted = fit_arm(objective, chosen, seed, train=participants, state=state, run=run)
            run.log_metrics(_time_taken(fitted) | {f"cv/{objective.metric}": rival["cv_score"]})
            _save(out / name, settings, objective, chosen, fitted, len(participants), rival["scored_with"])
        states.append(state)
    return states


def _time_taken(fitted: Fitted) -> dict[str, float]:
    return {"time/train_s": float(sum(row["seconds"] for row in fitted.result.history))}


def _save(
    folder: Path,
    settings: ArmParams,
    objective: Objective,
    chosen: Train,
    fitted: Fitted,
    trained_on: int,
    scored_with: Mapping[str, Any],
) -> None:
    """model.safetensors and model.json, with all that inference must know."""
    save_network(
        folder,
        chosen.network,
        fitted.network_kwargs,
        fitted.result.network,
        extra={
            "arm": objective.arm,
            "activation": ACTIVATIONS[chosen.loss],
            "preprocess": settings.preprocess.model_dump(mode="json"),
            "inputs": list(fitted.inputs),
            "target": fitted.target,
            "init": fitted.init,
            "scored_with": dict(scored_with),
            "trained_on": trained_on,
        },
    )


def log_model_of(run: tracking.Run, folder: Path) -> str:
    """URI of the model in `folder`, logged to `run` with its signature; the same files give the same URI."""
    network, described = load_network(folder)
    first = next(parameter for parameter in network.parameters() if parameter.ndim > 1)
    channels = described["kwargs"].get("in_channels", first.shape[1])
    return tracking.log_model(
        run,
        folder,
        input_example=np.zeros((2, channels, 4, 6, 8), np.float32),
        pip_requirements=[
            f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "numpy", "safetensors")
        ],
        code_path=Path(__file__).parent / "served_model.py",
    )
