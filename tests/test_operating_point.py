"""Threshold and smallest piece: what the grid says is what a mask made so would score, and the choice is the best."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import dice
from reperfuse.evaluation.operating_point import OperatingPoint, best_point, dice_by_point

SPACING_MM = (2.0, 1.0, 3.0)


def smooth(seed: int) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(14, 12, 10)), 1.0)
    return np.clip(0.5 + field / field.std() / 4, 0, 1)


@given(st.integers(0, 1000), st.floats(0.3, 0.9))
@settings(max_examples=25, deadline=None)
def test_every_entry_is_the_dice_of_the_mask_made_at_that_point(seed: int, cut: float) -> None:
    probability, truth = smooth(seed), smooth(seed + 1) > cut
    for point, value in dice_by_point(probability, truth, SPACING_MM).items():
        assert value == pytest.approx(dice(point.mask(probability, SPACING_MM), truth), abs=1e-12)


def test_empty_truth_is_matched_by_an_empty_mask_alone() -> None:
    probability = np.zeros((6, 6, 6))
    probability[1, 1, 1] = 0.4
    found = dice_by_point(probability, np.zeros((6, 6, 6), bool), (1, 1, 1), thresholds=(0.3, 0.5), smallest_ml=(0, 1))
    assert [found[OperatingPoint(0.3, 0)], found[OperatingPoint(0.3, 1)], found[OperatingPoint(0.5, 0)]] == [0, 1, 1]


def test_pieces_that_touch_by_a_corner_are_one() -> None:
    probability = np.zeros((4, 4, 4))
    probability[1, 1, 1] = probability[2, 2, 2] = 0.9
    assert OperatingPoint(0.5, 0.002).mask(probability, (1, 1, 1)).sum() == 2
    assert OperatingPoint(0.5, 0.0021).mask(probability, (1, 1, 1)).sum() == 0


def test_the_best_mean_wins_and_ties_go_to_the_mildest() -> None:
    mild, hard = OperatingPoint(0.5, 0.0), OperatingPoint(0.2, 1.0)
    assert best_point([{mild: 0.9, hard: 0.5}, {mild: 0.0, hard: 0.5}]) == hard
    assert best_point([{hard: 0.5, mild: 0.5}]) == mild


def test_without_a_subject_there_is_nothing_to_choose_by() -> None:
    with pytest.raises(InputError, match="No subject was validated"):
        best_point([])
