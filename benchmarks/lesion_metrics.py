"""Every lesion score on full-size pairs of masks, value beside value and time beside time with its peers, in one run.

    python benchmarks/lesion_metrics.py

Two pairs on the grid of ATLAS, (197, 233, 189) at 1 mm. Truth is a lesion phantom; the predicted probability is a
sigmoid of the blurred truth and smooth noise, different in nearly every voxel, and the prediction is where it exceeds
a half. "focal" has a lesion of 60 mL and a clean prediction, "scattered" one of 300 mL and hundreds of false specks
over the whole grid.

All peers run once in each round, and times are medians over the rounds. Arrays are made into tensors and images before
the clock starts. "Ours" in a row of the table is the part of ours that gives that peer's scores, and the ratio is the
peer's time to it; all of our scores together are under the table. panoptica takes part where it is installed; beside it
stands the time of all our scores of the masks, of which its RQ is one. MONAI's area-weighted surface Dice is another
definition (see `lesion_scores`) and is there to show by how much.

What to expect. Surfaces: ours draws both and builds both trees once for HD95, ASSD and surface Dice, MONAI once for
each of the three with much the same trees, so a ratio of 1.5 to 2 each and 5 together; SimpleITK's two distance maps
over 8.7 million voxels take about a second, 10 to 50 times ours. Areas under curves: scikit-learn orders 8.7 million
indices (about a second) and cumulates them in float64; ours sorts bare float32 values with SIMD, 30 ms, and reads them
off at the true ones, so 20 to 50 times. All of ours together: 0.5 s at most.

What came out (five rounds, one of two shared cores of an AMD EPYC with AVX-512; MONAI 1.6.1, SimpleITK 2.5.7,
scikit-learn 1.9.1, panoptica 2.1.7): every value of ours is its peer's, float32 of MONAI aside (3e-8). All of ours
0.08 s (focal) and 0.25 s (scattered), of which the two areas 0.04 s together. MONAI's three surface scores 0.37 and
0.85 s, 18 and 11 times our surfaces, more than expected: its trees are balanced and it crops once for every score.
SimpleITK's distances 0.6 s, 28 and 8 times. scikit-learn 2 to 3.6 s, 47 to 102 times. panoptica's RQ alone about
what all our scores of the masks take. The area-weighted surface Dice is higher by 0.01. With both cores overloaded
(load 3 to 5) all of ours took up to 0.5 s on the scattered pair, and its peers twice theirs.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import monai.metrics
import numpy as np
import SimpleITK as sitk
import torch
from rich.progress import track
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from reperfuse.evaluation.metrics import (
    SURFACE_TOLERANCE_MM,
    average_precision,
    dice,
    lesion_scores,
    roc_auc,
    surface_distances,
)
from reperfuse.phantoms.fields import smooth_field
from reperfuse.phantoms.lesions import lesion_phantom

SPACING = (1.0, 1.0, 1.0)
PAIRS = {"focal": (60.0, 12.0, 2.0, 1.25), "scattered": (300.0, 6.0, 1.0, 0.8)}
"""Lesion volume [mL], slope of the border [1], grain [mm] and size of the noise."""

Call = Callable[[], dict[str, float]]


def pair(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction and truth, boolean, and the probability, float32; all of shape (197, 233, 189)."""
    volume_ml, slope, grain_mm, noise = PAIRS[name]
    truth = lesion_phantom(5, volume_ml=volume_ml).mask.data > 0
    field = smooth_field(truth.shape, SPACING, grain_mm, np.random.default_rng(0))
    logit = slope * (ndimage.gaussian_filter(truth.astype(np.float32), 2.0) - 0.5) + noise * field
    probability = (1 / (1 + np.exp(-logit))).astype(np.float32)
    return probability > 0.5, truth, probability


def from_distances(there: np.ndarray, back: np.ndarray) -> dict[str, float]:
    """Scores of the distances from each surface to the other [mm]."""
    pooled = np.concatenate([there, back])
    return {
        "hd95_mm": max(np.percentile(there, 95), np.percentile(back, 95)),
        "assd_mm": pooled.mean(),
        "surface_dice": np.mean(pooled <= SURFACE_TOLERANCE_MM + 1e-6),
    }


def by_monai(prediction: np.ndarray, truth: np.ndarray) -> dict[str, Call]:
    """MONAI's functions, each by itself."""
    one, other = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
    how = {"include_background": True, "spacing": SPACING}
    near = [SURFACE_TOLERANCE_MM]
    distance, surface = monai.metrics.compute_average_surface_distance, monai.metrics.compute_surface_dice
    return {
        "MONAI Dice": lambda: {"dice": monai.metrics.compute_dice(one, other).item()},
        "MONAI HD95": lambda: {
            "hd95_mm": monai.metrics.compute_hausdorff_distance(one, other, percentile=95, **how).item()
        },
        "MONAI ASSD": lambda: {"assd_mm": distance(one, other, symmetric=True, **how).item()},
        "MONAI surface Dice": lambda: {"surface_dice": surface(one, other, near, **how).item()},
        "MONAI surface Dice, area-weighted": lambda: {
            "surface_dice": surface(one, other, near, use_subvoxels=True, **how).item()
        },
    }


