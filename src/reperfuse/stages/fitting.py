"""One training of an arm: a network with the channels of its data and the weights it starts from, fitted and scored."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from torch import nn

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import read_json, sha256_of
from reperfuse.networks import (
    NETWORK_INPUTS,
    NETWORKS,
    WEIGHTS_ENDING,
    build_network,
    initialise,
    learned_folder,
)
from reperfuse.networks.arrival import TmaxMatched
from reperfuse.networks.blocks import one_of
from reperfuse.params import LesionParams, PerfusionParams, Train
from reperfuse.stages import layout
from reperfuse.stages.state import resumable
from reperfuse.training.fit import FitResult, FitSettings, Predict, fit, undefined_as_nan
from reperfuse.training.predict import mirrored
from reperfuse.training.samples import Subject

ArmParams = LesionParams | PerfusionParams

CODE = (
    "networks",
    "training",
    "evaluation/metrics.py",
    "evaluation/operating_point.py",
    "preprocessing/geometry.py",
    "preprocessing/slices.py",
    "stages/fitting.py",
    "stages/learning.py",
    "stages/lesion.py",
    "stages/lesion_input.py",
    "stages/perfusion.py",
    "stages/search.py",
)
"""Rooms that decide what a training does: with other code, resumable state is another training's."""

SHIPPED = "learned"
"""Value of `train.init_from` that means the weights in the package."""

MATCHED = NETWORK_INPUTS["tmax_matched"]

ABOUT_DATA = ("network", "network_kwargs", "inputs", "target", "init_from")
"""Values of `train` that say what is trained on what; the others say how."""


@dataclass(frozen=True)
class Degraded:
    """A second look at every validation subject, as a coarser acquisition would have shown it."""

    image: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """Image (C, I, J, K), mask (I, J, K) and affine (4, 4) → the degraded image on the same grid."""
    joined: Callable[[Mapping[str, float], Mapping[str, float]], Mapping[str, float]]
    """Scores of the image as it is, and of the degraded one against the same target → what is kept of both."""


