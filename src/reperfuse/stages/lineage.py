"""The verb `lineage`: what a model came from, and the workspace it came from made again."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reperfuse import tracking
from reperfuse.errors import InputError
from reperfuse.files import sha256_of, write_text
from reperfuse.stages import layout

CODE_REVISION = ("git_commit", "git_dirty", "dvc_experiment")
ENVIRONMENT = ("python", "platform", "requirements_lock", "cpu", "cores", "memory_gb", "gpu")


def lineage(model: str, *, checkout: Path | None = None, as_json: bool = False) -> None:
    """Print where a model of the store came from; with `checkout`, make its workspace again in that folder.

    Parameters
    ----------
    model
        `models:/lesion@champion`, `models:/lesion/3`, `models:/m-…`, `runs:/ID/model`.
    checkout
        A folder that is not there yet, or is empty.

    Raises
    ------
    InputError
        If there is no such model, its commit or its data are nowhere to be had, or the folder is in use.
    """
    found = origin(model)
    # First, so that what it may refuse stands alone, and what it says last.
    said = "" if checkout is None else recreate(found, checkout, tracking.repository_root())
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(model, found)
    if said:
        print(said, file=sys.stderr if as_json else sys.stdout)


def origin(model: str) -> dict[str, Any]:
    """What a model came from, nested and ready for JSON.

    `arm`, `run_id`, `run`, `code`, `data`, `seed`, `params`, `environment`, `study` and `decision`; what the store does
    not know is "none".
    """
    run_id = tracking.run_of(model)
    run = tracking.recorded(run_id)
    known, tags = run["lineage"], run["tags"]
    arm = run["experiment"]
    about = {*CODE_REVISION, *ENVIRONMENT, "data_revision", "seed"}
    return {
        "model": model,
        "arm": arm,
        "run_id": run_id,
        "run": run["name"],
        "code": {name: known.get(name, tracking.UNKNOWN) for name in CODE_REVISION},
        "data": {"path": str(layout.bids(arm)), "revision": known.get("data_revision", tracking.UNKNOWN)},
        "seed": known.get("seed", tracking.UNKNOWN),
        "params": dict(sorted(run["params"].items())),
        "environment": {name: known.get(name, tracking.UNKNOWN) for name in ENVIRONMENT}
        | {name: version for name, version in sorted(known.items()) if name not in about},
        "study": {"run_id": tags.get("study_run_id", tracking.UNKNOWN)},
        "decision": {name: tags[name] for name in ("decision", "decision.reason", "decision.against") if name in tags},
    }


def _show(model: str, found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=model, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("arm", found["arm"])
    table.add_row("run", f"{found['run']}, {found['run_id']}")
    for part in ("code", "data", "study", "decision", "environment", "params"):
        table.add_section()
        for name, value in found[part].items():
            table.add_row(escape(f"{part}: {name}"), escape(str(value)))
        if part == "data":
            table.add_row("seed", found["seed"])
    Console().print(table)


# ---- the workspace, made again --------------------------------------------------------------------------------------
def recreate(found: Mapping[str, Any], folder: Path, root: Path) -> str:
    """Make the workspace of a model again in `folder`; returns what to do there.

    The commit of its run, the changes that were not in it, and the data by their DVC revision, from the cache of
    `root` (which the new workspace shares) or else from the DVC remote. Its MLflow store is its own.

    Parameters
    ----------
    found
        From `origin`.
    root
        The repository that has the commit.

    Raises
    ------
    InputError
        If something that the model came from cannot be had. What was begun in `folder` stays, to be looked at.
    """
    commit, revision, arm = found["code"]["git_commit"], found["data"]["revision"], found["arm"]
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name a new folder.")
    if tracking.UNKNOWN in (commit, revision):
        unknown = "commit" if commit == tracking.UNKNOWN else "data revision"
        raise InputError(
            f"The run {found['run_id']} does not know its {unknown}: it was made outside of git or DVC, and its "
            "workspace cannot be made again."
        )
    changes = tracking.find_text(found["run_id"], tracking.CHANGES)
    if changes is None and found["code"]["git_dirty"] == "true":
        raise InputError(
            f"The code of run {found['run_id']} differed from commit {commit[:8]}, and the difference is not in the "
            "store: its workspace cannot be made again."
        )
    if _run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], root).returncode:
        raise InputError(f"Commit {commit} is not in {root}: `git fetch` it first.")
    _must(["git", "clone", "--quiet", "--no-checkout", str(root), str(folder)], root, "The clone")
    _must(["git", "checkout", "--quiet", "--detach", commit], folder, f"The checkout of {commit[:8]}")
    if changes:
        patch = folder / ".git" / tracking.CHANGES
        patch.write_bytes(changes.encode(errors="surrogateescape"))
        _must(["git", "apply", "--whitespace=nowarn", str(patch)], folder, "The changes of the run")
    _bring_data(root, folder, arm, revision)
    return _what_now(folder, root, found)


def _bring_data(root: Path, folder: Path, arm: str, revision: str) -> None:
    """The data of a revision in the new workspace, from the cache or a remote of the old one."""
    pointer = folder / f"{layout.bids(arm)}.dvc"
    write_text(pointer, f"outs:\n- md5: {revision}\n  hash: md5\n  path: {arm}\n")
    local = root / ".dvc" / "config.local"
    if local.exists():  # the remote's address and key may stand there
        write_text(folder / ".dvc" / "config.local", local.read_text(encoding="utf-8"))
    dvc = [sys.executable, "-m", "dvc"]
    cache = _must([*dvc, "cache", "dir"], root, "DVC").strip()
    _must([*dvc, "config", "--local", "cache.dir", str((root / cache).resolve())], folder, "DVC")
    for line in _must([*dvc, "config", "--list"], root, "DVC").splitlines():
        key, _, value = line.partition("=")  # of an address that is relative to `root`, what it stands for
        if key == "core.remote" or (key.startswith("remote.") and key.endswith(".url")):
            _must([*dvc, "config", "--local", key, value], folder, "DVC")
    name = str(pointer.relative_to(folder))
    if _run([*dvc, "checkout", "--quiet", name], folder).returncode:
        pulled = _run([*dvc, "pull", "--quiet", name], folder)
        if pulled.returncode:
            raise InputError(
                f"Revision {revision} of {layout.bids(arm)} is neither in DVC's cache nor on its remote "
                f"({_last(pulled)}): restore one of them."
            )
    _must([*dvc, "commit", "--quiet", "--force", name], folder, "DVC")  # size and number of files, as `dvc add` has it


def _what_now(folder: Path, root: Path, found: Mapping[str, Any]) -> str:
    """The commands that go on, and whether this environment is the one of the model."""
    arm, locked = found["arm"], found["environment"]["requirements_lock"]
    lines = [f"{folder} is the workspace of {found['model']}."]
    here = root / "requirements.lock"
    same = locked in (tracking.UNKNOWN, sha256_of(here) if here.exists() else "")
    code = _run(["git", "diff", "--quiet", found["code"]["git_commit"], "--", "src"], root).returncode == 0
    if same and code and found["code"]["git_dirty"] == "false":
        lines.append(f"  cd {folder} && dvc repro {arm}-report")
    else:
        lines.append("Its code or its environment is not the one that is installed here, so it wants its own:")
        lines.append(f"  cd {folder} && make .venv/.installed && . .venv/bin/activate && dvc repro {arm}-report")
    lines.append("What is in DVC's cache comes back from there; `dvc repro --force --no-run-cache` computes it again.")
    return "\n".join(lines)


def _run(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    quiet = os.environ | {"DVC_NO_ANALYTICS": "true", "GIT_TERMINAL_PROMPT": "0"}
    return subprocess.run(command, cwd=folder, env=quiet, capture_output=True, text=True, check=False)


def _must(command: list[str], folder: Path, what: str) -> str:
    done = _run(command, folder)
    if done.returncode:
        raise InputError(f"{what} failed in {folder}: {_last(done)}")
    return done.stdout


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return said[-1].strip() if said else "no message"
