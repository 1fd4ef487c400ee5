"""The perfusion arm: DSC series with a reference Tmax in, a Tmax model and what it is worth out."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reperfuse.params import Params, PerfusionPreprocess
from reperfuse.stages import layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reperfuse.imaging.volume import Volume
    from reperfuse.stages.assessment import Assessment, Predict
    from reperfuse.stages.fanout import Runner
    from reperfuse.stages.fitting import Objective
    from reperfuse.stages.study import Study

ARM = "perfusion"


def cohort(params: Params) -> None:
    """results/perfusion/cohort.csv: who is there and takes part."""
    from reperfuse.cohort.bids import perfusion_cohort
    from reperfuse.imaging.volume import load_volume
    from reperfuse.stages.processed import write_cohort

    def hypoperfused_ml(reference: str | None) -> float | None:
        if reference is None:
            return None
        tmax = load_volume(layout.bids(ARM) / reference)
        late = np.count_nonzero(tmax.data > params.perfusion.evaluate.tmax_threshold_s)
        return float(late * np.prod(tmax.spacing_mm) / 1000)

    table = perfusion_cohort(layout.bids(ARM))
    table["hypoperfused_ml"] = [hypoperfused_ml(reference) for reference in table["reference"]]
    write_cohort(ARM, table, table["reference"].notna() | (not params.perfusion.cohort.require_reference))


def preprocess(params: Params) -> None:
    """data/processed/perfusion: channels and targets that networks may choose among, and brain masks.

    A patient without the artery that a channel or a target needs is left out with a sentence; the others go on.
    """
    from rich.progress import track

    from reperfuse.errors import InputError
    from reperfuse.imaging.volume import load_volume
    from reperfuse.perfusion.aif import NoArtery
    from reperfuse.preprocessing.brain import threshold_mask
    from reperfuse.stages.perfusion_inputs import Examination, learned_targets, network_input
    from reperfuse.stages.processed import read_cohort, source, write_index, write_subject

    settings = params.perfusion.preprocess
    for row in track(read_cohort(ARM).to_dict("records"), description="preprocess perfusion"):
        path, path_of_reference = layout.bids(ARM) / row["image"], layout.bids(ARM) / row["reference"]
        volume, reference = load_volume(path), load_volume(path_of_reference)
        scan = Examination(volume, threshold_mask(volume.data, settings.threshold_fraction))
        try:
            array, brain, groups = network_input(volume, settings, scan=scan)
            targets = learned_targets(reference, scan, settings.targets)
        except NoArtery as error:
            print(f"{row['participant_id']} is left out: {error}")
            continue
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        write_subject(
            layout.processed(ARM) / row["participant_id"],
            array,
            targets,
            brain,
            {
                "affine": volume.affine.tolist(),
                "image": row["image"],
                "reference": row["reference"],
                "inputs": groups,
                "targets": settings.targets,
                "source": source(volume.data, [path, path_of_reference]),
            },
            dtype=np.float16,
        )
    write_index(ARM)


def folds(params: Params) -> None:
    """results/perfusion/folds.csv: side and fold of every patient."""
    from reperfuse.stages.processed import write_folds

    write_folds(ARM, params.perfusion.folds)


def tune(params: Params, *, join: bool = False) -> None:
    """results/perfusion/tune: the search, scored by root mean squared error [s] on each validation fold.

    The square keeps the late tissue in view: by mean absolute error a map that is right nearly everywhere and misses
    the hypoperfused tenth wins.
    """
    from dataclasses import replace

    from reperfuse.stages.learning import tune_arm

    objective = _objective(params)
    if objective.metric == "rmse_s":
        objective = replace(objective, baselines=_deconvolved)
    tune_arm(params.perfusion, params.seed, objective, join=join)


def train(params: Params) -> None:
    """models/perfusion: the network trained on all training patients."""
    from reperfuse.stages.learning import train_arm

    train_arm(params.perfusion, params.seed, _objective(params))


def _objective(params: Params) -> "Objective":
    """What the search scores: Tmax as the hold-out is scored, any other map by its errors in its own unit."""
    from reperfuse.evaluation.metrics import map_scores
    from reperfuse.stages.fitting import Objective
    from reperfuse.stages.perfusion_inputs import TMAX

    asked = params.perfusion
    choices = asked.tune.space.get("target", {}).get("choices", [asked.train.target])
    if {choice or asked.preprocess.targets[0] for choice in choices} != {TMAX}:
        return Objective(arm=ARM, metric="rmse", higher_is_better=False, score=map_scores, starts_at_mean=True)
    return Objective(
        arm=ARM,
        metric="rmse_s",
        higher_is_better=False,
        score=partial(_search_scores, threshold_s=asked.evaluate.tmax_threshold_s),
        starts_at_mean=True,
        about={"tmax_threshold_s": asked.evaluate.tmax_threshold_s},
    )


SEARCH_METRICS = ("rmse_s", "mse_s2", "mae_s", "ssim", "dice", "volume_difference_ml", "volume_error_ml")
"""Of `evaluation.metrics.tmax_scores`, what the search keeps of each validation patient."""


def _search_scores(
    tmax: np.ndarray, reference: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], *, threshold_s: float
) -> dict[str, float | None]:
    """`SEARCH_METRICS` of a prediction, each `None` where it is undefined or the prediction is no map."""
    from reperfuse.evaluation.metrics import tmax_scores

    if not np.isfinite(tmax[mask > 0]).all():
        return dict.fromkeys(SEARCH_METRICS)
    scores = tmax_scores(tmax, reference, mask, spacing_mm, threshold_s=threshold_s)
    return {name: scores[name] for name in SEARCH_METRICS}


def _deconvolved(participant: str) -> dict[str, np.ndarray]:
    """Tmax [s] of a processed patient by deconvolution, method to (I, J, K); none where no artery is found."""
    from reperfuse.imaging.volume import load_volume
    from reperfuse.perfusion.aif import NoArtery
    from reperfuse.stages.perfusion_inputs import TMAX, Examination
    from reperfuse.stages.processed import description

    series = load_volume(layout.bids(ARM) / description(ARM, participant)["image"])
    brain = np.load(layout.processed(ARM) / participant / "mask.npy") > 0
    try:
        passage = Examination(series, brain).passage
    except NoArtery:
        return {}
    return {f"baseline_{method}": passage.maps(method)[TMAX] for method in ("ssvd", "osvd")}


def evaluate(params: Params) -> None:
    """results/perfusion/evaluate: the hold-out; the model beside its rivals and what it must beat (`BASELINES`)."""
    from reperfuse.stages.assessment import evaluate_arm

    evaluate_arm(_assessment(params, rivals=True))


def resolution(
    params: Params, *, model: str | None = None, out: Path | None = None, runner: "Runner | None" = None
) -> None:
    """results/perfusion/resolution: the same scores as the series gets sparser in time and noisier."""
    from reperfuse.stages.study import resolution_arm
    from reperfuse.stages.trained import model_folder

    judged = partial(_study, params, model_folder(model))
    resolution_arm(*judged(), model=model, out=out, runner=runner, again=judged)


def _study(params: Params, model: str | None) -> "tuple[Assessment, Study]":
    from reperfuse.preprocessing.brain import threshold_mask
    from reperfuse.stages.perfusion_inputs import frame_times_s
    from reperfuse.stages.perfusion_resolution import degraded, within_reach
    from reperfuse.stages.study import Study

    fraction, asked = params.perfusion.preprocess.threshold_fraction, params.perfusion.resolution

    def degrade(series: "Volume", tr_s: float, snr: float) -> "Volume":
        brain = threshold_mask(series.data, fraction)
        return degraded(series, frame_times_s(series), tr_s, snr, brain, seed=params.seed)

    def reach(series: "Volume", levels: Mapping[float, Sequence[float]]) -> Mapping[float, Sequence[float]]:
        brain = threshold_mask(series.data, fraction)
        intervals, noises = within_reach(series, frame_times_s(series), brain, asked.tr_s, asked.snr)
        return {snr: intervals for snr in levels if snr in noises}

    study = Study(
        level_name="tr_s",
        levels=dict.fromkeys(asked.snr, asked.tr_s),
        degrade=degrade,
        reach=reach,
        sizes="hypoperfused_ml",
        about={"seed": params.seed, "threshold_fraction": fraction, **params.perfusion.evaluate.model_dump()},
        workers=asked.workers,
    )
    baselines = ("baseline_learned", "baseline_osvd", "baseline_ssvd")
    return _assessment(params, model=model, baselines=baselines), study


BASELINES = ("baseline_mean", "baseline_ssvd", "baseline_osvd", "baseline_learned")
"""What the model must beat: the mean of the training patients, two deconvolutions, and the network that ships with the
package, trained on simulations alone."""


def _assessment(
    params: Params, *, model: str | None = None, baselines: Sequence[str] = BASELINES, rivals: bool = False
) -> "Assessment":
    """How the perfusion arm is judged: seconds of error inside the brain, and hypoperfused volume.

    A method that needs an artery has no prediction for a series without one. With `rivals` those that were trained
    beside the pipeline's own model (models/perfusion/rivals) are judged too.
    """
    from reperfuse.evaluation.metrics import tmax_scores
    from reperfuse.imaging.volume import load_volume
    from reperfuse.perfusion.aif import NoArtery
    from reperfuse.perfusion.maps import image_of
    from reperfuse.preprocessing.brain import threshold_mask
    from reperfuse.stages.assessment import Assessment, Case
    from reperfuse.stages.learned import learned_maps, load_learned
    from reperfuse.stages.perfusion_inputs import TMAX, Examination, Passage, predicted_tmax
    from reperfuse.stages.processed import description, training_arrays
    from reperfuse.stages.trained import TrainedModel, load_model

    settings = params.perfusion.evaluate
    trained = load_model(ARM, model, PerfusionPreprocess)

    # The methods take turns on one series: its brain, bolus and artery are found once. Two series of each subject that
    # is studied at the time, as it came and degraded.
    @lru_cache(maxsize=2 * params.perfusion.resolution.workers)
    def examined(series: "Volume") -> Examination:
        return Examination(series, threshold_mask(series.data, trained.preprocess.threshold_fraction))

    def load(participant: str) -> Case:
        paths = description(ARM, participant)
        return Case(load_volume(layout.bids(ARM) / paths["image"]), load_volume(layout.bids(ARM) / paths["reference"]))

    def by_network(used: TrainedModel[PerfusionPreprocess]) -> "Predict":
        def predict(series: "Volume") -> np.ndarray | None:
            try:
                return predicted_tmax(series, used, scan=examined(series))
            except NoArtery:
                return None

        return predict

    def deconvolved_tmax(method: str, passage: Passage) -> np.ndarray:
        return passage.maps(method)[TMAX]

    def by_physics(tmax_of: Callable[[Passage], np.ndarray]) -> "Predict":
        def predict(series: "Volume") -> np.ndarray | None:
            try:
                passage = examined(series).passage
            except NoArtery:
                return None
            return tmax_of(passage)

        return predict

    def score(method: str, tmax: np.ndarray, case: Case) -> dict[str, float | None]:
        brain, spacing_mm = examined(case.scan).brain, case.truth.spacing_mm
        return tmax_scores(tmax, case.truth.data, brain, spacing_mm, threshold_s=settings.tmax_threshold_s)

    methods: dict[str, Predict] = {"model": by_network(trained)}
    for folder in sorted((layout.models(ARM) / "rivals").glob("*/")) if rivals else ():
        methods[f"rival_{folder.name}"] = by_network(load_model(ARM, str(folder), PerfusionPreprocess))
    if "baseline_mean" in baselines:
        means = [target[mask > 0].mean() for _, target, mask in training_arrays(ARM, target=TMAX)]
        methods["baseline_mean"] = lambda series: float(np.mean(means)) * examined(series).brain
    for method in ("ssvd", "osvd"):
        if f"baseline_{method}" in baselines:
            methods[f"baseline_{method}"] = by_physics(partial(deconvolved_tmax, method))
    if "baseline_learned" in baselines:
        shipped = load_learned()

        def learned_tmax(passage: Passage) -> np.ndarray:
            bolus = passage.bolus
            found, _ = learned_maps(bolus.curves, passage.aif, bolus.dt, bolus.brain_noise, shipped)
            return image_of(found[TMAX], bolus.brain)

        methods["baseline_learned"] = by_physics(learned_tmax)
    return Assessment(
        arm=ARM,
        metric="mae_s",
        methods=methods,
        load=load,
        prepare=lambda series: series,
        on_truth_grid=lambda tmax, series, case: tmax,
        score=score,
        bootstrap=params.bootstrap(ARM),
        digest=trained.digest,
    )


def report(params: Params) -> None:
    """reports/perfusion.html."""
    from reperfuse.evaluation.figures import tmax_panels
    from reperfuse.imaging.volume import load_volume
    from reperfuse.preprocessing.brain import threshold_mask
    from reperfuse.stages.processed import description
    from reperfuse.stages.reporting import report_arm

    def overlay(
        participant: str, predictions: Mapping[str, np.ndarray], title: str, captions: Mapping[str, str]
    ) -> "Figure":
        paths = description(ARM, participant)
        reference = load_volume(layout.bids(ARM) / paths["reference"])
        series = load_volume(layout.bids(ARM) / paths["image"])
        brain = threshold_mask(series.data, params.perfusion.preprocess.threshold_fraction)
        return tmax_panels(
            reference.data,
            predictions,
            brain,
            reference.spacing_mm,
            affine=reference.affine,
            title=title,
            captions=captions,
        )

    report_arm(
        ARM,
        title="Tmax from DSC perfusion MRI",
        metric="mae_s",
        level_name="tr_s",
        sizes="hypoperfused_ml",
        overlay=overlay,
        settings=params.perfusion.report,
        bootstrap=params.bootstrap(ARM),
    )
