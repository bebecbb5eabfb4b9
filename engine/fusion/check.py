"""Compares a fused model, on example inputs, with the model as it was before."""

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

WINOGRAD_ERROR = 2e-5  # relative error that Winograd tiles may add in each chain


def check(
    model: nn.Module, example_inputs: object, savings: Savings, chains: int
) -> tuple[str, tuple[float, float, float] | None]:
    """Runs a model four times: as it was, as it was in float64, and fused twice.

    The first of both fused runs records nothing for a backward pass, and `savings` counts its products.

    example_inputs: as of `fuse`
    chains:         how many chains the model has fused
    returns:        what is wrong with the fused model, "" where nothing is; and (the error of the fused outputs, that
                    of eager's, the allowed one), None where there are no outputs to compare

    Random numbers are the same in all runs; buffers and the random state are as before afterwards.
    Raises ValueError where the model itself cannot run.
    """
    args, kwargs = _arguments(example_inputs)
    with unfused(model):
        try:
            with _undisturbed(model), torch.no_grad():
                eager = _tensors(model(*args, **kwargs))
        except Exception as error:
            # the model's own code may raise anything
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"fuse: the model cannot run on example_inputs: {what}") from error
        exact = _in_float64(model, args, kwargs)
    try:
        # folds normalisations where no gradients are recorded
        with _undisturbed(model), torch.no_grad(), savings:
            inferred = _tensors(model(*args, **kwargs))
        with _undisturbed(model):
            outputs = _tensors(model(*args, **kwargs))
            _differentiate(model, outputs)
    except Exception as error:
        # the model ran before it was fused, so any exception is a fault of the fused forward
        return f"the fused model fails ({type(error).__name__}: {str(error).splitlines()[0]})", None
    compared = [_compare(eager, exact, [y.detach() for y in fused], chains) for fused in (inferred, outputs)]
    return next((result for result in compared if result[0]), max(compared, key=lambda result: result[1]))


def _arguments(example_inputs: object) -> tuple[tuple, dict[str, object]]:
    """Example inputs as (positional arguments, keyword arguments)."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,), {}


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Seeds the random numbers of the block; afterwards buffers and random numbers go on as if nothing had run."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)


def _tensors(outputs: object) -> list[Tensor]:
    """The floating point tensors in what a model returned."""
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
    """Runs the backward pass; the gradients are not compared."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [y.sum() for y in outputs if y.requires_grad]
    if parameters and sums:
        torch.autograd.grad(sums, parameters, allow_unused=True)


def _compare(
    eager: list[Tensor], exact: list[Tensor] | None, fused: list[Tensor], chains: int
) -> tuple[str, tuple[float, float, float] | None]:
    """As `check` returns. exact: the outputs in float64, None where there are none; chains: how many were fused."""
    if [y.shape for y in eager] != [y.shape for y in fused] or [y.dtype for y in eager] != [y.dtype for y in fused]:
        return "the outputs have other shapes or dtypes", None
    worst = (0.0, 0.0, 0.0)
    for index, y in enumerate(eager):
        truth = y if exact is None else exact[index]
        eager_error, fused_error = _error(y, truth), _error(fused[index], truth)
        # where eager's own outputs serve as truth, twice its error is taken to be a few roundings
        twice = 8 * torch.finfo(y.dtype).eps if exact is None else 2 * eager_error
        allowed = twice + chains * max(WINOGRAD_ERROR, SPEC.floor.get(y.dtype, 0.0))
        errors = fused_error, eager_error, allowed
        if not fused_error <= allowed:
            return f"the outputs differ (error {fused_error:.1e}, allowed {allowed:.1e})", errors
        if not _error(fused[index], y) <= allowed + eager_error:
            return "the outputs differ from eager's", errors
        worst = max(worst, errors)
    return "", worst


def _error(value: Tensor, exact: Tensor) -> float:
    """`relative_error`, but 0 for equal tensors, also where their elements are not finite."""
    return 0.0 if torch.equal(value, exact) else relative_error(value, exact)
