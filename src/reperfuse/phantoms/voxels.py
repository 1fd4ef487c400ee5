"""Single voxels of the DSC reference object, one for each entry of a table."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.artery import ArterialInput
from reperfuse.phantoms.head import TISSUES
from reperfuse.phantoms.kinetics import residue_of_shape, residue_tmax, tissue_concentration, venous_concentration
from reperfuse.phantoms.reference import DscPhantom
from reperfuse.phantoms.series import K_ARTERY, K_TISSUE, Contents, Scan, acquired_signal, leaked


def voxel_phantom(
    cbf: ArrayLike,
    mtt: ArrayLike,
    delay: ArrayLike = 0.0,
    *,
    n_frames: int = 60,
    tr_s: float = 1.5,
    te_s: float = 0.03,
    snr: float = np.inf,
    residue: str = "exponential",
    residue_alpha: float | None = None,
    dispersion_s: float = 0.0,
    aif: ArterialInput | None = None,
    k2: ArrayLike = 0.0,
    s0: float = 750.0,
    seed: int = 0,
) -> DscPhantom:
    """DSC series of single tissue voxels, one for each entry of the arguments, shape (n, 1, 1, T): for tables.

    Parameters
    ----------
    cbf, mtt, delay
        [mL/100 g/min], [s], [s]; broadcast against one another to n voxels. CBV follows as CBF·MTT/60.
    n_frames, tr_s, te_s
        Frames, their interval [s] and the echo time [s].
    snr
        S0/σ; infinite for no noise.
    residue, residue_alpha, dispersion_s
        As in `dsc_phantom`, for every voxel.
    aif
        Arterial input; by default `ArterialInput()`.
    k2
        Leakage [1/s] after `leaked`, one for all or one per voxel; its reference is the mean of the voxels without
        leakage, or of all if all leak.
    s0
        Baseline signal [scanner units].
    seed
        Seed of the noise.

    Examples
    --------
    >>> phantom = voxel_phantom([15.0, 60.0], 4.0, [0.0, -3.0])
    >>> phantom.signal.data.shape, phantom.truth["cbv"].ravel().tolist()
    ((2, 1, 1, 60), [1.0, 4.0])
    """
    arrays = [np.array(a, np.float64).ravel() for a in np.broadcast_arrays(cbf, mtt, delay, k2)]
    flow, transit, late, leak = arrays
    column = (len(flow), 1, 1)
    aif = ArterialInput() if aif is None else aif
    times = np.arange(n_frames) * tr_s
    how: dict[str, Any] = {
        "residue": residue_of_shape(residue, residue_alpha),
        "dispersion_s": dispersion_s,
    }
    relaxation = K_TISSUE * tissue_concentration(flow, transit, late, times, aif, **how)
    if leak.any():
        normal = relaxation[leak == 0] if (leak == 0).any() else relaxation
        relaxation = leaked(relaxation, leak, times, normal.mean(0))
    nothing = np.zeros(column, np.float32)
    contents = Contents(np.full(column, s0, np.float32), np.full(column, s0, np.float32), nothing, nothing)
    vof = venous_concentration(times, aif, lag_s=5.0, spread_s=3.0)
    ca = aif(times)
    scan = Scan(times, te_s, s0 / snr)
    rng = np.random.default_rng(seed)
    cube = relaxation.reshape(*column, n_frames).astype(np.float32)
    signal = acquired_signal(contents, cube, K_ARTERY * ca, K_ARTERY * vof, scan, np.eye(4), rng)
    maps = {
        "cbf": flow,
        "cbv": flow * transit / 60,
        "mtt": transit,
        "delay": late,
        "tmax": residue_tmax(transit, late, **how),
        "s0": np.full(len(flow), s0),
        "artery_fraction": 0 * flow,
        "vein_fraction": 0 * flow,
        "k2": leak,
        "dispersion": np.full(len(flow), dispersion_s),
    }
    truth = {name: data.reshape(column).astype(np.float32) for name, data in maps.items()}
    masks = {"tissue": TISSUES["grey"], "brain": 1, "lesion": 0, "core": 0}
    truth |= {name: np.full(column, value, np.uint8) for name, value in masks.items()}
    facts = {"arrival_s": aif.arrival_s, "residue": residue, "residue_alpha": residue_alpha, "snr": snr}
    volume = Volume(data=signal, affine=np.eye(4), frame_times_s=times, te_s=te_s, tr_s=tr_s)
    return DscPhantom(volume, truth, ca, scan.sigma, residue, facts, vof, np.zeros((n_frames, 6)), aif)
