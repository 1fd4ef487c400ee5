"""Every network keeps the contract: any size in, one channel of the same size out, and back from disk the same."""

import inspect
import json
import re

import pytest
import torch

from reperfuse.errors import InputError
from reperfuse.networks import (
    NETWORKS,
    POSTERIORS,
    build_network,
    initialise,
    keras_parameter_count,
    learned_folder,
    load_network,
    save_network,
)
from reperfuse.networks.blocks import BLOCKS, NORMALISATIONS, ResidualBlock

SMALL = {
    "unet3d": {"widths": (2, 4, 6)},
    "unet2plus1d": {"widths": (2, 4, 6)},
    "unet2d": {"widths": (2, 4, 6)},
    "resunet2d": {"widths": (2, 4, 6)},
    "cnn8": {"widths": (2, 4, 6), "head": 3},
    "resnet20": {"units": 4, "widths": (2, 3, 4), "head": 3},
    "dynunet": {"widths": (2, 4, 6, 8)},
    "tmax_unet": {"widths": (4, 6, 8), "bottom": 10},
}


def channels(name: str) -> int:
    return inspect.signature(NETWORKS[name]).parameters["in_channels"].default


def small(name: str) -> torch.nn.Module:
    return build_network(name, **SMALL.get(name, {}))


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    @pytest.mark.parametrize("size", [(16, 16, 8), (7, 5, 9), (1, 1, 1), (2, 3, 1)])
    def test_gives_one_finite_channel_of_the_size_it_was_given(self, name, size):
        network = small(name)
        assert (answer := network(torch.rand(2, channels(name), *size))).shape == (2, 1, *size)
        assert answer.isfinite().all()

    def test_builds_without_arguments_and_runs_a_slice(self, name):
        network = build_network(name)
        assert network(torch.rand(1, channels(name), 64, 64)).shape == (1, 1, 64, 64)
        assert network(torch.rand(1, channels(name), 64, 64, 1)).shape == (1, 1, 64, 64, 1)

    def test_sends_a_gradient_to_every_parameter(self, name):
        network = small(name)
        image = torch.rand(2, channels(name), 16, 16, 8)
        answers = network.heads(image) if hasattr(network, "heads") else [network(image)]
        sum(answer.square().sum() for answer in answers).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())

    def test_is_the_same_for_the_same_seed(self, name):
        image, answers = torch.rand(1, channels(name), 8, 8, 4), []
        for _ in range(2):
            torch.manual_seed(3)
            answers.append(small(name)(image))
        assert torch.equal(*answers)

    def test_comes_back_from_disk_with_the_same_answer(self, name, tmp_path):
        network = small(name)
        image = torch.rand(2, channels(name), 8, 8, 4)
        network(image)  # moves running statistics away from their start
        save_network(tmp_path, name, SMALL.get(name, {}), network, {"tr_s": 1.5})
        again, description = load_network(tmp_path)
        assert torch.equal(again(image), network.eval()(image))
        assert description["extra"] == {"tr_s": 1.5}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]

    def test_refuses_an_unknown_argument_and_lists_the_known(self, name):
        with pytest.raises(InputError, match=r"'witdhs' is not known: choose one of in_channels"):
            build_network(name, witdhs=3)

    def test_starts_from_the_output_bias_if_it_has_one(self, name):
        if name == "tmax_matched":  # it adds to an estimate that is among its features
            assert "output_bias" not in inspect.signature(NETWORKS[name]).parameters
            return
        network = build_network(name, **SMALL.get(name, {}), output_bias=5.0)
        last = [module for module in network.modules() if isinstance(module, torch.nn.Conv3d | torch.nn.Linear)][-1]
        assert last.bias.item() == 5.0


def test_an_unknown_network_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match=r"unet3d, unet2plus1d, .*, tmax_1layer, tmax_2layer"):
        build_network("unet4d")


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("tmax_")])
def test_a_tmax_network_takes_60_frames_and_starts_at_three_seconds(name):
    parameters = inspect.signature(NETWORKS[name]).parameters
    assert parameters["in_channels"].default == 60
    if name != "tmax_matched":
        assert parameters["output_bias"].default == 3.0


