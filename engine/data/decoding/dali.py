"""NVIDIA DALI's pipelines: the bytes of image files -> squares of uint8, in the order given, on the CPU or on a GPU."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from engine.data.decoding.stored_squares import FIRST_SIDEWAYS, MIRRORED_X, MIRRORED_Y
from engine.distributed import torchrun
from engine.errors import InputError

if TYPE_CHECKING:
    import torch

PIXELS_AT_ONCE = 48_000_000
OLDEST_DALI = (2, 2)  # older ones show JPEG files of three of the eight EXIF orientations unturned


def too_old(version: str) -> str:
    """Why this version of DALI is not used, and what to do; "" where it is new enough."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not numbers or numbers >= OLDEST_DALI:
        return ""
    oldest = ".".join(map(str, OLDEST_DALI))
    return (
        f"NVIDIA DALI {version} shows some turned JPEG files unturned: "
        f"pip install --upgrade kiln-engine[dali-cu13] (or kiln-engine[dali-cu12]), for {oldest} or newer"
    )


def require_dali() -> ModuleType:
    """The package nvidia.dali. Raises InputError that says what to install when it is missing or too old."""
    try:  # here, for DALI is optional and heavy
        from nvidia import dali
        from nvidia.dali import fn, types  # noqa: F401 (makes dali.fn and dali.types exist)
    except ImportError as error:
        raise InputError(
            "image files are read through NVIDIA DALI, which is not installed here: "
            "pip install kiln-engine[dali-cu13] (or kiln-engine[dali-cu12]; both work without a GPU)"
        ) from error
    if why := too_old(dali.__version__):
        raise InputError(why)
    return dali


def worker_threads() -> int:
    """Threads for reading and decoding: the cores that are this process's share, at most 8."""
    return min(8, torchrun.cores())


def runs_that_fit(pixels: Sequence[int], files: int, at_once: int = PIXELS_AT_ONCE) -> Iterator[range]:
    """Runs of neighbouring files that are decoded together, so that memory stays small whatever the files' sizes.

    pixels:  of each file.
    files:   how many a run holds at most.
    at_once: pixels; a run also ends before it holds more.
    """
    start, total = 0, 0
    for index, count in enumerate(pixels):
        if index > start and (total + count > at_once or index - start == files):
            yield range(start, index)
            start, total = index, 0
        total += count
    if start < len(pixels):
        yield range(start, len(pixels))


class DecodingError(Exception):
    """DALI failed on a batch; the message is DALI's."""


