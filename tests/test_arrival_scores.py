"""How well arrival is told: the line, calibrated deconvolution, the posterior by sampling, and the table of them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from reperfuse.evaluation import arrival
from reperfuse.evaluation.arrival import (
    CALIBRATION_SEED,
    OSCILLATION_LIMITS,
    arrival_table,
    bayes_arrival,
    calibrated_osvd,
    least_absolute_line,
    measured,
    noise_free_tmax,
    osvd_tmax,
    scans_of,
)
from reperfuse.networks import learned_folder, load_network
from reperfuse.perfusion.maps import maps_of_curves
from reperfuse.perfusion.oscillation import OSCILLATION_LIMIT
from reperfuse.phantoms.curves import HELD_OUT, TRAINING, Curves, drawn_curves
from reperfuse.stages.pretrain import answers_of

TRS_S, SNRS = (1.5, 3.0), (20.0, 80.0)
CELLS = list(product(TRS_S, SNRS))
SCANS, VOXELS = 3, 32


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The arrays are so small that threads would only wait for one another."""
    with threadpool_limits(1):
        yield


# ---- the line --------------------------------------------------------------------------------------------------------
def mean_error(line: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    return float(np.abs(line(x) - y).mean())


@pytest.mark.parametrize("seed", range(6))
def test_no_line_has_a_smaller_mean_absolute_error(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 15, 24)
    y = 1 + 0.8 * x + rng.standard_cauchy(24)
    found = mean_error(least_absolute_line(x, y), x, y)
    # The optimum of this linear programme goes through two of the points.
    through_two = []
    for i, j in combinations(range(24), 2):
        slope = (y[j] - y[i]) / (x[j] - x[i])
        through_two.append(np.abs(y[i] + slope * (x - x[i]) - y).mean())
    assert found == pytest.approx(min(through_two), rel=1e-6)


def test_line_through_values_that_are_all_the_same_is_their_median():
    y = np.array([0.0, 1, 2, 3, 90])
    assert least_absolute_line(np.full(5, 2.0), y)(np.array([2.0])) == pytest.approx([2])


# ---- calibrated deconvolution ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def scans() -> list[Curves]:
    return scans_of(TRAINING, 2.0, 30.0, scans=4, voxels=48, first=CALIBRATION_SEED)


@pytest.mark.parametrize("tr_s", [1.0, 1.5, 4.0])
def test_limit_of_the_program_is_among_those_that_calibration_tries_at_any_frame_interval(tr_s):
    scan = drawn_curves(TRAINING, CALIBRATION_SEED, 24, tr_s=tr_s, snr=30.0)
    assert OSCILLATION_LIMIT in OSCILLATION_LIMITS
    by_itself = maps_of_curves(measured(scan), scan.aif, tr_s, method="osvd")["tmax"]
    assert np.array_equal(osvd_tmax(scan, OSCILLATION_LIMIT), by_itself)
    assert not np.array_equal(osvd_tmax(scan, 4 * OSCILLATION_LIMIT), by_itself)


@pytest.mark.parametrize("limit", [0.01, 0.06, 0.2])
@pytest.mark.parametrize("quantity", ["delay", "tmax"])
def test_calibration_takes_the_best_of_the_limits_and_lines(scans, quantity, limit):
    truth = {"delay": lambda scan: scan.delay, "tmax": noise_free_tmax}[quantity]
    limits = [found for found in OSCILLATION_LIMITS if found != limit]  # so that another one is best at times
    chosen = calibrated_osvd(scans, truth, limits)
    true = np.concatenate([truth(scan) for scan in scans])
    errors = {}
    for offered in limits:
        found = np.concatenate([osvd_tmax(scan, offered) for scan in scans])
        errors[offered] = mean_error(least_absolute_line(found, true), found, true)
    assert chosen.limit == min(errors, key=errors.__getitem__)
    achieved = np.abs(np.concatenate([chosen(scan) for scan in scans]) - true).mean()
    assert achieved == pytest.approx(min(errors.values()))


def test_truth_that_is_a_line_of_one_limits_tmax_is_recovered_without_error(scans):
    found = calibrated_osvd(scans, lambda scan: 3 + 0.5 * osvd_tmax(scan, 0.06))
    assert found.limit == 0.06
    assert (found.line.offset, found.line.slope) == pytest.approx((3, 0.5), abs=1e-5)
    assert found(scans[0]) == pytest.approx(3 + 0.5 * osvd_tmax(scans[0], 0.06), abs=1e-4)


# ---- the posterior by sampling ---------------------------------------------------------------------------------------
def test_where_no_blood_flows_the_posterior_is_the_prior():
    dry = replace(TRAINING, name="dry", cbv=(1e-7, 1e-6))
    scan = drawn_curves(dry, 0, 20, tr_s=2.0, snr=20.0)
    median, speaking = bayes_arrival(scan, dry, draws=4000)
    low, high = dry.delay_s
    assert median == pytest.approx((low + high) / 2, abs=0.5)
    assert speaking == pytest.approx(4000, rel=0.01)


def test_where_all_but_the_delay_is_known_the_median_is_near_it():
    plain = replace(
        TRAINING, name="plain", residues=("exponential",), mtt_s=(5.0, 5.0), cbv=(4.0, 4.0), dispersed_share=0.0
    )
    scan = drawn_curves(plain, 1, 60, tr_s=1.0, snr=150.0)
    median, speaking = bayes_arrival(scan, plain, draws=6000)
    assert np.abs(median - scan.delay).max() < 0.25
    assert speaking.max() < 600


def test_unit_of_the_signal_is_of_no_effect_and_the_seed_alone_decides_what_is_drawn():
    scan = drawn_curves(HELD_OUT, 2, 20, tr_s=2.0, snr=20.0)
    median, speaking = bayes_arrival(scan, HELD_OUT, draws=2000)
    scaled, same = bayes_arrival(replace(scan, signal=8 * scan.signal, snr=scan.snr / 8), HELD_OUT, draws=2000)
    assert np.array_equal(scaled, median) and same == pytest.approx(speaking, rel=1e-3)
    again, other = (bayes_arrival(scan, HELD_OUT, draws=2000, seed=seed)[0] for seed in (1, 2))
    assert np.array_equal(again, median) and not np.array_equal(other, median)


@pytest.fixture(scope="module")
def dim() -> list[Curves]:
    """Scans with so much noise that many draws speak; every fourth voxel has its own residue function."""
    return [drawn_curves(HELD_OUT, CALIBRATION_SEED + k, 96, blocks=24, tr_s=3.0, snr=15.0) for k in range(6)]


@pytest.fixture(scope="module")
def floor(dim: list[Curves]) -> tuple[np.ndarray, np.ndarray]:
    found = [bayes_arrival(scan, HELD_OUT, draws=6000) for scan in dim]
    return np.array([median for median, _ in found]), np.array([speaking for _, speaking in found])


def test_nothing_tells_arrival_better_than_the_posterior_where_many_draws_speak(dim, floor):
    medians, speaking = floor
    assert np.median(speaking) > 300
    truth = np.array([scan.delay for scan in dim])
    network = answers_of(load_network(learned_folder())[0])
    learned = np.array([network(measured(scan), scan.aif, scan.tr_s, scan.noise)["delay"] for scan in dim])
    osvd = calibrated_osvd(dim, lambda scan: scan.delay)  # on the very scans that it is judged on
    deconvolved = np.array([osvd(scan) for scan in dim])
    bayes = np.abs(medians - truth).mean()
    assert 0.5 < bayes < 1.02 * np.abs(learned - truth).mean()
    assert bayes < 0.9 * np.abs(deconvolved - truth).mean()


def test_half_of_the_truths_lie_below_the_median_of_the_posterior(dim, floor):
    truth = np.array([scan.delay for scan in dim])
    assert (truth < floor[0]).mean() == pytest.approx(0.5, abs=0.08)  # 0.02 by chance, were all voxels independent
    early = truth < 6  # and the posterior leans to the middle, as a posterior must
    assert (floor[0] - truth)[early].mean() > (floor[0] - truth)[~early].mean()


# ---- the table -------------------------------------------------------------------------------------------------------
def oracle(judged: list[Curves], answer: Callable[[Curves], dict[str, Any]]) -> arrival.Method:
    """A method that knows the scans it is asked about."""
    known = {measured(scan).tobytes(): scan for scan in judged}

    def method(curves: np.ndarray, aif: np.ndarray, tr_s: float, noise: float) -> dict[str, Any]:
        scan = known[curves.tobytes()]
        assert np.array_equal(aif, scan.aif) and (tr_s, noise) == (scan.tr_s, scan.noise)
        return answer(scan)

    return method


@pytest.fixture(scope="module")
def judged() -> list[Curves]:
    return [scan for cell in CELLS for scan in scans_of(HELD_OUT, *cell, scans=SCANS, voxels=VOXELS)]


def table_of(judged: list[Curves], answer: Callable[[Curves], dict[str, Any]], **options: Any) -> pd.DataFrame:
    return arrival_table(
        oracle(judged, answer), HELD_OUT, TRAINING, trs_s=TRS_S, snrs=SNRS, scans=SCANS, voxels=VOXELS, **options
    )


def perfect(scan: Curves) -> dict[str, Any]:
    return {"delay": scan.delay, "tmax": noise_free_tmax(scan)}


def test_method_that_knows_the_truth_has_no_error_and_one_that_is_off_is_off_by_as_much(judged):
    scores = table_of(judged, perfect)
    assert scores[["tr_s", "snr"]].to_numpy().tolist() == [list(cell) for cell in CELLS]
    assert (scores["n"] == SCANS * VOXELS).all()
    assert (scores[["method_s", "tmax_method_s"]] == 0).all(axis=None)
    assert (scores[["sensitivity_method", "specificity_method"]] == 1).all(axis=None)
    assert (scores[["osvd_s", "tmax_osvd_s"]] > 0.1).all(axis=None)
    assert not {"covered_95", "covered_68", "floor_s"} & set(scores)
    off = table_of(judged, lambda scan: {"delay": scan.delay - 1.5, "tmax": noise_free_tmax(scan) + 100})
    assert off["method_s"].to_numpy() == pytest.approx(1.5) and off["tmax_method_s"].to_numpy() == pytest.approx(100)
    assert (off["sensitivity_method"] == 1).all() and (off["specificity_method"] == 0).all()


def test_share_inside_the_intervals_is_counted(judged):
    def answer(scan: Curves) -> dict[str, Any]:
        rank = np.arange(VOXELS)
        outside = np.where(rank < VOXELS // 8, 3.5, np.where(rank < VOXELS // 2, 2.5, 1.5))  # of 95 %, 68 %, quartiles
        shift = outside * (-1) ** rank
        quantiles = (scan.delay + shift)[:, None] + np.arange(-3, 4)
        return perfect(scan) | {"delay_quantiles": quantiles}

    scores = table_of(judged, answer)
    assert (scores["covered_95"] == 7 / 8).all() and (scores["covered_68"] == 1 / 2).all()


def test_deconvolution_is_calibrated_on_other_scans_together_or_in_each_cell(judged):
    known = {cell: scans_of(TRAINING, *cell, scans=SCANS, voxels=VOXELS, first=CALIBRATION_SEED) for cell in CELLS}
    together, apart = (table_of(judged, perfect, per_cell=per_cell) for per_cell in (False, True))
    of_all = calibrated_osvd([scan for cell in CELLS for scan in known[cell]], lambda scan: scan.delay)
    for place, cell in enumerate(CELLS):
        here = judged[place * SCANS : (place + 1) * SCANS]
        for scores, expected in (
            (together, of_all),
            (apart, calibrated_osvd(known[cell], lambda scan: scan.delay)),
        ):
            row = scores.iloc[place]
            assert row["limit"] == expected.limit
            assert (row["offset_s"], row["slope"]) == pytest.approx((expected.line.offset, expected.line.slope))
            error = np.abs(np.concatenate([expected(scan) - scan.delay for scan in here])).mean()
            assert row["osvd_s"] == pytest.approx(error)
    assert together["slope"].nunique() == 1 and apart["slope"].nunique() == len(CELLS)


def test_late_tissue_of_deconvolution_is_counted_on_its_calibrated_tmax(judged):
    row = table_of(judged, perfect, per_cell=True).iloc[0]
    known = scans_of(TRAINING, *CELLS[0], scans=SCANS, voxels=VOXELS, first=CALIBRATION_SEED)
    tmax = calibrated_osvd(known, noise_free_tmax)
    found, true = (np.concatenate([of(scan) for scan in judged[:SCANS]]) for of in (tmax, noise_free_tmax))
    assert row["tmax_osvd_s"] == pytest.approx(np.abs(found - true).mean())
    assert row["sensitivity_osvd"] == pytest.approx(np.mean(found[true > 6] > 6))
    assert row["specificity_osvd"] == pytest.approx(np.mean(found[true <= 6] <= 6))


def test_no_scan_that_is_judged_is_one_that_deconvolution_was_calibrated_on(monkeypatch):
    drawn = []

    def spy(population, seed, voxels, **fixed):
        drawn.append((population.name, seed, *fixed.values()))
        return drawn_curves(population, seed, voxels, **fixed)

    monkeypatch.setattr(arrival, "drawn_curves", spy)
    zeros = lambda curves, aif, tr_s, noise: dict.fromkeys(("delay", "tmax"), np.zeros(len(curves)))  # noqa: E731
    own = replace(TRAINING, name="own")  # not asked about by another test, so that nothing is remembered
    arrival_table(zeros, own, own, trs_s=TRS_S, snrs=(50.0,), scans=SCANS, voxels=16)
    assert len(drawn) == len(set(drawn)) == 2 * len(TRS_S) * SCANS


def test_floor_is_that_of_the_first_scans_and_every_cell_is_told_once(judged, monkeypatch):
    asked, told = [], []

    def off_by_a_quarter(scan, population, *, draws):
        asked.append((scan.tr_s, scan.snr, population.name, draws))
        return scan.delay + 0.25, np.full(len(scan.delay), 42.0)

    monkeypatch.setattr(arrival, "bayes_arrival", off_by_a_quarter)
    off = {id(scan): float(n % SCANS) for n, scan in enumerate(judged)}  # by 0, 1 and 2 s in the scans of a cell
    scores = table_of(
        judged,
        lambda scan: perfect(scan) | {"delay": scan.delay + off[id(scan)]},
        floor_scans=2,
        draws=7,
        on_cell=lambda: told.append(len(asked)),
    )
    assert asked == [(*cell, "held-out", 7) for cell in CELLS for _ in range(2)]
    assert told == [2, 4, 6, 8]
    assert scores["floor_s"].to_numpy() == pytest.approx(0.25) and (scores["draws_that_speak"] == 42).all()
    assert scores["method_on_floor_s"].to_numpy() == pytest.approx(0.5)
    assert scores["method_s"].to_numpy() == pytest.approx(1.0)
