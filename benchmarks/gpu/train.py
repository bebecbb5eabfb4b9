"""`python -m benchmarks.gpu.train OUT SECONDS PRECISION`: a real training run of the refiner at the paper's setting.

On the embedded avatars, through the engine's own loop and its `resident` loader, for about so many seconds. Where DALI
is not installed the same pictures are decoded by Pillow: what trains afterwards is the same. The last line printed is
JSON.
"""

import dataclasses
import hashlib
import importlib.util
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.config import Origins, TrainConfig
from engine.data import Loader, avatars, open_dataset, open_loader
from engine.data.dataset import ImageSet
from engine.data.layouts.sources import open_source
from engine.data.layouts.which_layout import list_images
from engine.data.loader import LoaderOptions
from engine.data.opening import AVATAR_COUNT, AVATAR_SEED
from engine.data.resident import ResidentLoader
from engine.data.validation import FileRecord
from engine.systems.refiner import RefinerConfig
from engine.systems.registry import build
from engine.training.loop import Trainer
from engine.training.resolve import resolve as resolve_options
from engine.training.setup import prepare_folder, require_fused, set_machine

TRIED = 60  # steps that tell how long one takes
PAPER_STEPS = RefinerConfig.PRESETS["paper"]["steps"]


class PillowLoader(ResidentLoader):
    """The resident loader without DALI, for square pictures that have their stored size."""

    def describe(self) -> str:
        """One line: which loader, and why."""
        return f"resident loader: {len(self.images):,} images decoded once by Pillow, for DALI is not installed"

    def _decode(self, first: int, end: int) -> None:
        for index in range(first, end):
            with Image.open(io.BytesIO(self.images.read(index))) as picture:
                self._store[index] = torch.from_numpy(np.array(picture.convert("RGB")))


def read_avatars(folder: Path, size: int, count: int = AVATAR_COUNT) -> ImageSet:
    """The embedded avatars, photo look, written to `folder` and read without validating what was just written."""
    avatars.write(folder, count, size, AVATAR_SEED, progress=False)
    source = open_source(folder / "photo")
    listing = list_images(source)
    records = []
    for name in listing.names:
        data = source.read(name)
        digest = hashlib.sha256(data).hexdigest()
        records.append(FileRecord(name, size=len(data), sha256=digest, width=size, height=size))
    return ImageSet(source, listing, records, [], name="avatars")


def open_images(config: TrainConfig, folder: Path) -> Loader:
    """A resident loader over the avatars, by DALI or without it."""
    options = {
        name: getattr(config, name) for name in ("batch_size", "resolution", "channels", "device", "seed", "mirror")
    }
    if not _has_dali():
        return PillowLoader(read_avatars(folder / "avatars", config.resolution), LoaderOptions(**options), "no DALI")
    images = open_dataset(None, channels=config.channels, resolution=config.resolution)
    return open_loader(images, **options, loader="resident")


def _has_dali() -> bool:
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))


def train(out: Path, seconds: float, options: list[str], tell: Callable[[str], None] = print) -> dict:
    """Trains into out/run for about `seconds`; returns what came of it. `options`: of python -m engine.train."""
    config, origins = resolve_options(["--fused", "--preset", "paper", "--out", str(out / "run"), *options])
    require_fused(config)
    set_machine(config)
    with tempfile.TemporaryDirectory() as scratch:
        loader = open_images(config, Path(scratch))
        tell(loader.describe())
        try:
            return _train(config, origins, loader, seconds)
        finally:
            loader.close()


def _train(config: TrainConfig, origins: Origins, loader: Loader, seconds: float) -> dict:
    quiet = {"sample_every": 0, "checkpoint_every": TRIED, "log_every": TRIED // 2}
    tried = dataclasses.replace(config, steps=TRIED, out=config.out.with_name("tried"), **quiet)
    # the second half: compiling, tuning and recording lie in the first
    speed = _run(tried, origins, loader)[-1]["images_per_s"]
    steps = max(TRIED, int(seconds * speed / config.batch_size))
    often = max(1, steps // 4)
    config = dataclasses.replace(config, steps=steps, sample_every=often, checkpoint_every=steps, log_every=often)
    cuda = config.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    records = _run(config, origins, loader)
    speed = statistics.median(record["images_per_s"] for record in records[1:] or records)
    return {
        "loader": loader.describe(),
        "precision": config.precision,
        "steps": steps,
        "images_per_s": speed,
        "million_steps_minutes": PAPER_STEPS * config.batch_size / speed / 60,
        "peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
        "data_wait": statistics.median(record["data_wait"] for record in records),
        "last": records[-1],
        "samples": str(max((config.out / "samples").glob("step_*.png"))),
    }


def _run(config: TrainConfig, origins: Origins, loader: Loader) -> list[dict]:
    """Trains a new system; returns the records of metrics.jsonl."""
    prepare_folder(config)
    Trainer(config, origins, build(config, config.device), loader).run()
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def main(argv: list[str]) -> int:
    """Trains on the GPU; 2 without one."""
    out, seconds, precision = argv
    if not torch.cuda.is_available():
        print("benchmarks.gpu.train: torch finds no CUDA device", file=sys.stderr)
        return 2
    result = train(Path(out), float(seconds), ["--device", "cuda", "--precision", precision])
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
