"""Every operator on a GPU: the samples of its spec, repeated bits, torch.compile, CUDA graphs, tensors past 2^31."""

import pytest
import torch

from benchmarks.gpu.samples import of_each_kind
from engine import ops
from engine.host.tf32 import tf32_allowed
from engine.kernels import _spec
from engine.kernels._contract import find

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CASES = [
    pytest.param(spec, sample, id=f"{name}: {sample.name}")
    for name, spec in _spec.specs_with_skeleton().items()
    for sample in spec.samples
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def plain_float32():
    """float32 is float32: no TF32 in PyTorch's own products, and none in ours."""
    with tf32_allowed(False):
        yield


def check(errors: list[_spec.Error]) -> None:
    failed = [e for e in errors if not e.passed]
    assert not failed, "; ".join(f"{e.result}: {e.fused:.2e} > {e.allowed:.2e} (eager {e.eager:.2e})" for e in failed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec, sample", CASES)
def test_dtype_rule(spec, sample, dtype):
    check(_spec.compare(spec, sample, dtype, "cuda"))


@pytest.mark.parametrize("spec", _spec.specs().values(), ids=lambda spec: spec.operator)
def test_benchmark_shapes(spec):
    """The sizes that are measured take other tiles than the samples."""
    for sample in spec.benchmarks:
        for dtype in DTYPES[:2]:
            check(_spec.compare(spec, sample, dtype, "cuda"))


@pytest.mark.parametrize("sample", of_each_kind(_spec.specs()["resize_conv_act"]), ids=lambda s: s.name)
def test_exact_form_and_tf32(sample):
    spec = _spec.specs()["resize_conv_act"]
    check(_spec.compare(spec, sample, torch.float32, "cuda", exact=True))
    torch.backends.cudnn.allow_tf32 = True
    for error in _spec.compare(spec, sample, torch.float32, "cuda"):
        assert error.fused < 2e-3, error


@pytest.mark.parametrize("spec, sample", CASES)
def test_bits_repeat(spec, sample):
    function = find(spec.operator).function
    made = _spec.tensors(sample, torch.bfloat16, "cuda")
    once, again = (_spec.run(function, sample, made, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("spec, sample", CASES)
def test_fake_strides_are_true(spec, sample):
    from torch._subclasses.fake_tensor import FakeTensorMode

    function = find(spec.operator).function
    made = _spec.tensors(sample, torch.float32, "cuda")
    with torch.no_grad():
        real = function(**made, **sample.options)
        mode = FakeTensorMode()
        with mode:
            fake = function(**{n: mode.from_tensor(t) for n, t in made.items()}, **sample.options)
    for r, f in zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]:
        assert (r.shape, r.dtype, r.stride(), r.device) == (f.shape, f.dtype, f.stride(), f.device)


def _loss(x, weight, target):
    y = ops.resize_conv_act(x, weight, resize="up", activation="elu")
    return ops.l1_autoencoder_loss(target, y)[1] + ops.style_loss(y, target)[1]


def _inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 8, 8, generator=generator).cuda().contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(16, 16, 3, 3, generator=generator) / 12).cuda().requires_grad_()
    target = torch.randn(2, 16, 16, 16, generator=generator).cuda().contiguous(memory_format=torch.channels_last)
    return x, weight, target


@pytest.mark.unpoisoned("deterministic algorithms change what torch.compile chooses")
@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_compiles_in_one_graph(mode):
    x, weight, target = _inputs()
    expected = torch.autograd.grad(_loss(x, weight, target), weight)[0]
    compiled = torch.compile(_loss, fullgraph=True, mode=mode)
    for _ in range(3):  # max-autotune records a CUDA graph in the second call
        found = torch.autograd.grad(compiled(x, weight, target), weight)[0].clone()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_is_captured_in_a_cuda_graph():
    x, weight, target = _inputs()
    expected = torch.autograd.grad(_loss(x, weight, target), weight)[0]
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(_loss(x, weight, target), weight)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        found = torch.autograd.grad(_loss(x, weight, target), weight)[0]
    for _ in range(3):
        found.fill_(torch.nan)
        graph.replay()
        assert torch.equal(found, expected)


@pytest.mark.parametrize("resize", ["none", "up", "down"])
def test_autocast(resize):
    x, weight = torch.randn(2, 8, 8, 8).cuda(), torch.randn(8, 8, 3, 3).cuda().requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = ops.resize_conv_act(x, weight, resize=resize, activation="elu")
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32 and weight.grad.isfinite().all()


def test_nan_is_not_hidden():
    x, weight = torch.randn(1, 16, 8, 8).cuda(), torch.randn(16, 16, 3, 3).cuda()
    x[0, 0, 4, 4] = torch.nan
    for activation in ("none", "elu", "relu", "leaky_relu", "tanh", "sigmoid", "silu"):
        assert ops.resize_conv_act(x, weight, activation=activation).isnan().any(), activation
    assert ops.l1_autoencoder_loss(x, torch.zeros_like(x))[1].isnan()
    assert ops.gram(x).isnan().any()


def test_tensors_past_31_bits():
    """The last rows of a convolution whose input and output each have more than 2^31 elements."""
    side = 11_600
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    generator = torch.Generator(device="cuda").manual_seed(0)
    x = torch.empty(1, 16, side, side, dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last)
    x.normal_(generator=generator)
    weight = torch.randn(16, 16, 3, 3, device="cuda", dtype=torch.bfloat16, generator=generator) / 12
    assert x.numel() > 2**31
    y = ops.resize_conv_act(x, weight, activation="elu")
    corner = ops.resize_conv_act(
        x[..., -40:, -40:].contiguous(memory_format=torch.channels_last), weight, activation="elu"
    )
    torch.testing.assert_close(y[..., -38:, -38:], corner[..., -38:, -38:])


def test_other_devices_than_the_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, weight = torch.randn(1, 8, 8, 8), torch.randn(8, 8, 3, 3)
    here, there = (ops.resize_conv_act(x.to(d), weight.to(d)).cpu() for d in ("cuda:0", "cuda:1"))
    assert torch.equal(here, there)


def test_explain_names_triton():
    rows = [row for row in ops.explain() if row.device == "cuda" and row.operator != "linear"]
    assert rows and all(row.kind == "Triton" for row in rows)
