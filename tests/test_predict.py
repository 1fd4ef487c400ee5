"""A volume's prediction does not depend on how it was cut, and leaves the network as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from reperfuse.errors import InputError
from reperfuse.networks import build_network
from reperfuse.training.predict import device_of, mirrored, precision_of, predict_volume

IMAGE = np.random.default_rng(0).normal(size=(2, 13, 11, 9)).astype(np.float32)


@pytest.mark.parametrize("patch_size", [(8, 8, 8), (5, 11, 4), (16, 16, 16)])
def test_windows_give_what_the_whole_volume_gives_when_each_voxel_stands_alone(patch_size):
    network = nn.Conv3d(2, 1, 1)
    whole = predict_volume(network, IMAGE)
    assert whole.shape == IMAGE.shape[1:] and whole.dtype == np.float32
    np.testing.assert_allclose(predict_volume(network, IMAGE, patch_size=patch_size), whole, atol=1e-6)


def test_sigmoid_makes_probabilities_of_the_same_logits():
    network = nn.Conv3d(2, 1, 3, padding=1)
    logits = predict_volume(network, IMAGE)
    probability = predict_volume(network, IMAGE, activation="sigmoid")
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_prediction_uses_running_statistics_and_gives_the_mode_back():
    network = build_network("tmax_2layer", in_channels=2).train()
    network(3 + torch.randn(1, 2, 8, 8, 8))  # running statistics unlike the image's own
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    answer = predict_volume(network, IMAGE)
    assert network.training and all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    expected = network.eval()(torch.from_numpy(IMAGE)[None])[0, 0].detach().numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_a_memory_mapped_image_is_read_and_left_alone(tmp_path):
    np.save(tmp_path / "image.npy", IMAGE)
    network = nn.Conv3d(2, 1, 1)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    assert np.array_equal(
        predict_volume(network, mapped, patch_size=(8, 8, 8)), predict_volume(network, IMAGE, patch_size=(8, 8, 8))
    )


def test_bfloat16_agrees_to_its_eight_bits():
    network = nn.Conv3d(2, 1, 3, padding=1)
    single, half = (predict_volume(network, IMAGE, precision=precision) for precision in ("32", "bf16-mixed"))
    assert 0 < np.abs(single - half).max() < 0.02


def test_auto_takes_bfloat16_only_where_the_hardware_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for able, expected in [({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True}, "bf16-mixed"), ({}, "32")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert precision_of("auto", cpu) == expected
    assert precision_of("32", cpu) == "32"


def test_auto_takes_the_gpu_when_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto").type == device_of("gpu").type == "cuda" and device_of("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto").type == "cpu"
    with pytest.raises(InputError, match="no CUDA device"):
        device_of("gpu")


@pytest.mark.parametrize("wrong", [{"activation": "tanh"}, {"precision": "16"}])
def test_unknown_names_are_refused_with_those_there_are(wrong):
    with pytest.raises(InputError, match="choose one of"):
        predict_volume(nn.Conv3d(2, 1, 1), IMAGE, **wrong)


def test_mirrored_answers_are_those_of_the_mirror_image():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 4, 3))
    predict = mirrored(lambda array: np.tanh(array[0] * weights))
    array = rng.normal(size=(1, 5, 4, 3))
    for axes in ((), (0,), (1, 2), (0, 1, 2)):
        turned = predict(np.flip(array, tuple(axis + 1 for axis in axes)))
        np.testing.assert_allclose(np.flip(turned, axes), predict(array), atol=1e-12)
    even = mirrored(lambda array: array[0] ** 2)
    np.testing.assert_allclose(even(array), array[0] ** 2)
