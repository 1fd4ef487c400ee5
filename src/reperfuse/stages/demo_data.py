"""Demo data through the real doors: simulated DICOM perfusion patients and an ATLAS R2.0 tree, the truth beside."""

import shutil
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from reperfuse.errors import InputError
from reperfuse.files import read_json, sha256_of, write_json
from reperfuse.stages.demo_lesion import description, lesion_plan, real_lesion_plan, write_subject
from reperfuse.stages.demo_perfusion import perfusion_plan, write_patient

ARMS = ("lesion", "perfusion")

SUBJECTS = {True: {"perfusion": 14, "lesion": 20}, False: {"perfusion": 4, "lesion": 6}}
"""Subjects per arm, at full size and small."""

MANIFEST = "manifest.json"
"""Beside the truth: what this stage wrote, so that it never deletes or mixes with anything else."""


def demo_data(
    inbox: Path,
    *,
    arms: Iterable[str] = ARMS,
    subjects: dict[str, int] | int | None = None,
    seed: int = 2026,
    full_size: bool = True,
    real: Path | None = None,
    workers: int = 2,
) -> None:
    """INBOX/perfusion (DICOM) and INBOX/lesion (ATLAS R2.0 layout), with the truth in <INBOX>-truth.

    The same arguments give the same bytes, whatever the number of workers. A folder that this stage wrote before is
    written again; anything else in the way is refused.

    Parameters
    ----------
    inbox
        Folder to write into.
    arms
        "lesion", "perfusion" or both.
    subjects
        Number of subjects of every arm, or per arm; by default 14 perfusion patients and 20 lesion subjects.
    seed
        Seed of everything random.
    full_size
        False writes few and tiny subjects for tests: (32, 32, 8, 60) DSC and T1w on a 4 mm grid.
    real
        Folder with `lesymap/ch2.nii.gz`, `lesymap/lesions/` and, if it is there, `soop_masks/`: the lesion arm then has
        real lesion masks in a real T1w, always at its full size.
    workers
        Processes.

    Raises
    ------
    InputError
        If an arm is unknown, a number of subjects is below one, the inbox holds data of somebody else, or the real data
        are asked for and not there, or are fewer than the subjects.
    """
    inbox = Path(inbox).resolve()
    arms = tuple(dict.fromkeys(arms))
    jobs: list[tuple[float, str, Callable[..., None], dict[str, Any]]] = []
    plans: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in arms:
        if arm not in ARMS:
            raise InputError(f"There is no arm named {arm}: choose {' or '.join(ARMS)}.")
        asked = subjects.get(arm) if isinstance(subjects, dict) else subjects
        count = SUBJECTS[full_size][arm] if asked is None else asked
        if count < 1:
            raise InputError(f"{count} {arm} subjects cannot be written: ask for at least one.")
        _refuse_strangers(inbox, arm)
        if arm == "perfusion":
            plans[arm] = dict(perfusion_plan(count, seed, full_size))
        else:
            plans[arm] = dict(real_lesion_plan(count, seed, real) if real else lesion_plan(count, seed, full_size))
    written: dict[str, dict[str, Any]] = {}
    for arm, plan_of_arm in plans.items():
        content = {"arm": arm, "seed": seed, "full_size": full_size, "folders": sorted(plan_of_arm), "code": _code()}
        if arm == "lesion" and real:
            content["real"] = [how["mask"] and Path(how["mask"]).name for how in plan_of_arm.values()]
        if _is_there(inbox, arm, content):
            print(f"demo data, {arm}: {len(plan_of_arm)} subjects are there already.")
            continue
        written[arm] = content
        _clear_leftovers(inbox, arm, set(plan_of_arm))
        write_json(truth_folder(inbox) / arm / MANIFEST, content)
        if arm == "lesion":
            write_json(inbox / arm / "dataset_description.json", description(real is not None))
        write = write_patient if arm == "perfusion" else write_subject
        where = {"inbox": inbox / arm, "truth": truth_folder(inbox) / arm}
        for folder, how in plan_of_arm.items():
            jobs.append((how.pop("cost"), arm, write, {**where, "folder": folder, **how}))
    jobs.sort(key=lambda job: -job[0])  # the long ones first, or a worker ends up waiting for the last
    _run([(arm, write, how) for _, arm, write, how in jobs], workers)
    for arm, content in written.items():
        write_json(truth_folder(inbox) / arm / MANIFEST, {**content, "whole": _weight(inbox, arm)})


