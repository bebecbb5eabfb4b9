"""How calls of torch.ops.kiln.* reach their implementations: every private name of torch that kernels/ uses is here.

Tried with torch 2.11, 2.12 and 2.13. A later torch may rename what begins with an underscore; then only this file has
to change.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from ._availability import INTERPRETED

LIBRARY = torch.library.Library("kiln", "DEF")
# these stay float32 under autocast: half precision holds neither the steps of the BEGAN balance k nor a part of a pixel
NEVER_CAST = ("grad_scale", "landmarks")


class Autograd(NamedTuple):
    """The two functions that torch.library.register_autograd takes."""

    setup_context: Callable
    backward: Callable


class Argument(NamedTuple):
    """One argument of an operator's schema."""

    name: str
    is_tensor: bool  # or an optional tensor


def declare(schema: str) -> list[Argument]:
    """Declares torch.ops.kiln.<name> and returns its arguments."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    arguments = _overload(schema.split("(", 1)[0])._schema.arguments
    return [Argument(a.name, str(a.type) in ("Tensor", "Optional[Tensor]")) for a in arguments]


def register(
    name: str,
    arguments: list[Argument],
    *,
    cpu: Callable,
    cuda: Callable,
    fake: Callable,
    plain: Callable | None,
    autograd: Autograd | None,
    autocast: Collection[str] | None,
    triton: bool,
) -> Callable:
    """Registers what runs a declared operator, as `_contract.define` says, and returns what calls it.

    plain: the operator in plain PyTorch, its arguments by position; None for a backward pass
    """
    overload = _overload(name)

    def on_cpu(*args: object) -> object:
        return cuda(*args) if _gpu_kernels_on_cpu else cpu(*args)

    LIBRARY.impl(name, on_cpu, "CPU")
    LIBRARY.impl(name, _on_its_device(cuda), "CUDA")
    torch.library.register_fake(f"kiln::{name}", fake, lib=LIBRARY)
    rule = functools.partial(_written_out, cuda if triton else None, plain)
    torch.library.register_torch_dispatch(f"kiln::{name}", FunctionalTensorMode, rule, lib=LIBRARY)
    if autograd is not None:
        setup_context, backward = autograd
        torch.library.register_autograd(f"kiln::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    if autocast is not None:
        kept = [argument.name in (*autocast, *NEVER_CAST) for argument in arguments]
        for device in ("CPU", "CUDA"):
            LIBRARY.impl(name, _cast_first(overload, device, kept), f"Autocast{device}")
    return _direct(overload, [i for i, a in enumerate(arguments) if a.is_tensor], on_cpu, plain, autograd)


def _overload(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.kiln, name).default


# what runs CPU tensors


_gpu_kernels_on_cpu = INTERPRETED


@contextmanager
def gpu_kernels_on_cpu() -> Iterator[None]:
    """CPU tensors go the GPU kernels' way within the block: to note what would be launched, or to trace it."""
    global _gpu_kernels_on_cpu
    before, _gpu_kernels_on_cpu = _gpu_kernels_on_cpu, True
    try:
        yield
    finally:
        _gpu_kernels_on_cpu = before


# what runs CUDA tensors


def _on_its_device(cuda: Callable) -> Callable:
    """`cuda` with the device of its tensors as the current one, on which Triton launches."""

    def run(*args: object) -> object:
        device = next(a.device for a in args if isinstance(a, Tensor))
        if device.index == torch.cuda.current_device():
            return cuda(*args)
        with torch.cuda.device(device):
            return cuda(*args)

    return run