@pytest.mark.parametrize(("name", "count"), [("tmax_1layer", 61), ("tmax_2layer", 1033), ("tmax_unet", 13_123_329)])
def test_a_published_network_has_exactly_the_published_number_of_parameters(name, count):
    assert keras_parameter_count(build_network(name)) == count


def test_the_published_unet_has_the_layers_its_docstring_adds_up():
    rows = re.findall(r"^ +(\S.*?) {2,}(\d+(?: → \d+)+) +([\d ]+)$", NETWORKS["tmax_unet"].__doc__, re.MULTILINE)
    network = build_network("tmax_unet")
    merged = [part for pair in zip(network.up, network.merge, strict=True) for part in pair]
    parts = [network.first, *network.down, network.bottom, network.rejoin, *merged, network.last]
    for (layer, path, count), part in zip(rows, parts, strict=True):
        convolutions = [m for m in part.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.ConvTranspose3d)]
        widths = [convolutions[0].in_channels, *(c.out_channels for c in convolutions)]
        assert " → ".join(map(str, widths)) == path, layer
        assert sum(p.numel() for p in part.parameters()) == int(count.replace(" ", "")), layer
        size = convolutions[0].kernel_size
        assert size == (int(re.search(r"(\d)³", layer).group(1)),) * 3, layer
    assert sum(int(count.replace(" ", "")) for *_, count in rows) == 13_123_329


