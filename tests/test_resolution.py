"""The study asks every question once, pairs by subject, and its numbers follow from its curve."""

import numpy as np
import pandas as pd
import pytest

from reperfuse.evaluation.resolution import (
    curve,
    facet_name,
    lesion_table,
    level_effects,
    method_effects,
    model_curve,
    resolution_scalars,
    resolution_study,
    size_curve,
    study_table,
    subject_rows,
    whole_facets,
)

LEVELS = (2.0, 5.0, 10.0)


def study(score=lambda level, quality: quality - level / 20, n: int = 6, **kwargs) -> pd.DataFrame:
    """Subjects of different quality whose score depends on the level."""
    arguments = {
        "levels": {"k": LEVELS},
        "degrade": lambda subject, level, facet: (level, subject, facet),
        "predict": {"model": lambda seen: score(seen[0], seen[1]), "baseline_empty": lambda seen: 0.0},
        "score": lambda prediction, *_: {"dice": prediction, "mae_s": 1 - prediction, "hd95_mm": None},
    }
    qualities = np.linspace(0.6, 0.9, n)
    return resolution_study([(f"sub-{row}", value) for row, value in enumerate(qualities)], **(arguments | kwargs))


def test_there_is_one_row_per_subject_method_facet_and_level():
    table = study(levels=dict.fromkeys("ik", LEVELS))
    assert len(table) == 6 * 2 * 2 * 3
    assert not table.duplicated(["participant_id", "method", "axis", "thickness_mm"]).any()


def test_each_subject_is_read_once_and_degraded_once_for_all_methods():
    degraded, alive = [], []

    def subjects():
        for number in range(3):
            alive.append(number)
            yield f"sub-{number}", number

    resolution_study(
        subjects(),
        levels={"k": (1, 2)},
        degrade=lambda subject, level, facet: degraded.append((subject, level, len(alive))) or [level],
        predict={"model": lambda seen: 1.0, "baseline_empty": lambda seen: 0.0},
        score=lambda prediction, *_: {"dice": prediction},
    )
    assert degraded == [(number, level, number + 1) for number in range(3) for level in (1, 2)]


def test_a_lone_callable_is_the_model_and_a_metric_undefined_for_all_stays_a_number_column():
    table = study(predict=lambda seen: 0.5)
    assert set(table["method"]) == {"model"} and table["hd95_mm"].dtype == float and table["hd95_mm"].isna().all()


def test_rows_kept_from_an_earlier_run_give_the_same_table():
    whole = study()
    arguments = {"levels": {"k": LEVELS}, "degrade": lambda s, level, facet: level, "predict": lambda level: level}
    kept = [
        row
        for name in ("a", "b")
        for row in subject_rows(name, 0, score=lambda prediction, *_: {"dice": prediction}, **arguments)
    ]
    assert study_table(kept)["dice"].tolist() == [*LEVELS, *LEVELS]
    pd.testing.assert_frame_equal(study_table(whole.to_dict("records")), whole)


def test_the_curve_is_the_mean_over_subjects_at_each_level():
    means = curve(study()).query("method == 'model' and metric == 'dice'")
    assert means["mean"].tolist() == pytest.approx([0.75 - level / 20 for level in LEVELS])
    assert (means["n"] == 6).all() and (means["low"] < means["mean"]).all()


def test_a_flat_curve_has_its_score_as_area_and_no_drop():
    scalars = resolution_scalars(study(score=lambda level, quality: quality))
    assert scalars["resolution_auc"] == pytest.approx(0.75) and scalars["dice_drop_10mm"] == 0


def test_area_and_drop_of_a_straight_line_follow_from_its_ends():
    scalars = resolution_scalars(study())
    assert scalars["resolution_auc"] == pytest.approx(0.75 - (2 + 10) / 2 / 20)
    assert scalars["dice_drop_10mm"] == pytest.approx(0.4)
    assert scalars["dice_drop_10mm_low"] == pytest.approx(0.4) == scalars["dice_drop_10mm_high"]


def test_the_area_weighs_uneven_levels_by_their_distance():
    scalars = resolution_scalars(study(score=lambda level, quality: 1.0 if level < 5 else 0.0))
    assert scalars["resolution_auc"] == pytest.approx(0.5 * 3 / 8)


def test_for_an_error_the_loss_is_a_rise_so_that_positive_is_always_worse():
    scalars = resolution_scalars(study(), "mae_s")
    assert scalars["mae_s_rise_10mm"] == pytest.approx(0.4)


