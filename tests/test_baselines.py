"""Predictors that every model must beat: laws of the threshold and of the distance from a template."""

import weakref

import numpy as np
import pytest

from reperfuse.errors import InputError
from reperfuse.evaluation.baselines import WIDTHS, best_threshold, template_distance

SHAPE = (20, 22, 18)
BRAIN = np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - (10, 11, 9), axis=-1) < 9


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def ball(middle, radius):
    return (np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - middle, axis=-1) <= radius) & BRAIN


def cohort(n, *, seed=0, depth=-5.0, noise=0.2, anatomy=None):
    """Identical brains with noise; every third is free of lesions."""
    rng = np.random.default_rng(seed)
    anatomy = np.random.default_rng(99).normal(size=SHAPE) if anatomy is None else anatomy
    for i in range(n):
        truth = ball(rng.uniform((6, 6, 6), (14, 16, 12)), rng.uniform(2, 4)) if i % 3 else np.zeros(SHAPE, bool)
        yield (anatomy + depth * truth + rng.normal(0, noise, SHAPE)) * BRAIN, truth, BRAIN


def test_a_template_finds_an_obvious_lesion_in_identical_brains():
    best = template_distance(lambda: cohort(12))
    assert best.side == "below" and best.dice > 0.9
    for image, truth, mask in cohort(9, seed=5):
        assert dice(best(image, mask), truth) > 0.9 if truth.any() else best(image, mask).sum() < 3


def test_it_finds_there_what_no_threshold_can():
    # The lesion makes a voxel darker by less than the anatomy's standard deviation.
    subjects = list(cohort(12, depth=-0.8, noise=0.1))
    assert best_threshold(subjects, edges=np.linspace(-4, 4, 161)).dice < 0.4
    assert template_distance(lambda: subjects).dice > 0.85


def test_bright_lesions_are_found_on_their_side():
    best = template_distance(lambda: cohort(12, depth=5.0))
    assert best.side in ("above", "both") and best.dice > 0.9


def test_dark_and_bright_lesions_are_found_on_both():
    both = [*cohort(12, depth=5.0), *cohort(12, seed=1, depth=-5.0)]
    best = template_distance(lambda: both)
    assert best.side == "both" and best.dice > 0.9


def test_smoothing_is_chosen_where_noise_asks_for_it():
    assert template_distance(lambda: cohort(12, depth=-0.8, noise=0.8)).width > 0
    assert template_distance(lambda: cohort(12)).width == 0


def test_a_subject_is_compared_with_the_others_and_not_with_itself():
    # Each brain is noise alone: with its own share in mean and spread, a voxel is never far from three.
    rng = np.random.default_rng(0)
    images = [rng.normal(size=SHAPE) for _ in range(4)]
    truth = np.zeros(SHAPE, bool)
    truth[10, 11, 9] = True
    subjects = [(image, truth & (i == 0), BRAIN) for i, image in enumerate(images)]
    best = template_distance(lambda: subjects, widths=[0.0])
    chosen = [(images[i] - np.mean([im for j, im in enumerate(images) if j != i], axis=0)) for i in range(4)]
    assert np.isfinite(best.threshold) and np.abs(best.mean - np.mean(images, axis=0))[BRAIN & ~truth].max() < 1e-5
    # The mean Dice of leave-one-out distances, computed by hand for the chosen threshold.
    others = np.stack(images[1:])
    spread = others.std(0, ddof=1)
    floor = 0.1 * np.sqrt(np.median(spread[BRAIN] ** 2))
    z = np.where(BRAIN, chosen[0] / (spread + floor), 0)
    found = {"below": z < best.threshold, "above": z > best.threshold, "both": np.abs(z) > best.threshold}[best.side]
    assert dice(found & BRAIN, truth) == pytest.approx(best.dice, abs=1e-6)


def test_an_artefact_in_one_brain_does_not_widen_the_template():
    subjects = list(cohort(30))
    plain = template_distance(lambda: subjects).spread[10, 11, 9]
    subjects[0][0][10, 11, 9] += 10
    spoiled = template_distance(lambda: subjects).spread[10, 11, 9]
    assert spoiled < 4 * plain < 10 / np.sqrt(30)


def test_places_outside_all_brains_are_never_lesion():
    best = template_distance(lambda: cohort(12))
    everywhere = np.ones(SHAPE, bool)
    assert not best(np.full(SHAPE, -50.0), everywhere)[~BRAIN].any() or best.width > 0


def test_another_grid_and_too_few_subjects_are_refused():
    best = template_distance(lambda: cohort(6), widths=[0.0])
    with pytest.raises(InputError, match="one grid"):
        best(np.zeros((4, 4, 4)), np.ones((4, 4, 4), bool))
    with pytest.raises(InputError, match="one grid"):
        template_distance(lambda: [*cohort(4), (np.zeros((4, 4, 4)), *[np.ones((4, 4, 4), bool)] * 2)])
    with pytest.raises(InputError, match="three training subjects"):
        template_distance(lambda: cohort(2))
    with pytest.raises(InputError, match="no template"):
        template_distance(list)


def test_a_cohort_without_a_lesion_is_refused_by_both():
    healthy = [(image, np.zeros(SHAPE, bool), mask) for image, _, mask in cohort(4)]
    with pytest.raises(InputError, match="lesion"):
        template_distance(lambda: healthy)
    with pytest.raises(InputError, match="lesion"):
        best_threshold(healthy, edges=[0.0])


def test_subjects_are_read_one_at_a_time():
    images, most = [], []

    def subjects():
        for image, truth, mask in cohort(6):
            images.append(weakref.ref(image))
            most.append(sum(reference() is not None for reference in images))
            yield image, truth, mask

    assert template_distance(subjects, widths=WIDTHS[:1]).dice > 0.5
    assert max(most) <= 2  # the one before is let go when the next one is there


def test_the_best_threshold_is_that_of_a_search_by_hand():
    subjects = list(cohort(6, depth=-3.0))
    edges = np.linspace(-4, 4, 33)
    best = best_threshold(subjects, edges=edges)
    ill = [subject for subject in subjects if subject[1].any()]
    by_hand = [np.mean([dice((image < edge) & mask, truth) for image, truth, mask in ill]) for edge in edges]
    assert best.below and best.dice == pytest.approx(max(by_hand)) and best.threshold == edges[np.argmax(by_hand)]
