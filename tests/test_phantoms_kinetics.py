"""Laws of residue functions, tissue curves and the sinus, against closed forms and quadrature."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gammaincc

from reperfuse.phantoms.artery import ARTERIAL_FAMILIES, ArterialInput
from reperfuse.phantoms.kinetics import (
    RESIDUES,
    gamma_residue,
    residue_of_shape,
    residue_tmax,
    tissue_concentration,
    venous_concentration,
)

ONE = np.ones(1)
AIF = ArterialInput(recirculation=0.2, washout=0.5)
SHAPES = (0.7, 1.0, 2.0, 3.5, 8.0)
CLOSED = {
    "exponential": lambda t, mtt: np.exp(-t / mtt),
    "gamma": lambda t, mtt: (1 + 2 * t / mtt) * np.exp(-2 * t / mtt),
    "lorentzian": lambda t, mtt: 1 / (1 + (np.pi * t / (2 * mtt)) ** 2),
    "box": lambda t, mtt: float(t < mtt),
}


def curve(cbf=60.0, mtt=5.0, delay=0.0, times=None, aif=AIF, **keywords):
    times = np.arange(0, 90, 1.5) if times is None else times
    return tissue_concentration(cbf * ONE, mtt * ONE, delay * ONE, times, aif, **keywords)[0]


def convolution(t, residue, mtt, delay):
    def integrand(u):
        return AIF(np.asarray(t - u)) * residue(u - delay, mtt)

    return quad(integrand, delay, t - 10, points=[p for p in (delay + mtt, t - 30) if delay < p < t - 10], limit=300)[0]


@pytest.mark.parametrize("residue", sorted(RESIDUES))
@pytest.mark.parametrize("delay", [-3.0, 2.7, 15.0])
def test_tissue_curve_equals_quadrature_of_the_convolution_with_the_closed_form(residue, delay):
    times = np.array([21.0, 27.0, 40.5, 70.0])
    expected = [60 / 6000 * convolution(t, CLOSED[residue], 6.0, delay) for t in times]
    assert curve(mtt=6.0, delay=delay, times=times, residue=residue) == pytest.approx(expected, abs=1e-3 * 0.2)


@pytest.mark.parametrize("alpha", SHAPES)
def test_tissue_curve_of_the_gamma_family_equals_quadrature_with_the_incomplete_gamma_function(alpha):
    times = np.array([21.0, 27.0, 40.5])
    expected = [60 / 6000 * convolution(t, lambda u, m: gammaincc(alpha, alpha * u / m), 6.0, 1.3) for t in times]
    found = curve(mtt=6.0, delay=1.3, times=times, residue=gamma_residue(alpha))
    assert found == pytest.approx(expected, abs=1e-3 * 0.2)


@pytest.mark.parametrize("alpha, name", [(1.0, "exponential"), (2.0, "gamma")])
def test_gamma_family_holds_the_exponential_and_the_gamma_residue(alpha, name):
    t, mtt = np.linspace(0, 60, 500), 7.0 * ONE
    assert gamma_residue(alpha)(t, mtt) == pytest.approx(RESIDUES[name](t, mtt), abs=1e-4)


def test_gamma_family_tends_to_the_box():
    t, mtt = np.linspace(0, 30, 500), 7.0 * ONE
    apart = [np.abs(gamma_residue(alpha)(t, mtt) - RESIDUES["box"](t, mtt)).max() for alpha in (2, 8, 32, 128)]
    assert (np.diff(apart) < 0).all() and apart[-1] < 0.3


@pytest.mark.parametrize("alpha", SHAPES)
@pytest.mark.parametrize("mtt", [2.0, 20.0])
def test_residue_integrals_of_the_family_begin_with_slope_one_end_at_mtt_and_never_fall(alpha, mtt):
    t = np.linspace(0, 100 * mtt, 4000)
    q = gamma_residue(alpha)(t, mtt * ONE)
    slope = gamma_residue(alpha)(np.array([1e-3]), mtt * ONE)[0] / 1e-3
    assert q[0] == 0 and q[-1] == pytest.approx(mtt, rel=1e-4) and np.diff(q).min() >= -1e-6
    # Below a shape of one, some blood passes at once and R falls steeply from the first instant.
    assert slope == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("alpha", SHAPES)
@pytest.mark.parametrize("mtt, cbv", [(2.0, 8.0), (20.0, 1.0)])
def test_area_under_the_tissue_curve_is_cbv_times_the_area_of_the_aif(alpha, mtt, cbv):
    times = np.arange(0, 1000.0)
    c = curve(60 * cbv / mtt, mtt, 3.3, times, residue=gamma_residue(alpha), step_s=0.5)
    assert 100 * c.sum() / AIF.area == pytest.approx(cbv, rel=3e-3)


@pytest.mark.parametrize("family", sorted(ARTERIAL_FAMILIES))
def test_delay_shifts_the_curve_for_every_arterial_family(family):
    aif, times = ArterialInput(family), np.arange(0, 90, 1.5)
    early, late = curve(times=times, aif=aif, delay=-3.0), curve(times=times, aif=aif, delay=9.0)
    assert late[8:] == pytest.approx(early[:-8], abs=2e-4 * float(early.max()))


def test_dispersion_equals_quadrature_with_the_dispersed_residue_and_cellwise_is_half_a_cell_early():
    mtt, mean = 6.0, 2.0

    # ∫ e^(−s/m)·e^(−(u−s)/d)/d ds over 0..u = m/(m − d)·(e^(−u/m) − e^(−u/d)).
    def expected_residue(u, m):
        return m / (m - mean) * (np.exp(-u / m) - np.exp(-u / mean))

    times = np.array([21.0, 27.0, 40.5])
    expected = [60 / 6000 * convolution(t, expected_residue, mtt, 1.0) for t in times]
    assert curve(mtt=mtt, delay=1.0, times=times, dispersion_s=mean) == pytest.approx(expected, rel=1e-3)
    early = curve(mtt=mtt, delay=1.0, times=times, dispersion_s=mean, transport="cellwise")
    late = curve(mtt=mtt, delay=1.05, times=times, dispersion_s=mean, transport="cellwise")
    assert early != pytest.approx(expected, rel=0.01) and late == pytest.approx(expected, rel=1e-3)


def test_tmax_of_the_gamma_family_lies_between_its_neighbours():
    found = [residue_tmax(8 * ONE, 0 * ONE, residue=gamma_residue(alpha))[0] for alpha in (1.0, 2.0, 4.0, 16.0)]
    assert (np.diff(found) > 0).all()
    assert found[0] == pytest.approx(residue_tmax(8 * ONE, 0 * ONE)[0], abs=0.02)
    assert found[1] == pytest.approx(residue_tmax(8 * ONE, 0 * ONE, residue="gamma")[0], abs=0.02)


@pytest.mark.parametrize("lag_s, spread_s", [(3.0, 1.5), (6.0, 4.0)])
def test_sinus_carries_the_area_of_the_artery_later_and_wider(lag_s, spread_s):
    times, aif = np.arange(0, 150, 0.5), ArterialInput()
    ca, cv = aif(times), venous_concentration(times, aif, lag_s=lag_s, spread_s=spread_s)

    def moments(c):
        mean = np.average(times, weights=c)
        return mean, np.average((times - mean) ** 2, weights=c)

    (before, width), (after, wider) = moments(ca), moments(cv)
    assert cv.sum() == pytest.approx(ca.sum(), rel=1e-3)
    assert after - before == pytest.approx(lag_s, abs=0.01)
    assert wider - width == pytest.approx(spread_s**2, rel=0.01)
    assert cv.max() < ca.max()


def test_only_gamma_has_a_shape():
    assert residue_of_shape("box", 3.0) == "box" and residue_of_shape("gamma", None) == "gamma"
    assert callable(residue_of_shape("gamma", 3.0))
    with pytest.raises(ValueError, match="positive"):
        gamma_residue(0.0)
