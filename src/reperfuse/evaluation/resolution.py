"""How a score falls as the acquisition gets coarser: slice thickness for lesions, sampling interval for perfusion.

The study knows neither networks nor files. Subjects, degradation, prediction and scoring arrive as callables; what
leaves is one long table, paired per subject, and the curves and numbers drawn from it.

A study has levels (how coarse) and facets, in which the same levels are asked again: the direction of the slices, or
how noisy the series is. What the levels are says what the facets are (`FACETS`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reperfuse.evaluation.metrics import METRICS, THICK_GRID
from reperfuse.evaluation.paired import holm, paired_comparison
from reperfuse.evaluation.summary import (
    MODEL,
    VOLUME_CLASSES,
    defined_only,
    metric_columns,
    summarise,
    volume_class,
)

Predict = Callable[[Any], Any]
Score = Callable[[Any, Any, float, Any], Mapping[str, Any]]
Levels = Mapping[Any, Sequence[float]]
Row = dict[str, Any]

LESIONS = "lesions"
"""What a score may hold beside numbers: each true lesion as (volume [mL], whether any of it was found)."""

FACETS = {"thickness_mm": "axis", "tr_s": "snr"}
"""Column of the facets, by that of the levels: slices are thick along an array axis (i, j or k), a series is sampled at
an interval and has an SNR (S0/σ)."""


LEVEL_LABELS = {"thickness_mm": "Slice thickness [mm]", "tr_s": "Sampling interval TR [s]", "snr": "SNR [-]"}
"""What the columns of levels and facets are called in figures and tables."""


def facet_name(level_name: str, value: Any) -> str:
    """What a facet is called in names of metrics and files.

    >>> facet_name("thickness_mm", "k"), facet_name("tr_s", 20.0)
    ('axis_k', 'snr20')
    """
    facet = FACETS[level_name]
    return f"{facet}_{value}" if isinstance(value, str) else f"{facet}{value:g}"


def facet_label(level_name: str, value: Any) -> str:
    """A facet of the resolution study as people read it.

    >>> facet_label("thickness_mm", "k"), facet_label("tr_s", 20.0)
    ('slices along k', 'SNR 20')
    """
    return f"slices along {value}" if FACETS[level_name] == "axis" else f"{FACETS[level_name].upper()} {value:g}"


def resolution_study(
    subjects: Iterable[tuple[str, Any]],
    *,
    levels: Levels,
    degrade: Callable[[Any, float, Any], Any],
    predict: Predict | Mapping[str, Predict],
    score: Score,
    level_name: str = "thickness_mm",
) -> pd.DataFrame:
    """Score of every subject, method, facet and level: one row each.

    Parameters
    ----------
    subjects
        ``(participant_id, subject)`` pairs; read one at a time, so a generator keeps memory flat.
    levels
        Facet to its levels of degradation, ascending, in the unit of `level_name`: array axes for slices
        (``{"k": [1, 5, 10]}``), SNRs for a series (``{50.0: [1.0, 2.0]}``). The smallest level of a facet is the one
        its others are compared with.
    degrade
        ``degrade(subject, level, facet)`` gives the input of the networks at that level. Where it gives the very object
        that it gave first, as what is not degraded at all may be in every facet, nothing is asked again.
    predict
        ``predict(degraded)`` gives a prediction, or None where the method has none, whose scores are then undefined;
        a mapping from method name to callable shares each degraded input between methods. A single callable is the
        method ``"model"``.
    score
        ``score(prediction, subject, level, facet)`` gives ``{metric: number or None}``.
    level_name
        Column of the level, a key of `FACETS`: ``thickness_mm``, or ``tr_s`` for perfusion.

    Returns
    -------
    DataFrame
        ``[participant_id, method, <facet>, <level_name>, metrics…]``; undefined scores are NaN.

    Examples
    --------
    >>> study = resolution_study(
    ...     [("sub-1", 1.0)], levels={"k": [1, 2]}, degrade=lambda subject, level, facet: subject / level,
    ...     predict=lambda degraded: degraded, score=lambda prediction, *_: {"dice": prediction})
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
            level_name=level_name,
        )
    return study_table(rows, level_name=level_name)


def subject_rows(
    participant_id: str,
    subject: Any,
    *,
    levels: Levels,
    degrade: Callable[[Any, float, Any], Any],
    predict: Predict | Mapping[str, Predict],
    score: Score,
    level_name: str = "thickness_mm",
) -> list[Row]:
    """The rows of one subject of `resolution_study`, for callers that resume or run subjects in parallel.

    A score may hold, under `LESIONS`, one ``(volume_ml, found)`` for each lesion, for `lesion_table`.
    """
    methods = predict if isinstance(predict, Mapping) else {MODEL: predict}
    rows: list[Row] = []
    first: Any = None
    of_first: dict[str, dict[str, Any]] = {}
    for facet, asked in levels.items():
        for level in asked:
            degraded = degrade(subject, level, facet)
            if not rows:
                first = degraded
            place = {FACETS[level_name]: facet, level_name: float(level)}
            for method, predicted in methods.items():
                scores = of_first.get(method) if degraded is first else None
                if scores is None:
                    prediction = predicted(degraded)
                    scores = {} if prediction is None else dict(score(prediction, subject, level, facet))
                    if degraded is first:
                        of_first[method] = scores
                rows.append({"participant_id": participant_id, "method": method} | place | scores)
    return rows


