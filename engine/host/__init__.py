"""What this machine is, and how its disk and memory are used.

environment.py reads versions, devices and memory for reports and `kiln doctor`; atomic_files.py writes files that are
whole or absent; free_memory.py says how much memory is left; allocator.py tells the C library to keep freed memory.
"""
