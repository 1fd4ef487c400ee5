"""One self-contained HTML page per arm: what was studied, how good it is, and how anyone can tell."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reperfuse.evaluation import resolution as study
from reperfuse.evaluation.figures import method_label, metric_label
from reperfuse.evaluation.metrics import METRICS
from reperfuse.evaluation.paired import compare_methods
from reperfuse.evaluation.summary import MODEL, metric_columns, summarise
from reperfuse.evaluation.tables import (
    cohort_table,
    comparison_table,
    detection_table,
    first,
    fold_table,
    hypothesis_table,
    number,
    pairs_table,
    resolution_tables,
    score_of,
    score_table,
    size_table,
    strata_table,
    subject_table,
    validation_table,
    with_interval,
)
from reperfuse.evaluation.trials import search_table
from reperfuse.files import write_text

RESEARCH_USE = "Research use only. Not for diagnosis or treatment decisions."

FEW_SUBJECTS = 12
"""Below this many subjects the page says that its intervals are too narrow (see `summary.bootstrap_interval`)."""

ARMS: dict[str, dict[str, Any]] = {
    "lesion": {
        "question": "Where is the stroke lesion? A network marks it on MRI; drawn masks are the truth.",
        "headline": ("dice", "lesion_f1_isles22", "hd95_mm", "volume_difference_ml"),
        "level_name": "thickness_mm",
        "against": "baseline_threshold",
        "coarser": "thicker slices",
        "scope": "Every method is scored on the grid of the true mask.",
        "dice": "Overlap of the predicted and the true lesion mask: 0 is none, 1 is identical.",
    },
    "perfusion": {
        "question": (
            "How late does blood arrive? A network estimates Tmax from a DSC perfusion series; "
            "the reference Tmax map is the truth."
        ),
        "headline": ("mae_s", "ccc", "dice", "volume_difference_ml"),
        "level_name": "tr_s",
        "against": "baseline_osvd",
        "coarser": "sparser sampling in time and noise",
        "scope": (
            "Errors are over all brain voxels; Dice and volume difference compare the tissue with "
            "Tmax\u00a0>\u00a06\u00a0s."
        ),
        "dice": "Overlap of the tissue with Tmax > 6 s in both maps: 0 is none, 1 is identical.",
    },
}
"""The words of each arm; the first headline metric is the one methods are compared on, `against` the method that the
resolution study compares the others with."""

CAPTIONS = {
    "cohort": "",
    "folds": "Cross-validation: small dots are subjects, diamonds the mean of a fold.",
    "training": "The final training, on all training subjects.",
    "scores": "Hold-out subjects, one dot each.",
    "overlay": "",
    "resolution": "Score as the acquisition gets coarser, each subject at the levels that its own scan reaches.",
    "more": "",
}
"""Sections that take figures, by the beginning of a figure's name; every other figure goes to the end of the page."""


