"""The one door to Optuna: a cross-validated search that resumes, prunes, and shares its work among processes."""

import hashlib
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from reperfuse.errors import InputError
from reperfuse.files import read_json, write_json
from reperfuse.training.fit import shown, undefined_as_nan
from reperfuse.training.module import TrainingDiverged
from reperfuse.training.space import Choices, Range, Space, grid, labelled, meant, read_space
from reperfuse.training.studies import DatabasePlace, JournalPlace, Place

optuna.logging.set_verbosity(optuna.logging.WARNING)

Overrides = dict[str, Any]

Scores = dict[str, float]
"""Metric → value of one subject; nan where it is undefined."""

ObjectiveForFold = Callable[[Overrides, int, Path], Sequence[Mapping[str, float | None]]]
"""(overrides, fold, folder) → metrics of every validation subject, always in the same order."""

OnFold = Callable[["Trial", int, list[Scores], bool], None]

SUBJECTS_PER_FOLD = 100_000
"""Step ids of a fold start at a multiple of this, so that a subject has one id in all trials."""

MAX_DEATHS = 2
"""A trial whose process died this often (out of memory, say) is given up as failed; Ctrl-C is no death."""

LOST = "Its worker was silent for too long, and another one carried it on."
"""Reason of a trial whose worker was taken for dead and came back."""

FOLD_SCORES = "reperfuse:fold_scores"
"""Where a trial keeps the scores of its folds, for workers that see none of its files."""


@dataclass(frozen=True)
class Trial:
    """One point of the search space and what became of it."""

    number: int
    overrides: Overrides
    state: str = "running"
    """running, complete, pruned (a worse trial, not all folds done) or failed (diverged, undefined, or died twice)."""
    value: float | None = None
    """Mean of the searched metric over the subjects of all folds done."""
    fold_scores: list[list[Scores]] = field(default_factory=list)
    """All metrics of each validation subject, fold by fold."""
    reason: str = ""
    """Why it failed."""
    continues: int | None = None
    """Number of the trial of a killed process that this one carries on."""
    seconds: float | None = None


@dataclass(frozen=True)
class StudySummary:
    """What a search found."""

    best_overrides: Overrides
    best_value: float
    best_number: int
    best_fold_scores: list[list[Scores]]
    """All metrics per fold and subject of the best trial, in the order the objective gave them."""
    trials: pd.DataFrame
    """One row per trial: number, state, value, the mean of every other metric, each searched name, fold_<k> means of
    the searched metric, continues, reason, seconds."""
    records: list[Trial]
    """The same trials with their values as they were given, and the scores of the folds that they did."""


