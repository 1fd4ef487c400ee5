"""Laws of the training losses."""

import numpy as np
import pytest
import torch

from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import SSIM_RANGE_S, structural_similarity
from reperfuse.training.losses import (
    ACTIVATIONS,
    DICE_WEIGHT,
    HUBER_DELTA,
    LOSSES,
    OVERESTIMATION_WEIGHT,
    QUANTILES,
    SSIM_WEIGHT,
    pinball,
)

SEGMENTATION = [name for name in LOSSES if ACTIVATIONS[name] == "sigmoid"]
REGRESSION = [name for name in LOSSES if ACTIVATIONS[name] == "none"]
SHAPE = (2, 1, 4, 5, 6)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("target", [torch.zeros(SHAPE), torch.ones(SHAPE)], ids=["empty", "full"])
@pytest.mark.parametrize("mask", [torch.zeros(SHAPE), torch.ones(SHAPE)], ids=["no brain", "all brain"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_value_and_gradient_are_finite_whatever_the_masks(name, target, mask, scale):
    prediction = (scale * torch.randn(SHAPE)).requires_grad_()
    loss = LOSSES[name](prediction, target, mask.bool())
    loss.backward()
    assert loss.isfinite() and loss.ndim == 0 and prediction.grad.isfinite().all()


@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_confident_right_answer_costs_nothing_and_a_wrong_one_much(name):
    target, mask = (torch.rand(SHAPE) > 0.5).float(), torch.ones(SHAPE)
    logits = 60 * target - 30
    assert LOSSES[name](logits, target, mask) < 1e-3
    assert LOSSES[name](-logits, target, mask) > 0.9


@pytest.mark.parametrize("name", REGRESSION)
def test_only_voxels_inside_the_mask_count(name):
    target, mask = torch.rand(SHAPE), torch.rand(SHAPE) > 0.5
    prediction = target + torch.rand(SHAPE)
    worse = torch.where(mask, prediction, torch.inf)
    assert LOSSES[name](worse, target, mask) == LOSSES[name](prediction, target, mask) > 0


@pytest.mark.parametrize("name", REGRESSION)
def test_an_empty_mask_costs_nothing_and_teaches_nothing(name):
    prediction = torch.rand(SHAPE, requires_grad=True)
    loss = LOSSES[name](prediction, torch.zeros(SHAPE), torch.zeros(SHAPE))
    loss.backward()
    assert loss == 0 and not prediction.grad.any()


def test_dice_bce_is_the_sum_of_its_parts():
    arguments = torch.randn(SHAPE), (torch.rand(SHAPE) > 0.5).float(), torch.ones(SHAPE)
    parts = LOSSES["bce"](*arguments) + LOSSES["soft_dice"](*arguments)
    assert torch.isclose(LOSSES["dice_bce"](*arguments), parts)


def test_soft_dice_takes_one_dice_over_the_batch():
    target = torch.zeros(SHAPE)
    target[0, :, :2] = 1
    logits = torch.where(target > 0, 0.0, -100.0)  # half-sure inside, sure outside
    assert torch.isclose(LOSSES["soft_dice"](logits, target, target), torch.tensor(1 - 2 * 0.5 / 1.5), atol=1e-4)


def test_huber_is_half_the_square_when_small_and_linear_when_large():
    zero, mask = torch.zeros(SHAPE), torch.ones(SHAPE)
    assert torch.isclose(LOSSES["huber"](zero + 0.5, zero, mask), torch.tensor(0.125))
    step = LOSSES["huber"](zero + 12, zero, mask) - LOSSES["huber"](zero + 11, zero, mask)
    assert torch.isclose(step, torch.tensor(HUBER_DELTA))


def test_half_precision_logits_are_judged_in_single_precision():
    logits = torch.randn(SHAPE, dtype=torch.bfloat16)
    arguments = (torch.rand(SHAPE) > 0.5).float(), torch.ones(SHAPE)
    assert all(loss(logits, *arguments) == loss(logits.float(), *arguments) for loss in LOSSES.values())


@pytest.mark.parametrize("name", REGRESSION)
def test_a_mask_without_channels_says_the_same(name):
    target, mask = 12 * torch.rand(SHAPE), torch.rand(SHAPE) > 0.5
    prediction = 12 * torch.rand(SHAPE)
    assert LOSSES[name](prediction, target, mask[:, 0]) == LOSSES[name](prediction, target, mask)


@pytest.mark.parametrize("name", REGRESSION)
def test_a_perfect_map_costs_nothing_and_is_left_alone(name):
    target = 12 * torch.rand(SHAPE)
    prediction = target.clone().requires_grad_()
    loss = LOSSES[name](prediction, target, torch.ones(SHAPE))
    assert loss.abs() < 1e-4
    if name not in ("mae", "pinball"):  # these have an edge there
        loss.backward()
        assert prediction.grad.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["mse_ssim", "mse_dice", "mse_ssim_dice", "asymmetric_mse"])
def test_the_gradient_is_that_of_the_value(name):
    target, mask = 12 * torch.rand(SHAPE), torch.rand(SHAPE) > 0.3
    prediction = (12 * torch.rand(SHAPE)).requires_grad_()
    step = torch.randn(SHAPE) * 1e-2
    loss = LOSSES[name]
    loss(prediction, target, mask).backward()
    with torch.no_grad():
        difference = loss(prediction + step, target, mask) - loss(prediction - step, target, mask)
    assert float(difference) == pytest.approx(2 * float((prediction.grad * step).sum()), rel=0.02)


def test_overestimation_weighs_more_than_underestimation():
    target, mask = torch.rand(SHAPE), torch.ones(SHAPE)
    over, under = (LOSSES["asymmetric_mse"](target + error, target, mask) for error in (2.0, -2.0))
    assert float(under) == pytest.approx(4) and float(over) == pytest.approx(4 * OVERESTIMATION_WEIGHT)


def test_the_best_constant_of_the_asymmetric_loss_lies_below_the_mean():
    target = torch.linspace(0, 12, 2001).view(1, 1, 1, 1, -1)
    levels = torch.linspace(0, 12, 1201)
    losses = [LOSSES["asymmetric_mse"](torch.full_like(target, level), target, target + 1) for level in levels]
    # uniform on (0, L): w·x² = (L − x)² there, so x = L / (1 + √w)
    assert levels[int(np.argmin(losses))].item() == pytest.approx(12 / (1 + OVERESTIMATION_WEIGHT**0.5), abs=0.02)


@pytest.mark.parametrize("shape", [(9, 12, 7), (16, 16, 2), (13, 1, 1)])
def test_the_ssim_term_is_the_score_of_the_evaluation(shape):
    reference, prediction = 12 * torch.rand(2, 1, 1, *shape)
    mask = torch.rand(1, 1, *shape) > 0.4
    arguments = prediction, reference, mask
    term = LOSSES["mse_ssim"](*arguments) - LOSSES["mse"](*arguments)
    arrays = (values[0, 0].numpy() for values in arguments)
    expected = 1 - structural_similarity(*arrays, data_range=SSIM_RANGE_S)
    assert float(term) / SSIM_WEIGHT == pytest.approx(expected, abs=1e-5)


def test_autocast_leaves_the_ssim_term_in_single_precision():
    target, mask = 12 * torch.rand(SHAPE), torch.ones(SHAPE)
    prediction = target + 0.1 * torch.randn(SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        inside = LOSSES["mse_ssim"](prediction, target, mask)
    assert inside == LOSSES["mse_ssim"](prediction, target, mask)


def dice_term(prediction, target):
    arguments = torch.as_tensor(prediction), torch.as_tensor(target), torch.ones(SHAPE)
    return float(LOSSES["mse_dice"](*arguments) - LOSSES["mse"](*arguments)) / DICE_WEIGHT


def test_the_dice_term_is_one_minus_dice_of_the_late_tissue_where_no_voxel_is_near_the_threshold():
    big = (2, 1, 20, 20, 20)
    prediction, target = (torch.where(torch.rand(big) > 0.5, 11.0, 1.0) for _ in range(2))
    late, truly = prediction > 6, target > 6
    dice = 2 * (late & truly).sum() / (late.sum() + truly.sum())
    arguments = prediction, target, torch.ones(big)
    term = (LOSSES["mse_dice"](*arguments) - LOSSES["mse"](*arguments)) / DICE_WEIGHT
    assert float(term) == pytest.approx(1 - float(dice), abs=1e-3)


def test_the_dice_term_does_not_mind_how_late_late_is_nor_how_early_early():
    target = torch.where(torch.rand(SHAPE) > 0.5, 12.0, 1.0)
    assert dice_term(torch.where(target > 6, 20.0, 2.0), target) == pytest.approx(0, abs=1e-3)
    assert dice_term(torch.full(SHAPE, 2.0), torch.full(SHAPE, 3.0)) == pytest.approx(0, abs=1e-2)


def test_the_loss_of_both_terms_counts_the_squared_error_once():
    arguments = 12 * torch.rand(SHAPE), 12 * torch.rand(SHAPE), torch.rand(SHAPE) > 0.5
    value = {name: LOSSES[name](*arguments) for name in ("mse", "mse_ssim", "mse_dice", "mse_ssim_dice")}
    assert torch.isclose(value["mse_ssim_dice"], value["mse_ssim"] + value["mse_dice"] - value["mse"])


def test_the_quantiles_are_symmetric_and_rise():
    assert list(QUANTILES) == sorted(set(QUANTILES)) and 0.5 in QUANTILES
    assert [1 - level for level in reversed(QUANTILES)] == pytest.approx(QUANTILES)


def test_the_quantile_loss_is_smallest_at_the_quantiles():
    target = torch.randn(4001, 1)
    levels = torch.tensor(QUANTILES)
    predicted = torch.quantile(target[:, 0], levels).repeat(len(target), 1)
    mask = torch.ones_like(target)
    best = pinball(predicted, target, mask)
    for channel in range(len(QUANTILES)):
        for step in (-0.1, 0.1):
            moved = predicted.clone()
            moved[:, channel] += step
            assert pinball(moved, target, mask) > best


def test_the_quantile_loss_takes_all_levels_of_a_target_before_the_next():
    target, mask = torch.randn(50, 2), torch.ones(50, 1)
    predicted = torch.randn(50, 2, len(QUANTILES))
    apart = [pinball(predicted[:, m], target[:, m : m + 1], mask) for m in range(2)]
    assert torch.isclose(pinball(predicted.flatten(1), target, mask), sum(apart) / 2)


def test_the_quantile_loss_of_a_median_alone_is_half_the_absolute_error():
    arguments = torch.randn(SHAPE), torch.randn(SHAPE), torch.rand(SHAPE) > 0.5
    assert torch.isclose(pinball(*arguments), LOSSES["mae"](*arguments) / 2)


def test_the_quantile_loss_counts_voxels_inside_the_mask_only():
    target, mask = torch.randn(2, 2, 4, 5, 6), torch.rand(SHAPE) > 0.5
    prediction = torch.randn(2, 2 * len(QUANTILES), 4, 5, 6)
    worse = torch.where(mask, prediction, torch.inf)
    assert pinball(worse, target, mask) == pinball(prediction, target, mask) > 0


def test_a_number_of_quantiles_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="2 or 14 predicted channels for 2 targets, not 7"):
        pinball(torch.zeros(3, 7), torch.zeros(3, 2), torch.ones(3, 1))
