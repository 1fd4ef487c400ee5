"""When the bolus passes: steady state, baseline, arrival and the end of the first pass, found on one mean curve.

A DSC series falls into parts: leading frames in which the magnetisation has not reached its steady state (too bright),
the baseline, the first pass of the bolus, where T2* shortening makes the signal drop, and what recirculates.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperfuse.errors import InputError

UNSTEADY_FRACTION = 0.02
"""A leading frame this much off the baseline (brighter before steady state, or spoilt) does not belong to it."""

MIN_FRAMES = 5
"""Fewer frames cannot hold a baseline and a passage."""

MIN_BASELINE = 2
"""A baseline is at least two frames that agree: with one, a series that starts inside the bolus would pass."""

MEAN_BOLUS_FRACTION = 0.01
"""Smallest drop of the mean signal that is called a bolus; clinical series show 0.1 to 0.5."""

FLAT_FRACTION = 0.05
"""Frames belong to one baseline if they agree within this part of the depth of the bolus, or within the noise: no more
than that of the peak at which the bolus counts as arrived."""

ARRIVAL_FRACTIONS = (0.05, 0.1)
"""The bolus has arrived where the curve passes this part of its peak: the first, or as far as the second if three σ of
noise say so. Not further, because in a short series the noise is overestimated."""

ARTERIAL_LEAD = 0.5
"""Arteries fill before the mean tissue leaves its baseline, by about this part of the mean curve's rise time; these
frames are kept out of the baseline. In rise times, so that it holds at any frame interval and bolus width."""

OUTLIER_FRACTION, OUTLIER_NOISE = 0.05, 8.0
"""A frame that differs from its neighbours by less than this part of the signal, or this many standard deviations of
its noise, stays: it cannot hide a bolus."""

OUTLIER_NEIGHBOURS = 0.1
"""Spread of the two frames before and the two after a dark frame, over how far it is off, at most. After a bolus that
one frame of 5 s has caught, what is still in the tissue and what recirculates is more than that."""

TAIL_FRACTION = 0.05
"""The first pass is over where its gamma variate has fallen below this part of its peak."""

RECIRCULATION_FRACTION = 0.03
"""What stands this part of the peak above the gamma variate's tail is recirculation (it comes back at 0.05 to 0.2)."""


class NoBolus(InputError):
    """Nothing in the mean signal looks like the passage of a bolus."""


class NoBaseline(InputError):
    """A bolus passes, but no frames before it tell the signal without it."""


def mean_curve(signal: ArrayLike) -> NDArray[np.float64]:
    """The mean signal of each frame, shape (T,), over the voxels measured in it.

    Samples that are not finite or not positive do not count; frames without any are interpolated in time.

    Parameters
    ----------
    signal
        Shape (..., T), one voxel or many.

    Raises
    ------
    InputError
        If no frame has a positive, finite sample.

    Examples
    --------
    >>> mean_curve([[10, 20, 0, 40], [30, np.nan, 0, 60]]).tolist()
    [20.0, 20.0, 35.0, 50.0]
    """
    signal = np.asarray(signal)
    signal = signal.reshape(-1, signal.shape[-1])
    total, count = np.zeros(signal.shape[-1]), np.zeros(signal.shape[-1], dtype=np.intp)
    for start in range(0, len(signal), 1 << 15):  # in parts, or the copies would be as large as the series
        part = signal[start : start + (1 << 15)]
        measured = np.isfinite(part) & (part > 0)
        count += measured.sum(axis=0)
        total += np.sum(part, axis=0, where=measured, dtype=np.float64)
    if not count.any():
        raise InputError("The series has no signal: every frame is zero or not a number.")
    there = np.flatnonzero(count)
    return np.interp(np.arange(count.size), there, total[there] / count[there])


