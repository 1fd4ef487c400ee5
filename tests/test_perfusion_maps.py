import nibabel as nib
import numpy as np
import pytest
from dsc_curves import artery, frame_times, shared_data, tissue

from reperfuse.errors import InputError
from reperfuse.imaging.volume import Volume
from reperfuse.perfusion import maps
from reperfuse.perfusion.aif import Aif
from reperfuse.perfusion.deconvolution import METHODS
from reperfuse.perfusion.maps import MAPS, arrival_delay, perfusion_maps

TE, TR = 0.03, 1.5
TIMES = frame_times(60, TR)
KAPPA = 100.0  # ΔR2* [1/s] at the height of the artery; tissue has the same relaxivity here, so that flow is absolute
CBF, MTT, DELAY = np.meshgrid([20.0, 40, 60], [4.0, 8], [0.0, 1.5, 3, 6], indexing="ij")
every_method = pytest.mark.parametrize("method", METHODS)


def series(snr=None, seed=0, **of_volume):
    """A (3, 2, 4) brain of every CBF, MTT and delay, its truth and its artery."""
    rate = np.array(
        [tissue(TIMES, cbf=c, mtt=m, delay=d) for c, m, d in zip(CBF.flat, MTT.flat, DELAY.flat, strict=True)]
    )
    signal = 800 * np.exp(-TE * KAPPA * rate).reshape(*CBF.shape, -1)
    if snr:
        noise = np.random.default_rng(seed).normal(0, 800 / snr, (2, *signal.shape))
        signal = np.hypot(signal + noise[0], noise[1])
    given = {"te_s": TE, "tr_s": TR} | of_volume
    return Volume(signal.astype(np.float32), np.diag([2.0, 2, 5, 1]), **given)


AIF = KAPPA * artery(TIMES)
BRAIN = np.ones(CBF.shape, bool)


def of(volume=None, **options):
    given = {"mask": BRAIN, "aif": AIF, "hematocrit_correction": False} | options
    return perfusion_maps(volume or series(), **given)


@every_method
def test_every_map_is_finite_on_the_source_grid_and_zero_outside_the_mask(method):
    mask = BRAIN.copy()
    mask[1] = False
    found = of(method=method, mask=mask)
    assert tuple(found) == MAPS
    for image in found.values():
        assert image.shape == CBF.shape and image.dtype == np.float32 and np.isfinite(image).all()
        assert (image[1] == 0).all()


@every_method
def test_blood_volume_is_exact_and_time_and_flow_agree_with_it(method):
    found = of(method=method)
    np.testing.assert_allclose(found["cbv"], CBF * MTT / 60, rtol=0.01)
    np.testing.assert_allclose(found["mtt"], 60 * found["cbv"] / found["cbf"], rtol=1e-4)
    assert (found["cbf"] > 0.45 * CBF).all() and (found["cbf"] < 1.1 * CBF).all()


def test_flow_of_csvd_does_not_depend_on_delay():
    cbf = of(method="csvd")["cbf"]
    np.testing.assert_allclose(cbf, np.broadcast_to(cbf[..., :1], cbf.shape), rtol=0.01)


def test_nor_on_a_fraction_of_a_frame():
    late = np.array([tissue(TIMES, cbf=50, mtt=6, delay=d) for d in np.arange(0, 1.5, 0.25)])
    volume = Volume(800 * np.exp(-TE * KAPPA * late)[:, None, None], np.eye(4), te_s=TE, tr_s=TR)
    cbf = perfusion_maps(volume, method="csvd", mask=np.ones((6, 1, 1)), aif=AIF)["cbf"].ravel()
    np.testing.assert_allclose(cbf, cbf[0], rtol=0.015)


@every_method
def test_tmax_follows_delay_with_an_offset_of_truncation(method):
    late = of(method=method)["tmax"] - DELAY
    assert late.min() > 0 and late.max() < 4
    if method == "csvd":
        np.testing.assert_allclose(late, np.broadcast_to(late[..., :1], late.shape), atol=0.1)


