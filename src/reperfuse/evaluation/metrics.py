"""Scores of one predicted mask or Tmax map against its truth, each with its definition.

Every score is a number or ``None``; ``None`` means undefined and never counts as 0 or as perfect.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, spatial

from reperfuse.errors import InputError

Scores = dict[str, float | None]

MATCH_IOU = 0.25
"""Least intersection over union [-] at which ISLES'26 calls two components the same lesion."""

SURFACE_TOLERANCE_MM = 2.0
"""Distance [mm] up to which two surfaces agree, in the surface Dice: our choice. Nikolov 2021 takes for each organ what
experts differ by; for stroke lesions we know of no such figure. With a border 2 mm inside that of a ball of 5 mL
(the median lesion of ATLAS v2.0) the Dice is 0.70, about what two raters reach with one another (0.73)."""

ROUNDING_MM = 1e-6
"""What is added to a tolerance [mm], so that 3 × 1.1 mm is within 3.3 mm whatever the last digit."""

TMAX_THRESHOLD_S = 6.0
"""Tmax [s] above which tissue counts as critically hypoperfused (DEFUSE 3; Albers 2018, NEJM 378:708-718)."""

CONSTANT_S = 1e-9
"""Standard deviation [s] up to which a Tmax map counts as constant, so that rounding makes no correlation."""

SSIM_RANGE_S = 20.0
"""Dynamic range L [s] in SSIM's constants: fixed, so that one noisy voxel in a reference makes no score kinder."""


@dataclass(frozen=True)
class MetricNote:
    """What a score is called, which way is better, and what it says in plain words."""

    label: str
    unit: str
    better: str  # "higher", "lower" or "zero"
    meaning: str


METRICS: dict[str, MetricNote] = {
    "dice": MetricNote("Dice", "", "higher", "Overlap of prediction and truth: 0 is none, 1 is identical."),
    "iou": MetricNote("IoU", "", "higher", "Shared volume divided by the volume of both together; stricter than Dice."),
    "precision": MetricNote("Precision", "", "higher", "Share of the predicted voxels that are truly lesion."),
    "recall": MetricNote("Recall", "", "higher", "Share of the true lesion voxels that were found."),
    "hd95_mm": MetricNote(
        "HD95", "mm", "lower", "95 % of both surfaces lie closer than this to the other surface (the worse direction)."
    ),
    "assd_mm": MetricNote("ASSD", "mm", "lower", "Mean distance between the two surfaces."),
    "surface_dice": MetricNote(
        "Surface Dice",
        "",
        "higher",
        f"Share of both surfaces that lies within {SURFACE_TOLERANCE_MM:g} mm of the other surface.",
    ),
    "volume_difference_ml": MetricNote(
        "Volume difference", "mL", "zero", "Predicted minus true volume: positive means too much was marked."
    ),
    "volume_error_ml": MetricNote(
        "Volume error", "mL", "lower", "How far the volume is off, in either direction: the size of the difference."
    ),
    "false_positive_ml": MetricNote(
        "False positive volume", "mL", "lower", "Volume marked as lesion that is none in truth."
    ),
    "false_negative_ml": MetricNote(
        "False negative volume", "mL", "lower", "Volume of true lesion that was not marked."
    ),
    "missed_lesions": MetricNote(
        "Missed lesions", "", "lower", "Number of true lesions of which not one voxel was marked."
    ),
    "invented_lesions": MetricNote(
        "Invented lesions", "", "lower", "Number of separate marks that touch no true lesion."
    ),
    "lesion_count_difference": MetricNote(
        "Lesion count difference", "", "lower", "How far the number of separate lesions is off."
    ),
    "lesion_f1_atlas": MetricNote(
        "Lesion F1 (ATLAS)",
        "",
        "higher",
        "Whole lesions found, missed and invented; any touch counts as found, face neighbours make one lesion.",
    ),
    "lesion_f1_isles22": MetricNote(
        "Lesion F1 (ISLES'22)",
        "",
        "higher",
        "Whole lesions found, missed and invented; any touch counts as found, diagonal neighbours make one lesion too.",
    ),
    "lesion_rq_isles26": MetricNote(
        "Lesion RQ (ISLES'26)",
        "",
        "higher",
        "Whole lesions found, missed and invented; found needs an IoU of at least 0.25, one prediction per lesion.",
    ),
    "auc": MetricNote(
        "AUC",
        "",
        "higher",
        "How often a true voxel gets a higher probability than any other; close to 1 where most of the scan is easy.",
    ),
    "pr_auc": MetricNote(
        "PR-AUC", "", "higher", "Precision averaged over all recalls as the probability threshold varies."
    ),
    "mae_s": MetricNote("MAE", "s", "lower", "Mean absolute error of Tmax in the brain."),
    "rmse_s": MetricNote("RMSE", "s", "lower", "Root of the mean squared error: large errors weigh more."),
    "mse_s2": MetricNote("MSE", "s²", "lower", "Mean squared error of Tmax in the brain."),
    "mae": MetricNote("MAE", "", "lower", "Mean absolute error in the brain, in the map's own unit."),
    "rmse": MetricNote("RMSE", "", "lower", "Root of the mean squared error, in the map's own unit."),
    "bias_s": MetricNote("Bias", "s", "zero", "Mean of prediction minus reference: positive means too late."),
    "pearson_r": MetricNote("Pearson r", "", "higher", "How well the map orders and scales with the reference."),
    "ccc": MetricNote(
        "CCC", "", "higher", "Agreement with the reference, offset and scale included (Lin): 1 is identity."
    ),
    "sensitivity": MetricNote(
        "Sensitivity", "", "higher", "Share of the truly late tissue (Tmax above the threshold) that is called late."
    ),
    "specificity": MetricNote(
        "Specificity", "", "higher", "Share of the tissue that is truly not late that is called so."
    ),
    "ssim": MetricNote("SSIM", "", "higher", "Local structural similarity of the two maps: 1 is identical."),
}
"""Open family: a score's name, as it stands in every table, to what the report says about it."""

