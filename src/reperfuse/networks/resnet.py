"""The residual network of the ATLAS study: units that add to what they are given."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from reperfuse.errors import InputError
from reperfuse.networks.blocks import cropped, normaliser, padded, slices_too
from reperfuse.networks.cnn import SHRINK, stretched, xavier

SLOPE = 0.1
"""Of the leaky ReLU below 0, as in the published code that the study adapted."""


class Unit(nn.Module):
    """Leaky ReLU, then two of (normalisation, 3×3 convolution), plus what left the leaky ReLU.

    Where the unit halves the slice or widens the channels, that is averaged over 2×2 and filled up with channels of 0:
    no weights stand in the way of the identity.
    """

    def __init__(self, in_channels: int, out_channels: int, normalisation: str, halves: bool) -> None:
        super().__init__()
        stride = (2, 2, 1) if halves else 1
        self.halves, self.more = halves, out_channels - in_channels
        self.inside = nn.Sequential(
            normaliser(normalisation, in_channels),
            nn.Conv3d(in_channels, out_channels, (3, 3, 1), stride, (1, 1, 0)),
            normaliser(normalisation, out_channels),
            nn.Conv3d(out_channels, out_channels, (3, 3, 1), padding=(1, 1, 0)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, out_channels, …)."""
        features = functional.leaky_relu(features, SLOPE)
        beside = functional.avg_pool3d(features, (2, 2, 1)) if self.halves else features
        if self.more:
            # Zeros of the right size without naming it: an exported graph must not be bound to one.
            beside = torch.cat([beside, torch.zeros_like(beside[:, :1]).expand(-1, self.more, -1, -1, -1)], dim=1)
        return self.inside(features) + beside


class ResNet20(nn.Module):
    """One logit per voxel of a slice from residual units, seen slice by slice.

    A 3×3 convolution, 20 units in three groups of rising width (the second and third group begin by halving the slice),
    leaky ReLU, a fully connected layer of 64 units at every place (a 1×1 convolution) with leaky ReLU, and a 1×1 that
    gives the logit, which is stretched linearly to the slice. Any size runs, as in `UNet`.

    Parameters
    ----------
    in_channels
        Channels of the image.
    units
        Number of residual units, at least three; the text wishes for a search over it.
    widths
        Channels of the three groups, not falling. The text says that filters differ and not how; these are those of the
        published code that it adapted.
    head
        Units of the fully connected layer; the text wishes for a search over it too.
    normalisation
        Name in `blocks.NORMALISATIONS`.
    output_bias
        Where the last bias starts.

    Raises
    ------
    InputError
        If the units, a width or the head is out of range.

    Notes
    -----
    589 217 parameters by default. In the text the fully connected layer belongs to an encoder whose decoder is not
    described; at every place it keeps the mask's place.

    References
    ----------
    Errazuriz R, Jain A, Zhong R. Atlas MRI: detecting post stroke lesions. Stanford University, 2018. He K et al.
    Identity mappings in deep residual networks. ECCV 2016, LNCS 9908:630–645.

    Examples
    --------
    >>> ResNet20(units=3, widths=(4, 4, 8))(torch.zeros(1, 1, 9, 10)).shape
    torch.Size([1, 1, 9, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        units: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        head: int = 64,
        normalisation: str = "batch",
        output_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if units < 3:
            raise InputError(f"resnet20 units {units} must be at least 3, one for each width.")
        if len(widths) != 3 or list(widths) != sorted(widths) or min(*widths, head) < 1:
            raise InputError(f"resnet20 widths {list(widths)} and head {head} must be three that do not fall and one.")
        self.first = nn.Conv3d(in_channels, widths[0], (3, 3, 1), padding=(1, 1, 0))
        layers = []
        channels = widths[0]
        for group, width in enumerate(widths):
            # 20 units are 7, 7 and 6.
            for number in range(units // 3 + (group < units % 3)):
                layers.append(Unit(channels, width, normalisation, halves=group > 0 and number == 0))
                channels = width
        self.units = nn.Sequential(*layers)
        self.head = nn.Conv3d(channels, head, 1)
        self.last = nn.Conv3d(head, 1, 1)
        xavier(self)
        nn.init.constant_(self.last.bias, output_bias)  # type: ignore[arg-type]

    @slices_too
    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (B, 1, I, J, K) for an image (B, C, I, J, K); a slice (B, C, I, J) gives (B, 1, I, J)."""
        size = image.shape[2:]
        features = self.units(self.first(padded(image, (SHRINK, SHRINK, 1))))
        features = functional.leaky_relu(self.head(functional.leaky_relu(features, SLOPE)), SLOPE)
        return cropped(stretched(self.last(features)), size)
