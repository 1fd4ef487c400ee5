"""Items over threads and over processes: the same results, and one sentence for each thing that can go wrong there."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from studied import PATIENTS, error_study_again

from reperfuse.errors import InputError, WorkerLost
from reperfuse.stages import fanout
from reperfuse.stages.fanout import Runner, fan_out
from reperfuse.stages.study import study_subjects

ITEMS = {f"sub-{n}": n for n in range(20)}


def doubled(n: int) -> int:
    return 2 * n


def deadly(n: int) -> int:
    if n == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def refusing(n: int) -> int:
    if n == 7:
        raise InputError("7 is refused.")
    return n


def full(n: int) -> int:
    raise OSError(28, "No space left on device", "/there/sub.nii.gz")


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"scheduler": "tcp://127.0.0.1:1"}, "add --runner dask"),
        ({"kind": "dask", "scheduler": "tcp://127.0.0.1:1", "workers": 2}, "leave out --workers or --scheduler"),
    ],
)
def test_choices_that_exclude_one_another_are_one_sentence(choice: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Runner(**choice)


def test_threads_give_every_result_under_its_name(tmp_path: Path) -> None:
    with fan_out(Runner(), tmp_path, workers=3) as each:
        assert dict(each(doubled, ITEMS)) == {name: 2 * n for name, n in ITEMS.items()}


def test_an_error_in_a_thread_stops_the_others(tmp_path: Path) -> None:
    stop = threading.Event()
    with pytest.raises(InputError, match="7 is refused"), fan_out(Runner(), tmp_path, workers=2, stop=stop) as each:
        list(each(refusing, ITEMS))
    assert stop.is_set()


def test_a_scheduler_that_does_not_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "PATIENCE_S", 1)
    with (
        pytest.raises(InputError, match=r"No Dask scheduler answers at tcp://127.0.0.1:9"),
        fan_out(Runner("dask", scheduler="tcp://127.0.0.1:9"), tmp_path, workers=1),
    ):
        pass


# ---- with workers ---------------------------------------------------------------------------------------------------
@contextmanager
def cluster(n_workers: int) -> Iterator[Any]:
    """As somebody else would have started it."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=n_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as there:
        yield there


@pytest.mark.services
def test_processes_give_every_result_under_its_name(tmp_path: Path) -> None:
    with fan_out(Runner("dask", 2), tmp_path, workers=1) as each:
        assert dict(each(doubled, ITEMS)) == {name: 2 * n for name, n in ITEMS.items()}


@pytest.mark.services
def test_what_workers_die_over_is_named_and_the_others_come(tmp_path: Path) -> None:
    with fan_out(Runner("dask", 2), tmp_path, workers=1) as each:
        found = dict(each(deadly, ITEMS))
    lost = found.pop("sub-7")
    assert isinstance(lost, WorkerLost) and str(lost).startswith("sub-7: 4 worker processes died over it")
    assert found == {name: n for name, n in ITEMS.items() if n != 7}


@pytest.mark.services
@pytest.mark.parametrize(("function", "kind"), [(refusing, InputError), (full, OSError)])
def test_what_a_function_raises_in_a_worker_is_raised_here(tmp_path: Path, function: Any, kind: type) -> None:
    with pytest.raises(kind) as raised, fan_out(Runner("dask", 1), tmp_path, workers=1) as each:
        list(each(function, ITEMS))
    if isinstance(raised.value, OSError):
        assert (raised.value.errno, raised.value.filename) == (28, "/there/sub.nii.gz")


@pytest.mark.services
def test_a_cluster_of_somebody_else_works_and_stays(tmp_path: Path) -> None:
    with cluster(1) as there:
        for _ in range(2):
            with fan_out(Runner("dask", scheduler=there.scheduler_address), tmp_path, workers=1) as each:
                assert dict(each(doubled, {"sub-1": 1})) == {"sub-1": 2}


@pytest.mark.services
def test_workers_without_the_package_or_the_folder_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster(1) as there:
        runner = Runner("dask", scheduler=there.scheduler_address)
        monkeypatch.setattr(fanout, "__version__", "99.0")
        with pytest.raises(InputError, match=r"has no reperfuse 99\.0: install it there"):
            fan_out(runner, tmp_path, workers=1).__enter__()
        monkeypatch.undo()

        @contextmanager
        def elsewhere(**_: Any) -> Iterator[Any]:
            yield SimpleNamespace(name="/only/here/token")

        monkeypatch.setattr(fanout, "NamedTemporaryFile", elsewhere)
        with pytest.raises(InputError, match="does not see /only/here: mount it there"):
            fan_out(runner, tmp_path, workers=1).__enter__()


@pytest.mark.services
def test_a_scheduler_without_workers_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "PATIENCE_S", 1)
    with cluster(0) as there, pytest.raises(InputError, match="has no workers: start some with `dask worker tcp"):
        fan_out(Runner("dask", scheduler=there.scheduler_address), tmp_path, workers=1).__enter__()


# ---- a study --------------------------------------------------------------------------------------------------------
@pytest.mark.services
def test_a_study_over_processes_finds_what_threads_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alone = study_subjects(*error_study_again(), PATIENTS, tmp_path / "1")
    runner = Runner("dask", 2)
    spread = study_subjects(*error_study_again(), PATIENTS, tmp_path / "2", runner, error_study_again)
    assert [found["rows"] for found in spread] == [found["rows"] for found in alone]
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == [f"{who}.json" for who in PATIENTS]


@pytest.mark.services
def test_a_study_keeps_the_others_when_one_subject_kills_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub-2.kills").touch()
    again, state = error_study_again, tmp_path / "state"
    with pytest.raises(WorkerLost, match="sub-2: 4 worker processes died over it"):
        study_subjects(*again(), PATIENTS, state, Runner("dask", 2), again)
    assert sorted(path.name for path in state.iterdir()) == ["sub-1.json", "sub-3.json"]
