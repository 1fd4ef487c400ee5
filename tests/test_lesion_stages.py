"""ISLES'22 from the inbox to what networks read: three grids, one channel each, what is missing said and 0."""

from pathlib import Path

import numpy as np
import pytest
from lesion_files import write_set

from reperfuse.errors import InputError
from reperfuse.files import read_json
from reperfuse.imaging.volume import Volume
from reperfuse.params import Params
from reperfuse.stages import lesion
from reperfuse.stages.ingest import ingest
from reperfuse.training.samples import Subject

FULL, PART = "sub-strokecase0001", "sub-strokecase0002"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with two subjects in its tree, the second without FLAIR and without a lesion."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "inbox", FULL)
    write_set(tmp_path / "inbox", PART, flair=None, mask=np.zeros((6, 7, 8), np.float32))
    assert ingest(tmp_path / "inbox", arm="lesion", root=tmp_path) == 0
    return tmp_path


def params(**preprocess: object) -> Params:
    chosen = {"modalities": ["dwi", "adc", "flair"], "spacing_mm": 2.0, "normalisation": "none", **preprocess}
    return Params.model_validate({"lesion": {"preprocess": chosen}})


def test_each_modality_is_a_named_channel_on_the_grid_of_the_first(here: Path) -> None:
    lesion.cohort(params())
    lesion.preprocess(params())
    for participant, missing in ((FULL, []), (PART, ["flair"])):
        folder = here / "data/processed/lesion" / participant
        described = read_json(folder / "subject.json")
        assert described["inputs"] == {"dwi": [0, 1], "adc": [1, 2], "flair": [2, 3]}
        assert described["missing"] == missing and "dwi" in described["images"]
        image, target, _ = Subject(participant, folder).load()
        assert image.shape[0] == 3 and image.shape[1:] == target.shape[1:]
        assert [bool(channel.any()) for channel in image] == [True, True, not missing]
        only, _, _ = Subject(participant, folder, inputs=("adc",)).load()
        np.testing.assert_array_equal(only[0], image[1])
        assert target.any() == (participant == FULL)


def test_the_threshold_to_beat_goes_by_the_first_modality_that_is_there_in_its_own_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    block = np.zeros((6, 7, 8), np.float32)
    block[2:4, 2:5, 3:6] = 1
    write_set(tmp_path / "inbox", FULL, dwi=300 + 200 * block, mask=block)
    assert ingest(tmp_path / "inbox", arm="lesion", root=tmp_path) == 0
    asked = params(modalities=["t1w", "dwi"], spacing_mm=1.0)
    lesion.cohort(asked)
    lesion.preprocess(asked)
    (tmp_path / "results/lesion/folds.csv").write_text(f"participant_id,side,fold,centre\n{FULL},train,0,\n")
    folder = tmp_path / "data/processed/lesion" / FULL
    image, target, _ = Subject(FULL, folder).load()
    assert not image[0].any() and image[1].max() > 300
    affine = np.array(read_json(folder / "subject.json")["affine"])
    found = lesion._threshold_baseline(asked.lesion.preprocess)(Volume(np.moveaxis(image, 0, -1), affine)) > 0
    assert 2 * (found & (target[0] > 0)).sum() / (found.sum() + target.sum()) > 0.8


def test_a_cohort_without_the_modalities_of_the_parameters_is_told_before_any_training(here: Path) -> None:
    asked = params(modalities=["t1w"])
    lesion.cohort(asked)
    with pytest.raises(InputError, match=f"{FULL} has dwi and adc and flair, none of lesion.preprocess.modalities"):
        lesion.preprocess(asked)
