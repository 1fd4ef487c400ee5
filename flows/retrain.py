"""The flow that retrains when there are new data, and lets the gate decide who is champion."""

import json
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Completed, Failed, State

from flows.command import REPERFUSE, ROOT, streamed
from flows.experiment import carried_out, ending, named, stage_names, stage_plan, step, summary
from flows.ingest import ingest
from flows.states import REFUSED, failed, refused, run_logger
from reperfuse.params import ARMS, Arm

NOTHING_NEW, PROMOTED, KEPT = "NothingNew", "Promoted", "Kept"
"""Names of the completed states of a retraining: no training was needed, or what the gate decided."""

LONGEST_S = 6 * 24 * 3600.0
"""After so long a run is stopped with all its processes [s], before next week's is due; what is finished is kept."""

DECISIONS = Path(".reperfuse") / "decisions"
"""Where the last decision of each arm lies, as Markdown, below the root of the repository."""


@step(name="drift")
def measure_drift(arm: Arm, whole: bool) -> State:
    """The state of comparing the data with the champion's; its result is what `reperfuse drift --json` says.

    `whole` keeps the features that are compared as a table, once the data are processed.
    """
    ended = streamed((*REPERFUSE, "drift", arm, "--json"), root=ROOT, log=run_logger().debug)
    if ended.code:
        return failed(ended, f"reperfuse drift {arm}")
    found = json.loads(ended.lines[-1])
    said = news(found)
    if whole and found["champion"]:
        shifted = [feature["feature"] for feature in found["features"] if feature["shifted"]]
        said = f"{len(found['new'])} new subjects, {len(found['changed'])} with other files, {len(found['gone'])} gone"
        said += f"; shifted: {', '.join(shifted) or 'nothing'}."
        create_table_artifact(found["features"], key=f"{arm}-drift", description=f"New data of the {arm} arm: {said}")
    run_logger().info(said)
    return Completed(message=said, data=found)


def news(found: dict[str, Any]) -> str:
    """Whether there is something to train on, in one sentence.

    Examples
    --------
    >>> news({"champion": "3", "news": False, "revision": "0123456789.dir"})
    'nothing new: the data are those that the champion, version 3, was trained on (revision 01234567).'
    >>> news({"champion": None, "news": True, "revision": "0123456789.dir"})
    'there is no champion yet (data of revision 01234567).'
    """
    revision = f"revision {found['revision'][:8]}"
    if found["champion"] is None:
        return f"there is no champion yet (data of {revision})."
    if not found["news"]:
        champion = f"the champion, version {found['champion']},"
        return f"nothing new: the data are those that {champion} was trained on ({revision})."
    return f"the data have changed since the champion, version {found['champion']}, was trained ({revision})."


@step(name="decide")
def decide(arm: Arm) -> State:
    """The state of holding the challenger against the champion: `Promoted` or `Kept`, with the gate's reason."""
    page = ROOT / DECISIONS / f"{arm}.md"
    ended = streamed((*REPERFUSE, "promote", arm, "--report", str(page)), root=ROOT, log=run_logger().info)
    if ended.code:
        return failed(ended, f"reperfuse promote {arm}")
    create_markdown_artifact(
        page.read_text(encoding="utf-8"), key=f"{arm}-decision", description=f"Last decision on the {arm} champion"
    )
    kept = any(word in ended.lines[-1] for word in ("not promoted", "is the champion already"))
    return Completed(name=KEPT if kept else PROMOTED, message=ended.lines[-1].removeprefix(f"{arm}: "))


# Prefect's form takes its help texts from a Google-style `Args:` section; numpydoc sections stay unread there.
@flow(name="retrain", flow_run_name="retrain {arm}", timeout_seconds=LONGEST_S)
def retrain(arm: Literal["lesion", "perfusion", "all"] = "all", inbox: str | None = None, force: bool = False) -> State:
    """Ingest what is new, train a challenger if the data have changed, and promote it if the gate lets it pass.

    The gate stands in params.yaml (`promote`) and is the one of the training that it judges. Decisions are kept as
    artifacts here, and as tags of the run and of the version in MLflow. `reperfuse rollback ARM` takes one back.
    An arm without data is left out.

    Args:
        arm: Arm to retrain; `all` takes both, one after the other.
        inbox: Folder that new data of one arm come to; `inbox/<arm>` when left empty. It may be empty, or missing.
        force: Train and decide even where the data are those that the champion was trained on.
    """
    if arm == "all" and inbox is not None:
        return refused("One inbox is read for one arm: name the arm beside it, or leave the inbox empty.")
    endings = {one: _retrained(one, inbox or f"inbox/{one}", force) for one in (ARMS if arm == "all" else (arm,))}
    message = " · ".join(f"{one}: {state.message}" for one, state in endings.items())
    if not all(state.is_completed() for state in endings.values()):
        return Failed(message=message)
    names = {str(state.name) for state in endings.values()}
    return Completed(name=next((name for name in (PROMOTED, KEPT) if name in names), NOTHING_NEW), message=message)


def _retrained(arm: Arm, inbox: str, force: bool) -> State:
    """How the retraining of one arm ended: `NothingNew`, `Promoted`, `Kept`, or failed, with a reason."""
    told = ""
    if any(path.is_file() for path in (ROOT / inbox).rglob("*")):
        taken = ingest(arm, inbox, return_state=True)
        if taken.name == REFUSED:  # somebody has to look at it, and the data that are there can still be trained on
            told = f" The inbox brought nothing: {taken.message}"
        elif not taken.is_completed():
            return Failed(message=f"{arm}-ingest failed: {taken.message}")
    if not (ROOT / f"data/bids/{arm}.dvc").exists():
        return Completed(name=NOTHING_NEW, message=f"no data yet, put some into {inbox}.{told}")
    compared = named(measure_drift, f"{arm}-news")(arm, False, return_state=True)
    if not compared.is_completed():
        return Failed(message=f"{arm}-news failed: {compared.message}")
    found = compared.result()
    if found["champion"] and not found["news"] and not force:
        return Completed(name=NOTHING_NEW, message=f"{compared.message}{told}")
    names = stage_names(ROOT, arm)
    described = names.index(f"{arm}-folds") + 1
    outcomes = carried_out(
        [
            *stage_plan(names[:described]),
            (f"{arm}-drift", named(measure_drift, f"{arm}-drift"), (arm, True)),
            *stage_plan(names[described:]),
            (f"{arm}-decide", named(decide, f"{arm}-decide"), (arm,)),
        ]
    )
    text = summary(ROOT, arm, outcomes)
    create_markdown_artifact(text, key=f"{arm}-summary", description=f"Last run of the {arm} arm")
    decided = outcomes.get(f"{arm}-decide")
    if decided is None or not decided.is_completed():
        return ending(outcomes)
    return Completed(name=decided.name, message=f"{decided.message}{told}")
