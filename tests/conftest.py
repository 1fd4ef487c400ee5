"""What many tests need once: a workspace that has been through the pipeline, an examination of an invented patient."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from reperfuse.phantoms.dsc import DscPhantom

ROOT = Path(__file__).parents[1]

SMALL = {
    "lesion": {
        "preprocess": {"spacing_mm": 4.0},
        "folds": {"n_folds": 2},
        "tune": {"n_trials": 2, "epochs": 1},
        "train": {
            "epochs": 2,
            "steps_per_epoch": 3,
            "patch_size": [24, 24, 24],
            "network_kwargs": {"widths": [4, 8]},
        },
        "evaluate": {"bootstrap_samples": 100},
        "resolution": {"thickness_mm": [4.0, 8.0]},
    },
    "perfusion": {
        "folds": {"n_folds": 2},
        "tune": {"n_trials": 2, "epochs": 1},
        "train": {"epochs": 4, "steps_per_epoch": 12, "patch_size": [16, 16, 6]},
        "evaluate": {"bootstrap_samples": 100},
        "resolution": {"tr_s": [1.5, 3.0]},
    },
}
"""Parameters that differ from the defaults: the pipeline in a minute or two."""


@dataclass(frozen=True)
class Workspace:
    """A copy of the repository's pipeline with its own git, DVC and MLflow store."""

    root: Path

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `reperfuse …` or `dvc …` there, with the code that is copied there."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def environment(self, **more: str) -> dict[str, str]:
        """Variables of a process in this workspace."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "OPTUNA_", "DVC_", "REPERFUSE_"))
        }
        return (
            kept
            | {
                "PYTHONPATH": str(self.root / "src"),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "REPERFUSE_PSEUDONYM_KEY": "the-patients-of-the-tests-are-invented",
                "OMP_NUM_THREADS": "2",
                "COLUMNS": "200",
            }
            | more
        )

    def stale(self, target: str) -> list[str]:
        """Stages that `dvc repro target` would run."""
        said = self.run("dvc", "repro", "--dry", target).stdout
        return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]

    def edit_params(self, change: Callable[[dict], None]) -> None:
        """Rewrite params.yaml."""
        path = self.root / "params.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def update(content: dict, changes: dict) -> None:
    """Put nested `changes` into `content`; a mapping of parameters that is a value itself is replaced."""
    for key, value in changes.items():
        if isinstance(value, dict) and key not in ("network_kwargs", "space"):
            update(content[key], value)
        else:
            content[key] = value


def new_workspace(root: Path) -> Workspace:
    """The pipeline's files at `root`, committed, with small parameters."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", "requirements.lock"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, root / ".dvc" / name)
    workspace = Workspace(root)
    workspace.edit_params(lambda content: update(content, SMALL))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    return workspace


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose small invented patients are ingested; copy it before changing it."""
    workspace = new_workspace(tmp_path_factory.mktemp("ingested") / "workspace")
    workspace.run("reperfuse", "demo-data", "inbox", "--small")
    for arm in ("lesion", "perfusion"):
        workspace.run("reperfuse", "ingest", f"inbox/{arm}", "--arm", arm)
    return workspace


@pytest.fixture(scope="session")
def finished(ingested: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace that `dvc repro` and `promote` have been through."""
    root = tmp_path_factory.mktemp("finished") / "workspace"
    shutil.copytree(ingested.root, root)
    workspace = Workspace(root)
    workspace.run("dvc", "repro")
    for arm in ("lesion", "perfusion"):
        workspace.run("reperfuse", "promote", arm)
    return workspace


@pytest.fixture
def spare(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished workspace that a test may change."""
    shutil.copytree(finished.root, tmp_path / "workspace", symlinks=True)
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as `client` makes it; copied for each test because MLflow's migrations take seconds."""
    from reperfuse import tracking

    root = tmp_path_factory.mktemp("first") / "mlruns"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        tracking.client()
    return root / "mlflow.db"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny repository of the flows; copy it before changing it."""
    from tiny_repository import write_tiny_repository

    root = tmp_path_factory.mktemp("repository") / "tiny repository"  # a name with a space
    write_tiny_repository(root)
    return root


@pytest.fixture(scope="session")
def phantom() -> "DscPhantom":
    """A DSC examination of an invented patient with a stroke; copy its arrays before changing them."""
    from reperfuse.phantoms.dsc import dsc_phantom

    return dsc_phantom((48, 48, 8), 60, seed=5, snr=80.0)


@pytest.fixture(scope="session")
def series(phantom: "DscPhantom", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The signal of `phantom` as a file."""
    from reperfuse.imaging.volume import save_volume

    path = tmp_path_factory.mktemp("series") / "dsc.nii.gz"
    save_volume(path, phantom.signal)
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the repository, where it is there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here, so nothing real can be read")
    return folder
