"""What a run came from: code, data, environment, machine, seed; never who, nor on which host."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from reperfuse.files import sha256_of

CODE = ("src", "flows", "experiments", "params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock")
"""What decides a result beside the data. dvc.lock and metrics change while a pipeline runs and say nothing here."""

PACKAGES = ("torch", "monai", "lightning", "optuna", "mlflow", "numpy", "reperfuse")
"""Libraries whose version is kept by name; requirements.lock, by its hash, has all of them."""

CHANGES = "changes.patch"
"""File with the `code_changes` of a run whose code differed from its commit."""

UNKNOWN = "none"
"""What stands where there is nothing to know: no commit, no DVC data, no GPU."""


def lineage(root: Path | str, *, arm: str, seed: int) -> dict[str, str]:
    """What a run came from, as short texts under stable names.

    git_commit, git_dirty ("true" when code or parameters differ from the commit), data_revision (the md5 in
    data/bids/ARM.dvc), dvc_experiment, seed, requirements_lock (sha256), python, platform, the versions of
    `PACKAGES`, cpu, cores, memory_gb and gpu. User and host names are left out on purpose.

    Parameters
    ----------
    root
        The workspace: the folder of dvc.yaml the stage runs in (in `dvc exp run --temp`, the copy).
    arm
        lesion or perfusion.
    seed
        The seed of the run.
    """
    from importlib.metadata import PackageNotFoundError, version  # 50 ms

    root = Path(root)
    lock = root / "requirements.lock"
    known = {
        "git_commit": _git(root, "rev-parse", "HEAD") or UNKNOWN,
        "git_dirty": str(bool(_git(root, "status", "--porcelain", "--", *CODE))).lower(),
        "data_revision": data_revision(root, arm),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", UNKNOWN),
        "seed": str(seed),
        "requirements_lock": sha256_of(lock) if lock.exists() else UNKNOWN,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(_cores()),
        "memory_gb": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f}",
        "gpu": _gpu(),
    }
    for package in PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = UNKNOWN
    return known


def data_revision(root: Path | str, arm: str) -> str:
    """The md5 by which DVC knows data/bids/ARM, or "none" where the data are not under DVC."""
    import yaml

    pointer = Path(root) / "data" / "bids" / f"{arm}.dvc"
    if not pointer.exists():
        return UNKNOWN
    outs = (yaml.safe_load(pointer.read_text(encoding="utf-8")) or {}).get("outs") or [{}]
    return str(outs[0].get("md5", UNKNOWN))


def code_changes(root: Path | str) -> str:
    """The patch from the commit to the code and parameters that really ran, new files included, for `git apply`.

    Empty where `git_dirty` is false.
    """
    root = Path(root)
    # With -z a name that is not ASCII comes as it is, without quotes.
    new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE).split("\0")[:-1]
    patches = [_patch(root, "HEAD", "--", *CODE)]
    patches += [_patch(root, "--no-index", "--", os.devnull, name) for name in new]
    return "".join(patches)


def _patch(root: Path, *arguments: str) -> str:
    """Output of `git diff` to the letter: a line of context may be one blank. Its exit code is 1 on a difference."""
    # Whatever the person's own configuration makes of a diff, `git apply` has to read this one.
    plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    done = subprocess.run(["git", "-C", str(root), "diff", *plain, *arguments], capture_output=True, check=False)
    return done.stdout.decode(errors="surrogateescape") if done.returncode in (0, 1) else ""


def _git(root: Path, *arguments: str) -> str:
    """Output of a git command, or nothing where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cores() -> int:
    # A container or a scheduler may give fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> str:
    torch = sys.modules.get("torch")  # importing it only to ask would cost seconds
    if torch is not None:
        return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else UNKNOWN
    if shutil.which("nvidia-smi") is None:
        return UNKNOWN
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    names = done.stdout.strip().splitlines()
    return names[0] if done.returncode == 0 and names else UNKNOWN
