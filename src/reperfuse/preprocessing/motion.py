"""Where the head was in each frame of a series, and the series with the head at rest."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from reperfuse.preprocessing.brain import threshold_mask
from reperfuse.preprocessing.registration import (
    Rigid,
    Space,
    WorkingImage,
    displacement_mm,
    register,
    robust_maximum,
    working_scale,
)

MOVED_MM = 0.5
"""A series is realigned when the head of some frame is farther than this from the reference [mm], a third of a usual
voxel; the search errs by 0.1 to 0.2 mm on still phantoms of SNR 30."""

MIN_GAIN = 0.03
"""And when the moved frames win this much mutual information with the reference, on average [nat]. On phantoms a true
shift of 0.6 mm wins 0.07 at SNR 30, noise at SNR 10 up to 0.02."""

STILL_MM = 0.25
"""Frames nearer to the reference than this are not interpolated [mm]: interpolation would cost more than it mends."""

FARTHEST_MM = 60.0
"""A head displaced farther than this [mm] would have left the coil: the search has failed."""

MIN_SEEN = 0.70
"""Part of the head that must lie in a frame's field of view, or the frame is lost."""

MIN_SIGNAL = 0.50
"""Part of the head that must hold signal in a frame for it to be registered at all."""

MIN_EXPLAINED = 0.30
"""Part of a frame's variance within the head that its neighbours in time and the reference must explain, each scaled
freely. Noise explains 0.03 of itself; the steepest bolus frames of a phantom with TR 6 s still have 0.5, so that this
finds frames of something else and never a bolus."""

DISAGREEMENT_MM = 1.5
"""Root mean square displacement of the slices against one another [mm] above which the head moved while the frame was
acquired: no rigid transform puts such a frame right."""

SHARPNESS_MM = 6.0
"""Full width at half maximum at which frames are compared with one another [mm]."""

ALIKE = 5
"""Frames, at most a third of all, that are averaged into the reference image: those most like the reference frame lie
where it lies, and their mean has less noise (at rest and SNR 10 the mean error falls from 0.32 to 0.26 mm)."""

SLOPE_VOXELS = 8
"""Axes with fewer voxels are left out of the comparison of slices: across six thick slices the slope is so coarse that
aligned frames at the peak of the bolus came out 1.2 mm apart."""

MIN_BLOCKS = 40
"""Blocks of the head that a slice must show to be judged, and a head to be registered at all."""

FLAT = 1e-5
"""Range of a frame within the head, as a part of its largest value, up to which it shows nothing: what blurring a
constant leaves in single precision is smaller."""


@dataclass(frozen=True)
class Motion:
    """What a head did during a series, and what was decided about it."""

    parameters: NDArray[np.float64]
    """Shape (T, 6): shift of the middle of the head [mm] and rotation vector [rad] against the reference frame, along
    the scanner's axes (right, anterior, superior); NaN where the frame could not be registered."""
    displacement_mm: NDArray[np.float64]
    """Root mean square displacement of a ball of 80 mm radius against the reference frame, shape (T,) [mm] (Jenkinson's
    measure, see `registration.displacement_mm`); NaN where the frame is lost, and everywhere where no motion could be
    seen: the head has fewer than `MIN_BLOCKS` blocks, no frame shows anything but one value, or no frame is like
    another (a mask over air)."""
    lost: NDArray[np.bool_]
    """Frames that cannot be saved, shape (T,): registration failed, most of the head has left the field of view, the
    frame does not resemble its neighbours, or its slices disagree."""
    resampled: NDArray[np.bool_]
    """Frames that `realigned` interpolates, shape (T,)."""
    disagreement_mm: NDArray[np.float64]
    """Root mean square displacement of the slices against one another after alignment, shape (T,) [mm]."""
    explained: NDArray[np.float64]
    """Part of the variance of each frame within the head that its neighbours and the reference explain, shape (T,)."""
    reference: int
    """The frame that stands for rest: the one most like all others."""
    centre_mm: NDArray[np.float64]
    """Middle of the head in the reference, shape (3,), scanner coordinates."""
    matrices: NDArray[np.float64]
    """Where each frame holds what the reference holds at x, shape (T, 4, 4), scanner coordinates [mm]."""
    gain: float = 0.0
    """Mutual information that the moved frames won, on average [nat]."""

    @property
    def applied(self) -> bool:
        """Whether `realigned` changes anything."""
        return bool(self.resampled.any() or self.lost.any())


