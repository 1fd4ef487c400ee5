"""What params.yaml may say: every parameter's name, unit, bound and reason; unknown keys are refused.

`Params()` holds the defaults, and so do commands that run outside a checkout. params.yaml repeats all of
them, because that is the file people edit and DVC watches; a test holds the two equal.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from reperfuse.errors import InputError

Arm = Literal["lesion", "perfusion"]
ARMS: tuple[Arm, ...] = ("lesion", "perfusion")

Modality = Literal["t1w", "dwi", "adc", "flair"]
"""Those of `cohort.lesion_names.MODALITIES`; a test holds the two equal."""


class Section(BaseModel):
    """A part of params.yaml: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# ---- what both arms share -------------------------------------------------------------------------------------------
class Folds(Section):
    """Who is held out, and how the rest is cross-validated."""

    n_folds: int = Field(3, ge=2, le=20, description="cross-validation folds among the training subjects")
    holdout_fraction: float = Field(
        0.25, gt=0, lt=1, description="expected share of subjects (or centres) that tuning never sees"
    )
    salt: str = Field(
        "reperfuse",
        description="mixed into the hash that fixes a subject's side; change it before a study, never after",
    )
    group_by: Literal["auto", "participant_id", "centre"] = Field(
        "auto",
        description="what may not be on two sides; `centre` is the stricter test of transfer. `auto` is the centre "
        "where all are known and at least 10, else the subject; write the choice down before centres join",
    )
    holdout_count: int | None = Field(
        None,
        ge=1,
        description="exactly so many groups held out, the first by hash, in place of a share; null goes by the share. "
        "For closed cohorts: a subject that joins may take another one's place",
    )


class Tune(Section):
    """The search that Optuna makes with cross-validation."""

    n_trials: int = Field(3, ge=1, description="trials in the study, over all workers and resumptions")
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="how trials are proposed; `grid` wants choices only"
    )
    prune: bool = Field(True, description="stop a trial between folds when it loses against the best one (Wilcoxon)")
    workers: int = Field(1, ge=1, le=64, description="processes that share the study on this machine")
    epochs: int = Field(2, ge=1, description="epochs of each fold; shorter than the final training")
    space: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="a field of `train`, `network_kwargs.NAME` or `sampling.NAME`, to {low, high, log, step} or "
        "{choices}",
    )
    rivals: str | None = Field(
        None,
        description="a name in `space`, such as `network`: the best trial of each of its choices is trained too, and "
        "shown beside the model on the hold-out; null trains the best trial alone",
    )


class LesionTune(Tune):
    """The search of the lesion arm."""

    degraded_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="w of (1 − w)·Dice + w·Dice with thick slices, by which trials are compared; 0 goes by Dice of the "
        "images as they are and predicts none twice",
    )
    degraded_mm: float = Field(
        10.0, gt=0, description="thickness of those slices along k [mm]; from the model grid's own upwards"
    )


