"""Tuning and training, the same for both arms: an arm says only how a prediction is scored."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import read_json, write_json
from reperfuse.networks import build_network, load_network, save_network
from reperfuse.params import LesionParams, PerfusionParams, Train
from reperfuse.stages import layout
from reperfuse.stages.processed import read_folds, write_table
from reperfuse.training.fit import FitResult, FitSettings, Predict, fit
from reperfuse.training.losses import ACTIVATIONS
from reperfuse.training.samples import Subject
from reperfuse.training.tune import StudySummary, Trial, tune

ArmParams = LesionParams | PerfusionParams

CODE = ("networks", "training", "evaluation/metrics.py", "stages/learning.py")
"""Rooms that decide what a training does: with other code, resumable state is another training's."""


@dataclass(frozen=True)
class Objective:
    """What an arm's networks are trained for and chosen by."""

    arm: str
    metric: str
    higher_is_better: bool
    score: Callable[[np.ndarray, np.ndarray, np.ndarray], float]
    """Score of a prediction (I, J, K) against target and mask (I, J, K), on the model grid."""

    @property
    def mode(self) -> str:
        """`max` or `min`."""
        return "max" if self.higher_is_better else "min"

    def of_subject(self, predict: Predict, subject: Subject) -> dict[str, float]:
        """The metric of one validation subject."""
        image, target, mask = subject.load()
        return {self.metric: self.score(predict(image), target[0], mask)}


# ---- tune -----------------------------------------------------------------------------------------------------------
def tune_arm(settings: ArmParams, seed: int, objective: Objective, *, join: bool = False) -> None:
    """Search `settings.tune.space` with cross-validation; write results/<arm>/tune.

    best.json holds the chosen overrides and the cross-validated score, trials.csv every trial, validation.csv the
    chosen trial's score per validation subject. With `join` this process only works on a search that runs elsewhere.
    """
    arm, asked = objective.arm, settings.tune
    folds = read_folds(arm)
    training = folds[folds["side"] == "train"]
    state = state_folder(
        arm, "tune", seed, settings.train, {k: getattr(asked, k) for k in ("space", "epochs", "sampler")}
    )
    record = state / "study.json"
    if join and not record.exists():
        raise InputError(
            f"No search of {arm} with these data, parameters and code is running: start one without --join."
        )
    lineage = tracking.lineage(Path.cwd(), arm=arm, seed=seed)
    with ExitStack() as stack:
        if join:
            study_id = read_json(record)["run_id"]
        else:
            study_id = stack.enter_context(
                tracking.run(
                    arm,
                    tracking.run_name("study", settings.train.network),
                    tags={"kind": "study"},
                    params={
                        "seed": seed,
                        "tune": asked.model_dump(mode="json"),
                        "train": settings.train.model_dump(mode="json"),
                    },
                    lineage=lineage,
                    state=record,
                )
            ).id
        summary = _search(settings, seed, objective, training, state, study_id, stack, join)
        if join:
            return
        with tracking.resume(record) as run:
            run.log_metrics({f"cv/{objective.metric}": summary.best_value})
            run.log_table(summary.trials, "tables/trials.csv")
            run.log_params({"best": summary.best_overrides})
    out = layout.results(arm) / "tune"
    write_table(out / "trials.csv", summary.trials)
    write_table(out / "validation.csv", _validation(summary, training, objective.metric))
    write_json(
        out / "best.json",
        {
            "overrides": summary.best_overrides,
            "metric": objective.metric,
            "cv_score": summary.best_value,
            "trial": summary.best_number,
            "study_run_id": study_id,
        },
    )


