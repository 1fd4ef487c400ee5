"""Laws of the drawn patients and of single voxels, and that each situation is what its name says."""

import numpy as np
import pytest

from reperfuse.phantoms.artery import ARTERIAL_FAMILIES, ArterialInput
from reperfuse.phantoms.drawn import VENOUS_LAG_S
from reperfuse.phantoms.dsc import K_ARTERY, K_TISSUE, PLAIN, RANGES, SITUATIONS, drawn_phantom, voxel_phantom
from reperfuse.phantoms.head import TISSUES
from reperfuse.phantoms.kinetics import RESIDUES
from reperfuse.phantoms.ranges import drawn_values
from reperfuse.phantoms.series import leaked
from reperfuse.phantoms.stroke import CBV_RANGE, DELAY_RANGE_S, MTT_RANGE_S

SMALL = (24, 24, 5)
CLEAN = {**PLAIN, "snr": np.inf, "tr_s": 1.5, "te_s": 0.03, "dose": 1.0}


def relaxation(phantom):
    s0 = np.maximum(phantom.truth["s0"], 1e-3)[..., None]  # air has none
    return -np.log(np.maximum(phantom.signal.data, 1e-3) / s0) / phantom.signal.te_s


@pytest.fixture(scope="module")
def clean():
    return drawn_phantom(5, SMALL, **CLEAN)


def test_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = drawn_phantom(1, SMALL), drawn_phantom(1, SMALL), drawn_phantom(2, SMALL)
    assert first.signal.data.tobytes() == again.signal.data.tobytes() and first.facts == again.facts
    assert first.facts["te_s"] != other.facts["te_s"]


def test_fixing_one_quantity_leaves_the_others_as_they_were():
    free = drawn_values(11, {})
    for name in free:
        fixed = drawn_values(11, {name: free[name]})
        assert fixed == free
    moved = drawn_values(11, {"snr": 33.0, "family": "injection"})
    assert moved == free | {"snr": 33.0, "family": "injection"}


def test_noise_is_a_stream_of_its_own_so_a_patient_can_be_seen_without_it():
    noisy, silent = drawn_phantom(6, SMALL, snr=50.0), drawn_phantom(6, SMALL, snr=np.inf)
    assert all(np.array_equal(noisy.truth[key], silent.truth[key]) for key in noisy.truth)
    inside = silent.truth["brain"] > 0
    assert (noisy.signal.data - silent.signal.data)[inside].std() == pytest.approx(noisy.sigma, rel=0.05)


def test_draws_fill_their_ranges_and_no_more():
    draws = [drawn_values(seed, {}) for seed in range(300)]
    for name, (low, high) in RANGES.items():
        values = np.array([abs(d[name]) if name == "k2" else d[name] for d in draws if d[name] != 0])
        assert values.min() >= low and values.max() <= high
        assert values.min() < low + 0.15 * (high - low) and values.max() > high - 0.15 * (high - low), name
    assert {d["family"] for d in draws} == set(ARTERIAL_FAMILIES)
    assert {d["residue"] for d in draws} == set(RESIDUES)
    assert {np.sign(d["k2"]) for d in draws} == {-1, 0, 1}


def test_every_drawn_series_has_a_baseline_a_passage_and_enough_frames():
    for seed in range(200):
        values = drawn_values(seed, {})
        end = (values["n_frames"] - 1) * values["tr_s"]
        assert values["arrival_s"] >= min(4.5 * values["tr_s"], 22.5) - 1e-9 and values["n_frames"] >= 18
        assert end - values["arrival_s"] >= 40 and end <= 95


def test_a_range_can_be_narrowed_and_an_unknown_quantity_is_refused():
    assert all(20 <= drawn_values(seed, {"snr_range": (20, 40)})["snr"] <= 40 for seed in range(30))
    with pytest.raises(ValueError, match="no colour"):
        drawn_phantom(0, SMALL, colour="blue")


