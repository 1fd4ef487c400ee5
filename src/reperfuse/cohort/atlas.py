"""T1w images and their lesion masks: known by the names of ATLAS, checked, written as one BIDS subject."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reperfuse.cohort.checks import check_image, check_same_grid, compact, without_nan
from reperfuse.errors import InputError
from reperfuse.files import sha256_of
from reperfuse.imaging.volume import Volume, load_volume, save_volume

BIDS_NAME = re.compile(
    r"(?P<sub>sub-[A-Za-z0-9]+)(_(?P<ses>ses-[A-Za-z0-9]+))?(?P<entities>(_[a-z]+-[A-Za-z0-9]+)*)"
    r"_(?P<suffix>T1w|mask)\.nii(\.gz)?"
)
"""ATLAS R2.0 and R3.0: sub-r001s001_ses-1_space-MNI152NLin2009aSym_{T1w,label-L_desc-T1lesion_mask}.nii.gz."""

R1_NAME = re.compile(
    r"(?P<sub>c\d{4}s\d{4}|\d{6})(?P<time>t\d\d)?_((?P<image>t1w(_deface)?)|LesionSmooth(_\d+)?(_Binary)?)"
    r"(?P<stx>_stx)?\.nii(\.gz)?"
)
"""ATLAS R1.1: Site1/031768/t01/031768_{t1w_deface,LesionSmooth,LesionSmooth_1}_stx.nii.gz; native: c0001s0004t01_…"""

CENTRE_FOLDER = re.compile(r"[Rr]\d{3}|[Ss]ite[-_ ]?\d+")
"""Folders that name a centre: R001 in R2.0, Site1 in R1.1."""

LEVEL_TOLERANCE = 1e-3
"""A scale factor in the header makes 0.99999 of a mask's 1."""


@dataclass(frozen=True)
class AtlasImage:
    """A NIfTI file that names its subject: a T1w image, or a lesion mask.

    Parameters
    ----------
    path
        The file.
    participant_id, session, space
        Entities of its name; the last two may be absent.
    is_mask
        A lesion mask, else a T1w image.
    release
        1 for the names of ATLAS R1.1, which has a file per lesion, 2 for BIDS names.
    """

    path: Path
    participant_id: str
    session: str | None
    space: str | None
    is_mask: bool
    release: int

    @property
    def stem(self) -> str:
        """The name up to and with the space entity."""
        parts = (self.participant_id, self.session, self.space and f"space-{self.space}")
        return "_".join(part for part in parts if part)


def atlas_image(path: Path) -> AtlasImage | None:
    """What a file name says; None when it names neither a T1w image nor a lesion mask.

    Examples
    --------
    >>> atlas_image(Path("sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz")).is_mask
    True
    >>> atlas_image(Path("Site1/031768/t02/031768_t1w_deface_stx.nii.gz")).stem
    'sub-031768_ses-t02_space-stx'
    >>> atlas_image(Path("sub-r001s001_ses-1_desc-brain_mask.nii.gz")) is None
    True
    """
    if match := BIDS_NAME.fullmatch(path.name):
        entities = dict(part.split("-", 1) for part in match["entities"].split("_")[1:])
        label, desc = entities.get("label", ""), entities.get("desc", "").lower()
        is_mask = match["suffix"] == "mask"
        # BIDS marks a lesion by label-L; a mask with neither entity can only be the lesion's.
        if is_mask and not (label in ("L", "lesion") or "lesion" in desc or (not label and not desc)):
            return None
        return AtlasImage(path, match["sub"], match["ses"], entities.get("space"), is_mask, release=2)
    if match := R1_NAME.fullmatch(path.name):
        folders = [part for part in path.parts[:-1] if re.fullmatch(r"t\d\d", part)]
        session = f"ses-{match['time'] or (folders[-1] if folders else 't01')}"
        space = "stx" if match["stx"] else None
        return AtlasImage(path, f"sub-{match['sub']}", session, space, match["image"] is None, release=1)
    return None


def centre_of(participant_id: str, folders: tuple[str, ...] = ()) -> str:
    """Centre by the subject's name or its folders; `n/a` (BIDS: not available) when neither says.

    >>> centre_of("sub-r001s012"), centre_of("sub-031768", ("ATLAS_R1.1", "Site1", "031768")), centre_of("sub-01")
    ('R001', 'Site1', 'n/a')
    """
    if match := re.fullmatch(r"sub-(?:(r\d{3})s\d+|(c\d{4})s\d{4})", participant_id):
        return match[1].upper() if match[1] else match[2]
    named = [part for part in folders if CENTRE_FOLDER.fullmatch(part)]
    return re.sub(r"[-_ ]", "", named[-1]) if named else "n/a"


