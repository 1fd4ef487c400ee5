"""`reperfuse segment` and `reperfuse score`: the mask lies where the image does, and every score is told or null."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import lesion_scores
from reperfuse.files import read_json, write_json
from reperfuse.imaging.volume import Volume, load_volume, save_volume
from reperfuse.networks import build_network, save_network
from reperfuse.params import LesionPreprocess
from reperfuse.preprocessing.geometry import reorient
from reperfuse.stages.scoring import score, scores_of
from reperfuse.stages.segment import named_images, segment

SPACING_MM = 2.0
ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that calls what is bright lesion, and looks at its surroundings."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    preprocess = LesionPreprocess(spacing_mm=SPACING_MM).model_dump(mode="json")
    kwargs = {"widths": [4, 8]}
    extra = {
        "arm": "lesion",
        "activation": "sigmoid",
        "preprocess": preprocess,
        "scored_with": {"probability_threshold": 0.4},
    }
    network = build_network("unet3d", **kwargs)
    *_, weight, bias = network.parameters()
    weight.data *= 500
    bias.data = bias.data * 500 - 2.3
    save_network(folder, "unet3d", kwargs, network, extra=extra)
    return folder


@pytest.fixture(scope="module")
def image() -> Volume:
    """Isotropic at the model's spacing, with an odd number of voxels along one axis and an oblique origin."""
    rng = np.random.default_rng(0)
    i, j, k = np.meshgrid(*(np.arange(n) for n in (24, 20, 17)), indexing="ij")
    head = ((i - 11) / 10) ** 2 + ((j - 9) / 8) ** 2 + ((k - 8) / 7) ** 2 < 1
    data = head * (100 + 20 * np.sin(i / 3) + 10 * (j > 9)) + rng.normal(0, 2, head.shape)
    data[5:9, 5:8, 6:10] = 30
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = (-20.5, 7.25, -3.0)
    return Volume(data.astype(np.float32), affine)


@pytest.fixture(scope="module")
def straight(model: Path, image: Volume, tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, Volume]:
    """Mask and probability of the image as it is."""
    room = tmp_path_factory.mktemp("straight")
    save_volume(room / "image.nii.gz", image)
    segment(room / "image.nii.gz", room / "mask.nii.gz", model=str(model), probability=room / "p.nii.gz")
    return load_volume(room / "mask.nii.gz"), load_volume(room / "p.nii.gz")


def test_mask_is_what_of_the_probability_lies_above_the_threshold_of_the_model(
    straight: tuple[Volume, Volume], image: Volume
) -> None:
    mask, probability = straight
    assert mask.on_grid_of(image) and probability.on_grid_of(image)
    assert mask.data.dtype == np.uint8 and probability.data.dtype == np.float32
    assert 0 <= probability.data.min() < 0.4 < probability.data.max() <= 1
    assert np.array_equal(mask.data > 0, probability.data > 0.4) and 0.02 < mask.data.mean() < 0.98


def test_all_48_orientations_of_an_image_give_one_mask_in_space(
    straight: tuple[Volume, Volume], model: Path, image: Volume, tmp_path: Path
) -> None:
    assert len(set(ORIENTATIONS)) == 48
    for codes in ORIENTATIONS:
        turned = reorient(image, codes)
        save_volume(tmp_path / "image.nii.gz", turned)
        segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", model=str(model))
        mask = load_volume(tmp_path / "mask.nii.gz")
        assert mask.on_grid_of(turned), codes
        back = reorient(mask, "RAS")
        assert back.on_grid_of(image) and np.array_equal(back.data, straight[0].data), codes


def test_an_image_of_another_spacing_is_segmented_on_its_own_grid(model: Path, image: Volume, tmp_path: Path) -> None:
    affine = image.affine @ np.diag([0.7, 1.1, 2.3, 1.0])
    coarse = Volume(image.data, affine)
    save_volume(tmp_path / "image.nii.gz", coarse)
    segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", model=str(model))
    mask = load_volume(tmp_path / "mask.nii.gz")
    assert mask.on_grid_of(coarse) and set(np.unique(mask.data)) <= {0, 1}


