"""What Kiln gains on this machine: operators and whole training steps, fused against eager PyTorch."""
