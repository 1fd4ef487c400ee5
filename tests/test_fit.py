"""A training learns, says what it did, and survives being killed."""

import os
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from reperfuse.errors import InputError
from reperfuse.networks import build_network
from reperfuse.training.checks import check_subjects, fault_of
from reperfuse.training.fit import FitSettings, fit
from reperfuse.training.losses import LOSSES
from reperfuse.training.module import TrainingDiverged, TrainingModule
from reperfuse.training.samples import Subject
from reperfuse.training.sampling import Sampling
from reperfuse.training.tune import tune

SETTINGS = FitSettings(
    epochs=4,
    steps_per_epoch=3,
    patch_size=(8, 8, 8),
    learning_rate=1e-2,
    weight_decay=1e-4,
    optimiser="adamw",
    schedule="cosine",
    foreground_fraction=0.5,
    augment="light",
    accelerator="cpu",
    precision="32",
)


def make_cohort(folder, n=3, size=12):
    """Bright cubes in noise."""
    for number in range(n):
        rng = np.random.default_rng(number)
        place = folder / f"sub-{number}"
        place.mkdir(parents=True)
        target = np.zeros((1, size, size, size), np.uint8)
        i, j, k = rng.integers(0, size - 5, 3)
        target[0, i : i + 5, j : j + 5, k : k + 5] = 1
        np.save(place / "image.npy", (target + rng.normal(0, 0.3, target.shape)).astype(np.float32))
        np.save(place / "target.npy", target)
        np.save(place / "mask.npy", np.ones(target.shape[1:], np.uint8))
    return [Subject(f"sub-{number}", folder / f"sub-{number}") for number in range(n)]


def dice(predict, subject):
    image, target, _ = subject.load()
    answer, truth = predict(image) > 0.5, target[0] > 0
    return {"dice": 2 * (answer & truth).sum() / (answer.sum() + truth.sum())}


def small_network():
    torch.manual_seed(0)
    return build_network("unet3d", widths=(4, 8))


def same_weights(a, b, tolerance=1e-4):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.allclose(one, other, rtol=0, atol=tolerance) for one, other in pairs)


@pytest.fixture
def cohort(tmp_path):
    return make_cohort(tmp_path / "data")


def test_a_training_lowers_its_loss_and_finds_the_lesion(cohort, tmp_path):
    settings = replace(SETTINGS, epochs=12, steps_per_epoch=6, schedule="constant", optimiser="adam")
    result = fit(small_network(), cohort, cohort, settings=settings, state_dir=tmp_path / "state", score=dice)
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    assert all(scores["dice"] > 0.8 for scores in result.scores.values()) and len(result.scores) == 3
    assert not result.network.training and result.resumed_from is None


def test_the_history_has_a_row_per_epoch_and_on_epoch_sees_each(cohort, tmp_path):
    seen = []
    settings = replace(SETTINGS, validate_every=2)
    result = fit(
        small_network(),
        cohort[:2],
        cohort[2:],
        settings=settings,
        state_dir=tmp_path / "state",
        score=dice,
        on_epoch=lambda epoch, row: seen.append((epoch, row)),
    )
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4] and [row for _, row in seen] == result.history
    assert ["val_dice" in row for row in result.history] == [False, True, False, True]
    assert result.history[-1]["learning_rate"] == pytest.approx(0, abs=1e-9)  # the cosine is run out
    assert result.scores["sub-2"]["dice"] == result.history[-1]["val_dice"]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_training_killed_in_the_middle_ends_as_the_unbroken_one(cohort, tmp_path, ema):
    settings = replace(SETTINGS, ema=ema)
    unbroken = fit(small_network(), cohort, settings=settings, state_dir=tmp_path / "unbroken")
    program = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from test_fit import *
cohort = [Subject(f"sub-{{n}}", Path({str(tmp_path / "data")!r}) / f"sub-{{n}}") for n in range(3)]
network, steps = small_network(), []
def die_in_the_third_epoch(module, inputs):
    steps.append(1)
    if len(steps) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
