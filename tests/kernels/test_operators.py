"""Every operator, every sample of its spec: the dtype rule, gradients, strides, and the registration."""

import pytest
import torch

from engine import ops
from engine.kernels import _contract, _native, _spec
from engine.kernels.resize_conv_act import packed_weights
from engine.kernels.resize_conv_act.reference import ACTIVATIONS
from engine.kernels.resize_conv_act.spec import WHERE
from tests.support.instruction_sets import INSTRUCTION_SETS

CASES = [
    pytest.param(spec, sample, id=f"{name}: {sample.name}")
    for name, spec in _spec.specs_with_skeleton().items()
    for sample in spec.samples
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(errors: list[_spec.Error]) -> None:
    failed = [e for e in errors if not e.passed]
    assert not failed, "; ".join(f"{e.result}: {e.fused:.2e} > {e.allowed:.2e} (eager {e.eager:.2e})" for e in failed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec, sample", CASES)
def test_dtype_rule(spec, sample, dtype):
    check(_spec.compare(spec, sample, dtype))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@pytest.mark.parametrize("spec, sample", CASES)
def test_every_instruction_set(spec, sample, instruction_set):
    check(_spec.compare(spec, sample, torch.float32))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@pytest.mark.parametrize("sample", _spec.specs()["resize_conv_act"].samples, ids=lambda s: s.name)
def test_exact_form(sample, instruction_set):
    check(_spec.compare(_spec.specs()["resize_conv_act"], sample, torch.float32, exact=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_counts_agree(threads):
    """Any thread count passes; one count gives the same bits every time."""
    spec = _spec.specs()["resize_conv_act"]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for sample in spec.samples:
            check(_spec.compare(spec, sample, torch.float32))
            made = _spec.tensors(sample, torch.float32)
            once, again = (_spec.run(ops.resize_conv_act, sample, made, torch.float32) for _ in range(2))
            assert all(torch.equal(once[name], again[name]) for name in once)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("spec, sample", CASES)
def test_fake_strides_are_true(spec, sample):
    """The fake's outputs and gradients have the real ones' shapes, dtypes and strides."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    function = _contract.find(spec.operator).function
    made = _spec.tensors(sample, torch.float32)
    with torch.no_grad():
        real = function(**made, **sample.options)
        mode = FakeTensorMode()
        with mode:
            fake = function(**{n: mode.from_tensor(t) for n, t in made.items()}, **sample.options)
    for r, f in zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]:
        assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride())


def _opcheck_cases():
    same = ("none", 1, 1, "zeros", False, 0)
    kinds = [same, ("up", *same[1:]), ("none", 2, 1, "reflect", False, 0), ("none", 2, 1, "zeros", True, 1)]
    for where in kinds:
        x = torch.randn(2, 5, 6, 4).to(memory_format=torch.channels_last).requires_grad_()
        scale = 2 if where[0] == "up" else 1
        second = torch.randn(2, 3, 6 * scale, 4 * scale, requires_grad=True)
        weight, bias = torch.randn(8, 8, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)
        yield (
            torch.ops.kiln.resize_conv_act.default,
            (x, weight, bias, None, second, None, torch.rand(2), *where, "elu", 0.2, False, 1),
        )
        narrow = weight[:5] if where[4] else weight[:, :5]
        none = None, None, None, None, None
        yield torch.ops.kiln.resize_conv_act.default, (x, narrow, *none, *where, "none", 0.2, True, 0)
        residual = ops.resize_conv_act(x, narrow, **dict(zip(WHERE, where, strict=True))).detach().requires_grad_()
        factors = torch.randn(8, requires_grad=True)
        more = None, factors, None, residual, None
        yield torch.ops.kiln.resize_conv_act.default, (x, narrow, *more, *where, "relu", 0.2, False, 0)
    v, r = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    yield torch.ops.kiln.l1_autoencoder_loss.default, (v, r, True)
    yield torch.ops.kiln.skeleton.default, (v, torch.randn(2, requires_grad=True))
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    yield torch.ops.kiln.linear.default, (x, weight, torch.randn(5, requires_grad=True), torch.rand(3))
    x, residual = (torch.randn(2, 6, 3, 4, requires_grad=True) for _ in range(2))
    scales = [torch.rand(6, requires_grad=True) for _ in range(2)]
    for groups, activation in ((0, "elu"), (2, "silu")):
        yield (
            torch.ops.kiln.norm_act.default,
            (x, *scales, residual, None, None, groups, 1e-5, activation, 0.2, False, False),
        )
    landmarks = (torch.rand(2, 3, 2) * 9).requires_grad_()
    for arguments in ((True, torch.float32, True), (True, torch.bfloat16, False)):
        yield torch.ops.kiln.landmark_heatmap.default, (landmarks, 7, 8, 1.0, 3, *arguments)
    yield torch.ops.kiln.landmark_heatmap.default, (landmarks.detach(), 7, 8, 1.0, 3, False, torch.float32, True)
    weight, bias = torch.randn(8, 6, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)
    image, options = torch.randn(2, 3, 7, 8, requires_grad=True), (7, 8, 2, 1, 1.0, 3)
    operator = torch.ops.kiln.landmark_conv.default
    yield operator, (landmarks, weight, bias, image, torch.rand(2), *options, True, "elu", 0.2)
    yield operator, (landmarks.detach(), weight[:, :3], None, None, None, *options, False, "none", 0.2)


@pytest.mark.parametrize("overload, arguments", list(_opcheck_cases()))
def test_opcheck(overload, arguments):
    torch.library.opcheck(overload, arguments)


def _small_and_differentiable(sample: _spec.Sample) -> bool:
    size = torch.Size(next(iter(sample.shapes.values()))).numel()
    return 0 < size < 200 and any(map(sample.differentiable, sample.shapes))


@pytest.mark.parametrize("spec, sample", [c for c in CASES if _small_and_differentiable(c.values[1])])
def test_gradcheck_of_the_reference(spec, sample):
    """The reference in float64 is differentiable twice, except that grad_scale makes a gradient no function has."""
    made = {
        n: t.double().contiguous().requires_grad_(sample.differentiable(n))
        for n, t in _spec.tensors(sample, torch.float64).items()
        if n != "grad_scale"
    }
    names = list(made)
    reference = _contract.find(spec.operator).reference

    def function(*values):
        return reference(**dict(zip(names, values, strict=True)), **sample.options)

    assert torch.autograd.gradcheck(function, tuple(made.values()), fast_mode=True)


def test_grad_scale_weighs_samples():
    """dw under grad_scale is the weighted sum of the gradients of single-sample batches; dx does not change."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 16, 8, 8), torch.randn(16, 16, 3, 3) / 12, torch.randn(16)
    scale = torch.tensor([1.0, -0.25, 0.0])

    def gradients(x, grad_scale):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = ops.resize_conv_act(*leaves, resize="up", activation="elu", grad_scale=grad_scale)
        return torch.autograd.grad(y.square().sum(), leaves)

    dx, dw, db = gradients(x, scale)
    singles = [gradients(x[i : i + 1], None) for i in range(3)]
    torch.testing.assert_close(dx, torch.cat([s[0] for s in singles]))
    torch.testing.assert_close(dw, sum(k * s[1] for k, s in zip(scale, singles, strict=True)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(db, sum(k * s[2] for k, s in zip(scale, singles, strict=True)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["resize_conv_act", "l1_autoencoder_loss", "linear", "landmark_heatmap", "landmark_conv", "norm_act", "skeleton"],
)
def test_second_derivatives(name):
    """A gradient penalty through the fused operator equals that of the reference."""
    operator = _contract.find(name)
    sample = {s.name: s for s in _spec.specs_with_skeleton()[name].samples if s.layout != "expanded" and not s.integers}
    sample = next(iter(sample.values()))
    made = _spec.tensors(sample, torch.float32)

    def penalty(function):
        leaves = {n: t.clone().requires_grad_(sample.differentiable(n)) for n, t in made.items()}
        output = function(**leaves, **sample.options)
        output = output[0] if isinstance(output, tuple) else output
        wanted = [t for t in leaves.values() if t.requires_grad]
        first = torch.autograd.grad(output.square().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    for fused, eager in zip(penalty(operator.function), penalty(operator.reference), strict=True):
        assert _spec.relative_error(fused, eager) < 2e-5


@pytest.mark.parametrize("resize", ["none", "up", "down"])
def test_silu_with_and_without_gradient(resize):
    """One pass where nothing is recorded, an operation of its own where the sum is needed; also called directly."""
    x, weight = torch.randn(2, 9, 6, 5, requires_grad=True), torch.randn(12, 9, 3, 3, requires_grad=True)
    y = ops.resize_conv_act(x, weight, resize=resize, activation="silu")
    assert "Silu" in y.grad_fn.name()
    with torch.no_grad():
        torch.testing.assert_close(ops.resize_conv_act(x, weight, resize=resize, activation="silu"), y)
    where = ("up" if resize == "up" else "none", 2 if resize == "down" else 1, 1, "zeros", False, 0)
    none = None, None, None, None, None
    direct = torch.ops.kiln.resize_conv_act(x, weight, *none, *where, "silu", 0.2, False, 0)
    wanted = torch.autograd.grad(y.square().sum(), (x, weight))
    # a gradient's element may be a small difference of large sums, so the error is judged against the whole gradient
    for gradient, expected in zip(torch.autograd.grad(direct.square().sum(), (x, weight)), wanted, strict=True):
        assert _spec.relative_error(gradient, expected) < 2e-6


def test_compiles_in_one_graph():
    x = torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last)
    weight = torch.randn(8, 8, 3, 3, requires_grad=True)

    def loss(x):
        y = ops.resize_conv_act(x, weight, resize="up", activation="elu")
        return ops.l1_autoencoder_loss(y, y * 0.5)[1]

    expected = torch.autograd.grad(loss(x), weight)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), weight)[0], expected)


@pytest.mark.parametrize("resize", ["none", "up", "down"])
def test_autocast(resize):
    """The image is cast, the parameters and their gradients stay float32: as near to float64 as the dtype rule asks."""
    x, bias, scale = torch.randn(2, 8, 8, 8), torch.randn(16), torch.rand(16)
    weight = torch.randn(16, 8, 3, 3) / 8

    def gradients(function, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x.bfloat16(), weight, bias, scale)]
        y = function(*leaves[:3], scale=leaves[3], resize=resize, activation="elu")
        return y, torch.autograd.grad(y.square().sum(), leaves)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, found = gradients(ops.resize_conv_act, torch.float32)
    assert y.dtype == torch.bfloat16 and {g.dtype for g in found} == {torch.float32}
    reference = ops.OPERATORS["resize_conv_act"].reference
    exact, plain = (gradients(reference, dtype) for dtype in (torch.float64, torch.bfloat16))
    for ours, eager, truth in zip((y, *found), (plain[0], *plain[1]), (exact[0], *exact[1]), strict=True):
        allowed = 2 * _spec.relative_error(eager, truth) + 1e-4
        assert _spec.relative_error(ours, truth) <= allowed


def test_nan_is_not_hidden():
    x = torch.randn(1, 16, 8, 8)
    x[0, 0, 4, 4] = torch.nan
    weight = torch.randn(16, 16, 3, 3)
    for activation in ("none", "elu", "relu", "leaky_relu", "tanh", "sigmoid", "silu"):
        assert ops.resize_conv_act(x, weight, activation=activation).isnan().any(), activation
    assert ops.l1_autoencoder_loss(x, torch.zeros_like(x))[1].isnan()


GOOD = {"x": torch.randn(2, 4, 6, 6), "weight": torch.randn(8, 4, 3, 3), "bias": torch.randn(8)}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"resize": "nearest"}, "resize is 'nearest'"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"x": torch.randn(4, 6, 6)}, "x must be"),
        ({"weight": torch.randn(8, 5, 3, 3)}, "must be (Cout, 4, K, K)"),
        ({"weight": torch.randn(8, 4, 5, 3)}, "must be (Cout, 4, K, K)"),
        ({"transposed": True}, "must be (4, Cout, K, K)"),
        ({"weight": torch.randn(8, 4, 9, 9)}, "kernels of 9x9; supported are 1x1 to 7x7"),
        ({"weight": torch.randn(8, 4, 7, 7), "padding": 0}, "x is (2, 4, 6, 6): a 7x7 kernel with padding 0 leaves no"),
        ({"stride": 3}, "stride is 3; it must be 1 or 2"),
        ({"stride": 2, "resize": "down"}, "resize 'down' is a stride of 2"),
        ({"padding": -1}, "padding is -1; it must be at least 0"),
        ({"padding_mode": "mirror"}, "padding_mode is 'mirror'; it must be one of zeros, reflect, replicate, circular"),
        ({"padding_mode": "reflect", "padding": 6}, "padding is 6; reflect takes at most 5 around x"),
        ({"padding_mode": "circular", "padding": 7}, "padding is 7; circular takes at most 6 around x"),
        ({"output_padding": 1}, "output_padding is 1; it is for a transposed convolution only"),
        ({"weight": torch.randn(4, 8, 3, 3), "transposed": True, "output_padding": 1}, "must lie in 0 .. stride - 1"),
        ({"weight": torch.randn(4, 8, 3, 3), "transposed": True, "padding_mode": "reflect"}, "has zeros only"),
        ({"resize": "up", "weight": torch.randn(8, 4, 5, 5)}, "resize 'up' takes a 3x3 kernel"),
        ({"resize": "up", "padding_mode": "reflect"}, "resize 'up' takes a 3x3 kernel"),
        ({"bias": torch.randn(7)}, "bias must be (8,)"),
        ({"scale": torch.randn(1)}, "scale must be (8,)"),
        ({"scale": torch.randn(8, 1, 1)}, "scale must be (8,)"),
        ({"scale": torch.randn(8).double()}, "scale is torch.float64"),
        ({"second": torch.randn(2, 1, 12, 12)}, "second is"),
        ({"grad_scale": torch.ones(3)}, "grad_scale must be (2,)"),
        ({"x": torch.randn(2, 4, 6, 6).double()}, "float64"),
        ({"bias": torch.randn(8).bfloat16()}, "bias is torch.bfloat16"),
        ({"second": torch.randn(2, 1, 6, 6).bfloat16(), "weight": torch.randn(8, 5, 3, 3)}, "second is torch.bfloat16"),
        ({"x": torch.randn(2, 4, 0, 6)}, "no empty"),
    ],
)
def test_bad_arguments(change, words):
    with pytest.raises(ValueError, match=r"^resize_conv_act: ") as caught:
        ops.resize_conv_act(**{**GOOD, **change})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_explain_covers_every_operator():
    rows = ops.explain()
    assert {r.operator for r in rows} == set(ops.OPERATORS)
    assert "native C++" in str(rows) and _native.load().isa() in str(ops.explain("resize_conv_act"))
    with pytest.raises(KeyError):
        ops.explain("conv9")


