"""The gate to the alias `champion`: conditions fixed before the training they judge, each with its own sentence.

A function of tables and numbers; `stages.promotion` reads and writes them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reperfuse.evaluation.metrics import METRICS
from reperfuse.evaluation.paired import mean_bound
from reperfuse.evaluation.resolution import FACETS, facet_name
from reperfuse.evaluation.summary import MODEL, VOLUME_CLASSES, volume_class
from reperfuse.params import Promote

BASELINE = "baseline_"
"""What the names of the methods begin with that a model must beat."""

LEVELS = {"thickness_mm": "slices of {:g} mm", "tr_s": "a TR of {:g} s"}
"""How a level of a resolution study is said, by its column."""

SIZES = ("lesion_volume_ml", "hypoperfused_ml")
"""Columns with the true volume [mL] that subgroups go by; an arm has one of them."""

TOO_FEW = "too few to decide"
"""How a reason begins when nothing can be said either way."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a model."""

    scores: pd.DataFrame
    """Of the hold-out: `participant_id`, `method`, metrics."""
    studied: pd.DataFrame | None = None
    """Of its resolution study, where it has one."""
    subjects: pd.DataFrame | None = None
    """Who it was trained on and judged by: `participant_id`, `side`, `files_sha256`, `centre`, a volume. None for a
    model from before this was kept."""

    @property
    def trained_on(self) -> int | None:
        """Number of training subjects, where it is known."""
        return None if self.subjects is None else int((self.subjects["side"] == "train").sum())


