"""The page is whole, honest about its numbers, and needs nothing but itself."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from reperfuse.evaluation import figures as draw
from reperfuse.evaluation.hypotheses import hypothesis_tests
from reperfuse.evaluation.metrics import lesion_scores, tmax_scores
from reperfuse.evaluation.report import RESEARCH_USE, image_uri, render_report
from reperfuse.evaluation.resolution import curve, resolution_study, size_curve, study_table
from reperfuse.evaluation.study_figure import study_panels
from reperfuse.evaluation.summary import ranked_subjects
from reperfuse.evaluation.tables import (
    detection_table,
    hypothesis_table,
    resolution_tables,
    size_table,
    strata_table,
    validation_table,
)
from reperfuse.evaluation.trials import trials_table

SPACING = {"lesion": (3.0, 3.0, 3.0), "perfusion": (4.0, 4.0, 6.0)}
METHODS = {
    "lesion": ("model", "baseline_threshold", "baseline_empty"),
    "perfusion": ("model", "baseline_osvd", "baseline_mean"),
}


def ball(shape: tuple[int, ...], centre: np.ndarray, radius: float) -> np.ndarray:
    grid = np.indices(shape)
    return sum((grid[axis] - centre[axis]) ** 2 for axis in range(3)) < radius**2


class Subject:
    """A round brain with a round lesion, and predictions that are wrong by a known amount."""

    def __init__(self, arm: str, number: int) -> None:
        shape = (48, 56, 40) if arm == "lesion" else (48, 48, 12)
        rng = np.random.default_rng(number)
        grid, middle = np.indices(shape), np.array(shape)[:, None, None, None] / 2
        self.arm, self.rng = arm, rng
        self.brain = (((grid - middle) / (middle * 0.85)) ** 2).sum(axis=0) < 1
        centre = np.array(shape) * rng.uniform(0.4, 0.6, 3)
        self.radius = rng.uniform(3, 7)
        self.centre = centre
        self.truth = ball(shape, centre, self.radius) & self.brain
        tissue = 90 + 25 * np.sin(grid[0] / 4) * np.cos(grid[1] / 5) + rng.normal(0, 6, shape)
        self.image = np.where(self.brain, np.where(self.truth, 55.0, tissue), 0.0)
        self.late = np.where(self.brain, 2.0 + 8 * self.truth + rng.normal(0, 0.4, shape), 0.0)

    def predict(self, method: str, level: float = 0.0) -> np.ndarray:
        drift = 0.6 + 0.25 * level
        moved = ball(self.truth.shape, self.centre + drift, self.radius * (1 - 0.04 * level)) & self.brain
        noise = self.rng.normal(0, 1, self.truth.shape)
        if self.arm == "lesion":
            return {"model": moved, "baseline_threshold": self.image * self.brain + 8 * noise < 62,
                    "baseline_empty": np.zeros_like(moved)}[method] & self.brain  # fmt: skip
        return {"model": 2 + 8 * moved + 0.5 * noise, "baseline_osvd": self.late * 1.2 + 1.5 * noise,
                "baseline_mean": np.full(self.truth.shape, 3.0)}[method]  # fmt: skip

    def score(self, prediction: np.ndarray) -> dict[str, float | None]:
        if self.arm == "lesion":
            return lesion_scores(prediction, self.truth, SPACING[self.arm])
        return tmax_scores(prediction, self.late, self.brain, SPACING[self.arm])


def fake_study(arm: str, n: int = 8) -> dict[str, Any]:
    """Everything `render_report` takes, as a stage would gather it."""
    methods = METHODS[arm]
    subjects = {f"sub-{number:03d}": Subject(arm, number) for number in range(n)}
    held = {name: subject for name, subject in subjects.items() if int(name[-1]) % 2 == 0}
    scores = pd.DataFrame(
        [{"participant_id": name, "method": method} | subject.score(subject.predict(method))
         for name, subject in held.items() for method in methods]
    )  # fmt: skip
    cohort = pd.DataFrame(
        [{"participant_id": name, "centre": f"R{int(name[-1]) % 3:03d}",
          "lesion_volume_ml": float(subject.truth.sum() * np.prod(SPACING[arm]) / 1000)}
         for name, subject in subjects.items()]
    )  # fmt: skip
    sides = ["holdout" if name in held else "train" for name in subjects]
    folds = cohort[["participant_id", "centre"]].assign(
        side=sides, fold=[np.nan if side == "holdout" else row % 2 for row, side in enumerate(sides)]
    )
    metric = "dice" if arm == "lesion" else "mae_s"
    level_name, levels, facets = (
        ("thickness_mm", (2, 5, 10), ("k",)) if arm == "lesion" else ("tr_s", (1, 1.5, 3), (50.0, 20.0))
    )
    resolution = resolution_study(
        held.items(),
        levels=dict.fromkeys(facets, levels),
        degrade=lambda subject, level, facet: (subject, level),
        predict={method: lambda pair, method=method: pair[0].predict(method, pair[1]) for method in methods},
        score=lambda prediction, subject, level, facet: subject.score(prediction),
        level_name=level_name,
    )
    validation = pd.DataFrame(
        {"fold": [0, 0, 1, 1, 2, 2], metric: [0.71, 0.78, 0.62, 0.7, 0.75, 0.8], "ccc": [0.7, 0.8, 0.7, 0.6, 0.9, 0.8]}
    )
    epochs = np.arange(12)
    history = pd.DataFrame(
        {"epoch": epochs, "train_loss": np.exp(-epochs / 5), "val_loss": 0.1 + np.exp(-epochs / 6),
         f"val_{metric}": 1 - np.exp(-epochs / 4)}
    )  # fmt: skip
    means = curve(resolution, level_name=level_name)
    pictures: dict[str, Figure] = {
        "cohort_volumes": draw.volume_histogram(cohort["lesion_volume_ml"], sides=sides),
        "folds": draw.fold_dots(validation, metric),
        "training": draw.training_curve(history),
        "scores": draw.score_dots(scores, metric),
    } | {f"resolution {value}": study_panels(means, metric, level_name=level_name, at=value) for value in facets}
    for rank, name in ranked_subjects(scores, metric).items():
        rows = scores[scores["participant_id"] == name].set_index("method")[metric]
        said = {method: f"{draw.metric_label(metric)} {rows[method]:.2f}" for method in methods[:2]}
        shown = {method: held[name].predict(method) for method in methods[:2]}
        overlay, base = (draw.lesion_overlay, (held[name].image, held[name].truth, shown)) if arm == "lesion" else (
            draw.tmax_panels, (held[name].late, shown, held[name].brain))  # fmt: skip
        pictures[f"overlay_{rank}"] = overlay(*base, SPACING[arm], title=f"{name}: {rank}", captions=said)
    return {
        "title": f"Reperfuse {arm} report",
        "arm": arm,
        "cohort": cohort,
        "folds": folds,
        "scores": scores,
        "figures": pictures,
        "cross_validation": validation,
        "trials": trials_table(
            pd.DataFrame({"number": [0, 1], "state": "complete", "value": [0.7, 0.74], "learning_rate": [1e-3, 3e-4]}),
            None,
            metric=metric,
            searched=["learning_rate"],
        ),
        "chosen": {"network": "unet3d", "network_kwargs": {"widths": [8, 16, 32, 64]}, "learning_rate": 3e-4},
        "resolution": resolution,
        "lineage": {"code revision": "0" * 40, "data revision": "md5 " + "a" * 32, "seed": 0,
                    "versions": {"python": "3.11", "torch": "2.13.0"}},
        "notes": ["All subjects are phantoms; their truth is known exactly."],
    }  # fmt: skip


class Page(HTMLParser):
    """What a page refers to, its headings and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.ids, self.links, self.pictures, self.tags = text, set(), [], [], []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids |= {given["id"]} if given.get("id") else set()
        self.links += [given[name] for name in ("href", "src") if given.get(name)]
        if tag == "img":
            self.pictures.append(given)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module", params=["lesion", "perfusion"])
