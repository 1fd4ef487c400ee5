"""Laws of the arterial inputs."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from reperfuse.phantoms.artery import (
    ARTERIAL_AREA,
    ARTERIAL_FAMILIES,
    WASHOUT_S,
    ArterialInput,
    arterial_concentration,
)

families = pytest.mark.parametrize("family", sorted(ARTERIAL_FAMILIES))
TIMES = np.arange(0, 60, 0.5)


@families
@pytest.mark.parametrize("width_s, shape, injection_s", [(2.0, 2.0, 3.0), (4.5, 5.0, 8.0)])
def test_first_pass_has_the_stated_area_whatever_its_form(family, width_s, shape, injection_s):
    aif = ArterialInput(family, 15.0, width_s, shape, injection_s)
    assert quad(aif.first_pass, 0, 100, points=[15, 25, 40], limit=200)[0] == pytest.approx(ARTERIAL_AREA, rel=1e-5)


@families
@pytest.mark.parametrize("washout", [0.0, 0.4, 1.0])
def test_whole_area_is_that_of_the_first_pass_and_the_stated_recirculation(family, washout):
    aif = ArterialInput(family, recirculation=0.3, washout=washout)
    fine = np.arange(0, 15 * WASHOUT_S, 0.01)
    assert aif(fine).sum() * 0.01 == pytest.approx(1.3 * ARTERIAL_AREA, rel=1e-4)
    assert aif.area == pytest.approx(1.3 * ARTERIAL_AREA)


@families
@pytest.mark.parametrize("late", [3.0, 12.0, 90.0])
def test_washout_equals_quadrature_of_its_convolution_with_an_exponential(family, late):
    first, washed_out = ARTERIAL_FAMILIES[family]
    how = (3.0, 3.0, 4.0)

    def integrand(u):
        return first(np.asarray(late - u), *how) * np.exp(-u / WASHOUT_S) / WASHOUT_S

    points = [u for u in (late - 20, late - 4) if 0 < u < late]
    expected = quad(integrand, 0, late + 20, points=points or None, limit=200)[0]
    assert washed_out(np.asarray(late), *how) == pytest.approx(expected, rel=1e-6)


def test_injection_equals_quadrature_of_a_boxcar_through_the_gamma_variate():
    gamma, boxcar = ArterialInput("gamma_variate"), ArterialInput("injection", injection_s=6.0)
    for t in (16.0, 20.0, 30.0):
        assert boxcar.first_pass(t) == pytest.approx(quad(gamma.first_pass, t - 6.0, t)[0] / 6.0, rel=1e-6)


@families
def test_recirculation_comes_after_the_first_pass_and_leaves_its_beginning_alone(family):
    once, again = ArterialInput(family, recirculation=0.0), ArterialInput(family, recirculation=0.4, washout=0.5)
    before = 15.0 + once.recirculation_delay_s > TIMES
    assert again(TIMES)[before] == pytest.approx(once(TIMES)[before], abs=0.01)
    assert (again(TIMES) >= once(TIMES)).all() and again(60.0) > once(60.0) + 0.01


@families
def test_concentration_is_never_negative_moves_with_the_arrival_and_scales_with_the_dose(family):
    aif = ArterialInput(family, recirculation=0.3, washout=0.5)
    assert aif(TIMES).min() >= 0 and np.isfinite(aif(TIMES)).all()
    assert replace(aif, arrival_s=19.5)(TIMES + 4.5) == pytest.approx(aif(TIMES))
    assert replace(aif, dose=2.0)(TIMES) == pytest.approx(2 * aif(TIMES))
    assert not replace(aif, dose=0.0)(TIMES).any()


@families
def test_nearly_nothing_comes_before_the_arrival(family):
    early = quad(ArterialInput(family).first_pass, 0, 15.0)[0]
    assert early < 0.0014 * ARTERIAL_AREA


@families
def test_a_wider_input_is_lower_at_the_same_area(family):
    peaks = [ArterialInput(family, width_s=width).first_pass(TIMES).max() for width in (2.0, 3.0, 4.0)]
    assert (np.diff(peaks) < 0).all()


def test_width_is_the_standard_deviation_of_the_first_pass():
    fine = np.arange(0, 120, 0.01)
    for family in ("gamma_variate", "gaussian"):
        ca = ArterialInput(family, width_s=2.7, shape=4.0).first_pass(fine)
        mean = np.average(fine, weights=ca)
        assert np.sqrt(np.average((fine - mean) ** 2, weights=ca)) == pytest.approx(2.7, rel=1e-3)


def test_gamma_variate_is_the_default_arterial_concentration():
    assert ArterialInput()(TIMES) == pytest.approx(arterial_concentration(TIMES), rel=1e-12)
