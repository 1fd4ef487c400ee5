from dataclasses import replace

import numpy as np
import pytest
from dsc_curves import artery, frame_times, tissue

from reperfuse.errors import InputError
from reperfuse.perfusion.aif import Aif, NoArtery, aif_from_mask, doubts, find_aif, steepness
from reperfuse.perfusion.time_to_peak import LATE_TTP_S, relative_ttp
from reperfuse.perfusion.vessels import bolus_of, clusters, smoothed
from reperfuse.phantoms.dsc import drawn_phantom

DT = 1.5
TIMES = frame_times(60, DT)
SHAPE = (16, 16, 4)
TRUE = artery(TIMES)


def brain(seed=0, noise=1.0, arteries=12, veins=12, spikes=4, vein=(20.0, 2.2)):
    """ΔR2* of tissue with a few arteries (peak 60 1/s), as high but later and wider veins, and spiking voxels."""
    rng = np.random.default_rng(seed)
    shapes = np.stack([tissue(TIMES, cbf=60, mtt=m, delay=d) for m, d in [(3, 0), (4, 0.5), (6, 1), (8, 3), (12, 6)]])
    shapes *= 15 / shapes.max(axis=1, keepdims=True)
    n = int(np.prod(SHAPE))
    curves = shapes[rng.integers(0, len(shapes), n)] * rng.uniform(0.5, 1.3, (n, 1))
    kind = np.zeros(n, int)
    places = rng.permutation(n)
    kind[places[:arteries]], kind[places[arteries : arteries + veins]] = 1, 2
    kind[places[-spikes:] if spikes else []] = 3
    curves[kind == 1] = 60 * rng.uniform(0.7, 1, ((kind == 1).sum(), 1)) * TRUE
    curves[kind == 2] = 60 * rng.uniform(0.8, 1.1, ((kind == 2).sum(), 1)) * artery(TIMES, vein[0], scale=vein[1])
    curves[kind == 3, rng.integers(0, 60)] = 110
    curves += rng.normal(0, noise, curves.shape)
    return curves.reshape(*SHAPE, -1).astype(np.float32), kind.reshape(SHAPE)


def test_the_aif_comes_from_arteries_only_and_has_their_shape():
    for seed in range(5):
        curves, kind = brain(seed)
        found = find_aif(curves, DT)
        assert (kind[tuple(found.voxels.T)] == 1).all() and len(found.voxels) >= 3
        assert np.corrcoef(found.curve, TRUE)[0, 1] > 0.99
        assert found.curve.argmax() == TRUE.argmax()


def test_the_curve_is_the_mean_of_the_named_voxels():
    curves, _ = brain()
    found = find_aif(curves, DT)
    np.testing.assert_allclose(found.curve, curves[tuple(found.voxels.T)].mean(axis=0), rtol=1e-5)


def test_the_same_series_gives_the_same_artery_in_any_unit():
    curves, _ = brain()
    first, again, scaled = find_aif(curves, DT), find_aif(curves, DT), find_aif(1e-3 * curves, DT)
    np.testing.assert_array_equal(first.voxels, again.voxels)
    np.testing.assert_array_equal(first.voxels, scaled.voxels)


def test_noise_leaves_the_artery_recognisable():
    curves, kind = brain(noise=3.0)
    found = find_aif(curves, DT)
    assert (kind[tuple(found.voxels.T)] == 1).all() and np.corrcoef(found.curve, TRUE)[0, 1] > 0.98


def test_it_looks_inside_the_mask_only():
    curves, _ = brain()
    half = np.zeros(SHAPE, bool)
    half[:8] = True
    assert (find_aif(curves, DT, half).voxels[:, 0] < 8).all()
    with pytest.raises(InputError, match="no voxel"):
        find_aif(curves, DT, np.zeros(SHAPE))


def test_a_vein_soon_after_the_artery_is_not_averaged_in():
    for seed in range(5):
        curves, kind = brain(seed, veins=30, vein=(17.5, 2.2))
        assert (kind[tuple(find_aif(curves, DT).voxels.T)] == 1).all()


def test_a_single_voxel_earlier_and_narrower_than_all_is_no_artery():
    curves, kind = brain()
    place = tuple(np.argwhere(kind == 0)[5])
    curves[place] = 50 * artery(TIMES, arrival=9, scale=1.0)
    assert place not in set(map(tuple, find_aif(curves, DT).voxels))


