"""DSC digital reference object: signal of a bolus passing a brain whose CBF, CBV, MTT and delay are known.

Tissue concentration is C(t) = CBF·(Ca ⊗ R)(t − delay), the signal S(t) = S0·exp(−k·C(t)·TE) with Rician noise.
Truth takes k_H/ρ = 1. Nothing here calls the code that is tested with it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter
from scipy.special import gammaln

from reperfuse.imaging.volume import Volume
from reperfuse.phantoms.fields import rician, smooth_field

K_TISSUE = 130.83
"""Relaxivity of contrast agent in the capillary bed [1/s per unit of C], with C in (unit of Ca)·mL/g.

κ_tissue of the signal-domain reference of Chakwizira et al. (2022). With `ARTERIAL_AREA` it drops the signal of grey
matter (CBV 4, CBF 60) by about 40 % at TE 30 ms."""

K_ARTERY = 7.03
"""Relaxivity in whole blood [1/s per unit of Ca], κ_artery of the same reference. Weaker than in tissue, as blood
has no vessel-to-tissue gradients; without that difference an artery would be black for the whole first pass. An
AIF read from an artery is therefore too small by K_TISSUE/K_ARTERY against tissue: CBF and CBV made from it are
relative, as on a scanner; MTT, delay and Tmax are not touched."""

ARTERIAL_AREA = 30.4
"""Area of Ca over the first pass [unit of Ca · s]: ∫ t³ exp(−t/1.5) dt, the AIF of the same reference."""

GREY_CBF, GREY_CBV = 60.0, 4.0
"""CBF [mL/100 g/min] and CBV [mL/100 g] of normal grey matter (Østergaard 1996, Magn Reson Med 36:715-725)."""

WHITE_CBF, WHITE_CBV = 25.0, 2.0
"""The same for white matter; MTT follows as CBV/CBF: 4.0 s grey, 4.8 s white."""

TMAX_SIGMA_S = 1.6
"""Bandwidth of the Tmax truth: standard deviation [s] of the Gaussian through which the residue function is seen.

A regularised deconvolution keeps the frequencies where the AIF's spectrum exceeds about 20 % of its maximum. For
Ca ∝ t³ exp(−t/β), β = 1.5 s, the spectrum is (1 + ω²β²)^−2, which falls to 20 % at ω = 0.74 rad/s; the Gaussian that
falls to one half there has σ = sqrt(2 ln 2)/0.74 = 1.6 s. Without it, the maximum of an exponential residue would sit
at its first instant, which no deconvolution of finite bandwidth reports."""

FINE_STEP_S = 0.1
"""Width [s] of the cells of Ca in the convolution; halving it changes C by less than 1e-4 of its peak."""

CORE_CBF_FRACTION = (0.08, 0.25)
"""CBF of the core over normal CBF: below the 30 % by which the core is defined."""

FIELD_OF_VIEW_MM = 220.0
"""In-plane extent [mm] of the grid along both axes."""

FOLD_SCALE_MM = 6.0
"""Correlation length [mm] of the field whose zero sheets are the sulci; neighbouring sulci are 15-20 mm apart."""

TISSUES = {"outside": 0, "grey": 1, "white": 2, "csf": 3, "artery": 4, "vein": 5, "scalp": 6, "skull": 7}
"""Labels of `truth["tissue"]`. The brain is labels 1 to 4; the dural sinus lies outside it."""

BASELINE_SIGNAL = {"grey": 800.0, "white": 640.0, "csf": 1100.0, "blood": 750.0, "scalp": 55.0, "skull": 15.0}
"""S0 [scanner units] of T2*-weighted EPI; the scalp is dark because EPI suppresses fat."""


def _exponential(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
    return mtt * -np.expm1(-t / mtt)


def _gamma(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
    # Transit times distributed as t·exp(−t/θ)/θ², θ = MTT/2: R = (1 + t/θ)·exp(−t/θ).
    theta = mtt / 2
    return mtt - (t + mtt) * np.exp(-t / theta)


def _lorentzian(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
    return (2 / np.pi) * mtt * np.arctan((np.pi / 2) * t / mtt)


def _box(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
    return np.minimum(t, mtt)


RESIDUES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "exponential": _exponential,
    "gamma": _gamma,
    "lorentzian": _lorentzian,
    "box": _box,
}
"""Running integrals Q(t) = ∫₀ᵗ R of the residue functions, t ≥ 0, Q(∞) = MTT.

