"""DSC digital reference object: signal of a bolus passing a brain whose CBF, CBV, MTT and delay are known.

Tissue concentration is C(t) = CBF·(Ca ⊗ R)(t − delay), the signal S(t) = S0·exp(−k·C(t)·TE) with Rician noise.
Truth takes k_H/ρ = 1. Nothing here calls the code that is tested with it.
"""

from dataclasses import dataclass, field

import numpy as np

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.fields import rician, smooth_field
from reperfuse.phantoms.head import TISSUES, baseline_signal, head_anatomy, tissue_labels
from reperfuse.phantoms.kinetics import arterial_concentration, residue_tmax, tissue_concentration

K_TISSUE = 130.83
"""Relaxivity of contrast agent in the capillary bed [1/s per unit of C], with C in (unit of Ca)·mL/g.

κ_tissue of the signal-domain reference of Chakwizira et al. (2022). With `ARTERIAL_AREA` it drops the signal of grey
matter (CBV 4, CBF 60) by about 40 % at TE 30 ms."""

K_ARTERY = 7.03
"""Relaxivity in whole blood [1/s per unit of Ca], κ_artery of the same reference. Weaker than in tissue, as blood
has no vessel-to-tissue gradients; without that difference an artery would be black for the whole first pass. An
AIF read from an artery is therefore too small by K_TISSUE/K_ARTERY against tissue: CBF and CBV made from it are
relative, as on a scanner; MTT, delay and Tmax are not touched."""

GREY_CBF, GREY_CBV = 60.0, 4.0
"""CBF [mL/100 g/min] and CBV [mL/100 g] of normal grey matter (Østergaard 1996, Magn Reson Med 36:715-725)."""

WHITE_CBF, WHITE_CBV = 25.0, 2.0
"""The same for white matter; MTT follows as CBV/CBF: 4.0 s grey, 4.8 s white."""

CORE_CBF_FRACTION = (0.08, 0.25)
"""CBF of the core over that around it, which is 85 % of normal: below the 30 % of normal that define a core."""

FIELD_OF_VIEW_MM = 220.0
"""In-plane extent [mm] of the grid along both axes."""


@dataclass(frozen=True)
class DscPhantom:
    """A simulated DSC series and everything that is true about it."""

    signal: Volume
    """The series, shape (I, J, K, T), with frame times, TE and TR."""
    truth: dict[str, np.ndarray]
    """Maps of shape (I, J, K), float32: cbf [mL/100 g/min], cbv [mL/100 g], mtt, delay, tmax [s], s0; uint8: tissue
    (`TISSUES`), brain, lesion (core and penumbra), core. Vessels hold cbv 100 and neither flow nor transit time."""
    aif: np.ndarray
    """Ca at the frame times, shape (T,), in the unit of C: C = CBF/6000·(Ca ⊗ R)."""
    sigma: float
    """Standard deviation of the noise [scanner units]."""
    residue: str
    facts: dict[str, float | str | int] = field(default_factory=dict)
    """What was drawn for this patient: arrival_s, lesion_ml, core_ml, hemisphere, ..."""


