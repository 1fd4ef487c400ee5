"""The network that ships, in use: Tmax and delay of curves and how sure they are, and what it may not be used for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reperfuse.errors import InputError

if TYPE_CHECKING:
    from reperfuse.networks.arrival import ArrivalNetwork

MAPS = ("tmax", "tmax_sd", "delay", "delay_sd")
"""What it gives, each in seconds: medians, and as `_sd` half of the central 68 %, a normal's standard deviation."""

CHUNK_VOXELS = 1 << 16
"""Voxels at a time: more than a hundred features each, so that memory does not grow with the image."""

TOLERANCE = 0.02
"""Part of a bound by which a scan may exceed it: 0.99 s between frames is 1 s."""

ONSET_FRACTION = 0.1
"""The bolus has arrived where the AIF last rises through this part of its height: above the noise of any artery."""

EDGE_S = 0.25
"""A delay this near to the ends of the trained range [s] may in truth lie beyond."""

MOST_AT_EDGE = 0.01
"""Part of the voxels that may lie at an end of the range without a word: noise alone brings some there."""


@dataclass(frozen=True)
class Learned:
    """The network with its description."""

    network: "ArrivalNetwork"
    described: dict[str, Any]
    """model.json: network, weights_sha256, extra."""

    @property
    def trained(self) -> dict[str, Any]:
        """The range it was trained in, by name: (lowest, highest), or the least there must be."""
        return dict(self.described["extra"]["range"])


def load_learned(folder: Path | None = None) -> Learned:
    """The network that ships with the package, or another of its kind from a folder.

    Raises
    ------
    InputError
        If the folder does not hold such a network.
    """
    from reperfuse.networks import learned_folder, load_network
    from reperfuse.networks.arrival import ArrivalNetwork

    folder = learned_folder() if folder is None else folder
    network, described = load_network(folder)
    if not isinstance(network, ArrivalNetwork) or "range" not in described["extra"]:
        raise InputError(f"{folder} holds {described['network']}, which gives no posterior of the delay: name another.")
    return Learned(network, described)


