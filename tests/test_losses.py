"""Laws of the training losses."""

import numpy as np
import pytest
import torch
from torch import nn

from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import SSIM_RANGE_S, structural_similarity
from reperfuse.training import losses as module
from reperfuse.training.losses import (
    ACTIVATIONS,
    LOSSES,
    QUANTILES,
    REGRESSION_LOSSES,
    SEGMENTATION_LOSSES,
    pinball,
)
from reperfuse.training.regression_losses import DICE_WEIGHT, HUBER_DELTA, OVERESTIMATION_WEIGHT, SSIM_WEIGHT

SEGMENTATION = list(SEGMENTATION_LOSSES)
REGRESSION = list(REGRESSION_LOSSES)
SHAPE = (2, 1, 4, 5, 6)


def box() -> torch.Tensor:
    """A target of SHAPE that is true in a box of the first volume alone."""
    target = torch.zeros(SHAPE)
    target[0, :, 1:3, 1:4, 2:5] = 1
    return target


def _cross_entropy(p, y):
    return -np.log(np.where(y == 1, p, 1 - p))


def _tversky(p, y, fp, fn):
    return 1 - (p * y).sum() / ((p * y).sum() + fp * (p * (1 - y)).sum() + fn * ((1 - p) * y).sum())


def _generalized_dice(p, y):
    classes = [(1 - p, 1 - y), (p, y)]
    above = sum((q * t).sum() / t.sum() ** 2 for q, t in classes)
    return 1 - 2 * above / sum((q.sum() + t.sum()) / t.sum() ** 2 for q, t in classes)


