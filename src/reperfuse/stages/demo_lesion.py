"""The lesion arm of the demo data: an ATLAS R2.0 tree of lesion phantoms, or of real lesions in a real T1w."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reperfuse.errors import InputError
from reperfuse.files import atomic_path, write_json

if TYPE_CHECKING:
    from reperfuse.imaging.volume import Volume
    from reperfuse.phantoms.anatomy import Anatomy
    from reperfuse.phantoms.patient import LesionPhantom

FLOOR_ML = 0.3
"""Smallest lesion of the demo [mL]: at the 2 mm of its model, smaller ones (5 % of the real masks) are fewer than 38
voxels, and its network, trained for minutes, can only guess at them. Cohorts that rank methods take 0."""

LESION_FREE = 10
"""One subject of so many has no lesion: 2 of 20, none of fewer than 10, which keep a lesion on every side."""

T1W = "lesymap/ch2.nii.gz"
"""The real T1w within the folder of real lesions."""

MASKS = ("lesymap/lesions/*.nii.gz", "soop_masks/*_lesion.nii.gz")
"""The real masks there: 80 chronic ones on the grid of the T1w, 728 acute ones in MNI space."""


def lesion_plan(
    count: int, seed: int, full_size: bool = True, *, floor_ml: float = FLOOR_ML, centres: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Subject folder and the arguments of `write_subject`, for each subject of a cohort of phantoms.

    Parameters
    ----------
    floor_ml
        Smallest lesion [mL].
    centres
        Number of centres; by default 4, and 2 for fewer than 8 subjects.
    """
    from reperfuse.phantoms.lesions import volume_quantile

    rng = np.random.default_rng([seed, 2])
    for folder, centre, share in _dealt(count, centres, rng):
        yield (
            folder,
            {
                "cost": 100.0 if full_size else 1.0,
                "centre": centre,
                "grid_mm": 1.0 if full_size else 4.0,
                "volume_ml": 0.0 if share is None else volume_quantile(share, floor_ml=floor_ml),
                "seed": int(rng.integers(0, 2**31)),
            },
        )