def _written_out(
    cuda: Callable | None,
    plain: Callable | None,
    mode: FunctionalTensorMode,
    overload: Callable,
    types: tuple,
    args: tuple,
    kwargs: dict,
) -> object:
    """What compilers and exporters record of a call where one opaque call would not do; else that call.

    For ONNX, which knows no operator of Kiln: the plain PyTorch. Under torch.compile, on CUDA tensors: the operator's
    Triton kernels and allocations, which is the rule of torch.library.triton_op for an operator that has a CPU
    implementation too. torch.export keeps the call.
    """
    from torch.export._trace import custom_triton_ops_decomposition_disabled

    if plain is not None and torch.onnx.is_in_onnx_export():
        with mode:
            return plain(*args, **kwargs)
    on_gpu = all(a.is_cuda for a in args if isinstance(a, Tensor))
    visible = cuda is not None and (on_gpu or _gpu_kernels_on_cpu) and not INTERPRETED
    if not visible or custom_triton_ops_decomposition_disabled():
        return mode.__torch_dispatch__(overload, types, args, kwargs)
    from ._gpu.launch import traced

    with mode, traced():
        return cuda(*args, **kwargs)


# the short way of ordinary calls


def picked(positions: list[int]) -> Callable[[Sequence], tuple]:
    """What takes the values at these positions out of a sequence, as a tuple."""
    if not positions:
        return lambda values: ()
    if len(positions) == 1:
        (only,) = positions
        return lambda values: (values[only],)
    return itemgetter(*positions)


_PLAIN_TYPES = {Tensor, torch.nn.Parameter}


def _direct(
    overload: Callable, tensors: list[int], cpu: Callable, plain: Callable | None, autograd: Autograd | None
) -> Callable:
    """The overload, but past the dispatcher where it would do nothing but autograd and then `cpu`.

    That saves its passages between Python and C++: a third of what a small forward and backward cost. Compilers, modes,
    transforms, autocast, tracing, the profiler and every unusual tensor (subclass, lazily negated, on another device)
    still go through it; the older ONNX exporter, which traces TorchScript, gets `plain`. tensors: positions of tensors
    among the arguments.
    """
    if autograd is not None:
        setup_context, backward = autograd

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *args):
                result = cpu(*args)
                setup_context(ctx, args, result)
                return result

        Function.backward = staticmethod(backward)
        Function.__name__ = f"{overload._opname}_direct"

    is_compiling, of_tensors = torch.compiler.is_compiling, picked(tensors)

    def call(*args: object) -> object:
        if is_compiling() or not _only_autograd_listens(of_tensors(args)):
            to_onnx = plain is not None and _tracing_state() is not None and torch.onnx.is_in_onnx_export()
            return plain(*args) if to_onnx else overload(*args)
        if autograd is not None and _grad_enabled() and _any_requires_grad(*args):
            return Function.apply(*args)
        return cpu(*args)

    return call


# plain C functions, bound once: they run at every call
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_transforms, _tracing_state = torch._C._are_functorch_transforms_active, torch._C._get_tracing_state
_autocast_enabled, _profiler_enabled = torch.is_autocast_enabled, torch.autograd._profiler_enabled
_grad_enabled, _any_requires_grad = torch.is_grad_enabled, torch._C._any_requires_grad


def _only_autograd_listens(tensors: Sequence[Tensor | None]) -> bool:
    if (
        _dispatch_modes()
        or _function_modes()
        or _transforms()
        or _autocast_enabled("cpu")
        or _tracing_state() is not None
        or _profiler_enabled()
    ):
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN_TYPES or not tensor.is_cpu or tensor.is_neg()):
            return False
    return True


# autocast


@cache
def _autocast_key(device: str) -> torch._C.DispatchKeySet:
    return torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))


def _cast_first(overload: Callable, device: str, kept: list[bool]) -> Callable:
    """The overload on floating-point tensors in the autocast dtype. kept: which arguments stay as they are."""
    kind = device.lower()

    def with_autocast(*args: object) -> object:
        dtype = torch.get_autocast_dtype(kind)
        cast = [
            a.to(dtype)
            if isinstance(a, Tensor) and a.is_floating_point() and a.dtype != torch.float64 and not keep
            else a
            for a, keep in zip(args, kept, strict=True)
        ]
        with torch._C._ExcludeDispatchKeyGuard(_autocast_key(device)):
            return overload(*cast)

    return with_autocast