R = exp(−t/MTT); (1 + 2t/MTT)·exp(−2t/MTT); 1/(1 + (πt/2MTT)²); 1 for t < MTT. Integrals, because a sub-step delay
shifts them exactly while R itself jumps at its first instant."""


def arterial_concentration(
    time_s: np.ndarray,
    *,
    arrival_s: float = 15.0,
    shape: float = 3.0,
    scale_s: float = 1.5,
    recirculation: float = 0.15,
) -> np.ndarray:
    """Arterial concentration Ca(t): a gamma-variate first pass and a later, broader second one.

    Ca(t) = A·[g(t − t0; a, β) + r·g(t − t0 − 14 s; a, 2.5β)], g(t; a, β) = tᵃ·exp(−t/β)/(a!·β^(a+1)) of area one,
    A = `ARTERIAL_AREA`.

    Parameters
    ----------
    time_s
        Times [s], any shape.
    arrival_s
        Arrival t0 of the bolus [s].
    shape, scale_s
        a and β [s]; the first pass peaks a·β after its arrival.
    recirculation
        Area r of the second pass over that of the first.

    References
    ----------
    Thompson HK et al. Indicator transit time considered as a gamma variate. Circ Res 1964;14:502-515.

    Examples
    --------
    >>> t = np.arange(0, 200, 0.01)
    >>> ca = arterial_concentration(t, arrival_s=10.0)
    >>> round(float(t[ca.argmax()]), 2), round(float(ca.sum() * 0.01 / ARTERIAL_AREA), 3)
    (14.5, 1.15)
    """

    def bolus(late: np.ndarray, width: float) -> np.ndarray:
        t = np.maximum(late, 0.0) / width
        return np.where(t > 0, np.exp(shape * np.log(np.where(t > 0, t, 1.0)) - t - gammaln(shape + 1)), 0.0) / width

    late = np.asarray(time_s, dtype=np.float64) - arrival_s
    return ARTERIAL_AREA * (bolus(late, scale_s) + recirculation * bolus(late - 14.0, 2.5 * scale_s))


def _residue_cells(
    lags: np.ndarray, step: float, mtt: np.ndarray, delay: np.ndarray, residue: str, dispersion_s: float
) -> np.ndarray:
    """∫ of the delayed, dispersed residue over the cells that start at `lags`, `step` s wide; shape (n, len(lags))."""
    edges = np.append(lags, lags[-1] + step).astype(np.float32)
    late = np.maximum(edges - delay[:, None].astype(np.float32), 0)
    cells = np.diff(RESIDUES[residue](late, mtt[:, None].astype(np.float32)), axis=1)
    if dispersion_s > 0:
        # Exponential vascular transport function of mean `dispersion_s`, area kept.
        keep = np.exp(-step / dispersion_s)
        cells = lfilter([1 - keep], [1, -keep], cells, axis=1).astype(np.float32)
    return cells


def tissue_concentration(
    cbf: np.ndarray,
    mtt: np.ndarray,
    delay: np.ndarray,
    frame_times_s: np.ndarray,
    arterial: Callable[[np.ndarray], np.ndarray],
    *,
    residue: str = "exponential",
    dispersion_s: float = 0.0,
    step_s: float = FINE_STEP_S,
) -> np.ndarray:
    """Tissue concentration C(t) = CBF·∫ Ca(t − u)·R(u − delay) du at the frame times, shape (n, T), float32.

    Ca is taken constant over cells of `step_s` and R is integrated over each cell in closed form, so the area under
    C is CBF·MTT times that of Ca whatever the step, and delays need not be multiples of it. (The rectangle rule at
    the frame interval would add dt/2 to every MTT.)

    Parameters
    ----------
    cbf
        Flow, shape (n,) [mL/100 g/min].
    mtt, delay
        Mean transit time and arrival after the artery, shape (n,) [s]; delays may be negative.
    frame_times_s
        Sample times, shape (T,) [s].
    arterial
        Function that gives Ca at any times [s].
    residue
        Key of `RESIDUES`.
    dispersion_s
        Mean of an exponential transport function between artery and tissue [s]; 0 for none.
    step_s
        Cell width [s].

    Returns
    -------
    numpy.ndarray
        C in the unit of Ca times mL/g (blood per gram of tissue), k_H/ρ = 1.

    Raises
    ------
    KeyError
        If `residue` is none of `RESIDUES`.

    Examples
    --------
    >>> t = np.arange(0, 120, 1.5)
    >>> c = tissue_concentration(np.r_[60.0], np.r_[4.0], np.r_[2.0], t, arterial_concentration)
    >>> round(100 * float(c.sum() * 1.5 / (arterial_concentration(t).sum() * 1.5)), 2)  # CBV
    4.0
    """
    times = np.asarray(frame_times_s, dtype=np.float64)
    first = min(0.0, float(np.floor(np.min(delay, initial=0.0))))
    lags = np.arange(first, times.max() + step_s, step_s)
    sampled = arterial(times[None, :] - (lags[:, None] + step_s / 2)).astype(np.float32)
    curves = np.empty((len(cbf), len(times)), np.float32)
    for start in range(0, len(cbf), 8192):  # 8192 × ~900 float32: 30 MB at a time
        part = slice(start, start + 8192)
        curves[part] = _residue_cells(lags, step_s, mtt[part], delay[part], residue, dispersion_s) @ sampled
    return curves * (np.asarray(cbf, np.float32)[:, None] / 6000)


def residue_tmax(
    mtt: np.ndarray,
    delay: np.ndarray,
    *,
    residue: str = "exponential",
    dispersion_s: float = 0.0,
    sigma_s: float = TMAX_SIGMA_S,
) -> np.ndarray:
    """Tmax [s]: time of the maximum of the delayed residue function seen at finite bandwidth.

    Tmax = argmax_t (R(t − delay) ⊗ g_σ)(t) = delay + argmax_t (R ⊗ g_σ)(t). The second term depends on MTT alone; it is
    computed on a table of 200 transit times (0.2 s to 40 s, errors below 0.01 s) and interpolated.

    Parameters
    ----------
    mtt, delay
        Any shape [s].
    residue
        Key of `RESIDUES`.
    dispersion_s
        Mean of the exponential transport function between artery and tissue [s].
    sigma_s
        Standard deviation of the Gaussian g_σ [s].

    Examples
    --------
    >>> early, late = residue_tmax(np.r_[4.0, 4.0], np.r_[0.0, 6.0])
    >>> round(float(late - early), 6)
    6.0
    >>> bool(residue_tmax(np.r_[12.0], np.r_[0.0])[0] > early)  # slow transit looks late to a deconvolution
    True
    """
    step = 0.05
    lags = np.arange(-6 * sigma_s, 40.0 + 6 * sigma_s, step)
    table = np.geomspace(0.2, 40.0, 200)
    cells = _residue_cells(lags, step, table, np.zeros_like(table), residue, dispersion_s).astype(np.float64)
    seen = gaussian_filter1d(cells, sigma_s / step, axis=1, truncate=6.0)
    peak = np.clip(seen.argmax(1), 1, len(lags) - 2)
    row = np.arange(len(table))
    before, at, after = seen[row, peak - 1], seen[row, peak], seen[row, peak + 1]
    # Vertex of the parabola through the three highest samples: the table is not bound to the step.
    shift = 0.5 * (before - after) / np.minimum(before - 2 * at + after, -1e-30)
    late = lags[0] + step * (peak + 0.5 + np.clip(shift, -0.5, 0.5))
    return np.asarray(delay + np.interp(mtt, table, late))


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


def _tube(
    points_mm: list[tuple[float, float, float]], radius_mm: float, affine: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Voxels within `radius_mm` of a polyline, at least those it passes through: no grid is too coarse for a vessel."""
    points = np.array(points_mm)
    steps = np.concatenate([np.linspace(a, b, 60) for a, b in pairwise(points)])
    ball = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    ball = ball[(ball**2).sum(1) <= 1] * radius_mm
    world = (steps[:, None] + ball).reshape(-1, 3)
    index = np.rint((world - affine[:3, 3]) / np.diag(affine)[:3]).astype(int)
    index = index[((index >= 0) & (index < shape)).all(1)]
    mask = np.zeros(shape, bool)
    mask[tuple(index.T)] = True
    return mask


