"""`make docs`: the API reference, made from the docstrings of the public modules into build/docs."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def public_modules() -> list[str]:
    """The modules that users import: what pyproject.toml has mypy check, but operators, which engine.ops shows."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # comes with mypy
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["modules"]
    return [name for name in checked if not name.startswith("engine.kernels.")]


def write(folder: Path) -> None:
    """One page for each public module, and an index, in `folder`."""
    import pdoc

    # docstrings are plain text in columns
    pdoc.render.configure(show_source=False, template_directory=ROOT / "docs" / "theme")
    others = rf"!(?!({'|'.join(map(re.escape, public_modules()))})$)"
    pdoc.pdoc("engine", others, output_directory=folder)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    write(ROOT / "build" / "docs")
    print("build/docs/index.html")
