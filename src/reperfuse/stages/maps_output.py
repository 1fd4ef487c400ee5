"""What `reperfuse maps` leaves in its folder, each file whole or absent, summary.json last."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reperfuse.errors import InputError
from reperfuse.evaluation.perfusion_qc import qc_figure
from reperfuse.files import atomic_path, read_json, write_json
from reperfuse.imaging.volume import Volume, save_volume
from reperfuse.perfusion.aif import Aif
from reperfuse.perfusion.maps import MAPS, UNITS
from reperfuse.perfusion.quality import Flag
from reperfuse.preprocessing.motion import Motion
from reperfuse.stages.maps_chain import RTTP, Arteries, Bolus
from reperfuse.stages.maps_input import AIF_COLUMN
from reperfuse.stages.processed import write_table

SPREADS = ("tmax_sd", "delay_sd")
"""Standard deviations of what a network gives."""

SPELT = {
    "cbf": "CBF",
    "cbv": "CBV",
    "mtt": "MTT",
    "tmax": "Tmax",
    "ttp": "TTP",
    "delay": "delay",
    RTTP: "rTTP",
    "tmax_sd": "Tmax_SD",
    "delay_sd": "delay_SD",
}
"""Map to its name in the header, where its unit follows."""

UNIT = {**UNITS, **dict.fromkeys((RTTP, *SPREADS), "s")}
"""Unit of each map that may be written."""

ON_THE_PAGE = ("cbf", "cbv", "mtt", "tmax", "tmax_sd", "ttp", "delay", RTTP)
"""Maps drawn on the page, in this order: of the two spreads that of Tmax, which volumes are counted on."""

WRITTEN = (*(f"{name}.nii.gz" for name in (*MAPS, RTTP, *SPREADS)), "aif.csv", "motion.csv", "summary.json", "qc.png")

DOTS_PER_INCH = 110
"""Of qc.png: small print is readable on a screen at full size."""


def guard(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse a folder that cannot be written to, or in which something that is not ours would be lost.

    Raises
    ------
    InputError
        Before anything is read or removed.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        here = out.resolve()
        for name in WRITTEN:
            if (out / name).is_dir():
                raise InputError(f"{out / name} is a folder where a file should be written: choose another --out.")
    except OSError as error:
        raise InputError(f"{out} cannot be written to ({error.strerror}): choose another folder.") from error
    if not os.access(here, os.W_OK):
        raise InputError(f"{out} cannot be written to: choose another folder or mend its permissions.")
    for path in inputs:
        if path.exists() and path.resolve().parent == here and path.name in WRITTEN:
            raise InputError(f"{path} is given and would be overwritten: choose another folder for --out.")
    summary = out / "summary.json"
    if summary.exists() and "reperfuse" not in read_json(summary):
        raise InputError(f"{summary} is not of this command and would be lost: choose another folder for --out.")


def clear(out: Path) -> None:
    """Remove what an earlier run left, so that a folder never mixes two examinations."""
    for name in WRITTEN:
        (out / name).unlink(missing_ok=True)


def write_all(
    out: Path,
    found: dict[str, np.ndarray],
    series: Volume,
    bolus: Bolus,
    arteries: Arteries,
    motion: Motion | None,
    outlines: dict[str, Any],
    summary: dict[str, Any],
    flags: Sequence[Flag],
) -> dict[str, Any]:
    """Maps, curves, motion, page, and last the summary, which is returned."""
    tissue = bolus.curves.mean(axis=0)
    write_images(out, found, series.affine)
    write_curves(out, bolus.dt, arteries.used, arteries.vof, tissue)
    if motion is not None:
        write_motion(out, motion, series.frame_times_s)
    page = qc_figure(
        {name: found[name] for name in ON_THE_PAGE if name in found},
        brain=bolus.brain,
        affine=series.affine,
        baseline_image=bolus.s0,
        frame_times_s=np.arange(tissue.size) * bolus.dt,
        tissue=tissue,
        aif=None if arteries.used is None else arteries.used.curve,
        vof=None if arteries.vof is None else arteries.vof.curve,
        aif_voxels=None if arteries.found is None else arteries.found.voxels,
        vof_voxels=None if arteries.vof is None else arteries.vof.voxels,
        baseline=bolus.baseline,
        arrival_s=bolus.arrival_s,
        summary=summary,
        flags=flags,
        title=f"Perfusion maps, {summary['method']}" if arteries.found else "Time to peak",
        **outlines,
    )
    write_page(out, page)
    return write_summary(out, summary, flags)


def write_images(out: Path, found: dict[str, np.ndarray], affine: np.ndarray) -> None:
    """A NIfTI file per map, float32, its name and unit in the header's `descrip`."""
    for name, values in found.items():
        save_volume(out / f"{name}.nii.gz", Volume(values, affine), description=f"{SPELT[name]} [{UNIT[name]}]")


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
