"""The one LightningModule: any network, any loss, any schedule."""

import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reperfuse.errors import InputError
from reperfuse.networks.dynunet import DynUNet
from reperfuse.training.losses import LOSSES

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""Name to optimiser; `adamw` decouples the weight decay from the gradient."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "polynomial": lambda done: (1 - done) ** 0.9,
}
"""Name to the factor on the learning rate when the share `done` of all steps is done; 0.9 is nnU-Net's exponent."""


HEAD_SHARE = 0.5
"""What the answer of a level counts beside that of the level above it, as in nnU-Net."""


class TrainingDiverged(InputError):
    """The loss stopped being a number; a search takes it as a trial that failed and goes on."""


class TrainingModule(lightning.LightningModule):
    """A network with what it is trained by, over `total_steps` optimiser steps.

    Logs `loss`, the mean over the epoch's samples. With `ema` a moving average of the weights is kept beside them,
    starting at the weights after the first step and moved by 1 − `ema` of the way in each further one.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: str,
        learning_rate: float,
        total_steps: int,
        weight_decay: float = 0.0,
        optimiser: str = "adam",
        schedule: str = "constant",
        ema: float = 0.0,
    ) -> None:
        super().__init__()
        for kind, name, known in [
            ("loss", loss, LOSSES),
            ("optimiser", optimiser, OPTIMISERS),
            ("schedule", schedule, SCHEDULES),
        ]:
            if name not in known:  # type: ignore[operator]
                raise InputError(f"{kind} {name!r} is not known: choose one of {', '.join(known)}.")  # type: ignore[arg-type]
        self.network = network
        self.loss = LOSSES[loss]
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.optimiser, self.schedule = optimiser, schedule
        self.total_steps = total_steps
        # A submodule, so that a checkpoint holds it.
        self.averaged = (
            AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
        )

    @property
    def answering(self) -> nn.Module:
        """The network whose answers count: the moving average of the weights where there is one."""
        return self.network if self.averaged is None else self.averaged.module

    def forward(self, image: Tensor) -> Tensor:
        """The network's answer, (B, 1, I, J, K)."""
        return self.network(image)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; over all `heads` of a network that has some, each coarser one for half as much.

        Raises
        ------
        TrainingDiverged
            If it is not finite.
        """
        network: nn.Module = self.network
        answers = network.heads(batch["image"]) if isinstance(network, DynUNet) else [network(batch["image"])]
        losses = torch.stack([self.loss(answer, batch["target"], batch["mask"]) for answer in answers])
        shares = losses.new_tensor([HEAD_SHARE**level for level in range(len(answers))])
        loss = (losses * shares).sum() / shares.sum()
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"Training diverged in epoch {self.current_epoch + 1} (loss {loss.item()}): lower learning_rate, "
                f"now {self.learning_rate:g}, or check the images for values that are not finite."
            )
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]))
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the average on."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule, advanced every step."""
        optimiser = OPTIMISERS[self.optimiser](
            self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        factor = SCHEDULES[self.schedule]
        scheduler = LambdaLR(optimiser, lambda step: factor(min(step / self.total_steps, 1.0)))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
