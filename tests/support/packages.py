"""Packages that the tests can do without: what needs a missing one is skipped, for a reason that names it."""

import importlib.util

import pytest


def installed(module: str) -> bool:
    """Whether a module, also one within a package, is installed. It is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is the package that would hold it
        return False


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skips a test, before its fixtures are made, where one of the modules is not installed."""
    missing = [module for module in modules if not installed(module)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
