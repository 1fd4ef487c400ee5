"""One tidy table per arm: who is in a BIDS tree, where their files are, and what these are like."""

import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from reperfuse.cohort.checks import check_binary
from reperfuse.cohort.folds import UNKNOWN_CENTRE
from reperfuse.cohort.lesion_names import MODALITIES
from reperfuse.cohort.participants import UNSAID, read_participants
from reperfuse.errors import InputError
from reperfuse.files import read_json
from reperfuse.imaging.volume import GRID_TOLERANCE, Volume, load_volume, sidecar_path


def lesion_cohort(root: Path | str) -> pd.DataFrame:
    """One row per subject of a lesion tree, sorted by `participant_id`.

    Columns: `participant_id`, `session` (missing where the tree has none), `n_sessions`, `centre`, `image` and `mask`
    (POSIX paths relative to `root`), `n_i`, `n_j`, `n_k`, `spacing_i_mm`, `spacing_j_mm`, `spacing_k_mm`,
    `lesion_volume_ml`, `modalities` (which of `t1w dwi adc flair` are there, space-separated) and the path of each,
    missing where there is none: `t1w`, `dwi`, `adc`, `flair`. `image` is the one whose grid the mask lies on. A subject
    with several sessions is listed with the first: later scans of the same person are no independent sample, and
    everything downstream counts subjects.

    Raises
    ------
    InputError
        If the tree has no subjects, a subject has no mask, or a mask is not binary or lies on no image's grid.
    """
    root = Path(root)
    centres = _centres(root)
    rows = []
    for subject in _subjects(root):
        sessions = [folder for folder in (subject, *sorted(subject.glob("ses-*"))) if _images(folder)]
        if not sessions:
            raise InputError(f"{subject} holds no image: run `reperfuse ingest` again.")
        images = _images(sessions[0])
        path = _mask(root, sessions[0].relative_to(root))
        mask = load_volume(path)
        check_binary(mask.data, str(path))
        on = _image_under(mask, path, images)
        rows.append(
            {
                "participant_id": subject.name,
                "session": sessions[0].name if sessions[0] != subject else None,
                "n_sessions": len(sessions),
                "centre": centres.get(subject.name, UNKNOWN_CENTRE),
                "image": _relative(images[on], root),
                "mask": _relative(path, root),
                **_grid(mask.data.shape, mask.affine),
                "lesion_volume_ml": float(np.count_nonzero(mask.data) * np.prod(mask.spacing_mm) / 1000),
                "modalities": " ".join(images),
                **{name: _relative(images[name], root) if name in images else None for name in MODALITIES},
            }
        )
    return pd.DataFrame(rows)


def _images(session: Path) -> dict[str, Path]:
    """The image of each modality that lies in the folder of a session."""
    found: dict[str, Path] = {}
    for name, what in MODALITIES.items():
        paths = sorted((session / what.folder).glob(f"*_{what.suffix}.nii.gz"))
        if len(paths) > 1:
            raise InputError(f"{session} has {len(paths)} {what.label} images: run `reperfuse ingest` again.")
        if paths:
            found[name] = paths[0]
    return found


def _mask(root: Path, session: Path) -> Path:
    """The only mask of a session, whose folder is relative to `root`."""
    derived = root / "derivatives" / "lesion" / session
    masks = sorted({path for what in MODALITIES.values() for path in derived.glob(f"{what.folder}/*_mask.nii.gz")})
    if len(masks) != 1:
        subject = root / session.parts[0]
        raise InputError(f"{subject} has {len(masks)} masks in derivatives/lesion: run `reperfuse ingest` again.")
    return masks[0]


def _image_under(mask: Volume, path: Path, images: dict[str, Path]) -> str:
    """Modality of the first image whose header gives the mask's grid."""
    for name, image in images.items():
        shape, affine = _header(image)
        if mask.data.shape == shape[:3] and np.allclose(mask.affine, affine, rtol=0, atol=GRID_TOLERANCE):
            return name
    raise InputError(f"{path} lies on the grid of no image of its subject: mend it, or run `reperfuse ingest` again.")


def perfusion_cohort(root: Path | str) -> pd.DataFrame:
    """One row per patient of a perfusion tree, sorted by `participant_id`.

    Columns: `participant_id`, `centre`, `image` and `reference` (POSIX paths relative to `root`; `reference` is missing
    where no Tmax map came along), `n_i`, `n_j`, `n_k`, `spacing_i_mm`, `spacing_j_mm`, `spacing_k_mm`, `n_frames`,
    `te_s`, `tr_s`.

    Raises
    ------
    InputError
        If the tree has no subjects, or a DSC series or its sidecar is missing or unreadable.
    """
    root = Path(root)
    centres = _centres(root)
    rows = []
    for subject in _subjects(root):
        image = subject / "perf" / f"{subject.name}_dsc.nii.gz"
        reference = root / "derivatives" / "reference" / subject.name / "perf"
        reference = reference / f"{subject.name}_desc-reference_tmax.nii.gz"
        shape, affine = _header(image)
        sidecar = read_json(sidecar_path(image))
        rows.append(
            {
                "participant_id": subject.name,
                "centre": centres.get(subject.name, UNKNOWN_CENTRE),
                "image": _relative(image, root),
                "reference": _relative(reference, root) if reference.exists() else None,
                **_grid(shape, affine),
                "n_frames": shape[3] if len(shape) > 3 else 1,
                "te_s": sidecar.get("EchoTime"),
                "tr_s": sidecar.get("RepetitionTime"),
            }
        )
    return pd.DataFrame(rows)


def _subjects(root: Path) -> list[Path]:
    found = sorted(path for path in root.glob("sub-*") if path.is_dir())
    if not found:
        raise InputError(f"{root} holds no subjects: run `reperfuse ingest` first.")
    return found


def _centres(root: Path) -> dict[str, str]:
    """Centre by participant, from participants.tsv; those marked n/a are left out."""
    path = root / "participants.tsv"
    columns, rows = read_participants(path)
    if rows and "centre" not in columns:
        raise InputError(f"{path} has no column centre: run `reperfuse ingest` again, which adds it.")
    return {row["participant_id"]: row["centre"] for row in rows if row["centre"] not in UNSAID}


def _header(path: Path) -> tuple[tuple[int, ...], NDArray[Any]]:
    """Shape and affine from the header alone: a DSC series is too large to read for its size."""
    try:
        image: Any = nib.load(path)
    except (ImageFileError, HeaderDataError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} is missing or damaged: run `reperfuse ingest` again.") from error
    return image.shape, image.affine


def _grid(shape: tuple[int, ...], affine: NDArray[Any]) -> dict[str, Any]:
    axes = ("i", "j", "k")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return {f"n_{axis}": int(n) for axis, n in zip(axes, shape, strict=False)} | {
        f"spacing_{axis}_mm": round(float(length), 6) for axis, length in zip(axes, spacing, strict=True)
    }


def _relative(path: Path, root: Path) -> str:
    return str(PurePosixPath(path.relative_to(root)))
