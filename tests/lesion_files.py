"""Images and lesion masks as the published sets name, nest and orient them."""

from pathlib import Path

import nibabel as nib
import numpy as np

DWI_AFFINE = np.array([[-2.0, 0, 0, 10], [0, -2, 0, 12], [0, 0, 5, -20], [0, 0, 0, 1]])
"""Thick slices, RAS+ [mm]: (6, 7, 8) voxels of 2 × 2 × 5 mm."""

FLAIR_AFFINE = np.array([[0, 0, 1.2, -2], [-1.0, 0, 0, 12], [0, 1.0, 0, -18], [0, 0, 0, 1]])
"""Sagittal slices through the same head, on another grid."""

SHAPES = {"dwi": (6, 7, 8), "adc": (6, 7, 8), "flair": (14, 30, 9), "t1w": (6, 7, 8)}
AFFINES = {"dwi": DWI_AFFINE, "adc": DWI_AFFINE, "flair": FLAIR_AFFINE, "t1w": DWI_AFFINE}

RELEASED = {
    "dwi": "{sub}/{ses}/dwi/{sub}_{ses}_dwi.nii.gz",
    "adc": "{sub}/{ses}/dwi/{sub}_{ses}_adc.nii.gz",
    "flair": "{sub}/{ses}/anat/{sub}_{ses}_FLAIR.nii.gz",
    "mask": "derivatives/{sub}/{ses}/{sub}_{ses}_msk.nii.gz",
}
"""ISLES'22 as it lies in its archive."""

FLAT = {
    **{name: "rawdata/{sub}/{ses}/{sub}_{ses}_" + name + ".nii.gz" for name in ("dwi", "adc", "flair")},
    "mask": "derivatives/{sub}/{ses}/{sub}_{ses}_msk.nii.gz",
}
"""ISLES'22 as the challenge gave it out first, and as its algorithms were run on it."""

LOOSE = {
    "dwi": "{sub}_DWI.nii",
    "adc": "{sub}_ADC.nii",
    "flair": "{sub}_Flair.nii",
    "mask": "{sub}_mask.nii",
}
"""Everything in one folder, no session, another case, not compressed."""

SOOP = {
    "dwi": "{sub}/dwi/{sub}_rec-TRACE_dwi.nii.gz",
    "adc": "{sub}/dwi/{sub}_rec-ADC_dwi.nii.gz",
    "flair": "{sub}/anat/{sub}_FLAIR.nii.gz",
    "mask": "derivatives/lesion_masks/{sub}/dwi/{sub}_space-TRACE_desc-lesion_mask.nii.gz",
}
"""OpenNeuro ds004889."""

ATLAS = {
    "t1w": "R001/{sub}/{ses}/anat/{sub}_{ses}_space-MNI152NLin2009aSym_T1w.nii.gz",
    "mask": "R001/{sub}/{ses}/anat/{sub}_{ses}_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz",
}
"""ATLAS R2.0."""


def write_set(inbox, sub="sub-strokecase0001", layout=RELEASED, ses="ses-0001", **changes):
    """Paths by modality of one subject, its mask on the first image; `changes` are arrays, NIfTI images, or None."""
    rng = np.random.default_rng(sum(map(ord, sub + ses)))
    first = next(iter(layout))
    written = {}
    for name, pattern in layout.items():
        grid = first if name == "mask" else name
        data = rng.integers(0, 2, SHAPES[grid]) if name == "mask" else rng.integers(1, 900, SHAPES[grid]) / 8
        image = changes.get(name, data.astype(np.float32))
        if image is None:
            continue
        if not isinstance(image, nib.Nifti1Image):
            image = nib.Nifti1Image(image, AFFINES[grid])
        path = Path(inbox) / pattern.format(sub=sub, ses=ses)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        written[name] = path
    return written
