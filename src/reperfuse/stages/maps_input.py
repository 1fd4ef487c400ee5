"""What `reperfuse maps` is given: a DICOM folder or a NIfTI series, and masks, curves and an ADC map beside it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from reperfuse.cohort.checks import check_image
from reperfuse.errors import InputError
from reperfuse.imaging.dicom_read import read_dsc
from reperfuse.imaging.volume import NIFTI_ENDINGS, Volume, load_volume
from reperfuse.perfusion.bolus import MIN_FRAMES
from reperfuse.preprocessing.geometry import resample

SHORTEST_TR_S, LONGEST_TR_S = 0.1, 15.0
"""Between these an interval may be a DSC series' [s], if a poor one; outside it the unit is another."""

MOST_GAPS = 3
"""Frames that times promise over frames there are; beyond, a time is wrong rather than a frame missing."""

OTHER_FORMATS = (".mha", ".mhd", ".mgz", ".mgh", ".nrrd", ".hdr", ".img")
"""Images that have to be converted first."""

AIF_COLUMN = "aif_delta_r2star_per_s"
"""The column of an AIF file that holds ΔR2* of the artery [1/s]; `time_s` beside it holds seconds from the first
frame. aif.csv, which this verb writes, is such a file."""


def read_examination(
    source: Path, *, te_s: float | None = None, tr_s: float | None = None
) -> tuple[Volume, float | None]:
    """The series of a DICOM folder (or multi-frame file) or of a 4D NIfTI, with echo time and the times of all frames.

    Shape (I, J, K, T), float32. `te_s` and `tr_s` win over the headers [s]. Beside it the frame interval that another
    source states, if there are two [s].

    Raises
    ------
    InputError
        If it is not one dynamic series, TE or TR is unknown or impossible, or the frames are too few.
    """
    for name, value in (("--te", te_s), ("--tr", tr_s)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value:g}: give a positive number of seconds.")
    if te_s is not None and te_s > 0.5:
        raise InputError(f"--te is {te_s:g} s, which is no echo time: give seconds, such as 0.03.")
    nifti = source.name.endswith(NIFTI_ENDINGS)
    if source.suffix.lower() in OTHER_FORMATS or (source.name.lower().endswith(NIFTI_ENDINGS) and not nifti):
        raise InputError(f"{source} is not named .nii or .nii.gz: convert or rename it, or give a DICOM folder.")
    series = load_volume(source) if nifti else read_dsc(source)
    if series.data.ndim != 4:
        raise InputError(f"{source} has no time axis: perfusion maps need a series of shape (I, J, K, T).")
    if series.n_frames < MIN_FRAMES:
        raise InputError(f"{source} has {series.n_frames} frames, too few to hold a bolus: give the whole series.")
    te_s = te_s or series.te_s
    if te_s is None:
        remedy = "add EchoTime [s] to its JSON sidecar, or give --te" if nifti else "give it with --te, in seconds"
        raise InputError(f"{source} does not say its echo time: {remedy}.")
    times, stated_tr_s = series.frame_times_s, series.tr_s
    if tr_s is not None or times is None:
        stated_tr_s = series.tr_s if times is None else even_interval_s(times)
        tr_s = tr_s or series.tr_s
        if tr_s is None:
            raise InputError(f"{source} does not say the time between its frames: give it with --tr, in seconds.")
        times = np.arange(series.n_frames) * tr_s
    else:
        tr_s = even_interval_s(times)
        if round((times[-1] - times[0]) / tr_s) + 1 > MOST_GAPS * len(times):
            gap = np.diff(times).max()
            raise InputError(f"{source} has a gap of {gap:g} s between two frames: mend its times, or give --tr.")
    if not SHORTEST_TR_S <= tr_s <= LONGEST_TR_S:
        raise InputError(
            f"{source} has {tr_s:g} s between its frames, which no DSC series has: give --tr in seconds, such as 1.5."
        )
    check_image(series, str(source))
    # Curves lie together in memory, as all that follows reads them; readers give images together.
    data = np.ascontiguousarray(series.data, dtype=np.float32)
    return replace(series, data=data, frame_times_s=times - times[0], te_s=te_s, tr_s=tr_s), stated_tr_s


def even_interval_s(times: np.ndarray) -> float:
    """The interval of frames [s]: their mean, or where frames are missing between others, the usual step.

    >>> even_interval_s(np.array([0, 1.5, 3.0, 6.0, 7.5])), even_interval_s(np.array([0, 1.4, 3.0, 4.4]))
    (1.5, 1.4666666666666668)
    """
    steps = np.diff(times)
    whole = np.maximum(np.rint(steps / np.median(steps)), 1)
    return float((times[-1] - times[0]) / whole.sum())


