"""The page shows the right side, the right voxels and the right numbers, and says what it is for."""

import io
import itertools
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from reperfuse.evaluation import perfusion_qc as qc
from reperfuse.perfusion import quality
from reperfuse.perfusion.mismatch import mismatch_summary

SHAPE, AFFINE = (20, 24, 8), np.diag([2.0, 2.0, 5.0, 1.0])
TIMES = np.arange(0, 60, 1.5)
FLAG = quality.implausible_te(0.003)


@pytest.fixture
def given() -> dict:
    """An examination with late tissue on the patient's right (high first index), in front, on slice 6."""
    i, j, _ = np.indices(SHAPE)
    brain = ((i - 9.5) / 9.5) ** 2 + ((j - 11.5) / 11.5) ** 2 < 1
    late = np.zeros(SHAPE, bool)
    late[13:17, 15:19, 5] = True
    tmax = np.where(late, 12.0, 1.0) * brain
    bolus = np.exp(-(((TIMES - 22) / 5) ** 2))
    return {
        "maps": {"cbf": 50.0 * brain, "tmax": tmax},
        "brain": brain,
        "affine": AFFINE,
        "baseline_image": 700.0 * brain,
        "frame_times_s": TIMES,
        "tissue": 8 * bolus,
        "aif": 30 * np.roll(bolus, -3),
        "aif_voxels": np.array([[4, 6, 2], [4, 7, 2], [5, 6, 2], [5, 6, 3]]),
        "baseline": slice(2, 8),
        "arrival_s": 13.5,
        "hypoperfused": late,
        "core": late & (i > 14),
        "summary": mismatch_summary(tmax, brain, 0.02, core=late & (i > 14), core_method="rcbf", min_island_ml=0),
    }


def page(given: dict, **other) -> Figure:
    given = {**given, **other}
    return qc.qc_figure(given.pop("maps"), **given)


def texts(figure: Figure) -> str:
    said = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return "\n".join(said)


def panels(figure: Figure) -> dict[str, list]:
    """Axes with a picture, by colormap."""
    found: dict[str, list] = {}
    for axis in figure.axes:
        for image in axis.images[:1]:
            found.setdefault(image.get_cmap().name, []).append(axis)
    return found


def picture(figure: Figure, axis) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pixels = np.asarray(Image.open(buffer).convert("RGB"), dtype=float) / 255
    place = axis.get_position()
    height, width = pixels.shape[:2]
    return pixels[
        round((1 - place.y1) * height) : round((1 - place.y0) * height),
        round(place.x0 * width) : round(place.x1 * width),
    ]


def centre(part: np.ndarray, colour) -> tuple[float, float]:
    rows, columns = np.nonzero(np.abs(part - to_rgb(colour)).max(axis=-1) < 0.08)
    return float(rows.mean() / part.shape[0]), float(columns.mean() / part.shape[1])


def test_late_tissue_on_the_patients_right_is_drawn_on_the_left_and_in_front(given):
    figure = page(given)
    k = sorted({5, *qc.informative_slices(given["brain"], given["hypoperfused"], 5)}).index(5)
    part = picture(figure, panels(figure)["viridis"][k])
    row, column = centre(part, matplotlib.colormaps["viridis"](1.0)[:3])
    assert column < 0.4 and row < 0.4


@pytest.mark.parametrize(("flip", "order"), [((0,), (0, 1, 2)), ((0, 1), (0, 1, 2)), ((2,), (2, 0, 1))])
def test_a_grid_stored_in_other_directions_gives_the_same_page(given, flip, order):
    def turn(image):
        return np.flip(image, flip).transpose(order)

    direction = np.diag([-1.0 if axis in flip else 1.0 for axis in range(3)]) * np.diag(AFFINE)[:3]
    affine = np.eye(4)
    affine[:3, :3] = direction[:, order]
    voxels = given["aif_voxels"].copy()
    for axis in flip:
        voxels[:, axis] = SHAPE[axis] - 1 - voxels[:, axis]
    turned = {name: turn(given[name]) for name in ("brain", "baseline_image", "hypoperfused", "core")}
    other = page(
        given,
        maps={name: turn(image) for name, image in given["maps"].items()},
        affine=affine,
        aif_voxels=voxels[:, order],
        **turned,
    )
    straight = page(given)
    for mine, theirs in zip(straight.axes, other.axes, strict=True):
        for one, two in zip(mine.images, theirs.images, strict=True):
            np.testing.assert_array_equal(one.get_array(), two.get_array())
            assert one.get_extent() == two.get_extent()


def test_the_arterial_voxels_are_marked_where_they_are(given):
    figure = page(given)
    axis = next(axis for axis in figure.axes if axis.get_title() == "Artery (AIF)")
    assert axis.get_xlabel() == "slice 3 of 8: 3 of 4 voxels"
    marked = axis.images[1].get_array()
    assert marked.count() == 3
    row, column = centre(picture(figure, axis), qc.AIF_COLOUR)
    assert column > 0.6 and row > 0.6  # left of the patient, at the back


