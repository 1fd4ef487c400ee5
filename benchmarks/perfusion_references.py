"""Two published digital references of DSC perfusion, read from ../shared/data, and the noise-free model of the second.

OSIPI: 14 tissue curves in concentration, CNR 200, no delay. Chakwizira et al. (2022): signal at SNR 20 with delay and
dispersion, 100 voxels a condition. Their constants are in SOURCES.md beside the data.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from reperfuse.errors import InputError
from reperfuse.imaging.volume import load_volume

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "perfusion"

TR_S, TE_S = 1.243, 0.029
"""Of the delay and dispersion reference, whose headers carry neither [s]."""

KAPPA_TISSUE, KAPPA_ARTERY = 130.8347, 7.0281
"""Its relaxivities [1/s per unit of concentration]."""

CBV = 4.0
"""Its blood volume, in every file [mL/100 g]."""

CBFS, DELAYS_S, DISPERSIONS_S = (10, 30, 50, 70), (0.0, 1.0, 6.0), (0.0, 1.5, 4.5)
"""Its flows [mL/100 g/min], arterial delays and means of the exponential dispersion [s]."""

FRAMES = 161


@dataclass(frozen=True)
class Osipi:
    """The 14 curves of the OSIPI reference."""

    curves: NDArray[np.float64]
    """Tissue concentration, shape (14, T)."""
    aif: NDArray[np.float64]
    """Arterial concentration, shape (T,)."""
    dt: float
    """[s]"""
    cbv: NDArray[np.float64]
    """Truth [mL/100 g], shape (14,)."""
    cbf: NDArray[np.float64]
    """Truth [mL/100 g/min], shape (14,)."""

    @property
    def cbv_by_rectangle(self) -> NDArray[np.float64]:
        """CBV·(1 + dt/2MTT): the area its curves hold, because they were made by the rectangle rule."""
        return self.cbv * (1 + self.dt * self.cbf / (120 * self.cbv))


def osipi() -> Osipi:
    """The OSIPI reference."""
    with open(_there("osipi_dsc/dsc_data.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {name: np.array([float(row[name]) for row in rows]) for name in ("cbv", "cbf", "tr")}
    curves = np.array([row["C_tis"].split() for row in rows], float)
    return Osipi(curves, np.array(rows[0]["C_aif"].split(), float), numbers["tr"][0], numbers["cbv"], numbers["cbf"])


def conditions() -> list[tuple[float, float, int]]:
    """Delay [s], dispersion [s] and CBF of each file: delay without dispersion, dispersion without delay."""
    pairs = [(delay, 0.0) for delay in DELAYS_S] + [(0.0, dispersion) for dispersion in DISPERSIONS_S[1:]]
    return [(delay, dispersion, cbf) for delay, dispersion in pairs for cbf in CBFS]


def measured(delay_s: float, dispersion_s: float, cbf: int) -> NDArray[np.float32]:
    """Signal of one condition, shape (10, 10, 1, T)."""
    delay = {0.0: "delay_0_lvl_high", 1.0: "delay_1_lvl_low", 6.0: "delay_1_lvl_high"}[delay_s]
    spread = {0.0: "0_exponential_lvl_high", 1.5: "1_exponential_lvl_low", 4.5: "1_exponential_lvl_high"}[dispersion_s]
    name = f"St_disp_{spread}_{delay}_resfunc_gamma_dist_lambda_1_cbf_{cbf}.nii.gz"
    return np.asarray(load_volume(_there(f"dro_delay_dispersion/{name}")).data, dtype=np.float32)


def measured_aif() -> NDArray[np.float64]:
    """ΔR2* of its noisy artery, brought to the relaxivity of tissue, shape (T,) [1/s]."""
    signal = Nifti1Image.from_filename(_there("dro_delay_dispersion/aif.nii")).get_fdata().ravel()  # a (1, T) matrix
    # S0 is known (100); the first frames of one noisy curve would give it 1 % wrong.
    return np.asarray(np.log(100 / signal) / TE_S * KAPPA_TISSUE / KAPPA_ARTERY)


def times() -> NDArray[np.float64]:
    """Its frame times [s]."""
    return np.arange(FRAMES, dtype=np.float64) * TR_S


def arterial(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Its arterial concentration: (t − 20)³·exp(−(t − 20)/1.5) after 20 s."""
    late = np.maximum(t - 20, 0)
    return np.asarray(late**3 * np.exp(-late / 1.5), dtype=np.float64)


def clean(delay_s: float, dispersion_s: float, cbf: float) -> NDArray[np.float64]:
    """ΔR2* of tissue without noise, shape (T,) [1/s]: C = CBF·Σ dt·Ca(t − delay)·h(t), h = R ⊗ dispersion, closed form.

    The rectangle rule and the closed form of h are how the files were made: the mean over a file's 100 voxels differs
    from this curve by the noise of that mean alone (root mean square 0.5 of S0 = 100, where σ = 5), for dispersed and
    undispersed conditions alike. As h(0) is 1 without dispersion and 0 with it, the files' areas are CBV·(1 + dt/2MTT)
    without and CBV with it.
    """
    t, mtt = times(), 60 * CBV / cbf
    residue = np.exp(-t / mtt)
    if dispersion_s:
        residue = mtt / (mtt - dispersion_s) * (residue - np.exp(-t / dispersion_s))
    return KAPPA_TISSUE * cbf / 6000 * TR_S * np.convolve(arterial(t - delay_s), residue)[:FRAMES]


def highest(dispersion_s: float, cbf: float) -> tuple[float, float]:
    """Place [s] after the delay and height of the maximum of the dispersed residue: (0, 1) without dispersion.

    h = MTT/(MTT − d)·(exp(−t/MTT) − exp(−t/d)) is highest at t = ln(MTT/d)·MTT·d/(MTT − d).
    """
    mtt = 60 * CBV / cbf
    if not dispersion_s:
        return 0.0, 1.0
    place = np.log(mtt / dispersion_s) * mtt * dispersion_s / (mtt - dispersion_s)
    return float(place), float(np.exp(-place / mtt))


def _there(path: str) -> Path:
    if not (DATA / path).is_file():
        raise InputError(f"{path} is not in ../shared/data/perfusion: put the reference data beside the project.")
    return DATA / path