def by_simpleitk(prediction: np.ndarray, truth: np.ndarray) -> dict[str, Call]:
    """SimpleITK's overlap filter, and its contours and distance maps as its users combine them."""
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (prediction, truth)]
    for image in images:
        image.SetSpacing(SPACING[::-1])

    def overlap() -> dict[str, float]:
        found = sitk.LabelOverlapMeasuresImageFilter()
        found.Execute(*images)
        return {"dice": found.GetDiceCoefficient()}

    def distances() -> dict[str, float]:
        edges = [sitk.LabelContour(image, fullyConnected=False) for image in images]
        near = [sitk.Abs(sitk.SignedMaurerDistanceMap(e, squaredDistance=False, useImageSpacing=True)) for e in edges]
        arrays = [sitk.GetArrayViewFromImage(image) for image in (*edges, *near)]
        return from_distances(arrays[3][arrays[0] > 0], arrays[2][arrays[1] > 0])

    return {"SimpleITK Dice": overlap, "SimpleITK HD95, ASSD, surface Dice": distances}


def by_panoptica(prediction: np.ndarray, truth: np.ndarray) -> dict[str, Call]:
    """Recognition quality of panoptica at the IoU of ISLES'26, components by corners; nothing where not installed."""
    if importlib.util.find_spec("panoptica") is None:
        return {}
    import panoptica
    from panoptica.utils.constants import CCABackend

    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(cca_backend=CCABackend.cc3d),
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.25),
        instance_metrics=[panoptica.Metric.IOU],
        global_metrics=[],
        decision_metric=panoptica.Metric.IOU,
        decision_threshold=0.25,
        verbose=False,
    )
    one, other = prediction.astype(np.uint8), truth.astype(np.uint8)
    return {"panoptica RQ": lambda: {"lesion_rq_isles26": evaluator.evaluate(one, other)["ungrouped"].rq}}


def calls(prediction: np.ndarray, truth: np.ndarray, probability: np.ndarray) -> dict[str, Call]:
    """Everything that is timed, ours first."""
    flat = truth.ravel(), probability.ravel()
    return {
        "all": lambda: lesion_scores(prediction, truth, SPACING, probability=probability),
        "all of the masks": lambda: lesion_scores(prediction, truth, SPACING),
        "dice": lambda: {"dice": dice(prediction, truth)},
        "surfaces": lambda: from_distances(*surface_distances(prediction, truth, SPACING)),
        "auc": lambda: {"auc": roc_auc(probability, truth)},
        "pr_auc": lambda: {"pr_auc": average_precision(probability, truth)},
        **by_monai(prediction, truth),
        **by_simpleitk(prediction, truth),
        "scikit-learn AUC": lambda: {"auc": roc_auc_score(*flat)},
        "scikit-learn PR-AUC": lambda: {"pr_auc": average_precision_score(*flat)},
        **by_panoptica(prediction, truth),
    }


OURS = {"dice": "dice", "hd95_mm": "surfaces", "assd_mm": "surfaces", "surface_dice": "surfaces", "auc": "auc"} | {
    "pr_auc": "pr_auc",
    "lesion_rq_isles26": "all of the masks",
}
"""Which of our calls gives a score."""


def main() -> None:
    """Time everything and print a table per pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for name in PAIRS:
        prediction, truth, probability = pair(name)
        timed = calls(prediction, truth, probability)
        values, seconds = {}, {call: [] for call in timed}
        for _ in track(range(rounds), description=name):
            for call, run in timed.items():
                started = time.perf_counter()
                values[call] = run()
                seconds[call].append(time.perf_counter() - started)
        taken = {call: statistics.median(times) for call, times in seconds.items()}
        volumes = " and ".join(f"{mask.sum() / 1000:.0f} mL" for mask in (truth, prediction))
        parts = [ndimage.label(mask, np.ones((3, 3, 3)))[1] for mask in (truth, prediction)]
        print(f"\n{name}: truth and prediction {volumes}, {parts[0]} and {parts[1]} components\n")
        print("| Peer | Score | Ours | Peer's | Difference | Ours [s] | Peer [s] | Ratio |")
        print("|---|---|--:|--:|--:|--:|--:|--:|")
        for call in list(timed)[6:]:
            for score, theirs in values[call].items():
                ours, part = values["all"][score], taken[OURS[score]]
                print(
                    f"| {call} | {score} | {ours:.6f} | {theirs:.6f} | {abs(ours - theirs):.0e} "
                    f"| {part:.3f} | {taken[call]:.3f} | {taken[call] / part:.1f} |"
                )
        distances = sum(taken[f"MONAI {score}"] for score in ("HD95", "ASSD", "surface Dice"))
        print(f"\nMONAI's HD95, ASSD and surface Dice together {distances:.3f} s, ours {taken['surfaces']:.3f} s.")
        print(
            f"All {len(values['all'])} of ours together {taken['all']:.3f} s; all {len(values['all of the masks'])} ",
            end="",
        )
        print(f"that need no probability {taken['all of the masks']:.3f} s.")


if __name__ == "__main__":
    main()