def test_vessel_voxels_outside_the_brain_are_not_cut_off(given):
    i, j, _ = np.indices(SHAPE)
    small = given["brain"] & (abs(i - 9.5) < 5) & (abs(j - 11.5) < 5)
    figure = page(given, brain=small, vof_voxels=[[0, 0, 4], [19, 23, 4]])
    axis = next(axis for axis in figure.axes if axis.get_title() == "Vein (VOF)")
    assert axis.get_xlabel() == "slice 5 of 8: 2 voxels" and axis.images[1].get_array().count() == 2


def test_maps_keep_their_units_and_their_shape_in_millimetres(given):
    figure = page(given)
    labels = {axis.get_ylabel() for axis in figure.axes}
    assert {"CBF", "Tmax", "[mL/100 g/min]\nrelative scale", "[s]", "ΔR2* [1/s]"} <= labels
    image = panels(figure)["viridis"][0].images[0]
    left, right, bottom, top = image.get_extent()
    assert (right - left, top - bottom) == (2 * image.get_array().shape[1], 2 * image.get_array().shape[0])


def test_the_scale_of_tmax_is_the_same_for_every_patient(given):
    figure = page(given)
    assert {axis.images[0].get_clim() for axis in panels(figure)["viridis"]} == {(0, 12)}
    doubled = {name: 2 * image for name, image in given["maps"].items()}
    assert {a.images[0].get_clim() for a in panels(page(given, maps=doubled))["viridis"]} == {(0, 12)}


def test_a_bright_vessel_does_not_darken_the_map_of_flow(given):
    cbf = given["maps"]["cbf"].copy()
    cbf[5:8, 5:8] = 5000
    figure = page(given, maps={"cbf": cbf})
    assert panels(figure)["magma"][0].images[0].get_clim() == (0, 150)


def test_curves_stand_at_their_times_with_arrival_and_baseline(given):
    axis = next(axis for axis in page(given).axes if axis.get_ylabel() == "ΔR2* [1/s]")
    lines = {line.get_label(): line for line in axis.get_lines()}
    np.testing.assert_allclose(lines["artery (AIF)"].get_xdata(), TIMES)
    np.testing.assert_allclose(lines["artery (AIF)"].get_ydata(), given["aif"])
    assert "mean tissue" in lines and "vein (VOF)" not in lines
    assert any(np.allclose(line.get_xdata(), 13.5) for line in axis.get_lines())
    assert {"baseline", " arrival"} <= {text.get_text() for text in axis.texts}
    assert axis.get_xlabel() == "Time [s]"


def test_volumes_are_written_with_units_and_what_is_undefined_is_a_dash(given):
    found = texts(page(given))
    assert "Tmax > 6 s" in found and f"{given['summary']['tmax_volume_ml']['6']:.2f} mL" in found
    assert "Core (rCBF)" in found and "Target mismatch (DEFUSE 3)" in found
    nothing = texts(page(given, summary=mismatch_summary(None, given["brain"], 0.02))).splitlines()
    # Tmax at 4, 6, 8 and 10 s, mismatch volume and ratio, HIR, target mismatch.
    assert nothing.count("–") == 8 and not any(text.startswith("0.0") for text in nothing)
    assert "Core: not determined" in nothing


def test_flags_are_told_in_words_and_none_is_said_too(given):
    said = f"None of the {len(quality.FLAGS)} checks raised a flag."
    figure = page(given)
    sentence = next(text for text in figure.findobj(matplotlib.text.Text) if text.get_text() == said)
    assert sentence.get_color() == qc.INK  # green would reassure
    found = texts(page(given, flags=[FLAG])).replace("\n", " ")
    assert FLAG.sentence in found and "raised a flag" not in found


def words(figure: Figure):
    """Where volumes, flags and notes are written."""
    return next(axis for axis in figure.axes if any(text.get_text() == "Quality" for text in axis.texts))


def beside(figure: Figure, label: str) -> matplotlib.text.Text:
    """The value on the line of a label."""
    drawn = words(figure).texts
    at = next(text for text in drawn if text.get_text() == label)
    here = [text for text in drawn if text.get_position()[1] == at.get_position()[1]]
    return next(text for text in here if text is not at and text.get_ha() == "right")


@pytest.mark.parametrize("name", [None, "implausible_te", "no_bolus", "implausible_tr", "no_artery"])
def test_a_target_mismatch_is_stated_only_where_tmax_can_be_believed(given, name):
    flags = [] if name is None else [quality.Flag(name, "Something is wrong: mend it.")]
    summary = {**given["summary"], "target_mismatch": True, "tmax_volume_ml": {"6": 120.0}}
    figure = page(given, summary=summary, flags=flags)
    value, volume = beside(figure, "Target mismatch (DEFUSE 3)"), beside(figure, "Tmax > 6 s")
    believed = name in (None, "implausible_te")
    assert value.get_text() == ("yes" if believed else "–")
    assert {value.get_fontweight(), volume.get_fontweight()} == {"bold" if believed else "normal"}


