"""Who imports whom, read from the source with `ast`: imports inside functions and for type checkers count too."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]


def modules(root: Path, package: str, folder: str | None = None) -> dict[str, Path]:
    """Module name -> file, of a package; folder: where it lies in `root`, if that is not named like the package."""
    home = root / (folder or package.replace(".", "/"))
    names = {}
    for file in sorted(home.rglob("*.py")):
        parts = file.relative_to(home).with_suffix("").parts
        names[".".join([package, *parts]).removesuffix(".__init__")] = file
    return names


def import_graph(files: Mapping[str, Path]) -> Graph:
    """Module -> the modules among `files` that it imports, itself left out. What is no Python file imports nothing."""
    sources = {name: file for name, file in files.items() if file.suffix == ".py"}
    return {name: set(_imported(name, file, files)) - {name} for name, file in sources.items()}


def _imported(name: str, file: Path, files: Mapping[str, Path]) -> Iterator[str]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            candidates = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for candidate in candidates:
            while candidate and candidate not in files:
                candidate = candidate.rpartition(".")[0]
            if candidate:
                yield candidate


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or not, each sorted: Tarjan's components."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in sorted(graph.get(module, ())):
            if other not in index:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], index[other])
        if lowest[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return groups


def room_of(module: str, rooms: Mapping[str, object]) -> str:
    """The longest name in `rooms` that `module` is, or lies in; "" for none."""
    while module and module not in rooms:
        module = module.rpartition(".")[0]
    return module


def upward(graph: Mapping[str, set[str]], floors: Mapping[str, int]) -> list[tuple[str, str]]:
    """The imports of a module on a higher floor, or of another room on the same floor.

    floors: room -> its floor, counted from the bottom. Modules in no room are an error.
    """
    wrong = []
    for module, imported in graph.items():
        room = room_of(module, floors)
        if not room:
            raise KeyError(f"{module} lies in no room; enter it in the test's list")
        for other in sorted(imported):
            there = room_of(other, floors)
            if there and there != room and floors[there] >= floors[room]:
                wrong.append((module, other))
    return wrong
