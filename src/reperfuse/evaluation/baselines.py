"""Predictors that learn almost nothing, which every model must beat to have learned something."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

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
        if truth.any():
            below, above = _dice_curves(image, truth, mask, bins)
            dice_below.append(below)
            dice_above.append(above)
    if not dice_below:
        raise InputError(
            "No training subject has a lesion, so no intensity threshold can be chosen: add subjects that do."
        )
    scores = np.stack([np.mean(dice_below, axis=0), np.mean(dice_above, axis=0)])
    side, index = np.unravel_index(int(scores.argmax()), scores.shape)
    return IntensityThreshold(float(bins[index + 1]), below=bool(side == 0), dice=float(scores[side, index]))


WIDTHS = (0.0, 1.0, 2.0, 3.0)
"""Standard deviations [voxels] among which `template_distance` chooses how much to smooth the distance; our choice."""

CLIPPED_AT = 2.5
"""Standard deviations from the mean beyond which a training value counts as if it were there: artefacts, and lesions
that nobody traced, shall not widen the template."""

SIDES = ("below", "above", "both")
"""Darker than the template, brighter, or either."""

Subject = tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.bool_]]
"""Image (normalised), truth and brain mask, equal shapes."""


@dataclass(frozen=True)
class TemplateDistance:
    """Lesion is every brain voxel that lies far from what healthy brains have at its place."""

    mean: NDArray[np.float32]
    """Of the healthy training voxels at each place, shape (I, J, K)."""
    spread: NDArray[np.float32]
    """Their standard deviation; infinite where fewer than three subjects had one."""
    width: float
    """Of the smoothing [voxels]."""
    side: str
    """One of `SIDES`."""
    threshold: float
    """Of the smoothed distance, signed unless `side` is both [standard deviations]."""
    dice: float
    """Mean over the subjects it was chosen on."""

    def __call__(self, image: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The predicted mask, shape of `image`.

        Raises
        ------
        InputError
            If the image is on another grid than the template.
        """
        _same_grid(image, self.mean)
        score = _smoothed((image - self.mean) / self.spread, mask, self.width)
        if self.side == "below":
            return (score < self.threshold) & mask
        return ((score if self.side == "above" else np.abs(score)) > self.threshold) & mask


def template_distance(
    subjects: Callable[[], Iterable[Subject]],
    *,
    widths: Sequence[float] = WIDTHS,
    edges: Sequence[float] | NDArray[np.floating] | None = None,
) -> TemplateDistance:
    """The distance from healthy brains, with the smoothing, side and threshold that have the highest mean Dice.

    At every place x the lesion-free voxels of the training subjects have a mean m(x) and a standard deviation s(x), and
    z(x) = (y(x) − m(x)) / s(x) is how unusual a voxel y is for its place. z is blurred by a Gaussian within the brain,
    and lesion is what lies below, above, or on either side of a threshold. This is the voxelwise comparison with
    controls that lesion detection started from, given what it can be given: robust moments, every parameter chosen on
    the training subjects, and each of these compared with the others alone (its own share is taken out of m and s), as
    new subjects will be.

    Parameters
    ----------
    subjects
        Called once per pass; each time the same ``(image, truth, mask)`` in the same order, read one at a time, all on
        one grid and normalised alike. Three passes for the template and one for the choice; memory is that of a dozen
        images, whatever the number of subjects. Lesion-free ones serve the template.
    widths
        Standard deviations of the blur [voxels] to choose among.
    edges
        Candidate thresholds of z, ascending; by default −6 to 6 in steps of 0.05.

    Raises
    ------
    InputError
        If no subject has a lesion, there are fewer than three subjects, or their grids differ.

    References
    ----------
    .. [1] Stamatakis EA, Tyler LK 2005, Brain Lang 94:167-177: single T1w against controls, voxel by voxel.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> brain, lesion = np.ones((6, 6, 6), bool), np.indices((6, 6, 6)).sum(0) < 4
    >>> images = [rng.normal(size=brain.shape) - 9 * lesion * (n < 2) for n in range(8)]
    >>> cohort = [(image, lesion & (n < 2), brain) for n, image in enumerate(images)]
    >>> best = template_distance(lambda: cohort)
    >>> best.side, best.dice > 0.9
    ('below', True)
    """
    candidates = np.linspace(-6, 6, 241) if edges is None else np.asarray(edges, dtype=float)
    bins = np.concatenate([[-np.inf], candidates, [np.inf]])
    moments = _Moments.of(subjects())
    if moments.subjects < 3:
        raise InputError(f"A template of {moments.subjects} subjects has no spread: give three training subjects.")
    for _ in range(2):
        moments = _Moments.of(subjects(), clip=moments)
    dice: dict[tuple[float, str], list[NDArray[np.floating]]] = {
        (width, side): [] for width in widths for side in SIDES
    }
    for image, truth, mask in subjects():
        if not truth.any():
            continue
        mean, spread = moments.without(image, mask & ~truth)
        distance = (image - mean) / spread
        for width in widths:
            score = _smoothed(distance, mask, width)
            below, above = _dice_curves(score, truth, mask, bins)
            _, far = _dice_curves(np.abs(score), truth, mask, bins)
            for side, curve in zip(SIDES, (below, above, far), strict=True):
                dice[width, side].append(curve)
    if not next(iter(dice.values())):
        raise InputError("No training subject has a lesion, so no distance can be chosen: add subjects that do.")
    means = {key: np.mean(curves, axis=0) for key, curves in dice.items()}
    width, side = max(means, key=lambda key: float(means[key].max()))
    index = int(means[width, side].argmax())
    mean, spread = moments.mean_and_spread()
    return TemplateDistance(mean, spread, width, side, float(bins[index + 1]), dice=float(means[width, side][index]))


