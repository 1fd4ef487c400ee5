"""Curves of the reference object by the thousand: scans that share an artery, in voxels that share nothing else.

Two populations that have no scan in common: `TRAINING` is what networks learn from, `HELD_OUT` what they are judged on,
with another family of arteries, other residue functions and another stream of random numbers.
"""

from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from scipy.special import ndtr

from reperfuse.phantoms.artery import ArterialInput
from reperfuse.phantoms.fields import rician
from reperfuse.phantoms.kinetics import Residue, gamma_residue, tissue_concentration
from reperfuse.phantoms.series import K_TISSUE

AIF_STEP_S = 0.05
"""Step in which Ca is tabulated before it is convolved [s]: its sampling at any TR is read from there."""


@dataclass(frozen=True)
class Population:
    """From what scans and voxels are drawn: even between the bounds, `log` ones evenly in their logarithm."""

    name: str
    families: tuple[str, ...]
    """Keys of `ARTERIAL_FAMILIES`."""
    residues: tuple[str, ...]
    """Keys of `RESIDUES`, "gamma" with a drawn α, or "lognormal" with a drawn spread."""
    tr_s: tuple[float, float] = (1.0, 5.0)
    snr: tuple[float, float] = (15.0, 150.0)
    te_s: tuple[float, float] = (0.020, 0.045)
    arrival_s: tuple[float, float] = (8.0, 25.0)
    after_arrival_s: tuple[float, float] = (45.0, 80.0)
    """How long the series goes on after the arrival of the bolus [s]."""
    width_s: tuple[float, float] = (2.0, 4.5)
    shape: tuple[float, float] = (2.0, 5.0)
    injection_s: tuple[float, float] = (3.0, 8.0)
    recirculation: tuple[float, float] = (0.05, 0.40)
    recirculation_delay_s: tuple[float, float] = (11.0, 18.0)
    dose: tuple[float, float] = (0.7, 1.4)
    delay_s: tuple[float, float] = (-3.0, 15.0)
    mtt_s: tuple[float, float] = (2.0, 20.0)
    cbv: tuple[float, float] = (0.3, 8.0)
    """From a core to the cortex [mL/100 g]."""
    alpha: tuple[float, float] = (1.0, 8.0)
    spread: tuple[float, float] = (0.3, 1.1)
    """Standard deviation over mean of the transit times of a lognormal residue."""
    dispersion_s: tuple[float, float] = (0.0, 3.0)
    dispersed_share: float = 0.25
    log: tuple[str, ...] = ("tr_s", "snr", "mtt_s", "cbv", "alpha")

    def draw(self, rng: np.random.Generator, name: str, size: int | None = None) -> Any:
        """One value, or an array of `size`, of the quantity of that name."""
        low, high = getattr(self, name)
        return (
            np.exp(rng.uniform(np.log(low), np.log(high), size)) if name in self.log else rng.uniform(low, high, size)
        )


TRAINING = Population("training", ("gamma_variate", "injection"), ("exponential", "gamma", "lorentzian", "box"))
"""What the network that ships is trained on."""

HELD_OUT = Population(
    "held-out",
    ("gaussian",),
    ("lognormal",),
    width_s=(2.2, 4.2),
    recirculation=(0.10, 0.35),
    recirculation_delay_s=(12.0, 16.0),
    dose=(0.8, 1.3),
    cbv=(1.5, 6.0),
)
"""What it is judged on: arteries and residue functions of families that it never met, in white and grey matter."""


@dataclass(frozen=True)
class Curves:
    """Voxels of one scan; times count from its first frame."""

    signal: np.ndarray
    """Magnitude with Rician noise, S0 = 1, shape (n, T)."""
    clean: np.ndarray
    """ΔR2* without noise, shape (n, T) [1/s]."""
    aif: np.ndarray
    """ΔR2* of the artery at the frames, without noise, shape (T,) [1/s]."""
    tr_s: float
    te_s: float
    snr: float
    baseline: slice
    """Frames before the bolus reaches anything."""
    delay: np.ndarray
    """Arrival after the artery, shape (n,) [s]."""
    mtt: np.ndarray
    cbv: np.ndarray
    dispersion: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)
    """What was drawn for the scan, and `artery`, the `ArterialInput` itself."""

    @property
    def noise(self) -> float:
        """Standard deviation of ΔR2* before the bolus, 1/(SNR·TE) [1/s]."""
        return 1 / (self.snr * self.te_s)


