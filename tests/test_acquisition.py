"""Samples as coarser scans would have shown them: the image changes, by the laws of slices, and nothing else does."""

import json
from pathlib import Path

import numpy as np
import pytest

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.preprocessing.geometry import thick_slices
from reperfuse.training.acquisition import (
    ACQUISITIONS,
    Slices,
    anisotropic_samples,
    as_acquired,
    random_slices,
    synthseg_slices,
)
from reperfuse.training.samples import PatchSamples, Subject
from reperfuse.training.sampling import Sampling

COARSE = sorted(set(ACQUISITIONS) - {"none"})
SPACING = (1.0, 1.0, 1.0)
OWN = {"i": 1.0, "j": 1.0, "k": 1.0}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def draws(draw, n: int = 400) -> list[list[Slices]]:
    rng = np.random.default_rng(0)
    return [list(draw(dict(OWN), rng)) for _ in range(n)]


def roughness(image: np.ndarray) -> float:
    return float(sum(np.diff(image, axis=axis).std() for axis in (1, 2, 3)))


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_shape_and_type_stay_and_the_same_generator_gives_the_same(name: str) -> None:
    image = noise(2, 16, 18, 20)
    for seed in range(6):
        once, again = (ACQUISITIONS[name](image.copy(), SPACING, np.random.default_rng(seed)) for _ in range(2))
        assert once.shape == image.shape and once.dtype == np.float32
        np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_constant_image_stays_as_it_is(name: str) -> None:
    image = np.full((1, 12, 12, 12), 3.0, np.float32)
    for seed in range(12):
        np.testing.assert_allclose(ACQUISITIONS[name](image, SPACING, np.random.default_rng(seed)), 3.0, rtol=1e-5)


@pytest.mark.parametrize("name", COARSE)
def test_detail_is_lost_and_never_won(name: str) -> None:
    image = noise(1, 24, 24, 24)
    seen = [roughness(ACQUISITIONS[name](image, SPACING, np.random.default_rng(seed))) for seed in range(30)]
    assert max(seen) <= roughness(image) * 1.001 and min(seen) < 0.8 * roughness(image)


def test_slices_are_those_of_the_study() -> None:
    image = noise(1, 16, 16, 30)
    seen = as_acquired(lambda own, rng: [Slices("k", 5.0, 5.0, 1.5)])(image, SPACING, np.random.default_rng(0))
    truth = thick_slices(Volume(image[0], np.eye(4)), 5.0, "k", offset_mm=1.5)
    np.testing.assert_allclose(seen[0], truth.data, atol=1e-6)


def test_every_channel_is_seen_through_the_same_slices() -> None:
    image = noise(1, 16, 16, 16)
    both = np.concatenate([image, 2 * image + 1])
    seen = ACQUISITIONS["slices"](both, SPACING, np.random.default_rng(4))
    np.testing.assert_allclose(seen[1], 2 * seen[0] + 1, atol=1e-5)


def test_thickness_is_even_from_one_to_ten_millimetres_along_every_axis_and_anywhere() -> None:
    found = [slices for (slices,) in draws(random_slices)]
    thickness = np.array([slices.thickness_mm for slices in found])
    assert thickness.min() < 1.3 and thickness.max() > 9.7
    np.testing.assert_allclose(np.quantile(thickness, [0.25, 0.5, 0.75]), [3.25, 5.5, 7.75], atol=0.7)
    assert all(sum(slices.axis == axis for slices in found) > 90 for axis in OWN)
    place = np.array([slices.offset_mm / slices.thickness_mm for slices in found])
    assert place.min() > -0.5 and place.max() < 0.5 and abs(place.mean()) < 0.06
    assert all(slices.spacing_mm == slices.thickness_mm for slices in found)


def test_slices_thinner_than_a_voxel_change_nothing() -> None:
    image, rng = noise(1, 8, 8, 8), np.random.default_rng(0)
    assert as_acquired(random_slices)(image, (10.0, 10.0, 10.0), rng) is image