def test_mirroring_is_an_option_and_a_model_scored_with_it_does_it_unasked(
    straight: tuple[Volume, Volume], model: Path, image: Volume, tmp_path: Path
) -> None:
    averaging = tmp_path / "averaging"
    shutil.copytree(model, averaging)
    described = read_json(averaging / "model.json")
    described["extra"]["scored_with"]["mirror"] = True
    write_json(averaging / "model.json", described)
    save_volume(tmp_path / "image.nii.gz", image)

    def answer(folder: Path, mirror: bool | None) -> np.ndarray:
        out, probability = tmp_path / "mask.nii.gz", tmp_path / "p.nii.gz"
        segment(tmp_path / "image.nii.gz", out, model=str(folder), probability=probability, mirror=mirror)
        return load_volume(probability).data

    asked = answer(model, True)
    assert np.abs(asked - straight[1].data).max() > 1e-3
    np.testing.assert_array_equal(answer(averaging, None), asked)
    np.testing.assert_array_equal(answer(averaging, False), straight[1].data)


def test_voxels_without_a_value_are_told(
    model: Path, image: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = image.data.copy()
    data[0, 0, :3] = np.nan
    save_volume(tmp_path / "image.nii.gz", replace(image, data=data))
    segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", model=str(model))
    said = capsys.readouterr().out
    assert "3 voxels without a value" in said and "mL in" in said and "Research use only" in said


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda data: np.stack([data, data], axis=-1), "has 2 frames"),
        (lambda data: np.full_like(data, 7), "is 7 in every voxel"),
    ],
)
def test_what_is_no_image_of_a_head_is_refused_by_name(
    changed, words: str, model: Path, image: Volume, tmp_path: Path
) -> None:
    data = changed(image.data)
    times = np.arange(2.0) if data.ndim == 4 else None
    save_volume(tmp_path / "image.nii.gz", Volume(data, image.affine, frame_times_s=times))
    with pytest.raises(InputError, match=words) as refusal:
        segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", model=str(model))
    assert "image.nii.gz" in str(refusal.value) and not (tmp_path / "mask.nii.gz").exists()


