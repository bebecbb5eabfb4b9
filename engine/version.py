"""The version of Kiln, by semantic versioning."""

__version__ = "0.2.0"
