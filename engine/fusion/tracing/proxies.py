"""What stands for tensors while a forward is traced."""

import operator
import sys
import types

from torch import Tensor, fx
from torch.fx.proxy import Attribute


class _AsTensor:
    """What the stand-ins of tensors answer as tensors would, or refuse to answer."""

    @property
    def __class__(self) -> type:
        # reached by isinstance(x, C) where x is none: a tensor might be one
        frame = sys._getframe(1)
        while (asking := frame.f_globals.get("__name__", "")) == "torch.nn.parameter":
            frame = frame.f_back  # of isinstance(x, nn.Parameter)
        if not asking.startswith(("torch.fx", "torch.overrides")):
            self.tracer.refuse("asks what an input is")
        return fx.Proxy

    def __getattr__(self, name: str) -> fx.Proxy:
        if not hasattr(Tensor, name):
            raise AttributeError(name)
        return _Attribute(self, name)


class StandIn(_AsTensor, fx.Proxy):
    """Notes `x += y` as what it is: fx itself takes it for `x = x + y`."""


class _Attribute(_AsTensor, Attribute):
    pass


def _in_place(name: str) -> types.FunctionType:
    """A function whose name says, as of tensors' methods, that it writes into its first argument."""
    apply = getattr(operator, name)

    def function(x: object, y: object) -> object:
        return apply(x, y)

    function.__name__ = function.__qualname__ = f"{name}_"
    return function


def _noted(function: types.FunctionType) -> types.FunctionType:
    def method(self: StandIn, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(StandIn, f"__{_name}__", _noted(_in_place(_name)))
