"""Finds the trained models that Kiln ships, by name: folders of engine/shipped, in the layout of `kiln export`.

Each has a model card, README.md: what it was trained on and how, under which licence, and what it does badly.
"""

from pathlib import Path

from engine.errors import InputError
from engine.inference import exported

CARD = "README.md"


def names() -> list[str]:
    """The names of the shipped models."""
    return sorted(file.parent.name for file in exported.SHIPPED.glob(f"*/{exported.CONFIG}"))


def resolve(model: Path | str) -> Path:
    """The folder of a model that a user names: a path, or the name of a shipped model where there is no such path.

    Raises InputError for a word that is neither. A path with folders in it is returned as it is.
    """
    path = Path(model)
    if path.exists() or len(path.parts) != 1 or path.name in (".", ".."):
        return path
    if (exported.SHIPPED / path.name).is_dir():
        return exported.SHIPPED / path.name
    raise InputError(f"{path} does not exist here, and no shipped model has this name; {_known()}")


def _known() -> str:
    return f"the shipped models are {', '.join(found)}" if (found := names()) else "this version ships no models"


def card(name: str) -> str:
    """The model card of a shipped model. Raises InputError for an unknown name and for a card that is missing."""
    if name not in names():
        raise InputError(f"{name} is not a shipped model; {_known()}")
    try:
        return (exported.SHIPPED / name / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the model card of {name} cannot be read ({error}); install Kiln again") from None


def summary(name: str) -> str:
    """What a shipped model does: the first sentence of its card below the title."""
    body = card(name).partition("\n# ")[2]
    paragraphs = [" ".join(part.split()) for part in body.split("\n\n")[1:]]
    return paragraphs[0].partition(". ")[0].rstrip(".") if paragraphs else ""
