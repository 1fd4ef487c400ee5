"""From any folder to a BIDS tree: who is there, whether they can be used, and why not.

Both arms go the same way. Files are grouped into people, whatever the nesting; each person's sources are hashed and
left alone when the tree holds them already; else they are read, checked and written without anything that identifies
them. All that may happen in any process (`stages.fanout`). Here, one after the other in the order of their names, they
are moved into place whole. Who fails a check goes to quarantine with one sentence, and the others continue.
"""

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from reperfuse.cohort.dsc import write_patient
from reperfuse.cohort.lesion_images import write_subject
from reperfuse.cohort.lesion_names import LesionFile, centre_of, lesion_file
from reperfuse.cohort.tree import BidsTree, holds, staging_folder
from reperfuse.errors import InputError, WorkerLost
from reperfuse.files import sha256_of
from reperfuse.imaging.deidentify import pseudonym
from reperfuse.imaging.dicom_series import Headers, Series, files_under, joined_series, read_headers

MANY_STRAYS = 10
"""More unreadable files than this in one folder are reported as one."""

HEADERS_AT_ONCE = 500
"""Files whose headers one process reads before it answers: about a second."""

QUIET_S = 3.0
"""Time [s] that a subject's files must have lain untouched: programs that copy pause between files and blocks."""

Each = Callable[[Callable[[Any], Any], Mapping[str, Any]], Iterator[tuple[str, Any]]]
"""``each(function, items)``: name and result of every item, in any order; `WorkerLost` where there is none."""