@pytest.mark.parametrize("size", [(16, 8, 8), (16, 16, 24)])
def test_the_bottom_of_the_published_unet_keeps_the_resolution_of_the_level_above(size):
    network = build_network("tmax_unet", widths=(2, 3, 4, 5), bottom=6)
    seen = {}
    for name in ("bottom", "rejoin"):
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0].shape[1:], output.shape[1:])})
        )
    network(torch.rand(1, 60, *size))
    lowest = tuple(length // 8 for length in size)
    assert seen == {"bottom": ((5, *lowest), (6, *lowest)), "rejoin": ((11, *lowest), (5, *lowest))}


@pytest.mark.parametrize("depth", range(2, 13))
def test_a_deeper_network_has_one_more_convolution_per_layer(depth):
    network = build_network("tmax_deep", depth=depth)
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds.count("Conv3d") == kinds.count("BatchNorm3d") == depth and kinds.count("ReLU") == depth - 1
    assert keras_parameter_count(network) == 1033 + (depth - 2) * 204


def test_two_layers_of_the_deep_network_are_the_two_layer_network():
    answers, image = [], torch.rand(2, 60, 4, 4, 4)
    for name, kwargs in [("tmax_deep", {"depth": 2}), ("tmax_2layer", {})]:
        torch.manual_seed(1)
        answers.append(build_network(name, **kwargs)(image))
    assert torch.equal(*answers)


@pytest.mark.parametrize("kwargs", [{"depth": 1}, {"depth": 13}, {"hidden": 0}])
def test_depths_out_of_range_are_refused(kwargs):
    with pytest.raises(InputError, match=r"depth|Hidden"):
        build_network("tmax_deep", **kwargs)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_the_published_unet_runs_with_every_normalisation_and_dropout(normalisation):
    network = build_network("tmax_unet", **SMALL["tmax_unet"], normalisation=normalisation, dropout=0.3)
    network(image := torch.rand(2, 60, 8, 8, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert torch.equal(network.eval()(image), network(image))


def test_dropout_changes_the_training_and_not_the_answer_nor_the_weights():
    answers, image = {}, torch.rand(1, 60, 8, 8, 8)
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        network = build_network("tmax_unet", **SMALL["tmax_unet"], dropout=dropout)
        answers[dropout] = [network(image), network(image), network.eval()(image)]
    assert torch.equal(answers[0.0][0], answers[0.0][1]) and not torch.equal(answers[0.5][0], answers[0.5][1])
    assert torch.equal(answers[0.0][2], answers[0.5][2])


def test_dropout_sits_below_the_first_level_on_the_way_down_and_at_the_bottom():
    network = build_network("tmax_unet", dropout=0.2)
    dropping = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Dropout3d)]
    assert [name.rpartition(".")[0] for name in dropping] == ["down.0", "down.1", "down.2", "bottom"]
    assert all(network.get_submodule(name).p == 0.2 for name in dropping)


def test_a_convolution_without_normalisation_has_a_bias_and_with_one_has_none():
    for normalisation in NORMALISATIONS:
        block = build_network("tmax_unet", **SMALL["tmax_unet"], normalisation=normalisation).first
        assert (block[0].bias is not None) == (normalisation == "none")


LESION = [name for name in NETWORKS if not name.startswith("tmax_")]
FLAT = ["cnn8", "resnet20", "unet2d", "resunet2d"]


def count(network: torch.nn.Module) -> str:
    """Number of parameters as a docstring writes it."""
    return f"{sum(p.numel() for p in network.parameters()):,}".replace(",", " ")


@pytest.mark.parametrize("name", LESION)
def test_a_lesion_network_has_the_number_of_parameters_its_docstring_states(name):
    assert f"{count(build_network(name))} parameters by default" in NETWORKS[name].__doc__


def test_the_unets_of_other_widths_have_the_parameters_that_are_stated_too():
    assert f"{count(build_network('unet3d', width=16))} with `width=16`" in NETWORKS["unet3d"].__doc__
    wide = build_network("unet3d", widths=(32, 64, 128, 256, 512))
    assert f"`unet3d` of these widths has {count(wide)}" in NETWORKS["unet2plus1d"].__doc__


@pytest.mark.parametrize("name", FLAT)
def test_a_network_of_slices_sees_each_slice_alone(name):
    network = small(name).eval()
    volume = torch.rand(1, 1, 16, 12, 5)
    alone = torch.stack([network(volume[..., k]) for k in range(5)], dim=-1)
    torch.testing.assert_close(network(volume), alone)


@pytest.mark.parametrize("name", [name for name in LESION if name not in FLAT])
def test_a_network_of_volumes_looks_across_slices(name):
    torch.manual_seed(0)
    network = small(name).eval()
    volume = torch.rand(1, 1, 16, 16, 16)
    changed = volume.clone()
    changed[..., 7] += 1
    difference = (network(changed) - network(volume)).abs().amax(dim=(0, 1, 2, 3))
    assert difference[6] > 0 and difference[8] > 0


@pytest.mark.parametrize("normalisation", ["batch", "instance", "group"])
@pytest.mark.parametrize("name", [name for name in LESION if name != "cnn8"])
def test_the_normalisation_layer_is_an_argument(name, normalisation):
    kinds = {"batch": torch.nn.BatchNorm3d, "instance": torch.nn.InstanceNorm3d, "group": torch.nn.GroupNorm}
    kwargs = SMALL[name] if name != "dynunet" else {"widths": (8, 8, 16, 16)}
    network = build_network(name, **kwargs, normalisation=normalisation)
    others = tuple(kind for other, kind in kinds.items() if other != normalisation)
    layers = list(network.modules())
    assert any(isinstance(layer, kinds[normalisation]) for layer in layers)
    assert not any(isinstance(layer, others) for layer in layers)
    assert network(torch.rand(2, 1, 16, 16, 8)).isfinite().all()


def test_a_factorised_convolution_has_the_weights_its_docstring_counts():
    a, b = 5, 7
    block = BLOCKS["2plus1d"](a, b, "none")
    assert sum(p.numel() for p in block.parameters() if p.ndim > 1) == (9 * a * b + 3 * b * b) + (9 * b * b + 3 * b * b)


def test_the_residual_encoder_strides_where_the_plain_one_pools():
    network = build_network("resunet2d", **SMALL["resunet2d"])
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    assert [block.beside.stride for block in blocks] == [(1, 1, 1), (2, 2, 1)]
    assert [block.inside[0].stride for block in blocks] == [(1, 1, 1), (2, 2, 1)]
    assert all(block.after[1].p == 0.5 for block in blocks)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("unet3d", {"widths": ()}, "widths"),
        ("unet3d", {"block": "2plus1d", "flat": True}, "looks across slices"),
        ("cnn8", {"widths": (4, 4)}, "widths"),
        ("cnn8", {"dropout": 1.0}, "dropout"),
        ("resnet20", {"units": 2}, "units 2 must be at least 3"),
        ("resnet20", {"widths": (8, 4, 4)}, "do not fall"),
        ("dynunet", {"widths": (8, 8)}, "three or more"),
        ("dynunet", {"normalisation": "none"}, "normalisation"),
    ],
)
def test_arguments_out_of_range_are_refused(name, kwargs, words):
    with pytest.raises(InputError, match=words):
        build_network(name, **kwargs)