def tune(
    objective_for_fold: ObjectiveForFold,
    *,
    metric: str,
    space: Mapping[str, Mapping[str, Any]],
    n_trials: int | None,
    n_folds: int,
    state_dir: Path,
    sampler: str = "tpe",
    direction: str = "maximize",
    seed: int = 0,
    prune: bool = True,
    first: Sequence[Overrides] = (),
    shared: DatabasePlace | None = None,
    note: str | None = None,
    join: bool = False,
    on_start: Callable[[Trial], None] | None = None,
    on_fold: OnFold | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> StudySummary:
    """The best point of `space` by the mean of `metric` over the subjects of all folds, and the table of all trials.

    Every process that calls this with the same `state_dir`, or on whatever machine with the same `shared`, works on
    the same study until it holds `n_trials`. A trial whose process died is carried on once by whoever notices, with
    its own parameters and the folds it had finished, if this process sees the other's files. All processes wait for
    the last trial and return the same. What the sampler proposes depends on the seed and the trials there are, not on
    interruptions.

    Parameters
    ----------
    objective_for_fold
        (overrides, fold, state_dir) → metrics of every validation subject, always in the same order. Undefined ones
        (nan or None) are left out. `state_dir` is the fold's own: what is left there is found again after a kill,
        and removed when the fold is done.
    metric
        The one that decides; the others are kept and tabulated.
    space
        Name → `{low, high}` with optional `log`, `step`, or `{choices: [...]}`; whole bounds search whole numbers.
    n_trials
        Trials in all, over all processes and calls; None takes the whole grid.
    sampler
        "tpe", "random", or "grid" (choices only; every combination once, in order).
    prune
        Stop a trial after a fold where a Wilcoxon signed-rank test over the subjects shared with the best trial
        says that it is worse (p < 0.1). Its value is the mean so far.
    first
        Points to try before the sampler is asked, e.g. the defaults.
    shared
        A database that holds the trials; left out, a journal in `state_dir` does.
    note
        Kept with the study for those that join it: `note_of` gives it.
    join
        Help a study that another process has begun, and refuse to begin one. (Without it the call does either.)
    on_start, on_fold, on_trial
        Called with the trial when it starts, after each fold with (trial, fold, scores, reused), and at its end.

    Raises
    ------
    InputError
        If the space is at fault (the sentence names the key), if the state belongs to another search, if the
        objective does not give `metric`, or if no trial succeeded.

    References
    ----------
    Akiba T et al. Optuna. KDD 2019:2623–2631. Watanabe S. arXiv:2304.11127 (TPE).
    """
    if sampler not in ("tpe", "random", "grid"):
        raise InputError(f"tune.sampler {sampler!r} is not known: choose tpe, random or grid.")
    searched = read_space(space, choices_only=sampler == "grid")
    points = [labelled(point, searched) for point in first]
    if sampler == "grid":
        whole = grid(searched)
        points += [point for point in whole if point not in points]
        n_trials = min(n_trials or len(whole), len(whole))
    if n_trials is None or n_trials < 1:
        raise InputError("tune.n_trials must be at least 1: give the number of trials.")
    if direction not in ("maximize", "minimize"):
        raise InputError(f"tune.direction {direction!r} is not known: choose maximize or minimize.")
    state_dir = Path(state_dir)
    place: Place = shared or JournalPlace(state_dir)
    if join and not place.exists():
        raise InputError(f"{place} holds no search to join: start the tune stage first.")
    (state_dir / "trials").mkdir(parents=True, exist_ok=True)
    about = {"space": {name: dict(spec) for name, spec in space.items()}, "n_folds": n_folds, "direction": direction}
    about |= {"metric": metric}
    distributions = {name: _distribution(dimension) for name, dimension in searched.items()}
    with place.lock():
        study = _open_study(place, direction, about, note)
    with place.at_work() as worker:
        while True:
            with place.lock():
                _revive(study, place)
                _enqueue_missing(study, points, n_trials)
                trial = _next_trial(study, distributions, sampler, seed, n_trials)
                if trial is not None:
                    place.sign(study, trial)
                    trial.set_user_attr("worker", worker)
            if trial is None:
                if not study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
                    break
                time.sleep(place.wait_s)
                continue
            started = time.monotonic()
            now = _record(study.trials[trial.number], searched)
            with _leaving_word(trial), place.beating(study, trial):
                if on_start:
                    on_start(now)
                done = _run_trial(trial, now, objective_for_fold, metric, n_folds, state_dir, prune, on_fold)
            done = replace(done, seconds=time.monotonic() - started)
            with place.lock():
                done = _tell(study, trial, done)
            if on_trial:
                on_trial(done)
    return _summary(study, place, searched, direction, metric)


def note_of(state_dir: Path, shared: DatabasePlace | None = None) -> str | None:
    """The `note` of the search that was begun here; None where none was."""
    place: Place = shared or JournalPlace(Path(state_dir))
    if not place.exists():
        return None
    with place.lock():
        study = optuna.load_study(study_name=place.name, storage=place.storage())
    return study.user_attrs.get("note")


@contextmanager
def _leaving_word(trial: optuna.Trial) -> Iterator[None]:
    """Leaves the trial of a worker that can still speak to whoever is next, who would wait for a sign of life."""
    try:
        yield
    except BaseException as error:
        # Away, the database hears it from the heartbeats that stay out; finished, the trial is another worker's.
        with suppress(StorageInternalError, UpdateFinishedTrialError):
            trial.set_user_attr("left", type(error).__name__)
        raise


def _run_trial(
    trial: optuna.Trial,
    now: Trial,
    objective_for_fold: ObjectiveForFold,
    metric: str,
    n_folds: int,
    state_dir: Path,
    prune: bool,
    on_fold: OnFold | None,
) -> Trial:
    """The trial after its folds: complete, pruned or failed. Other exceptions leave it running, to be carried on."""
    folder = state_dir / "trials" / _key(trial.params, n_folds)
    for fold in range(n_folds):
        try:
            scores, reused = _fold_scores(folder, fold, partial(objective_for_fold, now.overrides))
        except TrainingDiverged as error:
            return replace(now, state="failed", reason=str(error))
        if any(metric not in of_subject for of_subject in scores):
            raise InputError(f"The search goes by {metric!r}, which the objective does not give for every subject.")
        now = replace(now, fold_scores=[*now.fold_scores, scores])
        for subject, of_subject in enumerate(scores):
            if math.isfinite(of_subject[metric]):
                try:
                    trial.report(of_subject[metric], fold * SUBJECTS_PER_FOLD + subject)
                except UpdateFinishedTrialError:
                    return replace(now, state="failed", reason=LOST)
        if on_fold:
            on_fold(now, fold, scores, reused)
        if prune and fold + 1 < n_folds and trial.should_prune():
            return replace(now, state="pruned", value=mean_score(now.fold_scores, metric))
    value = mean_score(now.fold_scores, metric)
    if value is None:
        return replace(now, state="failed", reason=f"No subject had a defined {metric}.")
    return replace(now, state="complete", value=value)


def _fold_scores(
    folder: Path, fold: int, objective: Callable[[int, Path], Sequence[Mapping[str, float | None]]]
) -> tuple[list[Scores], bool]:
    """Scores of a fold, and whether they were there already. Two workers at the same point take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, room = folder / f"fold-{fold}.json", folder / f"fold-{fold}"
    with FileLock(folder / "trial.lock"):
        if reused := kept.exists():
            scores = _read_back(read_json(kept))
        else:
            room.mkdir(exist_ok=True)
            scores = [undefined_as_nan(of_subject) for of_subject in objective(fold, room)]
            write_json(kept, _kept(scores))
        shutil.rmtree(room, ignore_errors=True)
    return scores, reused


def _next_trial(
    study: optuna.Study,
    distributions: dict[str, BaseDistribution],
    sampler: str,
    seed: int,
    n_trials: int,
) -> optuna.Trial | None:
    """A trial for this worker: one that waits, else a new one while the study has room."""
    trials = study.get_trials(deepcopy=False)
    counted = [trial for trial in trials if "died" not in trial.user_attrs]
    if len(counted) >= n_trials and not any(trial.state == TrialState.WAITING for trial in counted):
        return None
    # A sampler made anew per trial, seeded by its place: a resumed study does not repeat its first draws.
    place = seed * 1_000_003 + len(counted)
    study.sampler = (
        optuna.samplers.TPESampler(seed=place, constant_liar=True)
        if sampler == "tpe"
        else optuna.samplers.RandomSampler(seed=place)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Heartbeat of storage")  # `DatabasePlace` sends them
        return study.ask(distributions)


def _enqueue_missing(study: optuna.Study, points: Sequence[Overrides], n_trials: int) -> None:
    """Put given points that nobody has taken yet in the queue, as far as `n_trials` allows."""
    trials = study.get_trials(deepcopy=False)
    taken = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
    counted = sum("died" not in trial.user_attrs for trial in trials)
    missing = [point for point in points if point not in taken]
    for point in missing[: max(0, n_trials - counted)]:
        study.enqueue_trial(point)


def _revive(study: optuna.Study, place: Place) -> None:
    """Queue again what dead processes left running. Called by one worker at a time."""
    trials, storage = study.get_trials(deepcopy=False), study._storage
    continued = {trial.user_attrs.get("continues") for trial in trials}
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    # Running without a worker: its process died between the asking and the naming, which share one lock.
    left = [trial for trial in running if "worker" not in trial.user_attrs or "left" in trial.user_attrs]
    for trial in [*left, *place.dead(study, [trial for trial in running if trial not in left])]:
        deaths = trial.user_attrs.get("deaths", 0) + (trial.user_attrs.get("left") != KeyboardInterrupt.__name__)
        params = trial.system_attrs.get("fixed_params", trial.params)
        # Queued before it is buried: this process may die in between as well.
        if deaths < MAX_DEATHS and params and trial.number not in continued:
            study.enqueue_trial(params, user_attrs={"deaths": deaths, "continues": trial.number})
        if deaths < MAX_DEATHS:
            storage.set_trial_user_attr(trial._trial_id, "died", True)  # counts no more: its successor does
        storage.set_trial_user_attr(trial._trial_id, "reason", f"Its process died (time {deaths}).")
        study.tell(trial.number, state=TrialState.FAIL)


def _tell(study: optuna.Study, trial: optuna.Trial, done: Trial) -> Trial:
    """Write down how a trial ended, and give it back; one that another worker took over is none of ours any more."""
    storage = study._storage
    if storage.get_trial(trial._trial_id).state.is_finished():
        return replace(done, state="failed", value=None, reason=LOST)
    storage.set_trial_system_attr(trial._trial_id, FOLD_SCORES, [_kept(scores) for scores in done.fold_scores])
    trial.set_user_attr("seconds", done.seconds)
    trial.set_user_attr("reason", done.reason)
    if done.value is None:
        study.tell(trial, state=TrialState.FAIL)
        return done
    # Complete also when pruned, as Optuna advises with Wilcoxon: the sampler then learns from the mean of the
    # folds done, where a pruned trial would lend it the score of one last subject.
    trial.set_user_attr("pruned", done.state == "pruned")
    study.tell(trial, done.value)
    return done


def _record(trial: FrozenTrial, space: Space) -> Trial:
    """A trial of Optuna's in our words."""
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    state = {TrialState.COMPLETE: "complete", TrialState.FAIL: "failed"}.get(trial.state, "running")
    return Trial(
        number=trial.number,
        overrides=meant(params, space),
        state="pruned" if trial.user_attrs.get("pruned") else state,
        value=trial.value,
        fold_scores=[_read_back(scores) for scores in trial.system_attrs.get(FOLD_SCORES, [])],
        reason=trial.user_attrs.get("reason", ""),
        continues=trial.user_attrs.get("continues"),
        seconds=trial.user_attrs.get("seconds"),
    )


def _summary(study: optuna.Study, place: Place, space: Space, direction: str, metric: str) -> StudySummary:
    rows: list[dict[str, Any]] = []
    records: list[Trial] = []
    for frozen in study.get_trials(deepcopy=False):
        if "died" in frozen.user_attrs:
            continue  # its successor carries its parameters
        trial = _record(frozen, space)
        others = {name: mean for name, mean in metric_means(trial.fold_scores).items() if name != metric}
        means = {f"fold_{k}": mean_score([scores], metric) for k, scores in enumerate(trial.fold_scores)}
        row = {"number": trial.number, "state": trial.state, "value": trial.value}
        row |= others | trial.overrides | means
        rows.append(row | {"continues": trial.continues, "reason": trial.reason, "seconds": trial.seconds})
        records.append(trial)
    complete = [trial for trial in records if trial.state == "complete"]
    if not complete:
        reasons = sorted({trial.reason for trial in records if trial.reason})
        raise InputError(f"No trial of the search in {place} succeeded: {' '.join(reasons)}")
    best = best_of(complete, direction)
    assert best.value is not None
    return StudySummary(best.overrides, best.value, best.number, best.fold_scores, pd.DataFrame(rows), records)


def best_of(trials: Sequence[Trial], direction: str) -> Trial:
    """The trial with the best value, the first of equals; each must have one."""
    return (max if direction == "maximize" else min)(trials, key=lambda trial: trial.value)  # type: ignore[arg-type,return-value]


def metric_means(fold_scores: Sequence[Sequence[Scores]]) -> dict[str, float | None]:
    """Mean of every metric that is shown over the subjects of all folds that have it; None where nobody has."""
    names = sorted({name for fold in fold_scores for of_subject in fold for name in shown(of_subject)})
    return {name: mean_score(fold_scores, name) for name in names}


def _kept(scores: Sequence[Scores]) -> list[dict[str, float | None]]:
    """Scores of a fold for JSON, which has no nan."""
    return [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in scores]


def _read_back(kept: Sequence[Mapping[str, float | None]]) -> list[Scores]:
    return [undefined_as_nan(of_subject) for of_subject in kept]


def _distribution(dimension: Choices | Range) -> BaseDistribution:
    """Optuna's view of one name of the space."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution(list(dimension.labels))
    low, high, log, step = dimension.low, dimension.high, dimension.log, dimension.step
    if dimension.whole:
        return IntDistribution(int(low), int(high), log=log, step=1 if step is None else int(step))
    return FloatDistribution(low, high, log=log, step=step)


def _key(params: Mapping[str, Any], n_folds: int) -> str:
    """Twelve hexadecimal digits that stand for a point."""
    text = json.dumps([dict(params), n_folds], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def mean_score(fold_scores: Sequence[Sequence[Scores]], metric: str) -> float | None:
    """Mean of a metric over the subjects of all folds that have it; None where nobody has."""
    defined = [scores[metric] for fold in fold_scores for scores in fold if math.isfinite(scores.get(metric, math.nan))]
    return sum(defined) / len(defined) if defined else None


def _open_study(place: Place, direction: str, about: dict[str, Any], note: str | None) -> optuna.Study:
    """The study of this place, made if there is none. Called by one process at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    study = optuna.create_study(
        storage=place.storage(),
        study_name=place.name,
        direction=direction,  # type: ignore[arg-type]
        load_if_exists=True,
        pruner=pruner,
    )
    known = study.user_attrs.get("about")
    if known is None:
        study.set_user_attr("about", about)
    elif known != json.loads(json.dumps(about)):
        raise InputError(
            f"{place} holds a search over another space, folds, metric or direction: remove it or name another."
        )
    if note is not None:
        study.set_user_attr("note", note)
    return study
