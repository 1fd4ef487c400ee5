"""Subjects that would break a training, found before its first epoch and all at once."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from reperfuse.errors import InputError
from reperfuse.training.samples import Subject
from reperfuse.training.sampling import Sampling

NAMED = 5
"""Subjects that a sentence names before it counts the others."""

SLAB_VOXELS = 2**18
"""Voxels looked at together: 1 MB in single precision, which stays in the processor's cache."""


def check_subjects(subjects: Iterable[Subject], *, labels: bool) -> None:
    """Refuse subjects that a training would break on, however late it would come to them.

    Each is read once, by itself: 0.01 s for (192, 224, 176) voxels in memory. What was found holds for as long as its
    files stay as they are, so that the trainings of a search look once.

    Parameters
    ----------
    labels
        Whether targets are 0 or 1, as the losses of segmentation take them. Others may be any number.

    Raises
    ------
    InputError
        If arrays are missing, damaged, of several shapes or no numbers, an image is constant or holds NaN or infinity,
        or a target holds what its loss cannot take. Names the subjects, from the sixth on their number.
    """
    faults, total = [], 0
    for subject in subjects:
        total += 1
        fault = fault_of(subject, labels=labels)
        if fault is not None:
            faults.append(f"{subject.participant_id} ({fault})")
    if faults:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise InputError(
            f"{len(faults)} of {total} subjects cannot be trained on: {', '.join(faults[:NAMED])}{more}; run "
            "preprocess again, or leave them out of the cohort."
        )


def fault_of(subject: Subject, *, labels: bool) -> str | None:
    """What is wrong with a subject, as the middle of a sentence; None for nothing."""
    files = [subject.folder / name for name in ("image.npy", "target.npy", "mask.npy", "subject.json")]
    states = (path.stat() if path.exists() else None for path in files)
    return _fault(subject, labels, tuple(state and (state.st_mtime_ns, state.st_size) for state in states))


def check_shapes(subjects: Sequence[Subject], patch_size: Sequence[int] | None, batch_size: int, of: Sampling) -> None:
    """Refuse whole volumes, or whole planes, of several shapes where they are to share a batch.

    Raises
    ------
    InputError
        Names how many shapes there are.
    """
    if patch_size is not None or batch_size == 1:
        return
    shapes = {subject.parts()[2].shape for subject in subjects}
    what = "volumes"
    if of.kind == "slices":
        what, shapes = "planes", {shape[: of.across] + shape[of.across + 1 :] for shape in shapes}
    if len(shapes) > 1:
        raise InputError(f"Whole {what} of {len(shapes)} shapes cannot share a batch: set patch_size, or batch_size 1.")


@lru_cache(maxsize=4096)
def _fault(subject: Subject, labels: bool, state_of_files: tuple[tuple[int, int] | None, ...]) -> str | None:
    try:
        parts, target, mask = subject.parts()
    except InputError as error:
        return str(error).rstrip(".")
    for name, array in (("image", parts[0]), ("target", target), ("mask", mask)):
        if array.dtype.kind not in "biuf":
            return f"its {name}.npy holds {array.dtype} in place of numbers"
    if not target.size:
        return "its arrays are empty"
    ends = np.array([(slab.min(), slab.max()) for part in parts for slab in _slabs(part)])
    if not np.isfinite(ends).all():
        return "its image holds NaN or infinity"
    if ends.min() == ends.max():
        return "its image is constant"
    if labels and not all(((slab == 0) | (slab == 1)).all() for slab in _slabs(target)):
        return "its target holds other values than 0 and 1"
    if not labels and not all(np.isfinite(slab).all() for slab in _slabs(target)):
        inside = target[:, np.asarray(mask) > 0]
        return None if np.isfinite(inside).all() else "its target holds NaN or infinity inside the mask"
    return None


def _slabs(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array (C, I, J, K) in runs of planes of one channel, half precision made single, which NumPy is slow in."""
    planes = max(1, SLAB_VOXELS // (array.shape[2] * array.shape[3]))
    for channel in array:
        for start in range(0, len(channel), planes):
            slab = channel[start : start + planes]
            yield slab.astype(np.float32) if slab.dtype == np.float16 else slab
