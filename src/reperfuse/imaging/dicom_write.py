"""MR images as a scanner leaves them: a DICOM file per slice and frame, each vendor's habits, same bytes again.

The persons in these files are invented; their names, dates and places are there so that de-identification has
something to strip.
"""

import hashlib
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from reperfuse.files import atomic_path
from reperfuse.imaging.volume import Volume

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM counts towards left and posterior, NIfTI towards right and anterior (PS3.3 C.7.6.2.1.1)."""

IMPLEMENTATION_UID = "2.25.268141927409716829476025498311271413761"
"""Who wrote the file; fixed, so that another version of the writing library gives the same bytes."""

BIRTH_DATE = date(1950, 2, 1)
STARTED = datetime(2024, 3, 14, 10, 15, 0)
INSTITUTION = "Invented Infirmary"
"""Defaults of the invented person and visit."""


def uid_for(*parts: str | int) -> str:
    """A DICOM UID that depends on `parts` alone: 2.25 and a 128-bit number (PS3.5 B.2), here from a hash.

    >>> uid_for("study", "P001", 0) == uid_for("study", "P001", 0) != uid_for("study", "P002", 0)
    True
    """
    text = "\x1f".join(str(part) for part in parts)
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
    return f"2.25.{number}"


def study_uid_for(patient_id: str, seed: int = 0) -> str:
    """The StudyInstanceUID that `write_dsc_series` gives when none is passed."""
    return uid_for("study", patient_id, seed)


def write_dsc_series(
    folder: Path | str,
    volume: Volume,
    *,
    patient_id: str,
    patient_name: str = "",
    birth_date: date = BIRTH_DATE,
    institution: str = INSTITUTION,
    habits: str = "philips",
    study_uid: str | None = None,
    series_uid: str | None = None,
    seed: int = 0,
    started: datetime = STARTED,
    series_description: str = "DSC perfusion",
    series_number: int = 5,
    rescale_slope: float = 1.0,
) -> list[Path]:
    """Paths of the files of a dynamic series, one per slice and frame, in the order (frame, slice).

    Stored values are round(data / rescale_slope) as uint16. Slices of a frame are acquired interleaved within one TR.
    Files are numbered IM_0001 ... in an order drawn from `seed`, so that their names tell nothing.

    Parameters
    ----------
    folder
        The series' own folder, replaced whole.
    volume
        Shape (I, J, K, T) with any orthogonal affine; needs `tr_s`. Frame times are n·TR where it has none.
    habits
        "philips": slice-major, TemporalPositionIdentifier, one AcquisitionTime and TriggerTime per frame.
        "siemens": volume-major, AcquisitionNumber per frame, AcquisitionTime per slice, ContentTime of reconstruction.
        "ge": volume-major, one AcquisitionTime in all images, TriggerTime per slice, no temporal position.
    study_uid, series_uid
        Derived from `patient_id`, `series_description` and `seed` by default.

    Raises
    ------
    ValueError
        If values do not fit uint16, the affine is sheared, TR is unknown, `habits` is another name, or `folder` holds
        files of somebody else.
    """
    if volume.data.ndim != 4 or volume.tr_s is None:
        raise ValueError("A dynamic series is written from a volume (I, J, K, T) with tr_s.")
    if habits not in HABITS:
        raise ValueError(f"habits must be one of {sorted(HABITS)}, not {habits!r}.")
    study_uid = study_uid or study_uid_for(patient_id, seed)
    series_uid = series_uid or uid_for("series", patient_id, series_description, series_number, seed)
    dataset = _common(patient_id, patient_name, birth_date, institution, study_uid, series_uid, started)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    dataset.SeriesDescription = series_description
    dataset.SeriesNumber = series_number
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = ["EP", "GR"], "SK", ""
    dataset.MRAcquisitionType = "2D"
    dataset.RepetitionTime = _decimal(volume.tr_s * 1e3)
    dataset.EchoTime = None if volume.te_s is None else _decimal(volume.te_s * 1e3)
    _, _, n_slices, n_frames = volume.data.shape
    frame_times = volume.frame_times_s if volume.frame_times_s is not None else np.arange(n_frames) * volume.tr_s
    positions = _geometry(dataset, volume)
    if rescale_slope != 1.0:
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = _decimal(rescale_slope), "0", "normalized"
    # Interleaved: even slices first, then odd ones, spread over the frame.
    slice_order = np.r_[0:n_slices:2, 1:n_slices:2]
    slice_offsets = np.empty(n_slices)
    slice_offsets[slice_order] = np.arange(n_slices) * volume.tr_s / n_slices
    tag = HABITS[habits]
    names = _names(n_slices * n_frames, seed, series_uid)

    def images() -> Any:
        for frame in range(n_frames):
            for k in range(n_slices):
                dataset.SOPInstanceUID = uid_for("image", series_uid, frame, k)
                dataset.ImagePositionPatient = [_decimal(x) for x in positions[k]]
                tag(dataset, frame, k, n_frames, n_slices, started, float(frame_times[frame]), float(slice_offsets[k]))
                dataset.PixelData = _stored(volume.data[:, :, k, frame], rescale_slope)
                yield names[frame * n_slices + k], dataset

    return _write_all(Path(folder), images())


def write_map_series(
    folder: Path | str,
    volume: Volume,
    *,
    units: str | None = "s",
    patient_id: str,
    study_uid: str,
    patient_name: str = "",
    birth_date: date = BIRTH_DATE,
    institution: str = INSTITUTION,
    series_uid: str | None = None,
    seed: int = 0,
    started: datetime = STARTED,
    series_description: str = "Tmax",
    series_number: int = 501,
    rescale_slope: float | None = None,
) -> list[Path]:
    """Paths of the files of a derived map, one per slice, as a vendor's software leaves it beside the DSC series.

    The stored value p means p · RescaleSlope in `units`; `volume` is in seconds in every case.

    Parameters
    ----------
    folder
        The series' own folder, replaced whole.
    volume
        Shape (I, J, K), seconds, not negative.
    units
        "s" or "ms", written as RescaleType; None writes neither units nor rescale, and p is in milliseconds.
    study_uid
        The study of the DSC series it was computed from; see `study_uid_for`.
    rescale_slope
        In `units` per stored step; one millisecond by default.

    Raises
    ------
    ValueError
        If values do not fit uint16, the affine is sheared, or `units` is another one.
    """
    if volume.data.ndim != 3:
        raise ValueError("A map has shape (I, J, K).")
    if units not in ("s", "ms", None):
        raise ValueError(f"units must be 's', 'ms' or None, not {units!r}.")
    if units is None and rescale_slope is not None:
        raise ValueError("A map without units is written without rescale.")
    slope = rescale_slope if rescale_slope is not None else (0.001 if units == "s" else 1.0)
    series_uid = series_uid or uid_for("series", patient_id, series_description, series_number, seed)
    dataset = _common(patient_id, patient_name, birth_date, institution, study_uid, series_uid, started)
    dataset.ImageType = ["DERIVED", "SECONDARY", "PERFUSION", "TMAX"]
    dataset.SeriesDescription = series_description
    dataset.SeriesNumber = series_number
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "RM", "NONE", ""
    dataset.MRAcquisitionType, dataset.EchoTime, dataset.RepetitionTime = "2D", None, None
    finished = started + timedelta(minutes=4)
    dataset.ContentDate, dataset.ContentTime = finished.strftime("%Y%m%d"), _clock(finished)
    positions = _geometry(dataset, volume)
    step_s = slope if units == "s" else slope * 1e-3
    if units is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = _decimal(slope), "0", units
    n_slices = volume.data.shape[2]
    names = _names(n_slices, seed, series_uid)

    def images() -> Any:
        for k in range(n_slices):
            dataset.SOPInstanceUID = uid_for("image", series_uid, 0, k)
            dataset.ImagePositionPatient = [_decimal(x) for x in positions[k]]
            dataset.InstanceNumber = k + 1
            dataset.PixelData = _stored(volume.data[:, :, k], step_s)
            yield names[k], dataset

    return _write_all(Path(folder), images())


def _philips(
    dataset: Dataset, frame: int, k: int, n_frames: int, n_slices: int, started: datetime, t: float, offset: float
) -> None:
    """Philips: all frames of a slice in a row; every image of a frame carries the frame's time."""
    dataset.Manufacturer = "Philips Medical Systems"
    dataset.InstanceNumber = k * n_frames + frame + 1
    dataset.TemporalPositionIdentifier, dataset.NumberOfTemporalPositions = frame + 1, n_frames
    dataset.AcquisitionNumber = 2
    dataset.TriggerTime = _decimal(t * 1e3)
    _acquired(dataset, started + timedelta(seconds=t))


