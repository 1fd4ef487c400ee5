"""A trained model in use: its network, and the preprocessing it was trained behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from pydantic import BaseModel
from torch import nn

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.networks import load_network
from reperfuse.stages import layout
from reperfuse.training.predict import mirrored, predict_volume

WINDOW, WHOLE_VOXELS = (128, 128, 128), 4_000_000
"""Volumes above `WHOLE_VOXELS` are predicted in windows, which bounds memory at 1 mm."""

CHAMPION = "champion"
"""The name by which a verb asks for an arm's champion."""

Preprocess = TypeVar("Preprocess", bound=BaseModel)


@dataclass(frozen=True)
class TrainedModel(Generic[Preprocess]):
    """A network with the preprocessing it was trained behind."""

    network: nn.Module
    activation: str
    preprocess: Preprocess
    inputs: tuple[str, ...] = ()
    """Groups of channels it takes, in this order; none where the arm has no groups, or had none when it was trained."""
    target: str | None = None
    """What it gives, where its arm has more than one target; None is the arm's first."""
    scored_with: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that entered the scores it was chosen by, such as the threshold of a probability."""
    digest: str = ""
    """Of its files, by which it is known wherever it lies."""

    def predict(self, array: np.ndarray, *, mirror: bool | None = None) -> np.ndarray:
        """Prediction, shape (I, J, K), for a preprocessed image, shape (C, I, J, K), in single precision on the CPU.

        `mirror` averages over the eight mirror images; None does so if the model was scored like that.
        """

        def answer(image: np.ndarray) -> np.ndarray:
            window = WINDOW if np.prod(image.shape[1:]) > WHOLE_VOXELS else None
            return predict_volume(self.network, image, patch_size=window, activation=self.activation, precision="32")

        averaged = self.scored_with.get("mirror", False) if mirror is None else mirror
        return (mirrored(answer) if averaged else answer)(array)


def load_model(arm: str, model: str | None, preprocess: type[Preprocess]) -> TrainedModel[Preprocess]:
    """The pipeline's own model in models/<arm>, or any registered or saved one.

    Raises
    ------
    InputError
        If there is none, or it belongs to another arm.
    """
    if model is None and not (layout.models(arm) / "model.json").exists():
        raise InputError(f"{layout.models(arm)} holds no model: run `dvc repro {arm}-train`, or name one with --model.")
    folder = tracking.fetch_model(model or layout.models(arm))
    network, described = load_network(folder)
    extra = described["extra"]
    if extra.get("arm") != arm:
        raise InputError(f"{model or folder} is a model of the arm {extra.get('arm')}, not {arm}: name another.")
    if "activation" not in extra:
        raise InputError(
            f"{model or folder} holds {described['network']}, which no stage of the arm trained: name another."
        )
    return TrainedModel(
        network,
        extra["activation"],
        preprocess.model_validate(extra["preprocess"]),
        tuple(extra.get("inputs") or ()),
        extra.get("target"),
        extra.get("scored_with", {}),
        tracking.model_digest(folder),
    )


def model_folder(model: str | None) -> str | None:
    """The absolute folder of a model that is named, fetched once for every process that will load it."""
    return None if model is None else str(tracking.fetch_model(model).resolve())


def champion_uri(arm: str, otherwise: str = "name a model") -> str:
    """The URI of an arm's champion.

    Raises
    ------
    InputError
        If there is none; what to do `otherwise` ends the sentence.
    """
    version = tracking.champion(arm)
    if version is None:
        raise InputError(
            f"The {arm} arm has no champion in {tracking.store_name()}: run `reperfuse promote {arm}` once it is "
            f"trained, or {otherwise}."
        )
    return version.uri
