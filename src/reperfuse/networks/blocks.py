"""Convolution blocks and normalisation layers the networks are built from."""

from collections.abc import Callable, Iterable
from functools import partial

from torch import nn

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
}
"""Name to layer of `channels`; all have a learned scale and shift per channel."""


def plain_block(in_channels: int, out_channels: int, normalisation: str) -> nn.Module:
    """Two of (3×3×3 convolution, normalisation, ReLU), size kept.

    The convolutions have no bias: the normalisation's shift does the same.
    """
    layer = NORMALISATIONS[one_of("normalisation", normalisation, NORMALISATIONS)]
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False),
        layer(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
        layer(out_channels),
        nn.ReLU(inplace=True),
    )


BLOCKS: dict[str, Callable[[int, int, str], nn.Module]] = {"plain": plain_block}
"""Name to block of (in_channels, out_channels, normalisation); a block keeps the spatial size."""
