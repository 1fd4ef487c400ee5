"""Rigid registration of one image to another, in millimetres, whatever the contrast and the orientation of storage.

Affines are NIfTI's (RAS+, mm). The search runs in coordinates of its own: the axes are those of the fixed grid, the
origin is the middle of what is registered, the unit is `UNIT_MM`. SimpleITK never learns which way is left, so no sign
has to be turned between RAS+ and LPS+, and grids stored in another order give the same answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.preprocessing.brain import threshold_mask
from reperfuse.preprocessing.geometry import resample
from reperfuse.preprocessing.slices import FWHM_PER_SIGMA

UNIT_MM = 60.0
"""Unit of length of the search [mm], about the root mean square radius of a brain: a step of 0.01 is then about as far
for a rotation [rad] as for a translation, and the optimiser needs no scales."""

WORKING_MM = 3.5
"""Voxels smaller than half of this are averaged into blocks for the search [mm]: a quarter of the voxels is left of a
grid of 1.7 mm, and errors of 0.1 to 0.2 mm."""

FEW_SLICES = 3
"""Along an axis with this many voxels or fewer nothing can be seen to move: the search stays in the plane across it."""

BINS = 32
"""Histogram bins of Mattes mutual information."""

HEAD_RADIUS_MM = 80.0
"""Radius of the ball over which displacements are averaged [mm], the one that Jenkinson's measure is used with."""

LEVELS = ((16.0, 4.0), (8.0, 1.0))
"""Of the search, coarse to fine: full width at half maximum of the blur [mm], longest step [mm]. With 6 mm on voxels of
4.6 mm the error of a pure in-plane move was 0.6 to 0.9 mm instead of 0.15: interpolation smooths noise, so that mutual
information has false optima where grids coincide."""

SHORTEST_STEP_MM = 0.01
"""The search ends when it steps less far than this [mm]."""

MOST_STEPS = 40
"""Steps per level; 15 to 20 are usual."""

SEED = 1
"""Of the jitter within a voxel that ITK adds to regular samples; its default is the clock."""

ENOUGH_BLOCKS = 20_000
"""Of larger grids the coarse level reads every n-th block, so that about this many remain (mask not counted)."""

WORK_UNITS = 1
"""Threads in which ITK sums the metric: with more, the last digits depend on which comes first."""

WORKING_BITS = 10
"""The search sees images whose robust maximum is below 2 to this power and above half of that: scanner units already.
Squares of numbers of 10³⁰ overflow in single precision, and ITK then prints its matrices."""

BRIGHTEST = 16.0
"""No tissue, steady or not, is this many times brighter than that power of two: such voxels are broken and count as not
measured, for one of them would fill the histogram. Where they are more than `FEW_BROKEN` of an image it is cut."""

FEW_BROKEN = 0.01
"""Part of an image that may be broken voxels."""

MIN_OVERLAP = 0.10
"""Part of the fixed image's head that the other image must cover by its header, or the two are not of one place."""

FARTHEST_MM = 40.0
"""A search that moves the head farther than this [mm] has lost it: the headers of one examination agree better."""


@dataclass(frozen=True)
class Rigid:
    """Where points of the fixed image are found in the moving one: x' = R·(x − c) + c + t, scanner coordinates [mm]."""

    matrix: NDArray[np.float64]
    """The same as a (4, 4) matrix, RAS+ [mm]."""
    centre_mm: NDArray[np.float64]
    """c, shape (3,): the middle of the head."""
    gain: float = 0.0
    """Mutual information won over the start of the search [nat]."""
    searched: bool = True
    """False where the headers alone were followed."""

    @property
    def translation_mm(self) -> NDArray[np.float64]:
        """t, shape (3,): how far the middle of the head goes [mm]."""
        return self.matrix[:3, :3] @ self.centre_mm + self.matrix[:3, 3] - self.centre_mm

    @property
    def rotation_rad(self) -> NDArray[np.float64]:
        """Rotation vector of R, shape (3,): its direction is the axis, its length the angle [rad]."""
        return Rotation.from_matrix(self.matrix[:3, :3]).as_rotvec()

    @property
    def rotation_deg(self) -> NDArray[np.float64]:
        """`rotation_rad` in degrees."""
        return np.rad2deg(self.rotation_rad)

    @property
    def displacement_mm(self) -> float:
        """Root mean square displacement of the head [mm], as in `displacement_mm`."""
        return displacement_mm(self.matrix, self.centre_mm)


