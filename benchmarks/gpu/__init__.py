"""Everything that a GPU can show of Kiln: `python -m benchmarks.gpu OUT`."""
