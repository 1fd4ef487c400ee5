"""Each flag is raised by the phantom that deserves it, stays away from ordinary ones, and says what to do."""

from functools import cache

import numpy as np
import pytest

from reperfuse.errors import InputError
from reperfuse.perfusion import quality
from reperfuse.perfusion.bolus import baseline_frames, mean_curve
from reperfuse.perfusion.concentration import delta_r2star
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
    }
    try:
        baseline = baseline_frames(facts["mean_signal"])
    except InputError:
        return facts
    curves = delta_r2star(series, signal.te_s, baseline=baseline)
    s0 = series[:, baseline].mean(axis=1)
    artery = np.argsort(-phantom.truth["artery_fraction"][inside])[:8]
    return facts | {
        "baseline": baseline,
        "mean_delta_r2star": curves.mean(axis=0),
        "voxel_noise": float(np.median(phantom.sigma / (np.maximum(s0, 1) * signal.te_s))),
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


def test_a_bolus_too_short_for_a_heart_says_that_the_interval_is_wrong():
    assert quality.implausible_tr(1.5, bolus(width=1.2)) is None
    flag = quality.implausible_tr(0.4, bolus(width=1.2))
    assert flag is not None and "would last" in flag.sentence
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
