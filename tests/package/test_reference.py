"""The API reference: what is public has a docstring, and the generator makes its pages."""

import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine import ops
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from reference import public_modules

from tests.support.places import ROOT


def public(module: object, prefix: str) -> Iterator[tuple[str, object]]:
    """Functions, classes and their own methods that belong to a module and whose names have no underscore."""
    exported = getattr(module, "__all__", None)
    for name, value in vars(module).items():
        if name.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        if name in exported if exported is not None else value.__module__ == module.__name__:
            yield f"{prefix}.{name}", value
            if inspect.isclass(value):
                methods = ((n, m) for n, m in vars(value).items() if not n.startswith("_"))
                yield from ((f"{prefix}.{name}.{n}", m) for n, m in methods if inspect.isroutine(m))


@pytest.mark.parametrize("name", public_modules())
def test_docstrings(name):
    module = importlib.import_module(name)
    members = dict(public(module, name))
    lacking = [member for member, value in members.items() if not inspect.getdoc(value)]
    assert module.__doc__ and not lacking
    assert name != "engine.ops" or {f"engine.ops.{operator}" for operator in ops.OPERATORS} < set(members)


def test_pages(tmp_path):
    pytest.importorskip("pdoc")
    code = "import pathlib, sys; import reference; reference.write(pathlib.Path(sys.argv[1]))"
    # a name that the generator cannot resolve is a warning
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, tmp_path]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'docs'}"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    pages = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.html")}
    assert pages == {"index.html", *(f"{name.replace('.', '/')}.html" for name in public_modules())}
    operators = (tmp_path / "engine" / "ops.html").read_text()
    assert all(f'id="{name}"' in operators for name in ops.OPERATORS) and "channels_last is read in place" in operators
