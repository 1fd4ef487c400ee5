"""The lesion arm: T1w images with masks in, a segmentation model and what it is worth out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reperfuse.params import LesionPreprocess, Params
from reperfuse.stages import layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reperfuse.imaging.volume import Volume
    from reperfuse.stages.assessment import Assessment, Predict
    from reperfuse.stages.fitting import Objective

ARM = "lesion"

THRESHOLD = "probability_threshold"
"""Above it a probability is lesion: a parameter of evaluate, and kept with each model."""


def cohort(params: Params) -> None:
    """results/lesion/cohort.csv: who is there and takes part."""
    from reperfuse.cohort.bids import lesion_cohort
    from reperfuse.stages.processed import write_cohort

    table = lesion_cohort(layout.bids(ARM))
    write_cohort(ARM, table, table["lesion_volume_ml"] >= params.lesion.cohort.min_lesion_ml)


def preprocess(params: Params) -> None:
    """data/processed/lesion: normalised images, masks and brain masks on one isotropic RAS grid."""
    from rich.progress import track

    from reperfuse.imaging.volume import load_volume
    from reperfuse.preprocessing.geometry import resample
    from reperfuse.stages.processed import read_cohort, write_index, write_subject

    settings = params.lesion.preprocess
    for row in track(read_cohort(ARM).to_dict("records"), description="preprocess lesion"):
        image = load_volume(layout.bids(ARM) / row["image"])
        grid = model_grid(image, settings)
        array, brain = network_input(grid, settings)
        truth = resample(load_volume(layout.bids(ARM) / row["mask"]), like=grid, mask=True).data
        write_subject(
            layout.processed(ARM) / row["participant_id"],
            array,
            truth.astype(np.uint8),
            brain,
            {"affine": grid.affine.tolist(), "image": row["image"], "mask": row["mask"]},
        )
    write_index(ARM)


def model_grid(image: "Volume", settings: LesionPreprocess) -> "Volume":
    """`image` in RAS at the isotropic spacing of the model."""
    from reperfuse.preprocessing.geometry import reorient, resample

    return resample(reorient(image, "RAS"), spacing_mm=settings.spacing_mm, order=1)


def network_input(grid: "Volume", settings: LesionPreprocess) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees, shape (1, I, J, K), and the brain mask (I, J, K) its intensities are taken from."""
    from reperfuse.preprocessing.brain import threshold_mask
    from reperfuse.preprocessing.intensity import roi_minmax, window, zscore

    brain = threshold_mask(grid.data, settings.threshold_fraction)
    data = grid.data * brain if settings.skull_strip == "threshold" else grid.data
    rules = {"zscore": zscore, "roi_minmax": roi_minmax, "window": window}
    if settings.normalisation in rules:
        data = rules[settings.normalisation](data, brain)
    return np.asarray(data, dtype=np.float32)[None], brain


def on_grid_of(like: "Volume", probability: np.ndarray, grid: "Volume") -> np.ndarray:
    """A network's answer on the model's `grid`, brought to the voxels of `like`: shape of that, float32."""
    from reperfuse.imaging.volume import Volume
    from reperfuse.preprocessing.geometry import resample

    answer = Volume(probability.astype(np.float32), grid.affine)
    return np.asarray(resample(answer, like=like, order=1, antialias=False).data, dtype=np.float32)


def folds(params: Params) -> None:
    """results/lesion/folds.csv: side and fold of every subject."""
    from reperfuse.stages.processed import write_folds

    write_folds(ARM, params.lesion.folds)


def tune(params: Params, *, join: bool = False) -> None:
    """results/lesion/tune: the search, scored by Dice on each validation fold, on the model grid."""
    from reperfuse.stages.learning import tune_arm

    tune_arm(params.lesion, params.seed, _objective(params), join=join)


def train(params: Params) -> None:
    """models/lesion: the network trained on all training subjects."""
    from reperfuse.stages.learning import train_arm

    train_arm(params.lesion, params.seed, _objective(params))


def _objective(params: Params) -> "Objective":
    from reperfuse.evaluation.metrics import dice
    from reperfuse.stages.fitting import Objective

    threshold = params.lesion.evaluate.probability_threshold

    def score(
        probability: np.ndarray, target: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]
    ) -> dict[str, float]:
        return {"dice": dice(probability > threshold, target > 0)}

    return Objective(arm=ARM, metric="dice", higher_is_better=True, score=score, about={THRESHOLD: threshold})


