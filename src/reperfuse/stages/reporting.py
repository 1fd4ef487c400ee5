"""The page of an arm, from the tables that the other stages wrote."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reperfuse import tracking
from reperfuse.evaluation import figures
from reperfuse.evaluation.metrics import METRICS
from reperfuse.evaluation.report import ARMS, render_report
from reperfuse.evaluation.resolution import FACETS, facet_name
from reperfuse.evaluation.study_figure import study_panels
from reperfuse.evaluation.summary import MODEL, ranked_subjects
from reperfuse.evaluation.tables import COLUMN_LABELS
from reperfuse.evaluation.trials import known_metrics
from reperfuse.files import atomic_path, read_json
from reperfuse.imaging.volume import load_volume
from reperfuse.params import Report
from reperfuse.stages import layout
from reperfuse.stages.processed import read_cohort, read_table
from reperfuse.stages.scores import STUDY_TABLES
from reperfuse.stages.searched import name_among_rivals, trials_of, what_was_chosen

Overlay = Callable[[str, Mapping[str, np.ndarray], str, Mapping[str, str]], Figure]
"""(participant, method to prediction on the truth's grid, title, method to caption) to a figure."""

FLAT = ("baseline_empty", "baseline_mean")
"""Methods that say the same of every voxel: scored, but nothing to look at."""


def report_arm(
    arm: str,
    *,
    title: str,
    metric: str,
    level_name: str,
    sizes: str,
    overlay: Overlay,
    settings: Report,
    bootstrap: Mapping[str, Any],
) -> None:
    """Write reports/<arm>.html and log it with its figures to the training's run.

    Parameters
    ----------
    metric
        What subjects are ranked by.
    sizes
        Column of cohort.csv whose distribution is drawn.
    overlay
        Draws the predictions of one subject.
    settings
        How many subjects are drawn, and what the page begins with.

    Raises
    ------
    InputError
        If `settings.metrics` names what is no score.
    """
    headline = known_metrics(settings.metrics)
    results = layout.results(arm)
    cohort, folds = read_cohort(arm), read_table(layout.folds_csv(arm), arm)
    scores = read_table(results / "evaluate" / "scores.csv", arm)
    study = read_study(arm, results / "resolution")
    validation = read_table(results / "tune" / "validation.csv", arm)
    history = read_table(layout.models(arm) / "history.csv", arm)
    best = read_json(layout.best_json(arm))
    chosen_by = best["metric"]
    names = {MODEL: f"{name_among_rivals(best)},"} if best["rivals"] else {}
    record = read_json(layout.models(arm) / "run.json")
    sides = cohort.merge(folds[["participant_id", "side"]], on="participant_id", how="left")["side"]
    page: dict[str, Figure] = {
        "cohort volumes": figures.volume_histogram(cohort[sizes], sides=sides, label=COLUMN_LABELS[sizes]),
        "folds": figures.fold_dots(validation, chosen_by),
        "training": figures.training_curve(history[["epoch", "loss"]]),
        "scores": figures.score_dots(scores, metric),
    }
    for label, participant in ranked_subjects(scores, metric, n=settings.n_overlays).items():
        rows = scores[scores["participant_id"] == participant].set_index("method")
        shown = {str(method): value for method, value in rows[metric].dropna().items() if method not in FLAT}
        page[f"overlay {label} {participant}"] = overlay(
            participant,
            {method: prediction(arm, participant, method) for method in shown},
            f"{participant}: {label}",
            {
                method: " ".join(
                    filter(None, [names.get(method, ""), METRICS[metric].label, f"{value:.2f}", METRICS[metric].unit])
                )
                for method, value in shown.items()
            },
        )
    page |= study_figures(study, metric, level_name)
    path = layout.report(arm)
    render_report(
        path,
        title=title,
        arm=arm,
        cohort=cohort,
        folds=folds,
        scores=scores,
        figures=page,
        lineage=record["lineage"] | {"run id": record["run_id"]},
        summary=read_table(results / "evaluate" / "summary.csv", arm),
        cross_validation=validation,
        trials=trials_of(results / "tune", searched=list(best["overrides"]), lead=headline),
        chosen=record["params"],
        resolution=study["scores"],
        hypotheses=study["hypotheses"],
        sizes=study["sizes"],
        detection=study.get("detection"),
        headline=headline,
        notes=[what_was_chosen(best)],
        seed=int(bootstrap["seed"]),
    )
    with tracking.resume(record) as run:
        run.log_artifact(path, "report")
        for name, figure in page.items():
            run.log_figure(figure, f"figures/{name.replace(' ', '_')}.png")


def read_study(arm: str, folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a resolution study by name, those that the arm has."""
    there = [name for name in STUDY_TABLES if (folder / f"{name}.csv").exists()]
    return {name: read_table(folder / f"{name}.csv", arm) for name in there or STUDY_TABLES[:1]}


def study_figures(study: Mapping[str, pd.DataFrame], metric: str, level_name: str) -> dict[str, Figure]:
    """A figure for each facet of a study: `resolution <facet>`."""
    found = {}
    for value in study["scores"][FACETS[level_name]].unique():
        name = value if isinstance(value, str) else facet_name(level_name, value)
        found[f"resolution {name}"] = study_panels(
            study["curve"], metric, level_name=level_name, at=value, detection=study.get("detection")
        )
    return found


def draw_study(arm: str, folder: Path) -> None:
    """The figures of a study that ends in no report: PNG files in its folder, and artifacts of its run."""
    words = ARMS[arm]
    drawn = study_figures(read_study(arm, folder), words["headline"][0], words["level_name"])
    files = {f"{name.replace(' ', '_')}.png": figure for name, figure in drawn.items()}
    with tracking.resume(folder / "run.json") as run:
        for name, figure in files.items():
            with atomic_path(folder / name) as inside:
                figure.savefig(inside, dpi=150)
            run.log_figure(figure, f"figures/{name}")
    print(f"{folder}: in words in study.md, in pictures in {', '.join(files)}")


def prediction(arm: str, participant: str, method: str) -> np.ndarray:
    """What evaluate kept for one participant and method, on the truth's grid."""
    return load_volume(layout.results(arm) / "evaluate" / "predictions" / participant / f"{method}.nii.gz").data
