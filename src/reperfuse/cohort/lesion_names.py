"""What a file's name says in the published sets of stroke lesions: whose it is, when, and what it shows."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Modality:
    """How one kind of image is called.

    Parameters
    ----------
    label
        For people.
    folder, suffix
        Where it lies in a BIDS tree, and how its name ends.
    """

    label: str
    folder: str
    suffix: str


MODALITIES = {
    "t1w": Modality("T1w", "anat", "T1w"),
    "dwi": Modality("DWI", "dwi", "dwi"),
    "adc": Modality("ADC", "dwi", "ADC"),
    "flair": Modality("FLAIR", "anat", "FLAIR"),
}
"""In the order in which an image is preferred where a mask lies on the grid of several."""

BIDS_NAME = re.compile(
    r"(?P<sub>sub-[A-Za-z0-9]+)(_(?P<ses>ses-[A-Za-z0-9]+))?(?P<entities>(_[a-z]+-[A-Za-z0-9]+)*)"
    r"_(?P<suffix>(?i:t1w|dwi|adc|flair|mask|msk))\.nii(\.gz)?"
)
"""ATLAS R2.0 and R3.0: sub-r001s001_ses-1_space-MNI152NLin2009aSym_{T1w,label-L_desc-T1lesion_mask}.nii.gz; ISLES'22:
sub-strokecase0001_ses-0001_{dwi,adc,flair,FLAIR,msk}.nii.gz; SOOP: sub-1_{rec-TRACE_dwi,rec-ADC_dwi,…}.nii.gz."""

ATLAS_R1_NAME = re.compile(
    r"(?P<sub>c\d{4}s\d{4}|\d{6})(?P<time>t\d\d)?_((?P<image>t1w(_deface)?)|LesionSmooth(_\d+)?(_Binary)?)"
    r"(?P<stx>_stx)?\.nii(\.gz)?"
)
"""ATLAS R1.1: Site1/031768/t01/031768_{t1w_deface,LesionSmooth,LesionSmooth_1}_stx.nii.gz; native: c0001s0004t01_…"""

CENTRE_FOLDER = re.compile(r"[Rr]\d{3}|[Ss]ite[-_ ]?\d+")
"""Folders that name a centre: R001 in R2.0, Site1 in R1.1."""


@dataclass(frozen=True)
class LesionFile:
    """A NIfTI file that names its subject: an image, or a lesion mask.

    Parameters
    ----------
    path
        The file.
    participant_id, session, space
        Entities of its name; the last two may be absent.
    modality
        Key of `MODALITIES`; None for a lesion mask.
    bids
        Whether the name has BIDS entities; those of ATLAS R1.1 have none.
    """

    path: Path
    participant_id: str
    session: str | None
    space: str | None
    modality: str | None
    bids: bool

    @property
    def stem(self) -> str:
        """The name up to and with the space entity."""
        parts = (self.participant_id, self.session, self.space and f"space-{self.space}")
        return "_".join(part for part in parts if part)


def lesion_file(path: Path) -> LesionFile | None:
    """What a file name says; None when it names neither an image of a known modality nor a lesion mask.

    Folders count in ATLAS R1.1 only, where the session is one; all other layouts may be nested in any way.

    Examples
    --------
    >>> lesion_file(Path("sub-strokecase0001_ses-0001_FLAIR.nii.gz")).modality
    'flair'
    >>> lesion_file(Path("Site1/031768/t02/031768_t1w_deface_stx.nii.gz")).stem
    'sub-031768_ses-t02_space-stx'
    >>> lesion_file(Path("sub-r001s001_ses-1_desc-brain_mask.nii.gz")) is None
    True
    """
    return _bids(path) or _atlas_r1(path)


def _bids(path: Path) -> LesionFile | None:
    match = BIDS_NAME.fullmatch(path.name)
    if match is None:
        return None
    entities = dict(part.split("-", 1) for part in match["entities"].split("_")[1:])
    suffix = match["suffix"].lower()
    if suffix in ("mask", "msk"):
        label, desc = entities.get("label", ""), entities.get("desc", "").lower()
        # BIDS marks a lesion by label-L; a mask with neither entity can only be the lesion's.
        if not (label in ("L", "lesion") or "lesion" in desc or (not label and not desc)):
            return None
        modality = None
    else:
        # SOOP (OpenNeuro ds004889) calls both reconstructions of a diffusion scan dwi.
        modality = "adc" if suffix == "dwi" and entities.get("rec") == "ADC" else suffix
    return LesionFile(path, match["sub"], match["ses"], entities.get("space"), modality, bids=True)


def _atlas_r1(path: Path) -> LesionFile | None:
    match = ATLAS_R1_NAME.fullmatch(path.name)
    if match is None:
        return None
    folders = [part for part in path.parts[:-1] if re.fullmatch(r"t\d\d", part)]
    session = f"ses-{match['time'] or (folders[-1] if folders else 't01')}"
    modality = "t1w" if match["image"] else None
    return LesionFile(path, f"sub-{match['sub']}", session, "stx" if match["stx"] else None, modality, bids=False)


def centre_of(participant_id: str, folders: tuple[str, ...] = ()) -> str:
    """Centre by the subject's name or its folders; `n/a` (BIDS: not available) when neither says.

    >>> centre_of("sub-r001s012"), centre_of("sub-031768", ("ATLAS_R1.1", "Site1", "031768")), centre_of("sub-01")
    ('R001', 'Site1', 'n/a')
    """
    if match := re.fullmatch(r"sub-(?:(r\d{3})s\d+|(c\d{4})s\d{4})", participant_id):
        return match[1].upper() if match[1] else match[2]
    named = [part for part in folders if CENTRE_FOLDER.fullmatch(part)]
    return re.sub(r"[-_ ]", "", named[-1]) if named else "n/a"
