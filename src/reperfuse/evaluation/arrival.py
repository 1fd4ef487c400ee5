"""How well the arrival of blood is told, on voxels whose truth is known: against deconvolution at its best, and Bayes.

Voxels are independent, every method gets the same artery, and a method is a function of curves. Calibration is allowed
to deconvolution and learned on another population than it is judged on.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from reperfuse.perfusion.concentration import delta_r2star
from reperfuse.perfusion.maps import maps_of_curves
from reperfuse.perfusion.oscillation import OSCILLATION_LIMIT, oscillation_limit
from reperfuse.phantoms.curves import Curves, Population, drawn_curves, drawn_tissue

TRS_S, SNRS = (1.0, 1.5, 2.0, 3.0, 5.0), (20.0, 50.0, 100.0)
"""Cells of the comparison: TR [s] × S0/σ."""

OSCILLATION_LIMITS = (0.01, 0.02, 0.03, 0.06, 0.1, 0.2)
"""Limits of oSVD's oscillation index at TR 1.5 s, the best of which is taken; scaled with TR as `oscillation` does."""

LATE_S = 6.0
"""Tmax above it is late [s]."""

Arrays = Mapping[str, NDArray[Any]]

Method = Callable[[NDArray[np.float32], NDArray[np.float64], float, float], Arrays]
"""(curves (n, T) [1/s], AIF (T,), TR [s], noise [1/s]) to `delay` and `tmax` [s], and quantiles if it has them."""


@dataclass(frozen=True)
class Line:
    """offset + slope·x."""

    offset: float
    slope: float

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """The line at `values`, of any shape."""
        return self.offset + self.slope * values


