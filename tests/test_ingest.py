"""The verb: one table, one exit status, and a tree under DVC."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock

from reperfuse.errors import InputError
from reperfuse.stages.ingest import ingest


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("reperfuse.cohort.inbox.QUIET_S", 0.0)
    anat = tmp_path / "inbox" / "R001"
    anat.mkdir(parents=True)
    for name, value in (("sub-r001s001", 1), ("sub-r001s002", 3)):
        t1w = np.arange(336, dtype=np.int16).reshape(6, 7, 8) + ord(name[-1])
        nib.save(nib.Nifti1Image(t1w, np.eye(4)), anat / f"{name}_ses-1_T1w.nii.gz")
        mask = nib.Nifti1Image(np.full((6, 7, 8), value, np.uint8), np.eye(4))
        nib.save(mask, anat / f"{name}_ses-1_label-L_desc-T1lesion_mask.nii.gz")
    return tmp_path


def remove(root, name):
    for path in (root / "inbox").rglob(f"{name}*"):
        path.unlink()


def test_the_table_says_who_came_through_and_why_not(root, capsys):
    assert ingest(root / "inbox", arm="lesion", root=root) == 0
    said = capsys.readouterr().out
    assert "sub-r001s001" in said
    assert "accepted" in said
    assert "quarantined" in said
    assert "holds the value 3" in said
    assert "1 of 2 accepted" in said
    assert "not versioned" in said
    assert (root / "data/bids/lesion/sub-r001s001").is_dir()
    assert (root / "quarantine/lesion/sub-r001s002/reason.txt").is_file()
    assert ingest(root / "inbox", arm="lesion", root=root) == 0
    assert "unchanged" in capsys.readouterr().out


def test_nobody_accepted_is_exit_status_2(root):
    remove(root, "sub-r001s001")
    assert ingest(root / "inbox", arm="lesion", root=root) == 2


def test_the_tree_is_added_to_dvc_and_a_second_run_changes_no_byte(root, capsys):
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    ingest(root / "inbox", arm="lesion", root=root)
    assert "versioned by DVC" in capsys.readouterr().out
    tracked = root / "data/bids/lesion.dvc"
    first = tracked.read_bytes()
    assert b"md5" in first
    ingest(root / "inbox", arm="lesion", root=root)
    assert tracked.read_bytes() == first


def test_a_centre_filled_in_by_hand_is_versioned_by_the_next_ingest(root, capsys):
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    ingest(root / "inbox", arm="lesion", root=root)
    tracked, table = root / "data/bids/lesion.dvc", root / "data/bids/lesion/participants.tsv"
    first, by_hand = tracked.read_bytes(), table.read_text().replace("R001", "Basel")
    table.write_text(by_hand)
    assert ingest(root / "inbox", arm="lesion", root=root) == 0
    assert "unchanged" in capsys.readouterr().out
    assert tracked.read_bytes() != first
    assert table.read_text() == by_hand


def test_what_dvc_refuses_is_said_in_one_sentence(root):
    (root / ".dvc").mkdir()  # no git beside it
    with pytest.raises(InputError, match="`dvc add` refused it"):
        ingest(root / "inbox", arm="lesion", root=root)


def test_a_tree_outside_the_repository_is_written_but_not_versioned(root, capsys):
    (root / "work").mkdir()
    (root / "work" / ".dvc").mkdir()
    assert ingest(root / "inbox", arm="lesion", out=root / "elsewhere", root=root / "work") == 0
    assert "not versioned" in capsys.readouterr().out


def test_two_ingests_at_once_are_one_too_many(root):
    (root / ".reperfuse").mkdir()
    with FileLock(root / ".reperfuse" / "ingest.lock"), pytest.raises(InputError, match="Another ingest is running"):
        ingest(root / "inbox", arm="lesion", root=root)
    assert ingest(root / "inbox", arm="lesion", root=root) == 0


@pytest.mark.parametrize(
    ("inbox", "choice", "sentence"),
    [
        ("missing", {"arm": "lesion"}, "is not a folder"),
        ("inbox", {"arm": "lesoin"}, "choose lesion or perfusion"),
        ("inbox", {"arm": "perfusion"}, "holds no DICOM"),
        ("inbox", {"arm": "lesion", "reference_scale": 1.0}, "perfusion arm"),
    ],
)
def test_what_cannot_be_ingested_is_one_sentence(root, inbox, choice, sentence):
    with pytest.raises(InputError, match=sentence):
        ingest(root / inbox, root=root, **choice)
    assert not (root / "data").exists()


def test_a_workspace_of_somebody_else_is_one_sentence(root):
    (root / ".reperfuse").write_text("a file")
    with pytest.raises(InputError, match="cannot be written to"):
        ingest(root / "inbox", arm="lesion", root=root)


def test_paths_are_taken_from_the_root(root, monkeypatch):
    (root / "deep").mkdir()
    monkeypatch.chdir(root)
    assert ingest(Path("inbox"), arm="lesion", out="tree", quarantine="refused", root=root) == 0
    assert (root / "tree/participants.tsv").is_file()
    assert (root / "refused/lesion/sub-r001s002").is_dir()
