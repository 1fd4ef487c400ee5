"""What goes wrong around an ingest: copies under way, full disks, workers that die, Ctrl-C in a terminal."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
from test_inbox import AFFINE, BERT, Place, bytes_of, clocks_of, write_patient, write_subject

from reperfuse.cohort import inbox as inbox_module
from reperfuse.cohort.inbox import ingest_lesion, ingest_perfusion
from reperfuse.errors import WorkerLost
from reperfuse.imaging.deidentify import pseudonym
from reperfuse.stages.fanout import Runner
from reperfuse.stages.ingest import ingest

KEY = b"a key that is 32 bytes, or so..."


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(inbox_module, "QUIET_S", 0.0)
    return Place(tmp_path)


# ---- a copy that is under way ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("joins", [False, True], ids=["a file that grows", "a file that joins"])
def test_a_patient_still_being_written_is_left_and_taken_whole_by_the_next_ingest(place: Place, joins: bool) -> None:
    files = write_patient(place.inbox / "a", slices=5)
    write_patient(place.inbox / "b", BERT)
    whole = files[-1].read_bytes()
    files[-1].unlink() if joins else files[-1].write_bytes(whole[: len(whole) // 2])

    def goes_on(n: int) -> None:  # ingest has looked, and has read nobody yet
        files[-1].write_bytes(whole)

    outcomes = {outcome.participant_id: outcome for outcome in place.perfusion(expect=goes_on)}
    anna, bert = (outcomes[pseudonym(who, KEY)] for who in ("MRN-4711-A", BERT["patient_id"]))
    assert (bert.name, anna.name) == ("accepted", "left") and "is still being written: ingest again" in anna.reason
    assert place.ids() == [bert.participant_id] and place.quarantined() == []
    again = {outcome.participant_id: outcome for outcome in place.perfusion()}
    assert (again[anna.participant_id].name, again[anna.participant_id].reason) == ("accepted", "")
    assert again[bert.participant_id].name == "unchanged"


def test_a_file_that_grows_while_it_is_read_is_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    anat = write_subject(place.inbox)
    read = inbox_module.write_subject

    def slow(folder: Path, files: Any) -> list[str]:
        notes = read(folder, files)
        with open(next(anat.glob("*T1w*")), "ab") as file:
            file.write(b"more")
        return notes

    monkeypatch.setattr(inbox_module, "write_subject", slow)
    # A file server whose clock is behind: nothing seems to have changed since ingest began.
    monkeypatch.setattr(inbox_module.time, "time", lambda: 4e9)
    (outcome,) = place.lesion()
    assert outcome.name == "left" and place.ids() == [] and not list(place.out.glob("*.partial/*"))


def test_a_copy_that_pauses_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    anat = write_subject(place.inbox)
    monkeypatch.setattr(inbox_module, "QUIET_S", 1.0)
    threading.Timer(0.5, lambda: (anat / "next_T1w.nii.gz").write_bytes(b"arrives")).start()
    (outcome,) = place.lesion()
    assert outcome.name == "left"


def test_a_copy_that_has_just_ended_is_taken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "QUIET_S", 0.5)
    write_subject(place.inbox)
    began = time.monotonic()
    (outcome,) = place.lesion()
    assert outcome.name == "accepted" and time.monotonic() - began > 0.4


def test_a_header_still_being_written_is_not_quarantined(place: Place) -> None:
    write_patient(place.inbox / "a")
    stray = place.inbox / "b.dcm"
    stray.write_bytes(b"\0" * 64)
    outcomes = place.perfusion(expect=lambda n: stray.write_bytes(b"\0" * 100))
    assert [outcome.name for outcome in outcomes] == ["accepted", "left"] and place.quarantined() == []


def test_a_subject_that_vanishes_while_it_is_read_is_left(place: Place) -> None:
    anat = write_subject(place.inbox)
    outcomes = list(
        ingest_lesion(place.inbox, place.out, place.quarantine, expect=lambda n: next(anat.glob("*mask*")).unlink())
    )
    assert [outcome.name for outcome in outcomes] == ["left"]


# ---- another order, and processes that die --------------------------------------------------------------------------
def backwards(function: Any, items: Any) -> Any:
    for name in reversed(items):
        yield name, function(items[name])


@pytest.mark.parametrize("arm", ["lesion", "perfusion"])
def test_the_tree_does_not_depend_on_who_is_ready_first(
    place: Place, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "HEADERS_AT_ONCE", 7)
    bring(place.inbox, arm)
    choice: dict[str, Any] = {"key": KEY} if arm == "perfusion" else {}
    run = ingest_perfusion if arm == "perfusion" else ingest_lesion
    found = [
        list(run(place.inbox, place.out / way, place.quarantine / way, each=each, **choice))  # type: ignore[operator]
        for way, each in (("turn", inbox_module.in_turn), ("backwards", backwards))
    ]
    assert found[0] == found[1] and {outcome.name for outcome in found[0]} == {"accepted", "quarantined"}
    for folder in (place.out, place.quarantine):
        assert bytes_of(folder / "turn") == bytes_of(folder / "backwards")


def test_a_subject_whose_workers_died_is_left_and_the_others_are_taken(place: Place) -> None:
    for number in (1, 2):
        write_subject(place.inbox, f"sub-r001s00{number}")

    def each(function: Any, items: Any) -> Any:
        yield "sub-r001s001", WorkerLost("sub-r001s001: 4 worker processes died over it.")
        yield "sub-r001s002", function(items["sub-r001s002"])

    outcomes = list(ingest_lesion(place.inbox, place.out, place.quarantine, each=each))
    assert [outcome.name for outcome in outcomes] == ["left", "accepted"]
    assert outcomes[0].reason.startswith("sub-r001s001: 4 worker processes died")


def bring(inbox: Path, arm: str) -> None:
    """Some who are accepted, some who are not; of two twins the first by name is taken."""
    if arm == "perfusion":
        for n in range(4):
            write_patient(
                inbox / str(n), {**BERT, "patient_id": f"MRN-{n}"}, frames=8 if n == 1 else 12, reference=None
            )
        (inbox / "notes.dcm").write_text("call the ward")
        return
    for number in range(1, 5):
        write_subject(inbox, f"sub-r001s00{number}", mask=np.full((6, 7, 8), 3) if number == 2 else None)
    for path in (inbox / "sub-r001s001" / "ses-1" / "anat").iterdir():
        (inbox / path.name.replace("s001_", "s009_")).write_bytes(path.read_bytes())


# ---- a disk that is full --------------------------------------------------------------------------------------------
COMMAND = """
import resource, sys
from reperfuse.cli import main
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""


