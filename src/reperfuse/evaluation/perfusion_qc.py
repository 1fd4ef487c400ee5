"""One page to judge a perfusion examination by: maps, the artery that was chosen, the bolus, volumes and flags.

Drawn as radiologists look at it, the patient's right on the left of each picture, in millimetres.
"""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory
from numpy.typing import ArrayLike, NDArray

from reperfuse.evaluation.drawing import (
    BLUE,
    GREEN,
    GREY,
    STYLE,
    VERMILION,
    as_ras,
    outline,
    show_slice,
    sides,
)
from reperfuse.perfusion.quality import FLAGS, Flag

RESEARCH_ONLY = "Research use only. Not for diagnosis."

LATE_COLOUR, CORE_COLOUR = "white", VERMILION
"""Outlines of late tissue and core, each on a dark rim, so that they stand out on any map and on grey."""

AIF_COLOUR, VOF_COLOUR, TISSUE_COLOUR = VERMILION, BLUE, GREEN
"""Artery, vein and tissue, in pictures and curves alike."""

INK, PALE = "#111827", "#E5E7EB"

PAGE_IN = (15.0, 10.6)
"""Width and height of the page [inch]."""

ROWS_LEFT, ROWS_RIGHT, ROWS_TOP, ROWS_BOTTOM = 0.032, 0.462, 0.93, 0.045
"""Where the rows of maps lie on the page, as parts of it."""

FLAG_LINES, FLAG_WIDTH = 16, 60
"""Lines of text that fit below the curves, and characters in a line; flags beyond are named only."""

NOTE_WIDTH = 74
"""Characters in a line of the notes, which are smaller than flags and take the lines that those leave."""

NO_VERDICT = frozenset({"no_bolus", "implausible_tr", "no_artery"})
"""Flags under which Tmax or its seconds are not to be believed: no target mismatch is stated, and no number is bold."""

UNCALIBRATED = ("cbf", "cbv")
"""Maps whose size is arbitrary unless white matter was set to a known flow."""


class MapStyle(NamedTuple):
    """How a map is drawn; a limit of None is taken from the map."""

    label: str
    unit: str
    colours: str
    lowest: float | None = None
    highest: float | None = None
    medians: float | None = None
    """Upper limit in medians of the brain: vessels, many times brighter, do not darken the rest."""


MAP_STYLES = {
    "cbf": MapStyle("CBF", "mL/100 g/min", "magma", 0.0, medians=3.0),
    "cbv": MapStyle("CBV", "mL/100 g", "magma", 0.0, medians=2.5),
    "mtt": MapStyle("MTT", "s", "viridis", 0.0, medians=3.0),
    "tmax": MapStyle("Tmax", "s", "viridis", 0.0, 12.0),
    "ttp": MapStyle("TTP", "s", "viridis"),
    "delay": MapStyle("Delay", "s", "viridis", -2.0, 10.0),
    "rttp": MapStyle("Relative TTP", "s", "viridis", 0.0, 10.0),
    "tmax_sd": MapStyle("Tmax SD", "s", "cividis", 0.0, 3.0),
    "delay_sd": MapStyle("Delay SD", "s", "cividis", 0.0, 3.0),
    "baseline": MapStyle("Baseline", "scanner units", "gray", 0.0),
}
"""Flow and volume from black to bright, times from blue to yellow: lightness rises evenly with the value in both. The
scales of Tmax and delay and of what they may be off by are the same for every patient."""


