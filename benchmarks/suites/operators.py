"""The suite `ops`: every operator's benchmark shapes, forward and backward, against eager, compiled and strong PyTorch.

On a CPU that multiplies numbers in bfloat16, eager and compile also run on such tensors, beside fused in float32.
On a GPU every competitor is replayed from a CUDA graph, so that kernels are compared and not how Python starts them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.timing import native_calls
from benchmarks.timing.measure import PRECISIONS, Limits, Timing, captured, interleaved
from benchmarks.timing.rows import BF16, cells, comparison, guarded, row, shares, within
from benchmarks.timing.table import Table
from engine import ops
from engine.host.tf32 import tf32_allowed
from engine.kernels import _spec

# On a CPU every row is sampled in so many passes, minutes apart, each for so many seconds at least. A speed-up is off
# by 8 % in one round and by 1.5 % in 16 rounds (standard deviations, where caches are not the limit). Other programs
# that use the last-level cache change a speed-up by up to a third for as long as they run, so the calmer pass counts.
PASSES, IN_ALL = 2, 2.0
IN_ALL_BF16 = 1.0  # seconds more for the baselines in bfloat16, so that a row has as many rounds with them
CALLS = 10  # in a CUDA graph: to start one takes longer than the kernels of a small shape
Measured = tuple[dict[str, Timing], list[str]]
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Case:
    """An operator on one shape.

    substitute: what competes as fused in place of the operator. The self-test plants a slow and a wrong one.
    """

    spec: _spec.Spec
    sample: _spec.Sample
    substitute: Callable | None = None

    @property
    def label(self) -> str:
        """The name of its row."""
        return f"{self.spec.operator} {self.sample.name}"

    @property
    def fused(self) -> Callable:
        """The competitor `fused`."""
        return self.substitute or ops.OPERATORS[self.spec.operator].function

    @property
    def reference(self) -> Callable:
        """The competitor `eager`: the operator in plain PyTorch."""
        return ops.OPERATORS[self.spec.operator].reference

    @property
    def layouts(self) -> dict[str, torch.memory_format]:
        """The memory formats that a baseline is measured in; one where no tensor has four axes: they are the same."""
        has_images = any(len(shape) == 4 for shape in self.sample.shapes.values())
        return LAYOUTS if has_images else dict([*LAYOUTS.items()][:1])

    def tensors(self, precision: str, device: str) -> dict[str, Tensor]:
        """Its tensors in a precision of PRECISIONS."""
        return _spec.tensors(self.sample, PRECISIONS[precision].dtype, device)


def cases(only: str, quick: bool = False) -> Iterator[Case]:
    """The shapes of every operator whose name or shape contains `only`.

    quick: of an operator's shapes, with each resize if it has one, the one in the middle by FLOPs.
    """
    for spec in _spec.specs().values():
        chosen = [sample for sample in spec.benchmarks if only in Case(spec, sample).label]
        if quick:
            alike: dict[str, list[_spec.Sample]] = {}
            for sample in sorted(chosen, key=spec.flops):
                alike.setdefault(sample.options.get("resize", ""), []).append(sample)
            chosen = [group[(len(group) - 1) // 2] for group in alike.values()]
        for sample in chosen:
            yield Case(spec, sample)


def baselines(case: Case, compiled: bool = True, autotuned: bool = False) -> dict[str, Callable]:
    """eager, compile and, where the spec names one, strong: functions with the operator's arguments.

    autotuned: also "compile max-autotune", without torch.compile's own CUDA graph: every competitor is captured as one.
    """
    reference = case.reference
    functions = {"eager": reference}
    if compiled:
        torch._dynamo.reset()  # each shape is compiled for itself, however many were compiled before
        functions["compile"] = torch.compile(reference, dynamic=False, fullgraph=True)
    if compiled and autotuned:
        mode = "max-autotune-no-cudagraphs"
        functions["compile max-autotune"] = torch.compile(reference, dynamic=False, fullgraph=True, mode=mode)
    if case.spec.strong:
        functions["strong"] = case.spec.strong
    return functions


def beside(functions: dict[str, Callable]) -> dict[str, Callable]:
    """Those baselines that are measured in bfloat16 too, by their names there."""
    return {BF16 + name: function for name, function in functions.items() if name in ("eager", "compile")}


def measure(
    case: Case,
    device: str,
    rounds: int,
    compiled: bool = True,
    precision: str = "fp32",
    autotuned: bool = False,
    in_all: float = 0.0,
    bf16: bool = False,
) -> Measured:
    """Timings of fused and of every baseline in both layouts, and the results that are not right (then no timings).

    precision: of PRECISIONS; every competitor computes in it. in_all: seconds, as `interleaved` has it.
    bf16:      with the baselines of `beside`
    """
    with tf32_allowed(PRECISIONS[precision].tf32):
        competitors, failed = prepared(case, device, compiled, precision, autotuned, bf16)
        if failed:
            return {}, failed
        allocations = None if device == "cuda" else device  # on a GPU a CUDA graph keeps the memory of its tensors
        return interleaved(competitors, rounds=rounds, in_all=in_all, allocations=allocations), []


def prepared(
    case: Case,
    device: str,
    compiled: bool = True,
    precision: str = "fp32",
    autotuned: bool = False,
    bf16: bool = False,
) -> tuple[dict[str, Callable], list[str]]:
    """Every competitor as a call of forward and backward, or the results that are not right."""
    with tf32_allowed(PRECISIONS[precision].tf32):
        others = baselines(case, compiled, autotuned)
        failed = disagreements(case, device, others, precision)
        if failed:
            return {}, failed
        inputs = case.tensors(precision, device)
        competitors = {"fused": both_passes(case.fused, inputs, case.sample)}
        competitors |= _laid_out(case, others, inputs)
        if bf16:
            competitors |= _laid_out(case, beside(others), case.tensors("bf16", device))
        return (_as_graphs(competitors) if device == "cuda" else competitors), []


def _laid_out(case: Case, functions: dict[str, Callable], inputs: dict[str, Tensor]) -> dict[str, Callable]:
    """Functions as calls of both passes in each layout of the case."""
    competitors = {}
    for name, function in functions.items():
        for layout, order in case.layouts.items():
            tensors = {n: t.contiguous(memory_format=order) if t.dim() == 4 else t for n, t in inputs.items()}
            competitors[f"{name} {layout}"] = both_passes(function, tensors, case.sample)
    return competitors


def names(case: Case, compiled: bool) -> tuple[str, ...]:
    """The competitors of `prepared`, without making them."""
    others = ["eager", *["compile"] * compiled, *["strong"] * bool(case.spec.strong)]
    return ("fused", *(f"{name} {layout}" for name in others for layout in case.layouts))


def _as_graphs(competitors: dict[str, Callable]) -> dict[str, Callable]:
    """Each as a CUDA graph of CALLS; a baseline that cannot be captured is left out, and named."""
    graphs = {}
    for name, call in competitors.items():
        try:
            graphs[name] = captured(call, CALLS)
        except RuntimeError as error:
            if name == "fused":
                raise
            why = str(error).splitlines()[0]
            tqdm.write(f"{name} is left out, because it cannot be captured as a CUDA graph: {why}")
    return graphs


def disagreements(case: Case, device: str, others: dict[str, Callable], precision: str = "fp32") -> list[str]:
    """The results of fused outside the dtype rule, and those of a baseline that computes something else.

    others: baselines by name, "eager" among them.
    """
    dtype, tolerance = PRECISIONS[precision].dtype, PRECISIONS[precision].baseline
    inputs = case.tensors(precision, device)
    exact = _spec.run(case.reference, case.sample, inputs, torch.float64)
    eager = _spec.run(others["eager"], case.sample, inputs, dtype)
    fused = _spec.run(case.fused, case.sample, inputs, dtype)
    errors = _spec.judge(exact, eager, fused, case.spec.floor[dtype])
    failed = [f"{e.result}: error {e.fused:.1e}, allowed {e.allowed:.1e}" for e in errors if not e.passed]
    for name in others.keys() - {"eager"}:
        for result, value in _spec.run(others[name], case.sample, inputs, dtype).items():
            error = _spec.relative_error(value, eager[result])
            if not error <= tolerance:  # written so that NaN fails
                failed.append(f"{result} of {name}: error {error:.1e}, allowed {tolerance:.1e}")
    return failed


def flops(case: Case, device: str) -> float | None:
    """FLOPs of forward and backward in the form that the fused operator takes; None where its spec does not say."""
    call = both_passes(case.fused, case.tensors("fp32", device), case.sample)
    if device == "cuda":
        launches = native_calls.launched(call)
        return sum(launch.cost.flops for launch in launches) if launches else case.spec.flops(case.sample)
    with native_calls.recorded() as calls:
        call()
    # without a native call the library's own function ran, with the FLOPs as written
    return native_calls.flops(calls) if calls else case.spec.flops(case.sample)


def both_passes(function: Callable, inputs: dict[str, Tensor], sample: _spec.Sample) -> Callable[[], object]:
    """A call that runs forward and backward of `function` on leaves like `inputs`."""
    leaves = {n: t.detach().clone().requires_grad_(sample.differentiable(n)) for n, t in inputs.items()}
    wanted = [t for t in leaves.values() if t.requires_grad]
    upstream: list[Tensor] = []

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


def run(
    arguments: Arguments, limits: Limits, chosen: Sequence[Case] | None = None, compiled: bool = True
) -> tuple[list[dict], list[Table]]:
    """The suite `ops`. chosen: cases in place of those that the arguments name; compiled: with torch.compile's rows."""
    precision = arguments.precision or "fp32"
    bf16 = precision == "fp32" and arguments.bf16_beside
    rows, table = [], comparison(f"Operators, forward + backward, {precision}", bf16)
    chosen = list(cases(arguments.filter, arguments.quick)) if chosen is None else chosen
    twice = arguments.device == "cpu" and not arguments.quick and arguments.budget == float("inf")
    compiled = compiled and arguments.can_compile
    seconds = (IN_ALL + IN_ALL_BF16 * bf16) * twice
    how = (arguments.device, arguments.rounds, compiled, precision, arguments.autotune, seconds, bf16)
    passes: dict[str, list[Measured]] = {case.label: [] for case in chosen}
    with tqdm(total=len(chosen) * (PASSES if twice else 1), desc="operators", leave=False, disable=None) as bar:
        for case in [*chosen] * (PASSES - 1 if twice else 0):
            passes[case.label].append(guarded(arguments, measure, case, *how))
            bar.update()
        if chosen:
            tqdm.write(table.head())
        for case in within(arguments, chosen, lambda case: case.label, rows, "ops"):
            passes[case.label].append(guarded(arguments, measure, case, *how))
            rows.append(_row(case, passes[case.label], arguments.device, precision, limits))
            tqdm.write(table.add(cells(rows[-1], bf16)))
            bar.update()
    return rows, [table]


def _row(case: Case, passes: list[Measured], device: str, precision: str, limits: Limits) -> dict:
    timings, failed = calmer(passes)
    entry = row("ops", case.label, timings, failed)
    if failed:
        return entry
    moved = case.spec.bytes(case.sample, PRECISIONS[precision].dtype)
    entry = shares(entry, limits, flops(case, device), moved)
    entry["flops_as_written"] = case.spec.flops(case.sample)
    return entry | {"passes": [_together(measured) for measured in passes]}
