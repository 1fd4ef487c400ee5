import csv

import numpy as np
import pytest
from dsc_curves import artery, frame_times, shared_data, tissue

from reperfuse.errors import InputError
from reperfuse.perfusion.deconvolution import METHODS, lags, residue_function

DT = 1.5
TIMES = frame_times(60, DT)
AIF = artery(TIMES)
every_method = pytest.mark.parametrize("method", METHODS)
CIRCULANT = ["csvd"]
circulant = pytest.mark.parametrize("method", CIRCULANT)


def noisy_curves(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([tissue(TIMES, cbf=rng.uniform(10, 70), delay=rng.uniform(0, 5)) for _ in range(n)]) + rng.normal(
        0, 1e-3, (n, TIMES.size)
    )


# the contract every method inherits


@every_method
def test_shape_and_precision_follow_the_tissue(method):
    length = 2 * TIMES.size if method in CIRCULANT else TIMES.size
    for shape in [(), (3,), (2, 3, 4)]:
        curves = np.ones((*shape, TIMES.size), np.float32)
        found = residue_function(curves, AIF, DT, method)
        assert found.shape == (*shape, length) and found.dtype == np.float32
    assert residue_function(np.ones(TIMES.size, np.int16), AIF, DT, method).dtype == np.float64


@every_method
def test_it_is_linear_in_tissue(method):
    a, b = noisy_curves(2)
    together = residue_function(2 * a - 3 * b, AIF, DT, method)
    apart = 2 * residue_function(a, AIF, DT, method) - 3 * residue_function(b, AIF, DT, method)
    np.testing.assert_allclose(together, apart, atol=1e-12)


@every_method
def test_units_of_concentration_cancel_and_units_of_time_scale(method):
    curves = noisy_curves(3)
    found = residue_function(curves, AIF, DT, method)
    np.testing.assert_allclose(residue_function(40 * curves, 40 * AIF, DT, method), found, atol=1e-12)
    np.testing.assert_allclose(residue_function(curves, 5 * AIF, DT, method), found / 5, atol=1e-12)
    np.testing.assert_allclose(residue_function(curves, AIF, 2 * DT, method), found / 2, atol=1e-12)


@every_method
def test_each_curve_is_judged_alone(method):
    curves = noisy_curves(6)
    together = residue_function(curves.reshape(2, 3, -1), AIF, DT, method).reshape(6, -1)
    for curve, found in zip(curves, together, strict=True):
        np.testing.assert_allclose(residue_function(curve, AIF, DT, method), found, atol=1e-12)


@every_method
def test_more_regularisation_never_makes_a_larger_residue(method):
    curves = noisy_curves()
    norms = [
        np.linalg.norm(residue_function(curves, AIF, DT, method, threshold=t), axis=-1)
        for t in (0.01, 0.05, 0.1, 0.2, 0.4, 0.8)
    ]
    assert (np.diff(norms, axis=0) <= 1e-12).all() and (norms[-1] < norms[0]).all()


@every_method
def test_without_noise_and_regularisation_the_residue_is_recovered(method):
    residue = 0.01 * np.exp(-TIMES / 4)
    aif = artery(TIMES, arrival=-0.5, order=1, scale=2.0)  # nothing of it is zero: its matrix can be inverted
    curve = DT * np.convolve(aif, residue)[: TIMES.size]
    if method in CIRCULANT:  # the model of a circulant: the tissue returns to zero within the series
        curve = DT * np.convolve(aif, residue)
        aif = np.pad(aif, (0, curve.size - aif.size))
    found = residue_function(curve, aif, DT, method, threshold=1e-6)
    np.testing.assert_allclose(found[: TIMES.size], residue, atol=2e-4 if method in CIRCULANT else 1e-9)


@every_method
def test_on_smooth_flow_cbf_falls_short_but_follows_truth(method):
    flows = np.array([10, 20, 30, 40, 50, 60, 70.0])
    curves = np.stack([tissue(TIMES, cbf=f, mtt=240 / f) for f in flows])
    cbf = 6000 * residue_function(curves, AIF, DT, method).max(axis=-1)
    assert (np.diff(cbf) > 0).all()
    assert (cbf > 0.5 * flows).all() and (cbf < 1.05 * flows).all()


@every_method
def test_an_aif_without_signal_is_refused(method):
    with pytest.raises(InputError, match="zero everywhere; check the artery mask"):
        residue_function(AIF, 0 * AIF, DT, method)


@every_method
def test_nonsense_is_refused_by_name(method):
    with pytest.raises(InputError, match="NaN"):
        residue_function(AIF, AIF * np.nan, DT, method)
    for dt in (0, -1.5, np.nan):
        with pytest.raises(InputError, match="TR"):
            residue_function(AIF, AIF, dt, method)
    for threshold in (0, -0.1, 1.1, np.nan):
        with pytest.raises(InputError, match="threshold"):
            residue_function(AIF, AIF, DT, method, threshold=threshold)
    with pytest.raises(ValueError, match="shape"):
        residue_function(AIF[:-1], AIF, DT, method)


def test_an_unknown_method_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="ssvd, csvd"):
        residue_function(AIF, AIF, DT, "fourier")


