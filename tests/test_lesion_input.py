"""From images to channels: one grid by what the headers say, what is missing is 0, what is not brain is 0."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume, save_volume
from reperfuse.params import LesionPreprocess
from reperfuse.preprocessing.geometry import reorient, resample
from reperfuse.stages.lesion_input import given_brain, network_input, on_grid_of, on_model_grid, paths_of, read_images
from reperfuse.stages.skull_strip import brain_by_program

DIFFUSION = LesionPreprocess(modalities=("dwi", "adc", "flair"), spacing_mm=2.0)


def bumps(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """A smooth function of the place in the scanner [mm], seen on any grid; a head of 60 mm about the origin."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    head = x**2 / 60**2 + y**2 / 50**2 + z**2 / 40**2 < 1
    return Volume((head * (200 + 40 * np.sin(x / 20) + 30 * np.cos(y / 15 + z / 25))).astype(np.float32), affine)


def centred(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return affine


@pytest.fixture(scope="module")
def diffusion() -> dict[str, Volume]:
    """DWI and ADC on one grid, FLAIR on another: finer, shifted, with its axes turned."""
    shape, fine = (70, 60, 50), (120, 130, 40)
    dwi = bumps(shape, centred((2.0, 2.0, 2.0), shape))
    flair_affine = centred((1.0, 1.0, 3.0), fine)
    flair_affine[:3, 3] += (3.0, -4.0, 2.0)
    return {"dwi": dwi, "adc": replace(dwi, data=dwi.data * 3), "flair": reorient(bumps(fine, flair_affine), "LIP")}


def test_images_of_several_grids_meet_by_their_headers(diffusion) -> None:
    grid = on_model_grid(diffusion, DIFFUSION)
    assert grid.data.shape[3] == 3 and grid.spacing_mm == pytest.approx((2, 2, 2))
    dwi, adc, flair = np.moveaxis(grid.data, -1, 0)
    np.testing.assert_allclose(adc, dwi * 3, rtol=1e-6)
    inside = ndimage.binary_erosion((dwi > 0) & (flair > 0), iterations=4)
    assert inside.sum() > 5000
    assert np.abs(flair - dwi)[inside].max() < 6  # of 200: what interpolation loses; a voxel's shift costs 15


def test_the_order_of_the_channels_is_that_of_the_parameters(diffusion) -> None:
    turned = DIFFUSION.model_copy(update={"modalities": ("adc", "dwi")})
    grid = on_model_grid(diffusion, turned)
    np.testing.assert_allclose(grid.data[..., 0], grid.data[..., 1] * 3, rtol=1e-6)


def test_a_missing_modality_is_a_channel_of_zeros_before_and_after_normalisation(diffusion) -> None:
    there = {name: diffusion[name] for name in ("dwi", "flair")}
    for normalisation in ("zscore", "roi_minmax", "window", "none"):
        settings = DIFFUSION.model_copy(update={"normalisation": normalisation})
        array, brain = network_input(on_model_grid(there, settings), settings)
        assert array.shape[0] == 3 and not array[1].any() and array[0].any() and array[2].any()
        assert brain.any()


def test_without_the_first_modality_the_next_one_gives_the_grid(diffusion) -> None:
    grid = on_model_grid({"flair": diffusion["flair"]}, DIFFUSION)
    assert not grid.data[..., :2].any()
    alone = resample(reorient(diffusion["flair"], "RAS"), spacing_mm=2.0)
    assert grid.on_grid_of(alone)
    np.testing.assert_array_equal(grid.data[..., 2], alone.data)


def test_any_orientation_gives_the_same_grid(diffusion) -> None:
    settings = LesionPreprocess(spacing_mm=3.0)
    straight = on_model_grid({"t1w": diffusion["dwi"]}, settings)
    for codes in ("LPI", "SAR", "PIL"):
        turned = on_model_grid({"t1w": reorient(diffusion["dwi"], codes)}, settings)
        assert turned.on_grid_of(straight)
        np.testing.assert_allclose(turned.data, straight.data, atol=1e-3)


@pytest.mark.parametrize("shape", [(64, 64, 64), (128, 128, 128), (64, 48, 33)])
def test_downsizing_keeps_the_field_of_view_and_gives_the_voxels_asked_for(diffusion, shape) -> None:
    image = diffusion["flair"]
    settings = LesionPreprocess(grid_shape=shape)
    grid = on_model_grid({"t1w": image}, settings)
    assert grid.data.shape == (*shape, 1)
    extent = np.multiply(reorient(image, "RAS").spacing_mm, reorient(image, "RAS").data.shape)
    np.testing.assert_allclose(np.multiply(grid.spacing_mm, shape), extent)


def test_padding_adds_zeros_and_moves_nothing(diffusion) -> None:
    image = {"t1w": diffusion["dwi"]}
    plain = on_model_grid(image, LesionPreprocess(spacing_mm=3.0))
    padded = on_model_grid(image, LesionPreprocess(spacing_mm=3.0, pad_multiple=16))
    assert all(n % 16 == 0 for n in padded.data.shape[:3]) and padded.data.shape > plain.data.shape
    assert padded.data.sum(dtype=float) == pytest.approx(plain.data.sum(dtype=float))
    answer = padded.data[..., 0] / padded.data.max()
    back = on_grid_of(Volume(plain.data[..., 0], plain.affine), answer, padded)
    np.testing.assert_allclose(back, plain.data[..., 0] / padded.data.max(), atol=1e-5)


def test_what_the_skull_strip_takes_away_is_zero_in_every_channel(diffusion, tmp_path: Path) -> None:
    cut = diffusion["dwi"].data.copy()
    cut[:35] = 0
    save_volume(tmp_path / "brain.nii.gz", Volume((cut > 0).astype(np.uint8), diffusion["dwi"].affine))
    settings = DIFFUSION.model_copy(update={"skull_strip": "given"})
    grid = on_model_grid(diffusion, settings, tmp_path / "brain.nii.gz")
    left = grid.affine[0, 3] + np.arange(grid.data.shape[0]) * 2.0 < -1
    assert not grid.data[left].any() and grid.data[~left].any(axis=(0, 1, 2)).all()


def test_threshold_strip_keeps_the_largest_body(diffusion) -> None:
    data = diffusion["dwi"].data.copy()
    data[:3, :3, :3] = 500
    image = {"t1w": Volume(data, diffusion["dwi"].affine)}
    kept, cut = (on_model_grid(image, LesionPreprocess(skull_strip=rule)).data for rule in ("none", "threshold"))
    assert kept[0, 0, 0, 0] > 0 and cut[0, 0, 0, 0] == 0 and cut.any()


def test_a_brain_mask_is_looked_for_where_its_image_lies(tmp_path: Path) -> None:
    given, image = LesionPreprocess(skull_strip="given"), "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz"
    assert given_brain(tmp_path, image, LesionPreprocess()) is None
    with pytest.raises(InputError, match="holds 0 brain masks"):
        given_brain(tmp_path, image, given)
    folder = tmp_path / "derivatives" / "brain" / "sub-1" / "ses-1" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-1_ses-1_desc-brain_mask.nii.gz").touch()
    assert given_brain(tmp_path, image, given) == folder / "sub-1_ses-1_desc-brain_mask.nii.gz"
    (folder / "another_mask.nii.gz").touch()
    with pytest.raises(InputError, match="holds 2 brain masks"):
        given_brain(tmp_path, image, given)


def test_a_brain_mask_elsewhere_in_space_is_refused(diffusion, tmp_path: Path) -> None:
    affine = diffusion["dwi"].affine.copy()
    affine[:3, 3] += 1000
    save_volume(tmp_path / "brain.nii.gz", Volume(np.ones((5, 5, 5), np.uint8), affine))
    with pytest.raises(InputError, match=r"brain\.nii\.gz.*lies nowhere in the image"):
        on_model_grid(diffusion, DIFFUSION.model_copy(update={"skull_strip": "given"}), tmp_path / "brain.nii.gz")


# ---- reading --------------------------------------------------------------------------------------------------------
def test_a_subject_with_none_of_the_modalities_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sub-7 has t1w, none of .*dwi, adc, flair"):
        read_images(tmp_path, "sub-7", {"t1w": "a.nii.gz"}, DIFFUSION)
    row = {"participant_id": "sub-7", "t1w": "a.nii.gz", "dwi": float("nan"), "adc": None, "flair": float("nan")}
    assert paths_of(row) == {"t1w": "a.nii.gz"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: np.full_like(data, 7), "is 7 in every voxel"),
        (lambda data: np.stack([data, data], -1), "has 2 frames"),
    ],
)
def test_an_image_that_was_spoilt_in_the_tree_is_named(diffusion, tmp_path: Path, spoil, words: str) -> None:
    data = spoil(diffusion["dwi"].data)
    save_volume(tmp_path / "dwi.nii.gz", Volume(data, diffusion["dwi"].affine))
    with pytest.raises(InputError, match=rf"dwi\.nii\.gz.*{words}"):
        read_images(tmp_path, "sub-7", {"dwi": "dwi.nii.gz"}, DIFFUSION)


