"""DICOM series into volumes: ordered by place and time, brought from LPS to RAS."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperfuse.errors import InputError
from reperfuse.imaging.dicom_frames import CLOCKS, LABELS, frame_times, frames_of, slices_of
from reperfuse.imaging.dicom_images import SECONDS_PER_UNIT, Image, images_of
from reperfuse.imaging.dicom_series import Series, find_series
from reperfuse.imaging.volume import Volume

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM counts towards left and posterior, NIfTI towards right and anterior (PS3.3 C.7.6.2.1.1)."""

BOLUS_FRAMES = 10
"""A folder with several repeated series is read if one alone has this many frames: a bolus passes in no fewer."""

LONGEST_TMAX_S = 300.0
"""A Tmax above this [s] outlasts any perfusion series; its units or scale are wrong."""


def read_dsc(source: Path | str | Series, *, max_missing_fraction: float = 0.05) -> Volume:
    """The dynamic volume of a perfusion series, shape (I, J, K, T), float32, with its frame times, TE and TR.

    i runs along rows, j along columns, k along their cross product.
    Stored values are rescaled. Times are seconds from the first frame. What was repaired stands in `notes`.

    Parameters
    ----------
    source
        A series, or a folder (or multi-frame file) with one dynamic series in it.
    max_missing_fraction
        Slice images that may be missing; their voxels are zero, as published for CNN Tmax maps. A slice missing in all
        frames is a gap and refused.

    Raises
    ------
    InputError
        If a file is unreadable, the images do not fit one grid, tags contradict each other, images are duplicated, too
        many are missing, or RepetitionTime is not positive.
    """
    series = source if isinstance(source, Series) else _only_dynamic(Path(source))
    where = _where(series)
    images, notes = _images(series, where)
    slices, centres = slices_of(np.array([image.position for image in images]), _normal(images[0]), where)
    times = {
        name: np.array([image.times.get(name, np.nan) for image in images])
        for name in (*LABELS, *CLOCKS, "InstanceNumber")
    }
    _refuse_duplicates(images, slices, times, where)
    echoes = {round(image.te_ms, 3) for image in images if image.te_ms}
    if echoes and min(echoes) <= 0:
        raise InputError(f"{where} has EchoTime {min(echoes):g} ms: mend the header, it must be positive.")
    if len(echoes) > 1:
        spelt = ", ".join(f"{echo:g}" for echo in sorted(echoes))
        raise InputError(f"{where} mixes echoes of {spelt} ms: export each echo as a series of its own.")
    tr_s = _repetition_time(images, where)
    frames, _ = frames_of(slices, times, where)
    n_slices, n_frames = len(centres), int(frames.max()) + 1
    missing = n_slices * n_frames - len(images)
    if missing:
        share = missing / (n_slices * n_frames)
        said = f"{missing} of {n_slices * n_frames} slice images ({100 * share:.1f} %)"
        if share > max_missing_fraction:
            allowed = f"{100 * max_missing_fraction:g} %"
            raise InputError(f"{where} misses {said}, more than the {allowed} allowed: export the whole series again.")
        notes.append(f"{said} were missing and are filled with zeros.")
    announced = {image.announced_frames for image in images} - {None}
    if len(announced) == 1 and n_frames > 1 and (expected := announced.pop()) != n_frames:
        notes.append(f"The header announces {expected} frames, {n_frames} were found.")
    since, spacing, time_notes = frame_times(slices, frames, times, tr_s)
    rows, columns = images[0].stored.shape
    # Fortran order: a slice image lies together in memory, as in NIfTI.
    data = np.zeros((columns, rows, n_slices, n_frames), dtype=np.float32, order="F")
    for image, k, t in zip(images, slices, frames, strict=True):
        data[:, :, k, t] = _rescaled(image).T
    te_s = round(echoes.pop() / 1e3, 6) if echoes else None
    return Volume(data, _affine(images[0], centres), since, te_s, spacing, (*notes, *time_notes))


