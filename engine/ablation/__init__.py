"""The ablations that the papers make: running.py does the work of `kiln ablate`, table.py writes its table."""
