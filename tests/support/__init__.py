"""What several tests use: small pictures, tiny runs, fake loaders, a tape in place of a CUDA graph."""
