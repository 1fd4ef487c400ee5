"""How often `reperfuse maps` raises a flag it should raise, and one it should not, on drawn patients.

Each situation of the digital reference object is drawn for a number of patients and goes through the whole chain, from
NIfTI to summary.json. Ordinary patients have SNR 30 to 200, TR 1 to 2.5 s and a head at rest; none of the flags named
here is wanted for them, except `low_cnr` for those whose tissue signal is as weak as that.

    python benchmarks/quality_flags.py --patients 10 --ordinary 40
"""

import argparse
import contextlib
import io
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from reperfuse.errors import InputError
from reperfuse.files import read_json
from reperfuse.imaging.volume import save_volume
from reperfuse.params import PerfusionMaps
from reperfuse.phantoms.dsc import DscPhantom, drawn_phantom
from reperfuse.stages.maps import maps

WANTED = {
    "motion": "motion",
    "truncated_tail": "truncated_bolus",
    "no_bolus": "no_bolus",
    "low_cnr": "low_cnr",
    "saturated_aif": "saturated_aif",
    "missing_frames": "missing_frames",
    "early_arrival": "early_bolus",
    "uneven_times": "uneven_times",
}
"""Situation to the flag it must raise."""

AT_REST = {"jumps": 0, "drift_mm": 0.0}
FIRST_SEED = 5000
"""Seeds that no limit was chosen on."""


def flags_of(phantom: DscPhantom, settings: PerfusionMaps) -> list[str]:
    """What the chain says of a patient; a series that it refuses has a summary with flags as well."""
    with tempfile.TemporaryDirectory() as folder:
        save_volume(Path(folder) / "dsc.nii.gz", phantom.signal)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                maps(Path(folder) / "dsc.nii.gz", Path(folder), settings=settings)
        except InputError as refusal:
            if not (Path(folder) / "summary.json").exists():
                return [f"refused: {refusal}"]
        return list(read_json(Path(folder) / "summary.json")["flags"])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=10, help="per situation")
    parser.add_argument("--ordinary", type=int, default=40)
    given = parser.parse_args()
    console = Console()
    still, moving = PerfusionMaps(motion_correction=False), PerfusionMaps()

    table = Table("situation", "flag", "raised", "others raised", title="What should raise a flag")
    for situation, flag in track(WANTED.items(), description="situations", console=console, transient=True):
        rest = {} if situation == "motion" else AT_REST
        found: Counter[str] = Counter()
        for seed in range(FIRST_SEED, FIRST_SEED + given.patients):
            phantom = drawn_phantom(seed, situation=situation, snr_range=(30, 200), **rest)
            found.update(flags_of(phantom, moving if situation == "motion" else still))
        others = ", ".join(f"{name} {n}" for name, n in found.most_common() if name != flag)
        table.add_row(situation, flag, f"{found[flag]} of {given.patients}", others or "-")
    console.print(table)

    raised: Counter[str] = Counter()
    alarmed = 0
    for seed in track(
        range(FIRST_SEED, FIRST_SEED + given.ordinary), description="ordinary", console=console, transient=True
    ):
        found_here = flags_of(drawn_phantom(seed, snr_range=(30, 200), tr_s_range=(1.0, 2.5), **AT_REST), still)
        raised.update(found_here)
        alarmed += bool(found_here)
    said = ", ".join(f"{name} {n}" for name, n in raised.most_common()) or "none"
    console.print(f"Ordinary patients with any flag: {alarmed} of {given.ordinary} ({said}).")


if __name__ == "__main__":
    main()
