"""Calls go past the dispatcher only where nothing but autograd would listen there, and the results are the same."""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine import ops
from engine.kernels import _availability, _contract, _dispatch, _native, _spec
from engine.kernels._gradients import Gradients
from engine.kernels._observers import OperatorCall, observed, observers
from engine.kernels._of_tensors import OfTensors


class Listener(TorchDispatchMode):
    """Notes the names of Kiln's operators that the dispatcher runs."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.heard += [function.name()] * function.name().startswith("kiln::")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(_spec.specs_with_skeleton()))
def test_both_ways_agree(name, monkeypatch):
    for sample in _spec.specs_with_skeleton()[name].samples:
        made = _spec.tensors(sample, torch.float32)
        direct = _spec.run(_contract.find(name).function, sample, made, torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(_dispatch, "_only_autograd_listens", lambda tensors: False)
            dispatched = _spec.run(_contract.find(name).function, sample, made, torch.float32)
        for key, value in direct.items():
            torch.testing.assert_close(dispatched[key], value, rtol=0, atol=0, equal_nan=True)
            assert dispatched[key].stride() == value.stride()


def test_modes_hear_both_passes():
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4, requires_grad=True)
    with Listener() as listener:
        torch.autograd.grad(ops.l1_autoencoder_loss(a, b)[1], [b])
    assert listener.heard == ["kiln::l1_autoencoder_loss", "kiln::l1_autoencoder_loss_backward"]
    value = ops.l1_autoencoder_loss(a, b)[1]  # recorded directly, listened to in backward
    with Listener() as listener:
        torch.autograd.grad(value, [b])
    assert listener.heard == ["kiln::l1_autoencoder_loss_backward"]


def test_the_profiler_names_operators():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.gram(torch.randn(1, 3, 4, 4))
    assert "kiln::gram" in {event.key for event in profile.key_averages()}


def test_lazily_negated_tensors_are_resolved():
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(
        ops.l1_autoencoder_loss(torch._neg_view(a), b)[1], ops.l1_autoencoder_loss(-a, b)[1], rtol=0, atol=0
    )


@pytest.mark.parametrize("name", sorted(_spec.specs_with_skeleton()))
def test_zeros_without_memory_are_zeros(name):
    """Such tensors come out of torch's forward-mode differentiation."""
    sample = _spec.specs_with_skeleton()[name].samples[0]
    made, options = _spec.tensors(sample, torch.float32), sample.options_in(torch.float32)
    function = _contract.find(name).function
    for key, tensor in made.items():
        if key != "store":  # which is not copied
            zeros = torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)
            found = function(**made | {key: zeros}, **options)
            torch.testing.assert_close(found, function(**made | {key: torch.zeros_like(tensor)}, **options))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_reach_the_operator_image_by_image():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mapped = torch.func.vmap(lambda a, b: ops.l1_autoencoder_loss(a, b)[1])(a, b)
    torch.testing.assert_close(mapped, (a - b).abs().mean((1, 2)))


def test_other_devices_reach_their_own_implementation():
    x = torch.randn(2, 3, 4, 4, device="meta")
    assert ops.gram(x).shape == (2, 3, 3) and ops.gram(x).is_meta
    with pytest.raises(ValueError, match="reconstruction is on cpu but target on meta"):
        ops.l1_autoencoder_loss(x, torch.randn(2, 3, 4, 4))


def test_native_arguments_go_by_name():
    """A name that C++ does not state, or that Python does not give, is an error that tells which."""
    losses = {"per_sample": torch.ones(2), "content": torch.ones(()), "k": torch.ones(()), "results": torch.zeros(6)}
    call = _native.native_function("began_balance_forward")
    takes = r"native function began_balance_forward takes per_sample, content, k, results, n, gamma, lambda_k, lambda_r"
    with pytest.raises(TypeError, match=rf"^{takes}; missing: n, lambda_r; unknown: count$"):
        call(**losses, count=1, gamma=0.5, lambda_k=0.1)
    with pytest.raises(TypeError, match=rf"^{takes}; unknown: more$"):
        call(**losses, n=1, gamma=0.5, lambda_k=0.1, lambda_r=0.1, more=None)
    for wrong in ({"n": 1.5}, {"gamma": "half"}, {"k": 3}):
        with pytest.raises((TypeError, AttributeError)):
            call(**losses | {"n": 1, "gamma": 0.5, "lambda_k": 0.1, "lambda_r": 0.1} | wrong)
    with pytest.raises(ValueError, match="no native function 'nothing'"):
        _native.native_function("nothing")()
    call(**losses, n=1, gamma=0.5, lambda_k=0.1, lambda_r=0.1)
    assert losses["results"][0] == 1


@pytest.mark.parametrize("direct", [True, False])
def test_observers_hear_operators_and_native_functions(direct, monkeypatch):
    """Past the dispatcher and through it: every public call with its results, and the native calls of both passes."""
    if not direct:
        monkeypatch.setattr(_dispatch, "_only_autograd_listens", lambda tensors: False)
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4, requires_grad=True)
    heard, reached = [], []
    with observed(heard.append):
        _, mean = ops.l1_autoencoder_loss(a, reconstruction=b)
        told = next(call for call in heard if isinstance(call, OperatorCall))
        told.results[1].register_hook(lambda gradient: reached.append(gradient.item()))
        (2 * mean).backward()
        ops.linear(a.flatten(1), torch.ones(5, 48))  # the library's own call is a call of the operator too
    forward, first, backward, second = heard
    assert first is told and first.operator == "l1_autoencoder_loss" and second.operator == "linear"
    assert first.arguments["target"] is a and first.arguments["reconstruction"] is b and first.results[1] is mean
    names = [call.function for call in (forward, backward)]
    assert names == ["l1_autoencoder_loss_forward", "l1_autoencoder_loss_backward"]
    assert forward.integers == {"dtype": 0, "batch": 2, "size": 48} and forward.pointers["target"] == a.data_ptr()
    assert backward.pointers["dtarget"] == 0 and backward.pointers["dreconstruction"] == b.grad.data_ptr()
    assert reached == [2.0] and all(call.seconds > 0 for call in (forward, backward)) and not observers