def in_turn(function: Callable[[Any], Any], items: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and result of one item after the other, in this process."""
    for name, item in items.items():
        yield name, function(item)


@dataclass(frozen=True)
class Outcome:
    """What became of one subject, or of a file that belongs to none.

    Parameters
    ----------
    participant_id
        Name in the tree, or in quarantine.
    source
        Folder or file it came from.
    accepted
        Whether the tree holds it now.
    reason
        One sentence why not, or what was repaired; empty when there is nothing to say.
    unchanged
        Whether the tree held it already, from the same bytes.
    left
        Whether it was neither accepted nor quarantined, and is the next ingest's.
    """

    participant_id: str
    source: Path
    accepted: bool
    reason: str = ""
    unchanged: bool = False
    left: bool = False

    @property
    def name(self) -> str:
        """In a word."""
        if self.accepted:
            return "unchanged" if self.unchanged else "accepted"
        return "left" if self.left else "quarantined"


# ---- perfusion ------------------------------------------------------------------------------------------------------
def ingest_perfusion(
    inbox: Path | str,
    out: Path | str,
    quarantine: Path | str,
    *,
    key: bytes,
    reference_scale: float | None = None,
    max_missing_fraction: float = 0.05,
    expect: Callable[[int], object] = lambda n: None,
    each: Each = in_turn,
) -> Iterator[Outcome]:
    """Outcomes, one by one, of every patient with DICOM files under `inbox`.

    A patient's DSC series becomes ``sub-*/perf/sub-*_dsc.nii.gz`` with its sidecar; a derived Tmax series of the same
    study becomes ``derivatives/reference/sub-*/perf/sub-*_desc-reference_tmax.nii.gz`` in seconds. A patient
    without a Tmax series is accepted.

    Parameters
    ----------
    key
        Secret of the pseudonyms; the same patient gets the same name under the same key only.
    reference_scale
        Seconds per stored unit of the Tmax series, for series that do not say.
    max_missing_fraction
        Slice images that may be missing and are filled with zeros (5 %: Sossin 2021); above it the patient is refused.
    expect
        Told the number of patients before the first outcome, for a progress bar.
    each
        How the headers, and then the patients, are spread over processes. Outcomes and tree do not depend on it.

    Raises
    ------
    InputError
        If there is nothing to ingest, `out` cannot be written to, or the tree was written under another key.
    """
    inbox, out, quarantine = _places(inbox, out, Path(quarantine) / "perfusion")
    began = time.time()
    series, unreadable = _found_series(inbox, each)
    if not series and not unreadable:
        raise InputError(f"{inbox} holds no DICOM files: name the folder with the scanner's or the archive's export.")
    patients: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        patients[one.patient].append(one)
    beside, strays = _adopted(patients, unreadable)
    expect(len(patients))
    settings = {"reference_scale": reference_scale, "max_missing_fraction": max_missing_fraction}
    tree = BidsTree(out, quarantine, name="DSC perfusion MRI", derivative="reference")
    visits = []
    for participant_id, patient in sorted((pseudonym(patient, key), patient) for patient in patients):
        own, broken = patients[patient], beside[patient]
        visits.append(
            Visit(
                participant_id,
                [path for one in own for path in one.files] + broken,
                partial(_patient_written, participant_id, own, len(broken), settings),
                settings=settings,
                forbidden=frozenset(value for one in own for value in (one.patient, one.study, one.series)),
            )
        )
    try:
        for visit, found in _visited(tree, visits, began, each):
            twin = None if isinstance(found, WorkerLost) else tree.twin(visit.participant_id, found.sources)
            if twin is not None:
                raise InputError(
                    f"{out} holds a patient of {inbox} as {twin}, written under another pseudonym key: restore "
                    "that key, or ingest everything into a new folder."
                )
            yield _taken(tree, visit, found, inbox)
        yield from _refused_strays(tree, strays, inbox, began)
    finally:
        tree.close()


def _found_series(inbox: Path, each: Each) -> tuple[list[Series], list[tuple[Path, str]]]:
    """As `find_series`, the files dealt out in portions."""
    paths = list(files_under(inbox))
    portions = [paths[at : at + HEADERS_AT_ONCE] for at in range(0, len(paths), HEADERS_AT_ONCE)]
    parts = _in_order(each, read_headers, {f"{portion[0]} and the files behind it": portion for portion in portions})

    def known() -> Iterator[Headers]:
        for part in parts:
            if isinstance(part, WorkerLost):
                raise part  # who is there must be known before anybody is taken
            yield part

    return joined_series(known())


def _patient_written(
    participant_id: str, own: list[Series], n_broken: int, settings: Mapping[str, Any], staged: Path
) -> list[str]:
    notes = write_patient(staged, participant_id, own, **settings)
    return [*notes, f"{n_broken} unreadable beside the images, left out."] if n_broken else notes


def _adopted(
    patients: dict[str, list[Series]], unreadable: list[tuple[Path, str]]
) -> tuple[dict[str, list[Path]], list[tuple[Path, str]]]:
    """Unreadable files by the only patient in whose folder they lie, and those that belong to nobody."""
    living: dict[Path, set[str]] = defaultdict(set)
    for patient, own in patients.items():
        for one in own:
            for path in one.files:
                living[path.parent].add(patient)
    beside: dict[str, list[Path]] = defaultdict(list)
    strays = []
    for path, sentence in unreadable:
        if len(living[path.parent]) == 1:
            beside[next(iter(living[path.parent]))].append(path)
        else:
            strays.append((path, sentence))
    return beside, strays


def _refused_strays(tree: BidsTree, strays: list[tuple[Path, str]], inbox: Path, began: float) -> Iterator[Outcome]:
    """Outcomes of unreadable files that belong to nobody; a folder full of them is one."""

    def name_of(place: Path) -> str:
        return "unreadable-" + blake2b(os.fsencode(place), digest_size=5).hexdigest()

    by_folder: dict[Path, list[tuple[Path, str]]] = defaultdict(list)
    for path, sentence in strays:
        by_folder[path.parent].append((path, sentence))
    refused = set()
    for folder, found in sorted(by_folder.items()):
        several = len(found) > MANY_STRAYS
        for group in [found] if several else [[one] for one in found]:
            place = folder if several else group[0][0]
            reason = group[0][1] if len(group) == 1 else f"{len(group)} files in {folder} are unreadable: {group[0][1]}"
            name = name_of(place)
            refused.add(name)
            if _still_changes([path for path, _ in group], began):
                yield Outcome(name, place, accepted=False, reason=_being_written(place), left=True)
                continue
            tree.refuse(name, [path for path, _ in group], inbox, reason)
            yield Outcome(name, place, accepted=False, reason=reason)
    # What lay here unreadable in an earlier run and reads now has left the list above.
    for kept in sorted(tree.quarantine.glob("unreadable-*/files")):
        files = [path.relative_to(kept) for path in kept.rglob("*") if path.is_file()]
        places = {inbox / file for file in files} | {(inbox / file).parent for file in files}
        from_here = kept.parent.name in {name_of(place) for place in places}
        if from_here and kept.parent.name not in refused and all((inbox / file).exists() for file in files):
            tree.release(kept.parent.name)


# ---- lesion ---------------------------------------------------------------------------------------------------------
def ingest_lesion(
    inbox: Path | str,
    out: Path | str,
    quarantine: Path | str,
    *,
    expect: Callable[[int], object] = lambda n: None,
    each: Each = in_turn,
) -> Iterator[Outcome]:
    """Outcomes, one by one, of every subject with an image or a lesion mask under `inbox`.

    Files are known by their names (ATLAS R2.0 and R3.0; R1.1 with one mask per lesion, of which the union is taken;
    ISLES'22 with DWI, ADC and FLAIR, of which any may be missing), whatever folder they lie in. Images go to
    ``sub-*/[ses-*/]{anat,dwi}/``, masks (0 and 1) below ``derivatives/lesion/``. A subject is taken with all its
    sessions or not at all. `expect` is told the number of subjects before the first outcome, for a progress bar; `each`
    spreads the subjects over processes, and neither outcomes nor tree depend on it.

    Raises
    ------
    InputError
        If no file is named so, or `out` cannot be written to.
    """
    inbox, out, quarantine = _places(inbox, out, Path(quarantine) / "lesion")
    began = time.time()
    subjects: dict[str, list[LesionFile]] = defaultdict(list)
    for path in sorted(inbox.rglob("*.nii*")):
        named = lesion_file(path) if path.is_file() else None
        if named is not None:
            subjects[named.participant_id].append(named)
    if not subjects:
        raise InputError(
            f"{inbox} holds no images named as in ATLAS (sub-*_T1w.nii.gz and sub-*_mask.nii.gz) or ISLES'22 "
            "(sub-*_dwi.nii.gz and sub-*_msk.nii.gz): name the folder with the unpacked data set."
        )
    expect(len(subjects))
    tree = BidsTree(out, quarantine, name=_title(subjects.values(), out), derivative="lesion")
    visits = [
        Visit(
            participant_id,
            [file.path for file in own],
            partial(write_subject, files=own),
            centre=centre_of(participant_id, own[0].path.relative_to(inbox).parts[:-1]),
        )
        for participant_id, own in sorted(subjects.items())
    ]
    try:
        for visit, found in _visited(tree, visits, began, each):
            if isinstance(found, Found) and not found.left:
                twin = tree.twin(visit.participant_id, found.sources)
                if twin is not None and not found.held:
                    found = replace(found, refusal=f"The same files are in the tree as {twin}: keep one of the two.")
            yield _taken(tree, visit, found, inbox)
    finally:
        tree.close()


def _title(subjects: Iterable[list[LesionFile]], out: Path) -> str:
    """What the tree shows, counting what it holds already: the title must not change back and forth."""
    named = (file.modality for files in subjects for file in files)
    if all(modality in (None, "t1w") for modality in named) and not any(out.glob("sub-*/**/dwi")):
        return "Stroke lesions on T1w MRI"
    return "Stroke lesions on MRI"


# ---- both arms ------------------------------------------------------------------------------------------------------
def _places(inbox: Path | str, out: Path | str, quarantine: Path) -> tuple[Path, Path, Path]:
    """The three folders, resolved; refused when the inbox is missing, empty, or not apart from the others."""
    inbox, out, quarantine = Path(inbox).resolve(), Path(out).resolve(), quarantine.resolve()
    if not inbox.is_dir():
        raise InputError(f"{inbox} is not a folder: name the folder with the images.")
    if not any(path.is_file() for path in inbox.rglob("*")):
        raise InputError(f"{inbox} is empty: put images into it, or try `reperfuse demo-data {inbox.name}`.")
    for folder in (out, quarantine):
        if folder.is_relative_to(inbox) or inbox.is_relative_to(folder):
            raise InputError(f"{folder} and the inbox {inbox} lie within one another: keep them apart.")
    return inbox, out, quarantine


@dataclass(frozen=True)
class Visit:
    """One subject on its way in: all that any process needs to read, check and write it."""

    participant_id: str
    files: list[Path]
    write: Callable[[Path], list[str]]
    """Writes the subject's part of the tree into a folder; notes on what was repaired."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    centre: str = "n/a"
    forbidden: frozenset[str] = frozenset()
    """The person's identifying values."""

    @property
    def source(self) -> Path:
        """The folder that all its files lie in."""
        return Path(os.path.commonpath([path.parent for path in self.files]))


@dataclass(frozen=True)
class Found:
    """What a process says of a subject it visited: held, left or refused, else staged."""

    sources: list[str] = field(default_factory=list)
    """Sorted SHA-256 of its files."""
    staged: Path | None = None
    notes: list[str] = field(default_factory=list)
    held: bool = False
    """The tree has it from the same bytes."""
    refusal: str = ""
    left: str = ""


def _visited(
    tree: BidsTree, visits: list[Visit], began: float, each: Each
) -> Iterator[tuple[Visit, Found | WorkerLost]]:
    """Every subject with what was found, in the order of `visits`."""
    items = {visit.participant_id: (visit, tree.subjects.get(visit.participant_id)) for visit in visits}
    return zip(visits, _in_order(each, partial(_visit, tree.out, tree.staging, began), items), strict=True)


def _in_order(each: Each, function: Callable[[Any], Any], items: Mapping[str, Any]) -> Iterator[Any]:
    """Results in the order of `items`, whatever order they come in."""
    early: dict[str, Any] = {}
    results = each(function, items)
    for name in items:
        while name not in early:
            early.update([next(results)])
        yield early.pop(name)


def _visit(out: Path, staging: Path, began: float, item: tuple[Visit, Mapping[str, Any] | None]) -> Found:
    """What is there of one subject, staged if the tree does not hold it and nothing speaks against it."""
    visit, entry = item
    try:
        before = _stamps(visit.files)
        sources = sorted(map(sha256_of, visit.files))
        how = {"sources": sources, "settings": visit.settings, "centre": visit.centre}
        if holds(out, visit.participant_id, entry, **how):  # type: ignore[arg-type]
            return Found(sources, held=True)
        found = _staged(visit, staging, sources)
        if not _still_changes(visit.files, began, before):
            return found
        if found.staged is not None:
            shutil.rmtree(found.staged)
    except FileNotFoundError:
        if all(path.exists() for path in visit.files):
            raise
    return Found(left=_being_written(visit.source))


def _staged(visit: Visit, staging: Path, sources: list[str]) -> Found:
    staged = staging_folder(staging, visit.participant_id)
    try:
        return Found(sources, staged, visit.write(staged))
    except InputError as error:
        shutil.rmtree(staged)
        return Found(sources, refusal=str(error))
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _being_written(place: Path) -> str:
    return f"{place} is still being written: ingest again when it is whole."


def _stamps(files: Iterable[Path]) -> dict[Path, tuple[int, int, int]]:
    """Size and times of change of files and of the folders they lie in, which change when a file joins."""
    files = set(files)
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ctime_ns)
        for path in files | {path.parent for path in files}
    }


