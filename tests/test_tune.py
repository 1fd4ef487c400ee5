"""A search finds the best point, is not changed by interruptions, and is shared without a clash."""

import multiprocessing
import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest

from reperfuse.errors import InputError
from reperfuse.files import read_json
from reperfuse.training import studies
from reperfuse.training import tune as room
from reperfuse.training.module import TrainingDiverged
from reperfuse.training.studies import DatabasePlace, JournalPlace
from reperfuse.training.tune import best_of, tune

SPACE = {"x": {"low": -2.0, "high": 2.0}, "width": {"low": 4, "high": 16, "step": 4}, "loss": {"choices": ["a", "b"]}}
GRID = {"x": {"choices": [-1.0, 0.0, 1.0]}, "loss": {"choices": ["a", "b"]}}


def score(overrides, fold, state_dir=None, n_subjects=3):
    """Best at x = 0 with loss b; every subject has a level of its own. `away` is another metric that just tells x."""
    value = -abs(overrides["x"]) + (overrides["loss"] == "b")
    scores = [value + 0.1 * fold + 0.01 * subject for subject in range(n_subjects)]
    return [{"dice": dice, "away": abs(overrides["x"])} for dice in scores]


def mean_dice(*folds):
    return np.mean([of_subject["dice"] for scores in folds for of_subject in scores])


def search(state_dir, objective=score, **options):
    chosen = {"metric": "dice", "space": SPACE, "n_trials": 5, "n_folds": 2, "state_dir": state_dir}
    return tune(objective, **(chosen | options))


def values(summary):
    return [(row.x, row.loss, row.value) for row in summary.trials.itertuples()]


def test_the_grid_tries_every_combination_once_and_names_the_best(tmp_path):
    summary = search(tmp_path, space=GRID, sampler="grid", n_trials=None, prune=False)
    assert [(x, loss) for x, loss, _ in values(summary)] == [(x, loss) for x in (-1.0, 0.0, 1.0) for loss in "ab"]
    assert summary.best_overrides == {"x": 0.0, "loss": "b"} and summary.best_number == 3
    assert summary.best_value == pytest.approx(mean_dice(*[score({"x": 0, "loss": "b"}, fold) for fold in (0, 1)]))
    assert summary.best_fold_scores == [score({"x": 0, "loss": "b"}, fold) for fold in (0, 1)]


def test_minimizing_finds_the_other_end(tmp_path):
    summary = search(tmp_path, space=GRID, sampler="grid", n_trials=None, direction="minimize", prune=False)
    assert summary.best_overrides["loss"] == "a" and abs(summary.best_overrides["x"]) == 1


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_seed_fixes_the_search_and_draws_do_not_repeat(tmp_path, sampler):
    one, same, other = (
        values(search(tmp_path / f"{i}", sampler=sampler, seed=seed)) for i, seed in enumerate([1, 1, 2])
    )
    assert one == same != other
    assert len({x for x, _, _ in one}) == 5


def test_values_come_in_the_types_of_the_space(tmp_path):
    space = SPACE | {"rate": {"low": "1e-4", "high": 1e-2, "log": True}, "widths": {"choices": [[4, 8], [8, 16]]}}
    seen = []
    search(tmp_path, lambda o, fold, place: seen.append(o) or score(o, fold), space=space)
    assert all(isinstance(o["width"], int) and o["width"] in (4, 8, 12, 16) for o in seen)
    assert all(1e-4 <= o["rate"] <= 1e-2 and o["widths"] in ([4, 8], [8, 16]) for o in seen)


def test_given_points_are_tried_first(tmp_path):
    first = {"x": 0.5, "loss": "b", "width": 8}
    summary = search(tmp_path, first=[first])
    assert summary.trials.iloc[0][["x", "loss", "width"]].tolist() == [0.5, "b", 8] and len(summary.trials) == 5


def test_callbacks_see_each_trial_begin_each_fold_and_its_end(tmp_path):
    log = []
    search(
        tmp_path,
        n_trials=1,
        on_start=lambda trial: log.append(("start", trial.state)),
        on_fold=lambda trial, fold, scores, reused: log.append((fold, len(scores), reused)),
        on_trial=lambda trial: log.append(("end", trial.state)),
    )
    assert log == [("start", "running"), (0, 3, False), (1, 3, False), ("end", "complete")]


