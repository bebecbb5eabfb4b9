"""How autograd differentiates an operator: by a fused backward at first order, past that mostly by the reference."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._dispatch import (
    Argument,
    Autograd,
    drop_unreached,
    gradients_transformed,
    picked,
    under_torch_func,
    without_autocast,
)


@dataclass(frozen=True)
class Gradients:
    """What autograd has to know of an operator beyond its schema.

    backward:   gives the gradients of `inputs` in their order, one tensor where there is one. By the names of its
                parameters it takes any of: the operator's arguments; its results; the gradients that reached these,
                "grad" of a single result, else "grad_<result>"; "need", which of its gradients are wanted. What it
                returns for one that is not wanted is dropped
    inputs:     names of the operator's first arguments: those that have a gradient
    results:    names of what the operator returns. One of several is differentiable if backward takes its gradient
    renamed:    parameter of backward -> what it takes, where the names differ
    only_if:    input -> the option without which it has no gradient
    along:      input -> one before it, with whose gradient its own comes almost for nothing
    kept_for:   an option and its values for which backward reads the result: it is kept for these only, and backward
                takes None for it else; None: always
    fused_for:  an option and its values that backward knows; with others the gradients are the reference's
    recorded:   the same gradients under create_graph=True, made of what can be differentiated again. Its parameters are
                those of backward; it returns None where the reference has to. None: the reference always has to
    """

    backward: Callable
    inputs: Sequence[str]
    results: Sequence[str] = ("y",)
    renamed: Mapping[str, str] = field(default_factory=dict)
    only_if: Mapping[str, str] = field(default_factory=dict)
    along: Mapping[str, str] = field(default_factory=dict)
    kept_for: tuple[str, Collection[object]] | None = None
    fused_for: tuple[str, Collection[object]] | None = None
    recorded: Callable | None = None


def autograd_of(gradients: Gradients, arguments: list[Argument], reference: Callable) -> Autograd:
    """The functions that torch registers. reference: the operator in plain PyTorch, on the schema's arguments.

    Within transforms, and under create_graph=True where `recorded` has none, the gradients are the reference's, for any
    order. Everything that depends on the operator alone is found here, once: both functions run at every call.
    """
    names, reference = [argument.name for argument in arguments], without_autocast(reference)
    tensors = [i for i, argument in enumerate(arguments) if argument.is_tensor]
    options = [i for i, argument in enumerate(arguments) if not argument.is_tensor]
    count, several, fused = len(gradients.inputs), len(gradients.results) > 1, gradients.backward
    if names[:count] != list(gradients.inputs):
        raise ValueError(f"{gradients.inputs} are not the first arguments {names}")

    def taken_by(function: Callable) -> list[str]:
        return [gradients.renamed.get(name, name) for name in inspect.signature(function).parameters]

    wanted = taken_by(gradients.backward)
    upstream = [f"grad_{name}" for name in gradients.results] if several else ["grad"]
    kept = [i for i, name in enumerate(gradients.results) if name in wanted]
    # the values that backward has at hand, in this order
    at_hand = [names[i] for i in tensors] + [gradients.results[i] for i in kept]
    at_hand += [*(names[i] for i in options), *upstream, "need"]

    of_tensors, of_options, of_kept = picked(tensors), picked(options), picked(kept)
    of_constant = picked([i for i, name in enumerate(upstream) if name not in wanted])
    for_backward = picked([at_hand.index(name) for name in wanted])
    for_reference = picked([at_hand.index(name) for name in names])
    recorded = gradients.recorded and without_autocast(gradients.recorded)
    for_recorded = picked([at_hand.index(name) for name in taken_by(gradients.recorded)] if gradients.recorded else [])
    keeps, nothing = _is_one_of(gradients.kept_for, names), (None,) * len(kept)
    fuses = _is_one_of(gradients.fused_for, [names[i] for i in options])
    only_if = [(names.index(i), [names[j] for j in options].index(o)) for i, o in gradients.only_if.items()]
    along = [names.index(gradients.along[name]) if name in gradients.along else None for name in names[:count]]
    rest = (None,) * (len(names) - count)
    is_grad_enabled = torch.is_grad_enabled

    def setup_context(ctx, inputs, output):
        saved = of_tensors(inputs)
        if kept:
            # a result that backward does not read is not kept: it may be written to
            reads = keeps is None or keeps(inputs)
            saved += of_kept(output if several else (output,)) if reads else nothing
        ctx.save_for_backward(*saved)
        if options:
            ctx.options = of_options(inputs)
        if several:
            ctx.mark_non_differentiable(*of_constant(output))
            ctx.set_materialize_grads(False)

    def backward(ctx, *grads):
        need, given = list(ctx.needs_input_grad[:count]), ctx.options if options else ()
        for position, option in only_if:
            need[position] = need[position] and given[option]
        if not any(need) or (several and _are_none(grads)):
            return (None,) * len(names)
        saved = ctx.saved_tensors
        drop_unreached(ctx, saved[:count], need, along)
        values = (*saved, *given, *grads, need)
        if is_grad_enabled() or gradients_transformed() or not (fuses is None or fuses(given)):
            if recorded and is_grad_enabled() and not gradients_transformed():
                computed = recorded(*for_recorded(values))
                if computed is not None:
                    return *computed, *rest
            return *of_reference(reference, for_reference(values), need, grads), *rest
        computed = fused(*for_backward(values))
        if count == 1:
            return computed, *rest
        if not all(need):
            computed = [gradient if needed else None for gradient, needed in zip(computed, need, strict=True)]
        return *computed, *rest

    return Autograd(setup_context, backward)


def _is_one_of(rule: tuple[str, Collection[object]] | None, names: list[str]) -> Callable[[Sequence], bool] | None:
    """Whether the option that a rule names, among values in the order of `names`, is one of the rule's."""
    if rule is None:
        return None
    position, accepted = names.index(rule[0]), frozenset(rule[1])
    return lambda values: values[position] in accepted


