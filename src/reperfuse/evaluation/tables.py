"""Tables as people read them: rows of text from score tables, for the report."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reperfuse.evaluation import resolution as study
from reperfuse.evaluation.figures import method_label, metric_label
from reperfuse.evaluation.metrics import note_of
from reperfuse.evaluation.resolution import LEVEL_LABELS, facet_label
from reperfuse.evaluation.summary import MODEL, strata

Table = dict[str, Any]
"""``caption``, ``columns``, ``rows`` of text; ``text``: columns set left; ``strong``: a column set bold; ``code``."""

COLUMN_LABELS = {
    "lesion_volume_ml": "Lesion volume [mL]",
    "hypoperfused_ml": "Volume with Tmax > 6 s [mL]",
    "n_sessions": "Sessions",
    **{f"n_{axis}": f"Voxels along {axis}" for axis in "ijk"},
    **{f"spacing_{axis}_mm": f"Spacing along {axis} [mm]" for axis in "ijk"},
    "n_frames": "Time frames",
    "te_s": "Echo time TE [s]",
    "tr_s": "Repetition time TR [s]",
}
"""What the columns of a cohort table are called."""

STRATA = {"lesion_volume_ml": "Volume", "centre": "Centre"}
"""What a stratum is a class of, before its name."""


COUNTS = ("lesion_count_difference", "missed_lesions", "invented_lesions", "missed_lesions_thick")
"""Scores that count lesions, whose mean has one decimal."""


def number(value: Any, metric: str = "") -> str:
    """A number as the tables show it; a dash when it is undefined.

    >>> number(0.6125, "dice"), number(3.456, "hd95_mm"), number(None), number(-1.5, "bias_s")
    ('0.613', '3.46', '–', '−1.50')
    """
    if value is None or not np.isfinite(value):
        return "–"
    note = note_of(metric)
    digits = 1 if metric in COUNTS else 2 if note is None or note.unit else 3
    # Adding 0 turns the −0.00 that rounding leaves into 0.00.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def p_value(value: Any) -> str:
    """A p value with three digits; a dash when there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def with_interval(row: Mapping[str, Any], metric: str, mean: str = "mean") -> str:
    """A mean with its interval, or without one where there is none; a dash when it is undefined."""
    if not np.isfinite(row[mean]):
        return "–"
    if not np.isfinite(row["low"]) or row["low"] == row["high"]:
        return number(row[mean], metric)
    return f"{number(row[mean], metric)} ({number(row['low'], metric)} to {number(row['high'], metric)})"


def model_first(methods: Iterable[str]) -> list[str]:
    """Method names in the order of every table: the model, the rivals of its search, then the others, by name.

    >>> model_first(["baseline_empty", "rival_cnn8", "model"])
    ['model', 'rival_cnn8', 'baseline_empty']
    """
    return sorted(methods, key=lambda method: (method != MODEL, not method.startswith("rival_"), method))


def first(table: pd.DataFrame) -> dict[str, Any]:
    """The first row of a table as a dict; empty when there is none."""
    return {str(key): value for key, value in table.to_dict("records")[0].items()} if len(table) else {}


def score_of(table: pd.DataFrame, method: str, metric: str) -> dict[str, Any]:
    """The row of a summary for one method and metric; empty when there is none."""
    return first(table[(table["method"] == method) & (table["metric"] == metric)])


def score_table(table: pd.DataFrame, metrics: Sequence[str], n_holdout: int) -> Table:
    """Metrics down, methods across, the model first."""
    methods = model_first(table["method"].unique())
    rows = []
    for metric in metrics:
        cells = [metric_label(metric)]
        for method in methods:
            row = score_of(table, method, metric)
            n = f" · n = {row['n']}" if row and 0 < row["n"] < n_holdout else ""
            cells.append(with_interval(row, metric) + n if row else "–")
        rows.append(cells)
    return {
        "caption": f"Hold-out, n = {n_holdout}: mean (95 % interval); a smaller n counts who it is defined for",
        "columns": ["Metric", *map(method_label, methods)],
        "rows": rows,
        "strong": 1,
    }


