"""Laws of the augmentations: what moves moves together, labels stay labels, nothing is drawn but from the generator."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from reperfuse.training import augment as module
from reperfuse.training.augment import (
    AUGMENTATIONS,
    STRONG_SHARES,
    light_augmentation,
    published_augmentation,
    published_turn,
    strong_augmentation,
    strong_turn,
    turn_matrix,
)
from reperfuse.training.windows import turned_window, window

SHAPES = [(16, 14, 12), (16, 14, 1), (16, 16, 4)]
INTENSITIES = set(STRONG_SHARES) - {"rotation", "scaling", "mirror"}


def sample(shape=(16, 14, 12), channels=2, seed=0):
    """An image of noise, a target and a mask of blobs."""
    rng = np.random.default_rng(seed)
    blob = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    image = rng.normal(size=(channels, *shape)).astype(np.float32)
    return (
        image,
        (blob > np.quantile(blob, 0.7)).astype(np.uint8)[None],
        (blob > np.quantile(blob, 0.2)).astype(np.uint8),
    )


def only(monkeypatch, *names):
    """`strong` with these changes for every sample, and no other."""
    monkeypatch.setattr(module, "STRONG_SHARES", {name: float(name in names) for name in STRONG_SHARES})


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_shape_and_kind_stay_and_labels_stay_labels(name, shape):
    arrays = sample(shape)
    for seed in range(30):
        image, target, mask = AUGMENTATIONS[name](arrays, np.random.default_rng(seed))
        assert [array.shape for array in (image, target, mask)] == [array.shape for array in arrays]
        assert image.dtype == np.float32 and target.dtype == mask.dtype == np.uint8 and np.isfinite(image).all()
        assert set(np.unique(target)) | set(np.unique(mask)) <= {0, 1}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_generator_alone_decides(name):
    arrays = sample()
    outcomes = []
    for disturbance in range(2):
        np.random.seed(disturbance)  # noqa: NPY002
        torch.manual_seed(disturbance)
        outcomes.append([AUGMENTATIONS[name](arrays, np.random.default_rng(seed)) for seed in range(12)])
    assert all(equal(*pair) for pair in zip(*outcomes, strict=True))
    assert name == "none" or not equal(outcomes[0][0], outcomes[0][1])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_sample_that_is_given_stays_as_it_was(name):
    arrays = sample()
    kept = [array.copy() for array in arrays]
    for seed in range(20):
        AUGMENTATIONS[name](arrays, np.random.default_rng(seed))
        AUGMENTATIONS[name].finish(arrays, np.random.default_rng(seed))
    assert equal(arrays, kept)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["none", "light", "published", "strong"])
def test_image_target_and_mask_move_together(name, shape, monkeypatch):
    only(monkeypatch, "rotation", "scaling")
    monkeypatch.setitem(module.STRONG_SHARES, "mirror", 0.5)
    _, target, _ = sample(shape)
    for seed in range(20):
        arrays = target.astype(np.float32), target, target[0]
        image, moved, mask = AUGMENTATIONS[name](arrays, np.random.default_rng(seed))
        assert moved.any() and np.array_equal(moved[0], mask)
        if name == "published":  # its window is of the voxels inside the mask, and here they are all 1 but at the edge
            image, moved, _ = AUGMENTATIONS[name](
                (arrays[0], target, np.ones(shape, np.uint8)), np.random.default_rng(seed)
            )
        edge = (image.min() + image.max()) / 2
        assert np.mean((image >= edge) == moved) > 0.999


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_channels_move_and_change_together(name, monkeypatch):
    monkeypatch.setitem(module.STRONG_SHARES, "noise", 0)
    image, target, mask = sample(channels=1)
    for seed in range(30):
        changed = AUGMENTATIONS[name]((np.repeat(image, 3, 0), target, mask), np.random.default_rng(seed))[0]
        assert np.allclose(changed, changed[:1], atol=1e-6)


def test_light_moves_image_target_and_mask_together():
    mask = np.random.default_rng(0).random((6, 5, 4)) > 0.5
    arrays = mask[None].astype(np.float32), mask[None], mask
    for seed in range(20):
        image, target, moved = light_augmentation(arrays, np.random.default_rng(seed))
        assert np.array_equal(target[0], moved) and np.array_equal(image[0] > image.mean(), moved)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_arrays_may_be_read_only_and_run_backwards(name, shape):
    arrays = sample(shape)
    backwards = tuple(np.flip(np.flip(array).copy()) for array in arrays)
    for array in backwards:
        array.flags.writeable = False
    for seed in range(10):
        for how in (AUGMENTATIONS[name], AUGMENTATIONS[name].finish):
            pair = (how(given, np.random.default_rng(seed)) for given in (arrays, backwards))
            assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(*pair, strict=True))


# ---- no strength, no change -----------------------------------------------------------------------------------------
def test_strong_without_any_share_changes_nothing(monkeypatch):
    only(monkeypatch)
    arrays = sample()
    assert all(equal(AUGMENTATIONS["strong"](arrays, np.random.default_rng(seed)), arrays) for seed in range(5))


def test_strong_without_strength_changes_nothing(monkeypatch):
    only(monkeypatch, *set(STRONG_SHARES) - {"mirror"})
    for name in ("ROTATION_DEG", "NOISE", "BRIGHTNESS", "CONTRAST"):
        monkeypatch.setattr(module, f"STRONG_{name}", 0.0)
    for name, value in {"SCALE": 1.0, "BLUR": 0.0, "RESOLUTION": 1.0, "GAMMA": 1.0}.items():
        monkeypatch.setattr(module, f"STRONG_{name}", (value, value))
    image, target, mask = sample()
    again = AUGMENTATIONS["strong"]((image, target, mask), np.random.default_rng(0))
    assert np.allclose(again[0], image, atol=1e-4) and equal(again[1:], (target, mask))


def test_published_without_strength_only_cuts_at_its_window(monkeypatch):
    monkeypatch.setattr(module, "PUBLISHED_ROTATION_DEG", 0.0)
    monkeypatch.setattr(module, "PUBLISHED_ZOOM", (1.0, 1.0))
    monkeypatch.setattr(module, "PUBLISHED_PERCENTILES", ((1.0, 1.0), (99.0, 99.0)))
    monkeypatch.setattr(module, "mirrored", lambda arrays, *_, **__: arrays)
    image, target, mask = sample(channels=1)
    again = AUGMENTATIONS["published"]((image, target, mask), np.random.default_rng(0))
    low, high = np.percentile(image[:, mask > 0], [1, 99])
    assert np.allclose(again[0], np.where(mask, np.clip(image, low, high), image), atol=1e-4)
    assert equal(again[1:], (target, mask))


@pytest.mark.parametrize("name", sorted(INTENSITIES))
def test_each_change_of_intensities_does_something_and_moves_nothing(name, monkeypatch):
    only(monkeypatch, name)
    arrays = sample()
    image, target, mask = AUGMENTATIONS["strong"](arrays, np.random.default_rng(3))
    assert not np.allclose(image, arrays[0], atol=1e-3) and equal((target, mask), arrays[1:])


# ---- turning --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("axis", range(3))
def test_a_quarter_turn_is_that_of_the_array(axis):
    image, target, mask = sample((9, 9, 9))
    angles = np.zeros(3)
    angles[axis] = 90
    turned = turned_window([image], target, mask, (0, 0, 0), mask.shape, turn_matrix(angles, (1, 1, 1)))
    plane = [(1, 2), (2, 0), (0, 1)][axis]
    # The array's own quarter turn takes voxels the other way round.
    expected = [np.rot90(array, -1, [axis - 3 for axis in plane]) for array in (image, target, mask)]
    assert np.allclose(turned[0], expected[0], atol=1e-4) and equal(turned[1:], expected[1:])


@pytest.mark.parametrize(
    ("corner", "size"), [((3, 4, 2), (10, 8, 9)), ((-2, 0, 1), (20, 18, 1)), ((12, 9, 8), (9, 9, 9))]
)
def test_turning_is_linear_interpolation_in_the_volume_with_zeros_beyond(corner, size):
    image, target, mask = sample((20, 18, 16))
    angles = (20, -15, 40) if min(size) > 1 else (0, 0, 40)
    turn = turn_matrix(angles, (0.8, 1.3, 1.0))
    found = turned_window([image], target, mask, corner, size, turn)
    half = (np.array(size) - 1) / 2
    offsets = np.indices(size).reshape(3, -1) - half[:, None]
    places = turn @ offsets + (np.array(corner) + half)[:, None]

    def at(values):
        return ndimage.map_coordinates(values.astype(float), places, order=1, mode="grid-constant").reshape(size)

    assert np.allclose(found[0], [at(channel) for channel in image], atol=1e-4)
    for mine, values in ((found[1][0], at(target[0])), (found[2], at(mask))):
        sure = np.abs(values - 0.5) > 1e-4
        assert np.array_equal(mine[sure], values[sure] > 0.5) and sure.mean() > 0.9


def test_what_turns_into_view_is_read_from_the_volume_and_black_only_beyond_it():
    ones = np.ones((1, 40, 40, 40), np.float32)
    turn = turn_matrix((30, 30, 30), (1.4, 1.4, 1.4))
    image, target, mask = turned_window([ones], ones.astype(np.uint8), ones[0] > 0, (16, 16, 16), (8, 8, 8), turn)
    assert np.allclose(image, 1, atol=1e-5) and target.all() and mask.all()
    image, target, mask = turned_window([ones], ones.astype(np.uint8), ones[0] > 0, (0, 0, 0), (8, 8, 8), turn)
    assert image.max() <= 1 + 1e-5 and image[0, 0, 0, 0] == 0 and not mask[0, 0, 0] and mask[-1, -1, -1]
    assert np.array_equal(target[0] > 0, mask) and np.array_equal(image[0] >= 0.5, mask)


def test_the_voxels_read_for_a_straight_turn_are_the_window_itself():
    image, target, mask = sample((20, 18, 16))
    place = (3, 4, 2), (10, 8, 9)
    straight = window([image], target, mask, *place)
    turned = turned_window([image], target, mask, *place, np.eye(3))
    assert np.allclose(turned[0], straight[0], atol=1e-5) and equal(turned[1:], straight[1:])


def test_values_are_interpolated_inside_the_mask_and_labels_are_not():
    _, blob, mask = sample((16, 16, 16))
    turn = turn_matrix((10, 20, 30), (1, 1, 1))
    target = np.where(mask, np.float32(7), np.float32(np.nan))[None]
    _, moved, inside = turned_window([target], target, mask, (0, 0, 0), mask.shape, turn)
    assert np.allclose(moved[0][inside > 0], 7, atol=1e-4) and not moved[0][inside == 0].any()
    ramp = np.indices((16, 16, 16))[0][None].astype(np.float32)
    _, moved, _ = turned_window([ramp], ramp, np.ones_like(mask), (4, 4, 4), (8, 8, 8), turn)
    assert moved.dtype == np.float32 and len(np.unique(moved.round(3))) > 100
    _, moved, _ = turned_window([ramp], blob, mask, (4, 4, 4), (8, 8, 8), turn)
    assert set(np.unique(moved)) == {0, 1}


@pytest.mark.parametrize(
    ("size", "still"), [((64, 64, 1), {2}), ((1, 64, 64), {0}), ((32, 32, 8), {2}), ((64, 1, 1), {1, 2})]
)
def test_thin_axes_are_not_turned(size, still):
    for seed in range(30):
        turn = strong_turn(size, np.random.default_rng(seed))
        if turn is not None:
            for axis in still:
                assert np.array_equal(turn[axis], np.eye(3)[axis]) and np.array_equal(turn[:, axis], np.eye(3)[axis])


@pytest.mark.parametrize("size", [(64, 64, 64), (64, 64, 1)])
def test_strong_turns_and_scales_a_fifth_of_the_samples_each_within_its_bounds(size):
    rng = np.random.default_rng(0)
    turns = [strong_turn(size, rng) for _ in range(4000)]
    assert np.mean([turn is None for turn in turns]) == pytest.approx(0.8**2, abs=0.03)
    scales = [np.linalg.norm(turn[:, 0]) for turn in turns if turn is not None]
    assert 0.7 <= min(scales) < 0.72 and 1.38 < max(scales) <= 1.4
    rotated = [abs(turn[0, 1]) > 1e-6 for turn in turns if turn is not None]
    assert sum(rotated) / 4000 == pytest.approx(0.2, abs=0.03)


def test_published_stays_in_the_plane_of_the_first_axes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        turn = published_turn((64, 64, 64), rng)
        assert np.array_equal(turn[2], [0, 0, 1]) and np.array_equal(turn[:, 2], [0, 0, 1])
        angle = np.rad2deg(np.arctan2(turn[1, 0], turn[0, 0]))
        assert 0 < abs(angle) <= 15 and 1 / 1.1 <= np.linalg.norm(turn[:, 0]) <= 1 / 0.9
    image, target, mask = sample()
    for seed in range(20):
        flipped = published_augmentation((image, target, np.zeros_like(mask)), np.random.default_rng(seed))[1]
        assert any(np.array_equal(flipped, np.flip(target, axes)) for axes in ((), (1,), (2,), (1, 2)))


# ---- intensities ----------------------------------------------------------------------------------------------------
def test_a_constant_image_stays_constant_to_its_border(monkeypatch):
    only(monkeypatch, *INTENSITIES)
    for shape in SHAPES:
        ones = np.ones((1, *shape), np.float32)
        image, _, _ = strong_augmentation((ones, ones, ones[0]), np.random.default_rng(0))
        assert np.ptp(image) < 1e-5 and image.mean() > 0.7


@pytest.mark.parametrize("name", ["gamma", "gamma_inverted"])
def test_gamma_keeps_mean_deviation_and_order(name, monkeypatch):
    only(monkeypatch, name)
    arrays = sample(channels=1)
    image = strong_augmentation(arrays, np.random.default_rng(1))[0]
    assert image.mean() == pytest.approx(arrays[0].mean(), abs=1e-4)
    assert image.std() == pytest.approx(arrays[0].std(), rel=1e-3)
    assert np.array_equal(np.argsort(arrays[0], axis=None), np.argsort(image, axis=None))


def test_contrast_keeps_the_mean_and_the_range(monkeypatch):
    only(monkeypatch, "contrast")
    arrays = sample(channels=1)
    for seed in range(10):
        image = strong_augmentation(arrays, np.random.default_rng(seed))[0]
        assert image.mean() == pytest.approx(arrays[0].mean(), abs=0.01)
        assert arrays[0].min() - 1e-6 <= image.min() and image.max() <= arrays[0].max() + 1e-6


def test_noise_is_in_the_images_own_deviation(monkeypatch):
    only(monkeypatch, "noise")
    image, target, mask = sample((32, 32, 32), channels=1)
    added = [
        strong_augmentation((scale * image, target, mask), np.random.default_rng(4))[0] - scale * image
        for scale in (1, 100)
    ]
    assert np.allclose(100 * added[0], added[1], atol=1e-2) and 0 < added[0].std() < 0.1 * image.std()


@pytest.mark.parametrize("name", ["blur", "low_resolution"])
@pytest.mark.parametrize("shape", [(16, 16, 4), (4, 16, 16), (16, 4, 16)])
def test_thick_slices_are_not_smoothed_into_each_other(name, shape, monkeypatch):
    only(monkeypatch, name)
    thin = shape.index(4)
    image = np.broadcast_to(np.arange(4.0).reshape([-1 if axis == thin else 1 for axis in range(3)]), shape)
    arrays = image[None].astype(np.float32), np.zeros((1, *shape), np.uint8), np.ones(shape, np.uint8)
    assert np.allclose(strong_augmentation(arrays, np.random.default_rng(0))[0], arrays[0], atol=1e-5)


def test_the_published_window_leaves_what_is_outside_the_mask_and_the_scale():
    image, _, mask = sample(channels=1)
    image = 100 * image + 500
    for seed in range(10):
        changed = published_augmentation((image, mask[None], mask), np.random.default_rng(seed))
        inside, outside = changed[0][0][changed[2] > 0], changed[0][0][changed[2] == 0]
        assert np.array_equal(np.sort(outside), np.sort(image[0][mask == 0]))
        first, last = np.percentile(image[0][mask > 0], [1, 99])
        assert inside.min() == pytest.approx(first, rel=1e-3) and inside.max() == pytest.approx(last, rel=1e-3)


def test_a_sample_without_mask_or_of_one_value_is_no_matter_for_the_published_window():
    image, target, mask = sample()
    for arrays in ((image, target, np.zeros_like(mask)), (np.ones_like(image), target, mask)):
        changed = published_augmentation(arrays, np.random.default_rng(0))[0]
        assert np.array_equal(np.sort(changed, axis=None), np.sort(arrays[0], axis=None))