def read_map(source: Path | str | Series, *, reference_scale: float | None = None) -> Volume:
    """The map of a derived series in seconds, shape (I, J, K), float32.

    seconds = (stored · RescaleSlope + RescaleIntercept) · unit, with the unit from RescaleType, Units or the real-world
    value mapping. Values that are not finite become 0 and are counted in `notes`.

    Parameters
    ----------
    source
        A series, or a folder (or file) that holds nothing else.
    reference_scale
        Seconds per rescaled value, for series that state no unit of time; a stated unit wins.

    Raises
    ------
    InputError
        If there is neither unit nor scale, the series is not one volume, or the values cannot be seconds.
    """
    if not isinstance(source, Series):
        found, unreadable = find_series(source)
        if unreadable:
            raise InputError(unreadable[0][1])
        if len(found) != 1:
            raise InputError(f"{source} holds {len(found)} DICOM series: give the folder of the one map.")
        source = found[0]
    where = _where(source)
    images, notes = _images(source, where)
    slices, centres = slices_of(np.array([image.position for image in images]), _normal(images[0]), where)
    if len(images) != len(centres):
        raise InputError(f"{where} has {len(images)} images for {len(centres)} slices: a map has one image per slice.")
    units = {image.units for image in images}
    if len(units) > 1:
        raise InputError(f"{where} states different units in its images: export the map again.")
    unit = units.pop()
    if unit is None and reference_scale is None:
        raise InputError(
            f"{where} states no unit of time: pass --reference-scale, the seconds that a value of 1 means."
        )
    if unit is None and not (np.isfinite(reference_scale or 0.0) and (reference_scale or 0.0) > 0):
        raise InputError(f"--reference-scale must be a positive number of seconds, not {reference_scale}.")
    scale = SECONDS_PER_UNIT[unit] if unit else float(reference_scale or 0.0)
    rows, columns = images[0].stored.shape
    data = np.zeros((columns, rows, len(centres)), dtype=np.float32, order="F")
    for image, k in zip(images, slices, strict=True):
        data[:, :, k] = _rescaled(image, scale).T
    if undefined := int((~np.isfinite(data)).sum()):
        data[~np.isfinite(data)] = 0.0
        notes.append(f"{undefined} voxels of the map were not finite and are 0.")
    positive = data[data > 0]
    if positive.size and (high := float(np.percentile(positive, 99))) > LONGEST_TMAX_S:
        raise InputError(
            f"{where} has values of {high:.0f} s, which no map of delays has: mend its units or the scale."
        )
    return Volume(data, _affine(images[0], centres), notes=tuple(notes))


def _only_dynamic(folder: Path) -> Series:
    """The dynamic series under a folder, if it is clear which."""
    found, unreadable = find_series(folder)
    if unreadable:
        raise InputError(unreadable[0][1])
    if not found:
        raise InputError(f"{folder} holds no DICOM images: give the folder of the perfusion series.")
    dynamic = [series for series in found if series.is_dynamic]
    if len(dynamic) > 1:
        dynamic = [series for series in dynamic if series.n_frames >= BOLUS_FRAMES and not series.is_derived] or dynamic
    if len(dynamic) > 1:
        raise InputError(f"{folder} holds {len(dynamic)} series with several frames: give the folder of one.")
    if not dynamic:
        raise InputError(f"{folder} holds no series with several frames per slice: give the perfusion series.")
    return dynamic[0]


def _where(series: Series) -> str:
    """The series as messages name it: its file, or the folder that holds its files."""
    if len(series.files) == 1:
        return str(series.files[0])
    return os.path.commonpath([path.parent for path in series.files])


