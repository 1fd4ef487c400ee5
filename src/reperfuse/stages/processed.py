"""Processed subjects: the folder of arrays that preprocess writes and every later stage reads.

`data/processed/<arm>/<participant_id>/` holds image.npy (C, I, J, K), target.npy (M, I, J, K), mask.npy (I, J, K)
uint8 and subject.json, which says what the arrays were made from (`source`) and, where there is a choice, which
channels make which group (`inputs`, name to [start, stop]) and what the targets are called (`targets`); `index.csv`
beside them lists everyone with the hash of their arrays, so that a fingerprint of the data costs one small file, and
with their source.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike

from reperfuse.errors import InputError
from reperfuse.files import atomic_path, read_json, sha256_of, write_json
from reperfuse.params import Folds
from reperfuse.preprocessing.intensity import intensities
from reperfuse.stages import layout

ARRAYS = ("image.npy", "target.npy", "mask.npy")


def write_subject(
    folder: Path,
    image: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray,
    description: dict[str, Any],
    *,
    dtype: DTypeLike = np.float32,
) -> None:
    """Write one subject's arrays and description, whole or not at all.

    Parameters
    ----------
    image : shape (C, I, J, K)
    target : shape (I, J, K) for one, (M, I, J, K) for several
    mask : shape (I, J, K), bool
    description : JSON content; holds at least `affine`, and `inputs` and `targets` where there is a choice
    dtype : of the stored image; half precision takes half the room and errs by 1 in 2000 at most

    Raises
    ------
    ValueError
        If a channel is not finite, or too large for `dtype`.
    """
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(image, dtype=dtype)
    if not np.isfinite(stored).all():
        raise ValueError(f"the image of {folder.name} holds values that {np.dtype(dtype)} cannot hold")
    with atomic_path(folder) as inside:
        inside.mkdir()
        np.save(inside / "image.npy", stored)
        np.save(inside / "target.npy", np.ascontiguousarray(target if target.ndim == 4 else target[None]))
        np.save(inside / "mask.npy", mask.astype(np.uint8))
        write_json(inside / "subject.json", description)


def source(image: np.ndarray, files: Iterable[Path]) -> dict[str, Any]:
    """What a subject's arrays were made from, as far as it must be known again: `files_sha256`, over the content of
    image and truth, and the `intensities` of the image, shape (I, J, K) or (I, J, K, T), as its file has them."""
    digest = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    return {"files_sha256": digest} | intensities(image)


def write_index(arm: str) -> pd.DataFrame:
    """index.csv over the subject folders that lie there."""
    root = layout.processed(arm)
    rows = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        image = np.load(folder / "image.npy", mmap_mode="r")
        digest = hashlib.sha256("".join(sha256_of(folder / name) for name in ARRAYS).encode()).hexdigest()
        row = {"participant_id": folder.name, "shape": "x".join(map(str, image.shape)), "sha256": digest}
        rows.append(row | read_json(folder / "subject.json").get("source", {}))
    index = pd.DataFrame(rows)
    with atomic_path(root / "index.csv") as inside:
        index.to_csv(inside, index=False)
    return index


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A CSV, whole or not at all."""
    with atomic_path(path) as inside:
        table.to_csv(inside, index=False)


def write_cohort(arm: str, table: pd.DataFrame, takes_part: pd.Series) -> None:
    """cohort.csv: the rows of `table` that take part.

    Raises
    ------
    InputError
        If none is left.
    """
    chosen = table[takes_part]
    if chosen.empty:
        raise InputError(
            f"{layout.bids(arm)}: none of {len(table)} subjects passes {arm}.cohort in params.yaml: loosen it."
        )
    write_table(layout.cohort_csv(arm), chosen)
    print(f"{len(chosen)} of {len(table)} subjects take part.")


def read_cohort(arm: str) -> pd.DataFrame:
    """cohort.csv; participant ids are text."""
    return read_table(layout.cohort_csv(arm), arm)


def write_folds(arm: str, settings: Folds) -> None:
    """folds.csv of the cohort, by the arm's rule."""
    from reperfuse.cohort.folds import choose_group, folds_table

    cohort = read_cohort(arm)
    group_by, why = choose_group(cohort, settings.group_by)
    table = folds_table(
        cohort,
        n_folds=settings.n_folds,
        holdout_fraction=settings.holdout_fraction,
        salt=settings.salt,
        group_by=group_by,
        holdout_count=settings.holdout_count,
    )
    write_table(layout.folds_csv(arm), table)
    held_out = int((table["side"] == "holdout").sum())
    print(f"{len(table) - held_out} subjects in {settings.n_folds} folds, {held_out} held out, {why}.")


def read_folds(arm: str) -> pd.DataFrame:
    """folds.csv, for the subjects that were processed: participant_id, side, fold."""
    folds, index = read_table(layout.folds_csv(arm), arm), read_table(layout.processed(arm) / "index.csv", arm)
    return folds[folds["participant_id"].isin(set(index["participant_id"]))].reset_index(drop=True)


def training_arrays(
    arm: str, *, inputs: tuple[str, ...] = (), target: str | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """image (C, I, J, K), target and mask (I, J, K) of each training subject, one at a time, memory-mapped.

    `inputs` and `target` as of `training.samples.Subject`: all channels and the first target when not given.
    """
    from reperfuse.training.samples import Subject  # loads PyTorch, which few stages that read tables need

    folds = read_folds(arm)
    for participant in folds.loc[folds["side"] == "train", "participant_id"]:
        image, truth, mask = Subject(participant, layout.processed(arm) / participant, inputs, target).load()
        yield image, truth[0], mask


def description(arm: str, participant: str) -> dict[str, Any]:
    """subject.json of one participant."""
    return read_json(layout.processed(arm) / participant / "subject.json")


def read_table(path: Path, arm: str) -> pd.DataFrame:
    """A CSV that a stage of `arm` wrote; participant ids and centres are text, or 01 would be hashed as 1.

    Raises
    ------
    InputError
        If that stage has not run.
    """
    if not path.exists():
        raise InputError(f"{path} is missing: run `dvc repro {arm}-report`, which makes it.")
    return pd.read_csv(path, dtype={"participant_id": str, "centre": str})
