"""The resolution study as a stage: every hold-out subject at every level, resumable and several at once."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import track

from reperfuse import tracking
from reperfuse.errors import InputError, WorkerLost
from reperfuse.evaluation.detection import detection_limit
from reperfuse.evaluation.hypotheses import hypothesis_tests
from reperfuse.evaluation.metrics import THICK_GRID
from reperfuse.evaluation.resolution import (
    FACETS,
    LESIONS,
    Levels,
    curve,
    facet_label,
    facet_name,
    lesion_table,
    model_curve,
    resolution_scalars,
    size_curve,
    study_table,
    subject_rows,
    whole_facets,
)
from reperfuse.evaluation.summary import MODEL
from reperfuse.files import read_json, write_json, write_text
from reperfuse.imaging.volume import Volume
from reperfuse.stages import layout
from reperfuse.stages.assessment import Assessment, Case, Predict, holdout
from reperfuse.stages.fanout import Runner, fan_out
from reperfuse.stages.processed import read_cohort, write_table
from reperfuse.stages.scores import RESOLUTION_TABLE, STUDY_TABLES
from reperfuse.stages.state import resumable

OnCoarseGrid = Callable[[np.ndarray, Case, float, Any], tuple[np.ndarray, Case] | None]
"""(prediction on the truth's grid, case, level, facet) to both on the grid of the coarse scan; None where that is the
same grid."""


@dataclass(frozen=True)
class Study:
    """How an arm's acquisition gets coarser."""

    level_name: str
    levels: Levels
    """Facet to its levels, ascending."""
    degrade: Callable[[Any, float, Any], Any]
    """``degrade(scan, level, facet)``; the scan itself where it is like that already."""
    sizes: str
    """Column of cohort.csv with the true volume [mL] that subjects are sorted by."""
    about: Mapping[str, Any]
    """Parameters that decide the result: with others unfinished work is not taken up."""
    workers: int = 1
    """Subjects that are studied at once."""
    reach: Callable[[Any, Levels], Levels] = lambda scan, levels: levels
    """The levels that a scan can be brought to."""
    on_coarse_grid: OnCoarseGrid | None = None
    """Where a prediction and its truth are scored a second time (`THICK_GRID`)."""


Again = Callable[[], tuple[Assessment, Study]]
"""What a process that is not this one is given, since neither can be sent there."""


@dataclass(frozen=True)
class StudyTables:
    """What a study found."""

    scores: pd.DataFrame
    curve: pd.DataFrame
    hypotheses: pd.DataFrame
    sizes: pd.DataFrame
    """The main scores by class of true volume."""
    lesions: pd.DataFrame | None
    """Each true lesion at each level; None where the arm has none."""
    detection: pd.DataFrame | None
    scalars: dict[str, float]

    def named(self) -> dict[str, pd.DataFrame]:
        """File name without its ending → table."""
        tables = {name: getattr(self, name) for name in STUDY_TABLES}
        return {name: table for name, table in tables.items() if table is not None}


def study_folder(arm: str, model: str | None, out: Path | None) -> Path:
    """Where the tables of a study go: `out`, or results/<arm>/resolution, and a folder of `model`'s own beside it."""
    return out or layout.results(arm) / ("resolution" if model is None else f"resolution-of-{_slug(model)}")


def resolution_arm(
    asked: Assessment,
    study: Study,
    *,
    model: str | None = None,
    out: Path | None = None,
    runner: Runner | None = None,
    again: Again | None = None,
) -> StudyTables:
    """Score every method on the hold-out at every level of degradation, in every facet.

    Writes scores.csv, curve.csv, hypotheses.csv, sizes.csv, for lesions also lesions.csv and detection.csv,
    metrics.json, study.md with the sentences, and run.json. What a subject gave is kept until all are done: a study
    that was killed goes on behind its last whole subject.

    Parameters
    ----------
    model
        What `asked` judges, if it is not the pipeline's own model: the study is then a run of its own in MLflow. That
        of the pipeline's model goes to the training's run.
    out
        Where the tables go; results/<arm>/resolution by default, and a folder of `model`'s own beside it.
    runner
        Where subjects are studied: by default in threads of this process, `study.workers` at once.
    again
        Makes `asked` and `study` once more, in a process that is not this one.

    Raises
    ------
    InputError
        If nobody on the hold-out reaches any level.
    """
    folder = study_folder(asked.arm, model, out)
    said = [repr(sorted(study.about.items())), repr(dict(study.levels)), asked.digest, *sorted(asked.methods)]
    state = resumable(asked.arm, "resolution", said, [""])
    people = holdout(asked.arm)
    done = study_subjects(asked, study, people, state, runner, again)
    rows = [row for of_subject in done for row in of_subject["rows"]]
    if not rows:
        raise InputError(
            f"Nobody on the hold-out of {asked.arm} reaches any level of the study: give coarser or noisier ones in "
            f"{asked.arm}.resolution of params.yaml."
        )
    seconds = {name: sum(of_subject["seconds"][name] for of_subject in done) for name in ("predict", "all")}
    # A subject's sessions count as one, with the sum of their volumes.
    volumes = read_cohort(asked.arm).groupby("participant_id")[study.sizes].sum(min_count=1)
    tables = study_tables(rows, asked, study.level_name, {str(who): float(ml) for who, ml in volumes.items()})
    _say_undefined(tables.scores, asked.metric, study.level_name)
    for name, table in tables.named().items():
        write_table(folder / f"{name}.csv", table)
    write_table(folder / "plot.csv", model_curve(tables.curve, level_name=study.level_name))
    write_json(folder / "metrics.json", tables.scalars)
    page = study_page(tables, asked, study.level_name, model)
    write_text(folder / "study.md", page)
    with _run_of(asked.arm, model) as run:
        log_study(run, tables, study.level_name)
        run.log_text(page, "resolution/study.md")
        run.log_metrics({"time/resolution_s": seconds["all"], "time/resolution_predict_s": seconds["predict"]})
        known = {"run_id": run.origin, "experiment": run.experiment, "name": run.name}
        write_json(folder / "run.json", known | {"metrics": tables.scalars})
    share = 1 - seconds["predict"] / seconds["all"]
    print(f"{folder}: {len(people)} subjects; {share:.0%} of the time went into anything but prediction.")
    shutil.rmtree(state, ignore_errors=True)
    return tables


def _slug(model: str) -> str:
    """A model's URI as part of a folder's name.

    >>> _slug("models:/lesion@champion")
    'lesion-champion'
    """
    words = "".join(letter if letter.isalnum() else " " for letter in model.removeprefix("models:")).split()
    return "-".join(words)


@contextmanager
def _run_of(arm: str, model: str | None) -> Iterator[tracking.Run]:
    """The training's run, or a new one for the study of another model."""
    if model is None:
        with tracking.resume(layout.models(arm) / "run.json") as run:
            yield run
    else:
        with tracking.run(arm, tracking.run_name("resolution", model), tags={"model_uri": model}) as run:
            yield run


# ---- subjects -------------------------------------------------------------------------------------------------------
def study_subjects(
    asked: Assessment,
    study: Study,
    people: Sequence[str],
    state: Path,
    runner: Runner | None = None,
    again: Again | None = None,
) -> list[dict[str, Any]]:
    """`rows` and `seconds` of every subject, in order, kept in `state` as they come and taken over from there.

    Raises
    ------
    WorkerLost
        If the processes that studied a subject died over it; the others are kept.
    """
    runner, stop = runner or Runner(), threading.Event()
    threads = torch.get_num_threads()
    # Each subject has its share of the cores: networks use one core after the other less well than one each.
    share = max(1, threads // (runner.workers or study.workers))
    if runner.kind == "local":
        one: Callable[[str], dict[str, Any]] = partial(_one_subject, asked, study, state, stop)
    elif again is None:
        raise ValueError("Another process needs to be told how to make the assessment again.")
    else:
        # A cluster has cores of its own: there each worker keeps the threads it was started with.
        one = partial(_in_a_worker, again, state, Path.cwd(), share if runner.scheduler is None else None)
    found: dict[str, dict[str, Any]] = {}
    lost: list[WorkerLost] = []
    torch.set_num_threads(share)
    try:
        with fan_out(runner, Path.cwd(), workers=study.workers, stop=stop) as each:
            results = each(one, {who: who for who in people})
            for who, result in track(results, total=len(people), description=f"resolution {asked.arm}"):
                if isinstance(result, WorkerLost):
                    lost.append(result)
                    continue
                found[who] = result
                for sentence in result["said"]:
                    print(sentence)
    finally:
        torch.set_num_threads(threads)
    if lost:
        raise lost[0]
    return [found[who] for who in people]


_ASKED: dict[Path, tuple[Assessment, Study]] = {}
"""In a worker: what it judges by, made once; by the folder of unfinished work, which stands for data, parameters, code
and model."""


def _in_a_worker(again: Again, state: Path, workspace: Path, threads: int | None, who: str) -> dict[str, Any]:
    os.chdir(workspace)
    if state not in _ASKED:
        _ASKED.clear()
        _ASKED[state] = again()
    if threads is not None:
        torch.set_num_threads(threads)
    return _one_subject(*_ASKED[state], state, threading.Event(), who)


class _Stopped(Exception):
    """Another subject failed, or the user stopped the study."""


def _one_subject(asked: Assessment, study: Study, state: Path, stop: threading.Event, who: str) -> dict[str, Any]:
    kept = state / f"{who}.json"
    if kept.exists():
        found: dict[str, Any] = read_json(kept)
        return found | {"said": []}
    started, spent = time.monotonic(), {"predict": 0.0}
    case = asked.load(who)
    levels = study.reach(case.scan, study.levels)
    prepared: tuple[Any, Volume] | None = None

    def image_of(scan: Any) -> Volume:
        """The methods take turns on one scan, which is prepared once."""
        nonlocal prepared
        if prepared is None or prepared[0] is not scan:
            prepared = (scan, asked.prepare(scan))
        return prepared[1]

    def predict(method: str, answer: Predict, scan: Any) -> tuple[str, np.ndarray] | None:
        if stop.is_set():
            raise _Stopped
        image = image_of(scan)
        begun = time.monotonic()
        prediction = answer(image)
        spent["predict"] += time.monotonic() - begun
        return None if prediction is None else (method, asked.on_truth_grid(prediction, image, case))

    def score(answer: tuple[str, np.ndarray], subject: Case, level: float, facet: Any) -> dict[str, Any]:
        method, prediction = answer
        scores = dict(asked.score(method, prediction, subject))
        if study.on_coarse_grid is None:
            return scores
        coarse = study.on_coarse_grid(prediction, subject, level, facet)
        again = scores if coarse is None else asked.score(method, *coarse)
        return scores | {thick: again[name] for name, thick in THICK_GRID.items()}

    rows = subject_rows(
        who,
        case,
        levels=levels,
        degrade=lambda subject, level, facet: study.degrade(subject.scan, level, facet),
        predict={method: partial(predict, method, answer) for method, answer in asked.methods.items()},
        score=score,
        level_name=study.level_name,
    )
    found = {"rows": rows, "seconds": spent | {"all": time.monotonic() - started}}
    write_json(kept, found)
    return found | {"said": _left_out(who, study.level_name, study.levels, levels)}


def _left_out(who: str, level_name: str, asked: Levels, reached: Levels) -> list[str]:
    """One sentence on the levels and facets that this participant does not reach."""
    missing = {
        facet: [f"{level:g}" for level in levels if level not in reached.get(facet, ())]
        for facet, levels in asked.items()
    }
    of_facet: dict[str, list[str]] = {}
    for facet, levels in missing.items():
        if levels:
            of_facet.setdefault(", ".join(levels), []).append(facet_label(level_name, facet))
    said = [f"{level_name} {levels} at {', '.join(names)}" for levels, names in of_facet.items()]
    return [f"{who}: left out {' and '.join(said)}, which its own acquisition is not finer than."] if said else []


# ---- tables ---------------------------------------------------------------------------------------------------------
def study_tables(
    rows: Sequence[dict[str, Any]], asked: Assessment, level_name: str, volumes_ml: Mapping[str, float]
) -> StudyTables:
    """Every table of a study from the rows of its subjects."""
    seed = int(asked.bootstrap["seed"])
    scores, lesions, detection = study_table(rows, level_name=level_name), None, None
    if any(LESIONS in row for row in rows):
        lesions = lesion_table(rows, level_name=level_name)
        detection = detection_limit(lesions, level_name=level_name, samples=asked.bootstrap["samples"], seed=seed)
    return StudyTables(
        scores=scores,
        curve=curve(scores, level_name=level_name, seed=seed),
        hypotheses=hypothesis_tests(scores, level_name=level_name, samples=asked.bootstrap["samples"], seed=seed),
        sizes=size_curve(scores, volumes_ml, metrics=[asked.metric], level_name=level_name, seed=seed),
        lesions=lesions,
        detection=detection,
        scalars=study_scalars(scores, asked.metric, level_name=level_name, seed=seed),
    )


def study_scalars(scores: pd.DataFrame, metric: str, *, level_name: str, seed: int) -> dict[str, float]:
    """`resolution_scalars` over all facets and, where there are several, of each with its name at the end."""
    values = scores[FACETS[level_name]].unique()
    scalars = resolution_scalars(scores, metric, level_name=level_name, seed=seed)
    for value in values if len(values) > 1 else ():
        of_one = resolution_scalars(scores, metric, at=value, level_name=level_name, seed=seed)
        scalars |= {f"{name}_{facet_name(level_name, value)}": number for name, number in of_one.items()}
    return scalars


def _say_undefined(scores: pd.DataFrame, metric: str, level_name: str) -> None:
    """One sentence for each method and participant without a score somewhere."""
    for (participant, method), part in scores[scores[metric].isna()].groupby(["participant_id", "method"], sort=False):
        where = ", ".join(
            f"{level_name} {level:g} at {facet_name(level_name, value)}"
            for level, value in zip(part[level_name], part[FACETS[level_name]], strict=True)
        )
        print(f"{participant}: {method} has no {metric} at {where}; it does not count there.")


# ---- what people see ------------------------------------------------------------------------------------------------
def study_page(tables: StudyTables, asked: Assessment, level_name: str, model: str | None) -> str:
    """The study in words, Markdown: the verdict on each hypothesis, then the smallest lesions still found."""
    lines = [f"# Resolution study of {model or 'the model of the pipeline'}, {asked.arm} arm", ""]
    for facet, part in tables.hypotheses.groupby(FACETS[level_name], sort=False):
        lines += [f"## {_capital(facet_label(level_name, facet))}", ""]
        lines += [f"- {sentence}" for sentence in part["sentence"]] + [""]
    if tables.detection is None:
        return "\n".join(lines)
    ours = tables.detection[tables.detection["method"] == MODEL]
    for facet, part in ours.groupby(FACETS[level_name], sort=False):
        lines += [f"## Smallest lesion still found in half the cases, {facet_label(level_name, facet)}", ""]
        unit = level_name.rsplit("_", 1)[-1]
        lines += [f"- {row[level_name]:g} {unit}: {row['said']}" for row in part.to_dict("records")] + [""]
    return "\n".join(lines)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def log_study(run: tracking.Run, tables: StudyTables, level_name: str) -> None:
    """Curves as stepped metrics, the scalars and all tables; `stages.reporting` draws the figures."""
    log_curves(run, tables.curve, level_name)
    if tables.detection is not None:
        log_curves(run, as_curve(tables.detection), level_name)
    run.log_metrics({f"resolution/{name}": value for name, value in tables.scalars.items()})
    for name, table in tables.named().items():
        run.log_table(table, RESOLUTION_TABLE if name == "scores" else f"tables/resolution_{name}.csv")


def as_curve(limits: pd.DataFrame) -> pd.DataFrame:
    """The smallest lesions found as rows of a curve: `detection_limit_ml`, undefined where it cannot be read off."""
    return limits.rename(columns={"volume_ml": "mean"}).assign(metric="detection_limit_ml")


def step_of(level: Any, level_name: str) -> int:
    """A level as MLflow's step, which is a whole number: thickness in mm, an interval in ms.

    >>> step_of(10.0, "thickness_mm"), step_of(1.5, "tr_s")
    (10, 1500)
    """
    return round(float(level) * (1000 if level_name.endswith("_s") else 1))


def log_curves(run: tracking.Run, curves: pd.DataFrame, level_name: str) -> None:
    """Every mean as a stepped metric: `resolution/<metric>` of the model, `resolution/<method>/<metric>` of the others.

    Each is the mean over the facets that have every level; where there are several facets, each one's own stands beside
    (`…_snr20`).
    """
    facet = FACETS[level_name]
    values = curves[facet].unique()
    whole = curves[curves[facet].isin(whole_facets(curves, level_name))]
    named = [(f"_{facet_name(level_name, value)}", curves[curves[facet] == value]) for value in values]
    for suffix, part in [("", whole), *(named if len(named) > 1 else [])]:
        means = part.groupby([level_name, "method", "metric"], sort=False)["mean"].mean()
        for level, at_level in means.groupby(level=0, sort=False):
            found = {
                f"resolution/{'' if method == MODEL else f'{method}/'}{metric}{suffix}": value
                for (_, method, metric), value in at_level.items()
            }
            run.log_metrics(found, step=step_of(level, level_name))
