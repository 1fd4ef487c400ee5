"""Laws of the networks that tell when blood arrives, for any weights; and what the weights that ship have learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from reperfuse.evaluation.arrival import CALIBRATION_SEED, Method, arrival_table, measured, noise_free_tmax
from reperfuse.networks import arrival, initialise, learned_folder, load_network, save_network
from reperfuse.networks.arrival import FEATURE_LIMIT, MIDDLE, QUANTILES, TARGETS, ArrivalNetwork, Standardise
from reperfuse.networks.arrival import TmaxMatched as TmaxNetwork
from reperfuse.perfusion import matched
from reperfuse.phantoms.curves import HELD_OUT, TRAINING, Population, drawn_curves
from reperfuse.stages.pretrain import answers_of

LEVELS = np.array(QUANTILES)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The arrays are so small that threads would only wait for one another."""
    with threadpool_limits(1):
        yield


def network_of(seed: int, *, weights: float = 1.0, in_channels: int = 9) -> ArrivalNetwork:
    """A network with normal weights of that standard deviation, standardised to features like `features_of`."""
    torch.manual_seed(seed)
    network = ArrivalNetwork(in_channels, (16, 16))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, weights)
    network.scale.take(torch.from_numpy(features_of(500, in_channels)))
    return network


def features_of(n: int, in_channels: int = 9, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (5 + np.arange(1, in_channels + 1) * rng.standard_normal((n, in_channels))).astype(np.float32)


# ---- for any weights -------------------------------------------------------------------------------------------------
def test_columns_that_the_network_adds_to_are_the_estimates_among_the_features():
    assert (arrival.DELAY_FEATURE, arrival.TMAX_FEATURE) == (matched.DELAY_FEATURE, matched.TMAX_FEATURE)


def test_levels_rise_and_are_symmetrical_about_the_median():
    assert (np.diff(LEVELS) > 0).all() and LEVELS[MIDDLE] == 0.5
    assert pytest.approx(1) == LEVELS + LEVELS[::-1]


@pytest.mark.parametrize("weights", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(5))
def test_quantiles_never_cross_whatever_the_weights_and_the_features(seed, weights):
    sizes = 10.0 ** np.arange(-4, 4).repeat(25)[:, None]
    features = (sizes * features_of(200)).astype(np.float32)
    quantiles = network_of(seed, weights=weights)(torch.from_numpy(features)).reshape(200, len(TARGETS), len(QUANTILES))
    assert quantiles.isfinite().all()
    assert (quantiles.diff(dim=-1) >= 0).all()


def test_network_of_zeros_repeats_the_estimates_with_equal_steps_about_them():
    network = network_of(0, weights=0.0)
    features = features_of(20)
    found = network.posterior(features)
    steps = np.log(2) * (np.arange(len(QUANTILES)) - MIDDLE)  # softplus(0) each
    for name, column in (("delay", matched.DELAY_FEATURE), ("tmax", matched.TMAX_FEATURE)):
        assert found[f"{name}_quantiles"] == pytest.approx(features[:, column, None] + steps, abs=1e-5)


def test_estimate_that_is_later_by_some_seconds_moves_all_its_quantiles_and_no_others_through_the_sum():
    network, features = network_of(1), features_of(30)
    network.scale.deviation[[matched.DELAY_FEATURE, matched.TMAX_FEATURE]] = 1e12  # the perceptron does not see them
    later = features.copy()
    later[:, matched.DELAY_FEATURE] += 2.5
    before, after = network.posterior(features), network.posterior(later)
    assert after["delay_quantiles"] - before["delay_quantiles"] == pytest.approx(2.5, abs=1e-4)
    assert after["tmax_quantiles"] == pytest.approx(before["tmax_quantiles"], abs=1e-4)


def test_posterior_names_what_forward_gives():
    network, features = network_of(2), features_of(50)
    found = network.posterior(features)
    expected = network(torch.from_numpy(features)).detach().numpy()
    assert np.concatenate([found[f"{name}_quantiles"] for name in TARGETS], axis=1) == pytest.approx(expected, abs=1e-4)
    for name in TARGETS:
        of = dict(zip(QUANTILES, found[f"{name}_quantiles"].T, strict=True))
        assert np.array_equal(found[name], of[0.5])
        assert found[f"{name}_sd"] == pytest.approx((of[0.84] - of[0.16]) / 2)


@pytest.mark.parametrize("voxels", [1, 7, 50])
def test_posterior_does_not_depend_on_the_batches(monkeypatch, voxels):
    network, features = network_of(3), features_of(50)
    together = network.posterior(features)
    monkeypatch.setattr(arrival, "BATCH_VOXELS", voxels)
    for name, values in network.posterior(features).items():
        assert values == pytest.approx(together[name], rel=1e-4, abs=1e-4), name


def test_features_of_any_layout_and_none_at_all_have_a_posterior():
    network, features = network_of(4), features_of(40)
    expected = network.posterior(features[::2])
    assert network.posterior(np.asfortranarray(features.astype(float))[::2])["tmax"] == pytest.approx(expected["tmax"])
    none = network.posterior(features[:0])
    assert none["delay"].shape == (0,) and none["tmax_quantiles"].shape == (0, len(QUANTILES))


def test_standardised_features_have_mean_0_and_deviation_1():
    scale, features = Standardise(9), torch.from_numpy(features_of(4000))
    scale.take(features)
    assert scale.mean.numpy() == pytest.approx(features.numpy().mean(axis=0), abs=1e-3)
    found = scale(features)
    assert found.mean(0).numpy() == pytest.approx(0, abs=1e-3)
    assert found.std(0).numpy() == pytest.approx(1, abs=1e-3)


def test_feature_that_never_changes_says_nothing():
    features = features_of(300)
    features[:, 2], features[:, 7] = 0, -3.5
    scale = Standardise(9)
    scale.take(torch.from_numpy(features))
    found = scale(torch.from_numpy(features))
    assert found.isfinite().all() and not found[:, [2, 7]].any()
    assert found[:, [0, 1, 3]].std() > 0.5


def test_features_further_out_than_the_limit_say_no_more_than_the_limit():
    scale, features = Standardise(9), torch.from_numpy(features_of(300))
    scale.take(features)
    edge = scale.mean + FEATURE_LIMIT * scale.deviation
    for far in (edge + scale.deviation, edge + 1e9):
        assert scale(far).numpy() == pytest.approx(FEATURE_LIMIT)
        assert scale(2 * scale.mean - far).numpy() == pytest.approx(-FEATURE_LIMIT)
    assert scale(scale.mean + 7 * scale.deviation).numpy() == pytest.approx(7, rel=1e-4)


def test_network_comes_back_from_disk_with_what_it_standardises_by(tmp_path: Path):
    network = network_of(5)
    save_network(tmp_path, "arrival", {"in_channels": 9, "hidden": (16, 16)}, network)
    again, description = load_network(tmp_path)
    assert isinstance(again, ArrivalNetwork) and description["network"] == "arrival"
    assert again.state_dict().keys() == network.state_dict().keys() >= {"scale.mean", "scale.deviation"}
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    assert np.array_equal(again.posterior(features_of(9))["delay"], network.posterior(features_of(9))["delay"])


def test_tmax_network_that_starts_from_an_arrival_network_gives_its_median(tmp_path: Path):
    network, features = network_of(6, weights=0.3), features_of(24)
    save_network(tmp_path, "arrival", {"in_channels": 9, "hidden": (16, 16)}, network)
    started = TmaxNetwork(9, (16, 16))
    assert initialise(started, tmp_path) == list(started.state_dict())
    image = torch.from_numpy(features).T.reshape(9, 2, 3, 4)[None]
    found = started(image)
    assert found.shape == (1, 1, 2, 3, 4)
    assert found.detach().numpy().ravel() == pytest.approx(network.posterior(features)["tmax"], abs=1e-3)
    assert torch.allclose(started(image[..., 1]), found[..., 1], atol=1e-4)


# ---- the weights that ship -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shipped() -> ArrivalNetwork:
    network, _ = load_network(learned_folder())
    assert isinstance(network, ArrivalNetwork)
    return network


@pytest.fixture(scope="module")
def answers(shipped: ArrivalNetwork) -> Method:
    return answers_of(shipped)


def test_network_that_ships_is_the_default_one_with_103_694_parameters(shipped):
    own = ArrivalNetwork(matched.N_FEATURES)
    shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()} for network in (own, shipped)]
    assert shapes[0] == shapes[1] == {name: tensor.shape for name, tensor in ArrivalNetwork().state_dict().items()}
    for network in (own, shipped):
        assert sum(parameter.numel() for parameter in network.parameters()) == 103_694


