"""What the coarser acquisition is expected to do to a model, and whether the scores of a study show it.

The expectations are fixed here, before any score is seen (`HYPOTHESES`); `hypothesis_tests` holds the table of
`evaluation.resolution` against them, finest level against coarsest, paired per subject, and says the answer in words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reperfuse.evaluation.metrics import METRICS
from reperfuse.evaluation.paired import holm, signed_rank
from reperfuse.evaluation.resolution import FACETS
from reperfuse.evaluation.summary import MODEL, bootstrap_interval


@dataclass(frozen=True)
class Hypothesis:
    """What is expected of one score at a coarser level, and the words for what is found."""

    name: str
    metric: str
    worse: str
    """``lower`` or ``higher``: where the score is expected to go."""
    claim: str
    """The expectation as a sentence."""
    finding: str
    """Sentence about a difference: ``{who}`` is the method, ``{change}`` amount and direction."""
    ways: tuple[str, str]
    """Direction when expected, and when opposite: ``("more", "less")``."""


_LOWER, _OFF = ("lower", "higher"), ("further off", "less far off")

HYPOTHESES: dict[str, tuple[Hypothesis, ...]] = {
    "thickness_mm": (
        Hypothesis(
            "overlap",
            "dice",
            "lower",
            "Thick slices lower the overlap with the true lesion.",
            "{who} reaches an overlap (Dice) that is {change}",
            _LOWER,
        ),
        Hypothesis(
            "false positives",
            "false_positive_ml",
            "higher",
            "With thick slices more healthy tissue is marked as lesion.",
            "{who} marks {change} healthy tissue as lesion",
            ("more", "less"),
        ),
        Hypothesis(
            "false negatives",
            "false_negative_ml",
            "higher",
            "With thick slices more of the lesion is missed.",
            "{who} misses {change} lesion",
            ("more", "less"),
        ),
        Hypothesis(
            "boundaries",
            "surface_dice",
            "lower",
            "With thick slices less of the lesion's border is met.",
            "{who} meets a share of the lesion's border (surface Dice) that is {change}",
            _LOWER,
        ),
        Hypothesis(
            "volume",
            "volume_error_ml",
            "higher",
            "With thick slices the lesion's volume is further off.",
            "{who} is {change} in the lesion's volume",
            _OFF,
        ),
    ),
    "tr_s": (
        Hypothesis(
            "error",
            "mae_s",
            "higher",
            "With fewer frames per second Tmax is further off.",
            "{who} is {change} in Tmax",
            _OFF,
        ),
        Hypothesis(
            "agreement",
            "ccc",
            "lower",
            "With fewer frames per second the Tmax map agrees less with its reference.",
            "{who} reaches an agreement with the reference (CCC) that is {change}",
            _LOWER,
        ),
        Hypothesis(
            "hypoperfused tissue",
            "dice",
            "lower",
            "With fewer frames per second the overlap with the hypoperfused tissue is lower.",
            "{who} reaches an overlap with the hypoperfused tissue (Dice) that is {change}",
            _LOWER,
        ),
        Hypothesis(
            "hypoperfused volume",
            "volume_error_ml",
            "higher",
            "With fewer frames per second the volume of the hypoperfused tissue is further off.",
            "{who} is {change} in the volume of the hypoperfused tissue",
            _OFF,
        ),
    ),
}
"""By column of the level. For slice thickness these are the four expectations of Bryan and Bielski ("Mind the Gap (In
Resolution)"), the one about false positives and false negatives as two; for the sampling interval of a perfusion
series their counterparts.

