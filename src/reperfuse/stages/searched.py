"""What a search left behind, for the report and for an experiment's table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reperfuse.files import read_json

if TYPE_CHECKING:
    import pandas as pd


def trials_of(folder: Path, searched: Sequence[str], lead: Sequence[str] = ()) -> "pd.DataFrame":
    """`evaluation.trials.trials_table` of trials.csv, and of baselines.csv where there is one, in `folder`.

    Raises
    ------
    InputError
        If best.json, which names the metric, is missing.
    """
    import pandas as pd

    from reperfuse.evaluation.trials import trials_table

    metric = read_json(folder / "best.json")["metric"]
    baselines = folder / "baselines.csv"
    return trials_table(
        pd.read_csv(folder / "trials.csv"),
        pd.read_csv(baselines) if baselines.exists() else None,
        metric=metric,
        searched=searched,
        lead=lead,
    )


def name_among_rivals(best: Mapping[str, Any]) -> str:
    """What the model of best.json is where others of its search stand beside it, such as a network's name; else "".

    >>> name_among_rivals({"overrides": {"network": "cnn8"}, "rivals_by": "network", "rivals": {"resnet20": {}}})
    'cnn8'
    """
    return str(best["overrides"][best["rivals_by"]]) if best["rivals"] else ""


def what_was_chosen(best: Mapping[str, Any]) -> str:
    """In a sentence or two, what the search of best.json chose, and which others stand beside it.

    >>> rivals = {"resnet20": {"overrides": {"network": "resnet20", "learning_rate": 0.001}}}
    >>> chosen = {"network": "cnn8", "learning_rate": 0.01}
    >>> what_was_chosen({"trial": 3, "overrides": chosen, "rivals_by": "network", "rivals": {}})
    'The model is trial 3 of the search: network cnn8, learning rate 0.01.'
    >>> print(what_was_chosen({"trial": 3, "overrides": chosen, "rivals_by": "network", "rivals": rivals})[70:])
    Beside it, trained in the same way, the best trial of each other network: resnet20 (learning rate 0.001).
    """
    said = f"The model is trial {best['trial']} of the search: {_said(best['overrides'])}."
    if not best["rivals"]:
        return said

    def of(name: str) -> str:
        others = {key: value for key, value in best["rivals"][name]["overrides"].items() if key != best["rivals_by"]}
        return f"{name} ({_said(others)})" if others else name

    what = best["rivals_by"].replace("_", " ")
    return (
        f"{said} Beside it, trained in the same way, the best trial of each other {what}: "
        f"{'; '.join(map(of, best['rivals']))}."
    )


def _said(overrides: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.rpartition('.')[2].replace('_', ' ')} {f'{value:.3g}' if isinstance(value, float) else value}"
        for name, value in overrides.items()
    )