def learned_maps(
    curves: np.ndarray, aif: np.ndarray, dt: float, noise: np.ndarray, learned: Learned | Path | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tmax and delay of tissue curves by the learned posterior: its medians, and how far it spreads.

    A voxel that was not measured (0 everywhere) is 0 in all four. Voxels whose delay lies at an end of the trained
    range are kept, since they are surely early or late, and mentioned where they are many.

    Parameters
    ----------
    curves
        ΔR2* of tissue, shape (n, T) [1/s].
    aif
        ΔR2* of the artery, shape (T,), in any unit.
    dt
        Time between frames [s].
    noise
        Standard deviation of ΔR2* before the bolus, shape (n,) [1/s]. Where it is 0, the median of the others stands
        for it.
    learned
        The network, or its folder; when not given, the one that ships.

    Returns
    -------
    Name in `MAPS` to values, shape (n,) [s], float32; and what should be said of them, in sentences.

    Raises
    ------
    InputError
        If there is noise nowhere: the posterior of a curve without noise is a point, and nothing was trained on it.
    """
    from reperfuse.perfusion.matched import matched_features

    used = learned if isinstance(learned, Learned) else load_learned(learned)
    curves, noise = np.asarray(curves, dtype=np.float32), np.asarray(noise, dtype=np.float32)
    found = {name: np.zeros(len(curves), dtype=np.float32) for name in MAPS}
    measured = np.flatnonzero(alive(curves))
    if not measured.size:
        return found, []
    noise = noise.copy()
    noise[measured] = told_noise(noise[measured])
    for start in range(0, measured.size, CHUNK_VOXELS):
        part = measured[start : start + CHUNK_VOXELS]
        posterior = used.network.posterior(matched_features(curves[part], aif, dt, noise[part]))
        for name in MAPS:
            found[name][part] = posterior[name]
    return found, edge_notes(at_edge_fraction(found["delay"][measured], used.trained), used.trained)


def told_noise(noise: np.ndarray) -> np.ndarray:
    """The noise that curves are weighed by, shape (n,): where it is 0, the median of the others.

    Raises
    ------
    InputError
        If it is 0 in all.

    Examples
    --------
    >>> told_noise(np.array([2.0, 0.0, 4.0])).tolist()
    [2.0, 3.0, 4.0]
    """
    known = noise[noise > 0]
    if not known.size:
        raise InputError("The series has no noise before the bolus, which its curves are weighed by: check the series.")
    return np.where(noise > 0, noise, np.median(known))


def alive(curves: np.ndarray) -> np.ndarray:
    """Which curves were measured at all, shape (n, T) to (n,)."""
    return np.asarray((curves != 0).any(axis=-1))


def at_edge_fraction(delay: np.ndarray, trained: Mapping[str, Any]) -> float:
    """The part of the delays [s] that lie at an end of the trained range, or beyond.

    >>> at_edge_fraction(np.array([-2.9, 0.0, 6.0, 14.9]), {"delay_s": (-3.0, 15.0)})
    0.5
    """
    low, high = trained["delay_s"]
    return float(((delay < low + EDGE_S) | (delay > high - EDGE_S)).mean()) if delay.size else 0.0


def edge_notes(fraction: float, trained: Mapping[str, Any]) -> list[str]:
    """A sentence where many voxels lie at an end of the range; none else."""
    if fraction <= MOST_AT_EDGE:
        return []
    low, high = trained["delay_s"]
    return [
        f"The delay of {100 * fraction:.0f} % of the voxels lies at an end of the {low:g} to {high:g} s that the "
        "learned network knows: what is earlier or later is drawn there."
    ]


def outside_range(
    aif: np.ndarray,
    dt: float,
    curves: np.ndarray,
    noise: np.ndarray,
    *,
    te_s: float,
    trained: Mapping[str, Any],
    unsteady_frames: int = 0,
) -> list[str]:
    """A sentence for each way in which a scan is unlike those of the training; none for one like them.

    Looked at are the time between frames, the median SNR (S0/σ = 1/(TE·noise)), the width of the AIF, the frames before
    it rises, and how long the series goes on from there.

    Parameters
    ----------
    aif, dt, curves, noise
        As for `learned_maps`.
    te_s
        Echo time [s], by which noise of ΔR2* becomes SNR.
    trained
        tr_s, snr and aif_fwhm_s (lowest and highest), baseline_frames and after_arrival_s (least).
    unsteady_frames
        Frames at the start that are not in steady state, and tell nothing of the baseline.
    """
    noise = np.asarray(noise)[alive(curves)]
    with np.errstate(divide="ignore"):
        snr = float(np.median(1 / (te_s * noise))) if noise.size else 0.0
    width_s, onset_s = aif_width_and_onset(aif, dt)
    before, after_s = onset_s / dt - unsteady_frames, (len(aif) - 1) * dt - onset_s
    said = [
        _between("The time between frames is {} s", dt, trained["tr_s"]),
        _between("The signal-to-noise ratio is {}", snr, trained["snr"]),
        # Sampling widens a bolus by up to a frame, for it misses the peak.
        _between("The artery's bolus is {} s wide", width_s, trained["aif_fwhm_s"], slack=dt),
        _least("{} frames precede the bolus", before, trained["baseline_frames"]),
        _least("The series goes on for {} s after the bolus arrives", after_s, trained["after_arrival_s"]),
    ]
    return [sentence for sentence in said if sentence is not None]


def aif_width_and_onset(aif: np.ndarray, dt: float) -> tuple[float, float]:
    """Width at half height and time of the onset [s], between frames by straight lines.

    >>> width_s, onset_s = aif_width_and_onset(np.array([0, 0, 0, 10, 20, 10, 0, 0]), 1.5)
    >>> round(width_s, 3), round(onset_s, 3)
    (3.0, 3.3)
    """
    aif = np.asarray(aif, dtype=np.float64)
    peak = int(aif.argmax())

    def crossing(level: float, step: int) -> float:
        """Frame at which the curve, followed from its peak, falls below a level; the end where it never does."""
        side = aif[peak::step]
        low = np.flatnonzero(side < level)
        if not low.size:
            return float(peak + step * (side.size - 1))
        k = int(low[0])
        return float(peak + step * (k - (level - side[k]) / (side[k - 1] - side[k])))

    half = aif[peak] / 2
    return (crossing(half, 1) - crossing(half, -1)) * dt, crossing(ONSET_FRACTION * aif[peak], -1) * dt


def _between(words: str, value: float, bounds: tuple[float, float], slack: float = 0.0) -> str | None:
    low, high = bounds
    if low * (1 - TOLERANCE) <= value <= high * (1 + TOLERANCE) + slack:
        return None
    return f"{words.format(f'{value:.3g}')}; the learned network knows {low:.3g} to {high:.3g}."


def _least(words: str, value: float, bound: float) -> str | None:
    if value >= bound * (1 - TOLERANCE):
        return None
    return f"{words.format(f'{value:.3g}')}; the learned network knows {bound:.3g} or more."
