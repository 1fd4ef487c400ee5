"""From concentrations to a series of images: blood mixed with tissue, leakage, motion, noise, and what went wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from reperfuse.phantoms.fields import rician
from reperfuse.phantoms.kinetics import Residue, residue_tmax, tissue_concentration
from reperfuse.phantoms.motion import moved_frame

K_TISSUE = 130.83
"""Relaxivity of contrast agent in the capillary bed [1/s per unit of C], with C in (unit of Ca)·mL/g.

κ_tissue of the signal-domain reference of Chakwizira et al. (2022). With `ARTERIAL_AREA` it drops the signal of grey
matter (CBV 4, CBF 60) by about 40 % at TE 30 ms."""

K_ARTERY = 7.03
"""Relaxivity in whole blood [1/s per unit of Ca], κ_artery of the same reference. Weaker than in tissue, as blood
has no vessel-to-tissue gradients; without that difference an artery would be black for the whole first pass. An
AIF read from an artery is therefore too small by K_TISSUE/K_ARTERY against tissue: CBF and CBV made from it are
relative, as on a scanner; MTT, delay and Tmax are not touched."""

UNSTEADY_EXCESS, UNSTEADY_DECAY = 0.6, 0.35
"""Excess of the very first frame over the steady state, and what is left of it from frame to frame: the magnetisation
is full before the first excitation and saturates within three or four."""


@dataclass(frozen=True)
class Scan:
    """How a series is acquired, and what goes wrong in it."""

    frame_times_s: np.ndarray
    """Shape (T,) [s], increasing, from 0."""
    te_s: float
    """Echo time [s]."""
    sigma: float
    """Standard deviation of the noise in either channel [scanner units]."""
    trajectory: np.ndarray | None = None
    """Rigid position of the head in each frame, shape (T, 6) [mm, degrees]; none for a head at rest."""
    unsteady_frames: int = 0
    """Leading frames in which the magnetisation is above its steady state."""
    missing: tuple[int | tuple[int, int], ...] = ()
    """What never arrived and holds zeros: frames, or (frame, slice)."""


@dataclass(frozen=True)
class Contents:
    """What a voxel holds: some tissue, some arterial and some venous blood; their signals add."""

    tissue_s0: np.ndarray
    """Signal of a voxel full of its tissue before the bolus, shape (I, J, K) [scanner units]."""
    blood_s0: np.ndarray
    """The same of blood."""
    artery: np.ndarray
    """Volume fraction of arterial blood, shape (I, J, K), 0 to 1."""
    vein: np.ndarray
    """Volume fraction of venous blood."""

    @property
    def s0(self) -> np.ndarray:
        """Signal of the mixture before the bolus, shape (I, J, K), float32."""
        blood = self.artery + self.vein
        return np.asarray((1 - blood) * self.tissue_s0 + blood * self.blood_s0, np.float32)


@dataclass(frozen=True)
class Physiology:
    """What happens to the bolus in each voxel: maps of shape (I, J, K), and the blood that feeds them."""

    cbf: np.ndarray
    """[mL/100 g/min]."""
    mtt: np.ndarray
    """[s]."""
    delay: np.ndarray
    """Arrival after the artery [s]."""
    perfused: np.ndarray
    """Where there is tissue."""
    dispersed: np.ndarray
    """Where blood comes through an exponential transport function of mean `dispersion_s`."""
    dispersion_s: float
    """[s]."""
    residue: str | Residue
    """Key of `RESIDUES`, or `gamma_residue` of any shape."""
    arterial: Callable[[np.ndarray], np.ndarray]
    """Ca at any times [s]."""
    transport: str = "exponential"
    """Key of `TRANSPORTS`."""

    def relaxation(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ΔR2* of tissue at the frame times, shape (I, J, K, T) [1/s], and Tmax, shape (I, J, K) [s]."""
        relaxation = np.zeros((*self.cbf.shape, len(times_s)), np.float32)
        tmax = np.zeros(self.cbf.shape, np.float32)
        dispersed = self.perfused & self.dispersed
        for where, mean_s in ((self.perfused & ~dispersed, 0.0), (dispersed, self.dispersion_s)):
            if not where.any():
                continue
            cbf, mtt, delay = self.cbf[where], self.mtt[where], self.delay[where]
            how: dict[str, Any] = {"residue": self.residue, "dispersion_s": mean_s, "transport": self.transport}
            relaxation[where] = K_TISSUE * tissue_concentration(cbf, mtt, delay, times_s, self.arterial, **how)
            tmax[where] = residue_tmax(mtt, delay, **how)
        return relaxation, tmax


