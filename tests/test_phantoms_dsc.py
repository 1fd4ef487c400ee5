"""Laws of the DSC digital reference object."""

import numpy as np
import pytest
from scipy.integrate import quad

from reperfuse.phantoms.artery import ArterialInput, arterial_concentration
from reperfuse.phantoms.dsc import K_ARTERY, dsc_phantom, vendor_tmax
from reperfuse.phantoms.fields import rician, smooth_field
from reperfuse.phantoms.head import TISSUES
from reperfuse.phantoms.kinetics import RESIDUES, residue_tmax, tissue_concentration

SMALL = {"shape": (32, 32, 6), "n_frames": 60}
ONE = np.ones(1)


@pytest.fixture(scope="module")
def phantom():
    return dsc_phantom(**SMALL, seed=3, snr=40.0)


@pytest.fixture(scope="module")
def clean():
    return dsc_phantom(**SMALL, seed=3, snr=np.inf)


@pytest.fixture(scope="module")
def healthy():
    return dsc_phantom(**SMALL, seed=3, snr=np.inf, lesion=False)


def curve(cbf=60.0, mtt=4.0, delay=0.0, times=None, **keywords):
    times = np.arange(0, 90, 1.5) if times is None else times
    return tissue_concentration(cbf * ONE, mtt * ONE, delay * ONE, times, arterial_concentration, **keywords)[0]


@pytest.mark.parametrize("residue", sorted(RESIDUES))
@pytest.mark.parametrize("cbf, cbv", [(60.0, 4.0), (15.0, 2.5), (5.0, 0.8)])
def test_area_under_the_tissue_curve_is_cbv_times_the_area_of_the_aif(residue, cbf, cbv):
    times = np.arange(0, 800.0)
    c = curve(cbf, 60 * cbv / cbf, 3.3, times, residue=residue, step_s=0.5)
    # A Lorentzian residue has a tail 1/t²: a window of 800 s still misses a little of it.
    tolerance = 0.01 if residue == "lorentzian" else 1e-3
    assert 100 * c.sum() / arterial_concentration(times).sum() == pytest.approx(cbv, rel=tolerance)