The border is judged by surface Dice, because the mean surface distance (ASSD) and HD95 are undefined where a mask is
empty: subjects whose lesion is lost altogether, the worst ones, would leave the test. Surface Dice is 0 there.
"""

_PLACES = {"thickness_mm": ("At {level:g} mm slices along {facet}", "mm"), "tr_s": ("At a TR of {level:g} s", "s")}

_COLUMNS = ["mean_finest", "mean_coarsest", "mean_difference", "low", "high", "effect_size", "p_value", "p_adjusted"]


def hypothesis_tests(
    scores: pd.DataFrame,
    *,
    level_name: str = "thickness_mm",
    method: str = MODEL,
    alpha: float = 0.05,
    samples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Each of `HYPOTHESES` in each facet: the coarsest level against the finest, paired per subject.

    The test is the signed-rank test of `signed_rank`, and p values are adjusted (`holm`) over all rows of the answer:
    the probability that any row is wrongly called supported or opposite, where no level is better than another, is at
    most `alpha`, however the scores depend on one another.

    A verdict is

    - ``supported``: the adjusted p is at most `alpha`, and both the mean and the ranks went the expected way,
    - ``opposite``: the same, the other way,
    - ``too few to tell``: so few subjects that no data whatever could reach `alpha` in this table (five hypotheses
      need 8 subjects in one facet and 10 in three), or fewer than two,
    - ``not shown``: all else. It is no proof of the contrary; the interval says what remains possible.

    Parameters
    ----------
    scores
        Table of `evaluation.resolution.resolution_study`. Hypotheses whose metric it lacks are left out.
    level_name
        Column of the level, a key of `HYPOTHESES`.
    method
        Whose scores.
    alpha
        Family-wise error rate, between 0 and 1.
    samples, seed
        Of the bootstrap.

    Returns
    -------
    DataFrame
        ``[hypothesis, metric, method, <facet>, finest, coarsest, mean_finest, mean_coarsest, mean_difference, low,
        high, effect_size, p_value, p_adjusted, n, verdict, sentence]``, one row per facet and hypothesis. Means and
        differences (coarsest − finest, with the 95 % interval of `bootstrap_interval`, not adjusted) are in the
        metric's unit, over the `n` subjects who have both levels; the effect size lies between −1 and 1 and is
        positive where the coarser level is worse. A facet with a single level has no rows.

    Examples
    --------
    >>> rows = [{"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": t,
    ...          "false_negative_ml": 0.1 * n * t} for n in range(12) for t in (1.0, 10.0)]
    >>> print(hypothesis_tests(pd.DataFrame(rows))["sentence"].item())
    At 10 mm slices along k the model misses 5.0 mL more lesion than at 1 mm (95 % interval 3.2 to 6.8 mL, 12 \
subjects): supported.
    """
    facet = FACETS[level_name]
    identity = ["hypothesis", "metric", "method", facet, "finest", "coarsest"]
    asked = [hypothesis for hypothesis in HYPOTHESES[level_name] if hypothesis.metric in scores]
    rows: list[dict[str, Any]] = []
    for value, part in scores[scores["method"] == method].groupby(facet, sort=False):
        finest, coarsest = float(part[level_name].min()), float(part[level_name].max())
        if not finest < coarsest:
            continue
        for hypothesis in asked:
            wide = part.pivot(index="participant_id", columns=level_name, values=hypothesis.metric)
            pairs = wide[[finest, coarsest]].dropna().to_numpy(dtype=float)
            place = [hypothesis.name, hypothesis.metric, method, value, finest, coarsest]
            rows.append(dict(zip(identity, place, strict=True)) | _comparison(pairs, hypothesis, samples, seed))
    table = pd.DataFrame(rows, columns=[*identity, *_COLUMNS, "n", "verdict", "sentence"])
    table = table.astype(dict.fromkeys([*_COLUMNS, "n"], float))
    table["p_adjusted"] = holm(table["p_value"])
    # The smallest p that n pairs can give is 2/2ⁿ.
    reachable = holm(2.0 ** (1 - table["n"].where(table["n"] >= 2))) <= alpha
    words = {hypothesis.name: hypothesis for hypothesis in asked}
    records = table.to_dict("records")
    verdicts = [
        _verdict(row, words[row["hypothesis"]], alpha) if able else "too few to tell"
        for row, able in zip(records, reachable, strict=True)
    ]
    sentences = [
        _sentence(row | {"verdict": verdict, "facet": row[facet]}, words[row["hypothesis"]], level_name)
        for row, verdict in zip(records, verdicts, strict=True)
    ]
    return table.assign(
        verdict=pd.Series(verdicts, index=table.index, dtype=object),
        sentence=pd.Series(sentences, index=table.index, dtype=object),
    )


