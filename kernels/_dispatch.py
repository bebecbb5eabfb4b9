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
from torch._library.autograd import Info, make_autograd_impl
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.autograd import forward_ad

from ._availability import INTERPRETED
from ._checks import require_one_device, require_tensors

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
    is_optional: bool  # whether None may stand in its place
    is_list: bool


def declare(schema: str) -> list[Argument]:
    """Declares torch.ops.kiln.<name> and returns its arguments."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    arguments = _overload(schema.split("(", 1)[0])._schema.arguments
    types = [str(argument.type) for argument in arguments]
    return [
        Argument(argument.name, kind in ("Tensor", "Optional[Tensor]"), kind.startswith("Optional"), "List" in kind)
        for argument, kind in zip(arguments, types, strict=True)
    ]


def register(
    name: str,
    arguments: list[Argument],
    *,
    check: Callable,
    cpu: Callable,
    cuda: Callable,
    fake: Callable,
    plain: Callable | None,
    autograd: Autograd | None,
    autocast: Collection[str] | None,
    triton: bool,
    plan: Callable | None,
) -> Callable:
    """Registers what runs a declared operator, as `_contract.define` says, and returns what calls it.

    plain: the operator in plain PyTorch, its arguments by position; None for a backward pass
    """
    overload = _overload(name)
    tensors = {a.name: i for i, a in enumerate(arguments) if a.is_tensor}
    required = {a.name: i for i, a in enumerate(arguments) if a.is_tensor and not a.is_optional}

    def check_all(*args: object) -> None:
        require_tensors(name, {key: args[i] for key, i in required.items()})
        require_one_device(name, {key: args[i] for key, i in tensors.items()})
        check(*args)

    checked_cuda = _after(check_all, cuda)
    LIBRARY.impl(name, _on_cpu(check_all, _with(plan, cpu) if plan else cpu, cuda), "CPU")
    LIBRARY.impl(name, _on_its_device(checked_cuda), "CUDA")
    torch.library.register_fake(f"kiln::{name}", _after(check_all, fake), lib=LIBRARY)
    rule = functools.partial(_written_out, checked_cuda if triton else None, plain)
    torch.library.register_torch_dispatch(f"kiln::{name}", FunctionalTensorMode, rule, lib=LIBRARY)
    kept = [autocast is None or argument.name in (*autocast, *NEVER_CAST) for argument in arguments]
    if plain is None:
        in_transforms = overload
        LIBRARY.impl(name, _without_derivative(overload), "Autograd", with_keyset=True)
    else:
        in_transforms = _after(check_all, _as_autocast_says(plain, kept))
        LIBRARY.impl(name, in_transforms, "FuncTorchDynamicLayerFrontMode")
        LIBRARY.impl(name, _recorded(overload, autograd, in_transforms), "Autograd", with_keyset=True)
    if autocast is not None:
        for device in AUTOCAST:
            LIBRARY.impl(name, _cast_first(overload, device, kept), f"Autocast{device.upper()}")
    on_cpu = _planned(check, plan, cpu, cuda, arguments) if plan else _on_cpu(check, cpu, cuda)
    return _direct(overload, [*tensors.values()], on_cpu, autograd, in_transforms)


def _after(check: Callable, function: Callable) -> Callable:
    def checked(*args: object) -> object:
        check(*args)
        return function(*args)

    return checked


def _overload(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.kiln, name).default


# what runs CPU tensors


def _on_cpu(check: Callable, cpu: Callable, cuda: Callable) -> Callable:
    def run(*args: object) -> object:
        check(*args)
        return cuda(*args) if _gpu_kernels_on_cpu else cpu(*args)

    return run


def _with(plan: Callable, cpu: Callable) -> Callable:
    return lambda *args: cpu(*args, plan(*args))


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


# what differentiates or transforms


def transformed() -> bool:
    """Whether a transform of torch.func or a level of forward-mode differentiation is active here.

    The operators run as their references then, on whose operations all of them compose.
    """
    return under_torch_func() or forward_ad._current_level >= 0


def gradients_transformed() -> bool:
    """The same in a backward pass, which `is_grads_batched` and vectorised Jacobians run within torch's older vmap."""
    return transformed() or _older_vmap()


def _recorded(overload: Callable, autograd: Autograd | None, in_transforms: Callable) -> Callable:
    """What notes an operator for autograd. in_transforms: its reference, which runs where an argument has a tangent."""
    setup_context, backward = autograd or (_mark_constant, None)
    record = make_autograd_impl(overload, Info(backward, setup_context))

    def run(keyset: torch._C.DispatchKeySet, *args: object) -> object:
        return in_transforms(*args) if _has_tangent(args) else record(keyset, *args)

    return run


