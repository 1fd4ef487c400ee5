"""Predictors that learn almost nothing, which every model must beat to have learned something."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reperfuse.errors import InputError


@dataclass(frozen=True)
class IntensityThreshold:
    """Lesion is every brain voxel below (or above) one intensity."""

    threshold: float
    below: bool
    dice: float
    """Mean over the subjects it was chosen on."""

    def __call__(self, image: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The predicted mask, shape of `image`."""
        return ((image < self.threshold) if self.below else (image > self.threshold)) & mask


def best_threshold(
    subjects: Iterable[tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.bool_]]],
    *,
    edges: Sequence[float] | NDArray[np.floating],
) -> IntensityThreshold:
    """The one intensity threshold with the highest mean Dice over `subjects`, dark or bright side.

    Parameters
    ----------
    subjects
        ``(image, truth, mask)`` per subject, equal shapes; read one at a time. Lesion-free subjects are left out.
    edges
        Candidate thresholds, ascending, in the unit of the (normalised) images.

    Raises
    ------
    InputError
        If no subject has a lesion.

    Examples
    --------
    >>> image = np.array([-2.0, -1.5, 0.0, 1.0])
    >>> best = best_threshold([(image, image < -1, image < 9)], edges=[-3, -1, 0.5])
    >>> best.threshold, best.below, best.dice
    (-1.0, True, 1.0)
    """
    bins = np.concatenate([[-np.inf], np.asarray(edges, dtype=float), [np.inf]])
    dice_below, dice_above = [], []
    for image, truth, mask in subjects:
        size = int(truth.sum())
        if not size:
            continue
        # Voxels and lesion voxels below each candidate, from one pass over the image.
        inside = np.cumsum(np.histogram(image[mask], bins)[0])
        hit = np.cumsum(np.histogram(image[mask & truth], bins)[0])
        dice_below.append(2 * hit[:-1] / (inside[:-1] + size))
        dice_above.append(2 * (hit[-1] - hit[:-1]) / (inside[-1] - inside[:-1] + size))
    if not dice_below:
        raise InputError(
            "No training subject has a lesion, so no intensity threshold can be chosen: add subjects that do."
        )
    scores = np.stack([np.mean(dice_below, axis=0), np.mean(dice_above, axis=0)])
    side, index = np.unravel_index(int(scores.argmax()), scores.shape)
    return IntensityThreshold(float(bins[index + 1]), below=bool(side == 0), dice=float(scores[side, index]))
