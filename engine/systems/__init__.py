"""The systems that can be trained, one file for each, and what they share."""

from engine.systems.kinds import KINDS, Kind
from engine.systems.registry import SYSTEMS, build, config_class, system_class

__all__ = ["KINDS", "SYSTEMS", "Kind", "build", "config_class", "system_class"]
