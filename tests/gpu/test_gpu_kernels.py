"""What the Triton kernels share, without a GPU: how launches are noted, traced and tuned, and offsets past 2^31."""

import importlib
import json
import re
import subprocess
import sys

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.prediction import compiled, launches
from engine import ops
from engine.kernels import _availability, _dispatch, _spec
from engine.kernels._gpu import launch, tuning
from tests.support.interpreted import FULL
from tests.support.places import ROOT

compiled_only = pytest.mark.skipif(_availability.INTERPRETED, reason="the interpreter has no kernels to trace")
interpreted_only = pytest.mark.skipif(
    not _availability.INTERPRETED, reason="runs the kernels: under TRITON_INTERPRET=1"
)
CONV = _spec.specs()["resize_conv_act"]


class H100Driver:
    """What torch asks of Triton's driver to read a kernel."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@compiled_only
def test_noted_launches_are_not_run():
    sample = CONV.samples[0]
    made = _spec.tensors(sample, torch.float32)
    with _dispatch.gpu_kernels_on_cpu(), launch.noted(run=False) as launches:
        _spec.run(ops.resize_conv_act, sample, made, torch.float32)
    names = [noted.name for noted in launches]
    assert names.count("conv_kernel") == 2 and "conv_weight_grad_flat_kernel" in names
    forward = launches[names.index("conv_kernel")]
    batch, channels, height, width = sample.shapes["x"]
    products = batch * height * width * channels * sample.shapes["weight"][0] * 9
    assert forward.cost.flops == 2 * products and forward.cost.matrix
    assert forward.arguments["C"] == channels and forward.num_warps in (4, 8)


def test_a_launch_names_every_parameter_and_no_other():
    kernel = importlib.import_module("engine.kernels.gram.gpu").gram_sum_kernel
    names = dict.fromkeys(kernel.arg_names, 1)
    del names["blocks"]
    with launch.noted(run=False), pytest.raises(TypeError, match=r"without a value: \['blocks'\].*: \['block'\]"):
        launch.launch(kernel, (1,), cost=lambda: launch.Cost(0, 0), block=1, **names)


@compiled_only
def test_every_choice_is_noted():
    sample = next(s for s in CONV.benchmarks if s.name.startswith("25x64x64x64->64 none"))
    made = _spec.tensors(sample, torch.bfloat16)

    def count(choices: launch.Choices) -> int:
        with (
            _dispatch.gpu_kernels_on_cpu(),
            launch.noted(run=False, choices=choices) as launches,
            torch.no_grad(),
        ):
            ops.resize_conv_act(**made, **sample.options)
        return sum(noted.name in ("conv_kernel", "conv_band_kernel") for noted in launches)

    assert count("likely") == 1 and count("all") > count("measured") == 2


@compiled_only
@pytest.mark.parametrize(
    "options",
    [
        *({"resize": resize} for resize in ("none", "up", "down")),
        {"padding_mode": "reflect"},
        {"transposed": True, "stride": 2},
    ],
    ids=str,
)
def test_compilers_see_the_kernels(options, monkeypatch):
    """Under AOTAutograd the operator becomes its Triton kernels, which write their own outputs and nothing else."""
    from functorch.compile import aot_function
    from triton.runtime import driver

    graphs = []

    class Seen(Exception):
        pass

    def keep(graph, inputs):
        graphs.append(graph)
        raise Seen

    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    weight = torch.randn(16, 16, 3, 3)
    monkeypatch.setattr(driver, "_active", H100Driver())
    function = aot_function(lambda x, w: ops.resize_conv_act(x, w, activation="elu", **options), fw_compiler=keep)
    with _dispatch.gpu_kernels_on_cpu(), pytest.raises(Seen):
        function(x, weight)
    nodes = list(graphs[0].graph.nodes)
    assert not any("kiln" in str(node.target) or "clone" in str(node.target) for node in nodes), nodes
    written = [node.kwargs["tensors_to_clone"] for node in nodes if "triton_kernel" in str(node.target)]
    assert written == [["packed"], ["y"]]


def test_offsets_past_31_bits_are_wide():
    small, large = (torch.empty(1, 1, 1 << 16, side, device="meta") for side in ((1 << 15) - 1, 1 << 15))
    assert launch.wide(None, small, large) and not launch.wide(None, small)


@pytest.mark.parametrize("loss", [ops.l1_autoencoder_loss, ops.style_loss])
def test_a_freed_storage_is_refused(loss):
    """Before the launch: a GPU that reads at no address is lost to its process."""
    x, freed = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    freed.untyped_storage().resize_(0)
    with (
        _dispatch.gpu_kernels_on_cpu(),
        pytest.raises(ValueError, match=r"kernel: .* no memory: its storage was freed"),
    ):
        loss(x, freed)


@interpreted_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["none", "up", "down", "3x3/2 reflect", "transposed 4x4/2"])
def test_wide_gpu_kernels_give_the_same(kind, dtype, monkeypatch):
    from engine.kernels._gpu import activation_backward
    from engine.kernels.resize_conv_act import gpu_band, gpu_border, gpu_convolution, gpu_packing, gpu_weight_gradient

    sample = next(s for s in CONV.samples if f" {kind} elu second 3 grad_scale" in s.name)
    made = _spec.tensors(sample, dtype)
    narrow = _spec.run(ops.resize_conv_act, sample, made, dtype)
    wide = gpu_band, gpu_border, gpu_convolution, gpu_packing, gpu_weight_gradient, activation_backward
    for module in wide:
        monkeypatch.setattr(module, "wide", lambda *tensors: True)
    for name, value in _spec.run(ops.resize_conv_act, sample, made, dtype).items():
        assert torch.equal(value, narrow[name]), name


@interpreted_only
def test_gpu_kernels_for_older_gpus(monkeypatch):
    """What Ampere runs in half precision, where Hopper has kernels of its own."""
    from engine.kernels.resize_conv_act import gpu_convolution, gpu_weight_gradient

    for module in (gpu_convolution, gpu_weight_gradient):
        monkeypatch.setattr(module, "capability", lambda: 80)
    same_size = [s for s in CONV.samples if s.options["resize"] == "none" and s.shapes["weight"][-1] == 3]
    same_size = [s for s in same_size if not s.options.keys() & {"stride", "padding", "transposed"}]
    many_channels = [s for s in same_size if s.shapes["x"][1] >= 16]
    for sample in many_channels[:: 1 if FULL else 3]:
        failed = [error for error in _spec.compare(CONV, sample, torch.bfloat16) if not error.passed]
        assert not failed, (sample.name, failed)


@interpreted_only
def test_gpu_kernels_repeat_their_bits():
    for sample in CONV.samples[:20:4]:
        made = _spec.tensors(sample, torch.float32)
        once, again = (_spec.run(ops.resize_conv_act, sample, made, torch.float32) for _ in range(2))
        assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.fixture
def pretended_gpu(monkeypatch, empty_cache):
    """A GPU as far as tuning asks."""
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretended GPU")
    tuning._choices.cache_clear()
    yield
    tuning._choices.cache_clear()


def test_tuning_keeps_the_fastest(pretended_gpu, monkeypatch):
    seconds, measured, ran = {"wide": 2.0, "tall": 1.0}, [], []
    monkeypatch.setattr(tuning, "_measure", lambda run, candidate: measured.append(candidate) or seconds[candidate])
    for _ in range(2):
        tuning.run_best("conv", (1, 2), ["wide", "tall"], ran.append)
    assert ran == ["tall", "tall"] and measured == ["wide", "tall"]
    assert list(json.loads(tuning.choices_file().read_text()).values()) == [1]
    tuning._choices.cache_clear()  # as in another process
    tuning.run_best("conv", (1, 2), ["wide", "tall"], ran.append)
    assert ran[-1] == "tall" and len(measured) == 2
    tuning.choices_file().write_text("cut of")
    tuning._choices.cache_clear()
    tuning.run_best("conv", (1, 2), ["wide", "tall"], ran.append)
    assert ran[-1] == "tall" and len(measured) == 4


def test_choices_of_other_processes_stay(pretended_gpu, monkeypatch):
    monkeypatch.setattr(tuning, "_measure", lambda run, candidate: 1.0)
    tuning.run_best("conv", (1,), ["wide", "tall"], print)
    file = tuning.choices_file()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"of another": 1}))
    tuning.run_best("conv", (2,), ["wide", "tall"], print)
    assert json.loads(file.read_text()).keys() == {"conv 1 of 2", "conv 2 of 2", "of another"}


def test_choices_that_cannot_be_kept_are_named(pretended_gpu, monkeypatch, empty_cache):
    monkeypatch.setattr(tuning, "_measure", lambda run, candidate: 1.0)
    empty_cache.write_text("a file, not a folder")
    tuning._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="set KILN_CACHE to a folder that can be written"):
        tuning.run_best("conv", (1,), ["wide", "tall"], print)


def kernels_with_floats() -> dict[str, compiled.Variant]:
    """One variant of each kernel, by name, that takes a Python float, which a launch makes float32."""
    found = compiled.Shipped()
    for spec in launches.specs().values():
        mode = launches.MODES["float32"]
        for sample in spec.samples:
            found.add(launches.of_operator(spec, sample, mode, "all"), spec.operator, "float32")
    return {v.name: v for v in found.variants.values() if any(isinstance(a, float) for a in v.arguments.values())}


@pytest.mark.slow
@compiled_only
def test_floats_of_the_host_are_float32_under_torch_compile_too():
    """Inductor passes Python floats as float64: every kernel takes them, and computes nothing in float64."""
    kernels = kernels_with_floats()
    assert {"style_loss_forward_kernel", "conv_kernel", "landmark_conv_kernel"} <= kernels.keys()
    for variant in kernels.values():
        kernel = getattr(importlib.import_module(variant.module), variant.name)
        floats = {name for name, value in variant.arguments.items() if isinstance(value, float)}
        signature = {name: "fp64" if name in floats else kind for name, kind in variant.signature.items()}
        constants = {name: variant.arguments[name] for name, kind in signature.items() if kind == "constexpr"}
        source = ASTSource(kernel, signature, constants)
        options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
        ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
        arithmetic = re.findall(r"\b(?:add|sub|mul|fma|div|ex2|setp)\S*\.f64", ptx)
        assert not arithmetic, (variant.name, arithmetic[:3])


class PretendedTime:
    """torch.cuda's events, synchronize and _sleep for a GPU that takes 2 ms a call, started by a host that takes 5."""

    def __init__(self):
        self.host = self.gpu = 0.0  # milliseconds: where each is

    def call(self):
        self.host += 5
        self.gpu = max(self.gpu, self.host) + 2

    def sleep(self, cycles):
        self.gpu = max(self.gpu, self.host) + cycles / tuning.SLEEP_CYCLES_PER_S * 1e3

    def synchronize(self):
        self.host = self.gpu = max(self.host, self.gpu)

    def event(self, enable_timing):
        pretended = self

        class Event:
            def record(self):
                self.at = pretended.gpu = max(pretended.gpu, pretended.host)

            def elapsed_time(self, end):
                return end.at - self.at

        return Event()


