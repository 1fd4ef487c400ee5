"""A patient's DICOM series: which is the DSC series, which its Tmax reference, and whether they can be used."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from reperfuse.cohort.checks import check_image, check_same_grid, compact, without_nan
from reperfuse.errors import InputError
from reperfuse.files import sha256_of, write_json
from reperfuse.imaging.deidentify import dsc_sidecar, series_sha256
from reperfuse.imaging.dicom_read import read_dsc, read_map
from reperfuse.imaging.dicom_series import Series
from reperfuse.imaging.volume import Volume, save_volume, sidecar_path

MIN_FRAMES = 10
"""Frames below which no bolus passage can be seen."""

MIN_SIZE = 8
"""Voxels along a row or column below which an image is no head scan, but a test pattern or a strip."""

TR_BOUNDS_S = (0.1, 5.0)
"""Time between frames [s]: a bolus passes in about 10 s, so slower series do not sample it."""

TE_BOUNDS_S = (0.001, 0.2)
"""Echo time [s] of any T2- or T2*-weighted DSC protocol, with room on both sides; outside it the unit is wrong."""

LONGEST_STEP = 1.5
"""Times the median frame distance above which frames are missing between two."""

PERFUSION_NAME = re.compile(r"perf|dsc|pwi|bolus", re.IGNORECASE)
TMAX_NAME = re.compile(r"t[\s_-]?max|time[\s_-]?to[\s_-]?max", re.IGNORECASE)
PICTURE_NAME = re.compile(r"mismatch|summary|overlay|colou?r|rgb|mask|[<>]", re.IGNORECASE)
"""How series call themselves: the DSC series, the Tmax map, and pictures made of a Tmax map."""


def write_patient(
    folder: Path,
    participant_id: str,
    own: list[Series],
    *,
    reference_scale: float | None = None,
    max_missing_fraction: float = 0.05,
) -> list[str]:
    """Notes on what was repaired or left aside, after writing one patient's DSC series and Tmax reference.

    ``<id>/perf/<id>_dsc.nii.gz`` with its sidecar, and where there is a Tmax series,
    ``derivatives/reference/<id>/perf/<id>_desc-reference_tmax.nii.gz`` [s] on the same grid.

    Raises
    ------
    InputError
        If there is no usable DSC series, or the Tmax series is ambiguous, has no unit or lies on another grid.
    """
    series, notes = dsc_series(own)
    dsc, repaired = without_nan(read_dsc(series, max_missing_fraction=max_missing_fraction), "DSC voxels")
    check_dsc(dsc)
    notes += [*dsc.notes, *repaired]
    found, told = reference_series(own, series)
    notes += told
    image = folder / participant_id / "perf" / f"{participant_id}_dsc.nii.gz"
    save_volume(image, replace(dsc, data=compact(dsc.data)))
    write_json(sidecar_path(image), dsc_sidecar(dsc, [_source(series)]))
    if found is not None:
        tmax, repaired = without_nan(read_map(found, reference_scale=reference_scale), "Tmax voxels")
        check_reference(tmax, dsc)
        notes += [*tmax.notes, *repaired]
        perf = folder / "derivatives" / "reference" / participant_id / "perf"
        path = perf / f"{participant_id}_desc-reference_tmax.nii.gz"
        save_volume(path, replace(tmax, affine=dsc.affine), dtype=np.float32)
        about = {"Units": "s", "Description": "Tmax as the perfusion software delivered it"}
        write_json(sidecar_path(path), {**about, "SourceSHA256": [_source(found)]})
    return notes


def _source(series: Series) -> str:
    """One hash for the files of a series; those of the single files are in the manifest."""
    return series_sha256(map(sha256_of, series.files))


def dsc_series(own: list[Series]) -> tuple[Series, list[str]]:
    """The patient's DSC series, with a note when there was a choice: perfusion by name first, then most frames.

    Raises
    ------
    InputError
        If no series has frames over time.
    """
    dynamic = [one for one in own if one.is_dynamic and not one.is_derived]
    # Some exports mark every image as derived.
    dynamic = dynamic or [one for one in own if one.is_dynamic]
    if not dynamic:
        raise InputError("No series of this patient has frames over time: add the DSC series to the inbox.")
    named = [one for one in dynamic if PERFUSION_NAME.search(one.series_description)]
    ranked = sorted(named or dynamic, key=lambda one: (-one.n_frames, -len(one.files), one.study, one.series))
    notes = [] if named else ["No series over time is called perfusion."]
    if len(dynamic) > 1:
        how = "the longest called perfusion" if named else "the longest"
        notes.append(f"{len(dynamic)} series over time; {how} was taken, with {ranked[0].n_frames} frames.")
    return ranked[0], notes


def reference_series(own: list[Series], dsc: Series) -> tuple[Series | None, list[str]]:
    """The Tmax map of the study of `dsc`, or None without one, and a note.

    Raises
    ------
    InputError
        If several series could be it.
    """
    maps = [
        one
        for one in own
        if one is not dsc
        and not one.is_dynamic
        and TMAX_NAME.search(one.series_description)
        and not PICTURE_NAME.search(one.series_description)
    ]
    here = [one for one in maps if one.study == dsc.study]
    if not here:
        return None, ["No Tmax reference" + (" in the study of the DSC series." if maps else ".")]
    # A picture of the map has no unit; the map itself often has.
    stated = [one for one in here if one.units] if len(here) > 1 else here
    if len(stated) != 1:
        raise InputError(
            f"{len(here)} series of the study could be the Tmax reference "
            f"({', '.join(sorted(one.series_description for one in here))}): leave one in the inbox."
        )
    return stated[0], []


def check_dsc(dsc: Volume) -> None:
    """Refuse a series from which no perfusion can be computed.

    Raises
    ------
    InputError
        Says what is missing or out of bounds: voxel size, frames, echo time, frame distance, gaps in time.
    """
    check_image(dsc, "The DSC series")
    if min(dsc.data.shape[:2]) < MIN_SIZE:
        raise InputError(f"The DSC images are {dsc.data.shape[0]} × {dsc.data.shape[1]} voxels: this is no head scan.")
    if dsc.n_frames < MIN_FRAMES:
        raise InputError(f"The DSC series has {dsc.n_frames} frames and needs {MIN_FRAMES}: add the missing files.")
    if dsc.te_s is None or dsc.tr_s is None or dsc.frame_times_s is None:
        lacking = "echo time" if dsc.te_s is None else "repetition time"
        raise InputError(f"The DSC series states no {lacking}: export it again with its acquisition attributes.")
    for name, value, (low, high) in (("echo time", dsc.te_s, TE_BOUNDS_S), ("frame distance", dsc.tr_s, TR_BOUNDS_S)):
        if not low <= value <= high:
            raise InputError(f"The DSC series has {name} {value:g} s, outside {low:g}–{high:g} s: check its unit.")
    steps = np.diff(dsc.frame_times_s)
    usual = float(np.median(steps))
    if steps.max() > LONGEST_STEP * usual:
        raise InputError(
            f"The DSC frames have a gap of {steps.max():.2f} s where {usual:.2f} s is usual: add the missing frames."
        )


def check_reference(tmax: Volume, dsc: Volume) -> None:
    """Refuse a map on another grid than the DSC series, or one that cannot be in seconds.

    No Tmax is longer than the acquisition that shows it; one that is was stored in another unit than it states.
    """
    check_same_grid(tmax, "The Tmax series", dsc, "the DSC series")
    check_image(tmax, "The Tmax series")
    assert dsc.frame_times_s is not None
    assert dsc.tr_s is not None
    duration = float(dsc.frame_times_s[-1] + dsc.tr_s)
    high = float(np.percentile(tmax.data[tmax.data != 0], 99))
    if high > duration:
        raise InputError(
            f"The Tmax series reaches {high:.0f} s in an acquisition of {duration:.0f} s, so its unit is not the one "
            "it states: give --reference-scale, in seconds per stored unit."
        )
