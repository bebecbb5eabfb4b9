"""The suite `loading`: images per second of Kiln's loaders, against torch's DataLoader and what training takes.

resident:    decoded once and held as uint8 (the row has the seconds of decoding as seconds_to_open)
dali:        files read and decoded in the background
torch:       DataLoader with a worker process for each core: Pillow decodes, crops, resizes (antialiased), mirrors
torch draft: the same with Pillow's draft mode, which decodes a JPEG at half, a quarter or an eighth of its size

All make the same batches of the same JPEG files, which is checked first: the same order and mirroring, (B, C, R, R)
float32 channels_last in [-1, 1]. The competitors run in one process, in turns of many batches. At the start of a turn
the batches that wait in the competitor's queue are taken untimed; the next turn starts when the queue is full again and
the workers rest.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.suites import step
from benchmarks.timing.measure import Limits, Timing
from benchmarks.timing.rows import tick, within
from benchmarks.timing.table import Table
from engine.data import Loader, open_dataset, open_loader
from engine.data.decoding.dali import worker_threads
from engine.data.shuffling import ShuffledStream
from engine.host import environment

SEED = 5
KINDS = ("resident", "dali")
PEERS = ("torch", "torch draft")
CHECKED = 2  # batches
EDGE = 2  # pixels at the crop's edge: there DALI's filter sees pixels beyond the crop, Pillow's does not
# mean difference, and the largest inside the edges, in levels of 255; draft mode rounds a second time, when it has
# decoded the smaller size
ALLOWED = {"torch": (1.0, 2.01), "torch draft": (2.0, 16.0)}
# batches that each competitor keeps ready, as Kiln's streaming loader does; DataLoader keeps one or more a worker
AHEAD = 3
LEAST_SECONDS = 0.5  # of a turn


@dataclass(frozen=True)
class Setting:
    """`count` generated JPEG files of width x height pixels, loaded at resolution x resolution.

    step: options of the refiner whose training step says how many images are needed
    """

    count: int
    width: int
    height: int
    resolution: int
    batch_size: int
    step: dict

    @property
    def name(self) -> str:
        """Its part of a row's name."""
        side = self.resolution
        return f"{self.count} JPEG {self.width}x{self.height} to {side}x{side}, batch {self.batch_size}"


LARGE, SMALL = step.SETTINGS.values()
SETTINGS = [
    Setting(500, 178, 218, 64, SMALL["batch_size"], SMALL),  # CelebA's size
    Setting(250, 512, 512, 64, LARGE["batch_size"], LARGE),
]


def cases(only: str, quick: bool) -> list[Setting]:
    """The settings whose name contains `only`; quick: the first."""
    return [s for s in SETTINGS[: 1 if quick else None] if any(only in f"{kind} {s.name}" for kind in KINDS)]


class Pictures(Dataset):
    """A data set whose item (index, mirrored) is an image by Pillow, (R, R, 3) uint8.

    draft: decode at the smallest size that is large enough
    """

    def __init__(self, paths: list[str], resolution: int, draft: bool) -> None:
        self.paths, self.resolution, self.draft = paths, resolution, draft

    def __getitem__(self, item: tuple[int, bool]) -> Tensor:
        index, mirrored = item
        with Image.open(self.paths[index]) as image:
            if self.draft:
                image.draft("RGB", (self.resolution, self.resolution))
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box, size = (left, top, left + side, top + side), (self.resolution, self.resolution)
            resized = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=box)
        values = np.asarray(resized)
        return torch.from_numpy(np.ascontiguousarray(values[:, ::-1]) if mirrored else values.copy())


