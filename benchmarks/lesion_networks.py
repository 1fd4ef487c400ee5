"""The lesion networks side by side: one cohort, one split, the same wall clock or the same samples for each.

    python benchmarks/lesion_networks.py [--real DIR] [--subjects 112] [--spacing 3] [--minutes 5] [--peer PYTHON]

trains every network of the published studies, and the strong one (`dynunet`) with its recipe, for --minutes on the same
training subjects, each in a process of its own, and prints a Markdown table: mean scores of the same test subjects with
bootstrap intervals, parameters, seconds per step, samples seen, peak memory (of the GPU where there is one). --peer
names the Python of another environment that holds nnU-Net v2 (nnunetv2==2.8), which then trains on the same subjects
(`nnunet_peer.py`). With --samples each sees as many samples, however long it takes. --parts asks what each part of the
recipe is worth: the recipe without it, or with another in its place, as paired differences. --grid 64 trains on whole
volumes downsized to 64³ voxels, as the study of (2+1)D convolutions did: `--networks unet3d unet2plus1d --grid 128` is
its question.

Every mask is the probability above 0.5, and no answer of the first table is averaged over mirror images. Times depend
on the machine and on what else it does: `taskset -c 1` gives all of them one core. Ours compute in bfloat16 where the
processor does, nnU-Net in single precision, as it does on any CPU. Minutes are far from enough for any of these
networks: the order is that of their first minutes. On a GPU, with hours, the same command gives the other answer. What
is done is kept in --out and not done again.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunet_export import export, predictions
from phantom_cohort import PATCH_MM, STEPS_PER_EPOCH, cohort_arguments, halves, make_cohort

from reperfuse.evaluation.metrics import lesion_scores
from reperfuse.evaluation.summary import bootstrap_interval
from reperfuse.files import read_json
from reperfuse.networks import build_network
from reperfuse.training.fit import FitSettings, fit
from reperfuse.training.losses import ACTIVATIONS
from reperfuse.training.predict import device_of, mirrored, predict_volume
from reperfuse.training.samples import Subject
from reperfuse.training.sampling import Sampling

SCORES = {
    "dice": "Dice",
    "pr_auc": "PR-AUC",
    "lesion_f1_atlas": "F1 ATLAS",
    "lesion_f1_isles22": "F1 ISLES'22",
    "lesion_rq_isles26": "RQ ISLES'26",
    "volume_error_ml": "volume error [mL]",
    "hd95_mm": "HD95 [mm]",
}
"""Metric → heading."""

DECIMALS = {"volume_error_ml": 0, "hd95_mm": 0}
"""Where they are not two."""

PATCHES: dict[str, Any] = {"batch_size": 2, "foreground_fraction": 0.7}
WHOLE: dict[str, Any] = {"batch_size": 1, "foreground_fraction": 0.0, "patch_size": None}
SLICES: dict[str, Any] = {"batch_size": 16, "sampling": Sampling("slices")}
SMALL = {"widths": [12, 24, 48, 96]}


@dataclass(frozen=True)
class Entry:
    """A network and how it is trained."""

    network: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    mirror: bool = False
    """Whether the answers for the eight mirror images are averaged."""


RECIPE = Entry("dynunet", SMALL, PATCHES | {"augment": "strong", "schedule": "polynomial", "ema": 0.99}, mirror=True)

ENTRIES = {
    "unet3d": Entry("unet3d", SMALL, PATCHES),
    "unet2plus1d": Entry("unet2plus1d", SMALL, PATCHES),
    "cnn8": Entry("cnn8", {}, SLICES),
    "resnet20": Entry("resnet20", {}, SLICES),
    "unet2d": Entry("unet2d", {"widths": [16, 32, 64, 128, 256]}, SLICES),
    "resunet2d": Entry("resunet2d", {"widths": [16, 32, 64, 128, 256]}, SLICES),
    "dynunet": replace(RECIPE, mirror=False),
}
"""Name → entry, widths such that a step takes about the same on a CPU."""

PEER = "nnU-Net 2.8"

PARTS = {
    "the recipe": RECIPE,
    "no mirroring at test time": replace(RECIPE, mirror=False),
    "no foreground patches": replace(RECIPE, settings=RECIPE.settings | {"foreground_fraction": 0.0}),
    "no deep supervision": replace(RECIPE, kwargs=SMALL | {"deep_supervision": False}),
    "no average of the weights": replace(RECIPE, settings=RECIPE.settings | {"ema": 0.0}),
    "light augmentation": replace(RECIPE, settings=RECIPE.settings | {"augment": "light"}),
    "cosine schedule": replace(RECIPE, settings=RECIPE.settings | {"schedule": "cosine"}),
    "cross-entropy alone": replace(RECIPE, settings=RECIPE.settings | {"loss": "bce"}),
    "Dice alone": replace(RECIPE, settings=RECIPE.settings | {"loss": "soft_dice"}),
    "TopK cross-entropy": replace(RECIPE, settings=RECIPE.settings | {"loss": "bce_topk"}),
    "single precision": replace(RECIPE, settings=RECIPE.settings | {"precision": "32"}),
}
"""The recipe, and the recipe with one part taken out or changed."""

COMMON: dict[str, Any] = {
    "loss": "dice_bce",
    "optimiser": "adamw",
    "learning_rate": 5e-3,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "augment": "light",
    "steps_per_epoch": STEPS_PER_EPOCH,
}


@dataclass(frozen=True)
class Budget:
    """How long each entry is trained."""

    minutes: float
    samples: int | None
    """In place of minutes."""

    def steps(self, batch_size: int, epoch_s: float) -> int:
        """Optimiser steps, whole epochs of them, where one epoch takes `epoch_s`."""
        epochs = self.samples / batch_size / STEPS_PER_EPOCH if self.samples else self.minutes * 60 / epoch_s
        return max(1, round(epochs)) * STEPS_PER_EPOCH


def patch_edge(spacing_mm: float) -> int:
    """Voxels along a patch, a multiple of eight."""
    return max(8 * round(PATCH_MM / spacing_mm / 8), 16)


def one(name: str, subjects: list[Subject], budget: Budget, seed: int, edge: int | None) -> dict[str, Any]:
    """Train and score one entry, on patches of `edge` voxels each way or on whole volumes."""
    entry = (ENTRIES | PARTS)[name]
    train, test = halves(subjects, seed)
    settings = COMMON | entry.settings | {"seed": seed}
    if "sampling" not in settings:
        settings |= {"patch_size": (edge,) * 3} if edge else WHOLE

    def network() -> torch.nn.Module:
        torch.manual_seed(seed)
        return build_network(entry.network, **entry.kwargs)

    with tempfile.TemporaryDirectory() as room:
        epoch_s = 1.0
        if not budget.samples:
            # The schedule needs to know its end: the second epoch of a trial tells how many fit.
            trial = fit(network(), train, settings=FitSettings(epochs=2, **settings), state_dir=Path(room, "trial"))
            epoch_s = trial.history[-1]["seconds"]
        steps = budget.steps(settings["batch_size"], epoch_s)
        started = time.monotonic()
        done = fit(
            network(),
            train,
            settings=FitSettings(epochs=steps // STEPS_PER_EPOCH, **settings),
            state_dir=Path(room, "fit"),
        )
        seconds = time.monotonic() - started

    def predict(image: np.ndarray) -> np.ndarray:
        return predict_volume(done.network, image, activation=ACTIVATIONS[settings["loss"]], device=device_of())

    if torch.cuda.is_available():
        peak_gb = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    answer = mirrored(predict) if entry.mirror else predict
    return {
        "scores": [scores_of(answer(np.asarray(subject.load()[0])), subject) for subject in test],
        "parameters": sum(p.numel() for p in done.network.parameters()),
        "steps": steps,
        "step_s": seconds / steps,
        "samples": steps * settings["batch_size"],
        "minutes": seconds / 60,
        "peak_gb": peak_gb,
    }


def peer(python: Path, subjects: list[Subject], budget: Budget, seed: int, edge: int, folder: Path) -> dict[str, Any]:
    """Train and score nnU-Net in its own environment."""
    train, test = halves(subjects, seed)
    if not folder.exists():
        export(train, test, folder, float(spacing_of(train[0])[0]))
    batch = PATCHES["batch_size"]
    length = ["--steps", str(budget.samples // batch)] if budget.samples else ["--minutes", str(budget.minutes)]
    command = [str(python), str(Path(__file__).with_name("nnunet_peer.py")), str(folder), "--no-mirroring", *length]
    command += ["--patch", *[str(edge)] * 3, "--batch", str(batch)]
    command += ["--seed", str(seed), "--threads", str(torch.get_num_threads())]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    answers = ((predictions(folder, subject.participant_id), subject) for subject in test)
    return {"scores": [scores_of(*pair) for pair in answers]} | read_json(folder / "done.json")


def spacing_of(subject: Subject) -> np.ndarray:
    """Size of the voxels of a processed subject [mm]."""
    return np.linalg.norm(np.array(read_json(subject.folder / "subject.json")["affine"])[:3, :3], axis=0)


def scores_of(probability: np.ndarray, subject: Subject) -> dict[str, float | None]:
    """Every score of one answer (I, J, K)."""
    spacing_mm = tuple(map(float, spacing_of(subject)))
    return lesion_scores(probability > 0.5, subject.load()[1][0] > 0, spacing_mm, probability=probability)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row per network: mean scores with bootstrap intervals, and what they took."""
    rows = [["network", *SCORES.values(), "parameters", "s/step", "samples", "minutes", "peak GB"]]
    for name, result in found.items():
        row = [name]
        for metric in SCORES:
            row.append(mean_said([scores[metric] for scores in result["scores"]], DECIMALS.get(metric, 2)))
        row += [f"{result['parameters']:,}".replace(",", " "), f"{result['step_s']:.2f}", str(result["samples"])]
        rows.append([*row, f"{result['minutes']:.1f}", f"{result['peak_gb']:.1f}"])
    return markdown(rows)