@pytest.mark.parametrize("seed", range(5))
def test_truth_lies_in_the_stated_ranges_and_mtt_is_cbv_over_cbf(seed):
    truth = drawn_phantom(seed, SMALL).truth
    tissue = truth["cbf"] > 0
    for name, (low, high) in {"mtt": MTT_RANGE_S, "delay": DELAY_RANGE_S}.items():
        assert truth[name][tissue].min() >= low - 1e-3 and truth[name][tissue].max() <= high + 1e-3
        assert not truth[name][~tissue].any()
    solid = tissue & np.isin(truth["tissue"], (1, 2))
    assert truth["cbv"][solid].max() <= CBV_RANGE[1] + 1e-3 and truth["cbv"][solid].min() >= 0.4 * CBV_RANGE[0]
    assert truth["mtt"][tissue] == pytest.approx(60 * truth["cbv"][tissue] / truth["cbf"][tissue], rel=1e-4)
    assert (truth["core"] <= truth["lesion"]).all() and (truth["lesion"] <= truth["brain"]).all()


def test_even_extreme_draws_stay_in_the_stated_ranges():
    low = drawn_phantom(0, SMALL, delay_s=-3.0, grey_mtt=2.0, lesion=False).truth
    high = drawn_phantom(0, SMALL, delay_s=15.0, grey_mtt=20.0, grey_cbv=20.0).truth
    inside = low["cbf"] > 0
    assert low["delay"].min() == DELAY_RANGE_S[0] and low["mtt"][inside].min() == MTT_RANGE_S[0]
    assert high["delay"].max() == DELAY_RANGE_S[1] and high["mtt"].max() == MTT_RANGE_S[1]
    assert 0.95 * CBV_RANGE[1] < high["cbv"][inside].max() <= CBV_RANGE[1]


def test_the_draws_reach_from_negative_delays_to_late_and_slow_tissue():
    truths = [drawn_phantom(seed, (20, 20, 4)).truth for seed in range(10)]
    assert min(t["delay"].min() for t in truths) < -2 and max(t["delay"].max() for t in truths) > 12
    assert max(t["mtt"].max() for t in truths) > 15 and max(t["cbv"][t["cbf"] > 0].max() for t in truths) > 6


def test_noise_free_tissue_has_the_area_of_its_cbv():
    phantom = drawn_phantom(5, SMALL, **CLEAN, residue="gamma", n_frames=300, washout=0.0)
    tissue = (phantom.truth["cbf"] > 0) & (phantom.truth["vein_fraction"] == 0)
    area = relaxation(phantom)[tissue].sum(1) * 1.5 / K_TISSUE
    assert 100 * area / phantom.arterial.area == pytest.approx(phantom.truth["cbv"][tissue], rel=5e-3)


def test_a_pure_artery_shows_the_aif_and_the_inside_of_the_sinus_the_vof(clean):
    curves = relaxation(clean)
    artery, sinus = clean.truth["artery_fraction"] == 1, clean.truth["vein_fraction"] == 1
    assert artery.sum() >= 10 and sinus.sum() >= 5
    assert curves[artery] == pytest.approx(np.broadcast_to(clean.aif_delta_r2star, curves[artery].shape), abs=2e-3)
    assert curves[sinus] == pytest.approx(np.broadcast_to(clean.vof_delta_r2star, curves[sinus].shape), abs=2e-3)
    assert clean.aif_delta_r2star == pytest.approx(K_ARTERY * clean.arterial(clean.signal.frame_times_s))


@pytest.mark.parametrize("seed", range(4))
def test_the_sinus_fills_after_the_artery_wider_and_with_its_area(seed):
    phantom = drawn_phantom(seed, SMALL, n_frames=200, tr_s=1.5, washout=0.0)
    t = phantom.signal.frame_times_s
    lag = np.average(t, weights=phantom.vof) - np.average(t, weights=phantom.aif)
    assert VENOUS_LAG_S[0] - 0.05 <= lag <= VENOUS_LAG_S[1] + 0.05
    assert lag == pytest.approx(phantom.facts["vof_lag_s"], abs=0.05)
    assert phantom.vof.sum() == pytest.approx(phantom.aif.sum(), rel=2e-3) and phantom.vof.max() < phantom.aif.max()


