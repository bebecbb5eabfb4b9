"""Every operator's benchmark shapes: forward and backward, fused against eager, compiled and strong PyTorch.

On a GPU every competitor is replayed from a CUDA graph, so that kernels are compared and not how Python starts them.
"""

from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.timing import native_calls
from benchmarks.timing.measure import PRECISIONS, Limits, Timing, captured, interleaved, tf32_allowed
from benchmarks.timing.rows import cells, comparison, guarded, row, shares, within
from benchmarks.timing.table import Table
from engine import ops
from engine.kernels import _spec

# On a CPU every row is sampled so often, minutes apart, for so many seconds at least. A speed-up is off by 8 % in one
# round, by 1.5 % in 16 of them (the standard deviation, where caches are not the limit); but others who use the
# last-level cache change it by up to a third for as long as they do, so the calmer pass counts.
PASSES, IN_ALL = 2, 2.0
Measured = tuple[dict[str, Timing], list[str]]
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def label(case: tuple[_spec.Spec, _spec.Sample]) -> str:
    """What the row of a case is called."""
    spec, sample = case
    return f"{spec.operator} {sample.name}"


def cases(only: str, quick: bool = False) -> Iterator[tuple[_spec.Spec, _spec.Sample]]:
    """The shapes of every operator whose name or shape contains `only`.

    quick: of an operator's shapes, with each resize if it has one, the one in the middle by FLOPs.
    """
    for spec in _spec.specs().values():
        chosen = [sample for sample in spec.benchmarks if only in label((spec, sample))]
        if quick:
            alike: dict[str, list[_spec.Sample]] = {}
            for sample in sorted(chosen, key=spec.flops):
                alike.setdefault(sample.options.get("resize", ""), []).append(sample)
            chosen = [group[(len(group) - 1) // 2] for group in alike.values()]
        for sample in chosen:
            yield spec, sample


def baselines(spec: _spec.Spec, compiled: bool = True, autotuned: bool = False) -> dict[str, Callable]:
    """eager, compile and, where the spec names one, strong: functions with the operator's arguments.

    autotuned: also "compile max-autotune" (the CUDA graph is ours, as everybody's).
    """
    reference = ops.OPERATORS[spec.operator].reference
    found = {"eager": reference}
    if compiled:
        torch._dynamo.reset()  # each shape is compiled for itself, however many there were before
        found["compile"] = torch.compile(reference, dynamic=False, fullgraph=True)
    if compiled and autotuned:
        mode = "max-autotune-no-cudagraphs"
        found["compile max-autotune"] = torch.compile(reference, dynamic=False, fullgraph=True, mode=mode)
    if spec.strong:
        found["strong"] = spec.strong
    return found


def measure(
    spec: _spec.Spec,
    sample: _spec.Sample,
    device: str,
    rounds: int,
    compiled: bool = True,
    precision: str = "fp32",
    autotuned: bool = False,
    in_all: float = 0.0,
) -> Measured:
    """Timings of fused and of every baseline in both layouts, and the results that are not right (then no timings).

    precision: of PRECISIONS; everybody computes in it. in_all: as `interleaved` has it.
    """
    with tf32_allowed(PRECISIONS[precision].tf32):
        competitors, failed = prepared(spec, sample, device, compiled, precision, autotuned)
        if failed:
            return {}, failed
        allocations = None if device == "cuda" else device  # a graph's memory is the graph's
        return interleaved(competitors, rounds=rounds, in_all=in_all, allocations=allocations), []


def prepared(
    spec: _spec.Spec,
    sample: _spec.Sample,
    device: str,
    compiled: bool = True,
    precision: str = "fp32",
    autotuned: bool = False,
) -> tuple[dict[str, Callable], list[str]]:
    """Every competitor as a call of forward and backward, or the results that are not right."""
    with tf32_allowed(PRECISIONS[precision].tf32):
        others = baselines(spec, compiled, autotuned)
        failed = disagreements(spec, sample, device, others, precision)
        if failed:
            return {}, failed
        made = _spec.tensors(sample, PRECISIONS[precision].dtype, device)
        competitors = {"fused": both_passes(ops.OPERATORS[spec.operator].function, made, sample)}
        for name, function in others.items():
            for layout, order in _layouts(sample).items():
                laid_out = {n: t.contiguous(memory_format=order) if t.dim() == 4 else t for n, t in made.items()}
                competitors[f"{name} {layout}"] = both_passes(function, laid_out, sample)
        return (_as_graphs(competitors) if device == "cuda" else competitors), []


def names(spec: _spec.Spec, sample: _spec.Sample, compiled: bool) -> tuple[str, ...]:
    """The competitors of `prepared`, without making them."""
    others = ["eager", *["compile"] * compiled, *["strong"] * bool(spec.strong)]
    return ("fused", *(f"{name} {layout}" for name in others for layout in _layouts(sample)))


def _layouts(sample: _spec.Sample) -> dict[str, torch.memory_format]:
    """Both, or one where nothing has four axes: they are the same."""
    return LAYOUTS if any(len(shape) == 4 for shape in sample.shapes.values()) else dict([*LAYOUTS.items()][:1])


def _as_graphs(competitors: dict[str, Callable]) -> dict[str, Callable]:
    """Each as a CUDA graph; a baseline that cannot be captured is left out, and named."""
    found = {}
    for name, call in competitors.items():
        try:
            found[name] = captured(call)
        except RuntimeError as error:
            if name == "fused":
                raise
            tqdm.write(f"{name} is left out, for it cannot be captured as a CUDA graph: {str(error).splitlines()[0]}")
    return found


def disagreements(
    spec: _spec.Spec, sample: _spec.Sample, device: str, others: dict[str, Callable], precision: str = "fp32"
) -> list[str]:
    """The results of fused outside the dtype rule, and those of a baseline that computes something else."""
    dtype, tolerance = PRECISIONS[precision].dtype, PRECISIONS[precision].baseline
    failed = [
        f"{e.result}: error {e.fused:.1e}, allowed {e.allowed:.1e}"
        for e in _spec.compare(spec, sample, dtype, device)
        if not e.passed
    ]
    made = _spec.tensors(sample, dtype, device)
    eager = _spec.run(others["eager"], sample, made, dtype)
    for name in others.keys() - {"eager"}:
        for result, value in _spec.run(others[name], sample, made, dtype).items():
            error = _spec.relative_error(value, eager[result])
            if not error <= tolerance:
                failed.append(f"{result} of {name}: error {error:.1e}, allowed {tolerance:.1e}")
    return failed


def flops(spec: _spec.Spec, sample: _spec.Sample, device: str) -> float | None:
    """FLOPs of forward and backward in the form that the fused operator takes; None where its spec does not say."""
    if device == "cuda":
        made = _spec.tensors(sample, torch.float32, device)
        launched = native_calls.launched(both_passes(ops.OPERATORS[spec.operator].function, made, sample))
        return sum(launch.cost.flops for launch in launched) if launched else spec.flops(sample)
    made = _spec.tensors(sample, torch.float32, device)
    with native_calls.recorded() as calls:
        both_passes(ops.OPERATORS[spec.operator].function, made, sample)()
    return native_calls.flops(calls) if calls else spec.flops(sample)  # no native call: the library's, as written


def both_passes(function: Callable, made: dict[str, torch.Tensor], sample: _spec.Sample) -> Callable[[], object]:
    """A call that runs forward and backward of `function` on leaves like `made`."""
    leaves = {n: t.detach().clone().requires_grad_(sample.differentiable(n)) for n, t in made.items()}
    wanted = [t for t in leaves.values() if t.requires_grad]
    upstream: list[torch.Tensor] = []

    def call() -> object:
        y = function(**leaves, **sample.options)
        y = y[-1] if isinstance(y, tuple) else y
        if not wanted:
            return y
        if not upstream:
            upstream.append(torch.ones_like(y))
        return torch.autograd.grad(y, wanted, upstream)

    return call


def calmer(passes: list[Measured]) -> Measured:
    """The pass in which all competitors of a row together took the least time; a pass that failed before any other."""
    failed = [measured for measured in passes if measured[1]]
    return failed[0] if failed else min(passes, key=_together)


def _together(measured: Measured) -> float:
    return sum(timing.median for timing in measured[0].values())


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The ops suite."""
    precision = arguments.precision or "fp32"
    rows, table = [], comparison(f"Operators, forward + backward, {precision}")
    chosen = list(cases(arguments.filter, arguments.quick))
    again = arguments.device == "cpu" and not arguments.quick and arguments.budget == float("inf")
    in_all = IN_ALL if again else 0.0
    how = (arguments.device, arguments.rounds, arguments.can_compile, precision, arguments.autotune, in_all)
    passes: dict[str, list[Measured]] = {label(case): [] for case in chosen}
    with tqdm(total=len(chosen) * (PASSES if again else 1), desc="operators", leave=False, disable=None) as bar:
        for case in chosen * (PASSES - 1 if again else 0):
            passes[label(case)].append(guarded(arguments, measure, *case, *how))
            bar.update()
        if chosen:
            tqdm.write(table.head())
        for spec, sample in within(arguments, chosen, label, rows, "ops"):
            name = label((spec, sample))
            passes[name].append(guarded(arguments, measure, spec, sample, *how))
            timings, failed = calmer(passes[name])
            entry = row("ops", name, timings, failed)
            if not failed:
                products = flops(spec, sample, arguments.device)
                moved = spec.bytes(sample, PRECISIONS[precision].dtype)
                entry = shares(entry, limits, products, moved) | {"flops_as_written": spec.flops(sample)}
                entry["passes"] = [_together(measured) for measured in passes[name]]
            rows.append(entry)
            tqdm.write(table.add(cells(entry)))
            bar.update()
    return rows, [table]
