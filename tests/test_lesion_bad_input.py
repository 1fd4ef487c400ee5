"""Everything that is wrong with images and masks, at the door: one sentence, quarantine, and the others go on."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from lesion_files import AFFINES, ATLAS, FLAIR_AFFINE, RELEASED, write_set

from reperfuse.cohort.bids import lesion_cohort
from reperfuse.cohort.inbox import ingest_lesion
from reperfuse.imaging.volume import load_volume

SETS = {"atlas": (ATLAS, "t1w", "sub-r001s00"), "isles": (RELEASED, "dwi", "sub-strokecase000")}
"""Layout, the image the mask lies on, and how subjects are called but for a digit."""


@pytest.fixture(params=list(SETS))
def brought(request, tmp_path):
    """Ingests subject 1 as it is changed by the arguments, and a good subject 2; the outcome of the first."""
    layout, image, stem = SETS[request.param]

    def bring(damage=None, **changes):
        changes = {image if key == "image" else key: value for key, value in changes.items()}
        written = write_set(tmp_path / "inbox", f"{stem}1", layout, "ses-1", **changes)
        if damage:
            which, how = damage
            path = written["mask" if which == "mask" else image]
            path.write_bytes(how(path.read_bytes()))
        write_set(tmp_path / "inbox", f"{stem}2", layout, "ses-1")
        first, second = ingest_lesion(tmp_path / "inbox", tmp_path / "bids", tmp_path / "quarantine")
        assert second.accepted
        return first

    bring.bids, bring.quarantine, bring.affine = tmp_path / "bids", tmp_path / "quarantine/lesion", AFFINES[image]
    return bring


def full(value, shape=(6, 7, 8)):
    return np.full(shape, value, np.float32)


def random(*shape):
    return np.random.default_rng(3).random(shape).astype(np.float32)


def half_nan():
    mask = np.ones((6, 7, 8), np.float32)
    mask[:3] = np.nan
    return mask


REFUSED = {
    "mask of 3": ({"mask": full(3)}, "holds the value 3: a lesion mask has 0 and 1 only"),
    "mask of -1": ({"mask": full(-1)}, "holds the value -1"),
    "mask of probabilities": ({"mask": random(6, 7, 8)}, "a lesion mask has 0 and 1 only"),
    "mask on another grid": ({"mask": nib.Nifti1Image(full(1), FLAIR_AFFINE)}, "one grid|grid of no image"),
    "mask of another shape": ({"mask": full(1, (6, 7, 9))}, "one grid|grid of no image"),
    "mask of two dimensions": ({"mask": full(1, (6, 7))}, "an image needs three axes"),
    "mask of several frames": ({"mask": full(1, (6, 7, 8, 2))}, "has 2 frames: a lesion mask has one"),
    "no mask": ({"mask": None}, "no lesion mask in ses-1: add the mask, an empty one"),
    "constant image": ({"image": full(7)}, "is 7 in every voxel"),
    "image of nothing but NaN": ({"image": full(np.nan)}, "is 0 in every voxel"),
    "image of two dimensions": ({"image": random(6, 7)}, "an image needs three axes"),
    "image of one slice": ({"image": random(6, 7, 1), "mask": full(1, (6, 7, 1))}, "is a single slice"),
    "image of several frames": ({"image": random(6, 7, 8, 5)}, "has 5 frames"),
    "image of colours": ({"image": np.zeros((6, 7, 8), [(c, "u1") for c in "RGB"])}, "colour or complex"),
    "image of micrometres": (
        {
            key: nib.Nifti1Image(data, np.diag([2000.0, 2000, 5000, 1]))
            for key, data in (("image", random(6, 7, 8)), ("mask", full(1)))
        },
        "voxels of 2000 × 2000 × 5000 mm",
    ),
    "mask cut short": ({"damage": ("mask", lambda raw: raw[: len(raw) // 2])}, "cut short or damaged"),
    "image cut short": ({"damage": ("image", lambda raw: raw[: len(raw) // 2])}, "cut short or damaged"),
    "image cut in its header": ({"damage": ("image", lambda raw: raw[:20])}, "cut short or damaged"),
    "image of no bytes": ({"damage": ("image", lambda raw: b"")}, "not a readable NIfTI file"),
    "image of text": ({"damage": ("image", lambda raw: gzip.compress(b"call the ward"))}, "not a readable NIfTI"),
    "image without its checksum": ({"damage": ("image", lambda raw: raw[:-8])}, "cut short or damaged"),
    "mask with another checksum": ({"damage": ("mask", lambda raw: raw[:-8] + bytes(4) + raw[-4:])}, "damaged"),
}


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_subject_that_cannot_be_used_is_one_sentence_in_quarantine(brought, changes, sentence):
    outcome = brought(**changes)
    assert not outcome.accepted
    assert any(part in outcome.reason for part in sentence.split("|")), outcome.reason
    assert outcome.reason.endswith(".")
    assert "\n" not in outcome.reason
    folder = brought.quarantine / outcome.participant_id
    assert (folder / "reason.txt").read_text() == outcome.reason + "\n"
    assert any((folder / "files").rglob("*.nii.gz"))
    assert not (brought.bids / outcome.participant_id).exists()
    assert len(lesion_cohort(brought.bids)) == 1


def test_an_empty_mask_is_legal_and_noted(brought):
    outcome = brought(mask=full(0))
    assert outcome.accepted
    assert "The mask is empty (no lesion)." in outcome.reason
    assert lesion_cohort(brought.bids).lesion_volume_ml[0] == 0


def test_nan_in_a_mask_is_no_lesion_and_counted(brought):
    outcome = brought(mask=half_nan())
    assert outcome.accepted
    assert "168 mask voxels without a value set to 0." in outcome.reason
    assert load_volume(brought.bids / lesion_cohort(brought.bids)["mask"][0]).data.sum() == 168


def test_a_mask_of_one_but_for_rounding_is_a_mask(brought):
    assert brought(mask=full(0.99999)).accepted


def test_a_mask_on_the_same_grid_but_for_rounding_is_on_it(brought):
    assert brought(mask=nib.Nifti1Image(full(1), brought.affine + 1e-6)).accepted


def test_an_image_with_infinities_is_mended_and_noted(brought):
    image = random(6, 7, 8)
    image[0, 0, :2] = np.inf
    outcome = brought(image=image)
    assert outcome.accepted
    assert "2 " in outcome.reason
    assert "voxels without a value set to 0." in outcome.reason


def test_trailing_axes_of_one_are_no_frames(brought):
    outcome = brought(image=random(6, 7, 8, 1, 1), mask=full(1, (6, 7, 8, 1)))
    assert outcome.accepted, outcome.reason
