"""Networks that read Tmax from the signal over time, time being the channel axis."""

from torch import Tensor, nn


class Tmax2Layer(nn.Module):
    """Tmax per voxel from that voxel's time course alone: a perceptron of one hidden layer.

    BatchNorm(60) → Conv3d(60 → 12, 1³) → ReLU → BatchNorm(12) → Conv3d(12 → 1, 1³). With 60 frames
    it has 1 033 parameters as Keras counts them, BatchNorm's two running statistics per channel
    included (see `keras_parameter_count`): 240 + 732 + 48 + 13. PyTorch counts 889.

    Parameters
    ----------
    in_channels
        Number of time frames.
    hidden
        Units of the hidden layer.
    output_bias
        Where the last bias starts, e.g. the mean Tmax of the training set [s]; from 0, much of a
        short training goes into finding that mean.

    Notes
    -----
    The paper's text gives layers and counts but no activation. ReLU between the two convolutions is
    our reading: without one the network would be linear and its second layer without purpose.

    Examples
    --------
    >>> import torch
    >>> Tmax2Layer()(torch.zeros(2, 60, 8, 8, 3)).shape
    torch.Size([2, 1, 8, 8, 3])
    """

    def __init__(self, in_channels: int = 60, hidden: int = 12, output_bias: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm3d(in_channels),
            nn.Conv3d(in_channels, hidden, 1),
            nn.ReLU(),
            nn.BatchNorm3d(hidden),
            nn.Conv3d(hidden, 1, 1),
        )
        nn.init.constant_(self.layers[-1].bias, output_bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Tmax [s] of shape (B, 1, I, J, K) for a signal (B, T, I, J, K); a slice (B, T, I, J) gives (B, 1, I, J)."""
        if image.ndim == 4:
            return self.forward(image.unsqueeze(-1)).squeeze(-1)
        return self.layers(image)
