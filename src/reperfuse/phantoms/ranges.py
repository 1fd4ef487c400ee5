"""From what ranges a patient of the DSC reference object is drawn, and what can go wrong on a scanner."""

from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import numpy as np

from reperfuse.phantoms.artery import ARTERIAL_FAMILIES
from reperfuse.phantoms.kinetics import RESIDUES

RANGES: dict[str, tuple[float, float]] = {
    "tr_s": (1.0, 5.0),
    "te_s": (0.020, 0.045),
    "snr": (10.0, 200.0),
    "arrival_s": (8.0, 25.0),
    "duration_s": (60.0, 90.0),
    "aif_width_s": (2.0, 4.5),
    "aif_shape": (2.0, 5.0),
    "injection_s": (3.0, 8.0),
    "recirculation": (0.05, 0.40),
    "washout": (0.0, 1.0),
    "recirculation_delay_s": (11.0, 18.0),
    "dose": (0.7, 1.4),
    "dispersion_s": (0.0, 3.0),
    "residue_alpha": (1.0, 8.0),
    "grey_cbv": (2.5, 7.0),
    "grey_mtt": (2.5, 6.0),
    "delay_s": (-1.5, 2.5),
    "late_delay_s": (3.0, 15.0),
    "late_mtt_s": (6.0, 20.0),
    "core_cbv": (0.15, 1.2),
    "purity_low": (0.1, 0.4),
    "purity_high": (0.7, 1.0),
    "vof_spread": (0.5, 0.8),
    "k2": (0.005, 0.030),
    "drift_mm": (0.2, 2.0),
    "jump_mm": (1.0, 5.0),
}
"""Ranges the quantities are drawn from, evenly (snr evenly in its logarithm); units by their names, k2 in 1/s.

aif_width_s to dose are those of `ArterialInput`; grey_cbv to core_cbv those of `drawn_perfusion`; purity_low and
purity_high bound the fraction of blood in the voxels of arteries; vof_spread is the standard deviation of the transit
to the sinus over its mean; the rest is named as in `Scan`, `leaked` and `head_trajectory`. Chosen by us to span what
clinical series show and somewhat more: a method that holds over them does not live on the habits of one scanner."""

LEAKY_SHARE, MOVING_SHARE, LESION_SHARE = 0.25, 0.4, 0.8
"""Shares of patients with a leaking territory, with a moving head, and with a late territory."""

SITUATIONS: dict[str, dict[str, Any]] = {
    "motion": {"jumps": 4, "jump_mm": 6.0, "drift_mm": 2.0},
    "truncated_tail": {"after_arrival_s": 12.0},
    "no_bolus": {"dose": 0.0},
    "low_cnr": {"dose": 0.12, "snr": 15.0, "te_s": 0.025},
    "saturated_aif": {
        "te_s": 0.050,
        "dose": 2.5,
        "aif_width_s": 2.0,
        "snr": 40.0,
        "purity_low": 0.9,
        "purity_high": 1.0,
    },
    "missing_frames": {"missing": (2, 9, (12, 1), (12, 2))},
    "unsteady_start": {"unsteady_frames": 3},
    "early_arrival": {"arrival_s": 2.0},
    "uneven_times": {"time_jitter": 0.3},
}
"""What goes wrong on scanners, as values for `drawn_phantom`: each is what one quality flag should find."""

PLAIN: dict[str, Any] = {
    "jumps": 0,
    "drift_mm": 0.0,
    "k2": 0.0,
    "dispersion_s": 0.0,
    "unsteady_frames": 0,
    "missing": (),
    "time_jitter": 0.0,
    "purity_low": 1.0,
    "purity_high": 1.0,
}
"""Values under which nothing disturbs a series: no motion, leakage, dispersion or partial volume."""


def stream(seed: int, name: str) -> np.random.Generator:
    """The source of randomness for one quantity of one patient: the others do not notice how much it gives."""
    return np.random.default_rng([seed, crc32(name.encode())])


def drawn_values(seed: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Every quantity of a patient: drawn, or as `fixed` says.

    Each is drawn from a stream of its own, so that fixing one leaves the others as they were.

    Parameters
    ----------
    seed
        Seed of the patient.
    fixed
        Values by name; `NAME_range` instead narrows the range of a quantity of `RANGES`.

    Raises
    ------
    ValueError
        If there is no such quantity.

    Examples
    --------
    >>> one, other = drawn_values(3, {}), drawn_values(3, {"te_s": 0.03, "snr_range": (20, 40)})
    >>> other["te_s"], one["tr_s"] == other["tr_s"], 20 <= other["snr"] <= 40
    (0.03, True, True)
    """
    ranges = {name: fixed.get(f"{name}_range", limits) for name, limits in RANGES.items()}
    values: dict[str, Any] = {}

    def even(name: str) -> float:
        return float(stream(seed, name).uniform(*ranges[name]))

    def sometimes(name: str, share: float) -> bool:
        return bool(stream(seed, f"whether {name}").random() < share)

    def arrival(name: str) -> float:
        low, high = ranges[name]
        # A baseline needs four frames and a half, however slow they are.
        return float(stream(seed, name).uniform(np.clip(4.5 * values["tr_s"], low, high), high))

    def frames(name: str) -> int:
        if values["after_arrival_s"] is not None:
            return int(np.ceil((values["arrival_s"] + values["after_arrival_s"]) / values["tr_s"])) + 1
        return max(18, int(np.ceil(max(values["duration_s"], values["arrival_s"] + 45.0) / values["tr_s"])))

    def leakage(name: str) -> float:
        sign = int(stream(seed, f"sign of {name}").choice((-1, 1)))
        return sign * even(name) if sometimes(name, LEAKY_SHARE) else 0.0

    moving = sometimes("motion", MOVING_SHARE)
    draws: dict[str, Callable[[str], Any]] = dict.fromkeys(RANGES, even) | {
        "vof_lag_s": lambda _: None,
        "snr": lambda name: float(np.exp(stream(seed, name).uniform(*np.log(ranges[name])))),
        "arrival_s": arrival,
        "after_arrival_s": lambda _: None,
        "n_frames": frames,
        "family": lambda name: str(stream(seed, name).choice(list(ARTERIAL_FAMILIES))),
        "residue": lambda name: str(stream(seed, name).choice(list(RESIDUES))),
        "dispersion_s": lambda name: even(name) if sometimes(name, 0.5) else 0.0,
        "lesion": lambda name: sometimes(name, LESION_SHARE),
        "k2": leakage,
        "drift_mm": lambda name: even(name) if moving else 0.0,
        "jumps": lambda name: int(stream(seed, name).integers(0, 4)) if moving else 0,
        "unsteady_frames": lambda _: 0,
        "missing": lambda _: (),
        "time_jitter": lambda _: 0.0,
    }
    unknown = set(fixed) - set(draws) - {f"{name}_range" for name in RANGES}
    if unknown:
        raise ValueError(f"A drawn phantom has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(draws))}.")
    order = ("tr_s", "arrival_s", "duration_s", "after_arrival_s", *draws)
    for name in dict.fromkeys(order):
        values[name] = fixed[name] if name in fixed else draws[name](name)
    return values