def _siemens(
    dataset: Dataset, frame: int, k: int, n_frames: int, n_slices: int, started: datetime, t: float, offset: float
) -> None:
    """Siemens: frames in a row, numbered by AcquisitionNumber; ContentTime is when reconstruction stored the image."""
    dataset.Manufacturer = "SIEMENS"
    dataset.InstanceNumber = frame * n_slices + k + 1
    dataset.AcquisitionNumber = frame + 1
    _acquired(dataset, started + timedelta(seconds=t + offset))
    stored_at = started + timedelta(seconds=90 + 0.003 * dataset.InstanceNumber)
    dataset.ContentDate, dataset.ContentTime = stored_at.strftime("%Y%m%d"), _clock(stored_at)


def _ge(
    dataset: Dataset, frame: int, k: int, n_frames: int, n_slices: int, started: datetime, t: float, offset: float
) -> None:
    """GE: one AcquisitionTime, in whole seconds, for the whole series; TriggerTime counts on, slice by slice."""
    dataset.Manufacturer = "GE MEDICAL SYSTEMS"
    dataset.InstanceNumber = frame * n_slices + k + 1
    dataset.NumberOfTemporalPositions = n_frames
    dataset.AcquisitionNumber = 1
    dataset.InStackPositionNumber = k + 1
    dataset.TriggerTime = _decimal((t + offset) * 1e3)
    _acquired(dataset, started.replace(microsecond=0))
    dataset.AcquisitionTime = dataset.ContentTime = started.strftime("%H%M%S")


