"""How hold-out scores are called in MLflow, for the stage that logs them and the gate that reads them back."""

from collections.abc import Mapping

SCORES_TABLE = "tables/scores.csv"
"""Artifact of a run that holds its hold-out scores, by which a later challenger is compared."""


def logged_names(flat: Mapping[str, float]) -> dict[str, float]:
    """Names under which MLflow groups the hold-out: `holdout/dice`, and `baseline/empty/dice` for the others.

    Examples
    --------
    >>> logged_names({"dice": 0.6, "baseline_empty/dice": 0.0})
    {'holdout/dice': 0.6, 'baseline/empty/dice': 0.0}
    """
    return {
        name.replace("baseline_", "baseline/", 1) if name.startswith("baseline_") else f"holdout/{name}": value
        for name, value in flat.items()
    }
