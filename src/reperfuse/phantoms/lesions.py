"""Stroke lesions of real shape statistics on the MNI152 T1w, seen through the scanners of several centres.

The constants were measured with `benchmarks/lesion_shape_statistics.py` on 808 real masks in MNI space at 1 mm: 728
acute ones (SOOP) and 80 chronic ones (LESYMAP, left hemisphere). "Kept" are the 766 of at least 0.3 mL.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.fields import rician, smooth_field

VOLUME_ML = ((0.0, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0), (0.3, 0.54, 3.56, 20.6, 69.9, 216.0, 477.0))
"""Quantiles of the lesion volume [mL] of the kept masks; log-volume has mean 2.73 and standard deviation 1.85.

Lesions below 0.3 mL (5 % of the masks) are not drawn: at 2 mm they are fewer than 38 voxels, and a demo network can
only guess at them. Published medians are smaller (ATLAS v2.0: 5 mL), so scores here are not scores there."""

PLACES = (
    (0.142, (24.6, -4.9, 9.3, 1.3), (5.7, 8.8, 7.1, 1.3)),
    (0.308, (31.3, -10.3, 29.9, 2.0), (13.0, 24.9, 21.1, 1.7)),
    (0.320, (43.9, -14.8, 20.2, 4.3), (5.2, 23.3, 12.1, 0.9)),
    (0.190, (21.3, -68.6, -13.5, 2.8), (9.4, 12.7, 23.4, 1.5)),
    (0.040, (4.0, -25.8, -27.9, 0.1), (2.3, 5.6, 12.0, 0.8)),
)
"""Mixture of Gaussians (weight, means, standard deviations) over the centroid (|x|, y, z) [mm, MNI] of the largest
component and the logarithm of the volume [mL], kept masks. In order: deep middle cerebral artery (small), its superior
branches and the watershed, the whole of its territory (large), posterior circulation and cerebellum, brainstem."""

LEFT_SHARE = 0.52
"""Share of lesions in the left hemisphere, of the acute masks alone (the chronic ones were chosen to be left)."""

COMPONENTS = ((1, 0.36), (2, 0.17), (3, 0.11), (4, 0.09), (5, 0.09), (6, 0.09), (7, 0.09))
"""Number of 26-connected components of at least 27 mm³ and its share; measured for one to four, and 27 % have five or
more (95th percentile 11), spread here over five to seven."""

LARGEST_SHARE = ((0.0, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0), (0.3, 0.40, 0.60, 0.84, 0.97, 0.995, 0.998))
"""Quantiles of the share of the volume that lies in the largest of several components; the ends are assumed."""

ELONGATION = (1.6, 1.45)
"""Median ratio of the longest to the middle and of the middle to the shortest axis of inertia; equal for all sizes."""

SPHERICITY = ((0.6, 1.8, 5.5, 18.0, 55.0, 170.0), (0.951, 0.836, 0.735, 0.663, 0.635, 0.594))
"""Median sphericity of the largest component by its volume [mL], six bins; 1 is a ball. See `_roughness`."""

TISSUE_T1 = {"csf": 0.27, "grey": 0.65, "white": 0.87}
"""Intensity of the template, whose maximum is 1, by its own tissue maps (medians)."""

CENTRE_SALT = 1152
"""Seed of what belongs to a centre, so that a centre looks the same in every cohort."""


@dataclass(frozen=True)
class LesionPhantom:
    """A T1w with a lesion, its mask, and what was drawn."""

    t1w: Volume
    """Shape (197, 233, 189) at 1 mm, uint16, skull-stripped: 0 outside the brain."""
    mask: Volume
    """Same grid, uint8, 0 or 1."""
    truth: dict[str, float | int | str | list[float]]
    """volume_ml, centre_mm (MNI, of the largest component as placed), hemisphere, n_components (as placed),
    cavity_share, snr, centre."""


@lru_cache(maxsize=2)
def _template(grid_mm: float) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], tuple[slice, ...]]:
    """T1w (0 to 1) within the box that holds the brain, affine of the whole grid, its shape, the box."""
    if grid_mm < 1 or grid_mm != int(grid_mm):
        raise ValueError(f"grid_mm is a whole number of millimetres, at least 1, not {grid_mm}.")
    template = load_mni152_template(resolution=int(grid_mm))
    mask = np.asarray(load_mni152_brain_mask(resolution=int(grid_mm)).dataobj) > 0
    t1w = np.asarray(template.dataobj, dtype=np.float32) * mask
    # 8 mm around the brain leave room for the warp.
    margin = int(np.ceil(8 / grid_mm))
    box = tuple(
        slice(max(0, s.start - margin), min(n, s.stop + margin))
        for s, n in zip(ndimage.find_objects(mask.astype(np.uint8))[0], mask.shape, strict=True)
    )
    return t1w[box], np.asarray(template.affine, dtype=np.float64), mask.shape, box


def volume_quantile(share: float) -> float:
    """Lesion volume [mL] that `share` of the real masks do not reach; linear in log-volume between `VOLUME_ML`.

    >>> volume_quantile(0.0), round(volume_quantile(0.5), 1)
    (0.3, 20.6)
    """
    shares, volumes = VOLUME_ML
    return float(np.exp(np.interp(share, shares, np.log(volumes))))


def _roughness(volume_ml: float) -> float:
    """Amplitude of the border's noise, relative to the radius, that gives the sphericity measured at this volume.

    Interpolated from a table: for six volumes, five single-component phantoms at each of the amplitudes 0.02, 0.1,
    0.2, 0.3 and 0.4, and the amplitude at which their median sphericity meets `SPHERICITY`.
    """
    return float(np.interp(np.log(volume_ml), np.log(SPHERICITY[0]), (0.18, 0.31, 0.40, 0.46, 0.43, 0.33)))


def _place(volume_ml: float, rng: np.random.Generator) -> np.ndarray:
    """Centre of a lesion of this volume [mm, MNI]."""
    log_volume = np.log(volume_ml)
    weights = np.array([w * np.exp(-0.5 * ((log_volume - m[3]) / s[3]) ** 2) / s[3] for w, m, s in PLACES])
    _, mean, sd = PLACES[int(rng.choice(len(PLACES), p=weights / weights.sum()))]
    x, y, z = rng.normal(mean[:3], sd[:3])
    return np.array([-abs(x) if rng.random() < LEFT_SHARE else abs(x), y, z])


def _component(
    world: np.ndarray,
    grain: np.ndarray,
    centre: np.ndarray,
    volume_ml: float,
    voxel_ml: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into `world` (n, 3) [mm] of a blob of that volume, and its depth: 0 at its centre, 1 at its edge."""
    radius = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    long, short = ELONGATION[0] * rng.uniform(0.85, 1.15), ELONGATION[1] * rng.uniform(0.85, 1.15)
    axes = np.array([long, 1.0, 1 / short])
    axes *= radius / np.cbrt(axes.prod())
    turn = Rotation.random(rng=rng).as_matrix() / axes
    # Only voxels that can belong to it: a voxel far out would need a negative grain of several standard deviations. A
    # territory ends at the midline, but for the brainstem, whose arteries are shared.
    possible = (np.abs(world - centre.astype(np.float32)) < 2.2 * axes.max() + 6).all(1)
    if abs(centre[0]) > 6:
        possible &= world[:, 0] * np.float32(np.sign(centre[0])) > -2
    near = np.flatnonzero(possible)
    depth = np.linalg.norm((world[near] - centre.astype(np.float32)) @ turn.astype(np.float32), axis=1)
    depth = depth + _roughness(volume_ml) * grain[near]
    count = min(max(1, round(volume_ml / voxel_ml)), len(near))
    chosen = np.argpartition(depth, count - 1)[:count]
    edge = float(depth[chosen].max())
    return near[chosen], np.clip(depth[chosen] / max(edge, 1e-6), 0, 1)