def _search(
    settings: ArmParams,
    seed: int,
    objective: Objective,
    training: pd.DataFrame,
    state: Path,
    study_id: str,
    stack: ExitStack,
    join: bool,
) -> StudySummary:
    """Run trials until the study is full, each a run under the study's, each fold a run under its trial's."""
    arm, asked = objective.arm, settings.tune
    current: dict[str, Any] = {}
    trial_runs = stack.enter_context(ExitStack())
    n_folds = int(training["fold"].max()) + 1

    def on_start(trial: Trial) -> None:
        kept = state / "runs" / f"trial-{trial.number}.json"
        earlier = state / "runs" / f"trial-{trial.continues}.json"
        if trial.continues is not None and earlier.exists() and not kept.exists():
            write_json(kept, read_json(earlier))
        current["run"] = trial_runs.enter_context(
            tracking.run(
                arm,
                tracking.run_name("trial", trial.number),
                parent_id=study_id,
                tags={"kind": "trial"},
                params=with_overrides(settings.train, trial.overrides).model_dump(mode="json"),
                state=kept,
            )
        )
        said = ", ".join(
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in trial.overrides.items()
        )
        print(f"trial {trial.number}: {said}", flush=True)

    def on_fold(trial: Trial, fold: int, scores: list[float], reused: bool) -> None:
        mean = float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")
        current["run"].log_metrics({f"cv/{objective.metric}": mean}, step=fold)
        print(
            f"trial {trial.number} fold {fold}: {objective.metric} {mean:.3f}{' (kept)' if reused else ''}", flush=True
        )

    def on_trial(trial: Trial) -> None:
        current["run"].log_metrics({f"cv/{objective.metric}_mean": trial.value})
        current["run"].set_tags({"outcome": trial.state, "reason": trial.reason})
        trial_runs.close()
        print(f"trial {trial.number} {trial.state}: {objective.metric} {_said(trial.value)}", flush=True)

    def objective_for_fold(overrides: Mapping[str, Any], fold: int, room: Path) -> list[float]:
        chosen = with_overrides(settings.train, overrides)
        validation = training[training["fold"] == fold]
        with tracking.run(
            arm,
            tracking.run_name("fold", fold),
            parent_id=current["run"].id,
            tags={"kind": "fold"},
            params={"fold": fold},
            state=room / "run.json",
        ) as run:
            result = _fit(
                arm,
                chosen.model_copy(update={"epochs": asked.epochs}),
                seed + fold,
                train=training[training["fold"] != fold]["participant_id"].tolist(),
                validation=validation["participant_id"].tolist(),
                state=room,
                objective=objective,
                run=run,
            )
            scores = [result.scores[participant][objective.metric] for participant in validation["participant_id"]]
            run.log_metrics({f"val/{objective.metric}": float(np.nanmean(scores))})
            for step, score in enumerate(scores):
                run.log_metrics({f"subject/{objective.metric}": score}, step=step)
        return scores

    workers = [] if join else [_join(arm) for _ in range(asked.workers - 1)]
    try:
        return tune(
            objective_for_fold,
            space=asked.space,
            n_trials=asked.n_trials,
            n_folds=n_folds,
            state_dir=state,
            sampler=asked.sampler,
            direction="maximize" if objective.higher_is_better else "minimize",
            seed=seed,
            prune=asked.prune,
            join=join,
            on_start=on_start,
            on_fold=on_fold,
            on_trial=on_trial,
        )
    finally:
        for worker in workers:
            worker.terminate() if sys.exc_info()[0] else worker.wait()


def _join(arm: str) -> subprocess.Popen[bytes]:
    """One more process on the same search; its threads do not fight over the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    return subprocess.Popen(
        [sys.executable, "-m", "reperfuse", "tune", arm, "--join"], env=os.environ | {"OMP_NUM_THREADS": threads}
    )


def _validation(summary: StudySummary, training: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The chosen trial's score of every validation subject: participant_id, fold, metric."""
    parts = []
    for fold, scores in enumerate(summary.best_fold_scores):
        people = training.loc[training["fold"] == fold, "participant_id"]
        parts.append(pd.DataFrame({"participant_id": people.to_list(), "fold": fold, metric: scores}))
    return pd.concat(parts, ignore_index=True)


