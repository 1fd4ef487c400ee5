"""The U-Net: one topology, its block an argument."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from reperfuse.errors import InputError
from reperfuse.networks.blocks import BLOCKS, LEAD_DOWN, cropped, one_of, padded, slices_too

PUBLISHED_WIDTHS = (32, 64, 128, 256, 512)
"""Channels per level of the published U-Nets, 2D and (2+1)D."""


class UNet(nn.Module):
    """One logit, or one value, per voxel from an encoder–decoder with concatenated skips.

    Each level is one block; 2³ max-pooling leads down, a 2³ transposed convolution of stride 2
    leads up, a 1³ convolution ends it. Any spatial size runs: the image is padded at its far ends
    with its own border to a multiple of 2**(levels − 1), and the answer is cropped back.

    By itself it is `unet3d`; `unet2plus1d`, `unet2d` and `resunet2d` are this one with other blocks.

    Parameters
    ----------
    in_channels
        Channels of the image.
    widths
        Channels per level, the full resolution first.
    width
        In place of `widths`: as many levels, of width, 2·width, 4·width, … channels (what a search
        over one number varies).
    block
        Name in `blocks.BLOCKS`.
    encoder
        Block of the way down where it is another; the lowest level is of `block`. A residual one leads down by its own
        stride, the first level keeping the resolution, and leaves `dropout` out on every level.
    flat
        Whether it sees slice by slice: kernels, pooling and strides are one voxel thick along the last axis, so that a
        volume is a stack of slices that know nothing of each other.
    normalisation
        Name in `blocks.NORMALISATIONS`. "batch" by default, because it keeps what a T1w says by its absolute intensity
        (a cavity is dark as CSF), which "instance" takes out of every patch anew: on 12 lesion phantoms at 2 mm, 300
        steps, the Dice of four others was 0.38 to 0.44 with the one and 0.11 with the other.
    output_bias
        Where the last bias starts, e.g. log(p/(1 − p)) for a lesion that fills the share p of the
        voxels: the network need not spend its first epochs on learning how rare lesions are.
    bottom
        Channels of two 1³ convolutions with ReLU on the lowest level, at its resolution; their answer is concatenated
        with the level itself and one more block brings both together. 0 is without.
    dropout
        Share of the feature maps that every level below the first leaves out on the way down in training, and the
        bottom too. The full resolution and the way up are left whole: the value itself is read off there.

    Raises
    ------
    InputError
        If a width, the bottom or the dropout is out of range, or a name is not known.

    Notes
    -----
    350 809 parameters by default, 1 401 265 with `width=16`.

    References
    ----------
    Çiçek Ö et al. 3D U-Net: learning dense volumetric segmentation from sparse annotation.
    MICCAI 2016, LNCS 9901:424–432. Here the width doubles with depth, not before each pooling.

    Examples
    --------
    >>> UNet(widths=(4, 8))(torch.zeros(1, 1, 9, 10, 5)).shape
    torch.Size([1, 1, 9, 10, 5])
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (8, 16, 32, 64),
        width: int | None = None,
        block: str = "plain",
        normalisation: str = "batch",
        output_bias: float = 0.0,
        bottom: int = 0,
        dropout: float = 0.0,
        encoder: str | None = None,
        flat: bool = False,
    ) -> None:
        super().__init__()
        if width is not None:
            widths = [width * 2**level for level in range(len(widths))]
        if not widths or min(widths) < 1:
            raise InputError(f"U-Net widths {list(widths)} must be one positive number of channels per level.")
        if bottom < 0:
            raise InputError(f"U-Net bottom {bottom} must be a number of channels, or 0 for none.")
        if not 0 <= dropout < 1:
            raise InputError(f"U-Net dropout {dropout} must be a share from 0 to below 1.")
        if flat and block == "2plus1d":
            raise InputError("A (2+1)D block looks across slices, which a flat U-Net does not: choose one of the two.")
        kernel = (3, 3, 1) if flat else 3
        self.step: tuple[int, int, int] = (2, 2, 1) if flat else (2, 2, 2)
        build = partial(BLOCKS[one_of("block", block, BLOCKS)], normalisation=normalisation, kernel=kernel)
        strided = encoder in LEAD_DOWN
        encode = build
        if encoder is not None:
            encode = partial(BLOCKS[one_of("encoder", encoder, BLOCKS)], normalisation=normalisation, kernel=kernel)
        steps = list(pairwise(widths))
        lowest = widths[-1]
        self.first = encode(in_channels, widths[0], dropout=dropout if strided else 0.0)
        leads = {"stride": self.step} if strided else {}
        self.down = nn.ModuleList(encode(upper, lower, dropout=dropout, **leads) for upper, lower in steps[:-1])
        if steps:
            self.down.append(build(*steps[-1], dropout=dropout))
        self.pooled = [not strided] * (len(steps) - 1) + [True] * bool(steps)
        self.bottom = build(lowest, bottom, dropout=dropout, kernel=1) if bottom else None
        self.rejoin = build(lowest + bottom, lowest) if bottom else None
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(lower, upper, self.step, stride=self.step) for upper, lower in reversed(steps)
        )
        self.merge = nn.ModuleList(build(2 * upper, upper) for upper, _ in reversed(steps))
        self.last = nn.Conv3d(widths[0], 1, 1)
        nn.init.constant_(self.last.bias, output_bias)  # type: ignore[arg-type]

    @slices_too
    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (B, 1, I, J, K) for an image (B, C, I, J, K); a slice (B, C, I, J) gives (B, 1, I, J)."""
        size = image.shape[2:]
        i, j, k = (step ** len(self.down) for step in self.step)
        skips = [self.first(padded(image, (i, j, k)))]
        for block, pooled in zip(self.down, self.pooled, strict=True):
            skips.append(block(functional.max_pool3d(skips[-1], self.step) if pooled else skips[-1]))
        features = skips.pop()
        if self.bottom is not None and self.rejoin is not None:
            features = self.rejoin(torch.cat([features, self.bottom(features)], dim=1))
        for raise_, merge in zip(self.up, self.merge, strict=True):
            features = merge(torch.cat([skips.pop(), raise_(features)], dim=1))
        return cropped(self.last(features), size)


def unet2plus1d(
    in_channels: int = 1,
    widths: Sequence[int] = PUBLISHED_WIDTHS,
    width: int | None = None,
    normalisation: str = "batch",
    output_bias: float = 0.0,
    dropout: float = 0.0,
) -> UNet:
    """Logits from the U-Net whose 3³ convolutions are factorised into 3×3×1 and 1×1×3 (`blocks.factorised_block`).

    Parameters as of `UNet`.

    Notes
    -----
    11 076 129 parameters by default; `unet3d` of these widths has 22 578 273.

    References
    ----------
    Moses O, Dronkers J, Huang J. Stroke lesion segmentation. Final report on ISLES 2022: widths, two convolutions with
    batch normalisation and ReLU per level. Tran D et al. CVPR 2018:6450–6459.

    Examples
    --------
    >>> unet2plus1d(widths=(4, 8))(torch.zeros(1, 1, 9, 10, 5)).shape
    torch.Size([1, 1, 9, 10, 5])
    """
    return UNet(in_channels, widths, width, "2plus1d", normalisation, output_bias, dropout=dropout)


def unet2d(
    in_channels: int = 1,
    widths: Sequence[int] = PUBLISHED_WIDTHS,
    width: int | None = None,
    normalisation: str = "batch",
    output_bias: float = 0.0,
    dropout: float = 0.0,
) -> UNet:
    """Logits from the U-Net of slices: 3×3 convolutions, 2×2 pooling, 2×2 transposed convolutions.

    Parameters as of `UNet`.

    Notes
    -----
    7 762 465 parameters by default.

    References
    ----------
    Stroke detection by image segmentation with residual U-Net (ATLAS R2.0), its baseline: widths, batch normalisation,
    ReLU, four poolings. Ronneberger O, Fischer P, Brox T. U-Net. MICCAI 2015, LNCS 9351:234–241.

    Examples
    --------
    >>> unet2d(widths=(4, 8))(torch.zeros(1, 1, 9, 10)).shape
    torch.Size([1, 1, 9, 10])
    """
    return UNet(in_channels, widths, width, "plain", normalisation, output_bias, dropout=dropout, flat=True)


def resunet2d(
    in_channels: int = 1,
    widths: Sequence[int] = PUBLISHED_WIDTHS,
    width: int | None = None,
    normalisation: str = "batch",
    output_bias: float = 0.0,
    dropout: float = 0.5,
) -> UNet:
    """Logits from the U-Net of slices with residual blocks on the way down (`blocks.ResidualBlock`).

    Parameters as of `UNet`.

    Notes
    -----
    7 806 465 parameters by default. The text strides every residual block; here the first keeps the resolution, as in
    the residual U-Net that it builds on, or the last skip would have nothing to bring.

    References
    ----------
    As `unet2d`, its proposal: 3×3 stride 2, 3×3 stride 1, 1×1 beside them, sum, batch normalisation, dropout 0.5;
    bottleneck and decoder of the plain one.

    Examples
    --------
    >>> resunet2d(widths=(4, 8))(torch.zeros(1, 1, 9, 10)).shape
    torch.Size([1, 1, 9, 10])
    """
    return UNet(
        in_channels, widths, width, "plain", normalisation, output_bias, dropout=dropout, encoder="residual", flat=True
    )
