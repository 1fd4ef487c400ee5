"""The degrade verb: an image as a scanner with thicker slices would have seen it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reperfuse.cohort.checks import without_nan
from reperfuse.errors import InputError
from reperfuse.imaging.volume import NIFTI_ENDINGS, load_volume, save_volume, sidecar_path
from reperfuse.preprocessing.geometry import AXES, thick_slices
from reperfuse.preprocessing.slices import slice_centres, slice_shape

COLUMNS = ("position_mm", "weight")


def degrade(
    image_path: Path,
    out: Path,
    *,
    thickness_mm: float,
    axis: str = "k",
    profile: str = "gaussian",
    spacing_mm: float | None = None,
    offset_mm: float = 0.0,
    keep_thick: bool = False,
) -> None:
    """Write the image with thick slices (float32) and print what was done; see `thick_slices`.

    Parameters
    ----------
    image_path
        NIfTI, 3D or 4D, in any orientation.
    out
        NIfTI file to write, whole or not at all; a 4D one comes with its JSON sidecar.
    axis
        Array axis of the file as it is stored, i, j or k.
    profile
        gaussian, box, or the path of a CSV that `read_slice_profile` reads.

    Raises
    ------
    InputError
        If the image, the profile or the slices cannot be used, or `out` is no NIfTI name or would replace the image.
    """
    if not out.name.endswith(NIFTI_ENDINGS) or out.is_dir():
        raise InputError(f"{out} cannot be written as NIfTI: name a file that ends in .nii.gz.")
    # Two endings share one sidecar: a series must not take that of the image, which may hold more than times.
    if out.resolve() == image_path.resolve() or sidecar_path(out).resolve() == sidecar_path(image_path).resolve():
        raise InputError(f"{out} would replace {image_path} or its sidecar: name another file with --out.")
    image, notes = without_nan(load_volume(image_path), "voxels")
    thick = thick_slices(
        image,
        thickness_mm,
        axis,
        profile=named_profile(profile),
        spacing_mm=spacing_mm,
        offset_mm=offset_mm,
        keep_thick=keep_thick,
    )
    number, spacing_mm = AXES[axis], thickness_mm if spacing_mm is None else spacing_mm
    n, source_mm = image.data.shape[number], image.spacing_mm[number]
    m = len(slice_centres(n, source_mm, thickness_mm, spacing_mm, offset_mm))
    save_volume(out, replace(thick, data=np.asarray(thick.data, np.float32)), description=f"{thickness_mm:g} mm slices")
    for note in (*image.notes, *notes):
        print(note)
    voxels = " × ".join(f"{mm:.4g}" for mm in thick.spacing_mm)
    print(
        f"{out}: along {axis} {m} slices of {thickness_mm:g} mm every {spacing_mm:g} mm, "
        f"from {n} of {source_mm:.4g} mm; voxels of {voxels} mm."
    )


def named_profile(profile: str) -> str | NDArray[np.float64]:
    """What `thick_slices` takes for gaussian, box or the path of a CSV file."""
    return read_slice_profile(Path(profile)) if profile.lower().endswith(".csv") else profile


def read_slice_profile(path: Path) -> NDArray[np.float64]:
    """A measured slice profile: position along the axis [mm] and weight, shape (N, 2).

    Parameters
    ----------
    path
        CSV with the header ``position_mm,weight`` and increasing positions.

    Raises
    ------
    InputError
        If the file is missing or no such table, or the profile is none of a slice.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: check the path of the slice profile.")
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a CSV: give one with the header {','.join(COLUMNS)}.") from error
    table.columns = table.columns.str.strip()
    if not set(COLUMNS) <= set(table.columns):
        raise InputError(f"{path} has no columns {' and '.join(COLUMNS)}: name them in its header.")
    try:
        profile = table[list(COLUMNS)].to_numpy(dtype=float)
    except ValueError as error:
        raise InputError(f"{path} holds text among its numbers: give millimetres and weights.") from error
    try:
        slice_shape(profile)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return profile