def render_report(
    path: Path | str,
    *,
    title: str,
    arm: str,
    cohort: pd.DataFrame,
    folds: pd.DataFrame,
    scores: pd.DataFrame,
    figures: Mapping[str, Figure],
    lineage: Mapping[str, Any],
    summary: pd.DataFrame | None = None,
    cross_validation: pd.DataFrame | None = None,
    trials: pd.DataFrame | None = None,
    chosen: Mapping[str, Any] | None = None,
    resolution: pd.DataFrame | None = None,
    hypotheses: pd.DataFrame | None = None,
    sizes: pd.DataFrame | None = None,
    detection: pd.DataFrame | None = None,
    headline: Sequence[str] = (),
    notes: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Write the report of one arm to `path`, whole or not at all: one HTML file without scripts or outward links.

    Parameters
    ----------
    path
        Where the page goes, ``reports/<arm>.html``.
    title
        Heading of the page.
    arm
        ``"lesion"`` or ``"perfusion"``.
    cohort
        One row per subject, as results/<arm>/cohort.csv; numeric columns are summarised, ``centre`` counted.
    folds
        ``participant_id, side (train|holdout), fold[, centre]``, as results/<arm>/folds.csv.
    scores
        Hold-out scores: ``participant_id, method, metrics…``; the network is the method ``"model"``, baselines are
        ``baseline_<what>``, other networks of the same search ``rival_<choice>``. As results/<arm>/evaluate/scores.csv.
    figures
        Name to figure. A name's beginning chooses the section: ``cohort``, ``folds``, ``training``, ``scores``,
        ``overlay`` (shown in the order given), ``resolution``; others follow at the end. The alternative text is the
        figure's label, which `evaluation.figures` sets.
    lineage
        What ran: code revision, data revision, seed, versions, run id; nested mappings are flattened.
    summary
        `summary.summarise(scores)` when it exists already, for instance with other settings.
    cross_validation
        Scores of the chosen trial: ``fold`` and metric columns, one row per fold or per validation subject.
    trials
        The search, as `trials.trials_table`.
    chosen
        The parameters the final training used.
    resolution
        Table of `resolution.resolution_study`.
    hypotheses
        Table of `hypotheses.hypothesis_tests`: its sentences and verdicts.
    sizes
        Table of `resolution.size_curve`.
    detection
        Table of `detection.detection_limit`.
    headline
        Scores that the page begins with, each followed through the resolution study; methods are compared by the
        first. By default those of the arm, of which the first alone is followed.
    notes
        Sentences for the reader about this study, shown under the headline (for instance "All subjects are phantoms.").
    seed
        Of the bootstrap.

    Raises
    ------
    KeyError
        If `arm` is unknown.
    """
    words = ARMS[arm]
    table = summarise(scores, seed=seed) if summary is None else summary
    known = [metric for metric in metric_columns(scores) if metric in set(table["metric"])]
    studied = [metric for metric in headline if metric in known]
    headline = studied or [metric for metric in words["headline"] if metric in known] or known[:1]
    metrics = headline + [metric for metric in known if metric not in headline]
    comparison = compare_methods(scores, headline[0], seed=seed)
    n_holdout = int(scores["participant_id"].nunique())
    placed: dict[str, list[dict[str, str]]] = {name: [] for name in CAPTIONS}
    for name, figure in figures.items():
        section = next((begin for begin in CAPTIONS if name.startswith(begin)), "more")
        placed[section].append({"uri": image_uri(figure), "alt": str(figure.get_label()) or name})

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        arm=arm,
        words=words,
        research_use=RESEARCH_USE,
        cards=[_card(table, metric) for metric in headline],
        verdict=_verdict(table, comparison, scores, headline[0]),
        caution=_caution(n_holdout),
        notes=notes,
        n_holdout=n_holdout,
        figures=placed,
        captions=CAPTIONS,
        cohort_table=cohort_table(cohort, folds),
        fold_table=fold_table(folds),
        validation_table=None if cross_validation is None else validation_table(cross_validation, table, headline),
        trials_table=None if trials is None else search_table(trials),
        chosen_table=None if not chosen else pairs_table("Parameters of the final training", chosen),
        score_table=score_table(table, metrics, n_holdout),
        comparison_table=comparison_table(comparison, headline[0]),
        subject_table=subject_table(scores, metrics),
        strata_table=strata_table(scores, cohort, headline, seed),
        resolution_tables=[]
        if resolution is None
        else [
            table
            for metric in studied or headline[:1]
            for table in resolution_tables(resolution, metric, words["level_name"], seed, against=words["against"])
        ],
        resolution_sentence=""
        if resolution is None
        else _resolution_sentence(resolution, headline[0], words["level_name"], seed),
        difference_sentence=""
        if resolution is None
        else _difference_sentence(resolution, headline[0], words["level_name"], words["against"], seed),
        findings=[] if hypotheses is None else list(hypotheses["sentence"]),
        study_tables=[
            make(found)
            for found, make in (
                (hypotheses, lambda found: hypothesis_table(found, words["level_name"])),
                (sizes, lambda found: size_table(found, metric_of(found), words["level_name"])),
                (detection, lambda found: detection_table(found, words["level_name"])),
            )
            if found is not None and len(found)
        ],
        meanings=_meanings(metrics, words),
        lineage_table=pairs_table("What produced this page", lineage),
    )
    write_text(path, page)


def metric_of(sizes: pd.DataFrame) -> str:
    """The score that a table of `resolution.size_curve` follows."""
    return str(sizes["metric"].iloc[0])


def image_uri(figure: Figure) -> str:
    """The figure as a data URI: PNG when it shows an image, SVG otherwise; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    if any(axes.images for axes in figure.axes):
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        kind = "image/png"
    else:
        with matplotlib.rc_context({"svg.hashsalt": "reperfuse", "svg.fonttype": "path"}):
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        kind = "image/svg+xml"
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _card(table: pd.DataFrame, metric: str) -> dict[str, str]:
    row = score_of(table, MODEL, metric)
    note = METRICS.get(metric)
    defined = bool(row) and bool(np.isfinite(row["mean"]))
    interval = defined and bool(np.isfinite(row["low"]))
    low, high = (number(row[end], metric) for end in ("low", "high")) if interval else ("", "")
    return {
        "label": note.label if note else metric,
        "value": number(row["mean"], metric) if defined else "–",
        "unit": note.unit if note else "",
        "interval": f"95 % interval: {low} to {high}"
        if low != high
        else "the same for all"
        if interval
        else "no interval",
        "n": f"n = {row['n'] if row else 0}",
        "better": {"higher": "higher is better", "lower": "lower is better", "zero": "0 is best"}.get(
            note.better if note else "", ""
        ),
    }


def _verdict(table: pd.DataFrame, comparison: pd.DataFrame, scores: pd.DataFrame, metric: str) -> str:
    """The model's score, the best baseline's, and whether the difference is clear, in a few sentences."""
    row = score_of(table, MODEL, metric)
    note, (label, unit) = METRICS.get(metric), _label_and_unit(metric)
    text = f"On {_subjects(int(row['n']))} the model's mean {label} is {number(row['mean'], metric)}{unit}"
    if np.isfinite(row["low"]):
        text += f" (95 % interval {number(row['low'], metric)} to {number(row['high'], metric)})"
    baselines = table[(table["metric"] == metric) & table["method"].str.startswith("baseline_")].dropna(subset=["mean"])
    if baselines.empty:
        return f"{text}."
    sign = 1 if note is None or note.better == "higher" else -1
    best, highest = max(zip(baselines["method"], baselines["mean"], strict=True), key=lambda pair: sign * pair[1])
    pair = first(comparison[comparison["method"] == best])
    wide = scores.pivot(index="participant_id", columns="method", values=metric)
    wins = int((sign * (wide[MODEL] - wide[best]) > 0).sum())
    text += (
        f". The best baseline ({method_label(str(best)).lower()}) reaches {number(highest, metric)}{unit}. "
        f"The model is better for {wins} of {int(pair['n'])} subjects; "
        f"mean difference {with_interval(pair, metric, 'mean_difference')}{unit}"
    )
    worst_case, best_case = sorted([sign * pair["low"], sign * pair["high"]])
    if not np.isfinite(worst_case):
        return f"{text}: too few subjects to say more."
    if worst_case > 0:
        return f"{text}: better than the best baseline here."
    return f"{text}: {'worse than' if best_case < 0 else 'not clearly different from'} this baseline."


def _subjects(n: int) -> str:
    return f"{n} hold-out {'subject' if n == 1 else 'subjects'}"


def _caution(n: int) -> str:
    if n >= FEW_SUBJECTS:
        return ""
    return (
        f"n = {_subjects(n)}: intervals are wide, and with so few even a nominal 95 % bootstrap interval is too narrow "
        "(for skewed scores it held the true mean in 80 % of simulated cohorts of 4 subjects, 88 % of 6 and 92 % of "
        "12). Five pairs or fewer cannot reach p = 0.05 in the signed-rank test. "
        "Read these numbers as a check that the pipeline works, not as a claim about patients."
    )


def _resolution_sentence(scores: pd.DataFrame, metric: str, level_name: str, seed: int) -> str:
    """What the model loses from the finest to the coarsest level, a sentence for each facet; empty when undefined."""
    values = scores[study.FACETS[level_name]].unique()
    sentences = [_loss_sentence(scores, metric, level_name, value, seed, named=len(values) > 1) for value in values]
    return " ".join(filter(None, sentences))


def _loss_sentence(scores: pd.DataFrame, metric: str, level_name: str, value: Any, seed: int, *, named: bool) -> str:
    scalars = study.resolution_scalars(scores, metric, at=value, level_name=level_name, seed=seed)
    if not scalars:
        return ""
    loss = next(name for name in scalars if name.startswith((f"{metric}_drop_", f"{metric}_rise_")))
    label, unit = _label_and_unit(metric)
    low, high = scalars.get(f"{loss}_low"), scalars.get(f"{loss}_high")
    falls = ("_drop_" in loss) == (scalars[loss] >= 0)
    if scalars[loss] < 0:
        low, high, scalars[loss] = (None if high is None else -high), (None if low is None else -low), -scalars[loss]
    span = "" if low is None else f" (95 % interval {number(low, metric)} to {number(high, metric)})"
    level_unit = level_name.rsplit("_", 1)[-1]
    levels = scores.loc[scores[study.FACETS[level_name]] == value, level_name]
    begin = f"{_capital(study.facet_label(level_name, value))}: from" if named else "From"
    return (
        f"{begin} {levels.min():g} to {levels.max():g} {level_unit} the model's mean {label} "
        f"{'falls' if falls else 'rises'} by {number(scalars[loss], metric)}{unit}{span}; averaged over that range "
        f"it is {number(scalars['resolution_auc'], metric)}{unit}."
    )


def _difference_sentence(scores: pd.DataFrame, metric: str, level_name: str, against: str, seed: int) -> str:
    """At how many levels the model is clearly better or worse than `against`; empty when that did not take part."""
    effects = study.method_effects(scores, metric, against=against, level_name=level_name, seed=seed)
    effects = effects[(effects["method"] == MODEL) & effects["low"].notna()]
    if effects.empty:
        return ""
    note = METRICS.get(metric)
    sign = 1 if note is None or note.better == "higher" else -1
    ends = sign * effects[["low", "high"]]
    better, worse = int((ends.min(axis=1) > 0).sum()), int((ends.max(axis=1) < 0).sum())
    smallest, largest = effects["mean_difference"].min(), effects["mean_difference"].max()
    label, unit = _label_and_unit(metric)
    return (
        f"Against {method_label(against)} the model's mean {label} differs by {number(smallest, metric)} to "
        f"{number(largest, metric)}{unit}; the interval of the difference lies on the better side of 0 at {better} of "
        f"{len(effects)} settings, on the worse side at {worse}."
    )


def _label_and_unit(metric: str) -> tuple[str, str]:
    note = METRICS.get(metric)
    return (note.label, f" {note.unit}" if note.unit else "") if note else (metric, "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _meanings(metrics: Sequence[str], words: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    best = {"higher": "Higher is better.", "lower": "Lower is better.", "zero": "0 is best."}
    return [
        (
            metric_label(metric),
            words["dice"] if metric == "dice" else METRICS[metric].meaning,
            best[METRICS[metric].better],
        )
        for metric in metrics
        if metric in METRICS
    ]