def displacement_mm(matrix: ArrayLike, centre_mm: ArrayLike, radius_mm: float = HEAD_RADIUS_MM) -> float:
    """Root mean square displacement of a ball that a rigid matrix moves [mm].

    d² = r²·tr(AᵀA)/5 + |t + A·c|² with A = R − 1 and t the last column of the matrix, over a ball of radius r about c.

    References
    ----------
    Jenkinson M. Measuring transformation error by RMS deviation. FMRIB technical report TR99MJ1, 1999.

    Examples
    --------
    >>> shift = np.eye(4); shift[:3, 3] = 3, 4, 0
    >>> displacement_mm(shift, (10, 20, 30))
    5.0
    """
    matrix, centre = np.asarray(matrix, dtype=float), np.asarray(centre_mm, dtype=float)
    turn = matrix[:3, :3] - np.eye(3)
    shift = matrix[:3, 3] + turn @ centre
    return float(np.sqrt(radius_mm**2 / 5 * np.sum(turn**2) + shift @ shift))


def rigid_align(
    moving: ArrayLike,
    moving_affine: ArrayLike,
    fixed: ArrayLike,
    fixed_affine: ArrayLike,
    *,
    search: bool = True,
    nearest: bool = False,
) -> tuple[NDArray[Any], Rigid]:
    """The moving image on the grid of the fixed one, shape of `fixed`, and where it was found.

    Starts where the headers put the two and maximises Mattes mutual information, so that contrasts may differ (an ADC
    map, a T2*-weighted frame). Where the search finds nothing better than the headers, or goes farther than
    `FARTHEST_MM`, the headers are followed. Along an axis with `FEW_SLICES` voxels or fewer nothing is moved.

    Parameters
    ----------
    moving, fixed
        Shapes (I, J, K); the grids may differ in everything. NaN and infinity count as not measured.
    moving_affine, fixed_affine
        (4, 4), RAS+ [mm].
    search
        False follows the headers alone.
    nearest
        Take the nearest voxel (labels, masks) instead of linear interpolation after the blur that a coarser grid needs.

    Returns
    -------
    The image, NaN where the moving image has not measured (0 with `nearest`, whose type is that of `moving`), and the
    transform from fixed to moving positions.

    Raises
    ------
    InputError
        If the two images do not overlap in space, or one of them is empty.
    """
    moving, fixed = np.asarray(moving), np.asarray(fixed)
    moving_affine, fixed_affine = (np.asarray(a, dtype=float) for a in (moving_affine, fixed_affine))
    for name, image in (("moving", moving), ("fixed", fixed)):
        if image.ndim != 3:
            raise ValueError(f"the {name} image has {image.ndim} axes, expected (I, J, K)")
    head = threshold_mask(np.where(np.isfinite(fixed), fixed, 0))
    measured = np.isfinite(moving)
    if not np.any(moving[measured]):
        raise InputError("The image to be aligned holds zeros alone: check that it is the right file.")
    places = nib.affines.apply_affine(np.linalg.inv(moving_affine) @ fixed_affine, np.argwhere(head))
    overlap = float(np.mean(((places > -0.5) & (places < np.array(moving.shape) - 0.5)).all(axis=1)))
    if overlap < MIN_OVERLAP:
        raise InputError(
            f"The two images overlap in {overlap:.0%} of the head: check that both are of the same examination and "
            "that their headers say where they lie."
        )
    centre = nib.affines.apply_affine(fixed_affine, np.argwhere(head).mean(axis=0))
    found = Rigid(np.eye(4), centre, searched=False)
    if search:
        space = Space(fixed_affine, centre)
        target = space.image(fixed, fixed_affine, head, working_scale(robust_maximum(fixed)))
        other = space.image(moving, moving_affine, None, working_scale(robust_maximum(moving)))
        tried = register(target, other)
        if tried is not None and tried.gain > 0 and tried.displacement_mm <= FARTHEST_MM:
            found = tried
    return _on_grid(moving, np.linalg.inv(found.matrix) @ moving_affine, fixed.shape, fixed_affine, nearest), found


def robust_maximum(values: ArrayLike) -> float:
    """99.5th percentile of the sizes of what is measured and not zero; 0 where there is nothing.

    >>> robust_maximum([0.0, np.nan, -3.0, 3.0])
    3.0
    """
    values = np.asarray(values)
    sizes = np.abs(values[np.isfinite(values)].astype(np.float64))
    sizes = sizes[sizes > 0]
    return float(np.percentile(sizes, 99.5)) if sizes.size else 0.0


def working_scale(highest: float) -> float:
    """The power of two that takes a robust maximum to between half of 2 to the power of `WORKING_BITS` and that.

    A power of two changes no digit; most scanners' numbers are multiplied by 1.

    >>> working_scale(940.0), working_scale(1e30) * 1e30 < 1024
    (1.0, True)
    """
    if not highest > 0:
        return 1.0
    return float(np.ldexp(1.0, min(WORKING_BITS - int(np.ceil(np.log2(highest))), 1000)))


