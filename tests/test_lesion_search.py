"""The lesion arm's search with thick slices: what is predicted twice, how both are weighed, who reads the result."""

import re
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from lesion_files import write_set

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.evaluation.figures import metric_label
from reperfuse.evaluation.metrics import METRICS, dice, dice_at, note_of
from reperfuse.evaluation.trials import known_metrics, readable_rows, trials_table
from reperfuse.files import read_json
from reperfuse.imaging.volume import Volume
from reperfuse.params import Params
from reperfuse.preprocessing.geometry import thick_slices
from reperfuse.stages import experiment, lesion
from reperfuse.stages.ingest import ingest
from reperfuse.stages.processed import write_subject
from reperfuse.stages.promotion import promote
from reperfuse.stages.searched import trials_of
from reperfuse.training.fit import KEPT, shown
from reperfuse.training.samples import Subject

SHAPE, SPACING_MM = (8, 8, 15), (2.0, 2.0, 2.0)


def params(weight: float, mm: float = 10.0, **lesion: object) -> Params:
    return Params.model_validate({"lesion": {"tune": {"degraded_weight": weight, "degraded_mm": mm}, **lesion}})


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """Two channels, 0 outside the mask; the lesion is bright in the first and three slices thick."""
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, bool)
    mask[1:7, 1:7, 2:13] = True
    target = np.zeros(SHAPE, np.uint8)
    target[2:5, 2:6, 6:9] = 1
    image = rng.uniform(0.1, 0.3, (2, *SHAPE)).astype(np.float32)
    image[0] += target
    affine = np.diag([*SPACING_MM, 1.0])
    write_subject(tmp_path / "sub-0", image * mask, target, mask, {"affine": affine.tolist()})
    return Subject("sub-0", tmp_path / "sub-0")


def watched(images: list[np.ndarray]):
    """A network that takes the first channel for a probability, and keeps what it was shown."""

    def predict(image: np.ndarray) -> np.ndarray:
        images.append(image)
        return np.clip(image[0], 0, 1)

    return predict


def test_without_a_weight_everything_is_as_without_the_parameter(subject: Subject) -> None:
    images: list[np.ndarray] = []
    objective = lesion._objective(params(0.0, 6.0))
    scores = objective.of_subject(watched(images), subject)
    assert objective.metric == "dice" and objective.degraded is None and len(images) == 1
    assert set(objective.about) == {"probability_threshold", "smallest_ml", "mirror"}
    assert set(shown(scores)) <= set(METRICS)
    assert scores == lesion._objective(Params()).of_subject(watched([]), subject)


def test_with_a_weight_a_subject_is_also_predicted_with_thick_slices_on_its_own_grid(subject: Subject) -> None:
    images: list[np.ndarray] = []
    lesion._objective(params(0.3)).of_subject(watched(images), subject)
    image, _, mask = subject.load()
    np.testing.assert_array_equal(images[0], image)
    affine = np.diag([*SPACING_MM, 1.0])
    for channel, thick in zip(image, images[1], strict=True):
        expected = thick_slices(Volume(np.asarray(channel), affine), 10.0).data
        np.testing.assert_allclose(thick[mask > 0], expected[mask > 0], rtol=1e-5)
        assert not thick[mask == 0].any() and np.abs(thick - channel).max() > 0.05


def test_what_normalisation_left_outside_the_mask_gets_thick_slices_too() -> None:
    degraded = lesion._objective(params(0.3)).degraded
    assert degraded is not None
    image = np.random.default_rng(1).uniform(1, 2, (1, *SHAPE)).astype(np.float32)
    affine = np.diag([*SPACING_MM, 1.0])
    thick = degraded.image(image, np.zeros(SHAPE, np.uint8), affine)
    np.testing.assert_allclose(thick[0], thick_slices(Volume(image[0], affine), 10.0).data, rtol=1e-5)


def test_the_search_goes_by_the_weighed_mean_and_keeps_both_parts(subject: Subject) -> None:
    images: list[np.ndarray] = []
    objective = lesion._objective(params(0.3))
    assert (objective.metric, objective.higher_is_better) == ("weighed_dice", True)
    scores = objective.of_subject(watched(images), subject)
    truth = subject.load()[1][0] > 0
    clean, coarse = (dice(np.clip(image[0], 0, 1) > 0.5, truth) for image in images)
    assert clean is not None and coarse is not None and coarse < clean - 0.05
    assert scores["dice"] == pytest.approx(clean) and scores["dice_10mm"] == pytest.approx(coarse)
    assert scores["weighed_dice"] == pytest.approx(0.7 * clean + 0.3 * coarse)
    assert set(shown(scores)) - set(METRICS) == {"dice_10mm", "weighed_dice"}


def test_the_operating_point_is_settled_by_the_same_weighing(subject: Subject) -> None:
    """Thick slices blur the lesion: by them alone another threshold is best than by the images as they are."""
    point = f"{KEPT}dice/0.5/0"
    found = {w: lesion._objective(params(w)).of_subject(watched([]), subject) for w in (0.0, 0.25, 1.0)}
    assert found[0.25][point] == pytest.approx(0.75 * found[0.0][point] + 0.25 * found[1.0][point])
    assert found[1.0][point] == pytest.approx(found[1.0]["dice_10mm"])
    settled = {w: lesion._objective(params(w)).settled([[scores]]) for w, scores in found.items()}
    assert settled[1.0]["probability_threshold"] != settled[0.0]["probability_threshold"]


def test_other_weights_and_thicknesses_start_a_search_anew_where_they_matter() -> None:
    about = [lesion._objective(params(w, mm)).about for w, mm in ((0.0, 10), (0.0, 6), (0.3, 10), (0.4, 10), (0.3, 6))]
    assert about[0] == about[1] and all(about[n] not in about[:n] for n in (2, 3, 4))


