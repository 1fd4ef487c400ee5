"""One training, from the first epoch or from where a killed one stopped."""

import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

from reperfuse.errors import InputError
from reperfuse.training.checks import check_shapes, check_subjects
from reperfuse.training.losses import ACTIVATIONS, SEGMENTATION_LOSSES
from reperfuse.training.module import TrainingModule
from reperfuse.training.predict import device_of, precision_of, predict_volume
from reperfuse.training.progress import TrainingBar, quiet
from reperfuse.training.samples import EpochSampler, PatchSamples, Subject
from reperfuse.training.sampling import Sampling

Predict = Callable[[np.ndarray], np.ndarray]
"""From an image (C, I, J, K) to the activated answer (I, J, K)."""

Score = Callable[[Predict, Subject], Mapping[str, float | None]]
"""From a way to predict and a validation subject to that subject's metrics."""

KEPT = "kept/"
"""Beginning of the names of scores that no table shows: what is chosen from them is chosen once, after a search."""

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


@dataclass(frozen=True)
class FitSettings:
    """Everything that is chosen about a training beside the network and the subjects."""

    epochs: int = 25
    steps_per_epoch: int | None = None
    """Optimiser steps per epoch; None for one pass over the subjects."""
    batch_size: int = 1
    patch_size: tuple[int, int, int] | None = None
    """Voxels of a training patch; None for whole volumes."""
    predict_patch_size: tuple[int, int, int] | None = None
    """Sliding window for validation; None passes whole volumes."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    ema: float = 0.0
    """Decay per step of the moving average of the weights that is validated and returned; 0 takes the weights."""
    optimiser: str = "adam"
    schedule: str = "constant"
    loss: str = "dice_bce"
    foreground_fraction: float = 0.0
    sampling: Sampling = field(default_factory=Sampling)
    """Where samples lie; a mapping of its fields will do."""
    augment: str = "none"
    acquisition: str = "none"
    """How the images of samples are made coarser, a name in `training.acquisition.ACQUISITIONS`."""
    acquisition_share: float = 1.0
    """Share of the samples that are."""
    validate_every: int = 0
    """Epochs between validations; 0 validates at the end only. The last epoch is always validated."""
    keep_best: bool = False
    """Return the weights of the best validated epoch, not the last. Scores so chosen are optimistic."""
    accelerator: str = "auto"
    precision: str = "auto"
    seed: int = 0
    num_workers: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.sampling, Mapping):
            object.__setattr__(self, "sampling", Sampling(**self.sampling))


@dataclass(frozen=True)
class FitResult:
    """A trained network, on the CPU and in evaluation mode, and how it came about."""

    network: nn.Module
    history: list[dict[str, float]]
    """One row per epoch: epoch (from 1), loss, learning_rate, seconds and, where validated, val_<metric> means."""
    scores: dict[str, dict[str, float]]
    """Metrics per validation subject, by participant_id."""
    seconds: float
    """Wall clock of this call [s]."""
    epochs: int
    resumed_from: int | None
    """Epochs that an earlier, interrupted call had done; None if it started anew."""
    best_epoch: int | None = None
    """Epoch of the returned weights where `keep_best` chose them."""


def fit(
    network: nn.Module,
    train: Sequence[Subject],
    validation: Sequence[Subject] = (),
    *,
    settings: FitSettings,
    state_dir: Path,
    score: Score | None = None,
    monitor: str = "dice",
    mode: str = "max",
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    progress: bool = True,
) -> FitResult:
    """The network trained by `settings` on `train`, and its scores on `validation`.

    After every epoch the whole state is kept in `state_dir`. A call that finds the state of the same
    training there goes on behind its last whole epoch, with the samples the unbroken training would
    have seen; on the CPU it ends with the same weights. Unreadable state is passed over with a
    warning for the one before it, or for a new start. Seed PyTorch before building `network` if its
    first weights matter.

    Parameters
    ----------
    score
        Metrics of one validation subject; without it nothing is validated.
    monitor, mode
        Metric, and "max" or "min", by which `keep_best` chooses.
    on_epoch
        Called with the epoch (from 1) and its row of the history; after a resume for new epochs only.
    progress
        Show a bar on a terminal, else a line for every tenth of the epochs, on standard error.

    Raises
    ------
    InputError
        If a setting is not known, there is no subject, a subject would break the training (`check_subjects`), or whole
        volumes of several shapes are to share a batch.
    TrainingDiverged
        If the loss stops being a number.
    KeyboardInterrupt
        On Ctrl-C; what the last whole epoch left stays for the next call.
    """
    started = time.monotonic()
    state_dir = Path(state_dir)
    state_dir.mkdir(parents=True, exist_ok=True)
    device = device_of(settings.accelerator)
    precision = precision_of(settings.precision, device)
    people = [*train, *validation]
    console = Console(stderr=True)
    listed = track(people, "checking subjects", console=console, transient=True) if console.is_terminal else people
    check_subjects(listed if progress else people, labels=settings.loss in SEGMENTATION_LOSSES)
    check_shapes(train, settings.patch_size, settings.batch_size, settings.sampling)
    steps = settings.steps_per_epoch or -(-len(train) // settings.batch_size)
    samples = PatchSamples(
        train,
        n_samples=steps * settings.batch_size,
        patch_size=settings.patch_size,
        foreground_fraction=settings.foreground_fraction,
        sampling=settings.sampling,
        augment=settings.augment,
        acquisition=settings.acquisition,
        acquisition_share=settings.acquisition_share,
        seed=settings.seed,
    )
    loader = DataLoader(
        samples,
        settings.batch_size,
        sampler=EpochSampler(len(samples)),
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        pin_memory=device.type == "cuda",
    )
    module = TrainingModule(
        network,
        loss=settings.loss,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        optimiser=settings.optimiser,
        schedule=settings.schedule,
        total_steps=steps * settings.epochs,
        ema=settings.ema,
    )
    across = settings.sampling.across - 3 if settings.sampling.kind == "slices" else -1

    def predict(image: np.ndarray) -> np.ndarray:
        # As in training, the axis across the slices is the last that the network sees.
        answer = predict_volume(
            module.answering,
            np.moveaxis(image, across, -1),
            patch_size=settings.predict_patch_size,
            activation=ACTIVATIONS[settings.loss],
            device=device,
            precision=precision,
        )
        return np.moveaxis(answer, -1, across)

    def validate() -> dict[str, dict[str, float]]:
        if score is None:
            return {}
        return {subject.participant_id: undefined_as_nan(score(predict, subject)) for subject in validation}

    if settings.keep_best and not (score and validation):
        raise InputError("keep_best needs validation subjects and a score: set it to false or give them.")
    record = _Record(settings, train, module.answering, state_dir, validate, monitor, mode, on_epoch)
    callbacks: list[lightning.Callback] = [record]
    if progress:
        callbacks.append(TrainingBar(settings.epochs, steps))
    resume = _readable_state(state_dir, record.about)
    with quiet():
        trainer = lightning.Trainer(
            max_epochs=settings.epochs,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            callbacks=callbacks,
            default_root_dir=state_dir,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        _run(trainer, module, loader, resume)
    network.load_state_dict(module.answering.state_dict() if record.best is None else record.best["weights"])
    return FitResult(
        network=network.cpu().eval(),
        history=record.history,
        scores=record.best["scores"] if record.best is not None else record.scores,
        seconds=time.monotonic() - started,
        epochs=len(record.history),
        resumed_from=record.resumed_from,
        best_epoch=record.best["epoch"] if record.best is not None else None,
    )


@dataclass(eq=False)
class _Record(lightning.Callback):
    """What happens around an epoch: seed, validation, history, checkpoint. Its state travels in the checkpoint."""

    settings: FitSettings
    train: Sequence[Subject]
    network: nn.Module
    state_dir: Path
    validate: Callable[[], dict[str, dict[str, float]]]
    monitor: str
    mode: str
    on_epoch: Callable[[int, dict[str, float]], None] | None
    history: list[dict[str, float]] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    """Epoch, weights and scores of the best epoch, where `keep_best` asks for it."""
    resumed_from: int | None = None
    started: float = 0.0

    @property
    def about(self) -> str:
        """What must be equal for a state to be resumed, as text."""
        chosen = {key: value for key, value in asdict(self.settings).items() if key not in _MAY_CHANGE}
        shapes = {key: list(value.shape) for key, value in self.network.state_dict().items()}
        people = [subject.participant_id for subject in self.train]
        return json.dumps({"settings": chosen, "network": shapes, "train": people}, sort_keys=True)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Dropout and its like draw from the global generator: the same in a resumed epoch as in an unbroken one.
        torch.manual_seed(self.settings.seed * 1_000_003 + trainer.current_epoch)
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        row = {
            "epoch": epoch,
            "loss": float(trainer.callback_metrics["loss"]),
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        every = self.settings.validate_every
        self.scores = self.validate() if (every and epoch % every == 0) or epoch == self.settings.epochs else {}
        if self.scores:
            row |= {f"val_{name}": value for name, value in _means(self.scores).items()}
        row["seconds"] = time.monotonic() - self.started
        self.history.append(row)
        if self.settings.keep_best and self.scores:
            self._keep_if_best(epoch)
        _save(trainer, self.state_dir)
        if self.on_epoch is not None:
            self.on_epoch(epoch, row)

    def _keep_if_best(self, epoch: int) -> None:
        key = f"val_{self.monitor}"
        validated = [row for row in self.history if key in row]
        if not validated:
            raise InputError(f"keep_best watches {self.monitor!r}, which the score does not give: name one it gives.")
        best = (max if self.mode == "max" else min)(validated, key=lambda row: row[key])
        if best["epoch"] == epoch:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
            self.best = {"epoch": epoch, "weights": weights, "scores": self.scores}

    def state_dict(self) -> dict[str, Any]:
        return {"about": self.about, "history": self.history, "scores": self.scores, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.scores, self.best = (state_dict[name] for name in ("history", "scores", "best"))
        self.resumed_from = len(self.history)


_MAY_CHANGE = ("accelerator", "precision", "num_workers", "predict_patch_size")
"""Settings a training may go on under although they differ: they move rounding or time, not the experiment."""


def undefined_as_nan(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Scores as plain floats: NumPy's scalars would make a checkpoint that only unpickling could read."""
    return {name: float("nan") if value is None else float(value) for name, value in metrics.items()}