def test_tissue_of_higher_flow_is_no_artery():
    shape = 15 * tissue(TIMES) / tissue(TIMES).max()
    amplitude = np.random.default_rng(0).uniform(0.2, 3, (*SHAPE, 1))
    noise = np.random.default_rng(1).normal(0, 0.5, (*SHAPE, 60))
    with pytest.raises(InputError, match="looks like an artery"):
        find_aif(amplitude * shape + noise, DT)


def test_without_an_artery_it_says_so():
    tissue_only = brain(arteries=0, veins=0, spikes=0)[0]
    noise_only = np.random.default_rng(0).normal(0, 1, (*SHAPE, 60))
    for curves in (tissue_only, noise_only, np.zeros((*SHAPE, 60)), np.full((*SHAPE, 60), 3.0)):
        with pytest.raises(InputError, match="looks like an artery"):
            find_aif(curves, DT)


def test_veins_alone_are_not_taken_for_arteries():
    with pytest.raises(InputError, match="looks like an artery"):
        find_aif(brain(arteries=0)[0], DT)


def test_of_arteries_the_unclipped_are_taken():
    curves, kind = brain(arteries=16)
    ceiling = np.full(SHAPE, 200.0)
    some = (kind == 1) & (np.cumsum(kind == 1).reshape(SHAPE) <= 8)
    curves[some] = np.minimum(curves[some], 30)
    ceiling[some] = 29
    found = find_aif(curves, DT, ceiling=ceiling)
    assert not found.saturated and not some[tuple(found.voxels.T)].any()
    assert (kind[tuple(found.voxels.T)] == 1).all()


def test_a_voxel_in_the_noise_floor_is_left_out_even_if_its_curve_looks_as_good():
    curves, kind = brain(arteries=24)
    ceiling = np.full(SHAPE, 200.0)
    steepest = tuple(find_aif(curves, DT).voxels.T)
    ceiling[steepest] = 30
    found = find_aif(curves, DT, ceiling=ceiling)
    assert (kind[tuple(found.voxels.T)] == 1).all() and (ceiling[tuple(found.voxels.T)] == 200).all()
    assert not found.saturated


def test_if_all_arteries_are_clipped_the_least_clipped_are_taken_and_it_is_said():
    curves, kind = brain(arteries=16)
    ceiling = np.full(SHAPE, 200.0)
    order = np.cumsum(kind == 1).reshape(SHAPE)
    for part, limit in (((kind == 1) & (order <= 8), 20), ((kind == 1) & (order > 8), 38)):
        curves[part] = np.minimum(curves[part], limit)
        ceiling[part] = limit - 1
    found = find_aif(curves, DT, ceiling=ceiling)
    assert found.saturated
    assert (kind[tuple(found.voxels.T)] == 1).all() and (ceiling[tuple(found.voxels.T)] == 37).all()


def test_a_ceiling_that_nothing_reaches_changes_nothing():
    curves, _ = brain()
    free, held = find_aif(curves, DT), find_aif(curves, DT, ceiling=np.full(SHAPE, 1e3))
    np.testing.assert_array_equal(free.voxels, held.voxels)


def test_arteries_mixed_with_tissue_are_left_out_where_pure_ones_are_enough():
    curves, kind = brain(arteries=24, noise=0.5)
    mixed = (kind == 1) & (np.cumsum(kind == 1).reshape(SHAPE) <= 12)
    signal = 0.4 * np.exp(-0.03 * curves[mixed]) + 0.6 * np.exp(-0.03 * curves[kind == 0][: mixed.sum()])
    curves[mixed] = -np.log(signal) / 0.03
    found = find_aif(curves, DT)
    assert not mixed[tuple(found.voxels.T)].any() and (kind[tuple(found.voxels.T)] == 1).all()


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.14])
def test_noise_does_not_split_curves_of_one_shape_and_does_not_join_two(noise):
    shapes = np.repeat([artery(TIMES), artery(TIMES, arrival=17.5, scale=2.2)], 20, axis=0)
    curves = shapes + np.random.default_rng(0).normal(0, noise, shapes.shape)
    labels = clusters(smoothed(curves, DT), noise, DT)
    assert len(set(labels[:20])) == len(set(labels[20:])) == 1 and labels[0] != labels[-1]


def test_more_voxels_are_averaged_where_there_is_more_noise():
    quiet, noisy = (find_aif(brain(arteries=40, noise=noise)[0], DT) for noise in (0.3, 4.0))
    assert len(quiet.voxels) < len(noisy.voxels) <= 30