@dataclass(frozen=True)
class Objective:
    """What an arm's networks are trained for and chosen by."""

    arm: str
    metric: str
    """The one of the scores that chooses."""
    higher_is_better: bool
    score: Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[float]], Mapping[str, float | None]]
    """Metrics of a prediction (I, J, K) against target and mask (I, J, K) on the model grid, voxels of that many mm;
    `None` where undefined."""
    baselines: Callable[[str], Mapping[str, np.ndarray]] | None = None
    """Participant → method → prediction (I, J, K) on the model grid, for what the search is to be compared with."""
    starts_at_mean: bool = False
    """Whether the last bias of a network that has an `output_bias` starts at the mean of the training targets."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that enter the scores, by name: with others a search starts anew."""
    mirror: bool = False
    """Whether answers are averaged over mirror images."""
    degraded: Degraded | None = None
    """A degraded image that each validation subject is scored with too."""
    settle: Callable[[Sequence[Mapping[str, float]]], Mapping[str, Any]] | None = None
    """Scores of the chosen trial's validation subjects → those parameters of `about` that are chosen by them."""

    @property
    def mode(self) -> str:
        """`max` or `min`."""
        return "max" if self.higher_is_better else "min"

    @property
    def direction(self) -> str:
        """`maximize` or `minimize`."""
        return f"{self.mode}imize"

    def settled(self, fold_scores: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
        """What a model is scored and used with, given the scores of its trial's validation subjects, fold by fold."""
        scores = [of_subject for fold in fold_scores for of_subject in fold]
        return dict(self.about) | dict(self.settle(scores) if self.settle else {})

    def of_prediction(self, prediction: np.ndarray, subject: Subject) -> dict[str, float]:
        """All metrics of a prediction for one subject; nan where undefined."""
        _, target, mask = subject.parts()
        return undefined_as_nan(self.score(prediction, target[0], mask, subject.spacing_mm()))

    def of_subject(self, predict: Predict, subject: Subject) -> dict[str, float]:
        """All metrics of one validation subject."""
        predict = mirrored(predict) if self.mirror else predict
        image, _, mask = subject.load()
        scores = self.of_prediction(predict(image), subject)
        if self.degraded is None:
            return scores
        coarse = predict(self.degraded.image(image, mask, subject.affine()))
        return dict(self.degraded.joined(scores, self.of_prediction(coarse, subject)))


@dataclass(frozen=True)
class Fitted:
    """A trained network, and what it needs to be built and fed again."""

    result: FitResult
    network_kwargs: dict[str, Any]
    """Every argument that is not the network's default, the number of channels among them."""
    inputs: tuple[str, ...]
    """Groups of channels it takes, in this order; none where the arm's channels have no groups."""
    target: str | None
    """What it gives; None where the arm's target has no name."""
    init: dict[str, Any]
    """Where its weights started, {} for a new start: `from`, `sha256` of that model, tensors `fitted` of `total`, and
    the names of those that began `anew`."""


def fit_arm(
    objective: Objective,
    chosen: Train,
    seed: int,
    *,
    train: Sequence[str],
    validation: Sequence[str] = (),
    state: Path,
    run: tracking.Run,
) -> Fitted:
    """The network of `chosen` trained on the participants `train`, its loss logged to `run` per epoch.

    Raises
    ------
    InputError
        If the network, its inputs or its first weights do not go together with the data.
    """
    inputs = chosen.inputs or NETWORK_INPUTS.get(chosen.network, ())
    root = layout.processed(objective.arm)
    training, validating = (
        [Subject(participant, root / participant, inputs, chosen.target) for participant in people]
        for people in (train, validation)
    )
    kwargs = network_arguments(chosen, channels_of([*training, *validating]))
    if objective.starts_at_mean and "output_bias" in inspect.signature(NETWORKS[chosen.network]).parameters:
        kwargs.setdefault("output_bias", mean_target(training))
    torch.manual_seed(seed)
    network = build_network(chosen.network, **kwargs)
    if isinstance(network, TmaxMatched) and tuple(inputs) != MATCHED:
        raise InputError(
            f"train.inputs is {list(inputs)}, but {chosen.network} knows what each of its channels is: leave it empty."
        )
    init = first_weights(network, chosen)
    if isinstance(network, TmaxMatched) and not init.get("fitted"):
        learn_scale(network, training)
    run.log_params(init_params(init))
    if init:
        _tell_start(network, init, run)

    def on_epoch(epoch: int, row: Mapping[str, float]) -> None:
        run.log_metrics({"train/loss": row["loss"], "train/learning_rate": row["learning_rate"]}, step=epoch)

    result = fit(
        network,
        training,
        validating,
        settings=FitSettings(**chosen.model_dump(exclude=set(ABOUT_DATA)), seed=seed),
        state_dir=state,
        score=objective.of_subject if validating else None,
        monitor=objective.metric,
        mode=objective.mode,
        on_epoch=on_epoch,
    )
    groups, target = named_data(training[0])
    return Fitted(result, kwargs, inputs or groups, chosen.target or target, init)


def learn_scale(network: TmaxMatched, subjects: Sequence[Subject]) -> None:
    """Standardise the features of a network that starts anew by those of its training subjects, within their masks."""
    parts = (subject.parts() for subject in subjects)
    features = [np.concatenate([np.asarray(image) for image in images])[:, mask > 0] for images, _, mask in parts]
    network.scale.take(torch.from_numpy(np.concatenate(features, axis=1).T.astype(np.float32)))


def mean_target(subjects: Sequence[Subject]) -> float:
    """Mean of the target over the masks of all subjects, each counted as one [target's unit], to three decimals."""
    means = []
    for subject in subjects:
        _, target, mask = subject.parts()
        means.append(float(target[0][mask > 0].mean()))
    return round(float(np.mean(means)), 3)


def channels_of(subjects: Sequence[Subject]) -> int:
    """Channels of the images as the network sees them.

    Raises
    ------
    InputError
        If there is no subject, or they differ.
    """
    counts = {sum(len(part) for part in subject.parts()[0]): subject.folder for subject in subjects}
    if not counts:
        raise InputError("There is no subject to train on: check the cohort and its folds.")
    if len(counts) > 1:
        said = " and ".join(f"{count} ({folder})" for count, folder in sorted(counts.items()))
        raise InputError(f"The images have different numbers of channels, {said}: run preprocess again for all.")
    return next(iter(counts))


def network_arguments(chosen: Train, channels: int) -> dict[str, Any]:
    """`network_kwargs`, and `in_channels` of the data where the network can have several.

    Raises
    ------
    InputError
        If there is no such network, or `network_kwargs` asks for another number of channels than the data have.
    """
    constructor = NETWORKS[one_of("network", chosen.network, NETWORKS)]
    kwargs = dict(chosen.network_kwargs)
    if "in_channels" not in inspect.signature(constructor).parameters:
        return kwargs
    if kwargs.setdefault("in_channels", channels) != channels:
        raise InputError(
            f"train.network_kwargs in params.yaml asks for in_channels = {kwargs['in_channels']}, but the images have "
            f"{channels}: leave it out, or choose other train.inputs."
        )
    return kwargs


def first_weights(network: nn.Module, chosen: Train) -> dict[str, Any]:
    """Put the weights of `chosen.init_from` into `network` as far as names and shapes fit, and say what was done.

    A search may run over several families of networks, of which the shipped weights fit one: that they fit nothing is
    no error. A model that was named on purpose must fit somewhere.

    Raises
    ------
    InputError
        If there is no such model, or nothing of a named one fits.
    """
    if chosen.init_from is None:
        return {}
    source = initial_weights(chosen.init_from)
    taken, names = initialise(network, source), list(network.state_dict())
    if not taken and chosen.init_from != SHIPPED:
        raise InputError(
            f"None of the weights of {chosen.init_from} fits {chosen.network}, whose first is {names[0]}: name another "
            "model in train.init_from of params.yaml, or null."
        )
    return {
        "from": chosen.init_from,
        "sha256": _digest(source),
        "fitted": len(taken),
        "total": len(names),
        "anew": [name for name in names if name not in set(taken)],
    }


def _tell_start(network: nn.Module, init: Mapping[str, Any], run: tracking.Run) -> None:
    """Say which tensors were taken and which began anew; all of them as a table of the run."""
    anew = set(init["anew"])
    rows = [
        {"tensor": name, "shape": "×".join(map(str, tensor.shape)), "from": "anew" if name in anew else init["from"]}
        for name, tensor in network.state_dict().items()
    ]
    run.log_table(pd.DataFrame(rows), "tables/first_weights.csv")
    layers = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in init["anew"]))
    said = f"; anew: {', '.join(layers)}" if layers else ""
    print(f"{init['fitted']} of {init['total']} tensors start from {init['from']}{said}", flush=True)


