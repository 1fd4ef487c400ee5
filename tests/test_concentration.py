import nibabel as nib
import numpy as np
import pytest
from dsc_curves import artery, frame_times, shared_data, tissue

from reperfuse.errors import InputError
from reperfuse.perfusion import concentration
from reperfuse.perfusion.bolus import NoBaseline, NoBolus, outlier_frames
from reperfuse.perfusion.concentration import (
    baseline_frames,
    bolus_arrival,
    delta_r2star,
    first_pass,
    integrated,
    mean_curve,
    negative_areas,
    noise_sigma,
    reliable_ceiling,
    unsteady_frames,
)
from reperfuse.phantoms.drawn import drawn_phantom

TE = 0.03
TIMES = frame_times()
RATE = 25 * tissue(TIMES, cbf=60) / tissue(TIMES, cbf=60).max()  # ΔR2* of grey matter, peak 25 1/s


def signal_of(rate, s0=800.0):
    return s0 * np.exp(-TE * rate)


def noisy(signal, snr, seed=0):
    """Rician noise of S0/σ = snr."""
    sigma = signal[..., :1] / snr
    real, imaginary = np.random.default_rng(seed).normal(size=(2, *signal.shape))
    return np.hypot(signal + sigma * real, sigma * imaginary)


def test_the_rate_is_recovered_from_its_signal():
    rates = np.stack([RATE, 2 * RATE, 0 * RATE])
    np.testing.assert_allclose(delta_r2star(signal_of(rates), TE), rates, atol=0.02)


def test_the_scanner_gain_of_each_voxel_vanishes():
    signal = signal_of(np.stack([RATE, RATE]))
    gain = np.array([[1.0], [731.0]])
    np.testing.assert_allclose(delta_r2star(gain * signal, TE), delta_r2star(signal, TE), atol=1e-3)


def test_twice_the_echo_time_halves_the_rate():
    np.testing.assert_allclose(delta_r2star(signal_of(RATE), 2 * TE), delta_r2star(signal_of(RATE), TE) / 2, atol=1e-4)


@pytest.mark.parametrize("arrival", [6.0, 15.0, 30.0])
@pytest.mark.parametrize("dt", [1.0, 1.5, 3.0])
def test_the_bolus_is_found_within_a_frame_of_where_the_tissue_fills(arrival, dt):
    times = frame_times(int(90 / dt), dt)
    rate = tissue(times, arrival=arrival)
    rate = 12 * rate / rate.max()
    found = bolus_arrival(signal_of(rate)) * dt
    assert arrival <= found <= arrival + 2 + dt


@pytest.mark.parametrize("snr", [30, 100, 1000])
def test_noise_moves_the_bolus_by_a_frame_or_two_at_most(snr):
    clean = bolus_arrival(signal_of(RATE))
    found = [bolus_arrival(noisy(signal_of(RATE), snr, seed)) for seed in range(20)]
    assert max(abs(frame - clean) for frame in found) <= 2


@pytest.mark.parametrize("dt", [1.0, 1.5, 3.0, 5.0])
def test_the_baseline_ends_before_the_first_artery(dt):
    times = frame_times(int(90 / dt), dt)
    rate = tissue(times, arrival=20.0, delay=1.0)
    frames = baseline_frames(signal_of(20 * rate / rate.max()))
    assert artery(times, arrival=20.0)[frames].max() < 0.1
    assert frames.stop - frames.start >= 3


def test_frames_before_the_series_delay_everything_by_as_much():
    signal = noisy(signal_of(RATE), 100)
    longer = np.concatenate([signal[:4], signal])
    assert bolus_arrival(longer) == bolus_arrival(signal) + 4
    assert baseline_frames(longer).stop == baseline_frames(signal).stop + 4


@pytest.mark.parametrize("spoilt", [3.0, 1.3, 0.8, 0.2])
@pytest.mark.parametrize("frame", [0, 5, int(RATE.argmax()), 30])
def test_one_bad_frame_does_not_move_the_bolus(frame, spoilt):
    signal = signal_of(RATE)
    signal[frame] *= spoilt
    assert bolus_arrival(signal) == bolus_arrival(signal_of(RATE))
    assert unsteady_frames(signal) == (frame == 0)


@pytest.mark.parametrize("drift", [-0.06, 0.06])
@pytest.mark.parametrize("arrival", [6.0, 15.0, 40.0])
def test_a_drift_of_six_percent_moves_the_bolus_by_a_frame_at_most(arrival, drift):
    rate = tissue(TIMES, arrival=arrival)
    signal = signal_of(10 * rate / rate.max())
    assert abs(bolus_arrival(signal * np.linspace(1, 1 + drift, 60)) - bolus_arrival(signal)) <= 1


