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
from reperfuse.training.acquisition import ACQUISITIONS
from reperfuse.training.augment import AUGMENTATIONS
from reperfuse.training.sampling import (
    Sampling,
    centred_corner,
    check_sampling,
    random_corner,
    random_slice,
    rejection_corner,
)
from reperfuse.training.windows import Arrays, turned_window, window

KEPT_VOXELS, KEPT_SUBJECTS = 2048, 2048
"""Foreground voxels remembered per subject, and subjects they are remembered for: at most 16 MB per process. What a
patch holds of a larger lesion is counted on these alone, with a standard error of 1 % of that lesion."""


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
            runs = [
                self._described("inputs", "preprocess.inputs (lesion: preprocess.modalities)", name)
                for name in self.inputs
            ]
            runs = _joined(runs)
        return [image[start:stop] for start, stop in runs], target[number : number + 1], mask

    def affine(self) -> np.ndarray:
        """From voxel indices to RAS+ [mm], shape (4, 4), as subject.json has it."""
        return np.array(read_json(self.folder / "subject.json")["affine"], dtype=float)

    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of the voxels along i, j and k [mm]."""
        i, j, k = map(float, np.linalg.norm(self.affine()[:3, :3], axis=0))
        return i, j, k

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


class PatchSamples(Dataset):
    """Patches, slices or whole volumes, each fixed by (seed, epoch, index), so that a resumed training sees the same.

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
        Voxels per axis; None for the whole volume, or the whole plane of a slice. Where the volume is smaller, the
        patch is filled up with zeros outside the mask. A slice is cut or filled up to it evenly on both sides.
    foreground_fraction
        Share of patches centred on a random voxel of the target above 0, as far as the border allows; the others lie
        anywhere. Subjects without such a voxel give patches from anywhere. Of no account for other kinds of sampling.
    sampling
        Where samples lie. A slice has its own axis last, (C, I, J, 1) across k and (C, J, K, 1) across i.
    augment
        Name in `AUGMENTATIONS`.
    acquisition
        Name in `ACQUISITIONS`: how the image of a sample is made coarser before that.
    acquisition_share
        Share of the samples that are; the others stay as they are.

    Raises
    ------
    InputError
        If there is no subject, `augment` or `acquisition` is not known, or the patch size or the acquisition does not
        go with the sampling.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        *,
        n_samples: int,
        patch_size: Sequence[int] | None = None,
        foreground_fraction: float = 0.0,
        sampling: Sampling | None = None,
        augment: str = "none",
        acquisition: str = "none",
        acquisition_share: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not subjects:
            raise InputError("There is no subject to train on: check the cohort and its folds.")
        if augment not in AUGMENTATIONS:
            raise InputError(f"augment {augment!r} is not known: choose one of {', '.join(AUGMENTATIONS)}.")
        if acquisition not in ACQUISITIONS:
            raise InputError(f"acquisition {acquisition!r} is not known: choose one of {', '.join(ACQUISITIONS)}.")
        sampling = sampling or Sampling()
        check_sampling(sampling, patch_size)
        if sampling.kind == "slices" and acquisition != "none":
            raise InputError(
                f"A sample of one slice has no neighbours to be thick with: set acquisition {acquisition} to none, or "
                "sample patches."
            )
        self.subjects = list(subjects)
        self.n_samples = n_samples
        self.patch_size = None if patch_size is None else tuple(patch_size)
        self.foreground_fraction = foreground_fraction
        self.sampling = sampling
        self.augment = AUGMENTATIONS[augment]
        self.acquisition = ACQUISITIONS[acquisition]
        self.acquisition_share = 0.0 if acquisition == "none" else acquisition_share
        self.seed = seed
        self._spacing_mm: dict[int, Sequence[float]] = {}
        self._remembered: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, *divmod(index, self.n_samples)])
        turn, place = divmod(index, len(self.subjects))
        number = int(np.random.default_rng([self.seed, turn]).permutation(len(self.subjects))[place])
        parts, target, mask = self.subjects[number].parts()
        if self.sampling.kind == "slices":
            # Views with the axis across the slices last: nothing is read.
            across = self.sampling.across - 3
            parts = [np.moveaxis(part, across, -1) for part in parts]
            target, mask = np.moveaxis(target, across, -1), np.moveaxis(mask, across, -1)
        corner, size = self._place(number, target, rng)
        pose = self.augment.turn(size, rng)
        arrays = (
            window(parts, target, mask, corner, size)
            if pose is None
            else turned_window(parts, target, mask, corner, size, pose)
        )
        image, target, mask = arrays
        if self.acquisition_share and rng.random() < self.acquisition_share:
            image = self.acquisition(image, self._spacing_of(number), rng)
        image, target, mask = self.augment.finish((image, target, mask), rng)
        # Copied where need be: a memory-mapped array is read-only, and a flipped one has negative strides.
        return {
            "image": torch.from_numpy(np.require(image, np.float32, ["C", "W"])),
            "target": torch.from_numpy(np.require(target, np.float32, ["C", "W"])),
            "mask": torch.from_numpy(np.array(mask[None] > 0)),
        }

    def _spacing_of(self, number: int) -> Sequence[float]:
        """Size of a subject's voxels [mm], read once."""
        if number not in self._spacing_mm:
            self._spacing_mm[number] = self.subjects[number].spacing_mm()
        return self._spacing_mm[number]

    def _place(self, number: int, target: np.ndarray, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """First voxel and size of a sample of a subject."""
        shape, sampling = target.shape[1:], self.sampling
        if sampling.kind == "slices":
            matters = sampling.slices != "any"
            with_lesion = self._recall(number, target, _slices_with_lesion) if matters else np.zeros(shape[2], bool)
            plane = shape[:2] if self.patch_size is None else np.delete(self.patch_size, sampling.across)
            margins = [(have - asked) // 2 for have, asked in zip(shape, plane, strict=False)]
            return [*margins, random_slice(with_lesion, sampling, rng)], [*map(int, plane), 1]
        if self.patch_size is None:
            return [0, 0, 0], list(shape)
        room = [max(have - asked, 0) for have, asked in zip(shape, self.patch_size, strict=True)]
        if sampling.kind == "rejection":
            voxels = self._recall(number, target, self._foreground)
            corner = rejection_corner(voxels, shape, self.patch_size, room, sampling, rng)
        else:
            corner = random_corner(room, rng)
            if rng.random() < self.foreground_fraction:
                voxels = self._recall(number, target, self._foreground)
                if len(voxels):
                    corner = centred_corner(voxels, shape, self.patch_size, room, rng)
        return corner.tolist(), list(self.patch_size)

    def _recall(self, number: int, target: np.ndarray, of: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
        """What `of` says of a subject's target, read once for as long as it is remembered."""
        if number not in self._remembered:
            self._remembered[number] = of(number, target)
        self._remembered.move_to_end(number)
        while len(self._remembered) > KEPT_SUBJECTS:
            self._remembered.popitem(last=False)
        return self._remembered[number]

    def _foreground(self, number: int, target: np.ndarray) -> np.ndarray:
        """Flat indices of target voxels above 0, at most `KEPT_VOXELS`, chosen by seed and subject alone."""
        voxels = np.flatnonzero(target[0] > 0)
        if len(voxels) > KEPT_VOXELS:
            voxels = np.random.default_rng([self.seed, number]).choice(voxels, KEPT_VOXELS, replace=False)
        return voxels.astype(np.int32)


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


def _slices_with_lesion(number: int, target: np.ndarray) -> np.ndarray:
    """Whether each slice across the last axis has target voxels above 0, shape (K,)."""
    return (target[0] > 0).any(axis=(0, 1))