def init_params(init: Mapping[str, Any]) -> dict[str, int]:
    """`init/fitted` and `init/total`, as runs show them; nothing for a network that started anew."""
    return {f"init/{name}": init[name] for name in ("fitted", "total") if name in init}


def initial_weights(init_from: str) -> Path:
    """Where the weights of a value of `train.init_from` lie: the folder of a model, or a safetensors file."""
    if init_from == SHIPPED:
        return learned_folder()
    if not init_from.endswith(WEIGHTS_ENDING):
        return tracking.fetch_model(init_from)
    if not Path(init_from).is_file():
        raise InputError(f"{init_from} is missing: name another model in train.init_from of params.yaml, or null.")
    return Path(init_from)


def _digest(source: Path) -> str:
    return sha256_of(source) if source.suffix == WEIGHTS_ENDING else tracking.model_digest(source)


def named_data(subject: Subject) -> tuple[tuple[str, ...], str | None]:
    """All groups of channels of a processed subject, in the order of the channels, and its first target."""
    described = read_json(subject.folder / "subject.json")
    groups, targets = described.get("inputs", {}), described.get("targets") or [None]
    return tuple(sorted(groups, key=lambda name: groups[name][0])), targets[0]


def with_overrides(train: Train, overrides: Mapping[str, Any]) -> Train:
    """`train` with the values a trial or a search chose; `network_kwargs.NAME` and `sampling.NAME` reach inside.

    Raises
    ------
    InputError
        If a name is no field of `train` or a value is out of its bounds.
    """
    content = train.model_dump()
    for name, value in overrides.items():
        field, _, inside = name.partition(".")
        if inside and isinstance(content.get(field), dict):
            content[field] = content[field] | {inside: value}
        else:
            content[name] = value
    try:
        return type(train).model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise InputError(
            f"tune.space in params.yaml: {name} = {problem['input']!r} is not possible ({problem['msg'].lower()})."
        ) from error


def state_folder(arm: str, stage: str, seed: int, train: Train, chosen: Mapping[str, Any]) -> Path:
    """Where a stage keeps what lets it resume: .reperfuse/<arm>/<fingerprint>/<stage> of the repository.

    The fingerprint is a hash of the processed data's index, the folds, the parameters, the weights to start from and
    the code, so state of another experiment is never taken up. The number of trials and of workers is not in it: a
    search can be extended.
    """
    where_only = {"accelerator", "precision", "num_workers"}
    chosen_here = (seed, sorted(train.model_dump(exclude=where_only).items()), sorted(chosen.items()))
    # A registered model's alias may move, and a folder may be written anew: what they hold counts, not their name.
    starts = {train.init_from, *chosen.get("space", {}).get("init_from", {}).get("choices", ())} - {None}
    weights = [_digest(initial_weights(init_from)) for init_from in sorted(starts)]
    return resumable(arm, stage, [repr(chosen_here), *weights], CODE)
