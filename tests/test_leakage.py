import numpy as np
import pytest
from dsc_curves import artery, frame_times, tissue

from reperfuse.errors import InputError
from reperfuse.perfusion.concentration import delta_r2star
from reperfuse.perfusion.leakage import leakage_correction, leakage_reference
from reperfuse.phantoms.drawn import drawn_phantom

DT = 1.5
TIMES = frame_times()
AS_PUBLISHED = {"delays_s": (0.0,), "spreads_s": (0.0,)}


def healthy(mtt=4.0, delay=0.0, cbv=4.0):
    """ΔR2* of tissue; at CBV 4 and MTT 4 its peak is 17 1/s."""
    return 600 * (
        tissue(TIMES, cbf=60 * cbv / mtt, mtt=mtt, delay=delay)
        + 0.1 * tissue(TIMES, cbf=60 * cbv / mtt, mtt=mtt, delay=delay + 14, scale=3.0)
    )


REFERENCE = healthy()


def running_area(curve):
    return np.concatenate([[0], np.cumsum((curve[1:] + curve[:-1]) / 2 * DT)])


def leaky(k2, curve=REFERENCE, k1=1.0):
    return k1 * curve - k2 * running_area(curve)


def noisy(curves, snr=50, te=0.03, seed=0):
    """ΔR2* as measured at S0/σ = snr."""
    signal = np.exp(-te * curves) + np.random.default_rng(seed).normal(0, 1 / snr, curves.shape)
    return -np.log(np.maximum(signal, 0.02)) / te