def study(request: pytest.FixtureRequest) -> dict[str, Any]:
    return fake_study(request.param)


@pytest.fixture(scope="module")
def page(study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("reports") / f"{study['arm']}.html"
    render_report(path, **study)
    yield Page(path.read_text(encoding="utf-8"))


def test_the_page_needs_no_network_and_no_scripts(page: Page) -> None:
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in page.text and "url(" not in page.text
    assert "http" not in re.sub(r"data:image/[^\"]+", "", page.text)


def test_every_section_is_there_and_every_anchor_leads_somewhere(page: Page) -> None:
    sections = {"summary", "cohort", "validation", "scores", "subjects", "resolution", "metrics", "lineage"}
    assert sections <= page.ids
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert not page.open


def test_research_use_is_said_at_the_top_and_at_the_end(page: Page) -> None:
    assert page.text.count(RESEARCH_USE) == 2
    assert page.text.index(RESEARCH_USE) < page.text.index("<h1>")


def test_every_picture_has_words_for_who_cannot_see_it(page: Page, study: dict[str, Any]) -> None:
    assert len(page.pictures) == len(study["figures"])
    assert all(len(picture["alt"]) > 30 for picture in page.pictures)


def test_small_samples_and_the_optimism_of_cross_validation_are_said(page: Page) -> None:
    assert "n = 4 hold-out subjects: intervals are wide" in page.text
    assert "optimistic" in page.text


def test_every_baseline_stands_in_every_table_of_scores(page: Page, study: dict[str, Any]) -> None:
    tables = re.findall(r"<table.*?</table>", page.text, re.DOTALL)
    about_scores = [table for table in tables if re.search(r"Hold-out, n|Model minus|Every hold-out|paired per", table)]
    names = [draw.method_label(method) for method in METHODS[study["arm"]][1:]]
    about_resolution = 1 if study["arm"] == "lesion" else 2
    assert len(about_scores) == 3 + 2 * about_resolution
    assert all(name in table for table in about_scores for name in names)


def test_every_metric_of_the_table_is_explained(page: Page, study: dict[str, Any]) -> None:
    for metric in study["scores"].columns.drop(["participant_id", "method"]):
        assert f"<dt>{draw.metric_label(metric)}</dt>".replace("'", "&#39;") in page.text


def test_what_the_model_gains_over_the_usual_method_is_said_and_tabled(page: Page, study: dict[str, Any]) -> None:
    label = "oSVD" if study["arm"] == "perfusion" else "Intensity threshold"
    assert re.search(rf"Against {label} the model&#39;s mean|Against {label} the model's mean", page.text)
    assert f"difference from {label}" in page.text and f"Model − {label}" in page.text


def test_each_noise_has_its_own_tables_of_means_and_of_differences() -> None:
    rows = [
        {"participant_id": f"sub-{n}", "method": method, "snr": snr, "tr_s": level, "mae_s": factor * level / snr}
        for n in range(3)
        for method, factor in (("model", 50), ("baseline_osvd", 150))
        for snr in (50.0, 20.0)
        for level in (1.0, 2.0)
    ]
    tables = resolution_tables(study_table(rows, level_name="tr_s"), "mae_s", "tr_s", against="baseline_osvd")
    named = [re.search(r"SNR \d+", table["caption"])[0] for table in tables]
    assert named == ["SNR 50", "SNR 50", "SNR 20", "SNR 20"]
    assert [[row[:3] for row in table["rows"]] for table in tables[::2]] == [
        [["1", "1.00", "3.00"], ["2", "2.00", "6.00"]],
        [["1", "2.50", "7.50"], ["2", "5.00", "15.00"]],
    ]
    assert [[row[:2] for row in table["rows"]] for table in tables[1::2]] == [
        [["1", "−2.00"], ["2", "−4.00"]],
        [["1", "−5.00"], ["2", "−10.00"]],
    ]
    assert all(len(row) == len(table["columns"]) for table in tables for row in table["rows"])


def test_a_rival_is_compared_but_is_no_baseline_to_beat(study: dict[str, Any], tmp_path: Path) -> None:
    best = study["scores"][study["scores"]["method"] == "model"].copy()
    best["method"] = "rival_tmax_unet"
    scores = pd.concat([study["scores"], best])
    render_report(tmp_path / "page.html", **(study | {"scores": scores, "figures": {}}))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    verdict = re.search(r'<p class="verdict">(.*?)</p>', text)
    assert verdict and "rival" not in verdict[1].lower() and text.count("Rival tmax_unet") >= 3


def test_lineage_is_flattened_into_names_and_values(page: Page) -> None:
    assert "versions.torch" in page.text and "0" * 40 in page.text


def test_the_same_figure_drawn_twice_gives_the_same_bytes(study: dict[str, Any]) -> None:
    drawn = [image_uri(draw.score_dots(study["scores"], study["scores"].columns[2])) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_study_of_one_subject_without_resolution_still_makes_a_page(study: dict[str, Any], tmp_path: Path) -> None:
    alone = study["scores"][study["scores"]["participant_id"] == "sub-000"]
    bare = {key: study[key] for key in ("title", "arm", "cohort", "folds", "lineage")}
    render_report(tmp_path / "bare.html", **bare, scores=alone, figures={})
    text = (tmp_path / "bare.html").read_text(encoding="utf-8")
    assert "no interval" in text and "The resolution study has not been run." in text and "too few subjects" in text
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL).lower().replace("resonance", "")


def test_names_from_files_are_text_and_never_markup(study: dict[str, Any], tmp_path: Path) -> None:
    render_report(tmp_path / "page.html", **(study | {"title": "<script>alert(1)</script>", "figures": {}}))
    assert "<script>" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_model_that_only_equals_its_baselines_is_not_called_better(study: dict[str, Any], tmp_path: Path) -> None:
    same = study["scores"].copy()
    metrics = same.columns.drop(["participant_id", "method"])
    for method in METHODS[study["arm"]][1:]:
        same.loc[same["method"] == method, metrics] = same.loc[same["method"] == "model", metrics].to_numpy()
    render_report(tmp_path / "page.html", **(study | {"scores": same, "figures": {}}))
    verdict = re.search(r'<p class="verdict">(.*?)</p>', (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert verdict and "not clearly different" in verdict[1]


def test_charts_travel_as_svg_and_images_as_png() -> None:
    chart = Figure()
    chart.subplots().plot([1, 2])
    image = Figure()
    image.subplots().imshow(np.eye(3))
    assert image_uri(chart).startswith("data:image/svg+xml") and image_uri(image).startswith("data:image/png")


# ---- strata ---------------------------------------------------------------------------------------------------------
SCORES = pd.DataFrame(
    [
        (f"sub-{n}", method, dice)
        for n, dice in enumerate((0.1, 0.3, 0.7, 0.9))
        for method in ("model", "baseline_empty")
    ],
    columns=["participant_id", "method", "dice"],
).assign(dice=lambda table: table["dice"].where(table["method"] == "model", 0.0))


def test_strata_are_of_the_model_with_sessions_of_a_subject_as_one() -> None:
    volumes = [("sub-0", 0.6), ("sub-0", 0.6), ("sub-1", 0.5), ("sub-2", 60.0), ("sub-3", 70.0), ("sub-9", 20.0)]
    cohort = pd.DataFrame(volumes, columns=["participant_id", "lesion_volume_ml"])
    cohort["centre"] = ["R001", "R001", "R002", "R002", "R001", "R003"]
    table = strata_table(SCORES, cohort, ["dice"], seed=0)
    assert table is not None and table["columns"] == ["Stratum", "Dice", "n"]
    means = {row[0]: (float(row[1].split()[0]), row[2]) for row in table["rows"]}
    assert means == {
        "Volume < 1 mL": (0.3, "1"),
        "Volume 1–10 mL": (0.1, "1"),
        "Volume ≥ 50 mL": (0.8, "2"),
        "Centre R001": (0.5, "2"),
        "Centre R002": (0.5, "2"),
    }


def test_where_nothing_divides_the_hold_out_there_are_no_strata() -> None:
    cohort = pd.DataFrame({"participant_id": [f"sub-{n}" for n in range(4)], "centre": "R001"})
    assert strata_table(SCORES, cohort, ["dice"], seed=0) is None
    assert strata_table(SCORES, cohort.drop(columns="centre"), ["dice"], seed=0) is None
    one_class = cohort.assign(lesion_volume_ml=5.0)
    assert strata_table(SCORES, one_class, ["dice"], seed=0) is None


def test_the_page_shows_strata(tmp_path: Path) -> None:
    study = fake_study("lesion")
    render_report(tmp_path / "page.html", **study)
    assert "The model by lesion volume and by centre" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_score_that_no_validation_subject_has_is_a_dash() -> None:
    validation = pd.DataFrame({"fold": [0, 1], "dice": [0.2, 0.4], "hd95_mm": [np.nan, np.nan]})
    held = pd.DataFrame({"method": "model", "metric": ["dice", "hd95_mm"], "mean": [0.3, np.nan]})
    table = validation_table(validation, held.assign(low=np.nan, high=np.nan), ["dice", "hd95_mm"])
    assert table["rows"] == [["Dice", "0.300 (0.200 to 0.400)", "0.300"], ["HD95 [mm]", "–", "–"]]


def test_the_tables_of_a_study_say_change_verdict_size_and_smallest_lesion():
    rows = [
        {"participant_id": f"sub-{n}", "method": "model", "axis": "k", "thickness_mm": level,
         "dice": 0.8 - 0.01 * n - level / 50, "false_negative_ml": 0.1 * n * level}
        for n in range(12) for level in (1.0, 10.0)
    ]  # fmt: skip
    scores = study_table(rows)
    tests = hypothesis_table(hypothesis_tests(scores), "thickness_mm")
    assert [row[1] for row in tests["rows"]] == ["Dice", "False negative volume [mL]"]
    assert tests["rows"][0][3] == "−0.180" and {row[-1] for row in tests["rows"]} == {"supported"}
    volumes = {f"sub-{n}": 0.5 if n < 6 else 20.0 for n in range(12)}
    sizes = size_table(size_curve(scores, volumes, metrics=["dice"]), "dice", "thickness_mm")
    assert sizes["columns"] == ["True volume", "1 mm", "10 mm", "n"]
    assert sizes["rows"] == [["< 1 mL", "0.755", "0.575", "6"], ["10–50 mL", "0.695", "0.515", "6"]]
    methods, said = ["model", "baseline_threshold"], ["half found at 2 mL", "none"]
    limits = pd.DataFrame({"method": methods, "axis": "k", "thickness_mm": 10.0, "said": said})
    assert detection_table(limits, "thickness_mm")["rows"] == [["slices along k", "10", "half found at 2 mL", "none"]]
