"""Hypotheses about coarser acquisitions: nothing is found where there is nothing, and a defect where one is built."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from reperfuse.evaluation.hypotheses import HYPOTHESES, hypothesis_tests
from reperfuse.evaluation.metrics import METRICS, lesion_scores, tmax_scores
from reperfuse.evaluation.paired import EXACT_PAIRS, holm, signed_rank
from reperfuse.evaluation.resolution import FACETS

TIED = st.lists(st.integers(-4, 4), min_size=1, max_size=9)
"""Differences with many ties and zeros."""


def study(finest: pd.DataFrame, coarsest: pd.DataFrame, axis: str = "k") -> pd.DataFrame:
    """A study of two levels, one row of scores per subject each."""
    place = {"method": "model", "axis": axis}
    levels = [
        scores.assign(participant_id=[f"sub-{n:02d}" for n in range(len(scores))], thickness_mm=level, **place)
        for level, scores in ((1.0, finest), (10.0, coarsest))
    ]
    return pd.concat(levels, ignore_index=True)


def of_one_metric(differences: list[float], metric: str = "false_negative_ml") -> pd.DataFrame:
    finest = pd.DataFrame({metric: np.full(len(differences), 1.0)})
    return study(finest, finest + np.array(differences)[:, None])


def exchangeable_scores(rng: np.random.Generator, n_subjects: int) -> list[pd.DataFrame]:
    """Scores of two levels that could be exchanged: bounded, skewed, with zeros, and all from one quality per level."""
    volume_ml = rng.lognormal(np.log(5), 1.4, n_subjects)
    ability = rng.normal(0.5, 0.8, n_subjects)
    levels = []
    for _ in range(2):
        quality = 1 / (1 + np.exp(-ability - rng.normal(0, 0.5, n_subjects)))
        found = np.where(quality < 0.3, 0.0, quality)
        extra_ml = np.where(rng.random(n_subjects) < 0.5, 0.0, (1 - quality) * rng.lognormal(0, 1, n_subjects))
        missed_ml = volume_ml * (1 - found)
        levels.append(
            pd.DataFrame(
                {
                    "dice": 2 * volume_ml * found / (volume_ml * (1 + found) + extra_ml),
                    "false_positive_ml": extra_ml,
                    "false_negative_ml": missed_ml,
                    "surface_dice": found**2,
                    "volume_error_ml": np.abs(extra_ml - missed_ml),
                }
            )
        )
    return levels


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> np.ndarray:
    return sum((axis - at) ** 2 for axis, at in zip(np.indices(shape), centre, strict=True)) <= radius**2


def lesions(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A large lesion and, apart from it, small ones [1 mm voxels]."""
    shape = (36, 36, 36)
    large = ball(shape, tuple(rng.uniform(11, 13, 3)), rng.uniform(7, 9))
    corners = [(28, 28, 8), (28, 8, 28), (8, 28, 28)]
    return large, sum(ball(shape, corner, rng.uniform(2, 3)) for corner in corners) > 0


def built_study(defect) -> pd.DataFrame:
    """Tests over 12 subjects of a model that is nearly right at 1 mm and has a defect at 10 mm."""
    rng, rows = np.random.default_rng(0), []
    for n in range(12):
        large, small = lesions(rng)
        for level in (1.0, 10.0):
            prediction = large | small if level == 1 else defect(large, small)
            stray = ball(large.shape, (30, 30, 30), rng.uniform(1, 2.5))  # another false alarm at every level
            scores = lesion_scores(prediction | stray, large | small, (1, 1, 1))
            rows.append({"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": level} | scores)
    return hypothesis_tests(pd.DataFrame(rows), samples=200).set_index("hypothesis")


def test_nothing_is_found_in_cohorts_where_no_level_is_better_than_another():
    rng = np.random.default_rng(0)
    n_wrong = 0
    for _ in range(200):
        tests = hypothesis_tests(study(*exchangeable_scores(rng, 12)), samples=20)
        n_wrong += tests["verdict"].isin(["supported", "opposite"]).any()
        assert len(tests) == 5 and not (tests["verdict"] == "too few to tell").any()
    assert 0 < n_wrong <= 14  # 7 %; a test that never rejects would be no test either


def test_a_model_that_loses_small_lesions_is_found_to_miss_volume_and_to_mark_no_more_healthy_tissue():
    found = built_study(lambda large, small: large)
    assert (found.loc[["overlap", "false negatives", "boundaries"], "verdict"] == "supported").all()
    assert found.loc["false positives", "verdict"] == "not shown"
    assert (found.loc[["overlap", "false negatives", "boundaries"], "effect_size"] == 1).all()