def _worst_tenth(p, y):
    return np.sort(_cross_entropy(p, y))[-(len(p) // 10) :].mean()


CLOSED_FORMS = {
    "bce": lambda p, y: _cross_entropy(p, y).mean(),
    "soft_dice": lambda p, y: 1 - 2 * (p * y).sum() / (p.sum() + y.sum()),
    "dice_bce": lambda p, y: 1 - 2 * (p * y).sum() / (p.sum() + y.sum()) + _cross_entropy(p, y).mean(),
    "bce_generalized_dice": lambda p, y: _cross_entropy(p, y).mean() + _generalized_dice(p, y),
    "focal": lambda p, y: (np.abs(y - p) ** 2 * _cross_entropy(p, y)).mean(),
    "tversky": lambda p, y: _tversky(p, y, fp=0.3, fn=0.7),
    "bce_topk": lambda p, y: _cross_entropy(p, y).mean() + _worst_tenth(p, y),
}
"""What each segmentation loss is of probabilities and truth, flat over the batch."""


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


def test_every_loss_is_of_one_kind_which_names_its_activation():
    assert not set(SEGMENTATION) & set(REGRESSION) and [*SEGMENTATION, *REGRESSION] == list(LOSSES)
    assert {name for name in ACTIVATIONS if ACTIVATIONS[name] == "sigmoid"} == set(SEGMENTATION)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_segmentation_loss_is_its_closed_form_over_the_batch(name):
    logits, target = torch.randn(SHAPE), box()
    p, y = (values.double().numpy().ravel() for values in (torch.sigmoid(logits.double()), target))
    assert float(LOSSES[name](logits, target, target)) == pytest.approx(CLOSED_FORMS[name](p, y), rel=1e-4)


@pytest.mark.parametrize("name", SEGMENTATION)
@pytest.mark.parametrize("target", [torch.zeros(SHAPE), torch.ones(SHAPE), box()], ids=["empty", "full", "box"])
@pytest.mark.parametrize("logit", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_logits_keep_value_and_gradient_finite(name, target, logit, dtype):
    prediction = torch.full(SHAPE, logit, dtype=dtype, requires_grad=True)
    loss = LOSSES[name](prediction, target, target)
    loss.backward()
    assert loss.isfinite() and loss > -1e-6 and loss.dtype == torch.float32
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("name", SEGMENTATION)
@pytest.mark.parametrize("target", [torch.zeros(SHAPE), torch.ones(SHAPE), box()], ids=["empty", "full", "box"])
def test_the_gradient_raises_logits_of_true_voxels_and_lowers_the_others(name, target):
    prediction = torch.randn(SHAPE, requires_grad=True)
    LOSSES[name](prediction, target, target).backward()
    assert (torch.where(target > 0, -prediction.grad, prediction.grad) > 0).all()


@pytest.mark.parametrize("name", SEGMENTATION)
@pytest.mark.parametrize("target", [torch.zeros(SHAPE), torch.ones(SHAPE), box()], ids=["empty", "full", "box"])
def test_no_answer_is_better_than_the_truth(name, target):
    truth = 60 * target - 30
    least = LOSSES[name](truth, target, target)
    assert 0 <= least + 1e-6 < 1e-3
    for wrong in (torch.randn(SHAPE), truth.abs(), -truth.abs(), truth.roll(1, dims=-1), truth / 30):
        assert LOSSES[name](wrong, target, target) >= least


@pytest.mark.parametrize("name", SEGMENTATION)
def test_where_a_voxel_lies_does_not_matter_be_it_in_another_volume_of_the_batch(name):
    logits, target, order = torch.randn(SHAPE), box(), torch.randperm(box().numel())
    moved = (values.flatten()[order].view(SHAPE) for values in (logits, target))
    assert torch.isclose(LOSSES[name](*moved, target), LOSSES[name](logits, target, target), rtol=1e-5)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_the_brain_mask_does_not_matter_to_a_segmentation_loss(name):
    logits, target = torch.randn(SHAPE), box()
    assert LOSSES[name](logits, target, target * 0) == LOSSES[name](logits, target, target + 1)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_larger_volume_of_the_same_voxels_costs_the_same(name):
    logits, target = torch.randn(SHAPE), box()
    large = (values.repeat(1, 1, 10, 10, 10) for values in (logits, target))
    assert torch.isclose(LOSSES[name](*large, target), LOSSES[name](logits, target, target), rtol=1e-4)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_small_network_learns_a_box_in_thirty_steps(name):
    target = box()
    image = target + 0.3 * torch.randn(SHAPE)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 1))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
    history = []
    for _ in range(30):
        loss = LOSSES[name](network(image), target, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]
    on_box, beside = (network(image)[target == value].mean() for value in (1, 0))
    assert on_box > beside + 1


@pytest.mark.parametrize("absent", [0, 1])
def test_generalized_dice_of_one_class_alone_is_the_mean_probability_of_the_other(absent):
    logits, target = torch.randn(SHAPE), torch.full(SHAPE, 1.0 - absent)
    term = LOSSES["bce_generalized_dice"](logits, target, target) - LOSSES["bce"](logits, target, target)
    assert torch.isclose(term, (torch.sigmoid(logits) - target).abs().mean(), rtol=1e-4)


def test_generalized_dice_weighs_lesion_and_background_alike():
    logits, target = torch.randn(SHAPE), box()
    swapped = LOSSES["bce_generalized_dice"](-logits, 1 - target, target)
    assert torch.isclose(swapped, LOSSES["bce_generalized_dice"](logits, target, target))


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_generalized_dice_still_teaches_a_voxel_that_is_surely_wrong(monkeypatch, truth):
    monkeypatch.setattr(module, "bce", lambda *arguments: 0.0)
    prediction = torch.full(SHAPE, 20 - 40 * truth, requires_grad=True)
    LOSSES["bce_generalized_dice"](prediction, torch.full(SHAPE, truth), prediction).backward()
    slope = torch.sigmoid(torch.tensor(-20.0)) / prediction.numel()  # of σ(20)
    assert torch.allclose(prediction.grad, slope if truth == 0 else -slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("alpha", "factor"), [(None, 1.0), (0.5, 0.5)])
def test_focal_without_focus_is_the_cross_entropy_up_to_alpha(monkeypatch, alpha, factor):
    monkeypatch.setattr(module, "FOCAL_GAMMA", 1e-6)
    monkeypatch.setattr(module, "FOCAL_ALPHA", alpha)
    arguments = 3 * torch.randn(SHAPE), box(), box()
    assert torch.isclose(LOSSES["focal"](*arguments), factor * LOSSES["bce"](*arguments), rtol=1e-4)


def test_tversky_of_equal_weights_is_soft_dice(monkeypatch):
    monkeypatch.setattr(module, "TVERSKY_ALPHA", 0.5)
    monkeypatch.setattr(module, "TVERSKY_BETA", 0.5)
    arguments = torch.randn(SHAPE), box(), box()
    assert torch.isclose(LOSSES["tversky"](*arguments), LOSSES["soft_dice"](*arguments))


def test_tversky_pardons_a_voxel_too_many_rather_than_one_missed():
    target = box()  # 18 true voxels
    larger, smaller = target.clone(), target.clone()
    larger[1, :, 0, 0, :], smaller[0, :, 1, 1:3, 2:5] = 1, 0  # 6 too many, 6 missed
    too_many, missed = (float(LOSSES["tversky"](100 * found - 50, target, target)) for found in (larger, smaller))
    assert too_many == pytest.approx(1 - 18 / (18 + 0.3 * 6), abs=1e-5)
    assert missed == pytest.approx(1 - 12 / (12 + 0.7 * 6), abs=1e-5)


def test_the_worst_of_all_voxels_is_the_mean(monkeypatch):
    monkeypatch.setattr(module, "TOPK_SHARE", 1.0)
    arguments = torch.randn(SHAPE), box(), box()
    assert torch.isclose(LOSSES["bce_topk"](*arguments), 2 * LOSSES["bce"](*arguments))


def test_fewer_voxels_than_ten_have_one_worst_voxel():
    logits = torch.tensor([0.0, -50.0]).view(1, 1, 1, 1, 2)
    loss = LOSSES["bce_topk"](logits, torch.zeros_like(logits), logits)
    assert float(loss) == pytest.approx(1.5 * np.log(2))


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