def qc_figure(
    maps: Mapping[str, ArrayLike],
    *,
    brain: ArrayLike,
    affine: ArrayLike,
    baseline_image: ArrayLike,
    frame_times_s: ArrayLike,
    tissue: ArrayLike,
    aif: ArrayLike | None = None,
    vof: ArrayLike | None = None,
    aif_voxels: ArrayLike | None = None,
    vof_voxels: ArrayLike | None = None,
    baseline: slice | None = None,
    arrival_s: float | None = None,
    hypoperfused: ArrayLike | None = None,
    core: ArrayLike | None = None,
    summary: Mapping[str, Any] | None = None,
    flags: Sequence[Flag] = (),
    title: str = "",
    n_slices: int = 5,
) -> Figure:
    """A page with rows of maps on informative slices, artery and vein in place, curves, volumes and flags in words.

    Parameters
    ----------
    maps
        Name to map, each shape (I, J, K), drawn in this order; `MAP_STYLES` knows labels, units and colours.
    brain
        Shape (I, J, K); outside, maps are left blank.
    affine
        (4, 4), voxel index to RAS+ [mm].
    baseline_image
        Mean signal before the bolus, shape (I, J, K).
    frame_times_s
        Shape (T,) [s].
    tissue, aif, vof
        Mean ΔR2* of tissue, artery and vein, shape (T,) [1/s].
    aif_voxels, vof_voxels
        Array indices of the chosen voxels, shape (n, 3).
    baseline, arrival_s
        Frames before the bolus, and its arrival in tissue [s].
    hypoperfused, core
        Outlined on Tmax and on the baseline image, shape (I, J, K).
    summary
        As `perfusion.mismatch.mismatch_summary` gives it, with te_s, tr_s, n_frames, motion_mm_max, brain_ml,
        mask_source, relative_ttp_volume_ml, notes (sentences) and settings where known. CBF and CBV are called
        relative unless settings has a true white_matter_normalisation.
    flags
        Of `perfusion.quality.quality_flags`.
    title
        On top, such as the name of the subject.
    n_slices
        Slices per map, at most.
    """
    affine = np.asarray(affine, dtype=np.float64)
    spacing = [float(length) for length in np.linalg.norm(affine[:3, :3], axis=0)]
    shape = np.shape(brain)
    marks = [_marked(shape, voxels) for voxels in (aif_voxels, vof_voxels)]
    areas = [np.zeros(shape, bool) if area is None else np.asarray(area) > 0 for area in (hypoperfused, core)]
    volumes, spacing_mm = as_ras([brain, baseline_image, *marks, *areas, *maps.values()], spacing, affine)
    inside = volumes[0] > 0
    seen = (inside | (volumes[2] > 0) | (volumes[3] > 0)).any(axis=2)
    near = tuple(slice(max(int(at.min()) - 2, 0), int(at.max()) + 3) for at in np.nonzero(seen))
    inside, picture, arteries, veins, late, dead, *shown = (volume[near] for volume in volumes)
    inside, arteries, veins, late, dead = (mask > 0 for mask in (inside, arteries, veins, late, dead))
    chosen = informative_slices(inside, late, n_slices)

    with matplotlib.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 9}):
        figure = Figure(figsize=PAGE_IN)
        drawn = dict(zip(maps, shown, strict=True)) or {"baseline": picture}
        known = summary or {}
        calibrated = bool((known.get("settings") or {}).get("white_matter_normalisation"))
        _map_rows(figure, drawn, inside, chosen, spacing_mm, late, dead, calibrated)
        right = GridSpec(
            3, 1, figure, left=0.535, right=0.985, top=0.905, bottom=0.05, height_ratios=[2.8, 2.5, 2.9], hspace=0.3
        )
        pictures = right[0].subgridspec(1, 3, wspace=0.06)
        scale = (0.0, float(np.percentile(picture[inside], 99.5)) if inside.any() else 1.0)
        for place, (name, voxels, colour) in enumerate(
            (("Artery (AIF)", arteries, AIF_COLOUR), ("Vein (VOF)", veins, VOF_COLOUR))
        ):
            axis = figure.add_subplot(pictures[place])
            _vessel_panel(axis, name, picture, voxels, scale, spacing_mm, colour, chosen)
        axis = figure.add_subplot(pictures[2])
        without_artery = "rttp" in maps and "tmax" not in maps
        late_is = "relative TTP > 4.5 s" if without_artery else "Tmax > 6 s"
        _lesion_panel(axis, picture, late, dead, inside, scale, spacing_mm, late_is)
        _curves(
            figure.add_subplot(right[1]), np.asarray(frame_times_s, dtype=np.float64), tissue, aif, vof, baseline,
            arrival_s,
        )  # fmt: skip
        words = figure.add_subplot(right[2])
        words.axis("off")
        n_slices_of_brain = int(inside.any(axis=(0, 1)).sum())
        _numbers(words, known, flags, n_slices_of_brain, without_artery)
        _notes(words, known.get("notes") or (), _flag_list(words, flags))
        figure.text(0.012, 0.972, title or "Perfusion MRI", fontsize=14, fontweight="bold", color=INK, va="center")
        figure.text(
            0.985, 0.972, RESEARCH_ONLY, fontsize=11, fontweight="bold", color=VERMILION, va="center", ha="right"
        )
        figure.text(
            0.012, 0.014,
            "Axial slices from below upward, radiological display: the patient's right is on the left of each picture. "
            f"White line: {late_is} as counted (no CSF, vessels or small islands)"
            + ("; orange line: core." if dead.any() else "."),
            fontsize=8, color=GREY,
        )  # fmt: skip
    said = "; ".join(f"{key} {_number(value)} mL" for key, value in _headline(summary or {}))
    figure.set_label(
        f"{title or 'Perfusion MRI'}: {', '.join(_style(name).label for name in drawn)} on slices "
        f"{', '.join(str(k + 1) for k in chosen)} of {inside.shape[2]}, with artery, vein and bolus curves. "
        f"{said + '. ' if said else ''}Flags: {', '.join(flag.name for flag in flags) or 'none'}. {RESEARCH_ONLY}"
    )
    return figure


