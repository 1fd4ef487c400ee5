"""The flow that brings an inbox into the BIDS tree of one arm."""

from typing import Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.command import REPERFUSE, ROOT, streamed
from flows.states import failed, refused, run_logger, worth_retrying

Arm = Literal["lesion", "perfusion"]


@task(
    name="ingest",
    task_run_name="ingest-{arm}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[30, 300],
    retry_condition_fn=worth_retrying,
)
def ingest_inbox(arm: Arm, inbox: str, out: str, quarantine: str, reference_scale: float | None) -> State:
    """The state of one `reperfuse ingest`; its table is kept as an artifact."""
    options = ["--out", out, "--arm", arm, "--quarantine", quarantine]
    if reference_scale is not None:
        options += ["--reference-scale", str(reference_scale)]
    ended = streamed((*REPERFUSE, "ingest", inbox, *options), root=ROOT, log=run_logger().info)
    if ended.code == 2 and any("quarantined" in line for line in ended.lines):
        return refused(f"No subject of {inbox} was accepted: the log and {quarantine}/ say why.")
    if ended.code:
        return failed(ended, f"Ingest of {inbox}")
    table = "\n".join(ended.lines)
    create_markdown_artifact(
        f"# {inbox} → {out}\n\n```\n{table}\n```\n", key=f"ingest-{arm}", description=f"Last ingest of the {arm} arm"
    )
    return Completed(message=f"{inbox} is in {out}, after {ended.seconds:.0f} s.")


# Prefect's form takes its help texts from a Google-style `Args:` section; numpydoc sections stay unread there.
@flow(name="ingest", flow_run_name="ingest {arm}")
def ingest(
    arm: Arm,
    inbox: str | None = None,
    out: str | None = None,
    quarantine: str = "quarantine",
    reference_scale: float | None = None,
) -> State:
    """Check, de-identify and convert what an inbox holds, and version it with DVC.

    Subjects that cannot be used go to the quarantine with one sentence why; the others continue. Running it
    twice changes nothing. It fails, without a retry, when no subject was accepted.

    Args:
        arm: What the inbox is read for: `lesion` takes NIfTI images with masks, `perfusion` takes DICOM series.
        inbox: Folder to read, in any nesting, absolute or relative to the repository root; `inbox/<arm>` when left
            empty.
        out: BIDS tree to write; `data/bids/<arm>` when left empty.
        quarantine: Folder for the originals of subjects that cannot be used (mode 0700, never versioned).
        reference_scale: Seconds per stored value of a vendor's Tmax map that names no unit; empty refuses such maps.
    """
    state = ingest_inbox(
        arm, inbox or f"inbox/{arm}", out or f"data/bids/{arm}", quarantine, reference_scale, return_state=True
    )
    # Prefect would turn a task's own state into "1/1 states failed", and the reason would be lost.
    return State(type=state.type, name=state.name, message=state.message)
