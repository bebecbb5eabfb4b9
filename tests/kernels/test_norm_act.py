"""norm_act beside PyTorch's modules: running statistics, layouts, counts of channels, NaN, large means, threads."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import ops
from engine.kernels import _spec
from engine.kernels.norm_act import KINDS, over_ranks
from engine.kernels.resize_conv_act.reference import ACTIVATIONS
from tests.support.instruction_sets import INSTRUCTION_SETS
from tests.support.normalisation import kind_options

LAYOUTS = [torch.channels_last, torch.contiguous_format]
REFERENCE = ops.OPERATORS["norm_act"].reference
SPEC = _spec.specs()["norm_act"]


def drawn(*shape: int, layout: torch.memory_format = torch.channels_last, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=layout)


def results(function, tensors: dict[str, Tensor], dtype: torch.dtype, **options: object) -> list[Tensor]:
    """The output and the gradients of all tensors."""
    leaves = {name: tensor.to(dtype).detach().requires_grad_() for name, tensor in tensors.items()}
    y = function(**leaves, **options)
    upstream = drawn(*y.shape, seed=9).to(torch.bfloat16).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), upstream)]


def agree(tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32, **options: object) -> None:
    """By the dtype rule; tensors are rounded to the dtype."""
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    exact, eager = (results(REFERENCE, tensors, d, **options) for d in (torch.float64, dtype))
    for one, plain, truth in zip(results(ops.norm_act, tensors, dtype, **options), eager, exact, strict=True):
        allowed = 2 * _spec.relative_error(plain, truth, 1e-3) + SPEC.floor[dtype]
        assert _spec.relative_error(one, truth, 1e-3) <= allowed, options


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 3, 6, 5), (2, 17, 8, 8), (2, 33, 3, 7), (9, 6, 4, 4), (2, 48, 1, 3)])
def test_channels_and_sides(shape, kind, layout, instruction_set):
    """Whole vectors of channels or pixels, and not; a residual and every option of the affine map."""
    x, residual = drawn(*shape, layout=layout), drawn(*shape, seed=1)
    weight, bias = drawn(shape[1], 1, 1, 1, seed=2).flatten(), drawn(shape[1], 1, 1, 1, seed=3).flatten()
    options = kind_options(kind, shape[1])
    agree({"x": x, "weight": weight, "bias": bias}, activation="elu", **options)
    agree({"x": x, "weight": weight, "residual": residual}, activation="silu", **options)
    agree({"x": x, "bias": bias, "residual": residual}, activation="tanh", residual_place="after", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_residuals(activation, layout, dtype):
    tensors = {"x": drawn(3, 20, 7, 6, layout=layout) * 2 + 1, "residual": drawn(3, 20, 7, 6, seed=1)}
    for kind in ("batch", "instance"):
        for place in ("before", "after"):
            agree(tensors, dtype, kind=kind, activation=activation, residual_place=place, negative_slope=0.1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("module", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_running_statistics_are_those_of_the_module(module, dtype, layout):
    """Over several steps of training, and then in evaluation."""
    norm = module(6, affine=True, track_running_stats=True, momentum=0.3)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    own = copy.deepcopy(norm)
    kind = "batch" if module is nn.BatchNorm2d else "instance"

    def run(x: Tensor, training: bool) -> Tensor:
        running = {"running_mean": own.running_mean, "running_var": own.running_var, "momentum": 0.3}
        return ops.norm_act(x, own.weight, own.bias, kind=kind, training=training, **running)

    for step in range(4):
        x = (drawn(3, 6, 5, 7, layout=layout, seed=step) * (1 + step) + step).to(dtype)
        torch.testing.assert_close(run(x, True), norm(x), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-5)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(own, name), getattr(norm, name), rtol=2e-6, atol=1e-6)
    norm.eval()
    before = own.running_mean.clone()
    torch.testing.assert_close(run(x, False), norm(x), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-5)
    assert torch.equal(own.running_mean, before)


def test_running_statistics_in_half_precision():
    """Those of a module that is bfloat16 as a whole move by float32 arithmetic."""
    x, mean, var = drawn(4, 5, 6, 6).bfloat16(), torch.zeros(5).bfloat16(), torch.ones(5).bfloat16()
    ops.norm_act(x, kind="batch", running_mean=mean, running_var=var, momentum=0.5)
    wide = x.float().transpose(0, 1).flatten(1)
    assert torch.equal(mean, (wide.mean(1) / 2).bfloat16())
    torch.testing.assert_close(var, (wide.var(1) / 2 + 0.5).bfloat16())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_evaluation_takes_statistics_as_constants(layout):
    """Infinite values too: they reach their own pixel and no gradient."""
    x = drawn(2, 9, 5, 4, layout=layout)
    mean, var = drawn(9, 1, 1, 1, seed=1).flatten(), drawn(9, 1, 1, 1, seed=2).flatten().square() + 0.5
    options = {"kind": "batch", "training": False, "activation": "relu", "running_mean": mean, "running_var": var}
    exact = results(REFERENCE, {"x": x}, torch.float32, **options)
    for found, expected in zip(results(ops.norm_act, {"x": x}, torch.float32, **options), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    x[1, 3, 2, 2] = torch.inf
    y, gradient = results(ops.norm_act, {"x": x}, torch.float32, **options)
    assert y[1, 3, 2, 2] == torch.inf and y.isfinite().sum() == y.numel() - 1 and gradient.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_what_shares_a_statistic(kind, layout):
    x = drawn(2, 6, 8, 8, layout=layout)
    x[0, 1, 2, 3] = torch.nan
    y, gradient = results(ops.norm_act, {"x": x}, torch.float32, activation="relu", **kind_options(kind, 6))
    expected = torch.zeros(2, 6, dtype=torch.bool)
    expected[
        (slice(None), 1) if kind == "batch" else (0, {"instance": 1, "layer": slice(None)}.get(kind, slice(2)))
    ] = 1
    for found in (y, gradient):
        assert torch.equal(found.isnan().all(-1).all(-1), expected)
        assert torch.equal(found.isnan().any(-1).any(-1), expected)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(1, 16, 1, 231), (8, 16, 16, 16), (3, 30, 24, 24)])
def test_means_near_zero(shape, layout, instruction_set):
    """Of standard deviation 1, to a few 1e-8: a mean's error moves all values of its channel, and adds up in sums."""
    x = drawn(*shape, layout=layout)
    for groups, dims in ((0, (0, 2, 3)), (shape[1], (2, 3)), (1, (1, 2, 3))):
        _, mean, _ = torch.ops.kiln.norm_act(x, None, None, None, None, None, groups, 1e-5, "none", 0.2, False, True)
        exact = x.double().mean(dims)
        assert (mean.double().view_as(exact) - exact).abs().max() < 6e-8


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_large_mean_costs_no_accuracy(kind, layout):
    """Mean 1000, standard deviation 1: where squares minus the square of the mean would lose all digits."""
    x = drawn(8, 30, 24, 24, layout=layout) + 1000
    options = kind_options(kind, 30)
    exact, eager = (results(REFERENCE, {"x": x}, dtype, **options) for dtype in (torch.float64, torch.float32))
    found = results(ops.norm_act, {"x": x}, torch.float32, **options)
    for one, plain, truth in zip(found, eager, exact, strict=True):
        assert _spec.relative_error(one, truth) <= max(1.1 * _spec.relative_error(plain, truth), 1e-6)
    mean, var = torch.ops.kiln.norm_act(x, None, None, None, None, None, 0, 1e-5, "none", 0.2, False, True)[1:]
    channels = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(var.double(), channels.var(1, correction=0), rtol=2e-7, atol=0)
    torch.testing.assert_close(mean.double(), channels.mean(1), rtol=6e-8, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 24, 33, 20), (1, 32, 64, 64), (40, 16, 4, 4)])