def _weight(inbox: Path, arm: str) -> list[int]:
    """How many files the arm has in the inbox and beside it, and how many bytes: enough to see that one is missing."""
    sizes = [
        path.stat().st_size
        for root in (inbox / arm, truth_folder(inbox) / arm)
        for path in root.rglob("*")
        if path.is_file() and path.name != MANIFEST
    ]
    return [len(sizes), sum(sizes)]


def _is_there(inbox: Path, arm: str, content: dict[str, Any]) -> bool:
    """Whether an earlier call with the same arguments and code has written all of it."""
    path = truth_folder(inbox) / arm / MANIFEST
    return path.exists() and read_json(path) == {**content, "whole": _weight(inbox, arm)}


def _code() -> str:
    """SHA-256 of the code that makes the data: another code may make other data."""
    rooms = Path(__file__).parents[1]
    files = [
        *sorted(Path(__file__).parent.glob("demo_*.py")),
        *sorted((rooms / "phantoms").glob("*.py")),
        *sorted((rooms / "imaging").glob("*.py")),
    ]
    return sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()


def truth_folder(inbox: Path) -> Path:
    """The folder beside an inbox that holds the truth of its demo data.

    >>> truth_folder(Path("/data/inbox")).as_posix()
    '/data/inbox-truth'
    """
    return inbox.with_name(f"{inbox.name}-truth")


def _refuse_strangers(inbox: Path, arm: str) -> None:
    """Refuse an inbox that holds anything that this stage did not write."""
    manifest = truth_folder(inbox) / arm / MANIFEST
    ours = read_json(manifest)["folders"] if manifest.is_file() else []
    for path in (inbox / arm).rglob("*"):
        relative = path.relative_to(inbox / arm)
        hidden = any(part.startswith(".") for part in relative.parts)  # what a killed run may have left
        inside = any(relative.is_relative_to(folder) for folder in ours)
        if path.is_dir() or hidden or inside or (relative.name == "dataset_description.json" and ours):
            continue
        raise InputError(f"{path} was not written by demo-data: choose an empty folder for the demo.")


def _clear_leftovers(inbox: Path, arm: str, wanted: set[str]) -> None:
    """Remove subjects of an earlier demo that are not in this one."""
    manifest = truth_folder(inbox) / arm / MANIFEST
    for folder in set(read_json(manifest)["folders"] if manifest.is_file() else []) - wanted:
        shutil.rmtree(inbox / arm / folder, ignore_errors=True)
        shutil.rmtree(truth_folder(inbox) / arm / Path(folder).name, ignore_errors=True)


def _run(jobs: list[tuple[str, Callable[..., None], dict[str, Any]]], workers: int) -> None:
    """Do the jobs, in processes when there is more than one worker, under one progress bar per arm."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bars = {
            arm: progress.add_task(f"demo data, {arm}", total=sum(job[0] == arm for job in jobs))
            for arm in dict.fromkeys(job[0] for job in jobs)
        }
        if workers <= 1:
            for arm, write, how in jobs:
                write(**how)
                progress.advance(bars[arm])
            return
        # spawn: a forked child inherits locked threads of whatever the caller has imported.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet) as pool:
            pending = {pool.submit(write, **how): arm for arm, write, how in jobs}
            try:
                for done in as_completed(pending):
                    done.result()
                    progress.advance(bars[pending[done]])
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _quiet() -> None:
    """Leave Ctrl-C to the parent: it lets running subjects finish and cancels the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