def study_table(rows: Iterable[Row], *, level_name: str = "thickness_mm") -> pd.DataFrame:
    """The rows of any number of subjects as one table with numeric metric columns."""
    table = pd.DataFrame([{name: value for name, value in row.items() if name != LESIONS} for row in rows])
    identity = ["participant_id", "method", FACETS[level_name], level_name]
    if table.empty:
        return pd.DataFrame(columns=identity)
    # A metric that is undefined for everyone arrives as a column of None.
    usual = {name: place for place, name in enumerate([*METRICS, *THICK_GRID.values()])}
    metrics = [column for column in table.columns if column not in identity]
    # In the usual order, whatever that of the rows, which a file may have sorted.
    metrics.sort(key=lambda name: usual.get(name, len(usual)))
    return table.astype(dict.fromkeys(metrics, float))[identity + metrics]


def lesion_table(rows: Iterable[Row], *, level_name: str = "thickness_mm") -> pd.DataFrame:
    """Every true lesion at every level: ``[participant_id, method, <facet>, <level_name>, volume_ml, found]``.

    Examples
    --------
    >>> row = {"participant_id": "sub-1", "method": "model", "axis": "k", "thickness_mm": 5.0, "dice": 0.5}
    >>> lesion_table([row | {"lesions": [(0.2, False), (4.0, True)]}])[["volume_ml", "found"]].to_numpy().tolist()
    [[0.2, False], [4.0, True]]
    """
    identity = ["participant_id", "method", FACETS[level_name], level_name]
    found = [
        {name: row[name] for name in identity} | {"volume_ml": float(volume_ml), "found": bool(seen)}
        for row in rows
        for volume_ml, seen in row.get(LESIONS, ())
    ]
    return pd.DataFrame(found, columns=[*identity, "volume_ml", "found"])


def curve(
    scores: pd.DataFrame, *, metrics: Sequence[str] | None = None, level_name: str = "thickness_mm", seed: int = 0
) -> pd.DataFrame:
    """Mean and bootstrap interval of each metric at each level: ``[method, facet, level, metric, mean, …, n]``.

    Facets stand in the order of the study, whose first is the main one.

    Examples
    --------
    >>> rows = [{"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": t, "dice": 1 / t}
    ...         for n in (1, 2) for t in (1.0, 2.0)]
    >>> curve(study_table(rows))[["thickness_mm", "mean", "n"]].to_numpy().tolist()
    [[1.0, 1.0, 2.0], [2.0, 0.5, 2.0]]
    """
    facet = FACETS[level_name]
    if metrics is None:
        metrics = [name for name in metric_columns(scores) if name not in (facet, level_name)]
    table = summarise(scores, metrics=metrics, by=("method", facet, level_name), seed=seed)
    place = table[facet].map({value: place for place, value in enumerate(scores[facet].unique())})
    by = ["method", "place", "metric", level_name]
    return table.assign(place=place).sort_values(by, kind="stable", ignore_index=True).drop(columns="place")


def model_curve(curves: pd.DataFrame, *, level_name: str = "thickness_mm", method: str = MODEL) -> pd.DataFrame:
    """One method's means in the first facet of a `curve`, a column for each metric: what a plot of one line takes.

    Examples
    --------
    >>> rows = [{"participant_id": "sub-1", "method": "model", "axis": axis, "thickness_mm": t, "dice": 1 / t}
    ...         for axis in "ki" for t in (1.0, 2.0)]
    >>> model_curve(curve(study_table(rows)))
       thickness_mm  dice
    0           1.0   1.0
    1           2.0   0.5
    """
    facet = FACETS[level_name]
    ours = curves[curves["method"] == method]
    ours = ours[ours[facet] == ours[facet].iloc[0]]
    wide = ours.pivot(index=level_name, columns="metric", values="mean")[list(dict.fromkeys(ours["metric"]))]
    return wide.rename_axis(columns=None).reset_index()