def test_bits_do_not_depend_on_threads(shape, kind, layout):
    tensors = {"x": drawn(*shape, layout=layout), "residual": drawn(*shape, seed=1)}
    tensors |= {"weight": torch.rand(shape[1]), "bias": torch.rand(shape[1])}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(
                results(ops.norm_act, tensors, torch.float32, activation="elu", **kind_options(kind, shape[1]))
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_order_of_memory_is_that_of_x(layout):
    x = drawn(2, 6, 5, 4, layout=layout).requires_grad_()
    y = ops.norm_act(x, kind="batch")
    (gradient,) = torch.autograd.grad(y, x, drawn(2, 6, 5, 4))
    assert y.stride() == gradient.stride() == x.stride()
    sliced = ops.norm_act(drawn(4, 12, 5, 8)[::2, ::2, :, ::2], kind="batch")
    assert sliced.is_contiguous(memory_format=torch.channels_last)


def test_gradients_that_nobody_needs_are_not_formed():
    x, weight, bias = drawn(2, 6, 5, 4), torch.rand(6), torch.rand(6)
    tensors = {"x": x, "weight": weight, "bias": bias, "residual": drawn(2, 6, 5, 4, seed=1)}
    options = {"kind": "batch", "activation": "elu"}
    every = dict(zip(("y", *tensors), results(ops.norm_act, tensors, torch.float32, **options), strict=True))
    for name in tensors:
        leaves = {n: t.clone(memory_format=torch.preserve_format) for n, t in tensors.items()}
        leaves[name].requires_grad_()
        y = ops.norm_act(**leaves, **options)
        upstream = drawn(*y.shape, seed=9).to(torch.bfloat16).float()
        torch.testing.assert_close(torch.autograd.grad(y, leaves[name], upstream)[0], every[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["instance", "layer"])
def test_a_single_value_is_refused_as_pytorch_does(kind):
    x = torch.randn(1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"^norm_act: Expected more than 1 (value per channel|spatial element) when"):
        ops.norm_act(x, kind=kind)
    with pytest.raises(ValueError, match="Expected more than 1"):
        REFERENCE(x, kind=kind)


def test_single_values():
    """A batch of one value for each channel is refused in training only; one pixel of an image is no statistic."""
    x, running = torch.randn(1, 6, 1, 1), {"running_mean": torch.zeros(6), "running_var": torch.ones(6)}
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        ops.norm_act(x, kind="batch", **running)
    torch.testing.assert_close(ops.norm_act(x, kind="batch", training=False, eps=1e-12, **running), x)
    with pytest.raises(ValueError, match="Expected more than 1 spatial element when training"):
        ops.norm_act(torch.randn(4, 6, 1, 1), kind="instance")
    assert torch.equal(ops.norm_act(torch.randn(2, 6, 1, 1), kind="group", groups=6), torch.zeros(2, 6, 1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind):
    """Results without elements, gradients of zero, running statistics that stay."""
    x, weight = torch.zeros(0, 6, 4, 4, requires_grad=True), torch.ones(6, requires_grad=True)
    running = {"running_mean": torch.zeros(6), "running_var": torch.ones(6)} if kind in ("batch", "instance") else {}
    y = ops.norm_act(x, weight, activation="relu", **running, **kind_options(kind, 6))
    of_x, of_weight = torch.autograd.grad(y.sum(), (x, weight))
    assert y.shape == of_x.shape == x.shape and torch.equal(of_weight, torch.zeros(6))
    assert not running or (running["running_mean"].eq(0).all() and running["running_var"].eq(1).all())


def test_parameters_of_an_autocast_layer_stay_float32():
    x, weight, bias = drawn(2, 8, 6, 6).bfloat16(), torch.rand(8, requires_grad=True), torch.rand(8, requires_grad=True)
    y = ops.norm_act(x, weight, bias, kind="batch", activation="relu")
    assert y.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.sum(), (weight, bias)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["elu", "silu"])
def test_gradient_penalty(kind, activation):
    """Second derivatives equal those of the reference."""
    shape = (2, 6, 5, 3)

    def penalty(function) -> tuple[Tensor, ...]:
        leaves = [
            t.clone().requires_grad_() for t in (drawn(*shape), torch.ones(6), torch.zeros(6), drawn(*shape, seed=1))
        ]
        x, weight, bias, residual = leaves
        y = function(x, weight, bias, residual=residual, activation=activation, **kind_options(kind, 6))
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for fused, eager in zip(penalty(ops.norm_act), penalty(REFERENCE), strict=True):
        assert _spec.relative_error(fused, eager) < 2e-5


@pytest.mark.parametrize(
    "options", [{"kind": "batch"}, {"kind": "group", "groups": 2}, {"kind": "batch", "training": False}]
)
def test_twice_differentiable_in_float64(options):
    """gradcheck and gradgradcheck of the reference."""
    running = {"running_mean": torch.randn(4), "running_var": torch.rand(4) + 0.5}
    given = {n: t.double() for n, t in running.items()} if not options.get("training", True) else {}
    tensors = [torch.randn(2, 4, 3, 2), torch.rand(4) + 0.5, torch.randn(4), torch.randn(2, 4, 3, 2)]
    leaves = [t.double().requires_grad_() for t in tensors]

    def function(x, weight, bias, residual):
        return REFERENCE(x, weight, bias, residual=residual, activation="silu", **given, **options)

    assert torch.autograd.gradcheck(function, leaves) and torch.autograd.gradgradcheck(function, leaves)


def _raw_calls():
    x = drawn(2, 6, 4, 3).requires_grad_()
    weight, bias = torch.rand(6, requires_grad=True), torch.rand(6, requires_grad=True)
    residual = drawn(2, 6, 4, 3, seed=1).requires_grad_()
    for groups in (0, 1, 2, 6):
        yield x, weight, bias, residual, None, None, groups, 1e-5, "silu", 0.2, False, False
    yield x, weight, None, residual, torch.rand(6), torch.rand(6), 0, 1e-5, "relu", 0.2, False, False
    yield x, None, bias, residual, None, None, 0, 1e-5, "elu", 0.2, True, False
    yield x.detach(), None, None, None, None, None, 0, 1e-5, "none", 0.2, True, True


@pytest.mark.parametrize("arguments", list(_raw_calls()))
def test_opcheck(arguments):
    torch.library.opcheck(torch.ops.kiln.norm_act.default, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_in_one_graph(kind):
    """With running statistics, which the graph moves."""
    x, weight = drawn(2, 6, 5, 4).requires_grad_(), torch.rand(6)
    kept = [torch.zeros(6), torch.ones(6)] if kind in ("batch", "instance") else [None, None]

    def loss(x: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        running = {"running_mean": mean, "running_var": var}
        return ops.norm_act(x, weight, activation="elu", **running, **kind_options(kind, 6)).square().sum()

    moved = [None if t is None else t.clone() for t in kept]
    expected = torch.autograd.grad(loss(x, *moved), x)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x, *kept), x)[0], expected)
    for found, wanted in zip(kept, moved, strict=True):
        assert found is None or torch.equal(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_parts_over_two_shares_are_the_whole(layout):
    """Statistics, sums and gradients of two halves of a batch, joined as ranks do, are those of the batch."""
    x, residual = drawn(6, 5, 8, 7, layout=layout) + 3, drawn(6, 5, 8, 7, seed=1)
    weight, bias, grad = torch.rand(5), torch.rand(5), drawn(6, 5, 8, 7, seed=2)
    whole = results(lambda **t: ops.norm_act(kind="batch", activation="elu", **t),
                    {"x": x, "weight": weight, "bias": bias, "residual": residual}, torch.float32)  # fmt: skip
    options = over_ranks.Options(activation="elu")
    halves = [slice(0, 3), slice(3, 6)]
    means, variances = torch.stack([over_ranks.statistics(x[half]) for half in halves]).unbind(1)
    mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
    y = torch.cat([over_ranks.normalise(x[h], weight, bias, residual[h], mean, var, options) for h in halves])
    torch.testing.assert_close(y, whole[0])
    grad = drawn(*y.shape, seed=9).to(torch.bfloat16).float()
    calls = [(grad[h], x[h], weight, bias, residual[h], mean, var) for h in halves]
    sums = torch.stack([over_ranks.sums(*call, options) for call in calls])
    torch.testing.assert_close(sums.sum(0), torch.stack([whole[3], whole[2]]), rtol=1e-5, atol=1e-5)
    shared = sums.mean(0) / (3 * 8 * 7)
    parts = [over_ranks.input_gradients(*call, shared, options, [True, True]) for call in calls]
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), whole[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), whole[4])


