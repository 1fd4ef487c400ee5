"""The flow that runs the DVC pipeline, one task per stage; DVC decides what is stale."""

import fcntl
import json
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State

from flows.command import DVC, REPERFUSE, ROOT, Ended, streamed
from flows.ingest import ingest
from flows.states import failed, refused, run_logger, worth_retrying
from reperfuse.params import ARMS

BUSY_DELAY_S = 15.0
"""Pause before DVC is asked again for a file that another command is using [s]."""

BUSY_PATIENCE_S = 24 * 3600.0
"""How long a stage waits for files that another command is using [s]: longer than a night's training."""

LONGEST_S = 7 * 24 * 3600.0
"""After so long a run is stopped with all its processes [s]: a week; what is finished is kept."""

DEMO_KEY = "the-patients-of-the-demo-are-invented"

UNCHANGED, RESTORED = "Unchanged", "Restored"
"""Names of completed states in which DVC ran nothing: outputs were current, or came back from its cache."""

_CHATTER = re.compile(
    r"^(Updating|Generating) lock file|^To track the changes|^\s+git add |^To enable auto staging|"
    r"^\s+dvc config core\.autostage|^Use `dvc push`|^Data and pipelines are up to date|^To apply the results|"
    r"^\s+dvc exp (apply|branch) |^💡"
)
"""What DVC tells a person at a keyboard; noise in the log of a run."""

# One retry: it helps after an out-of-memory kill or a flaky disk, and a long stage resumes where it stopped.
step = partial(task, cache_policy=NO_CACHE, retries=1, retry_delay_seconds=10, retry_condition_fn=worth_retrying)