@pytest.mark.parametrize("residue", sorted(RESIDUES))
def test_residue_integrals_start_at_zero_with_slope_one_and_end_at_mtt(residue):
    q = RESIDUES[residue](np.array([0.0, 1e-4, 1e7]), np.array([5.0]))
    assert q == pytest.approx([0, 1e-4, 5.0], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("residue", sorted(RESIDUES))
@pytest.mark.parametrize("frames", [-2, 3])
def test_a_delay_of_whole_frames_shifts_the_curve_by_as_many_frames(residue, frames):
    early, late = curve(residue=residue), curve(residue=residue, delay=frames * 1.5)
    shifted = np.roll(late, -frames)[3:-3]
    assert shifted == pytest.approx(early[3:-3], abs=2e-4 * float(early.max()))


def test_tissue_curve_equals_adaptive_quadrature_of_the_convolution_integral():
    times = np.array([18.0, 22.5, 27.0, 40.5])

    def integral(t):
        return quad(lambda u: arterial_concentration(t - u) * np.exp(-(u - 2.7) / 6.0), 2.7, t, limit=200)[0]

    expected = [30.0 / 6000 * integral(t) for t in times]
    assert curve(30.0, 6.0, 2.7, times) == pytest.approx(expected, abs=1e-3 * max(expected))


def test_half_the_step_changes_nothing_that_matters():
    assert curve(delay=1.23, step_s=0.05) == pytest.approx(curve(delay=1.23), abs=1e-3 * float(curve().max()))


def test_tissue_curve_is_linear_in_flow_and_dispersion_keeps_its_area():
    assert curve(cbf=20.0) * 3 == pytest.approx(curve(cbf=60.0), rel=1e-5)
    times = np.arange(0, 400, 1.5)
    dispersed = curve(times=times, dispersion_s=3.0)
    assert dispersed.sum() == pytest.approx(curve(times=times).sum(), rel=1e-3)
    assert dispersed.max() < 0.9 * curve().max()


def test_tmax_moves_with_delay_one_to_one_and_grows_with_transit_time():
    mtt = np.array([2.0, 4.0, 8.0, 16.0])
    at_once = residue_tmax(mtt, 0 * mtt)
    assert residue_tmax(mtt, 0 * mtt + 5) - 5 == pytest.approx(at_once)
    assert (np.diff(at_once) > 0).all() and (at_once > 0).all()


def test_tmax_at_infinite_bandwidth_is_the_delay_and_of_a_box_is_its_middle():
    assert residue_tmax(4 * ONE, 2 * ONE, sigma_s=0.1)[0] == pytest.approx(2.0, abs=0.3)
    assert residue_tmax(4 * ONE, 2 * ONE, residue="box")[0] == pytest.approx(4.0, abs=0.05)


def test_tmax_of_an_exponential_solves_its_own_equation():
    # d/dt (R ⊗ g)(t) = 0  <=>  g(t) = (R ⊗ g)(t) / MTT, for R = exp(−t/MTT).
    t, mtt, sigma = float(residue_tmax(6 * ONE, 0 * ONE, sigma_s=1.6)[0]), 6.0, 1.6

    def g(x):
        return np.exp(-0.5 * (x / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))

    seen = quad(lambda u: np.exp(-u / mtt) * g(t - u), 0, 60)[0]
    assert g(t) == pytest.approx(seen / mtt, rel=0.01)


def test_same_seed_gives_the_same_bytes_and_another_seed_others(phantom):
    again, other = dsc_phantom(**SMALL, seed=3, snr=40.0), dsc_phantom(**SMALL, seed=4, snr=40.0)
    assert phantom.signal.data.tobytes() == again.signal.data.tobytes()
    assert all(phantom.truth[key].tobytes() == again.truth[key].tobytes() for key in phantom.truth)
    assert phantom.signal.data.tobytes() != other.signal.data.tobytes()


def test_noise_free_baseline_is_s0_everywhere(clean):
    assert np.array_equal(clean.signal.data[..., 0], clean.truth["s0"])


def test_noise_free_signal_of_an_artery_is_that_of_the_aif(clean):
    artery = clean.truth["tissue"] == TISSUES["artery"]
    relative = clean.signal.data[artery] / clean.truth["s0"][artery][:, None]
    assert artery.sum() >= 10
    assert relative == pytest.approx(np.broadcast_to(np.exp(-0.03 * K_ARTERY * clean.aif), relative.shape), rel=1e-4)


def test_noise_free_signal_of_the_sinus_is_that_of_the_vof(clean):
    vein = clean.truth["tissue"] == TISSUES["vein"]
    relative = clean.signal.data[vein] / clean.truth["s0"][vein][:, None]
    assert relative == pytest.approx(np.broadcast_to(np.exp(-0.03 * clean.vof_delta_r2star), relative.shape), rel=1e-4)
    assert clean.aif_delta_r2star == pytest.approx(K_ARTERY * clean.arterial(clean.signal.frame_times_s))


def test_demo_patients_keep_the_transport_function_they_were_made_with():
    truth = dsc_phantom(**SMALL, seed=3, dispersion_s=1.0).truth
    lesion = truth["lesion"] > 0
    how = {"dispersion_s": 1.0, "transport": "cellwise"}
    assert truth["tmax"][lesion] == pytest.approx(residue_tmax(truth["mtt"][lesion], truth["delay"][lesion], **how))


def test_another_arterial_input_leaves_the_patient_as_it_was(clean):
    late = dsc_phantom(**SMALL, seed=3, snr=np.inf, aif=ArterialInput("injection", arrival_s=25.0))
    assert all(np.array_equal(late.truth[key], clean.truth[key]) for key in clean.truth)
    assert late.facts["arrival_s"] == 25.0 and late.aif.argmax() > clean.aif.argmax() + 4


def test_agent_is_scaled_by_the_dose_and_no_dose_is_no_bolus():
    none, half, full = (
        dsc_phantom(**SMALL, seed=3, snr=np.inf, aif=ArterialInput(dose=dose)).signal.data for dose in (0.0, 0.5, 1.0)
    )
    assert np.ptp(none, axis=-1).max() == 0
    inside = none[..., 0] > 0
    assert np.sqrt(none[inside] * full[inside]) == pytest.approx(half[inside], rel=1e-4)


def test_motion_lost_frames_and_an_unsteady_start_leave_truth_and_noise_alone(phantom):
    trajectory = np.zeros((60, 6))
    trajectory[30:, 0] = 4.0
    ill = dsc_phantom(**SMALL, seed=3, snr=40.0, trajectory=trajectory, unsteady_frames=2, missing=(7, (9, 1)))
    assert all(np.array_equal(ill.truth[key], phantom.truth[key]) for key in phantom.truth)
    untouched = [k for k in range(2, 30) if k not in (7, 9)]
    assert np.array_equal(ill.signal.data[..., untouched], phantom.signal.data[..., untouched])
    assert not ill.signal.data[..., 7].any() and not ill.signal.data[:, :, 1, 9].any()
    assert ill.signal.data[..., 0].mean() > 1.3 * phantom.signal.data[..., 0].mean()
    assert ill.displacement_mm[29] == 0 and ill.displacement_mm[30] == pytest.approx(4.0)


def test_measured_snr_is_the_snr_asked_for(phantom):
    solid = np.isin(phantom.truth["tissue"], (TISSUES["grey"], TISSUES["white"]))
    baseline = phantom.signal.data[solid][:, :8]
    sigma = np.sqrt(baseline.var(1, ddof=1).mean())
    assert phantom.truth["s0"][solid].mean() / sigma == pytest.approx(40, rel=0.05)
    assert sigma == pytest.approx(phantom.sigma, rel=0.05)


def test_rician_noise_is_never_negative_and_lifts_air(phantom):
    air = phantom.signal.data[phantom.truth["tissue"] == TISSUES["outside"]]
    assert phantom.signal.data.min() >= 0
    assert air.mean() == pytest.approx(phantom.sigma * np.sqrt(np.pi / 2), rel=0.02)
    assert (rician(np.zeros(1000, np.float32), 1.0, np.random.default_rng(0)) >= 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_core_lies_in_lesion_lies_in_brain_of_one_hemisphere(seed):
    truth = dsc_phantom((32, 32, 8), 8, seed=seed).truth
    core, lesion, brain = (truth[key] > 0 for key in ("core", "lesion", "brain"))
    assert core.any() and (core <= lesion).all() and (lesion <= brain).all() and (lesion & ~core).any()
    columns = np.flatnonzero(lesion.any((1, 2)))
    assert columns.max() < 16 or columns.min() >= 16


def test_core_has_less_than_30_percent_of_its_normal_flow_and_the_penumbra_more(clean, healthy):
    ratio = clean.truth["cbf"] / np.maximum(healthy.truth["cbf"], 1e-6)
    core, penumbra = clean.truth["core"] > 0, (clean.truth["lesion"] > 0) & (clean.truth["core"] == 0)
    assert ratio[core].max() < 0.30 < ratio[penumbra].min()
    assert ratio[penumbra].max() < 0.85


@pytest.mark.parametrize("seed", range(6))
def test_delays_of_core_and_penumbra_stay_in_their_ranges(seed):
    truth = dsc_phantom((32, 32, 8), 8, seed=seed).truth
    core, penumbra = truth["core"] > 0, (truth["lesion"] > 0) & (truth["core"] == 0)
    delay = truth["delay"]
    assert delay[core].min() >= 6 and delay[core].max() <= 12
    assert delay[penumbra].min() >= 4 and delay[penumbra].max() <= 9


def test_transit_is_prolonged_in_the_penumbra(clean, healthy):
    penumbra = (clean.truth["lesion"] > 0) & (clean.truth["core"] == 0)
    assert (clean.truth["mtt"][penumbra] > 1.2 * healthy.truth["mtt"][penumbra]).all()


def test_mtt_is_cbv_over_cbf_and_maps_are_finite_and_zero_outside(clean):
    truth = clean.truth
    perfused = truth["cbf"] > 0
    assert truth["mtt"][perfused] == pytest.approx(60 * truth["cbv"][perfused] / truth["cbf"][perfused], rel=1e-4)
    outside = np.isin(truth["tissue"], [TISSUES[name] for name in ("outside", "skull", "scalp")])
    for key in ("cbf", "cbv", "mtt", "delay", "tmax"):
        assert np.isfinite(truth[key]).all() and not truth[key][outside].any()


def test_only_a_lesion_arrives_later_than_six_seconds(clean, healthy):
    brain, lesion = clean.truth["brain"] > 0, clean.truth["lesion"] > 0
    late = (clean.truth["tmax"] > 6) & brain
    assert not healthy.truth["lesion"].any() and healthy.truth["tmax"].max() < 6
    assert 2 * (late & lesion).sum() / (late.sum() + lesion.sum()) > 0.9


@pytest.mark.parametrize("shape", [(40, 32, 5), (20, 24, 3), (64, 64, 2)])
def test_any_grid_holds_a_head_with_arteries_and_a_vein(shape):
    tissue = dsc_phantom(shape, 4, seed=1).truth["tissue"]
    assert tissue.shape == shape and set(np.unique(tissue)) >= {0, 1, 2, 3, 4, 5}


def test_vendors_tmax_is_truth_with_mild_noise_in_steps_and_zero_outside(phantom):
    shown = vendor_tmax(phantom, seed=1).data
    tissue = phantom.truth["cbf"] > 0
    assert not shown[~tissue].any() and shown.min() >= 0
    assert np.abs(shown * 10 - np.rint(shown * 10)).max() < 1e-4
    assert np.abs(shown - phantom.truth["tmax"])[tissue].mean() < 0.2


def test_smooth_field_has_mean_zero_and_variance_one_over_draws():
    draws = np.stack([smooth_field((12, 10), (2.0, 2.0), 5.0, np.random.default_rng(s)) for s in range(2000)])
    assert np.abs(draws.mean(0)).max() < 0.1
    assert draws.var(0) == pytest.approx(1, abs=0.15)