def outlier_frames(mean_signal: ArrayLike) -> NDArray[np.bool_]:
    """Frames that stand out by themselves, as spikes and lost images do, and a bolus does not; shape (T,).

    Such a frame is above or below both of its neighbours by more than the bolus is deep, where the depth is that of the
    curve without this frame. If it is dark it may be the bolus itself, seen in one frame only: so its neighbours also
    agree with each other and with the frames next to them, and the lowest of the others is further away. The first
    frame is left to `unsteady_frames`.

    Parameters
    ----------
    mean_signal
        Signal averaged over the brain, shape (T,), finite.

    Examples
    --------
    >>> signal = np.array([100] * 12 + [90, 70, 60, 75, 88, 92, 94] + [95] * 8, float)
    >>> signal[[3, 22]] = 5, 180
    >>> np.flatnonzero(outlier_frames(signal)).tolist()
    [3, 22]
    """
    signal = np.asarray(mean_signal, dtype=np.float64)
    found = np.zeros(signal.size, dtype=bool)
    if signal.size < MIN_FRAMES:
        return found
    least = max(OUTLIER_FRACTION * float(np.median(signal)), OUTLIER_NOISE * noise_level(signal))
    for t in range(1, signal.size):
        near = signal[[t - 1, t + 1]] if t + 1 < signal.size else signal[[t - 2, t - 1]]
        off = signal[t] - near
        size = float(np.abs(off).min())
        if off[0] * off[1] <= 0 or size <= least:
            continue
        around = np.concatenate([signal[max(t - 2, 0) : t], signal[t + 1 : t + 3]])
        others = np.delete(signal, t)
        smooth = without_single_frames(others)
        low = int(others.argmin()) + int(others.argmin() >= t)
        alike = np.ptp(around) <= OUTLIER_NEIGHBOURS * size and abs(low - t) > 2
        found[t] = size > np.ptp(smooth) and (off[0] > 0 or alike)
    return found


def unsteady_frames(mean_signal: ArrayLike) -> int:
    """How many leading frames are off the baseline (brighter, as a rule) and must be left out.

    Parameters
    ----------
    mean_signal
        Signal averaged over the brain, shape (T,).

    Raises
    ------
    InputError
        As `bolus_arrival`.

    Examples
    --------
    >>> unsteady_frames([160, 120, 101, 100, 100, 100, 100, 80, 60, 70, 80])
    2
    """
    signal, lowest, level, noise = _baseline_level(mean_signal)
    off = np.abs(signal[:lowest] - level)
    # The level is a median: between two frames that differ it need not be any frame's own.
    return int(np.flatnonzero(off <= max(UNSTEADY_FRACTION * level, 4 * noise, off.min()))[0])


def bolus_arrival(mean_signal: ArrayLike) -> int:
    """Index of the first frame in which the mean signal has left its baseline for the bolus.

    The last frame before the lowest one in which −ln(S/S0) is below 5 % of its peak (up to 10 % where noise asks for
    it) ends the baseline. Arteries fill before this (`baseline_frames` allows for it).

    Parameters
    ----------
    mean_signal
        Signal averaged over the brain, shape (T,).

    Raises
    ------
    InputError
        If there are fewer than 5 frames, no signal, no drop that stands out of the noise, or no baseline before it.

    Examples
    --------
    >>> bolus_arrival([160, 120, 101, 100, 100, 100, 100, 80, 60, 70, 80])
    7
    """
    signal, lowest, level, noise = _baseline_level(mean_signal)
    drop = np.log(level / np.maximum(signal, 1e-3 * level))
    # Of the deeper of frame and running median: one spoilt frame may be the very lowest.
    peak = max(drop[lowest], np.log(level / max(without_single_frames(signal)[lowest], 1e-3 * level)))
    low, high = (fraction * peak for fraction in ARRIVAL_FRACTIONS)
    quiet = np.flatnonzero(drop[:lowest] <= np.clip(3 * noise / level, low, high))
    return int(quiet[-1]) + 1


def baseline_frames(mean_signal: ArrayLike) -> slice:
    """The frames between steady state and the first arteries, as a slice.

    Arteries lead the tissue: the frames of half a rise time before the arrival of the mean curve are left out as far
    as two frames remain.

    Raises
    ------
    InputError
        As `bolus_arrival`.

    Examples
    --------
    >>> baseline_frames([160, 120, 101, 100, 100, 100, 100, 80, 60, 70, 80])
    slice(2, 6, None)
    """
    start, arrival = unsteady_frames(mean_signal), bolus_arrival(mean_signal)
    lowest = _baseline_level(mean_signal)[1]
    lead = int(np.ceil(ARTERIAL_LEAD * (lowest - arrival)))
    return slice(start, max(arrival - max(lead, 1), min(start + MIN_BASELINE, arrival), start + 1))