def test_the_numbers_of_an_aif_say_how_good_it_is():
    good = find_aif(brain(noise=0.5)[0], DT)
    poor = find_aif(brain(noise=4.0)[0], DT)
    true = bolus_of(TRUE[None], DT)
    assert good.width_s == pytest.approx(true.width_s[0], rel=0.05)
    assert good.arrival_s == pytest.approx(true.half_rise_s[0], abs=0.3)
    assert good.area == pytest.approx(good.curve.sum() * DT)
    assert good.snr > 3 * poor.snr and good.reliability > 0.995 and good.stands_out > 4
    assert doubts(good, DT) == ()


def test_each_doubt_has_a_curve_that_raises_it():
    good = find_aif(brain()[0], DT)
    assert doubts(replace(good, saturated=True), DT) == ("saturated",)
    assert doubts(replace(good, snr=9.0), DT) == ("noisy",)
    assert doubts(replace(good, reliability=0.9), DT) == ("noisy",)
    assert doubts(replace(good, stands_out=1.7), DT) == ("tissue",)
    assert doubts(replace(good, scale=2.0), DT) == ("partial volume",)
    assert doubts(good, 5.0) == ("coarse",)


def test_a_mask_gives_the_mean_of_its_voxels_and_avoids_clipped_ones():
    curves, kind = brain()
    mask = kind == 1
    given = aif_from_mask(curves, mask, dt=DT)
    np.testing.assert_allclose(given.curve, curves[mask].mean(axis=0), rtol=1e-5)
    assert given.source == "mask" and not given.saturated and given.width_s > 0
    ceiling = np.full(SHAPE, 200.0)
    first = tuple(np.argwhere(mask)[0])
    ceiling[first] = 10
    assert len(aif_from_mask(curves, mask, ceiling).voxels) == mask.sum() - 1
    alone = np.zeros(SHAPE, bool)
    alone[first] = True
    assert aif_from_mask(curves, alone, ceiling).saturated


def test_a_mask_that_cannot_be_used_is_refused_in_a_sentence():
    curves, _ = brain()
    with pytest.raises(InputError, match="no voxel"):
        aif_from_mask(curves, np.zeros(SHAPE))
    with pytest.raises(InputError, match="resample"):
        aif_from_mask(curves, np.ones((4, 4, 4)))
    with pytest.raises(InputError, match="no bolus"):
        aif_from_mask(np.zeros_like(curves), np.ones(SHAPE))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("dead", [0.0, -3.0, 1e-38, np.nan], ids=["zero", "negative", "tiny", "unmeasured"])
def test_voxels_that_were_not_measured_neither_open_the_gate_nor_close_it(dead):
    curves, kind = brain()
    padded = np.concatenate([curves, np.full_like(curves, dead)])
    padded[SHAPE[0] :, ::2, :, 5] = -20.0
    assert (kind[tuple(find_aif(padded, DT).voxels.T)] == 1).all()
    tissue_alone = brain(arteries=0, veins=0, spikes=0)[0]
    with pytest.raises(NoArtery):
        find_aif(np.concatenate([tissue_alone, np.full_like(curves, dead)]), DT)
    with pytest.raises(NoArtery):
        find_aif(np.full_like(curves, dead), DT)


def test_a_curve_without_a_bolus_has_no_height_over_width_and_warns_of_nothing():
    flat = bolus_of(np.stack([0 * TRUE, -TRUE, 1e-30 * TRUE - 5e3 * (TIMES > 60)]), DT)
    assert flat.width_s[:2].tolist() == [0, 0] and (flat.half_rise_s[:2] == TIMES[-1]).all() and flat.width_s[2] > 2
    assert np.isinf(steepness(flat)).tolist() == [True, True, False]


def test_an_artery_whose_curve_has_no_area_is_none():
    curves, _ = brain(spikes=0)
    curves[..., TIMES > 40] -= 30  # signal that ends far brighter than it began
    with pytest.raises(NoArtery):
        find_aif(curves, DT)


def test_a_given_curve_is_doubted_where_it_does_not_fit_the_tissue():
    curves, _ = brain(spikes=0, noise=0.0)
    mean = curves.reshape(-1, TIMES.size).mean(axis=0)

    def doubted(curve):
        return doubts(Aif(curve, np.empty((0, 3), int), "file"), DT, tissue=mean)

    assert doubted(60 * TRUE) == () and doubted(60 * artery(TIMES, 14.0)) == ()
    assert doubted(60 * artery(TIMES, 22.0, scale=2.2)) == ("late",)
    assert doubted(1.2 * mean) == ("low",) and doubted(1e4 * TRUE) == ("area",)
    assert set(doubted(0.01 * TRUE)) == {"low", "area"} and "area" in doubted(0 * TRUE)


