"""The eight-layer baseline of the ATLAS study: convolutions that lead down, and nothing that leads up but a stretch."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from reperfuse.errors import InputError
from reperfuse.networks.blocks import cropped, padded, slices_too

SHRINK = 4
"""The features are this much coarser than the slice along both axes: two poolings."""


def stretched(logits: Tensor) -> Tensor:
    """Logits (B, 1, I, J, K) at `SHRINK` times the resolution in plane, linearly between."""
    return functional.interpolate(logits, scale_factor=(SHRINK, SHRINK, 1), mode="trilinear", align_corners=False)


def xavier(network: nn.Module) -> None:
    """First weights uniform in ±√(6/(n_in + n_out)), biases 0 (Glorot X, Bengio Y. AISTATS 2010:249–256)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Cnn8(nn.Module):
    """One logit per voxel of a slice from eight convolutions, seen slice by slice.

    3×3 convolutions of 64, 64, pool, 128, 128, pool, 256, 256 channels, each with ReLU and dropout; then the two that
    the text leaves open: a 3×3 of 64 channels with ReLU and dropout, and a 1×1 that gives the logit, which is stretched
    linearly to the slice. They are the least that makes a mask of the features, and add no resolution that the encoder
    has thrown away. Any size runs, as in `UNet`.

    Parameters
    ----------
    in_channels
        Channels of the image.
    widths
        Channels of the three pairs.
    head
        Channels of the seventh layer.
    dropout
        Share of the activations that each layer leaves out in training.
    output_bias
        Where the last bias starts.

    Raises
    ------
    InputError
        If a width or the dropout is out of range.

    Notes
    -----
    1 291 841 parameters by default.

    References
    ----------
    Errazuriz R, Jain A, Zhong R. Atlas MRI: detecting post stroke lesions. Stanford University, 2018 (its baseline).

    Examples
    --------
    >>> import torch
    >>> Cnn8(widths=(4, 4, 4))(torch.zeros(1, 1, 9, 10)).shape
    torch.Size([1, 1, 9, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (64, 128, 256),
        head: int = 64,
        dropout: float = 0.15,
        output_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) != 3 or min(*widths, head) < 1:
            raise InputError(f"cnn8 widths {list(widths)} and head {head} must be three and one number of channels.")
        if not 0 <= dropout < 1:
            raise InputError(f"cnn8 dropout {dropout} must be a share from 0 to below 1.")
        layers: list[nn.Module] = []
        channels = in_channels
        for number, width in enumerate((*(w for w in widths for _ in range(2)), head)):
            if number in (2, 4):
                layers.append(nn.MaxPool3d((2, 2, 1)))
            layers += [nn.Conv3d(channels, width, (3, 3, 1), padding=(1, 1, 0)), nn.ReLU(), nn.Dropout(dropout)]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv3d(channels, 1, 1)
        xavier(self)
        nn.init.constant_(self.last.bias, output_bias)  # type: ignore[arg-type]

    @slices_too
    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (B, 1, I, J, K) for an image (B, C, I, J, K); a slice (B, C, I, J) gives (B, 1, I, J)."""
        size = image.shape[2:]
        features = self.layers(padded(image, (SHRINK, SHRINK, 1)))
        return cropped(stretched(self.last(features)), size)