network.register_forward_pre_hook(die_in_the_third_epoch)
fit(network, cohort, settings=replace(SETTINGS, ema={ema}), state_dir=Path({str(tmp_path / "killed")!r}))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == -signal.SIGKILL
    torch.manual_seed(99)  # what it starts from no longer matters
    other = build_network("unet3d", widths=(4, 8))
    resumed = fit(other, cohort, settings=settings, state_dir=tmp_path / "killed")
    assert resumed.resumed_from == 2 and resumed.epochs == unbroken.epochs == 4
    assert same_weights(resumed.network, unbroken.network)
    losses = [[row["loss"] for row in result.history] for result in (resumed, unbroken)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_finished_training_is_read_back_not_repeated(cohort, tmp_path):
    options = {"settings": SETTINGS, "state_dir": tmp_path / "state", "score": dice}
    first = fit(small_network(), cohort[:2], cohort[2:], **options)
    calls = []
    again = fit(small_network(), cohort[:2], cohort[2:], on_epoch=lambda *row: calls.append(row), **options)
    assert not calls and again.resumed_from == again.epochs == 4
    assert same_weights(first.network, again.network, 0) and first.scores == again.scores


@pytest.mark.parametrize(("damaged", "resumed_from"), [(["last.ckpt"], 3), (["last.ckpt", "previous.ckpt"], None)])
def test_damaged_state_is_passed_over(cohort, tmp_path, damaged, resumed_from):
    whole = fit(small_network(), cohort, settings=SETTINGS, state_dir=tmp_path)
    for name in damaged:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
    with pytest.warns(UserWarning) as said:
        again = fit(small_network(), cohort, settings=SETTINGS, state_dir=tmp_path)
    assert [str(warning.message).split(" (")[0] for warning in said] == [
        f"{tmp_path / name} cannot be read" for name in damaged
    ]
    assert again.resumed_from == resumed_from and again.epochs == 4
    assert same_weights(whole.network, again.network)


def test_the_state_of_another_training_is_not_resumed(cohort, tmp_path):
    fit(small_network(), cohort, settings=SETTINGS, state_dir=tmp_path)
    with pytest.warns(UserWarning, match="other settings"):
        again = fit(small_network(), cohort, settings=replace(SETTINGS, learning_rate=1e-3), state_dir=tmp_path)
    assert again.resumed_from is None and again.epochs == 4


def test_keep_best_returns_the_best_epoch_with_its_scores_also_after_a_resume(cohort, tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.2])
    settings = replace(SETTINGS, validate_every=1, keep_best=True)
    weights = []

    def score(predict, subject):
        return {"dice": next(scores)}

    def on_epoch(epoch, row):
        weights.append({name: tensor.clone() for name, tensor in network.state_dict().items()})

    network = small_network()
    options = {"settings": settings, "state_dir": tmp_path, "score": score}
    first = fit(network, cohort[:2], cohort[2:], on_epoch=on_epoch, **options)
    again = fit(small_network(), cohort[:2], cohort[2:], **options)
    for result in (first, again):
        assert result.best_epoch == 2 and result.scores == {"sub-2": {"dice": 0.9}}
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in result.network.state_dict().items())