class Stop(Exception):
    """Stands for whatever ends a process in the middle of a fold."""


def stopping_at(call, calls, error=Stop):
    def objective(overrides, fold, state_dir):
        calls.append((overrides, fold))
        if len(calls) == call:
            (state_dir / "checkpoint").write_text("half way")
            raise error
        return score(overrides, fold)

    return objective


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path, error):
    calls, places = [], []
    with pytest.raises(error):
        search(tmp_path / "broken", stopping_at(6, calls, error))

    def objective(overrides, fold, state_dir):
        calls.append((overrides, fold))
        places.append([path.name for path in state_dir.iterdir()])
        return score(overrides, fold)

    resumed = search(tmp_path / "broken", objective)
    whole = search(tmp_path / "whole")
    assert values(resumed) == values(whole)
    assert len(calls) == 5 * 2 + 1 and calls[5] == calls[6]  # only the broken fold is computed twice
    assert places[0] == ["checkpoint"] and not any(places[1:])  # what it left is found again
    assert resumed.trials["continues"].tolist()[2] == 2
    assert search(tmp_path / "broken", objective).best_value == resumed.best_value
    assert len(calls) == 11  # a finished search computes nothing


def test_a_killed_worker_s_trial_is_carried_on_while_a_living_one_s_is_left_alone(tmp_path):
    fork = multiprocessing.get_context("fork")  # nothing of torch runs here, and importing it anew takes long
    began, done = fork.Event(), fork.SimpleQueue()

    def deadly(overrides, fold, state_dir):
        if fold == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(overrides, fold)

    def slow(overrides, fold, state_dir):
        began.set()
        done.put((overrides["x"], fold))
        time.sleep(0.2)
        return score(overrides, fold)

    dying = fork.Process(target=search, args=(tmp_path, deadly))
    dying.start()
    dying.join(30)
    assert dying.exitcode == -signal.SIGKILL
    living = fork.Process(target=search, args=(tmp_path, slow))
    living.start()
    assert began.wait(30)
    summary = search(tmp_path, slow)
    living.join(30)
    folds = [done.get() for _ in range(9)]
    assert done.empty() and len(set(folds)) == 9  # one of 5 × 2 was done by the dead; none was done twice
    assert len(summary.trials) == 5 and (summary.trials["x"][0], 1) in folds
    assert summary.trials["continues"].dropna().tolist() == [0]


def test_threads_share_a_study_to_its_exact_number_of_trials(tmp_path):
    calls = []

    def objective(overrides, fold, state_dir):
        calls.append((overrides["x"], fold))
        time.sleep(0.01)
        return score(overrides, fold)

    summaries = []
    options = {"n_trials": 6, "prune": False}
    work = [threading.Thread(target=lambda: summaries.append(search(tmp_path, objective, **options))) for _ in range(3)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(calls) == len(set(calls)) == 12
    assert [len(summary.trials) for summary in summaries] == [6, 6, 6]
    assert len({summary.best_value for summary in summaries}) == 1


def test_a_trial_that_kills_its_process_every_time_is_given_up(tmp_path):
    def deadly(overrides, fold, state_dir):
        if overrides["x"] == 1.0:
            raise Stop
        return score(overrides, fold)

    options = {"space": GRID, "sampler": "grid", "n_trials": None, "prune": False}
    for _ in range(room.MAX_DEATHS * 2):
        with pytest.raises(Stop):
            search(tmp_path, deadly, **options)
    summary = search(tmp_path, deadly, **options)
    failed = summary.trials[summary.trials["state"] == "failed"]
    assert failed["x"].tolist() == [1.0, 1.0] and len(summary.trials) == 6
    assert set(failed["reason"]) == {"Its process died (time 2)."}


def test_a_trial_that_was_only_interrupted_is_never_given_up(tmp_path):
    for call in range(room.MAX_DEATHS + 1):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, stopping_at(1, [], KeyboardInterrupt), n_trials=1)
        assert len(list(tmp_path.glob("trials/*"))) == 1, call
    assert search(tmp_path, n_trials=1).trials["state"].tolist() == ["complete"]


