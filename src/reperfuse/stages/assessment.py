"""What a model is worth: on the untouched hold-out, and as the acquisition gets coarser."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.evaluation.resolution import FACETS, curve, facet_name, resolution_scalars, study_table, subject_rows
from reperfuse.evaluation.summary import MODEL, flat_metrics, summarise
from reperfuse.files import write_json
from reperfuse.imaging.volume import Volume, save_volume
from reperfuse.stages import layout
from reperfuse.stages.processed import read_folds, write_table
from reperfuse.stages.scores import RESOLUTION_TABLE, SCORES_TABLE, logged_names

Predict = Callable[[Volume], np.ndarray | None]
"""From an image on the model's grid to a prediction on that grid; None where the method has none (no artery found),
whose scores are undefined."""


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
    score: Callable[[str, np.ndarray, Case], dict[str, float | None]]
    """Scores of a method's prediction on the truth's grid."""
    bootstrap: Mapping[str, Any]
    """`samples`, `level` and `seed` of the intervals."""


Reached = tuple[Sequence[float], Sequence[Any]]
"""Levels and facets."""

Reach = Callable[[Volume, Sequence[float], Sequence[Any]], Reached]
"""From an image and the levels and facets of a study to those of them that the image can be brought to."""


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
    rows: list[dict[str, Any]] = []
    for participant in track(holdout(asked.arm), description=f"evaluate {asked.arm}"):
        case = asked.load(participant)
        for method, predict in asked.methods.items():
            predicted = predict(case.image)
            if predicted is None:
                print(f"{participant}: {method} has no prediction, so it is left out of that method's scores.")
                rows.append({"participant_id": participant, "method": method})
                continue
            prediction = asked.on_truth_grid(predicted, case)
            save_volume(
                out / "predictions" / participant / f"{method}.nii.gz",
                # Two decimals are finer than any use of these files, and compress in half the time.
                Volume(prediction.astype(np.float32).round(2), case.truth.affine),
            )
            rows.append({"participant_id": participant, "method": method} | asked.score(method, prediction, case))
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
        by_subject = scores[scores["method"] == MODEL].reset_index(drop=True)
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
    degrade: Callable[[Volume, float, Any], Volume],
    facets: Sequence[Any] = ("k",),
    reach: Reach | None = None,
    out: Path | None = None,
) -> pd.DataFrame:
    """Score every method on the hold-out at every level of degradation, in every facet.

    Writes scores.csv, curve.csv, metrics.json and run.json under `out`, results/<arm>/resolution by default; the
    default also logs stepped metrics to the training's run (step = level). Returns the scores.

    Parameters
    ----------
    levels, level_name, facets
        As in `evaluation.resolution.resolution_study`.
    degrade
        ``degrade(image, level, facet)``.
    reach
        Levels and facets that an image can be brought to; all of them by default. What is left out is printed.

    Raises
    ------
    InputError
        If nobody on the hold-out reaches any level.
    """
    folder = out or layout.results(asked.arm) / "resolution"
    rows: list[dict[str, Any]] = []
    for participant in track(holdout(asked.arm), description=f"resolution {asked.arm}"):
        case = asked.load(participant)
        here = (levels, facets)
        if reach is not None:
            here = reach(case.image, levels, facets)
            _say_left_out(participant, level_name, (levels, facets), here)
        rows += subject_rows(
            participant,
            case,
            levels=here[0],
            degrade=lambda subject, level, facet: degrade(subject.image, level, facet),
            predict={method: partial(_named, method, predict) for method, predict in asked.methods.items()},
            score=lambda named, subject: asked.score(named[0], asked.on_truth_grid(named[1], subject), subject),
            facets=here[1],
            level_name=level_name,
        )
    if not rows:
        raise InputError(
            f"Nobody on the hold-out of {asked.arm} reaches any level of the study: give coarser or noisier ones in "
            f"{asked.arm}.resolution of params.yaml."
        )
    scores = study_table(rows, level_name=level_name)
    _say_undefined(scores, asked.metric, level_name)
    seed = int(asked.bootstrap["seed"])
    curves = curve(scores, level_name=level_name, seed=seed)
    scalars = study_scalars(scores, asked.metric, level_name=level_name, seed=seed)
    write_table(folder / "scores.csv", scores)
    write_table(folder / "curve.csv", curves)
    write_json(folder / "metrics.json", scalars)
    if out is None:
        with tracking.resume(layout.models(asked.arm) / "run.json") as run:
            log_curves(run, curves, level_name)
            run.log_metrics({f"resolution/{name}": value for name, value in scalars.items()})
            run.log_table(scores, RESOLUTION_TABLE)
            run.log_table(curves, "tables/resolution_curve.csv")
            write_json(folder / "run.json", {"run_id": run.origin, "metrics": scalars})
    return scores


def _named(method: str, predict: Predict, image: Volume) -> tuple[str, np.ndarray] | None:
    """A method's prediction beside its name, which a score may go by."""
    prediction = predict(image)
    return None if prediction is None else (method, prediction)


