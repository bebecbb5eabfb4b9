"""The roofline's formula at its limits, and what is counted as PyTorch's own operations."""

import itertools

import pytest
import torch

from benchmarks.prediction import devices, forecast, launches, roofline
from benchmarks.prediction.compiled import Pointer, Resources, Variant
from benchmarks.prediction.roofline import Operation, counted, of_launch, predict, rate
from benchmarks.suites.operators import Case
from engine.kernels import _spec
from engine.kernels._gpu.launch import INTERPRETED, Cost

H100 = devices.DEVICES["h100"]
MANY = 132 * 1000


def seconds(cost: Cost, programs: int = MANY, at_once: int = 2, flops_per_s: float = H100.half_flops) -> float:
    return predict(cost, programs, at_once, flops_per_s, H100).seconds


def kernel(dtype: torch.dtype, matrix: bool, **constants: object) -> Variant:
    class Named(Variant):
        constants = property(lambda self: self.arguments)

    return Named("m", "k", {"x": Pointer(dtype, True), **constants}, 4, 3, matrix)


@pytest.mark.parametrize("device", devices.DEVICES.values(), ids=devices.DEVICES)
def test_a_copy_takes_its_bytes_and_the_gap(device):
    cost = Cost(0, 8e9)
    prediction = predict(cost, device.processors * 1000, 8, device.float_flops, device)
    assert prediction.bound == "hbm" and prediction.seconds == pytest.approx(8e9 / device.hbm_bytes + device.launch)


def test_a_matrix_kernel_of_many_waves_takes_its_flops():
    prediction = predict(Cost(1e13, 1e6, matrix=True), MANY + 1, 2, H100.half_flops, H100)
    assert prediction.bound == "compute" and prediction.seconds == pytest.approx(1e13 / H100.half_flops, rel=2e-3)


def test_one_program_has_one_multiprocessor():
    assert seconds(Cost(1e12, 0), 1) == pytest.approx(132 * 1e12 / H100.half_flops + H100.launch)
    assert seconds(Cost(0, 1e9), 1) == pytest.approx(132 * 1e9 / H100.l2_bytes + H100.launch)


def test_waves():
    """133 programs on 132 multiprocessors take as long as 264."""
    cost = Cost(1e12, 0)
    one, partly, two = (seconds(Cost(1e12 * n, 0), n) for n in (132, 133, 264))
    assert partly == pytest.approx(two) and two - H100.launch == pytest.approx(2 * (one - H100.launch))
    assert seconds(cost, 132) < seconds(cost, 133)


def test_rounds_wait():
    """Programs without work: the fewer a multiprocessor holds at once, the more rounds wait for memory."""
    nothing = Cost(0, 0)
    assert seconds(nothing, 132 * 8, 8) == pytest.approx(H100.launch + H100.latency)
    assert seconds(nothing, 132 * 8, 1) == pytest.approx(H100.launch + 8 * H100.latency)
    assert predict(nothing, 1, 1, 1.0, H100).bound == "waiting"


def test_more_never_takes_less():
    values = [0.0, 1e6, 1e9, 1e12]
    for low, high in itertools.pairwise(values):
        for rest in values:
            assert seconds(Cost(low, rest)) <= seconds(Cost(high, rest))
            assert seconds(Cost(rest, low)) <= seconds(Cost(rest, high))
            assert seconds(Cost(rest, 0, low)) <= seconds(Cost(rest, 0, high))
    assert seconds(Cost(1e9, 1e9), at_once=8) <= seconds(Cost(1e9, 1e9), at_once=1)
    with pytest.raises(ValueError, match="0 at once"):
        predict(Cost(0, 0), 1, 0, 1.0, H100)


def test_rates():
    own, old = Resources(matrix={"wgmma": 8}), Resources(matrix={"mma.sync": 64})
    assert rate(kernel(torch.bfloat16, True), own, H100) == H100.half_flops
    assert rate(kernel(torch.bfloat16, True), old, H100) == roofline.MMA_SYNC_SHARE * H100.half_flops
    a100 = devices.DEVICES["a100"]
    assert rate(kernel(torch.float16, True), old, a100) == a100.half_flops
    assert rate(kernel(torch.float32, True, PRECISION="tf32"), own, H100) == H100.tf32_flops
    assert rate(kernel(torch.float32, True, PRECISION="tf32x3"), own, H100) == H100.tf32_flops / 3
    assert rate(kernel(torch.float32, False, PRECISION="ieee"), Resources(), H100) == H100.float_flops


