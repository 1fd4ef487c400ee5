"""A degraded series has the interval and the noise that were asked for, and nothing else has changed."""

from dataclasses import replace

import numpy as np
import pytest

from reperfuse.imaging.volume import Volume
from reperfuse.perfusion.concentration import baseline_frames, mean_curve, noise_sigma
from reperfuse.phantoms.dsc import DscPhantom, dsc_phantom
from reperfuse.stages.perfusion_resolution import degraded, signal_and_noise, within_reach

SHAPE, TR_S, FRAMES, SNR = (32, 32, 8), 1.0, 80, 70.0


@pytest.fixture(scope="module")
def phantom() -> DscPhantom:
    return dsc_phantom(SHAPE, FRAMES, TR_S, snr=SNR, seed=4)


@pytest.fixture(scope="module")
def clean() -> DscPhantom:
    """The same patient without noise."""
    return dsc_phantom(SHAPE, FRAMES, TR_S, snr=np.inf, seed=4)


@pytest.fixture(scope="module")
def brain(phantom: DscPhantom) -> np.ndarray:
    return phantom.truth["brain"] > 0


def at(phantom: DscPhantom, tr_s: float, snr: float, brain: np.ndarray, **kwargs) -> Volume:
    series = phantom.signal
    return degraded(series, series.frame_times_s, tr_s, snr, brain, **({"seed": 1} | kwargs))


def own_snr(phantom: DscPhantom, brain: np.ndarray) -> float:
    s0, sigma = signal_and_noise(phantom.signal, brain)
    return s0 / sigma


def test_at_its_own_interval_and_noise_a_series_stays_as_it_is(phantom, brain):
    same = at(phantom, TR_S, own_snr(phantom, brain), brain)
    np.testing.assert_array_equal(same.data, phantom.signal.data)
    np.testing.assert_array_equal(same.frame_times_s, phantom.signal.frame_times_s)


def test_noise_is_never_taken_away(phantom, brain):
    np.testing.assert_array_equal(at(phantom, TR_S, 1000.0, brain).data, phantom.signal.data)


@pytest.mark.parametrize("snr", [50.0, 20.0])
@pytest.mark.parametrize("tr_s", [1.0, 1.3, 1.5, 2.0, 2.5, 3.0])
def test_every_frame_of_every_level_has_the_noise_that_was_asked_for(phantom, clean, brain, tr_s, snr):
    # What is left of the noise-free series tells the noise, without any estimate of ours.
    s0, _ = signal_and_noise(phantom.signal, brain)
    noisy, truth = (at(source, tr_s, level, brain) for source, level in ((phantom, snr), (clean, 1e9)))
    spread = (noisy.data - truth.data)[brain].std(axis=0)
    assert spread == pytest.approx(s0 / snr, rel=0.05)
    assert np.sqrt(np.mean(spread**2)) == pytest.approx(s0 / snr, rel=0.01)


@pytest.mark.parametrize("tr_s", [1.0, 1.5, 3.0])
def test_the_noise_that_is_measured_afterwards_is_the_one_asked_for(phantom, brain, tr_s):
    noisy = at(phantom, tr_s, 20.0, brain)
    curves = noisy.data[brain]
    baseline = baseline_frames(mean_curve(curves))
    measured = curves[:, baseline].mean() / np.median(noise_sigma(curves, baseline))
    assert measured == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize("tr_s", [1.0, 1.5, 2.5])
def test_the_mean_signal_of_every_frame_is_kept_but_for_the_lift_of_a_magnitude(phantom, brain, tr_s):
    s0, own = signal_and_noise(phantom.signal, brain)
    quiet, noisy = (at(phantom, tr_s, snr, brain).data[brain].mean(axis=0) for snr in (1e9, 20.0))
    lift = ((s0 / 20) ** 2 - own**2) / (2 * s0)  # σ²/2S; more where the bolus has darkened a voxel
    assert np.abs(noisy - quiet).max() < 3 * lift + 4 * (s0 / 20) / np.sqrt(brain.sum())
    assert np.abs(noisy - quiet).max() < 0.01 * s0