def test_a_model_whose_border_is_shifted_is_found_by_its_border_and_not_by_its_volume():
    found = built_study(lambda large, small: ndimage.shift(large | small, (3, 0, 0), order=0))
    affected = ["overlap", "false positives", "false negatives", "boundaries"]
    assert (found.loc[affected, "verdict"] == "supported").all()
    assert found.loc["volume", "verdict"] == "not shown"


@given(TIED)
@settings(max_examples=60, deadline=None)
def test_the_signed_rank_test_equals_trying_every_pattern_of_signs(differences):
    ranks = np.array([x for x in differences if x], dtype=float)
    ranks = np.sign(ranks) * stats.rankdata(np.abs(ranks))
    patterns = 1 - 2 * ((np.arange(2**ranks.size)[:, None] >> np.arange(ranks.size)) & 1)
    sums = patterns @ np.abs(ranks)
    correlation, p_value = signed_rank(np.array(differences) / 10)
    assert p_value == pytest.approx(np.mean(np.abs(sums) >= abs(ranks.sum()) - 1e-9))
    assert correlation == pytest.approx(ranks.sum() / max(np.abs(ranks).sum(), 1))


@pytest.mark.parametrize("n", [2, 12, 50])
def test_without_ties_the_signed_rank_test_is_that_of_scipy(n):
    differences = np.random.default_rng(n).normal(0.2, 1, n)
    assert signed_rank(differences)[1] == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_the_approximation_for_many_pairs_continues_the_exact_test():
    differences = np.random.default_rng(0).normal(0.12, 1, EXACT_PAIRS + 1)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert 0.005 < expected < 0.5 and signed_rank(differences)[1] == pytest.approx(expected, abs=1e-3)


@given(TIED)
@settings(max_examples=30, deadline=None)
def test_the_other_direction_turns_the_effect_and_the_verdict_and_leaves_the_p_value(differences):
    here, there = (hypothesis_tests(of_one_metric(d), samples=50) for d in (differences, [-x for x in differences]))
    turned = {"supported": "opposite", "opposite": "supported"}
    assert there["verdict"].item() == turned.get(here["verdict"].item(), here["verdict"].item())
    for name in ("effect_size", "mean_difference"):
        assert there[name].item() == pytest.approx(-here[name].item(), nan_ok=True)
    assert there["p_value"].item() == pytest.approx(here["p_value"].item(), nan_ok=True)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(np.nan)), max_size=8))
@settings(max_examples=60, deadline=None)
def test_adjusted_p_values_reject_what_holms_steps_reject(p_values):
    adjusted = holm(p_values)
    defined = sorted((p, i) for i, p in enumerate(p_values) if not np.isnan(p))
    for alpha in (0.01, 0.05, 0.2):
        rejected = set()
        for step, (p, i) in enumerate(defined):
            if p * (len(defined) - step) > alpha:
                break
            rejected.add(i)
        assert set(np.flatnonzero(adjusted <= alpha)) == rejected
    assert np.isnan(adjusted).tolist() == np.isnan(np.array(p_values)).tolist()
    assert (adjusted[~np.isnan(adjusted)] <= 1).all()


def test_every_facet_counts_in_the_adjustment_and_other_methods_do_not():
    k = of_one_metric([0.1 * n for n in range(1, 13)])
    one = hypothesis_tests(k, samples=50)
    three = hypothesis_tests(pd.concat([k.assign(axis=axis) for axis in "ijk"]), samples=50)
    rival = hypothesis_tests(pd.concat([k, k.assign(method="baseline_empty", false_negative_ml=0.0)]), samples=50)
    assert three["axis"].tolist() == ["i", "j", "k"]
    assert three["p_value"].tolist() == pytest.approx([one["p_value"].item()] * 3)
    assert three["p_adjusted"].tolist() == pytest.approx([3 * one["p_value"].item()] * 3)
    assert rival.equals(one)


def test_levels_between_and_subjects_without_both_levels_are_left_out():
    table = of_one_metric([0.1 * n for n in range(1, 13)])
    between = table[table["thickness_mm"] == 1].assign(thickness_mm=5.0, false_negative_ml=99.0)
    alone = table.iloc[:1].assign(participant_id="sub-alone", false_negative_ml=99.0)
    undefined = table.iloc[:2].assign(participant_id="sub-none", thickness_mm=[1.0, 10.0], false_negative_ml=[99, None])
    more = hypothesis_tests(pd.concat([table, alone, undefined, between]), samples=50)
    assert more.equals(hypothesis_tests(table, samples=50))
    assert more[["finest", "coarsest", "n"]].to_numpy().tolist() == [[1.0, 10.0, 12.0]]


@pytest.mark.parametrize(("n", "verdict"), [(1, "too few to tell"), (5, "too few to tell"), (6, "supported")])
def test_subjects_too_few_for_any_finding_are_called_so_and_not_a_negative_result(n, verdict):
    found = hypothesis_tests(of_one_metric([1.0] * n), samples=50)
    assert found["verdict"].item() == verdict
    assert found["sentence"].item().endswith(f"{verdict}.")


