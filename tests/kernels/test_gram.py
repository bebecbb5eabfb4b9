"""gram and style_loss against float64 sums written out in numpy, and what the loss promises about images and zeros."""

import numpy as np
import pytest
import torch

from engine import ops
from engine.kernels import _spec

OPERATORS = ["gram", "style_loss"]
LAYOUTS = [torch.channels_last, torch.contiguous_format]


def features(*shape: int, seed: int = 0, layout: torch.memory_format = torch.channels_last) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=layout)


def truth(x: torch.Tensor) -> np.ndarray:
    values = x.detach().double().numpy()
    return np.einsum("bchw,bdhw->bcd", values, values) / values[0].size


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 33, 8, 8), (3, 64, 17, 9), (1, 71, 20, 20), (2, 160, 4, 4)])
def test_gram_is_the_scaled_inner_product_and_exactly_symmetric(shape, layout):
    x = features(*shape, layout=layout)
    g = ops.gram(x)
    np.testing.assert_allclose(g.numpy(), truth(x), rtol=0, atol=3e-7)
    assert torch.equal(g, g.transpose(1, 2))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (4, 33, 8, 8), (1, 71, 20, 20)])
def test_style_loss_and_its_gradient(shape, layout, squared):
    a, b = (features(*shape, seed=i, layout=layout).requires_grad_() for i in range(2))
    per_sample, mean = ops.style_loss(a, b, squared=squared)
    difference = truth(a) - truth(b)
    norm = np.sqrt(np.square(difference).sum((1, 2)))
    expected = norm**2 if squared else norm
    np.testing.assert_allclose(per_sample.detach().numpy(), expected, rtol=2e-6)
    np.testing.assert_allclose(mean.item(), expected.mean(), rtol=2e-6)

    upstream = np.arange(1.0, 1 + len(norm)) + 1 / len(norm)  # of per_sample, and 1 of the mean
    found = torch.autograd.grad((per_sample * torch.arange(1.0, 1 + len(norm))).sum() + mean, [a, b])
    factor = 2 * upstream if squared else upstream / norm
    for sign, leaf, gradient in zip((1, -1), (a, b), found, strict=True):
        values = leaf.detach().double().numpy()
        exact = 2 * sign / values[0].size * np.einsum("b,bcd,bdhw->bchw", factor, difference, values)
        np.testing.assert_allclose(gradient.numpy(), exact, rtol=0, atol=3e-6 * np.abs(exact).max())


@pytest.mark.parametrize("squared", [False, True])
def test_equal_features_give_zero_loss_and_zero_gradient(squared):
    a = features(3, 40, 9, 9).requires_grad_()
    b = a.detach().clone()
    b[1] = -b[1]  # the same Gram matrix
    per_sample, mean = ops.style_loss(a, b, squared=squared)
    assert torch.equal(per_sample, torch.zeros(3)) and mean == 0
    (gradient,) = torch.autograd.grad(per_sample.sum() + mean, [a])
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_images_do_not_mix():
    """One image's features change neither another's loss nor its gradient."""
    a, b = features(3, 24, 10, 6), features(3, 24, 10, 6, seed=1)
    changed = a.clone(memory_format=torch.preserve_format)
    changed[1] *= 3

    def of(a):
        a = a.requires_grad_()
        per_sample, _ = ops.style_loss(a, b)
        return per_sample.detach(), torch.autograd.grad(per_sample.sum(), [a])[0]

    (loss, gradient), (loss_changed, gradient_changed) = of(a), of(changed)
    assert loss[1] != loss_changed[1] and not torch.equal(gradient[1], gradient_changed[1])
    for image in (0, 2):
        assert loss[image] == loss_changed[image]
        assert torch.equal(gradient[image], gradient_changed[image])
        alone = ops.style_loss(a[image : image + 1].detach(), b[image : image + 1])[0]
        torch.testing.assert_close(alone[0], loss[image])


