"""`python -m engine.evaluate RUN_OR_CHECKPOINT --data PATH`: how good a trained refiner is on a set of images.

Writes metrics.json (last, so that it stands for a whole evaluation), examples.png, heatmaps.png and bars.png. Every
image is refined from its own shrunken copies and compared with itself. "input" is what the model saw: its sharpest
shrunken copy, enlarged bilinearly; a refiner has to be better than that. Give images that were not trained on.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

from engine import __version__, atomic, pictures
from engine.cli import parse, run
from engine.environment import pick_device
from engine.errors import InputError
from engine.evaluation import figures, sliced_wasserstein
from engine.evaluation.identity import SKIPPED, identity
from engine.evaluation.likeness import likeness, require_torchmetrics
from engine.faces import FaceFinder
from engine.refine import to_network, to_pixels

if TYPE_CHECKING:
    from engine.data.dataset import ImageSet

EXAMPLES = 8
UNITS = {
    "l1": "mean absolute error with images in [-1, 1], as in the training's losses (0 to 2)",
    "psnr": "dB",
    "ssim": "Gaussian window 11x11, sigma 1.5 (-1 to 1)",
    "swd": "sliced Wasserstein distance to the originals x 1000, per level of the Laplacian pyramid",
    "detection_rate": "share of images in which OpenCV's frontal face cascade finds a face",
    "identity": "face_recognition: mean embedding distance, share of pairs closer than 0.6",
}


@dataclass
class Arguments:
    """What `python -m engine.evaluate` takes."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_CHECKPOINT")]
    """Run folder (its newest good checkpoint) or checkpoint folder."""
    data: Path
    """Folder or zip of images that were not trained on."""
    out: Path | None = None
    """Folder to write; default evaluation/ in the run folder, in a folder named after the data and the step."""
    limit: int = 0
    """Take this many images, spread evenly over the set; 0 = all."""
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the generator's weights, or the last ones."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes cuda when there is one."""
    batch_size: int = 32
    """Images per pass."""
    seed: int = 0
    """Of the patches and directions of the sliced Wasserstein distance."""
    eager: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the plain PyTorch references instead of the fused operators."""


@dataclass(frozen=True)
class Images:
    """(N, C, R, R) uint8 each: what the model saw (enlarged), its results, the originals."""

    inputs: Tensor
    refined: Tensor
    originals: Tensor


def originals(dataset: "ImageSet", indices: np.ndarray, resolution: int, channels: int) -> Iterator[tuple[Any, Any]]:
    """Each image as (channels, R, R) uint8, cropped and shrunk as in training, and its landmarks in pixels of R."""
    for index in indices:
        image, _ = pictures.read(dataset.read(int(index)))
        placement = pictures.place(image.size, resolution, "crop")
        points = None if dataset.landmarks is None else placement.landmarks(dataset.landmarks[index])
        yield pictures.to_square(image, placement, resolution, channels), points


def refine_all(model: torch.nn.Module, config: Any, dataset: "ImageSet", indices: np.ndarray, batch_size: int,
               device: torch.device) -> Images:  # fmt: skip
    """Run the model over the chosen images."""
    inputs, refined, kept = [], [], []
    source = originals(dataset, indices, config.resolution, config.channels)
    with tqdm(total=len(indices), unit=" images", desc="refining", disable=None, dynamic_ncols=True) as progress:
        while pairs := [pair for _, pair in zip(range(batch_size), source, strict=False)]:
            pixels = np.stack([pixels for pixels, _ in pairs])
            images = to_network(pixels, device)
            landmarks = None
            if config.landmarks:
                landmarks = torch.from_numpy(np.stack([points for _, points in pairs])).to(device)
            with torch.inference_mode():
                refined.append(torch.from_numpy(to_pixels(model(images, landmarks))))
                inputs.append(torch.from_numpy(to_pixels(seen_by(images, max(config.inject)))))
            kept.append(torch.from_numpy(pixels))
            progress.update(len(pairs))
    return Images(torch.cat(inputs), torch.cat(refined), torch.cat(kept))


def seen_by(images: Tensor, side: int) -> Tensor:
    """The shrunken copy of `side` pixels, enlarged bilinearly to the images' size, pixel centres where they were."""
    factor = images.shape[-1] // side
    small = images[:, :, ::factor, ::factor]
    # nearest keeps the first pixel of every block: sample i lies at i * factor, not at the centre of the block
    places = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype) / factor
    places = (2 * places + 1) / side - 1
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1).expand(len(images), -1, -1, -1)
    return F.grid_sample(small.contiguous(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def measure(images: Images, finder: FaceFinder, seed: int) -> dict[str, dict[str, Any]]:
    """{"refined", "input", "original"} -> measures."""
    found: dict[str, dict[str, Any]] = {"refined": {}, "input": {}, "original": {}}
    for name, pixels in (("refined", images.refined), ("input", images.inputs)):
        for key, values in likeness(pixels, images.originals).items():
            finite = values[values.isfinite()]
            values = finite if len(finite) else values.new_tensor([0.0])
            found[name][key] = {"mean": float(values.mean()), "std": float(values.std(correction=0))}
        found[name]["swd"] = sliced_wasserstein.distance(pixels, images.originals, seed=seed)
    sets = {"refined": images.refined, "input": images.inputs, "original": images.originals}
    total = sum(map(len, sets.values()))
    with tqdm(total=total, unit=" images", desc="finding faces", disable=None, dynamic_ncols=True) as progress:
        for name, pixels in sets.items():
            hits = 0
            for one in pixels:
                hits += bool(finder.boxes(np.ascontiguousarray(one.permute(1, 2, 0).numpy()).squeeze()))
                progress.update()
            found[name]["detection_rate"] = hits / len(pixels)
    found["refined"]["identity"] = identity(images.refined, images.originals) or SKIPPED
    return found


def panels(measures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What figures.bars draws."""
    found = []
    titles = {"l1": "L1 (lower is better)", "psnr": "PSNR in dB", "ssim": "SSIM"}
    for key, title in titles.items():
        both = {name: (measures[name][key]["mean"], measures[name][key]["std"]) for name in ("refined", "input")}
        found.append({"title": title, "bars": both})
    distances = {name: (measures[name]["swd"]["mean"], None) for name in ("refined", "input")}
    found.append({"title": "SWD x 1000 (lower is better)", "bars": distances})
    rates = {name: (100 * measures[name]["detection_rate"], None) for name in ("refined", "input", "original")}
    return [*found, {"title": "faces detected, %", "bars": rates}]


def table(measures: dict[str, dict[str, Any]]) -> str:
    """The measures for the terminal."""
    lines = [f"{'':<16}{'refined':>12}{'input':>12}{'original':>12}"]
    for key in ("l1", "psnr", "ssim"):
        lines.append(f"{key:<16}" + "".join(f"{measures[name][key]['mean']:>12.4f}" for name in ("refined", "input")))
    for level in measures["refined"]["swd"]:
        label = "swd" if level == "mean" else f"swd {level}x{level}"
        lines.append(f"{label:<16}" + "".join(f"{measures[n]['swd'][level]:>12.2f}" for n in ("refined", "input")))
    rates = "".join(f"{measures[name]['detection_rate']:>12.1%}" for name in ("refined", "input", "original"))
    lines.append(f"{'faces detected':<16}{rates}")
    same = measures["refined"]["identity"]
    text = same if isinstance(same, str) else ", ".join(f"{name} {value:.3g}" for name, value in same.items())
    return "\n".join([*lines, f"{'identity':<16}    {text}"])


def main(argv: list[str]) -> int:
    """Measure a trained model on a folder of images."""
    arguments = parse(Arguments, argv, prog="kiln evaluate", description="Measure a trained model on a set of images.")
    if arguments.limit < 0 or arguments.batch_size < 1:
        raise InputError("--limit must not be negative and --batch-size at least 1")
    require_torchmetrics()
    finder = FaceFinder()
    device = pick_device(arguments.device)

    from engine import checkpoint
    from engine.data import open_dataset
    from engine.systems import load_trained

    stored = checkpoint.load(arguments.model)
    model, config = load_trained(stored.path, device, fused=not arguments.eager, ema=arguments.weights == "ema")
    dataset = open_dataset(
        arguments.data, channels=config.channels, resolution=config.resolution, points=68 if config.landmarks else 0
    )
    count = min(arguments.limit or len(dataset), len(dataset))
    indices = np.arange(count, dtype=np.int64) * len(dataset) // count
    run_dir = stored.path.absolute().parent.parent
    out = arguments.out or run_dir / "evaluation" / f"{Path(dataset.name).stem}-step_{stored.step:08d}"
    print(f"data    {dataset.summary()}, {count} taken", flush=True)

    atomic.make_folder(out)
    # an earlier evaluation must not look like the result of this one
    (out / "metrics.json").unlink(missing_ok=True)
    images = refine_all(model, config, dataset, indices, arguments.batch_size, device)
    measures = measure(images, finder, arguments.seed)
    draw(images, measures, config.inject, out)
    about = {
        "model": str(stored.path),
        "system": config.system,
        "step": stored.step,
        "weights": arguments.weights,
        "inject": list(config.inject),
        "resolution": config.resolution,
        "data": str(arguments.data),
        "data_digest": dataset.digest,
        "images": count,
        "seed": arguments.seed,
        "device": str(device),
        "kiln": __version__,
        "torch": torch.__version__,
    }
    atomic.write_text(out / "metrics.json", json.dumps({**about, "units": UNITS, **measures}, indent=2) + "\n")
    print(f"{table(measures)}\n{out / 'metrics.json'}")
    return 0


def draw(images: Images, measures: dict[str, dict[str, Any]], inject: tuple[int, ...], out: Path) -> None:
    """Write examples.png, heatmaps.png and bars.png for a few images spread over the set."""
    from engine.samples import save_grid

    count = min(EXAMPLES, len(images.refined))
    chosen = torch.arange(count) * len(images.refined) // count
    shown = to_network(images.originals[chosen].numpy(), torch.device("cpu"))
    rows = {}
    for side in inject:
        factor = shown.shape[-1] // side
        rows[f"input {side}"] = F.interpolate(shown[:, :, ::factor, ::factor], scale_factor=factor, mode="nearest")
    rows["refined"] = to_network(images.refined[chosen].numpy(), torch.device("cpu"))
    save_grid({**rows, "original": shown}, out / "examples.png")
    atomic.write_bytes(out / "heatmaps.png", figures.heatmaps(images.refined[chosen], images.originals[chosen]))
    atomic.write_bytes(out / "bars.png", figures.bars(panels(measures)))


if __name__ == "__main__":
    run("evaluate", main)
