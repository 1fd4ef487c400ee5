"""Figures of the report: overlays, Tmax maps, curves, folds and cohort.

Every function returns a `Figure` of its own, touches no global state of pyplot, and leaves a sentence for readers who
cannot see it as the figure's label (``figure.get_label()``), which the report uses as alternative text.

Volumes have axes toward Right, Anterior, Superior unless their affine says otherwise, and are drawn as radiologists
look at them: the patient's right on the left side of the picture.
"""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from reperfuse.evaluation.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    as_ras,
    fullest_slice,
    outline,
    show_slice,
    sides,
)
from reperfuse.evaluation.metrics import TMAX_THRESHOLD_S, note_of
from reperfuse.evaluation.summary import MODEL, bootstrap_interval

TRUTH_COLOUR, PREDICTION_COLOUR = ORANGE, SKY
"""The truth and a prediction over a grey image; they differ in lightness as well as in hue."""

METHOD_LABELS = {
    MODEL: "Model",
    "baseline_empty": "Empty mask",
    "baseline_threshold": "Intensity threshold",
    "baseline_mean": "Training mean",
    "baseline_ssvd": "Plain SVD",
    "baseline_osvd": "oSVD",
    "baseline_learned": "Shipped network",
}

METHOD_COLOURS = {
    "baseline_empty": GREY,
    "baseline_mean": GREY,
    "baseline_threshold": VERMILION,
    "baseline_learned": VERMILION,
    "baseline_osvd": GREEN,
    "baseline_ssvd": PURPLE,
}
"""Colours of the methods that have one of their own; the model's is blue."""

OTHER_COLOURS = (ORANGE, SKY, PURPLE, GREEN, VERMILION, GREY)
"""What is left of these is for the others, by name."""


def method_label(method: str) -> str:
    """A method's name as people read it; an unknown one without its prefix.

    >>> method_label("baseline_ssvd"), method_label("baseline_late_wash"), method_label("rival_tmax_unet")
    ('Plain SVD', 'Late wash', 'Rival tmax_unet')
    """
    if method.startswith("rival_"):  # the rest is a value of the search, which keeps its spelling
        return f"Rival {method.removeprefix('rival_')}"
    plain = method.removeprefix("baseline_").replace("_", " ")
    return METHOD_LABELS.get(method, plain[:1].upper() + plain[1:])


def metric_label(metric: str) -> str:
    """A metric's label with its unit.

    >>> metric_label("hd95_mm"), metric_label("dice")
    ('HD95 [mm]', 'Dice')
    """
    note = note_of(metric)
    if note is None:
        return metric
    return f"{note.label} [{note.unit}]" if note.unit else note.label


