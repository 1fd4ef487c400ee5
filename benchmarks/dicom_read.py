"""How long a DSC series of the published size takes to read, against the least any reader of these files must do.

The floor is pydicom alone: parse each of the 1 440 files and decode its pixels, without sorting, checking or placing
anything. dicom2nifti (extra `bench`) is the peer, where it is installed. All in one process, one after the other, the
best of three.

    python benchmarks/dicom_read.py
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pydicom
from timing import best_of

from reperfuse.imaging.dicom_read import read_dsc
from reperfuse.imaging.dicom_series import find_series
from reperfuse.imaging.dicom_write import write_dsc_series
from reperfuse.phantoms.dsc import dsc_phantom

SHAPE, FRAMES = (128, 128, 24), 60


def peer(folder: Path) -> None:
    """dicom2nifti on the same files."""
    import dicom2nifti

    with tempfile.TemporaryDirectory() as out:
        dicom2nifti.dicom_series_to_nifti(str(folder), f"{out}/dsc.nii.gz", reorient_nifti=False)


def main() -> None:
    """Print seconds and ratios."""
    phantom = dsc_phantom(shape=SHAPE, n_frames=FRAMES, seed=0)
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "series"
        files = write_dsc_series(folder, phantom.signal, patient_id="bench", patient_name="Bench^Mark")
        floor = best_of(lambda: [pydicom.dcmread(path).pixel_array for path in files])
        ours = {"find_series": best_of(lambda: find_series(folder)), "read_dsc": best_of(lambda: read_dsc(folder))}
        print(f"{len(files)} files of {SHAPE[0]} x {SHAPE[1]}, {np.prod(SHAPE) * FRAMES * 2 / 2**20:.0f} MiB of pixels")
        print(f"{'pydicom, pixels only':24s}{floor:8.2f} s   1.00")
        for name, seconds in ours.items():
            print(f"{name:24s}{seconds:8.2f} s{seconds / floor:7.2f}")
        if importlib.util.find_spec("dicom2nifti"):
            seconds = best_of(lambda: peer(folder), times=1)
            print(f"{'dicom2nifti to .nii.gz':24s}{seconds:8.2f} s{seconds / floor:7.2f}")
        else:
            print("dicom2nifti is not installed: pip install -e '.[bench]' to see it here.")


if __name__ == "__main__":
    main()