def test_synthseg_goes_along_one_axis_mostly_and_never_beyond_its_bounds() -> None:
    coarse = [[slices for slices in found if slices.spacing_mm > 1] for found in draws(synthseg_slices)]
    counts = np.bincount([len(found) for found in coarse], minlength=4)
    assert counts[2] == 0 and 4 <= counts[0] <= 40 and 15 <= counts[3] <= 70 and counts[1] > 300
    assert max(found[0].spacing_mm for found in coarse if len(found) == 1) < 8
    assert max(found[0].spacing_mm for found in coarse if len(found) == 3) < 4


def test_without_a_profile_what_is_finer_than_the_samples_is_aliased() -> None:
    # Every other voxel is bright: slices average that away, samples two voxels apart see one kind only.
    image = np.tile(np.array([0.0, 1.0], np.float32), 12)[None, None, None] * np.ones((1, 4, 4, 1), np.float32)
    rng = np.random.default_rng(0)
    thin = as_acquired(lambda own, rng: [Slices("k", 1 + 1e-6, 2.0, 0.5)])(image, SPACING, rng)
    thick = as_acquired(lambda own, rng: [Slices("k", 4.0, 2.0)])(image, SPACING, rng)
    assert abs(thin[..., 4:-4].mean() - 0.5) > 0.49
    np.testing.assert_allclose(thick[..., 4:-4], 0.5, atol=0.02)
    spread = [slices.spacing_mm for (slices,) in draws(anisotropic_samples)]
    assert 1.5 <= min(spread) < 1.6 and 4.9 < max(spread) <= 5


def test_an_axis_of_one_voxel_is_left_alone() -> None:
    image = noise(1, 12, 12, 1)
    for name in COARSE:
        for seed in range(8):
            assert ACQUISITIONS[name](image, SPACING, np.random.default_rng(seed)).shape == image.shape


# ---- as part of a sample --------------------------------------------------------------------------------------------
@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A ball in noise on voxels of 2 mm."""
    i, j, k = np.indices((24, 24, 24))
    ball = (i - 12) ** 2 + (j - 12) ** 2 + (k - 12) ** 2 < 30
    for name, array in (
        ("image", noise(1, 24, 24, 24) + 4 * ball[None]),
        ("target", ball[None].astype(np.uint8)),
        ("mask", np.ones((24, 24, 24), np.uint8)),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "subject.json").write_text(json.dumps({"affine": np.diag([2.0, 2.0, 2.0, 1.0]).tolist()}))
    return Subject("sub-1", tmp_path)


@pytest.mark.parametrize("name", COARSE)
def test_a_sample_keeps_its_target_mask_and_place(subject: Subject, name: str) -> None:
    plain, coarse = (
        PatchSamples([subject], n_samples=24, patch_size=(16, 16, 16), acquisition=how, seed=3)
        for how in ("none", name)
    )
    differ = 0
    for index in range(24):
        a, b = plain[index], coarse[index]
        assert (a["target"] == b["target"]).all() and (a["mask"] == b["mask"]).all()
        differ += bool((a["image"] != b["image"]).any())
    assert differ >= 1


def test_a_sample_knows_the_size_of_its_voxels(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setitem(ACQUISITIONS, "slices", lambda image, spacing_mm, rng: asked.append(tuple(spacing_mm)) or image)
    PatchSamples([subject], n_samples=1, patch_size=(8, 8, 8), acquisition="slices")[0]
    assert asked == [(2.0, 2.0, 2.0)]


def test_only_its_share_of_the_samples_is_made_coarser(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    monkeypatch.setitem(ACQUISITIONS, "slices", lambda image, spacing_mm, rng: reached.append(1) or image)
    for share, low, high in ((0.0, 0, 0), (0.5, 18, 42), (1.0, 60, 60)):
        reached.clear()
        samples = PatchSamples(
            [subject], n_samples=60, patch_size=(8, 8, 8), acquisition="slices", acquisition_share=share
        )
        assert all(samples[index]["image"].shape == (1, 8, 8, 8) for index in range(60))
        assert low <= len(reached) <= high


def test_an_unknown_acquisition_and_one_of_single_slices_are_refused(subject: Subject) -> None:
    with pytest.raises(InputError, match="choose one of none, slices"):
        PatchSamples([subject], n_samples=1, acquisition="thick")
    with pytest.raises(InputError, match="no neighbours"):
        PatchSamples([subject], n_samples=1, sampling=Sampling("slices"), acquisition="slices")
