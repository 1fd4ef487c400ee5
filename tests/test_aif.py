import numpy as np
import pytest
from dsc_curves import artery, frame_times, tissue

from reperfuse.errors import InputError
from reperfuse.perfusion.aif import find_aif

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