def lesion_overlay(
    image: ArrayLike,
    truth: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    spacing_mm: Sequence[float],
    *,
    title: str = "",
    captions: Mapping[str, str] | None = None,
    affine: ArrayLike | None = None,
) -> Figure:
    """The axial slice with most true lesion: the image alone, then each method's outline beside the truth's.

    Parameters
    ----------
    image
        Anatomical image, shape (I, J, K).
    truth
        Lesion mask, shape (I, J, K); when empty, the slice with most prediction, else the middle one.
    predictions
        Method name to mask, each shape (I, J, K).
    spacing_mm
        Voxel spacing [mm].
    title
        Over the figure, for instance ``"sub-1: best, Dice 0.81"``.
    captions
        Method name to a short text under its panel (``"Dice 0.81"``).
    affine
        Of the common grid (4×4, RAS+, mm), where its axes are not already Right, Anterior, Superior.
    """
    volumes, spacing_mm = as_ras([image, truth, *predictions.values()], spacing_mm, affine)
    picture, true, *predicted = volumes
    true = true.astype(bool)
    masks = {method: mask.astype(bool) for method, mask in zip(predictions, predicted, strict=True)}
    k = fullest_slice([true, *masks.values()])
    low, high = np.percentile(picture[picture != 0], [1, 99.5]) if picture.any() else (0.0, 1.0)
    if low == high:
        low, high = float(picture.min()), float(picture.max())
    with matplotlib.rc_context(STYLE):
        panels = 1 + len(masks)
        extent_i, extent_j = picture.shape[0] * spacing_mm[0], picture.shape[1] * spacing_mm[1]
        width = 2.55
        figure = Figure(figsize=(width * panels, width * extent_j / extent_i + 1.05), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for axis, (method, mask) in zip(axes, [("", None), *masks.items()], strict=True):
            show_slice(axis, picture[:, :, k], spacing_mm, cmap="gray", vmin=low, vmax=high)
            if mask is None:
                axis.set_title("Image")
                axis.set_xlabel(f"axial slice {k + 1} of {picture.shape[2]}")
            else:
                outline(axis, true[:, :, k], spacing_mm, TRUTH_COLOUR, 1.5)
                outline(axis, mask[:, :, k], spacing_mm, PREDICTION_COLOUR, 1.1)
                axis.set_title(method_label(method))
                axis.set_xlabel((captions or {}).get(method, ""))
        sides(axes[0])
        keys = [
            Line2D([], [], color=TRUTH_COLOUR, linewidth=2.4, label="truth"),
            Line2D([], [], color=PREDICTION_COLOUR, linewidth=1.8, label="prediction"),
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=2)
        if title:
            figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    volume_ml = float(true.sum() * np.prod(spacing_mm) / 1000)
    said = "; ".join(filter(None, (f"{method_label(m)} {(captions or {}).get(m, '')}".strip() for m in masks)))
    figure.set_label(
        f"{title or 'Overlay'}. Axial slice {k + 1} of {picture.shape[2]} with the outline of the true lesion "
        f"({volume_ml:.1f} mL) and of each prediction: {said}."
    )
    return figure


def tmax_panels(
    reference: ArrayLike,
    maps: Mapping[str, ArrayLike],
    mask: ArrayLike,
    spacing_mm: Sequence[float],
    *,
    title: str = "",
    captions: Mapping[str, str] | None = None,
    affine: ArrayLike | None = None,
    highest_s: float = 12.0,
    largest_error_s: float = 6.0,
) -> Figure:
    """The axial slice with most late tissue: reference and each method's Tmax on one scale, errors below.

    Parameters
    ----------
    reference
        Tmax [s], shape (I, J, K).
    maps
        Method name to Tmax [s], each shape (I, J, K).
    mask
        Brain, shape (I, J, K); outside is left blank.
    spacing_mm
        Voxel spacing [mm].
    title
        Over the figure.
    captions
        Method name to a short text under its error panel (``"MAE 0.8 s"``).
    affine
        Of the common grid (4×4, RAS+, mm), where its axes are not already Right, Anterior, Superior.
    highest_s, largest_error_s
        Ends of the colour scales [s].
    """
    volumes, spacing_mm = as_ras([mask, reference, *maps.values()], spacing_mm, affine)
    inside, truth, *estimates = volumes[0].astype(bool), *(np.asarray(values, dtype=float) for values in volumes[1:])
    k = fullest_slice([(truth > TMAX_THRESHOLD_S) & inside, inside])
    near = tuple(slice(max(int(hit.min()) - 1, 0), int(hit.max()) + 2) for hit in np.nonzero(inside)[:2])
    brain, shown = inside[near][:, :, k], {"reference": truth[near][:, :, k]}
    shown |= {name: values[near][:, :, k] for name, values in zip(maps, estimates, strict=True)}
    late_map, error_map = (matplotlib.colormaps[name].with_extremes(bad="#E5E7EB") for name in ("viridis", "RdBu_r"))
    with matplotlib.rc_context(STYLE):
        columns = len(shown)
        ratio = brain.shape[1] * spacing_mm[1] / (brain.shape[0] * spacing_mm[0])
        figure = Figure(figsize=(2.45 * columns + 0.9, 2 * 2.45 * ratio + 1.1), layout="constrained")
        axes = figure.subplots(2, columns, squeeze=False)
        for column, (name, values) in enumerate(shown.items()):
            above, below = axes[0, column], axes[1, column]
            masked = np.ma.masked_array(values, mask=~brain)
            drawn = show_slice(above, masked, spacing_mm, cmap=late_map, vmin=0, vmax=highest_s)
            outline(above, (values > TMAX_THRESHOLD_S) & brain, spacing_mm, "white", 0.9)
            above.set_title("Reference" if column == 0 else method_label(name))
            if column == 0:
                below.axis("off")
                lines = (
                    f"axial slice {k + 1} of {truth.shape[2]}",
                    f"white line: Tmax > {TMAX_THRESHOLD_S:g} s",
                    "below each map: its error\nagainst the reference",
                )
                below.text(0.5, 0.5, "\n\n".join(lines), transform=below.transAxes, ha="center", va="center")
                continue
            error = masked - shown["reference"]
            wrong = show_slice(below, error, spacing_mm, cmap=error_map, vmin=-largest_error_s, vmax=largest_error_s)
            below.set_xlabel((captions or {}).get(name, ""))
        sides(axes[0, 0], colour="#374151")
        figure.colorbar(drawn, ax=axes[0, :], label="Tmax [s]", extend="max", shrink=0.9, pad=0.02)
        if maps:
            figure.colorbar(
                wrong, ax=axes[1, :], label="Error [s] (red: too late)", extend="both", shrink=0.9, pad=0.02
            )
        if title:
            figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    said = "; ".join(f"{method_label(m)} {(captions or {}).get(m, '')}".strip() for m in maps)
    figure.set_label(
        f"{title or 'Tmax maps'}. Tmax in seconds on axial slice {k + 1} of {truth.shape[2]}: the reference beside "
        f"{said}; error maps below."
    )
    return figure


def score_dots(scores: pd.DataFrame, metric: str) -> Figure:
    """Every subject's score for every method as a dot, with the mean and its 95 % interval beside."""
    styles = method_styles(scores["method"])
    methods = list(styles)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 0.62 * len(methods) + 1.0), layout="constrained")
        drawing = figure.subplots()
        said = []
        for number, method in enumerate(methods):
            values = scores.loc[scores["method"] == method, metric].dropna().to_numpy(float)
            colour = styles[method][0]
            spread = np.random.default_rng(number).uniform(-0.11, 0.11, values.size)
            drawing.scatter(values, number + 0.14 + spread, s=22, color=to_rgba(colour, 0.55), linewidths=0)
            if values.size:
                mean, (low, high) = values.mean(), bootstrap_interval(values)
                if low is not None and high is not None:
                    drawing.plot([low, high], [number - 0.22] * 2, color=colour, linewidth=2.4, solid_capstyle="round")
                drawing.plot(mean, number - 0.22, marker="D", markersize=6, color=colour)
                said.append(f"{method_label(method)} {mean:.2f} (n = {values.size})")
        drawing.set_yticks(range(len(methods)), [method_label(method) for method in methods], color="#111827")
        drawing.set_ylim(len(methods) - 0.5, -0.5)
        drawing.set_xlabel(f"{metric_label(metric)}  (dots: subjects, diamond: mean, bar: 95 % interval)")
        drawing.grid(axis="y", visible=False)
        score_limits(drawing, metric, along="x")
    figure.set_label(f"{metric_label(metric)} of every hold-out subject by method; means: {', '.join(said)}.")
    return figure


