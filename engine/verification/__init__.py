"""Fused against reference: single operator calls, and whole training steps."""
