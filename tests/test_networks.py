"""Every network keeps the contract: any size in, one channel of the same size out, and back from disk the same."""

import json

import pytest
import torch

from reperfuse.errors import InputError
from reperfuse.networks import NETWORKS, build_network, keras_parameter_count, load_network, save_network
from reperfuse.networks.blocks import NORMALISATIONS

CHANNELS = {"unet3d": 1, "tmax_2layer": 60}
SMALL = {"unet3d": {"widths": (2, 4, 6)}, "tmax_2layer": {}}


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    @pytest.mark.parametrize("size", [(16, 16, 8), (7, 5, 9), (1, 1, 1), (2, 3, 1)])
    def test_gives_one_finite_channel_of_the_size_it_was_given(self, name, size):
        network = build_network(name, **SMALL[name])
        assert (answer := network(torch.rand(2, CHANNELS[name], *size))).shape == (2, 1, *size)
        assert answer.isfinite().all()

    def test_builds_without_arguments_and_runs_a_slice(self, name):
        network = build_network(name)
        assert network(torch.rand(1, CHANNELS[name], 64, 64)).shape == (1, 1, 64, 64)
        assert network(torch.rand(1, CHANNELS[name], 64, 64, 1)).shape == (1, 1, 64, 64, 1)

    def test_sends_a_gradient_to_every_parameter(self, name):
        network = build_network(name, **SMALL[name])
        network(torch.rand(2, CHANNELS[name], 8, 8, 8)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())

    def test_is_the_same_for_the_same_seed(self, name):
        image, answers = torch.rand(1, CHANNELS[name], 8, 8, 4), []
        for _ in range(2):
            torch.manual_seed(3)
            answers.append(build_network(name, **SMALL[name])(image))
        assert torch.equal(*answers)

    def test_comes_back_from_disk_with_the_same_answer(self, name, tmp_path):
        network = build_network(name, **SMALL[name])
        image = torch.rand(2, CHANNELS[name], 8, 8, 4)
        network(image)  # moves running statistics away from their start
        save_network(tmp_path, name, SMALL[name], network, {"tr_s": 1.5})
        again, description = load_network(tmp_path)
        assert torch.equal(again(image), network.eval()(image))
        assert description["extra"] == {"tr_s": 1.5}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]

    def test_refuses_an_unknown_argument_and_lists_the_known(self, name):
        with pytest.raises(InputError, match=r"'witdhs' is not known: choose one of in_channels"):
            build_network(name, witdhs=3)

    def test_starts_from_the_output_bias(self, name):
        network = build_network(name, **SMALL[name], output_bias=5.0)
        last = [module for module in network.modules() if isinstance(module, torch.nn.Conv3d)][-1]
        assert last.bias.item() == 5.0


def test_an_unknown_network_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match="unet3d, tmax_2layer"):
        build_network("unet4d")


def test_tmax_2layer_has_the_published_number_of_parameters():
    assert keras_parameter_count(build_network("tmax_2layer")) == 1033


def test_the_unet_has_the_number_of_parameters_its_docstring_states():
    count = {width: sum(p.numel() for p in build_network("unet3d", width=width).parameters()) for width in (8, 16)}
    assert count == {8: 350_809, 16: 1_401_265}
    assert "350 809" in NETWORKS["unet3d"].__doc__ and "1 401 265" in NETWORKS["unet3d"].__doc__


def test_a_tmax_network_looks_at_one_voxel_only():
    network = build_network("tmax_2layer").eval()
    image = torch.rand(1, 60, 4, 4, 4)
    changed = image.clone()
    changed[..., 1, 2, 3] += 1
    difference = (network(changed) - network(image)).abs()[0, 0] > 0
    assert difference.nonzero().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_every_normalisation_runs_in_every_width(normalisation):
    network = build_network("unet3d", widths=(3, 12), normalisation=normalisation)
    assert network(torch.rand(2, 1, 8, 6, 5)).shape == (2, 1, 8, 6, 5)


def test_padding_inside_leaves_a_multiple_alone():
    torch.manual_seed(0)
    network = build_network("unet3d", widths=(2, 4, 6))
    image = torch.rand(1, 1, 8, 8, 8)
    seen = []
    network.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(image)
    assert torch.equal(seen[0], image)


@pytest.mark.parametrize("kwargs", [{"normalisation": "layer"}, {"block": "dense"}, {"widths": ()}, {"width": 0}])
def test_values_the_unet_cannot_be_built_with_are_refused(kwargs):
    with pytest.raises(InputError):
        build_network("unet3d", **kwargs)


def test_weights_that_do_not_belong_to_their_description_are_refused(tmp_path):
    for folder, widths in [("a", (2, 4)), ("b", (2, 6))]:
        save_network(tmp_path / folder, "unet3d", {"widths": widths}, build_network("unet3d", widths=widths))
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(InputError, match="damaged or not the file"):
        load_network(tmp_path / "a")


def test_a_description_of_another_network_is_refused(tmp_path):
    save_network(tmp_path, "unet3d", {"widths": (2, 4)}, build_network("unet3d", widths=(2, 4)))
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description | {"kwargs": {"widths": [2, 8]}}))
    with pytest.raises(InputError, match="does not fit unet3d"):
        load_network(tmp_path)


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, missing):
    save_network(tmp_path, "unet3d", {"widths": (2, 4)}, build_network("unet3d", widths=(2, 4)))
    (tmp_path / missing).unlink()
    with pytest.raises(InputError, match=missing):
        load_network(tmp_path)


@pytest.mark.parametrize("size", [(8, 8, 8), (9, 6, 7)])
def test_an_exported_unet_takes_every_size_whatever_its_example_was(size):
    network = build_network("unet3d", widths=(2, 4)).eval()
    free = {axis: torch.export.Dim.AUTO for axis in (0, 2, 3, 4)}
    exported = torch.export.export(network, (torch.rand(2, 1, *size),), dynamic_shapes=(free,)).module()
    for other in [(8, 8, 8), (8, 12, 10), (7, 5, 9)]:
        image = torch.rand(1, 1, *other)
        assert torch.allclose(exported(image), network(image), atol=1e-6)
