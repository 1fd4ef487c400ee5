"""Each flag is raised by the phantom that deserves it, stays away from ordinary ones, and says what to do."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from reperfuse.errors import InputError
from reperfuse.perfusion import quality
from reperfuse.perfusion.bolus import baseline_frames, mean_curve
from reperfuse.perfusion.concentration import delta_r2star, negative_areas
from reperfuse.phantoms.dsc import drawn_phantom

ORDINARY = {"snr_range": (30, 200), "tr_s_range": (1.0, 2.5), "jumps": 0, "drift_mm": 0.0}
PHANTOMS = 30
SMALL = (24, 24, 5)


def known(phantom):
    """What the chain knows of a series by the time it judges it, with the artery and the noise of the truth."""
    signal, inside = phantom.signal, phantom.truth["brain"] > 0
    series = signal.data[inside]
    facts = {
        "te_s": signal.te_s,
        "tr_s": signal.tr_s,
        "frame_times_s": signal.frame_times_s,
        "measured": (series > 0).mean(axis=0),
        "mean_signal": mean_curve(series),
        "displacement_mm": phantom.displacement_mm,
        "stated_tr_s": signal.tr_s,
        "brain_volume_ml": inside.sum() * abs(np.linalg.det(signal.affine[:3, :3])) / 1000,
    }
    try:
        baseline = baseline_frames(facts["mean_signal"])
    except InputError:
        return facts
    curves = delta_r2star(series, signal.te_s, baseline=baseline)
    s0 = series[:, baseline].mean(axis=1)
    alive = curves.max(axis=1) > 0
    noise = phantom.sigma / (np.maximum(s0, 1) * signal.te_s)
    artery = np.argsort(-phantom.truth["artery_fraction"][inside] * (s0 > 1))[:8]
    return facts | {
        "baseline": baseline,
        "mean_delta_r2star": curves[alive].mean(axis=0),
        "voxel_noise": float(np.median(noise[alive])),
        "negative_fraction": negative_areas(curves, noise, baseline),
        "unmeasured_fraction": float((~alive).mean()),
        "aif": curves[artery].mean(axis=0),
        "aif_ceiling": float(np.median(np.log(s0[artery] / (3 * phantom.sigma)) / signal.te_s)),
    }


@cache
def drawn(seed, situation=None, **fixed):
    return known(drawn_phantom(seed, SMALL, situation, **fixed))


def raised(seed, situation=None, **fixed):
    fixed = {name: value for name, value in {**ORDINARY, **fixed}.items() if value is not None}
    return {flag.name: flag for flag in quality.quality_flags(**drawn(seed, situation, **fixed))}


def test_ordinary_phantoms_raise_hardly_any_flag():
    names = [name for seed in range(PHANTOMS) for name in raised(seed)]
    assert len(names) <= 0.05 * PHANTOMS, names


@pytest.mark.parametrize(
    ("situation", "fixed", "name"),
    [
        ("motion", {"jumps": None, "drift_mm": None}, "motion"),
        ("truncated_tail", {}, "truncated_bolus"),
        ("no_bolus", {}, "no_bolus"),
        ("low_cnr", {"snr_range": None}, "low_cnr"),
        ("low_cnr", {"snr_range": None}, "noisy_aif"),
        ("saturated_aif", {"snr_range": None}, "saturated_aif"),
        ("missing_frames", {}, "missing_frames"),
        ("early_arrival", {}, "early_bolus"),
        ("uneven_times", {}, "uneven_times"),
        (None, {"tr_s": 4.5}, "implausible_tr"),
        (None, {"te_s": 0.008}, "implausible_te"),
    ],
)
def test_each_situation_raises_its_flag(situation, fixed, name):
    for seed in range(3):
        found = raised(seed, situation, **fixed)
        if name in ("low_cnr", "noisy_aif") and "no_bolus" in found:
            continue  # so little that it is not even seen as a bolus
        assert name in found, (seed, list(found))


def test_what_is_done_to_a_series_raises_its_flag_and_no_other():
    phantom = drawn_phantom(0, SMALL, **ORDINARY)
    data = phantom.signal.data.astype(np.float32)
    n_frames = data.shape[3]
    drifting, holed = data * (1 + 0.1 * np.arange(n_frames) / n_frames), data.copy()
    holed[:, :, :2] = 0
    half = data.copy()
    half[:, :, 0, n_frames // 3 :] = 0

    def found(changed):
        series = replace(phantom, signal=replace(phantom.signal, data=changed))
        return [flag.name for flag in quality.quality_flags(**known(series))]

    assert found(data) == [] and found(drifting) == ["unreturned_baseline"]
    assert found(holed) == ["unmeasured_tissue"] and found(half) == ["missing_frames", "unmeasured_tissue"]


def test_the_weak_bolus_is_seen_as_one_at_least_once():
    assert any("low_cnr" in raised(seed, "low_cnr", snr_range=None) for seed in range(3))


def test_without_a_bolus_nothing_is_said_of_what_rests_on_one():
    assert set(raised(0, "no_bolus")) == {"no_bolus"}


def test_every_flag_has_a_phantom_or_a_test_and_a_sentence_with_a_remedy():
    every = [
        quality.motion([0, 9.0]),
        quality.truncated_bolus(np.r_[np.zeros(10), np.arange(10.0)], 1.5),
        quality.no_bolus(np.full(20, 100.0)),
        quality.low_cnr(np.r_[0, 0, 1, 1, 1, 0], 1.0),
        quality.saturated_aif([0, 90.0], saturated=True),
        quality.noisy_aif([0, 0, 9.0, 0, 0], 1.0),
        quality.implausible_te(0.5e-3),
        quality.implausible_tr(60.0),
        quality.missing_frames([1, 1, 0.5, 1]),
        quality.uneven_times([0, 1, 2, 3.4, 4]),
        quality.early_bolus(slice(0, 2), 60),
        quality.no_artery(12.0),
        quality.doubtful_aif(["tissue"]),
        quality.implausible_aif(bolus(width=8.0), 1.5),
        quality.second_bolus(bolus() + 0.7 * bolus(arrival=45), 1.5),
        quality.unreturned_baseline(bolus(plateau=-0.2), 1.5, 0.3),
        quality.unreturned_baseline(bolus(), 1.5, 0.3),
        quality.unmeasured_tissue(0.2),
        quality.implausible_brain(90.0),
        quality.contradicting_times(3.0, 1.5),
        quality.doubtful_adc(0.3, 40.0, 0.8),
    ]
    assert {flag.name for flag in every} == set(quality.FLAGS)
    for flag in every:
        assert flag.sentence[0].isupper() and flag.sentence.endswith(".") and "\n" not in flag.sentence
        assert ":" in flag.sentence or ";" in flag.sentence  # what was found, then what to do
        assert 60 < len(flag.sentence) < 260 and "nan" not in flag.sentence and "None" not in flag.sentence


# laws of the single flags


def test_motion_that_was_corrected_is_judged_by_a_wider_limit():
    assert quality.motion([0, 3.0]) and not quality.motion([0, 3.0], corrected=True)
    assert quality.motion([0, 8.0], corrected=True).value == 8.0
    assert not quality.motion([0, 1.9]) and not quality.motion([0.0])


def test_an_artery_is_doubted_for_what_speaks_against_it_and_noise_is_said_once():
    assert quality.doubtful_aif([]) is None and quality.doubtful_aif(["saturated"]) is None
    assert quality.doubtful_aif(["tissue", "coarse"]).value == 2
    noisy = {"aif": np.r_[np.zeros(20), 10, 30, 10, np.zeros(20)], "aif_noise": 3.0, "aif_doubts": ["noisy"]}
    assert [flag.name for flag in quality.quality_flags(**noisy)] == ["noisy_aif"]
    assert [flag.name for flag in quality.quality_flags(**(noisy | {"aif_noise": 1.0}))] == ["doubtful_aif"]


def test_a_frame_that_could_not_be_saved_is_always_said():
    flag = quality.motion([0, np.nan, 0.4], lost=[False, True, False], corrected=True)
    assert flag.value == 0.4 and "1 frame could not be saved" in flag.sentence


TIMES = np.arange(0, 90, 1.5)


def bolus(times=TIMES, arrival=15.0, width=2.5, plateau=0.0):
    late = np.maximum(times - arrival, 0) / width
    return late**3 * np.exp(3 - late) / 27 + plateau * (late > 3)


def test_a_series_is_truncated_up_to_some_length_and_not_beyond():
    lengths = np.arange(22, 60)
    found = [quality.truncated_bolus(bolus()[:n], 1.5) is not None for n in lengths]
    assert found[0] and not found[-1] and sorted(found, reverse=True) == found


def test_recirculation_and_leakage_do_not_look_like_truncation():
    assert quality.truncated_bolus(bolus(plateau=0.3), 1.5) is None
    assert quality.truncated_bolus(bolus(plateau=0.6), 1.5) is not None


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
def test_truncation_does_not_depend_on_dose_nor_low_cnr_on_the_unit(factor):
    assert quality.truncated_bolus(factor * bolus()[:25], 1.5) and not quality.truncated_bolus(factor * bolus(), 1.5)
    assert quality.low_cnr(factor * bolus(), factor * 0.3) and not quality.low_cnr(factor * bolus(), factor * 0.1)


def test_neither_bright_first_frames_nor_one_bad_frame_make_a_bolus():
    rng = np.random.default_rng(0)
    flat = 500 + rng.normal(0, 0.5, 60)
    flat[:3] += (300, 100, 30)
    flat[40] = 200
    assert quality.no_bolus(flat) and quality.no_bolus(500 * np.exp(-0.1 * bolus())) is None
    assert quality.no_bolus(np.zeros(20)).value is None


def test_noise_of_an_aif_is_judged_from_the_curve_alone_as_from_its_true_noise():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(20):
        curve = 40 * bolus() + rng.normal(0, 4.0, TIMES.size)
        ratios.append(quality.noisy_aif(curve).value / quality.noisy_aif(curve, 4.0).value)
    assert np.median(ratios) == pytest.approx(1, abs=0.2)
    assert quality.noisy_aif(40 * bolus() + rng.normal(0, 0.4, TIMES.size)) is None


def test_an_aif_at_its_ceiling_is_saturated_and_one_well_below_is_not():
    assert quality.saturated_aif(60 * bolus(), 62.0) and not quality.saturated_aif(40 * bolus(), 62.0)
    assert quality.saturated_aif(40 * bolus(), 62.0, saturated=True) and not quality.saturated_aif(40 * bolus())


@pytest.mark.parametrize("te_s", [0.02, 0.03, 0.045, 0.1])
def test_echo_times_of_scanners_are_plausible(te_s):
    assert quality.implausible_te(te_s) is None


@pytest.mark.parametrize("te_s", [0.0, 0.001, 0.3])
def test_others_are_not(te_s):
    assert quality.implausible_te(te_s).value == te_s


def test_a_bolus_too_short_or_too_long_for_a_heart_is_no_artery_at_this_interval():
    assert quality.implausible_aif(bolus(width=1.2), 1.5) is None
    assert quality.implausible_aif(bolus(width=1.2), 0.4).value < 2.5
    assert quality.implausible_aif(bolus(width=8.0), 1.5).value > 25
    wide = {"aif": 40 * bolus(width=8.0), "tr_s": 1.5}
    assert [flag.name for flag in quality.quality_flags(**wide)] == ["implausible_aif"]
    cut = wide | {"mean_delta_r2star": bolus()[:22]}  # the artery may be as good as the series
    assert [flag.name for flag in quality.quality_flags(**cut)] == ["truncated_bolus"]


def test_the_interval_alone_can_be_implausible():
    assert quality.implausible_tr(0.05).value == 0.05 and quality.implausible_tr(5.0).value == 5.0


def test_incomplete_and_absent_frames_are_counted_and_jitter_is_not():
    whole = np.full(60, 0.95)  # some voxels of a real series are never measured
    assert quality.missing_frames(whole, TIMES) is None
    part = whole.copy()
    part[[3, 9]] = 0, 0.9
    assert quality.missing_frames(part).value == 2
    gap = np.delete(TIMES, (20, 40, 41))
    assert quality.missing_frames(whole[: gap.size], gap).value == 3 and quality.uneven_times(gap) is None
    jittered = TIMES + 0.25 * np.random.default_rng(0).uniform(-1, 1, TIMES.size)
    assert quality.missing_frames(whole[:6], [0, 1, 2, 3.6, 4, 5]) is None
    assert quality.missing_frames(whole, jittered) is None and quality.uneven_times(jittered).value > 0.1


@pytest.mark.parametrize(("baseline", "n"), [(None, 0), (slice(0, 3), 3), (slice(2, 5), 3)])
def test_a_short_baseline_is_said_with_its_length(baseline, n):
    assert quality.early_bolus(baseline, 60).value == n
    assert quality.early_bolus(slice(0, 4), 60) is None


def test_most_frames_incomplete_are_told_from_the_few_that_are_whole():
    part = np.full(60, 0.8)
    part[:10] = 1
    assert quality.missing_frames(part).value == 50


def test_a_second_bolus_is_told_from_recirculation_whichever_is_higher():
    for height in (0.6, 0.9, 1.6):
        flag = quality.second_bolus(bolus() + height * bolus(arrival=45), 1.5)
        assert flag.value == pytest.approx(min(height, 1 / height), abs=0.02)
        assert ("after" if height <= 1 else "before") in flag.sentence
    for height in (0, 0.1, 0.3, 0.4):
        assert quality.second_bolus(bolus() + height * bolus(arrival=35, width=4), 1.5) is None


def test_a_mean_curve_that_ends_below_zero_has_lost_its_baseline():
    drift = 0.2 * TIMES / TIMES[-1]
    assert quality.unreturned_baseline(bolus() - drift, 1.5).value == pytest.approx(-0.22, abs=0.02)
    assert quality.unreturned_baseline(bolus(), 1.5, 0.04) is None
    assert "30%" in quality.unreturned_baseline(bolus(), 1.5, 0.3).sentence


def test_without_a_baseline_either_the_bolus_or_the_frames_before_it_are_missed_and_not_both():
    late = 500 * np.exp(-0.1 * bolus())
    none, early = np.full(60, 500.0), late[14:]
    with pytest.raises(InputError):
        baseline_frames(early)
    assert [flag.name for flag in quality.quality_flags(mean_signal=none)] == ["no_bolus"]
    assert [flag.name for flag in quality.quality_flags(mean_signal=early)] == ["early_bolus"]


def test_a_bolus_that_fills_most_of_a_short_series_is_judged_by_its_baseline():
    short = 500 * np.exp(-0.1 * bolus(width=5.0))[4:24]
    baseline = baseline_frames(short)
    assert quality.no_bolus(short, baseline) is None
    assert quality.no_bolus(np.r_[short[:8], np.full(12, 0.9 * 500)], slice(0, 6)) is None


def test_brain_adc_and_times_are_judged_by_plain_numbers():
    assert quality.unmeasured_tissue(0.01) is None and quality.unmeasured_tissue(0.03).value == 0.03
    assert quality.implausible_brain(1300) is None and quality.implausible_brain(3e6) and quality.implausible_brain(20)
    assert quality.contradicting_times(1.52, 1.5) is None and quality.contradicting_times(2.0, 1.5).value == 2.0
    assert quality.doubtful_adc() is None and quality.doubtful_adc(0.95, 12.0, 0.3) is None
    assert quality.doubtful_adc(0.95, 12.0, 0.6).value == 1 and quality.doubtful_adc(float("nan")).value == 1
    said = quality.quality_flags(
        tr_s=1.5, stated_tr_s=3.0, unmeasured_fraction=0.5, brain_volume_ml=5.0, adc_coverage=0.1, adc_shift_mm=90.0
    )
    names = ["unmeasured_tissue", "implausible_brain", "contradicting_times", "doubtful_adc"]
    assert [flag.name for flag in said] == names


def test_flags_come_in_one_order_and_what_is_unknown_is_not_judged():
    assert quality.quality_flags() == ()
    found = [
        flag.name
        for flag in quality.quality_flags(
            te_s=0.2, tr_s=9.0, mean_signal=500 * np.exp(-0.1 * bolus()), artery_found=False, displacement_mm=[0, 9.0]
        )
    ]
    assert found == ["early_bolus", "motion", "implausible_te", "implausible_tr", "no_artery"]
    assert found == sorted(found, key=quality.FLAGS.index)
