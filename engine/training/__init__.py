"""One training run: what it needs before its first step, its loop, and what it records.

resolve.py turns a command line into a configuration; setup.py makes the run folder and opens the data; loop.py takes
the steps, with cuda_graph.py, schedule.py (the learning rate) and signals.py (Ctrl-C). metrics.py records numbers,
progress.py shows them, random_state.py saves the random generators, and report.py writes the page about the run.
memory.py says what --dry-run prints.
"""
