"""Whether new data are like those a model was trained on: feature by feature, two samples against each other."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from reperfuse.evaluation.paired import holm

NOT_A_FEATURE = ("participant_id", "side", "files_sha256")
"""Columns of a table of subjects that say who they are, and not what they are like."""

LEVEL = 0.05
"""Family-wise error rate at which a number counts as shifted. Words have none: of thirty centres of one population some
are always new."""

COLUMNS = ["feature", "n_known", "n_new", "known", "new", "statistic", "p_value", "p_adjusted", "outside", "shifted"]


def drift_table(known: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """One row per feature that both tables have a value of, in the order of `known`.

    Numbers (spacing, TE, TR, volume, intensity) are compared by the two-sample Kolmogorov–Smirnov statistic D, the
    largest distance between the two empirical distributions, with its exact p value where the samples are small, then
    adjusted for the number of features (`holm`). D and p do not change with the unit, nor under any monotone change
    of scale. Words (centre, modalities) are compared by what is new among them: a value that was never seen is a
    shift, whatever its share; they have no p value.

    A few subjects cannot show a shift this way: with m new ones among n known the least p is 1/C(n + m, m) times two,
    and `outside` tells what a test cannot.

    Parameters
    ----------
    known, new
        One row per subject; `participant_id`, `side` and `files_sha256` are no features.

    Returns
    -------
    DataFrame
        `COLUMNS`: `known` and `new` are the medians of numbers, the values of words; `outside` is the share of new
        subjects beyond the known range, or with a word never seen; `shifted` is ``p_adjusted < 0.05``, or a new word.

    References
    ----------
    .. [1] Hodges 1958, Arkiv för Matematik 3:469-486 (the two-sample test).

    Examples
    --------
    >>> known = pd.DataFrame({"te_s": np.linspace(0.030, 0.032, 9), "centre": "R1"})
    >>> new = pd.DataFrame({"te_s": np.linspace(0.045, 0.047, 9), "centre": "R2"})
    >>> drift_table(known, new)[["feature", "statistic", "outside", "shifted"]].to_numpy().tolist()
    [['te_s', 1.0, 1.0, True], ['centre', nan, 1.0, True]]
    """
    rows = []
    for feature in (name for name in known if name in new and name not in NOT_A_FEATURE):
        here, there = known[feature].dropna(), new[feature].dropna()
        if len(here) and len(there):
            numeric = pd.api.types.is_numeric_dtype(here) and pd.api.types.is_numeric_dtype(there)
            compared = _numbers(here, there) if numeric else _words(here.astype(str), there.astype(str))
            rows.append({"feature": feature, "n_known": len(here), "n_new": len(there)} | compared)
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["p_adjusted"] = holm(table["p_value"].to_numpy(dtype=float))
    table["shifted"] = (table["p_adjusted"] < LEVEL) | (table["p_value"].isna() & (table["outside"] > 0))
    return table


def _numbers(known: pd.Series, new: pd.Series) -> dict[str, Any]:
    test = stats.ks_2samp(known, new)
    return {
        "known": f"{known.median():.4g}",
        "new": f"{new.median():.4g}",
        "statistic": float(test.statistic),
        "p_value": float(test.pvalue),
        "outside": float(((new < known.min()) | (new > known.max())).mean()),
    }


def _words(known: pd.Series, new: pd.Series) -> dict[str, Any]:
    return {
        "known": ", ".join(sorted(known.unique())),
        "new": ", ".join(sorted(new.unique())),
        "statistic": np.nan,
        "p_value": np.nan,
        "outside": float((~new.isin(set(known))).mean()),
    }


def drift_sentences(table: pd.DataFrame) -> list[str]:
    """What has shifted, a sentence each; one that says so when nothing has."""
    said = []
    for row in table[table["shifted"]].to_dict("records"):
        if np.isnan(row["p_value"]):
            said.append(f"{row['feature']} is {row['new']}, the champion knew {row['known']}.")
        else:
            said.append(
                f"{row['feature']} has a median of {row['new']}, the champion's training set {row['known']} "
                f"(p {_p(row['p_adjusted'])}, {row['outside']:.0%} beyond its range)."
            )
    return said or ["Nothing that is measured has shifted beyond chance."]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
