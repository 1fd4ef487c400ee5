"""Programs that find the brain and are no part of this package: HD-BET and SynthStrip, where they are installed."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume, load_volume, save_volume
from reperfuse.preprocessing.geometry import reorient

Command = Callable[[str, Path, Path], list[str]]
"""(program, image, folder to write to) → command line."""

PROGRAMS: dict[str, tuple[str, str, Command]] = {
    "hd-bet": (
        "hd-bet",
        "brain_bet.nii.gz",
        lambda program, image, out: [
            *(program, "-i", str(image), "-o", str(out / "brain.nii.gz"), "-device", "cpu", "--disable_tta"),
            *("--save_bet_mask", "--no_bet_image"),
        ],
    ),
    "synthstrip": (
        "mri_synthstrip",
        "brain.nii.gz",
        lambda program, image, out: [program, "-i", str(image), "-m", str(out / "brain.nii.gz")],
    ),
}
"""Value of `skull_strip` → program on PATH, file it writes the mask to, command line. HD-BET 2 (Isensee F et al. Hum
Brain Mapp 2019;40:4952-4964), SynthStrip (Hoopes A et al. NeuroImage 2022;260:119474). Neither is installed with us."""


def brain_by_program(image: Volume, name: str) -> Volume:
    """Brain mask that an installed program finds in one 3D image, on the program's grid.

    The program sees the voxels and the affine, in a temporary file without a name.

    Raises
    ------
    InputError
        If the program is not installed, fails, or writes no mask.
    """
    program, written, command = PROGRAMS[name]
    found = shutil.which(program)
    if found is None:
        raise InputError(
            f"skull_strip is {name}, but there is no program {program} on PATH: install it in an environment of its "
            "own and link it there, or choose template."
        )
    with tempfile.TemporaryDirectory(prefix="reperfuse-brain-") as room:
        folder = Path(room)
        save_volume(folder / "image.nii.gz", reorient(image, "RAS"))
        done = subprocess.run(command(found, folder / "image.nii.gz", folder), capture_output=True, text=True)
        mask_path = folder / written
        if done.returncode != 0 or not mask_path.exists():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise InputError(
                f"{program} found no brain ({said[-1] if said else f'status {done.returncode}'}): run it by hand on "
                "the image, or choose template."
            )
        mask = load_volume(mask_path)
    if mask.data.ndim != 3 or not (mask.data > 0).any():
        raise InputError(f"{program} wrote an empty mask: run it by hand on the image, or choose template.")
    return Volume((mask.data > 0).astype("uint8"), mask.affine)