def test_one_subject_that_outweighs_the_rest_leaves_the_answer_open():
    found = hypothesis_tests(of_one_metric([1.0] * 15 + [-50.0]), samples=50)
    assert found["p_adjusted"].item() < 0.05 and found["effect_size"].item() > 0 > found["mean_difference"].item()
    assert found["verdict"].item() == "not shown"


def test_the_sentence_states_amount_direction_certainty_and_verdict():
    differences = np.linspace(0.6, 3.0, 12)
    table = of_one_metric(differences.tolist())
    found = hypothesis_tests(table).iloc[0]
    low, high = f"{found['low']:.1f}", f"{found['high']:.1f}"
    assert found["sentence"] == (
        f"At 10 mm slices along k the model misses 1.8 mL more lesion than at 1 mm (95 % interval {low} to {high} mL, "
        "12 subjects): supported."
    )
    turned = hypothesis_tests(of_one_metric((-differences).tolist()))["sentence"].item()
    assert turned.split(" (")[0].endswith("misses 1.8 mL less lesion than at 1 mm") and turned.endswith(": opposite.")
    assert f"95 % interval {low} to {high} mL" in turned
    unsure = hypothesis_tests(of_one_metric([-1, -1, -1, -2, 3, 3, 2, 1.5, 0.5, -3, -2, 1]))["sentence"].item()
    assert "misses 0.1 mL more lesion" in unsure
    assert re.search(r"95 % interval \d\.\d mL less to \d\.\d mL more, 12 subjects\): not shown", unsure)
    small = hypothesis_tests(of_one_metric([1, -1, 2, -2, 3, -3, 0.1]))["sentence"].item()
    assert "misses no more lesion than at 1 mm (95 % interval" in small
    same = hypothesis_tests(of_one_metric([0.0] * 12))["sentence"].item()
    assert same == ("At 10 mm slices along k the model misses no more lesion than at 1 mm (12 subjects): not shown.")


def test_a_lower_score_is_worse_where_more_is_better():
    found = hypothesis_tests(of_one_metric([-0.02 * n for n in range(1, 13)], "dice"))
    assert found["verdict"].item() == "supported" and found["effect_size"].item() == 1
    assert "the model reaches an overlap (Dice) that is 0.13 lower than at 1 mm" in found["sentence"].item()


def test_a_coarser_series_has_hypotheses_and_sentences_of_its_own():
    rng, rows = np.random.default_rng(0), []
    for n in range(12):
        reference = rng.uniform(0, 12, (6, 6, 6))
        for tr_s, error in ((1.0, 0.5), (3.0, 2.0)):
            predicted = reference + rng.normal(0, error, reference.shape)
            place = {"participant_id": f"sub-{n}", "method": "model", "snr": 20.0, "tr_s": tr_s}
            rows.append(place | tmax_scores(predicted, reference, np.ones((6, 6, 6)), (2, 2, 5)))
    found = hypothesis_tests(pd.DataFrame(rows), level_name="tr_s", samples=200).set_index("hypothesis")
    assert found.index.tolist() == [hypothesis.name for hypothesis in HYPOTHESES["tr_s"]]
    assert (found.loc[["error", "agreement", "hypoperfused tissue"], "verdict"] == "supported").all()
    assert re.fullmatch(
        r"At a TR of 3 s and an SNR of 20 the model is 1\.\d s further off in Tmax than at 1 s \(.*\): supported\.",
        found.loc["error", "sentence"],
    )


def test_metrics_or_levels_that_are_not_there_make_no_rows():
    table = of_one_metric([0.1] * 12)
    columns = list(hypothesis_tests(table, samples=50))
    for nothing in (table.rename(columns={"false_negative_ml": "other"}), table[table["thickness_mm"] == 1]):
        found = hypothesis_tests(nothing, samples=50)
        assert found.empty and list(found) == columns


def test_undefined_scores_make_a_row_without_numbers():
    table = of_one_metric([np.nan] * 12)
    found = hypothesis_tests(table, samples=50).iloc[0]
    assert (found["n"], found["verdict"]) == (0, "too few to tell") and np.isnan(found["p_adjusted"])
    assert found["sentence"] == ("At 10 mm slices along k, 0 subjects can be compared with 1 mm: too few to tell.")


@pytest.mark.parametrize("level_name", HYPOTHESES)
def test_every_hypothesis_is_about_a_known_score_that_gets_worse(level_name):
    assert level_name in FACETS
    for hypothesis in HYPOTHESES[level_name]:
        assert hypothesis.worse == {"higher": "lower", "lower": "higher"}[METRICS[hypothesis.metric].better]
        assert "{who}" in hypothesis.finding and "{change}" in hypothesis.finding and hypothesis.claim.endswith(".")