def test_every_feature_changed_in_the_training(shipped):
    assert shipped.scale.deviation.min() > 0.01


def below_each_level(population: Population, answers: Method, scans: int, voxels: int) -> dict[str, np.ndarray]:
    """Which truths lie below each quantile, shape (scans, voxels, Q), and TR and SNR, (scans,), of scans never seen."""
    found: dict[str, list] = {name: [] for name in ("delay", "tmax", "tr_s", "snr")}
    for seed in range(CALIBRATION_SEED, CALIBRATION_SEED + scans):
        scan = drawn_curves(population, seed, voxels)
        said = answers(measured(scan), scan.aif, scan.tr_s, scan.noise)
        for name, truth in (("delay", scan.delay), ("tmax", noise_free_tmax(scan))):
            found[name].append(truth[:, None] < said[f"{name}_quantiles"])
        found["tr_s"].append(scan.tr_s)
        found["snr"].append(scan.snr)
    return {name: np.array(values) for name, values in found.items()}


def covered(below: np.ndarray) -> tuple[float, float]:
    """Share of truths inside the 95 % and the 68 % interval."""
    share = below.reshape(-1, len(QUANTILES)).mean(axis=0)
    return share[-1] - share[0], share[-2] - share[1]


# Voxels of a scan share its artery, so that scans count rather than voxels: of 320, shares have an error of 0.002 at
# 95 % and of 0.005 at 68 %.
@pytest.mark.parametrize(
    "population, off_95, off_68", [(TRAINING, 0.015, 0.025), (HELD_OUT, 0.03, 0.05)], ids=["training", "held-out"]
)
def test_intervals_hold_as_many_truths_as_they_say_on_scans_never_seen(answers, population, off_95, off_68):
    below = below_each_level(population, answers, scans=320, voxels=32)
    for name in TARGETS:
        share = below[name].mean(axis=(0, 1))
        assert share == pytest.approx(LEVELS, abs=off_68), name
        assert covered(below[name]) == pytest.approx((0.95, 0.68), abs=off_68), name
        assert covered(below[name])[0] == pytest.approx(0.95, abs=off_95), name
    # Wherever the scan lies in its ranges, as well: four parts of TR × SNR, of some 80 scans.
    fast, clear = below["tr_s"] < np.sqrt(5), below["snr"] < np.sqrt(15 * 150)
    for part in (fast & clear, fast & ~clear, ~fast & clear, ~fast & ~clear):
        share_95, share_68 = covered(below["delay"][part])
        assert abs(share_95 - 0.95) < off_95 + 0.02 and abs(share_68 - 0.68) < off_68 + 0.03


