"""The lesion arm: T1w images with masks in, a segmentation model and what it is worth out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reperfuse.params import LesionPreprocess, Params
from reperfuse.stages import layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reperfuse.imaging.volume import Volume
    from reperfuse.stages.assessment import Assessment, Predict
    from reperfuse.stages.fanout import Runner
    from reperfuse.stages.fitting import Objective
    from reperfuse.stages.study import Study

ARM = "lesion"


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
    from reperfuse.stages.lesion_input import given_brain, network_input, on_model_grid, paths_of, read_images
    from reperfuse.stages.processed import read_cohort, source, write_index, write_subject

    settings, root = params.lesion.preprocess, layout.bids(ARM)
    rows: list[dict[str, Any]] = read_cohort(ARM).to_dict("records")  # type: ignore[assignment]
    for row in track(rows, description="preprocess lesion"):
        paths = paths_of(row)
        images = read_images(root, row["participant_id"], paths, settings)
        grid = on_model_grid(images, settings, given_brain(root, row["image"], settings))
        array, inside = network_input(grid, settings)
        truth = resample(load_volume(root / row["mask"]), like=grid, mask=True).data
        write_subject(
            layout.processed(ARM) / row["participant_id"],
            array,
            truth.astype(np.uint8),
            inside,
            {
                "affine": grid.affine.tolist(),
                "image": row["image"],
                "mask": row["mask"],
                "images": paths,
                "inputs": {name: [number, number + 1] for number, name in enumerate(settings.modalities)},
                "missing": [name for name in settings.modalities if name not in images],
                "source": source(
                    next(iter(images.values())).data, [root / row["mask"], *(root / paths[name] for name in images)]
                ),
            },
        )
    write_index(ARM)


def folds(params: Params) -> None:
    """results/lesion/folds.csv: side and fold of every subject."""
    from reperfuse.stages.processed import write_folds

    write_folds(ARM, params.lesion.folds)


def tune(params: Params, *, join: bool = False) -> None:
    """results/lesion/tune: the search, scored by Dice on each validation fold, on the model grid.

    With `tune.degraded_weight` by a mean of that Dice and the one with thick slices.
    """
    from reperfuse.stages.learning import tune_arm

    tune_arm(params.lesion, params.seed, _objective(params), join=join)


def train(params: Params) -> None:
    """models/lesion: the network trained on all training subjects."""
    from reperfuse.stages.learning import train_arm

    train_arm(params.lesion, params.seed, _objective(params))


def _objective(params: Params) -> "Objective":
    from reperfuse.errors import InputError
    from reperfuse.evaluation.metrics import WEIGHED_DICE, dice_at, lesion_scores
    from reperfuse.evaluation.operating_point import (
        SMALLEST_ML,
        THRESHOLDS,
        OperatingPoint,
        best_point,
        dice_by_point,
    )
    from reperfuse.imaging.volume import Volume
    from reperfuse.preprocessing.geometry import thick_slices
    from reperfuse.stages.fitting import Degraded, Objective
    from reperfuse.stages.lesion_input import operating_point
    from reperfuse.training.fit import KEPT

    about = params.lesion.evaluate.model_dump(include={"probability_threshold", "smallest_ml", "mirror"})
    usual = operating_point(about)
    thresholds = THRESHOLDS if about["probability_threshold"] is None else (usual.probability_threshold,)
    sizes = SMALLEST_ML if about["smallest_ml"] is None else (usual.smallest_ml,)
    points = {f"{KEPT}dice/{t:g}/{ml:g}": OperatingPoint(t, ml) for t in thresholds for ml in sizes}

    def score(
        probability: np.ndarray, target: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]
    ) -> dict[str, float | None]:
        truth = target > 0
        scores = lesion_scores(usual.mask(probability, spacing_mm), truth, spacing_mm, probability=probability)
        dice = dice_by_point(probability, truth, spacing_mm, thresholds=thresholds, smallest_ml=sizes)
        return scores | {name: dice[point] for name, point in points.items()}

    def settle(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return asdict(best_point([{point: subject[name] for name, point in points.items()} for subject in scores]))

    asked = Objective(
        arm=ARM,
        metric="dice",
        higher_is_better=True,
        score=score,
        about=about,
        mirror=about["mirror"],
        settle=settle,
    )
    weight, thickness_mm = params.lesion.tune.degraded_weight, params.lesion.tune.degraded_mm
    if weight == 0:
        return asked
    grid = params.lesion.preprocess
    if grid.grid_shape is None and thickness_mm < grid.spacing_mm:  # with a grid_shape the spacing is each image's own
        raise InputError(
            f"lesion.tune.degraded_mm in params.yaml is {thickness_mm:g} mm, thinner than the model grid's slices of "
            f"{grid.spacing_mm:g} mm (lesion.preprocess.spacing_mm): give at least that."
        )

    def degraded(image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        thick = np.moveaxis(thick_slices(Volume(np.moveaxis(image, 0, -1), affine), thickness_mm).data, -1, 0)
        # Background that normalisation or a skull strip has made 0 is 0 in an image that was acquired like that too.
        return np.where((mask == 0) & ~image.any(axis=0), np.float32(0), thick)

    def joined(clean: Mapping[str, float], coarse: Mapping[str, float]) -> dict[str, float]:
        def weighed(name: str) -> float:
            return (1 - weight) * clean[name] + weight * coarse[name]

        # The operating point goes by the same weighing: the model has one, for images of either kind.
        at_points = {name: weighed(name) for name in points}
        return {**clean, **at_points, WEIGHED_DICE: weighed("dice"), dice_at(thickness_mm): coarse["dice"]}

    return replace(
        asked,
        metric=WEIGHED_DICE,
        about=about | {"degraded_weight": weight, "degraded_mm": thickness_mm},
        degraded=Degraded(degraded, joined),
    )


def evaluate(params: Params) -> None:
    """results/lesion/evaluate: the hold-out on the source grid; model, rivals, an empty mask, a threshold."""
    from reperfuse.stages.assessment import evaluate_arm

    evaluate_arm(_assessment(params, rivals=True))


def resolution(
    params: Params, *, model: str | None = None, out: Path | None = None, runner: "Runner | None" = None
) -> None:
    """results/lesion/resolution: the same scores as the slices of the scan get thicker; truth stays as it is."""
    from reperfuse.stages.study import resolution_arm
    from reperfuse.stages.trained import model_folder

    judged = partial(_study, params, model_folder(model))
    resolution_arm(*judged(), model=model, out=out, runner=runner, again=judged)


def _study(params: Params, model: str | None) -> "tuple[Assessment, Study]":
    from reperfuse.stages.lesion_study import slice_study

    asked = _assessment(params, model=model, baselines=("baseline_threshold",))
    return asked, slice_study(params.lesion, params.seed)


def _assessment(
    params: Params,
    *,
    model: str | None = None,
    baselines: Sequence[str] = ("baseline_empty", "baseline_threshold"),
    rivals: bool = False,
) -> "Assessment":
    """How the lesion arm is judged: Dice and its sisters on the source grid, each network at its operating point.

    With `rivals` those that were trained beside the pipeline's own model (models/lesion/rivals) are judged too.
    """
    from reperfuse.evaluation.metrics import lesion_detections, lesion_scores
    from reperfuse.evaluation.operating_point import OperatingPoint
    from reperfuse.evaluation.resolution import LESIONS
    from reperfuse.evaluation.summary import MODEL
    from reperfuse.imaging.volume import load_volume
    from reperfuse.stages.assessment import Assessment, Case
    from reperfuse.stages.lesion_input import (
        Scan,
        brain_of,
        channels_of,
        given_brain,
        network_input,
        on_grid_of,
        on_model_grid,
        operating_point,
        read_images,
    )
    from reperfuse.stages.processed import description
    from reperfuse.stages.trained import TrainedModel, load_model

    trained = load_model(ARM, model, LesionPreprocess)
    root = layout.bids(ARM)
    networks = {MODEL: trained}
    for folder in sorted((layout.models(ARM) / "rivals").glob("*/")) if rivals else ():
        networks[f"rival_{folder.name}"] = load_model(ARM, str(folder), LesionPreprocess)
    points = {method: operating_point(network.scored_with) for method, network in networks.items()}

    def load(participant: str) -> Case:
        there = description(ARM, participant)
        images = read_images(root, participant, there["images"], trained.preprocess)
        brain = brain_of(images, trained.preprocess, given_brain(root, there["image"], trained.preprocess))
        return Case(Scan(images, brain), load_volume(root / there["mask"]))

    def prepare(scan: Scan) -> "Volume":
        return on_model_grid(scan.images, trained.preprocess, scan.brain)

    def predict(network: TrainedModel[LesionPreprocess], image: "Volume") -> np.ndarray:
        return network.predict(channels_of(network_input(image, network.preprocess)[0], network))

    def on_truth_grid(probability: np.ndarray, image: "Volume", case: Case) -> np.ndarray:
        return on_grid_of(case.truth, probability, image)

    def score(method: str, probability: np.ndarray, case: Case) -> dict[str, Any]:
        truth, spacing_mm = case.truth.data > 0, case.truth.spacing_mm
        mask = points.get(method, OperatingPoint()).mask(probability, spacing_mm)
        scores: dict[str, Any] = dict(lesion_scores(mask, truth, spacing_mm, probability=probability))
        return scores | {LESIONS: lesion_detections(mask, truth, spacing_mm)}

    methods: dict[str, Predict] = {method: partial(predict, network) for method, network in networks.items()}
    if "baseline_empty" in baselines:
        methods["baseline_empty"] = lambda image: np.zeros(image.data.shape[:3], np.float32)
    if "baseline_threshold" in baselines:
        methods["baseline_threshold"] = _threshold_baseline(trained.preprocess)
    return Assessment(
        arm=ARM,
        metric="dice",
        methods=methods,
        load=load,
        prepare=prepare,
        on_truth_grid=on_truth_grid,
        score=score,
        bootstrap=params.bootstrap(ARM),
        digest=trained.digest,
    )


def _threshold_baseline(settings: LesionPreprocess) -> "Predict":
    """The intensity threshold with the best mean Dice on the training subjects, on the first modality that is there."""
    from reperfuse.evaluation.baselines import best_threshold
    from reperfuse.stages.lesion_input import network_input
    from reperfuse.stages.processed import training_arrays

    def first(channels: np.ndarray) -> np.ndarray:
        return next((channel for channel in channels if channel.any()), channels[0])

    ends = (-4.0, 4.0)
    if settings.normalisation != "zscore":  # other intensities are no standard deviations
        tails = [np.percentile(first(image)[mask > 0], [0.1, 99.9]) for image, _, mask in training_arrays(ARM)]
        ends = float(np.min(tails)), float(np.max(tails))
    chosen = best_threshold(
        ((first(image), target > 0, mask > 0) for image, target, mask in training_arrays(ARM)),
        edges=np.linspace(*ends, 161),
    )

    def predict(image: "Volume") -> np.ndarray:
        array, brain = network_input(image, settings)
        return chosen(first(array), brain).astype(np.float32)

    return predict


def report(params: Params) -> None:
    """reports/lesion.html."""
    from reperfuse.evaluation.figures import lesion_overlay
    from reperfuse.evaluation.operating_point import OperatingPoint
    from reperfuse.evaluation.summary import MODEL
    from reperfuse.files import read_json
    from reperfuse.imaging.volume import load_volume
    from reperfuse.stages.lesion_input import operating_point
    from reperfuse.stages.processed import description
    from reperfuse.stages.reporting import report_arm

    rivals = sorted((layout.models(ARM) / "rivals").glob("*/"))
    folders = {MODEL: layout.models(ARM)} | {f"rival_{folder.name}": folder for folder in rivals}
    points = {
        method: operating_point(read_json(folder / "model.json")["extra"]["scored_with"])
        for method, folder in folders.items()
    }

    def overlay(
        participant: str, predictions: Mapping[str, np.ndarray], title: str, captions: Mapping[str, str]
    ) -> "Figure":
        paths = description(ARM, participant)
        image, truth = load_volume(layout.bids(ARM) / paths["image"]), load_volume(layout.bids(ARM) / paths["mask"])
        masks = {
            method: points.get(method, OperatingPoint()).mask(soft, truth.spacing_mm)
            for method, soft in predictions.items()
        }
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
        settings=params.lesion.report,
        bootstrap=params.bootstrap(ARM),
    )
