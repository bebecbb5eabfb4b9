"""Proxies that stand for tensors while a forward is traced: each operation on one becomes a node of the graph."""

import operator
import sys
import types

from torch import Tensor, fx
from torch.fx.proxy import Attribute


class _AnswersAsTensor:
    """Answers questions about its class and attributes as a tensor would, or ends the trace."""

    @property
    def __class__(self) -> type:
        # isinstance(x, C) comes here where the type of x is no subclass of C: a tensor might be a C
        frame = sys._getframe(1)
        while (asking := frame.f_globals.get("__name__", "")) == "torch.nn.parameter":
            frame = frame.f_back  # the caller of isinstance(x, nn.Parameter), which asks on its own
        if not asking.startswith(("torch.fx", "torch.overrides")):
            self.tracer.refuse("asks what an input is")
        return fx.Proxy

    def __getattr__(self, name: str) -> fx.Proxy:
        if not hasattr(Tensor, name):
            raise AttributeError(name)
        return _AttributeProxy(self, name)


class TensorProxy(_AnswersAsTensor, fx.Proxy):
    """A tensor of the traced forward. `x += y` is recorded as a write into x; fx itself records `x = x + y`."""


class _AttributeProxy(_AnswersAsTensor, Attribute):
    """An attribute or a method of such a tensor."""


def _in_place(name: str) -> types.FunctionType:
    """The function of `operator`, under a name that ends with "_": so mutation.py knows that it writes."""
    apply = getattr(operator, name)

    def function(x: object, y: object) -> object:
        return apply(x, y)

    function.__name__ = function.__qualname__ = f"{name}_"
    return function


def _recorded(function: types.FunctionType) -> types.FunctionType:
    """A method of TensorProxy that enters a call of the function into the graph."""

    def method(self: TensorProxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(TensorProxy, f"__{_name}__", _recorded(_in_place(_name)))
