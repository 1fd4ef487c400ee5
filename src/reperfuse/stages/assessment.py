"""What a model is worth: on the untouched hold-out, and as the acquisition gets coarser."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.evaluation.resolution import curve, resolution_scalars, study_table, subject_rows
from reperfuse.evaluation.summary import flat_metrics, summarise
from reperfuse.files import write_json
from reperfuse.imaging.volume import Volume, save_volume
from reperfuse.stages import layout
from reperfuse.stages.processed import read_folds, write_table
from reperfuse.stages.scores import SCORES_TABLE, logged_names

Predict = Callable[[Volume], np.ndarray]
"""From an image on the model's grid to a prediction on that grid."""


@dataclass(frozen=True)
class Case:
    """One subject as it is scored."""

    image: Volume
    """What methods see: T1w on the model grid, or the DSC series."""
    truth: Volume
    """Mask or reference map on its own grid, on which every prediction is scored."""


@dataclass(frozen=True)
class Assessment:
    """What an arm asks of its methods; the same record serves the hold-out and the resolution study."""

    arm: str
    metric: str
    methods: Mapping[str, Predict]
    """`model` and the baselines."""
    load: Callable[[str], Case]
    on_truth_grid: Callable[[np.ndarray, Case], np.ndarray]
    """A prediction brought to the grid of the truth, before any threshold."""
    score: Callable[[np.ndarray, Case], dict[str, float | None]]
    """Scores of a prediction on the truth's grid."""
    bootstrap: Mapping[str, Any]
    """`samples`, `level` and `seed` of the intervals."""


def holdout(arm: str) -> list[str]:
    """Participants on the hold-out side.

    Raises
    ------
    InputError
        If nobody is.
    """
    table = read_folds(arm)
    chosen = sorted(table.loc[table["side"] == "holdout", "participant_id"])
    if not chosen:
        raise InputError(
            f"{layout.folds_csv(arm)} holds nobody out: raise {arm}.folds.holdout_fraction in params.yaml."
        )
    return chosen


def evaluate_arm(asked: Assessment) -> pd.DataFrame:
    """Score every method on the hold-out, keep the predictions, and log to the training's run.

    Writes scores.csv (one row per participant and method), summary.csv, metrics.json, run.json and
    predictions/<participant_id>/<method>.nii.gz under results/<arm>/evaluate; returns the scores.
    """
    out = layout.results(asked.arm) / "evaluate"
    rows = []
    for participant in track(holdout(asked.arm), description=f"evaluate {asked.arm}"):
        case = asked.load(participant)
        for method, predict in asked.methods.items():
            prediction = asked.on_truth_grid(predict(case.image), case)
            save_volume(
                out / "predictions" / participant / f"{method}.nii.gz",
                # Two decimals are finer than any use of these files, and compress in half the time.
                Volume(prediction.astype(np.float32).round(2), case.truth.affine),
            )
            rows.append({"participant_id": participant, "method": method} | asked.score(prediction, case))
    scores = pd.DataFrame(rows)
    metrics = [name for name in scores.columns if name not in ("participant_id", "method")]
    scores[metrics] = scores[metrics].astype(float)
    summary = summarise(scores, metrics=metrics, **asked.bootstrap)
    flat = flat_metrics(summary)
    write_table(out / "scores.csv", scores)
    write_table(out / "summary.csv", summary)
    write_json(out / "metrics.json", flat)
    with tracking.resume(layout.models(asked.arm) / "run.json") as run:
        run.log_metrics(logged_names(flat))
        by_subject = scores[scores["method"] == "model"].reset_index(drop=True)
        for step, value in enumerate(by_subject[asked.metric]):
            run.log_metrics({f"subject/{asked.metric}": value}, step=step)
        run.log_table(scores, SCORES_TABLE)
        run.log_table(summary, "tables/summary.csv")
        write_json(out / "run.json", {"run_id": run.origin, "metrics": flat})
    return scores


def resolution_arm(
    asked: Assessment,
    *,
    levels: Sequence[float],
    level_name: str,
    degrade: Callable[[Volume, float, str], Volume],
    axes: Sequence[str] = ("k",),
    out: Path | None = None,
) -> pd.DataFrame:
    """Score every method on the hold-out at every level of degradation.

    Writes scores.csv, curve.csv, metrics.json and run.json under `out`, results/<arm>/resolution by default; the
    default also logs stepped metrics to the training's run (step = level). Returns the scores.
    """
    folder = out or layout.results(asked.arm) / "resolution"
    rows: list[dict[str, Any]] = []
    for participant in track(holdout(asked.arm), description=f"resolution {asked.arm}"):
        case = asked.load(participant)
        rows += subject_rows(
            participant,
            case,
            levels=levels,
            degrade=lambda subject, level, axis: degrade(subject.image, level, axis),
            predict=asked.methods,
            score=lambda prediction, subject: asked.score(asked.on_truth_grid(prediction, subject), subject),
            axes=axes,
            level_name=level_name,
        )
    scores = study_table(rows, level_name=level_name)
    seed = int(asked.bootstrap["seed"])
    curves = curve(scores, level_name=level_name, seed=seed)
    scalars = resolution_scalars(scores, asked.metric, level_name=level_name, seed=seed)
    write_table(folder / "scores.csv", scores)
    write_table(folder / "curve.csv", curves)
    write_json(folder / "metrics.json", scalars)
    if out is None:
        with tracking.resume(layout.models(asked.arm) / "run.json") as run:
            log_curves(run, curves, level_name)
            run.log_metrics({f"resolution/{name}": value for name, value in scalars.items()})
            run.log_table(scores, "tables/resolution_scores.csv")
            run.log_table(curves, "tables/resolution_curve.csv")
            write_json(folder / "run.json", {"run_id": run.origin, "metrics": scalars})
    return scores


def log_curves(run: tracking.Run, curves: pd.DataFrame, level_name: str) -> None:
    """Every metric of the model as a stepped metric, `resolution/<metric>`; step is the level in whole units.

    MLflow's steps are whole numbers, so a level in seconds is logged in milliseconds (`tr_ms`).
    """
    scale = 1000 if level_name.endswith("_s") else 1
    model = curves[curves["method"] == "model"]
    for level, at_level in model.groupby(level_name, sort=False):
        means = at_level.groupby("metric")["mean"].mean()
        step = round(float(str(level)) * scale)
        run.log_metrics({f"resolution/{metric}": value for metric, value in means.items()}, step=step)


def study_folder(model: str | None, out: Path | None) -> Path | None:
    """Where a study of a named model goes; the pipeline's own model writes to its own place.

    Raises
    ------
    InputError
        If only one of the two is given.
    """
    if (model is None) != (out is None):
        raise InputError("--model and --out go together: a study of another model must not replace the pipeline's own.")
    return out