def size_curve(
    scores: pd.DataFrame,
    volumes_ml: Mapping[str, float],
    *,
    metrics: Sequence[str],
    level_name: str = "thickness_mm",
    seed: int = 0,
) -> pd.DataFrame:
    """`curve` within each class of true volume: ``[stratum, method, <facet>, <level_name>, metric, mean, …, n]``.

    Classes are those of `summary.volume_class`, smallest first; those without subjects are left out, and so is who has
    no volume.

    Parameters
    ----------
    volumes_ml
        Participant to true volume [mL].
    """
    facet = FACETS[level_name]
    known = scores["participant_id"].map(dict(volumes_ml))
    placed = scores.assign(stratum=pd.Categorical(volume_class(known), categories=VOLUME_CLASSES, ordered=True))
    placed = placed.sort_values("stratum", kind="stable")
    table = summarise(placed, metrics=metrics, by=("stratum", "method", facet, level_name), seed=seed)
    return table.astype({"stratum": str})


def whole_facets(scores: pd.DataFrame, level_name: str) -> list[Any]:
    """The facets that were asked at every level of the study: what is averaged over facets is averaged over these.

    A facet at some levels only would weigh at those, and make a step in the mean that no facet has.
    """
    levels = scores.groupby(FACETS[level_name], sort=False)[level_name].nunique()
    return [facet for facet, count in levels.items() if count == scores[level_name].nunique()]


def level_effects(
    scores: pd.DataFrame, metric: str, *, level_name: str = "thickness_mm", seed: int = 0
) -> pd.DataFrame:
    """Each level against the finest one of its facet, paired per subject.

    Returns
    -------
    DataFrame
        ``[method, <facet>, <level_name>, mean_difference, low, high, p_value, n, p_adjusted]``; the difference is
        level − finest, over the subjects who have both. The last column is for the number of levels (`paired.holm`).
    """
    facet = FACETS[level_name]
    rows: list[Row] = []
    for (method, value), part in scores.groupby(["method", facet], sort=False):
        wide = part.pivot(index="participant_id", columns=level_name, values=metric)
        finest, *coarser = wide.columns
        rows += [
            {"method": method, facet: value, level_name: level}
            | paired_comparison(wide[level].to_numpy(), wide[finest].to_numpy(), seed=seed)
            for level in coarser
        ]
    table = _effects(rows, level_name)
    adjusted = table.groupby(["method", facet], sort=False)["p_value"].transform(lambda p: holm(p.to_numpy()))
    return table.assign(p_adjusted=adjusted)


def method_effects(
    scores: pd.DataFrame,
    metric: str,
    *,
    against: str = "baseline_osvd",
    level_name: str = "thickness_mm",
    seed: int = 0,
) -> pd.DataFrame:
    """Every other method against one, at each level of each facet, paired per subject.

    Returns
    -------
    DataFrame
        ``[method, <facet>, <level_name>, mean_difference, low, high, p_value, n]``; the difference is method − against,
        over the subjects for whom both are defined. Empty where nobody was scored by `against`.

    Examples
    --------
    >>> rows = [{"participant_id": f"sub-{n}", "method": method, "snr": 50.0, "tr_s": 1.5, "mae_s": error + n}
    ...         for n in (1, 2) for method, error in (("model", 0.5), ("baseline_osvd", 2.0))]
    >>> method_effects(study_table(rows, level_name="tr_s"), "mae_s", level_name="tr_s")["mean_difference"].tolist()
    [-1.5]
    """
    facet = FACETS[level_name]
    rows: list[Row] = []
    for (value, level), part in scores.groupby([facet, level_name], sort=False):
        wide = part.pivot(index="participant_id", columns="method", values=metric)
        if against not in wide:
            continue
        rows += [
            {"method": method, facet: value, level_name: level}
            | paired_comparison(wide[method].to_numpy(), wide[against].to_numpy(), seed=seed)
            for method in part["method"].unique()
            if method != against
        ]
    return _effects(rows, level_name)


def _effects(rows: list[Row], level_name: str) -> pd.DataFrame:
    columns = ["mean_difference", "low", "high", "p_value", "n"]
    table = pd.DataFrame(rows, columns=["method", FACETS[level_name], level_name, *columns])
    return table.astype(dict.fromkeys(columns, float))


def resolution_scalars(
    scores: pd.DataFrame,
    metric: str = "dice",
    *,
    method: str = MODEL,
    at: Any = None,
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
    at
        One facet; by default the mean over the facets that were asked at every level (`whole_facets`), within each
        subject.

    Examples
    --------
    >>> rows = [{"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": t, "dice": 1 - t / 20}
    ...         for n in (1, 2) for t in (2.0, 5.0, 10.0)]
    >>> scalars = resolution_scalars(study_table(rows))
    >>> round(scalars["resolution_auc"], 3), round(scalars["dice_drop_10mm"], 3)
    (0.7, 0.4)
    """
    part = scores[scores["method"] == method]
    facets = whole_facets(part, level_name) if at is None else [at]
    part = part[part[FACETS[level_name]].isin(facets)]
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