def test_without_an_artery_relative_ttp_stands_for_what_rests_on_tmax(given):
    summary = mismatch_summary(None, given["brain"], 0.02) | {"relative_ttp_volume_ml": 86.0}
    flags = [quality.no_artery(86.0)]
    figure = page(given, maps={"rttp": given["maps"]["tmax"]}, aif=None, core=None, summary=summary, flags=flags)
    found = texts(figure)
    assert beside(figure, "Relative TTP > 4.5 s").get_text() == "86 mL" and "Core: not determined" in found
    assert not any(name in found for name in ("Tmax >", "HIR", "Mismatch volume", "orange line"))
    assert "relative TTP > 4.5 s 86 mL" in figure.get_label()


def test_the_brain_is_told_by_volume_source_and_slices(given):
    known = given["summary"] | {"brain_ml": 1354.0, "mask_source": "threshold"}
    assert beside(page(given, summary=known), "Brain (threshold, 8 slices)").get_text() == "1354 mL"
    assert "Brain (" not in texts(page(given))


@pytest.mark.parametrize("calibrated", [True, False])
def test_flow_and_volume_are_called_relative_unless_white_matter_set_their_scale(given, calibrated):
    maps = given["maps"] | {"cbv": given["maps"]["cbf"]}
    known = given["summary"] | {"settings": {"white_matter_normalisation": calibrated}}
    assert texts(page(given, maps=maps, summary=known)).count("relative scale") == (0 if calibrated else 2)


@pytest.mark.parametrize("n_flags", [0, 1, 12])
@pytest.mark.parametrize("n_notes", [1, 30])
def test_notes_follow_the_flags_without_meeting_them_or_leaving_the_page(given, n_flags, n_notes):
    notes = [f"Note {n}: the series had something done to it that its reader may want to know." for n in range(n_notes)]
    figure = page(given, summary=given["summary"] | {"notes": notes}, flags=[FLAG] * n_flags)
    renderer = FigureCanvasAgg(figure).get_renderer()
    column = [text for text in words(figure).texts if text.get_position()[0] == 0.46]
    boxes = [text.get_window_extent(renderer) for text in column]
    assert all(above.y0 > below.y0 and above.y0 > below.y1 - 3 for above, below in itertools.pairwise(boxes))
    assert boxes[-1].y0 > 0.02 * figure.bbox.height and max(box.x1 for box in boxes) < figure.bbox.width
    found = texts(figure).replace("\n", " ")
    assert ("see summary.json" in found) == (n_notes > 1 or n_flags > 1)
    assert notes[0] in found or n_flags > 1


def test_the_letters_of_the_sides_stand_out_on_any_colour(given):
    letters = [text for text in page(given).findobj(matplotlib.text.Text) if text.get_text() in ("R", "L")]
    assert letters and all(text.get_path_effects() for text in letters)


def test_more_flags_than_fit_are_named_at_least(given):
    flags = [FLAG] * 6 + [quality.no_artery(), quality.early_bolus(None, 40), quality.no_bolus(np.ones(20))]
    found = texts(page(given, flags=flags))
    assert "see summary.json" in found.replace("\n", " ")
    for name in ("no_artery", "early_bolus", "no_bolus"):
        assert name in found.replace("\n", " ")


def test_the_page_says_what_it_is_for_and_how_it_is_drawn(given):
    figure = page(given, title="sub-01", flags=[FLAG])
    found = texts(figure)
    assert qc.RESEARCH_ONLY in found and "patient's right is on the left" in found
    label = figure.get_label()
    assert all(part in label for part in ("sub-01", "slice", "Tmax > 6 s", "implausible_te", qc.RESEARCH_ONLY))


def test_without_an_artery_or_any_map_there_is_a_page_still(given):
    few = {name: given[name] for name in ("brain", "affine", "baseline_image", "frame_times_s", "tissue")}
    figure = qc.qc_figure({"rttp": given["maps"]["tmax"]}, **few, hypoperfused=given["hypoperfused"])
    assert "none found" in texts(figure) and "Relative TTP > 4.5 s" in texts(figure)
    assert "Baseline" in texts(qc.qc_figure({}, **few))
    single = {name: np.asarray(given[name])[..., 3:4] for name in ("brain", "baseline_image")}
    qc.qc_figure({"tmax": given["maps"]["tmax"][..., 3:4]}, **(few | single))


@pytest.mark.parametrize("n", [1, 3, 5])
def test_slices_are_spread_and_the_latest_is_among_them(given, n):
    chosen = qc.informative_slices(given["brain"], given["hypoperfused"], n)
    assert len(chosen) == n and 5 in chosen and chosen == sorted(chosen)
    brain = given["brain"].copy()
    brain[..., :3] = False
    assert min(qc.informative_slices(brain, given["hypoperfused"] & False, 4)) >= 3


def test_drawing_leaves_pyplot_and_its_settings_alone(given):
    matplotlib.get_backend()
    before = dict(matplotlib.rcParams)
    figure = page(given)
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not any(pyplot.figure(number) is figure for number in pyplot.get_fignums())
