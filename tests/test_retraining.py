"""Four weeks of scheduled retraining, with real services, real training and real decisions, in some minutes."""

import json
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import ROOT, Workspace, update

pytestmark = [pytest.mark.slow, pytest.mark.services]

TINY = {
    "preprocess": {"spacing_mm": 4.0},
    "folds": {"n_folds": 2, "holdout_fraction": 0.4},
    "tune": {"n_trials": 1, "epochs": 1, "space": {"loss": {"choices": ["dice_bce"]}}},
    "train": {
        "epochs": 2,
        "steps_per_epoch": 20,
        "patch_size": [24, 24, 24],
        "network_kwargs": {"widths": [8, 16, 32]},
        "learning_rate": 0.01,
    },
    "evaluate": {"bootstrap_samples": 100},
    "resolution": {"thickness_mm": [4.0, 8.0]},
    # Fixed here, before anything is trained: a handful of subjects, hence margins that a handful can hold.
    "promote": {
        "minimum_subjects": 3,
        "non_inferiority_margin": 0.1,
        "resolution_margin": 0.15,
        "better_by": 0.02,
        "subgroup_margin": 0.2,
    },
}

FIRST, ALL = 18, 24
"""Subjects in the first and in all deliveries."""


@dataclass(frozen=True)
class Run:
    """A run of retrain/weekly as its user and the UI see it."""

    exit_code: int
    said: str
    state: str
    message: str


def make(workspace: Workspace, target: str) -> str:
    """What `make TARGET` says, in the environment that runs the tests."""
    done = subprocess.run(
        ["make", "-o", ".venv/.installed", target],
        cwd=workspace.root,
        env=services_environment(workspace),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def services_environment(workspace: Workspace) -> dict[str, str]:
    return {name: value for name, value in workspace.environment().items() if not name.startswith("PREFECT_")}


def retrain(workspace: Workspace, *options: str) -> Run:
    """`prefect deployment run retrain/weekly --watch`, as typed in the checkout."""
    words = [sys.executable, "-m", "prefect", "deployment", "run", "retrain/weekly", "--watch", *options]
    done = subprocess.run(
        words, cwd=workspace.root, env=services_environment(workspace), capture_output=True, text=True
    )
    state = last_runs(workspace)[0]["state"]
    return Run(done.returncode, done.stdout + done.stderr, state["name"], state["message"])


def ask(workspace: Workspace, path: str, question: dict[str, Any]) -> Any:
    """An answer of Prefect's server, which is what its UI shows."""
    lines = (workspace.root / ".env").read_text().splitlines()
    settings = dict(line.partition("=")[::2] for line in lines if "=" in line)
    url = shlex.split(settings["PREFECT_API_URL"])[0] + path
    request = urllib.request.Request(url, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)


def last_runs(workspace: Workspace) -> list[dict[str, Any]]:
    """The runs of retrain, the latest first."""
    return ask(
        workspace,
        "/flow_runs/filter",
        {
            "sort": "START_TIME_DESC",
            "limit": 20,
            "flows": {"name": {"any_": ["retrain"]}},
            "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}},
        },
    )


def write_patients(folder: Path, n: int) -> list[str]:
    """Invented patients named as in ATLAS R2.0: a lesion is a dark ball, and sheets as dark as it are none.

    A threshold finds the sheets as well, so that a network that has learned some shape beats it.
    """
    draw = np.random.default_rng(5)
    axes = np.stack(np.meshgrid(*(np.arange(32.0),) * 3, indexing="ij"))
    names = []
    for number in range(n):
        centre, name = f"R{number % 3 + 1:03d}", f"sub-r{number % 3 + 1:03d}s{number // 3 + 1:03d}"
        brain = np.linalg.norm(axes - 15.5, axis=0) < 14
        place, radius = draw.uniform(10, 22, 3), draw.uniform(3.0, 4.5)
        lesion = (np.linalg.norm(axes - place[:, None, None, None], axis=0) < radius) & brain
        sheets = np.isin(axes[draw.integers(3)], draw.choice(np.arange(4, 28), 4, replace=False))
        image = 100.0 * brain - 30.0 * (brain & (lesion | sheets)) + draw.normal(0, 6, brain.shape) * brain
        anat = folder / centre / name / "ses-1/anat"
        anat.mkdir(parents=True)
        stem = str(anat / f"{name}_ses-1_space-MNI152NLin2009aSym_")
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), f"{stem}T1w.nii.gz")
        nib.save(nib.Nifti1Image(lesion.astype(np.uint8), affine), f"{stem}label-L_desc-T1lesion_mask.nii.gz")
        names.append(name)
    return names


def deliver(workspace: Workspace, delivery: Path, people: list[str]) -> None:
    """Copy those subjects' files into the inbox, in the place of older ones."""
    for person in people:
        for folder in delivery.rglob(person):
            shutil.copytree(folder, workspace.root / "inbox/lesion" / folder.relative_to(delivery), dirs_exist_ok=True)


