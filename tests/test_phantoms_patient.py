"""Laws of what every lesion cohort shares: heads, confounders, the look of a lesion, scanners."""

from dataclasses import replace

import numpy as np
import pytest

from reperfuse.phantoms.anatomy import STEEPEST, TISSUE_T1, Anatomy, Warp, subject_warp, warped
from reperfuse.phantoms.appearance import scanner, seen, with_lesion
from reperfuse.phantoms.confounders import with_confounders
from reperfuse.phantoms.lesions import _template

CSF, GREY, WHITE = TISSUE_T1.values()


@pytest.fixture(scope="module")
def anatomy():
    return _template(2.0)[0]


def determinants(where):
    """det of the Jacobian of the map from voxel to voxel, by differences within every cell's first corner."""
    i, j, k = (size - 1 for size in where.shape[1:])
    jacobian = np.stack([np.diff(where, axis=a + 1)[:, :i, :j, :k] for a in range(3)], axis=-1)
    return np.linalg.det(np.moveaxis(jacobian, 0, -2))


@pytest.mark.parametrize("warp_mm", [4.0, 40.0])
def test_a_warp_never_folds_however_large_it_is_asked_for(anatomy, warp_mm):
    for seed in range(15):
        warp, facts = subject_warp(anatomy, np.random.default_rng(seed), warp_mm)
        where = warp.where(anatomy.t1w.shape, anatomy.grid_mm)
        assert facts["warp_lipschitz"] == warp.lipschitz <= STEEPEST
        assert determinants(where).min() >= (1 - STEEPEST) ** 3 * 0.99
        assert np.abs(where - np.indices(anatomy.t1w.shape)).max() * anatomy.grid_mm > 4


def test_the_bound_of_a_warp_is_that_of_its_finite_differences():
    nodes = np.random.default_rng(0).normal(0, 0.5, (3, 6, 7, 5)).astype(np.float32)
    warp = Warp(nodes, 4.0)
    where = warp.where((21, 25, 17), 1.0)
    moved = where - np.indices((21, 25, 17))
    rng = np.random.default_rng(1)
    a, b = (np.stack([rng.integers(0, n, 20000) for n in (21, 25, 17)]) for _ in range(2))
    apart = np.linalg.norm(a - b, axis=0)
    steepness = np.linalg.norm(moved[:, *a] - moved[:, *b], axis=0)[apart > 0] / apart[apart > 0]
    assert 0.5 * warp.lipschitz < steepness.max() <= warp.lipschitz * 1.0001
    # Between two nodes it is a straight line.
    np.testing.assert_allclose(moved[:, 4:9, 4, 4], np.linspace(nodes[:, 1, 1, 1], nodes[:, 2, 1, 1], 5).T, atol=1e-5)


def test_a_shift_by_whole_voxels_moves_every_array_so():
    array = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    nodes = np.zeros((3, 4, 4, 4), np.float32)
    nodes[1] = 2.0
    where = Warp(nodes, 4.0).where(array.shape, 1.0)
    np.testing.assert_allclose(warped(array, where)[:, :7], array[:, 2:], atol=1e-6)


def test_ventricles_of_a_cohort_differ_in_width_and_between_the_sides(anatomy):
    drawn = [subject_warp(anatomy, np.random.default_rng(seed), 4.0)[1] for seed in range(30)]
    left, right = (np.array([facts[f"ventricles_{side}"] for facts in drawn]) for side in ("left", "right"))
    assert np.ptp(left) > 0.25 and np.abs(left - right).max() > 0.1
    # The one that is widened more holds more CSF.
    x = anatomy.mesh_mm[0]
    more = []
    for seed in range(10):
        warp, facts = subject_warp(anatomy, np.random.default_rng(seed), 0.0)
        t1w = warped(anatomy.t1w, warp.where(anatomy.t1w.shape, 2.0))
        csf = (t1w > 0.1) & (t1w < 0.4) & (np.abs(anatomy.mesh_mm[2] - 12) < 15) & (np.abs(anatomy.mesh_mm[1] + 5) < 40)
        near = np.abs(x) < 30
        sides = [(csf & near & (np.sign(x) == sign)).sum() for sign in (-1, 1)]
        more.append((facts["ventricles_left"] - facts["ventricles_right"], np.log(sides[0] / sides[1])))
    assert np.corrcoef(np.transpose(more))[0, 1] > 0.7


