"""The suite `fuse`: engine.fuse on architectures that people use, against eager and torch.compile.

Forward alone, and forward and backward, are timed. First the fused model is checked: its output and its gradients of
input and parameters may differ from eager in float64 by at most twice eager's own error and a floor. In a model with
ReLU or LeakyReLU rounding decides the sign of values near zero, so gradients are allowed more, and the model is checked
a second time with ELU in their place. A model in which nothing is fused is not measured. Fused and eager run in the
better of both layouts, torch.compile in eager's.
"""

import copy
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.suites.fuse_models import ARCHITECTURES, Architecture
from benchmarks.timing.measure import Limits, Timing, interleaved
from benchmarks.timing.rows import row, tick, within
from benchmarks.timing.table import Table, ms
from engine import fuse
from engine.fusion import FuseReport

FLOOR = 2e-5  # norm-wise error that Winograd tiles may have in float32, for each fused convolution of the model
KINKED = (nn.ReLU, nn.LeakyReLU)
# norm-wise error of gradients that kinked activations may add: one of N values whose sign rounding decides changes a
# gradient by 1 / sqrt(N)
KINK = 5e-3
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
PASSES = ("forward", "forward + backward")


def cases(only: str, quick: bool) -> list[Architecture]:
    """The architectures whose name contains `only`; quick: the first two that need no library beside torch."""
    chosen = [a for a in ARCHITECTURES if not (quick and a.needs)]
    return [a for a in chosen[: 2 if quick else None] if only in a.name]


def missing(architecture: Architecture) -> str:
    """Why an architecture cannot be built here; "" if it can."""
    absent = architecture.needs and importlib.util.find_spec(architecture.needs) is None
    return f"{architecture.needs} is not installed" if absent else ""


def build(architecture: Architecture) -> tuple[nn.Module, Tensor]:
    """The model with random weights, in evaluation mode (no dropout, stored statistics), and its input."""
    torch.manual_seed(0)
    return architecture.build().eval(), torch.randn(architecture.shape)


