"""From any folder to a BIDS tree: who is there, whether they can be used, and why not.

Both arms go the same way. Files are grouped into people, whatever the nesting; each person's sources are hashed and
left alone when the tree holds them already; else they are read, checked, written without anything that identifies
them and moved into place whole. Who fails a check goes to quarantine with one sentence, and the others continue.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from reperfuse.cohort.dsc import write_patient
from reperfuse.cohort.lesion_images import write_subject
from reperfuse.cohort.lesion_names import LesionFile, centre_of, lesion_file
from reperfuse.cohort.tree import BidsTree
from reperfuse.errors import InputError
from reperfuse.files import sha256_of
from reperfuse.imaging.deidentify import pseudonym
from reperfuse.imaging.dicom_read import Series, find_series

MANY_STRAYS = 10
"""More unreadable files than this in one folder are reported as one."""


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
    """

    participant_id: str
    source: Path
    accepted: bool
    reason: str = ""
    unchanged: bool = False


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

    Raises
    ------
    InputError
        If there is nothing to ingest, `out` cannot be written to, or the tree was written under another key.
    """
    inbox, out, quarantine = _places(inbox, out, Path(quarantine) / "perfusion")
    series, unreadable = find_series(inbox)
    if not series and not unreadable:
        raise InputError(f"{inbox} holds no DICOM files: name the folder with the scanner's or the archive's export.")
    patients: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        patients[one.patient].append(one)
    beside, strays = _adopted(patients, unreadable)
    expect(len(patients))
    settings = {"reference_scale": reference_scale, "max_missing_fraction": max_missing_fraction}
    tree = BidsTree(out, quarantine, name="DSC perfusion MRI", derivative="reference")
    try:
        for participant_id, patient in sorted((pseudonym(patient, key), patient) for patient in patients):
            own, broken = patients[patient], beside[patient]
            files = [path for one in own for path in one.files] + broken
            sources = sorted(map(sha256_of, files))
            twin = tree.twin(participant_id, sources)
            if twin is not None:
                raise InputError(
                    f"{out} holds a patient of {inbox} as {twin}, written under another pseudonym key: restore "
                    "that key, or ingest everything into a new folder."
                )

            def write(
                staged: Path, name: str = participant_id, own: list[Series] = own, n: int = len(broken)
            ) -> list[str]:
                notes = write_patient(
                    staged, name, own, reference_scale=reference_scale, max_missing_fraction=max_missing_fraction
                )
                return [*notes, f"{n} unreadable beside the images, left out."] if n else notes

            forbidden = {value for one in own for value in (one.patient, one.study, one.series)}
            yield _taken(
                tree, participant_id, files, sources, inbox, settings=settings, forbidden=forbidden, write=write
            )
        yield from _refused_strays(tree, strays, inbox)
    finally:
        tree.close()


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


def _refused_strays(tree: BidsTree, strays: list[tuple[Path, str]], inbox: Path) -> Iterator[Outcome]:
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
) -> Iterator[Outcome]:
    """Outcomes, one by one, of every subject with an image or a lesion mask under `inbox`.

    Files are known by their names (ATLAS R2.0 and R3.0; R1.1 with one mask per lesion, of which the union is taken;
    ISLES'22 with DWI, ADC and FLAIR, of which any may be missing), whatever folder they lie in. Images go to
    ``sub-*/[ses-*/]{anat,dwi}/``, masks (0 and 1) below ``derivatives/lesion/``. A subject is taken with all its
    sessions or not at all. `expect` is told the number of subjects before the first outcome, for a progress bar.

    Raises
    ------
    InputError
        If no file is named so, or `out` cannot be written to.
    """
    inbox, out, quarantine = _places(inbox, out, Path(quarantine) / "lesion")
    subjects: dict[str, list[LesionFile]] = defaultdict(list)
    for path in sorted(inbox.rglob("*.nii*")):
        found = lesion_file(path) if path.is_file() else None
        if found is not None:
            subjects[found.participant_id].append(found)
    if not subjects:
        raise InputError(
            f"{inbox} holds no images named as in ATLAS (sub-*_T1w.nii.gz and sub-*_mask.nii.gz) or ISLES'22 "
            "(sub-*_dwi.nii.gz and sub-*_msk.nii.gz): name the folder with the unpacked data set."
        )
    expect(len(subjects))
    tree = BidsTree(out, quarantine, name=_title(subjects.values(), out), derivative="lesion")
    try:
        for participant_id, named in sorted(subjects.items()):
            files = [file.path for file in named]
            sources = sorted(map(sha256_of, files))
            twin = tree.twin(participant_id, sources)

            def write(staged: Path, named: list[LesionFile] = named, twin: str | None = twin) -> list[str]:
                if twin is not None:
                    raise InputError(f"The same files are in the tree as {twin}: keep one of the two.")
                return write_subject(staged, named)

            centre = centre_of(participant_id, files[0].relative_to(inbox).parts[:-1])
            yield _taken(tree, participant_id, files, sources, inbox, settings={}, centre=centre, write=write)
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


def _taken(
    tree: BidsTree,
    participant_id: str,
    files: list[Path],
    sources: list[str],
    inbox: Path,
    *,
    settings: dict[str, Any],
    write: Callable[[Path], list[str]],
    forbidden: Iterable[str] = (),
    centre: str = "n/a",
) -> Outcome:
    """What became of one subject: left alone, written, or refused."""
    source = Path(os.path.commonpath([path.parent for path in files]))
    if tree.holds(participant_id, sources, settings, centre):
        tree.release(participant_id)
        return Outcome(participant_id, source, True, " ".join(tree.subjects[participant_id]["repairs"]), unchanged=True)
    try:
        with tree.staged(participant_id) as staged:
            notes = write(staged)
            tree.accept(
                participant_id,
                staged,
                sources=sources,
                settings=settings,
                centre=centre,
                repairs=notes,
                forbidden=forbidden,
            )
    except InputError as error:
        reason = str(error)
        if participant_id in tree.subjects:
            reason += " The version accepted earlier stays in the tree."
        tree.refuse(participant_id, files, inbox, reason)
        return Outcome(participant_id, source, accepted=False, reason=reason)
    tree.release(participant_id)
    return Outcome(participant_id, source, accepted=True, reason=" ".join(notes))
