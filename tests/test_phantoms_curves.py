"""Laws of the curves that the arrival network learns from: nothing leaks, and what is drawn is what is stated."""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import lognorm

from reperfuse.evaluation.arrival import CALIBRATION_SEED
from reperfuse.perfusion.concentration import delta_r2star
from reperfuse.phantoms.artery import ARTERIAL_FAMILIES
from reperfuse.phantoms.curves import (
    HELD_OUT,
    SCAN,
    TRAINING,
    Curves,
    Population,
    drawn_curves,
    drawn_residue,
    lognormal_residue,
)
from reperfuse.phantoms.kinetics import RESIDUES
from reperfuse.training.pretrain import SMALL, Recipe

populations = pytest.mark.parametrize("population", [TRAINING, HELD_OUT], ids=lambda population: population.name)


@pytest.fixture(scope="module")
def scans() -> dict[str, list[Curves]]:
    return {population.name: [drawn_curves(population, seed, 16) for seed in range(40)] for population in POPULATIONS}


POPULATIONS = (TRAINING, HELD_OUT)


# ---- nothing leaks ---------------------------------------------------------------------------------------------------
def test_what_networks_are_judged_on_shares_no_artery_and_no_residue_function_with_what_they_learn_from():
    assert set(TRAINING.families).isdisjoint(HELD_OUT.families)
    assert set(TRAINING.residues).isdisjoint(HELD_OUT.residues)
    assert TRAINING.name != HELD_OUT.name
    for population in POPULATIONS:
        assert set(population.families) <= ARTERIAL_FAMILIES.keys()
        assert set(population.residues) <= RESIDUES.keys() | {"gamma", "lognormal"}


def test_no_residue_function_of_the_training_is_a_lognormal_one():
    t, mtt = np.linspace(0, 60, 200)[None, :], np.array([[8.0]])
    rng = np.random.default_rng(0)
    held_out = np.concatenate([drawn_residue(HELD_OUT, rng)(t, mtt) for _ in range(40)])
    for _ in range(40):
        learned = drawn_residue(TRAINING, rng)
        learned = (RESIDUES[learned] if isinstance(learned, str) else learned)(t, mtt)
        assert np.abs(held_out - learned).max(axis=1).min() > 0.02


def test_two_populations_draw_from_different_streams_even_where_all_ranges_agree():
    one, other = (drawn_curves(replace(TRAINING, name=name), 7, 32, tr_s=2.0) for name in ("one", "other"))
    assert not np.intersect1d(one.delay, other.delay).size
    assert not np.intersect1d(one.mtt, other.mtt).size
    assert one.facts["arrival_s"] != other.facts["arrival_s"]


def test_deconvolution_is_calibrated_on_scans_that_no_training_has_seen():
    assert max(recipe.scans for recipe in (Recipe(), SMALL)) <= CALIBRATION_SEED


def test_different_seeds_give_different_arteries_and_the_same_seed_the_same_scan():
    times = np.arange(0, 90, 1.0)
    arteries = [drawn_curves(TRAINING, seed, 1).facts["artery"](times) for seed in range(20)]
    apart = [np.abs(a - b).max() for i, a in enumerate(arteries) for b in arteries[:i]]
    assert min(apart) > 0.02
    one, again = drawn_curves(TRAINING, 3, 8), drawn_curves(TRAINING, 3, 8)
    assert all(np.array_equal(getattr(one, f.name), getattr(again, f.name)) for f in fields(one) if f.name != "facts")


