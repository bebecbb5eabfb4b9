"""Fused models in training stacks: compilers, export, checkpointing, wrappers; and the pass for torch.compile."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import engine
from engine.fusion import fuse, inductor_pass, unfuse
from engine.fusion.inductor import InductorPass
from tests.support.fuse_checks import UP, assert_same, calls, fused_pair, image, patterns, results, seeded
from tests.support.fuse_models import Attributes, Functional, Residual, UNet, conv


def small() -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 9), nn.ELU(), conv(9, 3), nn.SiLU(), nn.Conv2d(3, 2, 1))


def operators(graph: fx.Graph) -> list[str]:
    return [node.target._opname for node in graph.nodes if "kiln" in str(node.target)]


@pytest.mark.slow
def test_the_operators_survive_compilation() -> None:
    """torch.compile(fullgraph=True) of a fused model keeps the operators in its graphs, forward and backward."""
    model, plain, _ = fused_pair(small)
    seen = []
    options = {"post_grad_custom_post_pass": lambda graph: seen.append(operators(graph))}
    compiled = torch.compile(model, fullgraph=True, options=options)
    outcome, expected = results(compiled, image()), results(plain, image())
    torch.testing.assert_close(outcome["output"], expected["output"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outcome["input"], expected["input"], rtol=1e-4, atol=1e-5)
    assert seen == [["resize_conv_act"] * 2, ["resize_conv_act_backward"] * 2]


def test_pass_of_an_unfused_model() -> None:
    """The pass puts the operator in place of the chains; Inductor compiles everything else."""
    model, seen = seeded(small), []
    options = {
        "pre_grad_custom_pass": inductor_pass,
        "post_grad_custom_post_pass": lambda graph: seen.append(operators(graph)),
    }
    compiled = torch.compile(model, fullgraph=True, options=options)
    outcome, expected = results(compiled, image()), results(model, image())
    for (name, value), of_model in zip(outcome.items(), expected.values(), strict=True):
        torch.testing.assert_close(value, of_model, rtol=1e-4, atol=1e-4, msg=name)
    assert seen == [["resize_conv_act"] * 2, ["resize_conv_act_backward"] * 2]
    assert type(model) is nn.Sequential and InductorPass().uuid() == inductor_pass.uuid()


def passed(model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The output of a model's Dynamo graph after the pass, run without Inductor, and how many chains were replaced."""
    replaced = []

    def backend(module: fx.GraphModule, example_inputs: list) -> Callable:
        inductor_pass(module.graph)
        module.recompile()
        replaced.append(sum(getattr(node.target, "__name__", "") == "run_chain" for node in module.graph.nodes))
        return module.forward

    with torch.no_grad():
        return torch.compile(model, fullgraph=True, backend=backend)(x), replaced[0]


@pytest.mark.parametrize(("make", "chains"), [(Functional, 8), (UNet, 12), (Residual, 1), (Attributes, 2)])
def test_pass_finds_what_fuse_finds(make: type, chains: int) -> None:
    model = seeded(make)
    output, count = passed(model, image())
    assert count == chains
    torch.testing.assert_close(output, model(image()), rtol=1e-4, atol=1e-5)


class Written(nn.Module):
    """Writes, with inplace, into the result that the operator keeps for the backward pass."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv, self.act = conv(3, 3), nn.Hardtanh(-0.5, 0.5, inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.elu(self.conv(x)))


@pytest.mark.parametrize("inplace", [False, True])
def test_pass_refuses_what_is_written_to(inplace: bool) -> None:
    assert passed(seeded(lambda: Written(inplace)), image())[1] == (not inplace)


def test_pass_leaves_computed_weights_and_parametrisations() -> None:
    model = seeded(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3, 4)), nn.ELU()))
    output, count = passed(model, image())
    torch.testing.assert_close(output, model(image()))
    assert count == 0


@pytest.mark.parametrize("strict", [False, True], ids=["without Dynamo", "through Dynamo"])
def test_export_has_no_kiln_operator(strict: bool) -> None:
    model, plain, _ = fused_pair(small)
    exported = torch.export.export(model, (image(),), strict=strict)
    assert "kiln" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(image()), plain(image()))
    traced = torch.jit.trace(model, image())
    assert "kiln::" not in str(traced.inlined_graph)
    assert calls(model, image()) == 2  # afterwards it is fused as before
    assert not any("run_chain" in str(node.target) for node in fx.symbolic_trace(model).graph.nodes)


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, plain, _ = fused_pair(small)
    torch.onnx.export(model.eval(), (image(),), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    output = session.run(None, {session.get_inputs()[0].name: image().numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(output), plain(image()).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model, plain, _ = fused_pair(UNet)

    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    def gradients(inner: nn.Module) -> list[Tensor]:
        x = image().requires_grad_()
        Checkpointed(inner)(x).square().sum().backward()
        return [x.grad, *(p.grad for p in inner.parameters())]

    for gradient, expected in zip(gradients(model), gradients(plain), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_saved_and_averaged() -> None:
    model, plain, _ = fused_pair(small)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert type(read) is nn.Sequential and calls(read, image()) == 0
    assert patterns(fuse(read)) == patterns(fuse(model))
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert calls(average, image()) == 2
    assert_same(average.module, plain, image())


def test_wrapped_by_a_derived_class() -> None:
    """unfuse takes the fused forward out of a class derived from the fused one, as fully_shard gives to a module."""
    model = seeded(UNet)
    fuse(model)
    block = model.down[0]
    wrapper = type("Wrapped", (type(block),), {"wrapped": True})
    block.__class__ = wrapper
    assert calls(model, image()) == 12
    unfuse(model)
    assert block.wrapped and type(block).__name__ == "Wrapped" and calls(model, image()) == 0
    model.load_state_dict(seeded(UNet).state_dict())


@pytest.mark.parametrize("grad", [True, False])
def test_silu(grad: bool) -> None:
    model, plain, report = fused_pair(lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 9), nn.SiLU(True)))
    assert patterns(report) == [("1", f"{UP} + silu")]
    with torch.set_grad_enabled(grad):
        assert calls(model, image()) == 1
        torch.testing.assert_close(model(image()), plain(image()), rtol=1e-4, atol=1e-5)


def test_after_dynamo_and_other_traces() -> None:
    """fuse finds the same chains whatever else was traced or compiled in the process."""
    code = (
        "import torch, torch._dynamo, engine; from torch import fx, nn\n"
        "from tests.support.fuse_models import SuperResolution, dcgan\n"
        "fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()))\n"
        "torch.compile(nn.Linear(2, 2), backend='eager')(torch.ones(1, 2))\n"
        "first = [str(engine.fuse(kind())) for kind in (SuperResolution, dcgan)]\n"
        "torch.compile(dcgan().eval(), backend='eager')(torch.ones(2, 5))\n"
        "again = [str(engine.fuse(kind())) for kind in (SuperResolution, dcgan)]\n"
        "assert first == again and all(' fused' in text and 'forward' not in text for text in first), first"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_traces_leave_nothing_behind() -> None:
    model, own = seeded(UNet), nn.Module.__getattr__
    state = torch.get_rng_state()
    engine.fuse(model)
    assert "__getattribute__" not in vars(nn.Module) and nn.Module.__getattr__ is own
    assert torch.equal(state, torch.get_rng_state())


def test_a_copy_of_a_fused_model_follows_its_own_attributes() -> None:
    model = seeded(small)
    fuse(model)
    copied = copy.deepcopy(model)
    copied[2].alpha = 0.5
    assert calls(copied, image()) == 0 and calls(model, image()) == 2
