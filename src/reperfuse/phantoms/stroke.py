"""Perfusion of a head, in health and with an occluded middle cerebral artery: maps of CBF, CBV, MTT and delay."""

import numpy as np

from reperfuse.phantoms.fields import smooth_field

GREY_CBF, GREY_CBV = 60.0, 4.0
"""CBF [mL/100 g/min] and CBV [mL/100 g] of normal grey matter (Østergaard 1996, Magn Reson Med 36:715-725)."""

WHITE_CBF, WHITE_CBV = 25.0, 2.0
"""The same for white matter; MTT follows as CBV/CBF: 4.0 s grey, 4.8 s white."""

CORE_CBF_FRACTION = (0.08, 0.25)
"""CBF of the core over that around it, which is 85 % of normal: below the 30 % of normal that define a core."""

WHITE_CBV_FRACTION, WHITE_MTT_FACTOR = 0.5, 1.2
"""CBV and MTT of white matter over those of grey, the same ratios."""

CBV_RANGE, MTT_RANGE_S, DELAY_RANGE_S = (1.0, 8.0), (2.0, 20.0), (-3.0, 15.0)
"""CBV [mL/100 g], MTT and delay [s] that a perfused voxel may have: from a core to hyperaemia, from fast normal grey
matter to a collateral's reach; negative where tissue fills before the artery that was measured."""


def normal_perfusion(
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


def lesion_depth(
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


def with_lesion(
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


def drawn_perfusion(
    anatomy: dict[str, np.ndarray],
    spacing_mm: tuple[float, ...],
    depth: np.ndarray,
    rng: np.random.Generator,
    *,
    grey_cbv: float,
    grey_mtt: float,
    delay_s: float,
    late_delay_s: float,
    late_mtt_s: float,
    core_cbv: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """CBF [mL/100 g/min], CBV [mL/100 g], MTT and delay [s] of a head from anywhere in the ranges of medicine.

    Transit time and delay rise, and blood volume falls, from the rim of the territory (`depth` 1) to its middle. All
    are held within `CBV_RANGE`, `MTT_RANGE_S` and `DELAY_RANGE_S`; where a voxel is partly CSF, flow and volume are
    those of its tissue times the fraction of tissue.

    Parameters
    ----------
    anatomy
        Fractions of tissue, from `head_anatomy`.
    spacing_mm
        Voxel size [mm].
    depth
        Distance from the middle of the late territory, 1 at its rim (see `lesion_depth`); 9 everywhere for none.
    rng
        Spatial variation.
    grey_cbv, grey_mtt
        CBV [mL/100 g] and MTT [s] of normal grey matter; white matter has `WHITE_CBV_FRACTION` of the one and
        `WHITE_MTT_FACTOR` of the other.
    delay_s
        Mean delay of normal tissue after the artery [s].
    late_delay_s, late_mtt_s
        Delay and MTT in the middle of the territory [s].
    core_cbv
        CBV there over its normal value.
    """
    grey, white = anatomy["grey"], anatomy["white"]
    fraction = np.minimum(grey + white, 1)
    white_share = white / np.maximum(grey + white, 1e-6)

    def variation() -> np.ndarray:
        return smooth_field(fraction.shape, spacing_mm, 15.0, rng)

    cbv = grey_cbv * (1 - (1 - WHITE_CBV_FRACTION) * white_share) * np.exp(0.12 * variation())
    mtt = grey_mtt * (1 + (WHITE_MTT_FACTOR - 1) * white_share) * np.exp(0.12 * variation())
    delay = delay_s + 0.6 * variation() + 0.3 * white_share
    # From the rim inwards: at once late, then slower, and only near the middle without blood.
    late, slow, dead = (np.clip((1 - depth) / width, 0, 1) for width in (0.4, 0.7, 0.9))
    delay = delay + late * np.maximum(late_delay_s - delay, 0)
    mtt = mtt * np.maximum(late_mtt_s / mtt, 1) ** slow
    cbv = cbv * (1 + 0.8 * slow * (1 - slow)) * core_cbv**dead**2
    cbv, mtt = np.clip(cbv, *CBV_RANGE), np.clip(mtt, *MTT_RANGE_S)
    cbv = (cbv * fraction).astype(np.float32)
    return (
        (60 * cbv / mtt).astype(np.float32),
        cbv,
        mtt.astype(np.float32),
        np.clip(delay, *DELAY_RANGE_S).astype(np.float32),
    )