def _still_changes(files: Iterable[Path], began: float, before: dict[Path, tuple[int, int, int]] | None = None) -> bool:
    """Whether somebody is writing these files, or more beside them.

    They are if anything has changed since ingest `began` to look, or `before` (where clocks of servers disagree), and
    if what had changed shortly before that goes on changing. ctime is asked, which no program that copies sets back.
    """
    now = _stamps(files)
    newest = max(ctime for _, _, ctime in now.values()) / 1e9
    if newest > began or (before is not None and now != before):
        return True
    wait = newest + QUIET_S - time.time()
    if wait <= 0:
        return False
    time.sleep(wait)
    return _stamps(files) != now


def _taken(tree: BidsTree, visit: Visit, found: Found | WorkerLost, inbox: Path) -> Outcome:
    """What became of one subject: left alone, left for the next ingest, moved into place, or refused."""
    name, source = visit.participant_id, visit.source
    earlier = " The version accepted earlier stays in the tree." if name in tree.subjects else ""
    if isinstance(found, WorkerLost) or found.left:
        reason = str(found) if isinstance(found, WorkerLost) else found.left
        return Outcome(name, source, accepted=False, reason=reason + earlier, left=True)
    if found.held:
        tree.release(name)
        return Outcome(name, source, True, " ".join(tree.subjects[name]["repairs"]), unchanged=True)
    refusal = found.refusal
    if found.staged is not None:
        try:
            if not refusal:
                tree.accept(
                    name,
                    found.staged,
                    sources=found.sources,
                    settings=dict(visit.settings),
                    centre=visit.centre,
                    repairs=found.notes,
                    forbidden=visit.forbidden,
                )
        except InputError as error:
            refusal = str(error)
        finally:
            shutil.rmtree(found.staged, ignore_errors=True)
    if refusal:
        tree.refuse(name, visit.files, inbox, refusal + earlier)
        return Outcome(name, source, accepted=False, reason=refusal + earlier)
    tree.release(name)
    return Outcome(name, source, accepted=True, reason=" ".join(found.notes))
