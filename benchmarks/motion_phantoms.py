"""What motion costs the maps, and what realignment gives back, on drawn patients whose trajectories are known.

Each patient is drawn from one seed at rest and moving, and the moving one is realigned; the head drifts by up to 3 mm
and jumps by up to 8 mm with the rotation that belongs to it, inside the bolus as well. Artery and brain are the true
ones, so that nothing but motion is judged. Printed are what is left of the displacement after realignment (root mean
square over a ball of 80 mm, frames that count as lost aside), frames given up, and the median error of Tmax and CBV
against the noise-free maps of the same head at rest.

    python benchmarks/motion_phantoms.py [--first 7000] [--count 12]
"""

import argparse
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from reperfuse.imaging.volume import Volume
from reperfuse.perfusion.maps import perfusion_maps
from reperfuse.phantoms.dsc import DscPhantom, drawn_phantom
from reperfuse.phantoms.motion import rigid_matrix
from reperfuse.preprocessing.motion import Motion, estimate_motion, realigned
from reperfuse.preprocessing.registration import displacement_mm

SHAPE = (64, 64, 12)
AT_REST = {"jumps": 0, "drift_mm": 0.0}


def left_mm(phantom: DscPhantom, motion: Motion) -> np.ndarray:
    """Displacement that the estimate leaves in each frame, shape (T,) [mm]; NaN where the frame is lost."""
    affine = phantom.signal.affine
    middle = affine[:3, :3] @ ((np.array(phantom.signal.data.shape[:3]) - 1) / 2) + affine[:3, 3]
    moves = [rigid_matrix(row, middle) for row in phantom.trajectory]
    rest = np.linalg.inv(moves[motion.reference])
    return np.array(
        [
            np.nan if lost else displacement_mm(np.linalg.inv(move @ rest) @ found, motion.centre_mm)
            for move, found, lost in zip(moves, motion.matrices, motion.lost, strict=True)
        ]
    )


def errors(series: Volume, phantom: DscPhantom, truth: dict[str, np.ndarray], where: np.ndarray) -> tuple[float, float]:
    """Median error of Tmax [s] and of CBV [-] where the truth has tissue."""
    found = perfusion_maps(series, mask=where, aif=phantom.aif_delta_r2star)
    tmax = np.abs(found["tmax"] - truth["tmax"])[where]
    cbv = np.abs(found["cbv"][where] / truth["cbv"][where] - 1)
    return float(np.median(tmax)), float(np.median(cbv))


def main() -> None:
    """Print a row per patient and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=7000, help="seed of the first patient")
    parser.add_argument("--count", type=int, default=12)
    given = parser.parse_args()
    console = Console(width=120)
    table = Table("seed", "TR [s]", "SNR", "moved [mm]", "left, mean [mm]", "left, max", "lost", "Tmax [s]", "CBV")
    rows = []
    for seed in track(range(given.first, given.first + given.count), console=console, transient=True):
        fixed = {"snr_range": (30, 100), "tr_s_range": (1.0, 2.5), "k2": 0.0, "missing": ()}
        moves = {"jumps": 2, "drift_mm": 3.0 * (seed % 3) / 2, "jump_mm": 4.0 + 4.0 * (seed % 2)}
        still = drawn_phantom(seed, SHAPE, **fixed, **AT_REST)
        ideal = drawn_phantom(seed, SHAPE, **(fixed | {"snr": np.inf}), **AT_REST)
        moving = drawn_phantom(seed, SHAPE, **fixed, **moves)
        where = still.truth["cbf"] > 0
        truth = perfusion_maps(ideal.signal, mask=where, aif=ideal.aif_delta_r2star)
        where &= truth["cbv"] > 0
        motion = estimate_motion(moving.signal.data, moving.signal.affine, mask=still.truth["brain"])
        mended = replace(moving.signal, data=realigned(moving.signal.data, moving.signal.affine, motion))
        left = left_mm(moving, motion)
        cost = [errors(series, still, truth, where) for series in (still.signal, moving.signal, mended)]
        rows.append([np.nanmean(left), np.nanmax(left), motion.lost.sum(), *np.ravel(cost)])
        table.add_row(
            str(seed),
            f"{moving.signal.tr_s:.1f}",
            f"{float(moving.facts['snr']):.0f}",
            f"{moving.displacement_mm.max():.1f}",
            f"{np.nanmean(left):.2f}",
            f"{np.nanmax(left):.2f}",
            str(int(motion.lost.sum())),
            " / ".join(f"{tmax:.2f}" for tmax, _ in cost),
            " / ".join(f"{100 * cbv:.0f} %" for _, cbv in cost),
        )
    console.print(table)
    middle = np.median(np.array(rows, dtype=float), axis=0)
    console.print("Tmax and CBV: at rest / moving / realigned.")
    tmax, cbv = middle[3::2], 100 * middle[4::2]
    console.print(
        f"Medians: left {middle[0]:.2f} mm on average and {middle[1]:.2f} mm at most; "
        f"Tmax {tmax[0]:.2f} / {tmax[1]:.2f} / {tmax[2]:.2f} s; CBV {cbv[0]:.0f} / {cbv[1]:.0f} / {cbv[2]:.0f} %."
    )


if __name__ == "__main__":
    main()