def test_ctrl_c_comes_out_as_itself_and_the_next_call_goes_on(cohort, tmp_path):
    def press(epoch, row):
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(small_network(), cohort, settings=SETTINGS, state_dir=tmp_path, on_epoch=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert fit(small_network(), cohort, settings=SETTINGS, state_dir=tmp_path).resumed_from == 2


def test_sigterm_does_not_look_like_success(cohort, tmp_path):
    def stop(epoch, row):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as exit_info:
        fit(small_network(), cohort, settings=SETTINGS, state_dir=tmp_path, on_epoch=stop)
    assert exit_info.value.code == 143


def test_a_loss_that_is_no_number_stops_the_training_with_a_remedy(cohort, tmp_path):
    network = small_network()
    torch.nn.init.constant_(network.last.bias, torch.inf)
    with pytest.raises(TrainingDiverged, match=r"lower learning_rate, now 0\.01"):
        fit(network, cohort[:1], settings=SETTINGS, state_dir=tmp_path)


def test_nothing_is_said_or_left_that_nobody_asked_for(cohort, tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(small_network(), cohort, settings=SETTINGS, state_dir=tmp_path / "state", progress=False)
    out, err = capfd.readouterr()
    assert out + err + caplog.text == ""
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "state"]


def test_without_a_terminal_progress_is_a_line_now_and_then(cohort, tmp_path, capfd):
    settings = replace(SETTINGS, epochs=20, steps_per_epoch=1)
    fit(small_network(), cohort, settings=settings, state_dir=tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1].startswith("epoch 20/20  loss ")


def test_workers_give_the_same_training(cohort, tmp_path):
    alone = fit(small_network(), cohort, settings=SETTINGS, state_dir=tmp_path / "a")
    helped = fit(small_network(), cohort, settings=replace(SETTINGS, num_workers=1), state_dir=tmp_path / "b")
    assert same_weights(alone.network, helped.network, 1e-6)


def test_training_runs_outside_the_main_thread_too(cohort, tmp_path):
    results = []
    work = threading.Thread(
        target=lambda: results.append(fit(small_network(), cohort, settings=SETTINGS, state_dir=tmp_path))
    )
    work.start()
    work.join()
    assert results[0].epochs == 4


def test_a_tmax_network_learns_from_whole_volumes(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "sub").mkdir()
    image = rng.normal(size=(5, 16, 16, 4)).astype(np.float32)
    np.save(tmp_path / "sub" / "image.npy", image)
    np.save(tmp_path / "sub" / "target.npy", (6 + 2 * image[:1]).astype(np.float32))
    np.save(tmp_path / "sub" / "mask.npy", np.ones((16, 16, 4), np.uint8))
    network = build_network("tmax_2layer", in_channels=5, output_bias=6.0)
    settings = FitSettings(epochs=60, loss="mse", learning_rate=3e-2, accelerator="cpu", precision="32")
    result = fit(network, [Subject("sub", tmp_path / "sub")], settings=settings, state_dir=tmp_path / "state")
    assert result.history[0]["loss"] > 3 and result.history[-1]["loss"] < 0.5


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"loss": "dise"}, "loss 'dise' is not known: choose one of bce"),
        ({"optimiser": "sgd"}, "adam, adamw"),
        ({"schedule": "step"}, "constant, cosine, polynomial"),
        ({"accelerator": "tpu"}, "auto, cpu, gpu"),
        ({"keep_best": True}, "needs validation subjects"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(cohort, tmp_path, wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        fit(small_network(), cohort, settings=replace(SETTINGS, **wrong), state_dir=tmp_path)


def test_a_missing_subject_is_found_before_the_first_epoch(cohort, tmp_path):
    gone = Subject("sub-9", tmp_path / "data" / "sub-9")
    with pytest.raises(InputError, match="sub-9"):
        fit(small_network(), cohort, [gone], settings=SETTINGS, state_dir=tmp_path / "state")
    assert not any((tmp_path / "state").iterdir())


def test_whole_volumes_of_several_shapes_cannot_share_a_batch(cohort, tmp_path):
    larger = make_cohort(tmp_path / "larger", n=1, size=14)
    settings = replace(SETTINGS, patch_size=None, batch_size=2)
    with pytest.raises(InputError, match="set patch_size, or batch_size 1"):
        fit(small_network(), [*cohort, *larger], settings=settings, state_dir=tmp_path / "state")


@pytest.mark.parametrize("axis", ["i", "j", "k"])
def test_planes_of_several_shapes_cannot_share_a_batch_but_volumes_of_several_heights_can(cohort, tmp_path, axis):
    for number, subject in enumerate(cohort):
        for name in ("image", "target", "mask"):
            array = np.load(subject.folder / f"{name}.npy")
            np.save(subject.folder / f"{name}.npy", array[..., : 12 - number])
    settings = replace(SETTINGS, epochs=1, patch_size=None, batch_size=2, sampling=Sampling("slices", slice_axis=axis))
    options = {"settings": settings, "state_dir": tmp_path / "state"}
    if axis == "k":
        assert fit(small_network(), cohort, **options).epochs == 1
    else:
        with pytest.raises(InputError, match="Whole planes of 3 shapes cannot share a batch"):
            fit(small_network(), cohort, **options)


@pytest.mark.parametrize(("axis", "seen"), [("i", (10, 8, 12)), ("j", (12, 8, 10)), ("k", (12, 10, 8))])
def test_a_network_of_slices_is_asked_as_it_was_trained(tmp_path, axis, seen):
    shape = (12, 10, 8)
    folder = tmp_path / "sub"
    folder.mkdir()
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    for name, array in {"image": image, "target": (image > 1).astype(np.uint8), "mask": np.ones(shape)}.items():
        np.save(folder / f"{name}.npy", array)
    asked = []

    class Witness(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, image):
            if not self.training:
                asked.append(tuple(image.shape[2:]))
            return self.scale * image

    def score(predict, subject):
        answer = predict(subject.load()[0])
        rank = np.corrcoef(answer.ravel(), image.ravel())[0, 1]
        return {"rank": rank, "volume": answer.size}

    sampling = {"kind": "slices", "slice_axis": axis}
    settings = FitSettings(epochs=1, sampling=sampling, accelerator="cpu", precision="32")  # as a mapping
    subjects = [Subject("sub", folder)]
    result = fit(Witness(), subjects, subjects, settings=settings, state_dir=tmp_path / "state", score=score)
    assert asked == [seen]
    assert result.scores["sub"]["rank"] > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"sampling": Sampling("rejection")},
        {"sampling": Sampling("slices"), "patch_size": (8, 8, 1)},
        {"augment": "strong"},
        {"augment": "published"},
    ],
)
def test_every_sampling_and_augmentation_trains_and_resumes_where_it_was(cohort, tmp_path, settings):
    chosen = replace(SETTINGS, **settings)
    whole = fit(small_network(), cohort, settings=chosen, state_dir=tmp_path / "whole")

    def stop(epoch, row):
        if epoch == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(small_network(), cohort, settings=chosen, state_dir=tmp_path / "stopped", on_epoch=stop)
    resumed = fit(small_network(), cohort, settings=chosen, state_dir=tmp_path / "stopped")
    assert resumed.resumed_from == 2 and same_weights(resumed.network, whole.network)