def _said(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


# ---- train ----------------------------------------------------------------------------------------------------------
def train_arm(settings: ArmParams, seed: int, objective: Objective) -> None:
    """Train on all training subjects with what the search chose; write models/<arm> and log the model."""
    arm = objective.arm
    best = read_json(layout.best_json(arm))
    chosen = with_overrides(settings.train, best["overrides"])
    folds = read_folds(arm)
    participants = folds.loc[folds["side"] == "train", "participant_id"].tolist()
    state = state_folder(arm, "train", seed, chosen, {})
    out = layout.models(arm)
    lineage = tracking.lineage(Path.cwd(), arm=arm, seed=seed)
    params = (
        {"seed": seed}
        | {name: getattr(settings, name).model_dump(mode="json") for name in ("preprocess", "folds")}
        | {"train": chosen.model_dump(mode="json")}
    )
    with tracking.run(
        arm,
        tracking.run_name("model", chosen.network),
        tags={"kind": "model", "study_run_id": best["study_run_id"]},
        params=params,
        lineage=lineage,
        state=state / "run.json",
    ) as run:
        result = _fit(arm, chosen, seed, train=participants, validation=[], state=state, objective=objective, run=run)
        metrics = {
            "train/loss": result.history[-1]["loss"],
            "time/train_s": float(sum(row["seconds"] for row in result.history)),
            f"cv/{objective.metric}": best["cv_score"],
        }
        run.log_metrics({name: value for name, value in metrics.items() if name != "train/loss"})
        save_network(
            out,
            chosen.network,
            chosen.network_kwargs,
            result.network,
            extra={
                "arm": arm,
                "activation": ACTIVATIONS[chosen.loss],
                "preprocess": settings.preprocess.model_dump(mode="json"),
                "trained_on": len(participants),
            },
        )
        write_table(out / "history.csv", pd.DataFrame(result.history))
        log_model_of(run, out)
        write_json(out / "run.json", tracking.run_record(run, params, metrics, lineage))
    shutil.rmtree(state, ignore_errors=True)


def log_model_of(run: tracking.Run, folder: Path) -> str:
    """URI of the model in `folder`, logged to `run` with its signature; the same files give the same URI."""
    network, _ = load_network(folder)
    channels = next(parameter for parameter in network.parameters() if parameter.ndim > 1).shape[1]
    return tracking.log_model(
        run,
        folder,
        input_example=np.zeros((2, channels, 4, 6, 8), np.float32),
        pip_requirements=[
            f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "numpy", "safetensors")
        ],
        code_path=Path(__file__).parent / "served_model.py",
    )


def _fit(
    arm: str,
    chosen: Train,
    seed: int,
    *,
    train: list[str],
    validation: list[str],
    state: Path,
    objective: Objective,
    run: tracking.Run,
) -> FitResult:
    """One training, its loss logged per epoch."""
    values = chosen.model_dump()
    network_name, network_kwargs = values.pop("network"), values.pop("network_kwargs")
    torch.manual_seed(seed)

    def on_epoch(epoch: int, row: Mapping[str, float]) -> None:
        run.log_metrics({"train/loss": row["loss"], "train/learning_rate": row["learning_rate"]}, step=epoch)

    def subjects(participants: list[str]) -> list[Subject]:
        return [Subject(participant, layout.processed(arm) / participant) for participant in participants]

    return fit(
        build_network(network_name, **network_kwargs),
        subjects(train),
        subjects(validation),
        settings=FitSettings(**values, seed=seed),
        state_dir=state,
        score=objective.of_subject if validation else None,
        monitor=objective.metric,
        mode=objective.mode,
        on_epoch=on_epoch,
    )


def with_overrides(train: Train, overrides: Mapping[str, Any]) -> Train:
    """`train` with the values a trial or a search chose; `network_kwargs.NAME` reaches into the network's arguments.

    Raises
    ------
    InputError
        If a name is no field of `train` or a value is out of its bounds.
    """
    content = train.model_dump()
    for name, value in overrides.items():
        if name.startswith("network_kwargs."):
            content["network_kwargs"] = content["network_kwargs"] | {name.removeprefix("network_kwargs."): value}
        else:
            content[name] = value
    try:
        return type(train).model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise InputError(
            f"tune.space in params.yaml: {name} = {problem['input']!r} is not possible ({problem['msg'].lower()})."
        ) from error


def state_folder(arm: str, stage: str, seed: int, train: Train, chosen: Mapping[str, Any]) -> Path:
    """Where a stage keeps what lets it resume: .reperfuse/<arm>/<fingerprint>/<stage> of the repository.

    The fingerprint is a hash of the processed data's index, the folds, the parameters and the code, so state of
    another experiment is never taken up. The number of trials and of workers is not in it: a search can be extended.
    """
    digest = sha256()
    for path in (layout.processed(arm) / "index.csv", layout.folds_csv(arm)):
        digest.update(path.read_bytes())
    where_only = {"accelerator", "precision", "num_workers"}
    digest.update(repr((seed, sorted(train.model_dump(exclude=where_only).items()), sorted(chosen.items()))).encode())
    package = Path(__file__).parents[1]
    for room in CODE:
        for path in sorted([package / room] if room.endswith(".py") else (package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return tracking.repository_root() / ".reperfuse" / arm / digest.hexdigest()[:16] / stage
