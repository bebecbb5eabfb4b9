"""How a Triton kernel is started: run, interpreted on the CPU, traced by torch.compile, or only noted."""

import ast
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Literal

import torch
import triton
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
# compute capabilities, times ten: the oldest GPUs supported, those that launches are noted for, and Blackwell's
OLDEST, H100, BLACKWELL = 80, 90, 100
MOST_REGISTERS = 255  # of a thread


@dataclass(frozen=True)
class Cost:
    """What one launch has to do, for the roofline: the FLOPs it computes (padding of tiles aside) and its traffic.

    flops:    on matrix units where `matrix`, else on the ordinary units
    moved:    bytes that device memory must move at least: every input read once, every output written once
    gathered: bytes that all programs together ask of the L2 cache; 0: as many as `moved`
    matrix:   whether the products run on matrix units
    """

    flops: float
    moved: float
    gathered: float = 0.0
    matrix: bool = False


@dataclass(frozen=True)
class Launch:
    """One launch as it was asked for.

    arguments: by parameter name, those fixed at compile time included
    oldest:    compute capability, times ten, of the oldest GPUs that the kernel is for
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    cost: Cost = field(compare=False)
    oldest: int = OLDEST

    @property
    def name(self) -> str:
        return self.kernel.__name__


# which candidates of tuning are noted: the first, those that this GPU measures, or those of every GPU
Choices = Literal["likely", "measured", "all"]


class _Tracing(threading.local):
    on = False


_tracing = _Tracing()


@dataclass
class _Noting:
    """What launches are noted to. One for all threads: autograd runs a GPU's backward passes in a thread of its own."""

    launches: list[Launch] | None = None
    run: bool = True
    choices: Choices = "likely"
    capability: int = H100


_noting = _Noting()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *,
    cost: Callable[[], Cost],
    num_warps: int = 4,
    num_stages: int = 2,
    oldest: int = OLDEST,
    **arguments: Any,
) -> None:
    """Starts kernel[grid] with every argument by its parameter's name; does nothing where the grid is empty.

    cost:      called only where launches are noted
    oldest:    as in Launch
    arguments: values for all of the kernel's parameters, compile-time constants included; TypeError names a parameter
               that has no value and a value that has no parameter
    """
    if any(isinstance(size, int) and size == 0 for size in grid):
        return
    values = _in_order(kernel, arguments)
    if _tracing.on:
        torch.library.wrap_triton(kernel)[grid](*values, num_warps=num_warps, num_stages=num_stages)
        return
    if _noting.launches is not None:
        # each tensor by an alias: autograd copies a gradient that somebody else holds
        aliased = {name: value.detach() if isinstance(value, Tensor) else value for name, value in arguments.items()}
        _noting.launches.append(Launch(kernel, grid, aliased, num_warps, num_stages, cost(), oldest))
    if _noting.launches is None or _noting.run:
        for name, value in zip(kernel.arg_names, values, strict=True):
            # a GPU that reads there is lost to its process
            if isinstance(value, Tensor) and not value.data_ptr() and value.numel():
                raise ValueError(f"{kernel.__name__}: {name} has elements but no memory: its storage was freed")
        bound = register_bound(arguments, capability)
        kernel[grid](*values, num_warps=num_warps, num_stages=num_stages, **bound)


# for the function of each kernel launched so far: takes the values out of a dictionary in the parameters' order
_orders: dict[Callable, Callable[[Mapping[str, Any]], tuple]] = {}


def _in_order(kernel: Any, arguments: Mapping[str, Any]) -> tuple:
    """The arguments' values in the order of the kernel's parameters, of which there are at least two.

    Triton binds values by position in less time than by name.
    """
    order = _orders.get(kernel.fn)
    if order is None:
        settle_key(kernel)
        order = _orders[kernel.fn] = itemgetter(*kernel.arg_names)
    try:
        values = order(arguments)
    except KeyError:
        values = ()
    if len(values) == len(arguments):
        return values
    missing = [name for name in kernel.arg_names if name not in arguments]
    unknown = [name for name in arguments if name not in kernel.arg_names]
    raise TypeError(f"{kernel.__name__}: parameters without a value: {missing}, values without a parameter: {unknown}")


def settle_key(kernel: Any) -> None:
    """Makes the key of a kernel in Triton's cache independent of what else this process has compiled.

    Triton takes the constants that a helper reads into the key of the kernel that calls it, but only where the helper's
    own key was made before. Then the first kernel of a process has another key than the same kernel later, and each
    process compiles again what others compiled. So the keys of all helpers are made first, the innermost before others.
    """
    _settle(kernel, set())


def _settle(function: Any, begun: set[int]) -> None:
    if getattr(function, "hash", "") is not None or id(function) in begun:
        return  # it has its key, or is the interpreter's, which has none, or calls itself
    begun.add(id(function))
    for node in ast.walk(function.parse()):
        helper = None
        if isinstance(node, ast.Name):
            helper = function.__globals__.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            helper = getattr(function.__globals__.get(node.value.id), node.attr, None)
        if hasattr(type(helper), "cache_key"):  # of the type: reading it makes it
            _settle(helper, begun)
    function.cache_key  # noqa: B018


def register_bound(arguments: Mapping[str, Any], of_gpu: Callable[[], int]) -> dict[str, int]:
    """Triton's option maxnreg where it helps, by a kernel's arguments and the GPU's capability times ten.

    On Blackwell ptxas parks values on the stack, in loops too, to fit one more program on a multiprocessor: of the TF32
    forms, of two taps' sums together, and of the highest tiles with a flat second input beside a spread one. It stops
    doing so where a bound is given, even the hardware's own bound.
    """
    crowded = arguments.get("PRECISION") in ("tf32", "tf32x3") or arguments.get("TOGETHER") == 2
    crowded = crowded or bool(arguments.get("FLAT2") and arguments.get("SPREAD") == 2 and arguments.get("BM") == 256)
    wanted = crowded and of_gpu() >= BLACKWELL
    return {"maxnreg": MOST_REGISTERS} if wanted else {}


@contextlib.contextmanager
def noted(run: bool = True, choices: Choices = "likely", capability: int = H100) -> Iterator[list[Launch]]:
    """Notes every launch within the block in the list that it yields.

    run:        False: launches are noted and not started, outputs stay unset
    choices:    which candidates of tuning are launched
    capability: of the GPU that the launches are meant for, times ten, where the machine has none
    """
    global _noting
    before, _noting = _noting, _Noting([], run, choices, capability)
    try:
        yield _noting.launches
    finally:
        _noting = before


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Makes each launch within the block a node of the graph being traced (torch.library.wrap_triton)."""
    before, _tracing.on = _tracing.on, True
    try:
        yield
    finally:
        _tracing.on = before


def is_noted() -> bool:
    """Whether launches are noted now."""
    return _noting.launches is not None


def noted_choices() -> Choices:
    """Which candidates of tuning are launched to be noted now; "likely" where nothing is noted."""
    return "likely" if _noting.launches is None else _noting.choices


def capability() -> int:
    """Compute capability, times ten, of the GPU that runs; without a GPU, that of the one launches are noted for."""
    if not torch.cuda.is_available():
        return _noting.capability
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def is_traced() -> bool:
    """Whether launches become graph nodes now."""
    return _tracing.on


def wide(*tensors: Tensor | None) -> bool:
    """Whether offsets into one of the tensors need 64 bits."""
    return any(t is not None and t.numel() >= 2**31 for t in tensors)


def size(*tensors: Tensor | None) -> float:
    """Bytes of the tensors' elements."""
    return float(sum(t.numel() * t.element_size() for t in tensors if t is not None))
