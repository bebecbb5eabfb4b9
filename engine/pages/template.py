"""Fills in the templates of self-contained pages, with the style that all of Kiln's pages share."""

from importlib import resources
from typing import Any


def fill(template: str, **values: Any) -> str:
    """The page as text. Raises jinja2.UndefinedError for a value that is missing.

    template: a Jinja template, with {{ style | safe }} in its <style>
    Jinja is imported here, because everything but the pages works without it.
    """
    from jinja2 import Environment, StrictUndefined

    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["gib"] = lambda count: f"{count / 2**30:.1f} GiB" if count else "unknown"
    style = resources.files("engine.pages").joinpath("page.css.j2").read_text(encoding="utf-8")
    return jinja.from_string(template).render(style=style, **values)
