"""Shape, volume and place of real stroke lesion masks: where the constants of phantoms/lesions.py come from.

    python benchmarks/lesion_shape_statistics.py ../shared/data/lesions [--phantom 40] [--out statistics.json]

reads the acute masks of `soop_masks/` and the chronic ones of `lesymap/lesions/` (both 1 mm, MNI space) and prints,
per collection and pooled, what the lesion phantom draws from; with `--phantom N`, the same of N phantoms beside it:

- volume [mL]: quantiles, and mean and standard deviation of its natural logarithm, all masks and those >= 0.3 mL
  ("kept"; all that follows is of these);
- sphericity of the largest component, Ψ = π^(1/3) (6V)^(2/3) / A, with V and A taken from the mask blurred by a
  Gaussian of 1 mm: A = ∫|∇(G⊗m)| dV needs no mesh and counts no stair-steps (a digital ball of 20 mm gives 0.99);
- the number of 26-connected components of at least 27 voxels, and the share of the volume in the largest;
- elongation of the largest component: square roots of the ratios of its inertia axes, longest:middle:shortest;
- place: a mixture of five Gaussians with diagonal covariance over the centroid (|x|, y, z) of the largest component
  (MNI mm, hemispheres folded) and the logarithm of the volume, so that small and large lesions lie where they do.
"""

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from sklearn.mixture import GaussianMixture

from reperfuse.phantoms.lesions import lesion_phantom

SMALLEST_ML = 0.3
"""Shape, parts and place are measured of lesions of at least this [mL]."""

SMALLEST_COMPONENT = 27
"""Voxels (1 mm) a component needs to be counted: below, it is a speck of the tracing."""


def sphericity(mask: np.ndarray) -> float:
    field = ndimage.gaussian_filter(np.pad(mask, 5).astype(np.float32), 1.0)
    area = float(np.sqrt(sum(g**2 for g in np.gradient(field))).sum())
    return float(np.pi ** (1 / 3) * (6 * mask.sum()) ** (2 / 3) / area)


def describe(mask: np.ndarray, affine: np.ndarray) -> dict[str, float] | None:
    if not mask.any():
        return None
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inside = mask[box]
    labels, _ = ndimage.label(inside, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    largest = labels == 1 + int(sizes.argmax())
    points = np.argwhere(largest) + [s.start for s in box]
    centre = nib.affines.apply_affine(affine, points.mean(0))
    axes = np.sqrt(np.linalg.eigvalsh(np.cov(points.T) + np.eye(3) / 12)) if len(points) > 3 else np.ones(3)
    return {
        "volume_ml": float(mask.sum() * voxel_ml),
        "largest_ml": float(sizes.max() * voxel_ml),
        "largest_share": float(sizes.max() / sizes.sum()),
        "components": int(max(1, (sizes >= SMALLEST_COMPONENT).sum())),
        "sphericity": sphericity(largest),
        "long_to_middle": float(axes[2] / axes[1]),
        "middle_to_short": float(axes[1] / axes[0]),
        "x": float(centre[0]),
        "y": float(centre[1]),
        "z": float(centre[2]),
    }


def summary(rows: list[dict[str, float]]) -> dict[str, object]:
    table = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    kept = table["volume_ml"] >= SMALLEST_ML
    log = np.log(table["volume_ml"])
    out: dict[str, object] = {
        "n": len(rows),
        "n_kept": int(kept.sum()),
        "volume_ml_quantiles_0_1_5_25_50_75_95_100": np.percentile(table["volume_ml"], [0, 1, 5, 25, 50, 75, 95, 100])
        .round(3)
        .tolist(),
        "volume_ml_kept_quantiles_0_5_25_50_75_95_100": np.percentile(
            table["volume_ml"][kept], [0, 5, 25, 50, 75, 95, 100]
        )
        .round(2)
        .tolist(),
        "log_volume_mean_sd": [round(log.mean(), 3), round(log.std(), 3)],
        "log_volume_kept_mean_sd": [round(log[kept].mean(), 3), round(log[kept].std(), 3)],
        "left_share": round(float((table["x"] < 0).mean()), 3),
        "components_quantiles": np.percentile(table["components"][kept], [5, 25, 50, 75, 95]).tolist(),
        "components_share_1_2_3_4_5plus": [
            round(float((table["components"][kept] == k).mean()), 3) for k in (1, 2, 3, 4)
        ]
        + [round(float((table["components"][kept] >= 5).mean()), 3)],
        "largest_share_quantiles_when_several": np.percentile(
            table["largest_share"][kept & (table["components"] > 1)], [5, 25, 50, 75, 95]
        )
        .round(2)
        .tolist(),
    }
    for low, high in ((0.3, 1), (1, 3), (3, 10), (10, 30), (30, 100), (100, 1000)):
        chosen = (table["largest_ml"] >= low) & (table["largest_ml"] < high)
        if chosen.sum() >= 5:
            out[f"largest_{low}_to_{high}_ml"] = {
                "n": int(chosen.sum()),
                "sphericity_median_sd": [
                    round(float(np.median(table["sphericity"][chosen])), 3),
                    round(float(table["sphericity"][chosen].std()), 3),
                ],
                "long_to_middle": round(float(np.median(table["long_to_middle"][chosen])), 2),
                "middle_to_short": round(float(np.median(table["middle_to_short"][chosen])), 2),
                "centre_abs_x_y_z_median": [
                    round(float(np.median(v[chosen])), 1) for v in (np.abs(table["x"]), table["y"], table["z"])
                ],
            }
    if kept.sum() >= 50:
        logs = np.log(table["volume_ml"][kept])
        places = np.c_[np.abs(table["x"])[kept], table["y"][kept], table["z"][kept], logs]
        mixture = GaussianMixture(5, covariance_type="diag", random_state=0, n_init=8).fit(places)
        out["place_mixture"] = [
            {"weight": round(float(w), 3), "mean": m.round(1).tolist(), "sd": np.sqrt(c).round(1).tolist()}
            for w, m, c in zip(mixture.weights_, mixture.means_, mixture.covariances_, strict=True)
        ]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder holding soop_masks/ and lesymap/lesions/")
    parser.add_argument("--phantom", type=int, default=0, metavar="N", help="also measure N lesion phantoms")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    grid = np.indices((51, 51, 51)) - 25
    print(f"a digital ball of 20 mm radius has sphericity {sphericity((grid**2).sum(0) <= 400):.3f}")
    found = {}
    for name, folder in (("soop", "soop_masks"), ("lesymap", "lesymap/lesions")):
        images = (nib.load(path) for path in sorted((arguments.folder / folder).glob("*.nii.gz")))
        rows = [describe(np.asarray(image.dataobj) > 0.5, image.affine) for image in images]
        found[name] = [row for row in rows if row is not None]
    found["pooled"] = found["soop"] + found["lesymap"]
    if arguments.phantom:
        masks = (lesion_phantom(seed).mask for seed in range(arguments.phantom))
        found["phantom"] = [row for row in (describe(mask.data > 0, mask.affine) for mask in masks) if row is not None]
    text = json.dumps({name: summary(rows) for name, rows in found.items()}, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