THICK_GRID = {
    name: f"{name}_thick"
    for name in (
        "dice",
        "precision",
        "recall",
        "surface_dice",
        "assd_mm",
        "volume_error_ml",
        "false_positive_ml",
        "false_negative_ml",
        "missed_lesions",
    )
}
"""What the resolution study scores a second time on the grid of the thick slices, and what it is called there. On that
grid neither mask can be finer than the slices, so that what is left of a loss is not the ruler's."""

WEIGHED_DICE = "weighed_dice"
"""(1 − w)·Dice + w·Dice with thick slices: what a search with `tune.degraded_weight` = w goes by."""


def dice_at(thickness_mm: float) -> str:
    """Name of the Dice that a search takes with slices of that thickness [mm].

    >>> dice_at(10.0), dice_at(7.5)
    ('dice_10mm', 'dice_7.5mm')
    """
    return f"dice_{thickness_mm:g}mm"


def note_of(metric: str) -> MetricNote | None:
    """What is said about a score: those of `METRICS`, the same on the thick grid, and the Dice of a search with thick
    slices; None of any other.

    >>> note_of("dice_10mm").label, note_of("weighed_dice").better, note_of("dice_drop_10mm")
    ('Dice at 10 mm', 'higher', None)
    """
    if metric == WEIGHED_DICE:
        said = "Mean of Dice with the images as they are and Dice with thick slices, weighed as the search was asked."
        return MetricNote("Weighed Dice", "", "higher", said)
    if found := re.fullmatch(r"dice_(\d+(?:\.\d+)?)mm", metric):
        return MetricNote(f"Dice at {found[1]} mm", "", "higher", f"Dice with slices of {found[1]} mm along k.")
    if metric in THICK_GRID.values():
        note = METRICS[metric.removesuffix("_thick")]
        return replace(note, label=f"{note.label}, thick grid")
    return METRICS.get(metric)


