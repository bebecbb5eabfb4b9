"""Everything that a GPU can show of Kiln: `python -m benchmarks.gpu OUT`.

__main__       the options, and running the parts in turn
parts          what each part runs, and what it comes to
place          how a part runs programs, and keeps what they find as it comes
kit            `python -m benchmarks.gpu.kit`: what a machine with a GPU lacks that has no network
compiling      `python -m benchmarks.gpu.compiling`: kernels compiled before they are launched, on every core
one_operator   `python -m benchmarks.gpu.one_operator`: an operator against float64
one_step       `python -m benchmarks.gpu.one_step`: one competitor of the training step, alone
pytest_plugin  what leads the GPU tests in several processes
train          `python -m benchmarks.gpu.train`: the training run that one part starts
sanitize       `python -m benchmarks.gpu.sanitize`: the program that compute-sanitizer watches
samples        the few samples that an operator is tried with first
rehearsal/     `python -m benchmarks.gpu.rehearsal`: all of this on a CUDA runtime that computes nothing
"""
