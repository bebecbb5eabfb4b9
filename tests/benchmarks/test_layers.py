"""Imports of the benchmark go one way, as the docstring of its package says."""

import ast
import re
from pathlib import Path

import benchmarks
from tests.support.places import ROOT

# started by a command, not imported by the rest
ON_TOP = {"test_speed", "conftest"}


def layers() -> list[dict[str, int]]:
    """Height by folder or file: each line of arrows in the package's docstring."""
    lines = [line.strip() for line in benchmarks.__doc__.splitlines() if "<-" in line]
    return [{n: i for i, names in enumerate(re.split(" <- ", line)) for n in names.split(", ")} for line in lines]


def imported(path: Path) -> set[str]:
    """Parts of `benchmarks` that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "benchmarks":
            names = [f"benchmarks.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("benchmarks.")}
    return found


def test_no_file_imports_from_above():
    known = layers()
    every = set().union(*known)
    used = set()
    for path in (ROOT / "benchmarks").rglob("*.py"):
        part = path.relative_to(ROOT / "benchmarks").parts[0].removesuffix(".py")
        if part == "__init__":
            assert not imported(path)
            continue
        used.add(part)
        if part in ON_TOP:
            continue
        assert part in every, f"{path}: the docstring of benchmarks/__init__.py has no place for it"
        for other in imported(path) - {part}:
            fits = [line[other] < line[part] for line in known if {part, other} <= line.keys()]
            assert fits and all(fits), f"{path} imports benchmarks.{other}, which is not below it"
    assert used == every | ON_TOP


def test_files_of_one_folder_make_no_circle():
    for folder in ("timing", "suites", "prediction", "reports", "gpu"):
        arrows = {}
        for path in (ROOT / "benchmarks" / folder).glob("*.py"):
            text = path.read_text()
            names = {f.stem for f in path.parent.glob("*.py")} - {path.stem}
            package = f"benchmarks.{folder}"
            arrows[path.stem] = {
                n
                for n in names
                if f"from {package}.{n} import" in text
                or re.search(rf"^\s*from {package} import .*\b{n}\b", text, re.MULTILINE)
            }
        while arrows:
            free = [name for name, below in arrows.items() if not below & arrows.keys()]
            assert free, f"a circle in benchmarks/{folder}: {arrows}"
            for name in free:
                del arrows[name]