def lesion_scores(
    prediction: ArrayLike,
    truth: ArrayLike,
    spacing_mm: ArrayLike,
    *,
    probability: ArrayLike | None = None,
    tolerance_mm: float = SURFACE_TOLERANCE_MM,
) -> Scores:
    r"""Voxel, surface and lesion-wise scores of one predicted lesion mask.

    With predicted voxels P and true voxels T:

    - ``dice`` = 2|P∩T| / (|P|+|T|); ``iou`` = |P∩T| / |P∪T|; ``precision`` = |P∩T| / |P|; ``recall`` = |P∩T| / |T|.
    - A *surface* voxel belongs to the mask and has a face neighbour that does not (beyond the grid counts as
      outside). Distances [mm] are between voxel centres, exact, in the given spacing. ``hd95_mm`` is the larger of
      the two directed 95th percentiles (linear interpolation), ``assd_mm`` the mean over both surfaces pooled.
    - ``surface_dice`` is the share of the surface voxels of both masks that lie within `tolerance_mm` (that distance
      included) of the other surface [4]_. Every surface voxel counts once. As published, a surface runs between voxels
      and its elements count by their area (MONAI: ``use_subvoxels=True``); ours is MONAI's default, from the same
      distances as ``hd95_mm``. The two differ most where voxels are far from cubes.
    - ``volume_difference_ml`` = (|P| − |T|)·voxel volume, signed, and ``volume_error_ml`` its size;
      ``false_positive_ml`` = |P∖T|·voxel volume and ``false_negative_ml`` = |T∖P|·voxel volume, whose difference is the
      signed one.
    - ``missed_lesions`` are the 26-connected components of T without any predicted voxel (see `lesion_detections`),
      ``invented_lesions`` those of P without any true one; ``lesion_count_difference`` is absolute, between the numbers
      of both.
    - ``lesion_f1_atlas`` (6-connected) and ``lesion_f1_isles22`` (26-connected): TP are the components of T with any
      predicted voxel, FN those without, FP the components of P without any true voxel; F1 = TP / (TP + (FP+FN)/2).
    - ``lesion_rq_isles26`` (26-connected): recognition quality TP / (TP + (FP+FN)/2) where TP are pairs matched one to
      one at IoU ≥ 0.25, taken greedily from the largest IoU; every unmatched component is an error.
    - ``auc`` (with `probability`) is the area under the ROC curve, see `roc_auc`; ``pr_auc`` is average precision,
      Σ (Rₙ − Rₙ₋₁)·Pₙ over all thresholds, without interpolation. Both are over all voxels of the grid.

    Empty masks. Both empty: dice, iou, surface_dice and the three lesion-wise scores are 1, the volumes, the count
    difference and invented_lesions 0, the rest ``None``. Only the truth empty: dice, iou, precision, surface_dice and
    the lesion-wise scores are 0, recall and missed_lesions ``None``. Only the prediction empty: the same with recall 0,
    every lesion missed and precision ``None``. ``hd95_mm`` and ``assd_mm`` need both. ``pr_auc`` needs a true voxel,
    ``auc`` one that is not true as well.

    Parameters
    ----------
    prediction, truth
        Binary masks, shape (I, J, K); boolean, or numbers 0 and 1.
    spacing_mm
        Distance between voxel centres along each axis [mm].
    probability
        Predicted probability of lesion, shape (I, J, K), finite.
    tolerance_mm
        Of the surface Dice [mm], 0 or more.

    Raises
    ------
    InputError
        If a mask is not binary or not 3D, the shapes differ, the probability holds NaN or infinite values, or the
        tolerance is negative or not a number.

    Notes
    -----
    Nearest surface voxels are found with a k-d tree over the surfaces, which gives the same distances as a Euclidean
    distance transform but costs by the surface and not by the box around scattered false positives.

    References
    ----------
    .. [1] Maier-Hein et al. 2024, Nature Methods 21:195-212 (definitions and pitfalls).
    .. [2] Hernandez Petzsche et al. 2022, Scientific Data 9:762 (ISLES 2022).
    .. [3] Kirillov et al. 2019, CVPR:9404-9413 (recognition quality).
    .. [4] Nikolov et al. 2021, J Med Internet Res 23:e26151 (surface Dice; arXiv:1809.04430, 2018).

    Examples
    --------
    >>> truth = np.zeros((8, 8, 8), bool); truth[2:4, 2:4, 2:4] = True
    >>> shifted = np.roll(truth, 1, axis=0)
    >>> scores = lesion_scores(shifted, truth, (1.0, 1.0, 3.0))
    >>> scores["dice"], scores["hd95_mm"], scores["surface_dice"], scores["volume_difference_ml"]
    (0.5, 1.0, 1.0, 0.0)
    """
    predicted, true, spacing = _masks(prediction, truth, spacing_mm)
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError(f"The tolerance of the surface Dice is {tolerance_mm} mm: give a length of 0 mm or more.")
    scores: Scores = {}
    whole_true = true
    box = bounding_box(predicted | true)
    predicted, true = predicted[box], true[box]
    both = predicted & true
    shared, n_predicted, n_true = (int(np.count_nonzero(mask)) for mask in (both, predicted, true))
    empty = n_predicted + n_true == 0
    scores["dice"] = 1.0 if empty else 2 * shared / (n_predicted + n_true)
    scores["iou"] = 1.0 if empty else shared / (n_predicted + n_true - shared)
    scores["precision"] = shared / n_predicted if n_predicted else None
    scores["recall"] = shared / n_true if n_true else None

    scores["hd95_mm"] = scores["assd_mm"] = None
    scores["surface_dice"] = 1.0 if empty else 0.0
    if n_predicted and n_true:
        there, back = surface_distances(predicted, true, spacing)
        both_ways = np.concatenate([there, back])
        scores["hd95_mm"] = float(max(np.percentile(there, 95), np.percentile(back, 95)))
        scores["assd_mm"] = float(both_ways.mean())
        scores["surface_dice"] = float(np.mean(both_ways <= tolerance_mm + ROUNDING_MM))

    voxel_ml = float(np.prod(spacing)) / 1000
    difference_ml = (n_predicted - n_true) * voxel_ml
    scores["volume_difference_ml"], scores["volume_error_ml"] = difference_ml, abs(difference_ml)
    scores["false_positive_ml"], scores["false_negative_ml"] = ((n - shared) * voxel_ml for n in (n_predicted, n_true))
    corners = _Components(predicted, true, connectivity=3)
    scores["missed_lesions"] = float(corners.missed) if n_true else None
    scores["invented_lesions"] = float(corners.invented)
    scores["lesion_count_difference"] = float(abs(corners.n_predicted - corners.n_true))
    scores["lesion_f1_atlas"] = _Components(predicted, true, connectivity=1).overlap_f1()
    scores["lesion_f1_isles22"] = corners.overlap_f1()
    scores["lesion_rq_isles26"] = corners.recognition_quality(MATCH_IOU)
    if probability is not None:
        ranking = _ranking(probability, whole_true)
        scores["auc"], scores["pr_auc"] = ranking.roc_auc(), ranking.average_precision()
    return scores