def stage_names(root: Path, arm: str) -> list[str]:
    """Names of the stages of `arm` in the order of dvc.yaml, e.g. `lesion-cohort`."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return [name for name in stages if name.startswith(f"{arm}-")]


@step(name="stage")
def stage(name: str, force: bool) -> State:
    """The state of one DVC stage: `Unchanged`, `Restored` (from DVC's cache), `Completed`, or failed with a reason."""
    log = run_logger()
    give_up = time.monotonic() + BUSY_PATIENCE_S
    while True:
        ended = dvc("repro", "--single-item", *(["--force"] if force else []), name)
        blockers = blockers_of(ended)
        if not blockers or time.monotonic() > give_up:
            return stage_state(name, ended, ROOT)
        log.warning("%s waits: its files are in use by %s.", name, blockers)
        time.sleep(BUSY_DELAY_S)


@step(name="demo-data")
def demo_data_in(inbox: str, arm: str) -> State:
    """The state of writing the demo data of one arm as DICOM or NIfTI files."""
    return verb("demo-data", inbox, "--arm", arm)


@step(name="promote")
def promote(arm: str) -> State:
    """The state of holding the new model against the champion; the decision is its message."""
    return verb("promote", arm)


@step(name="dvc-experiment")
def dvc_experiment(arm: str, targets: list[str], force: bool, set_params: dict[str, str]) -> State:
    """The state of a DVC experiment with other values; params.yaml and the workspace stay as they are."""
    values = [f"{key}={value}" for key, value in set_params.items()]
    options = [word for value in values for word in ("--set-param", value)] + (["--force"] if force else [])
    ended = dvc("exp", "run", "--temp", *options, *targets)
    if ended.code:
        return stage_state(f"{arm}-experiment", ended, ROOT)
    name = next(line.split("'")[1] for line in ended.lines if line.startswith("Reproducing experiment '"))
    table = streamed((*DVC, "exp", "diff", "HEAD", name, "--md"), root=ROOT, log=run_logger().debug)
    create_markdown_artifact(
        "\n".join([f"# {name}: {', '.join(values)}", "", *table.lines, "", f"`dvc exp apply {name}` takes it over."]),
        key=f"{arm}-experiment",
        description=f"Experiment {name} beside the last commit",
    )
    return Completed(message=f"Experiment {name} ran in {ended.seconds:.0f} s; `dvc exp apply {name}` takes it over.")


# Prefect's form takes its help texts from a Google-style `Args:` section; numpydoc sections stay unread there.
@flow(name="experiment", flow_run_name="experiment {arm}", timeout_seconds=LONGEST_S)
def experiment(
    arm: Literal["lesion", "perfusion", "all"] = "all",
    stages: list[str] | None = None,
    force: bool = False,
    set_params: dict[str, str] | None = None,
    demo_data: bool = False,
) -> State:
    """Run the pipeline of one arm or of both, then hold the new model against the champion.

    DVC decides which stages are stale: the others end as `Unchanged` in a second. One arm that fails
    does not stop the other. What each stage did and the metrics are kept as an artifact per arm.

    Args:
        arm: Arm to run; `all` runs both, one after the other.
        stages: Stages to run, e.g. `train` and `evaluate`; empty runs all of them and then promotes the model.
        force: Run the stages even where nothing they depend on has changed.
        set_params: Other values for this run only, e.g. `{"train.epochs": "3"}`. It becomes a DVC experiment beside
            the workspace and promotes nothing.
        demo_data: Write and ingest demo data first, for an arm that has no data yet.
    """
    endings = {one: _arm(one, stages, force, set_params, demo_data) for one in (ARMS if arm == "all" else (arm,))}
    message = " · ".join(f"{one}: {state.message}" for one, state in endings.items())
    return (Completed if all(state.is_completed() for state in endings.values()) else Failed)(message=message)


def _arm(arm: str, chosen: list[str] | None, force: bool, set_params: dict[str, str] | None, demo_data: bool) -> State:
    """How the run of one arm ended, in one sentence."""
    names = stage_names(ROOT, arm)
    targets = [name for name in names if not chosen or name.removeprefix(f"{arm}-") in chosen]
    if unknown := {f"{arm}-{one}" for one in chosen or []} - set(names):
        return refused(f"dvc.yaml has no stage {', '.join(sorted(unknown))}, choose from {', '.join(names) or 'none'}.")

    plan: Plan = []
    if demo_data and not (ROOT / f"data/bids/{arm}.dvc").exists():
        plan += [(f"{arm}-demo-data", named(demo_data_in, f"{arm}-demo-data"), ("inbox", arm))]
        plan += [(f"{arm}-ingest", ingest, (arm,))]
        # As `make demo` does: with a known key, the same invented patients are held out on every machine.
        os.environ.setdefault("REPERFUSE_PSEUDONYM_KEY", DEMO_KEY)
    if set_params:
        plan += [(f"{arm}-experiment", named(dvc_experiment, f"{arm}-experiment"), (arm, targets, force, set_params))]
    else:
        plan += stage_plan(targets, force)
        if not chosen:
            plan += [(f"{arm}-promote", named(promote, f"{arm}-promote"), (arm,))]

    outcomes = carried_out(plan)
    if not set_params:
        text = summary(ROOT, arm, outcomes)
        create_markdown_artifact(text, key=f"{arm}-summary", description=f"Last run of the {arm} arm")
    return ending(outcomes)


Plan = list[tuple[str, Callable[..., Any], tuple[Any, ...]]]
"""Steps of a run in their order: name, task or flow, arguments."""


def stage_plan(names: list[str], force: bool = False) -> Plan:
    """The DVC stages of those names as steps."""
    return [(name, named(stage, name), (name, force)) for name in names]


def carried_out(plan: Plan) -> dict[str, State]:
    """How each step ended, up to the first that did not end well."""
    outcomes: dict[str, State] = {}
    for name, call, arguments in plan:
        # `wait_for` draws the order in the run's graph.
        outcomes[name] = call(*arguments, return_state=True, wait_for=list(outcomes.values())[-1:])
        if not outcomes[name].is_completed():
            break
    return outcomes


def ending(outcomes: dict[str, State]) -> State:
    """The state of a run from those of its steps: failed with the reason of the last, or how many ran."""
    name, state = list(outcomes.items())[-1]
    if not state.is_completed():
        return Failed(message=f"{name} failed: {state.message}")
    current = sum(one.name in (UNCHANGED, RESTORED) for one in outcomes.values())
    return Completed(message=f"{len(outcomes) - current} of {len(outcomes)} steps ran, {current} were current.")


def named(step: Any, name: str) -> Any:
    """The task `step` under the name of the stage that it runs."""
    return step.with_options(name=name, task_run_name=name)


def verb(*words: str) -> State:
    """The state of one `reperfuse` command."""
    ended = streamed((*REPERFUSE, *words), root=ROOT, log=run_logger().info)
    if ended.code:
        return failed(ended, f"reperfuse {words[0]}")
    return Completed(message=ended.lines[-1] if ended.lines else f"It took {ended.seconds:.0f} s.")


def dvc(*words: str) -> Ended:
    """How one DVC command ended; it waits for as long as another one holds the repository."""
    log = run_logger()
    if repository_is_locked(ROOT):
        log.warning("Another DVC command holds this repository (.dvc/tmp/lock): waiting until it ends.")
    return streamed(
        (*DVC, "--wait-for-lock", *words), root=ROOT, log=lambda line: None if _CHATTER.search(line) else log.info(line)
    )


def repository_is_locked(root: Path) -> bool:
    """Whether another DVC command holds the lock of the repository at this moment."""
    try:
        with (root / ".dvc/tmp/lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def blockers_of(ended: Ended) -> str:
    """Commands that keep files of a stage busy, as DVC names them; empty when there are none.

    Examples
    --------
    >>> lines = ("ERROR: 'a' is busy, it is being blocked by:", "  (PID 7): dvc repro lesion-train")
    >>> blockers_of(Ended(255, lines, 0.4))
    '(PID 7): dvc repro lesion-train'
    """
    if not ended.code or not any("is busy, it is being blocked by" in line for line in ended.lines):
        return ""
    return ", ".join(line.strip() for line in ended.lines if line.startswith("  (PID "))


def stage_state(name: str, ended: Ended, root: Path) -> State:
    """What the end of `dvc repro` means for the task of stage `name`."""
    if not ended.code:
        if any(line.startswith(f"Running stage '{name}'") for line in ended.lines):
            return Completed(message=f"{name} ran in {ended.seconds:.0f} s.")
        if any("is cached - skipping run" in line for line in ended.lines):
            return Completed(name=RESTORED, message=f"{name} came back from DVC's cache.")
        return Completed(name=UNCHANGED, message=f"{name} is unchanged.")

    if blockers := blockers_of(ended):
        return refused(f"{name} gave up after {BUSY_PATIENCE_S / 3600:.0f} h: its files are in use by {blockers}.")
    error = next((line for line in reversed(ended.lines) if line.startswith("ERROR: ")), "")
    if missing := re.search(r"No such file or directory: '(.+)'", error):
        # An experiment runs in a copy of the commit, below .dvc/tmp/exps/standalone/<name>/.
        place = re.sub(r".*/\.dvc/tmp/exps/standalone/[^/]+/", "", missing[1]).removeprefix(f"{root}/")
        return refused(
            f"{place} is missing: run the stage that writes it, or bring data in by ingest or `dvc pull` "
            "and commit its .dvc file."
        )
    if stopped := re.search(r"exited with (-?\d+)$", error):
        before = ended.lines[: ended.lines.index(error)]
        return failed(Ended(int(stopped[1]), before, ended.seconds), name)
    return failed(ended, name)


def summary(root: Path, arm: str, outcomes: dict[str, State]) -> str:
    """Markdown: what each step did, the metrics of the arm and where its report is.

    Raises
    ------
    json.JSONDecodeError
        If the metrics file is not JSON.
    """
    lines = [f"# {arm}", "", "| step | outcome | |", "|---|---|---|"]
    lines += [f"| {name} | {state.name} | {state.message or ''} |" for name, state in outcomes.items()]
    metrics = root / f"results/{arm}/evaluate/metrics.json"
    if metrics.exists():
        lines += ["", *metrics_table(json.loads(metrics.read_text(encoding="utf-8")))]
    report = root / f"reports/{arm}.html"
    if report.exists():
        lines += ["", f"Report: `{report}`. Research use only."]
    return "\n".join(lines) + "\n"


def metrics_table(metrics: dict[str, float | None]) -> list[str]:
    """Markdown rows: a metric per line with its interval, the model beside the baselines.

    Examples
    --------
    >>> flat = {"dice": 0.61, "dice_low": 0.5, "dice_high": 0.7, "baseline_empty/dice": 0.0, "hd95_mm": None}
    >>> print(*metrics_table(flat), sep="\\n")
    | metric | model | baseline_empty |
    |---|---:|---:|
    | dice | 0.61 (0.5 to 0.7) | 0 |
    | hd95_mm | undefined |  |
    """
    methods = list(dict.fromkeys(name.rpartition("/")[0] for name in sorted(metrics, key=lambda name: "/" in name)))
    measured = dict.fromkeys(re.sub(r"_(low|high|median)$", "", name.rpartition("/")[2]) for name in metrics)

    def cell(name: str) -> str:
        if name not in metrics:
            return ""
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = "" if low is None or high is None else f" ({low:.4g} to {high:.4g})"
        value = metrics[name]
        return "undefined" if value is None else f"{value:.4g}{interval}"

    lines = [f"| metric | {' | '.join(method or 'model' for method in methods)} |", f"|---|{'---:|' * len(methods)}"]
    for metric in measured:
        lines.append(f"| {metric} | {' | '.join(cell(f'{method}/{metric}'.lstrip('/')) for method in methods)} |")
    return lines