def noisy_study(n: int = 6, **kwargs) -> pd.DataFrame:
    """A study of the sampling interval at two SNRs: the error of the model grows half as fast as that of oSVD."""
    arguments = {
        "levels": dict.fromkeys((50.0, 20.0), (1.0, 1.5, 3.0)),
        "level_name": "tr_s",
        "degrade": lambda subject, level, facet: (level, subject, facet),
        "predict": {
            "baseline_osvd": lambda seen: 20 * seen[0] / seen[2] + seen[1],
            "model": lambda seen: 10 * seen[0] / seen[2] + seen[1],
        },
        "score": lambda prediction, *_: {"mae_s": float(prediction)},
    }
    subjects = [(f"sub-{row}", value) for row, value in enumerate(np.linspace(0.6, 0.9, n))]
    return resolution_study(subjects, **(arguments | kwargs))


def test_columns_of_the_lesion_arm_are_what_others_read():
    table = study()
    assert list(table.columns[:4]) == ["participant_id", "method", "axis", "thickness_mm"]
    statistics = ["metric", "mean", "median", "low", "high", "n"]
    assert list(curve(table).columns) == ["method", "axis", "thickness_mm", *statistics]
    comparison = ["mean_difference", "low", "high", "p_value", "n"]
    assert list(level_effects(table, "dice").columns) == ["method", "axis", "thickness_mm", *comparison, "p_adjusted"]


def test_perfusion_asks_the_same_question_of_the_sampling_interval_at_each_noise():
    table = noisy_study()
    assert list(table.columns) == ["participant_id", "method", "snr", "tr_s", "mae_s"]
    means = curve(table, level_name="tr_s")
    assert set(means["metric"]) == {"mae_s"} and len(means) == 2 * 2 * 3
    for snr in (20.0, 50.0):
        model = means[(means["method"] == "model") & (means["snr"] == snr)]
        assert model["mean"].tolist() == pytest.approx([0.75 + 10 * level / snr for level in (1, 1.5, 3)])
        rise = resolution_scalars(table, "mae_s", at=snr, level_name="tr_s")["mae_s_rise_3s"]
        assert rise == pytest.approx(10 * 2 / snr)


def test_the_table_means_the_same_after_a_file(tmp_path):
    table = noisy_study()
    table.to_csv(tmp_path / "scores.csv", index=False)
    again = pd.read_csv(tmp_path / "scores.csv")
    pd.testing.assert_frame_equal(curve(again, level_name="tr_s"), curve(table, level_name="tr_s"))


def test_methods_are_compared_within_each_subject_at_every_level_of_every_facet():
    effects = method_effects(noisy_study(), "mae_s", level_name="tr_s")
    assert len(effects) == 2 * 3 and set(effects["method"]) == {"model"}
    assert effects["mean_difference"].tolist() == pytest.approx((-10 * effects["tr_s"] / effects["snr"]).tolist())
    assert np.allclose(effects["low"], effects["high"])  # the subjects differ, their differences do not
    assert (effects["p_value"] == 2 / 2**6).all() and (effects["n"] == 6).all()


def test_comparing_with_a_method_turns_the_sign_and_one_that_took_no_part_compares_nothing():
    table = noisy_study()
    there = method_effects(table, "mae_s", against="baseline_osvd", level_name="tr_s")
    back = method_effects(table, "mae_s", against="model", level_name="tr_s")
    assert back["mean_difference"].tolist() == pytest.approx((-there["mean_difference"]).tolist())
    assert method_effects(table, "mae_s", against="baseline_nobody", level_name="tr_s").empty


def test_a_method_without_a_prediction_is_undefined_there_and_nowhere_else():
    def sometimes(seen):
        return None if seen[0] == 3 and seen[1] > 0.8 else seen[1]

    table = noisy_study(predict={"model": sometimes, "baseline_osvd": lambda seen: seen[1] + 1})
    undefined = table["mae_s"].isna()
    assert (table.loc[undefined, "method"] == "model").all() and (table.loc[undefined, "tr_s"] == 3).all()
    effects = method_effects(table, "mae_s", level_name="tr_s")
    assert effects.loc[effects["tr_s"] == 3, "n"].tolist() == [4, 4]
    assert (effects["mean_difference"] == -1).all()


def test_who_does_not_reach_the_finest_level_is_compared_with_nobody_and_the_others_stay_paired():
    table = noisy_study(n=3)
    table = table[(table["participant_id"] != "sub-2") | (table["tr_s"] > 1)]
    effects = level_effects(table, "mae_s", level_name="tr_s").query("method == 'model' and snr == 20")
    assert effects["n"].tolist() == [2, 2]
    assert effects["mean_difference"].tolist() == pytest.approx([0.25, 1.0])


def test_a_facet_whose_subjects_are_all_coarse_begins_at_its_own_finest_level():
    table = noisy_study()
    table = table[(table["snr"] == 20) | (table["tr_s"] > 1)]
    effects = level_effects(table, "mae_s", level_name="tr_s").query("method == 'model'")
    assert effects.query("snr == 50")["tr_s"].tolist() == [3.0]
    assert effects.query("snr == 20")["tr_s"].tolist() == [1.5, 3.0]


