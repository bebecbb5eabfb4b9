"""How the site shows docstrings: as the plain text in columns that they are. An extension of griffe, their reader."""

from typing import Any

import griffe


class PlainText(griffe.Extension):
    """Makes every docstring a block of text, so that no character of it is taken for Markdown."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object that griffe finds."""
        if obj.docstring:
            obj.docstring.value = f"```text\n{obj.docstring.value}\n```"