@every_method
def test_delay_is_arterial_arrival_within_a_frame_whatever_the_method(method):
    np.testing.assert_allclose(of(method=method)["delay"], DELAY, atol=1.0)


def test_a_tissue_that_fills_before_the_artery_has_a_negative_delay():
    late_artery = KAPPA * artery(TIMES, arrival=18.0)
    found = of(method="csvd", aif=late_artery)
    np.testing.assert_allclose(found["delay"], DELAY - 3, atol=1.0)
    np.testing.assert_allclose(found["cbf"], of(method="csvd")["cbf"], rtol=0.01)


def test_ttp_is_when_the_tissue_peaks():
    peak = [
        np.arange(0, 90, 0.05)[tissue(np.arange(0, 90, 0.05), cbf=c, mtt=m, delay=d).argmax()]
        for c, m, d in zip(CBF.flat, MTT.flat, DELAY.flat, strict=True)
    ]
    np.testing.assert_allclose(of()["ttp"].ravel(), peak, atol=0.3)


def test_hematocrit_and_density_touch_flow_and_volume_alike():
    plain, corrected = of(), of(hematocrit_correction=True)
    for name in ("cbf", "cbv"):
        np.testing.assert_allclose(corrected[name], 0.73 / 1.04 * plain[name], rtol=1e-5)
    for name in ("mtt", "tmax", "ttp", "delay"):
        np.testing.assert_allclose(corrected[name], plain[name], rtol=1e-5)


def test_the_gain_of_the_scanner_vanishes():
    loud = series()
    loud = Volume(loud.data * 37.5, loud.affine, te_s=TE, tr_s=TR)
    expected = of()
    for name, image in of(loud).items():
        np.testing.assert_allclose(image, expected[name], rtol=1e-3, atol=1e-3)


def test_chunks_leave_no_trace(monkeypatch):
    whole = of(series(snr=100), method="csvd")
    monkeypatch.setattr(maps, "CHUNK_VOXELS", 5)
    for name, image in of(series(snr=100), method="csvd").items():
        np.testing.assert_allclose(image, whole[name], rtol=1e-4, atol=1e-4)


def test_an_aif_record_counts_like_its_curve():
    record = Aif(curve=AIF, voxels=np.zeros((1, 3), int))
    np.testing.assert_array_equal(of(aif=record)["cbf"], of()["cbf"])


def test_a_missing_image_filled_with_zeros_hardly_changes_the_maps():
    gap = series()
    gap.data[..., 2, 30] = 0
    expected = of()
    for name, image in of(gap).items():
        np.testing.assert_allclose(image, expected[name], rtol=0.05, atol=0.2)


def test_nan_infinity_and_negative_signal_never_reach_a_map():
    spoilt = series(snr=50)
    spoilt.data[0, 0, 0, :] = np.nan
    spoilt.data[0, 0, 1, 5] = np.inf
    spoilt.data[0, 0, 2, ::3] = -1
    spoilt.data[0, 1, 0, :] = 0
    for method in METHODS:
        found = of(spoilt, method=method)
        assert all(np.isfinite(image).all() for image in found.values())
        assert all(image[0, 0, 0] == 0 and image[0, 1, 0] == 0 for image in found.values())


def test_without_mask_and_aif_both_are_found():
    curves = np.tile(series().data, (4, 4, 1, 1))
    curves[0, :, :] = 800 * np.exp(-TE * 60 * artery(TIMES))
    curves[:, 0, :] = np.random.default_rng(0).uniform(1, 9, curves[:, 0, :].shape)  # air
    found = perfusion_maps(Volume(curves, np.eye(4), te_s=TE, tr_s=TR))
    assert (found["cbf"][:, 0] == 0).all() and (found["cbf"][1:, 1:] > 0).all()
    # This artery shows 60 of 100: flow and volume are too high by the same factor, as on any scanner.
    np.testing.assert_allclose(
        found["cbv"][1:3, 1, 0] * 60 / 100, of(hematocrit_correction=True)["cbv"][1:3, 1, 0], rtol=0.02
    )


