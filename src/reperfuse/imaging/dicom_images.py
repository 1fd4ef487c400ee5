"""The images inside one DICOM file: one slice, a Siemens mosaic of slices, or an enhanced multi-frame stack."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from reperfuse.errors import InputError
from reperfuse.imaging.dicom_mosaic import MOSAIC_TAGS, mosaic_slices

UNITS_S = {"s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0}
UNITS_MS = {"ms": 1e-3, "msec": 1e-3, "msecs": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3}
SECONDS_PER_UNIT = UNITS_S | UNITS_MS
"""How vendors spell seconds and milliseconds in RescaleType, Units and UCUM codes."""


def tags_named(*lines: str) -> list[BaseTag]:
    """Tags of the DICOM keywords in `lines`; naming them keeps pydicom from building the hundred others."""
    return [Tag(keyword) for line in lines for keyword in line.split()]


_TAGS = [
    *tags_named(
        "SpecificCharacterSet SOPClassUID SOPInstanceUID ImageType Rows Columns NumberOfFrames SamplesPerPixel",
        "PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored HighBit PixelRepresentation",
        "ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices",
        "EchoTime RepetitionTime AcquisitionTime AcquisitionDateTime ContentTime TriggerTime AcquisitionNumber",
        "TemporalPositionIdentifier NumberOfTemporalPositions InstanceNumber RescaleSlope RescaleIntercept",
        "RescaleType Units RealWorldValueMappingSequence SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence PixelData FloatPixelData DoubleFloatPixelData",
        "ExtendedOffsetTable ExtendedOffsetTableLengths",
    ),
    *MOSAIC_TAGS,
]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of header readers: what matters is checked and said by us, once and by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(slots=True)
class Image:
    """One slice at one time, with what places it in space and time. Times are in seconds, absent ones NaN."""

    file: Path
    uid: str
    stored: NDArray[Any]
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    pixel_spacing: tuple[float, float]
    slice_spacing: float | None
    slope: float = 1.0
    intercept: float = 0.0
    units: str | None = None
    te_ms: float | None = None
    tr_ms: float | None = None
    announced_frames: int | None = None
    times: dict[str, float] = field(default_factory=dict)


def images_of(path: Path) -> tuple[list[Image], list[str]]:
    """The images of one file, and notes on what had to be assumed.

    Raises
    ------
    InputError
        If the file cannot be read or decoded, or lacks what places its images in space.
    """
    try:
        with quiet():
            dataset = dcmread(path, specific_tags=_TAGS, force=True)
    except Exception as error:  # pydicom raises nearly everything on damaged files
        raise InputError(f"{path} cannot be read as DICOM ({error}): export it again.") from error
    if "Rows" not in dataset or "Columns" not in dataset:
        raise InputError(f"{path} holds no image or its header is cut short: export it again.")
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{path} is a colour picture, not a measurement: export the grey-scale series.")
    stored = _pixels(path, dataset)
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return _enhanced(path, dataset, stored), []
    if "MOSAIC" in (dataset.get("ImageType") or []):
        return _mosaic(path, dataset, stored)
    if stored.shape[0] != 1:
        raise InputError(
            f"{path} holds {stored.shape[0]} frames without their positions: export them as single images."
        )
    return [_classic(path, dataset, stored[0])], []


def _pixels(path: Path, dataset: Dataset) -> NDArray[Any]:
    """Stored values, shape (frames, rows, columns)."""
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if "PixelData" in dataset and dataset.get("BitsAllocated") == 16 and (syntax is None or not syntax.is_compressed):
        # Ten times faster than the general decoder, and most series are like this.
        order = ">" if syntax is not None and not syntax.is_little_endian else "<"
        kind = "i2" if dataset.get("PixelRepresentation") == 1 else "u2"
        count = math.prod(shape)
        if len(dataset.PixelData) < 2 * count:
            raise InputError(f"{path} is cut short: {len(dataset.PixelData)} of {2 * count} bytes; export it again.")
        return np.frombuffer(dataset.PixelData, order + kind, count).reshape(shape)
    try:
        with quiet():
            return np.asarray(dataset.pixel_array).reshape(shape)
    except Exception as error:  # decoders raise what they like
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} has pixel data that cannot be decoded ({reason}): export it uncompressed.") from error


def _classic(path: Path, dataset: Dataset, plane: NDArray[Any]) -> Image:
    """One file, one slice."""
    position, orientation, spacing = _plane(path, dataset, dataset, dataset)
    return Image(
        file=path,
        uid=str(dataset.get("SOPInstanceUID", "")),
        stored=plane,
        position=position,
        orientation=orientation,
        pixel_spacing=spacing,
        slice_spacing=_number(dataset, "SpacingBetweenSlices") or _number(dataset, "SliceThickness"),
        slope=_number(dataset, "RescaleSlope", 1.0),  # type: ignore[arg-type]
        intercept=_number(dataset, "RescaleIntercept", 0.0),  # type: ignore[arg-type]
        units=units_of(dataset),
        te_ms=_number(dataset, "EchoTime"),
        tr_ms=_number(dataset, "RepetitionTime"),
        announced_frames=_integer(dataset, "NumberOfTemporalPositions"),
        times=_times(dataset),
    )


def _times(dataset: Dataset) -> dict[str, float]:
    """What a header says about when and in which order."""
    trigger = _number(dataset, "TriggerTime")
    return {
        "TemporalPositionIdentifier": _nan(_number(dataset, "TemporalPositionIdentifier")),
        "AcquisitionNumber": _nan(_number(dataset, "AcquisitionNumber")),
        "AcquisitionTime": clock_seconds(dataset.get("AcquisitionTime") or dataset.get("AcquisitionDateTime")),
        "TriggerTime": math.nan if trigger is None else trigger / 1e3,
        "ContentTime": clock_seconds(dataset.get("ContentTime")),
        "InstanceNumber": _nan(_number(dataset, "InstanceNumber")),
    }


def _mosaic(path: Path, dataset: Dataset, stored: NDArray[Any]) -> tuple[list[Image], list[str]]:
    """One file, one volume: a sheet of tiles that share the file's header."""
    sheet = _classic(path, dataset, stored[0])
    if sheet.slice_spacing is None:
        raise InputError(f"{path} is a mosaic without SpacingBetweenSlices: export it again with its header.")
    tiles, positions, notes = mosaic_slices(
        dataset, sheet.stored, sheet.position, sheet.orientation, sheet.pixel_spacing, sheet.slice_spacing, str(path)
    )
    images = [
        replace(sheet, uid=sheet.uid and f"{sheet.uid}/{k}", stored=tile, position=position)
        for k, (tile, position) in enumerate(zip(tiles, positions, strict=True))
    ]
    return images, notes


