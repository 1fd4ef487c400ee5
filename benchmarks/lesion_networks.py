"""The lesion networks side by side: one cohort, one split, the same wall clock for each.

    python benchmarks/lesion_networks.py [--real ../shared/data/lesions] [--subjects 56] [--spacing 2] [--minutes 5]

trains every network of the published studies and the strong one (`dynunet` with its recipe) for --minutes on the same
training subjects, each in a process of its own, and prints a Markdown table: mean scores of the same test subjects with
bootstrap intervals, parameters, seconds per step, samples seen, peak memory. Times depend on the machine and on what
else it does; `--steps` makes the scores repeatable. Minutes are far from enough for any of these networks: the order is
that of their first minutes. On a GPU, with hours, the same command gives the other answer.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from phantom_cohort import STEPS_PER_EPOCH, cohort_arguments, halves, make_cohort

from reperfuse.evaluation.metrics import lesion_scores
from reperfuse.evaluation.summary import bootstrap_interval
from reperfuse.networks import build_network
from reperfuse.training.fit import FitSettings, fit
from reperfuse.training.losses import ACTIVATIONS
from reperfuse.training.predict import predict_volume
from reperfuse.training.samples import Subject
from reperfuse.training.sampling import Sampling

SCORES = ("dice", "lesion_f1_atlas", "lesion_f1_isles22", "lesion_rq_isles26", "volume_error_ml", "hd95_mm")
PATCHES: dict[str, Any] = {"patch_size": (48, 48, 48), "batch_size": 2, "foreground_fraction": 0.7}
SLICES: dict[str, Any] = {"patch_size": None, "batch_size": 16, "sampling": Sampling("slices")}


@dataclass(frozen=True)
class Entry:
    """A network and how it is trained."""

    network: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


ENTRIES = {
    "unet3d": Entry("unet3d", {"widths": [12, 24, 48, 96]}, PATCHES),
    "unet2plus1d": Entry("unet2plus1d", {"widths": [12, 24, 48, 96]}, PATCHES),
    "cnn8": Entry("cnn8", {}, SLICES),
    "resnet20": Entry("resnet20", {}, SLICES),
    "unet2d": Entry("unet2d", {"widths": [16, 32, 64, 128, 256]}, SLICES),
    "resunet2d": Entry("resunet2d", {"widths": [16, 32, 64, 128, 256]}, SLICES),
    "dynunet": Entry("dynunet", {"widths": [12, 24, 48, 96]}, PATCHES),
    "dynunet, its recipe": Entry(
        "dynunet", {"widths": [12, 24, 48, 96]}, PATCHES | {"augment": "strong", "schedule": "polynomial", "ema": 0.99}
    ),
}
"""Name → entry, widths such that a step takes about the same on a CPU."""

COMMON: dict[str, Any] = {
    "loss": "dice_bce",
    "optimiser": "adamw",
    "learning_rate": 5e-3,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "augment": "light",
    "steps_per_epoch": STEPS_PER_EPOCH,
}


def one(
    name: str, subjects: list[Subject], minutes: float, steps: int | None, seed: int, spacing: float
) -> dict[str, Any]:
    """Train and score one entry."""
    entry = ENTRIES[name]
    train, test = halves(subjects, seed)
    settings = COMMON | entry.settings | {"seed": seed}

    def network() -> torch.nn.Module:
        torch.manual_seed(seed)
        return build_network(entry.network, **entry.kwargs)

    with tempfile.TemporaryDirectory() as room:
        if steps is None:
            trial = fit(network(), train, settings=FitSettings(epochs=2, **settings), state_dir=Path(room, "trial"))
            steps = max(1, round(minutes * 60 / trial.history[-1]["seconds"])) * STEPS_PER_EPOCH
        epochs = max(1, -(-steps // STEPS_PER_EPOCH))
        started = time.monotonic()
        done = fit(network(), train, settings=FitSettings(epochs=epochs, **settings), state_dir=Path(room, "fit"))
        seconds = time.monotonic() - started
    rows = []
    for subject in test:
        image, target, _ = subject.load()
        probability = predict_volume(done.network, np.asarray(image), activation=ACTIVATIONS[settings["loss"]])
        rows.append(lesion_scores(probability > 0.5, target[0] > 0, (spacing,) * 3, probability=probability))
    return {
        "scores": rows,
        "parameters": sum(p.numel() for p in done.network.parameters()),
        "steps": epochs * STEPS_PER_EPOCH,
        "step_s": seconds / (epochs * STEPS_PER_EPOCH),
        "samples": epochs * STEPS_PER_EPOCH * settings["batch_size"],
        "minutes": seconds / 60,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row per network."""
    heads = ["network", *SCORES, "parameters", "s/step", "samples", "minutes", "peak GB"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, result in found.items():
        cells = [name]
        for metric in SCORES:
            values = [row[metric] for row in result["scores"] if row[metric] is not None]
            low, high = bootstrap_interval(values)
            ends = "" if low is None else f" ({low:.2f}–{high:.2f})"
            cells.append(f"{np.mean(values):.2f}{ends}" if values else "–")
        cells += [f"{result['parameters']:,}".replace(",", " "), f"{result['step_s']:.2f}", str(result["samples"])]
        cells += [f"{result['minutes']:.1f}", f"{result['peak_gb']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Make the cohort, train each network in a process of its own, print."""
    parser = cohort_arguments(__doc__, minutes=5.0)
    parser.add_argument("--networks", nargs="*", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--one", choices=ENTRIES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        out = asked.out or Path(room)
        subjects = make_cohort(out, asked.real, asked.subjects, asked.seed, asked.spacing)
        if asked.one:
            print(json.dumps(one(asked.one, subjects, asked.minutes, asked.steps, asked.seed, asked.spacing)))
            return
        found = {}
        for name in asked.networks:
            command = [sys.executable, __file__, *sys.argv[1:], "--out", str(out), "--one", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(table(found), flush=True)


if __name__ == "__main__":
    main()
