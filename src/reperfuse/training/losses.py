"""Training losses by name: each takes (prediction, target, mask) of shape (B, 1, I, J, K) and gives one number.

Segmentation losses take logits and look at every voxel, inside the brain or not, so that the network
learns the background too. Regression losses average over the mask alone.
"""

from collections.abc import Callable

import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional

HUBER_DELTA = 1.0
"""Error [target's unit, s for Tmax] from which `huber` grows linearly; our choice, about the noise of a Tmax voxel."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

# One Dice over the batch, as nnU-Net takes it: a patch without lesion then does not pull with a
# gradient of its own, and the small terms keep value and gradient finite when no patch has any.
_dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)


def bce(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits, −[y·log σ(z) + (1 − y)·log(1 − σ(z))].

    Examples
    --------
    >>> zero = torch.zeros(1, 1, 2, 2, 2)
    >>> round(float(bce(zero, zero, zero)), 4)  # log 2
    0.6931
    """
    return functional.binary_cross_entropy_with_logits(prediction.float(), target.float())


def soft_dice(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """1 − 2·Σpy / (Σp + Σy) with p = σ(logit), the sums over the whole batch.

    References
    ----------
    Milletari F, Navab N, Ahmadi S-A. V-Net. 3DV 2016:565–571 (there with squares in the denominator).
    """
    return _dice(prediction.float(), target.float())


def dice_bce(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of `soft_dice` and `bce`."""
    return soft_dice(prediction, target, mask) + bce(prediction, target, mask)


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


LOSSES: dict[str, Loss] = {
    "bce": bce,
    "soft_dice": soft_dice,
    "dice_bce": dice_bce,
    "mse": mse,
    "mae": mae,
    "huber": huber,
}
"""Name to loss."""

ACTIVATIONS: dict[str, str] = {
    name: "sigmoid" if loss in (bce, soft_dice, dice_bce) else "none" for name, loss in LOSSES.items()
}
"""Loss to the activation that turns what it trained into a probability or a value (`predict_volume`)."""


def _mean_inside(error: Tensor, mask: Tensor) -> Tensor:
    # `where`, not a product: an infinite error outside the mask must not become nan.
    inside = mask.bool()
    return torch.where(inside, error, 0.0).sum() / inside.sum().clamp(min=1)
