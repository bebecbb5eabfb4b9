"""The suite `predict`: what the roofline says each operator and the refiner's step take on a GPU, and eager PyTorch.

With --device cuda every launch is measured too, and the roofline's error reported.
"""

import statistics
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from benchmarks.prediction import compiled, devices, launches, roofline
from benchmarks.prediction.compiled import Resources, Shipped
from benchmarks.prediction.devices import Device
from benchmarks.prediction.roofline import Operation, Prediction
from benchmarks.suites import operators, step
from benchmarks.timing import native_calls
from benchmarks.timing.measure import captured, gpu_seconds, tf32_allowed
from benchmarks.timing.table import Table
from engine import ops
from engine.errors import InputError
from engine.kernels import _spec
from engine.kernels._gpu.launch import Cost, Launch

MODES = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16"}
REPEATS = 20  # of one launch in a CUDA graph


@dataclass(frozen=True)
class Started:
    """One launch without its tensors: the key of its code, and its seconds where it was measured."""

    name: str
    key: str
    grid: tuple[int, ...]
    cost: Cost
    measured: float | None = None


@dataclass(frozen=True)
class Case:
    """An operator on one shape, or a step: what Kiln launches, what PyTorch runs beside it, and eager PyTorch."""

    name: str
    started: list[Started]
    beside: list[Operation]
    eager: list[Operation]


def suite(only: str, quick: bool, precision: str, gpu: str, measured: bool) -> tuple[list[dict], list[Table]]:
    """Predicts cases whose name contains `only` for a GPU of devices.DEVICES, or for the one that is here."""
    compiled.check_not_interpreted()
    device, mode = _device(gpu, measured), MODES[precision]
    shipped, cases = Shipped(), []
    chosen = [(spec, sample) for spec, sample in operators.cases(only, quick) if spec.operator in launches.specs()]
    for spec, sample in tqdm(chosen, desc="launches", leave=False, disable=None):
        if mode in launches.modes(spec):
            cases.append(_operator(spec, sample, mode, shipped, device, measured))
    for name, setting in step.settings(only, quick).items():
        cases.append(_step(name, setting, mode, shipped, device))
    with tqdm(total=len(shipped.variants), desc="compiling", leave=False, disable=None) as bar:
        made = compiled.compile_all([(v, device.capability) for v in shipped.variants.values()], bar.update)
    resources = {v.key: found for v, _, found in made}
    rows = [row(case, shipped, resources, device, mode) for case in cases]
    shown = [table(rows, device, precision, measured)]
    if measured and (error := errors(rows)):
        shown.append(error)
    print(*shown, sep="\n")
    return rows, shown


def _device(gpu: str, measured: bool) -> Device:
    if not measured:
        return devices.DEVICES[gpu]
    name = torch.cuda.get_device_name()
    found = devices.of_name(name)
    if found is None:
        raise InputError(f"nothing is known of a {name}; predict has {', '.join(devices.DEVICES)}")
    return found


def _operator(
    spec: _spec.Spec, sample: _spec.Sample, mode: str, shipped: Shipped, device: Device, measured: bool
) -> Case:
    """Forward and backward."""
    name = f"{spec.operator} {sample.name}"
    arithmetic = launches.MODES[mode]
    seconds = None
    if measured:
        made = _spec.tensors(sample, arithmetic.dtype, "cuda")
        call = operators.both_passes(ops.OPERATORS[spec.operator].function, made, sample)
        # what is noted is not tuned: the first choice runs, which is the one predicted
        with tf32_allowed(arithmetic.tf32):
            found = native_calls.launched(call)
        seconds = [measure(launch) for launch in found]
    else:
        found = launches.of_operator(spec, sample, arithmetic, capability=device.capability)
    started = _started(found, shipped, name, mode, seconds)
    return Case(name, started, [], roofline.eager_operator(spec, sample, arithmetic))


def _step(name: str, setting: dict, mode: str, shipped: Shipped, device: Device) -> Case:
    found, beside = roofline.fused_step(setting, mode, device.capability)
    return Case(name, _started(found, shipped, name, mode), beside, roofline.eager_step(setting, mode))


def _started(
    found: list[Launch], shipped: Shipped, name: str, mode: str, seconds: list[float] | None = None
) -> list[Started]:
    keys = shipped.add(found, name, mode)
    return [
        Started(launch.name, key, launch.grid, launch.cost, measured)
        for launch, key, measured in zip(found, keys, seconds or [None] * len(found), strict=True)
    ]


def measure(launch: Launch) -> float:
    """Seconds of one launch: REPEATS of it in a CUDA graph, the median of ten replays."""
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}

    def run() -> None:
        for _ in range(REPEATS):
            launch.kernel[launch.grid](**launch.arguments, **options)

    return gpu_seconds(captured(run)) / REPEATS