HABITS: dict[str, Callable[..., None]] = {"philips": _philips, "siemens": _siemens, "ge": _ge}
"""How each vendor numbers and times the images of a dynamic series."""


def _acquired(dataset: Dataset, when: datetime) -> None:
    dataset.AcquisitionDate = dataset.ContentDate = when.strftime("%Y%m%d")
    dataset.AcquisitionTime = dataset.ContentTime = _clock(when)


def _clock(when: datetime) -> str:
    return when.strftime("%H%M%S.%f")


def _decimal(value: float) -> str:
    """A DICOM decimal string: as many digits as fit into its 16 characters."""
    value = float(value) + 0.0  # no negative zero
    for digits in range(15, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} does not fit a DICOM decimal string.")


def _common(
    patient_id: str,
    patient_name: str,
    birth_date: date,
    institution: str,
    study_uid: str,
    series_uid: str,
    started: datetime,
) -> Dataset:
    """What all images of a series share."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "REPERFUSE"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = UID(MRImageStorage)
    dataset.Modality = "MR"
    dataset.Manufacturer = "INVENTED"
    dataset.InstitutionName = institution
    dataset.StationName = "MR1"
    dataset.ReferringPhysicianName = "Referrer^Invented"
    dataset.OperatorsName = "Operator^Invented"
    dataset.DeviceSerialNumber = "000000"
    dataset.AccessionNumber = str(int(uid_for("accession", study_uid)[5:]) % 10**8)
    dataset.StudyDescription = "MR stroke"
    for level in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{level}Date", started.strftime("%Y%m%d"))
        setattr(dataset, f"{level}Time", _clock(started))
    dataset.PatientName = patient_name
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = birth_date.strftime("%Y%m%d")
    dataset.PatientSex = "O"
    dataset.PatientPosition = "HFS"
    dataset.BodyPartExamined = "HEAD"
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = series_uid
    dataset.FrameOfReferenceUID = uid_for("frame of reference", study_uid)
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID = "1"
    dataset.Laterality = ""
    dataset.EchoTrainLength = 1
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    return dataset


def _geometry(dataset: Dataset, volume: Volume) -> NDArray[np.float64]:
    """Set what fixes the plane; return ImagePositionPatient of every slice, shape (K, 3) [mm, LPS]."""
    affine = LPS_FROM_RAS @ volume.affine
    spacing = np.array(volume.spacing_mm)
    axes = affine[:3, :3] / spacing
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise ValueError("DICOM slices are rectangular stacks; resample the volume to an affine without shear first.")
    n_columns, n_rows, n_slices = volume.data.shape[:3]
    dataset.Rows, dataset.Columns = n_rows, n_columns
    dataset.ImageOrientationPatient = [_decimal(x) for x in (*axes[:, 0], *axes[:, 1])]
    dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]  # between rows first
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimal(spacing[2])
    return affine[:3, 3] + np.arange(n_slices)[:, None] * affine[:3, 2]


def _stored(plane: NDArray[Any], slope: float) -> bytes:
    """Pixel data of a plane (I, J), row after row: the integers p with p · slope nearest to it."""
    steps = np.rint(np.asarray(plane, dtype=np.float64).T / slope)
    if not np.isfinite(steps).all() or steps.min() < 0 or steps.max() > 65535:
        raise ValueError(f"Values from {np.min(plane):g} to {np.max(plane):g} do not fit uint16 at slope {slope:g}.")
    return steps.astype("<u2").tobytes()


def _names(count: int, seed: int, series_uid: str) -> list[str]:
    """IM_0001 ... shuffled."""
    entropy = int.from_bytes(hashlib.blake2b(series_uid.encode(), digest_size=8).digest(), "big")
    order = np.random.default_rng([seed, entropy]).permutation(count) + 1
    return [f"IM_{number:04d}" for number in order]


def _write_all(folder: Path, images: Any) -> list[Path]:
    """Write (name, dataset) pairs into `folder`, all or none."""
    if folder.is_dir() and any(not entry.name.startswith("IM_") for entry in folder.iterdir()):
        raise ValueError(f"{folder} holds other files; a series is written into a folder of its own.")
    names = []
    with atomic_path(folder) as inside:
        inside.mkdir()
        for name, dataset in images:
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dcmwrite(inside / name, dataset, enforce_file_format=True)
            names.append(name)
    return [folder / name for name in names]
