"""The public operators: every folder of kernels/ by its name, and `explain`, which tells what runs them here."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch

from engine.errors import InputError, gpu_failure
from engine.kernels import _contract
from engine.kernels._availability import Implementation

if TYPE_CHECKING:
    # for type checkers, which do not see what `discover` finds
    from engine.kernels.began_balance import began_balance as began_balance
    from engine.kernels.gram import gram as gram
    from engine.kernels.image_batch import image_batch as image_batch
    from engine.kernels.l1_autoencoder_loss import l1_autoencoder_loss as l1_autoencoder_loss
    from engine.kernels.landmark_conv import landmark_conv as landmark_conv
    from engine.kernels.landmark_heatmap import landmark_heatmap as landmark_heatmap
    from engine.kernels.linear import linear as linear
    from engine.kernels.norm_act import norm_act as norm_act
    from engine.kernels.resize_conv_act import resize_conv_act as resize_conv_act
    from engine.kernels.style_loss import style_loss as style_loss

OPERATORS = _contract.discover()
globals().update({name: operator.function for name, operator in OPERATORS.items()})
__all__ = ["OPERATORS", "Explanation", "decompositions", "explain", "pick", "picked", "require", *OPERATORS]
picked: list[str] = []
"""The operators that networks, losses and loaders run either way: those that `pick` was asked for."""


def pick(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Both ways to compute an operator, to be indexed with `fused`: (its plain PyTorch reference, the operator).

    conv = ops.pick("resize_conv_act")
    y = conv[fused](x, weight, bias)    # the same arguments and results either way

    The name is entered in `picked`: `--fused` requires those operators. Raises KeyError for an unknown name.
    """
    operator = OPERATORS[name]
    if name not in picked:
        picked.append(name)
    return operator.reference, operator.function


class Explanation(list[Implementation]):
    """Rows (operator, device, kind, why); prints as a table."""

    def __str__(self) -> str:
        rows = [("operator", "device", "implementation", "why"), *((r.operator, r.device, r.kind, r.why) for r in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)


def explain(operator: str | None = None) -> Explanation:
    """Which implementation runs each operator (or one, by name) on each device of this machine, and why.

    Returns a list of rows with the fields operator, device, kind ("native C++", "library GEMM", "none") and why.
    Raises KeyError for an unknown name.
    """
    chosen = OPERATORS.values() if operator is None else [OPERATORS[operator]]
    return Explanation(row for op in chosen for row in op.implementations())


def require(device: str, names: Collection[str] | None = None) -> None:
    """Raises InputError, with what to do, where operators cannot run on a device ("cpu" or "cuda") of this machine.

    names: of the operators; None: all

    On a GPU one small kernel is compiled and run, so that a driver that is too old or a missing compiler shows before
    any work. It takes a second or two the first time; later Triton has it in its cache.
    """
    for row in explain():
        if row.device == device and row.kind == "none" and (names is None or row.operator in names):
            raise InputError(f"{row.operator} cannot run on {device}: {row.why}")
    if device == "cuda":
        try:
            OPERATORS["gram"].function(torch.ones(1, 2, 2, 2, device=device))
            torch.cuda.synchronize()
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "")
            other = f"the GPU kernels cannot run here: a small one fails with {type(error).__name__}: {first}"
            raise InputError(gpu_failure(error) or other) from error


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Every operator as its plain PyTorch reference, for what knows no operator of Kiln: ONNX, other runtimes.

    For `ExportedProgram.run_decompositions`: the program then holds ATen operators only, with the same results. The
    table is of forward passes, which are what torch.export records.
    """
    return {getattr(torch.ops.kiln, name).default: operator.decomposition for name, operator in OPERATORS.items()}
