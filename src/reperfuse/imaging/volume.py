"""Images on a grid in scanner space, and their way to NIfTI files and back."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from reperfuse.errors import InputError
from reperfuse.files import atomic_path, read_json, write_json

NIFTI_ENDINGS = (".nii.gz", ".nii")
"""What `load_volume` and `save_volume` take; other formats are converted first."""

GRID_TOLERANCE = 1e-3
"""Largest difference of affine entries [mm] within one grid: writers of one grid differ by rounding, about 1e-7."""

LONGEST_ECHO_S = 1.0
"""An echo time above this [s] is one written in milliseconds: T2* of tissue is below 0.1 s."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An image with its place in the scanner and, for a dynamic one, its times.

    Parameters
    ----------
    data
        Shape (I, J, K), or (I, J, K, T) with T frames.
    affine
        (4, 4), voxel index (i, j, k) to RAS+ coordinates [mm].
    frame_times_s
        Shape (T,), seconds from the first frame, increasing; only for a dynamic volume.
    te_s
        Echo time [s].
    tr_s
        Time between frames [s].
    notes
        What a reader repaired or assumed on the way, one sentence each, for people. They name no file and no person.

    Raises
    ------
    ValueError
        If shapes, times or the affine make no image.

    Examples
    --------
    >>> brain = Volume(np.zeros((4, 4, 2, 3), np.float32), np.diag([2.0, 2, 5, 1]), frame_times_s=[0, 1.5, 3], tr_s=1.5)
    >>> brain.spacing_mm, brain.n_frames
    ((2.0, 2.0, 5.0), 3)
    """

    data: NDArray[Any]
    affine: NDArray[Any]
    frame_times_s: NDArray[Any] | None = None
    te_s: float | None = None
    tr_s: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        data = np.asarray(self.data)
        affine = np.asarray(self.affine, dtype=np.float64)
        if data.ndim not in (3, 4) or 0 in data.shape:
            raise ValueError(f"A volume is (I, J, K) or (I, J, K, T) and not empty; this one is {data.shape}.")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise ValueError("The affine must be a finite (4, 4) matrix with last row 0 0 0 1.")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if (spacing == 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
            raise ValueError("The affine is singular: two voxel axes point the same way or one has no length.")
        times = None
        if self.frame_times_s is not None:
            times = np.asarray(self.frame_times_s, dtype=np.float64)
            frames = data.shape[3] if data.ndim == 4 else 0
            if times.shape != (frames,):
                raise ValueError(f"{times.size} frame times do not fit a volume of shape {data.shape}.")
            if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
                raise ValueError("Frame times must be finite and increase.")
        for name, value in (("te_s", self.te_s), ("tr_s", self.tr_s)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number of seconds, not {value}.")
            object.__setattr__(self, name, None if value is None else float(value))
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "frame_times_s", times)
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along i, j and k [mm]."""
        i, j, k = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return i, j, k

    @property
    def n_frames(self) -> int:
        """Number of frames T; 1 for a volume without time."""
        return int(self.data.shape[3]) if self.data.ndim == 4 else 1

    def on_grid_of(self, other: "Volume") -> bool:
        """Whether both have their voxels at the same places, to `GRID_TOLERANCE`."""
        return self.data.shape[:3] == other.data.shape[:3] and bool(
            np.allclose(self.affine, other.affine, rtol=0, atol=GRID_TOLERANCE)
        )


def sidecar_path(path: Path | str) -> Path:
    """The JSON file that belongs to a NIfTI file: the same name, another ending.

    >>> sidecar_path("sub-01_dsc.nii.gz").name
    'sub-01_dsc.json'
    """
    path = Path(path)
    for ending in NIFTI_ENDINGS:
        if path.name.endswith(ending):
            return path.with_name(path.name.removesuffix(ending) + ".json")
    raise InputError(f"{path} is not named .nii or .nii.gz: convert the image to NIfTI first.")