class Sampling(Section):
    """Where training samples lie in their volumes."""

    kind: Literal["patches", "rejection", "slices"] = Field(
        "patches",
        description="`patches` lie anywhere or on the target, or are whole volumes where `patch_size` is null; "
        "`rejection` keeps a random one only if it holds enough of the lesion; `slices` are planes",
    )
    lesion_share: float = Field(
        0.4,
        gt=0,
        le=1,
        description="of a subject's lesion in a patch of `rejection`; without lesion any patch will do",
    )
    tries: int = Field(50, ge=1, le=1000, description="patches that `rejection` draws before it takes the best of them")
    slice_axis: Literal["k"] = Field(
        "k", description="axis across the slices of `slices`: the one that networks cut a volume along; k is axial"
    )
    slice_range: tuple[float, float] = Field(
        (0.0, 1.0), description="part of that axis from which `slices` come: their centres, as fractions of its extent"
    )
    slices: Literal["any", "lesion", "empty"] = Field(
        "any",
        description="`lesion` takes slices with lesion only, `empty` those without; a subject with none such in the "
        "range gives any of it",
    )

    @field_validator("slice_range")
    @classmethod
    def _rises(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= ends[0] < ends[1] <= 1:
            raise ValueError("it must rise, from 0 or more to 1 or less")
        return ends


class Train(Section):
    """The final training; `tune` starts from the same values."""

    network: str = Field(description="a name in reperfuse.networks.NETWORKS")
    network_kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of the network")
    inputs: tuple[str, ...] = Field(
        (), description="groups of the processed channels that the network takes, in this order; none is its own choice"
    )
    target: str | None = Field(None, description="which of the processed targets is learned; null is the first")
    init_from: str | None = Field(
        None,
        description="weights to start from, as far as names and shapes fit: `learned` (those that ship with the "
        "package), a registered model (models:/…), a folder or a safetensors file; null starts anew",
    )
    loss: str = Field(description="a name in reperfuse.training.losses.LOSSES")
    epochs: int = Field(ge=1, description="passes of `steps_per_epoch` steps")
    steps_per_epoch: int | None = Field(
        ge=1, description="optimiser steps in an epoch; null is one pass over the training subjects"
    )
    batch_size: int = Field(ge=1, description="patches in a step")
    patch_size: tuple[int, int, int] | None = Field(
        description="voxels (i, j, k) of a training patch; null is the whole volume"
    )
    foreground_fraction: float = Field(
        ge=0, le=1, description="share of `patches` centred on a voxel of the target; of no account for other sampling"
    )
    sampling: Sampling = Sampling()
    augment: Literal["none", "light", "published", "strong"] = Field(
        description="on the fly: `light` flips and slightly changes intensities, `published` windows, flips, rotates "
        "and zooms in the plane as a residual 2D U-Net was trained, `strong` is nnU-Net's set"
    )
    acquisition: Literal["none", "slices", "synthseg", "anisotropy", "low_resolution"] = Field(
        "none",
        description="coarser images on the fly, masks as they are: `slices` are 1 to 10 mm thick along a random axis, "
        "the others what SynthSeg, TorchIO and nnU-Net do",
    )
    acquisition_share: float = Field(1.0, ge=0, le=1, description="of the samples that `acquisition` reaches")
    optimiser: Literal["adam", "adamw"] = Field(description="gradient descent rule")
    schedule: Literal["constant", "cosine", "polynomial"] = Field(description="learning rate over the training")
    learning_rate: float = Field(gt=0, description="initial step size")
    weight_decay: float = Field(ge=0, description="decoupled for adamw")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the average of the weights that is used; 0 uses the last ones"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="`auto` takes a GPU when there is one")
    precision: Literal["auto", "32", "bf16-mixed"] = Field(
        "auto", description="`auto` takes bf16 where the processor computes in it"
    )
    num_workers: int = Field(0, ge=0, le=64, description="processes that load patches; 0 loads in the training process")

    @field_validator("sampling")
    @classmethod
    def _goes_with_the_patch_size(cls, sampling: Sampling, info: ValidationInfo) -> Sampling:
        size = info.data.get("patch_size")
        if sampling.kind == "rejection" and size is None:
            raise ValueError("rejection draws patches: set patch_size, such as [64, 64, 64]")
        if sampling.kind == "slices" and size is not None and size[2] != 1:
            raise ValueError("slices are one voxel thick: set patch_size to null, or such as [192, 224, 1]")
        return sampling


class Evaluate(Section):
    """The hold-out, scored once."""

    bootstrap_samples: int = Field(2000, ge=100, description="resamples behind each interval")
    level: float = Field(0.95, gt=0, lt=1, description="coverage of each interval")


class Report(Section):
    """The HTML page."""

    n_overlays: int = Field(3, ge=1, le=12, description="subjects shown: best, median, worst, then evenly between")
    metrics: tuple[str, ...] = Field(
        (),
        description="scores that the page, and an experiment's table, begin with, names of evaluation.metrics.METRICS; "
        "methods are compared by the first. None is the arm's own",
    )


class Promote(Section):
    """The gate between a trained model and the alias `champion`; a model is judged by the one it was trained under."""

    non_inferiority_margin: float = Field(
        ge=0,
        description="how much worse than the champion the mean hold-out score may be, in the metric's unit: the bound "
        "of the paired difference must not lie beyond",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of that bound, one-sided")
    minimum_subjects: int = Field(
        10, ge=2, description="below this many hold-out subjects shared with the champion it is too few to decide"
    )
    better_by: float = Field(
        ge=0, description="by how much the mean must be better, in the metric's unit, unless there were `more_data`"
    )
    more_data: float = Field(
        0.1, ge=0, description="share of training subjects beyond the champion's that counts as a gain by itself"
    )
    resolution_margin: float | None = Field(
        default_factory=lambda given: given["non_inferiority_margin"],
        ge=0,
        description="as `non_inferiority_margin` for the mean at the coarsest level that the resolution studies of "
        "both have; null leaves the studies out of the decision. Left out, it is `non_inferiority_margin`",
    )
    subgroup_margin: float = Field(
        ge=0,
        description="how much worse the mean of a centre or of a class of true volume may be, in the metric's unit",
    )
    subgroup_subjects: int = Field(5, ge=1, description="smaller groups are not judged: a subject or two are no group")


# ---- lesion ---------------------------------------------------------------------------------------------------------
class LesionCohort(Section):
    """Who takes part."""

    min_lesion_ml: float = Field(
        0.0, ge=0, description="leave out subjects with a smaller lesion [mL]; 0 keeps all, also the lesion-free"
    )


class LesionPreprocess(Section):
    """From the images to what the network sees."""

    modalities: tuple[Modality, ...] = Field(
        ("t1w",),
        min_length=1,
        description="images that become channels, in this order; the first gives the grid. ATLAS has t1w, ISLES'22 "
        "dwi, adc and flair. A subject may lack some, whose channels are 0",
    )
    spacing_mm: float = Field(
        2.0, gt=0, le=10, description="isotropic grid [mm]; 1 is the source's own, 2 is an eighth of the memory"
    )
    grid_shape: tuple[int, int, int] | None = Field(
        None,
        description="voxels (i, j, k) that the whole field of view is downsized to, such as 64 or 128 each, in place "
        "of `spacing_mm`; null goes by the spacing",
    )
    pad_multiple: int = Field(
        1, ge=1, le=64, description="zeros are added until each axis is a multiple of this; 1 adds none"
    )
    skull_strip: Literal["none", "threshold", "template", "given", "hd-bet", "synthstrip"] = Field(
        "none",
        description="what is outside the brain becomes 0: `threshold` keeps the largest body above "
        "`threshold_fraction`, `template` brings the MNI152 brain onto the image, `given` takes a mask from the tree, "
        "the others call that program. ATLAS R2.0 comes with the skull",
    )
    threshold_fraction: float = Field(0.10, gt=0, lt=1, description="of the robust maximum; used for the brain mask")
    normalisation: Literal["zscore", "roi_minmax", "window", "none"] = Field(
        "zscore", description="intensities inside the brain mask; `window` cuts at their 1st and 99th percentile"
    )

    @field_validator("modalities")
    @classmethod
    def _once_each(cls, modalities: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(modalities)) < len(modalities):
            raise ValueError("a modality is named twice")
        return modalities

    @field_validator("grid_shape")
    @classmethod
    def _some_voxels(cls, shape: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if shape is not None and min(shape) < 8:
            raise ValueError("a grid has at least 8 voxels along each axis")
        return shape


class LesionEvaluate(Evaluate):
    """The hold-out, scored on the source grid."""

    probability_threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="above it a voxel is lesion; null chooses it on the validation subjects of the search, by Dice",
    )
    smallest_ml: float | None = Field(
        None, ge=0, description="predicted pieces below it are taken away [mL]; null chooses it in the same way"
    )
    mirror: bool = Field(
        False,
        description="whether a network's answers for the eight mirror images are averaged, in the search's scores too: "
        "eight times as long",
    )


class LesionResolution(Section):
    """Score against slice thickness: the scans as they came, with thicker slices."""

    thickness_mm: tuple[float, ...] = Field(
        (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0),
        min_length=2,
        description="slice thickness [mm]; thinner ones than a scan's own are left out",
    )
    axes: tuple[Literal["i", "j", "k"], ...] = Field(
        ("k",),
        min_length=1,
        description="slice direction: array axis of the RAS scan, k is axial; the first is the main",
    )
    other_axes_mm: tuple[float, ...] | None = Field(
        (5.0, 10.0), description="thicknesses along the other axes, beside the finest; null is all of them"
    )
    profile: str = Field("gaussian", description="slice profile: gaussian, box, or a CSV file with a measured one")
    gap_mm: float = Field(0.0, ge=0, le=20, description="between one slice and the next [mm]")
    interpolation: Literal["linear", "nearest", "cubic"] = Field(
        "linear", description="how thick slices are brought to the voxels that the scan had"
    )
    workers: int = Field(2, ge=1, le=64, description="subjects studied at once, each on its share of the processor")


class LesionTrain(Train):
    """The final training of the lesion arm."""

    network: str = "unet3d"
    network_kwargs: dict[str, Any] = {"widths": [12, 24, 48, 96]}
    loss: str = "dice_bce"
    epochs: int = Field(14, ge=1)
    steps_per_epoch: int | None = Field(25, ge=1)
    batch_size: int = Field(2, ge=1)
    patch_size: tuple[int, int, int] | None = (48, 48, 48)
    foreground_fraction: float = Field(0.7, ge=0, le=1)
    augment: Literal["none", "light", "published", "strong"] = "light"
    optimiser: Literal["adam", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine", "polynomial"] = "cosine"
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)


class LesionParams(Section):
    """Stages of the lesion arm."""

    cohort: LesionCohort = LesionCohort()
    preprocess: LesionPreprocess = LesionPreprocess()
    folds: Folds = Folds()
    tune: LesionTune = LesionTune(
        space={
            "learning_rate": {"low": 2e-3, "high": 2e-2, "log": True},
            "loss": {"choices": ["dice_bce", "soft_dice"]},
        }
    )
    train: LesionTrain = LesionTrain()
    evaluate: LesionEvaluate = LesionEvaluate()
    resolution: LesionResolution = LesionResolution()
    report: Report = Report()
    promote: Promote = Promote(non_inferiority_margin=0.02, better_by=0.01, subgroup_margin=0.05)


# ---- perfusion ------------------------------------------------------------------------------------------------------
class PerfusionCohort(Section):
    """Who takes part."""

    require_reference: bool = Field(
        True, description="leave out patients without a reference Tmax map, which cannot train or score"
    )


class PerfusionPreprocess(Section):
    """From the DSC series to what the network sees."""

    threshold_fraction: float = Field(
        0.10, gt=0, lt=1, description="skull strip: of the robust maximum of the mean image (Sossin 2021: 10 %)"
    )
    n_frames: int = Field(60, ge=2, description="frames the network takes as channels")
    tr_s: float = Field(1.5, gt=0, description="time between them [s]; other series are interpolated onto it")
    align_bolus: bool = Field(
        True,
        description="shift time so that the bolus arrives at `bolus_frame`: the network sees no AIF to tell when",
    )
    bolus_frame: int = Field(12, ge=1, description="frame of arrival after alignment")
    inputs: tuple[Literal["signal", "aif", "vof", "maps", "matched"], ...] = Field(
        ("signal", "matched"),
        min_length=1,
        description="groups of channels written for networks: `signal` (frames, 0-1), `aif` and `vof` (artery and "
        "vein, the same in each voxel), `maps` (oSVD), `matched` (matched filters of curve and AIF, any TR)",
    )
    targets: tuple[Literal["tmax", "cbf", "cbv", "mtt", "ttp"], ...] = Field(
        ("tmax",),
        min_length=1,
        description="what networks may learn: `tmax` is the reference map, the others are oSVD's of the same series",
    )


class PerfusionEvaluate(Evaluate):
    """The hold-out, scored on the source grid inside the brain."""

    tmax_threshold_s: float = Field(6.0, gt=0, description="hypoperfusion is Tmax above it [s]")


class PerfusionResolution(Section):
    """Score against temporal resolution."""

    tr_s: tuple[float, ...] = Field(
        (1.0, 1.5, 2.0, 2.5, 3.0),
        min_length=2,
        description="repetition time the series is thinned to [s]; finer ones than a patient's own are left out",
    )
    snr: tuple[float, ...] = Field(
        (50.0, 20.0),
        min_length=1,
        description="S0/σ that noise is added to reach; a series that is noisier than that is left out",
    )
    workers: int = Field(2, ge=1, le=64, description="patients studied at once, each on their share of the processor")


class PerfusionTrain(Train):
    """The final training of the perfusion arm."""

    network: str = "tmax_matched"
    init_from: str | None = "learned"
    loss: str = "mse"
    epochs: int = Field(12, ge=1)
    steps_per_epoch: int | None = Field(20, ge=1)
    batch_size: int = Field(4, ge=1)
    patch_size: tuple[int, int, int] | None = (32, 32, 8)
    foreground_fraction: float = Field(0.0, ge=0, le=1)
    augment: Literal["none", "light", "published", "strong"] = "none"
    optimiser: Literal["adam", "adamw"] = "adam"
    schedule: Literal["constant", "cosine", "polynomial"] = "cosine"
    learning_rate: float = Field(1e-3, gt=0)
    precision: Literal["auto", "32", "bf16-mixed"] = "32"
    weight_decay: float = Field(0.0, ge=0)


class PerfusionMaps(Section):
    """`reperfuse maps`: physics and clinical rules; outside the pipeline, so a change makes no stage stale."""

    method: str = Field(
        "osvd",
        description="when the command line names none: osvd, csvd, ssvd or tikhonov (deconvolution), learned (the "
        "network that ships with the package), champion, or any model of the perfusion arm (models:/…, a folder)",
    )
    motion_correction: bool = Field(True, description="realign the frames where that helps; they are left alone else")
    leakage_correction: bool = Field(False, description="Boxerman–Schmainda–Weisskoff, for CBV (and MTT) only")
    integration: Literal["full", "first_pass"] = Field(
        "full", description="frames of the CBV integrals; the first pass alone cuts the tail of slow tissue"
    )
    hematocrit_correction: bool = Field(True, description="k_H/ρ = 0.73/1.04 on CBF and CBV alike")
    partial_volume_correction: bool = Field(
        True, description="scale the AIF to the area of the venous output, where one is found; Tmax does not change"
    )
    white_matter_normalisation: bool = Field(
        False, description="scale CBF and CBV so that normal white matter has its textbook value"
    )
    brain_fraction: float = Field(
        0.10, gt=0, lt=1, description="brain is brighter than this part of the robust maximum, when no --mask is given"
    )
    tmax_thresholds_s: tuple[float, ...] = Field(
        (4.0, 6.0, 8.0, 10.0), description="volumes of Tmax above these [s]; 6 and 10 must be among them"
    )
    minimum_island_ml: float = Field(1.0, ge=0, description="smaller islands are left out of volumes [mL]")
    exclude_csf: bool = Field(True, description="leave CSF out of volumes")
    exclude_vessels: bool = Field(True, description="leave large vessels out of volumes")
    core_adc: float = Field(620.0, gt=0, description="core is ADC below this [10⁻⁶ mm²/s], with --adc")
    core_rcbf: float = Field(
        0.30, gt=0, lt=1, description="core is CBF below this part of normal tissue's, inside Tmax > 6 s, without --adc"
    )

    @field_validator("tmax_thresholds_s")
    @classmethod
    def _with_six_and_ten(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if not {6.0, 10.0} <= set(thresholds):
            raise ValueError("6 and 10 s must be among them, which mismatch and intensity ratio rest on")
        return thresholds


class PerfusionParams(Section):
    """Stages of the perfusion arm, and the maps verb."""

    cohort: PerfusionCohort = PerfusionCohort()
    preprocess: PerfusionPreprocess = PerfusionPreprocess()
    folds: Folds = Folds()
    tune: Tune = Tune(
        space={
            "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
            "loss": {"choices": ["mse", "huber"]},
            "network": {"choices": ["tmax_matched", "tmax_2layer"]},
        }
    )
    train: PerfusionTrain = PerfusionTrain()
    evaluate: PerfusionEvaluate = PerfusionEvaluate()
    resolution: PerfusionResolution = PerfusionResolution()
    report: Report = Report()
    promote: Promote = Promote(non_inferiority_margin=0.1, better_by=0.05, subgroup_margin=0.3)
    maps: PerfusionMaps = PerfusionMaps()


class Params(Section):
    """All of params.yaml."""

    seed: int = Field(2026, ge=0, description="of every random draw that is not the data's own")
    lesion: LesionParams = LesionParams()
    perfusion: PerfusionParams = PerfusionParams()

    def bootstrap(self, arm: str) -> dict[str, float]:
        """Arguments of the intervals of an arm's scores: samples, level, seed."""
        evaluate = self.lesion.evaluate if arm == "lesion" else self.perfusion.evaluate
        return {"samples": evaluate.bootstrap_samples, "level": evaluate.level, "seed": self.seed}


def load_params(path: Path | str = "params.yaml") -> Params:
    """The parameters in `path`, or the defaults where there is no such file.

    Raises
    ------
    InputError
        Names the key that is unknown (with the nearest known one) or out of bounds.

    Examples
    --------
    >>> load_params("no-such-params.yaml") == Params()
    True
    """
    path = Path(path)
    if not path.exists():
        return Params()
    if not path.is_file():
        raise InputError(f"{path} is a folder, not a file of parameters: rename it, or work in another folder.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())}): mend that line.") from error
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {sentence_of(error.errors()[0])}") from error


def sentence_of(problem: Any) -> str:
    """One sentence for one of the errors of a `ValidationError`: the key, what is wrong, the nearest known key."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{key} = {problem['input']!r} is not possible ({problem['msg'].lower()}); see params.py."
    model: Any = Params
    for part in problem["loc"][:-1]:
        model = model.model_fields[part].annotation
    near = difflib.get_close_matches(str(problem["loc"][-1]), model.model_fields, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(model.model_fields)}."
    return f"{key} is not a parameter; {hint}"
