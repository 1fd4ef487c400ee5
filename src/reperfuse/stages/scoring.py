"""The score verb: one predicted mask against its truth."""

import json
from pathlib import Path

import numpy as np

from reperfuse.cohort.checks import check_same_grid
from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import METRICS, Scores, lesion_scores
from reperfuse.imaging.volume import load_volume


def score(prediction: Path, truth: Path, *, probability: Path | None = None, as_json: bool = False) -> None:
    """Print every score of `evaluation.metrics.lesion_scores`, as a table or as JSON; undefined is null, never 0.

    Parameters
    ----------
    prediction, truth
        Masks, NIfTI, 0 and 1, on one grid.
    probability
        Probability of lesion on the same grid; adds the scores over all thresholds.
    as_json
        JSON on stdout and nothing else, for scripts.

    Raises
    ------
    InputError
        If an image is not 3D, a mask is not binary, or they lie on different grids.
    """
    found = scores_of(prediction, truth, probability)
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("score", "value", "unit", "better")
    for name, value in found.items():
        note = METRICS[name]
        table.add_row(note.label, "–" if value is None else f"{value:.4g}", note.unit, note.better)
    Console().print(table)


def scores_of(prediction: Path, truth: Path, probability: Path | None = None) -> Scores:
    """The scores by name."""
    volumes = {path: load_volume(path) for path in (prediction, truth, probability) if path is not None}
    for path, volume in volumes.items():
        if volume.data.ndim != 3:
            raise InputError(f"{path} has {volume.n_frames} frames: give one 3D mask.")
        check_same_grid(volume, str(path), volumes[truth], str(truth))
    for path in (prediction, truth):
        if not np.isin(volumes[path].data, (0, 1)).all():
            raise InputError(f"{path} holds values other than 0 and 1: give a binary mask.")
    predicted, true = volumes[prediction], volumes[truth]
    soft = None if probability is None else volumes[probability].data
    return lesion_scores(predicted.data, true.data, true.spacing_mm, probability=soft)