def _enhanced(path: Path, dataset: Dataset, stored: NDArray[Any]) -> list[Image]:
    """One file, many frames: each finds its attributes in its own functional groups, else in the shared ones."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != len(stored):
        raise InputError(f"{path} describes {len(groups)} frames but holds {len(stored)}: export it again.")
    images = []
    for number, group in enumerate(groups):

        def macro(name: str, group: Dataset = group) -> Dataset:
            found = group.get(name) or shared.get(name)
            return found[0] if found else Dataset()

        measures = macro("PixelMeasuresSequence")
        position, orientation, spacing = _plane(
            path, macro("PlanePositionSequence"), macro("PlaneOrientationSequence"), measures
        )
        rescale = macro("PixelValueTransformationSequence")
        content = macro("FrameContentSequence")
        offset = _number(macro("TemporalPositionSequence"), "TemporalPositionTimeOffset")
        delay = _number(macro("CardiacSynchronizationSequence"), "NominalCardiacTriggerDelayTime")
        mapping = (
            macro("RealWorldValueMappingSequence") or (dataset.get("RealWorldValueMappingSequence") or [Dataset()])[0]
        )
        slope, intercept = _number(rescale, "RescaleSlope", 1.0), _number(rescale, "RescaleIntercept", 0.0)
        units = units_of(rescale)
        if units is None and (spelt := units_of(mapping)) is not None:
            # The real-world mapping applies to stored values and says its own units.
            slope = _number(mapping, "RealWorldValueSlope", 1.0)
            intercept = _number(mapping, "RealWorldValueIntercept", 0.0)
            units = spelt
        acquired = content.get("FrameAcquisitionDateTime") or content.get("FrameReferenceDateTime")
        images.append(
            Image(
                file=path,
                uid=f"{dataset.get('SOPInstanceUID', '')}/{number}",
                stored=stored[number],
                position=position,
                orientation=orientation,
                pixel_spacing=spacing,
                slice_spacing=_number(measures, "SpacingBetweenSlices") or _number(measures, "SliceThickness"),
                slope=slope,  # type: ignore[arg-type]
                intercept=intercept,  # type: ignore[arg-type]
                units=units,
                te_ms=_number(macro("MREchoSequence"), "EffectiveEchoTime"),
                tr_ms=_number(macro("MRTimingAndRelatedParametersSequence"), "RepetitionTime"),
                times={
                    "TemporalPositionIdentifier": _nan(_number(content, "TemporalPositionIndex")),
                    "AcquisitionNumber": _nan(_number(content, "FrameAcquisitionNumber")),
                    "AcquisitionTime": clock_seconds(acquired),
                    "TriggerTime": offset if offset is not None else math.nan if delay is None else delay / 1e3,
                    "ContentTime": math.nan,
                    "InstanceNumber": _nan(_number(dataset, "InstanceNumber")) * 1e5 + number,
                },
            )
        )
    return images


def _plane(
    path: Path, where: Dataset, how: Dataset, measures: Dataset
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Position (3,), orientation (6,) and pixel spacing of a plane, checked."""
    missing = [
        keyword
        for keyword, source in (
            ("ImagePositionPatient", where),
            ("ImageOrientationPatient", how),
            ("PixelSpacing", measures),
        )
        if not source.get(keyword)
    ]
    if missing:
        raise InputError(f"{path} has no {missing[0]}: export the original series, not a screenshot of it.")
    try:
        position = np.array([float(x) for x in where.ImagePositionPatient])
        orientation = np.array([float(x) for x in how.ImageOrientationPatient])
        between_rows, between_columns = (float(x) for x in measures.PixelSpacing)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path} has a position, orientation or spacing that is no number: export it again."
        ) from error
    if position.shape != (3,) or orientation.shape != (6,) or not np.isfinite([*position, *orientation]).all():
        raise InputError(f"{path} has a position or orientation that is not finite or not complete: export it again.")
    lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
    if (abs(lengths - 1) > 0.01).any() or abs(orientation[:3] @ orientation[3:]) > 0.01:
        raise InputError(f"{path} has an ImageOrientationPatient that is no pair of unit directions: export it again.")
    if not (between_rows > 0 and between_columns > 0):
        raise InputError(f"{path} has PixelSpacing {between_rows:g} x {between_columns:g} mm: mend the header.")
    return position, orientation, (between_rows, between_columns)


