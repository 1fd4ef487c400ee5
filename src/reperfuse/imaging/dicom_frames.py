"""Which slice and which frame each image of a dynamic series is, from where and when it was taken.

InstanceNumber alone is not trusted: it may run through the frames of a slice or through the slices of a frame, and it
may be renumbered on export.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reperfuse.errors import InputError

SAME_SLICE_MM = 0.1
"""Images whose positions along the normal differ by less are one slice [mm]; headers round to micrometres."""

LABELS = ("TemporalPositionIdentifier", "AcquisitionNumber")
"""Tags that number frames."""

CLOCKS = ("AcquisitionTime", "TriggerTime", "ContentTime")
"""Tags that time images, the most trusted first. ContentTime may be when reconstruction stored the image."""

FrameFinder = Callable[[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64] | None], NDArray[np.intp] | None]


def slices_of(
    positions: NDArray[np.float64], normal: NDArray[np.float64], where: str
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Slice index of every image, shape (N,), and the slices' positions, shape (K, 3), along the normal.

    Parameters
    ----------
    positions
        ImagePositionPatient, shape (N, 3) [mm].
    normal
        Unit vector along which slices are counted.
    where
        The series, for messages.

    Raises
    ------
    InputError
        If slices are unevenly spaced, so that one is missing, or if images of a slice lie beside each other.
    """
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order]) > SAME_SLICE_MM
    index = np.empty(len(along), dtype=np.intp)
    index[order] = np.concatenate([[0], np.cumsum(steps)])
    n_slices = int(index.max()) + 1
    sums = np.stack([np.bincount(index, positions[:, axis], n_slices) for axis in range(3)], axis=1)
    centres = np.asarray(sums / np.bincount(index)[:, None], dtype=np.float64)
    if (np.linalg.norm(positions - centres[index], axis=1) > 1.0).any():
        raise InputError(f"{where} has images of one slice that lie beside each other: separate the stacks it mixes.")
    if n_slices > 2:
        gaps = np.diff(centres @ normal)
        usual = float(np.median(gaps))
        if (abs(gaps - usual) > max(0.05 * usual, SAME_SLICE_MM)).any():
            raise InputError(
                f"{where} has slices {gaps.min():.2f} to {gaps.max():.2f} mm apart: "
                "a slice is missing or two stacks are mixed; export the whole series again."
            )
    return np.asarray(index), centres


def frames_of(
    slices: NDArray[np.intp], times: dict[str, NDArray[np.float64]], where: str
) -> tuple[NDArray[np.intp], str]:
    """Frame index of every image, shape (N,), and the tag it was found by.

    In this order: a tag that numbers frames, a clock, and with none of them InstanceNumber, if slice positions cycle
    consistently in its order. Whichever is taken, no clock may run backwards through the frames of a slice.

    Parameters
    ----------
    slices
        Slice index, shape (N,).
    times
        For each of LABELS, CLOCKS and InstanceNumber an array (N,), NaN where the tag is absent.

    Raises
    ------
    InputError
        If tags contradict each other or no tag orders the frames.
    """
    if np.bincount(slices).max() == 1:
        return np.zeros(len(slices), dtype=np.intp), "position"
    times = {name: _unwrapped(values) if name in CLOCKS else values for name, values in times.items()}
    complete = {name: values for name, values in times.items() if np.isfinite(values).all()}
    candidates: tuple[tuple[str, FrameFinder], ...] = (
        *((name, _frames_by_label) for name in LABELS),
        *((name, _frames_by_clock) for name in CLOCKS),
        ("InstanceNumber", _frames_by_instance),
    )
    for name, method in candidates:
        if name not in complete:
            continue
        frames = method(slices, complete[name], complete.get("InstanceNumber"))
        if frames is None:
            continue
        for clock in CLOCKS[:2]:
            if clock in complete and _runs_backwards(slices, frames, complete[clock]):
                raise InputError(
                    f"{where} has {name} and {clock} that put its frames in different orders: "
                    "export the series again from the scanner or its archive."
                )
        return frames, name
    raise InputError(
        f"{where} cannot be ordered in time: it has no temporal position or time that differs between frames, "
        "and InstanceNumber follows no pattern; export it again with its times."
    )


