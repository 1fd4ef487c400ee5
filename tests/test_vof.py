import numpy as np
import pytest
from dsc_curves import artery, frame_times, tissue

from reperfuse.perfusion.aif import Aif
from reperfuse.perfusion.vof import find_vof, rescaled_to_vof
from reperfuse.phantoms.dsc import drawn_phantom

DT = 1.5
TIMES = frame_times(60, DT)
SHAPE = (16, 16, 4)
ARTERY = 60 * artery(TIMES)
VEIN = 46 * artery(TIMES, arrival=18.5, scale=1.95)
"""Later and wider, of the same area."""


def head(seed=0, noise=1.0, purity=0.8, veins=True):
    """ΔR2* of a brain of 12 × 12 voxels with an artery, and of sinus voxels outside of it; the brain; the veins."""
    rng = np.random.default_rng(seed)
    brain, vein = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    brain[2:14, 2:14] = True
    vein[6:12, 1] = veins
    shapes = np.stack([tissue(TIMES, cbf=60, mtt=m, delay=d) for m, d in [(3, 0), (4, 0.5), (6, 1), (8, 3), (12, 6)]])
    shapes *= 15 / shapes.max(axis=1, keepdims=True)
    curves = np.zeros((*SHAPE, TIMES.size))
    curves[brain] = shapes[rng.integers(0, len(shapes), brain.sum())] * rng.uniform(0.5, 1.3, (brain.sum(), 1))
    curves[7:10, 7, :2] = purity * ARTERY
    curves[vein] = VEIN * rng.uniform(0.9, 1, (vein.sum(), 1))
    return (curves + rng.normal(0, noise, curves.shape)).astype(np.float32), brain, vein


def aif_of(curve):
    return Aif(curve=np.asarray(curve, dtype=float), voxels=np.zeros((1, 3), int))


def test_the_vein_is_found_outside_the_brain_and_has_its_true_curve():
    for seed in range(3):
        curves, brain, vein = head(seed)
        found = find_vof(curves, DT, brain, aif=aif_of(ARTERY))
        assert vein[tuple(found.voxels.T)].all() and len(found.voxels) >= 20
        assert np.corrcoef(found.curve, VEIN)[0, 1] > 0.995
        assert found.area == pytest.approx(VEIN.sum() * DT, rel=0.08)
        assert found.arrival_s > aif_of(ARTERY).curve.argmax() * DT - 5


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_unmeasured_voxels_do_not_change_the_vein():
    curves, brain, vein = head()
    curves[2:14, 2:14, 2:] = 0
    curves[2:14, 9:14, :2] = -1
    curves[12, 2:8] = 0.3 * VEIN + np.random.default_rng(1).normal(0, 0.2, TIMES.size)  # low and late: no vein
    found = find_vof(curves, DT, brain, aif=aif_of(ARTERY))
    assert vein[tuple(found.voxels.T)].all()
    assert find_vof(0 * curves, DT, brain, aif=aif_of(ARTERY)) is None


def test_the_artery_itself_is_no_vein():
    curves, brain, _ = head(veins=False)
    curves[2:14, 2] = ARTERY  # in the rim that is searched
    found = find_vof(curves, DT, brain, aif=aif_of(ARTERY))
    assert found is None or (found.voxels[:, 1] != 2).all()


def test_a_margin_of_zero_searches_the_mask_alone():
    curves, brain, vein = head()
    inside = find_vof(curves, DT, brain, aif=aif_of(ARTERY), margin=0)
    assert inside is None or not vein[tuple(inside.voxels.T)].any()
    alone = find_vof(curves, DT, vein, aif=aif_of(ARTERY), margin=0)
    assert alone is None or vein[tuple(alone.voxels.T)].all()


