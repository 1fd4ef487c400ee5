"""When blood arrives: networks that read the matched features of a curve (`perfusion.matched`), voxel by voxel.

`ArrivalNetwork` answers with a distribution of delay and one of Tmax; its weights, learned on the reference object
alone, ship in the folder `learned`. `TmaxMatched` is the same perceptron with the median of Tmax as its only answer: a
member of `NETWORKS`, to be trained further on reference maps.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

QUANTILES = (0.025, 0.16, 0.25, 0.5, 0.75, 0.84, 0.975)
"""Levels of the quantiles: 95 % and 68 % intervals, quartiles and the median."""

MIDDLE = QUANTILES.index(0.5)

TARGETS = ("delay", "tmax")

DELAY_FEATURE, TMAX_FEATURE = 4, 6
"""Columns of the features that are estimates of delay and Tmax already [s]; the perceptron adds to them."""

FEATURE_LIMIT = 8.0
"""Features are cut at so many standard deviations: further out nothing was learned."""

BATCH_VOXELS = 1 << 14


def perceptron(in_channels: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear layers, each with SiLU behind it, from `in_channels` to the last of `hidden`."""
    widths = [in_channels, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers)


class Standardise(nn.Module):
    """Features less their mean over their standard deviation, cut at `FEATURE_LIMIT`.

    Both are of the curves that a network first learned from (`take`), and stay what they were: a patient's own would
    take out of the features what distinguishes that patient.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("deviation", torch.ones(in_channels))

    def take(self, features: Tensor) -> None:
        """Take mean and deviation of these features, shape (n, F); one that never changes is left out by it."""
        self.mean = features.mean(0)
        self.deviation = features.std(0).clamp(min=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """Standardised features, of any shape (..., F)."""
        return ((features - self.mean) / self.deviation).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)


class ArrivalNetwork(nn.Module):
    """Quantiles of delay and Tmax for every curve.

    Standardised features go through a perceptron. A median is an estimate from the features plus what the perceptron
    says; the other quantiles are the median less or plus sums of positive steps, so that they never cross.

    Parameters
    ----------
    in_channels
        Number of features.
    hidden
        Width of each hidden layer.

    Notes
    -----
    103 694 parameters by default.

    Examples
    --------
    >>> ArrivalNetwork()(torch.zeros(5, 139)).shape
    torch.Size([5, 14])
    """

    def __init__(self, in_channels: int = 139, hidden: Sequence[int] = (192, 192, 192)) -> None:
        super().__init__()
        self.scale = Standardise(in_channels)
        self.trunk = perceptron(in_channels, hidden)
        self.delay_middle, self.tmax_middle = nn.Linear(hidden[-1], 1), nn.Linear(hidden[-1], 1)
        self.delay_steps = nn.Linear(hidden[-1], len(QUANTILES) - 1)
        self.tmax_steps = nn.Linear(hidden[-1], len(QUANTILES) - 1)

    def forward(self, features: Tensor) -> Tensor:
        """Quantiles [s], shape (n, 2·Q): those of delay, rising, then those of Tmax; for features of shape (n, F)."""
        hidden = self.trunk(self.scale(features))
        delay = self.delay_middle(hidden) + features[:, DELAY_FEATURE, None]
        tmax = self.tmax_middle(hidden) + features[:, TMAX_FEATURE, None]
        return torch.cat([_spread(delay, self.delay_steps(hidden)), _spread(tmax, self.tmax_steps(hidden))], dim=1)

    def posterior(self, features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Medians, spreads and quantiles by name, in evaluation mode and without gradients.

        Parameters
        ----------
        features
            Shape (n, F).

        Returns
        -------
        `delay`, `tmax`: medians, shape (n,) [s]; `delay_sd`, `tmax_sd`: half of the central 68 % interval, a normal
        distribution's standard deviation; `delay_quantiles`, `tmax_quantiles`: shape (n, Q), at `QUANTILES`.
        """
        quantiles = np.empty((len(features), len(TARGETS) * len(QUANTILES)), np.float32)
        self.eval()
        with torch.inference_mode():
            for start in range(0, len(features), BATCH_VOXELS):
                part = torch.from_numpy(np.ascontiguousarray(features[start : start + BATCH_VOXELS], np.float32))
                quantiles[start : start + BATCH_VOXELS] = self(part).numpy()
        low, high = QUANTILES.index(0.16), QUANTILES.index(0.84)
        found: dict[str, NDArray[np.float32]] = {}
        for name, values in zip(TARGETS, np.split(quantiles, len(TARGETS), axis=1), strict=True):
            found[name] = np.ascontiguousarray(values[:, MIDDLE])
            found[f"{name}_sd"] = np.asarray((values[:, high] - values[:, low]) / 2, np.float32)
            found[f"{name}_quantiles"] = values
        return found


def _spread(middle: Tensor, steps: Tensor) -> Tensor:
    """Rising quantiles, shape (n, Q), from the median (n, 1) and steps of any sign (n, Q − 1)."""
    size = functional.softplus(steps)
    below, above = size[:, :MIDDLE].cumsum(1).flip(1), size[:, MIDDLE:].cumsum(1)
    return torch.cat([middle - below, middle, middle + above], dim=1)


class TmaxMatched(nn.Module):
    """Tmax [s] per voxel by the perceptron of `ArrivalNetwork`, from which `networks.initialise` brings its weights.

    Parameters
    ----------
    in_channels
        Number of features, along the channel axis; in use those of `perfusion.matched`.
    hidden
        Width of each hidden layer.

    Notes
    -----
    It adds to the estimate of Tmax that is among the features already, so its last bias need not start anywhere.

    Examples
    --------
    >>> TmaxMatched()(torch.zeros(2, 60, 4, 4, 3)).shape
    torch.Size([2, 1, 4, 4, 3])
    """

    def __init__(self, in_channels: int = 60, hidden: Sequence[int] = (192, 192, 192)) -> None:
        super().__init__()
        self.scale = Standardise(in_channels)
        self.trunk = perceptron(in_channels, hidden)
        self.tmax_middle = nn.Linear(hidden[-1], 1)

    def forward(self, image: Tensor) -> Tensor:
        """Tmax [s] of shape (B, 1, I, J, K) for features (B, F, I, J, K); a slice (B, F, I, J) gives (B, 1, I, J)."""
        features = image.movedim(1, -1)
        tmax = self.tmax_middle(self.trunk(self.scale(features))) + features[..., TMAX_FEATURE, None]
        return tmax.movedim(-1, 1)