def first_pass(mean_delta_r2star: ArrayLike) -> slice:
    """The frames from arrival to the end of the first pass, before recirculation, as a slice.

    The end is the trough after the peak from which the curve rises again, or where the gamma variate

        C(t) = C_p·exp(α·(1 + ln x − x)),  x = (t − t_0)/(t_p − t_0),

    through peak (t_p, C_p) and arrival t_0, with its shape α fitted to the curve above half of the peak's height (down
    to 30 % after it), has fallen to 5 % of C_p; whichever comes first. Where nothing stands above that gamma
    variate later on, no recirculation is visible and the first pass ends with the series.

    Parameters
    ----------
    mean_delta_r2star
        ΔR2* averaged over the brain, shape (T,) [1/s].

    Raises
    ------
    InputError
        If there are fewer than 5 frames, or the curve is not finite or never positive.

    References
    ----------
    Madsen MT. A simplified formulation of the gamma variate function. Phys Med Biol 1992;37:1597-1600.

    Examples
    --------
    >>> t = np.arange(0, 60, 1.5)
    >>> def bolus(late):
    ...     return np.maximum(t - late, 0) ** 3 * np.exp(-np.maximum(t - late, 0) / 1.5)
    >>> first_pass(bolus(12.0)), first_pass(bolus(12.0) + 0.3 * bolus(32.0))
    (slice(9, 40, None), slice(9, 18, None))
    """
    curve = np.array(mean_delta_r2star, dtype=np.float64)
    if curve.ndim != 1:
        raise ValueError(f"mean_delta_r2star has {curve.ndim} axes, expected (T,)")
    if curve.size < MIN_FRAMES:
        raise InputError(f"{curve.size} frames are too few to find a bolus: give the whole series.")
    smooth, noise = without_single_frames(curve), noise_level(curve)
    if not np.isfinite(curve).all() or not smooth.max() > 0:
        raise InputError("The mean ΔR2* is never positive: no bolus passes, so it has no first pass.")
    peak = int(smooth.argmax())
    curve[peak] = height = max(float(curve[peak]), float(smooth[peak]))  # one spoilt frame may be the very highest
    low, high = (fraction * height for fraction in ARRIVAL_FRACTIONS)
    quiet = np.flatnonzero(smooth[:peak] <= np.clip(3 * noise, low, high))
    arrival = int(quiet[-1]) + 1 if quiet.size else 0
    tail = _gamma_variate_tail(curve, arrival, peak)
    visible = max(RECIRCULATION_FRACTION * height, 3 * noise)

    end = curve.size
    over = np.flatnonzero(tail[peak + 1 :] < TAIL_FRACTION * height)
    if over.size and (smooth - tail)[peak + 1 + int(over[0]) :].max(initial=0) > visible:
        end = peak + 1 + int(over[0])
    # The deepest point so far, as long as nothing has risen from it.
    trough = np.minimum.accumulate(smooth[peak:])
    risen = np.flatnonzero((smooth[peak:] - trough > visible) & (trough < 0.5 * height))
    if risen.size:
        end = min(end, peak + int(smooth[peak : peak + int(risen[0])].argmin()) + 1)
    return slice(arrival, end)


