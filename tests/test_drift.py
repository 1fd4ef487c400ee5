"""Whether new data are like those that a model knows: the test behind it, and what the verb finds in a workspace."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.evaluation.drift import drift_sentences, drift_table
from reperfuse.preprocessing.intensity import intensities
from reperfuse.stages.dataset import SUBJECTS_TABLE
from reperfuse.stages.drift import drift, drift_of
from reperfuse.stages.processed import write_table


def sample(seed: int, n: int, **shift: float) -> pd.DataFrame:
    """Subjects of one scanner; `shift` moves a feature by that many standard deviations."""
    draw = np.random.default_rng(seed)
    names = ("te_s", "tr_s", "lesion_volume_ml", "intensity_median", "spacing_k_mm")
    table = pd.DataFrame({name: draw.normal(size=n) + shift.get(name, 0.0) for name in names})
    return table.assign(centre="R1", participant_id=[f"sub-{seed}-{k}" for k in range(n)])


def test_data_of_the_same_scanner_are_called_shifted_as_seldom_as_five_in_a_hundred() -> None:
    trials = 200
    alarms = sum(bool(drift_table(sample(2 * k, 40), sample(2 * k + 1, 12))["shifted"].any()) for k in range(trials))
    assert alarms / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


@pytest.mark.parametrize("feature", ["te_s", "lesion_volume_ml"])
def test_the_feature_that_moved_is_named_and_no_other(feature: str) -> None:
    table = drift_table(sample(0, 60), sample(1, 30, **{feature: 2.0}))
    assert table.loc[table["shifted"], "feature"].tolist() == [feature]
    assert len(said := drift_sentences(table)) == 1 and said[0].startswith(f"{feature} has a median of")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([np.exp, np.arctan, lambda x: 1000 * x + 7]))
def test_the_unit_of_a_feature_and_any_rising_scale_change_nothing(seed: int, scale) -> None:
    known, new = sample(seed, 20)[["te_s"]], sample(seed + 1, 8, te_s=1.0)[["te_s"]]
    one, other = drift_table(known, new), drift_table(scale(known), scale(new))
    columns = ["statistic", "p_value", "outside", "shifted"]
    pd.testing.assert_frame_equal(one[columns], other[columns])


def test_a_centre_that_was_never_seen_is_a_shift_and_a_familiar_one_is_none() -> None:
    known = sample(0, 30).assign(centre=["R1"] * 20 + ["R2"] * 10)
    assert not drift_table(known, sample(1, 10))["shifted"].any()
    row = drift_table(known, sample(1, 10).assign(centre=["R3"] + ["R2"] * 9)).iloc[-1]
    assert (row["feature"], row["outside"], row["shifted"]) == ("centre", 0.1, True)


def test_who_lies_below_the_known_range_is_beyond_it_as_is_who_lies_above() -> None:
    known, new = pd.DataFrame({"te_s": [0.03, 0.04]}), pd.DataFrame({"te_s": [0.02, 0.03, 0.04, 0.05]})
    assert drift_table(known, new)["outside"].tolist() == [0.5]


def test_what_one_side_lacks_is_not_compared() -> None:
    known = sample(0, 10).assign(te_s=float("nan"))
    assert "te_s" not in set(drift_table(known, sample(1, 5))["feature"])
    assert "tr_s" not in set(drift_table(known, sample(1, 5).drop(columns="tr_s"))["feature"])
    assert drift_table(known[["participant_id"]], known[["participant_id"]]).empty


# ---- intensities ----------------------------------------------------------------------------------------------------
def test_intensities_scale_with_the_image_and_its_contrast_does_not() -> None:
    image = np.random.default_rng(3).gamma(4.0, 100.0, (12, 12, 6))
    image[:4] = 0.0  # air
    one, other = intensities(image), intensities(3.0 * image)
    assert other["intensity_median"] == pytest.approx(3.0 * one["intensity_median"])
    assert other["intensity_spread"] == pytest.approx(one["intensity_spread"])
    series = np.stack([image, image], axis=-1)
    assert intensities(series) == pytest.approx(one)


def test_air_counts_for_nothing_and_an_empty_image_has_no_intensity() -> None:
    tissue = np.full((6, 6, 6), 50.0)
    padded = np.zeros((12, 12, 12))
    padded[:6, :6, :6] = tissue
    assert intensities(padded) == intensities(tissue) == {"intensity_median": 50.0, "intensity_spread": 0.0}
    assert np.isnan(intensities(np.zeros((4, 4, 4)))["intensity_median"])


# ---- the verb -------------------------------------------------------------------------------------------------------
def subjects(names: list[str], te_s: float = 0.03, **files: str) -> pd.DataFrame:
    """Everybody trains; a subject's files are its name unless said otherwise."""
    digests = [files.get(name, name) for name in names]
    return pd.DataFrame(
        {"participant_id": names, "side": "train", "files_sha256": digests, "te_s": te_s, "centre": "1"}
    )


