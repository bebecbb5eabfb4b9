"""Weights as the kernels read them, kept between the calls of inference.

In training every weight changes in each step and is packed once in it. Where a weight needs no gradient, its packed
form is kept, and with it a copy of the weight. Each call compares that copy bit for bit: no kept form is ever stale.
"""

from operator import itemgetter
from threading import local
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .._of_tensors import OfTensors
from .geometry import UNPACKED

_kept, _keep = _native.native_function("resize_conv_act_kept"), _native.native_function("resize_conv_act_keep")
# what decides, beside the weight, how it is packed
PACKING = ("up", "transposed", "weight_last", "form", "kernel", "stride", "padding", "channels", "further", "cout")
_packing = itemgetter(*PACKING)
_of_thread = local()  # native functions run without Python's lock: each thread has its own memory for their answers
KEPT: OfTensors[dict[tuple, Tensor]] = OfTensors()  # weight -> form of a call -> the packed weight


def keep(weight: Tensor) -> None:
    """Keeps what is packed of this weight from now on."""
    if weight not in KEPT and weight.device.type == "cpu":
        KEPT[weight] = {}


def packed(weight: Tensor, float32: Tensor, sizes: dict[str, Any]) -> Tensor | None:
    """What is kept of a weight for a forward call of such sizes, made now where need be; None: nothing is kept.

    float32: the weight's values, in the order that the sizes tell
    """
    calls = KEPT.get(weight)
    if calls is None or sizes["form"] == UNPACKED:
        return None
    key = _packing(sizes), _native.load().isa()
    kept = calls.get(key)
    if kept is None or not _ask(float32, kept, sizes):
        floats = _ask(float32, None, sizes)
        if not floats:
            return None
        # in new memory: another thread may be reading the old
        kept = torch.empty(floats, dtype=torch.float32, device="cpu")
        _keep({**sizes, "weight": float32, "kept": kept, "negative_slope": 0.0})
        calls[key] = kept
    return kept


def _ask(weight: Tensor, kept: Tensor | None, sizes: dict[str, Any]) -> int:
    """Whether what is kept was made of this weight; without it, the floats it takes, 0 where it would not be read."""
    answer = getattr(_of_thread, "answer", None)
    if answer is None:
        answer = _of_thread.answer = torch.empty(1, dtype=torch.int64, device="cpu")
    _kept({**sizes, "weight": weight, "kept": kept, "answer": answer, "negative_slope": 0.0})
    return int(answer)
