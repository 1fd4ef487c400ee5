"""The lesion arm on real input: real chronic lesion masks pasted into a real T1w on the same grid.

Reads the LESYMAP masks and their T1w (`ch2.nii.gz`) from ../shared/data, writes an ATLAS R2.0 tree, and takes it
through ingest and the whole lesion pipeline in a clone of this repository:

    python benchmarks/real_lesions.py --out /tmp/real-lesions --subjects 20

Lesion shapes, sizes and places are real, and so is the one anatomy. Their look is not: inside the mask the T1w is
darkened towards CSF with texture, and every subject gets a bias field and noise of its own. A network can therefore
do better here than on ATLAS, where anatomies differ and lesions do not end at a mask's edge.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy import ndimage

from reperfuse.errors import InputError
from reperfuse.files import write_json
from reperfuse.imaging.volume import Volume, load_volume, save_volume
from reperfuse.phantoms.fields import rician, smooth_field

ROOT = Path(__file__).parents[1]
LESYMAP = ROOT.parent / "shared" / "data" / "lesions" / "lesymap"
CENTRES = 4
"""Subjects are dealt to this many centres, so that ATLAS names are complete; they mean nothing here."""


def pasted(t1w: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`t1w` (I, J, K), 0 to 1, with a hypointense lesion inside `mask`, a bias field and Rician noise."""
    csf = 0.15
    texture = smooth_field(t1w.shape, (1.0, 1.0, 1.0), 3.0, rng)
    inside = ndimage.gaussian_filter(mask.astype(np.float32), 0.7)
    depth = ndimage.distance_transform_edt(mask)
    cavity = ndimage.gaussian_filter((depth > rng.uniform(0.2, 0.8) * depth.max()).astype(np.float32), 0.7)
    image = t1w * (1 - inside) + inside * t1w * np.clip(rng.uniform(0.55, 0.8) + 0.05 * texture, 0.4, 0.9)
    image = image * (1 - cavity) + cavity * (csf + 0.02 * texture)
    image *= np.exp(0.1 * smooth_field(t1w.shape, (1.0, 1.0, 1.0), 60.0, rng))
    return rician(image, 1.0 / rng.uniform(20, 40), rng)


def write_atlas_tree(folder: Path, subjects: int, seed: int) -> None:
    """An ATLAS R2.0 tree of `subjects` subjects; masks are spread evenly over the 80 by size."""
    if not LESYMAP.is_dir():
        raise InputError(f"{LESYMAP} is missing: put the LESYMAP masks and ch2.nii.gz there.")
    brain = load_volume(LESYMAP / "ch2.nii.gz")
    t1w = np.clip(brain.data / np.percentile(brain.data[brain.data > 0], 99), 0, 1.5).astype(np.float32)
    masks = sorted((LESYMAP / "lesions").glob("*.nii.gz"), key=lambda path: int((load_volume(path).data > 0).sum()))
    chosen = [masks[i] for i in np.linspace(0, len(masks) - 1, subjects).round().astype(int)]
    write_json(folder / "dataset_description.json", {"Name": "Real lesions in a real T1w", "BIDSVersion": "1.9.0"})
    for number, path in enumerate(track(chosen, description="write ATLAS tree")):
        mask = load_volume(path)
        if mask.data.shape != t1w.shape or not np.allclose(mask.affine, brain.affine, atol=1e-3):
            raise InputError(f"{path} is not on the grid of ch2.nii.gz: use the files as distributed.")
        image = pasted(t1w, mask.data > 0, np.random.default_rng([seed, number]))
        centre, name = f"R{number % CENTRES + 1:03d}", f"sub-r{number % CENTRES + 1:03d}s{number // CENTRES + 1:03d}"
        stem = folder / centre / name / "ses-1" / "anat" / f"{name}_ses-1_space-MNI152NLin2009aSym"
        save_volume(Path(f"{stem}_T1w.nii.gz"), Volume(np.rint(image * 1000).astype(np.uint16), brain.affine))
        label = Volume((mask.data > 0).astype(np.uint8), brain.affine)
        save_volume(Path(f"{stem}_label-L_desc-T1lesion_mask.nii.gz"), label)


def main() -> None:
    """Write the tree, run the arm, print the hold-out table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the clone and its results")
    parser.add_argument("--subjects", type=int, default=20, help="of the 80")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    clone = asked.out / "reperfuse"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    write_atlas_tree(clone / "inbox", asked.subjects, asked.seed)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(clone / "src"), "PATH": path}
    for command in (
        [sys.executable, "-m", "reperfuse", "ingest", "inbox", "--arm", "lesion"],
        [sys.executable, "-m", "dvc", "repro", "lesion-report"],
        [sys.executable, "-m", "reperfuse", "promote", "lesion"],
    ):
        subprocess.run(command, cwd=clone, env=environment, check=True)
    print((clone / "results" / "lesion" / "evaluate" / "summary.csv").read_text(encoding="utf-8"))
    print(f"The report: {clone / 'reports' / 'lesion.html'}")


if __name__ == "__main__":
    main()