def even_times_s(series: Volume) -> np.ndarray:
    """Frame times at one interval from the first frame to the last, shape (T,) [s]; T counts missing frames."""
    assert series.tr_s is not None and series.frame_times_s is not None
    return np.asarray(np.arange(round(series.frame_times_s[-1] / series.tr_s) + 1) * series.tr_s)


@dataclass(frozen=True)
class Given:
    """What came beside the series."""

    brain: np.ndarray | None
    """Brain mask, shape (I, J, K); to be found when not given."""
    artery: np.ndarray | None
    """Mask of an artery, shape (I, J, K)."""
    aif: np.ndarray | None
    """ΔR2* of an artery [1/s] at frames of even interval, shape (T,)."""
    adc: Volume | None
    """ADC map on its own grid."""
    adc_file: Path | None
    """Its file, for messages."""
    aif_file: Path | None
    """That of the artery."""


def read_given(series: Volume, *, mask: Path | None, aif: str, adc: Path | None) -> Given:
    """Brain mask, artery (a mask, a curve, or "auto" for neither) and ADC map, as far as they are given.

    Raises
    ------
    InputError
        If one of them cannot be read or used with the series.
    """
    drawn = aif.endswith(NIFTI_ENDINGS)
    diffusion = None if adc is None else load_volume(adc)
    if diffusion is not None and diffusion.data.ndim != 3:
        raise InputError(f"{adc} has {diffusion.n_frames} frames: give the ADC map, one image of shape (I, J, K).")
    return Given(
        brain=None if mask is None else read_mask(mask, series, "the brain mask"),
        artery=read_mask(Path(aif), series, "the artery mask") if drawn else None,
        aif=None if drawn or aif == "auto" else read_aif_curve(Path(aif), even_times_s(series)),
        adc=diffusion,
        adc_file=adc,
        aif_file=None if aif == "auto" else Path(aif),
    )


def read_mask(path: Path, series: Volume, what: str) -> np.ndarray:
    """A mask on the grid of the series, shape (I, J, K), bool; another grid is brought there by its header.

    Raises
    ------
    InputError
        If it is no three-dimensional image, or covers no voxel of the series.
    """
    volume = load_volume(path)
    if volume.data.ndim != 3:
        raise InputError(f"{path} has {volume.n_frames} frames: {what} is one image of shape (I, J, K).")
    mask = np.nan_to_num(np.asarray(volume.data, dtype=np.float32)) > 0
    if not mask.any():
        raise InputError(f"{path} has no voxel above 0: draw {what} again.")
    if not volume.on_grid_of(series):
        mask = resample(replace(volume, data=mask), like=series, mask=True).data > 0
        if not mask.any():
            raise InputError(f"{path} covers no voxel of the series: check that both are of the same examination.")
    return mask


def read_aif_curve(path: Path, frame_times_s: np.ndarray) -> np.ndarray:
    """ΔR2* of the artery [1/s] at the frame times, shape (T,), from a CSV file.

    With a column `time_s` the curve is interpolated onto the frames; without, it must have one row per frame.

    Raises
    ------
    InputError
        If the column is missing, holds no numbers, or does not fit the series.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: check the path.")
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a CSV file: write the columns time_s and {AIF_COLUMN}.") from error
    if AIF_COLUMN not in table:
        raise InputError(f"{path} has no column {AIF_COLUMN}: name the artery's ΔR2* [1/s] so, and its times time_s.")
    numbers = table[[name for name in ("time_s", AIF_COLUMN) if name in table]].apply(pd.to_numeric, errors="coerce")
    if not np.isfinite(numbers.to_numpy(dtype=float)).all():
        raise InputError(f"{path} holds rows that are not numbers: mend or remove them.")
    if numbers.empty:
        raise InputError(f"{path} has no rows: write the artery's ΔR2* [1/s] at each frame.")
    curve = numbers[AIF_COLUMN].to_numpy(dtype=float)
    if "time_s" in numbers:
        times, last = numbers["time_s"].to_numpy(dtype=float), frame_times_s[-1]
        if not (np.diff(times) > 0).all():
            raise InputError(f"{path}: the times in column time_s must increase.")
        if times[-1] > 20 * last:
            raise InputError(f"{path} ends at {times[-1]:g} s, the series at {last:g} s: write time_s in seconds.")
        if times[-1] < 0.8 * last:
            raise InputError(f"{path} ends at {times[-1]:g} s, the series at {last:g} s: give the whole curve.")
        curve = np.interp(frame_times_s, times, curve)
    if curve.size != frame_times_s.size:
        raise InputError(
            f"{path} has {curve.size} rows, the series {frame_times_s.size} frames: add the column time_s."
        )
    return curve
