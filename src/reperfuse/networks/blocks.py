"""Convolution blocks, normalisation layers and paddings the networks are built from."""

from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import TypeVar

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


Network = TypeVar("Network", bound=nn.Module)


def slices_too(forward: Callable[[Network, Tensor], Tensor]) -> Callable[[Network, Tensor], Tensor]:
    """`forward` of volumes (B, C, I, J, K), which then takes slices (B, C, I, J) too: volumes one voxel thick."""

    @wraps(forward)
    def of_either(self: Network, image: Tensor) -> Tensor:
        return forward(self, image.unsqueeze(-1)).squeeze(-1) if image.ndim == 4 else forward(self, image)

    return of_either


Kernel = int | tuple[int, int, int]


def around(kernel: Kernel) -> tuple[int, int, int]:
    """The padding that keeps the size under an odd kernel.

    >>> around((3, 3, 1))
    (1, 1, 0)
    """
    i, j, k = (kernel,) * 3 if isinstance(kernel, int) else kernel
    return i // 2, j // 2, k // 2


def normaliser(normalisation: str, channels: int) -> nn.Module:
    """The layer of that name in `NORMALISATIONS`."""
    return NORMALISATIONS[one_of("normalisation", normalisation, NORMALISATIONS)](channels)


def plain_block(
    in_channels: int, out_channels: int, normalisation: str, dropout: float = 0.0, kernel: Kernel = 3
) -> nn.Module:
    """Two of (convolution, normalisation, ReLU), size kept; then, in training, `dropout` of the feature maps.

    The convolutions have a bias only where there is no normalisation: its shift does the same. Whole feature maps are
    dropped, since neighbouring voxels of one map say nearly the same.
    """
    bias = normalisation == "none"
    layers = [
        nn.Conv3d(in_channels, out_channels, kernel, padding=around(kernel), bias=bias),
        normaliser(normalisation, out_channels),
        nn.ReLU(inplace=True),
        nn.Conv3d(out_channels, out_channels, kernel, padding=around(kernel), bias=bias),
        normaliser(normalisation, out_channels),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.Dropout3d(dropout)] if dropout else []))


def factorised_block(
    in_channels: int, out_channels: int, normalisation: str, dropout: float = 0.0, kernel: Kernel = 3
) -> nn.Module:
    """As `plain_block`, each 3³ convolution as one of 3×3×1 and one of 1×1×3: "(2+1)D".

    The first brings the channels to `out_channels`, nothing stands between the two; a kernel of 1 is not factorised.
    From a to b channels that is 9ab + 3b² weights in place of 27ab.

    References
    ----------
    Tran D et al. A closer look at spatiotemporal convolutions for action recognition. CVPR 2018:6450–6459. There the
    channels between the two are chosen to keep the number of parameters, and a ReLU stands between them.
    """
    if kernel == 1:
        return plain_block(in_channels, out_channels, normalisation, dropout, kernel)
    bias = normalisation == "none"
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv3d(channels, out_channels, (3, 3, 1), padding=(1, 1, 0), bias=False),
            nn.Conv3d(out_channels, out_channels, (1, 1, 3), padding=(0, 0, 1), bias=bias),
            normaliser(normalisation, out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, *([nn.Dropout3d(dropout)] if dropout else []))


class ResidualBlock(nn.Module):
    """Two convolutions, normalisation and ReLU, plus the input through a 1³ convolution; normalised, with dropout.

    The first convolution and the one beside them have the stride: the block leads down a level by itself.

    References
    ----------
    Zhang Z, Liu Q, Wang Y. Road extraction by deep residual U-Net. IEEE GRSL 2018;15:749–753, in the order of layers
    that a study of ATLAS R2.0 gives in words.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        normalisation: str,
        dropout: float = 0.0,
        kernel: Kernel = 3,
        stride: Kernel = 1,
    ) -> None:
        super().__init__()
        bias = normalisation == "none"
        self.inside = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, kernel, stride, around(kernel)),
            nn.Conv3d(out_channels, out_channels, kernel, padding=around(kernel), bias=bias),
            normaliser(normalisation, out_channels),
            nn.ReLU(inplace=True),
        )
        self.beside = nn.Conv3d(in_channels, out_channels, 1, stride)
        self.after = nn.Sequential(normaliser(normalisation, out_channels), nn.Dropout3d(dropout))

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, out_channels, …) at the resolution that the stride leaves."""
        return self.after(self.inside(image) + self.beside(image))


BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "plain": plain_block,
    "2plus1d": factorised_block,
    "residual": ResidualBlock,
}
"""Name to block of (in_channels, out_channels, normalisation, dropout=0, kernel=3); a block keeps the spatial size."""

LEAD_DOWN = ("residual",)
"""Blocks that take a `stride`, and so need no pooling before them."""


def padded(image: Tensor, multiple: tuple[int, int, int]) -> Tensor:
    """(B, C, I, J, K) with each length raised to a multiple of its `multiple`, its border repeated at the far ends.

    The first axis gets at least two multiples: a lowest level of one voxel would have no variance to normalise by.
    It is the first because a slice or a thin slab, which are short along the last, then cost no more.
    """
    for axis, step in enumerate(multiple, start=2):
        length = image.shape[axis] + -image.shape[axis] % step
        if axis == 2:
            length = torch.sym_max(length, 2 * step)
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
