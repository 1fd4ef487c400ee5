"""The recipe of the network that ships: what it learns from, what it writes, and that what ships is what it wrote."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from reperfuse import cli
from reperfuse.evaluation.arrival import CALIBRATION_SEED, arrival_table, measured, noise_free_tmax
from reperfuse.networks import DESCRIPTION, WEIGHTS, learned_folder, load_network
from reperfuse.networks.arrival import ArrivalNetwork
from reperfuse.perfusion.matched import N_FEATURES
from reperfuse.phantoms.curves import HELD_OUT, TRAINING, drawn_curves
from reperfuse.stages import pretrain as stage
from reperfuse.stages.learned import aif_width_and_onset, load_learned, outside_range
from reperfuse.training import curves
from reperfuse.training import pretrain as recipes
from reperfuse.training.curves import CurveBatches, curve_samples, scan_samples
from reperfuse.training.pretrain import Recipe, pretrain

TINY = Recipe(scans=8, voxels_per_scan=32, epochs=3, batch_size=32, hidden=(16, 16))
FILES = {WEIGHTS, DESCRIPTION, "scores.csv", "CARD.md"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The arrays are so small that threads would only wait for one another."""
    with threadpool_limits(1):
        yield


# ---- samples ---------------------------------------------------------------------------------------------------------
def test_targets_are_the_delay_and_the_tmax_that_methods_are_judged_by():
    scan = drawn_curves(TRAINING, 5, 24)
    features, targets = scan_samples(5, TRAINING, 24)
    assert features.shape == (24, N_FEATURES) and np.isfinite(features).all()
    assert targets[:, 0] == pytest.approx(scan.delay) and np.array_equal(targets[:, 1], noise_free_tmax(scan))


def test_noise_that_is_told_and_the_artery_are_not_quite_the_true_ones(monkeypatch):
    seen = []

    def spy(found, aif, tr_s, noise):
        seen.append((found, aif, noise))
        return np.zeros((len(found), N_FEATURES), np.float32)

    monkeypatch.setattr(curves, "matched_features", spy)
    told, off = [], []
    for seed in range(150):
        scan_samples(seed, TRAINING, 4)
        scan = drawn_curves(TRAINING, seed, 4)
        found, aif, noise = seen[-1]
        assert np.array_equal(found, measured(scan))
        told.append(np.log(noise / scan.noise))
        off.append((aif - scan.aif).std() / scan.aif.max())
    assert np.std(told) == pytest.approx(curves.NOISE_ERROR, rel=0.25) and abs(np.mean(told)) < 0.03
    assert 0.6 * curves.AIF_NOISE < max(off) < 1.5 * curves.AIF_NOISE
    assert np.mean(off) == pytest.approx(curves.AIF_NOISE / 2, rel=0.25)


def test_samples_do_not_depend_on_the_number_of_processes_and_keep_the_order_of_the_seeds(monkeypatch):
    monkeypatch.setattr(curves, "SCANS_PER_TASK", 1)
    told = []
    one = curve_samples(TRAINING, [7, 3, 5], 16, workers=1, on_scan=lambda: told.append(1))
    two = curve_samples(TRAINING, [7, 3, 5], 16, workers=2)
    assert len(told) == 3
    assert torch.equal(one[1], two[1]) and torch.allclose(one[0], two[0], atol=2e-3)
    for place, seed in enumerate((7, 3, 5)):
        features, targets = scan_samples(seed, TRAINING, 16)
        part = slice(16 * place, 16 * (place + 1))
        assert np.array_equal(one[1][part].numpy(), targets)
        assert one[0][part].numpy() == pytest.approx(features, abs=2e-3)


