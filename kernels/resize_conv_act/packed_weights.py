"""Weights as the kernels read them, kept between the calls of inference.

In training every weight changes each step and is packed once in it. Where a weight needs no gradient, what was packed
is kept with the weight and serves as long as it is bit for bit the weight it was made of: it can never be stale.
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .. import _native

KEPT = WeakTensorKeyDictionary()  # weight -> call -> what was packed; gone with the weight


def keep(weight: Tensor) -> None:
    """From now on what is packed of this weight is kept."""
    if weight not in KEPT and weight.device.type == "cpu":
        KEPT[weight] = {}


def packed(weight: Tensor, float32: Tensor, integers: list[int]) -> Tensor | None:
    """What is kept of a weight for a forward call with such integers, made now where need be; None: nothing is kept.

    float32: the weight's values, (Cout, Cin, 3, 3) contiguous.
    """
    calls = KEPT.get(weight)
    if calls is None:
        return None
    _, resize, _, form, _, *channels, _, _, _ = integers
    key = (resize, form, *channels, _native.load().isa())
    found = calls.get(key)
    answer = torch.empty(1, dtype=torch.int64)

    def ask() -> int:
        pointers = [_native.address(t) for t in (float32, found, answer)]
        _native.call("resize_conv_act_kept", pointers, integers, [0.0])
        return int(answer)

    if found is None or not ask():
        # a fresh one: another thread may be reading the old
        found = None
        found = torch.empty(ask(), dtype=torch.float32)
        _native.call("resize_conv_act_keep", [_native.address(t) for t in (float32, found)], integers, [0.0])
        calls[key] = found
    return found
