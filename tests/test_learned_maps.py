"""Learned Tmax and delay, and a model of the arm, in `reperfuse maps`: what they give, and where they stand back."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume, load_volume, save_volume
from reperfuse.networks import learned_folder, load_network, save_network
from reperfuse.params import PerfusionMaps, PerfusionPreprocess
from reperfuse.phantoms.dsc import DscPhantom, voxel_phantom
from reperfuse.stages.learned import (
    CHUNK_VOXELS,
    MAPS,
    Learned,
    edge_notes,
    learned_maps,
    load_learned,
    outside_range,
)
from reperfuse.stages.maps import maps
from reperfuse.stages.trained import load_model

STILL = PerfusionMaps(motion_correction=False)
TRAINED = {
    "tr_s": (1.0, 5.0),
    "snr": (15.0, 150.0),
    "aif_fwhm_s": (3.0, 15.0),
    "delay_s": (-3.0, 15.0),
    "baseline_frames": 4,
    "after_arrival_s": 45.0,
}
SPREADS = {"tmax_sd.nii.gz", "delay_sd.nii.gz"}


class FirstFeature:
    """A posterior that repeats a feature: what leads to it and away from it can be followed."""

    def posterior(self, features: np.ndarray) -> dict[str, np.ndarray]:
        return {name: features[:, n] for n, name in enumerate(MAPS)}


@pytest.fixture(scope="module")
def shipped() -> Learned:
    return load_learned()


@pytest.fixture(scope="module")
def learned(series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learned") / "out"
    maps(series, out, settings=STILL, method="learned")
    return out


@pytest.fixture(scope="module")
def osvd(series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("osvd") / "out"
    maps(series, out, settings=STILL, method="osvd")
    return out


def map_of(out: Path, name: str) -> np.ndarray:
    return load_volume(out / f"{name}.nii.gz").data


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def same_maps(one: Path, other: Path, *names: str) -> bool:
    return all((one / f"{name}.nii.gz").read_bytes() == (other / f"{name}.nii.gz").read_bytes() for name in names)


def curves_of(scan: DscPhantom) -> tuple[np.ndarray, float]:
    """ΔR2* of single voxels, shape (n, T) [1/s], and their noise [1/s], from the phantom's own truth."""
    te, s0 = scan.signal.te_s, scan.truth["s0"].reshape(-1, 1)
    assert te is not None
    return -np.log(scan.signal.data.reshape(len(s0), -1) / s0) / te, scan.sigma / float(s0.mean()) / te


# what the network says of curves


def test_tissue_that_is_delayed_more_is_told_later_by_as_much(shipped: Learned) -> None:
    delays = np.repeat([0.0, 2.0, 5.0, 9.0], 50)
    scan = voxel_phantom(60.0, 4.0, delays, snr=60.0, seed=3)
    curves, noise = curves_of(scan)
    found, notes = learned_maps(curves, scan.aif, 1.5, np.full(len(curves), noise), shipped)
    told, spread = found["delay"].reshape(4, 50), found["delay_sd"].reshape(4, 50)
    assert notes == []
    for n, delay in enumerate((0.0, 2.0, 5.0, 9.0)):
        moved = np.median(told[n]) - np.median(told[0])
        assert abs(moved - delay) < np.median(spread[n]), delay


def test_where_there_is_more_noise_the_network_is_less_sure(shipped: Learned) -> None:
    spread = []
    for snr in (120.0, 30.0):
        scan = voxel_phantom(40.0, 5.0, np.linspace(0, 8, 200), snr=snr, seed=4)
        curves, noise = curves_of(scan)
        spread.append(learned_maps(curves, scan.aif, 1.5, np.full(200, noise), shipped)[0]["delay_sd"].mean())
    assert spread[0] < spread[1]


