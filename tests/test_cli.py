"""What a new user does wrong: one clear sentence, exit 2 (130 for Ctrl-C), no traceback, nothing half-written."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Workspace


def reperfuse(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reperfuse", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
    )


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a refusal."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("reperfuse: "), done.stderr
    return lines[0]


def test_help_answers_without_loading_a_heavy_library() -> None:
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "reperfuse", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Research use only" in said.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in said.stderr.splitlines()}
    assert not loaded & {"torch", "mlflow", "optuna", "lightning", "monai", "pandas", "scipy", "matplotlib"}


@pytest.mark.parametrize("verb", ["ingest", "tune", "resolution", "demo-data", "maps", "experiment", "pretrain"])
def test_every_verb_has_help(verb: str, tmp_path: Path) -> None:
    assert reperfuse(verb, "--help", cwd=tmp_path).returncode == 0


def test_a_misspelt_parameter_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("n_folds: 3", "n_fold: 3", 1)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    said = sentence(reperfuse("folds", "lesion", cwd=tmp_path))
    assert "lesion.folds.n_fold" in said and "did you mean n_folds?" in said


def test_a_parameter_out_of_bounds_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("lesion: {folds: {holdout_fraction: 1.5}}", encoding="utf-8")
    assert "lesion.folds.holdout_fraction" in sentence(reperfuse("folds", "lesion", cwd=tmp_path))


def test_broken_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("lesion: [", encoding="utf-8")
    assert "params.yaml is not valid YAML" in sentence(reperfuse("folds", "lesion", cwd=tmp_path))


@pytest.mark.parametrize(
    "verb", ["cohort", "preprocess", "folds", "tune", "train", "evaluate", "resolution", "report", "promote"]
)
def test_a_stage_before_its_turn_says_what_to_run(verb: str, tmp_path: Path) -> None:
    said = sentence(reperfuse(verb, "perfusion", cwd=tmp_path))
    assert "run" in said


def test_an_empty_inbox_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    assert "inbox" in sentence(reperfuse("ingest", "inbox", "--arm", "lesion", cwd=tmp_path))
    assert not (tmp_path / "data").exists()


def test_a_busy_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert str(port) in sentence(reperfuse("ui", "--port", str(port), cwd=tmp_path))


def test_an_unwritable_output_folder_is_refused(tmp_path: Path) -> None:
    # A file where the folder should be cannot be written into, not even by root.
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "note.dcm").write_text("not an image")
    (tmp_path / "closed").write_text("a file")
    done = reperfuse("ingest", "inbox", "--arm", "perfusion", "--out", "closed/bids", cwd=tmp_path)
    assert "closed" in sentence(done)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = reperfuse("folds", "lesion", "--debug", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" in done.stderr


def test_an_unknown_model_is_refused(finished: Workspace) -> None:
    done = finished.run(
        "reperfuse", "resolution", "lesion", "--model", "models:/lesion@nobody", "--out", "study", check=False
    )
    assert "models:/lesion@nobody" in sentence(done)


def test_ctrl_c_ends_with_130_and_leaves_no_half_file(ingested: Workspace, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reperfuse", "ingest", str(ingested.root / "inbox" / "perfusion")]
    process = subprocess.Popen(
        [*command, "--arm", "perfusion"], cwd=tmp_path, env=ingested.environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "data").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said and "Ctrl-C" in said
    tree = tmp_path / "data" / "bids" / "perfusion"
    whole = {path.name for path in tree.glob("sub-*")}
    recorded = (tree / "manifest.json").read_text(encoding="utf-8") if (tree / "manifest.json").exists() else ""
    assert all((tree / name / "perf" / f"{name}_dsc.nii.gz").exists() for name in whole)
    assert all(name in whole for name in re.findall(r"sub-[0-9a-f]{10}", recorded))