def _mark_constant(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.mark_non_differentiable(output)


def _without_derivative(overload: Callable) -> Callable:
    """What notes a backward pass for autograd: its results are values, and an error to whoever differentiates them."""
    forward = overload._opname.removesuffix("_backward")

    def refuse(*_: object) -> None:
        raise RuntimeError(
            f"kiln::{overload._opname} has no derivative: differentiate kiln::{forward}, with create_graph=True or by "
            "torch.func"
        )

    record = make_autograd_impl(overload, Info(refuse, None))

    def run(keyset: torch._C.DispatchKeySet, *args: object) -> object:
        if _has_tangent(args) or (under_torch_func() and _grad_enabled() and _any_requires_grad(*args)):
            refuse()
        return record(keyset, *args)

    return run


def _has_tangent(args: Sequence) -> bool:
    return _in_dual_level() and any(
        isinstance(a, Tensor) and torch._VF._unpack_dual(a, level=0).tangent is not None for a in args
    )


def _in_dual_level() -> bool:
    """Whether forward-mode differentiation is entered, by a graph of torch.compile too, which forward_ad does not note.

    There is one level at most, so a second one can be entered only where there is none. In one passage through C, in
    which no other thread runs.
    """
    try:
        next(map(torch._C._exit_dual_level, iter(torch._C._enter_dual_level, None)))
    except RuntimeError:
        return True
    return False


FEW_NUMBERS = 4096  # of the arguments of an operator whose gradients take less than asking for a leaf


def drop_unreached(
    node: torch.autograd.function.FunctionCtx,
    tensors: Sequence[Tensor | None],
    need: list[bool],
    along: Sequence[int | None],
) -> None:
    """In a backward pass, marks in `need` the tensors whose gradient goes nowhere: nothing past them was asked for.

    node: of the operator. tensors: its first arguments; need: of each of them whether it requires a gradient. So
    `loss.backward(inputs=...)` and `torch.autograd.grad` form no gradients of parameters that they do not name.
    along: of each tensor another one before it, with whose gradient its own comes almost for nothing, or None: where
    that is formed nobody is asked. Asking for a leaf that autograd.grad names takes torch an exception, 15 us: of small
    tensors the gradient is formed in less, so leaves among them are not asked for, unless what is formed is recorded.
    """
    functions, small = None, not _grad_enabled() and _are_small(tensors)
    for position, tensor in enumerate(tensors):
        other = along[position]
        if not need[position] or (other is not None and need[other]) or (small and tensor.is_leaf):
            continue
        if functions is None:
            functions = _functions(node, tensors)
        need[position] = _reached(functions[position])


def _are_small(tensors: Sequence[Tensor | None]) -> bool:
    numbers = 0
    for tensor in tensors:
        if tensor is not None:
            if type(tensor) not in _PLAIN_TYPES:  # of a compiler, whose graph is for other sizes too
                return False
            numbers += tensor.numel()
    return numbers < FEW_NUMBERS


def _functions(node: torch.autograd.function.FunctionCtx, tensors: Sequence[Tensor | None]) -> list[object]:
    """What takes the gradient of each tensor; those of None are none of torch's."""
    functions = iter(node.next_functions)
    return [None if tensor is None else next(functions)[0] for tensor in tensors]


def _reached(function: object) -> bool:
    try:
        return torch._C._will_engine_execute_node(function)
    except RuntimeError:  # a leaf that autograd.grad was asked for, or a pass outside of the engine
        return True


# the short way of ordinary calls


def picked(positions: list[int]) -> Callable[[Sequence], tuple]:
    """What takes the values at these positions out of a tuple, as a tuple."""
    if not positions:
        return lambda values: ()
    if positions == [*range(positions[0], positions[-1] + 1)]:
        return itemgetter(slice(positions[0], positions[-1] + 1))
    return itemgetter(*positions)


_PLAIN_TYPES = {Tensor, torch.nn.Parameter}
MOST_PLANS = 1024  # kept of one operator


def _planned(check: Callable, plan: Callable, cpu: Callable, cuda: Callable, arguments: list[Argument]) -> Callable:
    """`_on_cpu` of an operator with a plan: the first call of a kind is checked and planned for all that follow."""
    of_tensors = picked([i for i, argument in enumerate(arguments) if argument.is_tensor])
    of_lists = picked([i for i, argument in enumerate(arguments) if argument.is_list])
    of_values = picked([i for i, argument in enumerate(arguments) if not (argument.is_tensor or argument.is_list)])
    plans: dict[tuple, object] = {}

    def run(*args: object) -> object:
        if _gpu_kernels_on_cpu:
            check(*args)
            return cuda(*args)
        kind = (
            *[tensor if tensor is None else (tensor.shape, tensor.dtype) for tensor in of_tensors(args)],
            *map(tuple, of_lists(args)),
            of_values(args),
        )
        try:
            known = plans.get(kind)
        except TypeError:  # an option that is no value: check says what is wrong with it
            check(*args)
            raise
        if known is None:
            check(*args)
            known = plan(*args)
            if len(plans) == MOST_PLANS:
                plans.clear()
            plans[kind] = known
        return cpu(*args, known)

    return run


def _direct(
    overload: Callable, tensors: list[int], cpu: Callable, autograd: Autograd | None, in_transforms: Callable
) -> Callable:
    """The overload, but past the dispatcher where it would do nothing but autograd and then `cpu`.

    That saves its passages between Python and C++: a third of what a small forward and backward cost. Compilers, modes,
    transforms, autocast, tracing, the profiler and every unusual tensor (subclass, lazily negated, zeros without
    memory, of a transform that has ended, on another device) still go through it. tensors: positions of tensors among
    the arguments. in_transforms: what the older ONNX exporter gets, which traces TorchScript, and torch.compile within
    forward-mode differentiation, whose levels its graphs enter unseen by torch.autograd.forward_ad.
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
        # past what torch.autograd.Function's own does for transforms and for tensors that outlived one
        record = super(torch.autograd.Function, Function).apply

    is_compiling, of_tensors = torch.compiler.is_compiling, picked(tensors)

    def call(*args: object) -> object:
        if is_compiling():
            return in_transforms(*args) if forward_ad._current_level >= 0 else overload(*args)
        given = of_tensors(args)
        if not _only_autograd_listens(given):
            to_onnx = _tracing_state() is not None and torch.onnx.is_in_onnx_export()
            return in_transforms(*args) if to_onnx else overload(*args)
        if autograd is not None and _grad_enabled() and _any_requires_grad(*given):
            return record(*args)
        return cpu(*args)

    return call


# plain C functions, bound once: they run at every call
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
under_torch_func, _tracing_state = torch._C._are_functorch_transforms_active, torch._C._get_tracing_state
_autocast_enabled, _profiler_enabled = torch.is_autocast_enabled, torch.autograd._profiler_enabled
_grad_enabled, _any_requires_grad = torch.is_grad_enabled, torch._C._any_requires_grad
_keys = torch._C._dispatch_keys
_older_vmap = functools.partial(
    torch._C._dispatch_tls_is_dispatch_key_included, torch._C._parse_dispatch_key("VmapMode")
)


@cache
def _plain_keys() -> set[int]:
    """What the dispatcher reads of a dense tensor in the CPU's memory, made outside of inference mode and in it.

    Found at the first call: `import engine.ops` makes no tensor, after which torch would no longer be configured.
    """
    with torch.inference_mode(False):
        outside = torch.empty(0, device="cpu")
    with torch.inference_mode():
        inside = torch.empty(0, device="cpu")
    return {_keys(outside).raw_repr(), _keys(inside).raw_repr()}


def _only_autograd_listens(tensors: Sequence[Tensor | None]) -> bool:
    if (
        _dispatch_modes()
        or _function_modes()
        or under_torch_func()
        or forward_ad._current_level >= 0
        or _older_vmap()
        or _autocast_enabled("cpu")
        or _tracing_state() is not None
        or _profiler_enabled()
    ):
        return False
    plain = _plain_keys()
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN_TYPES or _keys(tensor).raw_repr() not in plain):
            return False
    return True


# autocast

AUTOCAST = ("cpu", "cuda")


@cache
def _autocast_key(device: str) -> torch._C.DispatchKeySet:
    return torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))


def _cast(args: Sequence, device: str, kept: Sequence[bool]) -> list:
    """Floating-point tensors in the autocast dtype. kept: which arguments stay as they are."""
    dtype = torch.get_autocast_dtype(device)
    return [
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() and a.dtype != torch.float64 and not keep else a
        for a, keep in zip(args, kept, strict=True)
    ]


def _cast_first(overload: Callable, device: str, kept: Sequence[bool]) -> Callable:
    """The overload on arguments that are cast."""

    def with_autocast(*args: object) -> object:
        with torch._C._ExcludeDispatchKeyGuard(_autocast_key(device)):
            return overload(*_cast(args, device, kept))

    return with_autocast


def _as_autocast_says(reference: Callable, kept: Sequence[bool]) -> Callable:
    """The reference on arguments that autocast casts as it does the operator's."""
    inside = without_autocast(reference)

    def run(*args: object) -> object:
        device = args[0].device.type
        return inside(*(_cast(args, device, kept) if _autocasts(device) else args))

    return run


def without_autocast(function: Callable) -> Callable:
    """The function, whose operations autocast leaves as they are. Its first argument is a tensor."""

    def run(*args: object) -> object:
        device = args[0].device.type
        if not _autocasts(device):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*args)

    return run


def _autocasts(device: str) -> bool:
    return device in AUTOCAST and _autocast_enabled(device)