def test_a_launch_by_its_resources():
    """Of two kernels with the same work the one that fills the registers waits longer; one that fails cannot run."""
    wanted = kernel(torch.float32, False)
    few, many = (Resources(registers=r, threads=256) for r in (32, 255))
    nothing = Cost(0, 0)
    assert (
        of_launch(nothing, (MANY,), wanted, few, H100).seconds < of_launch(nothing, (MANY,), wanted, many, H100).seconds
    )
    with pytest.raises(ValueError, match="0 at once"):
        of_launch(nothing, (1,), wanted, Resources(error="no"), H100)


def test_gpus_by_the_names_they_give_themselves():
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA H200": "h200",
        "NVIDIA B200": "b200",
    }
    assert all(devices.of_name(name) is devices.DEVICES[short] for name, short in names.items())
    assert devices.of_name("NVIDIA GeForce GTX 1080 Ti") is None


# PyTorch's own operations


def test_operations_are_counted():
    a, b = torch.ones(64, 32), torch.ones(32, 16)
    operations = counted(lambda: (a @ b).t().add_(1).bfloat16())
    product, add, cast = operations  # the transposition is a view, without a kernel
    assert product.flops == 2 * 64 * 32 * 16 and product.moved == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert add.moved == 2 * 4 * 64 * 16 and cast.moved == 6 * 64 * 16 and not add.flops


def test_an_expanded_tensor_is_read_once():
    small = torch.ones(1, 8)
    (operation,) = counted(lambda: small.expand(1000, 8) + 1)
    assert operation.moved == 4 * 8 + 4 * 8000


def test_a_library_product():
    large = Operation("mm", 2e15, 1e6, half=True)
    # tiles of 128 x 128, whose reads are bound by the L2 cache
    assert large.seconds(H100) == pytest.approx(2e15 / 128 * 2 / H100.l2_bytes)
    assert Operation("mm", 2e12, 0, half=False).seconds(H100) == pytest.approx(2e12 / H100.float_flops, rel=1e-3)
    small = Operation("add", 0, 100, half=False)
    assert small.seconds(H100) == H100.launch + H100.latency


def test_eager_has_every_pass():
    spec = _spec.specs()["resize_conv_act"]
    sample = next(s for s in spec.benchmarks if "25x64x32x32->64 up" in s.name)
    operations = roofline.eager_operator(Case(spec, sample), launches.MODES["bfloat16"])
    assert sum(o.flops for o in operations) == pytest.approx(spec.flops(sample))
    assert all(o.half for o in operations if o.flops)
    names = " ".join(o.name for o in operations)
    assert "upsample_nearest2d.default" in names and "upsample_nearest2d_backward" in names and "elu_backward" in names


# the suite


@pytest.fixture
def predicted() -> tuple[list[dict], list]:
    if INTERPRETED:
        pytest.skip("nothing is compiled under Triton's interpreter")
    return forecast.predict("25x64x8x8->64 up elu channels_last", False, "bf16", "h100", False)


def test_the_suite(predicted, capsys):
    rows, (table,) = predicted
    (entry,) = rows
    assert entry["gpu"] == "H100 SXM" and "not yet measured" in table.title and len(table.rows) == 1
    assert {k["name"] for k in entry["launches"]} > {"conv_kernel", "sum_gradients_kernel"}
    assert entry["predicted"] == pytest.approx(sum(k["seconds"] for k in entry["launches"]))
    assert 0 < entry["predicted_eager"] < 1e-3 and forecast.errors(rows) is None and forecast.error(rows) is None


def test_errors_of_what_was_measured():
    kernels = [{"name": "a", "seconds": 1e-6, "measured": m} for m in (1e-6, 2e-6, 3e-6)]
    rows = [{"launches": kernels}, {"failed": ["b: does not fit"]}]
    table = forecast.errors(rows)
    assert table.rows == [["a", "3", "2.00", "1.00", "3.00"], ["all", "3", "2.00", "1.00", "3.00"]]
    assert forecast.error(rows) == {"launches": 3, "median_factor": 2.0, "worst_factor": 3.0}
