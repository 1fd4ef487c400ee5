"""What the end of a command means for a run: its state, its sentence, and whether a retry can help."""

import logging
import re

from prefect import get_run_logger
from prefect.exceptions import FailedRun, MissingContextError
from prefect.states import Failed, State

from flows.command import Ended

REFUSED = "Refused"
"""Name of the failed state that no retry can help: the command said which input to mend (exit code 2)."""


def run_logger() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    """The log of the run in progress; outside a run, an ordinary logger."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("reperfuse.flows")


def refused(reason: str) -> State:
    """A failed state that is not tried again; `reason` is one sentence naming what to mend."""
    return Failed(name=REFUSED, message=reason)


def failed(ended: Ended, what: str) -> State:
    """The state of a command that did not end well: refused on exit code 2, else worth a retry."""
    reason = reason_of(ended)
    if ended.code == 2:
        return refused(reason)
    return Failed(message=f"{what} ended with exit code {ended.code}: {reason}")


def reason_of(ended: Ended) -> str:
    """The last sentence a command said, without frame and label.

    Examples
    --------
    >>> reason_of(Ended(2, ("Reading inbox", "reperfuse: inbox is empty: put series into it."), 0.1))
    'inbox is empty: put series into it.'
    """
    for line in reversed(ended.lines):
        # Typer frames a wrong option in a box, rich frames tables.
        bare = re.sub(r"[\u2500-\u257f]", "", line).strip()
        if text := re.sub(r"^(reperfuse|error):\s*", "", bare, flags=re.IGNORECASE):
            return text
    return "it said nothing."


def without_traceback(record: logging.LogRecord) -> bool:
    """Keep the sentence of a run that failed for a known reason, drop the stack of Prefect's engine below it."""
    if record.exc_info and isinstance(record.exc_info[1], FailedRun):
        record.msg, record.args, record.exc_info = str(record.exc_info[1]), (), None
    return True


logging.getLogger("prefect.flow_runs").addFilter(without_traceback)


def worth_retrying(task: object, run: object, state: State) -> bool:
    """Whether a retry can help: not when an input has to be mended first."""
    return state.name != REFUSED