def test_tuning_measures_the_gpu_and_not_the_host(monkeypatch):
    pretended = PretendedTime()
    monkeypatch.setattr(torch.cuda, "Event", pretended.event)
    monkeypatch.setattr(torch.cuda, "synchronize", pretended.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", pretended.sleep, raising=False)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: pretended.host / 1e3)
    assert tuning.gpu_milliseconds(pretended.call, rounds=5) == pytest.approx([2.0] * 5)


KEYS = """
import importlib, sys
from engine.kernels._gpu.launch import settle_key

kernels = []
for module, name in [words.split(":") for words in sys.argv[1:]]:
    kernel = getattr(importlib.import_module(module), name)
    settle_key(kernel)
    kernels.append(f"{module}:{name} {kernel.cache_key}")
print(*sorted(kernels), sep=chr(10))
"""


@compiled_only
def test_a_kernel_s_key_does_not_depend_on_what_was_compiled_before():
    modules = {"pack_weights_kernel": "gpu_packing", "conv_kernel": "gpu_convolution"}
    kernels = [f"engine.kernels.resize_conv_act.{module}:{name}" for name, module in modules.items()]
    keys = [
        subprocess.run(
            [sys.executable, "-c", KEYS, *order], check=True, capture_output=True, text=True, cwd=ROOT
        ).stdout
        for order in (kernels, kernels[::-1])
    ]
    assert keys[0] == keys[1] and keys[0].count("\n") == len(kernels)


def test_nothing_is_measured_during_capture(pretended_gpu, monkeypatch):
    ran = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(tuning, "_measure", lambda run, candidate: pytest.fail("measured while a graph was captured"))
    tuning.run_best("conv", (3,), ["wide", "tall"], ran.append)
    assert ran == ["wide"] and not tuning.choices_file().exists()
