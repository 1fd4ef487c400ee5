"""Mind the gap: what thick slices cost a lesion network, and what training for them wins back.

    python benchmarks/slice_thickness.py [--real DIR --skull-strip template] [--subjects 112] [--spacing 3]
                                         [--samples 12000]

trains the same networks on the same training subjects from the same first weights, each on as many samples: as the
pipeline does, and with each of the acquisitions of `training.acquisition`. Then it puts all of them through the
resolution study on the same test subjects: their 1 mm images with slices of 1 to 10 mm along k, and of 5 and 10 mm
along i and j, masks as they are. Every network has its own operating point, chosen on training subjects at 1 mm.

What is done is kept in --out and not done again. Minutes on a processor core are far from enough for any of these
networks: the losses are those of networks that have begun to see lesions.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lesion_networks import COMMON, PATCHES, SMALL, patch_edge
from phantom_cohort import STEPS_PER_EPOCH, cohort_arguments, halves, make_cohort

from reperfuse.files import write_json
from reperfuse.networks import build_network, save_network
from reperfuse.training.fit import FitSettings, fit
from reperfuse.training.losses import ACTIVATIONS
from reperfuse.training.samples import Subject

RECIPE: dict[str, Any] = COMMON | PATCHES | {"foreground_fraction": 0.33}
"""Of every training: `lesion_networks.COMMON` with fewer patches on the lesion, which finds more whole lesions."""


@dataclass(frozen=True)
class Entry:
    """A network, and how it is prepared for thick slices."""

    network: str
    acquisition: str = "none"
    settings: dict[str, Any] = field(default_factory=dict)


STRONG: dict[str, Any] = {"schedule": "polynomial", "ema": 0.99}

ENTRIES = {
    "unet3d": Entry("unet3d"),
    "unet3d, slices": Entry("unet3d", "slices"),
    "dynunet": Entry("dynunet", settings=STRONG),
    "dynunet, slices": Entry("dynunet", "slices", settings=STRONG),
    "unet3d, synthseg": Entry("unet3d", "synthseg"),
    "unet3d, low_resolution": Entry("unet3d", "low_resolution"),
    "unet3d, anisotropy": Entry("unet3d", "anisotropy"),
}
"""Name → entry; the plain one of each network is what its others are compared with."""


def train_one(name: str, train: list[Subject], samples: int, seed: int, edge: int, folder: Path) -> None:
    """Train one entry, and keep its weights in `folder`."""
    entry = ENTRIES[name]
    settings = RECIPE | entry.settings | {"acquisition": entry.acquisition, "seed": seed, "patch_size": (edge,) * 3}
    torch.manual_seed(seed)
    network = build_network(entry.network, **SMALL)
    started = time.monotonic()
    epochs = max(1, round(samples / settings["batch_size"] / STEPS_PER_EPOCH))
    done = fit(network, train, settings=FitSettings(epochs=epochs, **settings), state_dir=folder / "state")
    seconds = time.monotonic() - started
    about = {"activation": ACTIVATIONS[settings["loss"]], "samples": samples}
    save_network(folder, entry.network, SMALL, done.network, extra=about)
    write_json(folder / "done.json", {"seconds": seconds, "loss": done.history[-1]["loss"]})


def main() -> None:
    """Make the cohort, train each entry in a process of its own, study, print."""
    parser = cohort_arguments(__doc__, minutes=0.0)
    parser.add_argument("--samples", type=int, default=12000, help="that each network is trained on")
    parser.add_argument("--networks", nargs="*", choices=[*ENTRIES], default=[*ENTRIES])
    parser.add_argument("--train-only", action="store_true", help="stop before the study")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        out = asked.out or Path(room)
        subjects = make_cohort(out, asked.real, asked.subjects, asked.seed, asked.spacing, asked.skull_strip)
        train, test = halves(subjects, asked.seed)
        kept = out / "slices" / subjects[0].folder.parent.name / f"{asked.samples}-samples"
        if asked.one:
            edge = patch_edge(asked.spacing)
            train_one(asked.one, train, asked.samples, asked.seed, edge, kept / asked.one.replace(", ", "-"))
            return
        for name in asked.networks:
            if not (kept / name.replace(", ", "-") / "done.json").exists():
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--out", str(out), "--one", name], check=True)


if __name__ == "__main__":
    main()
