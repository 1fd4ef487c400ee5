"""Presets: what they may say, what DVC makes of them, and one run from the command to the table."""

import inspect
import itertools
import json
import math
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, Workspace
from dvc.utils.hydra import apply_overrides
from hypothesis import given, settings
from hypothesis import strategies as st

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.evaluation.figures import method_label, metric_label
from reperfuse.evaluation.metrics import METRICS
from reperfuse.evaluation.trials import readable_rows
from reperfuse.params import LesionParams, Params, load_params
from reperfuse.stages.experiment import Part, brought, holdout_tables
from reperfuse.stages.presets import Preset, find_preset, merged, preset_params, presets, read_preset, set_param_words
from reperfuse.stages.searched import trials_of

NAMES = sorted(presets(ROOT))
BOTH_SIZES = [pytest.param(name, small, id=f"{name}{'-small' * small}") for name in NAMES for small in (False, True)]

TINY = """
description: Two learning rates, one epoch.
arm: perfusion
overrides:
  preprocess: {inputs: [signal]}
  tune: {sampler: grid, n_trials: 2, epochs: 3, space: {learning_rate: {choices: [0.001, 0.01]}}}
  train: {network: tmax_2layer, network_kwargs: {hidden: 3}, inputs: [signal], init_from: null, epochs: 3}
  resolution: {tr_s: [1.5, 3.0], snr: [50.0]}
small:
  tune: {epochs: 1}
  train: {epochs: 1}
"""


def defaults() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def of(name: str, small: bool) -> Params:
    path = find_preset(ROOT, name)
    return preset_params(defaults(), read_preset(path), small, path)


def written(folder: Path, text: str) -> Path:
    (folder / "experiments").mkdir(exist_ok=True)
    path = folder / "experiments" / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- every preset ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "small"), BOTH_SIZES)
def test_a_preset_names_networks_arguments_and_losses_that_exist(name: str, small: bool) -> None:
    from reperfuse.networks import NETWORKS
    from reperfuse.training.losses import LOSSES

    arm = getattr(of(name, small), read_preset(find_preset(ROOT, name)).arm)
    space = arm.tune.space
    networks = space.get("network", {}).get("choices", [arm.train.network])
    assert {*networks, arm.train.network} <= set(NETWORKS)
    assert {*space.get("loss", {}).get("choices", []), arm.train.loss} <= set(LOSSES)
    for key in (key.removeprefix("network_kwargs.") for key in space if key.startswith("network_kwargs.")):
        assert all(key in inspect.signature(NETWORKS[network]).parameters for network in networks), key
    assert arm.tune.rivals is None or arm.tune.rivals in space


@pytest.mark.parametrize(("name", "small"), BOTH_SIZES)
def test_a_preset_searches_only_what_training_takes_and_preprocessing_writes(name: str, small: bool) -> None:
    from reperfuse.stages.learning import with_overrides

    arm = getattr(of(name, small), read_preset(find_preset(ROOT, name)).arm)
    choices = {key: spec.get("choices", [spec.get("low")]) for key, spec in arm.tune.space.items()}
    points = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    written = arm.preprocess.modalities if isinstance(arm, LesionParams) else arm.preprocess.inputs
    for point in points:
        train = with_overrides(arm.train, point)
        assert set(train.inputs) <= set(written)
        assert train.target is None or train.target in arm.preprocess.targets
    if arm.tune.sampler == "grid":
        assert arm.tune.n_trials >= len(points), "the grid would be cut short"


@pytest.mark.parametrize(("name", "small"), BOTH_SIZES)
def test_dvc_makes_of_a_preset_the_parameters_that_were_checked(name: str, small: bool, tmp_path: Path) -> None:
    preset = read_preset(find_preset(ROOT, name))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", set_param_words(defaults(), preset.changes(small)))
    assert as_numbers(load_params(tmp_path / "params.yaml")) == as_numbers(of(name, small))


