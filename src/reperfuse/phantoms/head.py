"""A head made of ellipsoids, folds and tubes, on any grid: tissue fractions, vessels and baseline signal of EPI."""

from itertools import pairwise

import numpy as np
from scipy.ndimage import uniform_filter

from reperfuse.phantoms.fields import smooth_field

FIELD_OF_VIEW_MM = 220.0
"""In-plane extent [mm] of the grid along both axes."""

FOLD_SCALE_MM = 6.0
"""Correlation length [mm] of the field whose zero sheets are the sulci; neighbouring sulci are 15-20 mm apart."""

TISSUES = {"outside": 0, "grey": 1, "white": 2, "csf": 3, "artery": 4, "vein": 5, "scalp": 6, "skull": 7}
"""Labels of `truth["tissue"]`. The brain is labels 1 to 4; the dural sinus lies outside it."""

BASELINE_SIGNAL = {"grey": 800.0, "white": 640.0, "csf": 1100.0, "blood": 750.0, "scalp": 55.0, "skull": 15.0}
"""S0 [scanner units] of T2*-weighted EPI; the scalp is dark because EPI suppresses fat."""


def _tube(
    points_mm: list[tuple[float, float, float]], radius_mm: float, affine: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Voxels within `radius_mm` of a polyline, at least those it passes through: no grid is too coarse for a vessel."""
    points = np.array(points_mm)
    steps = np.concatenate([np.linspace(a, b, 60) for a, b in pairwise(points)])
    ball = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    ball = ball[(ball**2).sum(1) <= 1] * radius_mm
    world = (steps[:, None] + ball).reshape(-1, 3)
    index = np.rint((world - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
    index = index[((index >= 0) & (index < shape)).all(1)]
    mask = np.zeros(shape, bool)
    mask[tuple(index.T)] = True
    return mask


def head_anatomy(shape: tuple[int, int, int], affine: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Head on a grid: fractions of grey, white and csf (0 to 1), masks of the rest, world coordinates x y z [mm].

    Parameters
    ----------
    shape
        Grid (I, J, K).
    affine
        (4, 4), diagonal with positive spacing, RAS+ [mm], origin in the middle of the brain.
    rng
        Sizes of brain and ventricles, and the folds of the cortex.
    """
    spacing = tuple(float(s) for s in np.diag(affine)[:3])
    x, y, z = np.meshgrid(
        *[(np.arange(n) * affine[a, a] + affine[a, 3]) for a, n in enumerate(shape)], indexing="ij", sparse=True
    )
    width, length, height = np.array((67.0, 84.0, 64.0)) * rng.uniform(0.96, 1.04, 3)
    coarse, folds = smooth_field(shape, spacing, 25.0, rng), smooth_field(shape, spacing, FOLD_SCALE_MM, rng)
    radius = np.sqrt((x / width) ** 2 + (y / length) ** 2 + (z / height) ** 2) * (1 + 0.012 * coarse)
    inward_mm = (1 - radius) * 70.0  # about the distance to the brain's surface
    blur = 0.45 * spacing[0]  # partial volume: a border is as soft as a voxel is wide

    def inside(signed_mm: np.ndarray) -> np.ndarray:
        return (1 / (1 + np.exp(-np.clip(signed_mm / blur, -30, 30)))).astype(np.float32)

    def ellipsoid(
        centre: tuple[float, float, float], axes: tuple[float, float, float], lean: float = 0.0
    ) -> np.ndarray:
        across = np.abs(x) - centre[0] - lean * (centre[1] - y)
        r = np.sqrt((across / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2 + ((z - centre[2]) / axes[2]) ** 2)
        return inside((1 - r) * min(axes))

    wide = rng.uniform(0.85, 1.3)
    ventricles = np.maximum(
        ellipsoid((9.0, -4.0, 17.0), (5.0 * wide, 30.0, 9.0), lean=0.22),
        ellipsoid((0.0, -8.0, 2.0), (2.2 * wide, 12.0, 9.0)),
    )
    # The cortex folds in along the zero sheets of a random field, from which |folds|·√2·scale is about the distance.
    from_fold_mm = np.abs(folds) * np.sqrt(2) * FOLD_SCALE_MM
    sulci = inside(np.minimum(0.7 - from_fold_mm, 16.0 - inward_mm))
    from_midline_mm = np.abs(x) + 0.4 * np.maximum(0, 44 - np.abs(y)) * (z < 30)
    lens = ((np.abs(x) - 56) / 18) ** 2 + ((y - 4) / 26) ** 2
    from_sylvian_mm = np.abs(z + 4 - 0.25 * y) + 5 * lens
    csf = np.maximum.reduce([ventricles, 0.8 * sulci, inside(1.4 - from_midline_mm), inside(1.6 - from_sylvian_mm)])
    csf = np.clip(np.maximum(csf, 0.7 * inside(1.0 - inward_mm)), 0, 1)

    ribbon = inside(5.0 + coarse - inward_mm)
    folded = inside(np.minimum(4.6 - from_fold_mm, 22.0 + 3 * coarse - inward_mm))
    beside = np.maximum(inside(4.5 - from_midline_mm), inside(6.0 - from_sylvian_mm))
    nuclei = np.maximum.reduce(
        [
            ellipsoid((11.0, -18.0, 7.0), (8.0, 13.0, 9.0)),
            ellipsoid((25.0, 3.0, 3.0), (5.5, 16.0, 10.0), lean=-0.15),
            ellipsoid((13.0, 17.0, 8.0), (4.5, 8.0, 10.0)),
        ]
    )
    grey = np.maximum.reduce([ribbon, folded, beside, nuclei])
    brain = radius <= 1

    artery = np.zeros(shape, bool)
    for side in (-1, 1):
        artery |= _tube(
            [(side * 6, 6, -14), (side * 22, 6, -9), (side * 40, 0, -3), (side * 50, -18, 6)], 2.2, affine, shape
        )
        artery |= _tube(
            [(side * 2, 12, -12), (side * 2, 38, -6), (side * 2, 46, 12), (side * 2, 30, 32)], 1.6, affine, shape
        )
        artery |= _tube([(side * 2, -26, -14), (side * 16, -34, -10), (side * 20, -62, -2)], 1.5, affine, shape)
    angle = np.linspace(np.deg2rad(50), np.deg2rad(185), 20)
    sagittal = [(0.0, 1.03 * length * np.cos(a), 1.03 * height * np.sin(a)) for a in angle]
    sinus = _tube(sagittal, 3.5, affine, shape)
    for side in (-1, 1):
        around = np.deg2rad(np.linspace(0, 55, 12))
        low = np.sqrt(1 - (8 / height) ** 2) * 1.03
        sinus |= _tube(
            [(side * low * width * np.sin(a), -low * length * np.cos(a), -8.0) for a in around], 3.0, affine, shape
        )
    return {
        "brain": brain & ~sinus,
        "csf": csf,
        "grey": grey * (1 - csf),
        "white": (1 - grey) * (1 - csf),
        "artery": artery & brain & ~sinus,
        "vein": sinus & (radius < 1.12),
        "skull": (radius > 1) & (radius <= 1.11),
        "scalp": (radius > 1.11) & (radius <= 1.19 + 0.01 * coarse),
        "x": x,
        "y": y,
        "z": z,
    }


def tissue_labels(anatomy: dict[str, np.ndarray]) -> np.ndarray:
    """Label of every voxel, uint8, as in `TISSUES`: the tissue that has most of it."""
    brain, grey, white = (anatomy[name] for name in ("brain", "grey", "white"))
    masks = {
        "vein": anatomy["vein"],
        "artery": anatomy["artery"],
        "csf": brain & (anatomy["csf"] > 0.5),
        "grey": brain & (grey >= white),
        "white": brain,
        "skull": anatomy["skull"],
        "scalp": anatomy["scalp"],
    }
    return np.select(list(masks.values()), [TISSUES[name] for name in masks]).astype(np.uint8)


def baseline_signal(
    anatomy: dict[str, np.ndarray], tissue: np.ndarray, spacing_mm: tuple[float, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """S0 before the bolus [scanner units] of what is not blood, and of blood, wherever it may be; both float32.

    Tissue is mixed by fraction, CSF surrounds the sinus, and the coils' smooth sensitivity lies over all.
    """
    s0 = sum(anatomy[name] * BASELINE_SIGNAL[name] for name in ("grey", "white", "csf")) * anatomy["brain"]
    for name in ("scalp", "skull"):
        s0 = np.where(tissue == TISSUES[name], BASELINE_SIGNAL[name], s0)
    s0 = np.where(tissue == TISSUES["vein"], BASELINE_SIGNAL["csf"], s0)
    sensitivity = np.exp(0.05 * smooth_field(tissue.shape, spacing_mm, 60.0, rng))
    blood = np.float32(BASELINE_SIGNAL["blood"]) * sensitivity
    return np.asarray(s0 * sensitivity, np.float32), np.asarray(blood, np.float32)


def sinus_purity(vein: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fraction of blood in each voxel of the sinus, float32: 1 inside, 0.3 to 0.9 along its wall, 0 elsewhere.

    Inside is where the sinus is at least as thick, over a 3 × 3 × 3 neighbourhood, as in the upper third of its voxels:
    even where it is one voxel wide it has pure ones, as a slice through it has in a patient.
    """
    around = uniform_filter(vein.astype(np.float32), 3, mode="nearest")
    inside = vein & (around >= np.quantile(around[vein], 2 / 3)) if vein.any() else vein
    wall = rng.uniform(0.3, 0.9, vein.shape)
    return np.where(inside, 1.0, np.where(vein, wall, 0.0)).astype(np.float32)


def head_affine(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] | None = None
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Affine (4, 4) of a grid with the brain in its middle, RAS+ [mm], and its spacing [mm].

    Without a spacing the grid is `FIELD_OF_VIEW_MM` wide, in slices of 5 to 8 mm that cover about 100 mm.

    >>> head_affine((44, 44, 10))[1]
    (5.0, 5.0, 8.0)
    """
    if spacing_mm is None:
        thickness = float(np.clip(100.0 / shape[2], 5.0, 8.0))
        spacing_mm = (FIELD_OF_VIEW_MM / shape[0], FIELD_OF_VIEW_MM / shape[1], thickness)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm + (0.0, 0.0, 5.0)
    return affine, spacing_mm