def shown(scores: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those that are only kept, whose names begin with `KEPT`.

    >>> shown({"dice": 0.5, "kept/dice at 0.3": 0.6})
    {'dice': 0.5}
    """
    return {name: value for name, value in scores.items() if not name.startswith(KEPT)}


def _means(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the subjects that have it."""
    names = sorted({name for metrics in scores.values() for name in shown(metrics)})
    have = {name: [m[name] for m in scores.values() if np.isfinite(m.get(name, np.nan))] for name in names}
    return {name: float(np.mean(values)) for name, values in have.items() if values}


def _save(trainer: lightning.Trainer, state_dir: Path) -> None:
    """Checkpoint under its final name only once it is whole; the one before it stays as a second chance."""
    partial_file = state_dir / f"{LAST}.partial"
    trainer.save_checkpoint(partial_file)
    with open(partial_file, "rb") as file:
        os.fsync(file.fileno())
    if (state_dir / LAST).exists():
        os.replace(state_dir / LAST, state_dir / PREVIOUS)
    os.replace(partial_file, state_dir / LAST)


def _readable_state(state_dir: Path, about: str) -> Path | None:
    """The newest checkpoint that can be read and belongs to this training."""
    for path in (state_dir / LAST, state_dir / PREVIOUS):
        if not path.exists():
            continue
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            states = content["callbacks"].values()
        except Exception as error:  # a damaged file may fail in any of torch's readers
            warnings.warn(f"{path} cannot be read ({type(error).__name__}) and is passed over.", stacklevel=3)
            continue
        if any(isinstance(state, dict) and state.get("about") == about for state in states):
            return path
        warnings.warn(f"{path} belongs to a training with other settings and is passed over.", stacklevel=3)
    return None


def _run(trainer: lightning.Trainer, module: TrainingModule, loader: DataLoader, resume: Path | None) -> None:
    """`trainer.fit`, with Ctrl-C and SIGTERM let through: Lightning exits with 1 on the one and with 0 on the other."""
    try:
        trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    except SystemExit as error:
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM) from error
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