class Decoder:
    """One pipeline: decode, crop the central square, resize (antialiased, linear) to `stored` pixels a side, turn.

    Grey is made from RGB, as Pillow makes it: of a codec's own grey, that of PNG files depends on their gamma, and that
    of JPEG files differs for colours beyond RGB. Turning follows the record, because codecs do not all know XMP's.

    batch_size: images of a call at most.
    stored:     side of the squares in pixels.
    channels:   1 (grey) or 3 (RGB).
    On the CPU the result for an image does not depend on the other images of the call. Call it from one thread at a
    time.
    """

    def __init__(self, batch_size: int, stored: int, channels: int, device: "torch.device") -> None:
        dali = require_dali()
        fn, types = dali.fn, dali.types
        on_gpu = device.type == "cuda"
        pipeline = dali.Pipeline(
            batch_size=batch_size,
            num_threads=worker_threads(),
            device_id=(device.index or 0) if on_gpu else None,
            prefetch_queue_depth=1,  # the loaders keep their own queue
        )
        with pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            start = fn.external_source(name="start", dtype=types.FLOAT, ndim=1)
            end = fn.external_source(name="end", dtype=types.FLOAT, ndim=1)
            images = fn.decoders.image(
                encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB, adjust_orientation=False
            )
            if channels == 1:
                images = fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)
            images = fn.resize(
                images,
                size=[stored, stored],
                roi_start=start,
                roi_end=end,
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
            pipeline.set_outputs(images)
        pipeline.build()
        self._pipeline, self._device = pipeline, device
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None

    def __call__(
        self, encoded: Sequence[bytes | bytearray], corners: np.ndarray, sides: np.ndarray, orientations: np.ndarray
    ) -> "torch.Tensor":
        """Decode files together.

        encoded: the bytes of B <= batch_size files.
        corners: (B, 2) x and y, and sides: (B,), of the square to keep of each file, in pixels as they are stored.
        orientations: (B,) int, 1 to 8, how the pixels of each file are turned, as EXIF counts.
        returns: (B, stored, stored, channels) uint8 on the device, a fresh tensor, complete when the call returns. On a
                 GPU its memory belongs to a stream of the decoder: use it through `claim`.
        Raises DecodingError when DALI fails on one of the files; the decoder is then unusable.
        """
        import torch  # here, because `kiln data validate` decodes through Prober and needs no torch

        start = corners[:, ::-1].astype(np.float32)
        end = (corners + sides[:, None])[:, ::-1].astype(np.float32)
        files = [np.frombuffer(data, np.uint8) for data in encoded]
        try:
            (images,) = self._pipeline.run(
                encoded=files, start=np.ascontiguousarray(start), end=np.ascontiguousarray(end)
            )
        except RuntimeError as error:
            raise DecodingError(" ".join(str(error).split())[:300]) from error
        if self._device.type == "cpu":
            return _turn_upright(torch.from_numpy(np.array(images.as_tensor())), orientations)
        from nvidia.dali.plugin.pytorch import feed_ndarray  # here, for DALI is optional and heavy

        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
            self._copied = torch.cuda.Event(blocking=True)
        # allocated on the decoder's own stream, so that it is no block that kernels of training still use
        with torch.cuda.stream(self._stream):
            result = torch.empty(images.as_tensor().shape(), dtype=torch.uint8, device=self._device)
            feed_ndarray(images.as_tensor(), result, cuda_stream=self._stream)
            _turn_upright(result, orientations)
            self._copied.record()
        # the calling thread sleeps until the copy is done, for DALI writes its next batch where this batch was
        self._copied.synchronize()
        return result


def _turn_upright(squares: "torch.Tensor", orientations: np.ndarray) -> "torch.Tensor":
    """Squares (B, S, S, C) as they are stored -> as they are displayed, in place; returns the same tensor."""
    for square, orientation in zip(squares, orientations.tolist(), strict=True):
        if orientation != 1:
            turned = square.transpose(0, 1) if orientation >= FIRST_SIDEWAYS else square
            axes = [axis for axis, kinds in ((0, MIRRORED_Y), (1, MIRRORED_X)) if orientation in kinds]
            square.copy_(turned.flip(axes) if axes else turned.clone())
    return squares


def claim(decoded: "torch.Tensor") -> "torch.Tensor":
    """Tell the allocator that the current CUDA stream uses what a Decoder returned, so that it is not reused too early.

    returns: the same tensor.
    """
    if decoded.is_cuda:
        import torch  # here, because importing this file must load no torch

        decoded.record_stream(torch.cuda.current_stream(decoded.device))
    return decoded


@dataclass(frozen=True, slots=True)
class Probe:
    """What DALI makes of a file.

    size:      width and height in pixels, as they are stored; None when DALI cannot decode the file.
    complaint: the first line that a codec printed; "" when it printed nothing.
    """

    size: tuple[int, int] | None
    complaint: str = ""


class Prober:
    """Decodes files on the CPU to see whether DALI can. A broken file is reported and does no harm.

    batch_size: files of a call at most. Raises InputError when DALI is not installed.
    """

    def __init__(self, batch_size: int) -> None:
        require_dali()
        self._batch_size = batch_size
        self._pipelines: dict[int, object] = {}

    def probe(self, encoded: Sequence[bytes]) -> list[Probe]:
        """What DALI makes of each file. They are decoded together, and one by one when something is wrong."""
        sizes, complaint = self._decode(self._batch_size, encoded)
        if sizes and not complaint:
            return [Probe(size) for size in sizes]
        probes = []
        for data in encoded:
            sizes, complaint = self._decode(1, [data])
            probes.append(Probe(sizes[0] if sizes else None, complaint))
        return probes

    def _decode(self, batch_size: int, encoded: Sequence[bytes]) -> tuple[list[tuple[int, int]], str]:
        """Width and height of each file ([] when DALI fails on one), and what codecs printed."""
        pipeline = self._pipelines.pop(batch_size, None) or self._build(batch_size)
        with _native_stderr() as printed:
            try:
                (images,) = pipeline.run(encoded=[np.frombuffer(data, np.uint8) for data in encoded])
            except RuntimeError:
                return [], ""
        self._pipelines[batch_size] = pipeline  # only now: a pipeline that has raised is not used again
        return [(width, height) for height, width, _ in images.shape()], "".join(printed)

    @staticmethod
    def _build(batch_size: int):
        dali = require_dali()
        pipeline = dali.Pipeline(
            batch_size=batch_size, num_threads=worker_threads(), device_id=None, prefetch_queue_depth=1
        )
        with pipeline:
            encoded = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
            pipeline.set_outputs(
                dali.fn.decoders.image(encoded, device="cpu", output_type=dali.types.RGB, adjust_orientation=False)
            )
        pipeline.build()
        return pipeline


@contextlib.contextmanager
def _native_stderr() -> Iterator[list[str]]:
    """Collect the first line that native code prints to standard error, where codecs complain of doubtful files."""
    printed: list[str] = []
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # there is no standard error
        yield printed
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield printed
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines = re.sub(r"\x1b\[[0-9;]*m", "", file.read().decode("utf-8", "replace")).split("\n")
            printed += [line.strip()[:120] for line in lines if line.strip()][:1]