def real_lesion_plan(
    count: int, seed: int, real: Path, *, centres: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Subject folder and the arguments of `write_subject`, for each subject of a cohort with real lesions.

    The masks are ordered by volume and cut into as many equal groups as there are lesions, and one is drawn from each:
    a small cohort has the volumes of the large one, and no mask is there twice. Every mask is read once for that.

    Raises
    ------
    InputError
        If the T1w is not there, or fewer masks than lesions.
    """
    from rich.progress import track

    from reperfuse.imaging.volume import load_volume

    real = Path(real).resolve()
    if not (real / T1W).is_file():
        raise InputError(f"{real / T1W} is missing: name the folder that holds lesymap/ and soop_masks/.")
    paths = [path for pattern in MASKS for path in sorted(real.glob(pattern))]
    rng = np.random.default_rng([seed, 4])
    dealt = list(_dealt(count, centres, rng))
    wanted = sum(share is not None for _, _, share in dealt)

    def volume(path: Path) -> float:
        mask = load_volume(path)
        return float(np.count_nonzero(mask.data > 0.5) * np.prod(mask.spacing_mm))

    with ThreadPoolExecutor(4) as pool:  # most of it is decompression, which threads share
        volumes = list(track(pool.map(volume, paths), total=len(paths), description="volumes of real lesions"))
    order = [paths[i] for i in np.argsort(volumes, kind="stable") if volumes[i] > 0]
    if len(order) < wanted:
        raise InputError(f"{real} holds {len(order)} lesion masks, and {wanted} lesions are asked for: ask for fewer.")
    for folder, centre, share in dealt:
        yield (
            folder,
            {
                "cost": 100.0,
                "centre": centre,
                "real": real,
                "mask": None if share is None else str(order[int(share * len(order))].relative_to(real)),
                "seed": int(rng.integers(0, 2**31)),
            },
        )


def _dealt(count: int, centres: int | None, rng: np.random.Generator) -> list[tuple[str, int, float | None]]:
    """Folder, centre and share of the volume distribution (None without a lesion) of each subject.

    Stratified: a small cohort still has small, middling and large lesions in the measured proportion.
    """
    free = set(rng.permutation(count)[: count // LESION_FREE].tolist())
    lesions = count - len(free)
    shares = iter((rng.permutation(lesions) + rng.random(lesions)) / lesions)
    centres = centres or (4 if count >= 8 else 2)
    dealt = []
    for i in range(count):
        centre = i % centres + 1
        folder = f"R{centre:03d}/sub-r{centre:03d}s{i // centres + 1:03d}"
        dealt.append((folder, centre, None if i in free else float(next(shares))))
    return dealt


def lesion_subject(
    *,
    centre: int,
    seed: int,
    grid_mm: float = 1.0,
    volume_ml: float | None = None,
    real: Path | None = None,
    mask: str | None = None,
) -> "LesionPhantom":
    """The subject that a plan describes, in memory: a phantom or, where `real` names a folder, a real lesion."""
    from threadpoolctl import threadpool_limits

    from reperfuse.phantoms.lesions import lesion_phantom
    from reperfuse.phantoms.semireal import semi_real_patient

    with threadpool_limits(1):  # the same sums in the same order, whatever the number of processes
        if real is None:
            return lesion_phantom(seed, centre=centre, grid_mm=grid_mm, volume_ml=volume_ml)
        t1w, anatomy = _real_head(real)
        return semi_real_patient(anatomy, _on_head(real / mask, t1w) if mask else _nothing(t1w), seed, centre=centre)


@lru_cache(maxsize=1)
def _real_head(real: Path) -> "tuple[Volume, Anatomy]":
    """The real T1w and its anatomy."""
    from reperfuse.imaging.volume import load_volume
    from reperfuse.phantoms.semireal import real_anatomy

    t1w = load_volume(real / T1W)
    try:
        return t1w, real_anatomy(t1w)
    except ValueError as error:
        raise InputError(f"{real / T1W} cannot carry lesions: {error}.") from error


def _on_head(path: Path, t1w: "Volume") -> np.ndarray:
    """The mask on the grid of the T1w, by the headers."""
    from reperfuse.imaging.volume import load_volume
    from reperfuse.preprocessing.geometry import resample

    mask = resample(load_volume(path), like=t1w, mask=True).data > 0
    if not mask.any():
        raise InputError(f"{path} has no lesion within {T1W}: take it away, or bring it to MNI space.")
    return mask


def _nothing(t1w: "Volume") -> np.ndarray:
    return np.zeros(t1w.data.shape, bool)


def write_subject(*, inbox: Path, truth: Path, folder: str, **how: Any) -> None:
    """Write one subject of the ATLAS tree, T1w and lesion mask, and the truth beside the inbox.

    Parameters
    ----------
    how
        As `lesion_subject`.
    """
    from reperfuse.imaging.volume import save_volume

    phantom = lesion_subject(**how)
    subject = Path(folder).name
    stem = f"{subject}_ses-1_space-MNI152NLin2009aSym"
    with atomic_path(inbox / folder) as room:
        anat = room / "ses-1" / "anat"
        save_volume(anat / f"{stem}_T1w.nii.gz", phantom.t1w)
        save_volume(anat / f"{stem}_label-L_desc-T1lesion_mask.nii.gz", phantom.mask)
    source = {"mask": how["mask"]} if "real" in how else {}
    write_json(truth / subject / "truth.json", {**phantom.truth, **source, "subject": subject})


def description(real: bool) -> dict[str, Any]:
    """Content of dataset_description.json."""
    if real:
        name = "Real stroke lesions in a real T1w, seen through simulated scanners (reperfuse demo data)"
        licence = "Anatomy and chronic masks: LESYMAP, Apache-2.0; acute masks: SOOP, CC0; everything else CC0"
    else:
        name = "Simulated chronic stroke lesions on the MNI152 T1w (reperfuse demo data)"
        licence = (
            "Anatomy: MNI152 ICBM 2009a, McConnell Brain Imaging Centre, free use with notice; everything else CC0"
        )
    return {
        "Name": name,
        "BIDSVersion": "1.6.0",
        "DatasetType": "raw",
        "License": licence,
        "GeneratedBy": [{"Name": "reperfuse demo-data"}],
    }
