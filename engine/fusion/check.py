"""Compares a fused model with itself before, on example inputs."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from engine.fusion.chains.savings import Savings
from engine.fusion.forward import unfused
from engine.kernels._spec import relative_error
from engine.kernels.resize_conv_act.spec import SPEC

WINOGRAD = 2e-5  # what the operator's tiles may err in float32, of each chain


def check(model: nn.Module, example_inputs: object, savings: Savings) -> tuple[str, tuple[float, float, float] | None]:
    """Runs a fused model as it was, in float64, and fused while `savings` counts.

    Returns what is wrong with the fused model ("" where nothing is) and its error, eager's and the allowed one.
    Random numbers are the same in all runs; buffers and the random state are as before afterwards.
    Raises ValueError where the model itself cannot run.
    """
    args, kwargs = _arguments(example_inputs)
    with unfused(model):
        try:
            with _undisturbed(model), torch.no_grad():
                eager = _tensors(model(*args, **kwargs))
        except Exception as error:
            # whatever the model's own code raises
            raise ValueError(
                f"fuse: the model cannot run on example_inputs: {type(error).__name__}: {error}"
            ) from error
        exact = _in_float64(model, args, kwargs)
    try:
        with _undisturbed(model):
            with savings:
                outputs = _tensors(model(*args, **kwargs))
            _differentiate(model, outputs)
    except Exception as error:
        # likewise; the model ran before it was fused
        return f"the fused model fails ({type(error).__name__}: {str(error).splitlines()[0]})", None
    return _compare(eager, exact, [y.detach() for y in outputs], len(savings.products))


def _arguments(example_inputs: object) -> tuple[tuple, dict[str, object]]:
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Seeded; buffers and random numbers go on as if nothing had run."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)


def _tensors(outputs: object) -> list[Tensor]:
    leaves = tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _in_float64(model: nn.Module, args: tuple, kwargs: dict[str, object]) -> list[Tensor] | None:
    """The model's outputs in float64; None for a model that cannot run so."""

    def double(value: object) -> object:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    try:
        with _undisturbed(model), torch.no_grad():
            exact = copy.deepcopy(model).double()
            return _tensors(exact(*tree_map(double, args), **tree_map(double, kwargs)))
    except Exception:
        # code that names a dtype, or modules that cannot be copied: eager's own outputs serve instead
        return None


def _differentiate(model: nn.Module, outputs: list[Tensor]) -> None:
    wanted = [p for p in model.parameters() if p.requires_grad]
    reached = [y.sum() for y in outputs if y.requires_grad]
    if wanted and reached:
        torch.autograd.grad(reached, wanted, allow_unused=True)


def _compare(
    eager: list[Tensor], exact: list[Tensor] | None, fused: list[Tensor], chains: int
) -> tuple[str, tuple[float, float, float] | None]:
    if [y.shape for y in eager] != [y.shape for y in fused] or [y.dtype for y in eager] != [y.dtype for y in fused]:
        return "the outputs have other shapes or dtypes", None
    worst = (0.0, 0.0, 0.0)
    for index, y in enumerate(eager):
        truth = y if exact is None else exact[index]
        of_eager, of_fused = _error(y, truth), _error(fused[index], truth)
        # with eager's own outputs for truth, its error is taken to be a few roundings
        twice = 8 * torch.finfo(y.dtype).eps if exact is None else 2 * of_eager
        allowed = twice + chains * max(WINOGRAD, SPEC.floor.get(y.dtype, 0.0))
        if not of_fused <= allowed:
            return f"the outputs differ (error {of_fused:.1e}, allowed {allowed:.1e})", (of_fused, of_eager, allowed)
        if not _error(fused[index], y) <= allowed + of_eager:
            return "the outputs differ from eager's", (of_fused, of_eager, allowed)
        worst = max(worst, (of_fused, of_eager, allowed))
    return "", worst


def _error(value: Tensor, exact: Tensor) -> float:
    """relative_error, but 0 of equal tensors also where they are not finite."""
    return 0.0 if torch.equal(value, exact) else relative_error(value, exact)
