"""Laws of real lesions in a real head, on heads made for it."""

import numpy as np
import pytest
from nilearn.datasets import load_mni152_template

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.anatomy import TISSUE_T1, Anatomy
from reperfuse.phantoms.semireal import real_anatomy, semi_real_patient

CSF, GREY, WHITE = TISSUE_T1.values()


@pytest.fixture(scope="module")
def template():
    image = load_mni152_template(resolution=2)
    return Volume(np.asarray(image.dataobj, np.float32), np.asarray(image.affine))


def lesion_at(template, place_mm, radius_mm):
    points = np.moveaxis(np.indices(template.data.shape), 0, -1) * 2.0 + template.affine[:3, 3]
    return np.linalg.norm(points - place_mm, axis=-1) <= radius_mm


def test_tissues_of_any_t1w_come_to_the_same_intensities(template):
    plain = real_anatomy(template)
    other = real_anatomy(Volume(30 + 170 * template.data**2 * (template.data > 0), template.affine))
    white, grey = plain.t1w > 0.86, np.abs(plain.t1w - GREY) < 0.02
    assert np.median(other.t1w[white]) == pytest.approx(WHITE, abs=0.03)
    assert np.median(other.t1w[grey & plain.brain]) == pytest.approx(GREY, abs=0.03)
    assert np.abs(np.median(plain.t1w[plain.brain]) - np.median(template.data[plain.brain])) < 0.05


def test_an_image_that_is_no_t1w_or_no_plain_grid_is_refused(template):
    with pytest.raises(ValueError, match="not those of a T1w"):
        real_anatomy(Volume(1 - template.data, template.affine))
    with pytest.raises(ValueError, match="reorient and resample"):
        real_anatomy(Volume(template.data[::-1], template.affine @ np.diag([-1.0, 1, 1, 1])))


def test_the_same_seed_gives_the_same_patient_and_another_seed_or_centre_another(template):
    anatomy, mask = real_anatomy(template), lesion_at(template, (-35, -10, 25), 14)
    first, again = (semi_real_patient(anatomy, mask, 4, centre=1) for _ in range(2))
    assert np.array_equal(first.t1w.data, again.t1w.data) and first.truth == again.truth
    for seed, centre in ((5, 1), (4, 2)):
        other = semi_real_patient(anatomy, mask, seed, centre=centre)
        assert not np.array_equal(first.t1w.data, other.t1w.data)


def test_mask_and_anatomy_move_together(template):
    # A head of white matter with a bright shell around the lesion: the middle of both stays one.
    middle = (-35, -10, 25)
    mask, anatomy = lesion_at(template, middle, 14), real_anatomy(template)
    shell = lesion_at(template, middle, 26) & ~lesion_at(template, middle, 20)
    marked = Anatomy(np.where(shell, np.float32(3.0), np.float32(WHITE)), anatomy.brain, anatomy.origin_mm, 2.0)
    sides, moved = set(), []
    for seed in range(6):
        patient = semi_real_patient(marked, mask, seed, warp_mm=4.0)
        image = patient.t1w.data.astype(float)
        bright = np.argwhere(image > 1.8 * np.median(image)).mean(0)
        lesion = np.argwhere(patient.mask.data).mean(0)
        assert np.linalg.norm(bright - lesion) * 2.0 < 4
        mirror = -1 if patient.truth["mirrored"] else 1
        moved.append(np.linalg.norm(np.array(patient.truth["centre_mm"]) * (mirror, 1, 1) - middle))
        assert (patient.truth["hemisphere"] == "right") == patient.truth["mirrored"]
        sides.add(patient.truth["hemisphere"])
    assert sides == {"left", "right"} and max(moved) > 5


def test_ventricles_are_taken_out_of_a_lesion_and_sulci_are_not(template):
    anatomy = real_anatomy(template)
    mask = lesion_at(template, (-18, -5, 22), 22)
    patient = semi_real_patient(anatomy, mask, 0, warp_mm=0.0)
    ventricle = lesion_at(template, (-9, 2, 18), 3)
    there = ventricle[::-1] if patient.truth["mirrored"] else ventricle
    assert patient.mask.data[there].mean() < 0.5
    assert patient.mask.data.sum() > 0.6 * mask.sum()


@pytest.mark.parametrize("place", [(-35, -10, 25), (-70, -20, 5), (0, -20, -60)])
def test_a_lesion_of_few_voxels_is_never_lost(template, place):
    anatomy = real_anatomy(template)
    mask = lesion_at(template, place, 1.5)
    assert 1 <= mask.sum() <= 4
    for seed in range(4):
        assert semi_real_patient(anatomy, mask, seed).mask.data.any()


def test_an_empty_mask_gives_a_head_without_a_lesion(template):
    patient = semi_real_patient(real_anatomy(template), np.zeros(template.data.shape, bool), 0)
    assert not patient.mask.data.any() and patient.truth["hemisphere"] == "none" and patient.truth["n_components"] == 0