def test_air_becomes_the_magnitude_of_noise(phantom, brain):
    s0, _ = signal_and_noise(phantom.signal, brain)
    air = at(phantom, 2.0, 20.0, brain).data[:3, :3]
    assert air.mean() == pytest.approx(s0 / 20 * np.sqrt(np.pi / 2), rel=0.03)
    assert (air > 0).all()


def test_frames_are_taken_at_even_times_from_the_first_on_and_never_beyond_the_last(phantom, brain):
    for tr_s in (1.5, 2.5, 3.0):
        thin = at(phantom, tr_s, 1e9, brain)
        np.testing.assert_allclose(np.diff(thin.frame_times_s), tr_s)
        assert thin.frame_times_s[0] == 0 and 79 - tr_s < thin.frame_times_s[-1] <= 79 and thin.tr_s == tr_s
        assert thin.te_s == phantom.signal.te_s and (thin.affine == phantom.signal.affine).all()


def test_a_multiple_of_the_own_interval_takes_frames_as_they_are(phantom, brain):
    np.testing.assert_array_equal(at(phantom, 2.0, 1e9, brain).data, phantom.signal.data[..., ::2])


def test_a_patient_at_a_level_always_gets_the_same_noise_and_others_get_another(phantom, brain):
    once = at(phantom, 2.0, 20.0, brain)
    np.testing.assert_array_equal(once.data, at(phantom, 2.0, 20.0, brain).data)
    assert (once.data != at(phantom, 2.0, 20.0, brain, seed=2).data).mean() > 0.9
    noise = [
        at(source, tr_s, snr, brain).data[brain][:, :20] - at(source, tr_s, 1e9, brain).data[brain][:, :20]
        for source, tr_s, snr in (
            (phantom, 2.0, 20.0),
            (phantom, 2.5, 20.0),
            (phantom, 2.0, 15.0),
            (replace_first(phantom), 2.0, 20.0),
        )
    ]
    correlations = np.corrcoef([part.ravel() for part in noise])
    assert np.abs(correlations - np.eye(4)).max() < 0.02


def replace_first(phantom: DscPhantom) -> DscPhantom:
    """Another patient, who differs in one voxel of the first frame."""
    data = phantom.signal.data.copy()
    data[0, 0, 0, 0] += 1
    return replace(phantom, signal=replace(phantom.signal, data=data))


def test_what_was_not_measured_stays_unmeasured_and_reaches_no_further_than_its_neighbours(phantom, brain):
    data = phantom.signal.data.copy()
    data[:, :, 2, 17] = 0
    data[5, 5, 5, 40] = np.nan
    holed = replace(phantom, signal=replace(phantom.signal, data=data))
    thin = at(holed, 1.5, 20.0, brain)  # frames at 16.5 and 18 s: 17 s has a part in the first
    lost = np.zeros(thin.data.shape, bool)
    lost[:, :, 2, 11] = True
    lost[5, 5, 5, 27] = lost[5, 5, 5, 26] = False
    lost[5, 5, 5, [n for n, t in enumerate(thin.frame_times_s) if abs(t - 40) < 1]] = True
    np.testing.assert_array_equal(thin.data == 0, lost)
    assert np.isfinite(thin.data).all()


def test_levels_finer_or_less_noisy_than_the_patient_are_out_of_reach(phantom, brain):
    series, times = phantom.signal, phantom.signal.frame_times_s
    tr_s, snr = [0.5, 1.0, 1.5, 3.0], [100.0, 50.0, 20.0]
    assert within_reach(series, times, brain, tr_s, snr) == ([1.0, 1.5, 3.0], [50.0, 20.0])
    # Headers round: 1.01 s is 1 s.
    assert within_reach(series, 1.01 * times, brain, tr_s, snr)[0] == [1.0, 1.5, 3.0]
    assert within_reach(series, 1.6 * times, brain, tr_s, snr)[0] == [3.0]
    assert within_reach(at(phantom, 1.0, 30.0, brain), times, brain, tr_s, snr)[1] == [20.0]


def test_the_own_noise_of_a_series_is_what_it_was_simulated_with(phantom, clean, brain):
    assert signal_and_noise(phantom.signal, brain)[1] == pytest.approx(phantom.sigma, rel=0.03)
    assert signal_and_noise(clean.signal, brain)[1] < 0.1 * phantom.sigma
