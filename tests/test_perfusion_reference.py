"""What docs/perfusion.md claims, kept true, on two published references and our phantom.

The tables themselves: benchmarks/perfusion_accuracy.py.
"""

import numpy as np
import pytest
from dsc_curves import shared_data

from benchmarks import perfusion_references as reference
from reperfuse.imaging.volume import Volume
from reperfuse.perfusion.deconvolution import METHODS
from reperfuse.perfusion.maps import maps_of_curves, perfusion_maps
from reperfuse.phantoms.series import K_TISSUE
from reperfuse.phantoms.voxels import voxel_phantom

AIF = reference.KAPPA_TISSUE * reference.arterial(reference.times())
DELAY_SAFE = [method for method in METHODS if method != "ssvd"]
every_method = pytest.mark.parametrize("method", METHODS)
delay_safe = pytest.mark.parametrize("method", DELAY_SAFE)


def maps_without_noise(method, cbf, delays, dispersion=0.0):
    curves = np.array([reference.clean(delay, dispersion, cbf) for delay in delays])
    return maps_of_curves(curves, AIF, reference.TR_S, method=method, hematocrit_correction=False)


def maps_of_reference(method, delay, dispersion, cbf):
    shared_data("perfusion/dro_delay_dispersion")
    signal = reference.measured(delay, dispersion, cbf)
    volume = Volume(signal, np.eye(4), te_s=reference.TE_S, tr_s=reference.TR_S)
    brain = np.ones(signal.shape[:3], bool)
    found = perfusion_maps(volume, method=method, mask=brain, aif=AIF, hematocrit_correction=False)
    return {name: image[brain] for name, image in found.items()}


# OSIPI: 14 curves, no delay


@pytest.fixture(scope="module")
def osipi():
    shared_data("perfusion/osipi_dsc")
    return reference.osipi()


@pytest.mark.realdata
@every_method
def test_osipi_maps_are_within_the_published_tolerances_and_flow_rises_with_truth(osipi, method):
    found = maps_of_curves(osipi.curves, osipi.aif, osipi.dt, method=method, hematocrit_correction=False)
    assert (np.abs(found["cbf"] - osipi.cbf) <= 15 + 0.1 * osipi.cbf).all()
    assert (np.abs(found["cbv"] - osipi.cbv) <= 1 + 0.1 * osipi.cbv).all()
    for volume in (2, 4):
        assert (np.diff(found["cbf"][osipi.cbv == volume]) > 0).all()
    assert np.mean(found["cbv"] / osipi.cbv_by_rectangle) == pytest.approx(1, abs=0.03)


@pytest.mark.realdata
def test_csvd_at_the_usual_threshold_of_0_2_cannot_reach_the_highest_flow(osipi):
    found = maps_of_curves(osipi.curves, osipi.aif, osipi.dt, method="csvd", threshold=0.2, hematocrit_correction=False)
    assert found["cbf"][osipi.cbf == 70] < 70 - (15 + 7)


# delay and dispersion: signal at SNR 20, and the same curves without noise


@pytest.mark.realdata
@pytest.mark.parametrize("condition", reference.conditions(), ids=str)
def test_the_noise_free_model_is_the_mean_of_the_measured_curves(condition):
    shared_data("perfusion/dro_delay_dispersion")
    mean = reference.measured(*condition).reshape(-1, reference.FRAMES).mean(axis=0)
    clean = 100 * np.exp(-reference.TE_S * reference.clean(*condition))
    expected = clean + 5**2 / (2 * clean)  # Rician, σ = 5
    assert np.sqrt(np.mean((mean - expected) ** 2)) < 0.65  # the mean of 100 has 0.5; a quarter frame of delay, 1.2


@delay_safe
@pytest.mark.parametrize("cbf", reference.CBFS)
def test_without_noise_tmax_follows_any_delay_and_flow_does_not(method, cbf):
    delays = np.array([-6, -3, 0, 0.3, 0.6, 0.9, 1, 3, 6])
    found = maps_without_noise(method, cbf, delays)
    late = found["tmax"] - delays
    np.testing.assert_allclose(late, late[2], atol=0.3)
    np.testing.assert_allclose(found["cbf"], found["cbf"][2], rtol=0.01 if method == "csvd" else 0.05)


@every_method
def test_without_noise_dispersion_makes_flow_lower_and_tmax_later(method):
    found = [maps_without_noise(method, 50, [0.0], dispersion) for dispersion in reference.DISPERSIONS_S]
    assert (np.diff([maps["cbf"][0] for maps in found]) < 0).all()
    assert (np.diff([maps["tmax"][0] for maps in found]) > 0).all()


@pytest.mark.realdata
@delay_safe
@pytest.mark.parametrize("cbf", [30, 50, 70])
def test_reference_tmax_is_true_delay_plus_the_offset_at_delay_zero_within_a_frame(method, cbf):
    offset = np.median(maps_of_reference(method, 0.0, 0.0, cbf)["tmax"])
    for delay in (1.0, 6.0):
        assert np.median(maps_of_reference(method, delay, 0.0, cbf)["tmax"]) == pytest.approx(delay + offset, abs=1.5)


@pytest.mark.realdata
@delay_safe
def test_reference_dispersion_reaches_flow_and_tmax_as_it_does_without_noise(method):
    medians = [
        {name: np.median(values) for name, values in maps_of_reference(method, 0.0, dispersion, 70).items()}
        for dispersion in reference.DISPERSIONS_S
    ]
    clean = [maps_without_noise(method, 70, [0.0], dispersion) for dispersion in reference.DISPERSIONS_S]
    for found, expected in zip(medians, clean, strict=True):
        assert found["cbf"] == pytest.approx(float(expected["cbf"][0]), rel=0.35)  # noise adds to a maximum
        assert found["tmax"] == pytest.approx(float(expected["tmax"][0]), abs=1.3)


# our phantom: delay and MTT from wide ranges


def drawn(family, snr, n=800):
    rng = np.random.default_rng(5)
    delay, mtt = rng.uniform(0, 9, n), rng.uniform(3, 14, n)
    return voxel_phantom(240 / mtt, mtt, delay, snr=snr, residue=family, seed=5)


def maps_of_phantom(phantom, method="osvd"):
    brain = np.ones(phantom.signal.data.shape[:3], bool)
    aif = K_TISSUE * phantom.aif
    found = perfusion_maps(phantom.signal, method=method, mask=brain, aif=aif, hematocrit_correction=False)
    return {name: image[brain] for name, image in found.items()}


@pytest.mark.parametrize("family", ["exponential", "lorentzian", "gamma"])
def test_tmax_of_osvd_goes_with_true_delay_and_its_volume_with_that_without_noise(family):
    phantom = drawn(family, snr=50)
    found, ideal = maps_of_phantom(phantom), maps_of_phantom(drawn(family, snr=np.inf))
    delay = phantom.truth["delay"].ravel()
    assert np.corrcoef(found["tmax"], delay)[0, 1] >= 0.90
    assert (found["tmax"] > 6).sum() == pytest.approx((ideal["tmax"] > 6).sum(), rel=0.10)
    assert np.corrcoef(found["delay"], delay)[0, 1] >= 0.95
    assert -1.2 < np.median(found["delay"] - delay) < 0


@every_method
def test_tmax_exceeds_true_delay_by_seconds_that_grow_with_transit_time(method):
    mtt = np.array([3.0, 5, 8, 12])
    found = maps_of_phantom(voxel_phantom(240 / mtt, mtt, 3.0), method)
    offset = found["tmax"] - 3
    assert (np.diff(offset) > 0).all() and offset[0] > 1 and offset[-1] < 5
