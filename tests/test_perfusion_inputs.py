"""What perfusion networks see is the same in training and in use, in any company, and hangs on the series alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.params import Params, PerfusionPreprocess
from reperfuse.perfusion.aif import NoArtery
from reperfuse.perfusion.matched import N_FEATURES, matched_features
from reperfuse.phantoms.dsc import dsc_phantom
from reperfuse.preprocessing.brain import threshold_mask
from reperfuse.stages import perfusion, perfusion_inputs
from reperfuse.stages.perfusion_inputs import (
    GROUPS,
    MAP_SCALES,
    Examination,
    learned_targets,
    network_input,
    predicted_tmax,
)
from reperfuse.stages.processed import write_subject
from reperfuse.stages.trained import TrainedModel
from reperfuse.training.samples import Subject

SETTINGS = PerfusionPreprocess(n_frames=40)
CHANNELS = {"signal": 40, "aif": 40, "vof": 40, "maps": 5, "matched": N_FEATURES}


@pytest.fixture(scope="module")
def series() -> Volume:
    return dsc_phantom((32, 32, 6), seed=3, snr=40).signal


@pytest.fixture(scope="module")
def everything(series: Volume) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[int, int]]]:
    return network_input(series, SETTINGS, list(GROUPS))


def without_artery(series: Volume) -> Volume:
    """The same head with the mean curve of its brain in every voxel: nothing is early, high and narrow."""
    brain = threshold_mask(series.data)
    mean = series.data[brain].mean(axis=0)
    noise = np.random.default_rng(0).normal(0, 0.02, series.data.shape)
    data = (series.data[..., :1] / mean[0] * mean * (1 + noise)).astype(np.float32)
    return replace(series, data=np.where(brain[..., None], data, series.data))


def group(name: str, found: tuple[np.ndarray, np.ndarray, dict[str, tuple[int, int]]]) -> np.ndarray:
    start, stop = found[2][name]
    return found[0][start:stop]


# ---- laws of every group --------------------------------------------------------------------------------------------
def test_every_group_that_may_be_asked_for_can_be_made() -> None:
    field = PerfusionPreprocess.model_fields["inputs"].annotation
    assert set(field.__args__[0].__args__) == set(GROUPS) == set(CHANNELS)


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_is_the_same_alone_and_in_company(series: Volume, everything: tuple, name: str) -> None:
    alone, brain, groups = network_input(series, SETTINGS, [name])
    assert groups == {name: (0, CHANNELS[name])} and alone.dtype == np.float32
    assert np.array_equal(brain, everything[1])
    np.testing.assert_array_equal(alone, group(name, everything))


def test_groups_follow_each_other_in_the_order_asked(series: Volume, everything: tuple) -> None:
    found = network_input(series, SETTINGS, ["maps", "signal"])
    assert found[2] == {"maps": (0, 5), "signal": (5, 45)} and len(found[0]) == 45
    for name in ("maps", "signal"):
        np.testing.assert_array_equal(group(name, found), group(name, everything))


def test_the_groups_of_the_settings_are_made_when_none_are_named(series: Volume) -> None:
    assert list(network_input(series, SETTINGS)[2]) == list(SETTINGS.inputs)


@pytest.mark.parametrize("name", GROUPS)
def test_outside_the_brain_all_is_zero_and_inside_all_is_finite(everything: tuple, name: str) -> None:
    array, brain = group(name, everything), everything[1]
    assert np.isfinite(array).all() and not array[:, ~brain].any() and array[:, brain].any()


@pytest.mark.parametrize("name", GROUPS)
def test_when_the_clock_of_the_scanner_was_started_does_not_matter(
    series: Volume, everything: tuple, name: str
) -> None:
    later = replace(series, frame_times_s=series.frame_times_s + 60.0)
    np.testing.assert_allclose(network_input(later, SETTINGS, [name])[0], group(name, everything), atol=1e-5)


@pytest.mark.parametrize("name", ["maps", "matched"])
def test_the_gain_of_the_scanner_does_not_matter(series: Volume, everything: tuple, name: str) -> None:
    louder = replace(series, data=series.data * 8)
    np.testing.assert_allclose(network_input(louder, SETTINGS, [name])[0], group(name, everything), atol=2e-3)


@pytest.mark.parametrize("name", ["signal", "aif", "maps"])
def test_a_group_stored_in_half_precision_loses_less_than_its_noise(everything: tuple, name: str, tmp_path) -> None:
    array, brain = group(name, everything), everything[1]
    write_subject(tmp_path / "sub", array, np.zeros(brain.shape), brain, {}, dtype=np.float16)
    stored = Subject("sub", tmp_path / "sub").load()[0]
    assert stored.dtype == np.float16
    assert np.abs(stored.astype(np.float32) - array).max() <= 2.0**-11 * max(1, np.abs(array).max())


def test_matches_stored_in_half_precision_keep_their_order_and_fit(everything: tuple) -> None:
    array = group("matched", everything)
    loss = np.abs(array.astype(np.float16).astype(np.float32) - array)
    assert (loss <= 2.0**-11 * np.maximum(np.abs(array), 2.0**-14)).all()


# ---- signal ---------------------------------------------------------------------------------------------------------
def test_the_bolus_arrives_in_the_frame_it_is_aligned_to(series: Volume) -> None:
    from reperfuse.perfusion.bolus import bolus_arrival

    for frame in (8, 14):
        array, brain, _ = network_input(series, SETTINGS.model_copy(update={"bolus_frame": frame}), ["signal"])
        assert abs(bolus_arrival(array[:, brain].mean(axis=1)) - frame) <= 1


def test_signal_alone_needs_neither_echo_time_nor_artery(series: Volume) -> None:
    bare = replace(without_artery(series), te_s=None)
    array, _, groups = network_input(bare, SETTINGS, ["signal"])
    assert groups == {"signal": (0, 40)} and array.min() == 0 and array.max() == 1


# ---- artery and vein ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["aif", "vof"])
def test_artery_and_vein_are_the_same_in_each_voxel(everything: tuple, name: str) -> None:
    inside = group(name, everything)[:, everything[1]]
    np.testing.assert_array_equal(inside, np.broadcast_to(inside[:, :1], inside.shape))


def test_the_artery_peaks_at_one_before_the_vein(everything: tuple) -> None:
    aif, vof = (group(name, everything)[:, everything[1]][:, 0] for name in ("aif", "vof"))
    assert 0.8 < aif.max() <= 1 and 0.3 < vof.max() < 1.2
    assert aif.argmax() < vof.argmax()


def test_the_artery_is_drawn_at_the_frames_of_the_signal(series: Volume, everything: tuple) -> None:
    scan = Examination(series, everything[1])
    artery = tuple(scan.passage.arteries.found.voxels.T)
    signal = group("signal", everything)[:, *artery].mean(axis=1)
    aif = group("aif", everything)[:, everything[1]][:, 0]
    assert abs(int(signal.argmin()) - int(aif.argmax())) <= 1


def test_without_a_vein_its_channels_are_zero(series: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perfusion_inputs.chain, "find_vof", lambda *args, **options: None)
    assert not network_input(series, SETTINGS, ["vof"])[0].any()


# ---- maps, matches and what is learned ------------------------------------------------------------------------------
def test_maps_are_those_of_osvd_over_their_scale(series: Volume, everything: tuple) -> None:
    maps = Examination(series, everything[1]).passage.maps("osvd")
    for (name, scale), channel in zip(MAP_SCALES.items(), group("maps", everything), strict=True):
        np.testing.assert_allclose(channel, np.clip(maps[name] / scale, -10, 10), rtol=1e-6)


def test_a_voxel_that_was_not_measured_has_no_matches(series: Volume) -> None:
    data = series.data.copy()
    brain = threshold_mask(series.data)
    lost = tuple(np.argwhere(brain)[len(np.argwhere(brain)) // 2])
    data[lost] = 0
    found = Examination(replace(series, data=data), brain)
    array, _, _ = network_input(found.volume, SETTINGS, ["matched"], scan=found)
    assert not array[:, *lost].any() and np.isfinite(array).all()


def test_matches_are_weighed_by_the_noise_of_each_voxel_and_know_nothing_of_the_networks_frames(
    series: Volume, everything: tuple
) -> None:
    bolus = (passage := Examination(series, everything[1]).passage).bolus
    expected = matched_features(bolus.curves, passage.aif, bolus.dt, bolus.brain_noise)
    coarser = SETTINGS.model_copy(update={"n_frames": 12, "tr_s": 3.0, "align_bolus": False})
    for settings in (SETTINGS, coarser):
        array, brain, _ = network_input(series, settings, ["matched"])
        np.testing.assert_allclose(array[:, brain].T, expected, rtol=1e-5, atol=1e-5)


def test_the_reference_is_learned_as_it_is_and_other_maps_by_deconvolution(
    series: Volume, everything: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perfusion_inputs, "LONGEST_MTT_S", 7.0)
    scan = Examination(series, everything[1])
    reference = Volume(np.random.default_rng(0).random(scan.brain.shape), series.affine)
    cbv, tmax, mtt = learned_targets(reference, scan, ("cbv", "tmax", "mtt"))
    maps = scan.passage.maps("osvd")
    np.testing.assert_array_equal(tmax, reference.data.astype(np.float32))
    np.testing.assert_array_equal(cbv, maps["cbv"])
    np.testing.assert_array_equal(mtt, np.minimum(maps["mtt"], 7))
    assert (mtt == 7).any()


# ---- where there is no artery ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in GROUPS if name != "signal"])
def test_a_series_without_artery_is_refused_with_the_remedy(series: Volume, name: str) -> None:
    with pytest.raises(NoArtery, match=rf"{name} cannot be made; .*perfusion.preprocess.inputs"):
        network_input(without_artery(series), SETTINGS, ["signal", name])


def test_without_artery_the_reference_is_learned_and_other_maps_are_refused(series: Volume) -> None:
    scan = Examination(without_artery(series), threshold_mask(series.data))
    reference = Volume(np.ones(scan.brain.shape), series.affine)
    assert learned_targets(reference, scan, ("tmax",)).shape == (1, *scan.brain.shape)
    with pytest.raises(NoArtery, match=r"no cbf; .*perfusion.preprocess.targets"):
        learned_targets(reference, scan, ("tmax", "cbf"))


def test_a_group_nobody_knows_is_refused(series: Volume) -> None:
    with pytest.raises(InputError, match=r"'wavelets'.*signal, aif, vof, maps, matched"):
        network_input(series, SETTINGS, ["wavelets"])


# ---- a model in use -------------------------------------------------------------------------------------------------
class Sum(nn.Module):
    """Gives the sum of its channels plus one, so that also what lies outside the brain is not 0."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.sum(dim=1, keepdim=True) + 1