def informative_slices(brain: NDArray[np.bool_], late: NDArray[np.bool_], n: int) -> list[int]:
    """Up to `n` slices along the last axis, from below upward: spread over the brain, the latest of them exactly.

    Slices with less than a third of the largest slice's brain are left out where others remain. The slice with most
    late tissue replaces the nearest of the evenly spread ones.

    Examples
    --------
    >>> brain = np.ones((4, 4, 9), bool)
    >>> late = np.zeros_like(brain)
    >>> late[0, 0, 5] = True
    >>> informative_slices(brain, late, 3)
    [1, 5, 7]
    """
    area = brain.sum(axis=(0, 1))
    useful = np.flatnonzero(area >= max(area.max() / 3, 1))
    if not useful.size:
        useful = np.arange(area.size)
    n = min(n, useful.size)
    spread = useful[((np.arange(n) + 0.5) / n * useful.size).astype(int)].tolist()
    if late.any():
        latest = int(late.sum(axis=(0, 1)).argmax())
        nearest = min(range(n), key=lambda place: (abs(spread[place] - latest), place))
        spread[nearest] = latest
    return sorted(set(spread))


def _style(name: str) -> MapStyle:
    return MAP_STYLES.get(name, MapStyle(name.replace("_", " "), "", "viridis"))


def _limits(name: str, values: NDArray[Any]) -> tuple[float, float]:
    """Ends of a map's colours: as its style says, else 1st and 99th percentile, rounded outward to two digits."""
    style, finite = _style(name), values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(finite, [1, 99])) if finite.size else (0.0, 1.0)
    positive = finite[finite > 0]
    if style.medians is not None and positive.size:
        high = style.medians * float(np.median(positive))
    step = 10 ** np.floor(np.log10(max(abs(high), abs(low), 1e-6))) / 10
    low = style.lowest if style.lowest is not None else float(np.floor(low / step) * step)
    high = style.highest if style.highest is not None else float(np.ceil(high / step) * step)
    return low, high if high > low else low + 1