def test_resnet20_has_twenty_units_of_two_convolutions():
    network = build_network("resnet20")
    assert len(network.units) == 20
    assert all(sum(isinstance(layer, torch.nn.Conv3d) for layer in unit.inside) == 2 for unit in network.units)


def test_cnn8_has_eight_convolutions_of_the_published_widths():
    layers = [layer for layer in build_network("cnn8").modules() if isinstance(layer, torch.nn.Conv3d)]
    assert [layer.out_channels for layer in layers] == [64, 64, 128, 128, 256, 256, 64, 1]
    assert build_network("cnn8")(torch.rand(1, 1, 232, 196)).shape == (1, 1, 232, 196)


def test_deep_supervision_gives_the_answer_first_and_each_coarser_level_after_it():
    network, image = build_network("dynunet", widths=(2, 4, 6, 8)).eval(), torch.rand(1, 1, 11, 12, 7)
    heads = network.heads(image)
    assert len(heads) == 3 and all(head.shape == image.shape for head in heads)
    assert torch.equal(heads[0], network(image))


def test_dynunet_without_deep_supervision_answers_once_and_the_same():
    kwargs = {"widths": (2, 4, 6, 8)}
    torch.manual_seed(0)
    supervised = build_network("dynunet", **kwargs).eval()
    alone = build_network("dynunet", **kwargs, deep_supervision=False).eval()
    assert set(supervised.state_dict()) - set(alone.state_dict()) == {
        f"supervision.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias")
    }
    alone.load_state_dict(supervised.state_dict(), strict=False)
    image = torch.rand(1, 1, 9, 10, 11)
    (answer,) = alone.heads(image)
    assert torch.equal(answer, supervised(image)) and len(supervised.heads(image)) == 3


def test_only_weights_that_look_through_the_slices_lie_with_the_channels_last():
    for name, last in [("unet3d", True), ("unet2plus1d", True), ("dynunet", True), ("unet2d", False), ("cnn8", False)]:
        weights = [value for value in small(name).parameters() if value.ndim == 5 and min(value.shape[:2]) > 1]
        strides = {
            value.is_contiguous(memory_format=torch.channels_last_3d) for value in weights if value[0].numel() > 1
        }
        assert strides == {last}, name


def test_dynunet_computes_what_monais_network_of_these_layers_does():
    from monai.networks.nets import DynUNet

    theirs = DynUNet(3, 1, 1, [3] * 4, [1, 2, 2, 2], [2] * 3, [2, 4, 6, 8], norm_name="BATCH").eval()
    ours = build_network("dynunet", widths=(2, 4, 6, 8)).eval()
    down = [theirs.input_block, *theirs.downsamples, theirs.bottleneck]
    pairs = [
        *zip(ours.down, down, strict=True),
        (ours.up, theirs.upsamples),
        (ours.last, theirs.output_block.conv.conv),
    ]
    for part, of_theirs in pairs:
        part.load_state_dict(of_theirs.state_dict())
    image = torch.rand(2, 1, 16, 16, 16)
    torch.testing.assert_close(ours(image), theirs(image))


@pytest.mark.parametrize("name", ["tmax_1layer", "tmax_2layer", "tmax_deep"])
def test_a_network_of_point_convolutions_looks_at_one_voxel_only(name):
    network = build_network(name).eval()
    image = torch.rand(1, 60, 4, 4, 4)
    changed = image.clone()
    changed[..., 1, 2, 3] += 1
    difference = (network(changed) - network(image)).abs()[0, 0] > 0
    assert difference.nonzero().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_every_normalisation_runs_in_every_width(normalisation):
    network = build_network("unet3d", widths=(3, 12), normalisation=normalisation)
    assert network(torch.rand(2, 1, 8, 6, 5)).shape == (2, 1, 8, 6, 5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_one_voxel_alone_can_be_trained_on_with_every_normalisation(normalisation):
    network = build_network("unet3d", widths=(8, 8, 8), normalisation=normalisation)
    assert network(torch.rand(1, 1, 1, 1, 1)).isfinite().all()


def test_padding_inside_leaves_a_multiple_alone():
    torch.manual_seed(0)
    network = build_network("unet3d", widths=(2, 4, 6))
    image = torch.rand(1, 1, 8, 8, 8)
    seen = []
    network.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(image)
    assert torch.equal(seen[0], image)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"normalisation": "layer"},
        {"block": "dense"},
        {"widths": ()},
        {"width": 0},
        {"bottom": -1},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
)
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


