"""The networks by name, and their weights on disk: `(B, C, I, J, K)` in, `(B, 1, I, J, K)` out."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from reperfuse.errors import InputError
from reperfuse.files import atomic_path, read_json, sha256_of, write_json
from reperfuse.networks.arrival import ArrivalNetwork, TmaxMatched
from reperfuse.networks.blocks import one_of
from reperfuse.networks.cnn import Cnn8
from reperfuse.networks.dynunet import DynUNet
from reperfuse.networks.resnet import ResNet20
from reperfuse.networks.tmax import tmax_1layer, tmax_2layer, tmax_deep, tmax_unet
from reperfuse.networks.unet import UNet, resunet2d, unet2d, unet2plus1d

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet3d": UNet,
    "unet2plus1d": unet2plus1d,
    "cnn8": Cnn8,
    "resnet20": ResNet20,
    "unet2d": unet2d,
    "resunet2d": resunet2d,
    "dynunet": DynUNet,
    "tmax_1layer": tmax_1layer,
    "tmax_2layer": tmax_2layer,
    "tmax_unet": tmax_unet,
    "tmax_deep": tmax_deep,
    "tmax_matched": TmaxMatched,
}
"""Name to constructor; every name builds without arguments."""

POSTERIORS: dict[str, Callable[..., nn.Module]] = {"arrival": ArrivalNetwork}
"""Name to constructor of networks with another contract: features (n, F) in, quantiles out. No stage trains them."""

NETWORK_INPUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("unet3d", "unet2plus1d", "cnn8", "resnet20", "unet2d", "resunet2d", "dynunet"), ()),
    "tmax_1layer": ("signal",),
    "tmax_2layer": ("signal",),
    "tmax_unet": ("signal",),
    "tmax_deep": ("signal",),
    "tmax_matched": ("matched",),
}
"""Groups of channels that a network takes where nothing else is asked for; an empty tuple is all there are."""

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"

WEIGHTS_ENDING = ".safetensors"


def build_network(name: str, **kwargs: Any) -> nn.Module:
    """The network of that name in `NETWORKS` or `POSTERIORS`; its first weights follow `torch.manual_seed`.

    Weights of 3D kernels lie with the channels last: a CPU then trains a small U-Net of 3D patches in 0.7 of the time,
    and layers pass the layout on to each other. Kernels one voxel thick would lose by it.

    Raises
    ------
    InputError
        If the name or an argument is not known; the sentence lists those there are.

    Examples
    --------
    >>> build_network("unet3d", widths=(4, 8)).last
    Conv3d(4, 1, kernel_size=(1, 1, 1), stride=(1, 1, 1))
    """
    known = NETWORKS | POSTERIORS
    constructor = known[one_of("network", name, known)]
    for key in kwargs:
        one_of(f"{name} argument", key, inspect.signature(constructor).parameters)
    network = constructor(**kwargs)
    thick = any(isinstance(layer, nn.Conv3d) and layer.kernel_size[2] > 1 for layer in network.modules())
    # PyTorch's annotations know of images only.
    return network.to(memory_format=torch.channels_last_3d) if thick else network  # type: ignore[call-overload]


def keras_parameter_count(network: nn.Module) -> int:
    """The number of parameters as Keras' `summary()` totals them: running means and variances included.

    Examples
    --------
    >>> keras_parameter_count(build_network("tmax_2layer"))
    1033
    """
    running = [buffer for name, buffer in network.named_buffers() if name.endswith(("running_mean", "running_var"))]
    return sum(tensor.numel() for tensor in [*network.parameters(), *running])


def save_network(
    folder: Path | str,
    name: str,
    kwargs: Mapping[str, Any],
    network: nn.Module,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `model.safetensors` and `model.json` (name, kwargs, hash of the weights, `extra`) into `folder`.

    Each file is whole or absent; the hash ties them, so that a process killed between the two leaves
    a pair that `load_network` refuses.
    """
    folder = Path(folder)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as inside:
        # Written here, for the library's own file can be read by its owner alone.
        inside.write_bytes(safetensors_bytes(state))
    description = {
        "network": name,
        "kwargs": dict(kwargs),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "extra": dict(extra or {}),
    }
    write_json(folder / DESCRIPTION, description)


def load_network(folder: Path | str) -> tuple[nn.Module, dict[str, Any]]:
    """The network `save_network` wrote, on the CPU and in evaluation mode, and its description.

    Raises
    ------
    InputError
        If a file is missing or damaged, or if weights and description do not belong together.
    """
    description, weights = _read(Path(folder))
    network = build_network(description["network"], **description["kwargs"])
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise _misfit(Path(folder), description, error) from error
    return network.eval(), description


def initialise(network: nn.Module, source: Path | str) -> list[str]:
    """Names of the tensors of `network` that are taken over from a folder of `save_network`, or a safetensors file.

    A tensor is taken if one of the same name and shape is there; the others stay as they are. It is for the caller to
    say how many fitted: none at all is no error here, since a search may try networks of several kinds.

    Raises
    ------
    InputError
        If a file is missing or damaged, or if weights and description do not belong together.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_network(folder, "tmax_2layer", {}, build_network("tmax_2layer"))
    ...     [len(initialise(build_network("tmax_2layer", in_channels=n), folder)) for n in (60, 40)]
    [14, 9]
    """
    weights = _weights(Path(source)) if Path(source).suffix == WEIGHTS_ENDING else _read(Path(source))[1]
    own = network.state_dict()
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    network.load_state_dict(fitting, strict=False)
    return list(fitting)


def learned_folder() -> Path:
    """Where the weights lie that ship with the package, to be read by `load_network` and `initialise`."""
    return Path(__file__).parent / "learned"


def _weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that no description goes with."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is missing, damaged or no safetensors file ({error}): restore it.") from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    description = read_json(folder / DESCRIPTION)
    if not isinstance(description, dict) or not {"network", "kwargs", "weights_sha256"} <= description.keys():
        raise InputError(f"{folder / DESCRIPTION} does not describe a network: train again or restore it.")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder / WEIGHTS} is missing: train again or restore it.")
    if sha256_of(folder / WEIGHTS) != description["weights_sha256"]:
        raise InputError(f"{folder / WEIGHTS} is damaged or not the file {DESCRIPTION} describes: restore both.")
    try:
        return description, load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise _misfit(folder, description, error) from error


def _misfit(folder: Path, description: Mapping[str, Any], error: Exception) -> InputError:
    reason = str(error).splitlines()[-1].strip()
    return InputError(f"{folder / WEIGHTS} does not fit {description['network']} ({reason}): restore it.")