def test_a_worker_that_was_taken_for_dead_gives_its_trial_up(tmp_path):
    ended = []

    def overtaken(overrides, fold, state_dir):
        if not ended and fold == 1:  # what another worker does when no heartbeat comes
            other = optuna.load_study(study_name="tune", storage=JournalPlace(tmp_path).storage())
            other.enqueue_trial(other.trials[0].params, user_attrs={"deaths": 1, "continues": 0})
            other._storage.set_trial_user_attr(other.trials[0]._trial_id, "died", True)
            other.tell(0, state=optuna.trial.TrialState.FAIL)
            ended.append(0)
        return score(overrides, fold)

    told = []
    summary = search(tmp_path, overtaken, n_trials=2, on_trial=lambda trial: told.append((trial.number, trial.reason)))
    assert told == [(0, room.LOST), (1, ""), (2, "")]
    assert summary.trials["state"].tolist() == ["complete"] * 2 and summary.trials["continues"][0] == 0


def test_a_note_is_there_for_those_that_join(tmp_path):
    assert room.note_of(tmp_path / "a") is None
    search(tmp_path / "a", n_trials=1, note="run 1")
    assert room.note_of(tmp_path / "a") == "run 1"
    search(tmp_path / "a", n_trials=1, join=True)
    assert room.note_of(tmp_path / "a") == "run 1"


def test_a_database_that_is_none_of_postgresql_is_refused_without_its_password():
    with pytest.raises(InputError, match=r"mysql://ada:\*\*\*@host/db is no PostgreSQL database"):
        DatabasePlace("mysql://ada:secret@host/db", "lesion")
    assert "secret" not in str(DatabasePlace("postgresql://ada:secret@host/db", "lesion"))
    assert "secret" not in repr(DatabasePlace("postgresql://ada:secret@host/db", "lesion"))


def test_heartbeats_go_on_inside_the_block_though_the_database_was_away_for_one(monkeypatch):
    signs = []

    def record(trial_id):
        signs.append(trial_id)
        if len(signs) == 2:
            raise optuna.exceptions.StorageInternalError("server closed the connection")

    monkeypatch.setattr(studies, "HEARTBEAT_S", 0.02)
    study = SimpleNamespace(_storage=SimpleNamespace(record_heartbeat=record))
    with DatabasePlace("postgresql://host/db", "lesion").beating(study, SimpleNamespace(_trial_id=7)):
        time.sleep(0.5)
    beats = len(signs)
    assert beats >= 4 and set(signs) == {7}
    time.sleep(0.1)
    assert len(signs) == beats


def test_a_clearly_worse_trial_is_pruned_and_never_the_best(tmp_path):
    folds = []

    def objective(overrides, fold, state_dir):
        folds.append((overrides["x"], fold))
        return score(overrides, fold, n_subjects=6)

    space = {"x": {"choices": [0.0, 1.0]}, "loss": {"choices": ["b"]}}
    summary = search(tmp_path, objective, space=space, sampler="grid", n_trials=None, n_folds=3)
    assert folds == [(0.0, 0), (0.0, 1), (0.0, 2), (1.0, 0)]
    assert summary.trials["state"].tolist() == ["complete", "pruned"] and summary.best_overrides["x"] == 0
    assert summary.trials["value"][1] == pytest.approx(mean_dice(score({"x": 1, "loss": "b"}, 0, n_subjects=6)))


def test_without_pruning_every_fold_is_computed(tmp_path):
    folds = []
    space = {"x": {"choices": [0.0, 1.0]}, "loss": {"choices": ["b"]}}
    options = {"space": space, "sampler": "grid", "n_trials": None, "prune": False}
    search(tmp_path, lambda o, fold, place: folds.append(fold) or score(o, fold, n_subjects=6), **options)
    assert folds == [0, 1, 0, 1]


def test_a_diverging_trial_fails_alone(tmp_path):
    def objective(overrides, fold, state_dir):
        if overrides["x"] > 0:
            raise TrainingDiverged("Training diverged: lower learning_rate.")
        return score(overrides, fold)

    summary = search(tmp_path, objective, space=GRID, sampler="grid", n_trials=None, prune=False)
    failed = summary.trials[summary.trials["x"] > 0]
    assert set(failed["state"]) == {"failed"} and failed["reason"].str.contains("lower learning_rate").all()
    assert len(summary.trials) == 6 and summary.best_overrides["x"] == 0


