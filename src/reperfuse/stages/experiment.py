"""The verb `experiment`: a preset as a DVC experiment beside the workspace, and its trials in one table."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import atomic_path, read_json, write_json, write_text
from reperfuse.stages import layout
from reperfuse.stages.presets import (
    FOLDER,
    STAGES,
    Preset,
    find_preset,
    preset_params,
    presets,
    read_preset,
    set_param_words,
)

if TYPE_CHECKING:
    import pandas as pd

RESULTS = FOLDER / "results"
"""Where an experiment's tables and page are brought, a folder per preset and size; git-ignored."""

KIND = "kind"
"""Column of table.csv: `trial`, or `baseline` for a method without training on the same patients."""

TUNED = ("trials.csv", "baselines.csv", "best.json", "validation.csv")
"""Files of the tune stage that are brought."""

HELD_OUT = ("summary.csv", "scores.csv", "metrics.json")
"""Files of the evaluate stage that are brought; its predictions stay in DVC."""

_OF_A_TRIAL = ("number", "state", "value", "continues", "reason", "seconds")


def experiment(name: str | None, *, small: bool = False) -> None:
    """Run the preset experiments/NAME.yaml as a DVC experiment; params.yaml and the workspace stay as they are.

    What it found is brought to experiments/results/NAME[-small]: trials.csv, baselines.csv, the hold-out's tables,
    report.html, params.yaml, and table.csv and table.md with all trials and baselines, best first. Killed and
    started again, it goes on where it was. Without a name it lists the presets.

    Raises
    ------
    InputError
        If there is no such preset, it does not fit params.py, the repository or the data are not ready, another
        process runs the same preset, or a stage failed.
    """
    from filelock import FileLock, Timeout

    root = tracking.repository_root()
    if name is None:
        _list(presets(root))
        return
    try:
        path = find_preset(root, name)
    except InputError:
        _list(presets(root))
        raise
    preset, content = read_preset(path), _params_yaml(root)
    settings = getattr(preset_params(content, preset, small, path.relative_to(root)), preset.arm)
    _check_ready(root, preset.arm)
    title = f"{name}-small" if small else name
    state = root / ".reperfuse" / "experiments"
    state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(state / f"{title}.lock", timeout=0):
            run = _free_name(root, title)
            print(f"{title}: {preset.description}", flush=True)
            _dvc_exp_run(root, run, title, set_param_words(content, preset.changes(small)), preset)
            folder = root / RESULTS / title
            _bring(root, run, preset, folder, {"preset": name, "small": small})
    except Timeout as error:
        raise InputError(f"{title} is running in another process: wait for it, or end that process.") from error
    table = trials_table(folder, list(settings.tune.space))
    _write_table(folder, title, run, preset, table)
    _show(title, table)
    page = folder / "report.html"
    if page.exists():
        print(f"Report: {page.relative_to(root)}")
    print(f"Tables: {(folder / 'table.md').relative_to(root)}, table.csv, trials.csv")
    print(f"DVC experiment {run}: `dvc exp apply {run}` takes it over into the workspace.")


# ---- before ---------------------------------------------------------------------------------------------------------
def _list(found: Mapping[str, Preset]) -> None:
    if not found:
        print(f"{FOLDER}/ holds no preset.")
    for name, preset in found.items():
        print(f"{name} ({preset.arm}): {preset.description}")


def _params_yaml(root: Path) -> dict[str, Any]:
    import yaml

    if not (root / "dvc.yaml").exists() or not (root / "params.yaml").exists():
        raise InputError(f"{root} has no dvc.yaml and params.yaml: experiments run in a checkout of the repository.")
    from reperfuse.params import load_params

    load_params(root / "params.yaml")  # what is wrong there is said of that file, not of the preset
    return yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")) or {}


