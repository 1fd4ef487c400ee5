"""The record of a DSC reference object: a simulated series and everything that is true about it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.head import TISSUES
from reperfuse.phantoms.motion import head_displacement_mm
from reperfuse.phantoms.series import K_ARTERY


@dataclass(frozen=True)
class DscPhantom:
    """A simulated DSC series and everything that is true about it."""

    signal: Volume
    """The series, shape (I, J, K, T), with frame times, TE and TR."""
    truth: dict[str, np.ndarray]
    """Maps of shape (I, J, K), float32: cbf [mL/100 g/min], cbv [mL/100 g], mtt, delay, tmax [s], s0; uint8: tissue
    (`TISSUES`), brain, lesion (core and penumbra), core. Vessels hold cbv 100, or that times their blood, and neither
    flow nor transit time. Drawn phantoms and single voxels also have artery_fraction and vein_fraction (of blood, 0 to
    1), k2 [1/s] and dispersion [s]."""
    aif: np.ndarray
    """Ca at the frame times, shape (T,), in the unit of C: C = CBF/6000·(Ca ⊗ R)."""
    sigma: float
    """Standard deviation of the noise [scanner units]."""
    residue: str
    """Key of `RESIDUES`; facts has residue_alpha where "gamma" has another shape than 2."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was drawn for this patient: arrival_s, lesion_ml, core_ml, hemisphere, ..."""
    vof: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Concentration in the dural sinus at the frame times, shape (T,), in the unit of Ca: Ca after the transit of the
    brain, later, wider, and of the same area."""
    trajectory: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))
    """Rigid position of the head in each frame, shape (T, 6) [mm, degrees], as in `motion.rigid_matrix`; all maps of
    `truth` are those of the place of rest."""
    arterial: Callable[[np.ndarray], np.ndarray] | None = None
    """Ca at any times [s]: `aif` is this at the frame times."""

    @property
    def aif_delta_r2star(self) -> np.ndarray:
        """ΔR2* that a voxel full of arterial blood shows without noise, shape (T,) [1/s]."""
        return K_ARTERY * self.aif

    @property
    def vof_delta_r2star(self) -> np.ndarray:
        """ΔR2* that a voxel full of venous blood shows without noise, shape (T,) [1/s]."""
        return K_ARTERY * self.vof

    @property
    def displacement_mm(self) -> np.ndarray:
        """Root mean square displacement of the head in each frame, shape (T,) [mm]."""
        return head_displacement_mm(self.trajectory)


def solid_tissue(tissue: np.ndarray) -> np.ndarray:
    """Where a voxel is mostly grey or white matter, from its labels: SNR is that of the mean signal there."""
    return np.asarray((tissue == TISSUES["grey"]) | (tissue == TISSUES["white"]))


def volumes_ml(truth: dict[str, np.ndarray], spacing_mm: tuple[float, ...]) -> dict[str, float]:
    """Volumes [mL] of lesion, core and tissue later than 6 s, from the truth maps."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return {
        "lesion_ml": float(truth["lesion"].sum() * voxel_ml),
        "core_ml": float(truth["core"].sum() * voxel_ml),
        "tmax_above_6s_ml": float(((truth["tmax"] > 6) & (truth["brain"] > 0)).sum() * voxel_ml),
    }
