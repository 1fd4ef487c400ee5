"""The gate between a trained model and the alias `champion`.

Outside dvc.yaml and safe to repeat: it reads only models/<arm> and results/<arm>, so that outputs DVC brought
back from its cache, or a tracking store that was lost, still end in a champion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reperfuse import tracking
from reperfuse.evaluation.metrics import METRICS
from reperfuse.evaluation.paired import paired_comparison
from reperfuse.evaluation.resolution import FACETS, facet_name
from reperfuse.evaluation.summary import MODEL
from reperfuse.files import read_json
from reperfuse.params import Arm, Params, Promote
from reperfuse.stages import layout
from reperfuse.stages.processed import read_table
from reperfuse.stages.scores import RESOLUTION_TABLE, SCORES_TABLE, logged_names

METRIC = {"lesion": "dice", "perfusion": "mae_s"}
"""What the gate compares, per arm."""

BASELINE = "baseline_"
"""What the names of the methods begin with that a model must beat."""

LEVELS = {"thickness_mm": "slices of {:g} mm", "tr_s": "a TR of {:g} s"}
"""How a level of a resolution study is said, by its column."""

NOT_STUDIED = "its resolution was not studied, so none is compared"
"""What the reason says of a model without a study."""


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes champion, and why."""

    promote: bool
    reason: str


def promote(arm: Arm, params: Params) -> str:
    """Register the trained model and let the gate decide; returns the sentence for the reader."""
    folder = layout.models(arm)
    scores = read_table(layout.results(arm) / "evaluate" / "scores.csv", arm)
    metrics = read_json(layout.results(arm) / "evaluate" / "metrics.json")
    studied = study_of(arm)
    digest = tracking.model_digest(folder)
    version, champion = tracking.find_registered(arm, digest), tracking.champion(arm)
    if version is not None and champion is not None and champion.version == version.version:
        return f"{arm}: version {version.version} is the champion already."
    with tracking.resume(folder / "run.json") as run:
        if version is None:
            from reperfuse.stages.learning import log_model_of  # loads PyTorch, which only a new model needs

            version = tracking.register(log_model_of(run, folder), arm)
        run.log_metrics(logged_names(metrics))
        run.log_table(scores, SCORES_TABLE)
        if studied is not None:
            run.log_table(studied, RESOLUTION_TABLE)
    settings = params.lesion.promote if arm == "lesion" else params.perfusion.promote
    decision = decide(
        scores,
        # The scores first, which every champion has: a store that lost its files is found out by them, and is not
        # taken for one that never had a study.
        None if champion is None else champion_scores(champion),
        METRIC[arm],
        settings,
        studied=studied,
        champion_studied=None if champion is None else tracking.find_table(champion.run_id, RESOLUTION_TABLE),
    )
    tracking.tag_version(
        arm, version.version, {"decision": "promoted" if decision.promote else "kept", "reason": decision.reason}
    )
    if not decision.promote:
        return f"{arm}: version {version.version} is registered and not promoted: {decision.reason}."
    tracking.promote(arm, version.version)
    return f"{arm}: version {version.version} is the champion: {decision.reason}."


def champion_scores(champion: tracking.Version) -> pd.DataFrame:
    """Hold-out scores of the champion, one row per participant and method."""
    return tracking.read_table(champion.run_id, SCORES_TABLE)


def study_of(arm: Arm) -> pd.DataFrame | None:
    """Scores of the resolution study of the model in models/<arm>; None where that model was not studied.

    A study that was left behind by a model before it is none of this one's: run.json says whose it is.
    """
    folder = layout.results(arm) / "resolution"
    record = folder / "run.json"
    if not record.exists() or read_json(record)["run_id"] != read_json(layout.models(arm) / "run.json")["run_id"]:
        return None
    return read_table(folder / "scores.csv", arm)