def lesion_phantom(
    seed: int, *, centre: int = 0, grid_mm: float = 1.0, volume_ml: float | None = None, warp_mm: float = 1.5
) -> LesionPhantom:
    """T1w of one subject with a chronic stroke lesion, and the lesion's mask.

    The MNI152 template is warped smoothly and invertibly (ventricles of varying width among it). The lesion has an
    irregular border, a cavity of CSF intensity inside and gliosis around; white-matter hypointensities look alike and
    are not in the mask. The centre gives contrast, sharpness, intensity scale, noise and the bias field's strength.

    Parameters
    ----------
    seed
        Everything about the subject follows from it and from the centre.
    centre
        Number of the centre.
    grid_mm
        Voxel size [mm], a whole number; 1 gives the grid of ATLAS, (197, 233, 189).
    volume_ml
        Lesion volume [mL]; by default drawn from `VOLUME_ML`.
    warp_mm
        Standard deviation of the displacement [mm] along each axis; folds above about 15.

    Returns
    -------
    LesionPhantom

    Raises
    ------
    ValueError
        If `grid_mm` is not a whole number.

    Examples
    --------
    >>> phantom = lesion_phantom(3, grid_mm=4.0, volume_ml=40.0)
    >>> phantom.t1w.data.shape == phantom.mask.data.shape
    True
    >>> bool(abs(phantom.mask.data.sum() * 0.064 - phantom.truth["volume_ml"]) < 1e-6)
    True
    """
    t1w, affine, shape, box = _template(grid_mm)
    rng, site = np.random.default_rng([seed, centre]), np.random.default_rng([CENTRE_SALT, centre])
    spacing = (grid_mm,) * 3
    origin = affine[:3, 3] + np.array([s.start for s in box]) * grid_mm
    axes_mm = [origin[a] + np.arange(n) * grid_mm for a, n in enumerate(t1w.shape)]
    x, y, z = np.meshgrid(*[a.astype(np.float32) for a in axes_mm], indexing="ij", sparse=True)

    # Pull-back warp x + u(x): Lipschitz constant of u well below one, so it is invertible.
    widen = rng.uniform(0.0, 0.35)
    bell = widen * np.exp(-((x / 24) ** 2 + ((y + 15) / 34) ** 2 + ((z - 12) / 22) ** 2) / 2)
    where = np.empty((3, *t1w.shape), np.float32)
    for a, (axis, middle) in enumerate(((x, 0.0), (y, -15.0), (z, 12.0))):
        displaced = axis + warp_mm * smooth_field(t1w.shape, spacing, 30.0, rng) - bell * (axis - middle)
        where[a] = (displaced - origin[a]) / grid_mm
    t1w = ndimage.map_coordinates(t1w, where, order=1, prefilter=False)
    del where, bell
    brain = t1w > 0.12

    volume_ml = float(volume_ml if volume_ml is not None else volume_quantile(rng.random()))
    mask, depth, middle_mm, n_components = _lesion(t1w, brain, axes_mm, volume_ml, grid_mm, rng)

    # White-matter hypointensities: around the ventricles, darker than white matter, no lesion.
    age = rng.uniform(0.0, 1.0)
    around = np.exp(-(((np.abs(x) - 22) / 14) ** 2 + ((y + 12) / 40) ** 2 + ((z - 20) / 14) ** 2) / 2)
    patches = smooth_field(t1w.shape, spacing, max(4.0, grid_mm), rng) + 2.0 * around * age
    t1w = np.where((t1w > 0.75) & (patches > 2.4), t1w * rng.uniform(0.70, 0.85), t1w)

    cavity_share = float(np.clip(rng.normal(0.15 + 0.12 * np.log10(1 + volume_ml) * 2, 0.2), 0.0, 0.85))
    texture = smooth_field(t1w.shape, spacing, max(3.0, grid_mm), rng)
    gliosis = t1w * np.clip(rng.uniform(0.58, 0.80) + 0.05 * texture, 0.4, 0.9)
    # The cavity takes the share of the lesion that is deepest.
    cut = float(np.quantile(depth[mask], cavity_share)) if cavity_share > 0 else -1.0
    soft = 0.7 / grid_mm
    cavity = ndimage.gaussian_filter((mask & (depth <= cut)).astype(np.float32), soft)
    lesion = ndimage.gaussian_filter(mask.astype(np.float32), soft)
    t1w = t1w * (1 - lesion) + lesion * gliosis
    t1w = t1w * (1 - cavity) + cavity * (TISSUE_T1["csf"] + 0.02 * texture)

    gamma, blur_mm = site.uniform(0.8, 1.25), site.uniform(0.0, 0.8)
    bias_strength, snr, scale = site.uniform(0.05, 0.18), site.uniform(18.0, 40.0), site.uniform(300.0, 1500.0)
    t1w = np.clip(t1w, 0, None) ** np.float32(gamma)
    if blur_mm > 0.3 * grid_mm:
        t1w = ndimage.gaussian_filter(t1w, blur_mm / grid_mm)
    t1w = t1w * np.exp(bias_strength * smooth_field(t1w.shape, spacing, 60.0, rng))
    t1w = rician(t1w, TISSUE_T1["white"] ** gamma / snr, rng) * brain

    image, label = np.zeros(shape, np.uint16), np.zeros(shape, np.uint8)
    image[box] = np.clip(np.rint(t1w * (scale * rng.uniform(0.9, 1.1))), 0, 65535)
    image[box][brain & (image[box] == 0)] = 1  # 0 stays the mark of what is outside the brain
    label[box] = mask
    truth: dict[str, float | int | str | list[float]] = {
        "volume_ml": float(mask.sum() * grid_mm**3 / 1000),
        "centre_mm": [round(float(c), 1) for c in middle_mm],
        "hemisphere": "left" if middle_mm[0] < 0 else "right",
        "n_components": n_components,
        "cavity_share": cavity_share,
        "snr": float(snr),
        "centre": centre,
        "seed": seed,
    }
    return LesionPhantom(Volume(data=image, affine=affine), Volume(data=label, affine=affine), truth)


