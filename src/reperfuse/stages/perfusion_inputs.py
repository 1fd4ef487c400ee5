"""What perfusion networks see and learn: groups of channels made of a DSC series, the same in training and in use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.params import PerfusionMaps, PerfusionPreprocess
from reperfuse.perfusion.aif import NO_ARTERY, NoArtery
from reperfuse.perfusion.bolus import bolus_arrival, mean_curve
from reperfuse.perfusion.matched import N_FEATURES, matched_features
from reperfuse.preprocessing.brain import threshold_mask
from reperfuse.preprocessing.geometry import resample_time
from reperfuse.preprocessing.intensity import zero_one
from reperfuse.stages import maps_chain as chain
from reperfuse.stages.learned import alive, told_noise
from reperfuse.stages.maps_input import Given, even_interval_s

if TYPE_CHECKING:
    from reperfuse.stages.trained import TrainedModel

TMAX, SIGNAL = "tmax", "signal"

PHYSICS = PerfusionMaps()
"""How `reperfuse maps` measures by default: what networks see does not hang on a setting of that verb."""

MAP_SCALES = {"tmax": 10.0, "mtt": 10.0, "cbf": 60.0, "cbv": 4.0, "ttp": 60.0}
"""Channels of the group `maps`, and the value of each map that becomes 1 [s, s, mL/100 g/min, mL/100 g, s]."""

MOST = 10.0
"""Channels of `maps` end here, up and down: where hardly blood flows MTT has no bound, and an artery is all blood."""

LONGEST_MTT_S = 60.0
"""MTT is learned up to this [s], longer than a bolus is watched: beyond, CBF was 0 but for noise."""

NOTHING_GIVEN = Given(brain=None, artery=None, aif=None, adc=None, adc_file=None, aif_file=None)


@dataclass(frozen=True)
class Passage:
    """The bolus through a brain whose artery was found."""

    bolus: chain.Bolus
    arteries: chain.Arteries

    @property
    def aif(self) -> np.ndarray:
        """ΔR2* of the artery as measured, shape (T,) [1/s], at even times from the first frame."""
        assert self.arteries.found is not None
        return self.arteries.found.curve

    @property
    def vof(self) -> np.ndarray:
        """ΔR2* of the vein at the same times, shape (T,) [1/s]; 0 where none stands out."""
        return np.zeros_like(self.aif) if self.arteries.vof is None else self.arteries.vof.curve

    def maps(self, method: str) -> dict[str, np.ndarray]:
        """Deconvolved maps by name, shape (I, J, K)."""
        return chain.maps_of(self.bolus, self.arteries, PHYSICS, method)

    @cached_property
    def osvd(self) -> dict[str, np.ndarray]:
        """Those by oSVD, which several ask for."""
        return self.maps("osvd")


@dataclass(frozen=True)
class Examination:
    """A DSC series with its brain; what is costly is measured when first asked for, and once."""

    volume: Volume
    """Shape (I, J, K, T)."""
    brain: np.ndarray
    """Shape (I, J, K)."""
    known: Passage | None = None
    """The bolus and its artery, where they have been measured before."""

    @cached_property
    def passage(self) -> Passage:
        """The bolus and its artery.

        Raises
        ------
        NoArtery
            If nothing looks like an artery.
        InputError
            If TE is not known or no bolus passes.
        """
        if self.known is not None:
            return self.known
        if self.volume.te_s is None:
            raise InputError("A DSC series has no EchoTime in its sidecar: run ingest again.")
        seconds = frame_times_s(self.volume)
        series = replace(
            self.volume,
            data=np.ascontiguousarray(self.volume.data, dtype=np.float32),
            frame_times_s=seconds - seconds[0],
            tr_s=even_interval_s(seconds),
        )
        series = chain.without_outliers(series, self.brain)
        bolus = chain.bolus_of(series, self.brain, mean_curve(series.data[self.brain]))
        arteries = chain.arteries_of(bolus, NOTHING_GIVEN, PHYSICS)
        if arteries.found is None:
            raise NoArtery(NO_ARTERY)
        return Passage(bolus, arteries)

    def network_times_s(self, settings: PerfusionPreprocess) -> np.ndarray:
        """When the network's frames are, on the clock of the series, shape (n_frames,) [s]."""
        times = np.arange(settings.n_frames) * settings.tr_s
        if not settings.align_bolus:
            return times
        arrival = bolus_arrival(self.volume.data[self.brain].mean(axis=0))
        return np.asarray(times + frame_times_s(self.volume)[arrival] - settings.bolus_frame * settings.tr_s)


