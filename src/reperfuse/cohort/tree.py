"""A BIDS tree into which subjects go whole or not at all, and the quarantine beside it.

A subject is written in a staging folder of the tree, checked for persons, renamed into place and only then entered
in `manifest.json`. Whatever a killed run leaves is therefore either in the staging folder, which the next run
clears, or a subject without a valid entry, which the next run writes again.

Any process may stage and compare (`staging_folder`, `holds`); one alone moves, enters and refuses (`BidsTree`).
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reperfuse.cohort.participants import participants_text, read_participants
from reperfuse.errors import InputError
from reperfuse.files import atomic_path, read_json, sha256_of, write_json, write_text
from reperfuse.imaging.deidentify import assert_anonymous

STAGING = ".ingest.partial"
"""Folder in the tree for what is not whole yet; git ignores `*.partial/`."""

BIDS_VERSION = "1.10.0"

BIDSIGNORE = "manifest.json\n*_dsc.nii.gz\n*_dsc.json\n"
"""DSC is not a released BIDS suffix, and the manifest is ours."""


MOST_SAVING = 0.1
"""Part of the time that may go into writing the manifest, which grows with the tree: of 10 000 patients it would else
be nearly all of it. What a killed run has not entered yet is written again by the next."""


def staging_folder(staging: Path, participant_id: str) -> Path:
    """A new, empty folder to write one subject's part of the tree into; no two attempts share one."""
    return Path(tempfile.mkdtemp(prefix=f"{participant_id}.", dir=staging))


def holds(
    out: Path,
    participant_id: str,
    entry: Mapping[str, Any] | None,
    *,
    sources: list[str],
    settings: Mapping[str, Any],
    centre: str,
) -> bool:
    """Whether a subject was written from exactly these sources and settings, and lies in the tree undamaged.

    Parameters
    ----------
    entry
        The subject's in the manifest; None where there is none.
    """
    if entry is None or (entry["sources"], entry["settings"], entry["centre"]) != (sources, settings, centre):
        return False
    written = entry["written"]
    lying = {
        path.relative_to(out).as_posix()
        for place in (participant_id, f"derivatives/*/{participant_id}")
        for path in out.glob(f"{place}/**/*")
        if path.is_file()
    }
    return lying == set(written) and all(sha256_of(out / name) == written[name] for name in written)


