"""Moves a face image with the landmarks of a clip, and writes frames, film, animation and a sheet."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw

from engine.data.decoding.plain_images import BadImage
from engine.data.landmarks import POINTS
from engine.data.pixel_values import from_uint8, network_input, result_pixels
from engine.errors import InputError
from engine.host import atomic_files
from engine.host.environment import pick_device
from engine.host.input_files import UnreadableFile, read_input
from engine.inference import marking, pictures, shipped
from engine.inference.driving import align, read_driving, source_points
from engine.inference.faces import FaceFinder, Framing
from engine.inference.sample_grid import draw_grid
from engine.inference.trained import load_trained
from engine.systems.kinds import DRIVE
from engine.systems.registry import system_class

WRITTEN = ("frames", "driven.gif", "driven.mp4", "sheet.png")
IN_SHEET = 8  # frames on the sheet, at most
# the lines through the 68 landmarks in iBUG order: (the points of a line, whether it closes)
LINES = (
    (range(0, 17), False),
    (range(17, 22), False),
    (range(22, 27), False),
    (range(27, 31), False),
    (range(31, 36), False),
    (range(36, 42), True),
    (range(42, 48), True),
    (range(48, 60), True),
    (range(60, 68), True),
)


@dataclass
class ReenactOptions:
    """The options of `kiln reenact`."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder (its best checkpoint, or its newest good one), checkpoint folder, exported folder, or the name of a
    shipped model (`kiln models`)."""
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Image of the face to drive."""
    driving: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DRIVING")]
    """Data set with landmarks and clips (folder or zip), folder of .pts files, or .npy array (frames, points, 2) in
    pixels of the model's square."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write; new or empty."""
    clip: str | None = None
    """Which clip of DRIVING: person/video, identity, or the folder of .pts files; default the longest."""
    frames: int = 0
    """How many frames of the clip, from its first; 0 = all."""
    align: tyro.conf.FlagCreatePairsOff[bool] = False
    """Move, turn and scale the clip's landmarks so that their mean shape lies on the source's face."""
    source_landmarks: Path | None = None
    """For --align and models trained with --source-points: landmarks of SOURCE in its pixels (.npy or .pts); default
    those of the data set SOURCE lies in."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """For a source and frames that are not square: crop takes the central square (as in training), pad takes the whole
    image and pads it, stretch squeezes the whole image."""
    face_crop: tyro.conf.FlagCreatePairsOff[bool] = False
    """Frame the source's largest face as in the model's photos (needs OpenCV)."""
    size: int = 0
    """Side of the results; 0 = the network's resolution."""
    fps: int = 25
    """Frames per second of the film and the animation."""
    weights: Literal["ema", "raw"] = "ema"
    """ema: the moving average of the generator's weights; raw: the last weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes cuda when there is one."""
    batch_size: int = 16
    """Frames per pass."""
    eager: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the plain PyTorch references instead of the fused operators."""

    def check(self) -> None:
        """Raise InputError for values that cannot work."""
        for name, least, most in (
            ("batch_size", 1, 1 << 20),
            ("fps", 1, 50),
            ("frames", 0, 1 << 30),
            ("size", 0, 4096),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"--{name.replace('_', '-')} must be between {least} and {most}, got {value}")
        if not self.source.is_file():
            raise InputError(f"{self.source}: no such image; SOURCE is one image file")
        atomic_files.require_free(self.output, *WRITTEN)


def read_source(options: ReenactOptions, resolution: int, channels: int) -> tuple[np.ndarray, pictures.Placement]:
    """The source image in the network's square, (C, R, R) uint8, and its placement there. Raises InputError."""
    path = options.source
    try:
        image, _ = pictures.read(read_input(path))
    except (BadImage, UnreadableFile) as error:
        raise InputError(f"{path} cannot be used: {error}") from None
    window = None
    if options.face_crop:
        window = FaceFinder().portrait(np.asarray(image), Framing.of(shipped.resolve(options.model)))
        if window is None:
            raise InputError(f"no face found in {path}; leave out --face-crop, or give a picture cut to the face")
    placement = pictures.place(image.size, resolution, options.fit, window)
    return pictures.to_square(image, placement, resolution, channels), placement


def drive(
    model: torch.nn.Module,
    source: np.ndarray,
    own: np.ndarray | None,
    points: np.ndarray,
    device: torch.device,
    batch_size: int,
) -> np.ndarray:
    """The source moved to each frame's points.

    source: (C, R, R) uint8; own: its points (K, 2) for a model that needs them; points: (F, K, 2). Points are float32
    in pixels of R. Returns (F, C, R, R) uint8.
    """
    image, results = network_input(source[None], device), []
    of_source = None if own is None else torch.from_numpy(own).to(device)
    with torch.inference_mode():
        for start in range(0, len(points), batch_size):
            part = torch.from_numpy(points[start : start + batch_size]).to(device)
            images = image.expand(len(part), -1, -1, -1).contiguous(memory_format=torch.channels_last)
            others = [] if of_source is None else [of_source.expand_as(part)]
            results.append(result_pixels(model(images, part, *others)))
    return np.concatenate(results)


