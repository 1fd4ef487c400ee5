"""The lesion arm on real input: real lesion masks in a real T1w, through ingest and the whole pipeline.

`reperfuse demo-data --real` writes the ATLAS R2.0 tree (80 chronic masks of LESYMAP and 728 acute ones of SOOP, spread
over their volumes; warps, confounders, the look of the lesions and the scanners are those of the lesion phantom), and a
clone of this repository takes it to its report:

    python benchmarks/real_lesions.py --out /tmp/real-lesions --subjects 20

Lesion shapes, sizes and places are real, and so is the one anatomy. Their look is not. A network can do better here
than on ATLAS, where anatomies differ by more than a warp and lesions do not end at a mask's edge.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "lesions"


def main() -> None:
    """Write the tree, run the arm, print the hold-out table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the clone and its results")
    parser.add_argument("--real", type=Path, default=REAL, help="folder with lesymap/ and soop_masks/")
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    clone = asked.out / "reperfuse"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(clone / "src"), "PATH": path}
    real = ["--real", str(asked.real.resolve()), "--subjects", str(asked.subjects), "--seed", str(asked.seed)]
    for command in (
        [sys.executable, "-m", "reperfuse", "demo-data", "inbox", "--arm", "lesion", *real],
        [sys.executable, "-m", "reperfuse", "ingest", "inbox/lesion", "--arm", "lesion"],
        [sys.executable, "-m", "dvc", "repro", "lesion-report"],
        [sys.executable, "-m", "reperfuse", "promote", "lesion"],
    ):
        subprocess.run(command, cwd=clone, env=environment, check=True)
    print((clone / "results" / "lesion" / "evaluate" / "summary.csv").read_text(encoding="utf-8"))
    print(f"The report: {clone / 'reports' / 'lesion.html'}")


if __name__ == "__main__":
    main()