# ---- subjects that would break a training ---------------------------------------------------------------------------
def spoil(subject, name, change):
    """Replace an array of a subject by a changed one."""
    path = subject.folder / f"{name}.npy"
    np.save(path, change(np.load(path)))


def with_value(value):
    def change(array):
        array = array.astype(np.float32)
        array.flat[7] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("image", with_value(np.nan), "image holds NaN or infinity"),
        ("image", with_value(-np.inf), "image holds NaN or infinity"),
        ("image", lambda image: with_value(np.inf)(image).astype(np.float16), "image holds NaN or infinity"),
        ("image", lambda image: np.full_like(image, 3), "image is constant"),
        ("image", lambda image: image.astype("U4"), "image.npy holds <U4 in place of numbers"),
        ("mask", lambda mask: mask.astype(complex), "mask.npy holds complex128 in place of numbers"),
        ("mask", lambda mask: mask[1:], "do not belong together"),
        ("target", lambda target: 2 * target, "target holds other values than 0 and 1"),
        ("target", lambda target: target - 1.0, "target holds other values than 0 and 1"),
        ("target", with_value(0.5), "target holds other values than 0 and 1"),
        ("target", with_value(np.nan), "target holds other values than 0 and 1"),
        ("target", lambda target: target[:, :0], "do not belong together"),
    ],
)
def test_a_subject_that_would_break_the_training_is_found_before_it(cohort, tmp_path, name, change, said):
    spoil(cohort[1], name, change)
    with pytest.raises(
        InputError, match=rf"1 of 3 subjects cannot be trained on: sub-1 \(.*{said}.*\); run preprocess"
    ):
        fit(small_network(), cohort[:1], cohort[1:], settings=SETTINGS, state_dir=tmp_path / "state")
    assert not any((tmp_path / "state").iterdir())


def test_all_bad_subjects_are_in_one_sentence_five_by_name(tmp_path):
    cohort = make_cohort(tmp_path, n=9, size=6)
    for number in range(2, 9):
        spoil(cohort[number], "image", np.zeros_like)
    (cohort[3].folder / "mask.npy").unlink()
    with pytest.raises(InputError) as told:
        check_subjects(cohort, labels=True)
    named = [f"sub-{number}" for number in range(9) if f" sub-{number} (" in str(told.value)]
    assert named == [f"sub-{number}" for number in range(2, 7)]
    assert "7 of 9 subjects" in str(told.value) and " and 2 more; run preprocess again" in str(told.value)
    assert "mask.npy is missing" in str(told.value) and str(told.value).count(". ") == 0


