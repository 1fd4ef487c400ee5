"""DSC digital reference object: signal of a bolus passing a brain whose CBF, CBV, MTT and delay are known.

Tissue concentration is C(t) = CBF·(Ca ⊗ R)(t − delay), the signal S(t) = S0·exp(−k·C(t)·TE) with Rician noise.
Truth takes k_H/ρ = 1. Nothing here calls the code that is tested with it.

Three kinds: `dsc_phantom`, a stroke patient as asked for; `drawn_phantom`, one of whom everything is drawn from its
full range; `voxel_phantom`, single voxels for tables.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.artery import ArterialInput, arterial_concentration
from reperfuse.phantoms.drawn import drawn_phantom
from reperfuse.phantoms.fields import smooth_field
from reperfuse.phantoms.head import baseline_signal, head_affine, head_anatomy, tissue_labels
from reperfuse.phantoms.kinetics import residue_of_shape, residue_tmax, venous_concentration
from reperfuse.phantoms.ranges import PLAIN, RANGES, SITUATIONS
from reperfuse.phantoms.reference import DscPhantom, solid_tissue, volumes_ml
from reperfuse.phantoms.series import K_ARTERY, K_TISSUE, Contents, Physiology, Scan, acquired_signal
from reperfuse.phantoms.stroke import lesion_depth, normal_perfusion, with_lesion
from reperfuse.phantoms.voxels import voxel_phantom

__all__ = [
    "K_ARTERY",
    "K_TISSUE",
    "PLAIN",
    "RANGES",
    "SITUATIONS",
    "ArterialInput",
    "DscPhantom",
    "drawn_phantom",
    "dsc_phantom",
    "vendor_tmax",
    "voxel_phantom",
]


def dsc_phantom(
    shape: tuple[int, int, int] = (64, 64, 12),
    n_frames: int = 60,
    tr_s: float = 1.5,
    te_s: float = 0.03,
    snr: float = 50.0,
    seed: int = 0,
    lesion: bool = True,
    *,
    residue: str = "exponential",
    residue_alpha: float | None = None,
    dispersion_s: float = 0.0,
    arrival_s: float | None = None,
    arrival_spread_s: float = 0.6,
    spacing_mm: tuple[float, float, float] | None = None,
    aif: ArterialInput | None = None,
    trajectory: np.ndarray | None = None,
    unsteady_frames: int = 0,
    missing: Sequence[int | tuple[int, int]] = (),
) -> DscPhantom:
    """DSC series of a head with known perfusion, and its truth.

    Tissue is a mixture of grey and white matter with spatial variation; large arteries, a dural sinus, CSF, skull and
    scalp surround it. With `lesion`, a middle-cerebral territory of one hemisphere holds a core (CBF below 30 % of
    normal, little CBV, delay 6-12 s) inside a late rim (delay 4-9 s, MTT prolonged), in a margin of benign oligaemia.

    Parameters
    ----------
    shape
        Grid (I, J, K).
    n_frames, tr_s, te_s
        Frames, their interval [s] and the echo time [s].
    snr
        S0/σ, S0 the mean baseline signal of grey and white matter; `numpy.inf` for no noise.
    seed
        Everything random follows from it: the same seed gives the same bytes.
    lesion
        Whether the patient has a lesion.
    residue
        Key of `RESIDUES`, for all tissue.
    residue_alpha
        With residue "gamma", another shape than 2 (see `gamma_residue`).
    dispersion_s
        Mean of the exponential transport function of the blood that reaches the lesion [s].
    arrival_s
        Mean arrival of the bolus [s]; by default 15 s, or a sixth of a series shorter than 90 s.
    arrival_spread_s
        Half-width of the uniform spread of that arrival among patients [s].
    spacing_mm
        Voxel size; by default `FIELD_OF_VIEW_MM` in-plane and slices of 5 to 8 mm that cover about 100 mm.
    aif
        Arterial input instead of the gamma variate that the seed draws; it has its own arrival.
    trajectory, unsteady_frames, missing
        Motion, leading frames above the steady state, and what is lost, as in `Scan`.

    Returns
    -------
    DscPhantom

    Examples
    --------
    >>> phantom = dsc_phantom((32, 32, 6), n_frames=40, seed=1)
    >>> phantom.signal.data.shape
    (32, 32, 6, 40)
    >>> bool((phantom.truth["core"] <= phantom.truth["lesion"]).all())
    True
    """
    rng = np.random.default_rng(seed)
    affine, spacing_mm = head_affine(shape, spacing_mm)
    anatomy = head_anatomy(shape, affine, rng)
    brain, artery, vein = anatomy["brain"], anatomy["artery"], anatomy["vein"]

    cbf, cbv, delay = normal_perfusion(anatomy, spacing_mm, rng)
    side = int(rng.choice((-1, 1)))
    depth, core_radius = lesion_depth(anatomy, spacing_mm, side, rng)
    grain = smooth_field(shape, spacing_mm, 6.0, rng)
    has_tissue = brain & ~artery & (anatomy["grey"] + anatomy["white"] > 0.5)
    in_lesion = has_tissue & (depth < 1) & lesion
    in_core = in_lesion & (depth < core_radius)
    if lesion:
        cbf, cbv, delay = with_lesion(cbf, cbv, delay, depth, core_radius, in_lesion, in_core, grain)

    perfused = brain & ~artery & (anatomy["grey"] + anatomy["white"] > 0.1)
    mtt = np.divide(cbv * 60, cbf, out=np.zeros(shape, np.float32), where=perfused)
    times = np.arange(n_frames) * tr_s
    mean_arrival = min(15.0, n_frames * tr_s / 6) if arrival_s is None else arrival_s
    arrival = mean_arrival + rng.uniform(-1, 1) * arrival_spread_s
    bolus_shape, bolus_scale = 3.0 * rng.uniform(0.95, 1.05), 1.5 * rng.uniform(0.92, 1.08)

    def drawn_bolus(t: np.ndarray) -> np.ndarray:
        return arterial_concentration(t, arrival_s=arrival, shape=bolus_shape, scale_s=bolus_scale)

    arterial = drawn_bolus if aif is None else aif
    shaped = residue_of_shape(residue, residue_alpha)
    physiology = Physiology(cbf, mtt, delay, perfused, in_lesion, dispersion_s, shaped, arterial, "cellwise")
    relaxation, tmax = physiology.relaxation(times)
    vof = venous_concentration(times, arterial, lag_s=6.0, spread_s=1.5)
    tmax[vein] = residue_tmax(np.full(1, 1.5), np.full(1, 4.5))[0]

    tissue = tissue_labels(anatomy)
    tissue_s0, blood_s0 = baseline_signal(anatomy, tissue, spacing_mm, rng)
    contents = Contents(tissue_s0, blood_s0, artery.astype(np.float32), vein.astype(np.float32))
    s0 = contents.s0
    sigma = float(s0[solid_tissue(tissue)].mean() / snr)
    scan = Scan(times, te_s, sigma, trajectory, unsteady_frames, tuple(missing))
    ca = arterial(times)
    signal = acquired_signal(contents, relaxation, K_ARTERY * ca, K_ARTERY * vof, scan, affine, rng)
    truth = {
        "cbf": np.where(perfused, cbf, 0).astype(np.float32),
        "cbv": np.where(artery | vein, 100.0, np.where(perfused, cbv, 0)).astype(np.float32),
        "mtt": mtt.astype(np.float32),
        "delay": np.where(vein, 4.5, np.where(perfused, delay, 0)).astype(np.float32),
        "tmax": tmax,
        "s0": s0,
        "tissue": tissue,
        "brain": brain.astype(np.uint8),
        "lesion": in_lesion.astype(np.uint8),
        "core": in_core.astype(np.uint8),
    }
    facts: dict[str, Any] = {
        "arrival_s": arrival if aif is None else aif.arrival_s,
        "residue": residue,
        "snr": snr,
        "hemisphere": ("left" if side < 0 else "right") if lesion else "none",
        **volumes_ml(truth, spacing_mm),
    }
    volume = Volume(data=signal, affine=affine, frame_times_s=times, te_s=te_s, tr_s=tr_s)
    moved = np.zeros((n_frames, 6)) if trajectory is None else trajectory
    return DscPhantom(volume, truth, ca, sigma, residue, facts, vof, moved, arterial)


def vendor_tmax(phantom: DscPhantom, *, seed: int = 0, noise_s: float = 0.15, step_s: float = 0.1) -> Volume:
    """Tmax [s] as a vendor's software leaves it: truth with mild noise, in steps, 0 outside perfused brain.

    Parameters
    ----------
    phantom
        Where the truth comes from.
    seed
        Seed of the noise.
    noise_s
        Standard deviation of the noise [s].
    step_s
        Quantisation step [s]; a vendor stores integers with a rescale slope.

    Returns
    -------
    Volume
        Shape (I, J, K) [s], never negative.
    """
    rng = np.random.default_rng([seed, 7])
    tmax = phantom.truth["tmax"] + noise_s * rng.standard_normal(phantom.truth["tmax"].shape, dtype=np.float32)
    shown = (phantom.truth["brain"] > 0) & (phantom.truth["cbf"] > 0)
    steps = np.rint(np.clip(tmax, 0, None) / step_s) * step_s
    return Volume(data=np.where(shown, steps, 0).astype(np.float32), affine=phantom.signal.affine)
