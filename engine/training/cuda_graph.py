"""A training step as one CUDA graph: recorded once and then launched whole, so that no step waits for the host.

The first WARM_UP steps run kernel by kernel. They train like any other step, compile and tune every kernel, and let
Adam create its state. Then `System.update` is recorded without running. Every later step copies its batch into the
recorded buffers, sets the scalars of `System.advance` and the learning rate, and launches the graph.

With KILN_SYNC_DEBUG=1 in the environment every wait for the device inside a recorded step is an error (`no_waiting`).
Source: PyTorch's notes on CUDA graphs, "Whole-network capture".
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from engine.data import Batch
from engine.systems.base import System

WARM_UP = 3

Losses = dict[str, Tensor]


class Recorder(Protocol):
    """Runs a function that launches work on the device, or records that work and replays the recording."""

    def warm(self, work: Callable[[], Losses]) -> Losses:
        """Run the work now, on the stream that the recording will use."""

    def record(self, work: Callable[[], Losses]) -> Losses:
        """Record the work without running it; returns the tensors that each replay fills."""

    def replay(self) -> None:
        """Start the recorded work on the current stream."""


class CudaRecorder:
    """Records into a torch.cuda.CUDAGraph that has its own memory pool."""

    def __init__(self, device: torch.device):
        self._device = device
        # a recording needs a stream of its own; the warm-up steps run on it too, because autograd remembers the stream
        # of each forward pass
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()

    def warm(self, work: Callable[[], Losses]) -> Losses:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = work()
        current.wait_stream(self._stream)
        return losses

    def record(self, work: Callable[[], Losses]) -> Losses:
        gc.collect()  # tensors in reference cycles must free their memory before the recording, not during it
        with torch.cuda.device(self._device), recording(self._graph, self._stream):
            return work()

    def replay(self) -> None:
        self._graph.replay()


@contextlib.contextmanager
def recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
    """Record what the block launches into a graph with a memory pool of its own, as torch.cuda.graph does.

    stream: that the block runs on; None: one of PyTorch's

    Where the block fails, its error is raised, and the current stream, the memory pool and the random generator are as
    before, so that later work is not spoilt: PyTorch 2.11 to 2.13 leave all three in the recording.
    """
    device, pool, current = torch.cuda.current_device(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    generator = torch.cuda.default_generators[device]
    numbers = generator.clone_state()
    cause: Exception | None = None
    try:
        # thread_local: other threads, such as the loader's, may use the device during the recording
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            try:
                yield
            except Exception as error:
                cause = error
                raise
    except Exception as error:
        torch.cuda.set_stream(current)
        generator.graphsafe_set_state(numbers)
        with contextlib.suppress(RuntimeError):  # it has ended where ending the recording came so far
            torch._C._cuda_endAllocateToPool(device, pool)
        # the error of the work tells more than the error of ending a recording that the work has broken
        raise (cause or error) from None


class GraphedStep:
    """`system.step(batch)`, recorded after WARM_UP calls and replayed from then on.

    recorder: None: a CudaRecorder on the system's device
    settle:   called right before the recording; from then until the next call no other thread uses the device

    Every batch must have the shapes and dtypes of the first one, and landmarks if the first has them. The next step
    overwrites the losses that a step returns. Weights, moments and states may be loaded at any time, because
    System.load_weights and load_state_dict write into the tensors that exist.
    """

    def __init__(
        self, system: System, recorder: Recorder | None = None, settle: Callable[[], None] = lambda: None
    ) -> None:
        self.system = system
        self._recorder = recorder or CudaRecorder(system.device)
        self._settle = settle
        self._inputs: Batch | None = None
        self._losses: Losses | None = None
        self._warmed = 0

    @property
    def recorded(self) -> bool:
        """Whether the next step is a replay."""
        return self._losses is not None

    def __call__(self, batch: Batch) -> Losses:
        """Train one step. Raises ValueError for a batch of other shapes, RuntimeError when recording fails."""
        self._take(batch)
        self.system.advance()
        if self._losses is not None:
            self._recorder.replay()
            return dict(self._losses)
        losses = self._recorder.warm(self._update)
        self._warmed += 1
        if self._warmed == WARM_UP:
            self._record()
        return losses

    def _update(self) -> Losses:
        return self.system.update(self._inputs)

    def _record(self) -> None:
        self._settle()
        for optimiser in self.system.optimisers.values():
            optimiser.zero_grad(set_to_none=True)  # the recorded step allocates its own gradients
        try:
            self._losses = self._recorder.record(self._update)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise RuntimeError(
                f"the training step could not be recorded as a CUDA graph ({type(error).__name__}: {reason}); "
                "--no-cuda-graph trains without it"
            ) from error

    def _take(self, batch: Batch) -> None:
        """Copy a batch into the buffers that the recorded step reads."""
        if self._inputs is None:
            self._inputs = _buffers(batch)
        if (kind := _kind(batch)) != (wanted := _kind(self._inputs)):
            raise ValueError(f"the recorded step takes batches of {wanted}, not of {kind}")
        _copy(batch, self._inputs)


def _copy(batch: Batch, into: Batch) -> None:
    into.images.copy_(batch.images)
    if into.landmarks is not None:
        into.landmarks.copy_(batch.landmarks)
    for part, place in zip(batch.more, into.more, strict=True):
        _copy(part, place)


def _buffers(batch: Batch) -> Batch:
    """Empty tensors like the batch's, images in channels_last; indices are host data, which a graph cannot read."""
    images = torch.empty_like(batch.images, memory_format=torch.channels_last)
    landmarks = None if batch.landmarks is None else torch.empty_like(batch.landmarks)
    return Batch(images, landmarks, batch.indices.new_empty(0), tuple(map(_buffers, batch.more)))


def _kind(batch: Batch) -> str:
    def of(tensor: Tensor | None) -> str:
        if tensor is None:
            return "none"
        return f"{'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"

    kind = f"images {of(batch.images)}, landmarks {of(batch.landmarks)}"
    return "; ".join([kind, *map(_kind, batch.more)])


def no_waiting(device: torch.device) -> contextlib.AbstractContextManager:
    """`waiting_raises` on a GPU with KILN_SYNC_DEBUG=1; elsewhere a block that changes nothing."""
    wanted = device.type == "cuda" and os.environ.get("KILN_SYNC_DEBUG", "") == "1"
    return waiting_raises() if wanted else contextlib.nullcontext()


@contextlib.contextmanager
def waiting_raises() -> Iterator[None]:
    """A block in which a call that makes the host wait for the GPU raises RuntimeError, in every thread."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
