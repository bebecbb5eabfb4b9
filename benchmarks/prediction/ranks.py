"""`python -m benchmarks ranks`: how training would go on 8 to 1024 GPUs, on paper.

    step(N, b) = fixed + b image + bucket + sum over exchanges of t(bytes, N)
    ring(S, N) = 10 us + 2 (N - m) 1.9 us + 2 (m - 1) 4.0 us + 2 (N - 1) / N S / bandwidth
    tree(S, N) = 4.4 us + 2 (N / m - 1) 1.2 us + 2 log2(m) 8.5 us + 2 S / bandwidth
    t = the lesser of ring and tree; N = GPUs, m = machines of 8 GPUs, b = images on a GPU, S = bytes

No part of an exchange overlaps with computation, as in engine.distributed.gradients. The form of ring and tree and
their latencies (protocol LL128) are those by which NCCL chooses between them (NVIDIA/nccl, src/graph/tuning.cc). The
step of one GPU is by default the roofline's, the least that it can take; a measured one can be given instead.
"""

import math
from dataclasses import dataclass

from benchmarks.prediction.devices import DEVICES
from benchmarks.timing.table import Table, percent
from engine import cli
from engine.networks.refiner import MODELS
from engine.systems.refiner import RefinerConfig
from engine.systems.registry import build

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
MACHINE = 8  # GPUs
# bytes/s that an exchange reaches: four fifths of NVLink 4 (450 GB/s a GPU, each way) inside a machine, and between
# machines four fifths of their network cards (400 Gbit/s each, one for each GPU: 400 GB/s a machine)
INSIDE, BETWEEN = 0.8 * 450e9, 0.8 * 400e9
US = 1e-6


@dataclass
class Arguments:
    """What `python -m benchmarks ranks` takes."""

    step_ms: float = 1.699
    """One GPU's step at --batch-size, in ms; default: predicted for an H100 in bf16 (benchmarks/results)."""
    fixed: float = 0.13
    """The share of that step's time that does not grow with the batch."""
    batch_size: int = 25
    """Images of that step, and on each GPU in the first table, whose global batch grows with the number of GPUs."""
    global_batch: int = 1024
    """Images of all GPUs together in the second table, in which only the number of GPUs grows."""


def ring(size: float, gpus: int) -> float:
    """Seconds for the sum of `size` bytes over the GPUs, by a ring."""
    machines, bandwidth = _layout(gpus)
    waits = 10 + 2 * (gpus - machines) * 1.9 + 2 * (machines - 1) * 4.0
    return waits * US + 2 * (gpus - 1) / gpus * size / bandwidth


def tree(size: float, gpus: int) -> float:
    """Seconds for the sum of `size` bytes over the GPUs, by a tree of machines; the GPUs of a machine form a chain."""
    machines, bandwidth = _layout(gpus)
    waits = 4.4 + 2 * (gpus / machines - 1) * 1.2 + 2 * math.log2(machines) * 8.5
    return waits * US + 2 * size / bandwidth


def exchange(size: float, gpus: int) -> float:
    """Seconds for the sum of `size` bytes, by ring or tree, whichever is faster; 0 for one GPU."""
    return min(ring(size, gpus), tree(size, gpus)) if gpus > 1 else 0.0


def _layout(gpus: int) -> tuple[int, float]:
    machines = -(-gpus // MACHINE)
    return machines, INSIDE if machines == 1 else BETWEEN


@dataclass(frozen=True)
class Step:
    """One GPU's step, and what it exchanges.

    fixed: seconds however many images; image: seconds for each; sizes: bytes of each exchange over all GPUs
    """

    fixed: float
    image: float
    sizes: tuple[int, ...]

    def seconds(self, gpus: int, batch: float) -> float:
        """Seconds of a step with `batch` images on each of the GPUs."""
        return self.fixed + batch * self.image + self.overhead(gpus)

    def overhead(self, gpus: int) -> float:
        """Seconds that further GPUs add to a step.

        Gradients are copied into one tensor and divided there (two reads, two writes), and summed over the GPUs.
        """
        if gpus == 1:
            return 0.0
        copied = 4 * sum(self.sizes) / DEVICES["h100"].hbm_bytes
        return copied + sum(exchange(size, gpus) for size in self.sizes)

    def half(self, gpus: int) -> float:
        """Images on each GPU at which half of the step is work on images."""
        return (self.fixed + self.overhead(gpus)) / self.image


def refiner_sizes() -> tuple[int, ...]:
    """Bytes that the paper's refiner exchanges: the gradients of each optimiser, and three losses for k."""
    config = RefinerConfig(**{**RefinerConfig.PRESETS["paper"], "inject": MODELS["B"]})
    networks = build(config, "meta").networks().values()
    return (*(4 * sum(p.numel() for p in network.parameters()) for network in networks), 12)


def tables(arguments: Arguments) -> list[Table]:
    """Images/s by number of GPUs: with a batch on each GPU, and with one global batch for all of them."""
    seconds = arguments.step_ms / 1e3
    step = Step(seconds * arguments.fixed, seconds * (1 - arguments.fixed) / arguments.batch_size, refiner_sizes())
    columns = [(heading, 14) for heading in ("GPUs", "added us", "step ms", "images/s", "efficiency", "half at")]
    weak = Table(f"{arguments.batch_size} images on each GPU", columns)
    strong = Table(f"{arguments.global_batch} images on all GPUs together", columns)
    for gpus in (1, *GPUS):
        for table, of_one, batch in (
            (weak, arguments.batch_size, arguments.batch_size),
            (strong, arguments.global_batch, arguments.global_batch / gpus),
        ):
            took, one = step.seconds(gpus, batch), step.seconds(1, of_one)
            rate = gpus * batch / took
            table.add(
                [
                    str(gpus),
                    f"{1e6 * step.overhead(gpus):.0f}",
                    f"{1e3 * took:.2f}",
                    f"{rate:,.0f}",
                    percent(rate / (gpus * of_one / one)),
                    f"{step.half(gpus):.1f}",
                ]
            )
    return [weak, strong]


def main(argv: list[str]) -> int:
    """Prints both tables as Markdown."""
    arguments = cli.parse(Arguments, argv, prog="python -m benchmarks ranks", description=__doc__)
    sizes = ", ".join(f"{size:,}" for size in refiner_sizes())
    print(f"The paper's refiner exchanges {sizes} bytes in a step.\n")
    print("\n".join(table.markdown() for table in tables(arguments)))
    return 0