def _check_ready(root: Path, arm: str) -> None:
    """A commit, DVC, and the arm's data: what `dvc exp run` would miss after a minute, in words that help less.

    Raises
    ------
    InputError
        Says what is missing and the command that brings it.
    """
    if not (root / ".dvc").is_dir():
        raise InputError(f"{root} is no DVC repository: experiments run in a checkout, or after `dvc init`.")
    if not _git(root, "rev-parse", "--verify", "--quiet", "HEAD"):
        raise InputError(f"{root} has no git commit, which experiments start from: `git add --all && git commit`.")
    data = layout.bids(arm)
    pointer = f"{data}.dvc"
    if not (root / pointer).exists():
        raise InputError(
            f"{pointer} is missing: bring data in with `reperfuse ingest INBOX --arm {arm}` "
            f"(`reperfuse demo-data INBOX --small` invents some)."
        )
    if not _git(root, "ls-files", "--", pointer):
        raise InputError(f"{pointer} is not known to git, so that an experiment would not see it: `git add {pointer}`.")
    if not (root / data).is_dir():
        raise InputError(f"{data} is not in the workspace: `dvc pull {pointer}` or `dvc checkout {pointer}` brings it.")


def _free_name(root: Path, title: str) -> str:
    """The first of TITLE-1, TITLE-2, … that no DVC experiment has: a killed run's name is taken up again."""
    taken = _revisions(root)
    number = 1
    while f"{title}-{number}" in taken:
        number += 1
    return f"{title}-{number}"


def _revisions(root: Path) -> dict[str, str]:
    """Name of each DVC experiment of the repository → its commit."""
    refs = _git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps/").splitlines()
    return {name.rpartition("/")[2]: commit for name, commit in map(str.split, refs)}


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _identity(root: Path) -> dict[str, str]:
    """Who commits an experiment: DVC demands a name, and its copy of the repository does not know the repository's."""
    name = _git(root, "config", "user.name") or "reperfuse"
    email = _git(root, "config", "user.email") or "reperfuse@localhost"
    return {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", name), ("EMAIL", email))
    }


# ---- the run --------------------------------------------------------------------------------------------------------
def _dvc_exp_run(root: Path, run: str, title: str, set_params: Sequence[str], preset: Preset) -> None:
    """`dvc exp run --temp` up to the preset's last stage, its output on this terminal."""
    options = [word for value in set_params for word in ("--set-param", value)]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", run, *options]
    environment = (
        _identity(root)
        | os.environ
        | {
            # `python` in a DVC stage is whatever PATH finds first.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",
            "DVC_NO_ANALYTICS": "1",
            "REPERFUSE_EXPERIMENT": title,
        }
    )
    target = f"{preset.arm}-{preset.until}"
    with subprocess.Popen([*command, target], cwd=root, env=environment) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal interrupted DVC and its stage as well: they write down where they are
            raise
    if code:
        raise InputError(
            f"The experiment {run} stopped (its reason stands above, dvc ended with {code}): "
            "what is finished is kept, and the same command goes on from there."
        )


def brought(preset: Preset) -> dict[str, Path]:
    """File in the results folder → where the preset's stages write it; nothing of stages that it does not run.

    A copy of a finished workspace has what those stages wrote for other parameters.
    """
    arm = preset.arm
    written = {
        "folds": {"folds.csv": layout.folds_csv(arm)},
        "tune": {name: layout.results(arm) / "tune" / name for name in TUNED},
        "evaluate": {f"holdout/{name}": layout.results(arm) / "evaluate" / name for name in HELD_OUT},
        "report": {"report.html": layout.report(arm)},
    }
    ran = STAGES[: STAGES.index(preset.until) + 1]
    return {"params.yaml": Path("params.yaml")} | {k: v for stage in ran for k, v in written.get(stage, {}).items()}


