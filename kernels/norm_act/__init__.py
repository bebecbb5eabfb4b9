"""Batch, instance, group and layer normalisation with a residual sum and an activation, in one operator."""

from math import inf, nan

import torch
from torch import Tensor

from .._availability import gpu_function
from .._checks import DTYPES, refuse, require_activation, require_dtype, require_like, require_need
from .._contract import define, publish
from .._gradients import Gradients, empty_gradients, float32_sums, round_sums
from .._layout import dense_order, float32, in_order
from .._native import native_function
from ..resize_conv_act import ACTIVATION_NUMBERS
from . import reference, second_derivative

KINDS = ("batch", "instance", "group", "layer")
PLACES = ("before", "after")
NAME = "norm_act"
_native_forward, _native_backward = native_function(f"{NAME}_forward"), native_function(f"{NAME}_backward")


@publish(reference.norm_act)
def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str,
    groups: int | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.2,
    residual: Tensor | None = None,
    residual_place: str = "before",
) -> Tensor:
    """y = activation(weight (x - mean) / sqrt(var + eps) + bias + residual); or the residual after the activation.

    x:              (B, C, H, W) float32, bfloat16 or float16; any strides (channels_last and contiguous: in place)
    weight, bias:   (C,) of x's dtype, or float32 beside x in half precision; None: 1 and 0
    kind:           what shares a mean and a variance: "batch": each channel over the batch; "instance": each channel of
                    an image; "group": each group of an image's channels; "layer": all channels of an image
    groups:         how many groups the channels form, of "group" only
    running_mean, running_var: (C,) of x's dtype or float32, of "batch" and "instance". Training moves them towards the
                    statistics of x, as PyTorch does: by `momentum`, the variance unbiased
    training:       False: "batch" and "instance" normalise by the running statistics
    eps:            > 0, added to the variance
    activation:     "none", "elu" (alpha 1), "relu", "leaky_relu" (negative_slope), "tanh", "sigmoid", "silu"
    negative_slope: >= 0, of "leaky_relu"
    residual:       like x: a tensor that is added, or None
    residual_place: "before" or "after" the activation

    Returns y like x, dense in x's order of memory. Statistics and sums are float32, joined in float64 on the CPU, where
    the bits do not depend on the number of threads. Backward keeps x and the statistics but no y: it forms the sum
    before the activation again. Gradients of first order are fused, and so is the gradient of the gradient of x in
    float32 without a residual sum, where the activation is "none", "relu" or "leaky_relu"; all others under
    create_graph=True come from the reference, for any order. A channel with a NaN becomes NaN. Raises ValueError when a
    shape, dtype or option does not fit, and where PyTorch does because a statistic would be of one value.
    Sources: Ioffe and Szegedy 2015; Ulyanov et al. 2016; Wu and He 2018; Ba et al. 2016.
    """
    parts = _parts(x, kind, groups)
    if residual_place not in PLACES:
        refuse(NAME, f"residual_place is {residual_place!r}; it must be one of {', '.join(PLACES)}")
    _check_running(x, kind, running_mean, running_var, training)
    if training and kind == "instance" and x.shape[2] * x.shape[3] == 1:
        refuse(NAME, f"Expected more than 1 spatial element when training, got input size {tuple(x.shape)}")
    by_running = not training and kind in ("batch", "instance")
    given = (running_mean, running_var, 0) if by_running else (None, None, parts)
    options = float(eps), activation, float(negative_slope), residual_place == "after", False
    y, mean, var = forward(x, weight, bias, residual, *given, *options)
    if running_mean is not None and running_var is not None and not by_running and x.numel():
        _move(running_mean, running_var, mean, var, x.numel() // mean.numel(), momentum)
    return y


def _parts(x: Tensor, kind: str, groups: int | None) -> int:
    """The groups of an image's channels that have statistics of their own; 0: each channel has, over the batch."""
    if kind not in KINDS:
        refuse(NAME, f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if x.dim() != 4:
        refuse(NAME, f"x must be (B, C, H, W), not {tuple(x.shape)}")
    if (groups is not None) != (kind == "group"):
        refuse(NAME, f"groups is {groups}; kind 'group' needs a number of groups, and no other kind takes it")
    if groups is not None and groups < 1:
        refuse(NAME, f"groups is {groups}; it must be at least 1 and divide the {x.shape[1]} channels")
    return groups or {"batch": 0, "instance": x.shape[1], "layer": 1}[kind]


def _check_running(x: Tensor, kind: str, mean: Tensor | None, var: Tensor | None, training: bool) -> None:
    if (mean is None) != (var is None):
        refuse(NAME, "running_mean and running_var must be given together")
    if mean is None and not training and kind in ("batch", "instance"):
        refuse(NAME, f"running_mean and running_var are missing: without training, {kind} normalisation needs them")
    if mean is not None and kind not in ("batch", "instance"):
        refuse(NAME, f"running_mean is given, but {kind} normalisation has no running statistics")
    _check_channels(x, running_mean=mean, running_var=var)
    _check_constant(mean, var)  # of every call: `check` runs once for all that are equal in shapes


def _check_constant(mean: Tensor | None, var: Tensor | None) -> None:
    if mean is not None and var is not None and (mean.requires_grad or var.requires_grad):
        refuse(NAME, "running_mean and running_var are constants; they cannot require a gradient")


def _check_channels(x: Tensor, **tensors: Tensor | None) -> None:
    """Raises ValueError unless each tensor, where there is one, has a number for each of x's channels."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.shape != x.shape[1:2]:
            refuse(NAME, f"{name} is {tuple(tensor.shape)}; it must be ({x.shape[1]},)")
        if tensor.dtype not in (x.dtype, torch.float32):
            refuse(NAME, f"{name} is {tensor.dtype} but x is {x.dtype}")


def _move(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float) -> None:
    """Moves running statistics towards those of `count` values each; of images' own statistics their mean is taken."""
    mean, var = mean.detach(), var.detach()
    if mean.dim() == 2:
        mean, var = mean.mean(0), var.mean(0)
    for running, value in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
        if running.dtype == value.dtype:
            running.lerp_(value, momentum)
        else:
            running.copy_(torch.lerp(running.to(value.dtype), value, momentum))


def check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    given_mean: Tensor | None,
    given_var: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
    residual_after: bool,
    statistics_only: bool,
) -> None:
    require_activation(NAME, activation, ACTIVATION_NUMBERS, negative_slope)
    shape = x.shape
    if len(shape) != 4:
        refuse(NAME, f"x must be (B, C, H, W), not {tuple(shape)}")
    require_dtype(NAME, "x", x.dtype)
    batch, channels, height, width = shape
    if not (channels > 0 and height > 0 and width > 0):
        refuse(NAME, f"no empty channels or sides: x is {tuple(shape)}")
    if groups < 0 or groups > channels or (groups and channels % groups):
        refuse(NAME, f"groups is {groups}; it must divide the {channels} channels")
    if not 0 < eps < inf:
        refuse(NAME, f"eps is {eps}; it must be above 0 and finite")
    _check_channels(x, weight=weight, bias=bias, running_mean=given_mean, running_var=given_var)
    if residual is not None:
        require_like(NAME, "residual", residual, shape, x.dtype)
    if (given_mean is None) != (given_var is None):
        refuse(NAME, "given_mean and given_var must be given together")
    _check_constant(given_mean, given_var)
    if given_mean is not None and given_var is not None:
        if groups or statistics_only:
            refuse(NAME, "given_mean and given_var are of channels: groups must be 0, and a result wanted")
    elif not statistics_only and batch * (channels // groups if groups else 1) * height * width == 1:
        refuse(NAME, f"Expected more than 1 value per channel when training, got input size {tuple(shape)}")


def check_backward(
    grad, x, weight, bias, residual, mean, var, means, groups, constant, eps, activation, negative_slope, need
):
    check(x, weight, bias, residual, None, None, groups, eps, activation, negative_slope, False, True)
    require_like(NAME, "grad", grad, x.shape, x.dtype)
    for name, tensor in (("mean", mean), ("var", var)):
        dtype = x.dtype if constant and tensor.dtype == x.dtype else torch.float32
        require_like(NAME, name, tensor, statistics_shape(x, groups), dtype)
    if means is not None:
        require_like(NAME, "means", means, (2, x.shape[1]), torch.float32)
    if groups and (constant or means is not None):
        refuse(NAME, "constant statistics and means of gradients are of channels: groups must be 0")
    require_need(NAME, need, [x, weight, bias, residual])


def statistics_shape(x: Tensor, groups: int) -> tuple[int, ...]:
    return (x.shape[0], groups) if groups else (x.shape[1],)


def outputs(
    x: Tensor, order: torch.memory_format, given: bool, groups: int, statistics_only: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty y, in this order of memory, mean and var; what is not wanted has no elements."""
    y = x.new_empty(0) if statistics_only else torch.empty_like(x, memory_format=order)
    mean = x.new_empty(0 if given else statistics_shape(x, groups), dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


def gradients(like: list[Tensor | None], order: torch.memory_format, need: list[bool]) -> list[Tensor]:
    """Empty gradients of x, weight, bias and residual; those not needed have no elements."""
    return empty_gradients(like, need, [order, torch.contiguous_format, torch.contiguous_format, order])


def sizes(x: Tensor, groups: int) -> dict[str, int]:
    batch, channels, height, width = x.shape
    return {"batch": batch, "channels": channels, "pixels": height * width, "groups": groups}


def _plan(x, groups, constant, activation, residual_after):
    """What native calls take beside tensors, eps and the slope: of x in channels_last order, and contiguous."""
    flags = {"constant": constant, "residual_after": residual_after, "activation": ACTIVATION_NUMBERS[activation]}
    plan = {"dtype": DTYPES[x.dtype], **sizes(x, groups), **flags}
    return tuple(plan | {"planar": planar} for planar in (False, True))


def _plan_forward(
    x, weight, bias, residual, given_mean, given_var, groups, eps, activation, negative_slope, residual_after,
    statistics_only,
):  # fmt: skip
    return _plan(x, groups, given_mean is not None, activation, residual_after)


def _plan_backward(
    grad, x, weight, bias, residual, mean, var, means, groups, constant, eps, activation, negative_slope, need
):
    return _plan(x, groups, constant, activation, False)


def dense(order: torch.memory_format, *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in this order of memory."""
    return [None if tensor is None else in_order(tensor, order) for tensor in tensors]


def _forward_cpu(
    x, weight, bias, residual, given_mean, given_var, groups, eps, activation, negative_slope, residual_after,
    statistics_only, plan,
):  # fmt: skip
    constant, order = given_mean is not None, dense_order(x)
    y, mean, var = outputs(x, order, constant, groups, statistics_only)
    if not x.numel():
        return y, mean.fill_(nan), var.fill_(nan)
    options = {"eps": eps, "negative_slope": negative_slope, **plan[order is torch.contiguous_format]}
    x, residual = dense(order, x, residual)
    statistics = {"mean": float32(given_mean) if constant else mean, "var": float32(given_var) if constant else var}
    read = {"x": x, "weight": float32(weight), "bias": float32(bias), "residual": residual}
    _native_forward({**options, **read, **statistics, "y": None if statistics_only else y})
    return y, mean, var


def _forward_fake(
    x, weight, bias, residual, given_mean, given_var, groups, eps, activation, negative_slope, residual_after,
    statistics_only,
):  # fmt: skip
    return outputs(x, dense_order(x), given_mean is not None, groups, statistics_only)


def _backward_cpu(
    grad, x, weight, bias, residual, mean, var, means, groups, constant, eps, activation, negative_slope, need, plan
):
    order = dense_order(x)
    results = gradients([x, weight, bias, residual], order, need)
    if not x.numel():
        return tuple(result.zero_() for result in results)
    dx, dweight, dbias, dresidual = results
    dw, db = float32_sums([dweight, dbias], need[1:3])
    options = {"eps": eps, "negative_slope": negative_slope, **plan[order is torch.contiguous_format]}
    x, grad, residual = dense(order, x, grad, residual)
    read = {"x": x, "grad": grad, "residual": residual, "weight": float32(weight), "bias": float32(bias)}
    read |= {"mean": float32(mean), "var": float32(var), "means": float32(means)}
    written = {"dx": dx if need[0] else None, "dresidual": dresidual if need[3] else None, "dweight": dw, "dbias": db}
    _native_backward({**options, **read, **written})
    round_sums([dw, db], [dweight, dbias])
    return tuple(results)


def _backward_fake(grad, x, weight, bias, residual, *options):
    return tuple(gradients([x, weight, bias, residual], dense_order(x), options[-1]))


backward = define(
    f"{NAME}_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor mean, Tensor var, "
    "Tensor? means, SymInt groups, bool constant, float eps, str activation, float negative_slope, bool[] need) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    check=check_backward,
    plan=_plan_backward,
    cpu=_backward_cpu,
    cuda=gpu_function(__name__, "backward"),
    fake=_backward_fake,
)


def _gradients(
    grad_y, x, weight, bias, residual, given_mean, given_var, mean, var, groups, eps, activation, negative_slope,
    residual_after, need,
):  # fmt: skip
    """The gradients of x, weight, bias and residual; the last is grad_y itself where no activation follows the sum."""
    constant = given_mean is not None
    mean, var = (given_mean, given_var) if constant else (mean, var)
    passed = residual_after or activation == "none"
    wanted = [*need[:3], need[3] and not passed]
    options = groups, constant, eps, activation, negative_slope, wanted
    results = [None] * 4
    if any(wanted):
        results = [*backward(grad_y, x, weight, bias, None if passed else residual, mean, var, None, *options)]
    return [*results[:3], grad_y if passed else results[3]]


def _recorded_gradients(
    grad_y, x, weight, bias, residual, given_mean, mean, var, groups, eps, activation, negative_slope, residual_after,
    need,
):  # fmt: skip
    """The gradient of x alone, as a function that is differentiated again; None where the reference has to give it."""
    alone = residual is None and given_mean is None and need[0] and not any(need[1:])
    single = all(tensor is None or tensor.dtype is torch.float32 for tensor in (x, weight, bias))
    if not (alone and single and x.numel() and activation in second_derivative.ACTIVATIONS):
        return None
    options = second_derivative.Options(groups, eps, activation, negative_slope)
    return second_derivative.GradientOfX.apply(
        grad_y, x, weight, bias, mean, var, options, _gradient_of_x, _without_residual
    ), *[None] * 3


def _gradient_of_x(grad, x, weight, bias, mean, var, options):
    need = [True, False, False, False]
    return backward(grad, x, weight, bias, None, mean, var, None, options.groups, False, *options[1:], need)[0]


def _without_residual(x, weight, bias, options):
    return _reference(x, weight, bias, None, None, None, *options, False, False)[0]


def _reference(
    x, weight, bias, residual, given_mean, given_var, groups, eps, activation, negative_slope, residual_after,
    statistics_only,
):  # fmt: skip
    constant = given_mean is not None
    mean, var = (x.new_empty(0, dtype=torch.float32),) * 2 if constant else reference.statistics(x, groups)
    if statistics_only:
        return x.new_empty(0), mean, var
    kind = "batch" if not groups else "group"
    if groups == x.shape[1] and x.shape[2] * x.shape[3] > 1:  # PyTorch's instance_norm takes no single pixels
        kind = "instance"
    if kind == "group":  # forward-mode differentiation of PyTorch's group_norm fails where x is channels_last
        x = x.contiguous()
    y = reference.norm_act(
        x, weight, bias, kind=kind, groups=groups, running_mean=given_mean, running_var=given_var,
        training=not constant, eps=eps, activation=activation, negative_slope=negative_slope, residual=residual,
        residual_place="after" if residual_after else "before",
    )  # fmt: skip
    return y, mean, var


forward = define(
    f"{NAME}(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? given_mean, Tensor? given_var, "
    "SymInt groups, float eps, str activation, float negative_slope, bool residual_after, bool statistics_only) "
    "-> (Tensor, Tensor, Tensor)",
    check=check,
    plan=_plan_forward,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=_reference,
    gradients=Gradients(
        _gradients,
        ["x", "weight", "bias", "residual"],
        ["y", "mean", "var"],
        along={"bias": "weight"},
        recorded=_recorded_gradients,
    ),
)