def lognormal_residue(spread: float) -> Residue:
    """Residue function of lognormal transit times, as its running integral Q(t, MTT).

    Transit times of mean MTT and standard deviation `spread`·MTT: s² = ln(1 + spread²), μ = ln MTT − s²/2, and
    Q(t) = t·[1 − Φ((ln t − μ)/s)] + MTT·Φ((ln t − μ)/s − s).

    Examples
    --------
    >>> q = lognormal_residue(0.5)(np.array([[0.0, 4.0, 400.0]]), np.array([[4.0]]))
    >>> bool(q[0, 0] == 0 and 2.5 < q[0, 1] < 4 and abs(q[0, 2] - 4) < 1e-6)
    True
    """
    s = np.sqrt(np.log1p(spread**2))

    def integral(t: np.ndarray, mtt: np.ndarray) -> np.ndarray:
        x = (np.log(np.maximum(t, 1e-6) / mtt)) / s + s / 2
        return np.where(t > 0, t * ndtr(-x) + mtt * ndtr(x - s), 0.0)

    return integral


def drawn_curves(population: Population, seed: int, n_voxels: int, *, blocks: int = 4, **fixed: float) -> Curves:
    """One scan of a population: its artery, and `n_voxels` voxels with independent truth and noise.

    Parameters
    ----------
    population
        Where everything is drawn from; its name is part of the seed, so that two populations share no scan.
    seed
        Of the scan.
    n_voxels
        Voxels, in `blocks` of one residue function and dispersion each.
    **fixed
        tr_s, snr or te_s that shall not be drawn.
    """
    rng = np.random.default_rng([crc32(population.name.encode()), seed])
    scan = {name: float(population.draw(rng, name)) for name in SCAN}
    washout = float(rng.uniform(0, 1))
    family = str(rng.choice(population.families))
    scan |= fixed
    tr, te = scan["tr_s"], scan["te_s"]
    # The phase of sampling is random, and four frames and a half precede the bolus, however slow they are.
    arrival = max(scan.pop("arrival_s"), (4.0 + rng.uniform(0, 1)) * tr)
    n_frames = int(np.ceil((arrival + scan["after_arrival_s"]) / tr)) + 1
    same = ("shape", "width_s", "injection_s", "recirculation", "recirculation_delay_s", "dose")
    artery = ArterialInput(family, arrival, washout=washout, **{name: scan[name] for name in same})
    times = np.arange(n_frames) * tr
    unit, delay, mtt, dispersion = drawn_tissue(population, rng, n_voxels, blocks, times, artery)
    cbv = population.draw(rng, "cbv", n_voxels)
    clean = unit * cbv[:, None].astype(np.float32)
    signal = rician(np.exp(-te * clean), 1 / scan["snr"], rng)
    start = artery.arrival_s + min(0.0, population.delay_s[0])
    baseline = slice(0, max(2, int(np.floor(start / tr))))
    return Curves(
        signal,
        clean,
        K_TISSUE * artery(times),
        tr,
        te,
        scan["snr"],
        baseline,
        delay,
        mtt,
        cbv,
        dispersion,
        {"family": family, "washout": washout, "arrival_s": arrival, "artery": artery, **scan},
    )


SCAN = (
    "tr_s",
    "snr",
    "te_s",
    "arrival_s",
    "after_arrival_s",
    "width_s",
    "shape",
    "injection_s",
    "recirculation",
    "recirculation_delay_s",
    "dose",
)
"""Quantities that are drawn once per scan."""


def drawn_tissue(
    population: Population,
    rng: np.random.Generator,
    n_voxels: int,
    blocks: int,
    times_s: np.ndarray,
    artery: ArterialInput,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ΔR2* of voxels of CBV 1 mL/100 g at the frame times, shape (n, T) [1/s], their delay, MTT and dispersion [s].

    Each of the `blocks` has one residue function and one dispersion.
    """
    fine = np.arange(-30.0, times_s[-1] + 20.0, AIF_STEP_S)
    table = artery(fine)

    def arterial(t: np.ndarray) -> np.ndarray:
        return np.interp(t, fine, table)

    delay, mtt = population.draw(rng, "delay_s", n_voxels), population.draw(rng, "mtt_s", n_voxels)
    unit = np.empty((n_voxels, len(times_s)), np.float32)
    dispersion = np.empty(n_voxels)
    for part in np.array_split(np.arange(n_voxels), blocks):
        spread = float(population.draw(rng, "dispersion_s")) * (rng.random() < population.dispersed_share)
        shape = drawn_residue(population, rng)
        dispersion[part] = spread
        unit[part] = K_TISSUE * tissue_concentration(
            60 / mtt[part], mtt[part], delay[part], times_s, arterial, residue=shape, dispersion_s=spread
        )
    return unit, delay, mtt, dispersion


def drawn_residue(population: Population, rng: np.random.Generator) -> str | Residue:
    """A residue function of the population."""
    name = str(rng.choice(population.residues))
    if name == "lognormal":
        return lognormal_residue(float(population.draw(rng, "spread")))
    if name == "gamma":
        return gamma_residue(float(population.draw(rng, "alpha")))
    return name
