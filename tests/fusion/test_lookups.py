"""engine/fusion/lookups.py knows all that the installed torch looks up when a layer is called."""

import types

import pytest
import torch
from torch import nn

from engine.fusion.chains.classify import ACTIVATION_MODULES
from engine.fusion.chains.convolutions import PAD_MODULES
from engine.fusion.lookups import GLOBAL_HOOKS, HOOKS, Called, Layer, Lookups, names_in, reads_of_class, replaced
from tests.support.fuse_models import conv

LAYERS = [conv(3, 4), nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d(scale_factor=2), nn.Sequential()]
LAYERS += [kind() for kind in ACTIVATION_MODULES]
LAYERS += [nn.ConvTranspose2d(3, 4, 4, 2, 1), *(kind(1) for kind in PAD_MODULES if kind is not nn.ConstantPad2d)]
LAYERS += [nn.ConstantPad2d(1, 0.0)]
# what nn.Module.__call__ and _call_impl load, and who looks at it in place of them: see the table of lookups.py
OF_THE_LAYER = {"_compiled_call_impl", "_call_impl", "_slow_forward", "forward", *HOOKS}
ONLY_WITH_HOOKS = {"_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"}
ONLY_WITH_HOOKS |= {"_get_backward_hooks", "_get_backward_pre_hooks", "_maybe_warn_non_full_backward_hook"}
ONLY_WITH_HOOKS |= {"setup_input_hook", "setup_output_hook", "register_hook", "grad_fn"}
OF_PYTHON = {"items", "values", "add", "warn", "Tensor", "_C", "_get_tracing_state", "compiler", "is_compiling"}


def code_in(code: types.CodeType) -> set[str]:
    """The names of all kinds in a code and in the functions written in it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(code_in, inner))


def test_calls_of_modules_ask_for_nothing_else() -> None:
    own, impl = nn.Module.__call__.__code__, nn.Module._call_impl.__code__
    asked = names_in(own) | names_in(impl)
    assert not asked - OF_THE_LAYER - ONLY_WITH_HOOKS - OF_PYTHON
    listened = {name for name in code_in(impl) if name.startswith("_global_") and hasattr(nn.modules.module, name)}
    dicts = [getattr(nn.modules.module, name) for name in listened if not name.endswith(("_kwargs", "_called"))]
    assert {id(hooks) for hooks in dicts} == {id(hooks) for hooks in GLOBAL_HOOKS}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_forwards_of_layers_ask_for_nothing_else(layer: nn.Module) -> None:
    kind = type(layer)
    called = Called.of(kind)
    methods = [
        getattr(kind, name) for name in called.methods if name in ("forward", "_conv_forward", "_output_padding")
    ]
    asked = set().union(*(names_in(function.__code__) for function in methods))
    options = {name for name, _ in Layer(layer).options}
    functions = {name for _, name, _ in reads_of_class(kind)}
    of_tensors = {"weight", "bias", "dim", "size", "append"}  # the last three for a given output_size
    assert not asked - called.methods - options - functions - of_tensors
    assert not called.foreign and not replaced(layer)


def test_what_a_layer_is_asked_for() -> None:
    assert {"forward", "_conv_forward", "_call_impl", "__call__", "__getattr__"} <= Called.of(nn.Conv2d).methods
    assert {"stride", "padding", "dilation", "groups", "padding_mode"} <= {n for n, _ in Layer(conv(3, 4)).options}
    read = {name for _, name, _ in reads_of_class(nn.ELU)}
    assert {"F", "elu", "_nn"} <= read


def test_names_are_compared_by_identity() -> None:
    space = {"one": torch.zeros(2), "two": 2}
    lookups = Lookups({nn.ELU: ["forward"]}, [(space, name, value) for name, value in space.items()])
    assert lookups.are_as_they_were()
    space["one"] = space["one"].clone()
    assert not lookups.are_as_they_were()
    del space["one"]
    assert not lookups.are_as_they_were()