def _map_rows(
    figure: Figure,
    maps: Mapping[str, NDArray[Any]],
    inside: NDArray[np.bool_],
    chosen: Sequence[int],
    spacing_mm: Sequence[float],
    late: NDArray[np.bool_],
    dead: NDArray[np.bool_],
    calibrated: bool,
) -> None:
    rows, columns = len(maps), len(chosen)
    # Panels as wide as their brains: as high as the rows allow, or as wide as the space left of the curves does.
    ratio = inside.shape[0] * spacing_mm[0] / (inside.shape[1] * spacing_mm[1])
    height = min((ROWS_TOP - ROWS_BOTTOM) / max(rows, 3), 0.27) * PAGE_IN[1]
    width = min(0.96 * height * ratio, (ROWS_RIGHT - ROWS_LEFT) * PAGE_IN[0] / columns)
    height = min(height, 1.08 * width / ratio)
    grid = GridSpec(
        rows,
        columns,
        figure,
        left=ROWS_LEFT,
        right=ROWS_LEFT + columns * width / PAGE_IN[0],
        top=ROWS_TOP,
        bottom=ROWS_TOP - rows * height / PAGE_IN[1],
        wspace=0.03,
        hspace=0.04,
    )
    for row, (name, values) in enumerate(maps.items()):
        style = _style(name)
        low, high = _limits(name, values[inside])
        colours = matplotlib.colormaps[style.colours].with_extremes(bad=PALE)
        for column, k in enumerate(chosen):
            axis = figure.add_subplot(grid[row, column])
            masked = np.ma.masked_array(values[..., k], mask=~inside[..., k])
            show_slice(axis, masked, spacing_mm, cmap=colours, vmin=low, vmax=high)
            if name in ("tmax", "rttp"):
                _rimmed(axis, late[..., k], spacing_mm, LATE_COLOUR)
                _rimmed(axis, dead[..., k], spacing_mm, CORE_COLOUR)
            if row == 0:
                axis.set_title(f"slice {k + 1} of {inside.shape[2]}", fontweight="normal", color=INK, pad=4)
            if column == 0:
                axis.set_ylabel(style.label, fontsize=12, fontweight="bold", color=INK)
                _marked_sides(axis)
        scale = ScalarMappable(Normalize(low, high), colours)
        cell = grid[row, columns - 1].get_position(figure)
        # Shorter than its row, so that the numbers of two bars do not meet.
        bar = figure.add_axes((cell.x1 + 0.007, cell.y0 + 0.09 * cell.height, 0.008, 0.82 * cell.height))
        beyond = values[inside & np.isfinite(values)]
        below, above = bool((beyond < low).any()), bool((beyond > high).any())
        extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}
        unit = f"[{style.unit}]" if style.unit else ""
        if name in UNCALIBRATED and not calibrated:
            unit += "\nrelative scale"
        figure.colorbar(scale, cax=bar, label=unit, extend=extend[below, above], extendfrac=0.06)
        bar.yaxis.set_major_locator(MaxNLocator(4))
        # All labels on one line, whatever the width of the numbers.
        bar.yaxis.set_label_coords(cell.x1 + 0.051, 0.5, blended_transform_factory(figure.transFigure, bar.transAxes))
        bar.grid(False)


