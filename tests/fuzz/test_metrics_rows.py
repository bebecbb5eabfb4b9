"""Whatever stands in metrics.jsonl, a run is resumed and its report drawn; no row of a training is lost by it."""

import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from engine.host.input_files import is_lfs_pointer
from engine.systems.refiner import RefinerSystem
from engine.training.metrics import cut_after, missing, missing_text, read_metrics
from engine.training.report import figures, summary
from tests.fuzz.budget import examples

numbers = st.integers() | st.floats() | st.integers(0, 60) | st.sampled_from([10**400, -1, 2**31, 2**53 + 1])
plain = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
keys = st.sampled_from(["step", "since", "time", "images_per_s", "data_wait", "memory_mb", "l_real", "k"])
rows = st.fixed_dictionaries({"step": st.integers(0, 60)}, optional={"since": st.integers(0, 60), "k": numbers})
lines = (
    rows.map(json.dumps).map(str.encode)
    | st.dictionaries(keys, values).map(json.dumps).map(str.encode)
    | values.map(json.dumps).map(str.encode)
    | st.builds(lambda text, end: text[:end].encode(), rows.map(json.dumps), st.integers(0, 30))
    | st.binary(max_size=40)
)
joined = st.lists(lines, max_size=12).map(lambda content: b"\n".join(content) + b"\n")
files = joined.filter(lambda content: not is_lfs_pointer(content))


@given(files, st.integers(0, 60))
@examples(short=40, full=3_000)
def test_any_lines(content: bytes, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes(content)
        before = read_metrics(path)
        steps = [row["step"] for row in before]
        assert steps == sorted(set(steps))
        cut_after(path, step)
        kept = read_metrics(path)
        assert [row for row in before if row["step"] <= step] == [row for row in kept if row in before]
        text = missing_text(missing(kept, step))
        assert "\n" not in text and (not kept or kept[-1]["step"] < step or text == missing_text(missing(kept)))
        summary(kept, {"steps": "60"}, RefinerSystem.headline)


@given(files)
@examples(short=3, full=100)
def test_the_charts_of_any_lines(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes(content)
        figures(read_metrics(path), ())
