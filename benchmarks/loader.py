"""Memory of a training's samples against the number of subjects, and samples per second against what a step needs.

    python benchmarks/loader.py

Memory. Subjects of (192, 224, 176) voxels as sparse files, so that 500 of them take 20 MB of disk, are drawn from in
patches of 64³, batches of 2, each time by a fresh process: by ours with no worker and with two, by the wall that this
loader stands against (`np.stack` of all volumes, images in single precision and masks in bytes), and by MONAI's
CacheDataset with a random crop. Told is the highest sum over the process and its workers of the memory that is theirs
alone (RssAnon in /proc; what workers share with their parent counts for each), and of the pages of files that they
have mapped (RssFile), which the kernel takes back when it needs them. Peers stop before 8 GB; what lies beyond is a
line through what was measured, and marked.

Time. Each way of sampling and each augmentation draws from one process and one thread, from dense volumes of noise, in
memory and read anew from the disk (`posix_fadvise`, which drops a file's pages). Holes of sparse files are read faster
than any disk, so they say nothing about it. The need is that of the training step of `unet3d` with widths
16-32-64-128, batch 2 × 64³, Adam, single precision, on all cores.

What to expect. Ours: the 0.4 GB of the imported libraries, and per subject the 8 kB of its remembered foreground, so
nothing that can be seen; three processes with two workers, so three times that. Stacking: 38 MB per subject in the
stack and, for the images, as much in the list it is made of. CacheDataset: 61 MB per subject, as it makes masks single
precision. Time: a patch of 64³ is 1 MB and takes 1 ms, of which the order of the subjects (a permutation anew for each
sample) is 0.01 ms and opening three files 0.2 ms; interpolation of three channels 15 ms. A step takes about a second,
so that one process feeds it tenfold whatever is drawn, and only a GPU, at 20 steps a second, would wait for `published`
without workers.

What came out (two cores of an AMD EPYC shared with other work, load 3 to 4). Ours: 0.47 GB for 50 and for 500
subjects, 10 kB a subject; 1.34 GB with two workers. `np.stack` 59 MB a subject, list and stack of the images, so 30 GB
for 500; CacheDataset 61 MB, 31 GB. The parts of a sample are as expected, but for the fresh mappings: 0.6 ms go into
reading 1 MB through them, where the bytes alone take 0.04. In all 2.3 ms (64³), `published` 20 and `strong` 10 ms on
average, since four in ten of its samples are turned. A first sample takes 30 to 70 ms from the disk (2 GB/s), much of
it the whole target, read once to find the lesion. The step took 2.4 s on the loaded cores, so one process fed it
40-fold with `published` and 200-fold without; a step of 0.5 s would be fed 9-fold and 40-fold, one of 0.05 s (a GPU)
just not by one process with `published`. The check of a subject takes 7 ms in memory, 14 ms from the disk.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from reperfuse.evaluation.drawing import BLUE, GREY, ORANGE, SKY, STYLE, VERMILION

SHAPE = (192, 224, 176)
NUMBERS = (50, 100, 200, 500)
LIMIT_GB = 4.0
"""What a training of 500 full-size subjects may take of a machine's memory."""

PEERS = {"np.stack": (25, 50, 100), "MONAI CacheDataset": (10, 20, 40)}
"""Subjects that each peer is measured with."""

DENSE = 20
"""Volumes of the set that is really on the disk."""


# ---- subjects -------------------------------------------------------------------------------------------------------
def sparse_subject(folder: Path, number: int) -> None:
    """Zeros that take no disk, and a lesion of 20³ voxels."""
    folder.mkdir()
    for name, shape, kind in arrays_of_a_subject():
        array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
        if name == "target":
            array[(0, *lesion(number))] = 1


def dense_subject(folder: Path, number: int) -> None:
    """Noise, a lesion, and a brain that is everywhere."""
    folder.mkdir()
    rng = np.random.default_rng(number)
    target = np.zeros((1, *SHAPE), np.uint8)
    target[0][lesion(number)] = 1
    np.save(folder / "image.npy", rng.standard_normal((1, *SHAPE), dtype=np.float32))
    np.save(folder / "target.npy", target)
    np.save(folder / "mask.npy", np.ones(SHAPE, np.uint8))


def arrays_of_a_subject() -> list[tuple[str, tuple[int, ...], type]]:
    return [("image", (1, *SHAPE), np.float32), ("target", (1, *SHAPE), np.uint8), ("mask", SHAPE, np.uint8)]


