"""Pictures show the right side, the right slice and the right numbers, and leave pyplot alone."""

import io
import sys
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from reperfuse.evaluation import figures as draw
from reperfuse.evaluation.resolution import curve, study_table
from reperfuse.evaluation.study_figure import study_panels

SHAPE, SPACING = (20, 24, 10), (2.0, 2.0, 3.0)


@pytest.fixture
def lesion() -> np.ndarray:
    """A lesion on the patient's right (high first index), in front (high second index), on slice 7."""
    mask = np.zeros(SHAPE, bool)
    mask[14:18, 16:21, 6] = True
    return mask


def pixels(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return np.asarray(Image.open(buffer).convert("RGB"), dtype=float) / 255


def where(picture: np.ndarray, colour: str | tuple[float, ...]) -> tuple[float, float]:
    """Mean row and column, as fractions, of the pixels of one colour."""
    rows, columns = np.nonzero(np.abs(picture - to_rgb(colour)).max(axis=-1) < 0.08)
    return rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]


def panel(figure: Figure, number: int) -> np.ndarray:
    picture = pixels(figure)
    place = figure.axes[number].get_position()
    height, width = picture.shape[:2]
    rows = slice(round((1 - place.y1) * height), round((1 - place.y0) * height))
    return picture[rows, round(place.x0 * width) : round(place.x1 * width)]


def test_the_patients_right_is_on_the_left_and_the_front_is_up_in_image_and_outline_alike(lesion):
    image = np.where(lesion, 100.0, 1.0)
    figure = draw.lesion_overlay(image, lesion, {"model": lesion & False}, SPACING)
    bright = where(panel(figure, 0), "white")
    outline = where(panel(figure, 1), draw.TRUTH_COLOUR)
    expected = (1 - 18.5 / 24, 1 - 16 / 20)
    assert bright == pytest.approx(expected, abs=0.06) and outline == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(("flip", "order"), [((0,), (0, 1, 2)), ((0, 1), (0, 1, 2)), ((2,), (2, 0, 1))])
def test_a_grid_stored_in_other_directions_is_drawn_the_same_way(lesion, flip, order):
    turned = np.flip(lesion, flip).transpose(order)
    direction = np.diag([-1.0 if axis in flip else 1.0 for axis in range(3)]) * SPACING
    affine = np.eye(4)
    affine[:3, :3] = direction[:, order]
    spacing = [SPACING[axis] for axis in order]
    drawn = draw.lesion_overlay(turned * 1.0, turned, {"model": turned}, spacing, affine=affine)
    assert (pixels(drawn) == pixels(draw.lesion_overlay(lesion * 1.0, lesion, {"model": lesion}, SPACING))).all()
    late = draw.tmax_panels(turned * 9.0, {"model": turned * 8.0}, turned + 1 > 0, spacing, affine=affine)
    straight = draw.tmax_panels(lesion * 9.0, {"model": lesion * 8.0}, lesion + 1 > 0, SPACING)
    assert (pixels(late) == pixels(straight)).all()


def test_tmax_maps_are_drawn_on_the_same_side_as_lesions(lesion):
    brain = np.ones(SHAPE, bool)
    figure = draw.tmax_panels(np.where(lesion, 12.0, 0.0), {"model": np.zeros(SHAPE)}, brain, SPACING)
    late = where(panel(figure, 0), matplotlib.colormaps["viridis"](1.0)[:3])
    assert late == pytest.approx((1 - 18.5 / 24, 1 - 16 / 20), abs=0.06)


def test_the_slice_with_most_lesion_is_shown_and_named(lesion):
    lesion[0:2, 0:2, 3] = True
    label = draw.lesion_overlay(lesion * 1.0, lesion, {"model": lesion}, SPACING).get_label()
    assert "slice 7 of 10" in label


def test_without_a_lesion_the_slice_with_most_prediction_is_shown(lesion):
    nothing = lesion & False
    assert "slice 7 of 10" in draw.lesion_overlay(lesion * 1.0, nothing, {"model": lesion}, SPACING).get_label()
    assert "slice 6 of 10" in draw.lesion_overlay(lesion * 1.0, nothing, {"model": nothing}, SPACING).get_label()