def _lesion(
    t1w: np.ndarray,
    brain: np.ndarray,
    axes_mm: list[np.ndarray],
    volume_ml: float,
    grid_mm: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Mask and depth (0 inside, 1 at the border) on the box, centre of the largest component [mm], number placed."""
    tissue = np.flatnonzero(brain & (t1w > 0.48))  # not in ventricles and wide sulci
    index = np.stack(np.unravel_index(tissue, t1w.shape), axis=1)
    world = np.stack([axes_mm[a][index[:, a]] for a in range(3)], axis=1).astype(np.float32)
    voxel_ml = grid_mm**3 / 1000
    n = int(rng.choice([k for k, _ in COMPONENTS], p=[p for _, p in COMPONENTS]))
    share = float(np.interp(rng.random(), *LARGEST_SHARE)) if n > 1 else 1.0
    shares = [share, *((1 - share) * rng.dirichlet(np.full(n - 1, 1.5)))] if n > 1 else [1.0]
    first = _place(volume_ml, rng)
    depth = np.ones(t1w.size, np.float32)
    mask = np.zeros(t1w.size, bool)
    placed, middle, reach = 0, first, 0.0
    for part in sorted(shares, reverse=True):
        part_ml = part * volume_ml
        if placed and part_ml < 0.03:
            continue  # a speck
        radius = (3 * part_ml * 1000 / (4 * np.pi)) ** (1 / 3)
        aim = first
        if placed:  # satellites lie in the neighbourhood: beyond the main lesion's border, up to 3 cm
            toward = rng.standard_normal(3) * (0.6, 1.0, 1.0)
            aim = middle + toward / np.linalg.norm(toward) * (1.3 * (reach + radius) + rng.uniform(3, 30))
        possible = world if not placed else world[world[:, 0] * np.float32(np.sign(middle[0]) or 1.0) > -2]
        centre = possible[int(((possible - aim.astype(np.float32)) ** 2).sum(1).argmin())].astype(np.float64)
        scale = float(np.clip(0.35 * radius, max(2.0, grid_mm), 9.0))
        grain = smooth_field(t1w.shape, (grid_mm,) * 3, scale, rng).ravel()[tissue]
        chosen, inside = _component(world, grain, centre, part_ml, voxel_ml, rng)
        mask[tissue[chosen]] = True
        depth[tissue[chosen]] = np.minimum(depth[tissue[chosen]], inside)
        if not placed:
            middle, reach = centre, radius
        placed += 1
    return mask.reshape(t1w.shape), depth.reshape(t1w.shape), middle, placed
