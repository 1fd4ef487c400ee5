"""What a training step costs: single precision or bfloat16, channels first or last in memory.

    python benchmarks/training_step.py [--device cpu] [--edge 32] [--rounds 7]

prints a Markdown table: for each lesion network the median time of one step (forward with all heads, backward, AdamW)
on a batch of two patches, or of as many voxels in slices, in each of the four ways, and how many times faster the way
that `networks.build_network` and `train.precision: auto` take is than plain single precision. The ways take turns in
each round, so that a machine whose speed drifts is fair to all of them.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from lesion_networks import ENTRIES
from torch import nn

from reperfuse.networks import build_network
from reperfuse.networks.dynunet import DynUNet
from reperfuse.training.predict import precision_of

WAYS = {
    "fp32": (False, torch.contiguous_format),
    "bf16": (True, torch.contiguous_format),
    "fp32, channels last": (False, torch.channels_last_3d),
    "bf16, channels last": (True, torch.channels_last_3d),
}
"""Name → bfloat16 or not, and the memory format of the weights."""


def stepper(
    name: str, kwargs: dict, image: torch.Tensor, mixed: bool, memory_format: torch.memory_format
) -> Callable[[], float]:
    """A function that trains one step and gives its seconds."""
    torch.manual_seed(0)
    network: nn.Module = build_network(name, **kwargs).to(image.device, memory_format=memory_format)
    optimiser = torch.optim.AdamW(network.parameters())

    def wait() -> None:
        if image.device.type == "cuda":
            torch.cuda.synchronize()

    def step() -> float:
        wait()
        started = time.perf_counter()
        with torch.autocast(image.device.type, torch.bfloat16, enabled=mixed):
            answers = network.heads(image) if isinstance(network, DynUNet) else [network(image)]
            loss = torch.stack([answer.float().square().mean() for answer in answers]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        wait()
        return time.perf_counter() - started

    return step


def main() -> None:
    """Time every network in every way, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--edge", type=int, default=32, help="voxels along each axis of a patch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="*", choices=ENTRIES, default=list(ENTRIES))
    asked = parser.parse_args()
    device = torch.device(asked.device)
    print(f"{torch.get_num_threads()} threads, {asked.device}, auto is {precision_of('auto', device)}\n")
    print(f"| step [s] | {' | '.join(WAYS)} | as trained, times fp32 |\n|---|{'--:|' * (len(WAYS) + 1)}")
    for label in asked.networks:
        entry = ENTRIES[label]
        thin = "sampling" in entry.settings
        shape = (2 * asked.edge, 1, asked.edge, asked.edge, 1) if thin else (2, 1, *[asked.edge] * 3)
        image = torch.randn(shape, device=device)
        steps = {way: stepper(entry.network, entry.kwargs, image, *how) for way, how in WAYS.items()}
        for step in steps.values():
            step()
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(asked.rounds):
            for way, step in steps.items():
                seconds[way].append(step())
        taken = {way: median(times) for way, times in seconds.items()}
        weights = [p for p in build_network(entry.network, **entry.kwargs).parameters() if p.ndim == 5]
        last = any(not w.is_contiguous() and w.is_contiguous(memory_format=torch.channels_last_3d) for w in weights)
        chosen = ("bf16" if precision_of("auto", device) != "32" else "fp32") + (", channels last" if last else "")
        cells = " | ".join(f"{value:.3f}" for value in taken.values())
        print(f"| {label} | {cells} | {taken['fp32'] / taken[chosen]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