def evaluate(params: Params) -> None:
    """results/lesion/evaluate: the hold-out on the source grid, the model beside an empty mask and a threshold."""
    from reperfuse.stages.assessment import evaluate_arm

    evaluate_arm(_assessment(params))


def resolution(params: Params, *, model: str | None = None, out: Path | None = None) -> None:
    """results/lesion/resolution: the same scores as the slices of the input get thicker; truth stays as it is."""
    from reperfuse.preprocessing.geometry import thick_slices
    from reperfuse.stages.assessment import resolution_arm, study_folder

    asked = params.lesion.resolution
    resolution_arm(
        _assessment(params, model=model, baselines=("baseline_threshold",)),
        levels=asked.thickness_mm,
        level_name="thickness_mm",
        facets=asked.axes,
        degrade=lambda image, thickness, axis: thick_slices(image, thickness, axis, profile=asked.profile),
        out=study_folder(model, out),
    )


def _assessment(
    params: Params, *, model: str | None = None, baselines: Sequence[str] = ("baseline_empty", "baseline_threshold")
) -> "Assessment":
    """How the lesion arm is judged: Dice and its sisters on the source grid."""
    from reperfuse.evaluation.metrics import lesion_scores
    from reperfuse.imaging.volume import load_volume
    from reperfuse.stages.assessment import Assessment, Case
    from reperfuse.stages.processed import description
    from reperfuse.stages.trained import load_model

    settings = params.lesion.evaluate
    trained = load_model(ARM, model, LesionPreprocess)

    def load(participant: str) -> Case:
        paths = description(ARM, participant)
        image = load_volume(layout.bids(ARM) / paths["image"])
        return Case(model_grid(image, trained.preprocess), load_volume(layout.bids(ARM) / paths["mask"]))

    def predict(image: "Volume") -> np.ndarray:
        array, _ = network_input(image, trained.preprocess)
        return trained.predict(array)

    def on_truth_grid(probability: np.ndarray, case: Case) -> np.ndarray:
        return on_grid_of(case.truth, probability, case.image)

    def score(probability: np.ndarray, case: Case) -> dict[str, float | None]:
        return lesion_scores(
            probability > settings.probability_threshold,
            case.truth.data > 0,
            case.truth.spacing_mm,
            probability=probability,
        )

    methods: dict[str, Predict] = {"model": predict}
    if "baseline_empty" in baselines:
        methods["baseline_empty"] = lambda image: np.zeros(image.data.shape, np.float32)
    if "baseline_threshold" in baselines:
        methods["baseline_threshold"] = _threshold_baseline(trained.preprocess)
    return Assessment(ARM, "dice", methods, load, on_truth_grid, score, params.bootstrap(ARM))


def _threshold_baseline(settings: LesionPreprocess) -> "Predict":
    """The intensity threshold with the best mean Dice on the training subjects."""
    from reperfuse.evaluation.baselines import best_threshold
    from reperfuse.stages.processed import training_arrays

    chosen = best_threshold(
        ((image[0], target > 0, mask > 0) for image, target, mask in training_arrays(ARM)),
        edges=np.linspace(-4, 4, 161),
    )

    def predict(image: "Volume") -> np.ndarray:
        array, brain = network_input(image, settings)
        return chosen(array[0], brain).astype(np.float32)

    return predict


def report(params: Params) -> None:
    """reports/lesion.html."""
    from reperfuse.evaluation.figures import lesion_overlay
    from reperfuse.imaging.volume import load_volume
    from reperfuse.stages.processed import description
    from reperfuse.stages.reporting import report_arm

    def overlay(
        participant: str, predictions: Mapping[str, np.ndarray], title: str, captions: Mapping[str, str]
    ) -> "Figure":
        paths = description(ARM, participant)
        image, truth = load_volume(layout.bids(ARM) / paths["image"]), load_volume(layout.bids(ARM) / paths["mask"])
        threshold = params.lesion.evaluate.probability_threshold
        masks = {method: probability > threshold for method, probability in predictions.items()}
        return lesion_overlay(
            image.data, truth.data, masks, image.spacing_mm, affine=image.affine, title=title, captions=captions
        )

    report_arm(
        ARM,
        title="Lesion segmentation",
        metric="dice",
        level_name="thickness_mm",
        sizes="lesion_volume_ml",
        overlay=overlay,
        n_overlays=params.lesion.report.n_overlays,
        bootstrap=params.bootstrap(ARM),
    )