def comparison_table(comparison: pd.DataFrame, metric: str) -> Table:
    """The rows of `summary.compare_methods`."""
    rows = [
        [
            method_label(str(row["method"])),
            with_interval({str(key): value for key, value in row.items()}, metric, "mean_difference"),
            p_value(row["p_value"]),
            f"{row['n']:.0f}",
        ]
        for row in comparison.to_dict("records")
    ]
    return {
        "caption": f"Model minus each other method, {metric_label(metric)}, paired by subject",
        "columns": ["Other method", "Mean difference (95 % interval)", "Wilcoxon p", "n"],
        "rows": rows,
    }


def strata_table(scores: pd.DataFrame, cohort: pd.DataFrame, metrics: Sequence[str], seed: int) -> Table | None:
    """The model by class of lesion volume and by centre, strata down; None where neither divides the hold-out."""
    kinds: dict[str, Any] = {"lesion_volume_ml": lambda volumes: volumes.sum(min_count=1), "centre": "first"}
    known = {kind: how for kind, how in kinds.items() if kind in cohort}
    if not known:
        return None
    # Sessions of one subject count as one, with the sum of their volumes.
    subjects = cohort.groupby("participant_id", as_index=False).agg(known)
    found = strata(scores[scores["method"] == MODEL], subjects, metrics=list(metrics), seed=seed)
    divided = found.groupby("stratum_of")["stratum"].transform("nunique") > 1
    rows = []
    for (kind, stratum), part in found[divided].groupby(["stratum_of", "stratum"], sort=False):
        cells = [with_interval(score_of(part, MODEL, metric), metric) for metric in metrics]
        rows.append([f"{STRATA[str(kind)]} {stratum}", *cells, f"{part['n'].max():.0f}"])
    if not rows:
        return None
    return {
        "caption": "The model by lesion volume and by centre: mean (95 % interval). Small strata raise questions only",
        "columns": ["Stratum", *map(metric_label, metrics), "n"],
        "rows": rows,
    }


def subject_table(scores: pd.DataFrame, metrics: Sequence[str]) -> Table:
    """Every subject and method, the model first."""
    ordered = scores.assign(last=scores["method"] != MODEL).sort_values(["participant_id", "last", "method"])
    rows = [
        [
            str(row["participant_id"]),
            method_label(str(row["method"])),
            *(number(row[metric], metric) for metric in metrics),
        ]
        for row in ordered.to_dict("records")
    ]
    return {
        "caption": "Every hold-out subject",
        "columns": ["Participant", "Method", *map(metric_label, metrics)],
        "rows": rows,
        "text": [1],
    }


def validation_table(validation: pd.DataFrame, table: pd.DataFrame, headline: Sequence[str]) -> Table:
    """The chosen trial's cross-validation beside the hold-out, for the headline metrics."""
    rows = []
    for metric in headline:
        if metric in validation:
            means = validation.groupby("fold")[metric].mean()
            rows.append(
                [
                    metric_label(metric),
                    f"{number(means.mean(), metric)} ({number(means.min(), metric)} to {number(means.max(), metric)})"
                    if means.notna().any()
                    else "–",
                    with_interval(score_of(table, MODEL, metric), metric),
                ]
            )
    return {
        "caption": "Cross-validation of the chosen trial beside the hold-out",
        "columns": ["Metric", "Cross-validation: mean of folds (worst to best fold)", "Hold-out: mean (95 % interval)"],
        "rows": rows,
    }


def cohort_table(cohort: pd.DataFrame, folds: pd.DataFrame) -> Table:
    """Counts, and the spread of every numeric column, for all subjects and for each side."""
    groups = {"all": cohort}
    if {"participant_id", "side"} <= set(folds.columns) and "participant_id" in cohort:
        side = cohort["participant_id"].map(folds.set_index("participant_id")["side"])
        groups |= {"training": cohort[side == "train"], "hold-out": cohort[side == "holdout"]}
    rows: list[list[str]] = [["Subjects", *(str(len(part)) for part in groups.values())]]
    if "centre" in cohort and cohort["centre"].notna().any():
        rows.append(["Centres", *(str(part["centre"].nunique()) for part in groups.values())])
    for column in cohort.select_dtypes("number"):
        if cohort[column].notna().any():
            name = str(column)
            label = COLUMN_LABELS.get(name, name.replace("_", " "))
            rows.append([label, *(_spread(part[column]) for part in groups.values())])
    return {"caption": "Who takes part: median (smallest to largest)", "columns": ["", *groups], "rows": rows}