def units_of(dataset: Dataset) -> str | None:
    """ "s" or "ms" where a header states a unit of time, else None."""
    spelt = [dataset.get("RescaleType"), dataset.get("Units")]
    for mapping in [dataset, *(dataset.get("RealWorldValueMappingSequence") or [])]:
        for code in mapping.get("MeasurementUnitsCodeSequence") or []:
            spelt.append(code.get("CodeValue"))
    for text in spelt:
        word = str(text or "").strip().lower()
        if word in SECONDS_PER_UNIT:
            return "s" if word in UNITS_S else "ms"
    return None


def clock_seconds(text: Any) -> float:
    """Seconds since midnight of a DICOM time or date-time, NaN where there is none.

    >>> clock_seconds("101502.25"), clock_seconds("20240314101502.25+0100")
    (36902.25, 36902.25)
    """
    clock = str(text or "").strip().replace(":", "")
    clock = clock.split("+")[0].split("-")[0]
    whole, _, fraction = clock.partition(".")
    if len(whole) > 8:  # a date-time: YYYYMMDD first
        whole = whole[8:]
    if not whole.isdigit() or len(whole) not in (2, 4, 6) or (fraction and not fraction.isdigit()):
        return math.nan
    hours, minutes, seconds = (int(whole[i : i + 2] or 0) for i in (0, 2, 4))
    return hours * 3600 + minutes * 60 + seconds + float(f"0.{fraction or 0}")


def _number(dataset: Dataset, keyword: str, default: float | None = None) -> float | None:
    """A number of the header; `default` where it is absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _integer(dataset: Dataset, keyword: str) -> int | None:
    value = _number(dataset, keyword)
    return None if value is None else int(value)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