def load_volume(path: Path | str) -> Volume:
    """The image in a NIfTI file, with the times of its JSON sidecar when it is dynamic.

    Integers stay integers; scaled and floating-point images become float32. Axes of length one after the third are
    dropped. A dynamic image takes EchoTime, RepetitionTime and FrameTimes [s] from the sidecar of the same name;
    without it the frame spacing comes from the header, if the header states a unit of time.

    Raises
    ------
    InputError
        If the file is missing, is not NIfTI, is cut short, has no three axes, or its sidecar does not fit.
    """
    path = Path(path)
    sidecar = sidecar_path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing: check the path.")
    try:
        image: Any = nib.load(path, mmap=False)
    except (ImageFileError, HeaderDataError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(f"{path} is not a readable NIfTI file: copy or convert it again.") from error
    if not isinstance(image, nib.Nifti1Image):  # also the parent of NIfTI-2
        raise InputError(f"{path} is not a single-file NIfTI image: convert it to .nii.gz first.")
    try:
        data = np.asanyarray(image.dataobj)
    except (EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(f"{path} is cut short or damaged: copy it again from its source.") from error
    if data.dtype.kind not in "iufb":
        raise InputError(f"{path} holds colour or complex values: give an image with one real number per voxel.")
    if data.dtype.kind == "f":
        data = data.astype(np.float32, copy=False)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 5 and data.shape[3] == 1:
        data = data[:, :, :, 0, :]
    if data.ndim not in (3, 4):
        raise InputError(f"{path} has shape {data.shape}: an image needs three axes, a dynamic one four.")
    notes: list[str] = []
    if int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0:
        notes.append("The NIfTI header states no orientation; it was read as its default.")
    times = _sidecar_times(path, sidecar, data.shape[3]) if data.ndim == 4 else {}
    if data.ndim == 4 and "tr_s" not in times:
        times["tr_s"] = _header_tr(image.header)
    try:
        return Volume(data, image.affine, notes=tuple(notes), **times)
    except ValueError as error:
        raise InputError(f"{path} cannot be used: {error}") from error


def _sidecar_times(path: Path, sidecar: Path, n_frames: int) -> dict[str, Any]:
    """The keyword arguments of `Volume` that a sidecar states."""
    if not sidecar.is_file():
        return {}
    content = read_json(sidecar)
    if not isinstance(content, dict):
        raise InputError(f"{sidecar} is not a JSON object: write EchoTime, RepetitionTime and FrameTimes in seconds.")
    times: dict[str, Any] = {}
    for key, name in (("EchoTime", "te_s"), ("RepetitionTime", "tr_s")):
        value = content.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise InputError(f"{sidecar} says {key} {value!r}: write a positive number of seconds.")
        times[name] = float(value)
    if times.get("te_s", 0.0) > LONGEST_ECHO_S:
        raise InputError(f"{sidecar} says EchoTime {times['te_s']:g} s, which is no echo time: write it in seconds.")
    frame_times = content.get("FrameTimes")
    if frame_times is not None:
        try:
            array = np.asarray(frame_times, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{sidecar} has FrameTimes that are not numbers: write seconds.") from error
        if array.shape != (n_frames,):
            raise InputError(f"{sidecar} lists {array.size} FrameTimes for {n_frames} frames: mend the sidecar.")
        times["frame_times_s"] = array
        if "tr_s" not in times and n_frames > 1:
            times["tr_s"] = float(np.median(np.diff(array)))
    return times


def _header_tr(header: Any) -> float | None:
    """Frame spacing [s] of a NIfTI header, None where it states no unit: 1 is then a default, not a measurement."""
    seconds = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(header.get_xyzt_units()[1])
    spacing = float(header["pixdim"][4])
    return spacing * seconds if seconds and np.isfinite(spacing) and spacing > 0 else None


def save_volume(path: Path | str, volume: Volume, dtype: DTypeLike | None = None, *, description: str = "") -> None:
    """Write a volume as NIfTI, whole or not at all; the same volume gives the same bytes.

    Free-text header fields but `descrip` are empty and there are no extensions, so that no name travels in them. A
    dynamic volume is preceded by its sidecar (EchoTime, RepetitionTime, FrameTimes in seconds): no image stands without
    its times.

    Parameters
    ----------
    path
        Ends in .nii.gz (gzip level 1) or .nii.
    dtype
        Type on disk; the type of the data by default (float64 as float32, int64 as int32, bool as uint8).
    description
        Quantity and unit, such as "Tmax [s]", for the header's `descrip` (79 ASCII characters).

    Raises
    ------
    InputError
        If the folder cannot be written to or the ending is another one.
    ValueError
        If values do not fit `dtype` exactly.
    """
    path = Path(path)
    sidecar = sidecar_path(path)
    image = nib.Nifti1Image(_on_disk(volume.data, dtype), volume.affine)
    header = image.header
    header.set_xyzt_units("mm", "sec" if volume.data.ndim == 4 else 0)
    if volume.data.ndim == 4:
        header["pixdim"][4] = volume.tr_s if volume.tr_s is not None else 0.0
        if volume.tr_s is None:
            header.set_xyzt_units("mm", 0)
    image.set_sform(volume.affine, code=1)
    axes = volume.affine[:3, :3] / volume.spacing_mm
    # A quaternion holds no shear: where the affine has one, only the sform is set.
    image.set_qform(volume.affine, code=1 if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4) else 0)
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        header[field] = b""
    header["descrip"] = description.encode("ascii")
    if volume.data.ndim == 4:
        write_json(sidecar, times_sidecar(volume))
    with atomic_path(path) as inside, open(inside, "wb") as file:
        if path.name.endswith(".gz"):
            # No file name and no time in the gzip header: they are the writer's, and bytes must not depend on them.
            with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def times_sidecar(volume: Volume) -> dict[str, Any]:
    """EchoTime, RepetitionTime and FrameTimes [s] of a dynamic volume, as far as they are known."""
    times = None if volume.frame_times_s is None else [round(float(t), 6) for t in volume.frame_times_s]
    known = {"EchoTime": volume.te_s, "RepetitionTime": volume.tr_s, "FrameTimes": times}
    return {key: value for key, value in known.items() if value is not None}


def _on_disk(data: NDArray[Any], dtype: DTypeLike | None) -> NDArray[Any]:
    """`data` in a type that NIfTI readers know, without change of value beyond float32."""
    if dtype is None:
        dtype = {"float64": "float32", "float16": "float32", "int64": "int32", "uint64": "uint32", "bool": "uint8"}.get(
            data.dtype.name, data.dtype
        )
    target = np.dtype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = data.astype(target, copy=False)
    if target.kind in "iu" and not np.array_equal(cast, data):
        raise ValueError(f"Values between {data.min():g} and {data.max():g} do not fit {target.name} exactly.")
    return cast