def estimate_motion(
    frames: ArrayLike,
    affine: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Motion:
    """Rigid motion of the head in each frame of a series, and which frames to realign or to give up.

    Each frame is registered to one reference frame by mutual information, which tolerates that a bolus darkens tissue
    by half and vessels more (at the peak of the bolus in a still phantom of SNR 30 it erred by 0.1 to 0.2 mm,
    correlation by 0.2 to 0.25).
    The reference is the frame with the highest median correlation with all others: never one of a few moved ones, nor
    of the bolus, nor of the bright unsteady start. The search starts from rest or from the frame before, whichever fits
    better. Means over aligned neighbours as a second reference were tried and did not lower the error.

    Frames are moved only if that helps: some head is displaced by more than `MOVED_MM`, and the frames so displaced win
    `MIN_GAIN` of mutual information. A series with `FEW_SLICES` slices or fewer is moved in its plane alone.

    Parameters
    ----------
    frames
        Shape (I, J, K, T). NaN, infinity, negative values and slices of zeros count as not measured; a frame that has
        no signal in half of the head was not acquired, is left as it is and is not called lost.
    affine
        (4, 4), RAS+ [mm].
    mask
        Brain, shape (I, J, K); by threshold when not given.
    progress
        Called with the number of frames done and T.

    Returns
    -------
    Motion

    Raises
    ------
    InputError
        If no voxel is positive.

    References
    ----------
    Mattes D, Haynor DR, Vesselle H, Lewellen TK, Eubank W. PET-CT image registration in the chest using free-form
    deformations. IEEE Trans Med Imaging 2003;22:120-128: the mutual information.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> head = np.zeros((32, 32, 8)); head[6:26, 4:28, 1:7] = 100 + 30 * ndimage.gaussian_filter(
    ...     rng.normal(size=(20, 24, 6)), (2, 2, 1)) / 0.06
    >>> frames = np.stack([head, head, np.roll(head, 2, axis=0), head], axis=-1)
    >>> motion = estimate_motion(frames, np.diag([3.0, 3, 5, 1]))
    >>> motion.applied, motion.displacement_mm.round().tolist()
    (True, [0.0, 0.0, 6.0, 0.0])
    """
    frames, affine = np.asarray(frames), np.asarray(affine, dtype=float)
    if frames.ndim != 4:
        raise ValueError(f"frames have {frames.ndim} axes, expected (I, J, K, T)")
    n = frames.shape[3]
    head = _head(frames, mask)
    space = Space(affine, nib.affines.apply_affine(affine, np.argwhere(head).mean(axis=0)))
    levels = np.array([robust_maximum(frames[..., t][head]) for t in range(n)])
    scale = working_scale(float(np.median(levels[levels > 0])) if levels.any() else 0.0)
    images = [space.image(_measured(frames[..., t]), affine, head, scale) for t in range(n)]
    acquired = np.array([_shows(image, MIN_SIGNAL) for image in images])
    textured = acquired & ~np.array([_is_flat(image) for image in images])
    visible = bool(textured.any())
    acquired &= visible
    reference, target = _most_typical(images, textured)

    found: list[Rigid | None] = [None] * n
    found[reference] = at_rest = Rigid(np.eye(4), space.centre_mm)
    done = 1
    for order in (range(reference + 1, n), range(reference - 1, -1, -1)):
        last = at_rest
        for t in order:
            if textured[t]:
                found[t] = register(target, images[t], [] if last is at_rest else [last.matrix])
                last = found[t] or last
            done += 1
            if progress:
                progress(done, n)
    if progress:
        progress(n, n)

    matrices = np.stack([np.eye(4) if rigid is None else rigid.matrix for rigid in found])
    far = np.array([displacement_mm(matrix, space.centre_mm) for matrix in matrices])
    failed = np.array([rigid is None for rigid in found]) & acquired | (far > FARTHEST_MM)
    seen, explained, disagreement = _after_alignment(images, matrices, acquired & ~failed)
    lost = acquired & (failed | (seen < MIN_SEEN) | (explained < MIN_EXPLAINED) | (disagreement > DISAGREEMENT_MM))
    if acquired.sum() > 2 and lost.sum() >= acquired.sum() - 1:
        # No two frames are alike: this is noise, or no head, and says nothing about where a head was.
        visible, found = False, [None] * n
        matrices, far, lost = np.stack([np.eye(4)] * n), np.zeros(n), np.zeros(n, dtype=bool)

    moved = ~lost & acquired & (far > MOVED_MM)
    gains = np.array([0.0 if rigid is None else rigid.gain for rigid in found])
    gain = float(gains[moved].mean()) if moved.any() else 0.0
    resampled = ~lost & acquired & (far > STILL_MM) & (moved.any() and gain > MIN_GAIN)
    parameters = np.full((n, 6), np.nan)
    for t, rigid in enumerate(found):
        if rigid is not None:
            parameters[t] = (*rigid.translation_mm, *rigid.rotation_rad)
    return Motion(
        parameters=parameters,
        displacement_mm=np.where(lost | (not visible), np.nan, far),
        lost=lost,
        resampled=resampled,
        disagreement_mm=disagreement,
        explained=explained,
        reference=reference,
        centre_mm=space.centre_mm,
        matrices=matrices,
        gain=gain,
    )


def realigned(frames: ArrayLike, affine: ArrayLike, motion: Motion) -> NDArray[np.floating]:
    """The series with the head where the reference frame has it, shape (I, J, K, T); lost frames are NaN.

    Cubic splines read the moved frames, clipped to the range of each (they overshoot at edges); linear interpolation
    would blur the moved frames and not the others, which shows as a change of signal at every edge. NaN stands where a
    frame has not measured: outside its field of view, and where its nearest voxel was not finite or in a slice of
    zeros. Frames that are not moved keep every bit; if none is, `frames` itself is returned.

    Parameters
    ----------
    frames, affine
        As for `estimate_motion`.
    motion
        What it found.
    """
    frames, affine = np.asarray(frames), np.asarray(affine, dtype=float)
    if motion.lost.shape != frames.shape[3:]:
        raise ValueError(f"the motion is of {motion.lost.size} frames, the frames have shape {frames.shape}")
    if not motion.applied:
        return frames
    still = frames.astype(np.result_type(frames, np.float32), copy=True)
    still[..., motion.lost] = np.nan
    for t in np.flatnonzero(motion.resampled).tolist():
        still[..., t] = _at_rest(frames[..., t], affine, motion.matrices[t])
    return still


def _at_rest(frame: NDArray[np.floating], affine: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray:
    """A frame read where `matrix` says that the reference's voxels are."""
    measured = np.isfinite(frame) & frame.any(axis=(0, 1), keepdims=True)
    to_frame = np.linalg.inv(affine) @ matrix @ affine
    turn, shift = to_frame[:3, :3], to_frame[:3, 3]
    values = np.where(measured, frame, 0)
    read = ndimage.affine_transform(values, turn, shift, output=np.float64, order=3, mode="nearest")
    # Nearest voxel, 0 outside: within half a voxel of the outermost centres the field of view still reaches.
    known = ndimage.affine_transform(measured.astype(np.uint8), turn, shift, order=0, mode="grid-constant", cval=0) > 0
    return np.where(known, np.clip(read, values[measured].min(), values[measured].max()), np.nan)


def _head(frames: NDArray[np.floating], mask: ArrayLike | None) -> NDArray[np.bool_]:
    if mask is not None:
        head = np.asarray(mask) > 0
        if head.shape != frames.shape[:3]:
            raise ValueError(f"mask has shape {head.shape}, the frames {frames.shape[:3]}")
        if head.any():
            return head
    total, count = np.zeros(frames.shape[:3]), np.zeros(frames.shape[:3])
    for t in range(frames.shape[3]):
        frame = _measured(frames[..., t])
        count += np.isfinite(frame)
        total += np.nan_to_num(frame)
    return threshold_mask(total / np.maximum(count, 1))


def _shows(image: WorkingImage, part: float) -> bool:
    """Whether there is a head to register, and signal in this part of it."""
    head = image.head
    return head is not None and bool(head.sum() >= MIN_BLOCKS) and float(image.measured[head].mean()) >= part


def _is_flat(image: WorkingImage) -> bool:
    """Whether the head looks the same everywhere."""
    values = image.blurred(SHARPNESS_MM)[image.head]
    return not values.size or float(np.ptp(values)) <= FLAT * float(np.abs(values).max())


def _measured(frame: NDArray[np.floating]) -> NDArray[np.floating]:
    """The frame with NaN for what is no measurement: not finite, negative, or in a slice of zeros."""
    good = np.isfinite(frame) & (frame >= 0)
    good &= np.where(good, frame, 0).any(axis=(0, 1), keepdims=True)
    return np.where(good, frame, np.nan)


def _most_typical(images: list[WorkingImage], acquired: NDArray[np.bool_]) -> tuple[int, WorkingImage]:
    """The acquired frame with the highest median correlation with the others, and its mean with those most like it."""
    candidates = np.flatnonzero(acquired)
    if candidates.size < 3:
        first = int(candidates[0]) if candidates.size else 0
        return first, images[first]
    values = np.stack([images[t].blurred(SHARPNESS_MM)[images[t].head] for t in candidates])
    likeness = np.atleast_2d(np.corrcoef(values))
    best = int(np.median(likeness, axis=1).argmax())
    alike = candidates[np.argsort(-likeness[best], kind="stable")[: min(ALIKE, candidates.size // 3)]]
    chosen = images[candidates[best]]
    measured = np.stack([images[t].measured for t in alike])
    total = sum(np.where(images[t].measured, images[t].values, 0) for t in alike)
    mean = (total / np.maximum(measured.sum(axis=0), 1)).astype(np.float32)
    return int(candidates[best]), replace(chosen, values=mean, measured=measured.any(axis=0))


def _after_alignment(
    images: list[WorkingImage], matrices: NDArray[np.float64], usable: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Part of the head seen, part of the variance explained, and disagreement of slices [mm], each (T,).

    Slice by slice an aligned frame S is fitted by a constant, the median M of all frames, and the frames before and
    after: S ≈ F = a + b·M + c·S₋ + d·S₊, each weight free, as the bolus comes and goes. What is left of S is fitted by
    the slopes of F along the axes, whose coefficients are how far the slice lies from where it should [mm], to first
    order: far slices are underestimated.
    """
    n, first = len(images), images[0]
    to_working = first.space.to_working
    to_voxel = np.linalg.inv(first.affine) @ to_working
    seen, explained, disagreement = np.zeros(n), np.ones(n), np.zeros(n)
    shape = first.values.shape
    aligned = np.full((*shape, n), np.nan, dtype=np.float32)
    for t in np.flatnonzero(usable).tolist():
        to_frame = to_voxel @ matrices[t] @ np.linalg.inv(to_voxel)
        known = ndimage.affine_transform(
            images[t].measured.astype(np.uint8), to_frame[:3, :3], to_frame[:3, 3], order=0, mode="grid-constant"
        )
        read = ndimage.affine_transform(
            images[t].blurred(SHARPNESS_MM), to_frame[:3, :3], to_frame[:3, 3], order=1, mode="nearest"
        )
        aligned[..., t] = np.where(known > 0, read, np.nan)
        seen[t] = known[first.head].mean()
    if n < 3 or not usable.any():
        return seen, explained, disagreement
    common = _median(aligned[..., usable])
    slices = np.moveaxis(np.arange(common.size).reshape(shape), _slice_axis(first), 0)
    axes = [a for a in range(3) if shape[a] >= SLOPE_VOXELS]
    for _ in range(2):  # the second time without the frames that the first gave up
        trusted = usable & (explained >= MIN_EXPLAINED) & (disagreement <= DISAGREEMENT_MM)
        for t in np.flatnonzero(usable).tolist():
            before = [u for u in range(t - 1, max(t - 4, -1), -1) if trusted[u]][:1]
            after = [u for u in range(t + 1, min(t + 4, n)) if trusted[u]][:1]
            like = [common, *(aligned[..., u] for u in before + after)]
            explained[t], disagreement[t] = _slice_shifts(aligned[..., t], like, first, slices, axes)
    return seen, explained, disagreement


def _median(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median over the last axis of what was measured, NaN where nothing was."""
    result = np.full(stack.shape[:-1], np.nan, dtype=np.float32)
    known = np.isfinite(stack).any(axis=-1)
    result[known] = np.nanmedian(stack[known], axis=-1)
    return result


def _slice_shifts(
    frame: NDArray[np.float32],
    like: list[NDArray[np.float32]],
    grid: WorkingImage,
    slices: NDArray[np.int_],
    axes: list[int],
) -> tuple[float, float]:
    """Part of the variance of a frame that is explained, and root mean square displacement of its slices [mm]."""
    regressors = np.stack([np.ones(frame.size, dtype=np.float32), *(image.ravel() for image in like)], axis=1)
    usable = np.isfinite(frame).ravel() & np.isfinite(regressors).all(axis=1)
    if grid.head is not None:
        usable &= grid.head.ravel()
    fitted, places = np.full(frame.shape, np.nan, dtype=np.float32), []
    for indices in slices.reshape(len(slices), -1):
        inside = indices[usable[indices]]
        if inside.size < MIN_BLOCKS:
            continue
        solved = np.linalg.lstsq(regressors[inside], frame.ravel()[inside], rcond=1e-6)[0]
        fitted.ravel()[indices] = regressors[indices] @ solved
        places.append(inside)
    if not places:
        return 1.0, 0.0
    slopes = np.gradient(fitted, *grid.spacing_mm[axes], axis=axes)
    residual = frame - fitted
    squares, weights, left, total = 0.0, 0, 0.0, 0.0
    for inside in places:
        of_slice = np.stack([slope.ravel()[inside] for slope in slopes], axis=1)
        good = np.isfinite(of_slice).all(axis=1)
        left += float(np.sum(residual.ravel()[inside] ** 2))
        total += float(np.sum((frame.ravel()[inside] - frame.ravel()[inside].mean()) ** 2))
        if good.sum() < MIN_BLOCKS:
            continue
        shift = np.linalg.lstsq(of_slice[good], residual.ravel()[inside][good], rcond=1e-6)[0]
        squares, weights = squares + float(shift @ shift) * good.sum(), weights + int(good.sum())
    return 1 - left / max(total, 1e-12), float(np.sqrt(squares / weights)) if weights else 0.0


def _slice_axis(image: WorkingImage) -> int:
    """The axis across the slices: the one with the fewest voxels."""
    return int(np.argmin(image.values.shape))
