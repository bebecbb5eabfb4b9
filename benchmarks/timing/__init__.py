"""How a time is taken, and how it becomes a row and is printed.

measure       interleaved timing; the machine's limits, precision, memory
native_calls  which native calls and GPU launches a piece of code makes
rows          rows of results, and cells of tables
table         tables that are printed row by row
"""
