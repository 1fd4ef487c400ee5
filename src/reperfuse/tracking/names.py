"""Names and texts that stay the same from run to run, so that runs compare: docs/tracking.md shows them in the UI."""

import json
import os
from collections.abc import Mapping
from typing import Any

RUN_KINDS = {
    "study": "a search; its children are trials",
    "trial": "one proposal of the search; its children are folds",
    "fold": "one training of cross-validation",
    "rival": "the best trial of another choice, trained like the model; its parent is the model's run",
    "model": "the final training; evaluate, resolution and report come back to it",
    "resolution": "the resolution study of a model that is not the pipeline's own",
}
"""First word of a run's name and its tag `kind`, by which the UI filters: tags.kind = 'model'."""

METRIC_GROUPS = {
    "train": "what the optimiser sees; step = epoch",
    "val": "the fold's validation subjects while training; step = epoch",
    "cv": "means over folds or trials; optimistic for the chosen trial",
    "holdout": "the untouched hold-out: the figures to report",
    "baseline": "the same figures for methods without weights: baseline/METHOD/dice",
    "subject": "hold-out subject by subject; step = row of tables/scores.csv",
    "resolution": "the hold-out at lower resolution; step = slice thickness [mm], or repetition time [ms]",
    "rival": "the same figures for rivals, trained like the model: rival/NAME/mae_s",
    "cohort": "how many subjects stand behind a number",
    "time": "durations [s]",
}
"""First part of a metric's name: the UI draws one section of charts for each."""


PRESET_VARIABLE = "REPERFUSE_EXPERIMENT"
"""Environment variable that says which preset a run belongs to; it becomes the run's tag `experiment`."""


def run_name(kind: str, *details: Any) -> str:
    """The name of a run: its kind, then what tells it from its neighbours; numbers are padded so that they sort.

    In `dvc exp run` the experiment's name stands at the end of a study's or a model's name.

    Examples
    --------
    >>> run_name("trial", 7)
    'trial 007'
    >>> run_name("model", "unet3d", "3f9a1c")
    'model unet3d 3f9a1c'
    """
    if kind not in RUN_KINDS:
        raise ValueError(f"no kind of run named {kind}; there are {', '.join(RUN_KINDS)}")
    words = [f"{d:03d}" if isinstance(d, int) and kind == "trial" else str(d) for d in details]
    experiment = os.environ.get("DVC_EXP_NAME") if kind in ("study", "model") else None
    return " ".join([kind, *words, *([f"({experiment})"] if experiment else [])])


def grouped(group: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`metrics` with the names under which the UI groups them.

    Examples
    --------
    >>> grouped("holdout", {"dice": 0.7, "hd95_mm": None})
    {'holdout/dice': 0.7, 'holdout/hd95_mm': None}
    """
    if group.split("/")[0] not in METRIC_GROUPS:
        raise ValueError(f"no metric group named {group}; there are {', '.join(METRIC_GROUPS)}")
    return {f"{group}/{name}": value for name, value in metrics.items()}


def flattened(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as one level of dotted names and the texts that params.yaml would show.

    Examples
    --------
    >>> flattened({"train": {"epochs": 3, "lr": 1e-3, "weights": None}, "thicknesses_mm": [2, 5]})
    {'train.epochs': '3', 'train.lr': '0.001', 'train.weights': 'null', 'thicknesses_mm': '2, 5'}
    """
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat.update(flattened(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = readable(value)
    return flat


def readable(value: Any) -> str:
    """A value as params.yaml would show it, on one line."""
    if hasattr(value, "tolist"):  # numpy arrays and numbers
        value = value.tolist()
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and not any(isinstance(v, list | tuple | Mapping) for v in value):
        return ", ".join(readable(v) for v in value)  # as JSON, the UI would put each on a line of its own
    return json.dumps(value, ensure_ascii=False, default=str)
