"""What can be said of a GPU without a stopwatch: compiled kernels and a roofline."""