def test_facets_have_names_for_metrics_and_files():
    assert facet_name("thickness_mm", "i") == "axis_i" and facet_name("tr_s", 12.5) == "snr12.5"


def test_a_subject_undefined_at_one_level_counts_at_none():
    table = study(n=3)
    table.loc[(table["participant_id"] == "sub-2") & (table["thickness_mm"] == 10), "dice"] = np.nan
    assert resolution_scalars(table)["resolution_auc"] == pytest.approx(0.675 - 0.3)
    assert resolution_scalars(table.assign(dice=np.nan)) == {}


def test_every_level_is_compared_with_the_finest_within_each_subject():
    effects = level_effects(study(), "dice").query("method == 'model'")
    assert effects["thickness_mm"].tolist() == [5, 10]
    assert effects["mean_difference"].tolist() == pytest.approx([-0.15, -0.4])
    assert (effects["p_value"] == 2 / 2**6).all()
    assert (effects["p_adjusted"] == 2 * 2 / 2**6).all()  # for two levels, and not for both methods together


def test_axes_are_averaged_within_a_subject_unless_one_is_named():
    table = study(levels=dict.fromkeys("ik", LEVELS))
    table.loc[table["axis"] == "i", "dice"] += 0.1
    both, one = resolution_scalars(table), resolution_scalars(table, at="k")
    assert both["resolution_auc"] == pytest.approx(one["resolution_auc"] + 0.05)


def test_what_is_not_degraded_is_asked_once_for_all_facets():
    asked = []

    def predict(seen):
        asked.append(seen)
        return seen[1]

    rows = subject_rows(
        "sub-1",
        ("scan", 0.8),
        levels={"k": (1.0, 5.0), "i": (1.0, 5.0)},
        degrade=lambda subject, level, facet: subject if level == 1 else (facet, 0.4),
        predict=predict,
        score=lambda prediction, *_: {"dice": prediction},
    )
    assert asked == [("scan", 0.8), ("k", 0.4), ("i", 0.4)]
    assert [row["dice"] for row in rows] == [0.8, 0.4, 0.8, 0.4]


def test_a_facet_at_some_levels_only_moves_no_mean_over_facets():
    table = study(levels={"k": LEVELS, "i": (2.0, 10.0)})
    table.loc[table["axis"] == "i", "dice"] -= 0.5
    assert whole_facets(table, "thickness_mm") == ["k"]
    assert resolution_scalars(table) == resolution_scalars(table, at="k")


def test_lesions_are_listed_at_every_level_and_stay_out_of_the_scores():
    table = [
        {"participant_id": "sub-1", "method": "model", "axis": "k", "thickness_mm": level, "dice": 0.5}
        | {"lesions": [(0.2, level < 5), (8.0, True)]}
        for level in LEVELS
    ]
    lesions = lesion_table(table)
    assert len(lesions) == 2 * len(LEVELS) and list(study_table(table).columns)[-1] == "dice"
    assert lesions.query("volume_ml < 1")["found"].tolist() == [True, False, False]


def test_every_size_has_its_own_curve():
    table = study()
    volumes = {name: 0.5 if number < 2 else 70.0 for number, name in enumerate(table["participant_id"].unique())}
    curves = size_curve(table, volumes | {"sub-5": float("nan")}, metrics=["dice"])
    ours = curves[(curves["method"] == "model") & (curves["thickness_mm"] == 2)]
    assert ours["stratum"].tolist() == ["< 1 mL", "≥ 50 mL"] and ours["n"].tolist() == [2, 3]
    small = table.query("method == 'model' and thickness_mm == 2 and participant_id in ('sub-0', 'sub-1')")
    assert ours["mean"].iloc[0] == pytest.approx(small["dice"].mean())


def test_facets_stay_in_the_order_of_the_study_and_a_plot_shows_the_first():
    table = study(levels={"k": LEVELS, "i": (2.0, 10.0)})
    table.loc[table["axis"] == "i", "dice"] = 0.0
    curves = curve(table)
    assert list(curves["axis"].unique()) == ["k", "i"]
    line = model_curve(curves)
    assert line["thickness_mm"].tolist() == list(LEVELS) and line["dice"].min() > 0


def test_scores_stand_in_the_usual_order_whatever_that_of_the_rows():
    row = {"participant_id": "sub-1", "method": "model", "axis": "k", "thickness_mm": 2.0}
    scores = {"dice": 0.5, "hd95_mm": 3.0, "false_negative_ml": 1.0, "dice_thick": 0.6}
    backwards = row | dict(sorted(scores.items(), reverse=True))
    assert list(study_table([backwards]).columns) == list(study_table([row | scores]).columns) == [*row, *scores]
