"""Calls of every torch.ops.kiln operator as registered, backward passes too, and what can be wrong with arguments.

`python -m tests.support.raw_calls [COUNT]` makes every single change of `changes` to valid calls, COUNT of each
operator, in one process, which a crash ends.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.kernels import _contract, _spec

LARGEST = 1 << 22  # elements of results: a call that would make more is not made
REFUSALS = (TypeError, ValueError, RuntimeError)


class RawCall(NamedTuple):
    """A call of torch.ops.kiln.<name>; arguments in the schema's order."""

    name: str
    arguments: tuple

    @property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.kiln, self.name).default

    def with_argument(self, position: int, value: object) -> "RawCall":
        return self._replace(arguments=(*self.arguments[:position], value, *self.arguments[position + 1 :]))


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[RawCall] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "kiln":
            self.calls.append(RawCall(function._schema.name.removeprefix("kiln::"), args))
        return function(*args, **(kwargs or {}))


@cache
def valid_calls() -> dict[str, list[RawCall]]:
    """Calls of every registered operator, by its name: those of both passes over small samples of its spec."""
    calls: dict[str, list[RawCall]] = {}
    for operator, spec in _spec.specs_with_skeleton().items():
        for sample in spec.samples:
            made = _spec.tensors(sample, torch.float32)
            if max(tensor.numel() for tensor in made.values()) > 4000:
                continue
            with _Recorder() as recorder:
                _spec.run(_contract.find(operator).function, sample, made, torch.float32)
            for call in recorder.calls:
                known = calls.setdefault(call.name, [])
                if all(_kinds(call) != _kinds(other) for other in known):
                    known.append(call)
    # no operator of its own: engine.fuse calls it
    calls["contiguous"] = [RawCall("contiguous", (torch.randn(2, 9, 12, 40).to(memory_format=torch.channels_last),))]
    return calls


def _kinds(call: RawCall) -> tuple:
    """What tells calls of one operator apart: which optional tensors are given, and the words among the options."""
    words = (a for a in call.arguments if isinstance(a, str))
    return tuple(type(a) for a in call.arguments), *words


