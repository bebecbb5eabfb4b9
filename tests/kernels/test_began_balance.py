"""began_balance: the equations by hand, k at its bounds, NaN, inputs left alone, no gradient, and what it refuses."""

import math
import os

import pytest
import torch

from engine import ops
from engine.kernels.began_balance.reference import Balance
from engine.networks.layers import began_balance

BOTH = pytest.mark.parametrize("fused", [True, False], ids=["fused", "reference"])
INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"
OPTIONS = {"gamma": 0.5, "lambda_k": 0.25, "lambda_r": 0.125}
REAL, FAKE = [1.0, 2.0, 0.0], [0.5, 0.25, 0.75]  # means 1 and 0.5


def run(fused: bool, k: float = 0.5, real=REAL, fake=FAKE, content: float = 4.0, **options: float) -> Balance:
    tensors = (torch.tensor([*real, *fake]), torch.tensor(content), torch.tensor(k))
    return began_balance(*tensors, fused=fused, **{**OPTIONS, **options})


def values(found: Balance) -> dict[str, float]:
    assert all(t.shape == () and t.dtype == torch.float32 for t in found)
    return {name: value.item() for name, value in found._asdict().items()}


@BOTH
def test_the_equations(fused):
    """Numbers that float32 holds exactly."""
    assert values(run(fused, fake=[1.0, 0.0, -0.25])) == {
        "l_real": 1.0,
        "l_fake": 0.25,
        "loss_d": 1.0 - 0.5 * 0.25,
        "loss_g": 0.875 * 0.25 + 0.125 * 4.0,
        "k": 0.5 + 0.25 * (0.5 - 0.25),
        "measure": 1.0 + 0.25,
    }
    # above the equilibrium the measure takes the distance too, and k falls
    found = values(run(fused, gamma=0.25))
    assert (found["k"], found["measure"]) == (0.5 - 0.25 * 0.25, 1.25)


@BOTH
@pytest.mark.parametrize(
    ("k", "gamma", "lambda_k", "expected"),
    [
        (0.0, 0.0, 1.0, 0.0),
        (0.0, 0.25, 1e-3, 0.0),
        (1.0, 1.0, 1.0, 1.0),
        (1.0, 1.0, 1e-3, 1.0),
        (0.5, 1.0, 1e30, 1.0),
        (0.5, 1.0, math.inf, 1.0),
        (0.5, 0.0, math.inf, 0.0),
        (0.75, 1.0, 0.5, 1.0),
        (0.25, 0.0, 0.5, 0.0),
        (0.25, 0.5, 1.0, 0.25),
    ],
)
def test_k_stays_between_its_bounds(fused, k, gamma, lambda_k, expected):
    assert run(fused, k=k, gamma=gamma, lambda_k=lambda_k).k.item() == expected


@BOTH
@pytest.mark.parametrize(
    ("change", "hit"),
    [
        ({"real": [1.0, math.nan, 0.0]}, {"l_real", "loss_d", "k", "measure"}),
        ({"fake": [math.nan, 1.0, 0.0]}, {"l_fake", "loss_d", "loss_g", "k", "measure"}),
        ({"content": math.nan}, {"loss_g"}),
        ({"k": math.nan}, {"loss_d", "k"}),
        ({"real": [math.inf, 0.0, 0.0], "fake": [math.inf, 0.0, 0.0]}, {"loss_d", "k", "measure"}),
        ({"real": [math.inf, -math.inf, 0.0]}, {"l_real", "loss_d", "k", "measure"}),
    ],
)
def test_nan_is_not_hidden(fused, change, hit):
    assert {name for name, value in values(run(fused, **change)).items() if math.isnan(value)} == hit


@BOTH
@pytest.mark.parametrize(("real", "k"), [([math.inf, 0.0, 0.0], 1.0), ([-math.inf, 0.0, 0.0], 0.0)])
def test_an_infinite_loss_moves_k_to_a_bound(fused, real, k):
    found = values(run(fused, real=real))
    assert found["k"] == k and math.isinf(found["l_real"])


@BOTH
def test_inputs_are_left_as_they_are_and_get_no_gradient(fused):
    per_sample, content, k = torch.rand(6), torch.rand(()), torch.rand(())
    before = [t.clone() for t in (per_sample, content, k)]
    found = began_balance(*(t.requires_grad_() for t in (per_sample, content, k)), fused=fused, **OPTIONS)
    assert not any(t.requires_grad for t in found)
    assert all(torch.equal(t, old) for t, old in zip((per_sample, content, k), before, strict=True))
    assert found.k.data_ptr() != k.data_ptr()


def test_any_strides():
    wide = torch.rand(8, 3)
    tensors = (torch.tensor(0.3), torch.tensor(0.2))
    found = began_balance(wide[:, 1], *tensors, fused=True, **OPTIONS)
    assert found == began_balance(wide[:, 1].contiguous(), *tensors, fused=True, **OPTIONS)


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 257])
def test_every_loss_counts_once(n):
    """Whole numbers, so that the sums are exact in any order; the halves do not mix."""
    per_sample = torch.arange(2.0 * n)
    found = began_balance(per_sample, torch.zeros(()), torch.zeros(()), fused=True, **OPTIONS)
    assert (found.l_real.item(), found.l_fake.item()) == ((n - 1) / 2, (3 * n - 1) / 2)


@pytest.mark.skipif(INTERPRETED, reason="PyTorch's checks trace the operator, the interpreter does not")
def test_registration():
    tensors = (torch.rand(6), torch.rand(()), torch.rand(()))
    torch.library.opcheck(torch.ops.kiln.began_balance.default, (*tensors, *OPTIONS.values()))


def test_compiles_in_one_graph():
    def next_k(per_sample, content, k):
        return ops.began_balance(per_sample, content, k, **OPTIONS).k

    compiled = torch.compile(next_k, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 5):
        tensors = (torch.rand(2 * n), torch.rand(()), torch.rand(()))
        assert torch.equal(compiled(*tensors), next_k(*tensors))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"per_sample": torch.rand(5)}, "per_sample must be (2n,), n > 0, not (5,)"),
        ({"per_sample": torch.rand(0)}, "not (0,)"),
        ({"per_sample": torch.rand(2, 3)}, "not (2, 3)"),
        ({"per_sample": torch.rand(6).double()}, "per_sample is torch.float64"),
        ({"content": torch.rand(1)}, "content must be (), not (1,)"),
        ({"k": torch.rand(2)}, "k must be (), not (2,)"),
        ({"k": torch.tensor(1)}, "k is torch.int64"),
        ({"content": torch.rand((), device="meta")}, "content is on meta but per_sample on cpu"),
    ],
)
def test_bad_arguments(change, words):
    good = {"per_sample": torch.rand(6), "content": torch.rand(()), "k": torch.rand(())}
    with pytest.raises(ValueError, match=r"^began_balance: ") as caught:
        ops.began_balance(**{**good, **change}, **OPTIONS)
    assert words in str(caught.value) and "\n" not in str(caught.value)
