"""Flags of the artery: whether there is one, and how far its curve can be believed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperfuse.perfusion.bolus import noise_level
from reperfuse.perfusion.flag import Flag

AIF_CNR = 20.0
"""Peak of the AIF over its noise below which it is noisy. White noise of 1/20 of the peak stands at 8 % of the AIF's
largest singular value (60 frames, five in the bolus), amid those that a deconvolution keeps."""

SATURATED_FRACTION = 0.9
"""Part of the reliable ceiling of ΔR2* from which a peak counts as cut: noise takes a single frame that far below."""

AIF_WIDTH_RANGE_S = (2.5, 25.0)
"""Width [s] of an arterial bolus at half its height: an injection lasts 3 to 8 s and spreads on its way through heart
and lungs. A width beyond says that the frame interval or the artery is wrong, rather than the heart."""


def no_artery(late_ml: float | None = None) -> Flag:
    """The flag of a series in which no artery was found; its value is the volume of late relative TTP [mL], if any."""
    late = "" if late_ml is None else f" ({late_ml:.0f} mL are more than 4.5 s behind normal tissue)"
    return Flag(
        "no_artery",
        f"No artery was found, so there is no deconvolution; time to peak relative to normal tissue stands in{late}: "
        "give an artery mask or an AIF file for Tmax, CBF and MTT.",
        late_ml,
    )


def saturated_aif(
    aif: ArrayLike, ceiling: float | None = None, *, saturated: bool = False, fraction: float = SATURATED_FRACTION
) -> Flag | None:
    """Raised where the artery's signal reached the noise floor, so that its peak is cut; its value is the peak [1/s].

    Parameters
    ----------
    aif
        Curve, shape (T,) [1/s].
    ceiling
        Highest ΔR2* that can be told from the noise floor in its voxels [1/s].
    saturated
        What the search for the artery found by itself.
    """
    peak = float(np.max(aif))
    reached = ceiling is not None and np.isfinite(ceiling) and peak >= fraction * ceiling
    if not (saturated or reached):
        return None
    return Flag(
        "saturated_aif",
        f"The artery's signal falls into the noise at the bolus peak ({peak:.0f} 1/s), so the AIF is cut off at its "
        "top: CBF and CBV are too large and Tmax may shift; choose a smaller or a branch artery, or scale to the vein.",
        peak,
    )


def noisy_aif(aif: ArrayLike, noise: float | None = None, *, least: float = AIF_CNR) -> Flag | None:
    """Raised where the AIF's peak stands too little above its noise; its value is their ratio.

    Parameters
    ----------
    aif
        Curve, shape (T,) [1/s].
    noise
        Its standard deviation [1/s]; from the curve's own second differences when not given.
    """
    curve = np.asarray(aif, dtype=np.float64)
    sigma = noise_level(curve) if noise is None else float(noise)
    if not sigma > 0:
        return None
    cnr = float(curve.max()) / sigma
    if cnr >= least:
        return None
    return Flag(
        "noisy_aif",
        f"The AIF's peak is only {max(cnr, 0):.0f} times its noise (at least {least:g} is wanted): every map "
        "inherits that noise; give an AIF from more voxels with an artery mask.",
        cnr,
    )


DOUBTS = {
    "noisy": "its curve is noisy",
    "tissue": "it hardly stands out of tissue",
    "coarse": "few frames fall into its bolus",
    "partial volume": "it had to be scaled up much to the vein's area",
    "late": "it fills after the tissue",
    "low": "it is hardly higher than tissue",
    "area": "its area does not fit the tissue's",
}
"""What `aif.doubts` may say beside saturation, in words."""


def doubtful_aif(doubts: Sequence[str]) -> Flag | None:
    """Raised by an artery that may be none, or a poor one; its value is the number of reasons.

    Parameters
    ----------
    doubts
        Of `aif.doubts`; saturation has a flag of its own.
    """
    reasons = [DOUBTS[doubt] for doubt in doubts if doubt in DOUBTS]
    if not reasons:
        return None
    return Flag(
        "doubtful_aif",
        f"The artery is open to doubt ({', '.join(reasons)}): look at its voxels and its curve, and give an artery "
        "mask if they are not in a vessel; every map but TTP rests on it.",
        float(len(reasons)),
    )


def implausible_aif(aif: ArrayLike, tr_s: float, *, width_s: tuple[float, float] = AIF_WIDTH_RANGE_S) -> Flag | None:
    """Raised by an arterial bolus that lasts too short or too long a time; its value is its width at half height [s].

    Parameters
    ----------
    aif
        Curve, shape (T,) [1/s].
    tr_s
        Time between frames [s].
    """
    width = _width(np.asarray(aif, dtype=np.float64)) * tr_s
    if width_s[0] <= width <= width_s[1]:
        return None
    return Flag(
        "implausible_aif",
        f"The bolus in the artery lasts {width:.1f} s at half its height, outside the {width_s[0]:g} to {width_s[1]:g} "
        "s of a patient: check that its voxels lie in an artery, and the frame interval; every map but TTP rests "
        "on it.",
        width,
    )


def _width(curve: NDArray[np.float64]) -> float:
    """Width of the highest peak at half its height, between samples [frames]."""
    peak, half = int(curve.argmax()), float(curve.max()) / 2
    if not half > 0:
        return 0.0
    low = high = peak
    while low > 0 and curve[low - 1] > half:
        low -= 1
    while high < curve.size - 1 and curve[high + 1] > half:
        high += 1
    before = (curve[low] - half) / (curve[low] - curve[low - 1]) if low > 0 else 0.0
    after = (curve[high] - half) / (curve[high] - curve[high + 1]) if high < curve.size - 1 else 0.0
    return float(high - low + before + after)