# delay


@circulant
@pytest.mark.parametrize("mtt", [3.0, 6.0, 12.0])
def test_delay_of_either_sign_moves_the_residue_and_leaves_its_height_alone(method, mtt):
    delays = np.array([-6, -3, 0, 3, 6, 9.0])
    found = residue_function(np.stack([tissue(TIMES, mtt=mtt, delay=d) for d in delays]), AIF, DT, method)
    np.testing.assert_allclose(found.max(axis=-1), found[2].max(), rtol=0.01)
    tmax = lags(TIMES.size, DT, found.shape[-1])[found.argmax(axis=-1)]
    np.testing.assert_allclose(tmax - tmax[2], delays, atol=1e-9)


def test_plain_svd_cannot_tell_a_negative_delay():
    early, prompt = residue_function(np.stack([tissue(TIMES, delay=-6), tissue(TIMES)]), AIF, DT, "ssvd")
    assert early.max() > 1.5 * prompt.max()


@pytest.mark.parametrize("method", METHODS)
def test_tmax_follows_the_true_delay_with_an_offset_of_one_to_four_seconds(method):
    for delay in (0, 3, 6, 9):
        found = residue_function(tissue(TIMES, cbf=40, mtt=6, delay=delay), AIF, DT, method)
        assert 1 <= lags(TIMES.size, DT, found.size)[found.argmax()] - delay <= 4


def test_lags_above_half_are_negative():
    k = lags(60, DT, 120)
    assert k[60] == 90 and k[61] == -88.5 and k[119] == -1.5
    assert lags(60, DT, 60)[-1] == 88.5


# the OSIPI digital reference: TR 1.243 s, CNR 200, CBV 2 and 4, CBF 5 to 70


@pytest.fixture(scope="module")
def osipi():
    with open(shared_data("perfusion/osipi_dsc") / "dsc_data.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = np.array([row["C_tis"].split() for row in rows], float)
    aif = np.array(rows[0]["C_aif"].split(), float)
    return curves, aif, float(rows[0]["tr"]), *(np.array([float(row[name]) for row in rows]) for name in ("cbv", "cbf"))


@pytest.mark.realdata
@every_method
def test_osipi_cbf_is_within_the_published_tolerance_and_rises_with_truth(osipi, method):
    curves, aif, tr, cbv, truth = osipi
    cbf = 6000 * residue_function(curves, aif, tr, method).max(axis=-1)
    assert (np.abs(cbf - truth) <= 15 + 0.1 * truth).all()
    for group in (cbv == 2, cbv == 4):
        assert (np.diff(cbf[group]) > 0).all()


@pytest.mark.realdata
def test_osipi_cbv_carries_the_bias_of_the_rectangle_rule_its_curves_were_made_with(osipi):
    curves, aif, tr, truth, cbf = osipi
    cbv = 100 * curves.sum(axis=1) / aif.sum()
    assert (np.abs(cbv - truth) <= 1 + 0.1 * truth).all()
    expected = truth * (1 + tr / (2 * 60 * truth / cbf))
    assert np.mean(cbv / expected) == pytest.approx(1, abs=0.03)
