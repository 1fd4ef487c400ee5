"""What a model is worth on the untouched hold-out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.evaluation.resolution import LESIONS
from reperfuse.evaluation.summary import MODEL, flat_metrics, summarise
from reperfuse.files import write_json
from reperfuse.imaging.volume import Volume, save_volume
from reperfuse.stages import layout
from reperfuse.stages.processed import read_folds, write_table
from reperfuse.stages.scores import SCORES_TABLE, logged_names

Predict = Callable[[Volume], np.ndarray | None]
"""From an image on the model's grid to a prediction on that grid; None where the method has none (no artery found),
whose scores are undefined."""


@dataclass(frozen=True)
class Case:
    """One subject as it is scored."""

    scan: Any
    """As it was acquired: images by modality, or the DSC series."""
    truth: Volume
    """Mask or reference map on its own grid, on which every prediction is scored."""


@dataclass(frozen=True)
class Assessment:
    """What an arm asks of its methods; the same record serves the hold-out and `stages.study`."""

    arm: str
    metric: str
    methods: Mapping[str, Predict]
    """`model` and the baselines."""
    load: Callable[[str], Case]
    prepare: Callable[[Any], Volume]
    """From a scan to what methods see: the images on the model's grid, or the DSC series itself."""
    on_truth_grid: Callable[[np.ndarray, Volume, Case], np.ndarray]
    """A prediction for what `prepare` gave, brought to the grid of the truth, before any threshold."""
    score: Callable[[str, np.ndarray, Case], dict[str, Any]]
    """Scores of a method's prediction on the truth's grid; `LESIONS` holds each lesion, where the arm has some."""
    bootstrap: Mapping[str, Any]
    """`samples`, `level` and `seed` of the intervals."""
    digest: str = ""
    """Of the model, by which unfinished work on another one is not taken up."""


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
        image = asked.prepare(case.scan)
        for method, predict in asked.methods.items():
            predicted = predict(image)
            if predicted is None:
                print(f"{participant}: {method} has no prediction, so it is left out of that method's scores.")
                rows.append({"participant_id": participant, "method": method})
                continue
            prediction = asked.on_truth_grid(predicted, image, case)
            save_volume(
                out / "predictions" / participant / f"{method}.nii.gz",
                # Two decimals are finer than any use of these files, and compress in half the time.
                Volume(prediction.astype(np.float32).round(2), case.truth.affine),
            )
            rows.append({"participant_id": participant, "method": method} | asked.score(method, prediction, case))
    scores = pd.DataFrame(rows).drop(columns=LESIONS, errors="ignore")
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