def _spread(values: pd.Series) -> str:
    defined = values.dropna()
    if defined.empty:
        return "–"
    low, middle, high = (f"{value:.3g}" for value in (defined.min(), defined.median(), defined.max()))
    return middle if low == high else f"{middle} ({low} to {high})"


def fold_table(folds: pd.DataFrame) -> Table:
    """Who is in which fold and who is held out."""

    def of(part: pd.DataFrame) -> list[str]:
        centres = ", ".join(sorted(part["centre"].dropna().astype(str).unique())) if "centre" in part else ""
        return [str(len(part)), centres or "–", ", ".join(part["participant_id"].astype(str))]

    train = folds[folds["side"] == "train"]
    rows = [[f"fold {fold:g}", *of(part)] for fold, part in train.groupby(train["fold"].astype(float))]
    rows.append(["hold-out", *of(folds[folds["side"] == "holdout"])])
    return {
        "caption": "Who is where (folds are the validation parts)",
        "columns": ["", "Subjects", "Centres", "Participants"],
        "rows": rows,
        "text": [2, 3],
    }


def resolution_tables(
    scores: pd.DataFrame, metric: str, level_name: str, seed: int = 0, *, against: str | None = None
) -> list[Table]:
    """Per facet: the mean of every method at every level, and the model's paired change from the finest level.

    With `against`, the name of a method that took part, a second table per facet holds the paired difference of every
    other method from that one.
    """
    facet = study.FACETS[level_name]
    means = study.curve(scores, metrics=[metric], level_name=level_name, seed=seed)
    effects = study.level_effects(scores, metric, level_name=level_name, seed=seed)
    effects = effects[effects["method"] == MODEL]
    differences = pd.DataFrame()
    if against is not None and against in set(scores["method"]):
        differences = study.method_effects(scores, metric, against=against, level_name=level_name, seed=seed)
    n_all = int(scores["participant_id"].nunique())
    tables = []
    for value in scores[facet].unique():
        part = means[means[facet] == value]
        methods = model_first(part["method"].unique())
        rows = []
        for level, here in part.groupby(level_name):
            change = first(effects[(effects[facet] == value) & (effects[level_name] == level)])
            rows.append(
                [
                    f"{level:g}",
                    *(_of_some(first(here[here["method"] == method]), metric, n_all) for method in methods),
                    with_interval(change, metric, "mean_difference") if change else "reference",
                    p_value(change.get("p_adjusted")),
                ]
            )
        where = facet_label(level_name, value)
        tables.append(
            {
                "caption": f"{metric_label(metric)}, {where}: mean (95 % interval); paired per subject",
                "columns": [
                    LEVEL_LABELS[level_name],
                    *map(method_label, methods),
                    "Model: change from finest",
                    "p, adjusted",
                ],
                "rows": rows,
                "strong": 1,
            }
        )
        if len(differences):
            here = differences[differences[facet] == value]
            tables.append(_difference_table(here, metric, level_name, where, str(against)))
    return tables


def hypothesis_table(tests: pd.DataFrame, level_name: str) -> Table:
    """The rows of `hypotheses.hypothesis_tests`: from finest to coarsest, with what the test says."""
    facet = study.FACETS[level_name]
    rows = []
    for row in tests.to_dict("records"):
        metric = str(row["metric"])
        record = {str(key): value for key, value in row.items()}
        rows.append(
            [
                facet_label(level_name, row[facet]),
                metric_label(metric),
                f"{number(row['mean_finest'], metric)} → {number(row['mean_coarsest'], metric)}",
                with_interval(record, metric, "mean_difference"),
                number(row["effect_size"]),
                p_value(row["p_adjusted"]),
                f"{row['n']:.0f}",
                str(row["verdict"]),
            ]
        )
    ends = f"{tests['finest'].min():g} to {tests['coarsest'].max():g} {level_name.rsplit('_', 1)[-1]}"
    return {
        "caption": f"Expectations about coarser acquisitions, from {ends}: the model, paired per subject",
        "columns": ["Setting", "Score", "Mean", "Change (95 % interval)", "Effect size", "p, adjusted", "n", "Verdict"],
        "rows": rows,
        "text": [1, 7],
        "strong": 7,
    }


