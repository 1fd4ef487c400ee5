"""Whether a lesion cohort can rank methods: what fails on it, and what a small network learns from it.

    python benchmarks/phantom_cohort.py [--real ../shared/data/lesions] [--subjects 56] [--spacing 2] [--minutes 10]

makes a cohort of lesion phantoms or, with --real, of real lesions in a real T1w, brings it to the model's grid as the
lesion arm does, splits it by subject, and scores on the same test subjects:

- the intensity threshold with the best mean Dice on the training subjects;
- the distance from the template of the training subjects' healthy voxels, smoothing, side and threshold likewise;
- the lesion arm's own 3D U-Net, trained for --minutes on the training subjects.

It prints a Markdown table of the mean Dice of test subjects with a lesion, with its bootstrap interval, by lesion
volume too, and the volume found in those without one. A cohort is worth ranking methods on if the first two
stay below 0.3 and the network is well above them.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from reperfuse.evaluation.baselines import best_threshold, template_distance
from reperfuse.evaluation.metrics import dice
from reperfuse.evaluation.summary import bootstrap_interval, volume_class
from reperfuse.networks import build_network
from reperfuse.params import LesionPreprocess, Params
from reperfuse.stages.demo_lesion import lesion_plan, lesion_subject, real_lesion_plan
from reperfuse.stages.lesion_input import network_input, on_model_grid
from reperfuse.stages.processed import write_subject
from reperfuse.training.fit import FitSettings, Predict, fit
from reperfuse.training.losses import ACTIVATIONS
from reperfuse.training.predict import predict_volume
from reperfuse.training.samples import Subject

CENTRES = 8
"""Scanners of a cohort."""

STEPS_PER_EPOCH = 25
"""After each epoch the state is kept."""

PATCH_MM = 96.0
"""Edge of a training patch: 48 voxels of 2 mm, as the lesion arm has by default."""

TEST_SHARE = 2 / 7
"""Share of the subjects that are held back: 16 of 56."""


def make_cohort(
    out: Path,
    real: Path | None,
    count: int,
    seed: int,
    spacing_mm: float,
    skull_strip: str = "none",
    grid: int | None = None,
) -> list[Subject]:
    """A processed folder per subject, as `reperfuse preprocess lesion` leaves it; folders there are left alone.

    With `grid` the whole field of view is downsized to so many voxels along each axis, whatever their size.
    """
    from reperfuse.preprocessing.geometry import resample

    shape = (grid,) * 3 if grid else None
    settings = LesionPreprocess.model_validate(
        {"spacing_mm": spacing_mm, "skull_strip": skull_strip, "grid_shape": shape}
    )
    plan = cohort_plan(count, seed, real)
    size = f"{grid}-voxels" if grid else f"{spacing_mm:g}mm"
    out = out / f"{'real' if real else 'phantoms'}-{count}-seed-{seed}-{size}-{skull_strip}"
    subjects = []
    for folder, how in track(plan.items(), description="make cohort"):
        name = Path(folder).name
        subjects.append(Subject(name, out / name))
        if subjects[-1].folder.exists():
            continue
        made = lesion_subject(**{key: value for key, value in how.items() if key != "cost"})
        grid = on_model_grid({"t1w": made.t1w}, settings)
        image, brain = network_input(grid, settings)
        truth = resample(made.mask, like=grid, mask=True).data
        write_subject(subjects[-1].folder, image, truth, brain, {"affine": grid.affine.tolist(), **made.truth})
    return subjects


def cohort_plan(count: int, seed: int, real: Path | None) -> dict[str, dict[str, Any]]:
    """Subject folder → how its T1w and mask are made."""
    if real:
        return dict(real_lesion_plan(count, seed, real, centres=CENTRES))
    return dict(lesion_plan(count, seed, floor_ml=0.0, centres=CENTRES))


def halves(subjects: list[Subject], seed: int) -> tuple[list[Subject], list[Subject]]:
    """Subjects for training and for testing, by chance; of those without a lesion the same share is held back."""
    rng = np.random.default_rng([seed, 5])
    has = [bool(truth.any()) for _, truth, _ in arrays(subjects)]
    held: set[int] = set()
    for side in (True, False):
        group = rng.permutation([i for i, lesion in enumerate(has) if lesion == side])
        held |= set(group[: round(TEST_SHARE * len(group))].tolist())
    train = [subject for i, subject in enumerate(subjects) if i not in held]
    return train, [subject for i, subject in enumerate(subjects) if i in held]


def arrays(subjects: list[Subject]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Image, truth and brain of each subject, one at a time."""
    for subject in subjects:
        image, target, mask = subject.load()
        yield np.asarray(image[0]), target[0] > 0, mask > 0


