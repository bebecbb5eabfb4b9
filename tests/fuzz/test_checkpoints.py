"""Altered run folders and exported models: the same weights bit for bit, or one line; no code of theirs runs."""

import contextlib
import io
import json
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import checkpoint
from engine.errors import InputError
from engine.inference.exporting import export
from engine.inference.trained import load_trained
from engine.report import main as report
from tests.fuzz.budget import examples
from tests.support.tiny_run import command, make_run

MEMORY = 300_000  # KB by which the process may grow over all examples
RAN: list[str] = []
# what is put in the place of a value of JSON
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from(
        [0, -1, 1, 16, 32, 10**9, 1e308, 0.5, "", "x", "../../x", "/etc/passwd", "\ud800", "refiner", "began"]
    ),
    st.text(max_size=20),
    st.lists(st.integers(-3, 40), max_size=4),
    st.dictionaries(st.sampled_from(["value", "bytes", "sha256", "step"]), st.integers(), max_size=2),
)
# what is put in the place of a whole file
FILES = st.sampled_from([b"", b"{", b"[" * 100_000, b"[]", b"{}", b"NaN", b'{"a":1,"a":2}', b"\xff\xfe", b"9" * 5000])


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return RAN.append, ("ran",)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A run with two checkpoints of the same weights, and what is exported of it."""
    folder = tmp_path_factory.mktemp("whole")
    run = make_run(folder / "run", step=3)
    saved = checkpoint.load(run)
    checkpoint.save(run, 7, saved.weights, saved.state, saved.config)
    (run / "config.json").write_text(json.dumps(saved.config.to_json()))
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, "k": 0.1, "time": n}) + "\n" for n in range(1, 5))
    )
    return {"run": run, "exported": export(run, folder / "exported")}


def values_of(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of keys and positions to every value in a value of JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, item in inner for p in values_of(item, (*path, key)))]


def replaced(value: Any, path: tuple, odd: Any) -> Any:
    """The value with another at a path."""
    if not path:
        return odd
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], odd)
    return copy


def mutate_json(draw: Callable, data: bytes) -> bytes:
    """JSON with a value exchanged, removed, or a key written twice."""
    value = json.loads(data)
    path = draw(st.sampled_from(values_of(value)))
    kind = draw(st.sampled_from(["exchange", "exchange", "remove", "twice"]))
    if kind == "exchange" or not path:
        return json.dumps(replaced(value, path, draw(ODD))).encode()
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if kind == "twice" and isinstance(holder, dict):
        text = json.dumps(value)
        key = json.dumps(path[-1])
        return text.replace(f"{key}:", f"{key}: 1, {key}:", 1).encode()
    del holder[path[-1]]
    return json.dumps(value).encode()


def mutate_bytes(draw: Callable, data: bytes) -> bytes:
    """Bytes with some flipped, cut off, repeated, or others in their place."""
    kind = draw(st.sampled_from(["flip", "flip", "cut", "insert", "other"]))
    place = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            if changed:
                changed[draw(st.integers(0, len(changed) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if kind == "cut":
        return data[:place]
    if kind == "insert":
        return data[:place] + draw(st.binary(min_size=1, max_size=16)) + data[place:]
    return draw(st.one_of(FILES, st.binary(max_size=64)))


def odd_state(draw: Callable) -> bytes:
    """A state.pt that holds code, or other things than a state."""
    value = draw(
        st.sampled_from([Code(), {"a": Code()}, [1], print, {"a": torch.zeros(3)}, {"system": 1, "loader": []}])
    )
    if draw(st.booleans()):
        return pickle.dumps(value)
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=draw(st.booleans()))
    return buffer.getvalue()


def sign(folder: Path) -> None:
    """Enter the files of a checkpoint in its manifest as they are, as a stranger would."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for name in checkpoint.FILES:
            data = (folder / name).read_bytes()
            manifest["files"][name] = {"bytes": len(data), "sha256": checkpoint.digest(data)}
        (folder / "manifest.json").write_text(json.dumps(manifest))


def mutate(draw: Callable, root: Path) -> bool:
    """Change one to three files below a folder; returns whether other weights may be signed as the checkpoint's own."""
    weights_signed = False
    for _ in range(draw(st.integers(1, 3))):
        files = sorted(path for path in root.rglob("*") if path.is_file())
        path = draw(st.sampled_from(files))
        data = path.read_bytes()
        if draw(st.integers(0, 9)) == 0:
            other = draw(st.sampled_from(files))
            path.write_bytes(other.read_bytes())  # swapped files
            other.write_bytes(data)
        elif path.name == "state.pt" and draw(st.booleans()):
            path.write_bytes(odd_state(draw))
        elif path.suffix == ".json" and draw(st.integers(0, 3)):
            with contextlib.suppress(ValueError, RecursionError):
                path.write_bytes(mutate_json(draw, data))
        else:
            path.write_bytes(mutate_bytes(draw, data))
        if (path.parent / "manifest.json").exists() and draw(st.booleans()):
            weights_signed |= path.suffix == ".safetensors"
            sign(path.parent)
    return weights_signed


def outcome(use: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor] | None:
    """The weights that a reader gives; None where it raises an InputError of one line."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return use()
    except InputError as error:
        assert str(error).count("\n") == 0 and len(str(error)) < 2000
        return None


def same(found: dict[str, torch.Tensor] | None, whole: dict[str, torch.Tensor]) -> bool:
    return found is None or (
        found.keys() == whole.keys() and all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    )


@examples(short=60, full=5000)
@given(data=st.data())
def test_altered_models(folders, tmp_path_factory, data):
    """`engine.load`, the reading of a run for `--resume` and `kiln report` of altered folders."""
    draw, grown = data.draw, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    which = draw(st.sampled_from(["run", "exported"]))
    folder = tmp_path_factory.getbasetemp() / f"altered-{which}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders[which], folder)
    signed = mutate(draw, folder)
    found = outcome(lambda: load_trained(folder).module.state_dict())
    whole = load_trained(folders[which]).module.state_dict()
    assert signed or same(found, whole), "altered weights were taken"
    if which == "run":
        resumed = outcome(lambda: checkpoint.load(folder).weights)
        assert signed or same(resumed, checkpoint.load(folders["run"]).weights)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            assert command(report, folder) in (0, 2)
    assert RAN == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown < MEMORY


def test_the_fuzz_would_find_altered_weights(folders, tmp_path):
    """A stranger who signs other weights is believed, so the comparison of the test above can fail."""
    folder = shutil.copytree(folders["run"], tmp_path / "run")
    for path in (folder / "checkpoints").iterdir():
        file = path / "weights.safetensors"
        content = bytearray(file.read_bytes())
        content[-4] ^= 1
        file.write_bytes(content)
        sign(path)
    assert not same(checkpoint.load(folder).weights, checkpoint.load(folders["run"]).weights)


def test_a_zip_of_much_is_no_state(folders, tmp_path):
    """A state.pt of little that would become much in memory is refused before it is read."""
    folder = shutil.copytree(folders["run"], tmp_path / "run")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(400_000_000))  # 0.4 MB
    for path in (folder / "checkpoints").iterdir():
        (path / "state.pt").write_bytes(buffer.getvalue())
        sign(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="every checkpoint"):
        load_trained(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
