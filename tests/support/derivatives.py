"""Every way in which torch differentiates or transforms a function, to compare one function with another in it."""

from collections.abc import Callable

import torch
import torch.autograd.functional
from torch import Tensor, func
from torch.autograd import forward_ad

Function = Callable[[Tensor], Tensor]
Way = Callable[[Function, Tensor, Tensor], Tensor]


def squared(function: Function) -> Function:
    return lambda x: function(x).square().sum()


def upstream(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(3))


def _dual(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    with forward_ad.dual_level():
        primal, tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction)))
        return torch.zeros_like(primal) if tangent is None else tangent.detach()


def _dual_without_grad(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    with torch.no_grad():
        return _dual(function, x, direction)


def _dual_that_requires_grad(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    return _dual(function, x.clone().requires_grad_(), direction)


def _recorded(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    return x, function(x)


def _batched_gradients(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    x, y = _recorded(function, x)
    grads = torch.stack([upstream(y), upstream(y).square(), y.detach()])
    return torch.autograd.grad(y, x, grads, is_grads_batched=True)[0]


def _tangent_of_a_recorded_gradient(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    x, y = _recorded(function, x)
    return func.jvp(lambda grad: torch.autograd.grad(y, x, grad)[0], (upstream(y),), (y.detach(),))[1]


def _dual_gradient(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    x, y = _recorded(function, x)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(upstream(y), y.detach())
        return forward_ad.unpack_dual(torch.autograd.grad(y, x, grad)[0]).tangent


def _third(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    x, y = _recorded(function, x)
    value = y.square().sum()
    for _ in range(2):
        value = torch.autograd.grad(value, x, create_graph=True)[0].square().sum()
    return torch.autograd.grad(value, x)[0]


def _vjp(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    y, pull_back = func.vjp(function, x)
    return pull_back(upstream(y))[0]


def _several(x: Tensor, direction: Tensor, dim: int = 0) -> Tensor:
    return torch.stack([x, x + direction], dim)


def _ordinary(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    x, y = _recorded(function, x)
    return torch.autograd.grad(y, x, upstream(y))[0]


def _in_inference_mode(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    with torch.inference_mode():
        return function(x).clone()


def _in_one_thread_with_anomalies(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    with torch.autograd.set_multithreading_enabled(False), torch.autograd.detect_anomaly(check_nan=False):
        return _ordinary(function, x, direction)


def _checkpointed(reentrant: bool) -> Way:
    def way(function: Function, x: Tensor, direction: Tensor) -> Tensor:
        x, y = _recorded(lambda v: torch.utils.checkpoint.checkpoint(function, v, use_reentrant=reentrant), x)
        y.backward(upstream(y))  # the reentrant form knows no autograd.grad
        return x.grad

    return way


def _with_saved_copies(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        return _ordinary(function, x, direction)


WAYS: dict[str, Way] = {
    "dual": _dual,
    "dual without grad": _dual_without_grad,
    "dual that requires grad": _dual_that_requires_grad,
    "jvp": lambda f, x, d: func.jvp(f, (x,), (d,))[1],
    "autograd.functional.jvp": lambda f, x, d: torch.autograd.functional.jvp(f, x, d)[1],
    "autograd.functional.hvp": lambda f, x, d: torch.autograd.functional.hvp(squared(f), x, d)[1],
    "grad": lambda f, x, d: func.grad(squared(f))(x),
    "vjp": _vjp,
    "vmap": lambda f, x, d: func.vmap(f)(_several(x, d)),
    "vmap of another dimension": lambda f, x, d: func.vmap(f, in_dims=-1, out_dims=-1)(_several(x, d, -1)),
    "vmap of grad": lambda f, x, d: func.vmap(func.grad(squared(f)))(_several(x, d)),
    "is_grads_batched": _batched_gradients,
    "forward over reverse": lambda f, x, d: func.jvp(func.grad(squared(f)), (x,), (d,))[1],
    "reverse over forward": lambda f, x, d: func.grad(squared(lambda v: func.jvp(f, (v,), (d,))[1]))(x),
    "tangent of a recorded gradient": _tangent_of_a_recorded_gradient,
    "dual gradient": _dual_gradient,
    "third derivative": _third,
    "inference mode": _in_inference_mode,
    "one thread, anomalies": _in_one_thread_with_anomalies,
    "checkpoint": _checkpointed(False),
    "reentrant checkpoint": _checkpointed(True),
    "saved_tensors_hooks": _with_saved_copies,
}

SLOW_WAYS: dict[str, Way] = {  # for small x
    "linearize": lambda f, x, d: func.linearize(f, x)[1](d),
    "jacrev": lambda f, x, d: func.jacrev(f)(x),
    "jacfwd": lambda f, x, d: func.jacfwd(f)(x),
    "hessian": lambda f, x, d: func.hessian(squared(f))(x),
    "vectorised": lambda f, x, d: torch.autograd.functional.jacobian(f, x, vectorize=True),
    "vectorised, forward": lambda f, x, d: torch.autograd.functional.jacobian(
        f, x, vectorize=True, strategy="forward-mode"
    ),
}