class Batches:
    """Endless batches of (index, mirrored) for DataLoader, in Kiln's order."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        stream, start = ShuffledStream(self.count, SEED, mirror=True, slack=0), 0
        while True:
            draw = stream.draw(start, self.batch_size)
            yield list(zip(draw.indices.tolist(), draw.mirror.tolist(), strict=True))
            start += self.batch_size


def peer(paths: list[str], setting: Setting, draft: bool) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """Two calls: one gives the next batch of a DataLoader, the other ends its workers."""
    workers = worker_threads()
    loader = DataLoader(
        Pictures(paths, setting.resolution, draft),
        batch_sampler=Batches(setting.count, setting.batch_size),
        num_workers=workers,
        prefetch_factor=max(1, -(-AHEAD // workers)),
        multiprocessing_context="spawn",  # DALI's threads live in this process
    )
    stream = iter(loader)

    def batch() -> Tensor:
        return next(stream).permute(0, 3, 1, 2).to(torch.float32).mul_(1 / 127.5).sub_(1)

    return batch, stream._shutdown_workers


def differences(expected: Tensor, batch: Tensor, allowed: tuple[float, float]) -> list[str]:
    """What makes two batches differ by more than `allowed`, an entry of ALLOWED; NaN differs."""
    if expected.shape != batch.shape or expected.stride() != batch.stride() or expected.dtype != batch.dtype:
        return [f"a batch is {tuple(batch.shape)} {batch.dtype}, not {tuple(expected.shape)} {expected.dtype}"]
    error = (batch - expected).abs() * 127.5
    mean, most = float(error.mean()), float(error[..., EDGE:-EDGE, EDGE:-EDGE].max())
    message = f"batches differ by {mean:.2f} levels on average, {most:.1f} at most within the edges"
    return [] if mean <= allowed[0] and most <= allowed[1] else [message]


def turns(
    calls: dict[str, Callable[[], object]], queued: tuple[str, ...], rounds: int, tick: Callable[[int], None]
) -> dict[str, Timing]:
    """Seconds of one call of each competitor, sampled in turns.

    queued: the competitors that keep batches ready; their turns are so long that the queue does not matter
    """
    ahead = {name: max(AHEAD, worker_threads()) if name in queued else 0 for name in calls}
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = max(4 * ahead[name], round(LEAST_SECONDS / _turn(call, max(1, ahead[name]), ahead[name])), 1)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls) if number % 2 == 0 else list(reversed(calls)):
            samples[name].append(_turn(calls[name], counts[name], ahead[name]))
        tick(number + 1)
    return {name: Timing(seconds) for name, seconds in samples.items()}


def _turn(call: Callable[[], object], count: int, ahead: int) -> float:
    for _ in range(ahead):
        call()
    started = time.perf_counter()
    for _ in range(count):
        call()
    seconds = (time.perf_counter() - started) / count
    time.sleep(min(2.0, 1.5 * ahead * seconds))
    return seconds


def measure(setting: Setting, rounds: int, tick: Callable[[int], None]) -> list[dict]:
    """A row for each of Kiln's loaders, with `failed` if the competitors' batches differ."""
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place) / "set"
        write_files(folder, setting)
        # open_dataset caches what it has validated; the user's own cache folder is left alone
        stack.enter_context(environment.variable("KILN_CACHE", str(Path(place) / "cache")))
        images = open_dataset(folder, channels=3, resolution=setting.resolution, progress=False)
        paths = [str(folder / name) for name in images.paths]
        loaders: dict[str, Loader] = {}
        opening = {}
        for kind in KINDS:
            started = time.perf_counter()
            loaders[kind] = open_loader(
                images,
                batch_size=setting.batch_size,
                resolution=setting.resolution,
                channels=3,
                device="cpu",
                seed=SEED,
                loader=kind,
            )
            opening[kind] = time.perf_counter() - started
            stack.callback(loaders[kind].close)
        calls: dict[str, Callable[[], Tensor]] = {
            kind: lambda loader=loader: loader.next().images for kind, loader in loaders.items()
        }
        for name in PEERS:
            calls[name], end = peer(paths, setting, name == "torch draft")
            stack.callback(end)
        failed = unequal(calls)
        if failed:
            return [{"suite": "loading", "name": f"{kind} {setting.name}", "failed": failed} for kind in KINDS]
        system, batch = step.build("fused", setting.step, "cpu")
        everything = calls | {"step": functools.partial(system.step, batch)}
        timings = turns(everything, ("dali", *PEERS), rounds, tick)
    return [row(kind, setting, timings, opening[kind]) for kind in KINDS]


def unequal(calls: dict[str, Callable[[], Tensor]]) -> list[str]:
    """What differs between the first batches of all competitors. Kiln's two loaders must give the same bits."""
    failed = []
    for number in range(CHECKED):
        batches = {name: call() for name, call in calls.items()}
        if not torch.equal(batches["resident"], batches["dali"]):
            failed.append(f"batch {number}: resident and dali differ")
        for name in PEERS:
            off = differences(batches["dali"], batches[name], ALLOWED[name])
            failed += [f"batch {number}, {name}: {text}" for text in off]
    return failed