def test_nothing_is_written_over_the_image_or_under_another_ending(model: Path, image: Volume, tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    save_volume(path, image)
    before = path.read_bytes()
    for out, soft, words in (
        (path, None, "different files"),
        (tmp_path / "m.nii.gz", tmp_path / "m.nii.gz", "different files"),
        (tmp_path / "mask.png", None, "no name for a NIfTI"),
    ):
        with pytest.raises(InputError, match=words):
            segment(path, out, model=str(model), probability=soft)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["image.nii.gz"]


def test_without_a_champion_it_is_said_what_to_do(
    image: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    save_volume(tmp_path / "image.nii.gz", image)
    with pytest.raises(InputError, match=r"lesion arm has no champion.*reperfuse promote lesion"):
        segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz")


# ---- score ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def masks(image: Volume, tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(1)
    truth = np.zeros(image.data.shape, np.uint8)
    truth[5:9, 5:8, 6:10] = truth[15, 10, 8] = 1
    soft = np.clip(truth * 0.6 + rng.uniform(0, 0.5, truth.shape), 0, 1).astype(np.float32)
    affine = image.affine @ np.diag([1.0, 1.5, 2.0, 1.0])
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("truth", "soft", "mask", "empty")}
    for name, data in (("truth", truth), ("soft", soft), ("mask", np.roll(truth, 1, 0)), ("empty", 0 * truth)):
        save_volume(paths[name], Volume(data, affine))
    return paths


def test_scores_of_files_are_those_of_their_arrays_at_their_spacing(
    masks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    score(masks["mask"], masks["truth"], probability=masks["soft"], as_json=True)
    said = json.loads(capsys.readouterr().out)
    predicted, true, soft = (load_volume(masks[name]).data for name in ("mask", "truth", "soft"))
    assert said == lesion_scores(predicted, true, (2, 3, 4), probability=soft)
    assert said["hd95_mm"] and said["pr_auc"]


def test_undefined_is_null_and_a_dash(masks: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    score(masks["empty"], masks["truth"], as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["hd95_mm"] is None and said["precision"] is None and said["dice"] == 0
    score(masks["empty"], masks["truth"])
    table = capsys.readouterr().out
    assert "HD95" in table and "–" in table and "mm" in table


def test_masks_that_do_not_belong_together_are_refused_by_name(masks: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"soft\.nii\.gz holds values other than 0 and 1"):
        scores_of(masks["soft"], masks["truth"])
    truth = load_volume(masks["truth"])
    moved = truth.affine.copy()
    moved[0, 3] += 1
    save_volume(tmp_path / "moved.nii.gz", Volume(truth.data, moved))
    with pytest.raises(InputError, match=r"moved\.nii\.gz lies elsewhere"):
        scores_of(tmp_path / "moved.nii.gz", masks["truth"])
    moved[0, 3] -= 1 - 1e-6
    save_volume(tmp_path / "moved.nii.gz", Volume(truth.data, moved))
    assert scores_of(tmp_path / "moved.nii.gz", masks["truth"])["dice"] == 1


# ---- several modalities, and the operating point ---------------------------------------------------------------------
@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes FLAIR and DWI, in this order, of three processed modalities."""
    folder = tmp_path_factory.mktemp("of-two")
    torch.manual_seed(0)
    preprocess = LesionPreprocess(modalities=("dwi", "adc", "flair"), spacing_mm=SPACING_MM).model_dump(mode="json")
    kwargs = {"widths": [4, 8], "in_channels": 2}
    network = build_network("unet3d", **kwargs)
    *_, weight, bias = network.parameters()
    weight.data *= 500
    bias.data = bias.data * 500
    extra = {"arm": "lesion", "activation": "sigmoid", "preprocess": preprocess, "inputs": ["flair", "dwi"]}
    save_network(folder, "unet3d", kwargs, network, extra=extra)
    return folder


def test_a_model_of_several_modalities_brings_each_in_from_its_own_grid(
    of_two: Path, image: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_volume(tmp_path / "flair.nii.gz", image)
    dwi = replace(image, data=np.abs(image.data[::-1]) ** 1.1)
    save_volume(tmp_path / "dwi.nii.gz", dwi)
    save_volume(tmp_path / "turned.nii.gz", reorient(dwi, "PSL"))

    def found(**others: str) -> np.ndarray:
        files = {name: tmp_path / file for name, file in others.items()}
        out, soft = tmp_path / "mask.nii.gz", tmp_path / "p.nii.gz"
        segment(tmp_path / "flair.nii.gz", out, model=str(of_two), others=files, probability=soft)
        assert load_volume(out).on_grid_of(image)
        return load_volume(soft).data

    both = found(dwi="dwi.nii.gz")
    assert "Without" not in capsys.readouterr().out
    np.testing.assert_allclose(found(dwi="turned.nii.gz"), both, atol=1e-5)
    assert np.abs(found() - both).max() > 0.01
    assert "Without dwi" in capsys.readouterr().out


def test_a_modality_that_the_model_does_not_take_is_refused(of_two: Path, model: Path, tmp_path: Path) -> None:
    for named, words in (
        (of_two, "segments flair and takes dwi beside it"),
        (model, "segments t1w and takes no other"),
    ):
        with pytest.raises(InputError, match=words):
            others = {"adc": tmp_path / "adc.nii.gz"}
            segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", model=str(named), others=others)


@pytest.mark.parametrize("text", ["adc", "adc=", "pet=a.nii.gz"])
def test_a_modality_without_a_name_or_file_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="give NAME=FILE once per image"):
        named_images([text])
    with pytest.raises(InputError, match="once per image"):
        named_images(["adc=a.nii.gz", "ADC=b.nii.gz"])


def test_pieces_too_small_for_the_model_are_taken_away(
    straight: tuple[Volume, Volume], model: Path, image: Volume, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "strict")
    described = read_json(tmp_path / "strict" / "model.json")
    pieces, _ = ndimage.label(straight[0].data, np.ones((3, 3, 3)))
    largest_ml = np.bincount(pieces.ravel())[1:].max() * SPACING_MM**3 / 1000
    save_volume(tmp_path / "image.nii.gz", image)
    for smallest_ml, left in ((largest_ml - 0.001, True), (largest_ml + 0.001, False)):
        described["extra"]["scored_with"]["smallest_ml"] = float(smallest_ml)
        write_json(tmp_path / "strict" / "model.json", described)
        segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", model=str(tmp_path / "strict"))
        assert load_volume(tmp_path / "mask.nii.gz").data.any() == left


def test_a_brain_mask_is_taken_by_models_trained_behind_given_ones_alone(
    model: Path, image: Volume, tmp_path: Path
) -> None:
    save_volume(tmp_path / "image.nii.gz", image)
    brain = tmp_path / "brain.nii.gz"
    save_volume(brain, Volume((image.data > 50).astype(np.uint8), image.affine))
    with pytest.raises(InputError, match="skull strip is none, not given"):
        segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", model=str(model), brain=brain)
    shutil.copytree(model, tmp_path / "given")
    described = read_json(tmp_path / "given" / "model.json")
    described["extra"]["preprocess"]["skull_strip"] = "given"
    write_json(tmp_path / "given" / "model.json", described)
    with pytest.raises(InputError, match="name one with --brain"):
        segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", model=str(tmp_path / "given"))
    segment(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", model=str(tmp_path / "given"), brain=brain)
    assert load_volume(tmp_path / "mask.nii.gz").on_grid_of(image)
