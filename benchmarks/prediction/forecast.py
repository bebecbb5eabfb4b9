"""The suite `predict`: what the roofline says each operator and the refiner's step take on a GPU, and eager PyTorch.

With --device cuda every launch is measured too, and the roofline's error reported.
"""

import statistics
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.prediction import compiled, devices, launches, roofline
from benchmarks.prediction.compiled import Resources, Shipped
from benchmarks.prediction.devices import Device
from benchmarks.prediction.roofline import Operation, Prediction
from benchmarks.suites import operators, step
from benchmarks.timing import native_calls
from benchmarks.timing.measure import captured
from benchmarks.timing.table import Table
from engine.errors import InputError
from engine.host.tf32 import tf32_allowed
from engine.kernels._gpu.launch import Cost, Launch, capability, register_bound
from engine.kernels._gpu.tuning import gpu_milliseconds

MODES = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16"}
REPEATS, ROUNDS = 20, 10  # launches in a CUDA graph, and its replays


@dataclass(frozen=True)
class Started:
    """One launch without its tensors. key: of its code in Shipped; measured: its seconds, None if not measured."""

    name: str
    key: str
    grid: tuple[int, ...]
    cost: Cost
    measured: float | None = None


@dataclass(frozen=True)
class Subject:
    """An operator on one shape, or a step.

    started: what Kiln launches; beside: PyTorch's own operations among these launches; eager: those of eager PyTorch
    """

    name: str
    started: list[Started]
    beside: list[Operation]
    eager: list[Operation]


def cases(only: str, quick: bool = False) -> list[str]:
    """Names of the operators' shapes with GPU kernels, and of the refiner's steps, that contain `only`."""
    return [case.label for case in _operator_cases(only, quick)] + list(step.cases(only, quick))


def _operator_cases(only: str, quick: bool) -> list[operators.Case]:
    return [case for case in operators.cases(only, quick) if case.spec.operator in launches.specs()]


def run(arguments: Arguments, limits: None) -> tuple[list[dict], list[Table]]:
    """The suite `predict`, for --gpu, or with --device cuda for the GPU that is here."""
    measured = arguments.device == "cuda"
    gpu = torch.cuda.get_device_name() if measured else arguments.gpu
    return predict(arguments.filter, arguments.quick, arguments.precision or "bf16", gpu, measured)


def predict(only: str, quick: bool, precision: str, gpu: str, measured: bool) -> tuple[list[dict], list[Table]]:
    """Rows and tables of the cases whose name contains `only`. gpu: as devices.DEVICES or the GPU itself names it."""
    compiled.check_not_interpreted()
    device, mode = devices.of_name(gpu), MODES[precision]
    if device is None:
        raise InputError(f"nothing is known of a {gpu}; predict has {', '.join(devices.DEVICES)}")
    shipped, subjects = Shipped(), []
    for case in tqdm(_operator_cases(only, quick), desc="launches", leave=False, disable=None):
        if mode in launches.modes(case.spec):
            subjects.append(_operator(case, mode, shipped, device, measured))
    for name, setting in step.cases(only, quick).items():
        subjects.append(_step(name, setting, mode, shipped, device))
    with tqdm(total=len(shipped.variants), desc="compiling", leave=False, disable=None) as bar:
        compilations = compiled.compile_all([(v, device.capability) for v in shipped.variants.values()], bar.update)
    resources = {variant.key: result for variant, _, result in compilations}
    rows = [row(subject, shipped, resources, device, mode) for subject in subjects]
    shown = [table(rows, device, precision, measured)]
    if measured and (error := errors(rows)):
        shown.append(error)
    print(*shown, sep="\n")
    return rows, shown


def _operator(case: operators.Case, mode: str, shipped: Shipped, device: Device, measured: bool) -> Subject:
    """Forward and backward of an operator on one shape."""
    arithmetic = launches.MODES[mode]
    seconds = None
    if measured:
        call = operators.both_passes(case.fused, case.tensors(launches.STEP_MODES[mode], "cuda"), case.sample)
        # a launch that is recorded is not tuned: the first choice runs, which is the one predicted
        with tf32_allowed(arithmetic.tf32):
            recorded = native_calls.launched(call)
        seconds = [measure(launch) for launch in recorded]
    else:
        recorded = launches.of_operator(case.spec, case.sample, arithmetic, capability=device.capability)
    started = _started(recorded, shipped, case.label, mode, seconds)
    return Subject(case.label, started, [], roofline.eager_operator(case, arithmetic))


def _step(name: str, setting: dict, mode: str, shipped: Shipped, device: Device) -> Subject:
    recorded, beside = roofline.fused_step(setting, mode, device.capability)
    return Subject(name, _started(recorded, shipped, name, mode), beside, roofline.eager_step(setting, mode))


def _started(
    recorded: list[Launch], shipped: Shipped, name: str, mode: str, seconds: list[float] | None = None
) -> list[Started]:
    keys = shipped.add(recorded, name, mode)
    return [
        Started(launch.name, key, launch.grid, launch.cost, measured)
        for launch, key, measured in zip(recorded, keys, seconds or [None] * len(recorded), strict=True)
    ]


def measure(launch: Launch) -> float:
    """Seconds of one launch: REPEATS of it in a CUDA graph, the median of ROUNDS replays."""
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    options |= register_bound(launch.arguments, capability)
    replay = captured(lambda: launch.kernel[launch.grid](**launch.arguments, **options), REPEATS)
    return statistics.median(gpu_milliseconds(replay, ROUNDS)) / 1e3 / REPEATS


# results


def row(subject: Subject, shipped: Shipped, resources: dict[str, Resources], device: Device, mode: str) -> dict:
    """The row of a subject: every launch with its bound, the sums, and eager PyTorch by the same rates."""
    entry = {"suite": "predict", "name": subject.name, "gpu": device.name, "arithmetic": mode}
    unfit = sorted({f"{s.name}: {resources[s.key].error or 'does not fit'}" for s in subject.started
                    if not compiled.residents(device, resources[s.key])})  # fmt: skip
    if unfit:
        return entry | {"failed": unfit}
    kernels = []
    for one in subject.started:
        prediction = _predicted(one, shipped, resources, device)
        kernels.append({"name": one.name, "grid": one.grid, **asdict(prediction), "measured": one.measured})
    tf32 = mode == "tf32"
    beside, eager = roofline.total(subject.beside, device, tf32), roofline.total(subject.eager, device, tf32)
    sums = {"predicted": sum(k["seconds"] for k in kernels) + beside, "beside": beside, "predicted_eager": eager}
    counts = {"operations_beside": len(subject.beside), "operations_eager": len(subject.eager)}
    return entry | sums | {"launches": kernels} | counts


def _predicted(one: Started, shipped: Shipped, resources: dict[str, Resources], device: Device) -> Prediction:
    return roofline.of_launch(one.cost, one.grid, shipped.variants[one.key], resources[one.key], device)


def table(rows: list[dict], device: Device, precision: str, measured: bool) -> Table:
    """A row for each case, in microseconds; a training step also in minutes for a million of them."""
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
    """Measured over predicted seconds by kernel: median, least and worst; None if nothing was measured."""
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
    """How far the roofline is off over all launches: median and worst of |log(measured / predicted)|, as factors.

    None where nothing was measured.
    """
    ratios = [
        max(k["measured"] / k["seconds"], k["seconds"] / k["measured"])
        for entry in rows
        for k in entry.get("launches", [])
        if k["measured"]
    ]
    if not ratios:
        return None
    return {"launches": len(ratios), "median_factor": statistics.median(ratios), "worst_factor": max(ratios)}
