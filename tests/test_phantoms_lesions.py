"""Laws of the lesion phantom."""

import numpy as np
import pytest
from scipy import ndimage

from reperfuse.phantoms.appearance import GLIOSIS
from reperfuse.phantoms.lesions import VOLUME_ML, lesion_phantom, volume_quantile

COARSE = {"grid_mm": 4.0}


@pytest.fixture(scope="module")
def cohort():
    return [lesion_phantom(seed, centre=seed % 3, **COARSE) for seed in range(12)]


def test_full_size_has_the_grid_of_atlas_and_the_volume_asked_for():
    phantom = lesion_phantom(1, volume_ml=30.0)
    assert phantom.t1w.data.shape == phantom.mask.data.shape == (197, 233, 189)
    assert phantom.mask.affine[:3, 3].tolist() == [-98, -134, -72] and phantom.mask.spacing_mm == (1, 1, 1)
    assert phantom.mask.data.sum() / 1000 == pytest.approx(30.0, rel=0.05)


def test_same_seed_gives_the_same_bytes_and_another_seed_or_centre_others():
    a, b = lesion_phantom(5, **COARSE), lesion_phantom(5, **COARSE)
    assert a.t1w.data.tobytes() == b.t1w.data.tobytes() and a.mask.data.tobytes() == b.mask.data.tobytes()
    assert a.truth == b.truth
    for other in (lesion_phantom(6, **COARSE), lesion_phantom(5, centre=1, **COARSE)):
        assert a.t1w.data.tobytes() != other.t1w.data.tobytes()


def test_masks_are_binary_and_inside_the_brain(cohort):
    for phantom in cohort:
        assert set(np.unique(phantom.mask.data)) == {0, 1}
        assert (phantom.t1w.data[phantom.mask.data > 0] > 0).all()


def test_truth_tells_volume_and_side_of_the_mask(cohort):
    for phantom in cohort:
        points = np.argwhere(phantom.mask.data) @ phantom.mask.affine[:3, :3].T + phantom.mask.affine[:3, 3]
        assert phantom.truth["volume_ml"] == pytest.approx(len(points) * 0.064)
        assert phantom.truth["hemisphere"] == ("left" if phantom.truth["centre_mm"][0] < 0 else "right")
        if abs(phantom.truth["centre_mm"][0]) > 10:
            assert np.sign(phantom.truth["centre_mm"][0]) == np.sign(np.median(points[:, 0]))


def test_volumes_are_drawn_within_what_was_measured(cohort):
    voxel_ml, largest = 0.064, VOLUME_ML[1][-1]
    volumes = [phantom.truth["volume_ml"] for phantom in cohort]
    assert all(voxel_ml <= volume <= largest for volume in volumes)
    assert max(volumes) > 5 * min(volumes)


def test_volume_quantiles_rise_and_have_the_measured_log_mean_and_spread():
    volumes = np.array([volume_quantile(q) for q in np.linspace(0, 1, 2001)])
    assert (np.diff(volumes) > 0).all()
    assert np.log(volumes).mean() == pytest.approx(2.48, abs=0.15)
    assert np.log(volumes).std() == pytest.approx(2.11, abs=0.15)


def test_a_floor_leaves_the_distribution_above_it():
    above = np.array([volume_quantile(q, floor_ml=0.3) for q in np.linspace(0, 1, 401)])
    everyone = np.array([volume_quantile(q) for q in np.linspace(0, 1, 4001)])
    assert above[0] == pytest.approx(0.3)
    assert np.median(above) == pytest.approx(np.median(everyone[everyone >= 0.3]), rel=0.02)


def test_a_subject_without_a_lesion_has_an_empty_mask_and_the_same_head():
    healthy, struck = (lesion_phantom(8, volume_ml=volume, grid_mm=2.0) for volume in (0.0, 20.0))
    assert not healthy.mask.data.any()
    assert healthy.truth["volume_ml"] == 0 and healthy.truth["hemisphere"] == "none"
    assert healthy.truth["age"] == struck.truth["age"] and healthy.truth["confounder_ml"] > 0
    far = ndimage.distance_transform_edt(struck.mask.data == 0) * 2.0 > 12
    assert np.array_equal(healthy.t1w.data[far], struck.t1w.data[far])
    inside = struck.mask.data > 0
    assert struck.t1w.data[inside].mean() < 0.9 * healthy.t1w.data[inside].mean()


def test_a_negative_volume_is_refused():
    with pytest.raises(ValueError, match="give 0 for none"):
        lesion_phantom(0, grid_mm=4.0, volume_ml=-1.0)


def test_lesions_are_darker_than_what_was_there(cohort):
    def contrast(phantom):
        brain, lesion = phantom.t1w.data > 0, phantom.mask.data > 0
        return np.median(phantom.t1w.data[lesion]) / np.median(phantom.t1w.data[brain & ~lesion])

    assert np.median([contrast(phantom) for phantom in cohort]) < 0.8


def test_no_intensity_threshold_finds_the_lesions(cohort):
    def best_dice(phantom):
        brain, lesion = phantom.t1w.data > 0, phantom.mask.data > 0
        values = phantom.t1w.data[brain]
        dice = []
        for cut in np.quantile(values, np.linspace(0.005, 0.4, 40)):
            below = brain & (phantom.t1w.data < cut)
            dice.append(2 * (below & lesion).sum() / (below.sum() + lesion.sum()))
        return max(dice)

    # Each subject has the threshold that is best for it alone.
    assert np.median([best_dice(phantom) for phantom in cohort]) < 0.4


def test_lesions_run_from_gliosis_throughout_to_mostly_cavity(cohort):
    shares = [phantom.truth["cavity_share"] for phantom in cohort]
    assert min(shares) == 0 and 0.4 < max(shares) <= 0.85
    levels = [phantom.truth["gliosis"] for phantom in cohort]
    low, high = GLIOSIS
    assert low <= min(levels) < 0.7 * low + 0.3 * high and 0.3 * low + 0.7 * high < max(levels) <= high


def test_a_centre_has_one_noise_level_and_centres_differ(cohort):
    snr = {c: {p.truth["snr"] for p in cohort if p.truth["centre"] == c} for c in range(3)}
    assert all(len(values) == 1 for values in snr.values())
    assert len(set().union(*snr.values())) == 3


@pytest.mark.parametrize("grid_mm", [0.5, 1.5])
def test_a_grid_that_is_no_whole_number_of_millimetres_is_refused(grid_mm):
    with pytest.raises(ValueError, match="whole number"):
        lesion_phantom(0, grid_mm=grid_mm)
