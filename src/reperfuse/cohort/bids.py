"""One tidy table per arm: who is in a BIDS tree, where their files are, and what these are like."""

from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError

from reperfuse.cohort.folds import UNKNOWN_CENTRE
from reperfuse.errors import InputError
from reperfuse.files import read_json
from reperfuse.imaging.volume import load_volume, sidecar_path


def lesion_cohort(root: Path | str) -> pd.DataFrame:
    """One row per subject of a lesion tree, sorted by `participant_id`.

    Columns: `participant_id`, `session` (missing where the tree has none), `n_sessions`, `centre`, `image` and `mask`
    (POSIX paths relative to `root`), `n_i`, `n_j`, `n_k`, `spacing_i_mm`, `spacing_j_mm`, `spacing_k_mm`,
    `lesion_volume_ml`. A subject with several sessions is listed with the first: later scans of the same person
    are no independent sample, and everything downstream counts subjects.

    Raises
    ------
    InputError
        If the tree has no subjects, or a subject has no mask.
    """
    root = Path(root)
    centres = _centres(root)
    rows = []
    for subject in _subjects(root):
        images = sorted(subject.glob("anat/*_T1w.nii.gz")) + sorted(subject.glob("ses-*/anat/*_T1w.nii.gz"))
        if not images:
            raise InputError(f"{subject} holds no T1w image: run `reperfuse ingest` again.")
        image = images[0]
        anat = image.parent.relative_to(root)
        masks = sorted((root / "derivatives" / "lesion" / anat).glob("*_mask.nii.gz"))
        if len(masks) != 1:
            raise InputError(f"{subject} has {len(masks)} masks in derivatives/lesion: run `reperfuse ingest` again.")
        mask = load_volume(masks[0])
        rows.append(
            {
                "participant_id": subject.name,
                "session": next((part for part in anat.parts if part.startswith("ses-")), None),
                "n_sessions": len(images),
                "centre": centres.get(subject.name, UNKNOWN_CENTRE),
                "image": _relative(image, root),
                "modalities": "t1w",
                "t1w": _relative(image, root),
                "dwi": None,
                "adc": None,
                "flair": None,
                "mask": _relative(masks[0], root),
                **_grid(mask.data.shape, mask.spacing_mm),
                "lesion_volume_ml": float(np.count_nonzero(mask.data) * np.prod(mask.spacing_mm) / 1000),
            }
        )
    return pd.DataFrame(rows)


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
        shape, spacing = _header(image)
        sidecar = read_json(sidecar_path(image))
        rows.append(
            {
                "participant_id": subject.name,
                "centre": centres.get(subject.name, UNKNOWN_CENTRE),
                "image": _relative(image, root),
                "reference": _relative(reference, root) if reference.exists() else None,
                **_grid(shape, spacing),
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
    if not path.exists():
        return {}
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    if not {"participant_id", "centre"} <= set(table.columns):
        raise InputError(f"{path} lacks the columns participant_id and centre: run `reperfuse ingest` again.")
    known = table[~table["centre"].isin(["", "n/a"])]
    return dict(zip(known["participant_id"], known["centre"], strict=True))


def _header(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing [mm] from the header alone: a DSC series is too large to read for its size."""
    try:
        image: Any = nib.load(path)
    except (FileNotFoundError, ImageFileError, EOFError, OSError) as error:
        raise InputError(f"{path} is missing or damaged: run `reperfuse ingest` again.") from error
    return image.shape, tuple(float(length) for length in np.linalg.norm(image.affine[:3, :3], axis=0))


def _grid(shape: tuple[int, ...], spacing: tuple[float, ...]) -> dict[str, Any]:
    axes = ("i", "j", "k")
    return {f"n_{axis}": int(n) for axis, n in zip(axes, shape, strict=False)} | {
        f"spacing_{axis}_mm": round(length, 6) for axis, length in zip(axes, spacing, strict=True)
    }


def _relative(path: Path, root: Path) -> str:
    return str(PurePosixPath(path.relative_to(root)))