def _normal_perfusion(
    anatomy: dict[str, np.ndarray], spacing_mm: tuple[float, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CBF [mL/100 g/min], CBV [mL/100 g] and delay [s] without a lesion, each varying smoothly."""
    grey, white = anatomy["grey"], anatomy["white"]
    vary = rng.uniform(0.92, 1.08)
    cbf = vary * (grey * GREY_CBF + white * WHITE_CBF) * np.exp(0.10 * smooth_field(grey.shape, spacing_mm, 15.0, rng))
    cbv = vary * (grey * GREY_CBV + white * WHITE_CBV) * np.exp(0.10 * smooth_field(grey.shape, spacing_mm, 15.0, rng))
    # The posterior circulation fills last, white matter after grey.
    posterior = 1 / (1 + np.exp((anatomy["y"] + 45) / 8.0))
    delay = 0.8 + 0.5 * posterior + 0.35 * smooth_field(grey.shape, spacing_mm, 20.0, rng) + 0.3 * white
    return cbf, cbv, np.clip(delay, 0.0, 2.5).astype(np.float32)


def _lesion_depth(
    anatomy: dict[str, np.ndarray], spacing_mm: tuple[float, ...], side: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Distance from the centre of a middle-cerebral territory, 1 at the lesion's rim, and the radius of the core."""
    size = rng.uniform(0.72, 1.15)
    centre = np.array((side * 42.0, 0.0, 12.0)) + rng.normal(0, (3.0, 8.0, 4.0))
    axes = np.array((27.0, 35.0, 28.0)) * size
    squares = [((anatomy[name] - c) / a) ** 2 for name, c, a in zip("xyz", centre, axes, strict=True)]
    wobble = 0.13 * smooth_field(anatomy["grey"].shape, spacing_mm, 10.0, rng)
    depth = np.sqrt(squares[0] + squares[1] + squares[2]) + wobble
    # A territory ends at the midline.
    depth = np.where(side * anatomy["x"] > 4.0, np.maximum(depth, 0.0), 9.0)
    return depth.astype(np.float32), float(rng.uniform(0.50, 0.80))


def _with_lesion(
    cbf: np.ndarray,
    cbv: np.ndarray,
    delay: np.ndarray,
    depth: np.ndarray,
    core_radius: float,
    in_lesion: np.ndarray,
    in_core: np.ndarray,
    grain: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CBF, CBV and delay with a core, a penumbra around it and a margin of benign oligaemia around that."""
    margin = np.clip((1.35 - depth) / 0.35, 0, 1)  # 1 at the edge of the lesion and within, 0 in normal tissue
    cbf, cbv = cbf * (1 - 0.15 * margin), cbv * (1 + 0.10 * margin)
    delay = delay + margin * np.maximum(4.0 - delay, 0)

    penumbra = in_lesion & ~in_core
    rim = np.clip((1 - depth) / (1 - core_radius), 0, 1)  # 0 at the edge of the lesion, 1 at the core
    cbf = np.where(penumbra, cbf * np.clip(0.75 - 0.25 * rim + 0.04 * grain, 0.4, 0.8), cbf)
    delay = np.where(penumbra, np.clip(4.2 + 4.0 * rim + 0.5 * grain, 4.0, 9.0), delay)

    dead = np.clip(1 - depth / core_radius, 0, 1)  # 0 at the edge of the core, 1 in its centre
    low, high = CORE_CBF_FRACTION
    fraction = np.clip(high - (high - low) * dead + 0.02 * grain, low, high)
    cbf = np.where(in_core, cbf * fraction, cbf)
    cbv = np.where(in_core, cbv * np.clip(2.0 * fraction, 0.15, 0.45), cbv)
    delay = np.where(in_core, np.clip(8.0 + 4.5 * dead + 0.5 * grain, 6.0, 12.0), delay)
    return cbf, cbv, delay


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
    dispersion_s: float = 0.0,
    arrival_s: float | None = None,
    arrival_spread_s: float = 0.6,
    spacing_mm: tuple[float, float, float] | None = None,
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
    dispersion_s
        Mean of the exponential transport function of the blood that reaches the lesion [s].
    arrival_s
        Mean arrival of the bolus [s]; by default 15 s, or a sixth of a series shorter than 90 s.
    arrival_spread_s
        Half-width of the uniform spread of that arrival among patients [s].
    spacing_mm
        Voxel size; by default `FIELD_OF_VIEW_MM` in-plane and slices of 5 to 8 mm that cover about 100 mm.

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
    if spacing_mm is None:
        spacing_mm = (
            FIELD_OF_VIEW_MM / shape[0],
            FIELD_OF_VIEW_MM / shape[1],
            float(np.clip(100.0 / shape[2], 5.0, 8.0)),
        )
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm + (0.0, 0.0, 5.0)
    anatomy = head_anatomy(shape, affine, rng)
    brain, artery, vein = anatomy["brain"], anatomy["artery"], anatomy["vein"]

    cbf, cbv, delay = _normal_perfusion(anatomy, spacing_mm, rng)
    side = int(rng.choice((-1, 1)))
    depth, core_radius = _lesion_depth(anatomy, spacing_mm, side, rng)
    grain = smooth_field(shape, spacing_mm, 6.0, rng)
    has_tissue = brain & ~artery & (anatomy["grey"] + anatomy["white"] > 0.5)
    in_lesion = has_tissue & (depth < 1) & lesion
    in_core = in_lesion & (depth < core_radius)
    if lesion:
        cbf, cbv, delay = _with_lesion(cbf, cbv, delay, depth, core_radius, in_lesion, in_core, grain)

    perfused = brain & ~artery & (anatomy["grey"] + anatomy["white"] > 0.1)
    mtt = np.divide(cbv * 60, cbf, out=np.zeros(shape, np.float32), where=perfused)
    times = np.arange(n_frames) * tr_s
    mean_arrival = min(15.0, n_frames * tr_s / 6) if arrival_s is None else arrival_s
    arrival = mean_arrival + rng.uniform(-1, 1) * arrival_spread_s
    bolus_shape, bolus_scale = 3.0 * rng.uniform(0.95, 1.05), 1.5 * rng.uniform(0.92, 1.08)

    def arterial(t: np.ndarray) -> np.ndarray:
        return arterial_concentration(t, arrival_s=arrival, shape=bolus_shape, scale_s=bolus_scale)

    relaxation = np.zeros((*shape, n_frames), np.float32)  # k·C [1/s]
    tmax = np.zeros(shape, np.float32)
    for where, dispersion in ((perfused & ~in_lesion, 0.0), (in_lesion, dispersion_s)):
        relaxation[where] = K_TISSUE * tissue_concentration(
            cbf[where], mtt[where], delay[where], times, arterial, residue=residue, dispersion_s=dispersion
        )
        tmax[where] = residue_tmax(mtt[where], delay[where], residue=residue, dispersion_s=dispersion)
    # Blood: the artery is Ca itself; the sinus is Ca after the mean transit of the brain, 1.5 s wide, with unit area.
    one = np.ones(1)
    relaxation[artery] = K_ARTERY * arterial(times)
    draining = tissue_concentration(6000 / 1.5 * one, 1.5 * one, 4.5 * one, times, arterial)[0]
    relaxation[vein] = K_ARTERY * draining
    tmax[vein] = residue_tmax(1.5 * one, 4.5 * one)[0]

    tissue = tissue_labels(anatomy)
    s0 = baseline_signal(anatomy, tissue, spacing_mm, rng)
    solid = (tissue == TISSUES["grey"]) | (tissue == TISSUES["white"])
    sigma = float(s0[solid].mean() / snr)

    signal = np.empty((*shape, n_frames), np.float32)
    for k in range(n_frames):  # by frame: noise for a whole series at once would double its memory
        clean = s0 * np.exp(-te_s * relaxation[..., k])
        signal[..., k] = rician(clean, sigma, rng) if sigma > 0 else clean
    vessel = artery | vein
    truth = {
        "cbf": np.where(perfused, cbf, 0).astype(np.float32),
        "cbv": np.where(vessel, 100.0, np.where(perfused, cbv, 0)).astype(np.float32),
        "mtt": mtt.astype(np.float32),
        "delay": np.where(vein, 4.5, np.where(perfused, delay, 0)).astype(np.float32),
        "tmax": tmax,
        "s0": s0,
        "tissue": tissue,
        "brain": brain.astype(np.uint8),
        "lesion": in_lesion.astype(np.uint8),
        "core": in_core.astype(np.uint8),
    }
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    facts: dict[str, float | str | int] = {
        "arrival_s": arrival,
        "residue": residue,
        "snr": snr,
        "hemisphere": ("left" if side < 0 else "right") if lesion else "none",
        "lesion_ml": float(in_lesion.sum() * voxel_ml),
        "core_ml": float(in_core.sum() * voxel_ml),
        "tmax_above_6s_ml": float(((tmax > 6) & brain).sum() * voxel_ml),
    }
    volume = Volume(data=signal, affine=affine, frame_times_s=times, te_s=te_s, tr_s=tr_s)
    return DscPhantom(volume, truth, arterial(times), sigma, residue, facts)


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
