"""The suite `fuse`: engine.fuse on architectures that people use, against eager and torch.compile.

Forward alone, in evaluation mode, and forward and backward, in training mode, are timed. Dropout is off in both: it
would draw different numbers for each competitor. First the fused model is checked: its outputs in both modes and its
gradients of input and parameters may differ from eager in float64 by at most twice eager's own error and a floor. In a
model with kinks (SMOOTH) rounding decides signs and maxima, so gradients are allowed more, and the model is checked a
second time with smooth layers in their place. A model in which nothing is fused is measured like the others, and its
row has the reasons. Fused and eager run in the better of both layouts, torch.compile in eager's. On a CPU that
multiplies numbers in bfloat16 eager and compile are measured under autocast too. Then each chain is measured alone,
beside what engine.fuse predicts for it: fuse_chains.py.
"""

import contextlib
import copy
import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.suites import fuse_chains
from benchmarks.suites.fuse_models import ARCHITECTURES, Architecture
from benchmarks.timing.measure import Limits, Timing, interleaved
from benchmarks.timing.rows import BF16, one_line, row, tick, within
from benchmarks.timing.table import Table, ms
from engine import fuse
from engine.fusion import FuseReport

FLOOR = 2e-5  # norm-wise error that Winograd tiles may have in float32, for each fused convolution of the model
# layers whose derivative jumps, and what makes a smooth one in their place
SMOOTH: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.PReLU), lambda layer: nn.ELU()),
    nn.MaxPool2d: lambda layer: nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding),
}
# norm-wise error of gradients that such layers may add at least: one of N values whose sign rounding decides changes a
# gradient by 1 / sqrt(N). With outputs off by e it is about a share e of the values: sqrt(e) for each layer
KINK = 5e-3
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
PASSES = FORWARD, BOTH = "forward", "forward + backward"
# of torch.compile, for each piece of a model: passes and precisions are compiled apart
RECOMPILE_LIMIT = 64
Models = dict[str, tuple[nn.Module, Tensor]]  # model and input by competitor


def cases(only: str, quick: bool) -> list[Architecture]:
    """The architectures whose name contains `only`; quick: the first two that need no library beside torch."""
    chosen = [a for a in ARCHITECTURES if not (quick and a.needs)]
    return [a for a in chosen[: 2 if quick else None] if only in a.name]


def missing(architecture: Architecture) -> str:
    """Why an architecture cannot be built here; "" if it can."""
    absent = architecture.needs and importlib.util.find_spec(architecture.needs) is None
    return f"{architecture.needs} is not installed" if absent else ""


def build(architecture: Architecture) -> tuple[nn.Module, Tensor]:
    """The model with random weights, in evaluation mode, and its input."""
    torch.manual_seed(0)
    return architecture.build().eval(), torch.randn(architecture.shape)


def set_mode(model: nn.Module, which: str) -> None:
    """Puts a model in the mode of one of PASSES: evaluation (stored statistics) or training, without dropout."""
    model.train(which == BOTH)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()


