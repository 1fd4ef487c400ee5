"""Where things lie in a workspace: the one place that spells these paths.

All are relative to the workspace, the folder of dvc.yaml, in which a stage runs.
"""

from pathlib import Path


def bids(arm: str) -> Path:
    """BIDS tree that ingest writes."""
    return Path("data/bids") / arm


def processed(arm: str) -> Path:
    """Arrays that networks read, a folder per subject."""
    return Path("data/processed") / arm


def results(arm: str) -> Path:
    """Tables and metrics, a folder or file per stage."""
    return Path("results") / arm


def models(arm: str) -> Path:
    """The trained model: model.safetensors, model.json, run.json, history.csv, subjects.csv, changes.patch."""
    return Path("models") / arm


def report(arm: str) -> Path:
    """The page."""
    return Path("reports") / f"{arm}.html"


def cohort_csv(arm: str) -> Path:
    """One row per subject that takes part."""
    return results(arm) / "cohort.csv"


def folds_csv(arm: str) -> Path:
    """Side and fold of every subject."""
    return results(arm) / "folds.csv"


def best_json(arm: str) -> Path:
    """What the search chose."""
    return results(arm) / "tune" / "best.json"
