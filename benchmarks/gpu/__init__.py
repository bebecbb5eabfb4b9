"""Everything that a GPU can show of Kiln: `python -m benchmarks.gpu OUT`.

__main__  the list of parts, and running them in turn
parts     what each part runs, and what it comes to
train     `python -m benchmarks.gpu.train`: the training run that one part starts
sanitize  `python -m benchmarks.gpu.sanitize`: the program that compute-sanitizer watches
"""