@pytest.mark.parametrize("bright", [0, 2])
def test_two_frames_are_baseline_enough_even_after_bright_ones(bright):
    signal = np.concatenate([[160.0, 120][:bright], [100, 100, 92, 70, 55, 62, 75, 84, 90, 93, 94, 94]])
    assert unsteady_frames(signal) == bright
    assert bolus_arrival(signal) == bright + 2
    assert baseline_frames(signal) == slice(bright, bright + 2)


def test_a_bolus_of_three_frames_at_five_seconds_is_found():
    signal = np.array([100.0, 101, 99, 100, 75, 60, 80, 96, 97, 97, 98, 97, 97, 98])
    assert bolus_arrival(signal) == 4
    assert baseline_frames(signal) == slice(0, 3)


def test_missing_frames_nan_and_negative_samples_do_not_move_the_bolus():
    signal = np.tile(signal_of(RATE), (200, 1))
    signal[:, [3, 12]] = 0
    random = np.random.default_rng(0)
    for bad in (np.nan, np.inf, -50.0):
        signal[random.random(signal.shape) < 0.02] = bad
    assert abs(bolus_arrival(mean_curve(signal)) - bolus_arrival(signal_of(RATE))) <= 1


@pytest.mark.parametrize("seed", range(8))
def test_on_patients_of_all_kinds_the_bolus_is_found_within_a_frame(seed):
    still = {"jumps": 0, "drift_mm": 0.0}
    noisy_one = drawn_phantom(seed, (24, 24, 4), **still)
    brain = noisy_one.truth["brain"] > 0
    clean = drawn_phantom(seed, (24, 24, 4), snr=np.inf, **still).signal.data[brain].mean(axis=0)
    drop = -np.log(clean / clean[:2].mean())
    assert abs(bolus_arrival(mean_curve(noisy_one.signal.data[brain])) - np.argmax(drop > 0.05 * drop.max())) <= 1


@pytest.mark.parametrize("bright", [0, 1, 4])
@pytest.mark.parametrize("arrival", [10.5, 15.0, 30.0])
def test_frames_before_steady_state_are_found_left_out_and_zero(bright, arrival):
    rate = 5 * np.interp(TIMES - arrival + 15, TIMES, RATE)
    signal = signal_of(rate)
    signal[:bright] *= 1 + np.array([0.6, 0.3, 0.15, 0.06])[:bright]
    assert unsteady_frames(signal) == bright
    assert baseline_frames(signal).start == bright
    np.testing.assert_allclose(delta_r2star(signal, TE), rate, atol=0.05)


def test_a_short_baseline_is_not_taken_for_unsteady_frames():
    times = frame_times(40, 1.5)
    rate = tissue(times, arrival=3.0)
    assert unsteady_frames(signal_of(20 * rate / rate.max())) == 0


def test_a_frame_filled_with_zeros_is_interpolated():
    signal = signal_of(np.stack([RATE, 2 * RATE]))
    signal[0, 20] = 0
    expected = np.interp(TIMES[20], TIMES[[19, 21]], signal_of(RATE)[[19, 21]])
    found = delta_r2star(signal, TE)
    assert found[0, 20] == pytest.approx(-np.log(expected / 800) / TE, rel=1e-3)
    np.testing.assert_allclose(found[1], 2 * RATE, atol=0.02)


def test_gaps_are_filled_alike_whatever_their_pattern(monkeypatch):
    signal = np.tile(signal_of(RATE), (50, 1))
    gaps = np.random.default_rng(0).random(signal.shape) < 0.2
    signal[gaps] = np.nan
    found = delta_r2star(signal, TE, baseline=slice(0, 9))
    for one, gap, rate in zip(signal, gaps, found, strict=True):
        filled = np.interp(TIMES, TIMES[~gap], one[~gap])
        np.testing.assert_allclose(rate, -np.log(filled / filled[:9].mean()) / TE, atol=2e-3)
    monkeypatch.setattr(concentration, "CHUNK_VOXELS", 7)
    np.testing.assert_array_equal(delta_r2star(signal, TE, baseline=slice(0, 9)), found)


def test_a_voxel_that_was_not_measured_in_the_baseline_is_zero():
    signal = signal_of(np.stack([RATE, RATE]))
    signal[0, :9] = 0
    assert (delta_r2star(signal, TE, baseline=slice(2, 9))[0] == 0).all()