def command(root: Path, *words: str, limit: int = 0) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", COMMAND, str(limit), "ingest", str(root / "inbox"), "--arm", "lesion", *words]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(argv, cwd=root, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """A workspace with a small subject, and a large one behind it."""
    write_subject(tmp_path / "inbox")
    noise = np.random.default_rng(0).random((48, 48, 48), np.float32)
    write_subject(tmp_path / "inbox", "sub-r001s002", t1w=noise, mask=np.zeros((48, 48, 48)))
    return tmp_path


def entered(out: Path) -> list[str]:
    return sorted(json.loads((out / "manifest.json").read_text())["subjects"])


def assert_one_sentence_then_whole(growing: Path, out: Path, ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    (sentence,) = [line for line in ended.stderr.splitlines() if line.startswith("reperfuse: ")]
    assert "sub-r001s002_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz" in sentence and "make room" in sentence
    assert sorted(path.name for path in out.glob("sub-*")) == entered(out) == ["sub-r001s001"]
    assert not (growing / "quarantine/lesion/sub-r001s002").exists()


def test_a_file_larger_than_the_system_allows_is_one_sentence_and_the_next_run_completes(growing: Path) -> None:
    out = growing / "tree"
    assert_one_sentence_then_whole(growing, out, command(growing, "--out", "tree", limit=100_000))
    before = clocks_of(out / "sub-r001s001")
    assert command(growing, "--out", "tree").returncode == 0 and entered(out) == ["sub-r001s001", "sub-r001s002"]
    assert command(growing, "--out", "unbroken").returncode == 0
    assert bytes_of(out) == bytes_of(growing / "unbroken") and clocks_of(out / "sub-r001s001") == before


def test_a_disk_that_is_full_is_one_sentence_and_the_next_run_completes(growing: Path) -> None:
    disk = growing / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        assert_one_sentence_then_whole(growing, disk / "tree", command(growing, "--out", "disk/tree"))
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert command(growing, "--out", "disk/tree").returncode == 0
        assert entered(disk / "tree") == ["sub-r001s001", "sub-r001s002"]
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- the verb -------------------------------------------------------------------------------------------------------
def test_the_table_is_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "QUIET_S", 0.0)
    bring(tmp_path / "inbox", "lesion")
    assert ingest(tmp_path / "inbox", arm="lesion", root=tmp_path, table=tmp_path / "table.json") == 0
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["outcome"] for row in rows] == ["accepted", "quarantined", "accepted", "accepted", "quarantined"]
    assert rows[0]["participant"] == "sub-r001s001" and "holds the value 3" in rows[1]["why"]


def test_several_workers_of_one_process_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="add --runner dask"):
        ingest(tmp_path, arm="lesion", root=tmp_path, runner=Runner(workers=2))


@pytest.mark.services
@pytest.mark.parametrize("arm", ["lesion", "perfusion"])
def test_several_processes_write_the_same_tree(tmp_path: Path, arm: str) -> None:
    bring(tmp_path / "inbox", arm)
    for way, runner in (("one", Runner()), ("two", Runner("dask", 2))):
        ingest(tmp_path / "inbox", arm=arm, out=way, quarantine=f"q-{way}", root=tmp_path, runner=runner)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert bytes_of(tmp_path / "q-one") == bytes_of(tmp_path / "q-two")


def started(root: Path, *words: str) -> subprocess.Popen[str]:
    """The verb over processes, which takes a while: 24 subjects of 1.8 million voxels."""
    rng = np.random.default_rng(0)
    for n in range(24):
        t1w = nib.Nifti1Image(rng.integers(0, 900, (120, 120, 120)).astype(np.int16) + n, AFFINE)
        anat = root / "inbox" / f"sub-r001s{n:03d}"
        anat.mkdir(parents=True)
        nib.save(t1w, anat / f"{anat.name}_ses-1_T1w.nii.gz")
        mask = nib.Nifti1Image(np.zeros((120, 120, 120), np.uint8), AFFINE)
        nib.save(mask, anat / f"{anat.name}_ses-1_label-L_desc-T1lesion_mask.nii.gz")
    argv = [sys.executable, "-m", "reperfuse", "ingest", "inbox", "--arm", "lesion", *words]
    return subprocess.Popen(
        [*argv, "--runner", "dask", "--workers", "2"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def at_work(process: subprocess.Popen[str], out: Path) -> list[psutil.Process]:
    """The worker processes, once some subjects are there and others are not."""
    while len(list(out.glob("sub-*"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    return [one for one in family if "spawn_main" in " ".join(one.cmdline()) and one.memory_info().rss > 6e7]


@pytest.mark.services
def test_a_worker_killed_in_the_middle_costs_nobody_anything(tmp_path: Path) -> None:
    process = started(tmp_path, "--out", "tree")
    victims = at_work(process, tmp_path / "tree")
    victims[0].send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "24 of 24 accepted" in said, said
    assert len(victims) >= 2 and not list((tmp_path / "tree").glob(".*.partial"))
    ingest(tmp_path / "inbox", arm="lesion", out="unbroken", root=tmp_path)
    assert bytes_of(tmp_path / "tree") == bytes_of(tmp_path / "unbroken")


@pytest.mark.services
def test_ctrl_c_in_a_terminal_ends_all_processes_and_the_next_ingest_completes(tmp_path: Path) -> None:
    process = started(tmp_path, "--out", "tree")
    family = [*at_work(process, tmp_path / "tree"), psutil.Process(process.pid)]
    for one in family:  # as a terminal does
        one.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped by Ctrl-C" in said and "Traceback" not in said, said
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert ingest(tmp_path / "inbox", arm="lesion", out="tree", root=tmp_path) == 0
    ingest(tmp_path / "inbox", arm="lesion", out="unbroken", root=tmp_path)
    assert bytes_of(tmp_path / "tree") == bytes_of(tmp_path / "unbroken")