def test_confounders_only_darken_the_brain_and_are_where_the_mask_says(anatomy):
    plain = replace(anatomy, t1w=np.where(anatomy.brain, WHITE, 0.45).astype(np.float32))
    kinds = set()
    for seed in range(6):
        aged, mask, facts = with_confounders(plain, np.random.default_rng(seed))
        changed = plain.t1w - aged.t1w
        assert changed.min() > -1e-6 and not changed[~anatomy.brain].any() and not mask[~anatomy.brain].any()
        # White matter far from the outside of the brain has no sulci: what changed there is in the mask.
        assert (changed[mask] > 0.05).all()
        assert aged.t1w[mask].min() >= CSF - 1e-6
        kinds |= {name for name in ("wmh_ml", "n_spaces", "n_lacunes", "cavities_ml") if facts[name] > 0}
    assert len(kinds) == 4


def test_small_cavities_are_as_dark_as_csf_and_none_is_larger_than_an_eighth_of_a_millilitre():
    from scipy import ndimage

    shape = (120, 140, 110)
    head = Anatomy(np.full(shape, WHITE, np.float32), np.ones(shape, bool), np.array([-60.0, -80.0, -40.0]), 1.0)
    sizes, darkest = [], []
    for seed in range(8):
        aged, _, _ = with_confounders(head, np.random.default_rng(seed))
        labels, n = ndimage.label(aged.t1w < 0.5 * (CSF + GREY), np.ones((3, 3, 3)))
        sizes += list(np.bincount(labels.ravel())[1:])
        darkest.append(aged.t1w.min() if n else CSF)
    assert np.median(sizes) <= 60 and np.mean(np.array(sizes) > 125) < 0.1  # two may touch
    assert max(darkest) < CSF + 0.05


def ball(radius, shape=(48, 48, 48)):
    distance = np.sqrt(((np.indices(shape) - 24) ** 2).sum(0))
    return distance <= radius, np.clip(distance / radius, 0, 1)


def test_a_lesion_never_brightens_its_cavity_is_csf_and_a_rim_of_gliosis_stays():
    mask, depth = ball(12)
    tissue = np.full(mask.shape, WHITE, np.float32)
    for seed in range(20):
        t1w, facts = with_lesion(tissue, mask, depth, 1.0, np.random.default_rng(seed))
        assert (t1w <= WHITE + 1e-6).all() and np.array_equal(tissue[depth == 1][:1], [np.float32(WHITE)])
        assert t1w[mask].min() > CSF - 0.06
        if facts["cavity_share"] > 0.1:
            assert t1w[24, 24, 24] == pytest.approx(CSF, abs=0.06)
        assert facts["cavity_share"] <= 0.85


def test_some_large_lesions_have_no_cavity_and_most_have_one():
    mask, depth = ball(12)
    tissue = np.full(mask.shape, WHITE, np.float32)
    drawn = [
        with_lesion(tissue, mask, depth, 1.0, np.random.default_rng(seed))[1]["cavity_share"] for seed in range(60)
    ]
    assert 0.15 < np.mean(np.array(drawn) == 0) < 0.5


def test_a_lesion_in_csf_leaves_the_csf():
    mask, depth = ball(8)
    water = np.full(mask.shape, CSF, np.float32)
    t1w, _ = with_lesion(water, mask, depth, 1.0, np.random.default_rng(0))
    assert np.abs(t1w - water).max() < 0.06


def test_an_empty_lesion_changes_nothing():
    mask = np.zeros((8, 8, 8), bool)
    tissue = np.random.default_rng(0).random(mask.shape).astype(np.float32)
    t1w, facts = with_lesion(tissue, mask, np.ones(mask.shape), 1.0, np.random.default_rng(0))
    assert np.array_equal(t1w, tissue) and facts["cavity_share"] == 0


def test_scanners_keep_the_order_of_tissues_and_differ_in_their_contrast():
    shown = np.array([scanner(centre).contrast for centre in range(40)])
    assert (np.diff(shown, axis=1) > 0.08).all()
    ratio = (shown[:, 1] - shown[:, 0]) / (shown[:, 2] - shown[:, 0])
    assert np.ptp(ratio) > 0.15  # grey matter is not where one gamma for all would put it


def test_an_image_shows_tissues_at_the_contrast_of_its_scanner():
    by = replace(scanner(2), contrast=(0.1, 0.4, 0.9), blur_mm=(0.0, 0.0, 0.0), bias=0.0, snr=1e4)
    t1w = np.repeat([CSF, GREY, WHITE], 1000).reshape(3, 10, 100).astype(np.float32)
    image = seen(t1w, None, 1.0, by, np.random.default_rng(0)).reshape(3, -1).mean(1)
    np.testing.assert_allclose(image / image[2], np.array(by.contrast) / by.contrast[2], rtol=0.12)


def test_outside_what_is_visible_an_image_is_zero_and_inside_never():
    visible = np.random.default_rng(0).random((10, 10, 10)) > 0.5
    by = replace(scanner(0), snr=1e9)
    image = seen(np.zeros((10, 10, 10), np.float32), visible, 1.0, by, np.random.default_rng(0))
    assert np.array_equal(image > 0, visible) and image.dtype == np.uint16
