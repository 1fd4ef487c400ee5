"""Losses of values in a unit, such as Tmax [s]: means over the mask alone, which may lack the channel axis.

Each takes (prediction, target, mask) of shape (B, 1, I, J, K) and gives one number.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import SSIM_RANGE_S, TMAX_THRESHOLD_S
from reperfuse.networks.arrival import QUANTILES

HUBER_DELTA = 1.0
"""Error [target's unit, s for Tmax] from which `huber` grows linearly; our choice, about the noise of a Tmax voxel."""

OVERESTIMATION_WEIGHT = 3.0
"""How much more `asymmetric_mse` weighs an error above the target than one below it [-]. Its minimum is then the
expectile at 1/(1 + 3) of what the target may be, where `mse` has the mean; our choice, milder than a quartile."""

SSIM_WEIGHT = 5.0
"""What 1 − SSIM = 1 costs beside the squared error [s²]; our choice: at 1 − SSIM = 0.2 it weighs as an error of 1 s."""

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
"""Width and reach of SSIM's Gaussian window [voxels], those of `evaluation.metrics.structural_similarity`."""

DICE_WEIGHT = 5.0
"""What 1 − Dice = 1 costs beside the squared error [s²]; our choice, as `SSIM_WEIGHT`."""

DICE_WIDTH_S = 0.5
"""Tmax [s] over which the smooth threshold of `mse_dice` rises from 1/2 to 0.73; our choice, below a usual TR, so that
only voxels within about 2 s of the threshold feel it."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the mask [target's unit squared]; 0 where the mask is empty."""
    return _mean_inside(functional.mse_loss(prediction.float(), target.float(), reduction="none"), mask)


def mae(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over the mask [target's unit]; 0 where the mask is empty.

    Examples
    --------
    >>> truth, mask = torch.zeros(1, 1, 1, 1, 2), torch.tensor([1, 0]).view(1, 1, 1, 1, 2)
    >>> float(mae(truth + torch.tensor([3.0, 100.0]), truth, mask))
    3.0
    """
    return _mean_inside(functional.l1_loss(prediction.float(), target.float(), reduction="none"), mask)


def huber(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean Huber error over the mask: e²/2 below `HUBER_DELTA`, linear above; 0 where the mask is empty."""
    error = functional.huber_loss(prediction.float(), target.float(), reduction="none", delta=HUBER_DELTA)
    return _mean_inside(error, mask)


def asymmetric_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of w·e² over the mask, e = prediction − target: w = `OVERESTIMATION_WEIGHT` where e > 0, else 1.

    For networks that call too much of the brain late. 0 where the mask is empty.

    References
    ----------
    Newey WK, Powell JL. Asymmetric least squares estimation and testing. Econometrica 1987;55:819–847 (expectiles).

    Examples
    --------
    >>> truth = torch.zeros(1, 1, 1, 1, 1)
    >>> [float(asymmetric_mse(truth + error, truth, truth + 1)) for error in (-2, 2)]
    [4.0, 12.0]
    """
    prediction, target = prediction.float(), target.float()
    squared = functional.mse_loss(prediction, target, reduction="none")
    return _mean_inside(torch.where(prediction > target, OVERESTIMATION_WEIGHT, 1.0) * squared, mask)


def mse_ssim(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`mse` of Tmax [s] plus `SSIM_WEIGHT`·(1 − SSIM), SSIM as `evaluation.metrics.structural_similarity` defines it.

    0 where the mask is empty.
    """
    return mse(prediction, target, mask) + SSIM_WEIGHT * _dissimilarity(prediction, target, mask)


def mse_dice(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`mse` of Tmax [s] plus `DICE_WEIGHT`·(1 − Dice) of what is late, over the mask of the whole batch.

    1 − Dice = 1 − (2·Σpy + 1) / (Σp² + Σy² + 1) with p and y the shares σ((Tmax − 6 s)/`DICE_WIDTH_S`) of prediction
    and target: both smooth and squared below, so that it is 0 if and only if both agree. The 1, a voxel, keeps a batch
    without late tissue from being judged by its tails. 0 where the mask is empty.

    References
    ----------
    Milletari F, Navab N, Ahmadi S-A. V-Net. 3DV 2016:565–571.
    """
    return mse(prediction, target, mask) + DICE_WEIGHT * _lateness(prediction, target, mask)


def mse_ssim_dice(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`mse_ssim` and `mse_dice` with the squared error counted once."""
    return mse_ssim(prediction, target, mask) + DICE_WEIGHT * _lateness(prediction, target, mask)


def pinball(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean pinball loss over mask, targets and levels: max(τ·e, (τ − 1)·e) with e = target − predicted τ-quantile.

    Each level's minimum is that quantile of what the target may be.

    Parameters
    ----------
    prediction
        Quantiles at `QUANTILES`, shape (B, M·Q, …), all levels of one target before the next; or (B, M, …), the
        medians alone, for which it is half of `mae`.
    target
        Shape (B, M, …).
    mask
        Shape (B, 1, …), (B, M, …) or (B, …); an empty one gives 0.

    Raises
    ------
    InputError
        If the channels of the prediction are neither M nor M·Q.

    References
    ----------
    Koenker R, Bassett G. Regression quantiles. Econometrica 1978;46:33–50.

    Examples
    --------
    >>> predicted, truth = torch.zeros(1, len(QUANTILES)), torch.ones(1, 1)
    >>> round(float(pinball(predicted, truth, truth)), 4)  # the mean of the levels
    0.5
    """
    n_targets = target.shape[1]
    if prediction.shape[1] == n_targets:
        levels: tuple[float, ...] = (0.5,)
    elif prediction.shape[1] == n_targets * len(QUANTILES):
        levels = QUANTILES
    else:
        raise InputError(
            f"The loss pinball takes {n_targets} or {n_targets * len(QUANTILES)} predicted channels for "
            f"{n_targets} targets, not {prediction.shape[1]}: choose another network or loss."
        )
    below = target.float().unsqueeze(2) - prediction.float().unflatten(1, (n_targets, len(levels)))
    level = below.new_tensor(levels).view(-1, *[1] * (below.ndim - 3))
    return _mean_inside(torch.maximum(level * below, (level - 1) * below).mean(dim=2), mask)


REGRESSION_LOSSES: dict[str, Loss] = {
    "mse": mse,
    "mae": mae,
    "huber": huber,
    "asymmetric_mse": asymmetric_mse,
    "mse_ssim": mse_ssim,
    "mse_dice": mse_dice,
    "mse_ssim_dice": mse_ssim_dice,
    "pinball": pinball,
}
"""Name to loss of values against values in the same unit."""


def _dissimilarity(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    # Not MONAI's SSIMLoss: it knows no mask, so that what lies outside the brain enters its windows, and these must fit
    # whole into a patch, which then needs 11 slices. Here windows are renormalised over the voxels inside.
    inside = _inside(mask, prediction)
    x, y = (torch.where(inside, values.float(), 0.0) for values in (prediction, target))
    weight, mean_x, mean_y, square_x, square_y, product = _blurred([inside.float(), x, y, x * x, y * y, x * y])
    weight = torch.where(inside, weight, 1.0)
    mean_x, mean_y = mean_x / weight, mean_y / weight
    # Rounding may leave a variance slightly below 0 in a constant region.
    var_x, var_y = (square_x / weight - mean_x**2).clamp(min=0), (square_y / weight - mean_y**2).clamp(min=0)
    covariance = product / weight - mean_x * mean_y
    c1, c2 = (0.01 * SSIM_RANGE_S) ** 2, (0.03 * SSIM_RANGE_S) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return _mean_inside(1 - luminance * (2 * covariance + c2) / (var_x + var_y + c2), mask)


def _blurred(maps: Sequence[Tensor]) -> Tensor:
    # Each (B, 1, I, J, K) under SSIM's window, zeros beyond the grid: along one axis after the other. By sums and not
    # by `conv3d`, which autocast and TF32 would take to a few bits, and with it a difference of squares; on a CPU the
    # sums are also 4 to 8 times as fast.
    ticks = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    window = torch.softmax(-(ticks**2) / (2 * SSIM_SIGMA**2), dim=0).tolist()
    values = torch.stack(list(maps))
    for axis in (-3, -2, -1):
        before_last = [0, 0] * (-1 - axis)
        wide = functional.pad(values, [*before_last, SSIM_RADIUS, SSIM_RADIUS])
        length, values = values.shape[axis], torch.zeros_like(values)
        for start, weight in enumerate(window):
            values = values + weight * wide.narrow(axis, start, length)
    return values


def _lateness(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    inside = _inside(mask, prediction)
    p, y = (
        torch.where(inside, torch.sigmoid((values.float() - TMAX_THRESHOLD_S) / DICE_WIDTH_S), 0.0)
        for values in (prediction, target)
    )
    return 1 - (2 * (p * y).sum() + 1) / (p.square().sum() + y.square().sum() + 1)


def _mean_inside(error: Tensor, mask: Tensor) -> Tensor:
    # `where`, not a product: an infinite error outside the mask must not become nan.
    inside = _inside(mask, error)
    return torch.where(inside, error, 0.0).sum() / inside.sum().clamp(min=1)


def _inside(mask: Tensor, like: Tensor) -> Tensor:
    # A mask without channels would broadcast its batch against the channels.
    mask = mask.bool()
    return (mask.unsqueeze(1) if mask.ndim == like.ndim - 1 else mask).expand_as(like)
