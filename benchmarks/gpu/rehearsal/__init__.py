"""`python -m benchmarks.gpu.rehearsal MODULE ...`: runs a Python module as on a GPU machine, without a GPU.

null_gpu.c  a CUDA runtime whose memory is the host's and whose kernels do nothing, but whose recordings keep the rules
site/       what the rehearsed Python starts with
"""