def test_undefined_scores_are_left_out_and_kept_as_null(tmp_path):
    space = {"x": {"choices": [0.0]}, "loss": {"choices": ["b"]}}
    scores = [{"dice": float("nan"), "hd95_mm": 3.0}, {"dice": 0.5, "hd95_mm": None}]
    summary = search(tmp_path, lambda *_: scores, space=space, sampler="grid", n_trials=None)
    assert summary.best_value == 0.5 and summary.trials["hd95_mm"].tolist() == [3.0]
    kept = [read_json(path) for path in tmp_path.glob("trials/*/fold-0.json")]
    assert kept == [[{"dice": None, "hd95_mm": 3.0}, {"dice": 0.5, "hd95_mm": None}]]


def test_the_named_metric_decides_and_the_others_stand_beside_it(tmp_path):
    options = {"space": GRID, "sampler": "grid", "n_trials": None, "prune": False}
    by_dice = search(tmp_path / "dice", **options)
    away = search(tmp_path / "away", metric="away", **options)
    assert by_dice.trials["away"].tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0] == away.trials["value"].tolist()
    assert by_dice.best_overrides["x"] == 0 and abs(away.best_overrides["x"]) == 1
    assert away.trials["dice"].tolist() == pytest.approx(by_dice.trials["value"].tolist())
    assert by_dice.trials.columns.tolist()[:4] == ["number", "state", "value", "away"]


def test_a_metric_that_the_objective_does_not_give_is_refused(tmp_path):
    with pytest.raises(InputError, match="'ssim'"):
        search(tmp_path, metric="ssim")


def test_other_metrics_are_the_same_after_an_interruption(tmp_path):
    with pytest.raises(Stop):
        search(tmp_path / "broken", stopping_at(6, []))
    resumed, whole = (search(tmp_path / name).trials.drop(columns=["continues", "seconds"]) for name in ("broken", "w"))
    pd.testing.assert_frame_equal(resumed.drop(columns="number"), whole.drop(columns="number"))


def test_the_records_have_the_values_that_a_table_cannot_hold(tmp_path):
    space = {"x": {"choices": [0.0]}, "loss": {"choices": ["b"]}, "widths": {"choices": [None, [4, 8]]}}
    summary = search(tmp_path, space=space, sampler="grid", n_trials=None, prune=False)
    assert [trial.overrides["widths"] for trial in summary.records] == [None, [4, 8]]
    assert [trial.value for trial in summary.records] == summary.trials["value"].tolist()
    assert best_of(summary.records, "maximize").number == 0


def test_a_search_in_which_nothing_succeeds_says_why(tmp_path):
    def objective(*_):
        raise TrainingDiverged("The loss was nan.")

    with pytest.raises(InputError, match=r"No trial .* succeeded: The loss was nan"):
        search(tmp_path, objective)


def test_a_half_written_journal_line_is_cut_and_the_search_goes_on(tmp_path):
    search(tmp_path, n_trials=2)
    with open(tmp_path / "optuna.journal", "a") as file:
        file.write('{"op_code": 4, "half')
    assert len(search(tmp_path, n_trials=3).trials) == 3


def test_more_trials_may_be_asked_for_later_but_not_another_space(tmp_path):
    short = search(tmp_path / "a", n_trials=2)
    longer = search(tmp_path / "a", n_trials=5)
    assert values(longer)[:2] == values(short) and values(longer) == values(search(tmp_path / "b"))
    with pytest.raises(InputError, match="another space, folds, metric or direction"):
        search(tmp_path / "a", n_folds=3)


def test_joining_needs_a_search_to_join(tmp_path):
    with pytest.raises(InputError, match="no search to join"):
        search(tmp_path / "a", join=True)
    search(tmp_path / "a", n_trials=1)
    assert len(search(tmp_path / "a", n_trials=2, join=True).trials) == 2


def test_a_bad_space_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match=r"tune.space.rate: write"):
        search(tmp_path, space={"rate": 3})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sampler": "grid"}, r"tune.space.x: the grid sampler takes choices only"),
        ({"sampler": "cma"}, "tpe, random or grid"),
        ({"direction": "up"}, "maximize or minimize"),
        ({"n_trials": 0}, "at least 1"),
        ({"space": {}}, "tune.space is empty"),
        ({"first": [{"x": 9.0, "width": 4, "loss": "a"}]}, r"tune.space.x does not hold"),
        ({"first": [{"x": 0.0}]}, r"tune.space.width does not hold"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        search(tmp_path, **wrong)