@dataclass(frozen=True)
class Condition:
    """One of the gate's conditions: whether it is met (None where it could not be asked), and that as a sentence."""

    name: str
    met: bool | None
    said: str


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes champion, and why."""

    promote: bool
    reason: str
    conditions: tuple[Condition, ...] = ()


def decide(challenger: Evidence, champion: Evidence | None, metric: str, gate: Promote) -> Decision:
    """Whether the challenger takes the champion's place: every condition that can be asked must be met.

    1. *baselines*: its mean beats every method named `baseline_…`, on the subjects that both have a score for
       (deconvolution has none where no artery is found). Rivals, other networks that were trained beside the model for
       comparison, decide nothing: the search chose among them before the hold-out was opened, and choosing again by
       the hold-out would spend it.
    2. *subjects*: `minimum_subjects` of the hold-out were scored for both, with the same image and truth: who came
       later, or whose files were replaced since, is not compared. Whom the champion has a score for, the challenger
       must have one for: else it would gain by failing where it is hard.
    3. *not worse*: on those, the one-sided bound (`confidence`) of the mean paired difference is not beyond
       `non_inferiority_margin`.
    4. *gain*: the mean is better by `better_by`, or it was trained on a share of `more_data` more subjects.
    5. *resolution*: as 3 with `resolution_margin`, at the coarsest level of the champion's resolution study, of each
       facet; the challenger must have been studied there.
    6. *subgroups*: no centre and no class of true volume with `subgroup_subjects` or more has a mean that fell by
       more than `subgroup_margin`. By the mean alone: a test in so few would let everything pass.

    The first champion meets the first alone. What the champion does not let one ask (it was not studied, its data were
    not described) is said, and does not stand in the way.

    Parameters
    ----------
    metric
        What is compared, a name in `evaluation.metrics.METRICS`.
    gate
        Margins in the metric's unit.
    """
    sign = 1 if METRICS[metric].better == "higher" else -1
    beaten = _baselines(challenger.scores, metric, sign)
    if champion is None:
        return _decision([beaten, Condition("champion", None, "there was no champion")])
    ours, theirs, left_out, failed = _shared(challenger, champion, metric)
    enough = _enough(len(ours), f"mean {metric}", gate.minimum_subjects, left_out)
    if failed:
        said = f"its {metric} is undefined for {failed} subjects whose champion's is not"
        return _decision([beaten, Condition("subjects", False, said)])
    if not enough.met:
        return _decision([beaten, enough])
    return _decision(
        [
            beaten,
            enough,
            _holds("not worse", ours, theirs, f"mean {metric}", sign, gate.non_inferiority_margin, gate.confidence),
            _gain(challenger, champion, sign * (ours - theirs).mean(), metric, gate),
            *_resolution(challenger, champion, metric, sign, gate, list(ours.index)),
            _subgroups(challenger, sign * (ours - theirs), gate),
        ]
    )


def _decision(conditions: list[Condition]) -> Decision:
    """Promoted where none is missed; the reason names those that were missed, else all."""
    missed = [condition for condition in conditions if condition.met is False]
    return Decision(not missed, "; ".join(condition.said for condition in missed or conditions), tuple(conditions))


def _baselines(scores: pd.DataFrame, metric: str, sign: int) -> Condition:
    table = scores.pivot(index="participant_id", columns="method", values=metric)
    if table[MODEL].isna().all():
        return Condition("baselines", False, f"its {metric} is undefined for every hold-out subject")
    for method in (name for name in map(str, table) if name.startswith(BASELINE)):
        ours, theirs = table[[MODEL, method]].dropna().mean()  # both nan, and no obstacle, where they share nobody
        if sign * (ours - theirs) <= 0:
            return Condition(
                "baselines", False, f"its mean {metric} of {ours:.3f} does not beat {method} with {theirs:.3f}"
            )
    return Condition("baselines", True, f"its mean {metric} of {table[MODEL].mean():.3f} beats every baseline")


def _shared(challenger: Evidence, champion: Evidence, metric: str) -> tuple[pd.Series, pd.Series, str, int]:
    """Scores of both by participant, for those that have both; what is said of those left out because their files
    changed; and the number that the champion has a score of and the challenger, though it was asked, has not."""
    asked, known = (
        part.scores[part.scores["method"] == MODEL].set_index("participant_id")[metric]
        for part in (challenger, champion)
    )
    changed = _changed(challenger, champion)
    theirs = known.dropna()
    same = [who for who in sorted(set(asked.index) & set(theirs.index)) if who not in (changed or ())]
    failed = int(asked[same].isna().sum())
    if changed is None:
        left_out = ", whether their files are those of then is not known"
    else:
        count = len(changed & set(asked.index) & set(theirs.index))
        left_out = f", {count} with other files than then left out" if count else ""
    return asked[same], theirs[same], left_out, failed


def _changed(challenger: Evidence, champion: Evidence) -> set[str] | None:
    """Participants whose image or truth is not what the champion knew; None where that cannot be told."""
    if challenger.subjects is None or champion.subjects is None:
        return None
    now, then = (
        subjects.set_index("participant_id")["files_sha256"] for subjects in (challenger.subjects, champion.subjects)
    )
    shared = now.index.intersection(then.index)
    return set(shared[(now[shared] != then[shared]).to_numpy()])


def _enough(count: int, what: str, minimum: int, left_out: str = "") -> Condition:
    said = f"{count} hold-out subjects shared with the champion for the {what}{left_out}"
    if count < minimum:
        return Condition("subjects", False, f"{TOO_FEW}: {said}, of {minimum} that promote.minimum_subjects asks for")
    return Condition("subjects", True, said)


def _holds(
    name: str, ours: pd.Series, theirs: pd.Series, what: str, sign: int, margin: float, confidence: float
) -> Condition:
    """Whether the mean is worse by the margin at most, with that confidence."""
    gains = sign * (ours - theirs)
    # Rounded, so that what is worse by just the margin holds.
    bound = round(mean_bound(gains, confidence), 12)
    met = bound >= -margin
    return Condition(
        name,
        met,
        f"{what} differs from the champion's by {sign * gains.mean():+.3f} on {len(gains)} subjects, "
        f"{'at least' if sign > 0 else 'at most'} {sign * bound:+.3f} with {confidence:.0%} confidence, "
        f"{'within' if met else 'beyond'} the margin of {margin:g}",
    )


def _gain(challenger: Evidence, champion: Evidence, gain: float, metric: str, gate: Promote) -> Condition:
    now, then = challenger.trained_on, champion.trained_on
    if round(gain, 12) >= gate.better_by:
        return Condition("gain", True, f"that is better by {gate.better_by:g} or more")
    no_better = f"mean {metric} is not better by {gate.better_by:g}"
    if now is None or then is None:
        return Condition("gain", False, f"{no_better}, and how many subjects the champion was trained on is not known")
    said = f"it was trained on {now} subjects, the champion on {then}"
    # Rounded: 50 * 1.1 is more than 55 in floating point.
    if now > then and now >= round(then * (1 + gate.more_data), 9):
        return Condition("gain", True, f"{said}, {gate.more_data:.0%} more or beyond")
    return Condition("gain", False, f"{no_better}, and {said}, which are not {gate.more_data:.0%} more")


def _resolution(
    challenger: Evidence, champion: Evidence, metric: str, sign: int, gate: Promote, people: list[str]
) -> Iterator[Condition]:
    """As *not worse*, at the coarsest level of the champion's study, on those who are compared at all."""
    if gate.resolution_margin is None:
        return
    name = "resolution"
    if champion.studied is None:
        yield Condition(name, None, "the champion's resolution was not studied, so none is compared")
        return
    if challenger.studied is None:
        yield Condition(name, False, "its resolution was not studied, as the champion's was")
        return
    here, there = (part[part["participant_id"].isin(people)] for part in (challenger.studied, champion.studied))
    level_name = next(column for column in FACETS if column in there)
    levels, own = coarsest(there, level_name), here.loc[here["method"] == MODEL, [FACETS[level_name], level_name]]
    missing = {facet: level for facet, level in levels.items() if not (own == [facet, level]).all(axis=1).any()}
    if missing:
        yield Condition(name, False, f"it was not studied at {_said(missing, level_name)}, as the champion was")
        return
    ours, theirs = at_levels(here, there, metric, level_name, levels)
    what = f"mean {metric} at {_said(levels, level_name)}"
    enough = _enough(len(ours), what, gate.minimum_subjects)
    if not enough.met:
        yield Condition(name, False, enough.said)
        return
    yield _holds(name, ours, theirs, what, sign, gate.resolution_margin, gate.confidence)


