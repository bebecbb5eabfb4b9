"""The parts of torch.cuda that record a graph, without a GPU: what they leave behind after a failure as torch does."""

import contextlib
from collections.abc import Iterator

import pytest
import torch


class PretendedCuda:
    """stream, pools, random_state: the current stream, the pools that allocations go to, the generator's state."""

    def __init__(self) -> None:
        self.stream = "default"
        self.pools: list[object] = []
        self.random_state = "outside"
        self.recordings = 0
        self.waiting_is_an_error = False

    def wait(self) -> None:
        """What a call does that makes the host wait."""
        if self.waiting_is_an_error:
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.pools:
            raise RuntimeError("operation not permitted when stream is capturing")

    @contextlib.contextmanager
    def graph(self, graph: object, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        """torch.cuda.graph: after a failure ending the capture raises too, and nothing is put back."""
        self.recordings += 1
        before, self.stream = self.stream, stream or "recording"
        self.pools.append(pool)
        self.random_state = "recording"
        try:
            yield
        except RuntimeError:
            raise RuntimeError("the capture was invalidated") from None
        self.end_pool(0, pool)
        self.random_state, self.stream = "outside", before

    def end_pool(self, device: int, pool: object) -> None:
        """torch._C._cuda_endAllocateToPool."""
        self.pools.remove(pool)

    def set_stream(self, stream: str) -> None:
        """torch.cuda.set_stream."""
        self.stream = stream

    def install(self, patch: pytest.MonkeyPatch) -> "PretendedCuda":
        """Puts itself in the place of torch.cuda's own."""
        pretended = self

        class Generator:
            def clone_state(self) -> str:
                return pretended.random_state

            def graphsafe_set_state(self, state: str) -> None:
                pretended.random_state = state

        class Stream:
            def wait_stream(self, other: object) -> None: ...

        class Graph:
            def replay(self) -> None: ...

        def set_mode(mode: object) -> None:
            pretended.waiting_is_an_error = mode == "error"

        names = {
            "current_device": lambda: 0,
            "graph_pool_handle": object,
            "current_stream": lambda *device: pretended.current(),
            "default_generators": [Generator()],
            "graph": self.graph,
            "set_stream": lambda stream: pretended.set_stream(stream.name),
            "Stream": Stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "synchronize": lambda: None,
            "CUDAGraph": Graph,
            "get_sync_debug_mode": lambda: 0,
            "set_sync_debug_mode": set_mode,
        }
        for name, value in names.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_pool, raising=False)
        return self

    def current(self) -> object:
        """The current stream, by its name."""

        class Current:
            name = self.stream

            def wait_stream(self, other: object) -> None: ...

        return Current()