def test_a_voxel_that_was_not_measured_is_zero_and_leaves_its_neighbours_alone(shipped: Learned) -> None:
    scan = voxel_phantom(50.0, 4.0, np.linspace(0, 6, 30), snr=50.0, seed=5)
    curves, noise = curves_of(scan)
    sigma = np.full(30, noise)
    whole, _ = learned_maps(curves, scan.aif, 1.5, sigma, shipped)
    curves[::3], sigma[::3] = 0, 0
    found, _ = learned_maps(curves, scan.aif, 1.5, sigma, shipped)
    kept = np.arange(30) % 3 > 0
    for name in MAPS:
        assert found[name].dtype == np.float32 and not found[name][~kept].any()
        np.testing.assert_allclose(found[name][kept], whole[name][kept], atol=0.01)
    assert (found["tmax_sd"][kept] > 0).all() and (found["delay_sd"][kept] > 0).all()


def test_nothing_measured_gives_zeros(shipped: Learned) -> None:
    found, notes = learned_maps(np.zeros((4, 60)), voxel_phantom(50, 4).aif, 1.5, np.zeros(4), shipped)
    assert notes == [] and not any(values.any() for values in found.values())


def test_curves_are_taken_in_parts_that_do_not_show() -> None:
    scan = voxel_phantom(50.0, 4.0, np.linspace(0, 6, 30), snr=50.0, seed=5)
    curves, noise = curves_of(scan)
    many = np.tile(curves, (CHUNK_VOXELS // 30 + 2, 1))
    repeating = Learned(FirstFeature(), {"extra": {"range": TRAINED}})  # type: ignore[arg-type]
    found, _ = learned_maps(many, scan.aif, 1.5, np.full(len(many), noise), repeating)
    few, _ = learned_maps(curves, scan.aif, 1.5, np.full(30, noise), repeating)
    for name in MAPS:
        np.testing.assert_allclose(found[name].reshape(-1, 30), np.tile(few[name], (len(many) // 30, 1)), atol=1e-3)


def test_noise_that_is_not_known_is_that_of_the_others() -> None:
    scan = voxel_phantom(50.0, 4.0, np.linspace(0, 6, 30), snr=50.0, seed=5)
    curves, noise = curves_of(scan)
    sigma = np.full(30, noise)
    repeating = Learned(FirstFeature(), {"extra": {"range": TRAINED}})  # type: ignore[arg-type]
    whole, _ = learned_maps(curves, scan.aif, 1.5, sigma, repeating)
    sigma[::2] = 0
    found, _ = learned_maps(curves, scan.aif, 1.5, sigma, repeating)
    np.testing.assert_array_equal(found["tmax"], whole["tmax"])
    with pytest.raises(InputError, match="no noise before the bolus"):
        learned_maps(curves, scan.aif, 1.5, np.zeros(30), repeating)


def test_many_delays_at_the_end_of_the_range_are_mentioned() -> None:
    assert edge_notes(0.01, TRAINED) == []
    (sentence,) = edge_notes(0.07, TRAINED)
    assert "7 %" in sentence and "-3 to 15 s" in sentence


def test_a_folder_without_a_posterior_is_refused(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", value_s=3.0)
    with pytest.raises(InputError, match="gives no posterior"):
        load_learned(tmp_path / "model")


# where it may not be used


def scan_like_the_training(**changes: float) -> list[str]:
    """Sentences about a scan of which one thing is changed."""
    facts = {"tr_s": 1.5, "snr": 60.0, "before_s": 12.0, "after_s": 70.0, "width_s": 6.0} | changes
    dt, te = facts["tr_s"], 0.03
    t = np.arange(0, facts["before_s"] + facts["after_s"], dt)
    aif = 30 * np.exp(-0.5 * ((t - facts["before_s"] - 1.1 * facts["width_s"]) / (facts["width_s"] / 2.355)) ** 2)
    noise = np.full(50, 1 / (te * facts["snr"]))
    noise[:30] = 0  # not measured
    curves = np.ones((50, t.size))
    curves[:30] = 0
    return outside_range(aif, dt, curves, noise, te_s=te, trained=TRAINED)


def test_a_scan_like_those_of_the_training_raises_no_objection() -> None:
    assert scan_like_the_training() == []
    assert scan_like_the_training(tr_s=0.99) == []  # 1 s, by a clock


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tr_s": 0.5}, "time between frames is 0.5 s; the learned network knows 1 to 5"),
        ({"tr_s": 6.0, "before_s": 40.0, "after_s": 120.0}, "time between frames is 6 s"),
        ({"snr": 8.0}, "signal-to-noise ratio is 8; the learned network knows 15 to 150"),
        ({"snr": 400.0}, "signal-to-noise ratio is 400"),
        ({"before_s": 3.0}, "frames precede the bolus; the learned network knows 4 or more"),
        ({"after_s": 40.0}, "after the bolus arrives; the learned network knows 45 or more"),
        ({"width_s": 20.0, "after_s": 120.0}, "bolus is 20 s wide; the learned network knows 3 to 15"),
        ({"width_s": 2.0, "tr_s": 1.0}, "s wide"),
    ],
)
def test_a_scan_unlike_those_of_the_training_is_told_by_what_is_unlike(changes: dict[str, float], words: str) -> None:
    (sentence,) = scan_like_the_training(**changes)
    assert words in sentence and sentence.endswith(".")


def test_frames_before_the_steady_state_are_no_baseline() -> None:
    t = np.arange(0, 80, 1.5)
    aif = 30 * np.exp(-0.5 * ((t - 15) / 3) ** 2)
    curves, noise = np.ones((9, t.size)), np.full(9, 0.5)
    facts = {"te_s": 0.03, "trained": TRAINED}
    assert outside_range(aif, 1.5, curves, noise, **facts) == []
    (sentence,) = outside_range(aif, 1.5, curves, noise, **facts, unsteady_frames=3)
    assert "precede the bolus" in sentence


def test_the_range_that_ships_has_every_condition(shipped: Learned) -> None:
    assert set(shipped.trained) >= set(TRAINED)


def test_outside_its_range_the_maps_are_those_of_osvd_and_it_is_said(phantom: DscPhantom, tmp_path: Path) -> None:
    noisy = phantom.signal.data + np.random.default_rng(0).normal(0, 120, phantom.signal.data.shape)
    save_volume(tmp_path / "dsc.nii.gz", replace(phantom.signal, data=np.maximum(noisy, 1).astype(np.float32)))
    aif = tmp_path / "aif.csv"
    pd.DataFrame({"aif_delta_r2star_per_s": phantom.aif_delta_r2star}).to_csv(aif, index=False)
    for method in ("learned", "osvd"):
        maps(tmp_path / "dsc.nii.gz", tmp_path / method, settings=STILL, method=method, aif=str(aif))
    summary = summary_of(tmp_path / "learned")
    assert (summary["method"], summary["method_asked"], summary["learned"]) == ("osvd", "learned", None)
    assert any("signal-to-noise" in note for note in summary["notes"])
    assert any("Tmax and delay are osvd's" in note for note in summary["notes"])
    assert same_maps(tmp_path / "learned", tmp_path / "osvd", "cbf", "cbv", "mtt", "tmax", "ttp", "delay")
    assert not SPREADS & {path.name for path in (tmp_path / "learned").iterdir()}


# --method learned


def test_learned_gives_its_two_maps_with_their_spread_and_leaves_the_others_to_osvd(
    learned: Path, osvd: Path, phantom: DscPhantom
) -> None:
    summary = summary_of(learned)
    assert (summary["method"], summary["method_asked"], summary["cbf_method"]) == ("learned", "learned", "osvd")
    assert summary["learned"]["maps"] == sorted(MAPS) and 0 <= summary["learned"]["at_edge_fraction"] < 0.1
    assert same_maps(learned, osvd, "cbf", "cbv", "mtt", "ttp")
    assert not same_maps(learned, osvd, "tmax") and not same_maps(learned, osvd, "delay")
    for name in MAPS:
        volume = load_volume(learned / f"{name}.nii.gz")
        assert volume.on_grid_of(phantom.signal) and np.isfinite(volume.data).all() and volume.data.any()
        assert not volume.data[phantom.truth["tissue"] == 0].any()
        description = bytes(nib.load(learned / f"{name}.nii.gz").header["descrip"]).decode().rstrip("\0")
        assert description.lower() == f"{name} [s]"


def test_learned_delay_is_nearer_to_the_truth_than_that_of_osvd(learned: Path, osvd: Path, phantom: DscPhantom) -> None:
    tissue = np.isin(phantom.truth["tissue"], (1, 2)) & (map_of(osvd, "cbf") > 0)
    ours, theirs = (np.abs(map_of(out, "delay") - phantom.truth["delay"])[tissue].mean() for out in (learned, osvd))
    assert ours < 0.6 * theirs


def test_volumes_are_counted_on_the_learned_tmax_and_the_core_on_the_flow_of_osvd(
    learned: Path, osvd: Path, phantom: DscPhantom
) -> None:
    summary, before = summary_of(learned), summary_of(osvd)
    assert summary["tmax_volume_ml"] != before["tmax_volume_ml"]
    assert summary["tmax_volume_ml"]["6"] == pytest.approx(phantom.facts["tmax_above_6s_ml"], rel=0.25)
    assert summary["core_method"] == "rcbf"
    assert summary["core_volume_ml"] == pytest.approx(before["core_volume_ml"], rel=0.25)


def test_spreads_of_an_earlier_run_do_not_stay(learned: Path, series: Path, tmp_path: Path) -> None:
    maps(series, tmp_path, settings=STILL, method="learned")
    assert {path.name for path in tmp_path.iterdir()} >= SPREADS
    maps(series, tmp_path, settings=STILL, method="osvd")
    assert not SPREADS & {path.name for path in tmp_path.iterdir()}


def test_mask_and_artery_that_are_given_are_taken(phantom: DscPhantom, series: Path, tmp_path: Path) -> None:
    half = phantom.truth["brain"].copy()
    half[:, :, 6:] = 0
    save_volume(tmp_path / "mask.nii.gz", Volume(half, phantom.signal.affine))
    late = pd.DataFrame({"aif_delta_r2star_per_s": np.roll(phantom.aif_delta_r2star, 2)})
    late.to_csv(tmp_path / "late.csv", index=False)
    given = {"mask": tmp_path / "mask.nii.gz", "settings": STILL, "method": "learned"}
    maps(series, tmp_path / "own", **given)
    maps(series, tmp_path / "late", aif=str(tmp_path / "late.csv"), **given)
    normal = (half > 0) & (phantom.truth["lesion"] == 0) & np.isin(phantom.truth["tissue"], (1, 2))
    # The artery comes two frames later, so that tissue comes 3 s earlier after it: nothing here is as early as -3 s.
    lesion = (half > 0) & (phantom.truth["lesion"] > 0)
    earlier = (map_of(tmp_path / "own", "delay") - map_of(tmp_path / "late", "delay"))[lesion]
    assert np.median(earlier) == pytest.approx(3.0, abs=0.7)
    assert map_of(tmp_path / "own", "tmax_sd")[normal].all()
    assert not map_of(tmp_path / "own", "tmax_sd")[half == 0].any()


@pytest.fixture(scope="module")
def no_artery(phantom: DscPhantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series in which every voxel shows the same passage."""
    truth, rng = phantom.truth, np.random.default_rng(0)
    white = truth["tissue"] == 2
    passage = -np.log(phantom.signal.data[white & (truth["lesion"] == 0)].mean(axis=0) / truth["s0"][white].mean())
    data = truth["s0"][..., None] * np.exp(-rng.uniform(0.7, 1.3, (48, 48, 8, 1)) * passage)
    data += rng.normal(0, 4, data.shape)
    path = tmp_path_factory.mktemp("no-artery") / "dsc.nii.gz"
    save_volume(path, replace(phantom.signal, data=data.astype(np.float32)))
    return path


def test_without_an_artery_it_is_said_that_there_is_none(no_artery: Path, tmp_path: Path) -> None:
    summary = maps(no_artery, tmp_path / "out", settings=STILL, method="learned")
    assert "no_artery" in summary["flags"] and (tmp_path / "out" / "rttp.nii.gz").exists()
    assert any("learned needs an artery" in note for note in summary["notes"])
    assert not SPREADS & {path.name for path in (tmp_path / "out").iterdir()}


# --method with a model of the arm


def model_folder(folder: Path, *, value_s: float, network: str = "tmax_2layer", arm: str = "perfusion") -> Path:
    """A model as training leaves it, which gives one value [s] wherever it is."""
    import torch

    from reperfuse.networks import NETWORK_INPUTS, build_network, save_network
    from reperfuse.params import PerfusionPreprocess
    from reperfuse.perfusion.matched import N_FEATURES

    groups = NETWORK_INPUTS[network]
    kwargs = {"in_channels": {"signal": 60, "matched": N_FEATURES}[groups[0]]}
    built = build_network(network, **kwargs)
    with torch.no_grad():
        for tensor in built.parameters():
            tensor.zero_()
        last = [tensor for name, tensor in built.named_parameters() if name.endswith("bias")][-1]
        last.fill_(value_s)
    extra = {
        "arm": arm,
        "activation": "none",
        "preprocess": PerfusionPreprocess(inputs=groups).model_dump(mode="json"),
        "inputs": list(groups),
        "target": "tmax",
    }
    save_network(folder, network, kwargs, built, extra)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "seven", value_s=7.0)


def test_a_model_gives_tmax_and_osvd_the_rest(model: Path, series: Path, osvd: Path, tmp_path: Path) -> None:
    summary = maps(series, tmp_path / "out", settings=STILL, method=str(model))
    flowing = map_of(osvd, "cbf") > 0
    assert np.allclose(map_of(tmp_path / "out", "tmax")[flowing], 7.0)
    assert not map_of(tmp_path / "out", "tmax")[~flowing].any()
    assert same_maps(tmp_path / "out", osvd, "cbf", "cbv", "mtt", "ttp", "delay")
    described = json.loads((model / "model.json").read_text())
    assert summary["model"] == {
        "network": "tmax_2layer",
        "uri": "seven",  # its name; the path may name people
        "weights_sha256": described["weights_sha256"],
    }
    assert (summary["method"], summary["cbf_method"]) == ("seven", "osvd")
    assert summary["tmax_volume_ml"]["8"] == 0 < summary["tmax_volume_ml"]["6"]
    assert not SPREADS & {path.name for path in (tmp_path / "out").iterdir()}
    assert str(model) not in (tmp_path / "out" / "summary.json").read_text()


def test_a_model_that_sees_the_signal_alone_gives_tmax_without_an_artery(
    model: Path, no_artery: Path, tmp_path: Path
) -> None:
    summary = maps(no_artery, tmp_path, settings=STILL, method=str(model))
    assert "no_artery" in summary["flags"] and any("does not need" in note for note in summary["notes"])
    assert (map_of(tmp_path, "tmax") == 7.0).any() and summary["tmax_volume_ml"]["6"] > 0
    assert summary["core_volume_ml"] is None and summary["target_mismatch"] is None
    assert not (tmp_path / "cbf.nii.gz").exists() and (tmp_path / "qc.png").exists()


def test_with_a_model_of_the_same_features_delay_and_spread_are_those_of_the_network_that_ships(
    learned: Path, series: Path, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "matched", value_s=5.0, network="tmax_matched")
    summary = maps(series, tmp_path / "out", settings=STILL, method=str(folder))
    assert same_maps(tmp_path / "out", learned, "delay", "delay_sd", "cbf")
    assert not same_maps(tmp_path / "out", learned, "tmax")
    assert summary["learned"]["maps"] == ["delay", "delay_sd"]
    assert not (tmp_path / "out" / "tmax_sd.nii.gz").exists()


def test_a_network_of_the_recipe_is_taken_from_its_folder(learned: Path, series: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    network, described = load_network(learned_folder())
    network.delay_middle.bias.data += 1
    save_network(folder, "arrival", described["kwargs"], network, extra=described["extra"])
    summary = maps(series, tmp_path / "out", settings=STILL, method=str(folder))
    assert same_maps(tmp_path / "out", learned, "tmax", "tmax_sd", "cbf")
    later = map_of(tmp_path / "out", "delay") - map_of(learned, "delay")
    np.testing.assert_allclose(later[map_of(learned, "delay_sd") > 0], 1, atol=1e-3)
    assert summary["method"] == "mine" and summary["model"]["network"] == "arrival"
    with pytest.raises(InputError, match="no stage of the arm trained"):
        load_model("perfusion", str(folder), PerfusionPreprocess)


def test_a_model_sees_the_series_at_rest_without_spoilt_frames(
    model: Path, phantom: DscPhantom, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from reperfuse.stages import perfusion_inputs

    seen: list[Volume] = []
    monkeypatch.setattr(
        perfusion_inputs,
        "predicted_tmax",
        lambda volume, trained, scan: seen.append(volume) or np.full((48, 48, 8), 7.0),
    )
    data = phantom.signal.data.copy()
    data[..., 30] *= 0.3
    data[20, 20, 4, 15:] = np.nan  # of the brain, by what is left of it, but without a curve
    for name, given in (("whole", phantom.signal.data), ("spoilt", data)):
        save_volume(tmp_path / f"{name}.nii.gz", replace(phantom.signal, data=given))
        maps(tmp_path / f"{name}.nii.gz", tmp_path / name, settings=STILL, method=str(model))
    assert map_of(tmp_path / "whole", "tmax")[20, 20, 4] == 7 and map_of(tmp_path / "spoilt", "tmax")[20, 20, 4] == 0
    whole, spoilt = seen
    brain = phantom.truth["brain"] > 0
    brain[20, 20, 4] = False
    np.testing.assert_allclose(whole.data[brain], phantom.signal.data[brain], rtol=0.02)
    kept = np.arange(60) != 30
    np.testing.assert_allclose(spoilt.data[brain][:, kept], whole.data[brain][:, kept], rtol=1e-4)
    bridged = (whole.data[brain][:, 29] + whole.data[brain][:, 31]) / 2
    assert np.median(np.abs(spoilt.data[brain][:, 30] / bridged - 1)) < 0.02
    assert np.allclose(whole.frame_times_s, phantom.signal.frame_times_s) and whole.te_s == phantom.signal.te_s


def test_a_model_of_the_other_arm_is_refused(series: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "lesion", value_s=1.0, arm="lesion")
    with pytest.raises(InputError, match="arm lesion, not perfusion"):
        maps(series, tmp_path / "out", settings=STILL, method=str(folder))


def test_a_model_that_gives_no_numbers_is_refused(series: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "broken", value_s=np.nan)
    with pytest.raises(InputError, match="not finite"):
        maps(series, tmp_path / "out", settings=STILL, method=str(folder))
    assert not list((tmp_path / "out").glob("*.nii.gz"))


# --method champion


@pytest.fixture
def champion(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A registry that holds `model` as version 3; what the registry itself does is told in its own tests."""
    from reperfuse import tracking

    version = SimpleNamespace(uri="models:/perfusion/3", version="3")
    monkeypatch.setattr(tracking, "champion", lambda arm: version if arm == "perfusion" else None)
    monkeypatch.setattr(tracking, "fetch_model", lambda uri: {version.uri: model, str(model): model}[str(uri)])
    yield version


def test_the_champion_is_named_by_its_version(champion: SimpleNamespace, series: Path, tmp_path: Path) -> None:
    summary = maps(series, tmp_path / "out", settings=STILL, method="champion")
    assert summary["method"] == "champion" and summary["model"]["uri"] == champion.uri
    assert summary["tmax_volume_ml"]["6"] > 0


def test_without_a_champion_the_remedy_is_said(series: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(InputError, match="reperfuse promote perfusion"):
        maps(series, tmp_path / "out", settings=STILL, method="champion")
    assert not (tmp_path / "out").exists()


# names


@pytest.mark.parametrize("typo", ["osdv", "lerned", "model:/perfusion/3", "models/perfusion-that-is-not-there", ""])
def test_a_slip_of_the_pen_is_no_model(typo: str, series: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        maps(series, tmp_path / "out", settings=STILL, method=typo)
    said = str(refusal.value)
    assert said.startswith(f"--method is {typo!r}") and "osvd" in said and "learned" in said and "champion" in said


def test_a_slip_in_the_parameters_is_said_to_be_there(series: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^perfusion\.maps\.method is 'osdv'"):
        maps(series, tmp_path / "out", settings=PerfusionMaps(method="osdv"))


def test_deconvolution_needs_no_network(series: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from reperfuse.params import PerfusionMaps; "
        "from reperfuse.stages.maps import maps; "
        "maps(Path(sys.argv[1]), Path(sys.argv[2]), settings=PerfusionMaps(motion_correction=False)); "
        "print(sorted({'torch', 'mlflow', 'lightning', 'monai'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(series), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
