"""What every figure is drawn with: colours, style, and slices as radiologists look at them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import ArrayLike, NDArray

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#6B7280",
)
"""Okabe & Ito's palette, distinguishable with every common colour-vision deficiency."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "axes.titleweight": "bold",
    "axes.edgecolor": "#4B5563",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.8,
    "xtick.color": "#4B5563",
    "ytick.color": "#4B5563",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def as_ras(
    volumes: Sequence[ArrayLike], spacing_mm: Sequence[float], affine: ArrayLike | None
) -> tuple[list[NDArray[Any]], Sequence[float]]:
    """Volumes of one grid and its spacing with the axes nearest to Right, Anterior, Superior in that order."""
    arrays = [np.asarray(volume) for volume in volumes]
    if affine is None:
        return arrays, spacing_mm
    orientation = io_orientation(np.asarray(affine))
    order = np.argsort(orientation[:, 0])
    return [apply_orientation(array, orientation) for array in arrays], [float(spacing_mm[axis]) for axis in order]


def fullest_slice(masks: Sequence[NDArray[np.bool_]]) -> int:
    """The axial slice where the first mask that is not empty has most; the middle where all are empty."""
    for mask in masks:
        areas = mask.sum(axis=(0, 1))
        if areas.any():
            return int(areas.argmax())
    return masks[0].shape[2] // 2


def show_slice(axis: Axes, values: NDArray[Any], spacing_mm: Sequence[float], **how: Any) -> Any:
    """Draw one axial slice in mm, patient's right on the left, anterior up."""
    width, height = values.shape[0] * spacing_mm[0], values.shape[1] * spacing_mm[1]
    drawn = axis.imshow(values.T, origin="lower", extent=(0, width, 0, height), interpolation="nearest", **how)
    # The axis is turned round, not the data: outlines in the same coordinates turn with it.
    axis.set(xlim=(width, 0), ylim=(0, height), xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return drawn


def outline(axis: Axes, mask: NDArray[np.bool_], spacing_mm: Sequence[float], colour: str, width: float) -> None:
    """Draw the edges of a mask's voxels over a slice."""
    if not mask.any():
        return
    # Voxel edges, not interpolated contours: a lesion of one voxel is drawn as one voxel.
    wide = np.pad(mask, 1).astype(np.int8)
    across, along = np.nonzero(np.diff(wide, axis=0)), np.nonzero(np.diff(wide, axis=1))
    lines = [[(i, j - 1), (i, j)] for i, j in zip(*across, strict=True)]
    lines += [[(i - 1, j), (i, j)] for i, j in zip(*along, strict=True)]
    segments = np.asarray(lines, dtype=float) * np.asarray(spacing_mm[:2])
    axis.add_collection(
        LineCollection(list(segments), colors=colour, linewidths=width, capstyle="round"), autolim=False
    )


def sides(axis: Axes, colour: str = "white") -> None:
    """Write R and L where the patient's right and left are."""
    for place, letter, align in ((0.03, "R", "left"), (0.97, "L", "right")):
        axis.text(place, 0.03, letter, transform=axis.transAxes, color=colour, ha=align, va="bottom", fontsize=9)
