"""Laws of the training losses."""

import pytest
import torch

from reperfuse.training.losses import ACTIVATIONS, HUBER_DELTA, LOSSES

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