def _unwrapped(clock: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times of day made to increase across midnight: no perfusion series lasts twelve hours."""
    with np.errstate(invalid="ignore"):
        if np.isfinite(clock).any() and np.nanmax(clock) - np.nanmin(clock) > 43_200:
            return np.where(clock < 43_200, clock + 86_400, clock)
    return clock


def _runs_backwards(slices: NDArray[np.intp], frames: NDArray[np.intp], clock: NDArray[np.float64]) -> bool:
    """Whether in any slice a later frame has an earlier time."""
    order = np.lexsort((frames, slices))
    same_slice = np.diff(slices[order]) == 0
    return bool((np.diff(clock[order])[same_slice] < -1e-6).any())


def _frames_by_label(
    slices: NDArray[np.intp], label: NDArray[np.float64], instance: NDArray[np.float64] | None = None
) -> NDArray[np.intp] | None:
    """Frames numbered by a tag; None if the tag does not tell the images of a slice apart, or tells more than frames.

    A temporal position left out in all slices is a lost frame and keeps its place.
    """
    rank = np.unique(label, return_inverse=True)[1]
    if len(np.unique(np.stack([slices, rank]), axis=1).T) != len(slices):
        return None
    n_slices = slices.max() + 1
    numbered = (label - label.min()).astype(np.intp)
    for frames in (numbered, rank.astype(np.intp)):
        # Half empty: the label counts something else as well, such as every image on its own.
        if np.array_equal(label, np.rint(label)) and len(slices) >= 0.5 * n_slices * (frames.max() + 1):
            return frames
    return None


def _frames_by_clock(
    slices: NDArray[np.intp], clock: NDArray[np.float64], instance: NDArray[np.float64] | None
) -> NDArray[np.intp] | None:
    """Frames counted by the time between images of a slice; None if two images of a slice share a time.

    Slices may be taken one after the other within a frame, in any order. Missing images leave their place empty: within
    a slice by the length of the gap, between slices by the start that needs the fewest frames. InstanceNumber, where it
    runs volume by volume, decides between starts that fit equally.
    """
    order = np.lexsort((clock, slices))
    by_slice, by_time = slices[order], clock[order]
    same_slice = np.diff(by_slice) == 0
    gaps = np.diff(by_time)
    if not same_slice.any() or (gaps[same_slice] <= 0).any():
        return None
    step = float(np.median(gaps[same_slice]))
    counted = np.where(same_slice, np.maximum(1, np.rint(gaps / step)), 0)
    total = np.concatenate([[0.0], np.cumsum(counted)])
    firsts = np.concatenate([[0], np.flatnonzero(~same_slice) + 1])
    within = (total - total[firsts][by_slice]).astype(np.intp)
    starts = by_time[firsts]
    n_slices = len(starts)
    best: tuple[tuple[int, float], NDArray[np.intp]] | None = None
    for start in starts:
        origin = start - np.ceil((start - starts.min()) / step - 1e-3) * step
        first_frame = np.floor((starts - origin) / step + 1e-3).astype(np.intp)
        frames = within + first_frame[by_slice]
        frames -= frames.min()
        spread = float(np.ptp(instance[order] - n_slices * frames)) if instance is not None else 0.0
        rank = (int(frames.max()), spread)
        if best is None or rank < best[0]:
            best = (rank, frames)
    assert best is not None
    result = np.empty(len(slices), dtype=np.intp)
    result[order] = best[1]
    if len(slices) < 0.5 * n_slices * (result.max() + 1):
        return None
    return result


def _frames_by_instance(
    slices: NDArray[np.intp], instance: NDArray[np.float64], _: NDArray[np.float64] | None = None
) -> NDArray[np.intp] | None:
    """Frames by InstanceNumber, volume-major or slice-major, whichever makes slice positions cycle; else None."""
    if len(np.unique(instance)) != len(instance):
        return None
    n_slices = int(slices.max()) + 1
    counts = np.bincount(slices)
    n_frames = int(counts.max())
    order = np.argsort(instance)
    frames = np.empty(len(slices), dtype=np.intp)
    if (counts == n_frames).all():
        cycle = slices[order].reshape(n_frames, n_slices)
        if (cycle == cycle[0]).all() and len(np.unique(cycle[0])) == n_slices:
            frames[order] = np.repeat(np.arange(n_frames), n_slices)
            return frames
        blocks = slices[order].reshape(n_slices, n_frames)
        if (blocks == blocks[:, :1]).all():
            frames[order] = np.tile(np.arange(n_frames), n_slices)
            return frames
        return None
    # Images are missing: only the numbers themselves can show where.
    number = instance.astype(np.intp)
    for period, volume_major in ((n_slices, True), (n_frames, False)):
        since = number - (1 if number.min() <= period else number.min())
        place, frame = (since % period, since // period) if volume_major else (since // period, since % period)
        pairs = np.unique(np.stack([slices, place]), axis=1)
        if pairs.shape[1] == n_slices == len(np.unique(pairs[1])):
            return frame
    return None


def frame_times(
    slices: NDArray[np.intp], frames: NDArray[np.intp], times: dict[str, NDArray[np.float64]], tr_s: float | None
) -> tuple[NDArray[np.float64] | None, float | None, list[str]]:
    """Frame times from the first frame [s], shape (T,), the time between frames [s], and notes.

    The time of a frame is the median over slices of the time since the same slice of the first frame, so that the order
    in which slices are taken does not matter. AcquisitionTime is used, else TriggerTime; ContentTime only if it agrees
    with RepetitionTime to a fifth; else n · RepetitionTime. The median spacing of measured times wins over
    RepetitionTime, which for segmented and 3D sequences is another quantity.

    Parameters
    ----------
    tr_s
        RepetitionTime of the header [s], None where it is absent.
    """
    n_frames = int(frames.max()) + 1
    regular = np.linspace(0.0, (n_frames - 1) * (tr_s or 0.0), n_frames)
    if n_frames == 1:
        return regular, tr_s, []
    for name in CLOCKS:
        clock = _unwrapped(times[name])
        grid = np.full((slices.max() + 1, n_frames), np.nan)
        grid[slices, frames] = clock
        since = _median_over_slices(grid)
        if since is None or (np.diff(since) <= 0).any():
            continue
        spacing = float(np.median(np.diff(since)))
        if name == "ContentTime" and (tr_s is None or abs(spacing - tr_s) > 0.2 * tr_s):
            continue
        in_whole_seconds = np.array_equal(clock, np.rint(clock))
        if tr_s and in_whole_seconds and (abs(since - regular) <= 1.0).all():
            # A clock without fractions cannot tell 1.5 s from 1 and 2 s in turn; RepetitionTime can.
            return regular, tr_s, []
        notes = []
        if tr_s and abs(spacing - tr_s) > max(0.05 * tr_s, 0.01):
            notes.append(
                f"RepetitionTime says {tr_s:g} s but frames are {spacing:g} s apart by {name}; the latter was used."
            )
        if abs(np.diff(since) - spacing).max() > 0.25 * spacing:
            notes.append(f"Frames are {np.diff(since).min():g} to {np.diff(since).max():g} s apart.")
        return np.asarray(np.round(since, 6), dtype=np.float64), round(spacing, 6), notes
    if tr_s is None:
        return None, None, ["The header tells neither frame times nor RepetitionTime; give the time between frames."]
    return regular, tr_s, ["The header has no usable time of frames; they are n times RepetitionTime."]


def _median_over_slices(grid: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Time of each frame since the first, from times (K, T) with holes; lost frames lie between their neighbours."""
    rows = grid[np.isfinite(grid[:, 0])]
    if not len(rows):
        return None
    since = rows - rows[:, :1]
    known = np.isfinite(since).any(axis=0)
    if known.sum() < max(2, 0.5 * grid.shape[1]):
        return None
    median = np.nanmedian(since[:, known], axis=0)
    return np.asarray(np.interp(np.arange(grid.shape[1]), np.flatnonzero(known), median), dtype=np.float64)