def test_an_epoch_sees_every_voxel_once_and_each_epoch_has_its_own_order():
    rows = torch.arange(60.0)
    batches = CurveBatches(rows[:, None].expand(60, 3), rows[:, None] + torch.tensor([100.0, 200.0]), 12, seed=1)
    assert len(batches) == 5
    epochs = []
    for epoch in range(3):
        found = [batches[5 * epoch + place] for place in range(5)]
        for batch in found:
            assert batch["image"].shape == (12, 3) and batch["mask"].all() and batch["mask"].shape == (12, 2)
            assert torch.equal(batch["target"], batch["image"][:, :1] + torch.tensor([100.0, 200.0]))
        epochs.append(torch.cat([batch["image"][:, 0] for batch in found]))
        assert torch.equal(epochs[-1].sort().values, rows)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    again, other = (CurveBatches(rows[:, None], rows[:, None], 12, seed=seed)[0]["image"][:, 0] for seed in (1, 2))
    assert torch.equal(again, epochs[0][:12]) and not torch.equal(other, again)


# ---- training --------------------------------------------------------------------------------------------------------
def trained(recipe: Recipe, folder: Path, **options: Any) -> tuple[ArrivalNetwork, list[dict[str, float]]]:
    return pretrain(recipe, state_dir=folder, workers=1, **options)


def test_a_recipe_gives_the_same_weights_every_time_and_another_seed_others(tmp_path):
    networks = [trained(recipe, tmp_path)[0] for recipe in (TINY, TINY, replace(TINY, seed=1))]
    one, again, other = (network.state_dict() for network in networks)
    assert all(torch.equal(again[name], tensor) for name, tensor in one.items())
    assert not torch.equal(other["trunk.0.weight"], one["trunk.0.weight"])
    assert not networks[0].training


def test_loss_falls_and_is_told_epoch_by_epoch(tmp_path):
    told: list[tuple[int, float]] = []
    recipe = replace(TINY, scans=40, epochs=5)
    network, history = trained(recipe, tmp_path, on_epoch=lambda epoch, loss: told.append((epoch, loss)))
    assert [(row["epoch"], row["loss"]) for row in history] == told and [epoch for epoch, _ in told] == [1, 2, 3, 4, 5]
    assert told[-1][1] < 0.9 * told[0][1]
    # And on scans that it did not see, it is nearer than the estimates it starts from.
    features, targets = (values.numpy() for values in curve_samples(TRAINING, range(900, 920), 32, workers=1))
    found = network.posterior(features)["delay"]
    assert np.abs(found - targets[:, 0]).mean() < 0.9 * np.abs(features[:, 4] - targets[:, 0]).mean()


def test_what_it_learns_from_is_no_scan_twice_none_of_the_calibration_and_sets_the_scale(tmp_path, monkeypatch):
    seeds: list[int] = []
    given: list[torch.Tensor] = []

    def spy(population, asked, n_voxels, **_):
        assert population == TRAINING and n_voxels == Recipe().voxels_per_scan
        seeds.extend(asked)
        given.append(torch.randn(16, N_FEATURES, generator=torch.Generator().manual_seed(len(seeds))))
        return given[-1], torch.zeros(16, 2)

    monkeypatch.setattr(recipes, "curve_samples", spy)
    network, _ = trained(replace(Recipe(), epochs=1, batch_size=8, hidden=(4,)), tmp_path)
    assert len(seeds) == len(set(seeds)) >= Recipe().scans
    assert max(seeds) < CALIBRATION_SEED and min(seeds) >= 0
    assert torch.allclose(network.scale.mean, given[0].mean(0), atol=1e-6)


