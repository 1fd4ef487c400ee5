"""Training samples cut from memory-mapped volumes: nothing is held that grows with the cohort.

A subject is a folder with `image.npy` (C, I, J, K) float32 or float16, `target.npy` (M, I, J, K) and `mask.npy`
(I, J, K) uint8, the brain. Where `subject.json` names groups of channels (`inputs`) and targets (`targets`), a training
chooses among them.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from reperfuse.errors import InputError
from reperfuse.files import read_json

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]

KEPT_VOXELS, KEPT_SUBJECTS = 2048, 256
"""Foreground voxels remembered per subject, and subjects they are remembered for: at most 2 MB per process."""


@dataclass(frozen=True)
class Subject:
    """Who a preprocessed folder belongs to, where it is, and what of it is used."""

    participant_id: str
    folder: Path
    inputs: tuple[str, ...] = ()
    """Groups of channels, in this order; none is the whole image."""
    target: str | None = None
    """Name of the target; None is the first."""

    def load(self) -> Arrays:
        """Image (C, I, J, K), target (1, I, J, K) and mask (I, J, K).

        Memory-mapped, so that only what is read is loaded, except an image of groups that are no neighbours in the
        file, which is read whole.

        Raises
        ------
        InputError
            If an array is missing, cut short, or of another shape than the image, or a group or target is not there.
        """
        parts, target, mask = self.parts()
        return parts[0] if len(parts) == 1 else np.concatenate(parts), target, mask

    def parts(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """As `load`, all memory-mapped: the image as the runs of channels that it is put together from."""
        image, target, mask = (self._open(name) for name in ("image", "target", "mask"))
        if image.ndim != 4 or target.ndim != 4 or not image.shape[1:] == target.shape[1:] == mask.shape:
            raise InputError(
                f"{self.folder} holds an image {image.shape}, a target {target.shape} and a mask {mask.shape} that do "
                "not belong together: run preprocess again."
            )
        number = 0 if self.target is None else self._described("targets", "perfusion.preprocess.targets", self.target)
        runs = [(0, len(image))]
        if self.inputs:
            runs = [self._described("inputs", "perfusion.preprocess.inputs", name) for name in self.inputs]
            runs = _joined(runs)
        return [image[start:stop] for start, stop in runs], target[number : number + 1], mask

    def _described(self, key: str, parameter: str, name: str) -> Any:
        """Where subject.json says that a group of channels (start, stop) or a target (its number) lies."""
        there = read_json(self.folder / "subject.json").get(key, [])
        if name not in there:
            known = f"holds {', '.join(there)}" if there else "names none"
            raise InputError(
                f"{self.folder} has no {name} among its {key} (it {known}): "
                f"add it to {parameter} in params.yaml and run preprocess again."
            )
        return tuple(there[name]) if isinstance(there, dict) else there.index(name)

    def _open(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing: run preprocess first.") from error
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}): run preprocess again.") from error


def light_augmentation(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """The sample mirrored along each axis with probability ½, its image times U(0.9, 1.1) plus U(−0.1, 0.1)·SD.

    The shift is in the image's own standard deviation, so that it means the same under any normalisation.
    """
    flipped = tuple(-1 - axis for axis in range(3) if rng.random() < 0.5)
    image, target, mask = (np.flip(array, flipped) for array in arrays)
    scale, shift = rng.uniform(0.9, 1.1), rng.uniform(-0.1, 0.1)
    return (image * scale + shift * image.std()).astype(np.float32), target, mask


def no_augmentation(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """The sample as it is."""
    return arrays


AUGMENTATIONS: dict[str, Callable[[Arrays, np.random.Generator], Arrays]] = {
    "none": no_augmentation,
    "light": light_augmentation,
}
"""Name to function of (image, target, mask) and a random generator."""


class PatchSamples(Dataset):
    """Random patches, each fixed by (seed, epoch, index): a resumed training sees what the unbroken one would have.

    An item is a dict of tensors: image (C, *patch) float32, target (1, *patch) float32 and mask (1, *patch) bool.
    Index counts on from epoch to epoch: items from `n_samples` on belong to the second (see `EpochSampler`).
    Subjects take turns in an order shuffled anew each round, so that all are seen equally often.

    Parameters
    ----------
    subjects
        Who to draw from.
    n_samples
        Samples per epoch.
    patch_size
        Voxels per axis; None for the whole volume. Where the volume is smaller, the patch is filled up with zeros
        outside the mask.
    foreground_fraction
        Share of patches centred on a random voxel of the target above 0, as far as the border allows; the others lie
        anywhere. Subjects without such a voxel give patches from anywhere.
    augment
        Name in `AUGMENTATIONS`.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        *,
        n_samples: int,
        patch_size: Sequence[int] | None = None,
        foreground_fraction: float = 0.0,
        augment: str = "none",
        seed: int = 0,
    ) -> None:
        if not subjects:
            raise InputError("There is no subject to train on: check the cohort and its folds.")
        if augment not in AUGMENTATIONS:
            raise InputError(f"augment {augment!r} is not known: choose one of {', '.join(AUGMENTATIONS)}.")
        self.subjects = list(subjects)
        self.n_samples = n_samples
        self.patch_size = None if patch_size is None else tuple(patch_size)
        self.foreground_fraction = foreground_fraction
        self.augment = AUGMENTATIONS[augment]
        self.seed = seed
        self._foreground: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, *divmod(index, self.n_samples)])
        turn, place = divmod(index, len(self.subjects))
        number = int(np.random.default_rng([self.seed, turn]).permutation(len(self.subjects))[place])
        parts, target, mask = self.subjects[number].parts()
        if self.patch_size is None:
            arrays = _whole(parts, target, mask)
        else:
            arrays = _cut(parts, target, mask, self._corner(number, target, rng), self.patch_size)
        image, target, mask = self.augment(arrays, rng)
        # A copy each time: a memory-mapped array is read-only, and a flipped one has negative strides.
        return {
            "image": torch.from_numpy(np.array(image, dtype=np.float32)),
            "target": torch.from_numpy(np.array(target, dtype=np.float32)),
            "mask": torch.from_numpy(np.array(mask[None] > 0)),
        }

    def _corner(self, number: int, target: np.ndarray, rng: np.random.Generator) -> tuple[int, ...]:
        assert self.patch_size is not None
        shape = target.shape[1:]
        room = [max(size - patch, 0) for size, patch in zip(shape, self.patch_size, strict=True)]
        corner = rng.integers(0, room, endpoint=True)
        if rng.random() < self.foreground_fraction:
            voxels = self._foreground_of(number, target)
            if len(voxels):
                centre = np.unravel_index(voxels[rng.integers(len(voxels))], shape)
                corner = np.clip(np.subtract(centre, np.array(self.patch_size) // 2), 0, room)
        return tuple(int(start) for start in corner)

    def _foreground_of(self, number: int, target: np.ndarray) -> np.ndarray:
        """Flat indices of target voxels above 0, at most `KEPT_VOXELS`, chosen by seed and subject alone."""
        if number not in self._foreground:
            voxels = np.flatnonzero(target[0] > 0)
            if len(voxels) > KEPT_VOXELS:
                voxels = np.random.default_rng([self.seed, number]).choice(voxels, KEPT_VOXELS, replace=False)
            self._foreground[number] = voxels.astype(np.int32)
        self._foreground.move_to_end(number)
        while len(self._foreground) > KEPT_SUBJECTS:
            self._foreground.popitem(last=False)
        return self._foreground[number]


class EpochSampler(Sampler[int]):
    """Indices of one epoch of `PatchSamples`; Lightning tells it the epoch, also after a resume."""

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Move to `epoch`, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_samples

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.n_samples
        return iter(range(start, start + self.n_samples))


def _joined(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs of channels with those that follow each other in the file made one.

    >>> _joined([(0, 60), (60, 226), (230, 235)])
    [(0, 226), (230, 235)]
    """
    joined: list[tuple[int, int]] = []
    for start, stop in runs:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _whole(parts: Sequence[np.ndarray], target: np.ndarray, mask: np.ndarray) -> Arrays:
    # In single precision from here on: the deviation of a half-precision image may not fit half precision.
    return np.concatenate(parts, dtype=np.float32), np.asarray(target), np.asarray(mask)


def _cut(
    parts: Sequence[np.ndarray],
    target: np.ndarray,
    mask: np.ndarray,
    corner: Sequence[int],
    patch_size: Sequence[int],
) -> Arrays:
    window: tuple[Any, ...] = (
        ...,
        *(slice(start, start + size) for start, size in zip(corner, patch_size, strict=True)),
    )
    image, target, mask = _whole([part[window] for part in parts], target[window], mask[window])
    missing = [(0, size - have) for size, have in zip(patch_size, mask.shape, strict=True)]
    if any(after for _, after in missing):
        image, target = (np.pad(array, [(0, 0), *missing]) for array in (image, target))
        mask = np.pad(mask, missing)
    return image, target, mask
