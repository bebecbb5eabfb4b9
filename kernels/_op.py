"""The operator contract: schema, implementations, fake, autograd and autocast registered in one call."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from . import _native

LIBRARY = torch.library.Library("kiln", "DEF")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@dataclass(frozen=True)
class Implementation:
    """What runs an operator on one device, and why."""

    operator: str
    device: str
    kind: str  # "native C++", "Triton", "Triton, interpreted", "library GEMM", "none"
    why: str


@dataclass
class Operator:
    """One folder of kernels/: the public function, its reference, and what runs it on each device."""

    name: str
    function: Callable
    reference: Callable
    implementations: Callable[[], list[Implementation]]
    decomposition: Callable  # the reference with the arguments and results of torch.ops.kiln.<name>


OPERATORS: dict[str, Operator] = {}


def define(
    schema: str,
    *,
    cpu: Callable,
    cuda: Callable,
    fake: Callable,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
    autocast: Collection[str] | None = None,
    triton: bool = True,
) -> Callable:
    """Registers torch.ops.kiln.<name> and returns what calls it: its default overload, by a shorter way where one is.

    cpu, cuda: run on real tensors. fake: gives empty outputs with the true strides. backward, setup_context: as in
    torch.library.register_autograd. autocast: floating-point tensors are cast to the autocast dtype first, except
    these arguments; None: nothing is.
    triton: `cuda` launches Triton kernels, which torch.compile is to see (as those of a torch.library.triton_op).
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    overload = getattr(torch.ops.kiln, name).default

    def on_cpu(*args: object) -> object:
        return cuda(*args) if _gpu_kernels_on_cpu else cpu(*args)

    LIBRARY.impl(name, on_cpu, "CPU")
    LIBRARY.impl(name, _on_its_device(cuda), "CUDA")
    torch.library.register_fake(f"kiln::{name}", fake, lib=LIBRARY)
    if triton:
        rule = functools.partial(_expose_kernels, cuda)
        torch.library.register_torch_dispatch(f"kiln::{name}", FunctionalTensorMode, rule, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"kiln::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    if autocast is not None:
        for device in ("CPU", "CUDA"):
            LIBRARY.impl(name, _cast_first(overload, device, autocast), f"Autocast{device}")
    return _direct(overload, on_cpu, setup_context, backward)


NO_TRITON = "the GPU kernels need Triton, which is not installed: pip install triton"


def gpu(package: str, function: str) -> Callable:
    """The function of an operator's gpu.py, imported at its first call: Triton is loaded where a GPU is used."""

    @cache
    def find() -> Callable:
        try:
            module = importlib.import_module(".gpu", package)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "triton":
                raise
            raise _native.NativeMissing(NO_TRITON) from None
        return getattr(module, function)

    def run(*args: object) -> object:
        return find()(*args)

    return run


# Triton's own switch for its interpreter: then CPU tensors go through the GPU kernels, slowly, to try and debug them
INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"
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


def _on_its_device(cuda: Callable) -> Callable:
    """Triton launches on the current device: it becomes that of the tensors."""

    def run(*args: object) -> object:
        device = next(a.device for a in args if isinstance(a, Tensor))
        if device.index == torch.cuda.current_device():
            return cuda(*args)
        with torch.cuda.device(device):
            return cuda(*args)

    return run


def _expose_kernels(
    cuda: Callable, mode: object, overload: Callable, types: tuple, args: tuple, kwargs: dict
) -> object:
    """Under torch.compile, on CUDA tensors: the operator's Triton kernels and allocations instead of one opaque call.

    The rule of torch.library.triton_op for an operator that has a CPU implementation too. torch.export keeps the call.
    """
    from torch.export._trace import custom_triton_ops_decomposition_disabled

    on_gpu = all(a.is_cuda for a in args if isinstance(a, Tensor))
    visible = (on_gpu or _gpu_kernels_on_cpu) and not INTERPRETED
    if not visible or custom_triton_ops_decomposition_disabled():
        return mode.__torch_dispatch__(overload, types, args, kwargs)
    from ._gpu.launch import traced

    with mode, traced():
        return cuda(*args, **kwargs)


_PLAIN_TYPES = {Tensor, torch.nn.Parameter}


def _direct(overload: Callable, cpu: Callable, setup_context: Callable | None, backward: Callable | None) -> Callable:
    """The overload, but past the dispatcher where it would do nothing but autograd and then `cpu`.

    That saves its passages between Python and C++: a third of what a small forward and backward cost. Compilers, modes,
    transforms, autocast, tracing, the profiler and every unusual tensor (subclass, lazily negated, on another device)
    still go through it.
    """
    positions = [i for i, a in enumerate(overload._schema.arguments) if str(a.type) in ("Tensor", "Optional[Tensor]")]
    if backward is not None:

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *args):
                result = cpu(*args)
                setup_context(ctx, args, result)
                return result

        Function.backward = staticmethod(backward)
        Function.__name__ = f"{overload._opname}_direct"

    def call(*args: object) -> object:
        if torch.compiler.is_compiling() or not _only_autograd_listens([args[i] for i in positions]):
            return overload(*args)
        if backward is not None and torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Function.apply(*args)
        return cpu(*args)

    return call


