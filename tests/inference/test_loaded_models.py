"""A loaded model in other hands: defaults of the process, ONNX, TorchScript, copies, threads, in-place writes."""

import contextlib
import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import engine
from engine import checkpoint
from engine.systems.registry import SYSTEMS, build, system_class
from tests.support.tiny_run import make_run
from tests.support.training_fakes import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run")


def images(*shape: int) -> Tensor:
    return torch.rand(shape or (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


DEFAULTS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "inside a device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "deterministic": deterministic,
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "eager"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_the_process(run: Path, name: str, fused: bool) -> None:
    expected = engine.load(run, fused=fused)
    with DEFAULTS[name]():
        before = torch.get_default_dtype()
        model = engine.load(run, fused=fused)
        assert torch.get_default_dtype() == before
    for found, wanted in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        assert found.dtype == torch.float32 and found.device.type == "cpu" and not found.is_inference()
        assert torch.equal(found, wanted)
    x = images()
    with DEFAULTS[name]():
        inside = model(x)
    assert torch.equal(inside, expected(x)) and torch.equal(model(x), inside)


def test_noise_of_a_process_with_other_defaults(tmp_path: Path) -> None:
    config = tiny_config(system="dcgan", out=tmp_path / "run")
    system = build(config, "cpu")
    checkpoint.save(tmp_path / "run", 1, system.weights(), system.state_dict(), config)
    model = engine.load(tmp_path / "run")
    expected = model.noise(2, torch.Generator().manual_seed(0))
    for name in ("float64", "meta"):
        with DEFAULTS[name]():
            noise = model.noise(2, torch.Generator().manual_seed(0))
            assert noise.dtype == torch.float32 and torch.equal(noise, expected)


def trained(system: str) -> tuple[nn.Module, Callable[..., tuple[Tensor, ...]]]:
    """A fused model of a system as engine.load gives it, and what makes its inputs: (batch, side or None)."""
    config = replace(tiny_config(system=system), fused=True)
    torch.manual_seed(0)
    module = system_class(system).trained(config)
    module.generator.load_state_dict(build(config, "cpu").generator.state_dict())

    def inputs(batch: int, side: int | None = None) -> tuple[Tensor, ...]:
        if hasattr(module, "noise"):
            return (module.noise(batch, torch.Generator().manual_seed(1)),)
        side = side or config.resolution
        points = torch.rand(batch, 68, 2, generator=torch.Generator().manual_seed(1)) * side
        return (images(batch, config.channels, side, side), points)[: 2 if system in ("ggb", "reenact") else 1]

    return module.requires_grad_(False).eval(), inputs


@pytest.mark.parametrize(
    "system", [pytest.param(name, marks=pytest.mark.slow if name != "refiner" else ()) for name in SYSTEMS]
)
def test_onnx_of_any_batch_and_side(system: str, tmp_path: Path) -> None:
    """torch.onnx.export takes the loaded model as it is."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, inputs = trained(system)
    dynamic = torch.export.Dim.DYNAMIC
    free = tuple({0: dynamic, 2: dynamic, 3: dynamic} if x.dim() == 4 else {0: dynamic} for x in inputs(3))
    program = torch.onnx.export(model, inputs(3), dynamo=True, dynamic_shapes=free, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for size in ((5,), (2, 32)):
        given = inputs(*size)
        named = {node.name: x.numpy() for node, x in zip(session.get_inputs(), given, strict=True)}
        torch.testing.assert_close(torch.from_numpy(session.run(None, named)[0]), model(*given), rtol=1e-3, atol=1e-4)


def test_onnx_of_a_program_and_of_a_trace(run: Path, tmp_path: Path) -> None:
    """Both exporters: an exported program that holds Kiln's operators, and the older one that traces TorchScript."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = engine.load(run), images()
    program = torch.export.export(model, (x,))
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "program.onnx")
    torch.onnx.export(model, (x,), tmp_path / "trace.onnx", dynamo=False, input_names=["images"])
    for name in ("program", "trace"):
        session = runtime.InferenceSession(tmp_path / f"{name}.onnx")
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-3, atol=1e-4)


def test_torchscript_trace(run: Path) -> None:
    model = engine.load(run)
    traced = torch.jit.trace(model, images())
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    again, x = torch.jit.load(file), images(5, 3, 32, 32)
    assert torch.equal(traced(x), model(x)) and torch.equal(again(x), model(x))


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "share_memory": lambda model: model.share_memory(),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies(run: Path, name: str) -> None:
    model = engine.load(run)
    expected = model(images())
    assert torch.equal(COPIES[name](model)(images()), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(run: Path, dtype: torch.dtype) -> None:
    fused, eager = (engine.load(run, fused=fused).to(dtype) for fused in (True, False))
    exact, x = engine.load(run, fused=False), images().to(dtype)
    found, wanted = fused(x).double(), exact(x.float()).double()
    assert fused(x).dtype == dtype
    assert (found - wanted).norm() <= 2 * (eager(x).double() - wanted).norm() + 1e-3 * wanted.norm()


def test_results_are_the_callers(run: Path) -> None:
    """What is written into a result changes no later result."""
    model = engine.load(run)
    expected = model(images()).clone()
    y = model(images())
    y.add_(1)[:, 0] = 0
    torch.relu_(y)
    assert torch.equal(model(images()), expected)


def test_calls_from_many_threads(run: Path) -> None:
    model = engine.load(run)
    batches = [images(count, 3, 32, 32) for count in (1, 2, 3, 4)]
    expected, found = [model(x) for x in batches], [None] * len(batches)
    again = copy.deepcopy(model)  # whose weights are packed by the threads

    def call(index: int) -> None:
        for _ in range(5):
            found[index] = again(batches[index])

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found, expected))