def test_signals_of_blood_and_tissue_add_and_their_concentrations_do_not():
    none, half, all_ = (
        drawn_phantom(5, SMALL, **{**CLEAN, "purity_low": share, "purity_high": share}) for share in (0.0, 0.5, 1.0)
    )
    artery = all_.truth["artery_fraction"] > 0
    mean = (none.signal.data[artery] + all_.signal.data[artery]) / 2
    assert half.signal.data[artery] == pytest.approx(mean, rel=1e-4)
    added = (relaxation(none)[artery] + relaxation(all_)[artery]) / 2
    assert np.abs(relaxation(half)[artery] - added).max() > 1


def test_some_arteries_are_purer_than_others_within_the_drawn_limits():
    phantom = drawn_phantom(3, SMALL, purity_low=0.2, purity_high=0.9)
    fraction = phantom.truth["artery_fraction"][phantom.truth["tissue"] == TISSUES["artery"]]
    assert 0.2 <= fraction.min() < 0.4 and 0.7 < fraction.max() <= 0.9


@pytest.mark.parametrize("k2", [0.02, -0.02])
def test_leakage_subtracts_the_integral_of_normal_tissue_and_leaves_cbv(k2):
    tight, leaky = drawn_phantom(5, SMALL, **CLEAN), drawn_phantom(5, SMALL, **{**CLEAN, "k2": k2})
    truth = leaky.truth
    where = (truth["k2"] != 0) & (truth["cbf"] > 0) & (truth["vein_fraction"] == 0)
    assert where.sum() > 20 and np.array_equal(truth["cbv"], tight.truth["cbv"])
    change = (relaxation(leaky) - relaxation(tight))[where]
    slope = change / truth["k2"][where][:, None]
    assert np.ptp(slope, axis=0).max() < 0.01 * np.abs(slope).max()
    assert slope.max() < 1e-2 and (np.diff(slope.mean(0)) < 1e-2).all()
    assert relaxation(leaky)[~where & (truth["cbf"] > 0)] == pytest.approx(
        relaxation(tight)[~where & (truth["cbf"] > 0)], abs=1e-4
    )


def test_leaked_is_linear_in_k2():
    curves, times = np.ones((3, 5)), np.arange(5.0)
    change = leaked(curves, np.array([0.0, 0.1, 0.2]), times, np.ones(5)) - curves
    assert not change[0].any() and change[2] == pytest.approx(2 * change[1]) and change[1, -1] == pytest.approx(-0.4)


def test_motion_comes_before_noise_and_the_first_frame_is_at_rest():
    still, moving = (drawn_phantom(4, SMALL, **PLAIN | {"jumps": n, "drift_mm": 2.0 * n}, snr=50.0) for n in (0, 2))
    assert np.array_equal(still.signal.data[..., 0], moving.signal.data[..., 0])
    assert not np.array_equal(still.signal.data[..., -1], moving.signal.data[..., -1])
    air = (still.truth["tissue"] == 0) & (np.abs(moving.signal.data - still.signal.data).max(-1) < still.sigma / 100)
    assert air.sum() > 50
    assert moving.signal.data[air].mean() == pytest.approx(still.sigma * np.sqrt(np.pi / 2), rel=0.05)
    assert moving.displacement_mm.max() == pytest.approx(moving.facts["motion_mm_max"]) and not still.trajectory.any()


def situation(name, **fixed):
    return drawn_phantom(8, SMALL, name, **{"tr_s": 1.5, "snr": 60.0, **fixed})


def test_every_situation_can_be_made_for_any_patient():
    for seed, name in enumerate(SITUATIONS):
        phantom = drawn_phantom(seed, (16, 16, 4), name)
        assert np.isfinite(phantom.signal.data).all() and phantom.facts["situation"] == name


def test_without_a_bolus_nothing_happens():
    phantom = situation("no_bolus", snr=np.inf, jumps=0, drift_mm=0.0)
    assert np.ptp(phantom.signal.data, axis=-1).max() == 0 and not phantom.aif.any()


def test_a_truncated_tail_ends_while_the_bolus_is_there():
    phantom = situation("truncated_tail")
    grey = phantom.truth["tissue"] == TISSUES["grey"]
    curve = phantom.signal.data[grey].mean(0)
    assert phantom.signal.frame_times_s[-1] <= phantom.facts["arrival_s"] + 12 + 1.5
    assert curve[-1] < curve[:4].mean() - 0.4 * np.ptp(curve)