def _bring(root: Path, run: str, preset: Preset, folder: Path, about: Mapping[str, Any]) -> None:
    """Copy what people read from the DVC experiment into `folder`, in place of what an earlier run left there."""
    from dvc.api import DVCFileSystem

    outs = DVCFileSystem(str(root), rev=run)
    with atomic_path(folder) as inside:
        for name, place in brought(preset).items():
            if outs.exists(place.as_posix()):
                (inside / name).parent.mkdir(parents=True, exist_ok=True)
                outs.get_file(place.as_posix(), str(inside / name))
        found = {"arm": preset.arm, "dvc_experiment": run, "git_commit": _revisions(root)[run]}
        write_json(inside / "experiment.json", {**about, **found})


# ---- the table ------------------------------------------------------------------------------------------------------
def trials_table(folder: Path, searched: Sequence[str]) -> "pd.DataFrame":
    """All trials of trials.csv, and all baselines of baselines.csv where there is one, in `folder`, best first.

    Returns
    -------
    DataFrame
        kind (`trial` or `baseline`), name (its number, or the method), a column per name in `searched`, the metrics,
        the one that chose first, then state, reason and seconds. Undefined scores come last.

    Raises
    ------
    InputError
        If best.json, which names the metric, is missing.
    """
    import pandas as pd

    from reperfuse.evaluation.metrics import METRICS

    metric = read_json(folder / "best.json")["metric"]
    trials = pd.read_csv(folder / "trials.csv").drop(columns=metric, errors="ignore").rename(columns={"value": metric})
    trials = trials.rename(columns={"number": "name"}).assign(**{KIND: "trial"})
    others = [name for name in trials if name not in {KIND, "name", metric, *searched, *_OF_A_TRIAL}]
    metrics = [metric, *(name for name in others if not re.fullmatch(r"fold_\d+", name))]
    tables = [trials]
    if (folder / "baselines.csv").exists():
        baselines = pd.read_csv(folder / "baselines.csv").rename(columns={"method": "name"})
        tables.append(baselines.assign(**{KIND: "baseline"}))
        metrics += [name for name in baselines if name not in {"name", *metrics}]
    table = pd.concat([part.astype(object) for part in tables], ignore_index=True)
    table[metrics] = table[metrics].apply(pd.to_numeric)
    ascending = metric not in METRICS or METRICS[metric].better != "higher"  # an unknown one is an error in some unit
    table = table.sort_values(metric, ascending=ascending, na_position="last", kind="stable")
    return table.reindex(columns=[KIND, "name", *searched, *metrics, "state", "reason", "seconds"]).reset_index(
        drop=True
    )


def readable_rows(table: "pd.DataFrame") -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text of a `trials_table`; what is empty everywhere is left out."""
    import pandas as pd

    from reperfuse.evaluation.figures import metric_label
    from reperfuse.evaluation.metrics import METRICS
    from reperfuse.evaluation.tables import number

    columns = [str(name) for name in table if table[name].notna().any()]

    def cell(name: str, value: Any) -> str:
        if name in METRICS:
            return number(value, name)
        if pd.isna(value):
            return ""
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = [[cell(name, value) for name, value in zip(columns, row, strict=True)] for row in table[columns].values]
    return [metric_label(name) if name in METRICS else name for name in columns], rows


def _write_table(folder: Path, title: str, run: str, preset: Preset, table: "pd.DataFrame") -> None:
    headings, rows = readable_rows(table)
    lines = [f"# {title}", "", preset.description, "", f"DVC experiment `{run}`; best first.", ""]
    lines += [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    write_text(folder / "table.md", "\n".join(lines) + "\n")
    with atomic_path(folder / "table.csv") as inside:
        table.to_csv(inside, index=False)


def _show(title: str, table: "pd.DataFrame") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    headings, rows = readable_rows(table)
    shown = Table(*map(escape, headings), title=title)  # "[s]" is a unit, not a style
    for kind, row in zip(table[KIND], rows, strict=True):
        shown.add_row(*map(escape, row), style="cyan" if kind == "baseline" else None)
    Console().print(shown)
