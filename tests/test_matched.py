"""Laws of the matched features, on curves of a closed form."""

import numpy as np
import pytest
from dsc_curves import artery, frame_times, tissue
from threadpoolctl import threadpool_limits

from reperfuse.errors import InputError
from reperfuse.perfusion import matched
from reperfuse.perfusion.matched import (
    DELAY_FEATURE,
    DELAYS_S,
    MTTS_S,
    N_CONTEXT,
    N_FEATURES,
    N_KERNELS,
    TEMPERATURES,
    TMAX_FEATURE,
    matched_features,
)

DELAYS = np.array([0.0, -2.0, 0.7, 2.3, 5.0, 8.6, 11.0, 14.0])
RESOLVED = [(1.0, 1.5), (1.5, 1.5), (2.0, 2.0), (3.0, 3.0), (5.0, 4.5)]
"""TR and scale of an artery [s] that so slow a series still resolves."""

LACKING = slice(4 * len(TEMPERATURES) + N_KERNELS, 4 * len(TEMPERATURES) + 2 * N_KERNELS)
PROFILE = slice(LACKING.stop, LACKING.stop + len(DELAYS_S))
MISFIT = PROFILE.stop + 1


def curves_at(delays=DELAYS, *, dt=1.5, mtt=MTTS_S[1], seconds=105, scale=1.5, arrival=15.0):
    """Tissue curves, shape (n, T), and their artery (T,)."""
    times = frame_times(int(seconds / dt), dt)
    curves = [tissue(times, mtt=mtt, delay=delay, scale=scale, arrival=arrival) for delay in delays]
    return np.stack(curves), artery(times, scale=scale, arrival=arrival)


def noisy(n, seed=0, snr=20.0):
    """Tissue curves of any delay with noise, their artery and that noise."""
    rng = np.random.default_rng(seed)
    curves, aif = curves_at(rng.uniform(-3, 15, n))
    sigma = curves.max() / snr
    return curves + sigma * rng.standard_normal(curves.shape), aif, sigma


@pytest.mark.parametrize("n_frames", [5, 12, 40, 100])
@pytest.mark.parametrize("dt", [1.0, 2.6, 5.0])
def test_there_are_as_many_features_and_all_finite_for_any_series_and_any_curve(n_frames, dt):
    times = frame_times(n_frames, dt)
    rng = np.random.default_rng(0)
    aif = artery(times, arrival=times[-1] / 4) + 0.01 * rng.standard_normal(n_frames)
    noise = rng.standard_normal(n_frames)
    curves = np.stack([aif, -aif, 0 * times, 0 * times + 3, noise, 1e4 * noise, times, np.eye(n_frames)[-1]])
    found = matched_features(curves, aif, dt, 0.1)
    assert found.shape == (len(curves), N_FEATURES) and found.dtype == np.float32
    assert np.isfinite(found).all()


def test_delays_beyond_the_end_of_a_short_series_match_nothing():
    curves, aif = curves_at([0.0, 2.0], seconds=12, arrival=2.0)
    found = matched_features(curves, aif, 1.5, curves.max() / 100)
    assert np.isfinite(found).all()
    assert found[:, PROFILE][:, DELAYS_S > 12].max() < 1e-3


def test_no_curves_have_no_features():
    assert matched_features(np.zeros((0, 60)), curves_at(seconds=90)[1], 1.5, np.zeros(0)).shape == (0, N_FEATURES)


@pytest.mark.parametrize("dt, scale", RESOLVED)
def test_unit_of_the_artery_and_common_unit_of_curves_and_noise_are_of_no_effect(dt, scale):
    curves, aif = curves_at(dt=dt, scale=scale)
    noise = np.linspace(0.5, 2, len(curves)) * curves.max() / 40
    expected = matched_features(curves, aif, dt, noise)
    # Powers of two change no digit; other factors round.
    assert np.array_equal(matched_features(curves, aif / 1024, dt, noise), expected)
    assert np.array_equal(matched_features(64 * curves, aif, dt, 64 * noise), expected)
    found = matched_features(0.3 * curves, 700 * aif, dt, 0.3 * noise)
    assert found == pytest.approx(expected, abs=0.02)
    assert found[:, [DELAY_FEATURE, TMAX_FEATURE]] == pytest.approx(
        expected[:, [DELAY_FEATURE, TMAX_FEATURE]], abs=1e-3
    )


def test_baseline_of_a_curve_is_of_no_effect():
    curves, aif, sigma = noisy(50)
    assert matched_features(curves + 2 * sigma, aif, 1.5, sigma) == pytest.approx(
        matched_features(curves, aif, 1.5, sigma), abs=0.01
    )


