"""The door: an inbox in, a versioned BIDS tree out, and a table of who came through."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from reperfuse.errors import InputError
from reperfuse.files import write_json
from reperfuse.params import ARMS
from reperfuse.stages import layout
from reperfuse.stages.fanout import Runner, cores, fan_out

if TYPE_CHECKING:
    from reperfuse.cohort.inbox import Each, Outcome


def ingest(
    inbox: Path | str,
    *,
    arm: str,
    out: Path | str | None = None,
    quarantine: Path | str = "quarantine",
    reference_scale: float | None = None,
    root: Path | str = ".",
    runner: Runner | None = None,
    table: Path | None = None,
) -> int:
    """Exit status after taking every subject of `inbox` into the BIDS tree of `arm`: 0 if any was accepted, else 2.

    Prints what became of each, and adds the tree to DVC where `root` lies in a DVC repository.

    Parameters
    ----------
    inbox
        Folder with DICOM series (perfusion), or NIfTI named as in ATLAS or ISLES'22 (lesion), in any nesting. It is
        only read.
    arm
        `lesion` or `perfusion`.
    out
        Folder of the tree, relative to `root`; by default data/bids/<arm>.
    quarantine
        Folder for originals that were refused, relative to `root`.
    reference_scale
        Seconds per stored unit of the Tmax reference, for series that do not say.
    root
        Workspace: the folder of dvc.yaml.
    runner
        Processes that read, check and write; this one alone by default. The tree is the same, byte by byte.
    table
        JSON file for the table: a list of participant, outcome (accepted, unchanged, quarantined, left) and why.

    Raises
    ------
    InputError
        If there is nothing to ingest, a folder cannot be written to, or another ingest is running.
    """
    from filelock import FileLock, Timeout

    if arm not in ARMS:
        raise InputError(f"{arm} is not an arm: choose {' or '.join(ARMS)}.")
    if arm == "lesion" and reference_scale is not None:
        raise InputError("--reference-scale belongs to the perfusion arm: leave it out.")
    runner = runner or Runner()
    if runner.kind == "local" and (runner.workers or 1) > 1:
        raise InputError("The local runner ingests in one process: add --runner dask to have several --workers.")
    root = Path(root)
    out = root / (out or layout.bids(arm))
    lock_path = root / ".reperfuse" / "ingest.lock"
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError("Another ingest is running in this workspace: wait for its end.") from error
    except OSError as error:
        raise InputError(
            f"{lock_path.parent} cannot be written to ({error.strerror}): run ingest in a folder of yours."
        ) from error
    try:
        outcomes = _followed(arm, Path(inbox), out, root / quarantine, reference_scale, root, runner)
        rows = [_row(outcome) for outcome in outcomes]
        _print_table(rows, arm)
        if table is not None:
            write_json(table, rows)
        accepted = any(outcome.accepted for outcome in outcomes)
        if accepted:
            print(_versioned(out.resolve(), root.resolve()))
    finally:
        lock.release()
    return 0 if accepted else 2


def _followed(
    arm: str, inbox: Path, out: Path, quarantine: Path, reference_scale: float | None, root: Path, runner: Runner
) -> "list[Outcome]":
    """The outcomes, with a bar on the screen while they come."""
    from rich.console import Console
    from rich.progress import Progress

    from reperfuse.cohort.inbox import in_turn, ingest_lesion, ingest_perfusion
    from reperfuse.imaging.deidentify import pseudonym_key

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"ingest {arm}: looking for subjects", total=None)

        def expect(n: int) -> None:
            progress.update(task, description=f"ingest {arm}", total=n)

        def outcomes(each: "Each") -> "Iterator[Outcome]":
            if arm == "lesion":
                return ingest_lesion(inbox, out, quarantine, expect=expect, each=each)
            key = pseudonym_key(root)
            return ingest_perfusion(
                inbox, out, quarantine, key=key, reference_scale=reference_scale, expect=expect, each=each
            )

        # One process is this one: nothing of it waits for Ctrl-C.
        fan = nullcontext(in_turn) if runner.kind == "local" else fan_out(runner, root, workers=cores())
        with fan as each:
            done = []
            for outcome in outcomes(each):
                done.append(outcome)
                progress.advance(task)
    return done


def _row(outcome: "Outcome") -> dict[str, str]:
    """What the table says of one subject."""
    why = outcome.reason
    if not outcome.accepted and str(outcome.source) not in why:
        why += f" [{outcome.source}]"
    return {"participant": outcome.participant_id, "outcome": outcome.name, "why": why}


def _print_table(rows: list[dict[str, str]], arm: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"ingest {arm}")
    table.add_column("participant", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("why", overflow="fold")
    styles = {"quarantined": "red", "left": "yellow"}
    for row in rows:
        style = styles.get(row["outcome"], "green")
        table.add_row(escape(row["participant"]), f"[{style}]{row['outcome']}[/]", escape(row["why"]))
    console = Console()
    console.print(table)
    n = sum(row["outcome"] not in styles for row in rows)
    console.print(f"{n} of {len(rows)} accepted.", highlight=False)


def _versioned(out: Path, root: Path) -> str:
    """One line on what `dvc add` did, after doing it where there is a DVC repository."""
    repository = next((folder for folder in (root, *root.parents) if (folder / ".dvc").is_dir()), None)
    if repository is None or not out.is_relative_to(repository):
        return f"{out} is written, but not versioned: it lies in no DVC repository."
    quiet = {**os.environ, "DVC_NO_ANALYTICS": "true"}
    command = [sys.executable, "-m", "dvc", "add", "-q", str(out)]
    added = subprocess.run(command, cwd=repository, env=quiet, capture_output=True, text=True, check=False)
    if added.returncode != 0:
        said = [line for line in added.stderr.splitlines() if line.strip()] or ["no message"]
        raise InputError(f"{out} is written, but `dvc add` refused it ({said[0].strip()}): mend that and ingest again.")
    return f"{out.relative_to(repository)} is versioned by DVC ({out.name}.dvc): commit that file."
