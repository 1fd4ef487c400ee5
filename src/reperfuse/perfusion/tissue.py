"""Where volumes are counted, and what is normal there.

Volumes are counted in tissue: brain without cerebrospinal fluid, where no bolus comes and Tmax is noise, and without
large vessels, where Tmax is that of the blood on its way. Flow is judged against normal tissue of the other hemisphere,
or, as an option, against normal white matter.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.vq import kmeans2
from scipy.ndimage import gaussian_filter

from reperfuse.errors import InputError

Mask = NDArray[np.bool_]

CSF_SIGNAL = 1.2
"""Baseline signal of cerebrospinal fluid over that of the brain around it, at least. T2* of fluid is several times that
of tissue, so it is bright before the bolus; coil sensitivity is divided out first."""

CSF_CBV = 0.7
"""CBV over the brain's median that a bright voxel of cerebrospinal fluid does not reach. Both conditions together,
because an infarct's core has little CBV too, but not the brightness. On 16 phantoms that did not choose them, the two
limits take 86 % of fluid, 0.4 % of tissue and 5 % of cores (14 % of one)."""

NO_BOLUS_CBV = 0.1
"""CBV over the brain's median below which a voxel counts as fluid where no baseline image is given to tell fluid from
a core without blood; a core keeps more than that in all but its centre."""

VESSEL_CBV = 2.5
"""CBV over the brain's median above which a voxel is vessel: grey matter has 1.3 times the median, blood about 25
times, so that a voxel above is mostly partial volume with a vessel."""

VESSEL_CBF = 4.0
"""The same for CBF, which rises in vessels more than CBV does since blood passes in a moment; normal cortex stays
below 3 times the median."""

COIL_SCALE_MM = 25.0
"""Width [mm] of the Gaussian that sees coil sensitivity and no anatomy."""

NORMAL_TMAX_S = 4.0
"""Tmax [s] below which tissue is normal enough to be the reference of the rest."""

LATE_TMAX_S = 6.0
"""Tmax [s] of which the healthier hemisphere has less."""

MIN_REFERENCE_ML = 10.0
"""Normal tissue [mL] without which a reference CBF is not trusted."""


def tissue_mask(
    brain: ArrayLike,
    cbv: ArrayLike,
    cbf: ArrayLike | None = None,
    baseline: ArrayLike | None = None,
    *,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    vessels: ArrayLike | None = None,
    csf_signal: float = CSF_SIGNAL,
    csf_cbv: float = CSF_CBV,
    no_bolus_cbv: float = NO_BOLUS_CBV,
    vessel_cbv: float = VESSEL_CBV,
    vessel_cbf: float = VESSEL_CBF,
) -> Mask:
    """Where volumes are counted: brain without cerebrospinal fluid and large vessels, shape (I, J, K).

    Fluid is bright before the bolus *and* nearly without CBV. Vessels have much CBV *or* much CBF. All is relative to
    medians over the brain, so that no unit of flow or signal matters.

    Parameters
    ----------
    brain
        Shape (I, J, K).
    cbv, cbf
        Maps of any one unit, shape (I, J, K); without CBF, vessels are told by CBV alone.
    baseline
        Mean signal before the bolus, shape (I, J, K). Without it, fluid is what has less than `no_bolus_cbv` of the
        median CBV, which a core without any blood has as well.
    spacing_mm
        Voxel size [mm], for the scale of coil sensitivity.
    vessels
        Voxels known to be vessel, such as those of the AIF.
    csf_signal, csf_cbv, no_bolus_cbv, vessel_cbv, vessel_cbf
        Limits, each a multiple of the brain's median.

    Examples
    --------
    >>> cbv, baseline = np.full((3, 3, 1), 4.0), np.full((3, 3, 1), 800.0)
    >>> cbv[0], baseline[0], cbv[1, 1] = 0.1, 1500, 40
    >>> tissue_mask(np.ones((3, 3, 1)), cbv, baseline=baseline, spacing_mm=(9, 9, 9))[..., 0].astype(int).tolist()
    [[0, 0, 0], [1, 0, 1], [1, 1, 1]]
    """
    inside = _same_shape(brain, cbv, cbf, baseline, vessels) & np.isfinite(np.asarray(cbv))
    if not inside.any():
        raise InputError("The brain mask has no voxel with a CBV: give a mask that covers the brain.")
    volume = np.asarray(cbv, dtype=np.float64)
    normal_cbv = _median_of_positive(volume, inside)
    if baseline is None:
        fluid = volume < no_bolus_cbv * normal_cbv
    else:
        bright = _evenly_lit(np.asarray(baseline, dtype=np.float64), inside, spacing_mm)
        fluid = (bright > csf_signal) & (volume < csf_cbv * normal_cbv)
    vessel = volume > vessel_cbv * normal_cbv
    if cbf is not None:
        flow = np.asarray(cbf, dtype=np.float64)
        vessel |= flow > vessel_cbf * _median_of_positive(flow, inside)
    if vessels is not None:
        vessel |= np.asarray(vessels) > 0
    return inside & ~fluid & ~vessel


def hemispheres(brain: ArrayLike, affine: ArrayLike) -> NDArray[np.int8]:
    """Side of every voxel, shape (I, J, K): 1 the patient's right, −1 the left, 0 on the midline or outside the brain.

    The affine says which array axis runs between left and right, and which way. Along it, each row of voxels has a
    middle between the brain's first and last voxel; the plane through those middles (least squares, weighted by the
    rows' lengths) is the midline. A head that lies off-centre or tilted by some degrees in the grid is halved along its
    own midline, and a grid that lies obliquely in the scanner changes nothing.

    Examples
    --------
    >>> hemispheres(np.ones((3, 1, 1)), np.diag([2.0, 2, 5, 1])).ravel().tolist()
    [-1, 0, 1]
    """
    inside = np.asarray(brain) > 0
    orientation = io_orientation(np.asarray(affine, dtype=np.float64))
    axis = int(np.flatnonzero(orientation[:, 0] == 0)[0])
    rows = np.moveaxis(inside, axis, 0)
    n = rows.shape[0]
    first, last = rows.argmax(axis=0), n - 1 - rows[::-1].argmax(axis=0)
    seen = rows.any(axis=0)
    if not seen.any():
        raise InputError("The brain mask has no voxel: give a mask that covers the brain.")
    places = np.argwhere(seen)
    design = np.column_stack([np.ones(len(places)), places - places.mean(axis=0)])
    weight = np.sqrt((last - first + 1)[seen])
    plane = np.linalg.lstsq(design * weight[:, None], (first + last)[seen] / 2 * weight, rcond=None)[0]
    grid = np.indices(seen.shape).reshape(2, -1).T - places.mean(axis=0)
    middle = (plane[0] + grid @ plane[1:]).reshape(seen.shape)
    # Rounded, so that a voxel on the midline is on it in the mirrored head as well.
    toward_last = np.round(np.arange(n)[:, None, None] - middle, 6)
    side = np.sign(toward_last) * rows * orientation[axis, 1]
    return np.moveaxis(side, 0, axis).astype(np.int8)


def contralateral_normal(
    values: ArrayLike,
    tmax: ArrayLike,
    where: ArrayLike,
    sides: ArrayLike,
    voxel_ml: float,
    *,
    normal_tmax_s: float = NORMAL_TMAX_S,
    min_reference_ml: float = MIN_REFERENCE_ML,
) -> NDArray[np.float64]:
    """What is normal for each voxel: the mean over tissue of the other hemisphere with Tmax below 4 s, (I, J, K).

    Where the other hemisphere has less than `min_reference_ml` of such tissue, and for voxels on the midline, normal
    tissue of both sides is the reference; NaN everywhere where that is too little as well.

    Parameters
    ----------
    values, tmax
        The map in question, such as CBF, and Tmax [s], shape (I, J, K).
    where
        Tissue (`tissue_mask`).
    sides
        `hemispheres`.
    voxel_ml
        Volume of a voxel [mL].
    """
    tissue = _same_shape(where, values, tmax, sides)
    found, late, side = (np.asarray(image, dtype=np.float64) for image in (values, tmax, sides))
    normal = tissue & np.isfinite(found) & (late < normal_tmax_s)
    either = _mean(found, normal, voxel_ml, min_reference_ml)
    reference = np.full(tissue.shape, np.nan if either is None else either)
    for here in (-1, 1):
        other = _mean(found, normal & (side == -here), voxel_ml, min_reference_ml)
        if other is not None:
            reference[side == here] = other
    return reference


def normal_white_matter(
    cbv: ArrayLike,
    cbf: ArrayLike,
    baseline: ArrayLike,
    tmax: ArrayLike,
    where: ArrayLike,
    affine: ArrayLike,
    *,
    normal_tmax_s: float = NORMAL_TMAX_S,
    min_reference_ml: float = MIN_REFERENCE_ML,
) -> Mask:
    """Normal-appearing white matter, found without a T1-weighted image, shape (I, J, K).

    Tissue with Tmax below 4 s of the hemisphere with less tissue above 6 s (of both where they have the same) falls
    into two classes by k-means on log CBF, log CBV and baseline signal without coil sensitivity, each scaled to unit
    variance; white matter is the class with less flow. Grey matter has twice its flow and volume and is brighter.

    Raises
    ------
    InputError
        If there is less than `min_reference_ml` of it.
    """
    tissue = _same_shape(where, cbv, cbf, baseline, tmax)
    affine = np.asarray(affine, dtype=np.float64)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    flow, volume, late = (np.asarray(image, dtype=np.float64) for image in (cbf, cbv, tmax))
    sides = hemispheres(tissue, affine)
    burden = {side: int(np.count_nonzero(tissue & (late > LATE_TMAX_S) & (sides == side))) for side in (-1, 1)}
    normal = tissue & (late < normal_tmax_s) & (flow > 0) & (volume > 0)
    if burden[-1] != burden[1]:
        normal &= sides == min(burden, key=lambda side: burden[side])
    if np.count_nonzero(normal) * voxel_ml >= min_reference_ml:
        lit = _evenly_lit(np.asarray(baseline, dtype=np.float64), tissue, np.linalg.norm(affine[:3, :3], axis=0))
        features = np.column_stack([np.log(flow[normal]), np.log(volume[normal]), lit[normal]])
        features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-9)
        # Starts at the quartiles, not at random: the same series gives the same white matter.
        starts = np.quantile(features, [0.25, 0.75], axis=0)
        centres, classes = kmeans2(features, starts, minit="matrix", missing="warn")
        white = np.zeros(tissue.shape, dtype=bool)
        white[normal] = classes == int(centres[:, 0].argmin())
        if np.count_nonzero(white) * voxel_ml >= min_reference_ml:
            return white
    raise InputError("Too little normal white matter was found to normalise to: use the maps as they are.")


def normalised(values: ArrayLike, reference_mask: ArrayLike, value: float = 1.0) -> NDArray[np.floating[Any]]:
    """The map scaled so that its mean over the reference is `value`.

    With `normal_white_matter` and value 1 a map of rCBF or rCBV; with 22 mL/100 g/min an estimate of CBF.

    Examples
    --------
    >>> normalised([[5.0, 10.0, 20.0]], [[1, 1, 0]], 1.5).tolist()
    [[1.0, 2.0, 4.0]]
    """
    found = np.asarray(values)
    found = found.astype(np.float64) if found.dtype != np.float32 else found
    reference = np.asarray(reference_mask) > 0
    if reference.shape != found.shape:
        raise ValueError(f"reference mask has shape {reference.shape}, the map {found.shape}")
    mean = float(found[reference].mean(dtype=np.float64)) if reference.any() else 0.0
    if not mean > 0:
        raise InputError("The reference tissue has no positive mean to normalise to: give another reference mask.")
    return np.asarray(found * found.dtype.type(value / mean))


def _same_shape(mask: ArrayLike, *others: ArrayLike | None) -> Mask:
    inside = np.asarray(mask) > 0
    if inside.ndim != 3:
        raise ValueError(f"the mask has shape {inside.shape}, expected (I, J, K)")
    for other in others:
        if other is not None and np.shape(other) != inside.shape:
            raise ValueError(f"the mask has shape {inside.shape}, a map {np.shape(other)}: all share one grid")
    return inside


def _median_of_positive(values: NDArray[np.float64], inside: Mask) -> float:
    positive = values[inside & np.isfinite(values) & (values > 0)]
    return float(np.median(positive)) if positive.size else 0.0


def _evenly_lit(signal: NDArray[np.float64], inside: Mask, spacing_mm: ArrayLike) -> NDArray[np.float64]:
    """Signal over its own Gaussian mean inside the brain, median 1 there: anatomy without coil sensitivity."""
    widths = COIL_SCALE_MM / np.asarray(spacing_mm, dtype=np.float64)
    inside = inside & np.isfinite(signal)
    total = gaussian_filter(np.where(inside, signal, 0), widths, mode="constant", truncate=3.0)
    weight = gaussian_filter(inside.astype(np.float64), widths, mode="constant", truncate=3.0)
    even = np.divide(signal * weight, total, out=np.zeros_like(signal), where=inside & (total > 0))
    median = _median_of_positive(even, inside)
    return even / median if median > 0 else even


def _mean(values: NDArray[np.float64], inside: Mask, voxel_ml: float, least_ml: float) -> float | None:
    return float(values[inside].mean()) if np.count_nonzero(inside) * voxel_ml >= least_ml and inside.any() else None
