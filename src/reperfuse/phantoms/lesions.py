"""Stroke lesions of real shape statistics on the MNI152 T1w, seen through the scanners of several centres.

The constants were measured with `benchmarks/lesion_shape_statistics.py` on 808 real masks in MNI space at 1 mm: 728
acute ones (SOOP) and 80 chronic ones (LESYMAP, left hemisphere). "Kept" are the 766 of at least 0.3 mL, whose shape can
be measured; smaller lesions are drawn like the smallest of these.
"""

from functools import lru_cache

import numpy as np
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.anatomy import Anatomy
from reperfuse.phantoms.fields import smooth_field
from reperfuse.phantoms.patient import Lesion, LesionPhantom, Truth, stroke_patient

VOLUME_ML = (
    (0.0, 0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0),
    (0.004, 0.069, 0.295, 2.51, 17.9, 66.9, 207.0, 477.0),
)
"""Quantiles of the lesion volume [mL] of all 808 masks; log-volume has mean 2.48 and standard deviation 2.11. Published
medians are smaller (ATLAS v2.0: 5 mL), so scores here are not scores there."""

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

SPECK_ML = 0.03
"""Volume [mL] below which a further component is a speck of the tracing (27 mm³), and is given to the largest."""


@lru_cache(maxsize=2)
def _template(grid_mm: float) -> tuple[Anatomy, np.ndarray, tuple[int, ...], tuple[slice, ...]]:
    """The template within the box that holds the brain, affine of the whole grid, its shape, the box."""
    if grid_mm < 1 or grid_mm != int(grid_mm):
        raise ValueError(f"grid_mm is a whole number of millimetres, at least 1, not {grid_mm}.")
    template = load_mni152_template(resolution=int(grid_mm))
    mask = np.asarray(load_mni152_brain_mask(resolution=int(grid_mm)).dataobj) > 0
    t1w = np.asarray(template.dataobj, dtype=np.float32) * mask
    # 12 mm around the brain leave room for the warp.
    margin = int(np.ceil(12 / grid_mm))
    box = tuple(
        slice(max(0, s.start - margin), min(n, s.stop + margin))
        for s, n in zip(ndimage.find_objects(mask.astype(np.uint8))[0], mask.shape, strict=True)
    )
    affine = np.asarray(template.affine, dtype=np.float64)
    origin_mm = affine[:3, 3] + np.array([s.start for s in box]) * grid_mm
    return Anatomy(t1w[box], mask[box], origin_mm, grid_mm), affine, mask.shape, box


def volume_quantile(share: float, *, floor_ml: float = 0.0) -> float:
    """Lesion volume [mL] that `share` of the real masks do not reach; linear in log-volume between `VOLUME_ML`.

    With a floor, of the masks that are at least so large.

    >>> round(volume_quantile(0.0), 3), round(volume_quantile(0.5), 1), round(volume_quantile(0.0, floor_ml=0.3), 2)
    (0.004, 17.9, 0.3)
    """
    shares, logs = VOLUME_ML[0], np.log(VOLUME_ML[1])
    below = float(np.interp(np.log(floor_ml), logs, shares)) if floor_ml > 0 else 0.0
    return float(np.exp(np.interp(below + share * (1 - below), shares, logs)))