def least_absolute_line(x: NDArray[Any], y: NDArray[Any]) -> Line:
    """The line with the least mean absolute error of y, shape (n,) both.

    Examples
    --------
    >>> x = np.arange(9.0)
    >>> line = least_absolute_line(x, np.where(x == 8, 99, 2 * x - 3))
    >>> round(line.offset, 3), round(line.slope, 3)
    (-3.0, 2.0)
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if np.ptp(x) == 0:
        return Line(float(np.median(y)), 0.0)

    def error(slope: float) -> float:
        rest = y - slope * x
        return float(np.abs(rest - np.median(rest)).mean())

    # With the best offset, a median, the error is convex in the slope; a linear program takes minutes instead.
    slope = float(minimize_scalar(error, options={"xtol": 1e-9}).x)
    return Line(float(np.median(y - slope * x)), slope)


def scans_of(
    population: Population, tr_s: float, snr: float, *, scans: int, voxels: int, first: int = 0
) -> list[Curves]:
    """Scans of one cell, from seeds `first` on."""
    return [drawn_curves(population, first + k, voxels, tr_s=tr_s, snr=snr) for k in range(scans)]


def measured(scan: Curves) -> NDArray[np.float32]:
    """ΔR2* from the noisy signal, shape (n, T) [1/s]."""
    return np.asarray(delta_r2star(scan.signal, scan.te_s, baseline=scan.baseline), dtype=np.float32)


def noise_free_tmax(scan: Curves) -> NDArray[np.float32]:
    """Tmax by oSVD of the curves without noise, shape (n,) [s]: what 6 s means to every method."""
    return maps_of_curves(scan.clean, scan.aif, scan.tr_s, method="osvd")["tmax"]


def osvd_of(curves: NDArray[Any], aif: NDArray[Any], dt: float, limit: float) -> NDArray[np.float32]:
    """Tmax by oSVD with a limit of the oscillation index stated for TR 1.5 s, shape (n,) [s]."""
    scaled = limit * oscillation_limit(dt) / OSCILLATION_LIMIT
    return maps_of_curves(curves, aif, dt, method="osvd", limit=scaled)["tmax"]


def osvd_tmax(scan: Curves, limit: float) -> NDArray[np.float32]:
    """`osvd_of` a scan as it is measured."""
    return osvd_of(measured(scan), scan.aif, scan.tr_s, limit)


@dataclass(frozen=True)
class Calibrated:
    """oSVD at its best: the limit of oscillation and the line that tell a quantity with the least mean error."""

    limit: float
    line: Line

    def __call__(self, scan: Curves) -> NDArray[Any]:
        """The quantity, shape (n,) [s]."""
        return self.line(osvd_tmax(scan, self.limit))


def calibrated_osvd(
    scans: Sequence[Curves], truth: Callable[[Curves], NDArray[Any]], limits: Sequence[float] = OSCILLATION_LIMITS
) -> Calibrated:
    """oSVD with the limit and the line that serve best on these scans."""
    return _best(_by_limit(scans, limits), np.concatenate([truth(scan) for scan in scans]))


def _by_limit(scans: Sequence[Curves], limits: Sequence[float]) -> dict[float, NDArray[np.float32]]:
    return {limit: np.concatenate([osvd_tmax(scan, limit) for scan in scans]) for limit in limits}


def _best(by_limit: Mapping[float, NDArray[np.float32]], true: NDArray[Any]) -> Calibrated:
    """The limit whose Tmax, on its best line, has the least mean absolute error."""
    lines = {limit: least_absolute_line(found, true) for limit, found in by_limit.items()}
    limit = min(lines, key=lambda limit: _error(lines[limit](by_limit[limit]), true))
    return Calibrated(limit, lines[limit])


def bayes_arrival(
    scan: Curves, population: Population, *, draws: int = 20000, flows: int = 24, blocks: int = 300, seed: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Posterior median of the delay, shape (n,) [s], by sampling the generator; and how many draws spoke.

    The artery is known, and known between frames as well; so are TE, the noise and every range that voxels are drawn
    from. Delay, MTT, residue function and dispersion are drawn; blood volume is summed over on `flows` values, evenly
    in its logarithm; S0 is unknown, with a flat prior, which integrates in closed form. Noise is taken as normal, which
    Rician noise is above SNR 5. The mean absolute error of this median is the least that any method can have, up to
    the error of sampling: too few draws that speak (the second array, Kish's effective number) make it too large.

    Parameters
    ----------
    scan
        With `facts["artery"]`.
    population
        What it was drawn from.
    """
    rng = np.random.default_rng([seed, 77])
    times = np.arange(scan.signal.shape[1]) * scan.tr_s
    unit, delay, _, _ = drawn_tissue(population, rng, draws, blocks, times, scan.facts["artery"])
    low, high = population.cbv
    signal = scan.signal.astype(np.float32)
    power = np.square(signal).sum(axis=1)
    likelihoods = []
    for step in range(flows):
        cbv = np.float32(low * (high / low) ** ((step + 0.5) / flows))
        expected = np.exp(-np.float32(scan.te_s) * cbv * unit)
        length = np.square(expected).sum(axis=1)[:, None]
        match = np.square(expected @ signal.T) / length
        likelihoods.append((match - power) * np.float32(scan.snr**2 / 2) - np.log(length) / 2)
    highest = np.max([part.max(axis=0) for part in likelihoods], axis=0)
    weight = np.zeros(likelihoods[0].shape)
    for part in likelihoods:
        weight += np.exp(part - highest)
    order = np.argsort(delay)
    below = np.cumsum(weight[order], axis=0)
    median = delay[order][np.argmax(below >= below[-1] / 2, axis=0)]
    return median, np.square(weight.sum(axis=0)) / np.square(weight).sum(axis=0)