def test_a_lesion_of_one_voxel_is_outlined_by_its_four_edges():
    mask = np.zeros(SHAPE, bool)
    mask[3, 4, 5] = True
    figure = draw.lesion_overlay(mask * 1.0, mask, {"model": mask & False}, SPACING)
    segments = np.array(figure.axes[1].collections[0].get_segments())
    assert len(segments) == 4
    assert segments.reshape(-1, 2).min(axis=0).tolist() == [6, 8] and segments.reshape(-1, 2).max(axis=0).tolist() == [
        8,
        10,
    ]


def test_all_tmax_maps_share_one_scale_in_seconds():
    rng = np.random.default_rng(0)
    reference, model, svd = rng.uniform(0, 15, (3, *SHAPE))
    figure = draw.tmax_panels(reference, {"model": model, "baseline_ssvd": svd}, np.ones(SHAPE), SPACING)
    limits = [axes.images[0].get_clim() for axes in figure.axes[:6] if axes.images]
    assert limits == [(0, 12)] * 3 + [(-6, 6)] * 2
    assert "Tmax [s]" in {axes.get_ylabel() for axes in figure.axes}


@pytest.fixture
def scores() -> pd.DataFrame:
    rows = [
        {"participant_id": f"sub-{n}", "method": method, "dice": level + 0.1 * n}
        for method, level in (("model", 0.5), ("baseline_empty", 0.0))
        for n in range(4)
    ]
    return pd.DataFrame(rows)


def test_curves_name_their_axes_with_units_and_every_method():
    rows = [
        {"participant_id": f"sub-{n}", "method": method, "axis": "k", "thickness_mm": level, "dice": 0.8 - level / 20}
        for n in range(3)
        for method in ("model", "baseline_threshold")
        for level in (2.0, 5.0, 10.0)
    ]
    figure = study_panels(curve(study_table(rows)), "dice")
    axes = figure.axes[0]
    assert axes.get_xlabel() == "Slice thickness [mm]" and axes.get_title(loc="left") == "Mean Dice"
    assert {text.get_text() for text in axes.texts} == {"Model", "Intensity threshold"}
    assert axes.get_ylim() == (-0.02, 1.02)
    assert "Model 0.70 at 2, 0.55 at 5, 0.30 at 10" in figure.get_label()
    assert "slices along k" in figure.get_suptitle()


def noisy_curve() -> pd.DataFrame:
    rows = [
        {
            "participant_id": f"sub-{n}",
            "method": method,
            "snr": snr,
            "tr_s": level,
            "mae_s": slope * level / snr + n / 9,
        }
        for n in range(3)
        for method, slope in (("model", 10), ("baseline_learned", 12), ("baseline_osvd", 30), ("baseline_ssvd", 40))
        for snr in (50.0, 20.0)
        for level in (1.0, 2.0, 3.0)
    ]
    return curve(study_table(rows, level_name="tr_s"), level_name="tr_s")


def test_each_noise_has_its_curves_with_a_band_for_every_method_all_on_one_scale():
    figures = [study_panels(noisy_curve(), "mae_s", level_name="tr_s", at=snr) for snr in (50.0, 20.0)]
    assert ["SNR 50" in figures[0].get_suptitle(), "SNR 20" in figures[1].get_suptitle()] == [True, True]
    drawn = [figure.axes[0] for figure in figures]
    assert drawn[0].get_ylim() == drawn[1].get_ylim() and drawn[0].get_ylim()[0] == 0
    for axes, snr in zip(drawn, (50.0, 20.0), strict=True):
        assert len(axes.lines) == len(axes.collections) == 4
        assert axes.lines[0].get_ydata().tolist() == pytest.approx([10 * level / snr + 1 / 9 for level in (1, 2, 3)])
        assert {text.get_text() for text in axes.texts} == {"Model", "Shipped network", "oSVD", "Plain SVD"}


