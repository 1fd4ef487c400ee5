"""Every score against its definition: laws first, brute force on small shapes, then peers where definitions agree."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import (
    METRICS,
    SURFACE_TOLERANCE_MM,
    THICK_GRID,
    average_precision,
    dice,
    lesion_detections,
    lesion_scores,
    map_scores,
    note_of,
    roc_auc,
    structural_similarity,
    surface_distances,
    tmax_scores,
)

LESION_WISE = ("lesion_f1_atlas", "lesion_f1_isles22", "lesion_rq_isles26")
OVERLAP = ("dice", "iou", "surface_dice")
UNIT = (*OVERLAP, "precision", "recall", *LESION_WISE)
ERRORS = ("volume_error_ml", "false_positive_ml", "false_negative_ml", "invented_lesions", "lesion_count_difference")
KEYS = {*UNIT, *ERRORS, "hd95_mm", "assd_mm", "volume_difference_ml", "missed_lesions"}
SYMMETRIC = (*OVERLAP, "hd95_mm", "assd_mm", "volume_error_ml", "lesion_count_difference", "lesion_rq_isles26")

shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6)
pairs = shapes.flatmap(lambda shape: st.tuples(*(hnp.arrays(bool, shape) for _ in range(2))))
sparse = st.tuples(*(hnp.arrays(bool, (3, 4, 9), elements=st.integers(0, 6).map(lambda n: n == 0)) for _ in range(2)))
"""Of several components each."""
spacings = st.tuples(*(st.floats(0.5, 5.0) for _ in range(3)))
ranked = shapes.flatmap(
    lambda shape: st.tuples(hnp.arrays(np.int8, shape, elements=st.integers(0, 4)), hnp.arrays(bool, shape))
)
"""Values with many ties, and a truth."""


def box(shape: tuple[int, int, int], *corners: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*corner) for corner in corners)] = True
    return mask


def brute_surface(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    points = []
    for voxel in np.argwhere(mask):
        for step in (*np.eye(3, dtype=int), *-np.eye(3, dtype=int)):
            beside = voxel + step
            if (beside < 0).any() or (beside >= mask.shape).any() or not mask[tuple(beside)]:
                points.append(voxel * np.array(spacing))
                break
    return np.array(points)


def brute_lesion_f1(prediction: np.ndarray, truth: np.ndarray, connectivity: int) -> float:
    structure = ndimage.generate_binary_structure(3, connectivity)
    (predicted, n_predicted), (true, n_true) = ndimage.label(prediction, structure), ndimage.label(truth, structure)
    hit = sum(bool((prediction & (true == lesion)).any()) for lesion in range(1, n_true + 1))
    extra = sum(not (truth & (predicted == lesion)).any() for lesion in range(1, n_predicted + 1))
    errors = n_true - hit + extra
    return 1.0 if hit + errors == 0 else hit / (hit + errors / 2)


def brute_recognition_quality(prediction: np.ndarray, truth: np.ndarray, least_iou: float) -> float:
    (predicted, n_predicted), (true, n_true) = (ndimage.label(mask, np.ones((3, 3, 3))) for mask in (prediction, truth))
    lesions, found = ([labels == i + 1 for i in range(n)] for labels, n in ((true, n_true), (predicted, n_predicted)))
    iou = {(t, p): (a & b).sum() / (a | b).sum() for t, a in enumerate(lesions) for p, b in enumerate(found)}
    matched = 0
    while iou and max(iou.values()) >= least_iou:
        best = max(iou, key=iou.__getitem__)
        iou = {pair: value for pair, value in iou.items() if pair[0] != best[0] and pair[1] != best[1]}
        matched += 1
    return 2 * matched / (n_true + n_predicted) if n_true + n_predicted else 1.0


@given(pairs, spacings)
@settings(max_examples=30, deadline=None)
def test_scores_have_the_contract_names_and_stay_within_their_bounds(masks, spacing):
    scores = lesion_scores(*masks, spacing)
    assert set(scores) == KEYS
    assert all(scores[name] is None or 0 <= scores[name] <= 1 for name in UNIT)
    assert all(scores[name] is None or scores[name] >= 0 for name in ("hd95_mm", "assd_mm", "missed_lesions"))
    assert all(scores[name] >= 0 for name in ERRORS)


@given(pairs, spacings)
@settings(max_examples=30, deadline=None)
def test_exchanging_prediction_and_truth_exchanges_precision_and_recall_and_the_sign_of_the_volume(masks, spacing):
    here, there = lesion_scores(masks[0], masks[1], spacing), lesion_scores(masks[1], masks[0], spacing)
    assert here["precision"] == there["recall"] and here["recall"] == there["precision"]
    assert here["volume_difference_ml"] == -there["volume_difference_ml"]
    assert [here[name] for name in SYMMETRIC] == pytest.approx([there[name] for name in SYMMETRIC])
    assert here["false_positive_ml"] == there["false_negative_ml"]
    assert here["missed_lesions"] == (there["invented_lesions"] if masks[1].any() else None)


@given(pairs, spacings)
@settings(max_examples=30, deadline=None)
def test_a_mask_agrees_with_itself_perfectly(masks, spacing):
    scores = lesion_scores(masks[0], masks[0], spacing)
    if masks[0].any():
        assert all(scores[name] == 1 for name in UNIT)
        assert scores["hd95_mm"] == scores["assd_mm"] == 0
    assert all(scores[name] == 0 for name in (*ERRORS, "volume_difference_ml"))
    assert scores["missed_lesions"] == (0 if masks[0].any() else None)


@given(pairs, spacings, st.tuples(*(st.integers(0, 3) for _ in range(3))))
@settings(max_examples=30, deadline=None)
def test_moving_both_masks_together_within_a_larger_grid_changes_nothing(masks, spacing, shift):
    moved = [np.pad(mask, [(step, 3 - step + 1) for step in shift]) for mask in masks]
    here, there = lesion_scores(*masks, spacing), lesion_scores(*moved, spacing)
    assert [here[name] for name in KEYS] == pytest.approx([there[name] for name in KEYS])


@given(pairs, spacings, st.permutations(range(3)))
@settings(max_examples=30, deadline=None)
def test_turning_the_axes_with_their_spacing_changes_nothing(masks, spacing, order):
    turned = lesion_scores(*(mask.transpose(order) for mask in masks), [spacing[axis] for axis in order])
    here = lesion_scores(*masks, spacing)
    assert [here[name] for name in KEYS] == pytest.approx([turned[name] for name in KEYS])


@given(pairs, spacings, st.floats(1.5, 4))
@settings(max_examples=30, deadline=None)
def test_distances_grow_with_the_spacing_and_volumes_with_its_cube(masks, spacing, factor):
    here, larger = lesion_scores(*masks, spacing), lesion_scores(*masks, [factor * step for step in spacing])
    if here["assd_mm"] is not None:
        assert larger["assd_mm"] == pytest.approx(factor * here["assd_mm"])
        assert larger["hd95_mm"] == pytest.approx(factor * here["hd95_mm"])
    assert larger["volume_difference_ml"] == pytest.approx(factor**3 * here["volume_difference_ml"])
    assert larger["dice"] == here["dice"]


@given(pairs, spacings)
@settings(max_examples=30, deadline=None)
def test_the_volume_error_of_a_lesion_is_the_size_of_its_volume_difference(masks, spacing):
    scores = lesion_scores(*masks, spacing)
    assert scores["volume_error_ml"] == abs(scores["volume_difference_ml"])


@given(pairs, spacings)
@settings(max_examples=30, deadline=None)
def test_what_is_rightly_marked_and_what_is_wrongly_marked_or_left_out_make_up_the_volumes(masks, spacing):
    scores = lesion_scores(*masks, spacing)
    voxel_ml = np.prod(spacing) / 1000
    shared, predicted, true = (mask.sum() * voxel_ml for mask in (masks[0] & masks[1], *masks))
    assert scores["false_positive_ml"] + shared == pytest.approx(predicted)
    assert scores["false_negative_ml"] + shared == pytest.approx(true)
    difference = scores["false_positive_ml"] - scores["false_negative_ml"]
    assert scores["volume_difference_ml"] == pytest.approx(difference)


@given(pairs | sparse, spacings)
@settings(max_examples=60, deadline=None)
def test_the_lesions_missed_and_invented_are_those_that_the_other_mask_does_not_touch(masks, spacing):
    scores = lesion_scores(*masks, spacing)
    for mask, other, name in ((masks[1], masks[0], "missed_lesions"), (masks[0], masks[1], "invented_lesions")):
        labels, n_lesions = ndimage.label(mask, np.ones((3, 3, 3)))
        lesions = [labels == lesion + 1 for lesion in range(n_lesions)]
        expected = [(lesion.sum() * np.prod(spacing) / 1000, (other & lesion).any()) for lesion in lesions]
        found = lesion_detections(other, mask, spacing)
        assert np.array(found).ravel() == pytest.approx(np.array(sorted(expected)).ravel())
        undefined = name == "missed_lesions" and not lesions
        assert scores[name] == (None if undefined else sum(not hit for _, hit in found))


@given(pairs, spacings)
@settings(max_examples=30, deadline=None)
def test_surface_distances_equal_brute_force_over_all_pairs_of_surface_voxels(masks, spacing):
    scores = lesion_scores(*masks, spacing)
    if not (masks[0].any() and masks[1].any()):
        assert scores["hd95_mm"] is None and scores["assd_mm"] is None
        return
    ours, theirs = (brute_surface(mask, spacing) for mask in masks)
    distances = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    there, back = distances.min(axis=1), distances.min(axis=0)
    assert scores["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert scores["assd_mm"] == pytest.approx(np.concatenate([there, back]).mean())


@given(pairs, spacings, st.floats(0, 8))
@settings(max_examples=30, deadline=None)
def test_surface_dice_equals_looking_at_every_surface_voxel(masks, spacing, tolerance):
    score = lesion_scores(*masks, spacing, tolerance_mm=tolerance)["surface_dice"]
    if not (masks[0].any() and masks[1].any()):
        assert score == float(not masks[0].any() and not masks[1].any())
        return
    ours, theirs = (brute_surface(mask, spacing) for mask in masks)
    near = sum(any(np.linalg.norm(a - b) <= tolerance + 1e-6 for b in theirs) for a in ours)
    near += sum(any(np.linalg.norm(a - b) <= tolerance + 1e-6 for a in ours) for b in theirs)
    assert score == pytest.approx(near / (len(ours) + len(theirs)))


@given(pairs, spacings, st.floats(0, 5), st.floats(0, 5))
@settings(max_examples=30, deadline=None)
def test_surface_dice_grows_with_the_tolerance_up_to_one(masks, spacing, tolerance, more):
    asked = (tolerance, tolerance + more, 5 * np.linalg.norm(spacing))
    scores = [lesion_scores(*masks, spacing, tolerance_mm=each)["surface_dice"] for each in asked]
    assert scores == sorted(scores)
    assert scores[-1] == float(masks[0].any() == masks[1].any())


@pytest.mark.parametrize(("tolerance", "expected"), [(3.3, 1.0), (3.29, 0.0), (0.0, 0.0)])
def test_a_border_just_as_far_off_as_the_tolerance_still_agrees(tolerance, expected):
    plane = box((12, 6, 6), (1, 2), (0, 6), (0, 6))
    shifted = np.roll(plane, 3, axis=0)
    # 3 × 1.1 is a little more than 3.3 in floating point.
    assert lesion_scores(shifted, plane, (1.1, 1, 1), tolerance_mm=tolerance)["surface_dice"] == expected


def test_the_tolerance_unless_asked_is_the_stated_one():
    plane = box((12, 6, 6), (1, 2), (0, 6), (0, 6))
    steps = [lesion_scores(np.roll(plane, step, axis=0), plane, (1, 1, 1))["surface_dice"] for step in range(5)]
    assert steps == [float(step <= SURFACE_TOLERANCE_MM) for step in range(5)]


@given(ranked)
@settings(max_examples=30, deadline=None)
def test_auc_is_how_often_a_true_voxel_outranks_another_with_ties_as_half(drawn):
    values, truth = drawn
    pairwise = np.sign(values[truth][:, None].astype(int) - values[~truth][None].astype(int))
    expected = None if pairwise.size == 0 else pytest.approx((1 + pairwise.mean()) / 2)
    assert roc_auc(values, truth) == expected


@given(ranked)
@settings(max_examples=30, deadline=None)
def test_auc_reads_the_order_alone_and_turns_round_with_it(drawn):
    values, truth = drawn
    auc = roc_auc(values, truth)
    assert auc == roc_auc(np.exp(values / 7.0), truth)
    if auc is not None:
        assert [roc_auc(-values, truth), roc_auc(values, ~truth)] == pytest.approx([1 - auc, 1 - auc])


@given(ranked)
@settings(max_examples=30, deadline=None)
def test_average_precision_equals_going_down_the_thresholds_one_by_one(drawn):
    values, truth = drawn
    area = recall = 0.0
    for threshold in sorted(set(values.ravel().tolist()), reverse=True):
        marked = values >= threshold
        if truth.any():
            now = (marked & truth).sum() / truth.sum()
            area, recall = area + (now - recall) * (marked & truth).sum() / marked.sum(), now
    assert average_precision(values, truth) == (pytest.approx(area) if truth.any() else None)


def test_areas_under_curves_are_undefined_without_both_kinds_of_voxel():
    nothing, something = np.zeros((4, 4, 4), bool), box((4, 4, 4), (1, 3), (1, 3), (1, 3))
    flat = np.full((4, 4, 4), 0.5)
    areas = [lesion_scores(something, t, (1, 1, 1), probability=flat) for t in (nothing, something, ~nothing)]
    assert [(scores["auc"], scores["pr_auc"]) for scores in areas] == [(None, None), (0.5, 0.125), (None, 1.0)]


@given(pairs)
@settings(max_examples=30, deadline=None)
def test_lesion_f1_equals_counting_component_by_component(masks):
    scores = lesion_scores(*masks, (1, 1, 1))
    assert scores["lesion_f1_atlas"] == pytest.approx(brute_lesion_f1(*masks, connectivity=1))
    assert scores["lesion_f1_isles22"] == pytest.approx(brute_lesion_f1(*masks, connectivity=3))


@given(sparse)
@settings(max_examples=60, deadline=None)
def test_recognition_quality_and_the_count_equal_matching_lesion_by_lesion(masks):
    scores = lesion_scores(*masks, (1, 1, 1))
    assert scores["lesion_rq_isles26"] == pytest.approx(brute_recognition_quality(*masks, 0.25))
    counts = [ndimage.label(mask, np.ones((3, 3, 3)))[1] for mask in masks]
    assert scores["lesion_count_difference"] == abs(counts[0] - counts[1])


@given(pairs)
@settings(max_examples=30, deadline=None)
def test_the_one_to_one_score_is_never_kinder_than_the_lenient_one(masks):
    scores = lesion_scores(*masks, (1, 1, 1))
    assert scores["lesion_rq_isles26"] <= scores["lesion_f1_isles22"] + 1e-12


def test_lesions_that_touch_at_a_corner_are_two_for_atlas_and_one_for_isles():
    truth = box((6, 6, 6), (1, 3), (1, 3), (1, 3)) | box((6, 6, 6), (3, 5), (3, 5), (3, 5))
    prediction = box((6, 6, 6), (1, 3), (1, 3), (1, 3))
    scores = lesion_scores(prediction, truth, (1, 1, 1))
    assert scores["lesion_f1_atlas"] == pytest.approx(1 / 1.5)
    assert scores["lesion_f1_isles22"] == 1


def test_one_prediction_over_two_lesions_finds_both_leniently_and_one_of_them_strictly():
    truth = box((12, 4, 4), (0, 4), (0, 4), (0, 4)) | box((12, 4, 4), (6, 8), (0, 4), (0, 4))
    prediction = box((12, 4, 4), (0, 8), (0, 4), (0, 4))
    scores = lesion_scores(prediction, truth, (1, 1, 1))
    assert scores["lesion_f1_isles22"] == 1
    assert scores["lesion_rq_isles26"] == pytest.approx(1 / 1.5)
    assert scores["lesion_count_difference"] == 1


@pytest.mark.parametrize(("overlap", "found"), [(4, 1.0), (3, 0.0)])
def test_a_quarter_of_overlap_is_just_enough_to_match(overlap, found):
    truth, prediction = np.zeros((1, 1, 20), bool), np.zeros((1, 1, 20), bool)
    truth[..., :10] = True
    prediction[..., 10 - overlap : 20 - overlap] = True
    # IoU is overlap / (20 − overlap): 4/16 = 0.25 matches, 3/17 does not.
    assert lesion_scores(prediction, truth, (1, 1, 1))["lesion_rq_isles26"] == found


def test_empty_masks_follow_the_stated_rule_and_undefined_is_never_zero():
    nothing, something = np.zeros((4, 4, 4), bool), box((4, 4, 4), (1, 3), (1, 3), (1, 3))
    both = lesion_scores(nothing, nothing, (1, 1, 1))
    assert all(both[name] == 1 for name in UNIT if name not in ("precision", "recall"))
    assert all(both[name] is None for name in ("precision", "recall", "hd95_mm", "assd_mm"))
    missed, invented = lesion_scores(nothing, something, (1, 1, 1)), lesion_scores(something, nothing, (1, 1, 1))
    assert missed["recall"] == 0 and missed["precision"] is None and missed["hd95_mm"] is None
    assert invented["precision"] == 0 and invented["recall"] is None and invented["assd_mm"] is None
    assert all(missed[name] == invented[name] == 0 for name in (*OVERLAP, *LESION_WISE))
    assert [scores["missed_lesions"] for scores in (both, missed, invented)] == [None, 1, None]
    assert [scores["invented_lesions"] for scores in (both, missed, invented)] == [0, 0, 1]
    assert both["false_positive_ml"] == both["false_negative_ml"] == missed["false_positive_ml"] == 0
    assert missed["false_negative_ml"] == invented["false_positive_ml"] == 0.008
    assert (
        missed["volume_difference_ml"] == -0.008 and missed["volume_error_ml"] == invented["volume_error_ml"] == 0.008
    )


@given(pairs)
@settings(max_examples=30, deadline=None)
def test_dice_and_iou_tell_the_same_story(masks):
    scores = lesion_scores(*masks, (1, 1, 1))
    assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))
    assert scores["dice"] == pytest.approx(dice(*masks))


def test_masks_of_other_kinds_are_refused_in_a_sentence():
    mask = np.zeros((3, 3, 3))
    with pytest.raises(InputError, match="prediction holds values other than 0 and 1"):
        lesion_scores(mask + 3, mask, (1, 1, 1))
    with pytest.raises(InputError, match="truth holds values other than 0 and 1"):
        lesion_scores(mask, mask + np.nan, (1, 1, 1))
    with pytest.raises(InputError, match="bring both to one grid"):
        lesion_scores(mask, np.zeros((3, 3, 4)), (1, 1, 1))
    with pytest.raises(InputError, match="bring both to one grid"):
        lesion_detections(mask, np.zeros((3, 3, 4)), (1, 1, 1))
    with pytest.raises(InputError, match="3D mask"):
        lesion_scores(mask[0], mask[0], (1, 1, 1))
    with pytest.raises(InputError, match="spacing"):
        lesion_scores(mask, mask, (1, 0, 1))
    for tolerance in (-1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="tolerance"):
            lesion_scores(mask, mask, (1, 1, 1), tolerance_mm=tolerance)
    with pytest.raises(InputError, match="probability map holds NaN"):
        lesion_scores(mask, mask, (1, 1, 1), probability=mask + np.nan)
    with pytest.raises(InputError, match="probability map has shape"):
        lesion_scores(mask, mask, (1, 1, 1), probability=mask[1:])


def test_distances_and_overlap_agree_with_monai():
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    for _ in range(4):
        fields = ndimage.gaussian_filter(rng.standard_normal((2, 20, 24, 12)), (0, 2, 2, 2))
        prediction, truth = fields > np.quantile(fields, 0.8)
        spacing = (1.0, 0.8, 3.0)
        scores = lesion_scores(prediction, truth, spacing)
        ours, theirs = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
        how = {"include_background": True, "spacing": spacing}
        hd95 = monai.compute_hausdorff_distance(ours, theirs, percentile=95, **how).item()
        assd = monai.compute_average_surface_distance(ours, theirs, symmetric=True, **how).item()
        assert scores["hd95_mm"] == pytest.approx(hd95, rel=1e-5)
        assert scores["assd_mm"] == pytest.approx(assd, rel=1e-5)
        assert scores["dice"] == pytest.approx(monai.compute_dice(ours, theirs).item(), rel=1e-5)
        assert scores["iou"] == pytest.approx(monai.compute_iou(ours, theirs).item(), rel=1e-5)
        # Where the tolerance falls between two distances: MONAI's are float32.
        for tolerance in (0.5, 1.1, SURFACE_TOLERANCE_MM, 3.1):
            surface_dice = monai.compute_surface_dice(ours, theirs, [tolerance], **how).item()
            found = lesion_scores(prediction, truth, spacing, tolerance_mm=tolerance)["surface_dice"]
            assert found == pytest.approx(surface_dice, rel=1e-5)


def test_distances_and_overlap_agree_with_simpleitk():
    import SimpleITK as sitk

    rng = np.random.default_rng(1)
    for _ in range(3):
        fields = ndimage.gaussian_filter(rng.standard_normal((2, 20, 24, 12)), (0, 2, 2, 2))
        # SimpleITK's contour leaves out the border of the grid, so nothing may reach it.
        prediction, truth = np.pad(fields > np.quantile(fields, 0.8), [(0, 0), (1, 1), (1, 1), (1, 1)])
        spacing = (1.0, 0.8, 3.0)
        images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (prediction, truth)]
        for image in images:
            image.SetSpacing(spacing[::-1])
        edges = [sitk.LabelContour(image, fullyConnected=False) for image in images]
        near = [sitk.Abs(sitk.SignedMaurerDistanceMap(e, squaredDistance=False, useImageSpacing=True)) for e in edges]
        (there, back) = (
            sitk.GetArrayFromImage(near[1 - side])[sitk.GetArrayFromImage(edges[side]) > 0] for side in (0, 1)
        )
        scores = lesion_scores(prediction, truth, spacing)
        pooled = np.concatenate([there, back])
        assert scores["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
        assert scores["assd_mm"] == pytest.approx(pooled.mean(), rel=1e-5)
        assert scores["surface_dice"] == pytest.approx(np.mean(pooled <= SURFACE_TOLERANCE_MM + 1e-3))
        overlap = sitk.LabelOverlapMeasuresImageFilter()
        overlap.Execute(*images)
        assert scores["dice"] == pytest.approx(overlap.GetDiceCoefficient())
        assert scores["iou"] == pytest.approx(overlap.GetJaccardCoefficient())


def test_areas_under_curves_agree_with_scikit_learn_ties_included():
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(1)
    for digits in (1, 2, 8):
        truth = rng.random((6, 7, 8)) < 0.1
        probability = np.round(0.3 * truth + 0.7 * rng.random(truth.shape), digits)
        expected = average_precision_score(truth.ravel(), probability.ravel())
        assert average_precision(probability, truth) == pytest.approx(expected)
        scores = lesion_scores(probability > 0.5, truth, (1, 1, 1), probability=probability)
        assert scores["pr_auc"] == pytest.approx(expected) and set(scores) == {*KEYS, "auc", "pr_auc"}
        assert (
            scores["auc"]
            == roc_auc(probability, truth)
            == pytest.approx(roc_auc_score(truth.ravel(), probability.ravel()))
        )
    assert average_precision(probability, np.zeros_like(truth)) is None


def test_surface_distances_are_those_of_a_shifted_plane():
    plane = box((10, 10, 10), (2, 3), (0, 10), (0, 10))
    there, back = surface_distances(np.roll(plane, 3, axis=0), plane, (2.0, 1.0, 1.0))
    assert there == pytest.approx(np.full(100, 6.0)) and back == pytest.approx(there)


# ---- Tmax ----
TINY = np.zeros((3, 4, 5))
TINY[0] = 1e-200  # its variance underflows to 0
maps = hnp.arrays(float, (3, 4, 5), elements=st.floats(0, 20))
BRAIN = np.ones((3, 4, 5), bool)


@given(maps)
@example(TINY)
@settings(max_examples=30, deadline=None)
def test_a_map_agrees_with_itself_perfectly(values):
    scores = tmax_scores(values, values, BRAIN, (2, 2, 5))
    assert all(
        scores[name] == 0 for name in ("mae_s", "rmse_s", "mse_s2", "bias_s", "volume_difference_ml", "volume_error_ml")
    )
    perfect = ("pearson_r", "ccc", "dice", "ssim", "sensitivity", "specificity")
    assert all(scores[name] in (None, pytest.approx(1)) for name in perfect)


@given(maps, maps)
@settings(max_examples=30, deadline=None)
def test_map_scores_obey_their_inequalities(ours, theirs):
    scores = tmax_scores(ours, theirs, BRAIN, (2, 2, 5))
    assert abs(scores["bias_s"]) <= scores["mae_s"] + 1e-12 and scores["mae_s"] <= scores["rmse_s"] + 1e-12
    assert scores["rmse_s"] ** 2 == pytest.approx(scores["mse_s2"])
    assert scores["ssim"] <= 1 + 1e-12
    if scores["pearson_r"] is not None:
        assert abs(scores["ccc"]) <= abs(scores["pearson_r"]) + 1e-9


def test_an_offset_leaves_correlation_alone_and_costs_concordance():
    rng = np.random.default_rng(0)
    reference = rng.uniform(0, 12, (6, 6, 6))
    scores = tmax_scores(reference + 2, reference, np.ones_like(reference), (1, 1, 1))
    assert scores["bias_s"] == pytest.approx(2) and scores["pearson_r"] == pytest.approx(1)
    assert scores["ccc"] == pytest.approx(2 * reference.var() / (2 * reference.var() + 4))


def test_a_constant_map_has_no_correlation_and_no_concordance_above_zero():
    reference = np.random.default_rng(0).uniform(0, 12, (6, 6, 6))
    scores = tmax_scores(np.full_like(reference, 3), reference, np.ones_like(reference), (1, 1, 1))
    assert scores["pearson_r"] is None and scores["ccc"] == pytest.approx(0)
    same = tmax_scores(np.full_like(reference, 3.1), np.full_like(reference, 3.1), np.ones_like(reference), (1, 1, 1))
    assert same["pearson_r"] is None and same["ccc"] is None


def test_hypoperfusion_is_strictly_above_six_seconds_and_counted_in_millilitres():
    reference = np.zeros((10, 10, 10))
    reference[0], reference[1] = 6.0, 6.1
    scores = tmax_scores(np.zeros_like(reference), reference, np.ones_like(reference), (2, 2, 2.5))
    assert scores["volume_difference_ml"] == pytest.approx(-100 * 10 / 1000)
    assert scores["dice"] == 0


@given(maps, maps)
@settings(max_examples=30, deadline=None)
def test_the_volume_error_is_the_size_of_the_volume_difference(ours, theirs):
    here, there = tmax_scores(ours, theirs, BRAIN, (2, 2, 5)), tmax_scores(theirs, ours, BRAIN, (2, 2, 5))
    assert here["volume_error_ml"] == there["volume_error_ml"] == abs(here["volume_difference_ml"])


@given(maps, maps)
@settings(max_examples=30, deadline=None)
def test_sensitivity_and_specificity_add_up_to_the_late_volume(ours, theirs):
    scores = tmax_scores(ours, theirs, BRAIN, (2, 2, 5))
    late, truly = int((ours > 6).sum()), int((theirs > 6).sum())
    assert (scores["sensitivity"] is None) == (truly == 0)
    assert (scores["specificity"] is None) == (truly == theirs.size)
    hits = truly * (scores["sensitivity"] or 0)
    false_alarms = (theirs.size - truly) * (1 - (1 if scores["specificity"] is None else scores["specificity"]))
    assert hits + false_alarms == pytest.approx(late)
    assert scores["dice"] == pytest.approx(2 * hits / (late + truly) if late + truly else 1)


def test_calling_everything_late_is_sensitive_and_calling_nothing_late_is_specific():
    reference = np.random.default_rng(0).uniform(0, 12, (6, 6, 6))
    late, early = (tmax_scores(np.full_like(reference, t), reference, reference >= 0, (1, 1, 1)) for t in (9.0, 2.0))
    assert (late["sensitivity"], late["specificity"]) == (1, 0)
    assert (early["sensitivity"], early["specificity"]) == (0, 1)


def test_what_lies_outside_the_brain_does_not_count():
    rng = np.random.default_rng(0)
    reference, prediction = rng.uniform(0, 12, (2, 12, 12, 8))
    brain = box((12, 12, 8), (2, 9), (3, 10), (1, 7))
    noisy = np.where(brain, prediction, np.nan)
    assert tmax_scores(noisy, reference, brain, (1, 1, 1)) == tmax_scores(prediction, reference, brain, (1, 1, 1))


def test_maps_that_cannot_be_scored_are_refused_in_a_sentence():
    values = np.zeros((3, 3, 3))
    with pytest.raises(InputError, match="mask is empty"):
        tmax_scores(values, values, values, (1, 1, 1))
    with pytest.raises(InputError, match="predicted Tmax map holds NaN"):
        tmax_scores(values + np.nan, values, values + 1, (1, 1, 1))
    with pytest.raises(InputError, match="differ in shape"):
        tmax_scores(values[:2], values, values + 1, (1, 1, 1))


def test_structural_similarity_agrees_with_monai_where_no_edge_is_near():
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    x = ndimage.gaussian_filter(rng.standard_normal((24, 24, 24)), 1.5) * 20
    y = x + ndimage.gaussian_filter(rng.standard_normal(x.shape), 1) * 5
    inner = box(x.shape, (5, 19), (5, 19), (5, 19))
    metric = monai.SSIMMetric(spatial_dims=3, data_range=20.0, win_size=11, kernel_sigma=1.5)
    peer = metric(*(torch.from_numpy(values)[None, None] for values in (x, y))).item()
    # MONAI's valid windows are those of the voxels five away from every edge; ours are renormalised nowhere there.
    whole = np.ones_like(inner)
    ours = local_similarity(x, y, whole)[inner].mean()
    assert ours == pytest.approx(peer, abs=2e-4)
    assert structural_similarity(x, y, whole, data_range=20.0) == pytest.approx(local_similarity(x, y, whole).mean())


def local_similarity(x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """SSIM voxel by voxel from an explicit 11³ window, the slow way."""
    ticks = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = ticks[:, None, None] * ticks[None, :, None] * ticks[None, None, :]

    def mean(values: np.ndarray) -> np.ndarray:
        weights = ndimage.correlate(inside.astype(float), window, mode="constant")
        return ndimage.correlate(values * inside, window, mode="constant") / weights

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 20) ** 2, (0.03 * 20) ** 2
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


def test_every_score_has_a_note_for_the_report():
    truth = box((4, 4, 4), (1, 3), (1, 3), (1, 3))
    names = set(lesion_scores(truth, truth, (1, 1, 1), probability=truth.astype(float)))
    for scores in (tmax_scores, map_scores):
        names |= set(scores(truth * 8.0, truth * 8.0, np.ones((4, 4, 4)), (1, 1, 1)))
    assert names == set(METRICS) and set(THICK_GRID) <= names
    assert note_of("hd95_mm") is METRICS["hd95_mm"] and note_of("dice_thick").better == "higher"
