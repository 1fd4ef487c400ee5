"""One subject's images and lesion masks, whatever set they come from: checked, and written as they are found."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reperfuse.cohort.checks import (
    LEVEL_TOLERANCE,
    check_binary,
    check_image,
    check_overlap,
    check_same_grid,
    check_whole,
    compact,
    without_nan,
)
from reperfuse.cohort.lesion_names import MODALITIES, LesionFile
from reperfuse.errors import InputError
from reperfuse.files import sha256_of
from reperfuse.imaging.volume import Volume, load_volume, save_volume


def write_subject(folder: Path, files: list[LesionFile]) -> list[str]:
    """Notes on what was repaired or is missing, after writing all sessions of one subject.

    ``<id>/[ses-*/]{anat,dwi}/*_{T1w,dwi,ADC,FLAIR}.nii.gz``, each image on its own grid, and below
    ``derivatives/lesion/`` the mask (0 and 1), beside the image whose grid it lies on. Nothing is resampled.

    A mask on a T1w image is a set of T1w images, such as ATLAS. A mask on another image is one of DWI, ADC and FLAIR,
    such as ISLES'22, and which of the three are missing is noted.

    Raises
    ------
    InputError
        If there is no image or no mask, an image is twofold, unreadable, flat or elsewhere in space than the others, a
        mask is not binary or lies on no image's grid.
    """
    notes: list[str] = []
    sessions = sorted({file.session for file in files}, key=str)
    for session in sessions:
        when = f" in {session}" if session else ""
        chosen, masks = _chosen([file for file in files if file.session == session], when)
        volumes = {}
        for modality, file in chosen.items():
            label = MODALITIES[modality].label
            volumes[modality], told = _read(file.path, label)
            notes += [f"{label}: {note}" if len(chosen) > 1 else note for note in volumes[modality].notes] + told
        on, truth, told = _lesion(masks, volumes)
        notes += told
        for modality, file in chosen.items():
            check_overlap(volumes[modality], file.path.name, volumes[on], chosen[on].path.name)
        if on != "t1w":
            lost = [what.label for name, what in MODALITIES.items() if name not in chosen and name != "t1w"]
            notes += [f"{label} is missing{when if len(sessions) > 1 else ''}." for label in lost]

        place = Path(files[0].participant_id, *([session] if session else []))
        for modality, file in chosen.items():
            volume, what = volumes[modality], MODALITIES[modality]
            path = folder / place / what.folder / f"{file.stem}_{what.suffix}.nii.gz"
            save_volume(path, replace(volume, data=compact(volume.data)))
        path = folder / "derivatives" / "lesion" / place / MODALITIES[on].folder / _mask_name(masks, chosen[on])
        save_volume(path, replace(volumes[on], data=truth.astype(np.uint8)))
    return notes


def _chosen(files: list[LesionFile], when: str) -> tuple[dict[str, LesionFile], list[LesionFile]]:
    """One image per modality and the masks of a session, in the same space where names tell; copies count once."""
    once: dict[str, LesionFile] = {}
    for file in sorted(files, key=lambda file: file.path):
        same = once.setdefault(sha256_of(file.path), file)
        if same.modality != file.modality:
            names = f"{same.path.name} and {file.path.name}"
            raise InputError(f"{names} are the same file: one of them is not what its name says, copy it again.")
    ordered = sorted(once.values(), key=lambda file: file.path.name)
    images = [file for file in ordered if file.modality]
    masks = [file for file in ordered if not file.modality]
    if not images:
        raise InputError(f"There is a lesion mask but no image{when}: add the image.")
    if not masks:
        raise InputError(f"There is an image but no lesion mask{when}: add the mask, an empty one for no lesion.")
    spaces = {mask.space for mask in masks}
    chosen: dict[str, LesionFile] = {}
    for modality, what in MODALITIES.items():
        own = [image for image in images if image.modality == modality]
        if len(own) > 1:
            own = [image for image in own if image.space in spaces] or own
        if len(own) > 1:
            names = ", ".join(image.path.name for image in own)
            raise InputError(f"There are {len(own)} {what.label} images{when} ({names}): keep one.")
        if own:
            chosen[modality] = own[0]
    spaces = {image.space for image in chosen.values()}
    return chosen, [mask for mask in masks if mask.space in spaces] or masks


def _read(path: Path, label: str) -> tuple[Volume, list[str]]:
    """An image that shows something of a head, without NaN, and a note on those."""
    volume, told = without_nan(_one_frame(path, f"a {label} image"), f"{label} voxels")
    check_image(volume, path.name)
    if 1 in volume.data.shape:
        raise InputError(f"{path.name} is a single slice: a lesion is segmented in three dimensions, give all slices.")
    return volume, told


def _one_frame(path: Path, what: str) -> Volume:
    check_whole(path)
    volume = load_volume(path)
    if volume.data.ndim != 3:
        raise InputError(f"{path.name} has {volume.n_frames} frames: {what} has one; split it.")
    return volume


def _lesion(masks: list[LesionFile], images: Mapping[str, Volume]) -> tuple[str, NDArray[np.bool_], list[str]]:
    """Modality of the image that the masks lie on, where any of them is 1 on its grid, shape (I, J, K), and notes."""
    notes: list[str] = []
    on, truth = "", np.zeros(0, dtype=bool)
    for mask in masks:
        name = mask.path.name
        volume, told = without_nan(_one_frame(mask.path, "a lesion mask"), "mask voxels")
        notes += told
        if not on:
            on = _image_under(volume, name, images)
            truth = np.zeros(images[on].data.shape, dtype=bool)
        check_same_grid(volume, name, images[on], f"its {MODALITIES[on].label} image")
        levels = np.unique(volume.data).astype(float)
        if not mask.bids and levels.max() == 255:
            levels = levels / 255  # R1.1 comes with masks of bytes as well
        check_binary(levels, name, tolerance=LEVEL_TOLERANCE)
        truth |= volume.data > 0.5
    if len(masks) > 1:
        notes.append(f"The union of {len(masks)} masks.")
    if not truth.any():
        notes.append("The mask is empty (no lesion).")
    return on, truth, notes


def _image_under(mask: Volume, name: str, images: Mapping[str, Volume]) -> str:
    """Modality of the first image on the mask's grid; of the only image, where there is one, on any grid."""
    on = [modality for modality, image in images.items() if len(images) == 1 or mask.on_grid_of(image)]
    if not on:
        labels = ", ".join(MODALITIES[modality].label for modality in images)
        raise InputError(f"{name} lies on the grid of no image ({labels}): bring it to the grid of one of them.")
    return on[0]


def _mask_name(masks: list[LesionFile], image: LesionFile) -> str:
    """A BIDS name of the mask: its own, where it is one mask and has one."""
    own = masks[0].path.name.removesuffix(".gz") + ".gz"
    if len(masks) == 1 and masks[0].bids and own.endswith("_mask.nii.gz"):
        return own
    shown = "T1" if image.modality == "t1w" else MODALITIES[str(image.modality)].label
    return f"{image.stem}_label-L_desc-{shown}lesion_mask.nii.gz"
