"""One training run: what it needs before its first step, its loop, and what it records.

resolve.py turns a command line into a configuration; run_lock.py keeps other processes out of the run folder, setup.py
makes it and opens the data; loop.py takes the steps, with cuda_graph.py, schedule.py (the learning rate) and signals.py
(Ctrl-C). metrics.py records numbers, with events.py for TensorBoard; progress.py shows them, random_state.py saves the
random generators, report.py writes the page about the run, and completion.py finds what a kill just before the end has
left out. memory.py says what --dry-run prints.
"""