@pytest.mark.parametrize(
    ("words", "volume", "options"),
    [
        ("echo time", {"te_s": None}, {}),
        ("TR", {"tr_s": None}, {}),
        ("unevenly", {"frame_times_s": np.where(TIMES > 30, TIMES + 1, TIMES)}, {}),
        ("no voxel", {}, {"mask": ~BRAIN}),
        ("shape", {}, {"mask": np.ones((3, 2, 5))}),
        ("no positive area", {}, {"aif": 0 * AIF}),
        ("one per frame", {}, {"aif": AIF[1:]}),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(words, volume, options):
    with pytest.raises(InputError, match=words):
        of(series(**volume), **options)


def test_a_series_without_a_bolus_is_refused():
    flat = series()
    flat.data[:] = 500
    with pytest.raises(InputError, match="No contrast bolus"):
        of(flat)


def test_an_image_without_time_is_refused():
    with pytest.raises(InputError, match="time axis"):
        of(Volume(np.ones((3, 2, 4)), np.eye(4), te_s=TE, tr_s=TR))


def test_frame_times_go_before_the_repetition_time():
    named = series(frame_times_s=TIMES, tr_s=99.0)
    np.testing.assert_array_equal(of(named)["tmax"], of()["tmax"])


def test_arrival_moves_with_the_tissue_sample_by_sample():
    curve = tissue(TIMES, mtt=5)
    found = arrival_delay(np.stack([np.roll(curve, n) for n in range(-4, 8)]), AIF, TR)
    np.testing.assert_allclose(np.diff(found), TR, atol=0.05)


# the signal-domain reference of Chakwizira et al. 2022: TR 1.243 s, TE 0.029 s, SNR 20, 100 voxels a file

DRO = "St_disp_0_exponential_lvl_high_delay_{}_resfunc_gamma_dist_lambda_1_cbf_{}.nii.gz"
DRO_DELAYS = {0: "0_lvl_high", 1: "1_lvl_low", 6: "1_lvl_high"}
DRO_TIMES = np.arange(161) * 1.243
DRO_AIF = 130.8347 * np.maximum(DRO_TIMES - 20, 0) ** 3 * np.exp(-np.maximum(DRO_TIMES - 20, 0) / 1.5)


def dro_medians(method, cbf):
    folder = shared_data("perfusion/dro_delay_dispersion")
    medians = {}
    for delay, words in DRO_DELAYS.items():
        signal = np.asarray(nib.load(folder / DRO.format(words, cbf)).dataobj, dtype=np.float32)
        volume = Volume(signal, np.eye(4), te_s=0.029, tr_s=1.243)
        options = {"mask": np.ones(signal.shape[:3]), "aif": DRO_AIF, "hematocrit_correction": False}
        medians[delay] = {n: float(np.median(m)) for n, m in perfusion_maps(volume, method=method, **options).items()}
    return medians


@pytest.mark.realdata
@pytest.mark.parametrize("cbf", [30, 50, 70])
def test_reference_flow_by_csvd_is_the_same_at_each_delay(cbf):
    # 10 % is noise: 100 voxels at SNR 20.
    flow = [m["cbf"] for m in dro_medians("csvd", cbf).values()]
    np.testing.assert_allclose(flow, np.mean(flow), rtol=0.10)
    assert all(abs(f - cbf) <= 15 + 0.1 * cbf for f in flow)


@pytest.mark.realdata
@every_method
@pytest.mark.parametrize("cbf", [30, 50, 70])
def test_reference_tmax_and_arrival_follow_the_true_delay(method, cbf):
    medians = dro_medians(method, cbf)
    for delay, found in medians.items():
        assert found["tmax"] == pytest.approx(delay + medians[0]["tmax"], abs=2.5 if method == "ssvd" else 1.0)
        assert found["delay"] == pytest.approx(delay, abs=1.6)
        # The rectangle rule of the reference adds half a frame of flow to the area.
        assert 3.8 < found["cbv"] < 5.4
