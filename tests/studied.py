"""Patients whose own number is their image, methods that err by it, and a run that keeps what is logged."""

import os
import signal
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reperfuse.imaging.volume import Volume
from reperfuse.stages.assessment import Assessment, Case
from reperfuse.stages.study import Study

PATIENTS = ("sub-1", "sub-2", "sub-3")


def error_study(arm: str = "perfusion", failing: str | None = None, digest: str = "a model") -> Assessment:
    """The model errs by a patient's number, oSVD by ten times as much and not at all for one like `failing`."""

    def load(participant: str) -> Case:
        image = Volume(np.full((2, 2, 2), float(participant[-1])), np.eye(4))
        return Case(image, image)

    def deconvolved(image: Volume) -> np.ndarray | None:
        return None if failing is not None and image.data.min() == float(failing[-1]) else 10 * image.data

    return Assessment(
        arm=arm,
        metric="mae_s",
        methods={"model": lambda image: image.data, "baseline_osvd": deconvolved},
        load=load,
        prepare=lambda scan: scan,
        on_truth_grid=lambda prediction, image, case: prediction,
        score=lambda method, prediction, case: {"mae_s": float(prediction.mean())},
        bootstrap={"samples": 100, "level": 0.95, "seed": 0},
        digest=digest,
    )


def error_study_again() -> tuple[Assessment, Study]:
    """`error_study` over two noises and two intervals, for any process; `<participant>.kills` kills who reads them."""
    asked = error_study()

    def load(participant: str) -> Case:
        if Path(f"{participant}.kills").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return asked.load(participant)

    def degrade(image: Volume, level: float, snr: float) -> Volume:
        return Volume(image.data * level * 100 / snr, image.affine)

    levels = dict.fromkeys((50.0, 20.0), (1.0, 2.0))
    return replace(asked, load=load), Study("tr_s", levels, degrade, sizes="hypoperfused_ml", about={})


class StoodIn(AbstractContextManager):
    """In place of a run that a stage comes back to; metrics by name and step, and the names of what else is logged."""

    origin, experiment, name = "run", "perfusion", "model stood in for"

    def __init__(self) -> None:
        self.points: dict[tuple[str, int | None], float] = {}
        self.artifacts: set[str] = set()

    def __exit__(self, *raised: object) -> None:
        return None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.points |= {(name, step): float(value) for name, value in metrics.items()}

    def log_table(self, table: pd.DataFrame, path: str) -> None:
        assert len(table)
        self.artifacts.add(path)

    def log_figure(self, figure: Any, path: str) -> None:
        self.artifacts.add(path)

    def log_text(self, text: str, path: str) -> None:
        assert text
        self.artifacts.add(path)