def test_noise_alone_is_no_vein():
    noise = np.random.default_rng(0).normal(0, 1, (*SHAPE, TIMES.size))
    assert find_vof(noise, DT, aif=aif_of(ARTERY)) is None
    assert find_vof(np.zeros((*SHAPE, TIMES.size)), DT, aif=aif_of(ARTERY)) is None


def test_clipped_veins_are_used_only_where_there_are_no_others():
    curves, brain, vein = head()
    ceiling = np.full(SHAPE, 200.0)
    some = vein & (np.arange(SHAPE[0])[:, None, None] < 8)
    ceiling[some] = 30
    found = find_vof(curves, DT, brain, aif=aif_of(ARTERY), ceiling=ceiling)
    assert not found.saturated and not some[tuple(found.voxels.T)].any()
    curves[brain] = np.minimum(curves[brain], 3)
    everywhere = find_vof(curves, DT, brain, aif=aif_of(ARTERY), ceiling=np.full(SHAPE, 30.0))
    assert everywhere.saturated


@pytest.mark.parametrize("purity", [0.4, 0.7, 1.0])
def test_scaling_gives_the_artery_the_area_it_would_have_without_partial_volume(purity):
    scaled = rescaled_to_vof(aif_of(purity * ARTERY), aif_of(VEIN), DT)
    assert scaled.curve.sum() == pytest.approx(ARTERY.sum(), rel=0.02)
    assert scaled.scale == pytest.approx(1 / purity, rel=0.02)
    np.testing.assert_allclose(scaled.curve / scaled.scale, purity * ARTERY)


def test_scaling_twice_changes_nothing_more():
    once = rescaled_to_vof(aif_of(0.5 * ARTERY), aif_of(VEIN), DT)
    twice = rescaled_to_vof(once, aif_of(VEIN), DT)
    np.testing.assert_allclose(twice.curve, once.curve)
    assert twice.scale == pytest.approx(once.scale)


def test_a_tail_cut_off_by_the_end_of_the_series_does_not_shrink_the_artery():
    recirculating = ARTERY + 6 * np.clip((TIMES - 20) / 10, 0, 1)  # a plateau that never ends
    late = 46 * artery(TIMES, arrival=21, scale=1.95) + 6 * np.clip((TIMES - 26) / 10, 0, 1)
    for frames in (26, 40, 60):
        cut = slice(0, frames)
        plain = late[cut].sum() / (0.5 * recirculating[cut].sum())
        scaled = rescaled_to_vof(aif_of(0.5 * recirculating[cut]), aif_of(late[cut]), DT)
        assert scaled.scale == pytest.approx(2, rel=0.06)
        assert abs(scaled.scale - 2) < abs(plain - 2)


def test_an_artery_larger_than_the_vein_stays_as_it_is():
    same = rescaled_to_vof(aif_of(ARTERY), aif_of(0.6 * VEIN), DT)
    np.testing.assert_array_equal(same.curve, ARTERY)
    assert same.scale == 1
    assert rescaled_to_vof(same, None, DT) is same


def test_on_a_drawn_phantom_the_vein_mends_the_area_that_partial_volume_took():
    phantom = drawn_phantom(
        3, tr_s=1.5, snr=60.0, jumps=0, drift_mm=0.0, k2=0.0, purity_low=0.3, purity_high=0.7, grey_cbv=4.0
    )
    truth, signal = phantom.truth, phantom.signal
    curves = -np.log(np.maximum(signal.data, 1) / truth["s0"].clip(1)[..., None]) / signal.te_s
    mixed = curves[(truth["artery_fraction"] > 0.5)].mean(axis=0)
    found = find_vof(curves, 1.5, truth["brain"] > 0, aif=aif_of(mixed))
    assert np.corrcoef(found.curve, phantom.vof_delta_r2star)[0, 1] > 0.99
    true = phantom.aif_delta_r2star.sum()
    assert mixed.sum() < 0.85 * true
    assert rescaled_to_vof(aif_of(mixed), found, 1.5).curve.sum() == pytest.approx(true, rel=0.15)