def test_the_number_of_subjects_is_a_range_where_not_everyone_reaches_every_level():
    table = noisy_curve()
    table.loc[table["tr_s"] == 1, "n"] = 2
    assert "2 to 3 subjects" in study_panels(table, "mae_s", level_name="tr_s", at=20.0).get_suptitle()


def test_lines_that_end_together_keep_their_names_apart():
    rows = [
        {"participant_id": "sub-1", "method": method, "axis": "k", "thickness_mm": level, "dice": 0.5}
        for method in ("model", "baseline_empty", "baseline_threshold")
        for level in (2.0, 10.0)
    ]
    heights = sorted(text.xy[1] for text in study_panels(curve(study_table(rows)), "dice").axes[0].texts)
    assert np.diff(heights).min() > 0


def test_one_method_looks_the_same_in_every_figure(scores):
    styles = draw.method_styles(scores["method"])
    assert styles == draw.method_styles(scores["method"][::-1]) and styles["model"] == (draw.BLUE, "-")
    more = draw.method_styles([*scores["method"], "baseline_aardvark", "baseline_osvd", "rival_tmax_unet"])
    assert {method: more[method] for method in styles} == styles
    assert len({colour for colour, _ in more.values()}) == len(more)


def test_every_subject_and_fold_is_a_dot(scores):
    drawn = draw.score_dots(scores, "dice").axes[0].collections
    assert [len(dots.get_offsets()) for dots in drawn] == [4, 4]
    folds = draw.fold_dots(pd.DataFrame({"fold": [0.0, 0.0, 1.0], "dice": [0.4, 0.6, 0.7]}), "dice")
    assert "fold 0 0.500, fold 1 0.700; mean 0.600" in folds.get_label()
    assert [label.get_text() for label in folds.axes[0].get_xticklabels()] == ["0", "1"]


def test_a_training_curve_reads_rows_that_loggers_leave_half_empty():
    history = pd.DataFrame({"epoch": [0, 0, 1], "train_loss": [1.0, None, 0.5], "val_dice": [None, 0.2, 0.4]})
    figure = draw.training_curve(history)
    assert [axes.get_ylabel() for axes in figure.axes] == ["Loss", "Validation score"]
    assert "train_loss ends at 0.5; val_dice ends at 0.4" in figure.get_label()


def test_subjects_without_a_lesion_are_counted_and_not_drawn():
    figure = draw.volume_histogram([0.0, 1.0, 10.0], sides=["train", "train", "holdout"])
    assert "1 of 3 subjects have none" in figure.axes[0].get_title(loc="left")
    assert sum(patch.get_height() for patch in figure.axes[0].patches) >= 2
    draw.volume_histogram([0.0, 0.0])


def test_drawing_leaves_pyplot_and_its_settings_alone(scores):
    matplotlib.get_backend()  # decides it once, whoever asks first
    before = dict(matplotlib.rcParams)
    figure = draw.score_dots(scores, "dice")
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not any(pyplot.figure(number) is figure for number in pyplot.get_fignums())


def test_the_smallest_lesion_found_has_a_panel_where_a_number_is_known_and_words_anywhere():
    rows = [
        {"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": level, "dice": 0.5,
         "false_negative_ml": 2.0, "false_positive_ml": 1.0}
        for n in range(3) for level in (1.0, 10.0)
    ]  # fmt: skip
    limits = pd.DataFrame(
        {"method": "model", "axis": "k", "thickness_mm": [1.0, 10.0], "volume_ml": [0.5, np.nan], "low": [0.2, np.nan],
         "high": [np.nan, np.nan], "said": ["half found at 0.5 mL", "none of 4 lesions found"]}
    )  # fmt: skip
    known = study_panels(curve(study_table(rows)), "dice", detection=limits)
    unknown = study_panels(curve(study_table(rows)), "dice", detection=limits.assign(volume_ml=np.nan))
    assert [len(known.axes), len(unknown.axes)] == [3, 2]
    assert "?" in {text.get_text() for text in known.axes[2].texts} and known.axes[2].get_xlim()[1] > 10
    for figure in (known, unknown):
        assert "none of 4 lesions found at 10" in figure.get_label()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a layout that collapses is a warning
            figure.savefig(io.BytesIO())
