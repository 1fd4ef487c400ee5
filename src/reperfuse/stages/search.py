"""A search as MLflow shows it: trials are runs under the study's, folds are runs under their trial's."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import read_json, write_json
from reperfuse.params import Train
from reperfuse.stages.fitting import ArmParams, Objective, fit_arm, with_overrides
from reperfuse.training.fit import shown
from reperfuse.training.studies import DatabasePlace
from reperfuse.training.tune import Scores, StudySummary, Trial, metric_means, note_of, tune

DATABASE_VARIABLE = "OPTUNA_STORAGE"
"""Where the URL of a database for the trials is read, as Optuna's own command line reads it."""


def shared_search(state: Path) -> DatabasePlace | None:
    """The database that OPTUNA_STORAGE names, with a study for this arm, fingerprint and stage; None without one.

    The fingerprint in the name of `state` keeps searches over other data, parameters or code apart, and brings machines
    with the same ones together.
    """
    url = os.environ.get(DATABASE_VARIABLE, "").strip()
    return DatabasePlace(url, "-".join(state.parts[-3:])) if url else None


def study_to_join(arm: str, state: Path) -> str:
    """Id of the study's run of the search that another process has begun.

    Raises
    ------
    InputError
        If there is none.
    """
    study_id = note_of(state, shared_search(state))
    if study_id is None:
        raise InputError(
            f"No search of {arm} with these data, parameters and code is running: start one without --join."
        )
    return study_id


def search(
    settings: ArmParams,
    seed: int,
    objective: Objective,
    training: pd.DataFrame,
    *,
    state: Path,
    study_id: str,
    join: bool = False,
) -> StudySummary:
    """Run trials until the study is full, alone or with as many processes as `tune.workers` says.

    Parameters
    ----------
    training
        The training side of the folds: `participant_id` and `fold`.
    state
        Where the study, its runs and its folds keep what lets them resume.
    study_id
        The study's run, which another process has opened when this one joins.
    """
    asked = settings.tune
    helpers = 0 if join else asked.workers - 1
    with TrialRuns(objective, settings.train, state, study_id) as runs, _helpers(objective.arm, helpers):
        return tune(
            partial(_score_fold, settings, seed, objective, training, runs),
            metric=objective.metric,
            space=asked.space,
            n_trials=asked.n_trials,
            n_folds=int(training["fold"].max()) + 1,
            state_dir=state,
            sampler=asked.sampler,
            direction=objective.direction,
            seed=seed,
            prune=asked.prune,
            shared=shared_search(state),
            note=None if join else study_id,
            join=join,
            on_start=runs.start,
            on_fold=runs.fold,
            on_trial=runs.end,
        )


class TrialRuns:
    """The trial that this process works on as an open run, and what is said of it; one at a time."""

    def __init__(self, objective: Objective, train: Train, state: Path, study_id: str) -> None:
        self.objective, self.train, self.state, self.study_id = objective, train, state, study_id
        self.open = ExitStack()
        self.current: tracking.Run | None = None

    def __enter__(self) -> "TrialRuns":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open.__exit__(kind, error, trace)

    def start(self, trial: Trial) -> None:
        """Open its run, or the one of the trial that it carries on."""
        kept = self.state / "runs" / f"trial-{trial.number}.json"
        earlier = self.state / "runs" / f"trial-{trial.continues}.json"
        if trial.continues is not None and earlier.exists() and not kept.exists():
            write_json(kept, read_json(earlier))
        self.current = self.open.enter_context(
            tracking.run(
                self.objective.arm,
                tracking.run_name("trial", trial.number),
                parent_id=self.study_id,
                tags={"kind": "trial"},
                params=with_overrides(self.train, trial.overrides).model_dump(mode="json"),
                state=kept,
            )
        )
        said = ", ".join(
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in trial.overrides.items()
        )
        print(f"trial {trial.number}: {said}", flush=True)

    def fold(self, trial: Trial, fold: int, scores: list[Scores], reused: bool) -> None:
        """Log the means of a fold."""
        assert self.current is not None
        means = metric_means([scores])
        self.current.log_metrics(tracking.grouped("cv", means), step=fold)
        said = _said(means[self.objective.metric])
        kept = " (kept)" if reused else ""
        print(f"trial {trial.number} fold {fold}: {self.objective.metric} {said}{kept}", flush=True)

    def end(self, trial: Trial) -> None:
        """Log the means over all folds done, and close the run."""
        assert self.current is not None
        means = metric_means(trial.fold_scores)
        self.current.log_metrics({f"cv/{name}_mean": mean for name, mean in means.items()})
        self.current.set_tags({"outcome": trial.state, "reason": trial.reason})
        self.open.close()
        print(f"trial {trial.number} {trial.state}: {self.objective.metric} {_said(trial.value)}", flush=True)


def _score_fold(
    settings: ArmParams,
    seed: int,
    objective: Objective,
    training: pd.DataFrame,
    runs: TrialRuns,
    overrides: Mapping[str, Any],
    fold: int,
    room: Path,
) -> list[Scores]:
    """All metrics of each validation subject of a fold, after a training on the other folds: a run of its own."""
    assert runs.current is not None
    validation = training.loc[training["fold"] == fold, "participant_id"].tolist()
    with tracking.run(
        objective.arm,
        tracking.run_name("fold", fold),
        parent_id=runs.current.id,
        tags={"kind": "fold"},
        params={"fold": fold},
        state=room / "run.json",
    ) as run:
        fitted = fit_arm(
            objective,
            with_overrides(settings.train, overrides).model_copy(update={"epochs": settings.tune.epochs}),
            seed + fold,
            train=training.loc[training["fold"] != fold, "participant_id"].tolist(),
            validation=validation,
            state=room,
            run=run,
        )
        scores = [fitted.result.scores[participant] for participant in validation]
        run.log_metrics(tracking.grouped("val", metric_means([scores])))
        for step, of_subject in enumerate(scores):
            run.log_metrics(tracking.grouped("subject", shown(of_subject)), step=step)
    return scores


@contextmanager
def _helpers(arm: str, count: int) -> Iterator[None]:
    """More processes on the same search, for as long as this one is at it; threads do not fight over the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    command = [sys.executable, "-m", "reperfuse", "tune", arm, "--join"]
    processes = [subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": threads}) for _ in range(count)]
    try:
        yield
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.wait()


def _said(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