def lesion_detections(prediction: ArrayLike, truth: ArrayLike, spacing_mm: ArrayLike) -> list[tuple[float, bool]]:
    """Volume [mL] of each true lesion, and whether any of its voxels was predicted, smallest lesion first.

    A lesion is a 26-connected component of the truth, and one voxel finds it, as in ``missed_lesions`` and
    ``lesion_f1_isles22`` of `lesion_scores`. Empty where the truth is empty.

    Parameters
    ----------
    prediction, truth
        Binary masks, shape (I, J, K); boolean, or numbers 0 and 1.
    spacing_mm
        Distance between voxel centres along each axis [mm].

    Raises
    ------
    InputError
        If a mask is not binary or not 3D, or the shapes differ.

    Examples
    --------
    >>> truth = np.zeros((9, 9, 9), bool); truth[1, 1, 1] = truth[4:8, 4:8, 4:8] = True
    >>> prediction = np.zeros((9, 9, 9), bool); prediction[3:5, 3:5, 3:5] = True
    >>> lesion_detections(prediction, truth, (5, 5, 5))
    [(0.125, False), (8.0, True)]
    """
    predicted, true, spacing = _masks(prediction, truth, spacing_mm)
    box = bounding_box(true)
    components = _Components(predicted[box], true[box], connectivity=3)
    found = np.isin(np.arange(1, components.n_true + 1), components.true_of)
    volumes_ml = components.true_sizes[1:] * (float(np.prod(spacing)) / 1000)
    return sorted(zip(volumes_ml.tolist(), found.tolist(), strict=True))