def processed(table: pd.DataFrame, revision: str) -> None:
    """The workspace's data, as the stages up to `folds` leave them."""
    Path("data/bids").mkdir(parents=True, exist_ok=True)
    Path("data/bids/lesion.dvc").write_text(f"outs:\n- md5: {revision}.dir\n  path: lesion\n")
    write_table(
        Path("data/processed/lesion/index.csv"),
        table[["participant_id", "files_sha256"]].assign(shape="1x8x8x8", sha256="x"),
    )
    write_table(Path("results/lesion/folds.csv"), table[["participant_id", "side", "centre"]].assign(fold=0))
    write_table(Path("results/lesion/cohort.csv"), table[["participant_id", "centre", "te_s"]].assign(image="x"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tracking.Version]:
    """A version trained on a, b and c at revision 1; it is made of a run and a table alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")
        with tracking.run("lesion", "model unet3d", lineage={"data_revision": "1.dir"}) as run:
            run.log_table(subjects(["a", "b", "c"]), SUBJECTS_TABLE)
        yield tracking.Version("lesion", "1", run.id, "models:/lesion/1", "")


@pytest.fixture
def champion(store: tracking.Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tracking.Version:
    """That version as champion, in a workspace without data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "champion", lambda arm: store)
    return store


def test_new_changed_and_lost_subjects_are_told_apart(champion: tracking.Version) -> None:
    processed(subjects(["a", "b", "d", "e"], b="other"), "2")
    found = drift_of("lesion", champion)
    assert (found.new, found.changed, found.gone, found.news) == (("d", "e"), ("b",), ("c",), True)
    assert found.table is not None and found.table["n_new"].tolist() == [3, 3]


def test_new_data_are_held_against_the_training_side_alone(
    champion: tracking.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = subjects(["a", "b", "c"]).assign(side=["train", "train", "holdout"])
    monkeypatch.setattr(tracking, "find_table", lambda run_id, path: known)
    processed(subjects(["a", "b", "c", "d"]), "2")
    table = drift_of("lesion", champion).table
    assert table is not None and set(table["n_known"]) == {2}


def test_data_that_went_back_to_an_older_revision_are_news(champion: tracking.Version) -> None:
    processed(subjects(["a", "b"]), "0")
    assert drift_of("lesion", champion).news


def test_the_same_data_are_no_news(champion: tracking.Version) -> None:
    processed(subjects(["a", "b", "c"]), "1")
    told = json.loads(drift("lesion", as_json=True))
    assert not told["news"] and told["features"] == [] and told["new"] == []


def test_before_the_data_are_processed_the_revision_alone_is_compared(champion: tracking.Version) -> None:
    Path("data/bids").mkdir(parents=True)
    Path("data/bids/lesion.dvc").write_text("outs:\n- md5: 2.dir\n  path: lesion\n")
    told = json.loads(drift("lesion", as_json=True))
    assert told["news"] and told["features"] == []


def test_the_page_says_what_has_shifted(champion: tracking.Version) -> None:
    processed(pd.concat([subjects(["a", "b", "c"]), subjects([f"n{k}" for k in range(20)], te_s=0.05)]), "2")
    page = drift("lesion")
    assert "20 new subjects" in page and "- te_s has a median of 0.05, the champion's training set 0.03" in page


def test_without_data_or_champion_the_verb_says_what_to_do(
    champion: tracking.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="reperfuse ingest"):
        drift("lesion")
    processed(subjects(["a"]), "1")
    monkeypatch.setattr(tracking, "champion", lambda arm: None)
    with pytest.raises(InputError, match="no champion to compare with"):
        drift("lesion")
    assert json.loads(drift("lesion", as_json=True)) == {
        "arm": "lesion",
        "champion": None,
        "revision": "1.dir",
        "news": True,
    }