def test_the_contract_refuses_what_does_not_fit_a_schema():
    def cpu(x, factor):
        return x

    with pytest.raises(TypeError, match=r"^kiln::unfit_names has the arguments \['x', 'scale'\]; .*cpu takes others$"):
        _contract.define("unfit_names(Tensor x, Tensor scale) -> Tensor", check=cpu, cpu=cpu, cuda=cpu, fake=cpu)
    gradients = Gradients(lambda grad: grad, ["factor"])
    with pytest.raises(ValueError, match=r"\['factor'\] are not the first arguments \['x', 'factor'\]"):
        _contract.define(
            "unfit_inputs(Tensor x, Tensor factor) -> Tensor",
            check=cpu, cpu=cpu, cuda=cpu, fake=cpu, reference=cpu, gradients=gradients,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("triton", "capability", "says"),
    [
        ("3.6.0", (8, 0), ""),
        ("3.6.0+git123", (9, 0), ""),
        ("3.4.1", (9, 0), "need Triton 3.6 or newer, not 3.4: pip install 'triton>=3.6'"),
        ("3.7.1", (7, 5), "compute capability 7.5; the Triton kernels need 8.0 (Ampere) or newer"),
    ],
)
def test_gpus_that_the_kernels_cannot_use(triton, capability, says, monkeypatch):
    """explain() says why, and a call on such a GPU says the same before it loads Triton."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(_availability.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(_availability.importlib.metadata, "version", lambda name: triton)
    row = next(row for row in ops.explain("gram") if row.device == "cuda")
    assert (row.kind == "none") == bool(says) and says in row.why
    if says:
        with pytest.raises(_native.NativeMissing) as caught:
            _availability.gpu_function("engine.kernels.gram", "forward")()
        assert str(caught.value) == row.why


@pytest.mark.parametrize(
    "triton, numpy, works", [("3.6.0", "2.5.0", False), ("3.6.0", "2.4.6", True), ("3.7.0", "2.5.0", True)]
)
def test_the_interpreter_says_where_it_cannot_work(triton, numpy, works, monkeypatch):
    monkeypatch.setattr(_availability, "INTERPRETED", True)
    monkeypatch.setattr("triton.__version__", triton)
    monkeypatch.setattr("numpy.__version__", numpy)
    assert (_availability.why_not_interpreted() == "") == works
    row = _availability.own_implementations("gram")[0]
    assert (row.kind, "numpy<2.5" in row.why) == (("Triton, interpreted", False) if works else ("none", True))
    if not works:
        with pytest.raises(ImportError, match=r"numpy<2\.5"):
            _availability.gpu_function("engine.kernels.gram", "forward")()


def test_calls_of_a_planned_kind_are_refused_as_ever():
    """A call that fits is planned for those like it; what differs in what a check reads is checked itself."""
    x, weight, mean, var = torch.randn(2, 8, 5, 5), torch.randn(8, 8, 3, 3), torch.zeros(8), torch.ones(8)
    running = {"kind": "batch", "training": False}
    for _ in range(2):
        assert ops.resize_conv_act(x, weight).shape == (2, 8, 5, 5)
        with pytest.raises(ValueError, match="stride is 3; it must be 1 or 2"):
            ops.resize_conv_act(x, weight, stride=3)
        with pytest.raises(ValueError, match=r"stride is \[1, 1\]; it must be 1 or 2"):
            ops.resize_conv_act(x, weight, stride=[1, 1])
        with pytest.raises(ValueError, match=r"weight is torch\.float64 but x is torch\.float32"):
            ops.resize_conv_act(x, weight.double())
        ops.norm_act(x, running_mean=mean, running_var=var, **running)
        with pytest.raises(ValueError, match="cannot require a gradient"):
            ops.norm_act(x, running_mean=mean.clone().requires_grad_(), running_var=var, **running)
    # of numbers that are equal and not the same each keeps its own meaning
    zeros = [ops.resize_conv_act(x, weight, activation="leaky_relu", negative_slope=slope) for slope in (0.0, -0.0)]
    assert torch.signbit(zeros[0]).any() and not torch.signbit(zeros[1]).any()


def test_tensors_that_outlived_a_transform():
    kept = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(torch.randn(1, 8, 4, 4))
    weight = torch.randn(8, 8, 3, 3, requires_grad=True)
    expected = ops.resize_conv_act(kept[0].clone(), weight)
    torch.testing.assert_close(ops.resize_conv_act(kept[0], weight), expected, rtol=0, atol=0)


def test_what_is_kept_of_a_tensor_ends_with_it():
    values, tensor, other = OfTensors(), torch.nn.Parameter(torch.ones(2)), torch.ones(2)
    values[tensor], values[other] = [1], [2]
    values[tensor] = [3]
    assert tensor in values and values[tensor] == [3] and values.get(torch.ones(2)) is None
    graph = tensor * 2  # holds the tensor when no name does
    del tensor
    (again,) = [function.variable for function, _ in graph.grad_fn.next_functions if function]
    assert values[again] == [3]
    del again, graph
    gc.collect()
    assert len(values._values) == 1 and values[other] == [2]