def draw_points(points: np.ndarray, resolution: int, scale: int = 4) -> Image.Image:
    """A grey picture of landmarks, `scale` times as large as the square: lines for 68 points, else dots.

    points: (K, 2) in pixels of the square; a missing point is NaN.
    """
    picture = Image.new("L", (resolution * scale,) * 2)
    pen = ImageDraw.Draw(picture)
    places = (points + 0.5) * scale - 0.5
    if len(points) == POINTS and np.isfinite(points).all():
        for run_of, closed in LINES:
            line = [tuple(places[i]) for i in run_of]
            pen.line(line + line[:1] * closed, fill=255, width=scale // 2)
    else:
        for x, y in places[np.isfinite(places).all(1)]:
            pen.ellipse((x - scale, y - scale, x + scale, y + scale), fill=255)
    return picture


def sheet(source: np.ndarray, points: np.ndarray, results: np.ndarray) -> Image.Image:
    """A picture of source, driving landmarks and result, for up to 8 frames spread over the clip."""
    resolution = source.shape[-1]
    shown = sorted({round(i) for i in np.linspace(0, len(points) - 1, IN_SHEET)})
    drawn = np.stack([np.asarray(draw_points(points[i], resolution)) for i in shown])

    def row(pixels: np.ndarray) -> torch.Tensor:
        images = from_uint8(torch.from_numpy(np.ascontiguousarray(pixels)))
        return torch.nn.functional.interpolate(images, size=4 * resolution, mode="nearest")

    rows = {"source": row(np.repeat(source[None], len(shown), 0)), "driving": row(drawn[:, None])}
    return draw_grid(rows | {"result": row(results[shown])})


def to_images(results: Iterable[np.ndarray], size: int) -> list[Image.Image]:
    """Results (C, R, R) uint8 as pictures, resized to side `size`; 0 keeps their size."""
    images = []
    for pixels in results:
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        images.append(image.resize((size, size), Image.Resampling.LANCZOS) if size else image)
    return images


def save_film(images: Sequence[Image.Image], path: Path, description: str, fps: int) -> str | None:
    """Write an MP4 marked as synthetic; returns None, or why OpenCV cannot. Raises OSError when the disk fails.

    OpenCV is imported here because it is optional: everything else works without it.
    """
    try:
        import cv2
    except ImportError:
        return "it needs OpenCV (pip install opencv-python-headless)"
    # the codec needs even sides
    width, height = (side + side % 2 for side in images[0].size)
    with tempfile.TemporaryDirectory() as folder, _in_memory(Path(folder, path.name)) as place:
        film = cv2.VideoWriter(str(place), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
        if not film.isOpened():
            return "this OpenCV cannot write MP4"
        for image in images:
            pixels = np.asarray(image.convert("RGB").resize((width, height)))
            film.write(np.ascontiguousarray(pixels[..., ::-1]))
        film.release()
        if cv2.VideoCapture(str(place)).get(cv2.CAP_PROP_FRAME_COUNT) != len(images):
            raise OSError(errno.EIO, "the film was not written whole", str(path))
        content = place.read_bytes()
    atomic_files.write_bytes(path, content + marking.film_mark(description))
    return None


@contextlib.contextmanager
def _in_memory(path: Path) -> Iterator[Path]:
    """Make `path` a link to memory that is written and read like a file; elsewhere than on Linux leave it.

    OpenCV does not say when a disk refuses a part of a film.
    """
    if not hasattr(os, "memfd_create"):
        yield path
        return
    memory = os.memfd_create(path.name)
    try:
        path.symlink_to(f"/proc/self/fd/{memory}")
        yield path
    finally:
        os.close(memory)


def reenact_files(options: ReenactOptions) -> str:
    """Drive the source image, write the results, and return lines that say what was written. Raises InputError."""
    options.check()
    device = pick_device(options.device)
    fused, ema = not options.eager, options.weights == "ema"
    trained = load_trained(options.model, device, fused, ema, kind=DRIVE)
    model, config = trained.module, trained.config
    count = system_class(config.system).needs(config)[0].points
    needs = "this model" if model.needs_source_points else "--align" if options.align else None
    if options.source_landmarks and not needs:
        raise InputError("--source-landmarks is for --align and models that need them: add --align, or leave it out")
    source, placement = read_source(options, config.resolution, config.channels)
    driving = read_driving(options.driving, options.clip, count, config.resolution, options.fit)
    points = driving.points[: options.frames or None]
    own = None
    if needs:
        own = placement.landmarks(source_points(options.source, options.source_landmarks, count, needs))
    if options.align:
        points = align(points, own)
    own = own if model.needs_source_points else None
    results = drive(model, source, own, points, device, options.batch_size)
    description = f"Synthetic images: generated by a neural network (Kiln {config.system}) from an image and landmarks"
    out, images = options.output, to_images(results, options.size)
    with atomic_files.filling(out, *WRITTEN):
        for number, image in enumerate(images):
            marking.save(image, out / "frames" / f"{number:05d}.png", description)
        animation = marking.encode_animation(images, round(1000 / options.fps), description)
        atomic_files.write_bytes(out / "driven.gif", animation)
        marking.save(sheet(source, points, results), out / "sheet.png", description)
        missing = save_film(images, out / "driven.mp4", description, options.fps)
    note = f"no film was written: {missing}; driven.gif shows the same\n" if missing else ""
    return f"{note}{len(images)} frames of {driving.name} at {images[0].width}x{images[0].height}: {out}"
