"""Imports go one way: no circle between files, none between rooms, and no room imports one above it.

`pytest -s tests/package/test_imports.py` prints the rooms, bottom up, and who imports whom.
"""

import ast
from pathlib import Path

import pytest

from tests.support.import_graph import Graph, circles, import_graph, modules, room_of, upward
from tests.support.places import ROOT

COMMANDS = (
    "train",
    "refine",
    "crop",
    "sample",
    "reenact",
    "evaluate",
    "ablate",
    "models",
    "export",
    "report",
    "verify",
    "doctor",
)
# bottom up; the rooms of one floor do not import each other
ENGINE = [
    ["engine.errors", "engine.version", "engine._native"],
    ["engine.kernels"],
    ["engine.host", "engine.pages", "engine.ops"],
    ["engine.distributed", "engine.fusion"],
    ["engine.cli"],
    ["engine.data"],
    ["engine.networks"],
    ["engine.config"],
    ["engine.systems"],
    ["engine.checkpoint"],
    ["engine.inference"],
    ["engine.evaluation"],
    ["engine.training"],
    ["engine.ablation", "engine.verification"],
    [*(f"engine.{name}" for name in COMMANDS), "engine.data.__main__"],
    ["engine"],  # engine/__init__.py, the front door: it hands out names of fusion and inference when they are used
]


# of a data set's way from files to batches; `engine.data` itself hands out names of the others when they are used
DATA = [
    [
        f"engine.data.{name}"
        for name in ("landmarks", "needs", "cache", "shuffling", "pixel_values", "augmentation", "batch", "avatars")
    ],
    ["engine.data.decoding"],
    ["engine.data.layouts"],
    ["engine.data.validation"],
    ["engine.data.dataset"],
    [f"engine.data.{name}" for name in ("groups", "selection", "reading", "inventory")],
    ["engine.data.loader"],
    ["engine.data.resident", "engine.data.streaming"],
    ["engine.data.opening"],
    ["engine.data.__main__", "engine.data"],
]
BENCHMARKS = [
    ["benchmarks.checkout", "benchmarks.catalogue"],
    ["benchmarks.arguments"],
    ["benchmarks.timing"],
    ["benchmarks.suites"],
    ["benchmarks.prediction", "benchmarks.reports"],
    ["benchmarks.run", "benchmarks.gpu"],
    ["benchmarks.selftest"],
    ["benchmarks.__main__", "benchmarks.test_speed", "benchmarks.conftest", "benchmarks"],
]
PACKAGES = pytest.mark.parametrize(
    "package, rooms",
    [("engine", ENGINE), ("engine.data", DATA), ("benchmarks", BENCHMARKS)],
    ids=["engine", "data", "benchmarks"],
)


def floors(rooms: list[list[str]]) -> dict[str, int]:
    return {room: floor for floor, names in enumerate(rooms) for room in names}


@pytest.fixture(scope="module")
def graph() -> Graph:
    files = modules(ROOT, "engine") | modules(ROOT, "engine.kernels", "kernels") | modules(ROOT, "benchmarks")
    return import_graph(files | {"engine._native": ROOT / "bindings" / "module.cpp"})


def part(graph: Graph, package: str) -> Graph:
    return {name: imported for name, imported in graph.items() if name == package or name.startswith(package + ".")}


def told(pairs: list[tuple[str, str]]) -> str:
    return "\n".join(f"{module} imports {other}, which lies above it" for module, other in pairs)


def test_no_circle_between_files(graph):
    found = circles(graph)
    assert not found, "\n".join("these import each other: " + ", ".join(group) for group in found)


@PACKAGES
def test_no_upward_import(graph, package, rooms):
    wrong = upward(part(graph, package), floors(rooms))
    assert not wrong, told(wrong)


def test_engine_does_not_import_what_uses_it(graph):
    found = [(name, other) for name, names in part(graph, "engine").items() for other in names if "benchmarks" in other]
    assert not found, told(found)


@PACKAGES
def test_rooms_and_arrows(graph, package, rooms):
    """Prints the picture that docs/architecture.md describes; every room of the lists has a file."""
    graph, rooms = part(graph, package) if package != "engine" else graph, floors(rooms)
    for room in rooms:
        arrows = {room_of(other, rooms) for name in graph if room_of(name, rooms) == room for other in graph[name]}
        print(f"{room:<24} -> {', '.join(sorted(arrows - {room, ''}, key=lambda name: rooms[name])) or 'nothing'}")
    empty = [room for room in rooms if room != "engine._native" and not any(room_of(n, rooms) == room for n in graph)]
    assert not empty


def hidden(init: Path) -> set[str]:
    """The submodules of a package whose names its `__init__.py` gives to something else."""
    folder = init.parent
    submodules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/*.py")}
    given = set()
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            given.add(node.name)
        elif isinstance(node, ast.Assign):
            given |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and node.module:  # `from . import name` hands out the submodule itself
            given |= {alias.asname or alias.name for alias in node.names}
    return submodules & given


def test_no_package_hides_a_submodule():
    """A function that is handed out under the name of a submodule would stand in its place."""
    folders = ("engine", "kernels", "benchmarks", "tests")
    names = {str(init): hidden(init) for folder in folders for init in (ROOT / folder).rglob("__init__.py")}
    assert len(names) > 30 and not {init: found for init, found in names.items() if found}


def test_a_hidden_submodule_is_found(tmp_path):
    (tmp_path / "gram.py").touch()
    (tmp_path / "loss.py").touch()
    init = tmp_path / "__init__.py"
    init.write_text("from . import loss\nfrom .gram import product, gram\n")
    assert hidden(init) == {"gram"}


def test_a_circle_and_an_upward_import_are_found(tmp_path):
    """Both files are named; an import inside a function counts."""
    package = tmp_path / "house"
    (package / "cellar").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "cellar" / "__init__.py").write_text("")
    (package / "cellar" / "a.py").write_text("def f():\n    from house import attic\n")
    (package / "cellar" / "b.py").write_text("from . import c\n")
    (package / "cellar" / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.cellar.b\n"
    )
    (package / "attic.py").write_text("from house.cellar.a import f\n")
    graph = import_graph(modules(tmp_path, "house"))
    assert circles(graph) == [["house.attic", "house.cellar.a"], ["house.cellar.b", "house.cellar.c"]]
    rooms = {"house.cellar": 0, "house.attic": 1, "house": 2}
    assert upward(graph, rooms) == [("house.cellar.a", "house.attic")]
    assert told(upward(graph, rooms)) == "house.cellar.a imports house.attic, which lies above it"
    with pytest.raises(KeyError, match="house lies in no room"):
        upward(graph, {"house.cellar": 0})
