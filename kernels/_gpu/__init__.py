"""What the operators' Triton kernels share: how they are launched and tuned, and the device functions they call."""