def train_side(workspace: Workspace) -> list[str]:
    """Training subjects of the pipeline's last run."""
    rows = [line.split(",") for line in (workspace.root / "results/lesion/folds.csv").read_text().splitlines()[1:]]
    return [row[0] for row in rows if row[1] == "train"]


def mislabel(delivery: Path, people: list[str]) -> None:
    """Give each of those subjects a mask on the other side of the head, above instead of below."""
    for person in people:
        for path in delivery.rglob(f"{person}*_mask.nii.gz"):
            image = nib.load(path)
            flipped = np.asarray(image.dataobj)[::-1, ::-1, ::-1]
            nib.save(nib.Nifti1Image(np.ascontiguousarray(flipped), image.affine, image.header), path)


def champion_of(workspace: Workspace, name: str = "champion") -> str:
    """Version that an alias points to."""
    code = f"from reperfuse import tracking; print(tracking.get_alias('lesion', '{name}').version)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workspace.root, env=workspace.environment(), capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A clone whose services are up."""
    root = tmp_path_factory.mktemp("retraining") / "checkout"
    known = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in known.decode().split("\0")[:-1]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    workspace = Workspace(root)
    workspace.edit_params(lambda content: update(content["lesion"], TINY))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    (root / ".venv").symlink_to(sys.prefix)
    make(workspace, "up")
    yield workspace
    make(workspace, "down")


def test_four_weeks_of_retraining_and_a_rollback(checkout: Workspace, tmp_path: Path):
    delivery = tmp_path / "delivery"
    people = write_patients(delivery, ALL)

    # The first week: data, a model, no champion before it.
    deliver(checkout, delivery, people[:FIRST])
    first = retrain(checkout)
    assert (first.exit_code, first.state) == (0, "Promoted"), first.said[-3000:]
    assert "there was no champion" in first.message and "perfusion: no data yet" in first.message
    assert champion_of(checkout) == "1"

    # The second: nothing new, and it stops at once.
    second = retrain(checkout)
    assert (second.exit_code, second.state) == (0, "NothingNew"), second.said[-3000:]
    assert "the data are those that the champion, version 1, was trained on" in second.message
    assert "Running stage" not in second.said

    # The third: new subjects, and a longer training, which makes the challenger better.
    deliver(checkout, delivery, people[FIRST:])
    checkout.edit_params(lambda content: update(content["lesion"], {"train": {"epochs": 10}}))
    third = retrain(checkout)
    assert (third.exit_code, third.state) == (0, "Promoted"), third.said[-3000:]
    assert "within the margin of 0.1" in third.message
    assert (champion_of(checkout), champion_of(checkout, "previous")) == ("2", "1")

    # The fourth: labels that someone mirrored. The hold-out's are as they were, so it is found out.
    mislabelled = train_side(checkout)
    mislabel(delivery, mislabelled)
    deliver(checkout, delivery, mislabelled)
    fourth = retrain(checkout)
    assert (fourth.exit_code, fourth.state) == (0, "Kept"), fourth.said[-3000:]
    assert "beyond the margin of 0.1" in fourth.message and champion_of(checkout) == "2"
    artifacts = {found["key"]: found["data"] for found in ask(checkout, "/artifacts/latest/filter", {})}
    assert "- *not worse*, **not met**: " in artifacts["lesion-decision"]
    assert f"{len(mislabelled)} with other files" in artifacts["lesion-decision"]
    assert {"lesion-drift", "lesion-summary"} <= set(artifacts)
    refused = json.loads(checkout.run("reperfuse", "lineage", "models:/lesion/3", "--json").stdout)
    assert refused["decision"]["decision"] == "kept" and refused["decision"]["decision.against"] == "2"
    assert "beyond the margin of 0.1" in refused["decision"]["decision.reason"]

    # One command goes back, and the next retraining leaves it at that.
    assert "version 1 is the champion again" in checkout.run("reperfuse", "rollback", "lesion").stdout
    assert (champion_of(checkout), champion_of(checkout, "previous")) == ("1", "2")


def test_two_retrainings_started_together_take_turns(checkout: Workspace):
    words = [sys.executable, "-m", "prefect", "deployment", "run", "retrain/weekly", "--watch"]
    both = [
        subprocess.Popen(words, cwd=checkout.root, env=services_environment(checkout), stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [one.wait() for one in both] == [0, 0]
    earlier, later = sorted(last_runs(checkout)[:2], key=lambda run: run["start_time"])
    assert later["start_time"] >= earlier["end_time"]
    assert {run["state"]["type"] for run in (earlier, later)} == {"COMPLETED"}
    assert yaml.safe_load((checkout.root / "data/bids/lesion.dvc").read_text())["outs"]