def leaked(delta_r2star: np.ndarray, k2: np.ndarray, times_s: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """ΔR2* of tissue whose capillaries leak, after Boxerman, Schmainda and Weisskoff, shape (n, T) [1/s].

    ΔR2*(t) − K2·∫₀ᵗ M, with M the mean curve of tissue that does not leak. K2 > 0 is the T1 effect of agent that has
    left the vessels (the curve ends below its baseline), K2 < 0 its T2* effect (it never comes back). What is in the
    vessels, and so CBV, stays what it was. The integral is the trapezoid rule at the frame times.

    Parameters
    ----------
    delta_r2star
        Of what is inside the vessels, shape (n, T) [1/s].
    k2
        Shape (n,) [1/s].
    times_s
        Shape (T,) [s].
    normal
        M, shape (T,) [1/s].

    References
    ----------
    Boxerman JL, Schmainda KM, Weisskoff RM. Relative cerebral blood volume maps corrected for contrast agent
    extravasation significantly correlate with glioma tumor grade, whereas uncorrected maps do not. AJNR Am J
    Neuroradiol 2006;27:859-867.

    Examples
    --------
    >>> leaked(np.zeros((1, 3)), np.array([0.1]), np.arange(3.0), np.ones(3)).tolist()
    [[0.0, -0.1, -0.2]]
    """
    outside = np.append(0.0, np.cumsum(np.diff(times_s) * (normal[1:] + normal[:-1]) / 2))
    return np.asarray(delta_r2star - k2[:, None] * outside, dtype=np.asarray(delta_r2star).dtype)


def acquired_signal(
    contents: Contents,
    tissue: np.ndarray,
    artery: np.ndarray,
    vein: np.ndarray,
    scan: Scan,
    affine: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Magnitude images of the series, shape (I, J, K, T), float32, never negative.

    S(t) = (1 − a − v)·S_tissue·exp(−TE·ΔR2*_tissue) + S_blood·[a·exp(−TE·ΔR2*_artery) + v·exp(−TE·ΔR2*_vein)], a and v
    the fractions of blood; then motion, then Rician noise. Signals add, not concentrations: an artery mixed with
    tissue has a curve of another shape, not only a smaller one.

    Parameters
    ----------
    contents
        What the voxels hold.
    tissue
        ΔR2* of tissue, shape (I, J, K, T) [1/s].
    artery, vein
        ΔR2* of blood, shape (T,) [1/s].
    scan
        How the series is acquired.
    affine
        (4, 4), voxel index to scanner coordinates [mm].
    rng
        Source of the noise.

    References
    ----------
    van Osch MJP, Vonken EPA, Bakker CJG, Viergever MA. Correcting partial volume artifacts of the arterial input
    function in quantitative cerebral perfusion MRI. Magn Reson Med 2001;45:477-485.
    """
    whole = (1 - contents.artery - contents.vein) * contents.tissue_s0
    bloods = [
        (fraction > 0, (fraction * contents.blood_s0)[fraction > 0], curve)
        for fraction, curve in ((contents.artery, artery), (contents.vein, vein))
    ]
    signal = np.empty(tissue.shape, np.float32)
    for k in range(len(scan.frame_times_s)):  # by frame: noise for a whole series at once would double its memory
        clean = whole * np.exp(-scan.te_s * tissue[..., k])
        for where, s0, curve in bloods:
            clean[where] += s0 * np.exp(np.full(len(s0), -scan.te_s * np.float32(curve[k]), np.float32))
        if scan.trajectory is not None:
            clean = moved_frame(clean, affine, scan.trajectory[k])
        if k < scan.unsteady_frames:
            clean = clean * np.float32(1 + UNSTEADY_EXCESS * UNSTEADY_DECAY**k)
        signal[..., k] = rician(clean, scan.sigma, rng) if scan.sigma > 0 else clean
    for lost in scan.missing:
        frame, slices = lost if isinstance(lost, tuple) else (lost, slice(None))
        signal[:, :, slices, frame] = 0
    return signal