def decide(
    scores: pd.DataFrame,
    champion: pd.DataFrame | None,
    metric: str,
    gate: Promote,
    *,
    studied: pd.DataFrame | None = None,
    champion_studied: pd.DataFrame | None = None,
) -> Decision:
    """The gate: beat every baseline, and do not lose to the champion on the subjects both were scored on, neither as
    they were acquired nor at the coarsest level of the resolution study.

    Baselines are the methods whose name starts with `baseline_`. Rivals, other networks that were trained beside the
    model for comparison, decide nothing: the search chose among them before the hold-out was opened, and choosing again
    by the hold-out would spend it. A baseline is compared on the subjects that both have a score for: deconvolution has
    none where no artery is found.

    Parameters
    ----------
    scores, champion
        `participant_id`, `method` and metric columns of the challenger and of the champion, if there is one.
    metric
        What is compared.
    gate
        Margins in the metric's unit, and the least number of shared subjects.
    studied, champion_studied
        Tables of their resolution studies (`evaluation.resolution.resolution_study`). Where one of them has none, or
        they share no level, that is said in the reason, and the other conditions decide.
    """
    sign = 1 if METRICS[metric].better == "higher" else -1
    table = scores.pivot(index="participant_id", columns="method", values=metric)
    if table[MODEL].isna().all():
        return Decision(False, f"its {metric} is undefined for every hold-out subject")
    for method in (name for name in map(str, table) if name.startswith(BASELINE)):
        ours, theirs = table[[MODEL, method]].dropna().mean()  # both nan, and no obstacle, where they share nobody
        if sign * (ours - theirs) <= 0:
            return Decision(False, f"its mean {metric} of {ours:.3f} does not beat {method} with {theirs:.3f}")
    margin = gate.resolution_margin
    if champion is None:
        said = f"mean {metric} {table[MODEL].mean():.3f} beats every baseline, and there was no champion"
        return Decision(True, said if margin is None or studied is not None else f"{said}; {NOT_STUDIED}")
    ours, theirs = (
        part[part["method"] == MODEL].set_index("participant_id")[metric].dropna() for part in (scores, champion)
    )
    as_acquired = compared(ours, theirs, f"mean {metric}", sign, gate.non_inferiority_margin, gate.minimum_subjects)
    if not as_acquired.promote or margin is None:
        return as_acquired
    if studied is None:
        return Decision(True, f"{as_acquired.reason}; {NOT_STUDIED}")
    if champion_studied is None:
        return Decision(True, f"{as_acquired.reason}; the champion's resolution was not studied, so none is compared")
    level_name = next(name for name in FACETS if name in studied)
    levels = coarsest_shared(studied, champion_studied, level_name)
    if not levels:
        return Decision(True, f"{as_acquired.reason}; the two resolution studies share no level, so none is compared")
    ours, theirs = at_levels(studied, champion_studied, metric, level_name, levels)
    what = f"mean {metric} at {_said(levels, level_name)}"
    coarse = compared(ours, theirs, what, sign, margin, gate.minimum_subjects)
    return Decision(coarse.promote, f"{as_acquired.reason}, {'and' if coarse.promote else 'but'} {coarse.reason}")


def compared(
    ours: pd.Series, theirs: pd.Series, what: str, sign: int, margin: float, minimum_subjects: int
) -> Decision:
    """Whether a challenger holds against the champion on the subjects of both, paired.

    Parameters
    ----------
    ours, theirs
        Defined scores of challenger and champion, by participant.
    what
        What the scores are called in the reason.
    sign
        1 where higher is better, −1 where lower is.
    margin
        How much worse the mean may be, in the unit of the scores.
    """
    shared = sorted(set(ours.index) & set(theirs.index))
    if len(shared) < minimum_subjects:
        return Decision(
            False, f"too few to decide: {len(shared)} hold-out subjects shared with the champion for the {what}"
        )
    difference = paired_comparison(ours[shared], theirs[shared])["mean_difference"]
    assert difference is not None
    holds = round(sign * difference, 12) >= -margin  # rounded, so that what is worse by just the margin holds
    return Decision(
        holds,
        f"{what} differs from the champion's by {difference:+.3f} on {len(shared)} subjects, "
        f"{'within' if holds else 'beyond'} the margin of {margin:g}",
    )


def coarsest_shared(studied: pd.DataFrame, other: pd.DataFrame, level_name: str) -> dict[Any, float]:
    """Facet → the coarsest level that the model has in both studies, for the facets that have one.

    Examples
    --------
    >>> ours = pd.DataFrame({"method": "model", "axis": ["k", "k", "i"], "thickness_mm": [2.0, 10.0, 5.0]})
    >>> coarsest_shared(ours, ours[ours["thickness_mm"] < 10], "thickness_mm")
    {'k': 2.0, 'i': 5.0}
    """
    facet = FACETS[level_name]
    here, there = (
        part.loc[part["method"] == MODEL, [facet, level_name]].drop_duplicates() for part in (studied, other)
    )
    both = here.merge(there, on=[facet, level_name])
    return {value: float(level) for value, level in both.groupby(facet, sort=False)[level_name].max().items()}


def at_levels(
    studied: pd.DataFrame, other: pd.DataFrame, metric: str, level_name: str, levels: Mapping[Any, float]
) -> tuple[pd.Series, pd.Series]:
    """The model's score of each subject at those levels in either study, mean over the facets it has in both.

    A patient's own acquisition may be too coarse or too noisy for a facet; one that only one study has would be
    compared with nothing.
    """
    facet = FACETS[level_name]
    wide = [
        part[(part["method"] == MODEL) & (part[level_name] == part[facet].map(levels))]
        .set_index(["participant_id", facet])[metric]
        .dropna()
        for part in (studied, other)
    ]
    shared = wide[0].index.intersection(wide[1].index)
    ours, theirs = (part[shared].groupby(level="participant_id").mean() for part in wide)
    return ours, theirs


def _said(levels: Mapping[Any, float], level_name: str) -> str:
    """Levels of facets in words: once where they are the same everywhere."""
    if len(set(levels.values())) == 1:
        return LEVELS[level_name].format(next(iter(levels.values())))
    return " and ".join(
        f"{LEVELS[level_name].format(level)} ({facet_name(level_name, value)})" for value, level in levels.items()
    )


def rollback(arm: Arm) -> str:
    """Swap `champion` and `previous`; returns the sentence for the reader."""
    return f"{arm}: version {tracking.rollback(arm).version} is the champion again."