def test_one_openmp_runtime():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    loaded = {pool["filepath"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "openmp"}
    assert len(loaded) == 1, loaded


def test_operator_folders_are_complete():
    for name, operator in _contract.discover().items():
        assert operator.function.__doc__ and operator.name == name
        assert name in _spec.specs()
    # what is only there to be copied is an operator too, but offered to nobody
    assert _contract.find("skeleton").function.__doc__ and "skeleton" in _spec.specs_with_skeleton()
    assert "skeleton" not in ops.OPERATORS and not hasattr(ops, "skeleton")


def test_packed_weights_are_never_stale():
    """What inference keeps of a weight follows every change to it, even one that autograd does not see."""
    x, weight = torch.randn(2, 16, 12, 12), torch.randn(16, 16, 3, 3)
    trained = weight.clone().requires_grad_()
    for change in (lambda w: w, lambda w: w.mul_(2), lambda w: w.view(-1)[-1:].add_(1)):
        with torch.no_grad():
            change(weight.data), change(trained.data)
            for side in (12, 5):  # two forms, kept side by side
                kept = ops.resize_conv_act(x[..., :side, :side], weight)
                again = ops.resize_conv_act(x[..., :side, :side], weight)
        fresh = ops.resize_conv_act(x[..., :side, :side], trained)
        assert torch.equal(kept, fresh) and torch.equal(kept, again)


def test_a_scale_reads_the_same_packed_weights():
    """Inference keeps one packed form of a weight, whatever multiplies what comes of it."""
    x, weight, bias = torch.randn(2, 16, 12, 12), torch.randn(16, 16, 3, 3), torch.randn(16)
    with torch.no_grad():
        plain = ops.resize_conv_act(x, weight)
        (kept,) = packed_weights.KEPT[weight].values()
        for scale in (torch.rand(16) - 0.5, torch.zeros(16)):
            expected = plain * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
            torch.testing.assert_close(ops.resize_conv_act(x, weight, bias, scale=scale), expected)
        (still,) = packed_weights.KEPT[weight].values()
    assert still is kept


@pytest.mark.parametrize("cout", [3, 16, 17])
@pytest.mark.parametrize("factor", [0.0, torch.inf, torch.nan])
def test_a_scale_stays_in_its_channel(factor, cout):
    x, weight, bias, scale = torch.randn(1, 9, 8, 8), torch.randn(cout, 9, 3, 3), torch.randn(cout), torch.rand(cout)
    changed = scale.clone()
    changed[1] = factor
    for activation in ("none", "relu"):
        before, after = (ops.resize_conv_act(x, weight, bias, scale=s, activation=activation) for s in (scale, changed))
        others = [c for c in range(cout) if c != 1]
        torch.testing.assert_close(after[:, others], before[:, others])
        if factor == 0:
            torch.testing.assert_close(after[:, 1], ACTIVATIONS[activation](bias[1], 0.2).expand(1, 8, 8))
        else:
            assert not after[:, 1].isfinite().all()


@pytest.mark.parametrize("side", [(2, 579), (579, 2)])
@pytest.mark.parametrize("name", ["resize_conv_act", "landmark_conv"])
def test_sums_of_equal_values_do_not_drift(name, side):
    """Equal gradients of a bias, whose float32 sum in one run would be up to 5e-6 off."""
    weight, bias = torch.randn(9, 3, 3, 3), torch.zeros(9, requires_grad=True)
    if name == "landmark_conv":
        options = {"height": side[0], "width": side[1], "padding": 1}
        y = ops.landmark_conv(torch.zeros(1, 3, 2), weight, bias, **options)
    else:
        y = ops.resize_conv_act(torch.randn(1, 3, *side), weight, bias)
    (found,) = torch.autograd.grad(y, bias, torch.full_like(y, 0.1))
    assert _spec.relative_error(found, torch.full((9,), 2 * 579 * 0.1)) < 1e-6


def test_gram_of_few_channels_rounds_hardly_more_than_eager():
    """Sums of 108 products in one run would be 1.6e-7 off, three times as much as eager PyTorch's."""
    features = torch.rand(256, 2, 1, 108, generator=torch.Generator().manual_seed(0))
    exact, eager = (f.flatten(2) @ f.flatten(2).mT / 216 for f in (features.double(), features))
    assert _spec.relative_error(ops.gram(features), exact) < 2 * _spec.relative_error(eager, exact)