def fold_dots(folds: pd.DataFrame, metric: str) -> Figure:
    """One dot per cross-validation fold and the mean over folds.

    `folds` has columns ``fold`` and the metric; several rows per fold (subjects) are averaged first.
    """
    means = folds.groupby("fold")[metric].mean().sort_index()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 2.9), layout="constrained")
        drawing = figure.subplots()
        drawing.axhline(means.mean(), color=GREY, linestyle="--", linewidth=1.2)
        drawing.annotate(
            f"mean {means.mean():.3f}",
            (1.01, means.mean()),
            xycoords=("axes fraction", "data"),
            va="center",
            color=GREY,
        )
        if len(folds) > len(means):
            spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(folds))
            places = folds["fold"].map({fold: place for place, fold in enumerate(means.index)}) + spread
            drawing.scatter(places, folds[metric], s=16, color=to_rgba(BLUE, 0.35), linewidths=0)
        drawing.plot(range(len(means)), means, "D", color=BLUE, markersize=7)
        drawing.set_xticks(range(len(means)), [f"{fold:g}" for fold in means.index])
        drawing.set_xlim(-0.5, len(means) - 0.5)
        drawing.set_xlabel("Cross-validation fold")
        drawing.set_ylabel(metric_label(metric))
        drawing.grid(axis="x", visible=False)
        score_limits(drawing, metric)
    said = ", ".join(f"fold {fold:g} {value:.3f}" for fold, value in zip(means.index, means, strict=True))
    figure.set_label(f"{metric_label(metric)} per cross-validation fold: {said}; mean {means.mean():.3f}.")
    return figure


def training_curve(history: pd.DataFrame) -> Figure:
    """Losses (left) and, where there are any, validation scores (right) against the epoch.

    `history` has a column ``epoch``; columns with ``loss`` in their name are losses, the others scores. Rows of one
    epoch may each fill some columns, as loggers write them.
    """
    table = history.groupby("epoch").last()
    losses = [name for name in table if "loss" in str(name)]
    others = [name for name in table if name not in losses and table[name].notna().any()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 2.9), layout="constrained")
        drawings = figure.subplots(1, 2 if others else 1, squeeze=False)[0]
        for drawing, names, label in zip(drawings, (losses, others), ("Loss", "Validation score"), strict=False):
            for name, colour in zip(names, (BLUE, VERMILION, GREEN, PURPLE, ORANGE, GREY), strict=False):
                values = table[name].dropna()
                few = {"marker": "o", "markersize": 3.5} if len(values) <= 30 else {}
                drawing.plot(
                    values.index, values, color=colour, label=str(name).replace("_", " "), linewidth=1.6, **few
                )
            drawing.set_xlabel("Epoch")
            drawing.set_ylabel(label)
            drawing.xaxis.set_major_locator(MaxNLocator(integer=True))
            drawing.legend()
    ends = "; ".join(f"{name} ends at {table[name].dropna().iloc[-1]:.3g}" for name in [*losses, *others])
    figure.set_label(f"Training over {len(table)} epochs: {ends}.")
    return figure


