"""Networks that read Tmax from the signal over time, time being the channel axis."""

from collections.abc import Sequence

from torch import Tensor, nn

from reperfuse.errors import InputError
from reperfuse.networks.blocks import slices_too
from reperfuse.networks.unet import UNet

TYPICAL_TMAX_S = 3.0
"""Where the last bias starts [s]: about the mean Tmax of a brain. From 0, a short training goes into finding it."""

MIN_DEPTH, MAX_DEPTH = 2, 12
"""Layers of `tmax_deep`: the range that the paper named and left open."""


class Voxelwise(nn.Module):
    """One value per voxel from that voxel's channels alone: layers of 1³ convolutions.

    Parameters
    ----------
    layers
        What leads from (B, C, I, J, K) to (B, 1, I, J, K); the last is a convolution.
    output_bias
        Where its bias starts.
    """

    def __init__(self, layers: Sequence[nn.Module], output_bias: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        nn.init.constant_(self.layers[-1].bias, output_bias)  # type: ignore[arg-type]

    @slices_too
    def forward(self, image: Tensor) -> Tensor:
        """Values of shape (B, 1, I, J, K) for an image (B, C, I, J, K); a slice (B, C, I, J) gives (B, 1, I, J)."""
        return self.layers(image)


def tmax_1layer(in_channels: int = 60, output_bias: float = TYPICAL_TMAX_S) -> Voxelwise:
    """Tmax [s] per voxel as one weighted sum of its time course: Conv3d(60 → 1, 1³).

    60 weights and a bias are 61 parameters.

    Parameters
    ----------
    in_channels
        Number of time frames.
    output_bias
        Where the bias starts [s].

    References
    ----------
    Sossin A, Carlson M, Radzihovsky M. A deep learning approach to parameter mapping from perfusion MRI in ischemic
    stroke. Stanford University, 2021 (its figure 2).

    Examples
    --------
    >>> import torch
    >>> tmax_1layer()(torch.zeros(2, 60, 8, 8, 3)).shape
    torch.Size([2, 1, 8, 8, 3])
    """
    return Voxelwise([nn.Conv3d(in_channels, 1, 1)], output_bias)


def tmax_2layer(in_channels: int = 60, hidden: int = 12, output_bias: float = TYPICAL_TMAX_S) -> Voxelwise:
    """Tmax [s] per voxel from a perceptron of one hidden layer: `tmax_deep` with two layers.

    BatchNorm(60) → Conv3d(60 → 12, 1³) → ReLU → BatchNorm(12) → Conv3d(12 → 1, 1³). With 60 frames it has 1 033
    parameters as Keras counts them, BatchNorm's two running statistics per channel included (see
    `keras_parameter_count`): 240 + 732 + 48 + 13. PyTorch counts 889.

    Parameters
    ----------
    in_channels
        Number of time frames.
    hidden
        Units of the hidden layer.
    output_bias
        Where the last bias starts [s].

    Notes
    -----
    The paper's text gives layers and counts but no activation. ReLU between the two convolutions is our reading:
    without one the network would be linear and its second layer without purpose.

    References
    ----------
    As `tmax_1layer` (its figure 3).

    Examples
    --------
    >>> import torch
    >>> tmax_2layer()(torch.zeros(2, 60, 8, 8, 3)).shape
    torch.Size([2, 1, 8, 8, 3])
    """
    return tmax_deep(in_channels, depth=2, hidden=hidden, output_bias=output_bias)


def tmax_deep(
    in_channels: int = 60, depth: int = 4, hidden: int = 12, output_bias: float = TYPICAL_TMAX_S
) -> Voxelwise:
    """Tmax [s] per voxel from `depth` layers: what the paper asked of 2 to 12.

    The pattern of the two-layer network carried on: BatchNorm → Conv3d(1³) once per layer, ReLU between layers. With
    60 frames, 1 033 + (depth − 2)·204 parameters as Keras counts them (1 441 with four layers): each further layer is
    BatchNorm(12), 48, and Conv3d(12 → 12, 1³), 156.

    Parameters
    ----------
    in_channels
        Number of time frames.
    depth
        Convolutions, 2 to 12.
    hidden
        Units of each hidden layer.
    output_bias
        Where the last bias starts [s].

    Raises
    ------
    InputError
        If the depth is out of range or there are no hidden units.

    Examples
    --------
    >>> sum(isinstance(layer, nn.Conv3d) for layer in tmax_deep(depth=5).layers)
    5
    """
    if not MIN_DEPTH <= depth <= MAX_DEPTH:
        raise InputError(f"tmax_deep depth {depth} must be {MIN_DEPTH} to {MAX_DEPTH} layers.")
    if hidden < 1:
        raise InputError(f"Hidden layers of {hidden} units cannot be built: give at least 1.")
    layers: list[nn.Module] = [nn.BatchNorm3d(in_channels), nn.Conv3d(in_channels, hidden, 1)]
    for _ in range(depth - 2):
        layers += [nn.ReLU(), nn.BatchNorm3d(hidden), nn.Conv3d(hidden, hidden, 1)]
    return Voxelwise([*layers, nn.ReLU(), nn.BatchNorm3d(hidden), nn.Conv3d(hidden, 1, 1)], output_bias)


def tmax_unet(
    in_channels: int = 60,
    widths: Sequence[int] = (32, 64, 128, 256),
    bottom: int = 512,
    dropout: float = 0.0,
    normalisation: str = "none",
    output_bias: float = TYPICAL_TMAX_S,
) -> UNet:
    r"""Tmax [s] per voxel from the paper's modified U-Net: `UNet` with a bottom that pools no further.

    Pairs of 3³ convolutions of 32, 64, 128 and 256 channels with 2³ max-pooling after the first three; two 1³
    convolutions of 512 at the resolution of the 256, as 24 slices can be halved three times only; these concatenated
    with the 256 (768 channels) and a pair of 256 on both; then, thrice, a 2³ transposed convolution, the skip beside
    it, and a pair of 128, 64, 32; a 1³ convolution ends it. With ReLU after each convolution, none after the last.

    Parameters
    ----------
    in_channels
        Number of time frames.
    widths
        Channels per level, the full resolution first.
    bottom
        Channels of the two 1³ convolutions.
    dropout
        Share of feature maps left out in training (see `UNet`); the paper had none and asked for it.
    normalisation
        Name in `blocks.NORMALISATIONS`; the paper had none and asked for "batch".
    output_bias
        Where the last bias starts [s].

    Raises
    ------
    InputError
        If an argument is out of range.

    Notes
    -----
    A convolution of kernel k³ from a to b channels has (k³·a + 1)·b parameters, so that by default

    ===========================  =====================  =========
    layer                        channels               parameters
    ===========================  =====================  =========
    level 1, pair of 3³          60 → 32 → 32              79 552
    level 2, pair of 3³          32 → 64 → 64             166 016
    level 3, pair of 3³          64 → 128 → 128           663 808
    level 4, pair of 3³          128 → 256 → 256        2 654 720
    bottom, pair of 1³           256 → 512 → 512          394 240
    level 4 again, pair of 3³    768 → 256 → 256        7 078 400
    up to level 3, 2³            256 → 128                262 272
    level 3 again, pair of 3³    256 → 128 → 128        1 327 360
    up to level 2, 2³            128 → 64                  65 600
    level 2 again, pair of 3³    128 → 64 → 64            331 904
    up to level 1, 2³            64 → 32                   16 416
    level 1 again, pair of 3³    64 → 32 → 32              83 008
    last, 1³                     32 → 1                        33
    ===========================  =====================  =========

    add up to the 13 123 329 of the paper. The first weights are those of Keras, in which it was written: uniform in
    :math:`±\sqrt{6/(n_{in} + n_{out})}`, biases 0. PyTorch's own are so much smaller that without
    normalisation the gradient of the bottom's weights, relative to the weights, starts 1000 times smaller still
    (6·10⁻¹¹ against 6·10⁻⁸, uniform noise as the signal, mean squared error): too small for Adam's ε.

    References
    ----------
    As `tmax_1layer` (its figure 4). Glorot X, Bengio Y. Understanding the difficulty of training deep feedforward
    neural networks. AISTATS 2010:249–256 (first weights).

    Examples
    --------
    >>> import torch
    >>> tmax_unet(widths=(4, 8), bottom=16)(torch.zeros(1, 60, 9, 10, 5)).shape
    torch.Size([1, 1, 9, 10, 5])
    """
    network = UNet(
        in_channels,
        widths,
        normalisation=normalisation,
        output_bias=output_bias,
        bottom=bottom,
        dropout=dropout,
    )
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None and layer is not network.last:
                nn.init.zeros_(layer.bias)
    return network