@dataclass(frozen=True)
class _Moments:
    """Count, sum and sum of squares of the healthy values at each place, clipped by the moments before."""

    count: NDArray[np.float32]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    subjects: int
    low: NDArray[np.float32] | None
    high: NDArray[np.float32] | None

    @classmethod
    def of(cls, subjects: Iterable[Subject], clip: "_Moments | None" = None) -> "_Moments":
        low = high = count = None
        if clip is not None:
            mean, spread = clip.mean_and_spread()
            reach = np.where(np.isfinite(spread), spread, 0) * np.float32(CLIPPED_AT)
            low, high = mean - reach, mean + reach
        n = 0
        for image, truth, mask in subjects:
            if count is None:
                count, total, squares = np.zeros(image.shape, np.float32), np.zeros(image.shape), np.zeros(image.shape)
            _same_grid(image, count)
            healthy = mask & ~truth
            value = _clipped(image, low, high)[healthy].astype(np.float64)
            count[healthy] += 1
            total[healthy] += value
            squares[healthy] += value**2
            n += 1
        if count is None:
            raise InputError("There is no training subject, so there is no template: add subjects.")
        return cls(count, total, squares, n, low, high)

    def without(self, image: NDArray[np.floating], healthy: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
        """Mean and spread as if this subject had not been there."""
        value = np.where(healthy, _clipped(image, self.low, self.high), 0).astype(np.float64)
        others = replace(self, count=self.count - healthy, total=self.total - value, squares=self.squares - value**2)
        return others.mean_and_spread()

    def mean_and_spread(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        n = np.maximum(self.count, 1)
        mean = self.total / n
        variance = np.maximum(self.squares / n - mean**2, 0) * n / np.maximum(n - 1, 1)
        enough = self.count >= 3
        # A tenth of the usual spread is added, or three alike would make everyone else strange.
        floor = 0.1 * float(np.sqrt(np.median(variance[enough]))) if enough.any() else 0.0
        spread = np.where(enough, np.sqrt(variance) + max(floor, 1e-6), np.inf)
        return mean.astype(np.float32), spread.astype(np.float32)


def _clipped(
    image: NDArray[np.floating], low: NDArray[np.float32] | None, high: NDArray[np.float32] | None
) -> NDArray[np.floating]:
    return image if low is None or high is None else np.clip(image, low, high)


def _same_grid(image: NDArray, like: NDArray) -> None:
    if image.shape != like.shape:
        raise InputError(
            f"An image of {image.shape} voxels has no template, which is {like.shape}: bring all images to one grid."
        )


def _smoothed(score: NDArray[np.floating], mask: NDArray[np.bool_], width: float) -> NDArray[np.floating]:
    """The Gaussian mean of `score` within the mask."""
    inside = np.where(mask, score, 0).astype(np.float32)
    if width == 0:
        return inside
    weight = ndimage.gaussian_filter(mask.astype(np.float32), width)
    return ndimage.gaussian_filter(inside, width) / np.maximum(weight, 1e-6)


def _dice_curves(
    image: NDArray[np.floating], truth: NDArray[np.bool_], mask: NDArray[np.bool_], bins: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Dice of what lies below, and of what lies above, each inner edge of `bins`."""
    size = int(truth.sum())
    # Voxels and lesion voxels below each candidate, from one pass over the image.
    inside = np.cumsum(np.histogram(image[mask], bins)[0])
    hit = np.cumsum(np.histogram(image[mask & truth], bins)[0])
    below = 2 * hit[:-1] / (inside[:-1] + size)
    above = 2 * (hit[-1] - hit[:-1]) / (inside[-1] - inside[:-1] + size)
    return below, above