def volume_histogram(
    volumes_ml: ArrayLike, *, label: str = "Lesion volume [mL]", sides: ArrayLike | None = None
) -> Figure:
    """How many subjects have which volume, on a logarithmic axis; subjects without any are counted in the title.

    `sides` (``train`` or ``holdout`` per subject) stacks the hold-out on the training side.
    """
    volumes = np.asarray(volumes_ml, dtype=float)
    groups = np.full(volumes.shape, "subjects", dtype=object) if sides is None else np.asarray(sides, dtype=object)
    seen = volumes > 0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 2.7), layout="constrained")
        drawing = figure.subplots()
        if seen.any():
            low, high = np.floor(np.log10(volumes[seen].min()) * 3) / 3, np.ceil(np.log10(volumes[seen].max()) * 3) / 3
            high = max(high, low + 1 / 3)
            edges = [float(edge) for edge in np.logspace(low, high, max(round((high - low) * 6), 2) + 1)]
            names = sorted(dict.fromkeys(groups), key=lambda name: name != "train")
            drawing.hist(
                [volumes[seen & (groups == name)] for name in names],
                bins=edges,
                stacked=True,
                color=[BLUE, ORANGE, GREEN, PURPLE][: len(names)],
                edgecolor="white",
                label=[{"holdout": "hold-out", "train": "training"}.get(str(name), str(name)) for name in names],
            )
            drawing.set_xscale("log")
            decades = [multiple * 10.0**power for power in range(-3, 4) for multiple in (1, 2, 5)]
            ticks = [tick for tick in decades if edges[0] * 0.99 <= tick <= edges[-1] * 1.01]
            drawing.xaxis.set_major_locator(FixedLocator(ticks))
            drawing.xaxis.set_minor_locator(NullLocator())
            drawing.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if len(names) > 1:
                drawing.legend()
        drawing.yaxis.set_major_locator(MaxNLocator(integer=True))
        drawing.set_xlabel(label)
        drawing.set_ylabel("Subjects")
        drawing.grid(axis="x", visible=False)
        without = int((~seen).sum())
        if without:
            drawing.set_title(
                f"{without} of {volumes.size} subjects have none and are not drawn", loc="left", fontweight="normal"
            )
    spread = (
        f"from {volumes[seen].min():.2g} to {volumes[seen].max():.3g}, median {np.median(volumes[seen]):.3g}"
        if seen.any()
        else "all zero"
    )
    figure.set_label(f"Histogram of {label} over {volumes.size} subjects: {spread}.")
    return figure


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and line of each method, the model first; the same methods look the same in every figure."""
    present = sorted(set(methods) - {MODEL})
    free = [colour for colour in OTHER_COLOURS if colour not in {METHOD_COLOURS.get(method) for method in present}]
    strangers = [method for method in present if method not in METHOD_COLOURS]
    colours = METHOD_COLOURS | {method: free[place % len(free)] for place, method in enumerate(strangers)}
    styles = {method: (colours[method], "--") for method in present}
    return {MODEL: (BLUE, "-")} | styles if MODEL in set(methods) else styles


def direct_labels(drawing: Axes, part: pd.DataFrame, level_name: str) -> None:
    """Name the lines at their right end, moved apart where they would overlap."""
    ends = []
    for method, (colour, _) in method_styles(part["method"]).items():
        rows = part[part["method"] == method].sort_values(level_name).dropna(subset=["mean"])
        if len(rows):
            ends.append((float(rows["mean"].iloc[-1]), method, colour))
    low, high = drawing.get_ylim()
    gap, place = 0.07 * (high - low), -np.inf
    for value, method, colour in sorted(ends):
        place = max(value, place + gap)
        where = (1.01, place)
        drawing.annotate(method_label(method), where, xycoords=("axes fraction", "data"), va="center", color=colour)


def score_limits(drawing: Axes, metric: str, *, along: str = "y") -> None:
    """Scores between 0 and 1 are shown on that whole range, so that a small difference looks small."""
    note = note_of(metric)
    if note is not None and note.better == "higher" and not note.unit and metric not in ("pearson_r", "ccc", "ssim"):
        (drawing.set_ylim if along == "y" else drawing.set_xlim)(-0.02, 1.02)
    elif note is not None and note.better == "lower":
        (drawing.set_ylim if along == "y" else drawing.set_xlim)(0, None)
