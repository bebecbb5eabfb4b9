"""The few samples of an operator that a GPU is tried with first, their dtypes, and those of other arithmetics."""

import torch

from engine.kernels import _spec

COUNT = 3  # of each operator, beside those with further options
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def smallest(spec: _spec.Spec, count: int = COUNT) -> list[_spec.Sample]:
    """The cheapest samples with elements, no two with the same options, and the cheapest with each further option."""
    cheapest: dict[str, _spec.Sample] = {}
    ordered = sorted((s for s in spec.samples if all(0 not in shape for shape in s.shapes.values())), key=spec.flops)
    for sample in ordered:
        cheapest.setdefault(str(sorted(sample.options.items())), sample)
    few = list(cheapest.values())[:count]
    for sample in ordered:
        if not aspects(sample) <= set().union(*map(aspects, few)):
            few.append(sample)
    return few


def aspects(sample: _spec.Sample) -> set[tuple[str, str]]:
    """The options that a sample has; those that are words, activations aside, with their values."""
    named = {n: v for n, v in sample.options.items() if isinstance(v, str) and n != "activation"}
    return {(name, named.get(name, "")) for name in sample.options}


def of_each_kind(spec: _spec.Spec) -> list[_spec.Sample]:
    """A sample of each combination of options, leaving activations and what concerns gradients alone aside."""
    kinds: dict[str, _spec.Sample] = {}
    for sample in spec.samples:
        options = {n: v for n, v in sample.options.items() if n not in ("activation", "input_grad_from")}
        kinds.setdefault(str(sorted(options.items())), sample)
    return list(kinds.values())