def dice(prediction: ArrayLike, truth: ArrayLike) -> float:
    """2|P∩T| / (|P|+|T|) of two masks of one shape, whatever their dimensions; 1 when both are empty.

    Examples
    --------
    >>> dice([1, 1, 0, 0], [0, 1, 1, 0])
    0.5
    """
    predicted, true = np.asarray(prediction).astype(bool), np.asarray(truth).astype(bool)
    _check_one_grid(predicted, true)
    marked = int(np.count_nonzero(predicted)) + int(np.count_nonzero(true))
    return 2 * int(np.count_nonzero(predicted & true)) / marked if marked else 1.0


def surface_distances(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances [mm] from each surface voxel of the prediction to the truth's surface, and the other way round.

    Surfaces as in `lesion_scores`; both masks must hold a voxel.
    """
    spacing = _spacing(spacing_mm)
    ours, theirs = _surface_points(prediction, spacing), _surface_points(truth, spacing)
    # Balancing the tree costs more than it saves for a single pass over a voxel surface.
    our_tree, their_tree = (
        spatial.cKDTree(points, balanced_tree=False, compact_nodes=False) for points in (ours, theirs)
    )
    return np.asarray(their_tree.query(ours)[0]), np.asarray(our_tree.query(theirs)[0])


def average_precision(probability: ArrayLike, truth: ArrayLike) -> float | None:
    """Area under the precision-recall curve as average precision; ``None`` when nothing is true.

    Parameters
    ----------
    probability
        Any number that is higher where a lesion is more likely, of any shape; finite.
    truth
        Boolean or 0 and 1, same shape.

    Examples
    --------
    >>> average_precision([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])
    0.8333333333333333
    """
    return _ranking(probability, truth).average_precision()


def roc_auc(probability: ArrayLike, truth: ArrayLike) -> float | None:
    """Area under the ROC curve; ``None`` when nothing or everything is true.

    It is the probability that a true voxel, drawn at random, has a higher value than one that is not true, where
    equal values count half: exactly the area under the ROC curve whose points are joined by straight lines. It depends
    on the field of view, because every voxel of easy background brings it closer to 1; average precision does not
    reward those.

    Parameters
    ----------
    probability
        Any number that is higher where a lesion is more likely, of any shape; finite.
    truth
        Boolean or 0 and 1, same shape.

    References
    ----------
    .. [1] Hanley and McNeil 1982, Radiology 143:29-36.

    Examples
    --------
    >>> roc_auc([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0]), roc_auc([0.5, 0.5], [1, 0])
    (0.75, 0.5)
    """
    return _ranking(probability, truth).roc_auc()


def map_scores(prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike, spacing_mm: ArrayLike) -> Scores:
    """Scores of one predicted map of any quantity inside the brain mask.

    ``rmse`` and ``mae`` are in the unit of the map; ``ssim`` (see `structural_similarity`; its dynamic range is the
    99th percentile of the reference) and ``pearson_r`` can be compared between maps. Undefined is ``None``: all where
    the prediction is not finite, ``pearson_r`` where either map is constant.

    Parameters
    ----------
    prediction, reference
        Shape (I, J, K), in one unit; values outside `mask` are not read.
    mask
        Brain, shape (I, J, K), not empty.
    spacing_mm
        Not used: every score of a map takes one.
    """
    inside = _mask(mask, "brain mask")
    ours, theirs = np.asarray(prediction, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    x, y = ours[inside], theirs[inside]
    scores: Scores = dict.fromkeys(("rmse", "mae", "ssim", "pearson_r"))
    if not np.isfinite(x).all():
        return scores
    scores |= {"rmse": float(np.sqrt(np.square(x - y).mean())), "mae": float(np.abs(x - y).mean())}
    if (most := float(np.percentile(y, 99))) > 0:
        scores["ssim"] = structural_similarity(ours, theirs, inside, data_range=most)
    if min(x.std() / max(abs(x.mean()), 1e-12), y.std()) > 1e-6:
        scores["pearson_r"] = float(np.corrcoef(x, y)[0, 1])
    return scores


def tmax_scores(
    prediction: ArrayLike,
    reference: ArrayLike,
    mask: ArrayLike,
    spacing_mm: ArrayLike,
    *,
    threshold_s: float = TMAX_THRESHOLD_S,
) -> Scores:
    """Scores of one predicted Tmax map [s] against its reference inside the brain mask.

    With e = prediction − reference over the voxels of `mask`: ``mae_s`` = mean|e|, ``mse_s2`` = mean e²,
    ``rmse_s`` its root, ``bias_s`` = mean e. ``pearson_r`` is ``None`` when either map is constant; ``ccc`` is Lin's
    2·cov / (var + var + (difference of means)²) with population moments, ``None`` when both maps are one and the same
    constant. ``dice``, ``volume_difference_ml`` (signed, prediction − reference) and ``volume_error_ml``, its size,
    compare Tmax > `threshold_s`; neither map above it: dice 1. ``sensitivity`` is the share of the voxels above it in
    the reference that are so in the prediction, ``specificity`` that of the voxels not above it; ``None`` where the
    reference has no such voxel. ``ssim`` see `structural_similarity`.

    Parameters
    ----------
    prediction, reference
        Tmax [s], shape (I, J, K); values outside `mask` are not read.
    mask
        Brain, shape (I, J, K).
    spacing_mm
        Voxel spacing [mm].
    threshold_s
        Tmax [s] above which tissue counts as hypoperfused.

    Raises
    ------
    InputError
        If shapes differ, the mask is empty, or a map is not finite inside it.

    References
    ----------
    .. [1] Lin 1989, Biometrics 45:255-268 (concordance correlation coefficient).

    Examples
    --------
    >>> reference = np.full((4, 4, 4), 3.0); reference[:2] = 8.0
    >>> scores = tmax_scores(reference + 1, reference, np.ones((4, 4, 4)), (2, 2, 5))
    >>> scores["mae_s"], scores["bias_s"], scores["pearson_r"], scores["dice"]
    (1.0, 1.0, 1.0, 1.0)
    """
    inside, spacing = _mask(mask, "brain mask"), _spacing(spacing_mm)
    ours, theirs = np.asarray(prediction, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not ours.shape == theirs.shape == inside.shape:
        raise InputError(
            f"Prediction {ours.shape}, reference {theirs.shape} and mask {inside.shape} differ in shape: "
            "bring them to one grid first."
        )
    if not inside.any():
        raise InputError("The brain mask is empty: check the mask that belongs to this map.")
    for values, name in ((ours, "predicted"), (theirs, "reference")):
        if not np.isfinite(values[inside]).all():
            raise InputError(f"The {name} Tmax map holds NaN or infinite values inside the brain: write it again.")
    x, y = ours[inside], theirs[inside]
    error = x - y
    mse = float(np.mean(error**2))
    # Below a nanosecond a map is constant: rounding alone spreads a mean map by less.
    varies_x, varies_y = bool(x.std() > CONSTANT_S), bool(y.std() > CONSTANT_S)
    covariance = float(np.mean((x - x.mean()) * (y - y.mean())))
    spread = float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    late_x, late_y = x > threshold_s, y > threshold_s
    n_late = int(late_y.sum())
    volume_difference_ml = (int(late_x.sum()) - n_late) * float(np.prod(spacing)) / 1000
    return {
        "mae_s": float(np.mean(np.abs(error))),
        "rmse_s": float(np.sqrt(mse)),
        "mse_s2": mse,
        "bias_s": float(np.mean(error)),
        "pearson_r": float(np.clip(covariance / (x.std() * y.std()), -1, 1)) if varies_x and varies_y else None,
        "ccc": 2 * covariance / spread if spread > CONSTANT_S**2 else None,
        "dice": dice(late_x, late_y),
        "volume_difference_ml": volume_difference_ml,
        "volume_error_ml": abs(volume_difference_ml),
        "sensitivity": float(late_x[late_y].mean()) if n_late else None,
        "specificity": float((~late_x[~late_y]).mean()) if n_late < late_y.size else None,
        "ssim": structural_similarity(ours, theirs, inside, data_range=SSIM_RANGE_S),
    }


def structural_similarity(
    prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike, *, data_range: float, sigma: float = 1.5
) -> float:
    r"""Mean SSIM over the voxels of `mask`, with the mask's outside left out of every window.

    .. math:: \mathrm{SSIM} = \frac{(2 μ_x μ_y + C_1)(2 σ_{xy} + C_2)}{(μ_x² + μ_y² + C_1)(σ_x² + σ_y² + C_2)}

    with local moments under a Gaussian window of `sigma` voxels cut at 11 voxels, C₁ = (0.01·L)², C₂ = (0.03·L)² and
    L = `data_range`, as published for 2D; here the window is 3D, and at the brain's edge its weights are renormalised
    over the voxels inside, so that the arbitrary values outside the brain do not enter.

    Parameters
    ----------
    prediction, reference
        Maps, shape (I, J, K).
    mask
        Where they count, shape (I, J, K), not empty.
    data_range
        L, in the unit of the maps.
    sigma
        Width of the window [voxels].

    References
    ----------
    .. [1] Wang et al. 2004, IEEE Trans Image Process 13:600-612.
    """
    inside = np.asarray(mask).astype(bool)
    box = bounding_box(inside)
    inside = inside[box]
    x, y = (np.where(inside, np.asarray(values, dtype=np.float64)[box], 0.0) for values in (prediction, reference))

    def blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return ndimage.gaussian_filter(values, sigma, mode="constant", radius=5)[inside]

    weight = blurred(inside.astype(np.float64))
    mean_x, mean_y = blurred(x) / weight, blurred(y) / weight
    # Rounding may leave a variance of −1e-16 in a constant region.
    var_x = np.maximum(blurred(x * x) / weight - mean_x**2, 0)
    var_y = np.maximum(blurred(y * y) / weight - mean_y**2, 0)
    covariance = blurred(x * y) / weight - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (var_x + var_y + c2)))


@dataclass(frozen=True)
class _Ranking:
    """How many voxels reach each distinct probability of a true voxel, ascending; each array of shape (N,)."""

    gained: NDArray[np.int64]
    """True voxels with that probability."""
    tied: NDArray[np.int64]
    """Other voxels with that probability."""
    above: NDArray[np.int64]
    """Other voxels with a higher one."""
    n_other: int
    """Voxels that are not true."""

    def average_precision(self) -> float | None:
        if not self.gained.size:
            return None
        found = np.cumsum(self.gained[::-1])[::-1]
        precision = found / (found + self.tied + self.above)
        return float(np.sum(self.gained * precision) / self.gained.sum())

    def roc_auc(self) -> float | None:
        if not self.gained.size or not self.n_other:
            return None
        # Twice the number of pairs in the right order, in whole numbers: a tie is half a pair.
        below = self.n_other - self.above - self.tied
        return int(np.sum(self.gained * (2 * below + self.tied))) / (2 * int(self.gained.sum()) * self.n_other)


def _ranking(probability: ArrayLike, truth: ArrayLike) -> _Ranking:
    """Only the probabilities of true voxels move recall, so what lies below all of them need not be sorted."""
    values, true = np.asarray(probability), np.asarray(truth).astype(bool)
    if values.shape != true.shape:
        raise InputError(
            f"The probability map has shape {values.shape} and the truth {true.shape}: bring both to one grid first."
        )
    if not np.isfinite(values).all():
        raise InputError("The probability map holds NaN or infinite values: write it again from the model.")
    thresholds, gained = np.unique(values[true], return_counts=True)
    n_true = int(gained.sum())
    others = values[~true & (values >= thresholds[0])] if n_true else values[:0].ravel()
    others.sort()
    above = others.size - np.searchsorted(others, thresholds, side="right")
    tied = others.size - np.searchsorted(others, thresholds, side="left") - above
    return _Ranking(gained, tied, above, values.size - n_true)


class _Components:
    """Connected components of a prediction and a truth, and how they meet."""

    def __init__(self, prediction: NDArray[np.bool_], truth: NDArray[np.bool_], *, connectivity: int) -> None:
        structure = ndimage.generate_binary_structure(3, connectivity)
        predicted, self.n_predicted = _labelled(prediction, structure)
        true, self.n_true = _labelled(truth, structure)
        both = prediction & truth
        pairs = true[both].astype(np.int64) * (self.n_predicted + 1) + predicted[both]
        codes, self.shared = np.unique(pairs, return_counts=True)
        self.true_of, self.predicted_of = np.divmod(codes, self.n_predicted + 1)
        self.true_sizes = np.bincount(true[truth], minlength=self.n_true + 1)
        self.predicted_sizes = np.bincount(predicted[prediction], minlength=self.n_predicted + 1)
        self.missed = self.n_true - int(np.unique(self.true_of).size)
        self.invented = self.n_predicted - int(np.unique(self.predicted_of).size)

    def overlap_f1(self) -> float:
        return _f1(self.n_true - self.missed, self.invented, self.missed)

    def recognition_quality(self, least_iou: float) -> float:
        union = self.true_sizes[self.true_of] + self.predicted_sizes[self.predicted_of] - self.shared
        iou = self.shared / union
        taken_true: set[int] = set()
        taken_predicted: set[int] = set()
        for index in np.argsort(-iou, kind="stable"):
            if iou[index] < least_iou:
                break
            if self.true_of[index] not in taken_true and self.predicted_of[index] not in taken_predicted:
                taken_true.add(int(self.true_of[index]))
                taken_predicted.add(int(self.predicted_of[index]))
        found = len(taken_true)
        return _f1(found, self.n_predicted - found, self.n_true - found)


def _labelled(mask: NDArray[np.bool_], structure: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """`ndimage.label`, which costs by the grid, within the box that holds the mask."""
    box = bounding_box(mask)
    labels = np.zeros(mask.shape, np.int32)
    return labels, int(ndimage.label(mask[box], structure, output=labels[box]))


def _f1(found: int, invented: int, missed: int) -> float:
    return 1.0 if found + invented + missed == 0 else found / (found + (invented + missed) / 2)


def _surface_points(mask: NDArray[Any], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    whole = np.asarray(mask, dtype=bool)
    box = bounding_box(whole)
    padded = np.pad(whole[box], 1)
    flat = padded.ravel()
    inside = np.flatnonzero(flat)
    # Steps to the face neighbours in memory; the padding is there for them to land on.
    row, plane = padded.shape[2], padded.shape[1] * padded.shape[2]
    interior = np.logical_and.reduce([flat[inside + step] for step in (-1, 1, -row, row, -plane, plane)])
    voxels = np.stack(np.unravel_index(inside[~interior], padded.shape), axis=1) - 1
    return (voxels + [part.start for part in box]) * spacing


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The slices around all true voxels; of zero length when there are none."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        # The axes before are cut already, which leaves less to read.
        hit = np.flatnonzero(mask[tuple(box)].any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return tuple(box)


def _masks(
    prediction: ArrayLike, truth: ArrayLike, spacing_mm: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    predicted, true, spacing = _mask(prediction, "prediction"), _mask(truth, "truth"), _spacing(spacing_mm)
    _check_one_grid(predicted, true)
    return predicted, true, spacing


def _check_one_grid(predicted: NDArray[Any], true: NDArray[Any]) -> None:
    if predicted.shape != true.shape:
        raise InputError(
            f"The prediction has shape {predicted.shape} and the truth {true.shape}: bring both to one grid first."
        )


def _mask(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 3:
        raise InputError(f"The {name} has {array.ndim} dimensions (shape {array.shape}): give one 3D mask.")
    if array.dtype == bool:
        return array
    mask = array == 1
    if not (mask | (array == 0)).all():
        raise InputError(f"The {name} holds values other than 0 and 1: give a binary mask.")
    return mask


def _spacing(spacing_mm: ArrayLike) -> NDArray[np.float64]:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise InputError(
            f"The voxel spacing {spacing.tolist()} is not three positive lengths in mm: check the image header."
        )
    return spacing
