import numpy as np
import pytest
from dsc_curves import artery, frame_times, tissue

from reperfuse.errors import InputError
from reperfuse.perfusion.concentration import baseline_frames, bolus_arrival, delta_r2star, unsteady_frames

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


def test_the_baseline_ends_before_the_first_artery():
    assert TIMES[baseline_frames(signal_of(RATE)).stop - 1] <= 15.0


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