X = torch.randn(2, 6, 4, 4)
RUNNING = {"running_mean": torch.zeros(6), "running_var": torch.ones(6)}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "local"}, "kind is 'local'; it must be one of batch, instance, group, layer"),
        ({"kind": "group"}, "groups is None; kind 'group' needs"),
        ({"kind": "group", "groups": 4}, "groups is 4; it must divide the 6 channels"),
        ({"kind": "group", "groups": 0}, "groups is 0"),
        ({"groups": 2}, "groups is 2; kind 'group' needs"),
        ({"training": False}, "running_mean and running_var are missing"),
        ({"kind": "instance", "training": False}, "running_mean and running_var are missing"),
        ({"running_mean": torch.zeros(6)}, "must be given together"),
        ({"training": False, **RUNNING, "running_var": torch.ones(6, requires_grad=True)}, "cannot require a gradient"),
        ({"kind": "layer", **RUNNING}, "layer normalisation has no running statistics"),
        ({**RUNNING, "running_var": torch.ones(5)}, "running_var is (5,); it must be (6,)"),
        ({**RUNNING, "running_mean": torch.zeros(6).half()}, "running_mean is torch.float16 but x is torch.float32"),
        ({"x": torch.randn(6, 4, 4)}, "x must be (B, C, H, W)"),
        ({"x": X.double()}, "x is torch.float64"),
        ({"x": torch.randn(2, 6, 0, 4)}, "no empty channels or sides"),
        ({"weight": torch.ones(5)}, "weight is (5,); it must be (6,)"),
        ({"bias": torch.ones(6).bfloat16()}, "bias is torch.bfloat16 but x is torch.float32"),
        ({"residual": torch.randn(2, 6, 4, 5)}, "residual is"),
        ({"residual": X.half()}, "residual is torch.float16"),
        ({"residual": X, "residual_place": "inside"}, "residual_place is 'inside'; it must be one of before, after"),
        ({"eps": 0.0}, "eps is 0.0; it must be above 0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"negative_slope": -1.0}, "negative_slope is -1.0"),
    ],
)  # fmt: skip
def test_bad_arguments(change, words):
    with pytest.raises(ValueError, match=r"^norm_act: ") as caught:
        ops.norm_act(**{"x": X, "kind": "batch", **change})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_layer_is_one_group_and_instance_is_one_channel_each():
    x = drawn(3, 6, 7, 5)
    torch.testing.assert_close(ops.norm_act(x, kind="layer"), F.group_norm(x, 1))
    assert torch.equal(ops.norm_act(x, kind="instance"), ops.norm_act(x, kind="group", groups=6))