@pytest.mark.parametrize("how", [{}, AS_PUBLISHED])
@pytest.mark.parametrize("k1", [0.5, 1.0, 3.0])
def test_where_nothing_leaks_curves_stay_as_they_are(k1, how):
    corrected, found_k1, k2 = leakage_correction(k1 * REFERENCE, DT, REFERENCE, **how)
    np.testing.assert_allclose(corrected, k1 * REFERENCE, atol=1e-4)
    assert (found_k1, k2) == (pytest.approx(k1, abs=1e-4), pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize("how", [{}, AS_PUBLISHED])
@pytest.mark.parametrize("k2", [-0.03, -0.005, 0.005, 0.03])
def test_leakage_of_either_sign_is_recovered_and_taken_out(k2, how):
    corrected, k1, found = leakage_correction(leaky(k2, k1=2.0), DT, REFERENCE, **how)
    assert (k1, found) == (pytest.approx(2, abs=1e-3), pytest.approx(k2, abs=1e-5))
    np.testing.assert_allclose(corrected, 2 * REFERENCE, atol=2e-3)


def test_leakage_of_late_tissue_is_recovered_too():
    late = healthy(delay=6.0)
    corrected, _, k2 = leakage_correction(leaky(0.01, late), DT, REFERENCE)
    assert k2 == pytest.approx(0.01, abs=1e-4)
    assert corrected.sum() == pytest.approx(late.sum(), rel=0.01)


@pytest.mark.parametrize("how", [{}, AS_PUBLISHED])
def test_the_unit_of_concentration_does_not_matter(how):
    curves = np.stack([leaky(0.01), healthy(mtt=8.0), healthy(delay=4.0)])
    corrected, k1, k2 = leakage_correction(curves, DT, REFERENCE, **how)
    scaled = leakage_correction(40 * curves, DT, 40 * REFERENCE, **how)
    np.testing.assert_allclose(scaled[0], 40 * corrected, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(scaled[1:], [k1, k2], rtol=1e-3, atol=1e-5)


def test_with_one_passage_the_correction_is_linear_in_the_tissue():
    a, b = leaky(0.02), healthy(mtt=9.0)
    parts = [leakage_correction(x, DT, REFERENCE, **AS_PUBLISHED) for x in (a, b, 2 * a + b)]
    for of_a, of_b, of_sum in zip(*parts, strict=True):
        np.testing.assert_allclose(of_sum, 2 * of_a + of_b, atol=1e-3)


def test_twice_the_interval_halves_k2():
    k2 = leakage_correction(leaky(0.01), DT, REFERENCE, **AS_PUBLISHED)[2]
    assert leakage_correction(leaky(0.01), 2 * DT, REFERENCE, **AS_PUBLISHED)[2] == pytest.approx(k2 / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("mtt", "delay", "published", "ours"), [(10.0, 0.0, -0.2, 0.15), (4.0, 3.0, -0.15, 0.02), (4.0, 8.0, -0.5, 0.06)]
)
def test_long_and_late_transit_passes_for_leakage_as_published_and_hardly_with_its_own_transit(
    mtt, delay, published, ours
):
    curve = healthy(mtt, delay)

    def change_of_cbv(**how):
        return leakage_correction(curve, DT, REFERENCE, **how)[0].sum() / curve.sum() - 1

    assert change_of_cbv(**AS_PUBLISHED) < published
    assert abs(change_of_cbv()) < ours


def test_choosing_the_transit_costs_little_noise():
    curves = noisy(np.tile(REFERENCE, (500, 1)))
    spread = [leakage_correction(curves, DT, REFERENCE, **how)[0].sum(axis=1).std() for how in ({}, AS_PUBLISHED)]
    assert spread[0] < 1.2 * spread[1]


@pytest.fixture(scope="module")
def brain():
    """600 healthy voxels, 60 leaking with either sign, 60 of CSF, 20 of vessel."""
    blood = np.random.default_rng(5).uniform(1.5, 5, 600)
    leaking = [leaky(k2) for k2 in (-0.03, 0.03) for _ in range(30)]
    vessel = 90 * (artery(TIMES) + 0.1 * artery(TIMES, arrival=29.0, scale=3.0))
    curves = [healthy(cbv=b) for b in blood] + leaking + [0 * TIMES] * 60 + [vessel] * 20
    kinds = np.repeat(["healthy", "leaking", "csf", "vessel"], [600, 60, 60, 20])
    return noisy(np.stack(curves)), kinds


def test_the_reference_is_healthy_tissue(brain):
    curves, kinds = brain
    chosen = leakage_reference(curves)
    assert set(kinds[chosen]) == {"healthy"}
    assert chosen[kinds == "healthy"].mean() > 0.5


def test_with_the_reference_it_finds_itself_leakage_vanishes_from_blood_volume(brain):
    curves, kinds = brain
    corrected, _, k2 = leakage_correction(curves, DT, leakage_reference(curves))
    area = corrected[kinds == "leaking"].sum(axis=1).reshape(2, 30).mean(axis=1)
    np.testing.assert_allclose(area, REFERENCE.sum(), rtol=0.05)
    # The reference holds 3.25/4 of the blood that leaks here.
    found = k2[kinds == "leaking"].reshape(2, 30).mean(axis=1)
    np.testing.assert_allclose(found / found[1], [-1, 1], atol=0.1)
    assert abs(k2[kinds == "healthy"].mean()) < 0.001


@pytest.mark.parametrize("k2", [-0.02, 0.02])
def test_on_a_patient_the_bias_of_blood_volume_falls_to_a_third(k2):
    phantom = drawn_phantom(3, (32, 32, 6), k2=k2, snr=80.0, jumps=0, drift_mm=0.0, lesion=True)
    solid = np.isin(phantom.truth["tissue"], (1, 2)) & (phantom.truth["cbv"] > 0)
    curves, cbv = delta_r2star(phantom.signal.data[solid], phantom.signal.te_s), phantom.truth["cbv"][solid]
    leaks = phantom.truth["k2"][solid] != 0
    corrected = leakage_correction(curves, phantom.signal.tr_s, leakage_reference(curves))[0]

    def bias(found):
        area = found.sum(axis=1)
        return abs(area[leaks].sum() / area[~leaks].sum() * cbv[~leaks].sum() / cbv[leaks].sum() - 1)

    assert bias(curves) > 0.4
    assert bias(corrected) < bias(curves) / 3


def test_any_shape_of_voxels_is_kept():
    curves = np.broadcast_to(leaky(0.01), (2, 3, 4, 60))
    corrected, k1, k2 = leakage_correction(curves, DT, REFERENCE)
    assert corrected.shape == (2, 3, 4, 60) and k1.shape == k2.shape == (2, 3, 4)
    assert corrected.dtype == k2.dtype == np.float32


@pytest.mark.parametrize(
    ("words", "dt", "reference"),
    [
        ("repetition time", 0.0, REFERENCE),
        ("no positive area", DT, 0 * REFERENCE),
        ("no positive area", DT, np.nan * REFERENCE),
        ("no voxel", DT, np.zeros(2, bool)),
    ],
)
def test_what_cannot_be_a_reference_is_refused(words, dt, reference):
    with pytest.raises(InputError, match=words):
        leakage_correction(np.stack([REFERENCE, REFERENCE]), dt, reference)


def test_a_brain_without_perfusion_has_no_reference():
    with pytest.raises(InputError, match="Too few voxels"):
        leakage_reference(np.zeros((50, 60)))


def test_a_reference_of_another_length_is_a_mistake():
    with pytest.raises(ValueError, match="40"):
        leakage_correction(REFERENCE[None], DT, REFERENCE[:40])
