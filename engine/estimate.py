"""--dry-run: what a configuration would train, and the memory that its step takes."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from engine.config import Origins, TrainConfig, table
from engine.errors import InputError
from engine.networks.layers import Conv, parameter_count
from engine.systems import build


def describe(config: TrainConfig, origins: Origins) -> str:
    """Configuration, data, parameters and memory, for the terminal. Nothing is trained and no run folder is made."""
    system = build(replace(config, fused=False), "meta")
    networks = "\n".join(f"  {name:<15} {parameter_count(net):>12,}" for name, net in system.networks().items())
    parts = step_bytes(config)
    memory = "\n".join(
        f"  {name:<15} {size / 1e6:>9,.1f} MB" for name, size in {**parts, "together": sum(parts.values())}.items()
    )
    return "\n".join(
        [
            table(config, origins),
            f"data\n  {_data(config)}",
            f"parameters\n{networks}",
            f"memory of a step, estimated, beside what Python and PyTorch take\n{memory}",
            "dry run: nothing was trained or written",
        ]
    )


def step_bytes(config: TrainConfig) -> dict[str, int]:
    """Bytes of one training step, beside the program itself, by what they are for."""
    system = build(replace(config, fused=False), "meta")
    parameters = sum(map(parameter_count, system.networks().values()))
    averaged = sum(map(parameter_count, system.averaged().values()))
    kept = in_flight = 0
    for network, inputs, copies in system.passes(config.fused):
        saved, largest = saved_by(network, inputs, config.fused)
        kept += copies * saved
        in_flight = max(in_flight, 2 * largest * (copies if config.fused else 1))
    size = (2 if config.precision == "bf16" else 4) * config.batch_size
    return {
        "weights": 4 * (parameters + averaged),
        "gradients": 4 * parameters,
        "optimiser": 8 * parameters,
        "activations": size * kept,
        "in flight": size * in_flight,
    }


def saved_by(network: nn.Module, inputs: tuple, fused: bool) -> tuple[int, int]:
    """(elements that one sample leaves behind for the backward pass, those of the largest tensor on the way).

    network: on the meta device, eager. A fused layer keeps its output. An eager one keeps its input where that had to
    be built (enlarged, concatenated) and its output before and after the activation, all at the resolution of the
    convolution.
    """
    saved = largest = 0

    def note(layer: Conv, arguments: tuple, options: dict, result: Tensor) -> None:
        nonlocal saved, largest
        output = result.numel()
        at_convolution = output * (4 if layer.resize == "down" else 1)
        built = 0
        if layer.resize == "up" or options.get("second") is not None:
            built = at_convolution // result.shape[1] * layer.weight.shape[1]
        saved += output if fused else built + at_convolution * (1 if layer.activation == "none" else 2)
        largest = max(largest, output if fused else max(built, at_convolution))

    hooks = [m.register_forward_hook(note, with_kwargs=True) for m in network.modules() if isinstance(m, Conv)]
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return saved, largest


def _data(config: TrainConfig) -> str:
    from engine.data.loader import group
    from engine.loop import image_sets, open_set

    lines = []
    for path, need in image_sets(config):
        if path is None:
            lines.append(f"embedded avatars, {need.look} look, rendered on first use")
            continue
        dataset = open_set(config, path, need)
        if need.samples > (count := group(dataset, need.members).count):
            raise InputError(f"--batch-size {config.batch_size} is larger than the data set ({count} samples)")
        lines.append(dataset.summary())
    return "\n  ".join(lines)
