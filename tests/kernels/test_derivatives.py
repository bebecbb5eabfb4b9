"""Every way of differentiating and transforming gives of every operator what it gives of its reference."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from engine import ops
from engine.kernels import _contract, _spec
from tests.support.derivatives import SLOW_WAYS, WAYS

SPECS = _spec.specs_with_skeleton()
# samples beside the first that take another way through autograd
FURTHER = {"resize_conv_act": (6, 8), "norm_act": (1,)}  # silu; a second input; groups


def _samples(name: str) -> list[_spec.Sample]:
    samples = SPECS[name].samples
    return [samples[i] for i in (0, *FURTHER.get(name, ()))]


def _flat(results: Tensor | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([result.reshape(-1) for result in (results if isinstance(results, tuple) else (results,))])


def _of_one(function: Callable, sample: _spec.Sample, made: dict[str, Tensor], name: str) -> Callable:
    """The function of one tensor of the sample, its results in one row."""
    return lambda value: _flat(function(**{**made, name: value}, **sample.options_in(torch.float32)))


def _cases():
    for operator in SPECS:
        for sample in _samples(operator):
            for name in sample.shapes:
                if name not in sample.drawn:
                    yield pytest.param(operator, sample, name, id=f"{operator} {sample.name}: {name}")


def _same(way: Callable, operator: str, sample: _spec.Sample, name: str) -> None:
    made = _spec.tensors(sample, torch.float32)
    x = made[name].contiguous()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    fused, plain = (
        _of_one(f, sample, made, name) for f in (_contract.find(operator).function, _contract.find(operator).reference)
    )
    try:
        expected = way(plain, x, direction)
    except NotImplementedError as error:  # what torch does not know of plain operations either
        with pytest.raises(NotImplementedError, match=re.escape(str(error).partition(".")[0])):
            way(fused, x, direction)
        return
    fused = way(fused, x, direction)
    assert fused.dtype == expected.dtype and _spec.relative_error(fused, expected, 1e-6) < 1e-4


# reverse mode gives no gradient of it at first order, which torch says where it is asked for one
REVERSE = ("is_grads_batched", "third derivative", "tangent of a recorded gradient", "dual gradient", "one thread,")
REVERSE = (*REVERSE, "checkpoint", "reentrant checkpoint", "saved_tensors_hooks")


@pytest.mark.parametrize("operator, sample, name", list(_cases()))
def test_every_way(operator, sample, name):
    recorded = sample.differentiable(name) and operator != "began_balance"
    for label, way in WAYS.items():
        if recorded or not label.startswith(REVERSE):
            _same(way, operator, sample, name)


@pytest.mark.parametrize("way", SLOW_WAYS.values(), ids=SLOW_WAYS)
@pytest.mark.parametrize("operator", [name for name in SPECS if name not in ("image_batch", "began_balance")])
def test_slow_ways(operator, way):
    """Of the operator's smallest sample."""
    of_floats = [s for s in SPECS[operator].samples if all(t.numel() for t in _spec.tensors(s, torch.float32).values())]
    sample = min(of_floats, key=lambda s: sum(torch.Size(shape).numel() for shape in s.shapes.values()))
    for name in sample.shapes:
        if sample.differentiable(name) and torch.Size(sample.shapes[name]).numel() < 100:
            _same(way, operator, sample, name)


def test_vmap_of_image_batch():
    """It has no derivative; vmap takes rows, windows and mirrors apart."""
    sample = SPECS["image_batch"].samples[0]
    made = _spec.tensors(sample, torch.float32)
    several = {n: torch.stack([made[n], made[n].flip(0)]) for n in ("rows", "offsets", "mirror")}

    def batch(rows, offsets, mirror):
        return ops.image_batch(made["store"], rows, offsets, mirror, **sample.options)

    expected = torch.stack([batch(*(t[i] for t in several.values())) for i in (0, 1)])
    assert torch.equal(torch.func.vmap(batch)(*several.values()), expected)