def coarsest(studied: pd.DataFrame, level_name: str) -> dict[Any, float]:
    """Facet → the coarsest level of the model in a study.

    Examples
    --------
    >>> study = pd.DataFrame({"method": "model", "axis": ["k", "k", "i"], "thickness_mm": [2.0, 10.0, 5.0]})
    >>> coarsest(study, "thickness_mm")
    {'k': 10.0, 'i': 5.0}
    """
    ours = studied[studied["method"] == MODEL]
    return {
        value: float(level) for value, level in ours.groupby(FACETS[level_name], sort=False)[level_name].max().items()
    }


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


def _subgroups(challenger: Evidence, gains: pd.Series, gate: Promote) -> Condition:
    if challenger.subjects is None:
        return Condition("subgroups", None, "centres and volumes of its subjects are not known, so none is compared")
    groups = {name: gains.reindex(who).dropna() for name, who in subgroups(challenger.subjects).items()}
    large = {name: of_group for name, of_group in groups.items() if len(of_group) >= gate.subgroup_subjects}
    if not large:
        return Condition(
            "subgroups", None, f"no centre and no class of volume has {gate.subgroup_subjects} of the shared subjects"
        )
    fallen = {
        name: mean for name, of_group in large.items() if (mean := round(of_group.mean(), 12)) < -gate.subgroup_margin
    }
    if fallen:
        worst = ", ".join(f"{name} by {-mean:.3f} on {len(large[name])}" for name, mean in fallen.items())
        return Condition("subgroups", False, f"worse by more than {gate.subgroup_margin:g} in {worst}")
    said = ", ".join(f"{name} ({len(of_group)})" for name, of_group in large.items())
    return Condition("subgroups", True, f"none of {said} is worse by more than {gate.subgroup_margin:g}")


def subgroups(subjects: pd.DataFrame) -> dict[str, list[str]]:
    """Participants of each centre and of each class of true volume, smallest first; who has none is in none.

    Examples
    --------
    >>> people = pd.DataFrame({"participant_id": ["a", "b"], "centre": ["R1", "R1"], "lesion_volume_ml": [0.5, 12.0]})
    >>> subgroups(people)
    {'centre R1': ['a', 'b'], '< 1 mL': ['a'], '10–50 mL': ['b']}
    """
    names = subjects["participant_id"]
    found = {
        f"centre {centre}": names[subjects["centre"] == centre].tolist()
        for centre in (sorted(subjects["centre"].dropna().unique()) if "centre" in subjects else ())
    }
    for column in (column for column in SIZES if column in subjects):
        classes = pd.Series(volume_class(subjects[column]), index=subjects.index, dtype=object)
        found |= {name: names[classes == name].tolist() for name in VOLUME_CLASSES if (classes == name).any()}
    return found