def test_what_fits_is_taken_over_and_the_rest_stays(tmp_path):
    given, network = build_network("tmax_2layer"), build_network("tmax_2layer", in_channels=40)
    given(torch.rand(2, 60, 4, 4, 4))  # moves running statistics away from their start
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_network(tmp_path, "tmax_2layer", {}, given)
    taken = initialise(network, tmp_path)
    theirs, ours = given.state_dict(), network.state_dict()
    fits = [name for name in ours if ours[name].shape == theirs[name].shape]
    assert taken == fits and 0 < len(taken) < len(ours)
    assert all(torch.equal(ours[name], (theirs if name in fits else before)[name]) for name in ours)


def test_a_network_starts_as_the_one_it_is_initialised_from(tmp_path):
    given, network = small("tmax_unet"), small("tmax_unet")
    save_network(tmp_path, "tmax_unet", SMALL["tmax_unet"], given)
    taken = initialise(network, tmp_path)
    image = torch.rand(1, 60, 8, 8, 8)
    assert taken == list(network.state_dict()) and torch.equal(network(image), given(image))


def test_weights_of_another_kind_fit_nowhere_and_change_nothing(tmp_path):
    network = build_network("tmax_1layer")
    before = network.layers[0].weight.clone()
    save_network(tmp_path, "unet3d", {"widths": (2, 4)}, build_network("unet3d", widths=(2, 4)))
    assert initialise(network, tmp_path) == [] and torch.equal(network.layers[0].weight, before)


def test_the_weights_may_be_a_safetensors_file_alone(tmp_path):
    given, network = build_network("tmax_2layer"), build_network("tmax_2layer")
    save_network(tmp_path, "tmax_2layer", {}, given)
    alone = tmp_path / "weights.safetensors"
    (tmp_path / "model.safetensors").rename(alone)
    assert initialise(network, alone) == list(network.state_dict())
    assert torch.equal(network.layers[0].weight, given.layers[0].weight)
    alone.write_bytes(alone.read_bytes()[:100])
    with pytest.raises(InputError, match=r"weights\.safetensors is missing, damaged"):
        initialise(network, alone)
    with pytest.raises(InputError, match=r"none\.safetensors is missing"):
        initialise(network, tmp_path / "none.safetensors")


@pytest.mark.parametrize("take", [load_network, lambda folder: initialise(build_network("tmax_2layer"), folder)])
def test_damaged_weights_are_refused_whoever_reads_them(take, tmp_path):
    save_network(tmp_path, "tmax_2layer", {}, build_network("tmax_2layer"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(InputError, match="damaged"):
        take(tmp_path)


def test_a_posterior_network_is_built_and_loaded_by_name_but_no_stage_may_train_it(monkeypatch, tmp_path):
    monkeypatch.setitem(POSTERIORS, "line", torch.nn.Linear)
    assert "line" not in NETWORKS
    network = build_network("line", in_features=3, out_features=2)
    save_network(tmp_path, "line", {"in_features": 3, "out_features": 2}, network)
    again, description = load_network(tmp_path)
    assert description["network"] == "line" and torch.equal(again(torch.ones(3)), network(torch.ones(3)))


def test_the_shipped_weights_lie_inside_the_package():
    import reperfuse.networks

    assert learned_folder().parent.samefile(reperfuse.networks.__path__[0])


@pytest.mark.parametrize("name", ["unet3d", "tmax_unet"])
@pytest.mark.parametrize("size", [(8, 8, 8), (9, 6, 7)])
def test_an_exported_unet_takes_every_size_whatever_its_example_was(name, size):
    network = build_network(name, **SMALL[name]).eval()
    free = {axis: torch.export.Dim.AUTO for axis in (0, 2, 3, 4)}
    image = torch.rand(2, channels(name), *size)
    exported = torch.export.export(network, (image,), dynamic_shapes=(free,)).module()
    for other in [(8, 8, 8), (20, 12, 10), (7, 5, 9)]:
        image = torch.rand(1, channels(name), *other)
        assert torch.allclose(exported(image), network(image), atol=1e-6)
