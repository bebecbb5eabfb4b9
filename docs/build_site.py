"""`make docs`: the documentation site in build/docs, from README, docs/ and the docstrings of the public modules.

The pages keep their places of the repository, so that a link works on the site as it does where code is hosted:

    README.md, docs/*.md ...         -> build/pages/, with every file that they link
    [tool.mypy] modules              -> build/pages/reference/, one page for each public module
    engine/ and kernels/             -> build/package/, laid out as they are installed; docstrings are read there
    docs/site.toml and the pages     -> build/zensical.toml
"""

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# title in the navigation -> page
PAGES = {
    "Kiln": "README.md",
    "Commands": "docs/commands.md",
    "Systems": "docs/systems.md",
    "Data": "docs/data.md",
    "Operators": "docs/operators.md",
    "engine.fuse": "docs/fuse.md",
    "In your training stack": "docs/embedding.md",
    "Several processes": "docs/distributed.md",
    "On a GPU": "docs/gpu.md",
    "What Kiln is tried against": "docs/robustness.md",
    "Architecture": "docs/architecture.md",
    "Contributing": "CONTRIBUTING.md",
    "Changelog": "CHANGELOG.md",
}
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
OPERATORS = "engine.kernels."


def public_modules() -> list[str]:
    """The modules that users import: those that mypy checks, without the operators' own, which engine.ops shows."""
    return [name for name in _checked_modules() if not name.startswith(OPERATORS)]


def _checked_modules() -> list[str]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # mypy needs it, too
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["modules"]


def public_members(module: object) -> Iterator[tuple[str, object]]:
    """The functions and classes that a module hands out, by name: those of __all__, else its own without underscore."""
    exported = getattr(module, "__all__", None)
    if exported is None:
        exported = [*getattr(module, "LAZY", ()), *(n for n, v in vars(module).items() if _is_own(module, n, v))]
    for name in exported:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value


def _is_own(module: object, name: str, value: object) -> bool:
    return not name.startswith("_") and getattr(value, "__module__", None) == module.__name__


def copy_pages(to: Path) -> None:
    """Every page of PAGES, and every file of the repository that one of them links."""
    for page in PAGES.values():
        text = (ROOT / page).read_text(encoding="utf-8")
        linked = ((ROOT / page).parent / target for target in LINK.findall(text) if ":" not in target)
        for file in (ROOT / page, *linked):
            place = to / file.resolve().relative_to(ROOT)
            if file.is_file() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)


def write_reference(to: Path) -> list[str]:
    """One page for each public module; returns their names in `to`."""
    to.mkdir(parents=True)
    for name in public_modules():
        module = importlib.import_module(name)
        operators = module.OPERATORS if name == "engine.ops" else ()
        members = [member for member, _ in public_members(module) if member not in operators]
        blocks = [_directive(name, members=members, show_root_heading=False, show_root_toc_entry=False)]
        blocks += [_directive(f"{OPERATORS}{operator}.{operator}", heading=operator) for operator in operators]
        (to / f"{name}.md").write_text(f"# {name}\n\n" + "\n\n".join(blocks) + "\n", encoding="utf-8")
    return [f"{name}.md" for name in public_modules()]


def _directive(name: str, **options: object) -> str:
    """What the generator replaces by the docstrings of a module or function."""
    lines = [f"::: {name}", "    options:", *(f"      {key}: {json.dumps(value)}" for key, value in options.items())]
    return "\n".join(lines)


def copy_package(to: Path) -> None:
    """The sources as they are installed: the folder kernels/ is engine.kernels."""
    nothing_built = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "engine", to / "engine", ignore=nothing_built)
    shutil.copytree(ROOT / "kernels", to / "engine" / "kernels", ignore=nothing_built)
    (to / "engine" / "kernels" / "__init__.py").touch()


def write_site(folder: Path) -> None:
    """The site in folder/docs. Raises CalledProcessError where a link leads nowhere or a docstring is not found."""
    for name in ("pages", "package", "docs", ".cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    copy_pages(folder / "pages")
    copy_package(folder / "package")
    reference = write_reference(folder / "pages" / "reference")
    shutil.copyfile(ROOT / "docs" / "docstrings.py", folder / "docstrings.py")
    entries = [f"  {{ {json.dumps(title)} = {json.dumps(page)} }}," for title, page in PAGES.items()]
    modules = ", ".join(f'{{ "{Path(page).stem}" = "reference/{page}" }}' for page in reference)
    settings = (ROOT / "docs" / "site.toml").read_text(encoding="utf-8")
    navigation = "\n".join(["nav = [", *entries, f'  {{ "Reference" = [{modules}] }},', "]", ""])
    settings = settings.replace("[project.theme]", navigation + "\n[project.theme]", 1)
    (folder / "zensical.toml").write_text(settings, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=folder, check=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    try:
        write_site(ROOT / "build")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    print("build/docs/index.html")
