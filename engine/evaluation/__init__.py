"""What `evaluate` measures. Images are uint8 (N, C, R, R), as `refine` would write them."""