def registered() -> set[str]:
    """The names of all operators of torch.ops.kiln."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.partition("::")[2] for name in names if name.startswith("kiln::")}


Change = Callable[[Tensor], Tensor]
TENSORS: dict[str, Change] = {
    "nothing in it": lambda t: t.new_empty(0),
    "one dimension less": lambda t: t[0].clone() if t.dim() and len(t) else t.new_zeros(()),
    "one dimension more": lambda t: t[None].clone(),
    "no dimension": lambda t: t.new_zeros(()),
    "a scalar, expanded": lambda t: t.new_zeros(()).expand(t.shape),
    "turned round in memory": lambda t: _turned(_turned(t).contiguous()),
    "every second element": lambda t: torch.stack([t, t], -1)[..., 0],
    "requires grad": lambda t: t.detach().clone().requires_grad_(t.is_floating_point()),
    "on no device": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "not a number": lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t.clone(),
}
TENSORS |= {
    f"as {dtype}": lambda t, dtype=dtype: t.to(dtype)
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.int64,
        torch.uint8,
    )
}
TENSORS |= {f"dimension {dim} longer": lambda t, dim=dim: _resized(t, dim, 1) for dim in range(5)}
TENSORS |= {f"dimension {dim} shorter": lambda t, dim=dim: _resized(t, dim, -1) for dim in range(5)}
NUMBERS = (-1, 0, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**40, -(2**63), 2**63)
FLOATS = (-1.0, 0.0, 1e-30, 0.5, 1e30, float("nan"), float("inf"), -float("inf"))
WORDS = ("none", "up", "down", "elu", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu", "")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64)


def _turned(tensor: Tensor) -> Tensor:
    return tensor.permute(tuple(reversed(range(tensor.dim()))))


def _resized(tensor: Tensor, dim: int, by: int) -> Tensor:
    if dim >= tensor.dim() or tensor.shape[dim] + by < 0:
        return tensor.clone()
    shape = [side + by * (d == dim) for d, side in enumerate(tensor.shape)]
    return tensor.new_zeros(shape)


def changes(value: object) -> Iterator[tuple[str, object]]:
    """Other values in place of one argument, each with a word for it."""
    yield "None", None
    yield "a word", "none"
    if isinstance(value, Tensor):
        for word, change in TENSORS.items():
            yield word, change(value)
    elif isinstance(value, bool):
        yield str(not value), not value
    elif isinstance(value, list):
        for other in ([], [True], [True] * len(value), [False] * len(value), [True] * (len(value) + 1), value[:-1]):
            yield str(other), other
    elif isinstance(value, str):
        yield from ((word, word) for word in WORDS)
    elif isinstance(value, torch.dtype):
        yield from ((str(dtype), dtype) for dtype in DTYPES)
    elif isinstance(value, int):
        yield from ((str(number), number) for number in (*NUMBERS, 0.5))
    elif isinstance(value, float):
        yield from ((str(number), float(number)) for number in (*NUMBERS, *FLOATS))
    else:
        yield "a tensor", torch.zeros(3, 3)


def judge(call: RawCall) -> bool:
    """Whether the call was made; an AssertionError where its results are not what they must be.

    Its results are those of copies, which lie dense in memory, have the shapes, dtypes and strides of the fake, and, of
    an operator with a reference, the reference's values.
    """
    try:
        fakes = _results(call.overload(*_on_meta(call)))
    except REFUSALS as refusal:
        _must_refuse(call, refusal)
        return False
    devices = {a.device.type for a in call.arguments if isinstance(a, Tensor)}
    if devices == {"meta"} or sum(fake.numel() for fake in fakes) > LARGEST:
        return False
    try:
        results = _results(call.overload(*call.arguments))
    except REFUSALS:
        return False
    assert not any(isinstance(a, Tensor) and a.is_meta for a in call.arguments), "tensors of two devices"
    for result, fake in zip(results, fakes, strict=True):
        assert (result.shape, result.dtype, result.stride()) == (fake.shape, fake.dtype, fake.stride())
    copies = [a.detach().clone() if isinstance(a, Tensor) else a for a in call.arguments]
    _agree(results, _results(call.overload(*copies)), 1e-4)
    if not call.name.endswith("_backward"):
        _agree(results, _results(_contract.decomposition(call.name)(*call.arguments)), 2e-2)
    return True


def _must_refuse(call: RawCall, refusal: Exception) -> None:
    """What the fake refuses, the operator refuses as well, in one line that names it where the refusal is its own."""
    if isinstance(refusal, ValueError):
        assert "\n" not in str(refusal) and call.name.removesuffix("_backward") in str(refusal), refusal
    try:
        call.overload(*call.arguments)
    except REFUSALS:
        return
    raise AssertionError(f"the fake refuses it ({refusal}), the operator does not")


def _results(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _on_meta(call: RawCall) -> list[object]:
    """The arguments, tensors without their numbers; one that stands for an option keeps the number that torch reads."""
    schema = call.overload._schema.arguments
    return [
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        if isinstance(value, Tensor) and value.layout == torch.strided and "Tensor" in str(argument.type)
        else value
        for argument, value in zip(schema, call.arguments, strict=True)
    ]


def _agree(results: tuple[Tensor, ...], expected: tuple[Tensor, ...], allowed: float) -> None:
    for one, other in zip(results, expected, strict=True):
        if one.shape != other.shape:
            continue  # what only the operator's own backward pass reads, which a reference leaves empty
        known = other.isfinite()
        assert _spec.relative_error(one[known], other[known], 1e-3) <= allowed


def main(count: int | None) -> int:
    """Prints each call before it is made, and what is wrong; returns the number of wrong ones."""
    made, tried, wrong = 0, 0, 0
    for call in [call for calls in valid_calls().values() for call in calls[:count]]:
        print(call.name, *_kinds(call))
        assert judge(call), "a valid call is refused"
        for position, argument in enumerate(call.overload._schema.arguments):
            for word, value in changes(call.arguments[position]):
                print(f"{call.name}, {argument.name}: {word}", flush=True)
                tried += 1
                try:
                    made += judge(call.with_argument(position, value))
                except Exception as error:
                    wrong += 1
                    print(f"WRONG: {type(error).__name__}: {error}")
    print(f"{tried} calls, {made} made, {tried - made - wrong} refused, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else None) > 0)