def write_subject(folder: Path, images: list[AtlasImage]) -> list[str]:
    """Notes on what was repaired, after writing all sessions of one subject.

    ``<id>/[ses-*/]anat/*_T1w.nii.gz`` and, below ``derivatives/lesion/``, the mask (0 and 1) on the same grid.

    Raises
    ------
    InputError
        If an image or mask is missing, twofold or unreadable, a mask is not binary or lies on another grid.
    """
    notes = []
    for session in sorted({image.session for image in images}, key=str):
        t1w, masks = _pair([image for image in images if image.session == session], session)
        volume, told = _read_t1w(t1w.path)
        notes += told
        truth, told = _union(masks, volume)
        notes += told
        anat = Path(t1w.participant_id, *([session] if session else []), "anat")
        save_volume(folder / anat / f"{t1w.stem}_T1w.nii.gz", replace(volume, data=compact(volume.data)))
        if len(masks) == 1 and masks[0].release > 1:
            name = masks[0].path.name.removesuffix(".gz") + ".gz"
        else:
            name = f"{t1w.stem}_label-L_desc-T1lesion_mask.nii.gz"
        save_volume(folder / "derivatives" / "lesion" / anat / name, replace(volume, data=truth.astype(np.uint8)))
    return notes


def _pair(images: list[AtlasImage], session: str | None) -> tuple[AtlasImage, list[AtlasImage]]:
    """The T1w image of a session and its masks, in the same space where names tell; copies count once."""
    once = {sha256_of(image.path): image for image in sorted(images, key=lambda image: image.path, reverse=True)}
    ordered = sorted(once.values(), key=lambda image: image.path.name)
    t1w = [image for image in ordered if not image.is_mask]
    masks = [image for image in ordered if image.is_mask]
    when = f" in {session}" if session else ""
    if not t1w:
        raise InputError(f"There is a lesion mask but no T1w image{when}: add the image.")
    if not masks:
        raise InputError(f"There is a T1w image but no lesion mask{when}: add the mask, an empty one for no lesion.")
    if len(t1w) > 1:
        spaces = {mask.space for mask in masks}
        t1w = [image for image in t1w if image.space in spaces] or t1w
    if len(t1w) > 1:
        raise InputError(f"There are {len(t1w)} T1w images{when} ({', '.join(i.path.name for i in t1w)}): keep one.")
    return t1w[0], [mask for mask in masks if mask.space == t1w[0].space] or masks


def _read_t1w(path: Path) -> tuple[Volume, list[str]]:
    volume = load_volume(path)
    if volume.data.ndim != 3:
        raise InputError(f"{path.name} has {volume.n_frames} frames: a T1w image has one; split it.")
    volume, told = without_nan(volume, "T1w voxels")
    check_image(volume, path.name)
    return volume, [*volume.notes, *told]


def _union(masks: list[AtlasImage], image: Volume) -> tuple[NDArray[np.bool_], list[str]]:
    """Where any of the masks is 1, on the grid of `image`, shape (I, J, K)."""
    notes = []
    truth = np.zeros(image.data.shape, dtype=bool)
    for mask in masks:
        name = mask.path.name
        volume = load_volume(mask.path)
        if volume.data.ndim != 3:
            raise InputError(f"{name} has {volume.n_frames} frames: a lesion mask has one; split it.")
        volume, told = without_nan(volume, "mask voxels")
        notes += told
        check_same_grid(volume, name, image, "its T1w image")
        levels = np.unique(volume.data).astype(float)
        if mask.release == 1 and levels.max() == 255:
            levels = levels / 255  # R1.1 comes with masks of bytes as well
        wrong = levels[np.minimum(np.abs(levels), np.abs(levels - 1)) > LEVEL_TOLERANCE]
        if wrong.size:
            raise InputError(f"{name} holds the value {wrong[-1]:g}: a lesion mask has 0 and 1 only; mend the mask.")
        truth |= volume.data > 0.5
    if len(masks) > 1:
        notes.append(f"The union of {len(masks)} masks.")
    if not truth.any():
        notes.append("The mask is empty (no lesion).")
    return truth, notes