def test_slices_thinner_than_the_grid_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(InputError, match=r"degraded_mm in params\.yaml is 3 mm, thinner .* 4 mm"):
        lesion._objective(params(0.5, 3.0, preprocess={"spacing_mm": 4.0}))
    lesion._objective(params(0.0, 3.0, preprocess={"spacing_mm": 4.0}))


def test_tables_know_what_a_search_makes_of_dice() -> None:
    assert [metric_label(name) for name in ("weighed_dice", dice_at(10), dice_at(7.5))] == [
        "Weighed Dice",
        "Dice at 10 mm",
        "Dice at 7.5 mm",
    ]
    assert known_metrics(["dice_10mm", "weighed_dice"]) and note_of("dice_mm") is None
    with pytest.raises(InputError, match="dice_drop_10mm"):
        known_metrics(["dice_drop_10mm"])


def test_the_trial_with_the_highest_weighed_mean_stands_first() -> None:
    trials = pd.DataFrame({"number": [0, 1], "state": "complete", "value": [0.4, 0.6], "dice_10mm": [0.3, 0.5]})
    trials = trials.assign(dice=[0.5, 0.7], loss="bce", reason="", seconds=1.0)
    table = trials_table(trials, None, metric="weighed_dice", searched=["loss"])
    headings, rows = readable_rows(table)
    assert headings[3:6] == ["Weighed Dice", "Dice", "Dice at 10 mm"] and rows[0][3:6] == ["0.600", "0.700", "0.500"]


# ---- from the tree to the champion ----------------------------------------------------------------------------------
def head(number: int) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A warm ball with a hot one in it, at 4 mm, and the mask of the hot one."""
    rng = np.random.default_rng(number)
    places = np.indices((16, 16, 16)).transpose(1, 2, 3, 0)
    brain = np.linalg.norm(places - 7.5, axis=-1) < 7
    hot = np.linalg.norm(places - 7.5 - rng.uniform(-2, 2, 3), axis=-1) < 2.5
    image = 100 * brain + 100 * hot + rng.normal(0, 5, brain.shape) * brain
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    return tuple(nib.Nifti1Image(data.astype(np.float32), affine) for data in (image, hot))


def test_a_search_by_the_weighed_mean_ends_in_a_page_a_table_and_a_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    for number in range(5):
        dwi, mask = head(number)
        write_set(tmp_path / "inbox", f"sub-strokecase000{number}", dwi=dwi, adc=None, flair=None, mask=mask)
    assert ingest(tmp_path / "inbox", arm="lesion", root=tmp_path) == 0
    asked = Params.model_validate(
        {
            "lesion": {
                "preprocess": {"modalities": ["dwi"], "spacing_mm": 4.0},
                "folds": {"n_folds": 2, "holdout_count": 1, "group_by": "participant_id"},
                "tune": {
                    "n_trials": 2,
                    "sampler": "grid",
                    "prune": False,
                    "epochs": 1,
                    "rivals": "loss",
                    "space": {"loss": {"choices": ["dice_bce", "bce"]}},
                    "degraded_weight": 0.25,
                },
                "train": {
                    "network_kwargs": {"widths": [4, 8]},
                    "patch_size": None,
                    "epochs": 1,
                    "steps_per_epoch": 4,
                    "batch_size": 1,
                    "accelerator": "cpu",
                },
                "evaluate": {"bootstrap_samples": 100, "probability_threshold": 0.4, "smallest_ml": 0},
                "resolution": {"thickness_mm": [4.0, 10.0]},
            }
        }
    )
    for verb in ("cohort", "preprocess", "folds", "tune", "train", "evaluate", "resolution", "report"):
        getattr(lesion, verb)(asked)
    tune = Path("results/lesion/tune")
    best, validation, trials = (
        read_json(tune / "best.json"),
        pd.read_csv(tune / "validation.csv"),
        pd.read_csv(tune / "trials.csv"),
    )
    assert best["metric"] == "weighed_dice" and best["cv_score"] == pytest.approx(validation["weighed_dice"].mean())
    for table, name in ((validation, "weighed_dice"), (trials, "value")):
        np.testing.assert_allclose(table[name], 0.75 * table["dice"] + 0.25 * table["dice_10mm"], atol=1e-9)
    extra = read_json(Path("models/lesion/model.json"))["extra"]["scored_with"]
    assert (extra["degraded_weight"], extra["degraded_mm"], extra["probability_threshold"]) == (0.25, 10.0, 0.4)
    store = tracking.client()
    (arm,) = [there for there in store.search_experiments() if there.name == "lesion"]
    logged = store.search_runs([arm.experiment_id], "tags.kind = 'trial'")[0].data.metrics
    assert {"cv/weighed_dice_mean", "cv/dice_mean", "cv/dice_10mm_mean"} <= set(logged)
    page = re.sub(r"<svg.*?</svg>", "", Path("reports/lesion.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "Weighed Dice per cross-validation fold" in page and "Dice at 10 mm" in page
    table = trials_of(tune, ["loss"])
    assert table["weighed_dice"].is_monotonic_decreasing
    headings, _ = readable_rows(table)
    assert headings[:6] == ["kind", "name", "loss", "Weighed Dice", "Dice", "Dice at 10 mm"]
    experiment._write_table(tune, "t", "r", SimpleNamespace(description="d"), table, "thickness_mm", ["weighed_dice"])
    assert "Dice at 10 mm" in (tune / "table.md").read_text(encoding="utf-8")
    experiment._show(tune, "t", table, "thickness_mm", ["weighed_dice"])
    assert "Weighed" in capsys.readouterr().out
    said = promote("lesion", asked)
    assert said.startswith("lesion: version 1 is ") and "mean dice" in said