@pytest.mark.parametrize("inputs", [(), ("aif", "maps")])
def test_a_model_sees_the_groups_it_was_trained_on(series: Volume, everything: tuple, inputs: tuple[str, ...]) -> None:
    trained = TrainedModel(Sum(), "none", SETTINGS, inputs, "tmax" if inputs else None)
    seen = np.concatenate([group(name, everything) for name in inputs or ("signal",)])
    expected = np.where(everything[1], seen.sum(axis=0) + 1, 0)
    np.testing.assert_allclose(predicted_tmax(series, trained), expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_another_map_gives_no_tmax(series: Volume) -> None:
    with pytest.raises(InputError, match=r"gives cbv, not Tmax"):
        predicted_tmax(series, TrainedModel(Sum(), "none", SETTINGS, ("signal",), "cbv"))


def test_a_model_of_the_signal_is_judged_where_no_artery_is_found_and_deconvolution_is_not(
    series: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = TrainedModel(Sum(), "none", SETTINGS, ("signal",), "tmax")
    monkeypatch.setattr("reperfuse.stages.trained.load_model", lambda *args: trained)
    judged = perfusion._assessment(Params(), baselines=("baseline_ssvd", "baseline_osvd"))
    found = {method: predict(without_artery(series)) for method, predict in judged.methods.items()}
    assert found["model"] is not None and found["baseline_ssvd"] is None and found["baseline_osvd"] is None
    assert all(predict(series) is not None for predict in judged.methods.values())


# ---- what the search scores -----------------------------------------------------------------------------------------
def small_map(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 2.0, (6, 6, 4)).astype(np.float32)


def params_with(**changes: dict) -> Params:
    content = Params().model_dump()
    for section, values in changes.items():
        content["perfusion"][section] |= values
    return Params.model_validate(content)


def test_the_search_scores_tmax_as_the_hold_out_is_scored() -> None:
    from reperfuse.evaluation.metrics import tmax_scores

    objective = perfusion._objective(params_with(evaluate={"tmax_threshold_s": 4.0}))
    tmax, reference, mask = small_map(0), small_map(1), np.ones((6, 6, 4), np.uint8)
    expected = tmax_scores(tmax, reference, mask, (2, 2, 5), threshold_s=4.0)
    found = objective.score(tmax, reference, mask, (2, 2, 5))
    assert found == {name: expected[name] for name in perfusion.SEARCH_METRICS}
    assert objective.metric == "rmse_s"


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"target": "cbv"}},
        {"preprocess": {"targets": ["cbv", "tmax"]}},
        {"tune": {"space": {"target": {"choices": ["tmax", "cbv"]}}}},
    ],
)
def test_another_map_than_tmax_is_scored_in_its_own_unit_and_without_baselines(changes: dict) -> None:
    objective = perfusion._objective(params_with(**changes))
    assert objective.metric == "rmse" and objective.baselines is None
    reference, mask = small_map(1), np.ones((6, 6, 4), np.uint8)
    mask[0] = 0
    wrong = np.where(mask > 0, reference + 3, 1e6).astype(np.float32)
    found = objective.score(wrong, reference, mask, (2, 2, 5))
    assert found == pytest.approx({"rmse": 3, "mae": 3, "ssim": found["ssim"], "pearson_r": 1})
    twice = objective.score(2 * wrong, 2 * reference, mask, (2, 2, 5))
    assert twice["rmse"] == pytest.approx(6) and twice["ssim"] == pytest.approx(found["ssim"], rel=1e-5)


def test_what_is_no_map_has_no_score() -> None:
    mask = np.ones((6, 6, 4), np.uint8)
    broken = small_map(0)
    broken[2, 2, 2] = np.nan
    for params in (Params(), params_with(train={"target": "mtt"})):
        found = perfusion._objective(params).score(broken, small_map(1), mask, (2, 2, 5))
        assert found and not [value for value in found.values() if value is not None]


# ---- what is stored -------------------------------------------------------------------------------------------------
def test_what_half_precision_cannot_hold_is_not_stored(tmp_path) -> None:
    image, mask = np.full((1, 2, 2, 2), 1e5, np.float32), np.ones((2, 2, 2), bool)
    with pytest.raises(ValueError, match="float16 cannot hold"):
        write_subject(tmp_path / "sub", image, np.zeros((2, 2, 2)), mask, {}, dtype=np.float16)
    assert not (tmp_path / "sub").exists()
    write_subject(tmp_path / "sub", image, np.zeros((2, 2, 2)), mask, {})
    assert Subject("sub", tmp_path / "sub").load()[0].dtype == np.float32