def study_scalars(scores: pd.DataFrame, metric: str, *, level_name: str, seed: int) -> dict[str, float]:
    """`resolution_scalars` over all facets and, where there are several, of each with its name at the end."""
    values = scores[FACETS[level_name]].unique()
    scalars = resolution_scalars(scores, metric, level_name=level_name, seed=seed)
    for value in values if len(values) > 1 else ():
        of_one = resolution_scalars(scores, metric, at=value, level_name=level_name, seed=seed)
        scalars |= {f"{name}_{facet_name(level_name, value)}": number for name, number in of_one.items()}
    return scalars


def log_curves(run: tracking.Run, curves: pd.DataFrame, level_name: str) -> None:
    """Every mean as a stepped metric: `resolution/<metric>` of the model, `resolution/<method>/<metric>` of the others.

    Each is the mean over the facets; where there are several, each facet's own stands beside (`…_snr20`). The step is
    the level in whole units: MLflow's steps are whole numbers, so a level in seconds is logged in milliseconds.
    """
    scale = 1000 if level_name.endswith("_s") else 1
    facet = FACETS[level_name]
    values = curves[facet].unique()
    named = [(f"_{facet_name(level_name, value)}", curves[curves[facet] == value]) for value in values]
    for suffix, part in [("", curves), *(named if len(named) > 1 else [])]:
        means = part.groupby([level_name, "method", "metric"], sort=False)["mean"].mean()
        for level, at_level in means.groupby(level=0, sort=False):
            found = {
                f"resolution/{'' if method == MODEL else f'{method}/'}{metric}{suffix}": value
                for (_, method, metric), value in at_level.items()
            }
            run.log_metrics(found, step=round(float(str(level)) * scale))


def _say_left_out(participant: str, level_name: str, asked: Reached, reached: Reached) -> None:
    """One sentence on the levels and facets that this participant does not reach."""
    out = [
        f"{name} {', '.join(f'{value:g}' for value in wanted if value not in there)}"
        for name, wanted, there in zip((level_name, FACETS[level_name]), asked, reached, strict=True)
        if len(there) < len(wanted)
    ]
    if out:
        print(f"{participant}: left out {' and '.join(out)}, which its own acquisition is not finer than.")


def _say_undefined(scores: pd.DataFrame, metric: str, level_name: str) -> None:
    """One sentence for each method and participant without a score somewhere."""
    for (participant, method), part in scores[scores[metric].isna()].groupby(["participant_id", "method"], sort=False):
        where = ", ".join(
            f"{level_name} {level:g} at {facet_name(level_name, value)}"
            for level, value in zip(part[level_name], part[FACETS[level_name]], strict=True)
        )
        print(f"{participant}: {method} has no {metric} at {where}; it does not count there.")


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
