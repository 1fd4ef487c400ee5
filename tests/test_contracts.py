"""What every member of an open family keeps: one more entry in the dict inherits these tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reperfuse.errors import InputError
from reperfuse.evaluation.metrics import lesion_scores
from reperfuse.networks import NETWORK_INPUTS, NETWORKS, build_network, load_network, save_network
from reperfuse.perfusion.deconvolution import METHODS, residue_function
from reperfuse.training.losses import ACTIVATIONS, LOSSES, QUANTILES, pinball


def image_for(name: str) -> torch.Tensor:
    """A small random input with the channels that a network takes without arguments."""
    shape = (60, 16, 16) if name.startswith("tmax") else (1, 32, 32, 32)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_builds_without_arguments_and_keeps_the_grid(name: str) -> None:
    image = image_for(name)
    assert build_network(name)(image).shape == (2, 1, *image.shape[2:])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_cubes_and_slices_of_64(name: str) -> None:
    channels = image_for(name).shape[1]
    # 64³ of 60 channels through 13 million weights is for larger machines: a slab of the same plane stands for it
    size = (64, 64, 8) if name.startswith("tmax") else (64, 64, 64)
    with torch.no_grad():
        network = build_network(name).eval()
        assert network(torch.rand(1, channels, *size)).shape == (1, 1, *size)
        assert network(torch.rand(1, channels, 64, 64)).shape == (1, 1, 64, 64)


def test_every_network_says_which_channels_it_takes() -> None:
    assert set(NETWORK_INPUTS) == set(NETWORKS)
    assert all(bool(inputs) == name.startswith("tmax_") for name, inputs in NETWORK_INPUTS.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name: str) -> None:
    network = build_network(name)
    # A network with deep supervision is trained by all its heads.
    answers = network.heads(image_for(name)) if hasattr(network, "heads") else [network(image_for(name))]
    sum(answer.square().sum() for answer in answers).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_gives_the_same_network(name: str) -> None:
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        outputs.append(build_network(name).eval()(image_for(name)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_predicts_the_same(name: str, tmp_path: Path) -> None:
    network = build_network(name).eval()
    save_network(tmp_path, name, {}, network)
    loaded, description = load_network(tmp_path)
    assert description["network"] == name
    assert torch.equal(loaded(image_for(name)), network(image_for(name)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_a_loss_has_finite_gradients_on_empty_and_full_targets(name: str, fill: float) -> None:
    prediction = torch.zeros(2, 1, 4, 4, 4, requires_grad=True)
    target = torch.full((2, 1, 4, 4, 4), fill)
    LOSSES[name](prediction, target, torch.ones(2, 4, 4, 4)).backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_lower_for_a_better_prediction(name: str) -> None:
    target = (torch.rand(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    mask = torch.ones(1, 6, 6, 6)
    good = (target - 0.5) * 20 if ACTIVATIONS[name] == "sigmoid" else target
    assert LOSSES[name](good, target, mask) < LOSSES[name](-good, target, mask)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_the_quantile_loss_keeps_the_contract_with_all_its_levels_too(fill: float) -> None:
    target, mask = torch.full((2, 2, 4, 4, 4), fill), torch.ones(2, 4, 4, 4)
    prediction = torch.zeros(2, 2 * len(QUANTILES), 4, 4, 4, requires_grad=True)
    pinball(prediction, target, mask).backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()
    good = target.repeat_interleave(len(QUANTILES), dim=1)
    assert pinball(good, target, mask) < pinball(good + 1, target, mask)


def curve(delay_s: float, dt: float = 1.0, n: int = 60) -> np.ndarray:
    """A gamma-variate that begins at 10 s + `delay_s`."""
    t = np.clip(np.arange(n) * dt - 10 - delay_s, 0, None)
    return t**3 * np.exp(-t / 1.5)


@pytest.mark.parametrize("method", METHODS)
def test_deconvolution_with_one_regularisation_is_linear_in_the_tissue_curve(method: str) -> None:
    first, second = curve(1), curve(4)
    both = residue_function(2 * first + 3 * second, curve(0), 1.0, method=method, threshold=0.15)
    apart = 2 * residue_function(first, curve(0), 1.0, method=method, threshold=0.15)
    apart = apart + 3 * residue_function(second, curve(0), 1.0, method=method, threshold=0.15)
    np.testing.assert_allclose(both, apart, atol=1e-4 * np.abs(apart).max())


@pytest.mark.parametrize("method", METHODS)
def test_deconvolution_keeps_scale(method: str) -> None:
    plain = residue_function(curve(2), curve(0), 1.0, method=method)
    scaled = residue_function(5 * curve(2), 5 * curve(0), 1.0, method=method)
    np.testing.assert_allclose(scaled, plain, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize("method", METHODS)
def test_deconvolution_refuses_an_artery_without_contrast(method: str) -> None:
    with pytest.raises(InputError, match="zero"):
        residue_function(curve(2), np.zeros(60), 1.0, method=method)


def test_lesion_scores_have_the_keys_that_scripts_rely_on() -> None:
    mask = np.ones((4, 4, 4), bool)
    assert set(lesion_scores(mask, mask, (1, 1, 1), probability=mask.astype(float))) == {
        "dice",
        "iou",
        "precision",
        "recall",
        "hd95_mm",
        "assd_mm",
        "surface_dice",
        "volume_difference_ml",
        "volume_error_ml",
        "false_positive_ml",
        "false_negative_ml",
        "missed_lesions",
        "invented_lesions",
        "lesion_count_difference",
        "lesion_f1_atlas",
        "lesion_f1_isles22",
        "lesion_rq_isles26",
        "auc",
        "pr_auc",
    }
