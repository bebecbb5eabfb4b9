"""What is known of a GPU without a stopwatch.

devices   what GPUs can do, as their makers state it
launches  the kernels that operators and the refiner's step launch, recorded on the CPU
compiled  every kernel compiled ahead of time; compiled_report is the suite `compiled`
roofline  the least time of a launch; forecast is the suite `predict`
ranks     `python -m benchmarks ranks`: training on 8 to 1024 GPUs, on paper
"""
