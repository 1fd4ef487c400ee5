"""The smallest lesion still found in half the cases: known limits are recovered, extremes are said and not guessed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from reperfuse.evaluation.detection import SLOPE_SD, detection_limit
from reperfuse.evaluation.metrics import lesion_detections


def table(volume_ml, found, participant_id=None, **place) -> pd.DataFrame:
    names = [f"sub-{n}" for n in range(len(volume_ml))] if participant_id is None else participant_id
    place = {"method": "model", "axis": "k", "thickness_mm": 10.0} | place
    return pd.DataFrame({"participant_id": names, "volume_ml": volume_ml, "found": found} | place)


def simulated(rng, limit_ml: float, *, n_subjects: int = 40, slope: float = 4.0, **place) -> pd.DataFrame:
    """Lesions of log-normal volume, found with a logistic chance in their log₁₀ volume."""
    subject = np.repeat(np.arange(n_subjects), 1 + rng.poisson(4, n_subjects))
    log_volume = rng.normal(0.3, 0.8, subject.size)
    chance = 1 / (1 + np.exp(-slope * (log_volume - np.log10(limit_ml))))
    found = rng.random(subject.size) < chance
    return table(10**log_volume, found, [f"sub-{n}" for n in subject], **place)


@pytest.mark.parametrize("limit_ml", [0.4, 2.0, 8.0])
def test_a_known_limit_is_recovered_within_its_interval(limit_ml):
    rng = np.random.default_rng(0)
    cohorts = [detection_limit(simulated(rng, limit_ml), samples=200).iloc[0] for _ in range(40)]
    inside = [row["low"] <= limit_ml <= row["high"] for row in cohorts]
    assert np.mean(inside) >= 0.8  # nominally 0.95; fewer than 32 of 40 would be beyond chance
    assert np.median([row["volume_ml"] for row in cohorts]) == pytest.approx(limit_ml, rel=0.1)
    assert all(row["low"] < row["volume_ml"] < row["high"] for row in cohorts)


def test_missing_more_small_lesions_raises_the_limit():
    volume_ml = np.logspace(-1, 1.5, 60)
    rng = np.random.default_rng(0)
    luck = rng.logistic(size=60) / 3
    levels = [table(volume_ml, np.log10(volume_ml) + luck > np.log10(t / 4), thickness_mm=t) for t in (1.0, 3.0, 10.0)]
    limits = detection_limit(pd.concat(levels), samples=100)
    assert limits["thickness_mm"].tolist() == [1.0, 3.0, 10.0]
    assert limits["volume_ml"].is_monotonic_increasing and limits["volume_ml"].is_unique
    assert limits["high"].iloc[0] < limits["low"].iloc[2]


def test_the_curve_is_the_penalised_logistic_regression_of_scikit_learn():
    lesions = simulated(np.random.default_rng(1), 1.5)
    z = np.log10(lesions["volume_ml"].to_numpy())
    scaled = (z - z.mean()) / z.std()
    peer = LogisticRegression(C=SLOPE_SD**2, tol=1e-10, max_iter=1000).fit(scaled[:, None], lesions["found"])
    expected = 10 ** (z.mean() - z.std() * peer.intercept_[0] / peer.coef_[0, 0])
    assert detection_limit(lesions, samples=2)["volume_ml"].item() == pytest.approx(expected, rel=1e-5)


def test_lesions_found_from_a_volume_on_have_a_limit_between_the_last_missed_and_the_first_found():
    lesions = table([0.1, 0.2, 0.4, 0.8, 3.0, 5.0, 8.0, 20.0], [0, 0, 0, 0, 1, 1, 1, 1])
    row = detection_limit(lesions, samples=200).iloc[0]
    assert 0.8 < row["volume_ml"] < 3.0
    assert row["low"] <= row["volume_ml"] <= row["high"]


def test_a_few_volumes_far_from_all_others_do_not_keep_the_fit_from_its_maximum():
    rng = np.random.default_rng(0)
    for _ in range(60):
        z = np.clip(rng.standard_t(1.5, 30), -12, 12)
        found = z > rng.normal(size=30)
        row = detection_limit(table(10**z, found), samples=60).iloc[0]
        peer = LogisticRegression(C=SLOPE_SD**2, tol=1e-10, max_iter=5000).fit((z - z.mean())[:, None] / z.std(), found)
        expected = z.mean() - z.std() * peer.intercept_[0] / peer.coef_[0, 0]
        assert np.log10(row["volume_ml"]) == pytest.approx(expected, abs=1e-4)


@given(
    st.lists(st.tuples(st.floats(1e-3, 500), st.booleans(), st.integers(0, 5)), min_size=1, max_size=25),
    st.floats(0.1, 10),
)
@settings(max_examples=60, deadline=None)
def test_whatever_was_found_the_limit_lies_within_the_data_and_scales_with_the_volumes(drawn, factor):
    volume_ml, found, subject = (np.array(column) for column in zip(*drawn, strict=True))
    here, scaled = (
        detection_limit(table(volumes, found, [f"sub-{n}" for n in subject]), samples=50).iloc[0]
        for volumes in (volume_ml, volume_ml * factor)
    )
    assert (here["n_lesions"], here["n_subjects"]) == (len(drawn), len(set(subject.tolist())))
    inside = [here[name] for name in ("low", "volume_ml", "high") if not np.isnan(here[name])]
    assert all(volume_ml.min() * (1 - 1e-9) <= volume <= volume_ml.max() * (1 + 1e-9) for volume in inside)
    if found.all() or not found.any():
        assert np.isnan(here["volume_ml"])
    if not (np.isnan(here["volume_ml"]) or np.isnan(scaled["volume_ml"])):
        assert scaled["volume_ml"] == pytest.approx(factor * here["volume_ml"], rel=1e-4)
    assert here["said"]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([1, 1, 1, 1, 1, 1], "all of 6 lesions found, down to 0.3 mL"),
        ([0, 0, 0, 0, 0, 0], "none of 6 lesions found, up to 40 mL"),
        ([1, 0, 1, 1, 1, 1], "more than half of 6 lesions found, down to 0.3 mL"),
        ([0, 0, 0, 0, 1, 0], "fewer than half of 6 lesions found, up to 40 mL"),
        ([1, 1, 1, 0, 0, 0], "3 of 6 lesions found, large ones no more often than small ones"),
    ],
)
def test_a_limit_that_the_data_do_not_hold_is_said_and_not_extrapolated(found, said):
    row = detection_limit(table([0.3, 0.6, 1.0, 5.0, 20.0, 40.0], found), samples=100).iloc[0]
    assert row[["volume_ml", "low", "high"]].isna().all()
    assert row["said"] == said


def test_the_sentence_states_the_limit_its_interval_and_the_range_of_the_lesions():
    lesions = simulated(np.random.default_rng(0), 1.0)
    row = detection_limit(lesions, samples=200).iloc[0]
    low, limit, high = (f"{row[name]:.2g}" for name in ("low", "volume_ml", "high"))
    assert row["said"].startswith(f"half found at {limit} mL (95 % interval {low} to {high} mL), of {len(lesions)} les")
    few = detection_limit(lesions[lesions["participant_id"].isin(["sub-0", "sub-1", "sub-2"])], samples=200).iloc[0]
    assert np.isnan(few["high"]) == (" to above " in few["said"])
    assert np.isnan(few["low"]) == ("interval below " in few["said"])
    assert np.isnan([few["low"], few["high"]]).any()


def test_the_interval_counts_subjects_and_not_their_lesions():
    lesions = simulated(np.random.default_rng(2), 1.0, n_subjects=12)
    crowd = pd.concat([lesions] * 9, ignore_index=True)
    one, many = (detection_limit(cohort, samples=300).iloc[0] for cohort in (lesions, crowd))
    # Each lesion nine times in the same subject is no new evidence; only the prior weighs less.
    assert np.log(many["high"] / many["low"]) == pytest.approx(np.log(one["high"] / one["low"]), rel=0.05)
    alone = detection_limit(crowd.assign(participant_id="sub-1"), samples=300).iloc[0]
    assert np.isnan(alone["low"]) and np.isnan(alone["high"]) and "interval" not in alone["said"]


@pytest.mark.parametrize(
    ("found", "open_end", "other"), [([0] * 8 + [1] * 2, "high", "low"), ([0, 0] + [1] * 8, "low", "high")]
)
def test_resamples_that_find_nothing_or_everything_open_one_end_and_not_the_other(found, open_end, other):
    row = detection_limit(table(np.logspace(-1, 1, 10), found), samples=500).iloc[0]
    # 0.8^10, 11 % of the resamples, draw none of the two.
    assert np.isnan(row[open_end]) and not np.isnan(row[other])


def test_every_method_facet_and_level_has_a_limit_of_its_own_whatever_else_is_in_the_table():
    rng = np.random.default_rng(3)
    places = [{"method": m, "axis": a, "thickness_mm": t} for m in ("model", "peer") for a in "ij" for t in (1.0, 5.0)]
    parts = [simulated(rng, 1 + n, **place) for n, place in enumerate(places)]
    limits = detection_limit(pd.concat(parts), samples=50)
    assert limits[["method", "axis", "thickness_mm"]].to_dict("records") == places
    assert list(limits)[:6] == ["method", "axis", "thickness_mm", "volume_ml", "low", "high"]
    alone = pd.concat([detection_limit(part, samples=50) for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(limits, alone)
    assert detection_limit(pd.concat(parts).iloc[:0]).empty


def test_the_detections_of_masks_fit_the_table():
    truth = np.zeros((30, 30, 30), bool)
    rows = []
    for side, corner in ((1, 1), (2, 5), (3, 10), (5, 15), (8, 21)):
        truth[corner : corner + side, corner : corner + side, corner : corner + side] = True
    for n in range(3):
        prediction = truth.copy()
        prediction[: 8 + 4 * n] = False
        rows += [table([v], [f], [f"sub-{n}"]) for v, f in lesion_detections(prediction, truth, (2, 2, 2))]
    limit = detection_limit(pd.concat(rows), samples=50).iloc[0]
    assert (limit["n_lesions"], limit["n_subjects"]) == (15, 3)
    assert 0.064 < limit["volume_ml"] < 1.0


@pytest.mark.parametrize("volume_ml", [0.0, -1.0, np.nan])
def test_a_lesion_without_a_volume_is_refused(volume_ml):
    with pytest.raises(ValueError, match="it takes a positive number"):
        detection_limit(table([1.0, volume_ml], [1, 0]))
