"""The arrival network trained on the reference object alone: no patient, no reference map."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader

from reperfuse.networks.arrival import ArrivalNetwork
from reperfuse.perfusion.matched import N_FEATURES
from reperfuse.phantoms.curves import TRAINING, Population
from reperfuse.training.curves import CurveBatches, curve_samples
from reperfuse.training.module import TrainingModule
from reperfuse.training.progress import TrainingBar, quiet
from reperfuse.training.samples import EpochSampler


@dataclass(frozen=True)
class Recipe:
    """Everything that is chosen about the training; the weights that ship were made with the defaults."""

    scans: int = 16000
    voxels_per_scan: int = 256
    epochs: int = 12
    batch_size: int = 2048
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    hidden: tuple[int, ...] = (192, 192, 192)
    seed: int = 2026
    population: Population = field(default=TRAINING)


SMALL = Recipe(scans=200, epochs=3, batch_size=512, hidden=(64, 64))
"""Seconds' worth, to try the recipe."""


def pretrain(
    recipe: Recipe,
    *,
    state_dir: Path,
    workers: int | None = None,
    on_scan: Callable[[], None] | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> tuple[ArrivalNetwork, list[dict[str, float]]]:
    """The trained network, on the CPU and in evaluation mode, and its loss per epoch.

    Scans are drawn once, with one noise each, and kept (560 MB per million voxels); there are so many that a voxel seen
    `epochs` times is not learned by heart. The loss is the mean pinball loss of all quantiles [s].

    Parameters
    ----------
    recipe
        What is chosen.
    state_dir
        Scratch folder of Lightning.
    workers
        Processes that draw scans.
    on_scan
        Called after each drawn scan.
    on_epoch
        Called with the epoch (from 1) and its loss.
    """
    torch.manual_seed(recipe.seed)
    network = ArrivalNetwork(N_FEATURES, recipe.hidden)
    history: list[dict[str, float]] = []

    class Keep(lightning.Callback):
        def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            epoch, loss = len(history) + 1, float(trainer.callback_metrics["loss"])
            history.append({"epoch": epoch, "loss": loss})
            if on_epoch:
                on_epoch(epoch, loss)

    features, targets = curve_samples(
        recipe.population, range(recipe.scans), recipe.voxels_per_scan, workers=workers, on_scan=on_scan
    )
    network.scale.take(features)
    batches = CurveBatches(features, targets, recipe.batch_size, recipe.seed)
    module = TrainingModule(
        network,
        loss="pinball",
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        optimiser="adamw",
        schedule="cosine",
        total_steps=len(batches) * recipe.epochs,
    )
    with quiet():
        trainer = lightning.Trainer(
            max_epochs=recipe.epochs,
            accelerator="cpu",
            devices=1,
            callbacks=[Keep(), TrainingBar(recipe.epochs, len(batches))],
            default_root_dir=state_dir,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None, sampler=EpochSampler(len(batches))))
    return network.cpu().eval(), history