# ---- what is drawn ---------------------------------------------------------------------------------------------------
@populations
def test_draws_lie_in_the_ranges_of_the_population(scans, population):
    for scan in scans[population.name]:
        assert scan.facts["family"] in population.families
        assert 0 <= scan.facts["washout"] <= 1
        for name in SCAN:
            if name == "arrival_s":
                continue
            low, high = getattr(population, name)
            assert low <= scan.facts[name] <= high, name
        slow = (4 * scan.tr_s, 5 * scan.tr_s)
        arrival = scan.facts["arrival_s"]
        assert max(population.arrival_s[0], slow[0]) <= arrival <= max(population.arrival_s[1], slow[1])
        for name, values in (("delay_s", scan.delay), ("mtt_s", scan.mtt), ("cbv", scan.cbv)):
            low, high = getattr(population, name)
            assert (low <= values).all() and (values <= high).all(), name
        dispersed = scan.dispersion[scan.dispersion > 0]
        assert (dispersed <= population.dispersion_s[1]).all()
        assert len(np.unique(scan.dispersion)) <= 4  # one for each block


@populations
def test_draws_are_even_in_the_quantity_or_in_its_logarithm(population):
    rng = np.random.default_rng(0)
    for name in ("delay_s", "mtt_s", "cbv", "tr_s", "snr", "te_s", "alpha"):
        low, high = getattr(population, name)
        middle = np.sqrt(low * high) if name in population.log else (low + high) / 2
        assert (population.draw(rng, name, 20000) < middle).mean() == pytest.approx(0.5, abs=0.015), name


@populations
def test_stated_share_of_the_voxels_is_dispersed(scans, population):
    dispersion = np.concatenate([scan.dispersion for scan in scans[population.name]])
    assert (dispersion > 0).mean() == pytest.approx(population.dispersed_share, abs=0.12)


@populations
def test_series_goes_on_after_the_arrival_for_as_long_as_was_drawn(scans, population):
    for scan in scans[population.name]:
        last = (scan.signal.shape[1] - 1) * scan.tr_s
        after = last - scan.facts["arrival_s"]
        assert scan.facts["after_arrival_s"] <= after < scan.facts["after_arrival_s"] + scan.tr_s + 1e-9
        assert scan.signal.shape == scan.clean.shape == (16, len(scan.aif))


def test_values_that_are_fixed_are_not_drawn():
    scan = drawn_curves(TRAINING, 5, 4, tr_s=2.2, snr=37.0, te_s=0.031)
    assert (scan.tr_s, scan.snr, scan.te_s) == (2.2, 37.0, 0.031)
    assert scan.noise == pytest.approx(1 / (37.0 * 0.031))
    assert scan.aif == pytest.approx(drawn_curves(TRAINING, 5, 4, tr_s=2.2, snr=90.0).aif)


def test_snr_that_is_fixed_changes_the_noise_and_nothing_else():
    clear, dim = (drawn_curves(HELD_OUT, 5, 8, tr_s=2.0, te_s=0.03, snr=snr) for snr in (100.0, 20.0))
    assert np.array_equal(clear.clean, dim.clean) and np.array_equal(clear.delay, dim.delay)
    truth = np.exp(-0.03 * clear.clean)
    assert (dim.signal - truth).std() == pytest.approx(5 * (clear.signal - truth).std(), rel=0.1)


# ---- the curves themselves -------------------------------------------------------------------------------------------
@populations
def test_baseline_ends_before_any_tissue_curve_rises(scans, population):
    for scan in scans[population.name]:
        assert scan.baseline.start == 0 and scan.baseline.stop >= 2
        before = scan.clean[:, scan.baseline].max(axis=1)
        # A Gaussian has no beginning: 0.13 % of it come before its arrival.
        assert (before <= 2e-3 * scan.clean.max(axis=1) + 1e-6).all()
        after = scan.clean[:, scan.baseline.stop :]
        assert (after.max(axis=1) > 100 * before).all()


@populations
def test_artery_of_the_frames_is_the_one_among_the_facts(scans, population):
    for scan in scans[population.name][:10]:
        table = scan.facts["artery"](np.arange(len(scan.aif)) * scan.tr_s)
        assert scan.aif / scan.aif.max() == pytest.approx(table / table.max())