def arrival_table(
    method: Method,
    judged: Population,
    calibrated_on: Population,
    *,
    trs_s: Sequence[float] = TRS_S,
    snrs: Sequence[float] = SNRS,
    scans: int = 20,
    voxels: int = 128,
    per_cell: bool = False,
    floor_scans: int = 0,
    draws: int = 20000,
    on_cell: Callable[[], None] | None = None,
) -> pd.DataFrame:
    """One row per cell: mean absolute errors of arrival and Tmax of the method, of calibrated oSVD, and the floor.

    Columns: `tr_s`, `snr`; `osvd_s`, `method_s`: error of arrival [s]; `floor_s`, `method_on_floor_s`: that of
    `bayes_arrival` and of the method on the first `floor_scans` scans, and `draws_that_speak`, their median number;
    `tmax_osvd_s`, `tmax_method_s`: error of Tmax against its noise-free value, oSVD calibrated to that; `covered_95`,
    `covered_68`: share of delays inside the method's intervals; `sensitivity_*`, `specificity_*` at Tmax > `LATE_S`;
    `limit`, `offset_s`, `slope`: what calibrated oSVD took; `n`, voxels.

    Parameters
    ----------
    method
        What is judged.
    judged, calibrated_on
        Populations; oSVD learns its limit and line on the second.
    trs_s, snrs
        Cells: TR [s] × S0/σ.
    scans, voxels
        Scans of a cell, and voxels of a scan, of either population.
    per_cell
        Whether oSVD has a limit and a line of its own in each cell, as if TR and SNR were known and calibrated for;
        else it has one of each for all, as the method has one set of weights.
    floor_scans, draws
        Scans of a cell that `bayes_arrival` is asked about, and its draws.
    on_cell
        Called after each cell.
    """
    rows: list[dict[str, float]] = []
    cells = tuple(itertools.product(trs_s, snrs))
    best = calibrations(calibrated_on, cells, scans, voxels, per_cell)
    for tr_s, snr in cells:
        arrival, tmax = best[tr_s, snr]
        cell = scans_of(judged, tr_s, snr, scans=scans, voxels=voxels)
        found = [method(measured(scan), scan.aif, scan.tr_s, scan.noise) for scan in cell]
        delay = np.concatenate([scan.delay for scan in cell])
        late = np.concatenate([noise_free_tmax(scan) for scan in cell])
        said = {name: np.concatenate([answer[name] for answer in found]) for name in found[0]}
        of_osvd = np.concatenate([tmax(scan) for scan in cell])
        row = {
            "tr_s": tr_s,
            "snr": snr,
            "osvd_s": _error(np.concatenate([arrival(scan) for scan in cell]), delay),
            "method_s": _error(said["delay"], delay),
            "tmax_osvd_s": _error(of_osvd, late),
            "tmax_method_s": _error(said["tmax"], late),
            "limit": arrival.limit,
            "offset_s": arrival.line.offset,
            "slope": arrival.line.slope,
            "n": len(delay),
        }
        if "delay_quantiles" in said:
            q = said["delay_quantiles"]
            row |= {
                "covered_95": _inside(delay, q[:, 0], q[:, -1]),
                "covered_68": _inside(delay, q[:, 1], q[:, -2]),
            }
        for name, values in (("osvd", of_osvd), ("method", said["tmax"])):
            row |= {
                f"sensitivity_{name}": float((values > LATE_S)[late > LATE_S].mean()),
                f"specificity_{name}": float((values <= LATE_S)[late <= LATE_S].mean()),
            }
        if floor_scans:
            medians, speaking = zip(
                *(bayes_arrival(scan, judged, draws=draws) for scan in cell[:floor_scans]), strict=True
            )
            part = slice(0, floor_scans * voxels)
            row |= {
                "floor_s": _error(np.concatenate(medians), delay[part]),
                "method_on_floor_s": _error(said["delay"][part], delay[part]),
                "draws_that_speak": float(np.median(np.concatenate(speaking))),
            }
        rows.append(row)
        if on_cell:
            on_cell()
    return pd.DataFrame(rows)


CALIBRATION_SEED = 1_000_000
"""Seeds of the scans that deconvolution is calibrated on: beyond those of any training."""


@cache
def calibrations(
    population: Population, cells: tuple[tuple[float, float], ...], scans: int, voxels: int, per_cell: bool
) -> dict[tuple[float, float], tuple[Calibrated, Calibrated]]:
    """oSVD at its best for arrival and for Tmax in each cell, as `arrival_table` describes it."""
    known = {cell: scans_of(population, *cell, scans=scans, voxels=voxels, first=CALIBRATION_SEED) for cell in cells}
    best: dict[tuple[float, float], tuple[Calibrated, Calibrated]] = {}
    for group in [[cell] for cell in cells] if per_cell else [cells]:
        together = [scan for cell in group for scan in known[cell]]
        found = _by_limit(together, OSCILLATION_LIMITS)
        truths = (lambda scan: scan.delay, noise_free_tmax)
        arrival, tmax = (_best(found, np.concatenate([truth(scan) for scan in together])) for truth in truths)
        best |= dict.fromkeys(group, (arrival, tmax))
    return best


def _error(found: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.abs(found - truth).mean())


def _inside(values: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> float:
    return float(((values >= low) & (values <= high)).mean())
