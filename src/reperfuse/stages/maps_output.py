"""What `reperfuse maps` leaves in its folder, each file whole or absent, summary.json last."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reperfuse.files import atomic_path, write_json
from reperfuse.imaging.volume import Volume, save_volume
from reperfuse.perfusion.aif import Aif
from reperfuse.perfusion.maps import MAPS, UNITS
from reperfuse.perfusion.quality import Flag
from reperfuse.preprocessing.motion import Motion
from reperfuse.stages.maps_input import AIF_COLUMN
from reperfuse.stages.processed import write_table

RTTP = "rttp"
"""Time to peak behind normal tissue [s], which stands for Tmax where no artery was found."""

SPELT = {"cbf": "CBF", "cbv": "CBV", "mtt": "MTT", "tmax": "Tmax", "ttp": "TTP", "delay": "delay", RTTP: "rTTP"}
"""Map to its name in the header, where its unit follows."""

WRITTEN = (*(f"{name}.nii.gz" for name in (*MAPS, RTTP)), "aif.csv", "motion.csv", "summary.json", "qc.png")

DOTS_PER_INCH = 110
"""Of qc.png: small print is readable on a screen at full size."""


def clear(out: Path) -> None:
    """Remove what an earlier run left, so that a folder never mixes two examinations."""
    for name in WRITTEN:
        (out / name).unlink(missing_ok=True)


def write_images(out: Path, found: dict[str, np.ndarray], affine: np.ndarray) -> None:
    """A NIfTI file per map, float32, its name and unit in the header's `descrip`."""
    for name, values in found.items():
        unit = UNITS.get(name, "s")
        save_volume(out / f"{name}.nii.gz", Volume(values, affine), description=f"{SPELT[name]} [{unit}]")


def write_curves(out: Path, dt: float, aif: Aif | None, vof: Aif | None, tissue: np.ndarray) -> None:
    """aif.csv: the artery as used, the vein and the mean tissue, ΔR2* [1/s] at the frames."""
    columns = {"time_s": np.round(np.arange(tissue.size) * dt, 6)}
    if aif is not None:
        columns[AIF_COLUMN] = aif.curve
    if vof is not None:
        columns["vof_delta_r2star_per_s"] = vof.curve
    write_table(out / "aif.csv", pd.DataFrame({**columns, "tissue_delta_r2star_per_s": tissue}).round(6))


def write_motion(out: Path, motion: Motion, frame_times_s: np.ndarray | None) -> None:
    """motion.csv: displacement of each frame [mm], and whether it was realigned or lost."""
    columns = {
        "time_s": frame_times_s,
        "displacement_mm": motion.displacement_mm,
        "realigned": motion.resampled,
        "lost": motion.lost,
    }
    write_table(out / "motion.csv", pd.DataFrame(columns).round(6))


def write_page(out: Path, page: Figure) -> None:
    """qc.png."""
    with atomic_path(out / "qc.png") as inside:
        page.savefig(inside, dpi=DOTS_PER_INCH)


def write_summary(out: Path, content: dict[str, Any], flags: Sequence[Flag]) -> dict[str, Any]:
    """summary.json, with the flags by name and their sentences beside."""
    summary = content | {
        "flags": [flag.name for flag in flags],
        "flag_sentences": {flag.name: flag.sentence for flag in flags},
    }
    write_json(out / "summary.json", summary)
    return summary
