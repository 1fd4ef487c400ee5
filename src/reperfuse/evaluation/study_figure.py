"""The resolution study in one picture, for a reader who has nothing else: what is lost, of what kind, and where."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from reperfuse.evaluation.drawing import BLUE, ORANGE, SKY, STYLE
from reperfuse.evaluation.figures import (
    direct_labels,
    method_label,
    method_styles,
    metric_label,
    score_limits,
)
from reperfuse.evaluation.metrics import METRICS
from reperfuse.evaluation.resolution import FACETS, LEVEL_LABELS, facet_label
from reperfuse.evaluation.summary import MODEL

OF_THE_MODEL: dict[str, tuple[tuple[str, str, str], ...]] = {
    "thickness_mm": (
        ("false_negative_ml", "lesion missed", ORANGE),
        ("false_positive_ml", "marked, no lesion", SKY),
    ),
    "tr_s": (("volume_error_ml", "error of the volume with Tmax > 6 s", ORANGE),),
}
"""Volumes [mL] of the second panel, by the column of the levels: metric, words, colour."""


def study_panels(
    curves: pd.DataFrame,
    metric: str,
    *,
    level_name: str = "thickness_mm",
    at: Any = "k",
    detection: pd.DataFrame | None = None,
    method: str = MODEL,
) -> Figure:
    """Score, volumes at fault and smallest lesion found, each against the level, in one facet.

    Parameters
    ----------
    curves
        Table of `resolution.curve`.
    metric
        Of the first panel, which shows every method; the other panels show `method` alone.
    detection
        Table of `detection.detection_limit`; without one, or where no level has a number, the third panel is left out.

    Returns
    -------
    Figure
        Its label says what it shows in words.
    """
    facet = FACETS[level_name]
    here = curves[curves[facet] == at]
    limits = pd.DataFrame() if detection is None else detection[(detection[facet] == at)]
    limits = limits[limits["method"] == method] if len(limits) else limits
    volumes = [one for one in OF_THE_MODEL[level_name] if one[0] in set(here["metric"])]
    known = len(limits) > 0 and limits["volume_ml"].notna().any()
    panels = ["score", *(["volumes"] if volumes else []), *(["limit"] if known else [])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 3.0 * len(panels), 3.6), layout="constrained")
        drawings = figure.subplots(1, len(panels), squeeze=False, width_ratios=[1.35, 1, 1][: len(panels)])[0]
        for panel, drawing in zip(panels, drawings, strict=True):
            if panel == "score":
                # All facets on one scale.
                highest = (
                    curves[curves["metric"] == metric][["mean", "high"]].to_numpy(float, na_value=0).max(initial=0)
                )
                _score_panel(drawing, here[here["metric"] == metric], metric, level_name, method, highest)
            elif panel == "volumes":
                _volume_panel(drawing, here[here["method"] == method], volumes, level_name)
            else:
                _limit_panel(drawing, limits, level_name)
            levels = sorted(here[level_name].unique())
            drawing.xaxis.set_major_locator(FixedLocator(levels))
            drawing.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            margin = 0.05 * (levels[-1] - levels[0]) or 1.0
            drawing.set_xlim(levels[0] - margin, levels[-1] + margin)
            drawing.set_xlabel(LEVEL_LABELS[level_name])
        counts = here.loc[(here["metric"] == metric) & (here["n"] > 0), "n"].astype(int)
        n = " to ".join(str(count) for count in dict.fromkeys((counts.min(), counts.max()))) if len(counts) else "0"
        figure.suptitle(
            f"{_what_happens(here, metric, level_name, method)}   ({facet_label(level_name, at)}, {n} subjects; bands: "
            "95 % interval of the mean)",
            x=0.01,
            ha="left",
            fontsize=10,
        )
    figure.set_label(_in_words(here, metric, level_name, at, limits))
    return figure


def _what_happens(here: pd.DataFrame, metric: str, level_name: str, method: str) -> str:
    ours = here[(here["metric"] == metric) & (here["method"] == method)].dropna(subset=["mean"]).sort_values(level_name)
    if len(ours) < 2:
        return metric_label(metric)
    first, last = ours.iloc[0], ours.iloc[-1]
    note, unit = METRICS[metric], level_name.rsplit("_", 1)[-1]
    of = f" {note.unit}" if note.unit else ""
    return (
        f"From {first[level_name]:g} to {last[level_name]:g} {unit}: mean {note.label} {first['mean']:.2f} → "
        f"{last['mean']:.2f}{of}"
    )


def _line(drawing: Axes, rows: pd.DataFrame, level_name: str, colour: str, dashes: str, strong: bool) -> None:
    rows = rows.sort_values(level_name)
    x = rows[level_name].to_numpy(float)
    drawing.plot(x, rows["mean"], color=colour, linestyle=dashes, marker="o", markersize=4.5, linewidth=1.8)
    ends = (rows["low"].to_numpy(float), rows["high"].to_numpy(float))
    drawing.fill_between(x, *ends, color=colour, alpha=0.18 if strong else 0.09, linewidth=0)


def _score_panel(drawing: Axes, part: pd.DataFrame, metric: str, level_name: str, method: str, highest: float) -> None:
    for name, (colour, dashes) in method_styles(part["method"]).items():
        _line(drawing, part[part["method"] == name], level_name, colour, dashes, name == method)
    score_limits(drawing, metric)
    note = METRICS.get(metric)
    if note is not None and note.better == "lower" and highest > 0:
        drawing.set_ylim(0, 1.06 * highest)
    direct_labels(drawing, part, level_name)
    drawing.set_title(f"Mean {metric_label(metric)}", loc="left")


def _volume_panel(drawing: Axes, ours: pd.DataFrame, volumes: Sequence[tuple[str, str, str]], level_name: str) -> None:
    for metric, words, colour in volumes:
        part = ours[ours["metric"] == metric].sort_values(level_name)
        _line(drawing, part, level_name, colour, "-", strong=True)
        drawing.annotate(
            words, (part[level_name].iloc[-1], part["mean"].iloc[-1]), xytext=(-2, 6), textcoords="offset points",
            ha="right", color="#1F2937",
        )  # fmt: skip
    highest = ours[ours["metric"].isin([metric for metric, _, _ in volumes])]["high"].max()
    drawing.set_ylim(0, 1.05 * highest if np.isfinite(highest) and highest > 0 else None)
    drawing.set_title("Mean volume at fault [mL]", loc="left")


def _limit_panel(drawing: Axes, limits: pd.DataFrame, level_name: str) -> None:
    """Volume at which half of the lesions are found; a question mark where it cannot be read off."""
    rows = limits.sort_values(level_name)
    known = rows.dropna(subset=["volume_ml"])
    x, y = known[level_name].to_numpy(float), known["volume_ml"].to_numpy(float)
    drawing.set_yscale("log")
    drawing.plot(x, y, color=BLUE, marker="o", markersize=4.5, linewidth=1.8)
    # An end that lies beyond the lesions there were is drawn to the edge.
    ends = known[["volume_ml", "low", "high"]].to_numpy(float).ravel()
    ends = ends[np.isfinite(ends)]
    edges = float(ends.min()) / 2, float(ends.max()) * 2
    low, high = (known[end].fillna(edge).to_numpy(float) for end, edge in zip(("low", "high"), edges, strict=True))
    drawing.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0)
    drawing.set_ylim(*edges)
    for row in rows[rows["volume_ml"].isna()].to_dict("records"):
        drawing.annotate(
            "?", (row[level_name], 0.5), xycoords=("data", "axes fraction"), ha="center", color="#6B7280"
        )  # fmt: skip
    drawing.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    drawing.yaxis.set_minor_locator(NullLocator())
    drawing.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    drawing.set_title("Found in half the cases [mL]", loc="left")


def _in_words(here: pd.DataFrame, metric: str, level_name: str, at: Any, limits: pd.DataFrame) -> str:
    part = here[here["metric"] == metric]
    said = "; ".join(
        f"{method_label(method)} "
        + ", ".join(
            f"{row['mean']:.2f} at {row[level_name]:g}"
            for row in part[part["method"] == method].sort_values(level_name).to_dict("records")
        )
        for method in method_styles(part["method"])
    )
    text = f"Mean {metric_label(metric)} against {LEVEL_LABELS[level_name]}, {facet_label(level_name, at)}: {said}."
    if len(limits):
        words = ", ".join(f"{row['said']} at {row[level_name]:g}" for row in limits.to_dict("records"))
        text += f" Smallest lesion found in half the cases: {words}."
    return text