@populations
def test_noise_of_delta_r2star_before_the_bolus_is_what_the_scan_says(population):
    for seed, snr in ((0, 40.0), (1, 120.0)):
        scan = drawn_curves(population, seed, 4000, tr_s=1.0, snr=snr)
        curves = delta_r2star(scan.signal, scan.te_s, baseline=scan.baseline)
        spread = curves[:, scan.baseline].std(axis=1, ddof=1)
        assert np.sqrt(np.square(spread).mean()) == pytest.approx(scan.noise, rel=0.02)


@pytest.mark.parametrize("residues", [("exponential",), ("gamma",), ("box",), ("lognormal",)])
@pytest.mark.parametrize("dispersed_share", [0.0, 1.0])
def test_area_of_a_curve_over_that_of_the_artery_is_the_blood_volume(residues, dispersed_share):
    whole = Population(
        "whole",
        ("gamma_variate",),
        residues,
        recirculation=(0.0, 0.0),
        after_arrival_s=(250.0, 250.0),
        mtt_s=(2.0, 8.0),
        dispersed_share=dispersed_share,
    )
    scan = drawn_curves(whole, 1, 64, tr_s=1.0)
    ratio = scan.clean.sum(axis=1) / scan.aif.sum()
    assert ratio == pytest.approx(scan.cbv / 100, rel=3e-3)


def test_curves_lag_behind_the_artery_by_delay_dispersion_and_half_of_a_box():
    whole = Population(
        "whole",
        ("gamma_variate",),
        ("box",),
        recirculation=(0.0, 0.0),
        after_arrival_s=(150.0, 150.0),
        mtt_s=(2.0, 8.0),
    )
    scan = drawn_curves(whole, 2, 64, tr_s=1.0)
    times = np.arange(len(scan.aif))
    lag = (scan.clean @ times) / scan.clean.sum(axis=1) - (scan.aif @ times) / scan.aif.sum()
    assert lag == pytest.approx(scan.delay + scan.dispersion + scan.mtt / 2, abs=0.05)


def test_delay_shifts_a_curve_and_does_nothing_else():
    still = replace(TRAINING, name="still", families=("gamma_variate",), residues=("exponential",), dispersed_share=0.0)
    still = replace(still, mtt_s=(5.0, 5.0), cbv=(4.0, 4.0))
    prompt, late = (drawn_curves(replace(still, delay_s=(d, d)), 4, 1, tr_s=1.0).clean[0] for d in (0.0, 6.0))
    assert late[6:] == pytest.approx(prompt[:-6], abs=1e-3 * float(prompt.max()))


# ---- the lognormal residue function ----------------------------------------------------------------------------------
@pytest.mark.parametrize("spread", [0.3, 0.6, 1.1])
@pytest.mark.parametrize("mtt", [2.0, 9.0])
def test_lognormal_residue_is_the_integral_of_what_has_not_left_yet(spread, mtt):
    s = np.sqrt(np.log1p(spread**2))
    transit = lognorm(s, scale=mtt * np.exp(-(s**2) / 2))
    assert transit.mean() == pytest.approx(mtt) and transit.std() == pytest.approx(spread * mtt)
    for t in (0.3, 1.0, 4.0, 25.0):
        found = lognormal_residue(spread)(np.array([[t]]), np.array([[mtt]]))[0, 0]
        assert found == pytest.approx(quad(transit.sf, 0, t, limit=200)[0], rel=1e-6)


@pytest.mark.parametrize("spread", [0.3, 1.1])
def test_lognormal_residue_starts_at_nothing_and_ends_at_the_mean_transit_time(spread):
    mtt = np.array([[2.0], [20.0]])
    found = lognormal_residue(spread)(np.array([[-5.0, 0.0, 1e5]]), mtt)
    assert (found[:, :2] == 0).all()
    assert found[:, 2] == pytest.approx(mtt[:, 0], rel=1e-6)
    fine = lognormal_residue(spread)(np.linspace(0, 300, 3001)[None, :], mtt)
    residue = np.diff(fine, axis=1) / 0.1
    assert residue[:, 0] == pytest.approx(1, abs=0.02) and (np.diff(residue, axis=1) <= 1e-9).all()