def differences(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row per entry: mean paired differences to the first one, with bootstrap intervals."""
    (first, against), *others = found.items()
    rows = [[f"less those of {first}", *SCORES.values()]]
    for name, result in others:
        row = [name]
        for metric in SCORES:
            pairs = [(a[metric], b[metric]) for a, b in zip(result["scores"], against["scores"], strict=True)]
            change = [a - b for a, b in pairs if a is not None and b is not None]
            row.append(mean_said(change, DECIMALS.get(metric, 2), sign="+"))
        rows.append(row)
    return markdown(rows)


def mean_said(values: list[float | None], places: int, sign: str = "") -> str:
    """A mean of what is defined with its interval, as text."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    low, high = bootstrap_interval(numbers)
    said = f"{np.mean(numbers):{sign}.{places}f}"
    return said if low is None else f"{said} ({low:{sign}.{places}f} to {high:{sign}.{places}f})"


def markdown(rows: list[list[str]]) -> str:
    """Rows of text as a table, the first its heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def main() -> None:
    """Make the cohort, train each network in a process of its own, print."""
    parser = cohort_arguments(__doc__, minutes=5.0)
    parser.add_argument("--samples", type=int, help="that each network is trained on, in place of minutes")
    parser.add_argument("--networks", nargs="*", choices=[*ENTRIES, PEER])
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="of the recipe; alone: all of them")
    parser.add_argument("--grid", type=int, help="voxels along each axis of whole volumes, in place of patches")
    parser.add_argument("--peer", type=Path, help="Python of an environment with nnU-Net v2")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    budget = Budget(asked.minutes, asked.samples)
    names = asked.networks or [*ENTRIES, *([PEER] if asked.peer else [])]
    if asked.parts is not None:
        names = list(dict.fromkeys(["the recipe", *(asked.parts or PARTS)]))
    edge = None if asked.grid else patch_edge(asked.spacing)
    if edge is None and PEER in names:
        parser.error("nnU-Net trains on patches: leave --grid out")
    with tempfile.TemporaryDirectory() as room:
        out = asked.out or Path(room)
        subjects = make_cohort(
            out, asked.real, asked.subjects, asked.seed, asked.spacing, asked.skull_strip, asked.grid
        )
        if asked.one:
            print(json.dumps(one(asked.one, subjects, budget, asked.seed, edge)))
            return
        spent = f"{budget.samples}-samples" if budget.samples else f"{budget.minutes:g}-min"
        kept = out / "networks" / subjects[0].folder.parent.name / spent
        kept.mkdir(parents=True, exist_ok=True)
        found = {}
        for name in names:
            result = kept / f"{name}.json"
            if not result.exists():
                if name == PEER:
                    made = peer(asked.peer, subjects, budget, asked.seed, edge, kept / "nnunet")
                else:
                    command = [sys.executable, __file__, *sys.argv[1:], "--out", str(out), "--one", name]
                    made = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
                result.write_text(json.dumps(made))
            found[name] = json.loads(result.read_text())
            print(table(found), flush=True)
        if asked.parts is not None:
            print(f"\n{differences(found)}")


if __name__ == "__main__":
    main()