# results


def row(case: Case, shipped: Shipped, resources: dict[str, Resources], device: Device, mode: str) -> dict:
    """One case for the JSON: every launch with its bound, the sums, and eager PyTorch by the same rates."""
    entry = {"suite": "predict", "name": case.name, "gpu": device.name, "arithmetic": mode}
    unfit = sorted({f"{s.name}: {resources[s.key].error or 'does not fit'}" for s in case.started
                    if not compiled.residents(device, resources[s.key])})  # fmt: skip
    if unfit:
        return entry | {"failed": unfit}
    kernels = []
    for one in case.started:
        found = _predicted(one, shipped, resources, device)
        kernels.append({"name": one.name, "grid": one.grid, **asdict(found), "measured": one.measured})
    tf32 = mode == "tf32"
    beside, eager = roofline.total(case.beside, device, tf32), roofline.total(case.eager, device, tf32)
    sums = {"predicted": sum(k["seconds"] for k in kernels) + beside, "beside": beside, "predicted_eager": eager}
    return (
        entry | sums | {"launches": kernels, "operations_beside": len(case.beside), "operations_eager": len(case.eager)}
    )


def _predicted(one: Started, shipped: Shipped, resources: dict[str, Resources], device: Device) -> Prediction:
    return roofline.of_launch(one.cost, one.grid, shipped.variants[one.key], resources[one.key], device)


def table(rows: list[dict], device: Device, precision: str, measured: bool) -> Table:
    """A row for each case, in microseconds; steps with the time of a million of them."""
    columns = [("", 60), ("launches", 9), ("others", 7), ("us", 9), ("eager us", 9), ("x", 6), ("bound by", 30)]
    columns += [("measured us", 12), ("of predicted", 13)] if measured else [("a million", 10)]
    title = f"Predicted on {device.name}, {precision}: the least that bytes, FLOPs and compiled resources allow"
    result = Table(title + ("" if measured else "; not yet measured"), columns)
    for entry in rows:
        if "failed" in entry:
            result.add([entry["name"], "FAILED: " + "; ".join(entry["failed"])])
            continue
        spent: dict[str, float] = {}
        for kernel in entry["launches"]:
            spent[kernel["bound"]] = spent.get(kernel["bound"], 0.0) + kernel["seconds"]
        whole = sum(spent.values()) or 1.0
        bounds = ", ".join(f"{n} {s / whole:.0%}" for n, s in sorted(spent.items(), key=lambda i: -i[1]))
        predicted, eager = entry["predicted"], entry["predicted_eager"]
        cells = [entry["name"], str(len(entry["launches"])), str(entry["operations_beside"])]
        cells += [f"{predicted * 1e6:.1f}", f"{eager * 1e6:.1f}", f"{eager / predicted:.2f}", bounds]
        if measured:
            took = [k["measured"] for k in entry["launches"]]
            known = took and None not in took
            cells += [f"{sum(took) * 1e6:.1f}", f"{sum(took) / whole:.2f}"] if known else ["-", "-"]
        else:
            cells.append(f"{predicted * 1e6 / 60:.1f} min" if entry["name"] in step.SETTINGS else "")
        result.add(cells)
    return result


def errors(rows: list[dict]) -> Table | None:
    """Measured over predicted by kernel: the median, the quickest and the slowest; None where nothing was measured."""
    by_kernel: dict[str, list[float]] = {}
    for entry in rows:
        for kernel in entry.get("launches", []):
            if kernel["measured"] is not None:
                by_kernel.setdefault(kernel["name"], []).append(kernel["measured"] / kernel["seconds"])
    if not by_kernel:
        return None
    columns = [("kernel", 32), ("launches", 9), ("median", 7), ("least", 7), ("worst", 7)]
    result = Table("Measured over predicted", columns)
    every = [ratio for ratios in by_kernel.values() for ratio in ratios]
    for name, ratios in [*sorted(by_kernel.items()), ("all", every)]:
        figures = [statistics.median(ratios), min(ratios), max(ratios)]
        result.add([name, str(len(ratios)), *(f"{f:.2f}" for f in figures)])
    return result


def error(rows: list[dict]) -> dict[str, float] | None:
    """The same over all launches, for the JSON: median and worst of |log(measured / predicted)| as factors."""
    ratios = [
        max(k["measured"] / k["seconds"], k["seconds"] / k["measured"])
        for entry in rows
        for k in entry.get("launches", [])
        if k["measured"]
    ]
    if not ratios:
        return None
    return {"launches": len(ratios), "median_factor": statistics.median(ratios), "worst_factor": max(ratios)}
