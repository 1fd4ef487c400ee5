"""The strong network: MONAI's dynamic U-Net, which trains at several resolutions at once."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from reperfuse.errors import InputError
from reperfuse.networks.blocks import cropped, one_of, padded, slices_too

LAYERS: dict[str, str | tuple[str, dict[str, int | bool]]] = {
    "batch": "BATCH",
    "instance": ("INSTANCE", {"affine": True}),
    "group": ("GROUP", {"num_groups": 8, "affine": True}),
}
"""Our name of a normalisation layer → MONAI's."""

MOST = 320
"""Channels of a level at most, as in nnU-Net."""


class DynUNet(nn.Module):
    """One logit per voxel from the U-Net that nnU-Net trains: strided convolutions, leaky ReLU, deep supervision.

    Each level is a pair of 3³ convolutions, the first of which halves the resolution from the second level on. `heads`
    gives logits from every level of the way up but the coarsest, each to be compared with the truth in training, so
    that the coarse levels learn where the fine ones have not yet begun. Any size runs, as in `UNet`.

    Parameters
    ----------
    in_channels
        Channels of the image.
    widths
        Channels per level, the full resolution first.
    width
        In place of `widths`: as many levels, of width, 2·width, 4·width, … channels, at most `MOST`.
    normalisation
        "batch", "instance" or "group" (widths then divide by eight). See `UNet` for why not "instance".
    residual
        Whether each pair adds to its input.
    output_bias
        Where the last bias starts.
    deep_supervision
        Whether the coarse levels answer in training too; without, `heads` gives the answer of `forward` alone.

    Raises
    ------
    InputError
        If a width or a name is out of range.

    Notes
    -----
    4 137 636 parameters by default.

    References
    ----------
    Isensee F et al. nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation. Nat
    Methods 2021;18:203–211. Lee CY et al. Deeply-supervised nets. AISTATS 2015:562–570.

    Examples
    --------
    >>> import torch
    >>> network, image = DynUNet(widths=(8, 16, 32)), torch.zeros(1, 1, 9, 10, 5)
    >>> network(image).shape, [tuple(head.shape[2:]) for head in network.heads(image)]
    (torch.Size([1, 1, 9, 10, 5]), [(9, 10, 5), (9, 10, 5)])
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128, 160),
        width: int | None = None,
        normalisation: str = "batch",
        residual: bool = False,
        output_bias: float = 0.0,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        if width is not None:
            widths = [min(width * 2**level, MOST) for level in range(len(widths))]
        if len(widths) < 3 or min(widths) < 1:
            raise InputError(f"dynunet widths {list(widths)} must be three or more positive numbers of channels.")
        # Loads all of MONAI, which no other network needs.
        from monai.networks.nets import DynUNet as MonaiDynUNet

        layer = LAYERS[one_of("normalisation", normalisation, LAYERS)]
        strides = [1] + [2] * (len(widths) - 1)
        built = MonaiDynUNet(
            3,
            in_channels,
            1,
            kernel_size=[3] * len(widths),
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=list(widths),
            norm_name=layer,
            deep_supervision=True,
            deep_supr_num=len(widths) - 2,
            res_block=residual,
        )
        # Its layers without its way through them, which names every weight twice and keeps the answers in a list.
        self.down = nn.ModuleList([built.input_block, *built.downsamples, built.bottleneck])
        self.up = built.upsamples
        self.last = built.output_block.conv.conv
        heads = built.deep_supervision_heads if deep_supervision else ()
        self.supervision = nn.ModuleList(head.conv.conv for head in heads)
        nn.init.constant_(self.last.bias, output_bias)
        for head in self.supervision:
            nn.init.constant_(head.get_parameter("bias"), output_bias)

    def _features(self, image: Tensor) -> list[Tensor]:
        """What the way up gives at each level, the full resolution first."""
        step = 2 ** len(self.up)
        skips = [padded(image, (step, step, step))]
        for block in self.down:
            skips.append(block(skips[-1]))
        features = [skips.pop()]
        for merge in self.up:
            features.append(merge(features[-1], skips.pop()))
        return features[::-1]

    @slices_too
    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (B, 1, I, J, K) for an image (B, C, I, J, K); a slice (B, C, I, J) gives (B, 1, I, J)."""
        return cropped(self.last(self._features(image)[0]), image.shape[2:])

    def heads(self, image: Tensor) -> list[Tensor]:
        """Logits (B, 1, I, J, K) of `forward`, then of each coarser level but the coarsest, stretched to the image."""
        finest, *coarser = self._features(image)
        logits = [self.last(finest)]
        for head, features in zip(self.supervision, coarser, strict=False):
            logits.append(functional.interpolate(head(features), finest.shape[2:], mode="trilinear"))
        return [cropped(one, image.shape[2:]) for one in logits]