def _on_grid(
    image: NDArray[Any], affine: NDArray[Any], shape: tuple[int, ...], grid: NDArray[Any], nearest: bool
) -> NDArray[Any]:
    """An image on another grid by header, NaN where it has not measured."""
    like = Volume(np.broadcast_to(np.uint8(0), shape), grid)
    if nearest:
        return resample(Volume(image, affine), like=like, order=0).data
    measured = np.isfinite(image)
    values = resample(Volume(np.where(measured, image, 0).astype(np.float32), affine), like=like).data
    # What was not measured has no share in the mean; `resample` puts 0 outside the field of view, weights included.
    weight = resample(Volume(measured.astype(np.float32), affine), like=like).data
    return np.where(weight > 0.5, values / np.maximum(weight, 0.5), np.nan).astype(np.float32)


@dataclass(frozen=True)
class Space:
    """The coordinates of a search: along the axes of a grid, from a centre, in units of `UNIT_MM`."""

    affine: NDArray[np.float64]
    """Of the grid, (4, 4)."""
    centre_mm: NDArray[np.float64]

    @property
    def to_working(self) -> NDArray[np.float64]:
        """(4, 4), scanner coordinates [mm] to working ones."""
        columns = _canonical(self.affine, (1, 1, 1))[1][:3, :3]
        # The rotation nearest to the axes: the axes themselves, unless the affine has shear.
        u, _, v = np.linalg.svd(columns / np.linalg.norm(columns, axis=0))
        back = (u @ v).T / UNIT_MM
        return nib.affines.from_matvec(back, -back @ self.centre_mm)

    def image(
        self, data: NDArray[Any], affine: NDArray[Any], mask: NDArray[np.bool_] | None = None, scale: float = 1.0
    ) -> "WorkingImage":
        """An image made ready for the search, times `scale`; `mask`, on its grid, says where it counts."""
        inside = None if mask is None else _canonical(affine, data.shape, mask)[0]
        # In double precision the limit for broken voxels, and the step to it, cannot overflow.
        turned, affine = _canonical(affine, data.shape, data.astype(np.float64))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        factors = [max(1, min(int(WORKING_MM // s), n // 16)) for s, n in zip(spacing, turned.shape, strict=True)]
        measured = np.isfinite(turned)
        limit = BRIGHTEST * 2.0**WORKING_BITS
        broken = measured & (np.abs(turned) > limit / scale)
        if broken.mean() <= FEW_BROKEN:
            measured &= ~broken
        turned = np.clip(turned, -limit / scale, limit / scale) * scale
        weight = _blocks(measured, factors)
        values = _blocks(np.where(measured, turned, 0), factors) / np.maximum(weight, 1e-3)
        if not measured.all():  # holes take the mean of what is around them
            near = ndimage.gaussian_filter(weight, 1.0)
            values = np.where(weight > 0.5, values, ndimage.gaussian_filter(values * weight, 1.0) / (near + 1e-6))
        grid = affine @ nib.affines.from_matvec(np.diag(factors), (np.array(factors) - 1) / 2)
        head = None if inside is None else _blocks(inside, factors) > 0.3
        return WorkingImage(self, values.astype(np.float32), weight > 0.5, self.to_working @ grid, head)


@dataclass(frozen=True)
class WorkingImage:
    """An image in a `Space`: block means, where they were measured, and its affine to working coordinates."""

    space: Space
    values: NDArray[np.float32]
    measured: NDArray[np.bool_]
    affine: NDArray[np.float64]
    head: NDArray[np.bool_] | None

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Shape (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0) * UNIT_MM

    def blurred(self, fwhm_mm: float) -> NDArray[np.float32]:
        """The values as voxels of this full width would have them; an axis with few voxels is not blurred."""
        width = np.sqrt(np.maximum(fwhm_mm**2 - self.spacing_mm**2, 0)) / FWHM_PER_SIGMA / self.spacing_mm
        width[np.array(self.values.shape) <= FEW_SLICES] = 0
        return np.asarray(ndimage.gaussian_filter(self.values, width, mode="nearest"))

    @cached_property
    def levels(self) -> list[Any]:
        """The image blurred for each of `LEVELS`, as SimpleITK's."""
        return [self.itk(self.blurred(fwhm_mm)) for fwhm_mm, _ in LEVELS]

    def itk(self, values: NDArray[Any]) -> Any:
        """Values on this grid as SimpleITK's image, in working coordinates."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))  # SimpleITK's arrays run k, j, i
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(self.affine[:3, 3].tolist())
        image.SetDirection((self.affine[:3, :3] / spacing).ravel().tolist())
        return image


def register(fixed: WorkingImage, moving: WorkingImage, starts: Sequence[NDArray[Any]] = ()) -> Rigid | None:
    """The rigid transform from fixed to moving that maximises their mutual information; None where the search fails.

    Gradient ascent with steps that shrink whenever the gradient turns round, on blurred images, coarse to fine. Every
    block of the head counts at the fine level: the same input gives the same answer. ITK's own filter for
    the gradient is off: it blurs by the thickest spacing, so that with slices of 8 mm the search stopped 0.5 mm
    from the optimum.

    Parameters
    ----------
    fixed, moving
        Images of one `Space`; `fixed.head` is where they are compared.
    starts
        (4, 4) matrices, scanner coordinates, tried beside no motion at all; the search goes on from the best.

    Returns
    -------
    Rigid or None
        None where too little of the head is seen in the moving image.
    """
    to_working, space = fixed.space.to_working, fixed.space
    back = np.linalg.inv(to_working)
    few = np.array(fixed.values.shape) <= FEW_SLICES
    # Parameters are the angles about and the shifts along the three axes.
    free = [float(few.sum() == 0 or (few.sum() == 1 and few[a])) for a in range(3)] + (~few).astype(float).tolist()
    head = fixed.head if fixed.head is not None else fixed.measured
    # A rim around the head belongs to the comparison: its edge is the strongest sign of a shift.
    rim = 2 * np.minimum(fixed.values.shape, 2) - 1
    mask = fixed.itk((ndimage.binary_dilation(head, np.ones(rim)) & fixed.measured).astype(np.uint8))
    # Scattered holes are filled; only where whole neighbourhoods are missing does the comparison leave them out.
    missing = ndimage.binary_opening(~moving.measured, np.ones(rim))
    seen = moving.itk((~missing).astype(np.uint8)) if missing.any() else None

    def method(level: int, at: Any) -> tuple[Any, Any, Any]:
        search = sitk.ImageRegistrationMethod()
        search.SetNumberOfWorkUnits(WORK_UNITS)
        search.SetMetricAsMattesMutualInformation(BINS)
        search.SetMetricFixedMask(mask)
        if level == 0 and fixed.values.size > ENOUGH_BLOCKS:
            search.SetMetricSamplingStrategy(search.REGULAR)
            search.SetMetricSamplingPercentage(ENOUGH_BLOCKS / fixed.values.size, SEED)
        if seen is not None:
            search.SetMetricMovingMask(seen)
        search.MetricUseFixedImageGradientFilterOff()
        search.MetricUseMovingImageGradientFilterOff()
        search.SetInterpolator(sitk.sitkLinear)
        search.SetInitialTransform(at, inPlace=True)
        search.SetOptimizerAsRegularStepGradientDescent(
            LEVELS[level][1] / UNIT_MM,
            SHORTEST_STEP_MM / UNIT_MM,
            MOST_STEPS,
            relaxationFactor=0.6,
            gradientMagnitudeTolerance=1e-9,
        )
        search.SetOptimizerWeights(free)
        return search, fixed.levels[level], moving.levels[level]

    def information(level: int, at: Any) -> float:
        search, target, other = method(level, at)
        return -float(search.MetricEvaluate(target, other))

    at = _euler(np.eye(4))
    try:
        before = information(-1, at)
        for start in starts:
            other_start = _euler(to_working @ np.asarray(start) @ back)
            at = max(at, other_start, key=lambda candidate: information(0, candidate))
        for level in range(len(LEVELS)):
            search, target, other = method(level, at)
            search.Execute(target, other)
        gain = information(-1, at) - before
    except RuntimeError:
        # ITK's word for "hardly any sample falls into the moving image": the caller decides what that means.
        return None
    centre = np.array(at.GetCenter())
    turn = np.array(at.GetMatrix()).reshape(3, 3)
    working = nib.affines.from_matvec(turn, np.array(at.GetTranslation()) + centre - turn @ centre)
    return Rigid(back @ working @ to_working, space.centre_mm, gain)


def _euler(working: NDArray[Any]) -> Any:
    """SimpleITK's transform of a rigid matrix in working coordinates."""
    euler = sitk.Euler3DTransform()
    euler.SetMatrix(working[:3, :3].ravel().tolist(), 1e-6)
    euler.SetTranslation(working[:3, 3].tolist())
    return euler


def _canonical(
    affine: NDArray[Any], shape: Sequence[int], data: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Data (a view) and affine with the array axes nearest to right, anterior, superior."""
    turn = nib.orientations.io_orientation(affine)
    turned = np.empty(0) if data is None else nib.orientations.apply_orientation(data, turn)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, tuple(shape))


def _blocks(data: NDArray[Any], factors: Sequence[int]) -> NDArray[np.float32]:
    """Means over blocks of voxels; what fills no block at the far end is left out."""
    (a, i), (b, j), (c, k) = ((n // f, f) for n, f in zip(data.shape, factors, strict=True))
    cut = data[: a * i, : b * j, : c * k].astype(np.float32)
    return cut.reshape(a, i, b, j, c, k).mean(axis=(1, 3, 5))