@pytest.mark.parametrize("way", [torch.func.jvp, torch.func.grad, torch.func.vmap], ids=lambda way: way.__name__)
def test_transforms_refuse_what_the_operator_refuses(way):
    """The reference would broadcast."""
    a, b = torch.randn(2, 3, 4, 4), torch.randn(1, 3, 4, 4)
    calls = {
        "jvp": lambda f: torch.func.jvp(f, (a,), (a,)),
        "grad": lambda f: torch.func.grad(f)(a),
        "vmap": lambda f: torch.func.vmap(f)(a[None]),
    }
    with pytest.raises(ValueError, match=r"^style_loss: a is .* they must be equal$"):
        calls[way.__name__](lambda v: ops.style_loss(v, b)[1])


def test_autocast_within_transforms():
    """As outside of them: gram is not cast, a convolution's image is and its weight stays float32."""
    x, weight = torch.randn(2, 8, 6, 6), torch.randn(8, 8, 3, 3) / 8
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for call in (ops.gram, lambda v: ops.resize_conv_act(v, weight, activation="elu")):
            expected, found = call(x), torch.func.vmap(call)(x[None])[0]
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
        leaf = x.clone().requires_grad_()
        first = torch.autograd.grad(ops.gram(leaf).square().sum(), leaf, create_graph=True)[0]
        assert first.dtype == torch.float32 and torch.autograd.grad(first.sum(), leaf)[0].norm() > 0


def test_factors_reach_second_derivatives():
    """The gradient of a weight is linear in grad_scale: its derivative is each sample's own part."""
    x, weight, scale = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True), torch.rand(3, requires_grad=True)
    first = torch.autograd.grad(ops.linear(x, weight, grad_scale=scale).sum(), weight, create_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(first.sum(), scale)[0], 5 * x.sum(1))
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(ops.linear(x, weight, grad_scale=scale).sum(), scale)


def test_backward_passes_are_not_differentiated():
    """Called directly they give values; whoever differentiates these is told what to do."""
    features = torch.randn(1, 3, 4, 4)
    grad = torch.randn(1, 3, 3, requires_grad=True)
    backward, says = torch.ops.kiln.gram_backward, "^kiln::gram_backward has no derivative: differentiate kiln::gram"
    value = backward(grad, features)
    torch.testing.assert_close(value.detach(), backward(grad.detach(), features))
    with pytest.raises(RuntimeError, match=says):
        value.sum().backward()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=says):
        backward(forward_ad.make_dual(grad.detach(), grad.detach()), features)
    with pytest.raises(RuntimeError, match=says):
        torch.func.grad(lambda g: backward(g, features).sum())(grad.detach())


@pytest.mark.parametrize("way", ["dual", "jvp", "grad"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("raw", [False, True], ids=["public", "raw"])
def test_within_compiled_functions(way, backend, raw):
    """One graph, which differentiates the reference's operations. raw: the operator as it is registered."""
    x = torch.randn(2, 4, 6, 6)
    weight = torch.randn(4, 4, 3, 3) / 6

    def function(fused: int) -> Callable:
        conv, loss = (
            ops.OPERATORS[n].function if fused else ops.OPERATORS[n].reference for n in ("resize_conv_act", "gram")
        )
        loss = torch.ops.kiln.gram if fused and raw else loss
        return lambda v: loss(conv(v, weight, activation="elu"))

    torch.compiler.reset()  # PyTorch 2.11 counts the compilations of all these tests as one function's
    compiled = torch.compile(lambda x: WAYS[way](function(1), x, x), backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), WAYS[way](function(0), x, x))


def test_unusual_tensors_are_refused():
    """Never read as if they lay dense in memory."""
    x = torch.rand(1, 3, 4, 4)
    for unusual in (x.to_sparse(), x.to_mkldnn()):
        with pytest.raises(NotImplementedError, match="kiln::gram"):
            ops.gram(unusual)
    for unusual in (x.double(), x + 0j, x.to(torch.float8_e4m3fn)):
        with pytest.raises(ValueError, match=r"^gram: features is torch"):
            ops.gram(unusual)
