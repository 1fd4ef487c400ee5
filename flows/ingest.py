"""The flow that brings an inbox into the BIDS tree of one arm."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows.command import REPERFUSE, ROOT, streamed
from flows.states import failed, refused, run_logger, worth_retrying

LONGEST_S = 2 * 24 * 3600.0
"""After so long an ingest is stopped [s]: two days, and the next one goes on behind it."""

Arm = Literal["lesion", "perfusion"]
Runner = Literal["local", "dask"]


@task(
    name="ingest",
    task_run_name="ingest-{arm}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[30, 300],
    retry_condition_fn=worth_retrying,
)
def ingest_inbox(
    arm: Arm,
    inbox: str,
    out: str,
    quarantine: str,
    reference_scale: float | None,
    runner: Runner = "local",
    workers: int | None = None,
    scheduler: str | None = None,
) -> State:
    """The state of one `reperfuse ingest`; who came through is kept as an artifact.

    Reasons of refusal name files of the inbox, whose paths may carry a person: they stay in the quarantine and on the
    terminal, and neither the log nor the artifact, which a server keeps and shows, has them.
    """
    options = ["--out", out, "--arm", arm, "--quarantine", quarantine]
    if reference_scale is not None:
        options += ["--reference-scale", str(reference_scale)]
    if runner != "local":
        options += ["--runner", runner]
    if workers is not None:
        options += ["--workers", str(workers)]
    if scheduler is not None:
        options += ["--scheduler", scheduler]
    with tempfile.TemporaryDirectory() as room:
        kept = Path(room) / "table.json"
        command = (*REPERFUSE, "ingest", inbox, *options, "--json", str(kept))
        ended = streamed(command, root=ROOT, log=lambda line: None)
        rows = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    outcomes = ", ".join(f"{count} {name}" for name, count in Counter(row["outcome"] for row in rows).items())
    run_logger().info("%s: %s.", inbox, outcomes or "nobody")
    if rows:
        create_table_artifact(
            [row | {"why": told(row, quarantine)} for row in rows],
            key=f"ingest-{arm}",
            description=f"Who came through the last ingest of the {arm} arm",
        )
    if ended.code == 2 and any(row["outcome"] == "left" for row in rows):
        return Failed(message=f"{inbox} is still being written, or workers died over it: nobody was accepted.")
    if ended.code == 2 and rows:
        return refused(f"No subject of {inbox} was accepted: the log and {quarantine}/ say why.")
    if ended.code:
        return failed(ended, f"Ingest of {inbox}")
    return Completed(message=f"{inbox} is in {out}, after {ended.seconds:.0f} s: {outcomes}.")


def told(row: dict[str, str], quarantine: str) -> str:
    """Why a subject came through as it did, without the paths that it came from.

    Examples
    --------
    >>> told({"participant": "sub-1", "outcome": "quarantined", "why": "inbox/DOE_JANE/7.dcm is cut short."}, "kept")
    'reason.txt of sub-1 below kept/ says why'
    """
    if row["outcome"] in ("accepted", "unchanged"):
        return row["why"]  # repairs, which ingest has checked for persons before it wrote them down
    if row["outcome"] == "left":
        return "still being written, or its worker died; taken by the next ingest"
    return f"reason.txt of {row['participant']} below {quarantine}/ says why"


# Prefect's form takes its help texts from a Google-style `Args:` section; numpydoc sections stay unread there.
@flow(name="ingest", flow_run_name="ingest {arm}", timeout_seconds=LONGEST_S)
def ingest(
    arm: Arm,
    inbox: str | None = None,
    out: str | None = None,
    quarantine: str = "quarantine",
    reference_scale: float | None = None,
    runner: Runner = "local",
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None,
    scheduler: str | None = None,
) -> State:
    """Check, de-identify and convert what an inbox holds, and version it with DVC.

    Subjects that cannot be used go to the quarantine with one sentence why; the others continue. Subjects whose files
    are still being written are left for the next run. Running it twice changes nothing. It fails when no subject was
    accepted, and tries again only if some were still being written.

    Args:
        arm: What the inbox is read for: `lesion` takes NIfTI images with masks, `perfusion` takes DICOM series.
        inbox: Folder to read, in any nesting, absolute or relative to the repository root; `inbox/<arm>` when left
            empty.
        out: BIDS tree to write; `data/bids/<arm>` when left empty.
        quarantine: Folder for the originals of subjects that cannot be used (mode 0700, never versioned).
        reference_scale: Seconds per stored value of a vendor's Tmax map that names no unit; empty refuses such maps.
        runner: `local` reads one subject after the other; `dask` several at once, each in a process of its own.
        workers: Processes of `dask`; one for each core when left empty.
        scheduler: Address of a running Dask cluster, `tcp://HOST:PORT`, whose workers see the same folders; empty
            starts the processes beside the flow.
    """
    state = ingest_inbox(
        arm,
        inbox or f"inbox/{arm}",
        out or f"data/bids/{arm}",
        quarantine,
        reference_scale,
        runner,
        workers,
        scheduler,
        return_state=True,
    )
    # Prefect would turn a task's own state into "1/1 states failed", and the reason would be lost.
    return State(type=state.type, name=state.name, message=state.message)