def _only_autograd_listens(tensors: list[Tensor | None]) -> bool:
    c = torch._C  # plain C functions only: this runs at every call
    if (
        c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._are_functorch_transforms_active()
        or torch.is_autocast_enabled("cpu")
        or c._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
    ):
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN_TYPES or not tensor.is_cpu or tensor.is_neg()):
            return False
    return True


def differentiable_gradients(
    reference: Callable, inputs: list[Tensor | None], need: list[bool], upstream: list[Tensor | None]
) -> list[Tensor | None]:
    """Backward under create_graph=True: the gradients of reference(*inputs), themselves differentiable.

    The inputs are taken as fresh views, so that only this call lies between them and the outputs, not what made them.
    """
    with torch.enable_grad():
        views = [None if t is None else t.view_as(t) for t in inputs]
        outputs = reference(*views)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(output, grad) for output, grad in zip(outputs, upstream, strict=True) if grad is not None]
        wanted = [t for t, n in zip(views, need, strict=True) if n]
        found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True))
    return [next(found) if n else None for n in need]


def publish(
    function: Callable,
    reference: Callable,
    implementations: Callable[[], list[Implementation]],
    decomposition: Callable | None = None,
) -> None:
    """Enters a public operator in the table that `explain`, the tests and the benchmark read.

    decomposition: torch.ops.kiln.<name> in plain PyTorch; None: the reference, its arguments named as in the schema.
    """
    name = function.__name__
    OPERATORS[name] = Operator(name, function, reference, implementations, decomposition or _by_name(name, reference))


def _by_name(operator: str, reference: Callable) -> Callable:
    names = [argument.name for argument in getattr(torch.ops.kiln, operator).default._schema.arguments]

    def decomposed(*args: object) -> object:
        return reference(**dict(zip(names, args, strict=True)))

    return decomposed


def discover() -> dict[str, Operator]:
    """Imports every operator folder beside this file and returns the table."""
    for folder in sorted(Path(__file__).parent.iterdir()):
        if folder.is_dir() and not folder.name.startswith("_") and (folder / "__init__.py").is_file():
            importlib.import_module(f"{__package__}.{folder.name}")
    return OPERATORS


def own_implementations(operator: str) -> list[Implementation]:
    """The rows of explain() of an operator written in C++ for the CPU and in Triton for NVIDIA GPUs."""
    return [_cpu_row(operator), _cuda_row(operator)]


def _cpu_row(operator: str) -> Implementation:
    if INTERPRETED:
        why = "TRITON_INTERPRET=1: the GPU kernels, interpreted; correct and slow, for debugging"
        return Implementation(operator, "cpu", "Triton, interpreted", why)
    try:
        native = _native.load()
    except _native.NativeMissing as error:
        return Implementation(operator, "cpu", "none", str(error))
    best, used = native.machine_isa(), native.isa()
    why = f"{used}, the best of this machine" if best == used else f"{used}: KILN_ISA caps this machine's {best}"
    return Implementation(operator, "cpu", "native C++", why)


def _cuda_row(operator: str) -> Implementation:
    why = _why_no_gpu()
    if why:
        return Implementation(operator, "cuda", "none", why)
    names = sorted({f"sm_{major}{minor}" for major, minor in map(torch.cuda.get_device_capability, _devices())})
    return Implementation(
        operator, "cuda", "Triton", f"compiled for {', '.join(names)} at the first call of each shape"
    )


def _devices() -> range:
    return range(torch.cuda.device_count())


def _why_no_gpu() -> str:
    """Why Triton kernels cannot run here; "" where they can."""
    if not torch.cuda.is_available():
        built = "this torch is built for the CPU" if torch.version.cuda is None else "torch finds no CUDA device"
        return f"Triton kernels need an NVIDIA GPU (compute capability 8.0 or newer): {built}"
    if importlib.util.find_spec("triton") is None:
        return NO_TRITON
    oldest = min(map(torch.cuda.get_device_capability, _devices()))
    if oldest < (8, 0):
        return f"the GPU has compute capability {oldest[0]}.{oldest[1]}; the Triton kernels need 8.0 (Ampere) or newer"
    return ""


@cache
def _autocast_key(device: str) -> torch._C.DispatchKeySet:
    return torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))


# these stay float32: half precision holds neither the steps of the BEGAN balance k nor a fraction of a pixel
_NEVER_CAST = ("grad_scale", "landmarks")


def _cast_first(overload: Callable, device: str, but: Collection[str]) -> Callable:
    kind = device.lower()
    kept = [argument.name in (*but, *_NEVER_CAST) for argument in overload._schema.arguments]

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


def channels_last(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself where it lies dense in channels_last order, else a copy that does; None stays None."""
    return None if tensor is None else tensor.contiguous(memory_format=torch.channels_last)


def order(features: Tensor) -> torch.memory_format:
    """The order features are read in by what takes either: as they lie where they are dense, else channels_last."""
    planar = features.is_contiguous() and not features.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if planar else torch.channels_last


def require(condition: bool, operator: str, message: str) -> None:
    """Raises ValueError with one line when an argument does not fit."""
    if not condition:
        raise ValueError(f"{operator}: {message}")
