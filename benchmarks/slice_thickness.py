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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from lesion_networks import COMMON, PATCHES, SMALL, markdown, mean_said, patch_edge
from matplotlib.figure import Figure
from phantom_cohort import STEPS_PER_EPOCH, cohort_arguments, cohort_plan, halves, make_cohort

from reperfuse.evaluation.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILION
from reperfuse.evaluation.hypotheses import hypothesis_tests
from reperfuse.evaluation.metrics import lesion_detections, lesion_scores
from reperfuse.evaluation.operating_point import OperatingPoint, best_point, dice_by_point
from reperfuse.evaluation.resolution import LESIONS, curve, level_effects
from reperfuse.files import write_json
from reperfuse.networks import build_network, initialise, load_network, save_network
from reperfuse.params import LesionParams, LesionPreprocess, LesionResolution
from reperfuse.stages.assessment import Assessment, Case
from reperfuse.stages.demo_lesion import lesion_subject
from reperfuse.stages.lesion_input import Scan, brain_of, network_input, on_grid_of, on_model_grid
from reperfuse.stages.lesion_study import slice_study
from reperfuse.stages.processed import write_table
from reperfuse.stages.study import StudyTables, study_subjects, study_tables
from reperfuse.training.fit import FitSettings, Predict, fit
from reperfuse.training.losses import ACTIVATIONS
from reperfuse.training.predict import predict_volume
from reperfuse.training.samples import Subject

SHOWN_MM = (1.0, 5.0, 10.0)
"""Thicknesses of the table of costs [mm]."""

RECIPE: dict[str, Any] = COMMON | PATCHES | {"foreground_fraction": 0.33}
"""Of every training: `lesion_networks.COMMON` with fewer patches on the lesion, which finds more whole lesions."""


@dataclass(frozen=True)
class Entry:
    """A network, and how it is prepared for thick slices."""

    network: str
    acquisition: str = "none"
    settings: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    """The entry whose weights it starts from, for half as many samples; None starts anew."""


LATER: dict[str, Any] = {"learning_rate": COMMON["learning_rate"] / 2}
"""Of a training that goes on from another."""

HALF: dict[str, Any] = LATER | {"acquisition_share": 0.5}

STRONG: dict[str, Any] = {"schedule": "polynomial", "ema": 0.99}

ENTRIES = {
    "unet3d": Entry("unet3d"),
    "unet3d, slices": Entry("unet3d", "slices"),
    "dynunet": Entry("dynunet", settings=STRONG),
    "dynunet, slices": Entry("dynunet", "slices", settings=STRONG),
    "unet3d, synthseg": Entry("unet3d", "synthseg"),
    "unet3d, low_resolution": Entry("unet3d", "low_resolution"),
    "unet3d, anisotropy": Entry("unet3d", "anisotropy"),
    "unet3d, longer": Entry("unet3d", settings=LATER, start="unet3d"),
    "unet3d, then half slices": Entry("unet3d", "slices", HALF, start="unet3d"),
    "dynunet, longer": Entry("dynunet", settings=STRONG | LATER, start="dynunet"),
    "dynunet, then half slices": Entry("dynunet", "slices", STRONG | HALF, start="dynunet"),
}
"""Name → entry; the plain one of each network is what its others are compared with."""


COLOURS = {
    "": GREY,
    "slices": BLUE,
    "synthseg": ORANGE,
    "low_resolution": GREEN,
    "anisotropy": PURPLE,
    "longer": SKY,
    "then half slices": VERMILION,
}
"""Training, what follows the network's name, → colour of its lines."""


def kept_in(kept: Path, name: str) -> Path:
    """The folder of an entry."""
    return kept / name.replace(", ", "-").replace(" ", "-")