# ---- what is written -------------------------------------------------------------------------------------------------
@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb with a tiny recipe, one cell to be judged in, and the range of few scans."""
    monkeypatch.setattr(stage, "SMALL", TINY)
    monkeypatch.setattr(stage, "SURVEYED_SCANS", 30)
    monkeypatch.setattr(curves.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(
        stage, "arrival_table", lambda *given, **kw: arrival_table(*given, **kw, trs_s=(2.0,), snrs=(40.0,), voxels=32)
    )


def test_the_verb_writes_four_files_that_the_maps_can_use(quick, tmp_path):
    done = CliRunner().invoke(cli.app, ["pretrain", "--small", "--out", str(tmp_path / "own")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "own").iterdir()} == FILES
    learned = load_learned(tmp_path / "own")
    assert learned.described["kwargs"] == {"in_channels": N_FEATURES, "hidden": [16, 16]}
    assert learned.trained == json.loads(json.dumps(stage.trained_range(TRAINING)))
    scores = pd.read_csv(tmp_path / "own" / "scores.csv")
    assert scores[["tr_s", "snr", "n"]].to_numpy().tolist() == [[2.0, 40.0, 2 * 32]]
    said = f"calibrated oSVD {scores['osvd_s'][0]:.2f} s"
    assert said in done.output.replace("\n", " ")
    check_folder(tmp_path / "own", TINY)


def test_range_holds_every_scan_it_is_read_from_and_is_wide_where_they_are(monkeypatch):
    monkeypatch.setattr(stage, "SURVEYED_SCANS", 40)
    known = stage.trained_range(TRAINING)
    assert {name: tuple(known[name]) for name in ("tr_s", "snr", "delay_s", "mtt_s")} == {
        name: getattr(TRAINING, name) for name in ("tr_s", "snr", "delay_s", "mtt_s")
    }
    widths, before, after = [], [], []
    for seed in range(40):
        scan = drawn_curves(TRAINING, seed, 1, blocks=1)
        times = np.arange(0, 200, 0.01)
        width_s, onset_s = aif_width_and_onset(scan.facts["artery"](times), 0.01)
        widths.append(width_s)
        before.append(onset_s / scan.tr_s)
        after.append((len(scan.aif) - 1) * scan.tr_s - onset_s)
    assert known["aif_fwhm_s"] == pytest.approx([min(widths), max(widths)], abs=0.1)
    assert known["baseline_frames"] <= min(before) < known["baseline_frames"] + 1.1
    assert known["after_arrival_s"] == pytest.approx(min(after), abs=0.6)


# ---- what ships ------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Whether description, scores and card tell of one network, that of this recipe."""
    network, described = load_network(folder)
    extra = described["extra"]
    plain = json.loads(json.dumps(asdict(recipe)))
    assert extra["population"] == plain.pop("population")
    assert extra["recipe"] == plain
    assert described["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert extra["arm"] == "perfusion" and 0 < extra["loss"] < 2
    scores = pd.read_csv(folder / "scores.csv")
    assert scores.mean().to_dict() == pytest.approx(extra["held_out"], abs=1.01e-4)  # of rounded numbers
    card, made = (folder / "CARD.md").read_text(encoding="utf-8"), stage.card(network, recipe, extra["range"], scores)
    assert card == made


def test_what_ships_tells_of_one_network_that_of_the_recipe():
    assert {path.name for path in learned_folder().iterdir() if not path.name.startswith("__")} == FILES
    check_folder(learned_folder(), Recipe())
    assert (learned_folder() / WEIGHTS).stat().st_size < 1e6


def test_range_that_ships_is_that_of_the_population():
    assert load_learned().trained == json.loads(json.dumps(stage.trained_range(TRAINING)))


def test_scores_that_ship_are_of_every_cell_and_better_than_deconvolution_in_each():
    scores = pd.read_csv(learned_folder() / "scores.csv")
    assert sorted(set(scores["tr_s"])) == [1, 1.5, 2, 3, 5] and sorted(set(scores["snr"])) == [20, 50, 100]
    assert len(scores) == 15 and (scores["method_s"] < scores["osvd_s"]).all()


def test_scans_like_those_of_the_training_are_inside_the_range_that_ships():
    known = load_learned().trained
    for population in (TRAINING, HELD_OUT):
        for seed in range(CALIBRATION_SEED, CALIBRATION_SEED + 40):
            scan = drawn_curves(population, seed, 4, blocks=1)
            noise = np.full(4, scan.noise)
            assert outside_range(scan.aif, scan.tr_s, measured(scan), noise, te_s=scan.te_s, trained=known) == []