def row(kind: str, setting: Setting, timings: dict[str, Timing], opening: float) -> dict:
    """One loader: its speed over the better DataLoader, and every competitor's supply over the step's demand."""
    peers = {name: timings[name] for name in PEERS}
    compared = {"fused": timings[kind], **peers}
    return {
        "suite": "loading",
        "name": f"{kind} {setting.name}",
        "speedup": {"torch": min(t.median for t in peers.values()) / timings[kind].median},
        "timings": {name: timing.to_json() for name, timing in compared.items()},
        "images_per_s": {name: setting.batch_size / timing.median for name, timing in compared.items()},
        "step": timings["step"].to_json() | {"setting": setting.step},
        "times_the_demand": {name: timings["step"].median / timing.median for name, timing in compared.items()},
        "seconds_to_open": opening,
    }


def comparison() -> Table:
    """The suite's empty table, in images per second."""
    columns = [
        ("images/s", 52),
        ("Kiln", 9),
        ("torch", 8),
        ("draft", 8),
        ("x", 6),
        ("step takes", 10),
        ("Kiln / it", 9),
    ]
    return Table(
        "Loaders, and the images that a fused training step takes (twice as many or more: never waits)", columns
    )


def cells(entry: dict) -> list[str]:
    """A row of the table."""
    if "failed" in entry:
        return [entry["name"], f"DIFFERENT: {entry['failed'][0]}"]
    if "not_run" in entry:
        return [entry["name"], entry["not_run"]]
    rates, times = entry["images_per_s"], entry["times_the_demand"]
    speeds = [f"{rates[name]:,.0f}" for name in ("fused", *PEERS)]
    demand = f"{rates['fused'] / times['fused']:,.0f}"
    return [entry["name"], *speeds, f"{entry['speedup']['torch']:.2f}", demand, f"{times['fused']:.1f}"]


def missing() -> str | None:
    """Why the suite cannot run here; None if it can."""
    _, why = environment.attempt("nvidia.dali")
    return why and f"needs DALI, which cannot be imported here ({why})"


def write_files(folder: Path, setting: Setting) -> None:
    """Writes smooth colour images with some grain, whose files are about as large as photos of that size."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    for number in range(setting.count):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((setting.width, setting.height), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (setting.height, setting.width, 1))
        values = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{number:05d}.jpg", quality=90)


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The suite `loading`."""
    rows, table = [], comparison()
    chosen = cases(arguments.filter, arguments.quick)
    if chosen:
        tqdm.write(table.head())
    for setting in within(arguments, chosen, lambda case: case.name, rows, "loading"):
        if why := missing():
            more = [{"suite": "loading", "name": setting.name, "not_run": why}]
        else:
            with tqdm(total=arguments.rounds, desc=setting.name, leave=False, disable=None) as bar:
                more = measure(setting, arguments.rounds, tick(bar))
        rows += more
        for entry in more:
            tqdm.write(table.add(cells(entry)))
    return rows, [table]
