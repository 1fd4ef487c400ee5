"""Convolution blocks, normalisation layers and paddings the networks are built from."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from reperfuse.errors import InputError


def one_of(kind: str, name: str, names: Iterable[str]) -> str:
    """`name` itself if it is among `names`.

    Raises
    ------
    InputError
        If it is not; the sentence lists the names there are.
    """
    if name not in (known := list(names)):
        raise InputError(f"{kind} {name!r} is not known: choose one of {', '.join(known)}.")
    return name


def _group_norm(channels: int) -> nn.Module:
    # Eight groups as far as the channels can be divided so; narrow layers get fewer.
    return nn.GroupNorm(max(groups for groups in range(1, 9) if channels % groups == 0), channels)


NORMALISATIONS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm3d,
    "instance": partial(nn.InstanceNorm3d, affine=True),
    "group": _group_norm,
    "none": lambda channels: nn.Identity(),
}
"""Name to layer of `channels`; all but "none" have a learned scale and shift per channel."""


def plain_block(
    in_channels: int, out_channels: int, normalisation: str, dropout: float = 0.0, kernel: int = 3
) -> nn.Module:
    """Two of (kernel³ convolution, normalisation, ReLU), size kept; then, in training, `dropout` of the feature maps.

    The convolutions have a bias only where there is no normalisation: its shift does the same. Whole feature maps are
    dropped, since neighbouring voxels of one map say nearly the same.
    """
    layer = NORMALISATIONS[one_of("normalisation", normalisation, NORMALISATIONS)]
    bias = normalisation == "none"
    layers = [
        nn.Conv3d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias),
        layer(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv3d(out_channels, out_channels, kernel, padding=kernel // 2, bias=bias),
        layer(out_channels),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.Dropout3d(dropout)] if dropout else []))


BLOCKS: dict[str, Callable[..., nn.Module]] = {"plain": plain_block}
"""Name to block of (in_channels, out_channels, normalisation, dropout=0, kernel=3); a block keeps the spatial size."""


def padded(image: Tensor, multiple: int) -> Tensor:
    """(B, C, I, J, K) with each length raised to a multiple of `multiple`, its border repeated at the far ends.

    The first axis gets at least two multiples: a lowest level of one voxel would have no variance to normalise by.
    It is the first because a slice or a thin slab, which are short along the last, then cost no more.
    """
    for axis in (2, 3, 4):
        length = image.shape[axis] + -image.shape[axis] % multiple
        if axis == 2:
            length = torch.sym_max(length, 2 * multiple)
        image = _first(image, axis, length)
    return image


def cropped(image: Tensor, size: Iterable[int]) -> Tensor:
    """The near (I, J, K) = `size` of an image (B, C, …): what `padded` added is gone."""
    for axis, length in enumerate(size, start=2):
        image = _first(image, axis, length)
    return image


def _first(image: Tensor, axis: int, length: int) -> Tensor:
    # The first `length` voxels along an axis, the last voxel repeated beyond the end. By index even when
    # nothing changes: `pad`, a slice or an `if` on a size would bind an exported graph (MLflow's `pt2`)
    # to sizes that are multiples, or to those that are not, as its example happened to be.
    index = torch.arange(length, device=image.device).clamp(max=image.shape[axis] - 1)
    return image.index_select(axis, index)
