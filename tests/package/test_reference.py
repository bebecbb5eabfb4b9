"""The documentation site: what is public has a docstring, every page is made, and a broken link ends the build."""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import ops
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import build_site


def public(module: object, prefix: str) -> Iterator[tuple[str, object]]:
    """What a module hands out, and the own methods of its classes whose names have no underscore."""
    for name, value in build_site.public_members(module):
        yield f"{prefix}.{name}", value
        if inspect.isclass(value):
            methods = ((n, m) for n, m in vars(value).items() if not n.startswith("_"))
            yield from ((f"{prefix}.{name}.{n}", m) for n, m in methods if inspect.isroutine(m))


@pytest.mark.parametrize("name", build_site.public_modules())
def test_docstrings(name):
    module = importlib.import_module(name)
    members = dict(public(module, name))
    lacking = [member for member, value in members.items() if not inspect.getdoc(value)]
    assert module.__doc__ and not lacking
    assert name != "engine.ops" or {f"engine.ops.{operator}" for operator in ops.OPERATORS} < set(members)


def test_pages(tmp_path):
    """The site in a folder of its own; a name that the generator cannot resolve, or a broken link, is an error."""
    pytest.importorskip("zensical")
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} < set(build_site.PAGES.values())
    build_site.write_site(tmp_path)
    site = tmp_path / "docs"
    pages = {str(page.relative_to(site)) for page in site.rglob("*.html")}
    own = {page.replace("README", "index").replace(".md", ".html") for page in build_site.PAGES.values()}
    assert pages == {"404.html", *own, *(f"reference/{name}.html" for name in build_site.public_modules())}
    operators = (site / "reference" / "engine.ops.html").read_text()
    assert all(f'id="engine.kernels.{name}.{name}"' in operators for name in ops.OPERATORS)
    assert "channels_last is read in place" in operators
    everything = "".join(page.read_text() for page in site.rglob("*.html"))
    assert not [sign for sign in ('src="http', 'rel="stylesheet" href="http', "fonts.g") if sign in everything]


@pytest.mark.parametrize("link", ["page.md", "page.md#page", "nothing.md", "page.md#nothing"])
def test_a_broken_link_ends_the_build(link, tmp_path, monkeypatch):
    pytest.importorskip("zensical")

    def one_page(to: Path) -> None:
        to.mkdir()
        (to / "page.md").write_text(f"# Page\n\n[link]({link})\n")

    monkeypatch.setattr(build_site, "PAGES", {"Page": "page.md"})
    monkeypatch.setattr(build_site, "copy_pages", one_page)
    monkeypatch.setattr(build_site, "write_reference", lambda to: [])
    if "nothing" in link:
        with pytest.raises(subprocess.CalledProcessError):
            build_site.write_site(tmp_path)
    else:
        build_site.write_site(tmp_path)
