"""What GPUs can do, as their maker states it, for the roofline and the occupancy of a compiled kernel."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One GPU. Rates are dense peaks, in FLOP/s and bytes/s.

    capability: compute capability, times ten
    processors: multiprocessors
    l2_bytes:   what all multiprocessors together can read from the L2 cache in a second
    launch:     seconds from the end of one kernel to the start of the next in a CUDA graph, its own start included
    latency:    seconds that a program takes at least: its first loads from memory and its last stores
    """

    name: str
    capability: int
    processors: int
    clock_hz: float
    half_flops: float
    tf32_flops: float
    float_flops: float
    hbm_bytes: float
    l2_bytes: float
    shared_per_processor: int
    shared_per_program: int
    launch: float = 1.0e-6
    latency: float = 1.2e-6
    registers_per_processor: int = 65536
    threads_per_processor: int = 2048
    programs_per_processor: int = 32


# Matrix and float32 rates, memory bandwidth, multiprocessors and boost clock: NVIDIA's architecture papers and data
# sheets of each product, without sparsity. Shared memory and registers: the tables of compute capabilities in the CUDA
# programming guide (of each program's shared memory 1 KiB is the system's). L2: the A100's paper states 5120 bytes per
# clock; for the H100 published micro-benchmarks read about 5.6 TB/s; nothing is published for the B200, taken as
# one and a half times its memory's. launch, latency: of the order that published measurements give for these GPUs.
DEVICES = {
    "a100": Device(
        "A100 SXM 80 GB", 80, 108, 1.41e9, 312e12, 156e12, 19.5e12, 2.039e12, 7.2e12, 164 * 1024, 163 * 1024
    ),
    "h100": Device("H100 SXM", 90, 132, 1.83e9, 989e12, 494e12, 66.9e12, 3.35e12, 5.6e12, 228 * 1024, 227 * 1024),
    "h200": Device("H200 SXM", 90, 132, 1.83e9, 989e12, 494e12, 66.9e12, 4.8e12, 5.6e12, 228 * 1024, 227 * 1024),
    "b200": Device("B200", 100, 148, 1.97e9, 2250e12, 1125e12, 75e12, 7.7e12, 11.5e12, 228 * 1024, 227 * 1024),
}
# the GPU that is taken as an example of a compilation target, by compute capability, times ten
OF_CAPABILITY = {80: "a100", 90: "h100", 100: "b200"}


def of_name(name: str) -> Device | None:
    """The GPU of DEVICES that torch.cuda.get_device_name() calls so, or that has this key; None for an unknown one."""
    words = name.lower().replace("-", " ").split()
    return next((device for short, device in DEVICES.items() if short in words), None)


def programs_at_once(device: Device, registers: int, threads: int, shared: int) -> int:
    """How many programs of a kernel one multiprocessor holds; 0 where it cannot hold one.

    registers: of each thread, which a warp gets in steps of 256
    threads:   of a program
    shared:    bytes of a program, which gets them in steps of 128
    """
    warps = -(-threads // 32)
    by_registers = device.registers_per_processor // (-(-max(1, registers) * 32 // 256) * 256) // warps
    reserved = -(-(shared + 1024) // 128) * 128
    fits = shared <= device.shared_per_program
    by_shared = device.shared_per_processor // reserved if fits else 0
    return min(by_registers, by_shared, device.threads_per_processor // (32 * warps), device.programs_per_processor)
