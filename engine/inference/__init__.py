"""A trained model and the pictures that go through it."""

from engine.inference.trained import load

__all__ = ["load"]