def _gamma_variate_tail(curve: NDArray[np.float64], arrival: int, peak: int) -> NDArray[np.float64]:
    """The gamma variate of the first pass at every frame; 0 up to its onset."""
    onset = min(arrival - 1, peak - 1)
    x = np.maximum(np.arange(curve.size) - onset, 0) / (peak - onset)
    z = np.where(x > 0, 1 + np.log(np.where(x > 0, x, 1)) - x, -np.inf)  # 0 at the peak, negative elsewhere
    height = curve[peak]
    low = np.flatnonzero(curve[peak:] < 0.3 * height)
    after = slice(peak + 1, peak + int(low[0]) if low.size else curve.size)
    rising = np.arange(peak) + 1 > onset
    used = np.zeros(curve.size, dtype=bool)
    used[after] = True
    used[:peak] |= rising & (curve[:peak] > 0.5 * height)
    used &= (x > 0) & (z < 0) & (curve > 0)
    if not used.any():
        return np.where(np.arange(curve.size) == peak, height, 0.0)
    # ln C = ln C_p + α·z by least squares; an error of C weighs 1/C in ln C.
    weight = (curve[used] / height) ** 2 * z[used]
    alpha = max(float(weight @ np.log(curve[used] / height)) / float(weight @ z[used]), 0.1)
    return height * np.exp(alpha * z)


def without_single_frames(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """The running median of three frames (at the ends, of the three there): one bad frame is not a bolus.

    Examples
    --------
    >>> without_single_frames(np.array([0.0, 0, 9, 0, 4, 6, 5])).tolist()
    [0.0, 0.0, 0.0, 4.0, 4.0, 5.0, 5.0]
    """
    if curve.size < 3:
        return curve
    inner = np.median(np.stack([curve[:-2], curve[1:-1], curve[2:]]), axis=0)
    return np.concatenate([inner[:1], inner, inner[-1:]])


def noise_level(curve: NDArray[np.float64]) -> float:
    """Standard deviation of the noise of one curve, shape (T,); 0 for fewer than five frames.

    From second differences, which neither drift nor a straight slope enters; from their lower quartile, because in a
    short series the bolus may make most of them.

    Examples
    --------
    >>> curve = np.arange(200.0) + np.random.default_rng(0).normal(0, 3, 200)
    >>> bool(abs(noise_level(curve) - 3) < 1)
    True
    """
    if curve.size < 5:
        return 0.0
    return float(np.quantile(np.abs(np.diff(curve, n=2)), 0.25)) / (0.3186 * np.sqrt(6))


def _baseline_level(mean_signal: ArrayLike) -> tuple[NDArray[np.float64], int, float, float]:
    """The checked mean curve, its lowest frame, its baseline and its noise (standard deviation)."""
    signal = np.asarray(mean_signal, dtype=np.float64)
    if signal.ndim != 1:
        raise ValueError(f"mean_signal has {signal.ndim} axes, expected (T,)")
    if signal.size < MIN_FRAMES:
        raise InputError(f"{signal.size} frames are too few to find a bolus: give the whole series.")
    if not np.isfinite(signal).all() or not signal.max() > 0:
        raise InputError("The series has no signal: every frame is zero or not a number.")
    noise, smooth = noise_level(signal), without_single_frames(signal)
    lowest = int(smooth.argmin())
    no_bolus = NoBolus(
        "No contrast bolus passes: the mean signal never falls clearly below its baseline; "
        "check that this is a DSC series."
    )
    if smooth.max() - smooth[lowest] < max(MEAN_BOLUS_FRACTION * smooth.max(), 5 * noise):
        raise no_bolus
    # The baseline is the level on which most frames before the bolus agree. Frames that are too bright, slopes and
    # single bad frames agree with few others, so none of them misleads it, as they would a maximum or a mean.
    before = signal[:lowest]
    depth = float(np.median(before) - smooth[lowest]) if lowest else 0.0
    agree = np.abs(before[:, None] - before) <= max(FLAT_FRACTION * depth, 3 * noise)
    count = agree.sum(axis=1)
    if not lowest or count.max() < MIN_BASELINE:
        raise NoBaseline(
            "The bolus is there from the first frame on, so there is no baseline: the series began too late."
        )
    # Among equals the last: nearest to the bolus, furthest from what is not yet steady.
    level = float(np.median(before[agree[before.size - 1 - int(count[::-1].argmax())]]))
    if level <= 0 or np.log(level / max(smooth[lowest], 1e-3 * level)) < max(MEAN_BOLUS_FRACTION, 5 * noise / level):
        raise no_bolus
    return signal, lowest, level, noise
