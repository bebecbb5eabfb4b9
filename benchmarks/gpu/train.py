"""`python -m benchmarks.gpu.train OUT SECONDS PRECISION [PICTURES]`: a real training run of the refiner.

At the paper's setting, for about so many seconds, through the engine's own loop and its `resident` loader: on the
embedded avatars, or on a folder of square pictures of the refiner's size. Where DALI is not installed the pictures are
decoded by Pillow: what trains afterwards is the same. OUT/run gets samples, curve and generator.safetensors (the moving
average of the generator, its configuration in the file's metadata). The last line printed is JSON.
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
import safetensors.torch
import torch
from PIL import Image

from engine import checkpoint
from engine.config import Origins, TrainConfig
from engine.data import Loader, avatars, open_dataset, open_loader
from engine.data.dataset import ImageSet
from engine.data.layouts.sources import open_source
from engine.data.layouts.which_layout import list_images
from engine.data.loader import LoaderOptions
from engine.data.opening import AVATAR_COUNT, AVATAR_SEED
from engine.data.resident import ResidentLoader
from engine.data.validation import FileRecord
from engine.errors import InputError
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
    """The embedded avatars, photo look, written to `folder`."""
    avatars.write(folder, count, size, AVATAR_SEED, progress=False)
    return read_pictures(folder / "photo", size, "avatars")


def read_pictures(folder: Path, size: int, name: str) -> ImageSet:
    """A folder of pictures of size x size pixels, without the validation that needs DALI. Raises InputError."""
    source = open_source(folder)
    listing = list_images(source)
    records = []
    for file in listing.names:
        data = source.read(file)
        with Image.open(io.BytesIO(data)) as picture:
            if picture.size != (size, size):
                raise InputError(f"{folder / file} has {picture.width}x{picture.height} pixels, not {size}x{size}")
        digest = hashlib.sha256(data).hexdigest()
        records.append(FileRecord(file, size=len(data), sha256=digest, width=size, height=size))
    return ImageSet(source, listing, records, [], name=name)


def open_images(config: TrainConfig, folder: Path, pictures: Path | None = None) -> Loader:
    """A resident loader over the pictures, or the avatars where there are none, by DALI or without it."""
    options = {
        name: getattr(config, name) for name in ("batch_size", "resolution", "channels", "device", "seed", "mirror")
    }
    size = config.resolution
    if not _has_dali():
        own = read_pictures(pictures, size, pictures.name) if pictures else read_avatars(folder / "avatars", size)
        return PillowLoader(own, LoaderOptions(**options), "no DALI")
    images = open_dataset(pictures, channels=config.channels, resolution=size)
    return open_loader(images, **options, loader="resident")


def _has_dali() -> bool:
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))


def train(
    out: Path,
    seconds: float,
    options: list[str],
    pictures: Path | None = None,
    tell: Callable[[str], None] = print,
) -> dict:
    """Trains into out/run for about `seconds`; returns what came of it. `options`: of python -m engine.train."""
    config, origins = resolve_options(["--fused", "--preset", "paper", "--out", str(out / "run"), *options])
    require_fused(config)
    set_machine(config)
    with tempfile.TemporaryDirectory() as scratch:
        loader = open_images(config, Path(scratch), pictures)
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
    _keep_generator(config)
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


def _keep_generator(config: TrainConfig) -> None:
    """The newest checkpoint's moving average of the generator, as a file that can travel."""
    newest = checkpoint.load(checkpoint.latest(config.out))
    tensors = {name: tensor for name, tensor in newest.weights.items() if name.startswith("ema.")}
    about = {"config": (newest.path / "config.json").read_text(), "step": str(newest.step)}
    safetensors.torch.save_file(tensors, config.out / "generator.safetensors", metadata=about)


def _run(config: TrainConfig, origins: Origins, loader: Loader) -> list[dict]:
    """Trains a new system; returns the records of metrics.jsonl."""
    prepare_folder(config)
    Trainer(config, origins, build(config, config.device), loader).run()
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def main(argv: list[str]) -> int:
    """Trains on the GPU; 2 without one."""
    out, seconds, precision, *pictures = argv
    if not torch.cuda.is_available():
        print("benchmarks.gpu.train: torch finds no CUDA device", file=sys.stderr)
        return 2
    options = ["--device", "cuda", "--precision", precision]
    result = train(Path(out), float(seconds), options, Path(pictures[0]) if pictures else None)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
