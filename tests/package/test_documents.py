"""The pages say what is there: links and anchors, files, commands with their options, and switches exist."""

import contextlib
import functools
import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

import benchmarks.__main__ as benchmark
from benchmarks.catalogue import SUITES
from engine import cli
from engine.systems import SYSTEMS
from tests.support.places import ROOT

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)
FOLDERS = ("kernels", "bindings", "engine", "benchmarks", "tests", "docs")
SOURCES = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}
SOURCE_NAMES = {path.name for path in SOURCES} | {path.name for path in ROOT.iterdir()}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# what a page shows as something to type
COMMAND = re.compile(
    r"(?:^|(?<=[\s(]))(?P<name>kiln(?: data)? \w[\w-]*|pytest benchmarks|make [a-z][\w-]*"
    r"|(?:python|torchrun [^\n]*?) -m (?:engine|benchmarks)[\w.]*)(?P<rest>[^\n#;]*)",
    re.MULTILINE,
)
OF_PIP, OF_PYTEST = {"--config-settings"}, {"--benchmark"}
READ = re.compile(r"""environ(?:\.get\(|\[)\s*["']([A-Z_]+)["']""")


def problems(page: Path, text: str) -> list[str]:
    """What a page says that is not so; page: where it lies, for its relative links."""
    return [*broken_links(page, text), *missing_files(text), *wrong_commands(text)]


# links


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Relative links whose file or heading does not exist."""
    for link in LINK.findall(INLINE.sub("", FENCE.sub("", text))):
        target, _, anchor = link.partition("#")
        if ":" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists():
            yield f"link {link}: there is no such file"
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8") if target else text):
            yield f"link {link}: there is no such heading"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts and the site make them."""
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(FENCE.sub("", text)))
    return {title.strip().replace(" ", "-") for title in titles}


# files


def missing_files(text: str) -> Iterator[str]:
    """Paths of the repository in backticks, and folders in trees of it, that do not exist."""
    for word in inline(FENCE.sub("", text)):
        path = re.sub(r"<\w+>|NAME", "*", word)
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*-]*", path):
            if not any(ROOT.glob(path.rstrip("/"))):
                yield f"`{word}`: there is no such file"
        elif re.fullmatch(r"[\w-]+\.(py|cpp|h|toml|j2)", path) and path not in SOURCE_NAMES:
            yield f"`{word}`: no file has this name"
    for _, block in FENCE.findall(text):
        if block.startswith(tuple(f"{folder}/ " for folder in FOLDERS)):
            yield from missing_folders(block)


def missing_folders(tree: str) -> Iterator[str]:
    """Folders at the beginning of the lines of a tree, indented below the folder that holds them."""
    above: dict[int, str] = {}
    for line in tree.splitlines():
        if found := re.match(r"( *)([\w<>]+/)", line):
            indent, name = len(found[1]), re.sub(r"<\w+>", "*", found[2])
            above[indent] = above.get(indent - 2, "") + name
            if not any(ROOT.glob(above[indent].rstrip("/"))):
                yield f"tree: there is no folder {above[indent]}"


def inline(text: str) -> list[str]:
    """What stands in backticks, on one line each."""
    return [" ".join(word.split()) for word in INLINE.findall(text)]


# commands


def wrong_commands(text: str) -> Iterator[str]:
    """Commands that do not exist, and options that they do not take."""
    shown = [block.replace("\\\n", " ") for language, block in FENCE.findall(text) if language in ("", "sh")]
    words = inline(FENCE.sub("", text))
    for code in (*shown, *words):
        for command in COMMAND.finditer(code):
            yield from wrong_command(command["name"], command["rest"])
    every = {*all_options(), *options_of_torchrun(), *OF_PIP, *OF_PYTEST}
    for word in words:
        for option in set(OPTION.findall(word)) if word.startswith("--") else ():
            if option not in every:
                yield f"`{word}`: nothing takes {option}"


def wrong_command(name: str, rest: str) -> Iterator[str]:
    """What is wrong with one command; rest: what follows its name."""
    known = options_of(name, rest)
    if known is None:
        yield f"{name}: there is no such command"
    else:
        yield from (f"{name}: it takes no {option}" for option in OPTION.findall(rest) if option not in known)


def options_of(name: str, rest: str) -> set[str] | None:
    """The long options of a command; None where it does not exist."""
    kind, _, what = name.rpartition(" ")
    if kind == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return all_options() if what in targets else None
    if kind == "pytest":
        return {"--quick", *OF_PYTEST}
    if what.startswith("benchmarks"):
        return options_of_benchmarks(what, rest)
    if kind == "kiln data" or (what.startswith("engine.") and what.endswith("data")):
        action = what if kind == "kiln data" else (rest.split() or ["--help"])[0]
        return options_of_engine("data", action) if action in ("validate", "avatars", "--help") else None
    command = what.removeprefix("engine.")
    if command.isupper():  # a placeholder
        return all_options()
    if command not in cli.COMMANDS:
        return None
    if command not in ("train", "ablate"):
        return options_of_engine(command)
    system = re.search(r"--system (\w+)", rest)
    if system and system[1] not in SYSTEMS and not system[1].isupper():
        return set()
    of_command = options_of_engine("ablate") if command == "ablate" else set()
    chosen = [system[1]] if system and system[1] in SYSTEMS else list(SYSTEMS)
    return of_command.union(*(options_of_engine("train", "--system", name) for name in chosen))