def trained(
    subjects: list[Subject], spacing_mm: float, minutes: float, steps: int | None, seed: int, state: Path
) -> tuple[Predict, str]:
    """The U-Net of the lesion arm after so many minutes, or steps, and what it went through."""
    chosen = Params().lesion.train
    settings = {
        "steps_per_epoch": STEPS_PER_EPOCH,
        "batch_size": chosen.batch_size,
        "patch_size": (max(8 * round(PATCH_MM / spacing_mm / 8), 16),) * 3,
        "learning_rate": chosen.learning_rate,
        "weight_decay": chosen.weight_decay,
        "optimiser": chosen.optimiser,
        "loss": chosen.loss,
        "foreground_fraction": chosen.foreground_fraction,
        "augment": chosen.augment,
        "seed": seed,
    }

    def network() -> torch.nn.Module:
        torch.manual_seed(seed)
        return build_network(chosen.network, **chosen.network_kwargs)

    if steps is None:
        # The schedule needs to know its end: the second epoch of a trial tells how many fit.
        trial = fit(network(), subjects, settings=FitSettings(epochs=2, **settings), state_dir=state / "trial")
        steps = round(minutes * 60 / trial.history[-1]["seconds"]) * STEPS_PER_EPOCH
    epochs = max(1, -(-steps // STEPS_PER_EPOCH))
    done = fit(
        network(),
        subjects,
        settings=FitSettings(epochs=epochs, schedule=chosen.schedule, **settings),
        state_dir=state / "fit",
    )
    about = f"{chosen.network} {chosen.network_kwargs}, {epochs * STEPS_PER_EPOCH} steps of {chosen.batch_size}"
    about += f", {done.seconds / 60:.1f} min"

    def predict(image: np.ndarray) -> np.ndarray:
        return predict_volume(done.network, image, activation=ACTIVATIONS[chosen.loss])

    return predict, about


def table(found: Mapping[str, list[float]], volumes_ml: list[float], free: Mapping[str, list[float]]) -> str:
    """Markdown: a row per method; mean Dice overall with its interval, by class of volume, false volume."""
    classes = volume_class(volumes_ml)
    names = [name for name in dict.fromkeys(volume_class([0.1, 5, 30, 90])) if name in classes]
    heads = ["method", f"Dice (n={len(volumes_ml)})", "95 %"]
    heads += [f"{name} ({classes.count(name)})" for name in names]
    heads += [f"mL found where there is none ({len(next(iter(free.values())))})"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for method, scores in found.items():
        low, high = bootstrap_interval(scores)
        cells = [method, f"{np.mean(scores):.3f}", "–" if low is None else f"{low:.3f}–{high:.3f}"]
        cells += [f"{np.mean([s for s, c in zip(scores, classes, strict=True) if c == name]):.3f}" for name in names]
        cells += [", ".join(f"{volume:.1f}" for volume in free[method]) or "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cohort_arguments(about: str | None, *, minutes: float) -> argparse.ArgumentParser:
    """What every benchmark on a lesion cohort asks: which cohort, which grid, how long a training."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder with lesymap/ and soop_masks/; left out: phantoms")
    parser.add_argument("--subjects", type=int, default=56)
    parser.add_argument("--minutes", type=float, default=minutes, help="of each training; 0 is none")
    parser.add_argument("--skull-strip", default="none", help="lesion.preprocess.skull_strip; phantoms have no skull")
    parser.add_argument("--spacing", type=float, default=2.0, help="of the model's grid [mm]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keeps the cohort there, and finds it there again")
    return parser


def main() -> None:
    """Make the cohort, train, score, print."""
    parser = cohort_arguments(__doc__, minutes=10.0)
    parser.add_argument("--steps", type=int, help="of training in place of minutes, for the same result anywhere")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        started = time.monotonic()
        out = asked.out or Path(room)
        subjects = make_cohort(out, asked.real, asked.subjects, asked.seed, asked.spacing, asked.skull_strip)
        took = {"making the cohort": time.monotonic() - started}
        train, test = halves(subjects, asked.seed)

        methods: dict[str, Predict] = {}
        started = time.monotonic()
        cut = best_threshold(arrays(train), edges=np.linspace(-4, 4, 161))
        took["threshold"] = time.monotonic() - started
        started = time.monotonic()
        far = template_distance(lambda: arrays(train))
        took["template"] = time.monotonic() - started
        print(f"threshold {'<' if cut.below else '>'} {cut.threshold:g}, training Dice {cut.dice:.3f}")
        print(f"template {far.side} {far.threshold:g}, width {far.width:g} voxels, training Dice {far.dice:.3f}")
        if asked.steps or asked.minutes > 0:
            predict, about = trained(train, asked.spacing, asked.minutes, asked.steps, asked.seed, Path(room))
            methods["3D U-Net"] = lambda image: predict(image) > 0.5
            # What it cannot even fit is too hard; what it fits and does not find elsewhere wants more subjects.
            fitted = [
                dice(methods["3D U-Net"](np.asarray(subject.load()[0])), truth)
                for subject, (_, truth, _) in zip(train, arrays(train), strict=True)
                if truth.any()
            ]
            print(f"{about}, training Dice {np.mean(fitted):.3f}")

        scores: dict[str, list[float]] = {name: [] for name in ("threshold", "template distance", *methods)}
        false_ml: dict[str, list[float]] = {name: [] for name in scores}
        volumes = []
        for subject, (image, truth, mask) in zip(test, arrays(test), strict=True):
            answers = {"threshold": cut(image, mask), "template distance": far(image, mask)}
            answers |= {name: method(np.asarray(subject.load()[0])) for name, method in methods.items()}
            if truth.any():
                volumes.append(float(truth.sum()) * asked.spacing**3 / 1000)
            for name, answer in answers.items():
                if truth.any():
                    scores[name].append(float(dice(answer, truth)))
                else:
                    false_ml[name].append(float(answer.sum()) * asked.spacing**3 / 1000)
        kind = "real lesions in a real T1w" if asked.real else "phantoms"
        print(
            f"\n{kind}: {len(train)} for training, {len(test)} for testing, seed {asked.seed}, {asked.spacing:g} mm; "
        )
        print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items()) + "\n")
        print(table(scores, volumes, false_ml))


if __name__ == "__main__":
    main()