def results(architecture: Architecture, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """By name: the output in evaluation mode, then in training mode output and gradients of input and parameters."""
    set_mode(model, FORWARD)
    with torch.no_grad():
        evaluated = architecture.run(model, x)
    set_mode(model, BOTH)
    x = x.detach().clone().requires_grad_()
    y = architecture.run(model, x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(y, [x, *named.values()], upstream, allow_unused=True, materialize_grads=True)
    outputs = {"output": evaluated, "output in training": y.detach()}
    return outputs | dict(zip(["input", *named], gradients, strict=True))


def kinks(model: nn.Module) -> int:
    """How many layers of a model have a derivative that jumps."""
    return sum(type(module) in SMOOTH for module in model.modules())


def smoothed(model: nn.Module) -> nn.Module:
    """A copy of the model with smooth layers in place of kinked ones."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in SMOOTH:
                setattr(module, name, SMOOTH[type(child)](child))
    return model


def disagreements(architecture: Architecture, plain: nn.Module, fused: nn.Module, x: Tensor, chains: int) -> list[str]:
    """The results of the fused model that break this file's rule, also with smooth layers in place of kinked ones."""
    failed = _differences(architecture, plain, fused, x, chains)
    if kinks(plain):
        smooth = smoothed(plain)
        fused = copy.deepcopy(smooth).eval()
        chains = len(fuse(fused, example_inputs=(x, *architecture.further)).replaced)
        failed += [f"with smooth layers: {text}" for text in _differences(architecture, smooth, fused, x, chains)]
    return failed


def _differences(architecture: Architecture, plain: nn.Module, fused: nn.Module, x: Tensor, chains: int) -> list[str]:
    """The results that break the rule, one by one.

    Parameters' gradients are compared as one vector: the gradient of a bias before a normalisation is only rounding.
    """
    exact = joined(results(architecture, copy.deepcopy(plain).double(), x.double()))
    eager, ours = (joined(results(architecture, copy.deepcopy(model), x)) for model in (plain, fused))
    error, of_eager = (
        {name: float((side[name] - truth).norm() / truth.norm()) for name, truth in exact.items()}
        for side in (ours, eager)
    )
    of_kinks = max(KINK, math.sqrt(kinks(plain) * error["output in training"])) if kinks(plain) else 0.0
    failed = []
    for name in exact:
        allowed = 2 * of_eager[name] + FLOOR * chains + (0.0 if "output" in name else of_kinks)
        if not error[name] <= allowed:
            failed.append(f"{name}: error {error[name]:.1e}, allowed {allowed:.1e}")
    return failed


def joined(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs, gradient of the input, and the parameters' gradients as one vector, in float64."""
    alone = ("output", "output in training", "input")
    parameters = [value.double().flatten() for name, value in results.items() if name not in alone]
    return {name: results[name].double() for name in alone} | {"parameters": torch.cat(parameters)}


@dataclass(frozen=True)
class Measured:
    """What was measured of one architecture.

    report:   what was fused
    timings:  of each of PASSES; none if a result is wrong
    failed:   what is wrong
    left_out: competitors that could not run, and why
    chains:   of each chain alone, the predicted and the measured speed: as of fuse_chains.rows
    """

    report: FuseReport
    timings: dict[str, dict[str, Timing]]
    failed: list[str]
    left_out: dict[str, str]
    chains: list[dict]


def measure(
    architecture: Architecture, rounds: int, ticks: Callable[[int], None], compiled: bool, bf16: bool
) -> Measured:
    """Measures fused and its competitors. compiled: torch.compile too; bf16: their forms in bfloat16 too."""
    plain, x = build(architecture)
    fused = copy.deepcopy(plain)
    report = fuse(fused, example_inputs=(x, *architecture.further))
    models: Models = {}
    for name, layout in LAYOUTS.items():
        given = x.contiguous(memory_format=layout) if x.dim() == 4 else x
        for kind, model in (("fused", fused), ("eager", plain)):
            models[f"{kind} {name}"] = copy.deepcopy(model).to(memory_format=layout), given
        if bf16:
            models[f"{BF16}eager {name}"] = models[f"eager {name}"]
    best = {kind: _better(architecture, models, kind) for kind in ("fused", "eager", *[BF16 + "eager"] * bf16)}
    if failed := disagreements(architecture, plain, *models[best["fused"]], len(report.replaced)):
        return Measured(report, {}, failed, {}, [])
    running = {"fused": models[best["fused"]], **{name: models[name] for name in models if name.startswith("eager")}}
    running |= {best[kind]: models[best[kind]] for kind in best if kind.startswith(BF16)}
    left_out = _compile(architecture, running, [best[kind] for kind in best if kind != "fused"]) if compiled else {}
    timings = {}
    for which in PASSES:
        calls = {name: _call(architecture, which, name, *pair) for name, pair in running.items()}
        timings[which] = interleaved(calls, rounds=rounds, after_round=ticks)
    chains = fuse_chains.rows(plain.eval(), report, functools.partial(architecture.run, x=x))
    return Measured(report, timings, [], left_out, chains)


def _compile(architecture: Architecture, running: Models, names: list[str]) -> dict[str, str]:
    """Adds torch.compile of these competitors, in one layout each, because compiling takes most of the suite's time.

    returns: those that torch.compile fails for, and why
    """
    torch._dynamo.reset()
    left_out = {}
    for name in names:
        model, x = running[name]
        compiled_name, compiled = name.replace("eager", "compile"), torch.compile(model, dynamic=False)
        try:
            with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
                for which in PASSES:
                    _call(architecture, which, name, compiled, x)()
        except Exception as error:
            left_out[compiled_name] = one_line(error)
        else:
            running[compiled_name] = compiled, x
    return left_out


def _better(architecture: Architecture, models: Models, kind: str) -> str:
    """The name of the faster of both layouts; copies run, because a training pass changes stored statistics."""
    tried = {name: pair for name, pair in models.items() if name.startswith(kind)}
    calls = {name: _call(architecture, BOTH, name, copy.deepcopy(model), x) for name, (model, x) in tried.items()}
    timings = interleaved(calls, rounds=4)
    return min(timings, key=lambda name: timings[name].median)


def _call(architecture: Architecture, which: str, name: str, model: nn.Module, x: Tensor) -> Callable[[], object]:
    """One of PASSES as a call of the competitor `name`. The model is put in the mode of the pass now, for all calls."""
    set_mode(model, which)
    bf16 = name.startswith(BF16)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            return architecture.run(model, x)

    if which == FORWARD:
        return torch.no_grad()(functools.partial(run, x))
    wanted = [p for p in model.parameters() if p.requires_grad]

    def both() -> object:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(run(leaf).sum(), [leaf, *wanted], allow_unused=True)

    return both


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The suite `fuse`."""
    columns = [("", 33), ("chains", 7), ("left", 5), ("products", 9)]
    for which in ("fwd", "both"):
        columns += [(f"{which} ms", 8), ("eager x", 8), ("compile x", 9), *[("bf16 x", 6)] * arguments.bf16_beside]
    rows, table = [], Table("engine.fuse on whole models: forward, forward and backward, fp32", columns)
    chosen = cases(arguments.filter, arguments.quick)
    if chosen:
        tqdm.write(table.head())
    for architecture in within(arguments, chosen, lambda case: case.name, rows, "fuse"):
        if why := missing(architecture):
            rows.append({"suite": "fuse", "name": architecture.name, "not_run": why})
            tqdm.write(table.add([architecture.name, why]))
            continue
        with tqdm(total=2 * arguments.rounds, desc=architecture.name, leave=False, disable=None) as bar:
            compiled = arguments.can_compile and not arguments.quick
            measured = measure(architecture, arguments.rounds, tick(bar), compiled, arguments.bf16_beside)
        of_model = _rows(architecture, measured)
        rows += of_model
        tqdm.write(table.add(_cells(architecture, measured.report, of_model, arguments.bf16_beside)))
        for text in _notes(measured):
            tqdm.write(table.note(f"{architecture.name}: {text}"))
    return rows, [table]


def _rows(architecture: Architecture, measured: Measured) -> list[dict]:
    report = measured.report
    counts = {"replaced": len(report.replaced), "skipped": len(report.skipped), "products": report.products}
    counts |= {"reasons": _reasons(report), "chains": measured.chains}
    return [
        row(
            "fuse", f"{architecture.name}, {which}", measured.timings.get(which, {}), measured.failed, measured.left_out
        )
        | counts
        for which in PASSES
    ]


def _reasons(report: FuseReport) -> list[str]:
    """Why chains were left, or that there are none."""
    found = report.replaced or report.skipped
    return sorted({entry.reason for entry in report.skipped}) if found else ["it has no chain that engine.fuse knows"]


def _notes(measured: Measured) -> list[str]:
    """Why nothing was fused, who is left out, and each chain alone."""
    report = measured.report
    notes = [] if report.replaced else [f"nothing is fused: {'; '.join(_reasons(report))}"]
    notes += [f"{name} left out: {why}" for name, why in measured.left_out.items()]
    for chain in measured.chains:
        speeds = f"predicted {chain['predicted']:.2f}x, measured {chain['measured']:.2f}x"
        notes.append(f"{chain['path']}, {chain['pattern']}, {tuple(chain['shape'])}: {speeds}")
    return notes


def _cells(architecture: Architecture, report: FuseReport, rows: list[dict], bf16: bool) -> list[str]:
    if "failed" in rows[0]:
        return [architecture.name, f"DIFFERENT: {rows[0]['failed'][0]}"]
    written, left = report.products or (0, 0)
    products = f"{written / left:.1f}x less" if left else "-"
    cells = [architecture.name, str(len(report.replaced)), str(len(report.skipped)), products]
    for entry in rows:
        speedup = entry["speedup"]
        against = [f"{speedup[name]:.2f}" if name in speedup else "-" for name in ("eager", "compile")]
        against += [f"{min(entry['bf16'].values()):.2f}" if entry["bf16"] else "-"] * bf16
        cells += [ms(entry["timings"]["fused"]["median"]), *against]
    return cells