@pytest.mark.parametrize("bad", [0.0, -5.0, np.nan, np.inf, -np.inf])
def test_nothing_infinite_comes_out(bad):
    signal = signal_of(np.stack([RATE] * 4))
    signal[1, 5:9] = bad
    signal[2, :] = bad
    signal[3, ::2] = bad
    found = delta_r2star(signal, TE, baseline=slice(0, 9))
    assert np.isfinite(found).all()
    assert (found[2] == 0).all()
    np.testing.assert_allclose(found[0], RATE, atol=0.02)


def test_at_the_noise_floor_the_rate_is_capped():
    signal = signal_of(10 * RATE)
    assert delta_r2star(signal, TE, baseline=slice(0, 9)).max() == pytest.approx(np.log(50) / TE, rel=1e-4)


def test_noise_does_not_lift_the_rate_until_the_signal_is_in_the_noise():
    snr, n = 10, 40_000
    curves = delta_r2star(noisy(np.tile(signal_of(RATE), (n, 1)), snr), TE, baseline=slice(0, 9))
    # The standard error of the mean is 0.02 1/s at baseline; S0 from an arithmetic mean would be 0.15 1/s off.
    np.testing.assert_allclose(curves.mean(axis=0)[9:], RATE[9:], atol=0.08)


def test_a_ceiling_is_reached_and_not_passed():
    found = delta_r2star(signal_of(np.stack([RATE, RATE])), TE, baseline=slice(0, 9), ceiling=[5.0, 100.0])
    np.testing.assert_allclose(found, np.minimum(np.stack([RATE, RATE]), [[5.0], [100.0]]), atol=0.02)


def test_a_plain_array_in_any_shape_gives_float32_in_the_same_shape():
    signal = np.broadcast_to(signal_of(RATE).astype(np.int16), (2, 3, 4, 60))
    found = delta_r2star(signal, TE)
    assert found.shape == signal.shape and found.dtype == np.float32


@pytest.mark.parametrize("te", [0, -0.03, 30, np.nan])
def test_an_echo_time_that_is_not_in_seconds_is_refused(te):
    with pytest.raises(InputError, match="seconds"):
        delta_r2star(signal_of(RATE), te)


@pytest.mark.parametrize(
    ("words", "curve"),
    [
        ("No contrast bolus", np.full(40, 500.0)),
        ("No contrast bolus", 500 + np.random.default_rng(1).normal(0, 10, 60)),
        ("no signal", np.zeros(40)),
        ("too few", [100.0, 60, 80]),
        ("no baseline", signal_of(30 * artery(frame_times(), arrival=-3.0))),
    ],
)
def test_a_series_without_a_usable_bolus_is_refused(words, curve):
    with pytest.raises(InputError, match=words):
        baseline_frames(curve)


def test_noise_alone_is_hardly_ever_taken_for_a_bolus():
    def taken(seed):
        try:
            bolus_arrival(500 + np.random.default_rng(seed).normal(0, 8, 60))
        except InputError:
            return False
        return True

    assert sum(taken(seed) for seed in range(100)) <= 2


def test_the_noise_is_found_from_few_frames_and_many_voxels():
    sigma = noise_sigma(noisy(np.full((2000, 40), 800.0), 40), slice(2, 7))
    np.testing.assert_allclose(sigma, 20, rtol=0.05)


def test_the_noise_scales_with_the_signal_and_ignores_drift():
    signal = noisy(np.full((300, 40), 800.0), 40)
    sigma = noise_sigma(signal, slice(0, 8))
    np.testing.assert_allclose(noise_sigma(7 * signal, slice(0, 8)), 7 * sigma, rtol=1e-3)
    drifting = signal + np.linspace(0, 100, 40)
    np.testing.assert_allclose(noise_sigma(drifting, slice(0, 8)), sigma, rtol=0.05)


def test_noise_that_differs_between_voxels_is_not_averaged_away():
    signal = np.concatenate([noisy(np.full((500, 60), 800.0), 160, 1), noisy(np.full((500, 60), 800.0), 20, 2)])
    sigma = noise_sigma(signal, slice(0, 15))
    assert np.median(sigma[:500]) == pytest.approx(5, rel=0.2)
    assert np.median(sigma[500:]) == pytest.approx(40, rel=0.2)


