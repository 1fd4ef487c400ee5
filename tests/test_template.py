"""The template's brain follows the image, wherever the header puts it, with the skull or without."""

from pathlib import Path

import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import dice
from reperfuse.imaging.volume import Volume, load_volume
from reperfuse.preprocessing.geometry import reorient
from reperfuse.preprocessing.template import template_mask

CH2 = Path(__file__).parents[2] / "shared" / "data" / "lesions" / "lesymap" / "ch2.nii.gz"


def moved(volume: Volume, degrees: tuple[float, float, float], scale: tuple[float, float, float], shift_mm) -> Volume:
    onto = np.eye(4)
    onto[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * scale
    onto[:3, 3] = shift_mm
    return Volume(volume.data, onto @ volume.affine)


@pytest.fixture(scope="module")
def head() -> tuple[Volume, np.ndarray]:
    """The template within a bright scalp and a dark skull, and its brain."""
    t1w, mask = load_mni152_template(resolution=3), load_mni152_brain_mask(resolution=3)
    brain = np.asarray(mask.dataobj) > 0
    affine = t1w.affine.copy()
    data, brain = np.pad(np.asarray(t1w.dataobj) * brain, 6), np.pad(brain, 6)
    affine[:3, 3] -= affine[:3, :3] @ (6, 6, 6)
    distance = ndimage.distance_transform_edt(~brain)
    data[(distance > 2) & (distance < 5)] = 1.0
    return Volume(data.astype(np.float32), affine), brain


@pytest.mark.parametrize(
    ("degrees", "scale", "shift_mm"),
    [((0, 0, 0), (1, 1, 1), (0, 0, 0)), ((10, -8, 12), (1.08, 0.95, 1.03), (30, -20, 45))],
)
def test_the_brain_is_found_where_an_affine_map_has_put_it(head, degrees, scale, shift_mm) -> None:
    volume, brain = head
    assert dice(template_mask(moved(volume, degrees, scale, shift_mm)), brain) > 0.97


def test_the_mask_turns_with_the_axes(head) -> None:
    volume, brain = head
    turned = reorient(volume, "PSL")
    mask = Volume(template_mask(turned), turned.affine)
    assert dice(reorient(mask, "RAS").data, brain) > 0.97


def test_the_same_image_gives_the_same_mask(head) -> None:
    assert np.array_equal(template_mask(head[0]), template_mask(head[0]))


def test_an_image_without_signal_is_refused() -> None:
    with pytest.raises(InputError, match="No voxel of the image is positive"):
        template_mask(Volume(np.zeros((20, 20, 20), np.float32), np.diag([5.0, 5, 5, 1])))


@pytest.mark.realdata
@pytest.mark.skipif(not CH2.exists(), reason="../shared/data is absent: it holds the real T1w with its skull")
def test_a_real_head_keeps_its_brain_and_loses_its_skull() -> None:
    real = load_volume(CH2)
    mask = template_mask(real)
    assert 1.4e6 < mask.sum() < 2.0e6  # mm³; a whole head has more than 3 L
    turned = moved(real, (-20, 5, -15), (1, 1, 1), (-60, 40, 80))
    assert dice(template_mask(turned), mask) > 0.99