def _roughness(volume_ml: float) -> float:
    """Amplitude of the border's noise, relative to the radius, that gives the sphericity measured at this volume.

    Interpolated from a table: for six volumes, five single-component phantoms at each of the amplitudes 0.02, 0.1,
    0.2, 0.3 and 0.4, and the amplitude at which their median sphericity meets `SPHERICITY`. The two largest were
    lowered for the sulci, which roughen a large lesion too (seven phantoms each then have 0.66 and 0.56).
    """
    return float(np.interp(np.log(volume_ml), np.log(SPHERICITY[0]), (0.18, 0.31, 0.40, 0.46, 0.38, 0.20)))


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
    seed: int, *, centre: int = 0, grid_mm: float = 1.0, volume_ml: float | None = None, warp_mm: float = 7.0
) -> LesionPhantom:
    """T1w of one subject with a chronic stroke lesion, or with none, and the lesion's mask.

    The MNI152 template, warped and aged (`anatomy`, `confounders`), with a lesion of irregular border (`appearance`),
    seen through the scanner of a centre. What looks like a lesion and is none, and what tells the two apart, stands in
    `confounders`.

    Parameters
    ----------
    seed
        Everything about the subject follows from it and from the centre.
    centre
        Number of the centre.
    grid_mm
        Voxel size [mm], a whole number; 1 gives the grid of ATLAS, (197, 233, 189).
    volume_ml
        Lesion volume [mL], 0 for a subject without a lesion; by default drawn from `VOLUME_ML`. The mask has a voxel at
        least.
    warp_mm
        Standard deviation of the random displacement [mm] along each axis; where it would fold it is made smaller.

    Returns
    -------
    LesionPhantom

    Raises
    ------
    ValueError
        If `grid_mm` is not a whole number, or the volume is negative.

    Examples
    --------
    >>> phantom = lesion_phantom(3, grid_mm=4.0, volume_ml=40.0)
    >>> phantom.t1w.data.shape == phantom.mask.data.shape
    True
    >>> bool(abs(phantom.mask.data.sum() * 0.064 - phantom.truth["volume_ml"]) < 1e-6)
    True
    """
    if volume_ml is not None and volume_ml < 0:
        raise ValueError(f"volume_ml is {volume_ml}, and no lesion has less than nothing: give 0 for none.")
    anatomy, affine, shape, box = _template(grid_mm)

    def put_lesion(subject: Anatomy, where: np.ndarray, rng: np.random.Generator) -> Lesion:
        return _lesion(subject, volume_quantile(rng.random()) if volume_ml is None else float(volume_ml), rng)

    t1w, mask, truth = stroke_patient(anatomy, put_lesion, seed, centre=centre, warp_mm=warp_mm, stripped=True)
    image, label = np.zeros(shape, np.uint16), np.zeros(shape, np.uint8)
    image[box], label[box] = t1w, mask
    return LesionPhantom(Volume(data=image, affine=affine), Volume(data=label, affine=affine), truth)


def _lesion(subject: Anatomy, volume_ml: float, rng: np.random.Generator) -> Lesion:
    """A lesion of real shape and place in the tissue of a subject."""
    t1w, grid_mm = subject.t1w, subject.grid_mm
    depth, mask = np.ones(t1w.size, np.float32), np.zeros(t1w.size, bool)
    if volume_ml == 0:
        none: Truth = {"centre_mm": [], "hemisphere": "none", "n_components": 0}
        return Lesion(mask.reshape(t1w.shape), depth.reshape(t1w.shape), none)
    tissue = np.flatnonzero(subject.brain & (t1w > 0.40))  # not in ventricles and the widest sulci
    index = np.stack(np.unravel_index(tissue, t1w.shape), axis=1)
    world = np.stack([subject.axes_mm[a][index[:, a]] for a in range(3)], axis=1).astype(np.float32)
    voxel_ml = grid_mm**3 / 1000
    n = int(rng.choice([k for k, _ in COMPONENTS], p=[p for _, p in COMPONENTS]))
    share = float(np.interp(rng.random(), *LARGEST_SHARE)) if n > 1 else 1.0
    parts = volume_ml * np.sort([share, *((1 - share) * rng.dirichlet(np.full(n - 1, 1.5)))] if n > 1 else [1.0])[::-1]
    specks = parts < SPECK_ML
    specks[0] = False
    parts[0] += parts[specks].sum()
    first = _place(volume_ml, rng)
    placed, middle, reach = 0, first, 0.0
    for part_ml in parts[~specks]:
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
    facts: Truth = {
        "centre_mm": [round(float(c), 1) for c in middle],
        "hemisphere": "left" if middle[0] < 0 else "right",
        "n_components": placed,
    }
    return Lesion(mask.reshape(t1w.shape), depth.reshape(t1w.shape), facts)
