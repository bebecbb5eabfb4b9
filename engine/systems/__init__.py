"""The systems that can be trained, one file for each, and what they share."""

from engine.systems.registry import SYSTEMS, build, load_trained, system_class

__all__ = ["SYSTEMS", "build", "load_trained", "system_class"]
