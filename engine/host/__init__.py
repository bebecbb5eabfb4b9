"""What this machine is, and how its disk and memory are used: versions and devices, whole files, the allocator."""
