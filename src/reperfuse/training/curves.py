"""Training samples of the arrival network: features of invented curves, and the delay and Tmax they stand for."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils.data import Dataset

from reperfuse.perfusion.concentration import delta_r2star
from reperfuse.perfusion.maps import maps_of_curves
from reperfuse.perfusion.matched import N_FEATURES, matched_features
from reperfuse.phantoms.curves import Population, drawn_curves

NOISE_ERROR = 0.1
"""Standard deviation of the logarithm of the noise that a network is told over the true one: of a patient it is known
from a few baseline frames, taken to be the same everywhere."""

AIF_NOISE = 0.03
"""Up to this part of its maximum is the noise of the artery that a network is given: some voxels' average."""

SCANS_PER_TASK = 64


def scan_samples(seed: int, population: Population, n_voxels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features, shape (n, F), and delay and Tmax, shape (n, 2) [s], of one scan of a population.

    Tmax is what oSVD makes of the curves without noise: 6 s then mean the same for every method.
    """
    scan = drawn_curves(population, seed, n_voxels)
    rng = np.random.default_rng([seed, 1])
    curves = delta_r2star(scan.signal, scan.te_s, baseline=scan.baseline)
    told = scan.noise * np.exp(NOISE_ERROR * rng.standard_normal())
    error = rng.uniform(0, AIF_NOISE) * scan.aif.max() * rng.standard_normal(scan.aif.size)
    features = matched_features(curves, scan.aif + error, scan.tr_s, told)
    tmax = maps_of_curves(scan.clean, scan.aif, scan.tr_s, method="osvd")["tmax"]
    return features, np.stack([scan.delay, tmax], axis=1).astype(np.float32)


def curve_samples(
    population: Population,
    seeds: Sequence[int],
    n_voxels: int,
    *,
    workers: int | None = None,
    on_scan: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features, shape (n, F) float32, and delay and Tmax, shape (n, 2) [s], of the voxels of many scans.

    A million voxels take 560 MB. What a scan gives depends on its seed alone, not on the number of processes.

    Parameters
    ----------
    population
        Where scans are drawn from.
    seeds
        One per scan.
    n_voxels
        Voxels per scan.
    workers
        Processes that draw; by default one per core, 1 for this process alone.
    on_scan
        Called after each scan.
    """
    features = torch.empty(len(seeds) * n_voxels, N_FEATURES)
    targets = torch.empty(len(seeds) * n_voxels, 2)
    draw = partial(scan_samples, population=population, n_voxels=n_voxels)
    with ExitStack() as stack:
        count = workers or os.cpu_count() or 1
        if count == 1:
            drawn: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]] = map(draw, seeds)
        else:
            # Forking a process that runs BLAS threads can hang; a fresh interpreter cannot.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(count, context, initializer=_alone))
            drawn = pool.map(draw, seeds, chunksize=SCANS_PER_TASK)
        for place, (found, truth) in enumerate(drawn):
            part = slice(place * n_voxels, (place + 1) * n_voxels)
            features[part], targets[part] = torch.from_numpy(found), torch.from_numpy(truth)
            if on_scan:
                on_scan()
    return features, targets


def _alone() -> None:
    """One core per process: the processes are as many as the cores."""
    threadpool_limits(1)
    torch.set_num_threads(1)


class CurveBatches(Dataset):
    """Batches of voxels in an order shuffled anew every epoch: features, targets, and a mask that is true everywhere.

    An item is a dict as `TrainingModule` takes it: image (n, F), target (n, 2), mask (n, 2). Indices count on from
    epoch to epoch (see `samples.EpochSampler`).
    """

    def __init__(self, features: Tensor, targets: Tensor, batch_size: int, seed: int) -> None:
        self.features, self.targets = features, targets
        self.batch_size, self.seed = batch_size, seed
        self.n_batches = len(features) // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, place = divmod(index, self.n_batches)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.features), generator=generator)
        rows = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        target = self.targets[rows]
        return {"image": self.features[rows], "target": target, "mask": torch.ones_like(target, dtype=torch.bool)}
