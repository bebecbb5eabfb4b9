"""The operator contract: `define` registers an operator with torch, `publish` enters its function in the table."""

import functools
import importlib
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import _dispatch
from ._availability import Implementation, own_implementations
from ._gradients import Gradients, autograd_of
from ._observers import OperatorCall, observers, tell

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Operator:
    """One folder of kernels/: the public function, its reference, and what runs it on each device."""

    name: str
    function: Callable
    reference: Callable
    implementations: Callable[[], list[Implementation]]

    @property
    def decomposition(self) -> Callable:
        """torch.ops.kiln.<name> in plain PyTorch: the same arguments and results."""
        return decomposition(self.name)


OPERATORS: dict[str, Operator] = {}
_skeletons: dict[str, Operator] = {}  # of folders with an underscore: tested as any operator, offered to nobody
_decompositions: dict[str, Callable] = {}


def define(
    schema: str,
    *,
    check: Callable,
    cpu: Callable,
    cuda: Callable,
    fake: Callable,
    reference: Callable | None = None,
    gradients: Gradients | None = None,
    autocast: Collection[str] | None = None,
    triton: bool = True,
    plan: Callable | None = None,
) -> Callable:
    """Registers torch.ops.kiln.<name> and returns what calls it: its default overload, by a shorter way where one is.

    check:      raises ValueError where arguments do not fit. It comes before all below, and is the last look before
                addresses leave Python: C++ and Triton check nothing. All tensors are on one device by then
    cpu, cuda:  run on real tensors; cpu's parameters have the names of the schema
    fake:       gives empty results with the true strides
    reference:  the operator in plain PyTorch, its arguments by the schema's names; None for a backward pass
    gradients:  how autograd differentiates it; None: no argument has a gradient
    autocast:   floating-point tensors are cast to the autocast dtype first, except these arguments; None: nothing is
    triton:     `cuda` launches Triton kernels, which torch.compile is to see (as those of a torch.library.triton_op)
    plan:       gives what cpu takes as one argument more, its last: all that follows from shapes and dtypes of tensors
                and from the options. Calls that are equal in these are checked and planned once. None: cpu has no plan
    """
    name = schema.split("(", 1)[0]
    arguments = _dispatch.declare(schema)
    names = [argument.name for argument in arguments]
    if list(inspect.signature(cpu).parameters) != [*names, "plan"][: len(names) + bool(plan)]:
        raise TypeError(f"kiln::{name} has the arguments {names}; {cpu.__qualname__} takes others")
    plain, autograd = None, None
    if reference is not None:
        _decompositions[name] = plain = _taking_positions(reference, names)
        autograd = autograd_of(gradients, arguments, plain) if gradients else None
    call = _dispatch.register(
        name,
        arguments,
        check=check,
        cpu=cpu,
        cuda=cuda,
        fake=fake,
        plain=plain,
        autograd=autograd,
        autocast=autocast,
        triton=triton,
        plan=plan,
    )
    return functools.wraps(cpu)(call)  # whoever calls it, reads its parameters: Gradients does


def _taking_positions(function: Callable, names: list[str]) -> Callable:
    def call(*arguments: object) -> object:
        return function(**dict(zip(names, arguments, strict=True)))

    return call


def publish(reference: Callable, implementations: Callable[[], list[Implementation]] | None = None) -> Callable[[F], F]:
    """Enters the decorated function in the table that `explain`, the tests and the benchmark read.

    reference: the same function in plain PyTorch. implementations: the rows of `explain`; None: those of an operator in
    C++ and Triton. The function's name is its folder's, and that of its torch.ops.kiln.<name>.
    """

    def enter(function: F) -> F:
        name, folder = function.__name__, function.__module__.rpartition(".")[2]

        @functools.wraps(function)
        def observable(*arguments: Any, **options: Any) -> Any:
            if not observers:
                return function(*arguments, **options)
            results = function(*arguments, **options)
            given = inspect.signature(function).bind(*arguments, **options).arguments
            tell(OperatorCall(name, given, results))
            return results

        table = _skeletons if folder.startswith("_") else OPERATORS
        rows = implementations or functools.partial(own_implementations, name)
        table[name] = Operator(name, observable, reference, rows)
        return observable  # type: ignore[return-value]

    return enter


def discover() -> dict[str, Operator]:
    """Imports every operator folder beside this file and returns the table."""
    for folder in sorted(Path(__file__).parent.iterdir()):
        if folder.is_dir() and not folder.name.startswith("_") and (folder / "__init__.py").is_file():
            importlib.import_module(f"{__package__}.{folder.name}")
    return OPERATORS


def decomposition(name: str) -> Callable:
    """torch.ops.kiln.<name> in plain PyTorch: the same arguments and results."""
    return _decompositions[name]


def find(name: str) -> Operator:
    """The operator of this name, the skeleton too. Raises KeyError for another."""
    operators = discover()
    return operators[name] if name in operators else _skeletons[name]
