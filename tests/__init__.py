"""The tests, in rooms that mirror the source.

commands      what `kiln COMMAND` does, from its words to its exit status
training      one run: options, loop, checkpoints, resuming, the CUDA graph's stand-in
inference     engine.load: a trained model in a few lines of Python
evaluation    measures and figures
systems       each system's step against its equations, written out in plain PyTorch
networks      plain modules
data          layouts, validation, loaders, the embedded faces
distributed   two processes train as one
fusion        engine.fuse: tracing, chains, whole models
kernels       operators against their references: CPU, interpreted and compiled GPU kernels
gpu           what needs an NVIDIA GPU; skipped elsewhere
benchmarks    suites, results and pages; no time is asserted anywhere
host          atomic files, the allocator
package       what gets installed, its imports, types and examples
support       no tests: what several rooms use

`python -m pytest tests/kernels` runs one room, `python -m pytest -k gram` what has gram in its name, `make test` all
but the tests marked slow, on every core, and `make test-all` all. conftest.py has what holds in every test.
"""
