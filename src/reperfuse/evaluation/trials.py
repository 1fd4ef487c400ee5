"""A search as one table: its trials, and methods without training on the same patients, best first."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from reperfuse.errors import InputError
from reperfuse.evaluation.figures import metric_label
from reperfuse.evaluation.metrics import METRICS, note_of
from reperfuse.evaluation.tables import Table, number

KIND = "kind"
"""Column of the table: `trial`, or `baseline` for a method without training."""

_OF_A_TRIAL = ("number", "state", "value", "continues", "reason", "seconds")


def known_metrics(names: Sequence[str]) -> list[str]:
    """`names`, if each is a score.

    Raises
    ------
    InputError
        Names the first that is not, and the nearest that is.

    >>> known_metrics(["iou", "dice"])
    ['iou', 'dice']
    """
    for name in names:
        if note_of(name) is None:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}."
            raise InputError(f"report.metrics names {name}, which is no score; {hint}")
    return list(names)


def in_order(names: Sequence[str], lead: Sequence[str] = ()) -> list[str]:
    """Those of `lead` that are among `names`, then the others, scores in the order of METRICS.

    What a search makes of Dice stands behind Dice.

    >>> in_order(["auc", "hd95_mm", "dice", "mine"], lead=["auc", "recall"])
    ['auc', 'dice', 'hd95_mm', 'mine']
    >>> in_order(["mine", "auc", "dice_10mm", "dice"])
    ['dice', 'dice_10mm', 'auc', 'mine']
    """
    known = list(METRICS)

    def place(name: str) -> tuple[int, bool]:
        if name in METRICS:
            return known.index(name), False
        return (known.index("dice") if note_of(name) else len(known)), True

    return [name for name in dict.fromkeys([*lead, *sorted(names, key=place)]) if name in names]


def trials_table(
    trials: pd.DataFrame,
    baselines: pd.DataFrame | None,
    *,
    metric: str,
    searched: Sequence[str],
    lead: Sequence[str] = (),
) -> pd.DataFrame:
    """All trials and baselines, best first; undefined scores come last.

    Parameters
    ----------
    trials
        One row per trial, as results/<arm>/tune/trials.csv: number, state, value (of `metric`), other scores, each
        searched name, fold_<k>, continues, reason, seconds.
    baselines
        `method` and scores, as results/<arm>/tune/baselines.csv, where there are some.
    metric
        What trials were chosen by.
    searched
        Names of the search space.
    lead
        Scores that stand first, after `metric`.

    Returns
    -------
    DataFrame
        kind (`trial` or `baseline`), name (a trial's number, or the method), a column per name in `searched`, the
        scores, then state, reason and seconds [s].
    """
    trials = trials.drop(columns=metric, errors="ignore").rename(columns={"value": metric, "number": "name"})
    trials = trials.assign(**{KIND: "trial"})
    others = [str(name) for name in trials if name not in {KIND, "name", metric, *searched, *_OF_A_TRIAL}]
    metrics = [metric, *(name for name in others if not re.fullmatch(r"fold_\d+", name))]
    parts = [trials]
    if baselines is not None:
        baselines = baselines.rename(columns={"method": "name"})
        parts.append(baselines.assign(**{KIND: "baseline"}))
        metrics += [str(name) for name in baselines if name not in {"name", *metrics}]
    metrics = in_order(metrics, [metric, *lead])
    table = pd.concat([part.astype(object) for part in parts], ignore_index=True)
    table[metrics] = table[metrics].apply(pd.to_numeric)
    note = note_of(metric)
    ascending = note is None or note.better != "higher"  # an unknown one is an error in some unit
    table = table.sort_values(metric, ascending=ascending, na_position="last", kind="stable")
    return table.reindex(columns=[KIND, "name", *searched, *metrics, "state", "reason", "seconds"]).reset_index(
        drop=True
    )


def readable_rows(table: pd.DataFrame, only: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text of a `trials_table`; what is empty everywhere is left out.

    With `only`, no other scores than those are shown.
    """
    there = [str(name) for name in table if table[name].notna().any()]
    columns = [name for name in there if not only or name in only or note_of(name) is None]

    def cell(name: str, value: Any) -> str:
        if note_of(name):
            return number(value, name)
        if pd.isna(value):
            return ""
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = [[cell(name, value) for name, value in zip(columns, row, strict=True)] for row in table[columns].values]
    return [metric_label(name) if note_of(name) else name for name in columns], rows


def search_table(table: pd.DataFrame, most: int = 30) -> Table:
    """A `trials_table` for the report, its first rows."""
    headings, rows = readable_rows(table)
    left_out = f"; the first {most} of {len(rows)}" if len(rows) > most else ""
    scores = {metric_label(name) for name in map(str, table) if note_of(name)}
    return {
        "caption": f"The search, best first: means over the validation subjects of all folds{left_out}",
        "columns": headings,
        "rows": rows[:most],
        "text": [place for place, name in enumerate(headings) if name not in {*scores, "seconds"}],
    }