@pytest.mark.parametrize("tr_s", [1.0, 2.0])
@pytest.mark.parametrize("frames", [1, 3])
def test_tissue_that_comes_some_frames_later_is_told_later_by_as_much(answers, frames, tr_s):
    scan = drawn_curves(HELD_OUT, CALIBRATION_SEED, 200, tr_s=tr_s, snr=80.0)
    curves, later = measured(scan), np.zeros_like(scan.clean)
    later[:, frames:] = curves[:, :-frames]
    inside = (scan.delay > -1) & (scan.delay < 13 - frames * tr_s)
    before, after = (answers(of, scan.aif, tr_s, scan.noise) for of in (curves, later))
    for name in TARGETS:
        moved = (after[name] - before[name])[inside] / tr_s
        assert np.median(moved) == pytest.approx(frames, abs=0.05), name
        assert np.mean(np.abs(moved - frames) < 0.2) > 0.9, name


@pytest.mark.parametrize("unit", [1 / 1024, 0.3, 700.0])
def test_unit_of_the_artery_is_of_no_effect(answers, unit):
    scan = drawn_curves(HELD_OUT, CALIBRATION_SEED + 1, 100)
    one, other = (answers(measured(scan), aif, scan.tr_s, scan.noise) for aif in (scan.aif, unit * scan.aif))
    for name, values in one.items():
        assert other[name] == pytest.approx(values, abs=2e-3), name


def test_where_no_blood_comes_the_answer_is_the_middle_of_the_range_and_unsure(answers):
    scan = drawn_curves(TRAINING, CALIBRATION_SEED + 3, 1, tr_s=1.5, snr=50.0)
    noise = scan.noise * np.random.default_rng(0).standard_normal((500, len(scan.aif)))
    found = answers(noise.astype(np.float32), scan.aif, 1.5, scan.noise)
    low, high = TRAINING.delay_s
    assert np.median(found["delay"]) == pytest.approx((low + high) / 2, abs=1.5)
    # Half of the central 68 % of an even distribution, were nothing known at all: 0.34 of its width.
    assert np.median(found["delay_sd"]) > 0.2 * (high - low)
    assert (low < found["delay"]).all() and (found["delay"] < high).all()


def test_arrival_on_curves_of_another_family_is_told_much_better_than_by_calibrated_deconvolution(answers):
    scores = arrival_table(answers, HELD_OUT, TRAINING, trs_s=(1.0, 2.0, 4.0), snrs=(20.0, 80.0), scans=8, voxels=64)
    assert scores["method_s"].mean() < 0.6 * scores["osvd_s"].mean()
    assert (scores["method_s"] < 0.8 * scores["osvd_s"]).all()
    assert (scores["tmax_method_s"] < scores["tmax_osvd_s"]).all()
