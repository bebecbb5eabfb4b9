"""What names and tables hold does not steer the terminal; progress bars still do."""

import io

import pytest
from tqdm import tqdm

from engine.host.terminal import Escaping, printable

NASTY = "\x1b]0;title\x07\x1b[31m\x9b2J\r\x08\x7f‮gnp\u2028\udcff\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;t\x07", r"\x1b]0;t\x07"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("\udcff.png", r"\udcff.png"),
        ("ünter 面 🙂 a\\b", "ünter 面 🙂 a\\b"),
    ],
)
def test_printable_is_what_repr_shows(text: str, shown: str) -> None:
    assert printable(text) == shown and printable(shown) == shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_lines_are_escaped_in_every_encoding(encoding: str) -> None:
    raw = io.BytesIO()
    stream = Escaping(io.TextIOWrapper(raw, encoding, newline=""))
    print("first", NASTY, "ünter 面", file=stream, end="\nlast\n", flush=True)
    shown = raw.getvalue().decode(encoding)
    assert shown.endswith("\nlast\n") and shown.startswith(r"first \x1b]0;title\x07\x1b[31m\x9b2J\r\x08\x7f\u202egnp")
    assert shown.replace("\n", "").isprintable() and (encoding != "utf-8" or "ünter 面" in shown)


def test_a_name_cannot_pass_for_a_progress_bar() -> None:
    for name in ("\rname\x1b[31m", "\rname\rother", "\x1b[A\x1b[2K", "\x1b[Aname"):
        out = io.StringIO()
        Escaping(out).write(name)
        assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()[1:]


def test_a_bar_is_drawn_as_on_the_stream_itself() -> None:
    shown = []
    for wrap in (lambda stream: stream, Escaping):
        out = io.StringIO()
        with tqdm(total=2, desc="a", file=wrap(out), bar_format="{desc} {n}", mininterval=0) as outer:
            for _ in tqdm(range(2), desc="b", file=wrap(out), bar_format="{desc} {n}", mininterval=0, leave=False):
                outer.update()
        shown.append(out.getvalue())
    assert shown[0] == shown[1] and "\x1b[A" in shown[0]