def both_passes(architecture: Architecture, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients of input and parameters, by name."""
    x = x.detach().clone().requires_grad_()
    y = architecture.run(model, x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(y, [x, *named.values()], upstream, allow_unused=True, materialize_grads=True)
    return {"output": y.detach(), **dict(zip(["input", *named], gradients, strict=True))}


def kinked(model: nn.Module) -> bool:
    """Whether a model has activations whose derivative jumps at zero."""
    return any(isinstance(module, KINKED) for module in model.modules())


def smoothed(model: nn.Module) -> nn.Module:
    """A copy of the model with ELU in place of ReLU and LeakyReLU."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, KINKED):
                setattr(module, name, nn.ELU())
    return model


def disagreements(architecture: Architecture, plain: nn.Module, fused: nn.Module, x: Tensor, chains: int) -> list[str]:
    """The results of the fused model that break the module's rule, also with ELU in place of kinked activations."""
    failed = _differences(architecture, plain, fused, x, chains)
    if kinked(plain):
        smooth = smoothed(plain)
        fused = copy.deepcopy(smooth)
        chains = len(fuse(fused, example_inputs=(x, *architecture.further)).replaced)
        failed += [f"with ELU: {text}" for text in _differences(architecture, smooth, fused, x, chains)]
    return failed


def _differences(architecture: Architecture, plain: nn.Module, fused: nn.Module, x: Tensor, chains: int) -> list[str]:
    """The results that break the rule, one by one.

    Parameters' gradients are compared as one vector: the gradient of a bias before a normalisation is only rounding.
    """
    exact = joined(both_passes(architecture, copy.deepcopy(plain).double(), x.double()))
    eager, result = (joined(both_passes(architecture, model, x)) for model in (plain, fused))
    failed = []
    for name, truth in exact.items():
        error, of_eager = ((results[name] - truth).norm() / truth.norm() for results in (result, eager))
        allowed = 2 * of_eager + FLOOR * chains + (KINK if kinked(plain) and name != "output" else 0.0)
        if not error <= allowed:
            failed.append(f"{name}: error {error:.1e}, allowed {allowed:.1e}")
    return failed


def joined(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Output, gradient of the input, and the parameters' gradients as one vector, in float64."""
    parameters = [value.double().flatten() for name, value in results.items() if name not in ("output", "input")]
    return {
        "output": results["output"].double(),
        "input": results["input"].double(),
        "parameters": torch.cat(parameters),
    }


def measure(
    architecture: Architecture, rounds: int, ticks: Callable[[int], None], compiled: bool
) -> tuple[FuseReport, dict[str, dict[str, Timing]], list[str]]:
    """The report, timings of each of PASSES (none if nothing is fused or a result is wrong), and what is wrong."""
    plain, x = build(architecture)
    fused = copy.deepcopy(plain)
    report = fuse(fused, example_inputs=(x, *architecture.further))
    if not report.replaced:
        return report, {}, []
    models = {}
    for name, layout in LAYOUTS.items():
        given = x.contiguous(memory_format=layout) if x.dim() == 4 else x
        for kind, model in (("fused", fused), ("eager", plain)):
            models[f"{kind} {name}"] = copy.deepcopy(model).to(memory_format=layout), given
    best = {kind: _better(architecture, models, kind) for kind in ("fused", "eager")}
    failed = disagreements(architecture, plain, *models[best["fused"]], len(report.replaced))
    if failed:
        return report, {}, failed
    models = {"fused": models[best["fused"]]} | {n: pair for n, pair in models.items() if n.startswith("eager")}
    if compiled:
        models |= _compiled(architecture, best["eager"], *models[best["eager"]])
    timings = {}
    for which in PASSES:
        calls = {name: _call(architecture, which, *pair) for name, pair in models.items()}
        timings[which] = interleaved(calls, rounds=rounds, after_round=ticks)
    return report, timings, []


def _compiled(
    architecture: Architecture, name: str, model: nn.Module, x: Tensor
) -> dict[str, tuple[nn.Module, Tensor]]:
    """torch.compile in eager's better layout only, because compiling takes most of this suite's time.

    Empty, with a message, if torch.compile fails.
    """
    torch._dynamo.reset()
    pair = torch.compile(model, dynamic=False), x
    try:
        for which in PASSES:
            _call(architecture, which, *pair)()
    except Exception as error:
        why = str(error).strip().splitlines()[0][:100]
        tqdm.write(f"{architecture.name}: compile is left out, it fails: {type(error).__name__}: {why}")
        return {}
    return {name.replace("eager", "compile"): pair}


def _better(architecture: Architecture, models: dict[str, tuple[nn.Module, Tensor]], kind: str) -> str:
    """The name of the faster of both layouts."""
    tried = {name: _call(architecture, PASSES[1], *pair) for name, pair in models.items() if name.startswith(kind)}
    timings = interleaved(tried, rounds=4)
    return min(timings, key=lambda name: timings[name].median)


def _call(architecture: Architecture, which: str, model: nn.Module, x: Tensor) -> Callable[[], object]:
    if which == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return architecture.run(model, x)

        return forward
    wanted = [p for p in model.parameters() if p.requires_grad]

    def both() -> object:
        leaf = x.detach().requires_grad_()
        y = architecture.run(model, leaf)
        return torch.autograd.grad(y.sum(), [leaf, *wanted], allow_unused=True)

    return both


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The suite `fuse`."""
    columns = [("", 33), ("chains", 7), ("left", 5), ("products", 9)]
    for which in ("fwd", "both"):
        columns += [(f"{which} ms", 8), ("eager x", 8), ("compile x", 9)]
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
            report, timings, failed = measure(architecture, arguments.rounds, tick(bar), compiled)
        of_model = _rows(architecture, report, timings, failed)
        rows += of_model
        tqdm.write(table.add(_cells(architecture, report, of_model)))
    return rows, [table]


def _rows(
    architecture: Architecture, report: FuseReport, timings: dict[str, dict[str, Timing]], failed: list[str]
) -> list[dict]:
    counts = {"replaced": len(report.replaced), "skipped": len(report.skipped), "products": report.products}
    counts |= {"reasons": sorted({entry.reason for entry in report.skipped})}
    if not report.replaced:
        return [{"suite": "fuse", "name": architecture.name, "not_run": "nothing to fuse", **counts}]
    if failed:
        return [row("fuse", architecture.name, {}, failed) | counts]
    return [row("fuse", f"{architecture.name}, {which}", timings[which], []) | counts for which in PASSES]


def _cells(architecture: Architecture, report: FuseReport, rows: list[dict]) -> list[str]:
    if "failed" in rows[0]:
        return [architecture.name, f"DIFFERENT: {rows[0]['failed'][0]}"]
    counts = [architecture.name, str(len(report.replaced)), str(len(report.skipped))]
    if not report.replaced:
        reasons = "; ".join(reason.removeprefix("nothing to gain: ") for reason in rows[0]["reasons"])
        return [*counts, f"nothing to gain: {reasons}"]
    written, left = report.products
    cells = [*counts, f"{written / max(1, left):.1f}x less"]
    for entry in rows:
        speedup = entry["speedup"]
        against = [f"{speedup[name]:.2f}" if name in speedup else "-" for name in ("eager", "compile")]
        cells += [ms(entry["timings"]["fused"]["median"]), *against]
    return cells