@pytest.mark.parametrize("dt", [1.0, 1.5, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("frames", [1, 3])
def test_bolus_that_comes_some_frames_later_leaves_the_features_alone(frames, dt):
    curves, aif = curves_at(dt=dt, seconds=90)
    noise = curves.max() / 50
    expected = matched_features(curves, aif, dt, noise)
    found = matched_features(np.roll(curves, frames, axis=1), np.roll(aif, frames), dt, noise)
    means = slice(0, 4 * len(TEMPERATURES))
    assert found[:, means] == pytest.approx(expected[:, means], abs=0.02)
    # The long tails of the slowest residue functions are cut at another place.
    assert found == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("dt, scale", RESOLVED)
@pytest.mark.parametrize("mtt", [MTTS_S[1], 5.0])
def test_tissue_that_is_later_has_as_much_more_delay(mtt, dt, scale):
    curves, aif = curves_at(dt=dt, scale=scale, mtt=mtt)
    found = matched_features(curves, aif, dt, curves.max() / 100)
    for column in (DELAY_FEATURE, TMAX_FEATURE):
        assert found[:, column] - found[0, column] == pytest.approx(DELAYS - DELAYS[0], abs=0.03 * dt)


@pytest.mark.parametrize("dt", [1.0, 1.5])
@pytest.mark.parametrize("mtt", MTTS_S)
def test_exponential_curves_without_noise_tell_their_delay_where_the_bank_has_their_transit_time(mtt, dt):
    curves, aif = curves_at(mtt=mtt, dt=dt, scale=2.0)
    found = matched_features(curves, aif, dt, curves.max() / 1000)
    assert found[:, DELAY_FEATURE] == pytest.approx(DELAYS, abs=0.05)
    assert found[:, DELAY_FEATURE + 1].max() < 0.2  # and are sure of it
    exponential = MTTS_S.index(mtt)
    assert (found[:, LACKING].argmin(axis=1) == exponential).all()


def test_tmax_is_the_delay_and_what_deconvolution_makes_of_the_transit():
    quick, slow = (curves_at([3.0], mtt=mtt)[0] for mtt in (MTTS_S[0], MTTS_S[3]))
    found = matched_features(np.concatenate([quick, slow]), curves_at([3.0])[1], 1.5, 1e-4)
    assert found[:, DELAY_FEATURE] == pytest.approx([3, 3], abs=0.1)
    prompt, late = found[:, TMAX_FEATURE] - found[:, DELAY_FEATURE]
    assert 0 < prompt < late < 6


def test_profile_over_delays_is_a_distribution_and_peaks_at_the_delay():
    curves, aif = curves_at([2.0, 11.0])
    profile = np.square(matched_features(curves, aif, 1.5, curves.max() / 30)[:, PROFILE])
    assert profile.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert DELAYS_S[profile.argmax(axis=1)].tolist() == [2, 11]


@pytest.mark.parametrize("told", [0.5, 1.0, 2.0])
def test_misfit_is_the_variance_left_over_that_of_the_noise_told(told):
    curves, aif, sigma = noisy(400)
    misfit = np.expm1(matched_features(curves, aif, 1.5, told * sigma)[:, MISFIT])
    assert misfit.mean() == pytest.approx(told**-2, rel=0.1)


def test_spread_of_the_delay_shrinks_as_noise_does():
    spreads = []
    for snr in (5.0, 20.0, 100.0):
        curves, aif, sigma = noisy(200, snr=snr)
        spreads.append(matched_features(curves, aif, 1.5, sigma)[:, DELAY_FEATURE + 1].mean())
    assert spreads[0] > spreads[1] > spreads[2]


def test_context_is_the_same_in_all_voxels_and_starts_with_the_frame_interval():
    curves, aif, sigma = noisy(20)
    context = matched_features(curves, aif, 1.5, sigma)[:, -N_CONTEXT:]
    assert (context == context[0]).all()
    assert context[0, 0] == pytest.approx(np.log(1.5))


@pytest.mark.parametrize("chunk", [7, 64])
def test_features_of_a_voxel_do_not_depend_on_the_others_nor_on_the_chunks(monkeypatch, chunk):
    curves, aif, sigma = noisy(150)
    noise = sigma * np.linspace(0.5, 2, len(curves))
    together = matched_features(curves, aif, 1.5, noise)
    order = np.random.default_rng(1).permutation(len(curves))
    assert matched_features(curves[order], aif, 1.5, noise[order]) == pytest.approx(together[order], abs=2e-3)
    alone = matched_features(curves[42:43], aif, 1.5, noise[42])
    assert alone[0] == pytest.approx(together[42], abs=2e-3)
    monkeypatch.setattr(matched, "CHUNK_VOXELS", chunk)
    assert matched_features(curves, aif, 1.5, noise) == pytest.approx(together, abs=2e-3)


def test_features_do_not_depend_on_the_number_of_threads():
    curves, aif, sigma = noisy(200)
    curves = np.tile(curves, (21, 1))
    with threadpool_limits(1, user_api="blas"):
        one = matched_features(curves, aif, 1.5, sigma)
    with threadpool_limits(3, user_api="blas"):
        many = matched_features(curves, aif, 1.5, sigma)
    assert many == pytest.approx(one, abs=2e-3)


@pytest.mark.parametrize("aif", [np.zeros(60), -artery(frame_times()), np.full(60, np.nan)])
def test_artery_without_a_positive_maximum_is_refused(aif):
    with pytest.raises(InputError, match="AIF has no positive maximum"):
        matched_features(np.ones((2, 60)), aif, 1.5, 1.0)


@pytest.mark.parametrize("noise", [0.0, -1.0, np.nan, np.array([1.0, 0.0])])
def test_noise_that_is_not_positive_is_refused(noise):
    with pytest.raises(InputError, match="noise of a curve is not positive"):
        matched_features(np.ones((2, 60)), artery(frame_times()), 1.5, noise)


def test_shapes_that_do_not_fit_are_refused():
    aif = artery(frame_times())
    for curves, noise in ((np.ones((2, 59)), 1.0), (np.ones(60), 1.0), (np.ones((2, 60)), np.ones(3))):
        with pytest.raises(ValueError):
            matched_features(curves, aif, 1.5, noise)
