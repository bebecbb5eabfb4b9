"""Self-contained pages: a template filled in, with the style that all of Kiln's pages share."""

from importlib import resources
from typing import Any


def fill(template: str, **values: Any) -> str:
    """The page as text. template: of Jinja, with {{ style | safe }} where its <style> is; a missing value raises."""
    from jinja2 import Environment, StrictUndefined

    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["gib"] = lambda count: f"{count / 2**30:.1f} GiB" if count else "unknown"
    style = resources.files("engine.pages").joinpath("page.css.j2").read_text(encoding="utf-8")
    return jinja.from_string(template).render(style=style, **values)
