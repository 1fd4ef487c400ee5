"""How hold-out scores are called in MLflow, for the stage that logs them and the gate that reads them back."""

from collections.abc import Mapping

SCORES_TABLE = "tables/scores.csv"
"""Artifact of a run that holds its hold-out scores, by which a later challenger is compared."""

RESOLUTION_TABLE = "tables/resolution_scores.csv"
"""Artifact of a run that holds the scores of its resolution study, for the same purpose."""


def logged_names(flat: Mapping[str, float]) -> dict[str, float]:
    """Names under which MLflow groups the hold-out: `holdout/dice`, `baseline/empty/dice`, `rival/unet3d/dice`.

    Examples
    --------
    >>> logged_names({"dice": 0.6, "baseline_empty/dice": 0.0})
    {'holdout/dice': 0.6, 'baseline/empty/dice': 0.0}
    """
    return {_logged(name): value for name, value in flat.items()}


def _logged(name: str) -> str:
    group = name.split("_", 1)[0]
    return name.replace("_", "/", 1) if group in ("baseline", "rival") else f"holdout/{name}"