def size_table(curves: pd.DataFrame, metric: str, level_name: str) -> Table:
    """The model's rows of `resolution.size_curve` in its first facet: classes of volume down, levels across."""
    facet = study.FACETS[level_name]
    ours = curves[(curves["method"] == MODEL) & (curves["metric"] == metric)]
    value = ours[facet].iloc[0]
    ours = ours[ours[facet] == value]
    levels = sorted(ours[level_name].unique())
    rows = []
    for stratum, part in ours.groupby("stratum", sort=False):
        cells = [first(part[part[level_name] == level]) for level in levels]
        # Without intervals, which would not fit a page at eight levels: they are in sizes.csv.
        rows.append([str(stratum), *(number(cell.get("mean"), metric) for cell in cells), f"{part['n'].max()}"])
    unit = level_name.rsplit("_", 1)[-1]
    return {
        "caption": f"Mean {metric_label(metric)} of the model by true volume, {facet_label(level_name, value)}. "
        "Small strata raise questions only",
        "columns": ["True volume", *(f"{level:g} {unit}" for level in levels), "n"],
        "rows": rows,
    }


def detection_table(limits: pd.DataFrame, level_name: str) -> Table:
    """The rows of `detection.detection_limit`: levels down, methods across, in words."""
    facet = study.FACETS[level_name]
    methods = model_first(limits["method"].unique())
    rows = []
    for (value, level), part in limits.groupby([facet, level_name], sort=False):
        said = [first(part[part["method"] == method]).get("said", "–") for method in methods]
        rows.append([facet_label(level_name, value), f"{level:g}", *said])
    return {
        "caption": "The smallest lesion still found in half the cases: any voxel of it marked counts as found",
        "columns": ["Setting", LEVEL_LABELS[level_name], *map(method_label, methods)],
        "rows": rows,
        "text": [*range(2, 2 + len(methods))],
    }


def _of_some(row: Mapping[str, Any], metric: str, n_all: int) -> str:
    """A mean with its interval, and of how many where that is not everyone."""
    if not row:
        return "–"
    return with_interval(row, metric) + (f" · n = {row['n']}" if 0 < row["n"] < n_all else "")


def _difference_table(differences: pd.DataFrame, metric: str, level_name: str, where: str, against: str) -> Table:
    """Levels down; for every method its difference from `against` and the p value of that."""
    methods = model_first(differences["method"].unique())
    rows = []
    for level, here in differences.groupby(level_name):
        cells = [f"{level:g}"]
        for method in methods:
            row = first(here[here["method"] == method])
            cells += [with_interval(row, metric, "mean_difference"), p_value(row["p_value"])] if row else ["–", "–"]
        rows.append(cells)
    label = method_label(against)
    columns = [[f"{method_label(method)} − {label}", "Wilcoxon p"] for method in methods]
    return {
        "caption": f"{metric_label(metric)}, {where}: difference from {label} (95 % interval), paired per subject",
        "columns": [LEVEL_LABELS[level_name], *(column for pair in columns for column in pair)],
        "rows": rows,
        "strong": 1,
    }


def pairs_table(caption: str, pairs: Mapping[str, Any]) -> Table:
    """Names and values, nested mappings flattened with dots."""

    def flat(part: Mapping[str, Any], begin: str = "") -> list[list[str]]:
        rows: list[list[str]] = []
        for key, value in part.items():
            rows += flat(value, f"{begin}{key}.") if isinstance(value, Mapping) else [[f"{begin}{key}", str(value)]]
        return rows

    return {"caption": caption, "columns": ["Name", "Value"], "rows": flat(pairs), "code": True, "text": [1]}