def _anatomy(shape: tuple[int, int, int], affine: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Head in world coordinates: fractions of grey, white, csf in the brain (0 to 1), masks of the rest, x y z [mm]."""
    spacing = tuple(float(s) for s in np.diag(affine)[:3])
    x, y, z = np.meshgrid(
        *[(np.arange(n) * affine[a, a] + affine[a, 3]) for a, n in enumerate(shape)], indexing="ij", sparse=True
    )
    width, length, height = np.array((67.0, 84.0, 64.0)) * rng.uniform(0.96, 1.04, 3)
    coarse, folds = smooth_field(shape, spacing, 25.0, rng), smooth_field(shape, spacing, FOLD_SCALE_MM, rng)
    radius = np.sqrt((x / width) ** 2 + (y / length) ** 2 + (z / height) ** 2) * (1 + 0.012 * coarse)
    inward_mm = (1 - radius) * 70.0  # about the distance to the brain's surface
    blur = 0.45 * spacing[0]  # partial volume: a border is as soft as a voxel is wide

    def inside(signed_mm: np.ndarray) -> np.ndarray:
        return (1 / (1 + np.exp(-np.clip(signed_mm / blur, -30, 30)))).astype(np.float32)

    def ellipsoid(
        centre: tuple[float, float, float], axes: tuple[float, float, float], lean: float = 0.0
    ) -> np.ndarray:
        across = np.abs(x) - centre[0] - lean * (centre[1] - y)
        r = np.sqrt((across / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2 + ((z - centre[2]) / axes[2]) ** 2)
        return inside((1 - r) * min(axes))

    wide = rng.uniform(0.85, 1.3)
    ventricles = np.maximum(
        ellipsoid((9.0, -4.0, 17.0), (5.0 * wide, 30.0, 9.0), lean=0.22),
        ellipsoid((0.0, -8.0, 2.0), (2.2 * wide, 12.0, 9.0)),
    )
    # The cortex folds in along the zero sheets of a random field, from which |folds|·√2·scale is about the distance.
    from_fold_mm = np.abs(folds) * np.sqrt(2) * FOLD_SCALE_MM
    sulci = inside(np.minimum(0.7 - from_fold_mm, 16.0 - inward_mm))
    from_midline_mm = np.abs(x) + 0.4 * np.maximum(0, 44 - np.abs(y)) * (z < 30)
    lens = ((np.abs(x) - 56) / 18) ** 2 + ((y - 4) / 26) ** 2
    from_sylvian_mm = np.abs(z + 4 - 0.25 * y) + 5 * lens
    csf = np.maximum.reduce([ventricles, 0.8 * sulci, inside(1.4 - from_midline_mm), inside(1.6 - from_sylvian_mm)])
    csf = np.clip(np.maximum(csf, 0.7 * inside(1.0 - inward_mm)), 0, 1)

    ribbon = inside(5.0 + coarse - inward_mm)
    folded = inside(np.minimum(4.6 - from_fold_mm, 22.0 + 3 * coarse - inward_mm))
    beside = np.maximum(inside(4.5 - from_midline_mm), inside(6.0 - from_sylvian_mm))
    nuclei = np.maximum.reduce(
        [
            ellipsoid((11.0, -18.0, 7.0), (8.0, 13.0, 9.0)),
            ellipsoid((25.0, 3.0, 3.0), (5.5, 16.0, 10.0), lean=-0.15),
            ellipsoid((13.0, 17.0, 8.0), (4.5, 8.0, 10.0)),
        ]
    )
    grey = np.maximum.reduce([ribbon, folded, beside, nuclei])
    brain = radius <= 1

    artery = np.zeros(shape, bool)
    for side in (-1, 1):
        artery |= _tube(
            [(side * 6, 6, -14), (side * 22, 6, -9), (side * 40, 0, -3), (side * 50, -18, 6)], 2.2, affine, shape
        )
        artery |= _tube(
            [(side * 2, 12, -12), (side * 2, 38, -6), (side * 2, 46, 12), (side * 2, 30, 32)], 1.6, affine, shape
        )
        artery |= _tube([(side * 2, -26, -14), (side * 16, -34, -10), (side * 20, -62, -2)], 1.5, affine, shape)
    angle = np.linspace(np.deg2rad(50), np.deg2rad(185), 20)
    sagittal = [(0.0, 1.03 * length * np.cos(a), 1.03 * height * np.sin(a)) for a in angle]
    sinus = _tube(sagittal, 3.5, affine, shape)
    for side in (-1, 1):
        around = np.deg2rad(np.linspace(0, 55, 12))
        low = np.sqrt(1 - (8 / height) ** 2) * 1.03
        sinus |= _tube(
            [(side * low * width * np.sin(a), -low * length * np.cos(a), -8.0) for a in around], 3.0, affine, shape
        )
    return {
        "brain": brain & ~sinus,
        "csf": csf,
        "grey": grey * (1 - csf),
        "white": (1 - grey) * (1 - csf),
        "artery": artery & brain & ~sinus,
        "vein": sinus & (radius < 1.12),
        "skull": (radius > 1) & (radius <= 1.11),
        "scalp": (radius > 1.11) & (radius <= 1.19 + 0.01 * coarse),
        "x": x,
        "y": y,
        "z": z,
    }


def _lesion_depth(
    anatomy: dict[str, np.ndarray],
    spacing: tuple[float, ...],
    shape: tuple[int, ...],
    side: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """Distance from the centre of a middle-cerebral territory, 1 at the lesion's rim, and the radius of the core."""
    size = rng.uniform(0.72, 1.15)
    centre = np.array((side * 42.0, 0.0, 12.0)) + rng.normal(0, (3.0, 8.0, 4.0))
    axes = np.array((27.0, 35.0, 28.0)) * size
    squares = [((anatomy[name] - c) / a) ** 2 for name, c, a in zip("xyz", centre, axes, strict=True)]
    depth = np.sqrt(squares[0] + squares[1] + squares[2]) + 0.13 * smooth_field(shape, spacing, 10.0, rng)
    # A territory ends at the midline.
    depth = np.where(side * anatomy["x"] > 4.0, np.maximum(depth, 0.0), 9.0)
    return depth.astype(np.float32), float(rng.uniform(0.50, 0.80))


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
    anatomy = _anatomy(shape, affine, rng)
    brain, artery, vein = anatomy["brain"], anatomy["artery"], anatomy["vein"]

    grey, white = anatomy["grey"], anatomy["white"]
    vary = rng.uniform(0.92, 1.08)
    cbf = vary * (grey * GREY_CBF + white * WHITE_CBF) * np.exp(0.10 * smooth_field(shape, spacing_mm, 15.0, rng))
    cbv = vary * (grey * GREY_CBV + white * WHITE_CBV) * np.exp(0.10 * smooth_field(shape, spacing_mm, 15.0, rng))
    # Territories: the posterior circulation and the borders between territories fill last, white matter after grey.
    posterior = 1 / (1 + np.exp((anatomy["y"] + 45) / 8.0))
    delay = 0.8 + 0.5 * posterior + 0.35 * smooth_field(shape, spacing_mm, 20.0, rng) + 0.3 * white
    delay = np.clip(delay, 0.0, 2.5).astype(np.float32)

    side = int(rng.choice((-1, 1)))
    depth, core_radius = _lesion_depth(anatomy, spacing_mm, shape, side, rng)
    grain = smooth_field(shape, spacing_mm, 6.0, rng)
    has_tissue = brain & ~artery & (grey + white > 0.5)
    in_lesion = has_tissue & (depth < 1) if lesion else np.zeros(shape, bool)
    in_core = in_lesion & (depth < core_radius)
    if lesion:
        rim = np.clip((1 - depth) / (1 - core_radius), 0, 1)  # 0 at the edge of the lesion, 1 at the core
        margin = np.clip((1.35 - depth) / 0.35, 0, 1)  # benign oligaemia: 1 at the edge, 0 in normal tissue
        delay = delay + margin * np.maximum(4.0 - delay, 0)
        cbf *= 1 - 0.15 * margin
        cbv *= 1 + 0.10 * margin
        penumbra = in_lesion & ~in_core
        late = np.clip(4.2 + 4.0 * rim + 0.5 * grain, 4.0, 9.0)
        delay = np.where(penumbra, late, delay)
        cbf = np.where(penumbra, cbf * np.clip(0.75 - 0.25 * rim + 0.04 * grain, 0.4, 0.8), cbf)
        dead = np.clip(1 - depth / core_radius, 0, 1)  # 0 at the edge of the core, 1 in its centre
        low, high = CORE_CBF_FRACTION
        fraction = np.clip(high - (high - low) * dead + 0.02 * grain, low, high)
        # The fractions are of normal flow, and the margin has taken its 15 % already.
        cbf = np.where(in_core, cbf * fraction, cbf)
        cbv = np.where(in_core, cbv * np.clip(2.0 * fraction, 0.15, 0.45), cbv)
        delay = np.where(in_core, np.clip(8.0 + 4.5 * dead + 0.5 * grain, 6.0, 12.0), delay)

    perfused = brain & ~artery & (grey + white > 0.1)
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

    tissue = np.select(
        [
            vein,
            artery,
            brain & (anatomy["csf"] > 0.5),
            brain & (grey >= white),
            brain,
            anatomy["skull"],
            anatomy["scalp"],
        ],
        [TISSUES[name] for name in ("vein", "artery", "csf", "grey", "white", "skull", "scalp")],
    ).astype(np.uint8)
    s0 = sum(anatomy[name] * BASELINE_SIGNAL[name] for name in ("grey", "white", "csf")) * brain
    for name in ("artery", "vein", "skull", "scalp"):
        s0 = np.where(tissue == TISSUES[name], BASELINE_SIGNAL.get(name, BASELINE_SIGNAL["blood"]), s0)
    # Receiver coils see the rim of the head better than its centre.
    s0 = (s0 * np.exp(0.05 * smooth_field(shape, spacing_mm, 60.0, rng))).astype(np.float32)
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
