"""The packed signs of l1_autoencoder_loss: every size around a group of 64, ties, infinities, NaN, any upstream."""

import pytest
import torch

from engine import ops


def exact_gradient(target: torch.Tensor, reconstruction: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    shape = (-1,) + (1,) * (target.dim() - 1)
    return torch.sgn(reconstruction - target) * (upstream / target[0].numel()).view(shape)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 63, 64, 65, 129, 4095, 4096, 4097, 4161])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradient_of_every_size(size, dtype):
    generator = torch.Generator().manual_seed(size)
    target, reconstruction = (torch.randint(-2, 3, (3, size), generator=generator).to(dtype) for _ in range(2))
    leaves = [t.requires_grad_() for t in (target, reconstruction)]
    per_sample, mean = ops.l1_autoencoder_loss(*leaves)
    upstream = torch.tensor([1.0, -2.0, 0.0])
    for_target, for_reconstruction = torch.autograd.grad((per_sample * upstream).sum() + 3 * mean, leaves)
    exact = exact_gradient(target.detach().float(), reconstruction.detach().float(), upstream + 1)
    torch.testing.assert_close(for_reconstruction, exact.to(dtype))
    assert torch.equal(for_target, -for_reconstruction)


def test_values_that_compare_with_nothing():
    """A NaN difference gives a NaN gradient there (the reference: 0, which hides it); infinities have a sign."""
    reconstruction = torch.tensor([[torch.nan, torch.inf, -torch.inf, torch.inf, 0.0, -0.0, 1.0, -1.0, 1e-45]])
    target = torch.tensor([[0.0, 0.0, 0.0, torch.inf, -0.0, 0.0, torch.nan, torch.inf, 0.0]])
    leaf = reconstruction.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ops.l1_autoencoder_loss(target, leaf)[0].sum(), [leaf])
    exact = exact_gradient(target, reconstruction, torch.ones(1))
    exact[(reconstruction - target).isnan()] = torch.nan
    torch.testing.assert_close(gradient, exact, equal_nan=True)


def test_backward_twice_and_either_output():
    target, reconstruction = torch.randn(4, 3, 5, 7), torch.randn(4, 3, 5, 7, requires_grad=True)
    per_sample, mean = ops.l1_autoencoder_loss(target, reconstruction)
    first = torch.autograd.grad(mean, [reconstruction], retain_graph=True)[0]
    again = torch.autograd.grad(mean, [reconstruction], torch.tensor(-2.0), retain_graph=True)[0]
    torch.testing.assert_close(again, -2 * first)
    of_samples = torch.autograd.grad(per_sample.sum(), [reconstruction])[0]  # an expanded upstream
    torch.testing.assert_close(of_samples, 4 * first)


def test_only_signs_are_kept():
    """Two bits per element, rounded up to 16 bytes a sample, and nothing where no gradient is asked for."""
    a, b = torch.randn(3, 65), torch.randn(3, 65)
    assert torch.ops.kiln.l1_autoencoder_loss(a, b, True)[2].shape == (3, 32)
    assert torch.ops.kiln.l1_autoencoder_loss(a, b, False)[2].numel() == 0


def test_compiles_with_dynamic_shapes():
    def loss(a, b):
        return ops.l1_autoencoder_loss(a, b)[1]

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, size in ((2, 70), (5, 33)):
        a, b = torch.randn(batch, size), torch.randn(batch, size, requires_grad=True)
        torch.testing.assert_close(torch.autograd.grad(compiled(a, b), b), torch.autograd.grad(loss(a, b), b))
