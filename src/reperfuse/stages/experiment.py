"""The verb `experiment`: a preset as a DVC experiment beside the workspace, and its trials in one table."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from reperfuse.stages.scores import STUDY_TABLES
from reperfuse.stages.searched import name_among_rivals, trials_of

if TYPE_CHECKING:
    import pandas as pd

RESULTS = FOLDER / "results"
"""Where an experiment's tables and page are brought, a folder per preset and size; git-ignored."""

TUNED = ("trials.csv", "baselines.csv", "best.json", "validation.csv")
"""Files of the tune stage that are brought."""

HELD_OUT = ("summary.csv", "scores.csv", "metrics.json")
"""Files of the evaluate stage that are brought; its predictions stay in DVC."""

STUDIED = (*(f"{name}.csv" for name in STUDY_TABLES), "metrics.json", "study.md")
"""Files of the resolution stage that are brought."""


def experiment(name: str | None, *, small: bool = False) -> None:
    """Run the preset experiments/NAME.yaml as a DVC experiment; params.yaml and the workspace stay as they are.

    What it found is brought to experiments/results/NAME[-small]: trials.csv, baselines.csv, the tables of the hold-out
    and of the resolution study, report.html, params.yaml, table.csv with all trials and baselines, best first, and
    table.md with that and what the hold-out said. Killed and started again, it goes on where it was. Without a name
    it lists the presets.

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
    from reperfuse.evaluation.report import ARMS  # loads matplotlib, which a list can do without
    from reperfuse.evaluation.trials import known_metrics

    try:
        path = find_preset(root, name)
    except InputError:
        _list(presets(root))
        raise
    preset, content = read_preset(path), _params_yaml(root)
    settings = getattr(preset_params(content, preset, small, path.relative_to(root)), preset.arm)
    lead = known_metrics(settings.report.metrics) or list(ARMS[preset.arm]["headline"])
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
    level_name = ARMS[preset.arm]["level_name"]
    lead = list(dict.fromkeys([read_json(folder / "best.json")["metric"], *lead]))
    table = trials_of(folder, list(settings.tune.space), lead)
    _write_table(folder, title, run, preset, table, level_name, lead)
    _show(folder, title, table, level_name, lead)
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
        "resolution": {f"resolution/{name}": layout.results(arm) / "resolution" / name for name in STUDIED},
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


# ---- the tables -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """One of the tables that an experiment ends in: its title, headings of columns, and rows of text."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def holdout_tables(folder: Path, level_name: str, lead: Sequence[str], *, alone: bool = False) -> list[Part]:
    """Mean scores of every method on the hold-out, and at every level of the resolution study with what its tests say,
    where those ran.

    Parameters
    ----------
    folder
        With best.json, holdout/summary.csv, resolution/curve.csv and resolution/hypotheses.csv.
    level_name
        Column of the level in curve.csv: `thickness_mm` or `tr_s`.
    lead
        Scores that stand first.
    alone
        Whether to show no others.
    """
    import pandas as pd

    from reperfuse.evaluation.figures import method_label, metric_label
    from reperfuse.evaluation.resolution import FACETS, LEVEL_LABELS, facet_label
    from reperfuse.evaluation.summary import MODEL
    from reperfuse.evaluation.tables import hypothesis_table, model_first, number
    from reperfuse.evaluation.trials import in_order

    def names_in(table: "pd.DataFrame") -> list[str]:
        there = [str(name) for name in table.loc[table["mean"].notna(), "metric"].unique()]
        return in_order([name for name in there if name in lead or not alone], lead)

    def rows_of(table: "pd.DataFrame", names: Sequence[str]) -> list[list[str]]:
        means = {(row["method"], row["metric"]): row["mean"] for row in table.to_dict("records")}
        methods = model_first(str(method) for method in table["method"].unique())
        return [
            [labels.get(method, method_label(method)), *(number(means.get((method, name)), name) for name in names)]
            for method in methods
        ]

    best = read_json(folder / "best.json")
    labels = {MODEL: f"{method_label(MODEL)} ({name_among_rivals(best)})"} if best["rivals"] else {}
    tables = []
    if (folder / "holdout" / "summary.csv").exists():
        summary = pd.read_csv(folder / "holdout" / "summary.csv")
        names = names_in(summary)
        tables.append(Part("Hold-out", ["method", *map(metric_label, names)], rows_of(summary, names)))
    if (folder / "resolution" / "curve.csv").exists():
        curves = pd.read_csv(folder / "resolution" / "curve.csv")
        for facet, part in curves.groupby(FACETS[level_name], sort=False):
            names = names_in(part)
            rows = [[f"{level:g}", *row] for level, here in part.groupby(level_name) for row in rows_of(here, names)]
            headings = [LEVEL_LABELS[level_name], "method", *map(metric_label, names)]
            tables.append(Part(f"Hold-out, {facet_label(level_name, facet)}", headings, rows))
    if (folder / "resolution" / "hypotheses.csv").exists():
        tests = pd.read_csv(folder / "resolution" / "hypotheses.csv")
        if len(tests):
            verdicts = hypothesis_table(tests, level_name)
            tables.append(Part(f"{verdicts['caption']}", verdicts["columns"], verdicts["rows"]))
    return tables


def _write_table(
    folder: Path, title: str, run: str, preset: Preset, table: "pd.DataFrame", level_name: str, lead: Sequence[str]
) -> None:
    from reperfuse.evaluation.trials import readable_rows

    lines = [f"# {title}", "", preset.description, "", f"DVC experiment `{run}`.", ""]
    search = Part("Search: cross-validation, best first", *readable_rows(table))
    for part in [search, *holdout_tables(folder, level_name, lead)]:
        lines += [f"## {part.title}", "", f"| {' | '.join(part.headings)} |", f"|{'---|' * len(part.headings)}"]
        lines += [*(f"| {' | '.join(row)} |" for row in part.rows), ""]
    write_text(folder / "table.md", "\n".join(lines))
    with atomic_path(folder / "table.csv") as inside:
        table.to_csv(inside, index=False)


def _show(folder: Path, title: str, table: "pd.DataFrame", level_name: str, lead: Sequence[str]) -> None:
    """The tables on the terminal, with the scores that lead alone: all of them do not fit its width."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from reperfuse.evaluation.trials import KIND, readable_rows

    search = Part(f"{title}: cross-validation, best first", *readable_rows(table, lead))
    for part in [search, *holdout_tables(folder, level_name, lead, alone=True)]:
        shown = Table(*map(escape, part.headings), title=part.title)  # "[s]" is a unit, not a style
        kinds = table[KIND] if part is search else ["trial"] * len(part.rows)
        for kind, row in zip(kinds, part.rows, strict=True):
            shown.add_row(*map(escape, row), style="cyan" if kind == "baseline" else None)
        Console().print(shown)
