"""How long deconvolution takes, its peers on the same voxels in one run, and what memory it needs.

    python benchmarks/perfusion.py

floor         one product (voxels × T)·(T × 2T) in float32, BLAS on all cores: what cSVD costs at least
ssvd ...      ours, with their defaults; osvd finds a threshold for each voxel and gives all 2T lags
numpy csvd    the 2T × 2T matrix by numpy.linalg.svd, all padded curves times its truncated inverse
loop osvd     a Python loop over voxels, inverses for all thresholds made once: each voxel from the smallest threshold
              up until its oscillation index is within the limit; on 2000 of the voxels, and scaled

Voxels are phantom curves (T 60, TR 1.5 s, four residue families, MTT 3–14 s, delay 0–9 s) at SNR 50, where oSVD looks
at 3.5 thresholds on average; the rows below the table show it at other SNR and on noise alone (15 thresholds). In
each of some rounds every peer runs for a fifth of a second or longer, so that a busy machine slows short and long ones
alike; times are those of the best round, ratios the median over rounds of the ratio to the floor in the same round.
Memory is the peak above the curves themselves, the result (2T float32 a voxel) included, in a process of its own.

What to expect of osvd, in multiplications per voxel: floor T·2T = 7200. Ours, with the m = 27 frequencies above the
lowest threshold: to amplitudes 2m·T = 3240, to the residue 2m·2T = 6480, and 1670 for each look at all second
differences (3.5 of them) or at all values (1.7), half of what it would be without the fold: 18 400, 2.6 floors. Beside
each look some 430 other operations on numbers in cache, 2200 in all, each worth five to eight multiplications of a
product: 1.5 to 2.5 floors more. Four to five floors expected.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
from timing import best_of

from reperfuse.perfusion.circulant import arterial_spectrum, circulant_svd
from reperfuse.perfusion.deconvolution import residue_function
from reperfuse.perfusion.oscillation import LOWEST_THRESHOLD, OSCILLATION_LIMIT
from reperfuse.phantoms.voxels import voxel_phantom

FRAMES, DT, TE = 60, 1.5, 0.03
SIZES = {"(64,64,12)": 64 * 64 * 12, "(128,128,12)": 128 * 128 * 12, "(128,128,24)": 128 * 128 * 24}
ROUNDS = 5
LOOPED = 2000
"""Voxels that the loop is timed on."""


def curves(voxels: int, snr: float = 50.0) -> tuple[np.ndarray, np.ndarray]:
    """ΔR2* of `voxels` voxels, float32, and the AIF; 8192 different voxels, repeated. SNR 0 is noise alone."""
    rng = np.random.default_rng(0)
    found = []
    for seed, residue in enumerate(("exponential", "lorentzian", "gamma", "box")):
        mtt, delay, cbv = (rng.uniform(*limits, 2048) for limits in ((3, 14), (0, 9), (2, 5)))
        phantom = voxel_phantom(60 * cbv / mtt, mtt, delay, snr=snr or 50.0, residue=residue, seed=seed)
        signal = phantom.signal.data[:, 0, 0]
        found.append(-np.log(signal / signal[:, :8].mean(axis=1, keepdims=True)) / TE)
    different = np.concatenate(found) if snr else rng.normal(0, 1, (8192, FRAMES))
    rng.shuffle(different)
    return np.resize(different.astype(np.float32), (voxels, FRAMES)), phantom.aif


def numpy_csvd(tissue: np.ndarray, aif: np.ndarray, threshold: float = 0.1) -> np.ndarray:
    padded = np.pad(DT * aif, (0, FRAMES))
    matrix = np.stack([np.roll(padded, k) for k in range(2 * FRAMES)], axis=1)
    u, s, vt = np.linalg.svd(matrix)
    kept = s >= threshold * s[0]
    inverse = (vt[kept].T / s[kept]) @ u[:, kept].T
    return np.pad(tissue, ((0, 0), (0, FRAMES))) @ inverse.T.astype(np.float32)


def loop_osvd(tissue: np.ndarray, aif: np.ndarray) -> np.ndarray:
    modulus = arterial_spectrum(aif, DT)[1]
    thresholds = np.unique(modulus[modulus >= LOWEST_THRESHOLD])
    inverses = [circulant_svd(np.eye(FRAMES, dtype=np.float32), aif, DT, threshold=x) for x in thresholds]
    found = np.empty((len(tissue), 2 * FRAMES), np.float32)
    ring = np.empty(2 * FRAMES + 2, np.float32)
    for curve, residue in zip(tissue, found, strict=True):
        for inverse in inverses:
            np.matmul(curve, inverse, out=residue)
            ring[1:-1], ring[0], ring[-1] = residue, residue[-1], residue[0]
            bends = np.abs(ring[2:] - 2 * residue + ring[:-2]).sum()
            if bends <= OSCILLATION_LIMIT * 2 * FRAMES * np.abs(residue).max():
                break
    return found


def floor(tissue: np.ndarray, aif: np.ndarray) -> np.ndarray:
    return tissue @ np.ones((FRAMES, 2 * FRAMES), np.float32)


def ours(method: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda tissue, aif: residue_function(tissue, aif, DT, method)


PEERS = {"floor": floor} | {name: ours(name) for name in ("ssvd", "csvd", "osvd", "tikhonov")}
PEERS |= {"numpy csvd": numpy_csvd, "loop osvd": loop_osvd}


def repeated(
    peer: Callable[[np.ndarray, np.ndarray], np.ndarray], times: int, tissue: np.ndarray, aif: np.ndarray
) -> None:
    for _ in range(times):
        peer(tissue, aif)


def timed(
    peers: list[str], tissue: np.ndarray, aif: np.ndarray, rounds: int = ROUNDS
) -> dict[str, tuple[float, float]]:
    """Seconds of each peer in its best round, and the median over rounds of its ratio to the first peer."""
    turns = []
    for _ in range(rounds):
        turn = {}
        for name in peers:
            once = best_of(lambda name=name: PEERS[name](tissue, aif), 1)
            calls = max(1, round(0.2 / once))
            turn[name] = best_of(lambda name=name, n=calls: repeated(PEERS[name], n, tissue, aif), 1) / calls
        turns.append(turn)
    return {
        name: (min(t[name] for t in turns), statistics.median(t[name] / t[peers[0]] for t in turns)) for name in peers
    }


def peak_mb(peer: str, voxels: int) -> float:
    """Peak memory of one call above what the process holds before [MB], in a process of its own."""
    command = [sys.executable, __file__, "--peer", peer, "--voxels", str(voxels)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(peer: str, voxels: int) -> None:
    """Watch this process while it runs one call."""
    tissue, aif = curves(voxels)
    PEERS[peer](tissue[:100], aif)  # what is loaded or started once does not count
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, process.memory_info().rss)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = PEERS[peer](tissue, aif)
    highest = max(highest, process.memory_info().rss)
    done.set()
    watcher.join()
    assert len(result) == voxels
    print((highest - before) / 1e6)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--voxels", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peer:
        print_peak(asked.peer, asked.voxels)
        return

    print(f"{'size':>14s}  {'peer':12s}{'seconds':>9s}{'voxels/s':>12s}{'× floor':>9s}{'peak MB':>9s}")
    for size, voxels in SIZES.items():
        tissue, aif = curves(voxels)
        found = timed([name for name in PEERS if name != "loop osvd"], tissue, aif)
        looped = best_of(lambda: loop_osvd(tissue[:LOOPED], aif), 1) / LOOPED * voxels  # noqa: B023 (called at once)
        found["loop osvd"] = looped, looped / found["floor"][0]
        for name, (taken, ratio) in found.items():
            memory = "" if name == "loop osvd" else f"{peak_mb(name, voxels):9.0f}"
            print(f"{size:>14s}  {name:12s}{taken:9.3f}{voxels / taken:12.3g}{ratio:9.1f}{memory}", flush=True)

    osvd, loop = residue_function(tissue[:LOOPED], aif, DT, "osvd"), loop_osvd(tissue[:LOOPED], aif)
    same = (np.abs(osvd - loop).max(axis=1) < 1e-4 * loop.max()).mean()
    print(f"\nosvd and the loop agree in {100 * same:.2f} % of {LOOPED} voxels; others are at the limit up to rounding")
    print(f"\nosvd by noise, {size}:")
    for label, snr in (("SNR 100", 100.0), ("SNR 50", 50.0), ("SNR 20", 20.0), ("noise alone", 0.0)):
        taken, ratio = timed(["floor", "osvd"], *curves(voxels, snr), 5)["osvd"]
        print(f"{label:>14s}  {taken:9.3f} s{ratio:9.1f} × floor", flush=True)


if __name__ == "__main__":
    main()
