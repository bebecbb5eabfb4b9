"""The memory that one training step takes, and what `kiln train --dry-run` prints of a configuration."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine.config import Origins, TrainConfig, table
from engine.data.groups import group_images
from engine.errors import InputError
from engine.networks.layers import parameter_count
from engine.systems.registry import build
from engine.training.setup import image_sets, open_set


def describe(config: TrainConfig, origins: Origins) -> str:
    """Configuration, data, parameters and memory, for the terminal. Nothing is trained and no run folder is made."""
    system = build(config, "meta")
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
    """Bytes that one training step of one rank needs in addition to the program itself: purpose -> bytes."""
    config = config.of_rank()
    system = build(config, "meta")
    parameters = sum(map(parameter_count, system.networks().values()))
    averaged = sum(map(parameter_count, system.averaged().values()))
    kept = in_flight = 0
    for network, inputs, copies in system.passes(config.fused):
        saved, largest = saved_by(network, inputs)
        kept += copies * saved
        in_flight = max(in_flight, 2 * largest * (copies if config.fused else 1))
    size = (2 if config.precision == "bf16" else 4) * config.batch_size
    return {
        "weights": 4 * (parameters + averaged),
        # several ranks hold each gradient twice: engine.distributed.gradients exchanges a flat copy
        "gradients": (4 if config.ranks == 1 else 8) * parameters,
        "optimiser": 8 * parameters,
        "activations": size * kept,
        "in flight": size * in_flight,
    }


def require_memory(config: TrainConfig) -> None:
    """Raise InputError where one step of a rank needs more memory than its GPU has free."""
    if config.device != "cuda":
        return
    needed, free = sum(step_bytes(config).values()), torch.cuda.mem_get_info()[0]
    if needed > free:
        raise InputError(
            f"a step needs {needed / 2**30:.1f} GiB of the GPU's memory at the least and {free / 2**30:.1f} GiB are "
            "free; lower --batch-size, --filters or --resolution, or end what else uses the GPU"
        )


def saved_by(network: nn.Module, inputs: tuple) -> tuple[int, int]:
    """Count what one sample keeps for backward: (elements in all, elements of the largest tensor); results included.

    network: on the meta device, where operators return shapes without computing
    inputs:  those of one sample
    """
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # kept alive, so that no later storage gets the same address
        return tensor

    for tensor in tree_leaves(inputs):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        results = network(*inputs)
    for tensor in tree_leaves(results):
        if isinstance(tensor, Tensor):
            note(tensor)
    sizes = [storage.nbytes() // 4 for storage in kept.values()]
    return sum(sizes), max(sizes, default=0)


def _data(config: TrainConfig) -> str:
    lines = []
    for path, need in image_sets(config):
        if path is None:
            lines.append(f"embedded avatars, {need.look} look, rendered on first use")
            continue
        dataset = open_set(config, path, need)
        if need.samples > (count := group_images(dataset, need.members).count):
            raise InputError(f"--batch-size {config.batch_size} is larger than the data set ({count} samples)")
        lines.append(dataset.summary())
    return "\n  ".join(lines)
