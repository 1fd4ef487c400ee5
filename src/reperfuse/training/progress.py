"""What a training shows while it runs, and what Lightning shall not say meanwhile."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingBar(lightning.Callback):
    """Epoch and loss as a bar on a terminal; elsewhere a line for every tenth of the epochs."""

    def __init__(self, epochs: int, steps: int) -> None:
        self.epochs, self.steps = epochs, steps
        self.console = Console(stderr=True)
        self.bar: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw the bar, on a terminal."""
        if not self.console.is_terminal:
            return
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
        self.bar.start()
        self.task = self.bar.add_task("training", total=self.epochs * self.steps, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Move it on by one step."""
        if self.bar:
            self.bar.advance(self.task)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say the epoch and its loss."""
        epoch = trainer.current_epoch + 1
        text = f"epoch {epoch}/{self.epochs}  loss {float(trainer.callback_metrics['loss']):.4f}"
        if self.bar:
            self.bar.update(self.task, description=text)
        elif epoch == self.epochs or epoch % max(1, self.epochs // 10) == 0:
            self.console.print(text, highlight=False)

    def _stop(self, *_: Any) -> None:
        if self.bar:
            self.bar.stop()

    on_train_end = on_exception = _stop  # type: ignore[assignment]


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's hints about workers, devices and hosted services kept from the terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