def lesion(number: int) -> tuple[slice, ...]:
    starts = np.random.default_rng(number).integers(20, np.array(SHAPE) - 40)
    return tuple(slice(start, start + 20) for start in starts)


def subjects_in(root: Path, number: int) -> list[Any]:
    from reperfuse.training.samples import Subject

    return [Subject(f"sub-{i}", root / f"sub-{i}") for i in range(number)]


def forget(root: Path) -> None:
    """Drop what the kernel keeps of the files below."""
    for path in root.rglob("*.npy"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---- memory, in a process of its own --------------------------------------------------------------------------------
def resident(pid: int) -> tuple[float, float]:
    """RssAnon and RssFile of a process [GB]; 0 of one that has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return float(found.get("RssAnon", 0)) / 1e6, float(found.get("RssFile", 0)) / 1e6


def family() -> list[int]:
    """This process and its children."""
    here = os.getpid()
    threads = Path(f"/proc/{here}/task")
    children = (path.read_text() for path in threads.glob("*/children"))
    return [here, *(int(pid) for text in children for pid in text.split())]


def highest_while(work: Callable[[], object]) -> dict[str, float]:
    """The largest sums of RssAnon and RssFile while `work` runs, and RssAnon before it [GB]."""
    done = threading.Event()
    seen: list[tuple[float, float]] = []
    before = resident(os.getpid())[0]

    def watch() -> None:
        while not done.is_set():
            sums = np.sum([resident(pid) for pid in family()], axis=0)
            seen.append((float(sums[0]), float(sums[1])))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return {"anon": max(row[0] for row in seen), "file": max(row[1] for row in seen), "before": before}


def draw_patches(root: Path, number: int, workers: int) -> None:
    """Three patches of every subject."""
    from torch.utils.data import DataLoader

    from reperfuse.training.samples import EpochSampler, PatchSamples

    samples = PatchSamples(
        subjects_in(root, number),
        n_samples=3 * number,
        patch_size=(64, 64, 64),
        foreground_fraction=0.7,
        augment="light",
    )
    for _ in DataLoader(samples, 2, sampler=EpochSampler(len(samples)), num_workers=workers):
        pass


def stack_volumes(root: Path, number: int) -> None:
    folders = [root / f"sub-{i}" for i in range(number)]
    for name in ("image", "target"):
        stacked = np.stack([np.load(folder / f"{name}.npy") for folder in folders])
        kept.append(stacked)


def cache_volumes(root: Path, number: int) -> None:
    from monai.data import CacheDataset
    from monai.transforms import Compose, LoadImaged, RandSpatialCropd

    keys = ["image", "target"]
    files = [{key: str(root / f"sub-{i}" / f"{key}.npy") for key in keys} for i in range(number)]
    chain = Compose([LoadImaged(keys, reader="NumpyReader"), RandSpatialCropd(keys, (64, 64, 64), random_size=False)])
    cached = CacheDataset(files, chain, progress=False)
    for index in range(number):
        kept.append(cached[index]["image"].shape)


kept: list[Any] = []
"""What a peer holds on to until it is measured."""


def measure(loader: str, root: Path, number: int) -> dict[str, float]:
    """`highest_while` of a loader in this process."""
    import monai.transforms  # noqa: F401
    import torch

    import reperfuse.training.fit  # noqa: F401  what a training imports anyway comes before the watch

    torch.set_num_threads(1)
    if loader == "np.stack":
        return highest_while(lambda: stack_volumes(root, number))
    if loader == "MONAI CacheDataset":
        return highest_while(lambda: cache_volumes(root, number))
    return highest_while(lambda: draw_patches(root, number, 2 if "workers" in loader else 0))


def measured_apart(loader: str, root: Path, number: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--measure", loader, "--folder", str(root), "--subjects", str(number)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


OURS = ("reperfuse", "reperfuse, 2 workers")


def memory(folder: Path, numbers: Iterable[int]) -> dict[str, dict[int, dict[str, float]]]:
    """Loader → subjects → `highest_while`."""
    root = folder / "sparse"
    root.mkdir()
    for number in range(max(numbers)):
        sparse_subject(root / f"sub-{number}", number)
    asked = dict.fromkeys(OURS, tuple(numbers)) | PEERS
    found: dict[str, dict[int, dict[str, float]]] = {}
    for loader, sizes in asked.items():
        for number in sizes:
            found.setdefault(loader, {})[number] = measured_apart(loader, root, number)
            print(f"{loader}, {number} subjects: {found[loader][number]}", file=sys.stderr, flush=True)
    return found


def line_through(points: dict[int, dict[str, float]]) -> np.poly1d:
    """RssAnon [GB] as a line of the number of subjects."""
    return np.poly1d(np.polyfit(list(points), [point["anon"] for point in points.values()], 1))


def print_memory(found: dict[str, dict[int, dict[str, float]]], numbers: Iterable[int]) -> None:
    print("\nMemory of the process and its workers [GB]; * is extrapolated\n")
    print(
        "| Loader | " + " | ".join(f"{number} subjects" for number in numbers) + " | per subject [MB] | files mapped |"
    )
    print("|---|" + "--:|" * (len(list(numbers)) + 2))
    for loader, points in found.items():
        line = line_through(points)
        cells = [f"{points[n]['anon']:.2f}" if n in points else f"{line(n):.1f}*" for n in numbers]
        mapped = max(point["file"] for point in points.values())
        print(f"| {loader} | " + " | ".join(cells) + f" | {1000 * line[1]:.2f} | {mapped:.2f} |")


# ---- time -----------------------------------------------------------------------------------------------------------
def seconds_of(work: Iterable[Callable[[], object]]) -> list[float]:
    taken = []
    for call in work:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return taken


def needed(batch: int = 2, steps: int = 8) -> float:
    """Patches of 64³ that the fastest of some training steps would take per second."""
    import torch

    from reperfuse.networks import build_network
    from reperfuse.training.losses import LOSSES

    torch.set_num_threads(os.cpu_count() or 1)
    network = build_network("unet3d", widths=(16, 32, 64, 128))
    optimiser = torch.optim.Adam(network.parameters())
    image = torch.randn(batch, 1, 64, 64, 64)
    target = (image > 2).float()

    def step() -> None:
        loss = LOSSES["dice_bce"](network(image), target, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    taken = seconds_of([step] * (steps + 2))[2:]
    return batch / min(taken)


def ways() -> dict[str, dict[str, Any]]:
    """What is timed at 64³: arguments of `PatchSamples`."""
    from reperfuse.training.augment import AUGMENTATIONS
    from reperfuse.training.sampling import Sampling

    cube = (64, 64, 64)
    found: dict[str, dict[str, Any]] = {
        "anywhere": {"patch_size": cube},
        "on the target (0.7)": {"patch_size": cube, "foreground_fraction": 0.7},
        "rejection (40 %, 50 tries)": {"patch_size": cube, "sampling": Sampling("rejection")},
        "slices with lesion, 192 × 224": {"sampling": Sampling("slices", slices="lesion")},
        "whole volumes": {},
    }
    return found | {
        f"on the target, {name}": {"patch_size": cube, "foreground_fraction": 0.7, "augment": name}
        for name in AUGMENTATIONS
        if name != "none"
    }


def samples_of(root: Path, **arguments: Any) -> Any:
    from reperfuse.training.samples import PatchSamples

    return PatchSamples(subjects_in(root, DENSE), n_samples=10_000, **arguments)


def print_times(root: Path, need: float) -> None:
    print(f"\nA training step takes {need:.2f} patches of 64³ per second; ratio: how often one process feeds it\n")
    print("| Samples | in memory [ms] | [1/s] | ratio | first read from disk [ms] |")
    print("|---|--:|--:|--:|--:|")
    for name, arguments in ways().items():
        forget(root)
        samples = samples_of(root, **arguments)
        cold = statistics.mean(seconds_of([partial(samples.__getitem__, i) for i in range(DENSE)]))
        rounds = 1 if name == "whole volumes" else 5
        warm = statistics.mean(
            seconds_of([partial(samples.__getitem__, i) for i in range(DENSE, (1 + rounds) * DENSE)])
        )
        print(
            f"| {name} | {1000 * warm:.1f} | {1 / warm:.0f} | {1 / warm / need:.0f} | {1000 * cold:.1f} |", flush=True
        )


def print_augmentations(root: Path) -> None:
    from reperfuse.training.augment import AUGMENTATIONS

    print("\nOne sample by augmentation, volumes in memory: mean (95th percentile) [ms]\n")
    print("| Augmentation | 64³ | 96³ |\n|---|--:|--:|")
    for name in AUGMENTATIONS:
        cells = []
        for side in (64, 96):
            samples = samples_of(root, patch_size=(side,) * 3, augment=name)
            taken = 1000 * np.array(seconds_of([partial(samples.__getitem__, i) for i in range(120)])[20:])
            cells.append(f"{taken.mean():.1f} ({np.percentile(taken, 95):.0f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def print_parts(root: Path) -> None:
    """Where the time of a sample goes, and of the check before a training."""
    from reperfuse.training import checks
    from reperfuse.training.windows import window

    subject = subjects_in(root, 1)[0]
    _, target, _ = subject.parts()
    place = (60, 70, 50), (64, 64, 64)
    patch = window(*subject.parts(), *place)[0]
    calls: dict[str, Callable[[], object]] = {
        "order of 500 subjects": lambda: np.random.default_rng([1, 2]).permutation(500),
        "opening three files": subject.parts,
        "opening them and reading 64³": lambda: window(*subject.parts(), *place),
        "copying 64³ once more": lambda: patch.copy(),
        "finding the lesion, once per subject": lambda: np.flatnonzero(target[0] > 0),
    }
    print("\n| Part of a sample | [ms] |\n|---|--:|")
    for name, call in calls.items():
        print(f"| {name} | {1000 * statistics.median(seconds_of([call] * 50)):.3f} |")

    def look() -> None:
        checks._fault.cache_clear()
        assert checks.fault_of(subject, labels=True) is None

    warm = statistics.median(seconds_of([look] * 10))
    forget(root)
    (cold,) = seconds_of([look])
    (again,) = seconds_of([lambda: checks.fault_of(subject, labels=True)])
    print(f"\nCheck of a subject {warm:.4f} s in memory, {cold:.3f} s from disk, {1e3 * again:.2f} ms the second time.")


# ---- figure ---------------------------------------------------------------------------------------------------------
def draw(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Memory against subjects, both in powers of ten."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(found, (BLUE, SKY, VERMILION, ORANGE), strict=True))
    last = max(NUMBERS)
    shift = {"np.stack": 15, "MONAI CacheDataset": -15}  # points: their lines end in one place
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        for loader, points in found.items():
            numbers, values = list(points), [point["anon"] for point in points.values()]
            axis.plot(numbers, values, "o-", color=colours[loader], markersize=5, linewidth=1.8)
            end = values[-1]
            if numbers[-1] < last:
                beyond = np.geomspace(numbers[-1], last, 30)
                line = line_through(points)
                axis.plot(beyond, line(beyond), "--", color=colours[loader], linewidth=1.4)
                end = line(last)
            per = 1000 * line_through(points)[1]
            said = f"{end:.0f} GB" if end >= 10 else f"{end:.1f} GB"
            added = f", {per:.0f} MB a subject" if per >= 1 else ""
            axis.annotate(
                f"{loader}\n{said}{added}",
                (last, end),
                xytext=(8, shift.get(loader, 0)),
                textcoords="offset points",
                va="center",
                color=colours[loader],
                fontsize=9,
                annotation_clip=False,
            )
        axis.axhline(LIMIT_GB, color=GREY, linewidth=1, linestyle=":")
        axis.annotate(f"{LIMIT_GB:.0f} GB", (10, LIMIT_GB), xytext=(0, 3), textcoords="offset points", color=GREY)
        ticks = sorted({10, 25, *NUMBERS})
        axis.set(xscale="log", yscale="log", xlim=(9, last * 1.05), ylim=(0.2, 60))
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_yticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
        axis.minorticks_off()
        axis.set_xlabel("Subjects of 192 × 224 × 176 voxels")
        axis.set_ylabel("Memory of the process and its workers [GB]")
        axis.set_title("Memory of a training's samples (dashed: extrapolated)", loc="left")
        figure.savefig(path, dpi=160)


def main() -> None:
    """Measure all, print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the volumes are written, on a real disk; 1 GB")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs/images/loader-memory.png")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--subjects", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.folder, asked.subjects)))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        found = memory(Path(folder), NUMBERS)
        print_memory(found, NUMBERS)
        draw(found, asked.figure)
        dense = Path(folder) / "dense"
        dense.mkdir()
        for number in range(DENSE):
            dense_subject(dense / f"sub-{number}", number)
        need = needed()
        import torch

        torch.set_num_threads(1)
        print_times(dense, need)
        print_augmentations(dense)
        print_parts(dense)


if __name__ == "__main__":
    main()
