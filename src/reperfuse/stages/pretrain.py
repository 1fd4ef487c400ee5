"""The pretrain verb: the network behind `maps --method learned`, made anew from the reference object alone.

Nothing here reads a patient. What is written is what ships: weights, their description with the range they were trained
in, scores on populations that took no part, and a card that says all this to people.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from reperfuse import __version__
from reperfuse.evaluation.arrival import SNRS, TRS_S, Arrays, arrival_table
from reperfuse.files import atomic_path
from reperfuse.networks import save_network
from reperfuse.networks.arrival import ArrivalNetwork
from reperfuse.perfusion.matched import matched_features
from reperfuse.phantoms.curves import HELD_OUT, Population, drawn_curves
from reperfuse.stages.learned import aif_width_and_onset
from reperfuse.stages.processed import write_table
from reperfuse.training.pretrain import SMALL, Recipe
from reperfuse.training.pretrain import pretrain as trained

CARD, SCORES, TEMPLATE = "CARD.md", "scores.csv", "arrival_card.md.j2"

SURVEYED_SCANS = 1000
"""Scans from which the range is read that arteries and series of a population span."""


def pretrain(out: Path, *, small: bool = False, workers: int | None = None) -> None:
    """OUT/{model.safetensors,model.json,scores.csv,CARD.md}: train, judge on what was held out, describe.

    Parameters
    ----------
    out
        Folder; what an earlier run left there is replaced, each file whole or not at all.
    small
        Seconds' worth, for trying.
    workers
        Processes that draw curves; by default one per core.
    """
    recipe = SMALL if small else Recipe()
    scans = 2 if small else 20
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar, tempfile.TemporaryDirectory() as scratch:
        drawing = bar.add_task("curves", total=recipe.scans)
        network, history = trained(
            recipe, state_dir=Path(scratch), workers=workers, on_scan=lambda: bar.advance(drawing)
        )
        judging = bar.add_task("judged on held-out curves", total=len(TRS_S) * len(SNRS))
        scores = arrival_table(
            answers_of(network), HELD_OUT, recipe.population, scans=scans, on_cell=lambda: bar.advance(judging)
        )
    write_network(out, network, recipe, history, scores)
    means = scores.mean()
    print(f"{out}: mean error of arrival {means['method_s']:.2f} s; calibrated oSVD {means['osvd_s']:.2f} s.")


def answers_of(network: ArrivalNetwork) -> Any:
    """The network as a method that `arrival_table` judges."""

    def answers(curves: np.ndarray, aif: np.ndarray, dt: float, noise: float) -> Arrays:
        return network.posterior(matched_features(curves, aif, dt, noise))

    return answers


def write_network(
    out: Path, network: ArrivalNetwork, recipe: Recipe, history: list[dict[str, float]], scores: pd.DataFrame
) -> None:
    """The four files of `pretrain`."""
    scores = scores.round(4)
    population = recipe.population
    known = trained_range(population)
    facts = {
        "arm": "perfusion",
        "range": known,
        "population": asdict(population),
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "population"},
        "loss": history[-1]["loss"],
        "held_out": {name: round(float(value), 4) for name, value in scores.mean().items()},
        "reperfuse": __version__,
    }
    out.mkdir(parents=True, exist_ok=True)
    kwargs = {"in_channels": int(network.scale.mean.numel()), "hidden": list(recipe.hidden)}
    save_network(out, "arrival", kwargs, network, extra=facts)
    write_table(out / SCORES, scores)
    with atomic_path(out / CARD) as inside:
        inside.write_text(card(network, recipe, known, scores), encoding="utf-8")


def trained_range(population: Population) -> dict[str, Any]:
    """What a scan must be like for the network to be used on it: bounds of what was drawn, by name.

    Those of the artery and of the series' length, which follow from several draws, are read from `SURVEYED_SCANS`.
    """
    widths, before, after = [], [], []
    for seed in range(SURVEYED_SCANS):
        scan = drawn_curves(population, seed, 1, blocks=1)
        fine = np.arange(0, len(scan.aif) * scan.tr_s, 0.1)
        width_s, onset_s = aif_width_and_onset(scan.facts["artery"](fine), 0.1)
        widths.append(width_s)
        before.append(onset_s / scan.tr_s)
        after.append((len(scan.aif) - 1) * scan.tr_s - onset_s)
    return {
        "tr_s": list(population.tr_s),
        "snr": list(population.snr),
        "delay_s": list(population.delay_s),
        "mtt_s": list(population.mtt_s),
        "aif_fwhm_s": [round(min(widths), 1), round(max(widths), 1)],
        "baseline_frames": int(np.floor(min(before))),
        "after_arrival_s": round(min(after)),
    }


def card(network: ArrivalNetwork, recipe: Recipe, known: dict[str, Any], scores: pd.DataFrame) -> str:
    """The model card, Markdown."""
    environment = Environment(loader=PackageLoader("reperfuse.evaluation", "."), undefined=StrictUndefined)
    mean = scores.mean().drop(["tr_s", "snr"]).to_dict()
    return environment.get_template(TEMPLATE).render(
        recipe=recipe,
        trained=recipe.population,
        judged=HELD_OUT,
        range=known,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        cells=scores.to_dict("records"),
        mean=mean,
        span=lambda bounds: f"{bounds[0]:g} to {bounds[1]:g}",
    )