def test_air_gets_the_noise_of_the_head():
    head, air = np.full((500, 40), 800.0), np.zeros((500, 40))
    random = np.random.default_rng(3).normal(0, 20, (2, 1000, 40))
    signal = np.hypot(np.concatenate([head, air]) + random[0], random[1])
    np.testing.assert_allclose(noise_sigma(signal, slice(0, 8)), 20, rtol=0.1)


def test_a_baseline_of_two_frames_still_tells_the_noise():
    signal = noisy(np.tile(signal_of(RATE), (2000, 1)), 40)
    np.testing.assert_allclose(noise_sigma(signal, slice(0, 2)), 20, rtol=0.25)


def test_a_series_without_noise_has_none_and_bad_samples_do_not_make_any():
    signal = np.tile(signal_of(RATE), (5, 1))
    signal[0], signal[1, 3], signal[2, 4] = 0, np.nan, np.inf
    np.testing.assert_allclose(noise_sigma(signal, slice(0, 9)), 0, atol=0.05)
    assert np.isfinite(noise_sigma(noisy(signal, 30), slice(0, 9))).all()


def test_the_ceiling_rises_with_signal_and_falls_with_noise():
    signal = np.array([[100.0], [200.0], [400.0]]) * np.ones(20)
    low, high = (reliable_ceiling(signal, TE, slice(0, 8), sigma=s) for s in (20.0, 10.0))
    np.testing.assert_allclose(low, np.log(signal[:, 0] / 40) / TE, rtol=1e-5)
    np.testing.assert_allclose(high - low, np.log(2) / TE, rtol=1e-4)


def test_the_ceiling_of_a_voxel_that_is_noise_is_zero_and_of_one_without_noise_the_cap():
    signal = np.array([[15.0], [800.0], [0.0]]) * np.ones(20)
    expected = [0, np.log(50) / TE, 0]
    np.testing.assert_allclose(reliable_ceiling(signal, TE, slice(0, 8), sigma=[10.0, 0.0, 10.0]), expected, rtol=1e-5)


@pytest.mark.parametrize(("peak", "saturated"), [(60.0, False), (90.0, False), (130.0, True), (200.0, True)])
def test_an_artery_is_above_its_ceiling_exactly_where_its_signal_is_lost_in_the_noise(peak, saturated):
    rate = peak * artery(TIMES)
    signal = noisy(np.tile(signal_of(rate), (200, 1)), 40)
    curve = delta_r2star(signal, TE, baseline=slice(0, 9)).mean(axis=0)
    ceiling = reliable_ceiling(signal, TE, slice(0, 9)).mean()  # ln(20)/TE = 99.9 1/s
    assert (curve.max() > ceiling) == saturated
    assert saturated == (curve.max() < 0.95 * rate.max())


def returning(times, fraction, late=16.0):
    """Mean tissue of a first pass, and the same with a broader second one."""
    first = tissue(times, arrival=12.0, mtt=4.0)
    return first, first + fraction * tissue(times, arrival=12.0 + late, scale=3.0) / 2


@pytest.mark.parametrize("dt", [1.0, 1.5, 2.0, 3.0, 5.0])
def test_the_first_pass_holds_its_area_and_little_of_what_returns(dt):
    first, both = returning(frame_times(int(90 / dt), dt), 0.4)
    found = first_pass(both)
    assert integrated(both, dt, found) == pytest.approx(integrated(first, dt), rel=0.12)
    assert found.stop < both.size


@pytest.mark.parametrize("dt", [1.0, 1.5, 3.0, 5.0])
@pytest.mark.parametrize("mtt", [3.0, 6.0])
def test_without_recirculation_the_first_pass_ends_with_the_series(dt, mtt):
    curve = tissue(frame_times(int(90 / dt), dt), arrival=12.0, mtt=mtt)
    assert first_pass(curve).stop == curve.size


def test_the_first_pass_begins_at_the_arrival():
    assert first_pass(delta_r2star(signal_of(RATE), TE)).start == pytest.approx(bolus_arrival(signal_of(RATE)), abs=1)


def test_the_first_pass_does_not_depend_on_the_unit():
    _, both = returning(TIMES, 0.4)
    assert first_pass(1000 * both) == first_pass(both)


def test_a_second_bolus_is_kept_out_by_the_trough_before_it():
    rate = artery(TIMES, arrival=10.0) + 0.8 * artery(TIMES, arrival=40.0)
    assert TIMES[first_pass(rate).stop - 1] == pytest.approx(40, abs=12)
    assert TIMES[first_pass(rate).stop - 1] <= 40


