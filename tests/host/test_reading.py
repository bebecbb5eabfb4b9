"""A JSON file that may hold anything gives its value, or one line that names it."""

import os
import re

import pytest

from engine.errors import InputError
from engine.host.reading import read_json


def test_what_json_holds(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": [1, 2.5, null, true, "\\u00e9"], "b": {}}')
    assert read_json(file) == {"a": [1, 2.5, None, True, "é"], "b": {}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "too large"),
        (b"[" + b"9" * 5000 + b"]", "is damaged"),
        (b" " * 101, "too large"),
    ],
)
def test_what_json_does_not_hold(tmp_path, content, says):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(str(file))}.*{says}"):
        read_json(file, limit=100 if content.isspace() else 1 << 20)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("nothing", "is missing"), ("pipe", "named pipe"), (".", "a folder")):
        with pytest.raises(InputError, match=says):
            read_json(tmp_path / name)