def options_of_benchmarks(module: str, rest: str) -> set[str] | None:
    """The long options of python -m benchmarks with or without a suite, and of modules such as benchmarks.gpu."""
    if module != "benchmarks":
        return options_of_program(module)
    suite = next((word for word in rest.split() if word.islower() and not word.startswith("-")), "")
    if suite in benchmark.COMMANDS:
        return help_of(benchmark.main, suite)
    if suite not in ("", "all", *SUITES) and not rest.lstrip().startswith("-"):
        return None
    return help_of(benchmark.main)


def options_of_program(module: str) -> set[str] | None:
    """The long options of a module of benchmarks; None where it is no program."""
    place = ROOT / module.replace(".", "/")
    program = module if place.with_suffix(".py").is_file() else f"{module}.__main__"
    if not (ROOT / f"{program.replace('.', '/')}.py").is_file():
        return None
    loaded = importlib.import_module(program)
    return help_of(loaded.main) if hasattr(loaded, "Options") else set()


def options_of_engine(command: str, *first: str) -> set[str]:
    """The long options of kiln COMMAND."""
    module = importlib.import_module(cli.COMMANDS[command][0])
    return help_of(module.main, *first)


@functools.cache
def help_of(main: object, *first: str) -> set[str]:
    """The long options in the help of a command."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "300")
        main([word for word in first if word != "--help"] + ["--help"])
    return set(OPTION.findall(said.getvalue()))


@functools.cache
def all_options() -> set[str]:
    """The long options of all commands."""
    found = [options_of(f"kiln {command}", "") for command in cli.COMMANDS if command != "data"]
    found += [options_of_engine("data", action) for action in ("validate", "avatars")]
    found += [help_of(benchmark.main), *(help_of(benchmark.main, name) for name in benchmark.COMMANDS)]
    found += [options_of_program(module) for module in ("benchmarks.gpu", "benchmarks.gpu.kit")]
    return set().union(*found)


@functools.cache
def options_of_torchrun() -> set[str]:
    """The long options of torchrun, from its own parser."""
    return {option.replace("_", "-") for action in get_args_parser()._actions for option in action.option_strings}


# the tests


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_say_what_is_there(page):
    assert not problems(page, page.read_text(encoding="utf-8"))


BAD = """# Title

A [file](nothing.md), a [heading](docs/fuse.md#nothing), another [heading](#titel).
Right: a [heading](docs/fuse.md#reasons), and [one of this page](#title).
`engine/nothing.py`, `kernels/<op>/nothing.cpp`, `nothing.py`. Right: `kernels/gram/cpu.cpp` and `kernels/<op>/spec.py`.
`kiln trian`, `kiln refine RUN IN OUT --face-corp`, `--batch-sise 3`, `kiln train --system nothing`,
`kiln train --system dcgan --gamma 1`, `python -m engine.nothing`, `kiln data nothing`, `python -m benchmarks nothing`,
`python -m benchmarks ops --quik`, `python -m benchmarks.nothing`, `make nothing`.
Right: `kiln train --fused --system wgan --gradient-penalty 10`, `make test` and `--face-crop`.

```
kiln data validate PHOTOS --frehs   # in a block
torchrun --standalone --nproc-per-node 2 -m engine.train \\
    --fussed
```

```
engine/      the engine
  nothing/   no folder
```
"""
FOUND = [
    "link nothing.md: there is no such file",
    "link docs/fuse.md#nothing: there is no such heading",
    "link #titel: there is no such heading",
    "`engine/nothing.py`: there is no such file",
    "`kernels/<op>/nothing.cpp`: there is no such file",
    "`nothing.py`: no file has this name",
    "tree: there is no folder engine/nothing/",
    "kiln data validate: it takes no --frehs",
    "torchrun --standalone --nproc-per-node 2 -m engine.train: it takes no --fussed",
    "kiln trian: there is no such command",
    "kiln refine: it takes no --face-corp",
    "kiln train: it takes no --system",
    "kiln train: it takes no --gamma",
    "python -m engine.nothing: there is no such command",
    "kiln data nothing: there is no such command",
    "python -m benchmarks: there is no such command",
    "python -m benchmarks: it takes no --quik",
    "python -m benchmarks.nothing: there is no such command",
    "make nothing: there is no such command",
    "`--batch-sise 3`: nothing takes --batch-sise",
]


def test_a_bad_page_is_found_out():
    assert problems(ROOT / "README.md", BAD) == FOUND


def test_the_table_of_switches():
    """Every environment variable that is read has its row, and every file of a row reads one of the row's names."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## Switches and environment variables")[1]
    rows = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    code = {p: p.read_text(encoding="utf-8") for p in SOURCES if p.suffix == ".py" and "tests" not in p.parts}
    code[ROOT / "setup.py"] = (ROOT / "setup.py").read_text(encoding="utf-8")
    listed = {name for row in rows for name in INLINE.findall(row[0])}
    assert {name for text in code.values() for name in READ.findall(text)} - listed == set()
    for row in rows:
        names = INLINE.findall(row[0])
        for file in (ROOT / word for word in INLINE.findall(row[-1])):
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
            assert file.is_dir() or any(name in text or "HUGE_PAGES" in text for name in names), (names, file)
    shown = {word.partition("=")[0] for p in PAGES for word in inline(p.read_text()) if word.startswith("KILN_")}
    assert {name for name in shown if re.fullmatch(r"KILN_[A-Z_]+", name)} <= listed