def test_tissue_scaled_up_to_the_vein_is_still_as_low_as_tissue():
    curves, _ = brain(spikes=0, noise=0.0)
    mean = curves.reshape(-1, TIMES.size).mean(axis=0)
    scaled = Aif(4 * mean, np.empty((0, 3), int), "mask", scale=4.0)
    assert "low" in doubts(scaled, DT, tissue=mean)


def test_unmeasured_voxels_are_not_late_and_do_not_move_normal_tissue():
    curves = late_part(0.2)[0]
    both = np.concatenate([curves, np.zeros((1000, curves.shape[1]))])
    found = relative_ttp(both, 1.5)
    np.testing.assert_allclose(found[: len(curves)], relative_ttp(curves, 1.5), atol=1e-4)
    assert (found[len(curves) :] == 0).all() and (relative_ttp(0 * curves, 1.5) == 0).all()


def test_no_artery_is_an_input_error_of_its_own():
    with pytest.raises(NoArtery):
        find_aif(brain(arteries=0, veins=0, spikes=0)[0], DT)
    assert issubclass(NoArtery, InputError)


def late_part(share, delay=8.0, noise=0.3, dt=1.5):
    times = frame_times(60, dt)
    n = 400
    delays = np.where(np.arange(n) < share * n, delay, 0) + np.random.default_rng(0).normal(0, 0.4, n)
    curves = np.stack([tissue(times, mtt=4, delay=d) for d in delays])
    curves *= 15 / curves.max()
    return curves + np.random.default_rng(1).normal(0, noise, curves.shape), delays


@pytest.mark.parametrize("share", [0.0, 0.2, 0.45])
def test_relative_ttp_is_the_delay_after_normal_tissue_however_large_the_late_part(share):
    curves, delays = late_part(share)
    found = relative_ttp(curves, 1.5)
    assert abs(np.median(found[delays < 4])) < 0.3
    if share:
        assert np.median(found[delays > 4]) == pytest.approx(8, abs=0.5)
    assert (found > LATE_TTP_S).mean() == pytest.approx(share, abs=0.01)


def test_relative_ttp_ignores_height_and_when_the_series_began():
    curves, _ = late_part(0.2)
    first = relative_ttp(curves, 1.5)
    np.testing.assert_allclose(relative_ttp(7 * curves, 1.5), first, atol=1e-4)
    later = np.concatenate([curves[:, :1].repeat(5, axis=1), curves[:, :-5]], axis=1)
    np.testing.assert_allclose(relative_ttp(later, 1.5), first, atol=1e-3)
    with pytest.raises(InputError, match="no tissue"):
        relative_ttp(np.zeros((0, 60)), 1.5)


def test_on_drawn_phantoms_the_artery_is_found_with_its_shape_and_doubted_where_it_is_not():
    found = [artery_of(drawn_phantom(seed, snr_range=(20, 200), jumps=0, drift_mm=0.0)) for seed in range(200, 210)]
    good = [correlation >= 0.98 and frames <= 1 for correlation, frames, _ in found]
    assert sum(good) >= 9
    assert all(doubt for fine, (_, _, doubt) in zip(good, found, strict=True) if not fine)


def test_a_phantom_without_bolus_has_no_artery_and_a_saturated_one_says_so():
    phantom = drawn_phantom(0, situation="no_bolus", jumps=0, drift_mm=0.0)
    rates = rates_of(phantom)
    with pytest.raises(NoArtery):
        find_aif(rates, phantom.facts["tr_s"], phantom.truth["brain"] > 0)
    black = drawn_phantom(2, situation="saturated_aif", jumps=0, drift_mm=0.0, tr_s=1.5)
    ceiling = np.log(np.maximum(black.truth["s0"], 1) / (2 * black.sigma)) / black.facts["te_s"]
    assert find_aif(rates_of(black), 1.5, black.truth["brain"] > 0, ceiling=ceiling).saturated


def rates_of(phantom):
    s0 = np.maximum(phantom.signal.data[..., :4].mean(axis=3, keepdims=True), 1e-3)
    return -np.log(np.maximum(phantom.signal.data / s0, 0.02)) / phantom.facts["te_s"]


def artery_of(phantom):
    dt, true = phantom.facts["tr_s"], phantom.aif_delta_r2star
    try:
        found = find_aif(rates_of(phantom), dt, phantom.truth["brain"] > 0)
    except NoArtery:
        return 0.0, 99, ("no artery",)
    correlation = np.corrcoef(found.curve, true)[0, 1]
    return correlation, abs(int(found.curve.argmax()) - int(true.argmax())), doubts(found, dt)
