"""One run: what it needs before its first step, its loop, and what it records."""