def _comparison(pairs: NDArray[np.float64], hypothesis: Hypothesis, samples: int, seed: int) -> dict[str, Any]:
    """The numbers of one row from the scores at the finest and the coarsest level, shape (n, 2)."""
    row: dict[str, Any] = {"n": len(pairs)}
    if not len(pairs):
        return row
    difference = np.round(pairs[:, 1] - pairs[:, 0], 12)
    row |= {"mean_finest": pairs[:, 0].mean(), "mean_coarsest": pairs[:, 1].mean()}
    row["mean_difference"] = difference.mean()
    if len(pairs) >= 2:
        row["low"], row["high"] = bootstrap_interval(difference, samples=samples, seed=seed)
        correlation, row["p_value"] = signed_rank(difference)
        row["effect_size"] = correlation * _sign(hypothesis)
    return row


def _sign(hypothesis: Hypothesis) -> int:
    return 1 if hypothesis.worse == "higher" else -1


def _verdict(row: Mapping[Any, Any], hypothesis: Hypothesis, alpha: float) -> str:
    directions = {np.sign(row["effect_size"]), np.sign(row["mean_difference"] * _sign(hypothesis))}
    # Ranks and mean can disagree when one subject outweighs the rest: then neither answer would be honest.
    if row["p_adjusted"] > alpha or len(directions) > 1:
        return "not shown"
    return "supported" if directions == {1} else "opposite"


def _sentence(row: Mapping[Any, Any], hypothesis: Hypothesis, level_name: str) -> str:
    place, level_unit = _PLACES[level_name]
    where = place.format(level=row["coarsest"], facet=row["facet"])
    if level_name == "tr_s":
        where += f" and an SNR of {row['facet']:g}"
    subjects = f"{row['n']:.0f} subject{'' if row['n'] == 1 else 's'}"
    if row["n"] < 2:
        return f"{where}, {subjects} can be compared with {row['finest']:g} {level_unit}: {row['verdict']}."
    who = "the model" if row["method"] == MODEL else row["method"]
    note = METRICS[hypothesis.metric]
    unit = f" {note.unit}" if note.unit else ""
    # All in the direction of the mean; two digits of the largest of the three.
    sign = _sign(hypothesis)
    mean, *ends = (sign * row[name] for name in ("mean_difference", "low", "high"))
    way, other_way = hypothesis.ways if mean >= 0 else hypothesis.ways[::-1]
    mean, low, high = abs(mean), *sorted(end if mean >= 0 else -end for end in ends)
    digits = _digits(mean, low, high)
    change = f"{mean:.{digits}f}{unit} {way}" if round(mean, digits) else f"no {way}"
    finding = hypothesis.finding.format(who=who, change=change)
    if low == high:
        certainty = ""
    elif low < 0:
        certainty = f"95 % interval {-low:.{digits}f}{unit} {other_way} to {high:.{digits}f}{unit} {way}, "
    else:
        certainty = f"95 % interval {low:.{digits}f} to {high:.{digits}f}{unit}, "
    return f"{where} {finding} than at {row['finest']:g} {level_unit} ({certainty}{subjects}): {row['verdict']}."


def _digits(*values: float) -> int:
    """Decimals that show two digits of the largest number, at most 4."""
    largest = max(abs(value) for value in values)
    return int(np.clip(1 - np.floor(np.log10(largest)), 0, 4)) if largest else 0