def as_numbers(params: Params) -> dict:
    """Parameters where `1e-05`, which YAML 1.1 takes for text, is a number, as the search reads it."""

    def number(value: object) -> object:
        if isinstance(value, dict):
            return {key: number(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [number(entry) for entry in value]
        return float(value) if isinstance(value, str) and value[:1].isdigit() and "e-" in value else value

    return number(json.loads(params.model_dump_json()))  # type: ignore[return-value]


def test_the_published_study_is_as_published() -> None:
    arm = of("tmax_cnn", small=False).perfusion
    assert (arm.preprocess.threshold_fraction, arm.preprocess.n_frames, arm.preprocess.align_bolus) == (0.1, 60, False)
    assert (arm.folds.n_folds, arm.folds.holdout_count) == (6, 1)
    assert (arm.train.optimiser, arm.train.schedule, arm.train.batch_size) == ("adam", "constant", 1)
    assert arm.train.patch_size is None and arm.train.steps_per_epoch is None
    assert arm.train.inputs == ("signal",) and arm.train.init_from is None and arm.train.augment == "none"
    assert (arm.tune.epochs, arm.train.epochs, arm.train.loss, arm.tune.prune) == (25, 25, "mse", False)
    assert {key: set(spec["choices"]) for key, spec in arm.tune.space.items()} == {
        "network": {"tmax_1layer", "tmax_2layer", "tmax_unet"},
        "learning_rate": {1e-5, 1e-4, 1e-3},
    }


def choices(arm: LesionParams) -> dict[str, set]:
    return {key: set(spec["choices"]) for key, spec in arm.tune.space.items()}


def test_the_published_lesion_studies_are_as_published() -> None:
    """What the texts state; what they leave open is said in the presets' descriptions."""
    gap = of("mind_the_gap", small=False).lesion
    assert (gap.preprocess.spacing_mm, gap.preprocess.normalisation, gap.preprocess.pad_multiple) == (
        1,
        "roi_minmax",
        16,
    )
    assert (gap.folds.holdout_count, gap.train.network, gap.train.optimiser) == (154, "unet3d", "adam")
    assert gap.train.patch_size is None and choices(gap) == {"loss": {"bce", "soft_dice"}}
    assert gap.resolution.thickness_mm == (1.0, 10.0)

    isles = of("isles22_unet_2plus1d", small=False).lesion
    assert isles.preprocess.modalities == ("dwi", "adc", "flair") and isles.preprocess.grid_shape == (64, 64, 64)
    assert (isles.preprocess.normalisation, isles.folds.holdout_fraction, isles.train.epochs) == ("none", 0.2, 20)
    assert isles.train.network_kwargs["widths"] == [32, 64, 128, 256, 512]
    assert choices(isles) == {"network": {"unet3d", "unet2plus1d"}, "loss": {"dice_bce", "bce_generalized_dice"}}
    tried = of("isles22_unet_2plus1d", small=True).lesion.preprocess
    assert set(tried.modalities) == {"dwi", "adc", "flair", "t1w"}, "--small runs on ISLES and on the demo alike"

    slices = of("atlas_resnet20", small=False).lesion
    assert sorted(slices.train.patch_size) == [1, 196, 232] and slices.train.sampling.kind == "slices"
    assert (slices.train.loss, slices.train.optimiser) == ("bce", "adam")
    assert choices(slices) == {
        "network": {"cnn8", "resnet20"},
        "learning_rate": {1e-3, 1e-4},
        "batch_size": {100, 50},
    }

    residual = of("residual_unet2d", small=False).lesion
    assert (
        residual.folds.holdout_fraction == 0.2 and residual.folds.n_folds == 4
    )  # a quarter of 80 % validates: 60/20/20
    assert residual.train.sampling.slice_range == (0.7, 0.9) and residual.train.augment == "published"
    assert choices(residual) == {"network": {"unet2d", "resunet2d"}}


@pytest.mark.parametrize(("name", "small"), BOTH_SIZES)
def test_the_scores_that_a_preset_shows_first_exist_and_begin_with_the_one_that_chooses(name: str, small: bool) -> None:
    from reperfuse.evaluation.trials import known_metrics

    preset = read_preset(find_preset(ROOT, name))
    shown = known_metrics(getattr(of(name, small), preset.arm).report.metrics)
    assert shown[:1] == ["dice"] if preset.arm == "lesion" else not shown


@pytest.mark.parametrize("name", NAMES)
def test_small_trains_for_fewer_epochs_on_fewer_folds(name: str) -> None:
    arm = read_preset(find_preset(ROOT, name)).arm
    full, small = getattr(of(name, False), arm), getattr(of(name, True), arm)
    assert small.tune.epochs < full.tune.epochs and small.folds.n_folds < full.folds.n_folds


# ---- what a preset may say ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("train: {epoch: 3}", "did you mean epochs?"),
        ("trian: {epochs: 3}", "did you mean train?"),
        ("folds: {n_folds: 1}", "perfusion.folds.n_folds"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_presets_name(overrides: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"description: one\narm: perfusion\noverrides:\n  {overrides}\n")
    with pytest.raises(InputError) as refused:
        preset_params(defaults(), read_preset(path), False, path)
    assert "mine.yaml" in str(refused.value) and said in str(refused.value)


@pytest.mark.parametrize("text", ["description: one\narm: liver\n", "overides: {}\n", "just text", "a: [", ""])
def test_what_is_no_preset_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.yaml"):
        read_preset(written(tmp_path, text))


def test_a_search_space_is_replaced_not_mixed(tmp_path: Path) -> None:
    content = {"perfusion": {"tune": {"space": {"loss": {"choices": ["mse"]}}, "epochs": 2}}}
    changes = {"perfusion": {"tune": {"space": {"network_kwargs.depth": {"choices": [2, 3]}}}}}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    apply_overrides(path, set_param_words(content, changes))
    tune = {"space": {"network_kwargs.depth": {"choices": [2, 3]}}, "epochs": 2}
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {"perfusion": {"tune": tune}}


TEXT = st.text("ab1 ,:=[]{}()'\"\\._-+/~é", max_size=8)
PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1e3, 1e3).map(lambda x: round(x, 3)) | TEXT
# A preset cannot say `on:`, which YAML 1.1 reads as true.
NAMES_OF_VALUES = st.from_regex(r"[a-z][a-z_]{0,5}(\.[a-z]{1,4})?", fullmatch=True).filter(
    lambda name: yaml.safe_load(name) == name
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES_OF_VALUES, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_any_value_reaches_params_yaml_as_it_was_meant(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("hydra") / "params.yaml"
    content = {"perfusion": {"train": {"network_kwargs": {"hidden": 12, "deep": {"er": 1}}}}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    changes = {"perfusion": {"train": {"network_kwargs": value}}}
    apply_overrides(path, set_param_words(content, changes))
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == merged(content, changes, Params)


# ---- the table ------------------------------------------------------------------------------------------------------
def tuned(folder: Path, metric: str, trials: list[dict], baselines: list[dict] | None) -> Path:
    pd.DataFrame(trials).to_csv(folder / "trials.csv", index=False)
    if baselines is not None:
        pd.DataFrame(baselines, columns=None if baselines else ["method", metric]).to_csv(
            folder / "baselines.csv", index=False
        )
    (folder / "best.json").write_text(json.dumps({"metric": metric}), encoding="utf-8")
    return folder


def trial(number: int, value: float, **more: object) -> dict:
    state = "failed" if math.isnan(value) else "complete"
    return {"number": number, "state": state, "value": value, "loss": "mse", "fold_0": value, "reason": "", **more}


def test_trials_and_baselines_stand_in_one_table_best_first(tmp_path: Path) -> None:
    trials = [trial(0, math.nan, ssim=math.nan), trial(1, 2.5, ssim=0.7), trial(2, 1.5, ssim=0.8)]
    baselines = [{"method": "baseline_osvd", "rmse_s": 2.0, "ssim": 0.75}]
    table = trials_of(tuned(tmp_path, "rmse_s", trials, baselines), ["loss"])
    assert table["name"].tolist() == [2, "baseline_osvd", 1, 0]
    assert table["kind"].tolist() == ["trial", "baseline", "trial", "trial"]
    assert table["rmse_s"].dropna().is_monotonic_increasing
    assert list(table)[:5] == ["kind", "name", "loss", "rmse_s", "ssim"] and "fold_0" not in table


def test_where_higher_is_better_the_highest_comes_first(tmp_path: Path) -> None:
    table = trials_of(tuned(tmp_path, "dice", [trial(0, 0.4), trial(1, 0.6)], None), ["loss"])
    assert table["dice"].tolist() == [0.6, 0.4]


def test_the_readable_table_says_units_and_leaves_out_what_is_empty(tmp_path: Path) -> None:
    headings, rows = readable_rows(trials_of(tuned(tmp_path, "rmse_s", [trial(7, 1.23456)], None), ["loss"]))
    assert headings == ["kind", "name", "loss", "RMSE [s]", "state"]
    assert rows == [["trial", "7", "mse", "1.23", "complete"]]


def test_the_scores_that_lead_come_first_and_may_come_alone(tmp_path: Path) -> None:
    trials = [trial(0, 0.4, auc=0.9, hd95_mm=8.0, iou=0.25), trial(1, 0.6, auc=0.8, hd95_mm=9.0, iou=0.43)]
    table = trials_of(tuned(tmp_path, "dice", trials, None), ["loss"], lead=["dice", "iou"])
    assert [name for name in table if name in METRICS] == ["dice", "iou", "hd95_mm", "auc"]
    headings, rows = readable_rows(table, ["iou"])
    assert headings == ["kind", "name", "loss", "IoU", "state"] and rows[0] == [
        "trial",
        "1",
        "mse",
        "0.430",
        "complete",
    ]


def summary(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / name, index=False)


def test_the_holdout_and_its_thick_slices_follow_the_model_first(tmp_path: Path) -> None:
    best = {"overrides": {"loss": "dice"}, "rivals_by": "loss", "rivals": {"bce": {}}}
    (tmp_path / "best.json").write_text(json.dumps(best), encoding="utf-8")
    assert holdout_tables(tmp_path, "thickness_mm", []) == []
    rows = [
        {"method": method, "metric": metric, "mean": mean}
        for method, metric, mean in [
            ("rival_bce", "dice", 0.41),
            ("model", "dice", 0.52),
            ("rival_bce", "hd95_mm", 12.3),
            ("model", "hd95_mm", math.nan),
        ]
    ]
    summary(tmp_path, "holdout/summary.csv", rows)
    at = [{**row, "thickness_mm": level, "axis": "k"} for level in (1.0, 10.0) for row in rows]
    summary(tmp_path, "resolution/curve.csv", at)
    first, second = holdout_tables(tmp_path, "thickness_mm", ["hd95_mm"])
    assert first == Part(
        "Hold-out", ["method", "HD95 [mm]", "Dice"], [["Model (dice)", "–", "0.520"], ["Rival bce", "12.30", "0.410"]]
    )
    assert holdout_tables(tmp_path, "thickness_mm", ["dice"], alone=True)[0].headings == ["method", "Dice"]
    assert (second.title, second.headings[:2]) == ("Hold-out, slices along k", ["Slice thickness [mm]", "method"])
    assert [row[:2] for row in second.rows] == [
        ["1", "Model (dice)"],
        ["1", "Rival bce"],
        ["10", "Model (dice)"],
        ["10", "Rival bce"],
    ]


def test_nothing_is_brought_of_stages_that_did_not_run() -> None:
    assert {"trials.csv", "report.html", "holdout/summary.csv", "resolution/curve.csv"} <= set(
        brought(Preset(description="a", arm="lesion"))
    )
    names = set(brought(Preset(description="a", arm="lesion", until="tune")))
    assert "trials.csv" in names and not names & {"report.html", "holdout/summary.csv"}


def test_a_metric_without_a_note_is_an_error_and_no_baseline_is_needed(tmp_path: Path) -> None:
    table = trials_of(tuned(tmp_path, "rmse", [trial(0, 3.0), trial(1, 2.0)], []), ["loss"])
    assert table["rmse"].tolist() == [2.0, 3.0] and set(table["kind"]) == {"trial"}


# ---- the command ----------------------------------------------------------------------------------------------------
def test_a_score_that_does_not_exist_is_refused_before_anything_runs(bare: Workspace) -> None:
    written(bare.root, f"{TINY}  report: {{metrics: [rmse_z]}}\n")
    assert "report.metrics names rmse_z, which is no score; did you mean rmse_s?" in refusal(bare, "mine", "--small")


def refusal(workspace: Workspace, *words: str) -> str:
    done = workspace.run("reperfuse", "experiment", *words, check=False)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("reperfuse: "), done.stderr
    return lines[0]


@pytest.fixture
def bare(tmp_path: Path) -> Workspace:
    """A repository with one preset and nothing else: no commit, no data."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".dvc").mkdir()
    written(tmp_path, TINY)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return Workspace(tmp_path)


def commit(workspace: Workspace) -> None:
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-C", str(workspace.root)]
    subprocess.run([*git, "add", "params.yaml"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "start"], check=True)


def test_without_a_name_the_presets_are_listed_with_what_they_ask(bare: Workspace) -> None:
    assert bare.run("reperfuse", "experiment").stdout == "mine (perfusion): Two learning rates, one epoch.\n"


def test_an_unknown_preset_is_refused_with_the_nearest(bare: Workspace) -> None:
    assert "did you mean mine?" in refusal(bare, "mime")
    assert "experiments/../params.yaml is not there" in refusal(bare, "../params")


def test_what_an_experiment_needs_is_asked_for_with_its_remedy(bare: Workspace) -> None:
    assert "no git commit" in refusal(bare, "mine")
    commit(bare)
    assert "reperfuse ingest INBOX --arm perfusion" in refusal(bare, "mine")
    (bare.root / "data" / "bids").mkdir(parents=True)
    (bare.root / "data" / "bids" / "perfusion.dvc").write_text("outs: []\n", encoding="utf-8")
    assert "git add data/bids/perfusion.dvc" in refusal(bare, "mine")
    subprocess.run(["git", "-C", str(bare.root), "add", "data/bids/perfusion.dvc"], check=True)
    assert "dvc pull data/bids/perfusion.dvc" in refusal(bare, "mine")
    (bare.root / "params.yaml").unlink()
    assert "params.yaml" in refusal(bare, "mine")


def files(root: Path) -> dict[str, bytes]:
    names = [*root.glob("*.yaml"), *root.glob("results/**/*.csv"), *root.glob("reports/*"), root / "dvc.lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in names if path.is_file()}


def test_an_experiment_ends_in_one_table_and_a_page_and_leaves_the_workspace_alone(
    spare: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(spare.root, TINY)
    before = files(spare.root)
    said = spare.run("reperfuse", "experiment", "mine", "--small").stdout
    assert files(spare.root) == before
    folder = spare.root / "experiments" / "results" / "mine-small"
    table = pd.read_csv(folder / "table.csv")
    assert set(table.loc[table["kind"] == "trial", "learning_rate"]) == {0.001, 0.01}
    assert table["rmse_s"].dropna().is_monotonic_increasing
    ran = load_params(folder / "params.yaml").perfusion
    assert ran.train.network_kwargs == {"hidden": 3} and ran.train.epochs == ran.tune.epochs == 1
    assert "Research use only" in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "table.md").exists() and (folder / "holdout" / "summary.csv").exists()
    assert "report.html" in said and "mine-small-1" in said and "RMSE [s]" in said

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{spare.root}/mlruns/mlflow.db")
    store = tracking.client()
    experiment = store.get_experiment_by_name("perfusion")
    assert experiment is not None
    studies = store.search_runs([experiment.experiment_id], "tags.kind = 'study'")
    assert [run.info.run_name for run in studies if "mine-small-1" in run.info.run_name]


@pytest.mark.slow
def test_the_published_study_runs_small_and_a_second_time_from_the_cache(ingested: Workspace, tmp_path: Path) -> None:
    shutil.copytree(ingested.root, tmp_path / "workspace", symlinks=True)
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(ROOT / "experiments", workspace.root / "experiments", dirs_exist_ok=True)
    workspace.run("reperfuse", "experiment", "tmax_cnn", "--small")
    table = pd.read_csv(workspace.root / "experiments/results/tmax_cnn-small/table.csv")
    trials = table[table["kind"] == "trial"]
    assert len(trials) == 9 and set(trials["state"]) == {"complete"}
    assert {"mae_s", "ssim", "dice", "volume_difference_ml", "mse_s2"} <= set(table)
    assert set(table.loc[table["kind"] == "baseline", "name"]) >= {"baseline_osvd", "baseline_ssvd"}
    assert "Running stage" not in workspace.run("reperfuse", "experiment", "tmax_cnn", "--small").stdout


LESION = [name for name in NAMES if read_preset(find_preset(ROOT, name)).arm == "lesion"]


@pytest.fixture(scope="module")
def lesions(ingested: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A copy of the ingested workspace with all presets, which the tests below share."""
    root = tmp_path_factory.mktemp("lesions") / "workspace"
    shutil.copytree(ingested.root, root, symlinks=True)
    shutil.copytree(ROOT / "experiments", root / "experiments", dirs_exist_ok=True)
    return Workspace(root)


@pytest.mark.slow
@pytest.mark.parametrize("name", LESION)
def test_a_lesion_study_runs_small_and_ends_in_its_own_table_in_the_report_and_in_mlflow(
    lesions: Workspace, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = of(name, small=True).lesion
    shown, searched = list(asked.report.metrics), list(asked.tune.space)
    choices = asked.tune.space[asked.tune.rivals]["choices"] if asked.tune.rivals else []
    said = lesions.run("reperfuse", "experiment", name, "--small").stdout
    folder = lesions.root / "experiments" / "results" / f"{name}-small"

    table = pd.read_csv(folder / "table.csv")
    assert len(table) == asked.tune.n_trials and set(table["state"]) == {"complete"}
    assert not table[searched].duplicated().any() and table["dice"].is_monotonic_decreasing
    assert table["dice"].between(0, 1).all() and set(shown) <= set(table)

    judged = pd.read_csv(folder / "holdout" / "summary.csv").pivot(index="method", columns="metric", values="mean")
    winner = str(json.loads((folder / "best.json").read_text())["overrides"].get(asked.tune.rivals))
    methods = [f"rival_{choice}" for choice in choices if str(choice) != winner] + ["model", "baseline_threshold"]
    assert {*judged.index} == {*methods, "baseline_empty"} and judged.loc[methods, "auc"].notna().all()
    thick = pd.read_csv(folder / "resolution" / "curve.csv")
    assert {*thick["thickness_mm"]} == {*asked.resolution.thickness_mm} and {*shown} <= {*thick["metric"]}

    page, text = (unescape((folder / file).read_text(encoding="utf-8")) for file in ("report.html", "table.md"))
    for word in [*map(metric_label, shown), *map(method_label, methods), *map(str, choices)]:
        assert word in page and word in text, word
    assert "The search, best first" in page and page.count("<img ") >= 6
    assert f"{name}-small: cross-validation" in said and "Hold-out, slices along k" in said

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{lesions.root}/mlruns/mlflow.db")
    store = tracking.client()
    where = [store.get_experiment_by_name("lesion").experiment_id]  # type: ignore[union-attr]
    runs = {
        kind: store.search_runs(where, f"tags.kind = '{kind}' and tags.experiment = '{name}-small'", max_results=1000)
        for kind in tracking.RUN_KINDS
    }
    (study,), (model,) = runs["study"], runs["model"]
    trials = {run.info.run_id for run in runs["trial"]}
    assert len(trials) == asked.tune.n_trials and len(runs["fold"]) == len(trials) * asked.folds.n_folds
    assert {run.data.tags["mlflow.parentRunId"] for run in runs["trial"]} == {study.info.run_id}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs["fold"]} == trials
    assert {run.data.tags["mlflow.parentRunId"] for run in runs["rival"]} <= {model.info.run_id}
    assert len(runs["rival"]) == max(0, len(choices) - 1)
    groups = {"val": runs["fold"], "cv": [study, *runs["trial"]], "holdout": [model]}
    for group, run in ((group, run) for group, those in groups.items() for run in those):
        assert {f"{group}/{metric}" for metric in ("dice", "iou", "auc", "recall")} <= set(run.data.metrics)
    assert [entry.path for entry in store.list_artifacts(study.info.run_id, "tables")] == ["tables/trials.csv"]
    assert [entry.path for entry in store.list_artifacts(model.info.run_id, "report")] == ["report/lesion.html"]