@pytest.mark.parametrize("spoilt", [0.0, -5.0])
def test_a_spoilt_peak_does_not_spoil_the_first_pass(spoilt):
    _, both = returning(TIMES, 0.4)
    expected = first_pass(both)
    both[both.argmax()] = spoilt
    assert abs(first_pass(both).start - expected.start) <= 1
    assert abs(first_pass(both).stop - expected.stop) <= 2


@pytest.mark.parametrize("curve", [np.zeros(20), -np.ones(20), np.full(20, np.nan), np.ones(3)])
def test_a_curve_without_a_bolus_has_no_first_pass(curve):
    with pytest.raises(InputError):
        first_pass(curve)


def test_a_spoilt_frame_outside_the_bolus_stands_out_by_itself():
    signal = signal_of(RATE)
    for frame, factor in [(3, 0.02), (3, 1.6), (40, 0.3), (55, 2.0), (59, 0.1), (24, 3.0)]:
        spoilt = signal.copy()
        spoilt[frame] *= factor
        assert np.flatnonzero(outlier_frames(spoilt)).tolist() == [frame]
    assert not outlier_frames(signal).any() and not outlier_frames(np.full(4, 9.0)).any()
    signal[3] *= 0.8  # less than the bolus is deep
    assert not outlier_frames(signal).any()


def test_a_bolus_seen_in_one_frame_alone_is_no_spoilt_frame():
    once = np.r_[np.zeros(10), 0.01, 1.0, 0.05, 0.04, 0.03, 0.04, 0.03, 0.02, np.full(10, 0.01)]
    assert not outlier_frames(100 * np.exp(-once)).any()


def test_no_bolus_of_an_ordinary_or_of_the_narrowest_kind_is_a_spoilt_frame():
    narrow = {"tr_s": 5.0, "aif_width_s": 2.0, "injection_s": 3.0, "recirculation": 0.05, "dispersion_s": 0.0}
    for seed in range(9000, 9006):
        for fixed in ({}, {"tr_s": 5.0}, narrow | {"grey_mtt": 2.5, "late_mtt_s": 6.0}):
            phantom = drawn_phantom(seed, (12, 12, 3), **fixed)
            assert not outlier_frames(mean_curve(phantom.signal.data[phantom.truth["brain"] > 0])).any(), (seed, fixed)


def test_a_missing_bolus_and_a_missing_baseline_are_errors_of_their_own():
    with pytest.raises(NoBolus):
        baseline_frames(np.full(60, 500.0))
    with pytest.raises(NoBaseline):
        baseline_frames(signal_of(RATE)[16:])


def test_noise_makes_no_area_negative_and_drift_does():
    rng = np.random.default_rng(0)
    rates = 0.3 * RATE / RATE.max() + rng.normal(0, 2.0, (2000, 60))
    rates -= rates[:, :9].mean(axis=1, keepdims=True)
    assert (rates.sum(axis=1) < 0).mean() > 0.2 and negative_areas(rates, 2.0, slice(0, 9)) < 0.01
    assert negative_areas(rates - np.linspace(0, 8, 60), np.full(2000, 2.0), slice(0, 9)) > 0.8


def test_areas_add_over_windows_and_scale_with_curve_and_interval():
    curves = np.stack([RATE, 2 * RATE])
    whole = integrated(curves, 1.5)
    np.testing.assert_allclose(
        integrated(curves, 1.5, slice(0, 20)) + integrated(curves, 1.5, slice(20, None)), whole, rtol=1e-12
    )
    np.testing.assert_allclose(whole, [integrated(RATE, 1.5), 4 * integrated(RATE, 0.75)], rtol=1e-12)


@pytest.mark.realdata
@pytest.mark.parametrize("cbf", [10, 30, 50, 70])
def test_noise_and_arrival_of_the_public_reference_are_as_it_was_made(cbf):
    folder = shared_data("perfusion/dro_delay_dispersion")
    name = f"St_disp_0_exponential_lvl_high_delay_0_lvl_high_resfunc_gamma_dist_lambda_1_cbf_{cbf}.nii.gz"
    signal = np.asarray(nib.load(folder / name).dataobj).reshape(-1, 161)  # 100 voxels, S0 100, SNR 20
    frames = baseline_frames(mean_curve(signal))
    assert np.median(noise_sigma(signal, frames)) == pytest.approx(5, rel=0.05)
    # The artery fills from 20 s on, frames are 1.243 s apart.
    assert 20 <= 1.243 * bolus_arrival(mean_curve(signal)) <= 23
    assert 1.243 * (frames.stop - 1) <= 20