def train_one(name: str, train: list[Subject], samples: int, seed: int, edge: int, folder: Path) -> None:
    """Train one entry, and keep its weights in `folder`."""
    entry = ENTRIES[name]
    settings = RECIPE | entry.settings | {"acquisition": entry.acquisition, "seed": seed, "patch_size": (edge,) * 3}
    torch.manual_seed(seed)
    network = build_network(entry.network, **SMALL)
    if entry.start is not None:
        initialise(network, kept_in(folder.parent, entry.start))
        samples //= 2
    started = time.monotonic()
    epochs = max(1, round(samples / settings["batch_size"] / STEPS_PER_EPOCH))
    done = fit(network, train, settings=FitSettings(epochs=epochs, **settings), state_dir=folder / "state")
    seconds = time.monotonic() - started
    about = {"activation": ACTIVATIONS[settings["loss"]], "samples": samples}
    save_network(folder, entry.network, SMALL, done.network, extra=about)
    write_json(folder / "done.json", {"seconds": seconds, "loss": done.history[-1]["loss"]})


# ---- the study ------------------------------------------------------------------------------------------------------
def studied(subjects: list[Subject], count: int) -> list[Subject]:
    """So many of the subjects with a lesion, evenly over their volumes."""
    volumes = {subject: int((subject.load()[1] > 0).sum()) for subject in subjects}
    having = sorted((subject for subject, volume in volumes.items() if volume), key=lambda subject: volumes[subject])
    return [having[place] for place in np.linspace(0, len(having) - 1, min(count, len(having))).round().astype(int)]


def operating_point_of(predict: Predict, subjects: list[Subject]) -> OperatingPoint:
    """Threshold and smallest piece with the best mean Dice on these subjects, on the model's grid."""
    return best_point(
        [
            dice_by_point(predict(np.asarray(subject.load()[0])), subject.load()[1][0] > 0, subject.spacing_mm())
            for subject in subjects
        ]
    )


