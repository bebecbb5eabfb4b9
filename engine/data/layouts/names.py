"""File names: the order of frames, and the file that a table means by a name written in another way."""

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import unquote

from engine.data.layouts.sources import Source, is_image_name
from engine.errors import InputError

_DIGITS = re.compile(r"([0-9]+)")
_NEGATIVE = re.compile(r"-[0-9]+")
_MOST_DIGITS = 18  # of a frame's number: it stays below 2^63


def natural_order(name: str) -> tuple:
    """The sort key that puts numbers in names in their order: 1, 2, 10; equal for 1.jpg, 001.jpg and 1.png."""
    *folders, file = unicodedata.normalize("NFKC", name).casefold().split("/")
    return tuple(_runs(part) for part in (*folders, _stem(file)))


def frame_order(names: Iterable[str], place: str) -> list[str]:
    """The files of one clip in the natural order of their names.

    place: of the files, for messages.
    Raises InputError for two files with one number, and for a negative number.
    """
    ordered = sorted(sorted(names), key=natural_order)
    for name in ordered:
        if _NEGATIVE.fullmatch(_stem(last_part(name))):
            raise InputError(f"{place}: {name} has a negative number: number the frames from 0 or 1")
    for first, second in itertools.pairwise(ordered):
        if natural_order(first) == natural_order(second):
            raise _same_frame(place, first, second)
    return ordered


def frame_numbers(names: Iterable[str], place: str) -> dict[int, str]:
    """Frame number -> file: the last number in the file's name, so 7 for 000007.jpg, img7.jpg and v2_frame_7.jpg.

    place: of the files, for messages. Raises InputError for a name without a number, and for two files with one number.
    """
    numbered: dict[int, str] = {}
    for name in names:
        stem = _stem(last_part(name))
        digits = _DIGITS.findall(unicodedata.normalize("NFKC", stem))
        if not digits or _NEGATIVE.fullmatch(stem) or len(digits[-1].lstrip("0")) > _MOST_DIGITS:
            raise InputError(f"{place}: {name} is not named after its frame's number, such as 000001")
        other = numbered.setdefault(int(digits[-1][-_MOST_DIGITS:]), name)
        if other != name:
            raise _same_frame(place, other, name)
    return numbered


class FileFinder:
    """Finds the file that a table means.

    The name as it is written comes first. After that Unicode form, capitals, slashes, "./", escaped blanks and the name
    of the set's own folder in front, as in a path from the root of the disk, do not count.
    """

    def __init__(self, source: Source, names: Iterable[str], folders: Sequence[str], any_suffix: bool = False) -> None:
        """names: the files that can be meant.

        folders:    that the table's names may count from, each "" or ending in "/", the likeliest first.
        any_suffix: a.jpg may mean a.png too. A name without a suffix always means a picture with any suffix.
        """
        self._own_names = {_fold(part) for part in (source.name, source.root.name, source.root.stem)}
        self._names = frozenset(names)
        self._folders, self._any_suffix = folders, any_suffix
        self._folded: dict[str, list[str]] | None = None
        self._stems: dict[str, list[str]] = defaultdict(list)

    def __call__(self, text: str, where: str) -> str | None:
        """The name of the file that `text` means; None where there is none.

        where: table and line, for messages. Raises InputError, which names them, where several files fit equally well.
        """
        for folder in self._folders:
            if folder + text in self._names:
                return folder + text
        if self._folded is None:
            self._folded = self._fold_names()
        for path in self._readings(text):
            for folder in self._folders:
                fitting = self._fitting(folder + path)
                if len(fitting) > 1:
                    raise InputError(
                        f"{where}: {text[:100]!r} can be {' or '.join(sorted(fitting)[:3])}: write the one you mean"
                    )
                if fitting:
                    return fitting[0]
        return None

    def _fold_names(self) -> dict[str, list[str]]:
        folded = defaultdict(list)
        for name in self._names:
            folded[_fold(name)].append(name)
            self._stems[_fold(_without_suffix(name))].append(name)
        return dict(folded)

    def _fitting(self, path: str) -> list[str]:
        """The files that fit a path best; of files that differ in capitals, one that does not differ from the path."""
        fitting = self._folded.get(_fold(path), [])
        if not fitting and not is_image_name(path):
            fitting = self._stems.get(_fold(path), [])
        elif not fitting and self._any_suffix:
            fitting = self._stems.get(_fold(_without_suffix(path)), [])
        written = unicodedata.normalize("NFC", path)
        return [name for name in fitting if unicodedata.normalize("NFC", name) == written] or fitting

    def _readings(self, text: str) -> Iterator[str]:
        """Paths below one of the folders that a text can stand for, the plainest first."""
        for reading in dict.fromkeys((text, unquote(text))):
            parts = _parts(reading)
            yield "/".join(parts)
            own = [i for i, part in enumerate(parts) if _fold(part) in self._own_names]
            yield from ("/".join(parts[i + 1 :]) for i in reversed(own) if i + 1 < len(parts))


def last_part(text: str) -> str:
    """The file's own name in a path with slashes of either kind."""
    return text.replace("\\", "/").rsplit("/", 1)[-1]


def _parts(text: str) -> list[str]:
    """The folders and the file of a path with slashes of either kind; ".." is resolved where that is possible."""
    parts: list[str] = []
    for part in text.replace("\\", "/").split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return parts


def _fold(path: str) -> str:
    """The path without what is written differently: Unicode form, capitals, and blanks around its parts."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
    return "/".join(part.strip() for part in folded.split("/"))


def _without_suffix(name: str) -> str:
    return os.path.splitext(name)[0] if is_image_name(name) else name


def _stem(file: str) -> str:
    return file.rsplit(".", 1)[0] if "." in file[1:] else file


def _runs(text: str) -> tuple:
    """Texts and numbers in turn; a number as its length and digits, because int() refuses thousands of digits."""
    runs = _DIGITS.split(text)
    return tuple((len(run.lstrip("0")), run.lstrip("0")) if i % 2 else run for i, run in enumerate(runs))


def _same_frame(place: str, first: str, second: str) -> InputError:
    return InputError(f"{place}: {first} and {second} have one frame number: remove or rename one of them")