def _vessel_panel(
    axis: Axes,
    name: str,
    picture: NDArray[Any],
    voxels: NDArray[np.bool_],
    scale: tuple[float, float],
    spacing_mm: Sequence[float],
    colour: str,
    chosen: Sequence[int],
) -> None:
    """The slice of the baseline image that holds most of the chosen voxels, and those voxels on it."""
    found = voxels.any()
    k = int(voxels.sum(axis=(0, 1)).argmax()) if found else chosen[len(chosen) // 2]
    show_slice(axis, picture[..., k], spacing_mm, cmap="gray", vmin=scale[0], vmax=scale[1])
    _marked_sides(axis)
    axis.set_title(name, color=colour if found else GREY)
    if not found:
        axis.set_xlabel("none found", color=GREY)
        return
    here = voxels[..., k]
    show_slice(axis, np.ma.masked_array(here, mask=~here), spacing_mm, cmap=ListedColormap([colour]))
    outline(axis, here, spacing_mm, "white", 0.7)
    total, seen = int(voxels.sum()), int(here.sum())
    where = f"slice {k + 1} of {picture.shape[2]}"
    axis.set_xlabel(f"{where}: {seen} of {total} voxels" if seen < total else f"{where}: {_voxels(total)}")


def _lesion_panel(
    axis: Axes,
    picture: NDArray[Any],
    late: NDArray[np.bool_],
    dead: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    scale: tuple[float, float],
    spacing_mm: Sequence[float],
    late_is: str,
) -> None:
    k = next((int(m.sum(axis=(0, 1)).argmax()) for m in (late, dead, inside) if m.any()), picture.shape[2] // 2)
    show_slice(axis, picture[..., k], spacing_mm, cmap="gray", vmin=scale[0], vmax=scale[1])
    _rimmed(axis, late[..., k], spacing_mm, LATE_COLOUR)
    _rimmed(axis, dead[..., k], spacing_mm, CORE_COLOUR)
    _marked_sides(axis)
    title = " and ".join([late_is] * bool(late.any()) + ["core"] * bool(dead.any())) or f"No {late_is}"
    axis.set_title(title[0].upper() + title[1:], color=INK)
    axis.set_xlabel(f"slice {k + 1} of {picture.shape[2]}")


def _marked_sides(axis: Axes) -> None:
    """R and L, white on a dark rim: readable on any colour of a map and beside it."""
    before = len(axis.texts)
    sides(axis)
    for text in axis.texts[before:]:
        text.set_path_effects([withStroke(linewidth=2.0, foreground=INK)])


def _rimmed(axis: Axes, mask: NDArray[np.bool_], spacing_mm: Sequence[float], colour: str) -> None:
    outline(axis, mask, spacing_mm, INK, 2.0)
    outline(axis, mask, spacing_mm, colour, 1.0)


def _curves(
    axis: Axes,
    times: NDArray[np.float64],
    tissue: ArrayLike,
    aif: ArrayLike | None,
    vof: ArrayLike | None,
    baseline: slice | None,
    arrival_s: float | None,
) -> None:
    for name, curve, colour, width in (
        ("artery (AIF)", aif, AIF_COLOUR, 2.0),
        ("vein (VOF)", vof, VOF_COLOUR, 1.6),
        ("mean tissue", tissue, TISSUE_COLOUR, 2.0),
    ):
        if curve is not None:
            axis.plot(times, np.asarray(curve), color=colour, linewidth=width, marker="o", markersize=2.6, label=name)
    axis.margins(x=0.01)
    axis.set_ylim(*_with_room(axis))
    top = axis.get_ylim()[1]
    if baseline is not None:
        part = times[baseline]
        if part.size:
            half = float(np.median(np.diff(times))) / 2 if times.size > 1 else 0.5
            axis.axvspan(part[0] - half, part[-1] + half, color=PALE, alpha=0.7, linewidth=0, zorder=0)
            axis.text((part[0] + part[-1]) / 2, 0.97 * top, "baseline", color=GREY, ha="center", va="top", fontsize=8.5)
    if arrival_s is not None:
        axis.axvline(arrival_s, color=GREY, linestyle="--", linewidth=1.0)
        axis.text(arrival_s, 0.97 * top, " arrival", color=GREY, va="top", fontsize=8.5)
    axis.axhline(0, color="#9CA3AF", linewidth=0.8, zorder=1)
    axis.set_xlabel("Time [s]", labelpad=2)
    axis.set_ylabel("ΔR2* [1/s]")
    axis.legend(loc="upper right", handlelength=1.6)


def _with_room(axis: Axes) -> tuple[float, float]:
    low, high = axis.get_ylim()
    return low, high + 0.12 * (high - low)


def _numbers(
    axis: Axes, summary: Mapping[str, Any], flags: Sequence[Flag], n_slices: int, without_artery: bool
) -> None:
    """Volumes, mismatch and acquisition as a column of labels and values; what is undefined is a dash."""
    believed = not without_artery and not NO_VERDICT & {flag.name for flag in flags}
    lines: list[tuple[str, str]] = []
    if summary.get("brain_ml") is not None:
        source = f"{summary['mask_source']}, " if summary.get("mask_source") else ""
        slices = "1 slice" if n_slices == 1 else f"{n_slices} slices"
        lines.append((f"Brain ({source}{slices})", _with_unit(summary["brain_ml"], "mL")))
    if not without_artery:
        for threshold, value in (summary.get("tmax_volume_ml") or {}).items():
            lines.append((f"Tmax > {threshold} s", _with_unit(value, "mL")))
    if summary.get("relative_ttp_volume_ml") is not None:
        lines.append(("Relative TTP > 4.5 s", _with_unit(summary["relative_ttp_volume_ml"], "mL")))
    if summary.get("core_volume_ml") is not None:
        method = {"adc": "ADC", "rcbf": "rCBF"}.get(str(summary.get("core_method")))
        lines.append((f"Core ({method})" if method else "Core", _with_unit(summary["core_volume_ml"], "mL")))
    elif "core_volume_ml" in summary:
        lines.append(("Core: not determined", ""))
    target = {True: "yes", False: "no"}.get(summary.get("target_mismatch"), "–")  # type: ignore[arg-type]
    rows: Sequence[tuple[str, str, str]] = (
        ("mismatch_volume_ml", "Mismatch volume", "mL"),
        ("mismatch_ratio", "Mismatch ratio", ""),
        ("hypoperfusion_intensity_ratio", "HIR (10 s / 6 s)", ""),
    )
    if not without_artery:
        lines += [(label, _with_unit(summary[key], unit)) for key, label, unit in rows if key in summary]
    if "target_mismatch" in summary:
        lines.append(("Target mismatch (DEFUSE 3)", target if believed else "–"))
    acquired = [
        f"TE {1000 * summary['te_s']:.0f} ms" if summary.get("te_s") else "",
        f"TR {summary['tr_s']:.2f} s" if summary.get("tr_s") else "",
        f"{summary['n_frames']} frames" if summary.get("n_frames") else "",
        f"motion {summary['motion_mm_max']:.1f} mm" if summary.get("motion_mm_max") is not None else "",
    ]
    if not lines:
        return
    axis.text(0.0, 1.0, "Volumes", transform=axis.transAxes, fontsize=11, fontweight="bold", color=INK, va="top")
    place, step = 0.88, min(0.078, 0.858 / len(lines))
    for label, value in lines:
        main = label in ("Tmax > 6 s", "Target mismatch (DEFUSE 3)") or label.startswith("Core (")
        strong = "bold" if main and believed and value != "–" else "normal"
        axis.text(0.0, place, label, transform=axis.transAxes, fontsize=9, color=INK, va="top", fontweight=strong)
        axis.text(0.38, place, value, transform=axis.transAxes, fontsize=9, color=INK, va="top", ha="right",
                  fontweight=strong)  # fmt: skip
        place -= step
    axis.text(0.0, place - 0.03, "   ".join(filter(None, acquired)), transform=axis.transAxes, fontsize=8.5, color=GREY,
              va="top")  # fmt: skip


def _flag_list(axis: Axes, flags: Sequence[Flag]) -> float:
    """Flags in words; returns the height below them, as a part of the axes."""
    where: dict[str, Any] = {"transform": axis.transAxes, "va": "top"}
    axis.text(0.46, 1.0, "Quality", fontsize=11, fontweight="bold", color=INK, **where)
    if not flags:
        axis.text(0.46, 0.88, f"None of the {len(FLAGS)} checks raised a flag.", fontsize=9, color=INK, **where)
        return 0.80
    lines: list[tuple[str, bool]] = []
    for n, flag in enumerate(flags):
        words = wrap(flag.sentence, FLAG_WIDTH)
        rest = flags[n:]
        if len(lines) + len(words) > FLAG_LINES - (len(rest) > 1):
            lines += [
                (line, number == 0)
                for number, line in enumerate(
                    wrap(f"And {', '.join(f.name for f in rest)}: see summary.json.", FLAG_WIDTH)
                )
            ]
            break
        lines += [(line, number == 0) for number, line in enumerate(words)]
    place = 0.88
    for number, (line, first) in enumerate(lines):
        place -= (0.053 if number else 0.0) + (0.015 if first and number else 0.0)
        if first:
            axis.add_line(
                Line2D([0.438], [place - 0.022], transform=axis.transAxes, color=VERMILION, marker="s", markersize=4)
            )
        axis.text(0.46, place, line, fontsize=8.5, color=INK, **where)
    return place - 0.08


def _notes(axis: Axes, notes: Sequence[str], top: float) -> None:
    """What was done to the series, small, from `top` down to the end of the axes; what does not fit is counted."""
    step = 0.046
    room = max(int(top / step), 1)
    lines: list[str] = []
    for n, note in enumerate(notes):
        words = wrap(note, NOTE_WIDTH)
        if len(lines) + len(words) > room - (n < len(notes) - 1):
            left = len(notes) - n
            lines.append(f"{'And ' if n else ''}{left} {'note' if left == 1 else 'notes'}: see summary.json.")
            break
        lines += words
    for n, line in enumerate(lines):
        axis.text(0.46, top - n * step, line, fontsize=7.3, color=GREY, transform=axis.transAxes, va="top")


def _marked(shape: tuple[int, ...], voxels: ArrayLike | None) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    if voxels is not None and np.size(voxels):
        mask[tuple(np.asarray(voxels, dtype=np.intp).T)] = True
    return mask


def _headline(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    volumes = summary.get("tmax_volume_ml") or {}
    pairs = [("Tmax > 6 s", volumes.get("6")), ("core", summary.get("core_volume_ml"))]
    if volumes.get("6") is None:
        pairs.append(("relative TTP > 4.5 s", summary.get("relative_ttp_volume_ml")))
    return [(name, value) for name, value in pairs if value is not None]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.2f}"


def _with_unit(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{_number(value)} {unit}".strip()


def _voxels(n: int) -> str:
    return "1 voxel" if n == 1 else f"{n} voxels"
