"""From a probability to a mask: the threshold and the smallest piece that is kept, and how both are chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import bounding_box

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Probabilities that are tried; Dice is flat between them where a network is sure of itself."""

SMALLEST_ML = (0.0, 0.03, 0.1, 0.3, 1.0)
"""Volumes [mL] that are tried; 517 lesions in the training set of ATLAS v2.0 have less than 0.1 mL."""

_ALL_TOUCH = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True)
class OperatingPoint:
    """Above `probability_threshold` a voxel is lesion; 26-connected pieces below `smallest_ml` [mL] are taken away."""

    probability_threshold: float = 0.5
    smallest_ml: float = 0.0

    def mask(self, probability: ArrayLike, spacing_mm: ArrayLike) -> NDArray[np.bool_]:
        """The lesion, shape of `probability` (I, J, K).

        Examples
        --------
        >>> probability = np.zeros((5, 5, 5)); probability[0, 0, 0] = probability[2:4, 2:4, 2:4] = 0.8
        >>> int(OperatingPoint(0.5, 0.005).mask(probability, (1, 1, 1)).sum())
        8
        """
        mask = np.asarray(probability) > self.probability_threshold
        if self.smallest_ml <= 0:
            return mask
        box = bounding_box(mask)  # labelling costs by the grid
        labels, _ = ndimage.label(mask[box], _ALL_TOUCH)
        keep = np.bincount(labels.ravel(), minlength=1) * _voxel_ml(spacing_mm) >= self.smallest_ml
        keep[0] = False
        mask[box] = keep[labels]
        return mask


def dice_by_point(
    probability: NDArray[np.floating],
    truth: NDArray[np.bool_],
    spacing_mm: ArrayLike,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    smallest_ml: Sequence[float] = SMALLEST_ML,
) -> dict[OperatingPoint, float]:
    """Dice of one subject at every pair of threshold and smallest piece; 1 where mask and truth are both empty.

    Equal to `evaluation.metrics.dice` of each mask, from one labelling of the pieces per threshold.

    Parameters
    ----------
    probability, truth
        Shape (I, J, K).
    """
    truth = np.asarray(truth, dtype=bool)
    size, voxel_ml = int(truth.sum()), _voxel_ml(spacing_mm)
    found = {}
    for threshold in thresholds:
        labels, _ = ndimage.label(probability > threshold, _ALL_TOUCH)
        pieces = np.bincount(labels.ravel())[1:]
        hits = np.bincount(labels[truth], minlength=len(pieces) + 1)[1:]
        for smallest in smallest_ml:
            keep = pieces * voxel_ml >= smallest
            marked = int(pieces[keep].sum()) + size
            found[OperatingPoint(threshold, smallest)] = 2 * int(hits[keep].sum()) / marked if marked else 1.0
    return found


def best_point(subjects: Sequence[Mapping[OperatingPoint, float]]) -> OperatingPoint:
    """The point with the highest mean Dice over `subjects`; of equals the one nearest to one half, then the one that
    takes least away.

    Parameters
    ----------
    subjects
        Dice by point, as `dice_by_point` gives it; all subjects with the same points.

    Raises
    ------
    InputError
        If there is no subject.

    Examples
    --------
    >>> low, high = OperatingPoint(0.2), OperatingPoint(0.6)
    >>> best_point([{low: 0.5, high: 0.6}, {low: 0.4, high: 0.5}]).probability_threshold
    0.6
    """
    if not subjects:
        raise InputError("No subject was validated, so no operating point can be chosen: give numbers instead of null.")
    means = {point: float(np.mean([of_subject[point] for of_subject in subjects])) for point in subjects[0]}
    return max(means, key=lambda at: (means[at], -abs(at.probability_threshold - 0.5), -at.smallest_ml))


def _voxel_ml(spacing_mm: ArrayLike) -> float:
    return float(np.prod(np.asarray(spacing_mm, dtype=float)) / 1000)
