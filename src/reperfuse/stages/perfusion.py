"""The perfusion arm: DSC series with a reference Tmax in, a Tmax model and what it is worth out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reperfuse.params import Params, PerfusionPreprocess
from reperfuse.stages import layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reperfuse.imaging.volume import Volume
    from reperfuse.stages.assessment import Assessment, Predict
    from reperfuse.stages.learning import Objective

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
    """data/processed/perfusion: scaled signal on the network's frames, reference Tmax [s], brain masks."""
    from rich.progress import track

    from reperfuse.imaging.volume import load_volume
    from reperfuse.stages.processed import read_cohort, write_index, write_subject

    for row in track(read_cohort(ARM).to_dict("records"), description="preprocess perfusion"):
        volume = load_volume(layout.bids(ARM) / row["image"])
        array, brain = network_input(volume, params.perfusion.preprocess)
        write_subject(
            layout.processed(ARM) / row["participant_id"],
            array,
            load_volume(layout.bids(ARM) / row["reference"]).data.astype(np.float32),
            brain,
            {"affine": volume.affine.tolist(), "image": row["image"], "reference": row["reference"]},
        )
    write_index(ARM)


def network_input(volume: "Volume", settings: PerfusionPreprocess) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees, shape (n_frames, I, J, K) in 0–1, and the brain mask (I, J, K).

    The protocol of Sossin et al. 2021: threshold skull strip, signal scaled to 0–1 by the patient's extremes.
    We add a common time axis (other TR and frame counts are interpolated onto it) and, with `align_bolus`,
    a common arrival: the network sees no arterial input, so without it a late injection reads as a late Tmax.
    """
    from reperfuse.perfusion.concentration import bolus_arrival
    from reperfuse.preprocessing.brain import threshold_mask
    from reperfuse.preprocessing.geometry import resample_time
    from reperfuse.preprocessing.intensity import zero_one

    brain = threshold_mask(volume.data, settings.threshold_fraction)
    seconds = frame_times_s(volume)
    times = np.arange(settings.n_frames) * settings.tr_s
    if settings.align_bolus:
        arrival = bolus_arrival(volume.data[brain].mean(axis=0))
        times = times + seconds[arrival] - settings.bolus_frame * settings.tr_s
    frames = resample_time(volume.data, seconds, times)
    frames = zero_one(frames * brain[..., None])
    return np.moveaxis(frames, -1, 0), brain


def frame_times_s(series: "Volume") -> np.ndarray:
    """When each frame was taken, from its times or else its TR, shape (T,) [s].

    Raises
    ------
    InputError
        If the series has neither.
    """
    from reperfuse.errors import InputError

    if series.frame_times_s is not None:
        return series.frame_times_s
    if series.tr_s is None:
        raise InputError("A DSC series has neither FrameTimes nor RepetitionTime in its sidecar: run ingest again.")
    return np.arange(series.n_frames) * series.tr_s


def folds(params: Params) -> None:
    """results/perfusion/folds.csv: side and fold of every patient."""
    from reperfuse.stages.processed import write_folds

    write_folds(ARM, params.perfusion.folds)


def tune(params: Params, *, join: bool = False) -> None:
    """results/perfusion/tune: the search, scored by root mean squared error [s] on each validation fold.

    The square keeps the late tissue in view: by mean absolute error a map that is right nearly everywhere and misses
    the hypoperfused tenth wins.
    """
    from reperfuse.stages.learning import tune_arm

    tune_arm(params.perfusion, params.seed, _objective(), join=join)


def train(params: Params) -> None:
    """models/perfusion: the network trained on all training patients."""
    from reperfuse.stages.learning import train_arm

    train_arm(params.perfusion, params.seed, _objective())


def _objective() -> "Objective":
    from reperfuse.stages.learning import Objective

    def score(tmax: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
        return float(np.sqrt(np.square(tmax - reference)[mask > 0].mean()))

    return Objective(arm=ARM, metric="rmse_s", higher_is_better=False, score=score)


def evaluate(params: Params) -> None:
    """results/perfusion/evaluate: the hold-out, the model beside the training mean and plain SVD."""
    from reperfuse.stages.assessment import evaluate_arm

    evaluate_arm(_assessment(params))


def resolution(params: Params, *, model: str | None = None, out: Path | None = None) -> None:
    """results/perfusion/resolution: the same scores as the series is sampled more sparsely in time."""
    from reperfuse.imaging.volume import Volume
    from reperfuse.preprocessing.geometry import resample_time
    from reperfuse.stages.assessment import resolution_arm, study_folder

    def thinned(series: Volume, tr_s: float, axis: str) -> Volume:
        seconds = frame_times_s(series)
        times = np.arange(seconds[0], seconds[-1] + 1e-6, tr_s)
        frames = resample_time(series.data, seconds, times)
        return Volume(frames, series.affine, frame_times_s=times, te_s=series.te_s, tr_s=tr_s)

    resolution_arm(
        _assessment(params, model=model, baselines=("baseline_ssvd",)),
        levels=params.perfusion.resolution.tr_s,
        level_name="tr_s",
        axes=("t",),
        degrade=thinned,
        out=study_folder(model, out),
    )


def _assessment(
    params: Params, *, model: str | None = None, baselines: Sequence[str] = ("baseline_mean", "baseline_ssvd")
) -> "Assessment":
    """How the perfusion arm is judged: seconds of error inside the brain, and hypoperfused volume."""
    from reperfuse.evaluation.metrics import tmax_scores
    from reperfuse.imaging.volume import load_volume
    from reperfuse.perfusion.maps import perfusion_maps
    from reperfuse.preprocessing.brain import threshold_mask
    from reperfuse.stages.assessment import Assessment, Case
    from reperfuse.stages.processed import description, training_arrays
    from reperfuse.stages.trained import load_model

    settings = params.perfusion.evaluate
    trained = load_model(ARM, model, PerfusionPreprocess)

    def brain_of(series: "Volume") -> np.ndarray:
        return threshold_mask(series.data, trained.preprocess.threshold_fraction)

    def load(participant: str) -> Case:
        paths = description(ARM, participant)
        return Case(load_volume(layout.bids(ARM) / paths["image"]), load_volume(layout.bids(ARM) / paths["reference"]))

    def predict(series: "Volume") -> np.ndarray:
        array, brain = network_input(series, trained.preprocess)
        return trained.predict(array) * brain

    def score(tmax: np.ndarray, case: Case) -> dict[str, float | None]:
        return tmax_scores(
            tmax, case.truth.data, brain_of(case.image), case.truth.spacing_mm, threshold_s=settings.tmax_threshold_s
        )

    methods: dict[str, Predict] = {"model": predict}
    if "baseline_mean" in baselines:
        mean_s = float(np.mean([target[mask > 0].mean() for _, target, mask in training_arrays(ARM)]))
        methods["baseline_mean"] = lambda series: mean_s * brain_of(series)
    if "baseline_ssvd" in baselines:
        methods["baseline_ssvd"] = lambda series: perfusion_maps(series, method="ssvd", mask=brain_of(series))["tmax"]
    return Assessment(ARM, "mae_s", methods, load, lambda tmax, case: tmax, score, params.bootstrap(ARM))


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
        n_overlays=params.perfusion.report.n_overlays,
        bootstrap=params.bootstrap(ARM),
    )