def assessment(
    name: str, kept: Path, train: list[Subject], sources: Mapping[str, dict[str, Any]], settings: LesionPreprocess
) -> Assessment:
    """A trained entry as the lesion arm judges a model, with the images and masks of `sources` at 1 mm."""
    network, described = load_network(kept_in(kept, name))
    answer = partial(_answer, network, described["extra"]["activation"])
    # Not the subjects that are studied, and few: a threshold is one number.
    point = operating_point_of(answer, train[:: max(1, len(train) // 20)])
    print(f"{name}: {point}", flush=True)

    def load(participant: str) -> Case:
        made = lesion_subject(**{key: value for key, value in sources[participant].items() if key != "cost"})
        images = {"t1w": made.t1w}
        return Case(Scan(images, brain_of(images, settings)), made.mask)

    def score(method: str, probability: np.ndarray, case: Case) -> dict[str, Any]:
        truth, spacing_mm = case.truth.data > 0, case.truth.spacing_mm
        mask = point.mask(probability, spacing_mm)
        scores = dict(lesion_scores(mask, truth, spacing_mm, probability=probability))
        return scores | {LESIONS: lesion_detections(mask, truth, spacing_mm)}

    return Assessment(
        arm="lesion",
        metric="dice",
        methods={name: lambda image: answer(network_input(image, settings)[0])},
        load=load,
        prepare=lambda scan: on_model_grid(scan.images, settings, scan.brain),
        on_truth_grid=lambda probability, image, case: on_grid_of(case.truth, probability, image),
        score=score,
        bootstrap={"samples": 2000, "level": 0.95, "seed": 0},
    )


def _answer(network: torch.nn.Module, activation: str, image: np.ndarray) -> np.ndarray:
    return predict_volume(network, image, activation=activation)


def what_it_costs(scores: pd.DataFrame, names: Sequence[str]) -> str:
    """Markdown: Dice of every entry at 1, 5 and 10 mm along k, what it loses, and what it wins over its plain one."""
    along_k = scores[scores["axis"] == "k"]
    wide = {name: _wide(along_k, name) for name in names}
    rows = [
        ["training", *(f"Dice at {level} mm" for level in SHOWN_MM), "loss 1 → 10 mm", "share of the plain loss"]
        + [f"against plain at {level} mm" for level in SHOWN_MM]
    ]
    for name in names:
        ours, plain = wide[name], wide[name.split(", ")[0]]
        loss, plain_loss = (table[SHOWN_MM[0]] - table[SHOWN_MM[-1]] for table in (ours, plain))
        rows.append(
            [
                name,
                *(mean_said(list(ours[level]), 2) for level in SHOWN_MM),
                mean_said(list(loss), 2),
                "1" if ours is plain else ratio_said(loss.to_numpy(), plain_loss.to_numpy()),
                *("–" if ours is plain else mean_said(list(ours[at] - plain[at]), 2, sign="+") for at in SHOWN_MM),
            ]
        )
    return markdown(rows)


def _wide(scores: pd.DataFrame, method: str, metric: str = "dice") -> pd.DataFrame:
    part = scores[scores["method"] == method]
    return part.pivot(index="participant_id", columns="thickness_mm", values=metric)


def ratio_said(ours: np.ndarray, plain: np.ndarray) -> str:
    """Ratio of two mean losses of the same subjects with its percentile interval over subjects, as text.

    A dash where the plain loss may be none: what is a share of nothing?
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(ours), (2000, len(ours)))
    losses, plain_losses = (values[drawn].mean(axis=1) for values in (ours, plain))
    if np.mean(plain_losses <= 0) > 0.025:
        return "–"
    low, high = np.percentile(losses / plain_losses, [2.5, 97.5])
    return f"{ours.mean() / plain.mean():.2f} ({low:.2f} to {high:.2f})"


def what_is_missed(tables: StudyTables, names: Sequence[str]) -> str:
    """Markdown: volumes missed and invented, borders, and the smallest lesion found in half the cases."""
    along_k = tables.curve[tables.curve["axis"] == "k"].set_index(["method", "thickness_mm", "metric"])["mean"]
    found = tables.detection[tables.detection["axis"] == "k"].set_index(["method", "thickness_mm"])
    ends = (SHOWN_MM[0], SHOWN_MM[-1])
    heads = {"false_negative_ml": "missed [mL]", "false_positive_ml": "invented [mL]", "surface_dice": "surface Dice"}
    heads |= {"volume_difference_ml": "volume difference [mL]", "dice_thick": "Dice on the thick grid"}
    rows = [["training", *(f"{head}, 1 → 10 mm" for head in heads.values()), "found in half [mL], 1 → 10 mm"]]
    for name in names:
        row = [name, *(" → ".join(f"{along_k[name, at, metric]:.2f}" for at in ends) for metric in heads)]
        rows.append([*row, " → ".join(str(found.loc[(name, at), "said"]) for at in ends)])
    return markdown(rows)


def figure_of(scores: pd.DataFrame, names: Sequence[str], title: str) -> Figure:
    """Dice along k: its mean, and below it the change from 1 mm within each subject with its interval, by network."""
    families = list(dict.fromkeys(name.split(", ")[0] for name in names))
    here = scores[scores["axis"] == "k"]
    means = curve(here, metrics=["dice"]).set_index("method")
    changes = level_effects(here, "dice").set_index("method")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.0 * len(families), 6.2), layout="constrained")
        panels = figure.subplots(2, len(families), sharex=True, sharey="row", squeeze=False, height_ratios=[1.2, 1])
        for family, (top, bottom) in zip(families, panels.T, strict=True):
            own = [name for name in names if name.split(", ")[0] == family]
            for name in own:
                training = name.removeprefix(family).removeprefix(", ")
                colour, label = COLOURS[training], training or "as usual"
                how: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4}
                how["linestyle"] = "-" if training else "--"
                top.plot(means.loc[name, "thickness_mm"], means.loc[name, "mean"], label=label, **how)
                rows = changes.loc[name]
                bottom.plot([1, *rows["thickness_mm"]], [0, *rows["mean_difference"]], **how)
                bottom.fill_between(
                    rows["thickness_mm"], rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0
                )
            top.set_title(family)
            top.legend(title="trained", ncols=3, loc="lower left")
            bottom.axhline(0, color="#4B5563", linewidth=0.8)
            bottom.set(xlabel="Slice thickness [mm]", xticks=[1, *changes["thickness_mm"].unique()])
        panels[0, 0].set(ylabel="Mean Dice", ylim=(0, None))
        panels[1, 0].set(ylabel="Change of Dice from 1 mm")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def main() -> None:
    """Make the cohort, train each entry in a process of its own, study, print."""
    parser = cohort_arguments(__doc__, minutes=0.0)
    parser.add_argument("--samples", type=int, default=12000, help="that each network is trained on")
    parser.add_argument("--networks", nargs="*", choices=[*ENTRIES], default=[*ENTRIES])
    parser.add_argument("--studied", type=int, default=12, help="test subjects in the study, evenly over their volumes")
    parser.add_argument(
        "--interpolation", default="linear", help="of thick slices at test time: linear, nearest, cubic"
    )
    parser.add_argument("--figure", type=Path, help="PNG file with the curves")
    parser.add_argument("--workers", type=int, default=1, help="subjects studied at once")
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
            train_one(asked.one, train, asked.samples, asked.seed, edge, kept_in(kept, asked.one))
            return
        for name in asked.networks:
            if not (kept_in(kept, name) / "done.json").exists():
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--out", str(out), "--one", name], check=True)
        if asked.train_only:
            return

        chosen = studied(test, asked.studied)
        sources = {
            Path(folder).name: how for folder, how in cohort_plan(asked.subjects, asked.seed, asked.real).items()
        }
        settings = LesionPreprocess.model_validate({"spacing_mm": asked.spacing, "skull_strip": asked.skull_strip})
        resolution = LesionResolution(axes=("k", "i", "j"), interpolation=asked.interpolation, workers=asked.workers)
        study = slice_study(LesionParams(resolution=resolution), asked.seed)
        people = [subject.participant_id for subject in chosen]
        done = []
        for name in asked.networks:  # one by one, so that another network does not ask the others again
            judged = assessment(name, kept, train, sources, settings)
            state = kept_in(kept, name) / f"study-{asked.interpolation}-{len(people)}"
            done += study_subjects(judged, study, people, state)
        volumes = {
            subject.participant_id: float((subject.load()[1] > 0).sum() * np.prod(subject.spacing_mm()) / 1000)
            for subject in chosen
        }
        tables = study_tables([row for one in done for row in one["rows"]], judged, study.level_name, volumes)
        for name, table in tables.named().items():
            write_table(kept / f"{name}.csv", table)
        seconds = {name: sum(one["seconds"][name] for one in done) for name in ("predict", "all")}
        print(f"\n{len(people)} of the {len(test)} test subjects; anything but prediction took", end=" ")
        print(f"{1 - seconds['predict'] / seconds['all']:.0%} of the study's {seconds['all'] / 60:.0f} min\n")
        print(what_it_costs(tables.scores, asked.networks), what_is_missed(tables, asked.networks), sep="\n\n")
        for name in asked.networks:
            print(f"\n{name}:")
            # The question as it was asked, of axial slices: five endpoints, and not fifteen.
            tests = hypothesis_tests(tables.scores[tables.scores["axis"] == "k"], method=name)
            print("\n".join(f"- {sentence}" for sentence in tests["sentence"]))
        if asked.figure:
            kind = "Real lesions in a real T1w" if asked.real else "Phantoms"
            bands = "bands: 95 % interval of the mean change"
            title = f"{kind}, {len(people)} subjects, networks on a {asked.spacing:g} mm grid; {bands}"
            figure_of(tables.scores, asked.networks, title).savefig(asked.figure, dpi=110)


if __name__ == "__main__":
    main()
