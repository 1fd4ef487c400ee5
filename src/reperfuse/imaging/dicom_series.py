"""Which DICOM series lie under a folder, by the headers of all its files, and which files are no use."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage, ParametricMapStorage, SecondaryCaptureImageStorage

from reperfuse.errors import InputError
from reperfuse.imaging.dicom_images import quiet, tags_named, units_of

DICOM_ENDINGS = (".dcm", ".ima", ".dicom")
"""File names that claim to be DICOM; files with the preamble are DICOM whatever their name."""

_HEADER_TAGS = tags_named(
    "SpecificCharacterSet SOPClassUID ImageType Modality SeriesDescription PatientID PatientName StudyInstanceUID",
    "SeriesInstanceUID Rows Columns SamplesPerPixel NumberOfFrames ImagePositionPatient ImageOrientationPatient",
    "EchoTime DiffusionBValue RescaleType Units RealWorldValueMappingSequence SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence DirectoryRecordSequence",
)


@dataclass(frozen=True)
class Series:
    """The files of one DICOM series and what tells its kind.

    Patient, study and series only tell series apart; they must never be written anywhere.

    Parameters
    ----------
    is_derived
        Computed by software (ImageType DERIVED, a parametric map or a screenshot), not measured.
    is_dynamic
        The same slices were imaged repeatedly, with one echo and no diffusion weighting, as in DSC.
    units
        "s" or "ms" where the header says so.
    n_frames
        How often the slice imaged most was imaged.
    """

    files: tuple[Path, ...]
    patient: str
    study: str
    series: str
    series_description: str
    modality: str
    is_derived: bool
    is_dynamic: bool
    units: str | None
    n_frames: int = 1


@dataclass
class Seen:
    """What the headers of some files of one series say together: small, where the headers themselves are not.

    Description, modality and `is_derived` are those of the first file.
    """

    files: list[Path]
    description: str
    modality: str
    is_derived: bool
    places: Counter[tuple[float, ...]]
    """How often each slice was imaged."""
    echoes: set[str]
    units: set[str | None]
    diffusion: bool
    colour: bool

    def join(self, later: "Seen") -> None:
        """Take in what later files of the same series say."""
        self.files += later.files
        self.places.update(later.places)
        self.echoes |= later.echoes
        self.units |= later.units
        self.diffusion |= later.diffusion
        self.colour |= later.colour


Headers = tuple[dict[tuple[str, str, str], Seen], list[tuple[Path, str]]]
"""(patient, study, series) to what its files say; and the files that claim to be DICOM but are not readable, with a
reason."""


def find_series(folder: Path | str) -> tuple[list[Series], list[tuple[Path, str]]]:
    """Series under a folder in any nesting, and the files that claim to be DICOM but are not readable, with a reason.

    Files are told by their content, not their names. Hidden files, DICOMDIR and files without images (reports,
    presentation states) are left out. The order depends on identifiers and paths alone.

    Raises
    ------
    InputError
        If the folder is missing.
    """
    return joined_series([read_headers(files_under(folder))])


def files_under(folder: Path | str) -> Iterator[Path]:
    """Files in a fixed order, without hidden ones; a single file stands for itself.

    Raises
    ------
    InputError
        If the folder is missing.
    """
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"{folder} is missing: check the path.")
    if folder.is_file():
        yield folder
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def read_headers(paths: Iterable[Path]) -> Headers:
    """What the headers of these files say, series by series."""
    series: dict[tuple[str, str, str], Seen] = {}
    unreadable: list[tuple[Path, str]] = []
    for path in paths:
        try:
            header = _header(path)
        except InputError as error:
            unreadable.append((path, str(error)))
            continue
        if header is None:
            continue
        # Over-anonymised files may lack identifiers; then a folder is a series, and a series a study.
        one = str(header.get("SeriesInstanceUID") or path.parent)
        study = str(header.get("StudyInstanceUID") or one)
        patient = str(header.get("PatientID") or header.get("PatientName") or study).strip()
        seen = _seen(path, header)
        if (patient, study, one) in series:
            series[patient, study, one].join(seen)
        else:
            series[patient, study, one] = seen
    return series, unreadable


def joined_series(parts: Iterable[Headers]) -> tuple[list[Series], list[tuple[Path, str]]]:
    """The series and the unreadable files of all parts, which come in the order of `files_under`."""
    whole: dict[tuple[str, str, str], Seen] = {}
    unreadable: list[tuple[Path, str]] = []
    for series, no_use in parts:
        unreadable += no_use
        for key, seen in series.items():
            if key in whole:
                whole[key].join(seen)
            else:
                whole[key] = seen
    return [_series(key, seen) for key, seen in sorted(whole.items(), key=lambda item: item[0])], unreadable


def _header(path: Path) -> Dataset | None:
    """The header of an image, None for a file that is none and does not claim to be."""
    claims = path.suffix.lower() in DICOM_ENDINGS
    try:
        with open(path, "rb") as file:
            preamble = file.read(132)
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}): mend its permissions.") from error
    has_preamble = preamble[128:] == b"DICM"
    if not (has_preamble or claims):
        return None
    try:
        with quiet():
            header = dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS, force=not has_preamble)
    except Exception as error:  # pydicom raises nearly everything on damaged files
        raise InputError(f"{path} cannot be read as DICOM: export it again.") from error
    if "SOPClassUID" not in header and "Rows" not in header:
        if "DirectoryRecordSequence" in header or path.name.upper() == "DICOMDIR":
            return None
        raise InputError(f"{path} is not a DICOM file or is cut short: export it again or remove it.")
    if "Rows" not in header:
        if header.SOPClassUID in (MRImageStorage, EnhancedMRImageStorage, ParametricMapStorage):
            raise InputError(f"{path} is cut short within its header: export it again.")
        return None
    return header


def _seen(path: Path, header: Dataset) -> Seen:
    """What one header says of its series."""
    kind = [str(word) for word in (header.get("ImageType") or [])]
    diffusion = "DIFFUSION" in kind or float(header.get("DiffusionBValue") or 0) > 0
    places: Counter[tuple[float, ...]] = Counter()
    units: set[str | None] = {units_of(header)}
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if frames:
        shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        for frame in frames:
            place = frame.get("PlanePositionSequence") or shared.get("PlanePositionSequence")
            turn = frame.get("PlaneOrientationSequence") or shared.get("PlaneOrientationSequence")
            diffusion |= "MRDiffusionSequence" in frame and bool(
                float(frame.MRDiffusionSequence[0].get("DiffusionBValue") or 0)
            )
            if place:
                places[_place(place[0], turn[0] if turn else Dataset())] += 1
        for group in (frames[0], shared):
            for name in ("PixelValueTransformationSequence", "RealWorldValueMappingSequence"):
                units.update(units_of(item) for item in group.get(name) or [])
    elif header.get("ImagePositionPatient"):
        places[_place(header, header)] += 1
    return Seen(
        files=[path],
        description=str(header.get("SeriesDescription") or "").strip(),
        modality=str(header.get("Modality", "")),
        is_derived=(header.get("ImageType") or [""])[0] == "DERIVED"
        or header.get("SOPClassUID") in (ParametricMapStorage, SecondaryCaptureImageStorage),
        places=places,
        echoes={str(header.get("EchoTime"))},
        units=units,
        diffusion=diffusion,
        colour=int(header.get("SamplesPerPixel") or 1) != 1,
    )


def _series(key: tuple[str, str, str], seen: Seen) -> Series:
    n_frames = max(seen.places.values(), default=1)
    known_units = sorted(unit for unit in seen.units if unit)
    return Series(
        files=tuple(seen.files),
        patient=key[0],
        study=key[1],
        series=key[2],
        series_description=seen.description,
        modality=seen.modality,
        is_derived=seen.is_derived,
        is_dynamic=n_frames > 1
        and seen.modality == "MR"
        and len(seen.echoes) == 1
        and not seen.diffusion
        and not seen.colour,
        units=known_units[0] if len(known_units) == 1 else None,
        n_frames=n_frames,
    )


def _place(where: Dataset, how: Dataset) -> tuple[float, ...]:
    """Position and orientation to two digits, to count how often a slice was imaged."""
    numbers = [*(where.get("ImagePositionPatient") or []), *(how.get("ImageOrientationPatient") or [])]
    return tuple(round(float(x), 2) + 0.0 for x in numbers)