def test_an_argument_without_gradient_gets_none():
    a, b = features(2, 8, 4, 4).requires_grad_(), features(2, 8, 4, 4, seed=1).requires_grad_()
    both = torch.autograd.grad(ops.style_loss(a, b)[1], [a, b])
    assert torch.equal(torch.autograd.grad(ops.style_loss(a, b.detach())[1], [a])[0], both[0])
    assert torch.equal(torch.autograd.grad(ops.style_loss(a.detach(), b)[1], [b])[0], both[1])


@pytest.mark.parametrize("name", OPERATORS)
def test_threads(name):
    """The same bits every time for one thread count, and the same up to rounding for another."""
    before = torch.get_num_threads()
    for sample in _spec.specs()[name].samples:
        made = _spec.tensors(sample, torch.float32)
        results = {}
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                once, again = (_spec.run(ops.OPERATORS[name].function, sample, made, torch.float32) for _ in range(2))
                assert all(torch.equal(once[key], again[key]) for key in once)
                results[threads] = once
        finally:
            torch.set_num_threads(before)
        for threads in (2, 3):
            torch.testing.assert_close(results[threads], results[1], rtol=1e-5, atol=1e-6)


def test_empty_batch():
    a = features(0, 5, 3, 3).requires_grad_()
    assert ops.gram(a).shape == (0, 5, 5)
    per_sample, mean = ops.style_loss(a, a.detach())
    assert per_sample.shape == (0,) and mean.isnan()
    assert torch.autograd.grad(per_sample.sum(), [a])[0].shape == a.shape


def test_nan_is_not_hidden():
    a = features(2, 24, 5, 5)
    a[0, 3, 2, 2] = torch.nan
    assert ops.gram(a)[0].isnan().any() and not ops.gram(a)[1].isnan().any()
    per_sample, mean = ops.style_loss(a, torch.zeros_like(a))
    assert per_sample[0].isnan() and not per_sample[1].isnan() and mean.isnan()


@pytest.mark.parametrize("squared", [False, True])
def test_second_derivatives(squared):
    """A gradient penalty through the operators equals that of the references."""

    def penalty(gram, style_loss):
        a, b = (features(2, 6, 5, 3, seed=i).requires_grad_() for i in range(2))
        value = style_loss(a, b, squared=squared)[1] + gram(a).pow(3).sum()
        first = torch.autograd.grad(value, [a, b], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [a, b])

    fused = penalty(ops.gram, ops.style_loss)
    eager = penalty(*(ops.OPERATORS[name].reference for name in OPERATORS))
    torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-6)


def test_opcheck():
    a, b = features(2, 5, 4, 3).requires_grad_(), features(2, 5, 4, 3, seed=1).requires_grad_()
    torch.library.opcheck(torch.ops.kiln.gram.default, (a,))
    torch.library.opcheck(torch.ops.kiln.style_loss.default, (a, b, False, True))
    torch.library.opcheck(torch.ops.kiln.style_loss.default, (a, b.detach(), True, True))


def test_compiles_in_one_graph():
    a, b = features(2, 8, 4, 4).requires_grad_(), features(2, 8, 4, 4, seed=1)

    def loss(a):
        return ops.style_loss(a, b)[1] + ops.gram(a).square().sum()

    expected = torch.autograd.grad(loss(a), a)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(a), a)[0], expected)


@pytest.mark.parametrize(
    "a, b, words",
    [
        (torch.randn(4, 6, 6), torch.randn(4, 6, 6), "a must be"),
        (torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 5), "must be equal"),
        (torch.randn(2, 4, 0, 6), torch.randn(2, 4, 0, 6), "no empty"),
        (torch.randn(2, 4, 6, 6).double(), torch.randn(2, 4, 6, 6).double(), "float64"),
        (torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6).half(), "b is torch.float16"),
    ],
)
def test_bad_arguments(a, b, words):
    with pytest.raises(ValueError, match=r"^style_loss: ") as caught:
        ops.style_loss(a, b)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    if a.shape == b.shape and a.dtype == b.dtype:
        with pytest.raises(ValueError, match=r"^gram: "):
            ops.gram(a)
