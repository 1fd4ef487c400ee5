"""The study asks every question once, pairs by subject, and its numbers follow from its curve."""

import numpy as np
import pandas as pd
import pytest

from reperfuse.evaluation.resolution import (
    curve,
    level_effects,
    resolution_scalars,
    resolution_study,
    study_table,
    subject_rows,
)

LEVELS = (2.0, 5.0, 10.0)


def study(score=lambda level, quality: quality - level / 20, n: int = 6, **kwargs) -> pd.DataFrame:
    """Subjects of different quality whose score depends on the level."""
    arguments = {
        "levels": LEVELS,
        "degrade": lambda subject, level, axis: (level, subject, axis),
        "predict": {"model": lambda seen: score(seen[0], seen[1]), "baseline_empty": lambda seen: 0.0},
        "score": lambda prediction, subject: {"dice": prediction, "mae_s": 1 - prediction, "hd95_mm": None},
    }
    qualities = np.linspace(0.6, 0.9, n)
    return resolution_study([(f"sub-{row}", value) for row, value in enumerate(qualities)], **(arguments | kwargs))


def test_there_is_one_row_per_subject_method_axis_and_level():
    table = study(axes=("i", "k"))
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
        levels=(1, 2),
        degrade=lambda subject, level, axis: degraded.append((subject, level, len(alive))),
        predict={"model": lambda seen: 1.0, "baseline_empty": lambda seen: 0.0},
        score=lambda prediction, subject: {"dice": prediction},
    )
    assert degraded == [(number, level, number + 1) for number in range(3) for level in (1, 2)]


def test_a_lone_callable_is_the_model_and_a_metric_undefined_for_all_stays_a_number_column():
    table = study(predict=lambda seen: 0.5)
    assert set(table["method"]) == {"model"} and table["hd95_mm"].dtype == float and table["hd95_mm"].isna().all()


def test_rows_kept_from_an_earlier_run_give_the_same_table():
    whole = study()
    arguments = {"levels": LEVELS, "degrade": lambda s, level, axis: level, "predict": lambda level: level}
    kept = [
        row
        for name in ("a", "b")
        for row in subject_rows(name, 0, score=lambda prediction, subject: {"dice": prediction}, **arguments)
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


def test_perfusion_asks_the_same_question_of_the_sampling_interval():
    table = study(levels=(1.0, 1.5, 3.0), level_name="tr_s")
    assert "dice_drop_3s" in resolution_scalars(table, level_name="tr_s")
    assert curve(table, level_name="tr_s")["tr_s"].max() == 3


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


def test_axes_are_averaged_within_a_subject_unless_one_is_named():
    table = study(axes=("i", "k"))
    table.loc[table["axis"] == "i", "dice"] += 0.1
    both, one = resolution_scalars(table), resolution_scalars(table, axis="k")
    assert both["resolution_auc"] == pytest.approx(one["resolution_auc"] + 0.05)
