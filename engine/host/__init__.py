"""What this machine is, and how its disk, memory and terminal are used.

environment.py reads versions, devices and memory for reports and `kiln doctor`; input_files.py reads the files that
people bring; contained_paths.py keeps the names in them inside their folders, and terminal.py keeps them from steering
the terminal; atomic_files.py writes files that are whole or absent; file_digest.py tells a file's SHA-256;
free_memory.py says how much memory is left; allocator.py tells the C library to keep freed memory; tf32.py says whether
float32 products may take TF32.
"""
