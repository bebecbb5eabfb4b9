"""What is measured. A file for each suite of benchmarks/catalogue.py:

operators  `ops`; step (strong: its strongest baseline); systems; latency; loading; fuse (fuse_models); profile
scaling    in three parts: threads, sweeps (image side, channels, batch) and processes
"""
