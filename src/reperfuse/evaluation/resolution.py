"""How a score falls as the acquisition gets coarser: slice thickness for lesions, sampling interval for perfusion.

The study knows neither networks nor files. Subjects, degradation, prediction and scoring arrive as callables; what
leaves is one long table, paired per subject, and the curves and numbers drawn from it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reperfuse.evaluation.metrics import METRICS
from reperfuse.evaluation.summary import MODEL, defined_only, metric_columns, paired_comparison, summarise

Predict = Callable[[Any], Any]
Row = dict[str, Any]


def resolution_study(
    subjects: Iterable[tuple[str, Any]],
    *,
    levels: Sequence[float],
    degrade: Callable[[Any, float, str], Any],
    predict: Predict | Mapping[str, Predict],
    score: Callable[[Any, Any], Mapping[str, float | None]],
    axes: Sequence[str] = ("k",),
    level_name: str = "thickness_mm",
) -> pd.DataFrame:
    """Score of every subject, method, axis and level: one row each.

    Parameters
    ----------
    subjects
        ``(participant_id, subject)`` pairs; read one at a time, so a generator keeps memory flat.
    levels
        Levels of degradation in the unit of `level_name`; the smallest is the one the others are compared with.
    degrade
        ``degrade(subject, level, axis)`` gives the input of the networks at that level.
    predict
        ``predict(degraded)`` gives a prediction; a mapping from method name to callable shares each degraded input
        between methods. A single callable is the method ``"model"``.
    score
        ``score(prediction, subject)`` gives ``{metric: number or None}``.
    axes
        Along which axes to degrade; where the question has no axis (time), leave the single default.
    level_name
        Column of the level: ``thickness_mm``, or ``tr_s`` for perfusion.

    Returns
    -------
    DataFrame
        ``[participant_id, method, axis, <level_name>, metrics…]``; undefined scores are NaN.

    Examples
    --------
    >>> study = resolution_study(
    ...     [("sub-1", 1.0)], levels=[1, 2], degrade=lambda subject, level, axis: subject / level,
    ...     predict=lambda degraded: degraded, score=lambda prediction, subject: {"dice": prediction})
    >>> study[["thickness_mm", "dice"]].to_numpy().tolist()
    [[1.0, 1.0], [2.0, 0.5]]
    """
    rows: list[Row] = []
    for participant_id, subject in subjects:
        rows += subject_rows(
            participant_id,
            subject,
            levels=levels,
            degrade=degrade,
            predict=predict,
            score=score,
            axes=axes,
            level_name=level_name,
        )
    return study_table(rows, level_name=level_name)


def subject_rows(
    participant_id: str,
    subject: Any,
    *,
    levels: Sequence[float],
    degrade: Callable[[Any, float, str], Any],
    predict: Predict | Mapping[str, Predict],
    score: Callable[[Any, Any], Mapping[str, float | None]],
    axes: Sequence[str] = ("k",),
    level_name: str = "thickness_mm",
) -> list[Row]:
    """The rows of one subject of `resolution_study`, for callers that resume or run subjects in parallel."""
    methods = predict if isinstance(predict, Mapping) else {MODEL: predict}
    rows: list[Row] = []
    for axis in axes:
        for level in levels:
            degraded = degrade(subject, level, axis)
            for method, predicted in methods.items():
                identity = {"participant_id": participant_id, "method": method, "axis": axis, level_name: float(level)}
                rows.append(identity | dict(score(predicted(degraded), subject)))
    return rows


def study_table(rows: Iterable[Row], *, level_name: str = "thickness_mm") -> pd.DataFrame:
    """The rows of any number of subjects as one table with numeric metric columns."""
    table = pd.DataFrame(list(rows))
    identity = ["participant_id", "method", "axis", level_name]
    if table.empty:
        return pd.DataFrame(columns=identity)
    # A metric that is undefined for everyone arrives as a column of None.
    metrics = [column for column in table.columns if column not in identity]
    return table.astype(dict.fromkeys(metrics, float))[identity + metrics]


def curve(
    scores: pd.DataFrame, *, metrics: Sequence[str] | None = None, level_name: str = "thickness_mm", seed: int = 0
) -> pd.DataFrame:
    """Mean and bootstrap interval of each metric at each level: ``[method, axis, level, metric, mean, …, n]``.

    Examples
    --------
    >>> rows = [{"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": t, "dice": 1 / t}
    ...         for n in (1, 2) for t in (1.0, 2.0)]
    >>> curve(study_table(rows))[["thickness_mm", "mean", "n"]].to_numpy().tolist()
    [[1.0, 1.0, 2.0], [2.0, 0.5, 2.0]]
    """
    chosen = [name for name in metric_columns(scores) if name != level_name] if metrics is None else list(metrics)
    table = summarise(scores, metrics=chosen, by=("method", "axis", level_name), seed=seed)
    return table.sort_values(["method", "axis", "metric", level_name], kind="stable", ignore_index=True)


def level_effects(
    scores: pd.DataFrame, metric: str, *, level_name: str = "thickness_mm", seed: int = 0
) -> pd.DataFrame:
    """Each level against the finest one, paired per subject.

    Returns
    -------
    DataFrame
        ``[method, axis, <level_name>, mean_difference, low, high, p_value, n]``; the difference is level − finest.
    """
    finest = scores[level_name].min()
    rows: list[Row] = []
    for (method, axis), part in scores.groupby(["method", "axis"], sort=False):
        wide = part.pivot(index="participant_id", columns=level_name, values=metric)
        rows += [
            {"method": method, "axis": axis, level_name: level}
            | paired_comparison(wide[level].to_numpy(), wide[finest].to_numpy(), seed=seed)
            for level in wide.columns
            if level != finest
        ]
    columns = ["mean_difference", "low", "high", "p_value", "n"]
    table = pd.DataFrame(rows, columns=["method", "axis", level_name, *columns])
    return table.astype(dict.fromkeys(columns, float))


def resolution_scalars(
    scores: pd.DataFrame,
    metric: str = "dice",
    *,
    method: str = MODEL,
    axis: str | None = None,
    level_name: str = "thickness_mm",
    seed: int = 0,
) -> dict[str, float]:
    """Two numbers to sort models by, each with its interval over subjects.

    ``resolution_auc`` is the mean over subjects of the trapezoid area under score against level, divided by the range
    of levels (the mean score over the range). ``<metric>_drop_<level><unit>`` (``dice_drop_10mm``, ``dice_drop_3s``)
    is the mean over subjects of the score at the finest level minus that at the coarsest; for a metric that is better
    when lower it is ``<metric>_rise_…``, coarsest minus finest, so that positive always means worse. ``_low`` and
    ``_high`` stand beside each. Subjects count when the metric is defined at every level; undefined numbers are left
    out.

    Parameters
    ----------
    scores
        Table of `resolution_study`.
    axis
        One axis; by default the mean over all axes in the table, within each subject.

    Examples
    --------
    >>> rows = [{"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": t, "dice": 1 - t / 20}
    ...         for n in (1, 2) for t in (2.0, 5.0, 10.0)]
    >>> scalars = resolution_scalars(study_table(rows))
    >>> round(scalars["resolution_auc"], 3), round(scalars["dice_drop_10mm"], 3)
    (0.7, 0.4)
    """
    part = scores[scores["method"] == method]
    if axis is not None:
        part = part[part["axis"] == axis]
    wide = part.pivot_table(index="participant_id", columns=level_name, values=metric, aggfunc="mean", dropna=False)
    wide = wide.sort_index(axis="columns").dropna()
    levels = wide.columns.to_numpy(dtype=float)
    if levels.size < 2 or wide.empty:
        return {}
    values = wide.to_numpy(dtype=float)
    area = np.trapezoid(values, levels, axis=1) / (levels[-1] - levels[0])
    unit = level_name.rsplit("_", 1)[-1]
    falls = metric not in METRICS or METRICS[metric].better == "higher"
    loss = (values[:, 0] - values[:, -1]) * (1 if falls else -1)
    name = f"{metric}_{'drop' if falls else 'rise'}_{levels[-1]:g}{unit}"
    table = summarise(
        pd.DataFrame({"method": method, "resolution_auc": area, name: loss}),
        metrics=["resolution_auc", name],
        seed=seed,
    )
    found: dict[str, float] = {}
    for row in table.to_dict("records"):
        found |= {row["metric"]: row["mean"], f"{row['metric']}_low": row["low"], f"{row['metric']}_high": row["high"]}
    return defined_only(found)
