"""Training losses by name: each takes (prediction, target, mask) of shape (B, 1, I, J, K) and gives one number.

Those of segmentation, in this room, take logits and look at every voxel, inside the brain or not, so that the network
learns the background too. Those of values average over the mask alone (`regression_losses`).
"""

import torch
from monai.losses import DiceLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss
from torch import Tensor
from torch.nn import functional

from reperfuse.training.regression_losses import QUANTILES, REGRESSION_LOSSES, Loss, pinball

__all__ = ["ACTIVATIONS", "LOSSES", "QUANTILES", "REGRESSION_LOSSES", "SEGMENTATION_LOSSES", "pinball"]

DICE_SMOOTH = 1e-5
"""Voxels added above and below the fraction of `soft_dice` and `tversky`, which keep value and gradient finite when no
voxel is true or predicted; MONAI's default and nnU-Net's `smooth`."""

FOCAL_GAMMA = 2.0
"""Power γ of 1 − p_t in `focal` [-]; Lin et al. 2017 found 2 to work best."""

FOCAL_ALPHA: float | None = None
"""Weight α of true voxels in `focal` [-], 1 − α that of the others; None, MONAI's default, weighs both 1. Not the 0.25
of Lin et al.: a missed lesion voxel would count a third of a false one, the wrong way round for small lesions."""

TVERSKY_ALPHA, TVERSKY_BETA = 0.3, 0.7
"""What a false positive and a false negative weigh in `tversky` [-]; Salehi et al. 2017 had the best Dice on
multiple sclerosis lesions there. 0.5 and 0.5 is Dice."""

TOPK_SHARE = 0.1
"""Share of voxels that the second term of `bce_topk` averages over [-]; the 10 % of nnU-Net's `TopK10` losses."""

# One Dice over the batch, as nnU-Net takes it: a patch without lesion then does not pull with a
# gradient of its own, and the small terms keep value and gradient finite when no patch has any.
_dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=DICE_SMOOTH, smooth_dr=DICE_SMOOTH)

# Nothing added to its fraction: weights are 1/n², so that the denominator of an empty patch of 64³ is 8e-6 and MONAI's
# 1e-5 would outweigh it. It is never 0, as every voxel belongs to one of the two classes.
_generalized_dice = GeneralizedDiceLoss(batch=True, w_type="square", smooth_nr=0.0, smooth_dr=0.0)


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


