"""A trained network's answer for a whole volume, and where and how exactly it is computed."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from reperfuse.errors import InputError

PRECISIONS = ("auto", "32", "bf16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu")

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda value: value, "sigmoid": torch.sigmoid}


def device_of(accelerator: str = "auto") -> torch.device:
    """The CUDA device if there is one and it is not refused, else the CPU.

    Raises
    ------
    InputError
        If a GPU is asked for and there is none.

    Examples
    --------
    >>> device_of("cpu")
    device(type='cpu')
    """
    if accelerator not in ACCELERATORS:
        raise InputError(f"accelerator {accelerator!r} is not known: choose one of {', '.join(ACCELERATORS)}.")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError("accelerator gpu was asked for, but PyTorch sees no CUDA device: choose auto or cpu.")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def precision_of(precision: str, device: torch.device) -> str:
    """`precision` itself; for "auto" "bf16-mixed" where the hardware computes in bfloat16, else "32".

    bfloat16 keeps eight bits: a probability is then exact to about 0.002, a Tmax of 10 s to about 0.04 s.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not known: choose one of {', '.join(PRECISIONS)}.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    able = torch.cpu.get_capabilities()
    return "bf16-mixed" if able.get("avx512_bf16") or able.get("amx_bf16") else "32"


def predict_volume(
    network: nn.Module,
    image: np.ndarray,
    *,
    patch_size: Sequence[int] | None = None,
    overlap: float = 0.5,
    activation: str = "none",
    device: torch.device | str = "cpu",
    precision: str = "32",
) -> np.ndarray:
    """The network's answer (I, J, K) float32 for one image (C, I, J, K).

    Parameters
    ----------
    image
        May be memory-mapped.
    patch_size
        Sliding window in voxels, its answers blended by a Gaussian; None passes the whole image at once.
        The window bounds the network's memory, whatever the size of the image.
    overlap
        Share of a window that its neighbour covers too, 0 ≤ overlap < 1.
    activation
        "sigmoid" makes probabilities of logits; "none" leaves the value. Logits are blended before it.
    device, precision
        See `device_of` and `precision_of`; the network is moved there and stays.

    Examples
    --------
    >>> predict_volume(nn.Conv3d(2, 1, 1), np.zeros((2, 5, 4, 3), np.float32), activation="sigmoid").shape
    (5, 4, 3)
    """
    if activation not in ACTIVATION_FUNCTIONS:
        known = ", ".join(ACTIVATION_FUNCTIONS)
        raise InputError(f"activation {activation!r} is not known: choose one of {known}.")
    device = torch.device(device)
    value: Any
    mixed = precision_of(precision, device) == "bf16-mixed"
    was_training = network.training
    network.to(device).eval()

    def answer(window: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            return network(window).float()

    try:
        with torch.inference_mode():
            # The image stays on the CPU; windows travel to the device one by one.
            whole = torch.from_numpy(np.array(image, dtype=np.float32))[None]
            if patch_size is None:
                value = answer(whole.to(device)).cpu()
            else:
                value = sliding_window_inference(
                    whole, tuple(patch_size), 1, answer, overlap, mode="gaussian", sw_device=device, device="cpu"
                )
            return ACTIVATION_FUNCTIONS[activation](value)[0, 0].numpy()
    finally:
        network.train(was_training)


def mirrored(predict: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """`predict`, averaged over the eight mirror images of its argument (C, I, J, K), each answer turned back.

    Examples
    --------
    >>> first = mirrored(lambda image: image[0] * (np.arange(3) == 0)[:, None, None])
    >>> first(np.ones((1, 3, 1, 1)))[:, 0, 0].tolist()
    [0.5, 0.0, 0.5]
    """

    def mean(array: np.ndarray) -> np.ndarray:
        flips = [axes for n in range(4) for axes in combinations(range(3), n)]
        answers = (np.flip(predict(np.flip(array, tuple(axis + 1 for axis in axes)).copy()), axes) for axes in flips)
        return np.asarray(sum(answers) / len(flips))

    return mean
