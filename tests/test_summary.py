"""Intervals behave like intervals, comparisons are paired, and names stay what they are."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from reperfuse.evaluation.paired import compare_methods, paired_comparison
from reperfuse.evaluation.summary import (
    bootstrap_interval,
    flat_metrics,
    metric_columns,
    ranked_subjects,
    strata,
    summarise,
    volume_class,
)

cohorts = st.lists(st.floats(0, 1).map(lambda value: round(value, 6)), min_size=2, max_size=30)


def table(**scores: list[float | None]) -> pd.DataFrame:
    """One row per participant and method with a Dice."""
    rows = [
        {"participant_id": f"sub-{row}", "method": method, "dice": value}
        for method, values in scores.items()
        for row, value in enumerate(values)
    ]
    return pd.DataFrame(rows).astype({"dice": float})


@given(cohorts)
@settings(max_examples=15, deadline=None)
def test_the_interval_lies_within_the_data_and_is_ordered(values):
    low, high = bootstrap_interval(values, samples=200)
    assert min(values) <= low <= high <= max(values)


@given(cohorts, st.floats(0.5, 3), st.floats(-2, 2))
@example([0.0, 0.0, 0.898438], 1.0, 1.961358847391339)  # resamples that tie with the mean
@settings(max_examples=15, deadline=None)
def test_the_interval_moves_and_stretches_with_the_data(values, scale, shift):
    low, high = bootstrap_interval(values, samples=200)
    moved = bootstrap_interval(np.array(values) * scale + shift, samples=200)
    assert moved == (pytest.approx(low * scale + shift, abs=1e-6), pytest.approx(high * scale + shift, abs=1e-6))


def test_more_subjects_give_a_narrower_interval():
    values = np.random.default_rng(0).beta(2, 2, 200)
    widths = [np.diff(bootstrap_interval(values[:n]))[0] for n in (10, 50, 200)]
    assert widths == sorted(widths, reverse=True)


def test_the_interval_of_many_subjects_is_the_normal_one():
    values = np.random.default_rng(0).normal(5, 2, 400)
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.03)


def test_nearly_all_null_cohorts_are_covered():
    rng = np.random.default_rng(0)
    covered = [
        low <= 0.5 <= high for low, high in (bootstrap_interval(rng.random(40), samples=300) for _ in range(200))
    ]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_the_same_seed_gives_the_same_interval_and_undefined_values_are_left_out():
    values = [0.2, 0.5, 0.9]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval([*values, None, np.nan], seed=1)


@pytest.mark.parametrize("values", [[], [0.4], [None, 0.4, np.nan]])
def test_fewer_than_two_subjects_have_no_interval(values):
    assert bootstrap_interval(values) == (None, None)


def test_identical_scores_have_an_interval_of_width_zero():
    assert bootstrap_interval([0.5] * 4) == (0.5, 0.5)


def test_the_summary_counts_only_subjects_with_a_defined_score():
    summary = summarise(table(model=[0.2, None, 0.6], baseline_empty=[None, None, None])).set_index("method")
    assert summary.loc["model", ["mean", "median", "n"]].tolist() == [0.4, 0.4, 2]
    assert summary.loc["baseline_empty", "n"] == 0 and np.isnan(summary.loc["baseline_empty", "mean"])


def test_strata_are_summarised_apart():
    scores = table(model=[0.2, 0.4, 0.9]).assign(centre=["R001", "R001", "R002"])
    assert summarise(scores, by=("method", "centre"))["mean"].tolist() == pytest.approx([0.3, 0.9])


def cohort(volumes: list[float], centres: list[str | None]) -> pd.DataFrame:
    names = [f"sub-{row}" for row in range(len(volumes))]
    return pd.DataFrame({"participant_id": names, "lesion_volume_ml": volumes, "centre": centres})


VOLUMES = [60.0, 0.2, 5.0, 0.0, 0.9, 12.0, np.nan]
CENTRES = ["R002", "R001", "R002", "R001", "R001", None, "R003"]


def test_each_stratum_is_the_summary_of_its_subjects_alone():
    scores = table(model=[0.9, 0.1, 0.6, 1.0, None, 0.7, 0.5], baseline_empty=[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    found = strata(scores, cohort(VOLUMES, CENTRES), samples=200)
    groups = {
        ("lesion_volume_ml", "no lesion"): [3],
        ("lesion_volume_ml", "< 1 mL"): [1, 4],
        ("lesion_volume_ml", "1–10 mL"): [2],
        ("lesion_volume_ml", "10–50 mL"): [5],
        ("lesion_volume_ml", "≥ 50 mL"): [0],
        ("centre", "R001"): [1, 3, 4],
        ("centre", "R002"): [0, 2],
        ("centre", "R003"): [6],
    }
    assert list(dict.fromkeys(zip(found["stratum_of"], found["stratum"], strict=True))) == list(groups)
    for (kind, stratum), members in groups.items():
        here = found[(found["stratum_of"] == kind) & (found["stratum"] == stratum)].drop(
            columns=["stratum_of", "stratum"]
        )
        part = scores[scores["participant_id"].isin([f"sub-{row}" for row in members])]
        pd.testing.assert_frame_equal(here.reset_index(drop=True), summarise(part, samples=200))


def test_what_is_asked_of_the_bootstrap_holds_in_every_stratum():
    rng = np.random.default_rng(0)
    scores = table(model=list(rng.random(40)), baseline_empty=[0.0] * 40).assign(iou=1.0)
    asked = {"metrics": ["dice"], "samples": 60, "seed": 3, "level": 0.8}
    found = strata(scores, cohort([5.0] * 20 + [20.0] * 20, ["R001"] * 40), **asked).drop(columns="stratum_of")
    halves = [
        scores[scores["participant_id"].isin([f"sub-{row}" for row in rows])] for rows in (range(20), range(20, 40))
    ]
    expected = pd.concat([summarise(part, **asked) for part in (*halves, scores)], ignore_index=True)
    pd.testing.assert_frame_equal(found.drop(columns="stratum"), expected)


def test_the_order_of_rows_and_further_columns_do_not_change_the_strata():
    scores = table(model=[0.9, 0.1, 0.6, 1.0, 0.4, 0.7, 0.5])
    asked = cohort(VOLUMES, CENTRES)
    shuffled = asked.sample(frac=1, random_state=0).assign(session="ses-1", age=60)
    pd.testing.assert_frame_equal(strata(scores, asked, samples=100), strata(scores, shuffled, samples=100))
    turned = strata(scores[::-1], asked, samples=100)
    assert turned["mean"].tolist() == pytest.approx(strata(scores, asked, samples=100)["mean"].tolist())


@given(st.lists(st.floats(0, 500), max_size=6))
def test_the_class_of_a_volume_holds_it(volumes):
    inside = {
        "no lesion": lambda v: v == 0,
        "< 1 mL": lambda v: 0 < v < 1,
        "1–10 mL": lambda v: 1 <= v < 10,
        "10–50 mL": lambda v: 10 <= v < 50,
        "≥ 50 mL": lambda v: v >= 50,
    }
    assert all(inside[name](volume) for name, volume in zip(volume_class(volumes), volumes, strict=True))


def test_a_cohort_without_strata_or_with_a_subject_twice_is_refused():
    scores, asked = table(model=[0.5, 0.6]), cohort([1.0, 2.0], ["R001", "R002"])
    with pytest.raises(ValueError, match="neither lesion_volume_ml nor centre"):
        strata(scores, asked[["participant_id"]])
    with pytest.raises(ValueError, match="lists sub-0 twice"):
        strata(scores, pd.concat([asked, asked]))
    with pytest.raises(ValueError, match="negative"):
        volume_class([-1.0])
    assert set(strata(scores, asked.drop(columns="centre"))["stratum_of"]) == {"lesion_volume_ml"}
    assert set(strata(scores, asked.drop(columns="lesion_volume_ml"))["stratum_of"]) == {"centre"}


def test_identities_are_never_metrics():
    scores = table(model=[0.1]).assign(fold=1, trial=3, level=2.0, note="text", extra=1.5)
    assert metric_columns(scores) == ["dice", "extra"]


@given(cohorts.map(lambda values: values[:8]))
@settings(max_examples=10, deadline=None)
def test_turning_a_comparison_round_changes_its_sign_only(values):
    other = values[::-1]
    here, there = paired_comparison(values, other, samples=200), paired_comparison(other, values, samples=200)
    assert here["mean_difference"] == pytest.approx(-there["mean_difference"], abs=1e-12)
    assert here["p_value"] == pytest.approx(there["p_value"])


def test_pairing_finds_a_small_steady_difference_that_the_spread_of_subjects_would_hide():
    values = np.random.default_rng(0).random(20)
    found = paired_comparison(values + 0.02 + 0.001 * values, values)
    assert found["p_value"] < 0.001 and found["low"] > 0.019


def test_equal_pairs_have_p_one_and_a_lone_pair_has_none():
    assert paired_comparison([0.1, 0.2], [0.1, 0.2])["p_value"] == 1
    assert paired_comparison([0.1, None], [0.2, 0.3]) == {
        "mean_difference": pytest.approx(-0.1),
        "low": None,
        "high": None,
        "p_value": None,
        "n": 1,
    }


def test_null_cohorts_are_rejected_about_as_often_as_promised():
    rng = np.random.default_rng(0)
    rejected = [paired_comparison(*rng.random((2, 12)), samples=10)["p_value"] < 0.05 for _ in range(150)]
    assert np.mean(rejected) <= 0.07


def test_methods_are_compared_by_participant_and_not_by_row():
    scores = table(model=[0.5, 0.7], baseline_empty=[0.1, 0.2]).iloc[[0, 1, 3, 2]]
    found = compare_methods(scores, "dice").iloc[0]
    assert found["method"] == "baseline_empty" and found["mean_difference"] == pytest.approx(0.45) and found["n"] == 2


def test_flat_metrics_keep_their_names_and_hold_only_numbers():
    flat = flat_metrics(summarise(table(model=[0.4, 0.6], baseline_empty=[0.0, 0.0])))
    assert set(flat) == {"dice", "dice_low", "dice_high", "dice_median", "baseline_empty/dice", "n_subjects"}
    assert flat["dice"] == pytest.approx(0.5) and flat["n_subjects"] == 2
    json.dumps(flat_metrics(summarise(table(model=[0.4], baseline_empty=[None]))), allow_nan=False)


def test_ranking_looks_at_the_model_and_knows_which_way_is_better():
    scores = table(model=[0.3, 0.9, 0.6], baseline_empty=[1.0, 0.0, 0.0]).assign(mae_s=lambda t: t["dice"])
    assert ranked_subjects(scores, "dice") == {"best": "sub-1", "median": "sub-2", "worst": "sub-0"}
    assert ranked_subjects(scores, "mae_s") == {"best": "sub-0", "median": "sub-2", "worst": "sub-1"}


@pytest.mark.parametrize(("n", "asked", "shown"), [(0, 3, 0), (1, 3, 1), (2, 3, 2), (9, 3, 3), (9, 5, 5), (4, 12, 4)])
def test_ranking_names_nobody_twice_and_no_more_than_asked(n, asked, shown):
    found = ranked_subjects(table(model=[None, *np.linspace(0, 1, n)]), "dice", n=asked)
    assert len(found) == len(set(found.values())) == shown
    assert list(found)[:1] == ["best"] * bool(n)