def _images(series: Series, where: str) -> tuple[list[Image], list[str]]:
    """All images of a series, checked to share one plane and grid, without second copies of the same image."""
    images: list[Image] = []
    notes: dict[str, None] = {}
    seen: dict[str, Image] = {}
    copies = 0
    for path in sorted(series.files):
        found, said = images_of(path)
        notes.update(dict.fromkeys(said))
        for image in found:
            twin = seen.setdefault(image.uid, image) if image.uid else image
            if twin is image:
                images.append(image)
            elif np.array_equal(twin.stored, image.stored):
                copies += 1
            else:
                raise InputError(f"{path} has the SOPInstanceUID of {twin.file} but other pixels: keep the right one.")
    if copies:
        notes[f"{copies} second copies of images were left out."] = None
    if not images:
        raise InputError(f"{where} holds no images: export the series again.")
    first = images[0]
    for image in images:
        if image.stored.shape != first.stored.shape:
            sizes = " and ".join(" x ".join(map(str, each.stored.shape)) for each in (first, image))
            raise InputError(f"{where} mixes images of {sizes} pixels: separate its series.")
        if abs(image.orientation - first.orientation).max() > 1e-3:
            raise InputError(f"{where} mixes orientations (such as {image.file.name}): separate its stacks.")
        if not np.allclose(image.pixel_spacing, first.pixel_spacing, rtol=1e-3):
            raise InputError(f"{where} mixes pixel spacings (such as {image.file.name}): separate its series.")
        if not (np.isfinite(image.slope) and np.isfinite(image.intercept) and image.slope):
            raise InputError(f"{image.file} has a RescaleSlope or RescaleIntercept that is no use: mend its header.")
    return images, list(notes)


def _refuse_duplicates(
    images: list[Image], slices: NDArray[np.intp], times: dict[str, NDArray[np.float64]], where: str
) -> None:
    """Stop at images that agree in place, every time and number: which of them is right cannot be known."""
    seen: dict[tuple[float, ...], Image] = {}
    table = np.stack([slices.astype(float), *times.values()], axis=1)
    for row, image in zip(np.nan_to_num(table, nan=-1.0).tolist(), images, strict=True):
        twin = seen.setdefault(tuple(row), image)
        if twin is not image:
            both = f"{twin.file.name} and {image.file.name}"
            raise InputError(f"{where} has two images of the same slice and time, {both}: remove one.")


def _repetition_time(images: list[Image], where: str) -> float | None:
    """RepetitionTime [s] of the series."""
    stated = [image.tr_ms for image in images if image.tr_ms is not None]
    if not stated:
        return None
    if not np.isfinite(stated).all() or min(stated) <= 0:
        raise InputError(f"{where} has RepetitionTime {min(stated):g} ms: mend the header, it must be positive.")
    return round(float(np.median(stated)) / 1e3, 6)


def _rescaled(image: Image, scale: float = 1.0) -> NDArray[np.float64] | NDArray[Any]:
    """Stored values · slope + intercept, times `scale`, shape (rows, columns)."""
    if image.slope == 1.0 and image.intercept == 0.0 and scale == 1.0:
        return image.stored
    return (image.stored.astype(np.float64) * image.slope + image.intercept) * scale


def _normal(image: Image) -> NDArray[np.float64]:
    """Unit vector across the plane: rows × columns."""
    normal = np.cross(image.orientation[:3], image.orientation[3:])
    return normal / np.linalg.norm(normal)


def _affine(image: Image, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel (i, j, k) to RAS+ [mm]; the step between slices is the measured one, so sheared stacks stay true."""
    affine = np.eye(4)
    affine[:3, 0] = image.orientation[:3] * image.pixel_spacing[1]
    affine[:3, 1] = image.orientation[3:] * image.pixel_spacing[0]
    if len(centres) > 1:
        affine[:3, 2] = (centres[-1] - centres[0]) / (len(centres) - 1)
    else:
        affine[:3, 2] = _normal(image) * (image.slice_spacing or 1.0)
    affine[:3, 3] = centres[0]
    return RAS_FROM_LPS @ affine