def test_voxels_without_a_value_become_zero_and_are_told(diffusion, tmp_path: Path) -> None:
    data = diffusion["dwi"].data.copy()
    data[0, 0, :3] = np.nan
    save_volume(tmp_path / "dwi.nii.gz", Volume(data, diffusion["dwi"].affine))
    image = read_images(tmp_path, "sub-7", {"dwi": "dwi.nii.gz"}, DIFFUSION)["dwi"]
    assert np.isfinite(image.data).all() and "3 voxels without a value" in " ".join(image.notes)


# ---- programs that find the brain -----------------------------------------------------------------------------------
FAKE = """#!{python}
import shutil, sys
arguments = sys.argv[1:]
source = arguments[arguments.index("-i") + 1]
{action}
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program of that name on PATH, which does what it is told with its arguments."""

    def put(name: str, action: str) -> None:
        import sys

        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(FAKE.format(python=sys.executable, action=action))
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put


MASK_OF = {
    "hd-bet": ("hd-bet", 'shutil.copy(source, arguments[arguments.index("-o") + 1].replace(".nii.gz", "_bet.nii.gz"))'),
    "synthstrip": ("mri_synthstrip", 'shutil.copy(source, arguments[arguments.index("-m") + 1])'),
}


@pytest.mark.parametrize("name", MASK_OF)
def test_a_program_on_path_finds_the_brain(diffusion, program, name: str) -> None:
    program(*MASK_OF[name])
    for rule in ("LIP", "RAS"):
        image = reorient(diffusion["dwi"], rule)
        found = reorient(brain_by_program(image, name), rule)
        assert found.on_grid_of(image)
        np.testing.assert_array_equal(found.data > 0, image.data > 0)
    grid = on_model_grid({"t1w": diffusion["dwi"]}, LesionPreprocess(skull_strip=name))
    assert grid.data.any()


@pytest.mark.parametrize(
    ("name", "action"),
    itertools.product(MASK_OF, ['sys.exit("out of memory")', "pass"]),
)
def test_a_program_that_fails_or_writes_nothing_is_said_to(diffusion, program, name: str, action: str) -> None:
    program(MASK_OF[name][0], action)
    words = "found no brain " + (r"\(out of memory\)" if "exit" in action else r"\(status 0\)")
    with pytest.raises(InputError, match=words):
        brain_by_program(diffusion["dwi"], name)


@pytest.mark.parametrize("name", MASK_OF)
def test_a_program_that_is_not_installed_is_named(
    diffusion, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=f"no program {MASK_OF[name][0]} on PATH"):
        brain_by_program(diffusion["dwi"], name)