def frame_times_s(series: Volume) -> np.ndarray:
    """When each frame was taken, from its times or else its TR, shape (T,) [s].

    Raises
    ------
    InputError
        If the series has neither.
    """
    if series.frame_times_s is not None:
        return series.frame_times_s
    if series.tr_s is None:
        raise InputError("A DSC series has neither FrameTimes nor RepetitionTime in its sidecar: run ingest again.")
    return np.arange(series.n_frames) * series.tr_s


# ---- groups of channels ---------------------------------------------------------------------------------------------
def signal_frames(scan: Examination, settings: PerfusionPreprocess) -> np.ndarray:
    """Signal in 0-1 at the network's frames, shape (n_frames, I, J, K).

    The protocol of Sossin et al. 2021: threshold skull strip, signal scaled to 0–1 by the patient's extremes.
    We add a common time axis (other TR and frame counts are interpolated onto it) and, with `align_bolus`,
    a common arrival: the network sees no arterial input, so without it a late injection reads as a late Tmax.
    """
    frames = resample_time(scan.volume.data, frame_times_s(scan.volume), scan.network_times_s(settings))
    return np.moveaxis(zero_one(frames * scan.brain[..., None]), -1, 0)


def artery_frames(scan: Examination, settings: PerfusionPreprocess) -> np.ndarray:
    """ΔR2* of the artery over its maximum at the same frames, the same in each voxel, shape (n_frames, I, J, K)."""
    return _everywhere(scan, settings, scan.passage.aif)


def vein_frames(scan: Examination, settings: PerfusionPreprocess) -> np.ndarray:
    """ΔR2* of the vein over the artery's maximum, likewise; 0 where no vein stands out."""
    return _everywhere(scan, settings, scan.passage.vof)


def _everywhere(scan: Examination, settings: PerfusionPreprocess, curve: np.ndarray) -> np.ndarray:
    passage = scan.passage
    times = scan.network_times_s(settings) - frame_times_s(scan.volume)[0]
    frames = resample_time(curve / passage.aif.max(), np.arange(curve.size) * passage.bolus.dt, times)
    return np.asarray(frames.astype(np.float32)[:, None, None, None] * scan.brain)


def deconvolved_maps(scan: Examination, settings: PerfusionPreprocess) -> np.ndarray:
    """The oSVD maps of `MAP_SCALES`, each over its scale, shape (5, I, J, K)."""
    maps = scan.passage.osvd
    scaled = np.stack([maps[name] / np.float32(scale) for name, scale in MAP_SCALES.items()])
    return np.asarray(np.clip(scaled, -MOST, MOST))


def matches(scan: Examination, settings: PerfusionPreprocess) -> np.ndarray:
    """Matched filters of each curve at the frames of the series itself (`perfusion.matched`), shape (F, I, J, K).

    A voxel that was not measured has no matches: 0.
    """
    passage = scan.passage
    bolus, curves, noise = passage.bolus, passage.bolus.curves, passage.bolus.brain_noise
    measured = alive(curves)
    features = np.zeros((len(curves), N_FEATURES), dtype=np.float32)
    sigma = told_noise(noise[measured])
    features[measured] = matched_features(curves[measured], passage.aif, bolus.dt, sigma)
    image = np.zeros((N_FEATURES, *scan.brain.shape), dtype=np.float32)
    image[:, scan.brain] = features.T
    return image