class BidsTree:
    """The tree at `out`: who is in it, and the ways in and out.

    Holds the manifest and the names of what lies where. One process at a time may have it open to write; the
    ingest stage holds a lock.

    Parameters
    ----------
    out
        Folder of the tree; made, and cleared of what an interrupted run left.
    quarantine
        Folder for originals that were refused, with the reason; mode 0700.
    name
        Title in dataset_description.json.
    derivative
        Name of the folder under `derivatives/`: `lesion` for masks, `reference` for maps.

    Raises
    ------
    InputError
        If `out` cannot be written to, or its manifest or participants.tsv is damaged.
    """

    def __init__(self, out: Path, quarantine: Path, *, name: str, derivative: str):
        self.out = out
        self.quarantine = quarantine
        self.derivative = Path("derivatives") / derivative
        self.staging = out / STAGING
        try:
            for folder in (out, out / self.derivative, quarantine):
                for left in folder.glob(".*.partial"):
                    shutil.rmtree(left)
            self.staging.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"{out} cannot be written to ({error.strerror}): choose another output folder or mend its permissions."
            ) from error
        self._manifest_path = out / "manifest.json"
        content = read_json(self._manifest_path) if self._manifest_path.exists() else {"subjects": {}}
        if not isinstance(content, dict) or not isinstance(content.get("subjects"), dict):
            raise InputError(f"{self._manifest_path} is not a manifest: restore it, or remove it to ingest all again.")
        self.subjects: dict[str, dict[str, Any]] = content["subjects"]
        self._formerly: dict[str, str] = {}
        self._saved_at, self._saving_took = -math.inf, 0.0
        read_participants(out / "participants.tsv")  # a damaged one is refused before anything is written
        for orphan in (out / self.derivative).glob("sub-*"):
            # A run was killed between the two renames of a subject.
            if orphan.name not in self.subjects and not (out / orphan.name).exists():
                shutil.rmtree(orphan)
        raw = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": "raw"}
        made_by = [{"Name": "reperfuse"}]
        derived = {**raw, "Name": f"{name}: {derivative}", "DatasetType": "derivative", "GeneratedBy": made_by}
        _keep_json(out / "dataset_description.json", {**raw, "GeneratedBy": made_by})
        _keep_json(out / self.derivative / "dataset_description.json", derived)
        _keep(out / ".bidsignore", BIDSIGNORE)

    def close(self) -> None:
        """Clear the staging folder, enter who is not entered yet, and bring participants.tsv up to the manifest."""
        shutil.rmtree(self.staging, ignore_errors=True)
        if self._formerly:
            self._save()
        elif self.subjects:
            self._write_participants()

    def twin(self, participant_id: str, sources: list[str]) -> str | None:
        """Another subject of the tree that was made from exactly these sources."""
        same = (name for name, entry in self.subjects.items() if entry["sources"] == sources and name != participant_id)
        return next(same, None)

    def accept(
        self,
        participant_id: str,
        staged: Path,
        *,
        sources: list[str],
        settings: dict[str, Any],
        centre: str,
        repairs: Iterable[str],
        forbidden: Iterable[str],
    ) -> None:
        """Move a staged subject into place, in the stead of an older one, and enter it in the manifest.

        The manifest on disk follows at once where that costs little beside the subjects, else by `close` at last.

        Parameters
        ----------
        staged
            Holds the subject's files under the names they shall have in the tree.
        sources
            Sorted SHA-256 of the files it was made from. Hashes, because paths carry names.
        forbidden
            The person's identifying values.

        Raises
        ------
        InputError
            If a file name, header or sidecar, or the manifest entry would carry one of them; nothing is moved then.
        """
        forbidden = list(forbidden)
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        entry = {
            "centre": centre,
            "settings": settings,
            "sources": sources,
            "repairs": list(repairs),
            "written": {path.relative_to(staged).as_posix(): sha256_of(path) for path in files},
        }
        for path in files:
            assert_anonymous(path, forbidden)
        told = {key: entry[key] for key in ("centre", "settings", "repairs")}
        assert_anonymous({**told, "names": list(entry["written"])}, forbidden)
        # The image goes last and comes off first: a subject that shows is whole.
        main, derived = Path(participant_id), self.derivative / participant_id
        aside = staged / "replaced"
        aside.mkdir()
        for number, part in enumerate((main, derived)):
            if (self.out / part).exists():
                os.replace(self.out / part, aside / str(number))
        for part in (derived, main):
            if (staged / part).exists():
                os.replace(staged / part, self.out / part)
        self._formerly.setdefault(participant_id, self.subjects.get(participant_id, entry)["centre"])
        self.subjects[participant_id] = entry
        if (time.monotonic() - self._saved_at) * MOST_SAVING >= self._saving_took:
            self._save()

    def _save(self) -> None:
        started = time.monotonic()
        # Before the manifest, which alone tells a centre that ingest gave earlier from one written by hand.
        self._write_participants()
        write_json(self._manifest_path, {"subjects": self.subjects})
        self._formerly.clear()
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - started

    def _write_participants(self) -> None:
        path = self.out / "participants.tsv"
        centres = {name: entry["centre"] for name, entry in self.subjects.items()}
        _keep(path, participants_text(*read_participants(path), centres, self._formerly))

    def refuse(self, name: str, files: Iterable[Path], inbox: Path, reason: str) -> None:
        """Copy originals to `quarantine/<name>/` with reason.txt, for their owner's eyes only.

        The same files with the same reason change nothing. The originals stay in the inbox.
        """
        folder = self.quarantine / name
        wanted = {path.relative_to(inbox).as_posix(): path for path in files}
        lying = (
            {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()} if folder.exists() else {}
        )
        text = lying.pop("reason.txt", None)
        if (
            text is not None
            and text.read_text(encoding="utf-8") == reason + "\n"
            and {name.removeprefix("files/"): sha256_of(path) for name, path in lying.items()}
            == {name: sha256_of(path) for name, path in wanted.items()}
        ):
            return
        self._make_private()
        with atomic_path(folder) as inside:
            inside.mkdir(mode=0o700)
            (inside / "reason.txt").write_text(reason + "\n", encoding="utf-8")
            for relative, path in wanted.items():
                copy = inside / "files" / relative
                copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                shutil.copyfile(path, copy)
            for path in inside.rglob("*"):
                path.chmod(0o700 if path.is_dir() else 0o600)

    def _make_private(self) -> None:
        try:
            # The parent is only made private when it is ours: `--quarantine` may name a folder with other things in it.
            self.quarantine.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.quarantine.mkdir(exist_ok=True, mode=0o700)
            self.quarantine.chmod(0o700)
            # Originals must not be committed by accident, wherever the folder was put.
            _keep(self.quarantine / ".gitignore", "*\n")
        except OSError as error:
            raise InputError(
                f"{self.quarantine} cannot be written to ({error.strerror}): choose another quarantine folder."
            ) from error

    def release(self, name: str) -> None:
        """Take a mended subject out of quarantine."""
        shutil.rmtree(self.quarantine / name, ignore_errors=True)


def _keep(path: Path, text: str) -> None:
    """Write `text` unless it is there already, so that a run without news leaves even the clock of a file alone."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _keep_json(path: Path, content: Any) -> None:
    if not path.is_file() or read_json(path) != content:
        write_json(path, content)
