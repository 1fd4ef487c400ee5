"""The smallest lesion that is still found in half the cases, at each level of a resolution study.

Dice is a number of the whole mask, and a large lesion hides that small ones are lost. Here every true lesion counts by
itself (`evaluation.metrics.lesion_detections`): found or not, by its volume.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from reperfuse.evaluation.resolution import FACETS

SLOPE_SD = 5.0
"""Standard deviation of the normal prior on the slope, per standard deviation of log₁₀ volume: our choice. Weak (at
slope 5, 90 % of lesions one standard deviation above the limit and more are found), it decides nothing but where all
lesions above a volume are found and none below, for which the likelihood has no maximum."""

NEWTON_STEPS = 200
NEWTON_TOLERANCE = 1e-7

_COLUMNS = ["volume_ml", "low", "high", "n_lesions", "n_subjects"]


def detection_limit(
    lesions: pd.DataFrame, *, level_name: str = "thickness_mm", samples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    r"""The volume at which half the lesions are found, by method, facet and level.

    .. math:: P(\mathrm{found}) = \frac{1}{1 + e^{-(a + b z)}}, \qquad z = \frac{\log_{10} V - μ}{σ}

    over the lesions' volumes V [mL] with μ and σ the mean and standard deviation of their logarithms; a and b maximise
    the likelihood times a normal prior on b (`SLOPE_SD`). The limit is where the curve crosses one half, z = −a/b. It
    is read off the data only within them: a crossing below the smallest lesion or above the largest, or a curve that
    does not rise, gives NaN, and `said` tells what the data show instead.

    The 95 % interval is the percentile bootstrap over subjects, because the lesions of a subject are found or missed
    together. Resamples that find all their lesions count as a limit below every volume, those that find none as above;
    those whose curve does not rise count against both ends. An end beyond the data is NaN.

    Parameters
    ----------
    lesions
        ``[participant_id, method, <facet>, <level_name>, volume_ml, found]``: one row per true lesion, method, facet
        and level, with `volume_ml` above 0 and `found` true or false.
    level_name
        Column of the level, a key of `evaluation.resolution.FACETS`.
    samples, seed
        Of the bootstrap; the same seed draws the same subjects at every level.

    Returns
    -------
    DataFrame
        ``[method, <facet>, <level_name>, volume_ml, low, high, n_lesions, n_subjects, said]``, volumes in mL, in order
        of appearance. Fewer than two subjects have no interval.

    Raises
    ------
    ValueError
        If a volume is not a positive number.

    References
    ----------
    .. [1] Gelman et al. 2008, Ann Appl Stat 2:1360-1383 (weak priors against separation).

    Examples
    --------
    >>> lesions = pd.DataFrame({
    ...     "participant_id": [f"sub-{n}" for n in range(8)], "method": "model", "axis": "k", "thickness_mm": 10.0,
    ...     "volume_ml": [0.1, 0.2, 0.4, 0.8, 1.25, 2.5, 5, 10], "found": [0, 0, 0, 1, 0, 1, 1, 1]})
    >>> round(detection_limit(lesions)["volume_ml"].item(), 2)
    1.0
    """
    volumes_ml = lesions["volume_ml"].to_numpy(dtype=float)
    if not (np.isfinite(volumes_ml) & (volumes_ml > 0)).all():
        wrong = volumes_ml[~(np.isfinite(volumes_ml) & (volumes_ml > 0))][0]
        raise ValueError(f"a lesion has a volume of {wrong:g} mL: it takes a positive number")
    by = ["method", FACETS[level_name], level_name]
    rows: list[dict[str, Any]] = []
    for place, part in lesions.groupby(by, sort=False):
        subject, subjects = pd.factorize(part["participant_id"])
        log_volume, found = np.log10(part["volume_ml"].to_numpy(dtype=float)), part["found"].to_numpy(dtype=float)
        row = _limit(log_volume, found, subject, len(subjects), samples, seed)
        rows.append(dict(zip(by, place, strict=True)) | row)
    table = pd.DataFrame(rows, columns=[*by, *_COLUMNS, "said"])
    return table.astype(dict.fromkeys(_COLUMNS, float))


def _limit(
    log_volume: NDArray[np.float64],
    found: NDArray[np.float64],
    subject: NDArray[np.intp],
    n_subjects: int,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """One row of `detection_limit` from its lesions, each of shape (n_lesions,)."""
    smallest, largest, n_lesions = float(log_volume.min()), float(log_volume.max()), log_volume.size
    scale = float(log_volume.std()) or 1.0
    z = (log_volume - log_volume.mean()) / scale
    start, crossing = _crossings(z, found, np.ones((1, n_lesions)), np.zeros((1, 2)))
    limit = float(log_volume.mean() + scale * crossing[0])
    row: dict[str, Any] = {"volume_ml": np.nan, "low": np.nan, "high": np.nan}
    row |= {"n_lesions": n_lesions, "n_subjects": n_subjects}
    counts = f"{n_lesions} lesion{'' if n_lesions == 1 else 's'}"
    if found.all():
        return row | {"said": f"all of {counts} found, down to {_ml(smallest)} mL"}
    if not found.any():
        return row | {"said": f"none of {counts} found, up to {_ml(largest)} mL"}
    if np.isnan(limit):
        return row | {"said": f"{found.sum():.0f} of {counts} found, large ones no more often than small ones"}
    if limit < smallest:
        return row | {"said": f"more than half of {counts} found, down to {_ml(smallest)} mL"}
    if limit > largest:
        return row | {"said": f"fewer than half of {counts} found, up to {_ml(largest)} mL"}
    row["volume_ml"] = 10**limit
    said = f"half found at {_ml(limit)} mL"
    if n_subjects >= 2:
        drawn = np.random.default_rng(seed).multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), samples)
        _, crossings = _crossings(z, found, drawn[:, subject].astype(float), start)
        limits = log_volume.mean() + scale * crossings
        # An undefined limit counts against both ends.
        lows, highs = (np.where(np.isnan(limits), far, limits) for far in (-np.inf, np.inf))
        low = float(np.quantile(lows, 0.025, method="lower"))  # no mean of a number and infinity
        high = float(np.quantile(highs, 0.975, method="higher"))
        row["low"], row["high"] = (10**end if smallest <= end <= largest else np.nan for end in (low, high))
        at_least = _ml(low) if low >= smallest else f"below {_ml(smallest)}"
        at_most = _ml(high) if high <= largest else f"above {_ml(largest)}"
        said += f" (95 % interval {at_least} to {at_most} mL)"
    return row | {"said": f"{said}, of {counts} from {_ml(smallest)} to {_ml(largest)} mL"}


def _ml(log_volume: float) -> str:
    """Two digits of a volume, without an exponent for those of a brain."""
    return f"{float(f'{10**log_volume:.2g}'):g}"


def _crossings(
    z: NDArray[np.float64], found: NDArray[np.float64], weights: NDArray[np.float64], start: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients (a, b), shape (S, 2), and crossing of one half, shape (S,), of S weighted logistic curves at once.

    Newton's method with halved steps on the penalised likelihood of each row of `weights`, shape (S, L), from `start`.
    The crossing is −∞ where all lesions with a weight are found, ∞ where none is, and NaN where the curve does not
    rise.
    """
    n_found, n_drawn = weights @ found, weights.sum(axis=1)
    mixed = (n_found > 0) & (n_found < n_drawn)
    powers = np.stack([np.ones_like(z), z, z * z], axis=1)
    coefficients = np.broadcast_to(start, (len(weights), 2)).copy()
    steps, heights = np.zeros_like(coefficients), np.full(len(weights), -np.inf)
    active = np.flatnonzero(mixed)
    for _ in range(NEWTON_STEPS):
        if not active.size:
            break
        tried = coefficients[active] + steps[active]
        a, b = tried.T
        weight, line = weights[active], a[:, None] + b[:, None] * z
        height = np.sum(weight * (found * line + special.log_expit(-line)), axis=1) - (b / SLOPE_SD) ** 2 / 2
        # Where the curve is saturated a whole step lands beyond the maximum, and is halved until it climbs.
        climbs = height >= heights[active] - 1e-12 * np.abs(height)
        steps[active[~climbs]] /= 2
        climbed = active[climbs]
        coefficients[climbed], heights[climbed] = tried[climbs], height[climbs]
        a, b, weight, expected = a[climbs], b[climbs], weight[climbs], special.expit(line[climbs])
        slope_a, slope_b = ((weight * (found - expected)) @ powers[:, :2]).T
        slope_b = slope_b - b / SLOPE_SD**2
        h0, h1, h2 = ((weight * (expected * (1 - expected))) @ powers).T
        h2 = h2 + 1 / SLOPE_SD**2
        towards = np.stack([h2 * slope_a - h1 * slope_b, h0 * slope_b - h1 * slope_a], axis=1)
        steps[climbed] = towards / (h0 * h2 - h1 * h1)[:, None]
        active = active[np.abs(steps[active]).max(axis=1) > NEWTON_TOLERANCE]
    if active.size:
        raise ArithmeticError(f"{active.size} of {len(weights)} detection curves did not converge")
    rises = mixed & (coefficients[:, 1] > 1e-9)
    crossings = np.where(n_found == 0, np.inf, np.where(n_found == n_drawn, -np.inf, np.nan))
    crossings[rises] = -coefficients[rises, 0] / coefficients[rises, 1]
    return coefficients, crossings
