"""A trained model and the pictures that go through it."""

from engine.inference.trained import Trained, load, load_trained

__all__ = ["Trained", "load", "load_trained"]