GROUPS: dict[str, Callable[[Examination, PerfusionPreprocess], np.ndarray]] = {
    SIGNAL: signal_frames,
    "aif": artery_frames,
    "vof": vein_frames,
    "maps": deconvolved_maps,
    "matched": matches,
}
"""Name of a group of channels, as `perfusion.preprocess.inputs` and `perfusion.train.inputs` know it, to what makes it:
(examination, settings) to (C, I, J, K) float32, 0 outside the brain."""


def network_input(
    volume: Volume,
    settings: PerfusionPreprocess,
    inputs: Sequence[str] | None = None,
    *,
    scan: Examination | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[int, int]]]:
    """What networks see of a series: channels (C, I, J, K) float32, the brain (I, J, K), and where each group lies.

    Parameters
    ----------
    volume
        DSC series, shape (I, J, K, T).
    settings
        Frames, alignment and threshold of the brain mask.
    inputs
        Names in `GROUPS`, in this order; `settings.inputs` when not given. Nothing else is computed: `signal` alone
        needs neither echo time nor artery.
    scan
        The same series examined already; its brain is taken.

    Raises
    ------
    InputError
        If a group is not known, or cannot be made of this series: no artery, no bolus, no echo time.

    Examples
    --------
    >>> from reperfuse.phantoms.dsc import dsc_phantom
    >>> series = dsc_phantom((32, 32, 6), seed=1).signal
    >>> array, brain, groups = network_input(series, PerfusionPreprocess(n_frames=40), ["signal", "aif"])
    >>> array.shape, groups
    ((80, 32, 32, 6), {'signal': (0, 40), 'aif': (40, 80)})
    """
    chosen = settings.inputs if inputs is None else tuple(inputs)
    for name in chosen:
        if name not in GROUPS:
            raise InputError(f"There is no group of channels named {name!r}: choose among {', '.join(GROUPS)}.")
    if scan is None:
        scan = Examination(volume, threshold_mask(volume.data, settings.threshold_fraction))
    parts: list[np.ndarray] = []
    groups: dict[str, tuple[int, int]] = {}
    for name in chosen:
        try:
            part = GROUPS[name](scan, settings)
        except NoArtery as error:
            beyond = ", ".join(other for other in chosen if other != SIGNAL)
            raise NoArtery(
                f"{error} Without one {beyond} cannot be made; leave them out of perfusion.preprocess.inputs."
            ) from error
        start = sum(len(before) for before in parts)
        groups[name] = (start, start + len(part))
        parts.append(part)
    return np.concatenate(parts, dtype=np.float32), scan.brain, groups


def learned_targets(reference: Volume, scan: Examination, targets: Sequence[str]) -> np.ndarray:
    """What networks learn, shape (M, I, J, K) float32: `tmax` is the reference, the others are oSVD's of the series.

    Raises
    ------
    InputError
        If a target beside `tmax` is asked for, and the series has no artery.
    """
    found: list[np.ndarray] = []
    for name in targets:
        if name == TMAX:
            found.append(np.asarray(reference.data, dtype=np.float32))
            continue
        try:
            map_ = scan.passage.osvd[name]
        except NoArtery as error:
            raise NoArtery(
                f"{error} Without one there is no {name}; leave it out of perfusion.preprocess.targets."
            ) from error
        found.append(np.minimum(map_, np.float32(LONGEST_MTT_S)) if name == "mtt" else map_)
    return np.stack(found)


# ---- a trained model in use -----------------------------------------------------------------------------------------
def predicted_tmax(
    volume: Volume, trained: "TrainedModel[PerfusionPreprocess]", *, scan: Examination | None = None
) -> np.ndarray:
    """Tmax of a series by a model of the perfusion arm, shape (I, J, K) [s], 0 outside the brain.

    Raises
    ------
    InputError
        If the model gives another map than Tmax, or needs an artery and the series has none.
    """
    if trained.target not in (None, TMAX):
        raise InputError(
            f"This model gives {trained.target}, not Tmax: name another, or train one with perfusion.train.target tmax."
        )
    array, brain, _ = network_input(volume, trained.preprocess, trained.inputs or (SIGNAL,), scan=scan)
    return np.asarray(trained.predict(array) * brain)