def _are_none(values: Sequence[object]) -> bool:
    for value in values:  # noqa: SIM110, a generator takes longer than the few steps
        if value is not None:
            return False
    return True


def of_reference(
    reference: Callable, arguments: tuple, need: list[bool], upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of the reference's first len(need) arguments, themselves differentiable where grad mode is on."""
    wanted = [i for i, needed in enumerate(need) if needed]

    def differentiated(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(wanted, values, strict=True))
        results = reference(*(given.get(i, argument) for i, argument in enumerate(arguments)))
        results = results if isinstance(results, tuple) else (results,)
        return tuple(r for r, grad in zip(results, upstream, strict=True) if grad is not None)

    grads = tuple(grad for grad in upstream if grad is not None)
    gradients = iter(pulled_back(differentiated, [arguments[i] for i in wanted], grads))
    return [next(gradients) if needed else None for needed in need]


def pulled_back(function: Callable, values: Sequence[Tensor], grads: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """The gradients of a function's arguments at these values from those of its results."""
    if under_torch_func():
        return torch.func.vjp(function, *values)[1](grads)
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # fresh views: only this call lies between them and the results, not what made the values
        views = [value.view_as(value) for value in values]
        return torch.autograd.grad(function(*views), views, grads, create_graph=differentiable)


def empty_gradients(
    tensors: Sequence[Tensor | None], need: Sequence[bool], orders: Sequence[torch.memory_format]
) -> list[Tensor]:
    """A gradient to be written for each tensor, dense in its order; one not needed has no elements.

    A schema has no optional results: a gradient that nobody asks for is an empty tensor. The first tensor is not None.
    """
    like = tensors[0]
    return [
        torch.empty_like(tensor, memory_format=order) if needed and tensor is not None else like.new_empty(0)
        for tensor, needed, order in zip(tensors, need, orders, strict=True)
    ]


def float32_sums(gradients: Sequence[Tensor], need: Sequence[bool]) -> list[Tensor | None]:
    """What a kernel sums each gradient into: itself where it is float32, else a float32 tensor; None: not needed."""
    return [
        None if not needed else g if g.dtype == torch.float32 else torch.empty_like(g, dtype=torch.float32)
        for g, needed in zip(gradients, need, strict=True)
    ]


def round_sums(sums: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> None:
    """Writes what was summed in float32 into the gradients of another dtype."""
    for total, gradient in zip(sums, gradients, strict=True):
        if total is not None and total is not gradient:
            gradient.copy_(total)