def test_a_mended_subject_is_looked_at_again(cohort):
    image = np.load(cohort[0].folder / "image.npy")
    spoil(cohort[0], "image", with_value(np.nan))
    assert "NaN" in fault_of(cohort[0], labels=True)
    np.save(cohort[0].folder / "image.npy", image)
    os.utime(cohort[0].folder / "image.npy", ns=(1, 1))  # another time, whatever the clock's grain
    assert fault_of(cohort[0], labels=True) is None


def test_continuous_targets_may_be_any_number_inside_the_mask(cohort):
    spoil(cohort[0], "target", with_value(0.5))
    assert fault_of(cohort[0], labels=False) is None
    spoil(cohort[1], "target", with_value(np.nan))
    assert "NaN or infinity inside the mask" in fault_of(cohort[1], labels=False)
    spoil(cohort[1], "mask", with_value(0))
    assert fault_of(cohort[1], labels=False) is None


def test_only_the_target_that_is_learned_is_looked_at(cohort):
    spoil(cohort[0], "target", lambda target: np.concatenate([target, 5.0 * target + 1]))
    (cohort[0].folder / "subject.json").write_text('{"targets": ["lesion", "volume"]}', encoding="utf-8")
    assert fault_of(replace(cohort[0], target="lesion"), labels=True) is None
    assert "other values" in fault_of(replace(cohort[0], target="volume"), labels=True)


def test_a_subject_smaller_than_the_patch_without_lesion_or_mask_is_no_fault(tmp_path):
    (small,) = make_cohort(tmp_path / "data", n=1, size=6)
    spoil(small, "target", np.zeros_like)
    spoil(small, "mask", np.zeros_like)
    assert fit(small_network(), [small], settings=SETTINGS, state_dir=tmp_path / "state").epochs == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tune_and_train_on_the_gpu(cohort, tmp_path):
    settings = replace(SETTINGS, epochs=20, schedule="constant", accelerator="auto", precision="auto")

    def objective(overrides, fold, state_dir):
        train = [subject for number, subject in enumerate(cohort) if number % 2 != fold]
        held = [subject for number, subject in enumerate(cohort) if number % 2 == fold]
        chosen = replace(settings, **overrides)
        result = fit(small_network(), train, held, settings=chosen, state_dir=state_dir, score=dice, progress=False)
        return [scores["dice"] for scores in result.scores.values()]

    space = {"learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
    study = tune(objective, space=space, n_trials=2, n_folds=2, state_dir=tmp_path / "tune")
    chosen = replace(settings, **study.best_overrides)
    result = fit(small_network(), cohort, cohort, settings=chosen, state_dir=tmp_path / "train", score=dice)
    assert np.mean([scores["dice"] for scores in result.scores.values()]) > 0.6
    assert next(result.network.parameters()).device.type == "cpu" and torch.cuda.max_memory_allocated() > 0


def test_the_loss_of_a_network_with_heads_halves_from_level_to_level():
    torch.manual_seed(0)
    network = build_network("dynunet", widths=(2, 4, 6, 8)).eval()
    module = TrainingModule(network, loss="dice_bce", learning_rate=1e-3, total_steps=1)
    module.log = lambda *_, **__: None
    target = (torch.rand(2, 1, 16, 16, 16) > 0.9).float()
    batch = {"image": torch.rand(2, 1, 16, 16, 16), "target": target, "mask": torch.ones_like(target, dtype=torch.bool)}
    losses = [float(LOSSES["dice_bce"](head, batch["target"], batch["mask"])) for head in network.heads(batch["image"])]
    expected = (4 * losses[0] + 2 * losses[1] + losses[2]) / 7
    assert len(set(losses)) == 3 and float(module.training_step(batch, 0)) == pytest.approx(expected, rel=1e-5)


def test_the_average_follows_the_weights_and_is_what_is_returned(cohort, tmp_path):
    """With one step the average is the weights; later it lags behind, by the recursion a ← ema·a + (1 − ema)·w."""
    network = build_network("unet3d", widths=(2, 4))
    module = TrainingModule(network, loss="dice_bce", learning_rate=0.1, total_steps=3, ema=0.75)
    expected = None
    for _ in range(3):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += torch.randn_like(parameter)
        module.on_train_batch_end()
        weights = network.last.weight.detach().clone()
        expected = weights if expected is None else 0.75 * expected + 0.25 * weights
    torch.testing.assert_close(module.answering.last.weight, expected)
    assert not torch.equal(module.answering.last.weight, network.last.weight)