def test_little_agent_hides_in_the_noise_and_much_saturates_the_artery():
    low, usual = drawn_phantom(8, SMALL, "low_cnr"), drawn_phantom(8, SMALL, snr=60.0)

    def contrast(phantom):
        grey = phantom.truth["tissue"] == TISSUES["grey"]
        return float(np.ptp(phantom.signal.data[grey].mean(0)) / phantom.sigma)

    assert contrast(low) < 1.5 < 5 < contrast(usual)
    black = drawn_phantom(8, SMALL, "saturated_aif")
    pure = black.truth["artery_fraction"] > 0.9
    s0 = black.truth["s0"][pure].mean()
    assert s0 * np.exp(-black.signal.te_s * black.aif_delta_r2star.max()) < black.sigma


def test_missing_frames_and_slices_hold_zeros_and_others_do_not():
    data = situation("missing_frames").signal.data
    empty = {(int(t), int(k)) for k, t in np.argwhere(~data.any((0, 1)))}
    assert empty == {(2, k) for k in range(5)} | {(9, k) for k in range(5)} | {(12, 1), (12, 2)}


def test_an_unsteady_start_is_bright_and_settles():
    level = situation("unsteady_start", snr=np.inf, jumps=0, drift_mm=0.0).signal.data.mean((0, 1, 2))
    assert (np.diff(level[:4]) < 0).all() and level[0] > 1.3 * level[3]
    assert level[3] == pytest.approx(level[4], rel=1e-3)


def test_an_early_arrival_leaves_no_baseline_and_uneven_times_increase():
    assert situation("early_arrival").facts["arrival_s"] < 2 * 1.5
    steps = np.diff(situation("uneven_times").signal.frame_times_s)
    assert steps.min() > 0 and np.ptp(steps) > 0.5


def test_a_situation_of_motion_moves_more_than_a_voxel_and_the_usual_patient_does_not_stand_still_for_ever():
    assert situation("motion").facts["motion_mm_max"] > 5
    assert 0.2 < np.mean([drawn_values(seed, {})["drift_mm"] > 0 for seed in range(200)]) < 0.6


def test_single_voxels_are_curves_of_their_own_parameters():
    cbf, mtt, delay = np.array([10.0, 60.0]), np.array([12.0, 4.0]), np.array([-3.0, 15.0])
    pair = voxel_phantom(cbf, mtt, delay, residue="box")
    for i in range(2):
        one = voxel_phantom(cbf[i], mtt[i], delay[i], residue="box")
        assert relaxation(pair)[i] == pytest.approx(relaxation(one)[0], abs=1e-3)
    assert pair.truth["cbv"].ravel() == pytest.approx([2.0, 4.0])
    assert pair.signal.data.shape == (2, 1, 1, 60) and pair.arterial == ArterialInput()


def test_voxels_of_one_snr_have_that_noise_and_leak_against_those_that_do_not():
    phantom = voxel_phantom(np.full(500, 60.0), 4.0, snr=40.0, seed=1)
    assert phantom.signal.data[..., :8].std() == pytest.approx(750 / 40, rel=0.05)
    leaky, tight = (relaxation(voxel_phantom([60.0, 30.0], 4.0, k2=[0.0, k2]))[:, 0, 0] for k2 in (0.01, 0.0))
    outside = np.append(0, np.cumsum(1.5 * (tight[0, 1:] + tight[0, :-1]) / 2))
    assert leaky[0] == pytest.approx(tight[0]) and leaky[1] == pytest.approx(tight[1] - 0.01 * outside, abs=0.02)


def test_gamma_voxels_take_any_shape():
    sharp, flat = (voxel_phantom(60.0, 8.0, residue="gamma", residue_alpha=alpha) for alpha in (20.0, 1.0))
    usual = voxel_phantom(60.0, 8.0)
    assert relaxation(flat) == pytest.approx(relaxation(usual), abs=0.02)
    assert relaxation(sharp).max() > 1.1 * relaxation(usual).max()