def bce_generalized_dice(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`bce` plus the generalized Dice loss, 1 − 2·Σ_c w_c·Σp_c·y_c / Σ_c w_c·(Σp_c + Σy_c), over both classes c.

    Classes are background, p = σ(−z), and lesion, p = σ(z) of the logit z; w_c = 1/(Σy_c)², so that both weigh alike
    whatever their size. The inner sums run over the whole batch. A class without a voxel takes the weight of the other:
    the second term is then the mean probability of the class that is not there.

    Parameters
    ----------
    prediction, target
        Logits and 0 or 1, shape (B, 1, I, J, K).
    mask
        Not used.

    References
    ----------
    Sudre CH, Li W, Vercauteren T, Ourselin S, Cardoso MJ. Generalised Dice overlap as a deep learning loss function for
    highly unbalanced segmentations. DLMIA 2017, LNCS 10553:240–248.

    Examples
    --------
    >>> logits, empty = torch.full((1, 1, 2, 2, 2), -2.0), torch.zeros(1, 1, 2, 2, 2)
    >>> difference = bce_generalized_dice(logits, empty, empty) - bce(logits, empty, empty)
    >>> round(float(difference), 4), round(float(torch.sigmoid(logits).mean()), 4)
    (0.1192, 0.1192)
    """
    prediction, target = prediction.float(), target.float()
    # σ(−z), as 1 − σ(z) is 0 in single precision from z = 17 on.
    classes = torch.cat([torch.sigmoid(-prediction), torch.sigmoid(prediction)], dim=1)
    overlap = _generalized_dice(classes, torch.cat([1 - target, target], dim=1))
    return bce(prediction, target, mask) + overlap


def focal(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean focal loss of logits, −α_t·(1 − p_t)^γ·log p_t: cross-entropy in which voxels already right count little.

    p_t is the probability given to what is true, σ(z) on true voxels and 1 − σ(z) on others; γ is `FOCAL_GAMMA` and α_t
    is 1, or `FOCAL_ALPHA` on true voxels and 1 − `FOCAL_ALPHA` on others. The mean is over all voxels, as MONAI takes
    it, where Lin et al. divide by the number of true ones, which a patch may lack.

    Parameters
    ----------
    prediction, target
        Logits and 0 or 1, shape (B, 1, I, J, K).
    mask
        Not used.

    References
    ----------
    Lin T-Y, Goyal P, Girshick R, He K, Dollár P. Focal loss for dense object detection. ICCV 2017:2980–2988.

    Examples
    --------
    >>> zero = torch.zeros(1, 1, 2, 2, 2)
    >>> round(float(focal(zero, zero, zero) / bce(zero, zero, zero)), 4)  # (1 − 1/2)²
    0.25
    """
    return FocalLoss(gamma=FOCAL_GAMMA, alpha=FOCAL_ALPHA)(prediction.float(), target.float())


def tversky(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """1 − TP / (TP + α·FP + β·FN), with α = `TVERSKY_ALPHA` and β = `TVERSKY_BETA`.

    TP = Σpy, FP = Σp·(1 − y) and FN = Σ(1 − p)·y with p = σ(logit), the sums over the whole batch as in `soft_dice`,
    which it is at α = β = 1/2.

    Parameters
    ----------
    prediction, target
        Logits and 0 or 1, shape (B, 1, I, J, K).
    mask
        Not used.

    References
    ----------
    Salehi SSM, Erdogmus D, Gholipour A. Tversky loss function for image segmentation using 3D fully convolutional deep
    networks. MLMI 2017, LNCS 10541:379–387.

    Examples
    --------
    >>> one, two = torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 2)
    >>> round(float(tversky(100 * two - 50, one, two)), 4)  # one found, one too many: 1 − 1/1.3
    0.2308
    >>> round(float(tversky(100 * one - 50, two, two)), 4)  # one found, one missed: 1 − 1/1.7
    0.4118
    """
    overlap = TverskyLoss(
        sigmoid=True,
        batch=True,
        alpha=TVERSKY_ALPHA,
        beta=TVERSKY_BETA,
        smooth_nr=DICE_SMOOTH,
        smooth_dr=DICE_SMOOTH,
    )
    return overlap(prediction.float(), target.float())


def bce_topk(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`bce` plus the mean cross-entropy of the worst `TOPK_SHARE` of all voxels of the batch together.

    Of n voxels those are the ⌊n·`TOPK_SHARE`⌋ of largest cross-entropy, at least one. nnU-Net's TopK10 is the second
    term alone, or with Dice; the first here keeps a gradient on every voxel.

    Parameters
    ----------
    prediction, target
        Logits and 0 or 1, shape (B, 1, I, J, K).
    mask
        Not used.

    References
    ----------
    Wu Z, Shen C, van den Hengel A. Bridging category-level and instance-level semantic image segmentation.
    arXiv 2016:1605.06885 (online bootstrapping); nnU-Net, ``TopKLoss``.

    Examples
    --------
    >>> logits = torch.tensor([0.0] + [-50.0] * 9).view(1, 1, 1, 1, 10)
    >>> zero = torch.zeros_like(logits)
    >>> round(float(bce_topk(logits, zero, zero)), 4)  # log 2 / 10 and the worst voxel's log 2
    0.7625
    """
    error = functional.binary_cross_entropy_with_logits(prediction.float(), target.float(), reduction="none").flatten()
    worst = torch.topk(error, max(1, int(TOPK_SHARE * error.numel())), sorted=False).values
    return error.mean() + worst.mean()


SEGMENTATION_LOSSES: dict[str, Loss] = {
    "bce": bce,
    "soft_dice": soft_dice,
    "dice_bce": dice_bce,
    "bce_generalized_dice": bce_generalized_dice,
    "focal": focal,
    "tversky": tversky,
    "bce_topk": bce_topk,
}
"""Name to loss of logits against 0 or 1."""

LOSSES: dict[str, Loss] = SEGMENTATION_LOSSES | REGRESSION_LOSSES
"""Name to loss."""

ACTIVATIONS: dict[str, str] = {name: "sigmoid" if name in SEGMENTATION_LOSSES else "none" for name in LOSSES}
"""Loss to the activation that turns what it trained into a probability or a value (`predict_volume`)."""
