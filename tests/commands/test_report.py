"""The report of a run: self-contained, whole, and true to the run's files."""

import base64
import io
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from engine.host import environment
from engine.inference.exporting import export
from engine.pages.charts import draw, series, smooth, thin
from engine.pages.panels import Curve
from engine.report import main
from engine.systems.registry import SYSTEMS, build
from engine.training import report
from tests.support.data_images import picture
from tests.support.tiny_run import command, make_run
from tests.support.training_fakes import batch_of, tiny_config


def record(step: int, **more) -> dict:
    return {
        "step": step,
        "time": step / 2,
        "l_real": 1 / step,
        "l_fake": 0.5 / step,
        "k": 0.1,
        "images_per_s": 40.0,
        **more,
    }


def write_run(folder, records, config=None, grids=()):
    folder.mkdir(parents=True)
    config = config or {
        "system": {"value": "refiner", "origin": "default"},
        "steps": {"value": 90, "origin": "command line"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (folder / "samples").mkdir()
    for step in grids:
        picture(step, 200, 100).save(folder / "samples" / f"step_{step:08d}.png")
    return folder


class Page(HTMLParser):
    """Collects what a browser would fetch and the visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.tags, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "data", "action")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_fetches_nothing(tmp_path):
    run = write_run(tmp_path / "run", [record(s) for s in range(1, 91)], grids=(0, 45, 90))
    text = report.write(run).read_text()
    page = Page(text)
    inside = [link for link in page.links if not link.startswith(("data:image/png;base64,", "#"))]
    assert inside == []
    assert "@import" not in text and "url(h" not in text
    assert page.tags.count("svg") == 3  # autoencoder error, k, speed: the keys that are there
    assert page.tags.count("img") == 3
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_the_grids_are_the_files(tmp_path):
    run = write_run(tmp_path / "run", [record(1)], grids=(0, 1))
    latest = re.search(r'id="viewer" src="data:image/png;base64,([^"]+)"', report.write(run).read_text()).group(1)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(latest))))
    np.testing.assert_array_equal(shown, np.asarray(Image.open(run / "samples" / "step_00000001.png")))


def test_many_large_grids_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_LATEST_BYTES", 40_000)
    monkeypatch.setattr(report, "_EARLIER_BYTES", 10_000)
    run = write_run(tmp_path / "run", [record(1)])
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    for step in range(0, 4000, 100):
        Image.fromarray(noise).save(run / "samples" / f"step_{step:08d}.png")
    grids = report.samples(run / "samples")
    assert [grids[0]["step"], grids[-1]["step"]] == [0, 3900]
    assert len(grids) == 16 and len({grid["step"] for grid in grids}) == 16
    assert all(len(grid["uri"]) < 10_000 * 4 / 3 + 100 for grid in grids[:-1])
    assert len(grids[-1]["uri"]) < 40_000 * 4 / 3 + 100


def test_a_damaged_grid_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", [record(1)], grids=(0, 1))
    whole = (run / "samples" / "step_00000001.png").read_bytes()
    (run / "samples" / "step_00000002.png").write_bytes(whole[: len(whole) // 2])
    assert [grid["step"] for grid in report.samples(run / "samples")] == [0, 1]
    assert "step 1" in report.write(run).read_text()


def test_metrics_of_an_interrupted_and_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "k": value}) for step, value in [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)]]
    path.write_text("\n".join(lines) + '\nnull\n"x"\n{"step": 4, "k"')
    assert report.read_metrics(path) == [{"step": 1, "k": 1}, {"step": 2, "k": 2}, {"step": 3, "k": 2}]


def test_the_page_names_configuration_origins_and_last_values(tmp_path):
    config = {
        "system": {"value": "refiner", "origin": "command line"},
        "lr": {"value": 0.001, "origin": "default"},
        "inject": {"value": [8, 16], "origin": "command line"},
        "data": {"value": None, "origin": "preset quick"},
        "fused": {"value": False, "origin": "command line"},
    }
    run = write_run(tmp_path / "my run", [record(s, custom=s * 2.0) for s in (1, 2, 4)], config)
    rows = report.read_config(run / "config.json")
    assert rows[-1] == {"name": "lr", "value": "0.001", "origin": "default"}  # chosen values come before defaults
    text = " ".join(Page(report.write(run).read_text()).text)
    for part in ("8, 16", "command line", "preset quick", "--resume", f"'{run}'", "0.25", "L(x), real", "custom"):
        assert part in text, part


def test_hostile_names_are_escaped(tmp_path):
    config = {"data": {"value": "</table><script>alert(1)</script>", "origin": "<iframe>"}}
    page = Page(report.write(write_run(tmp_path / "<img src=x>", [record(1)], config)).read_text())
    assert not {"script", "iframe", "img"} & set(page.tags)


@pytest.mark.parametrize("values", [[], [float("nan")], [0.0], [float("inf"), 1.0]])
def test_odd_values_do_not_break_it(tmp_path, values):
    run = write_run(tmp_path / "run", [record(i + 1, l_real=value) for i, value in enumerate(values)])
    assert "</html>" in report.write(run).read_text()


def test_the_environment_is_that_of_the_training(tmp_path):
    run = write_run(tmp_path / "run", [record(1)])
    assert main([str(run)]) == 0
    assert "Not recorded." in (run / "report.html").read_text()
    report.write(run)
    stored = json.loads((run / "environment.json").read_text())
    assert stored["packages"]["torch"] in (run / "report.html").read_text()
    (run / "environment.json").write_text(json.dumps({**stored, "platform": "another machine"}))
    assert "another machine" in report.write(run).read_text()


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", [record(1)])
    before = report.write(run).read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space"):
        report.write(run)
    assert (run / "report.html").read_bytes() == before
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert command(main, tmp_path / "nothing") == 2
    assert "no such run folder" in capsys.readouterr().err
    assert command(main, tmp_path) == 2
    assert "not a run folder" in capsys.readouterr().err
    exported = export(make_run(tmp_path / "run"), tmp_path / "exported")
    assert command(main, exported) == 2 and not (exported / "report.html").exists()
    assert "an exported model, not a run" in capsys.readouterr().err


def test_curves_show_the_numbers():
    records = [{"step": s, "a": float(s)} for s in range(1, 6)] + [{"step": 6, "a": float("nan")}, {"step": 7}]
    steps, values = series(records, Curve("a", "a", 100.0))
    assert steps.tolist() == [1, 2, 3, 4, 5] and values.tolist() == [100, 200, 300, 400, 500]
    assert draw("x", records, [Curve("missing", "m")]) is None
    svg = draw("x", records, [Curve("a", "a")])
    assert "var(--series-1)" in svg and "#010" not in svg and "DejaVu" not in svg


def test_thinning_keeps_the_mean_and_smoothing_keeps_a_line():
    steps, values = np.arange(4000.0), np.random.default_rng(0).normal(size=4000)
    x, y = thin(steps, values)
    assert len(x) == 400 and (x[0], x[-1]) == (0, 3999)
    assert y.mean() == pytest.approx(values.mean())
    flat = np.full(100, 3.0)
    np.testing.assert_allclose(smooth(flat, 10), flat)
    line = np.arange(200.0)
    np.testing.assert_allclose(smooth(line, 10)[60:140], line[60:140], atol=1e-3)  # the smoothed line does not lag


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_system_s_losses_have_their_panels(name, tmp_path):
    """No loss of a system is left to a panel of unknown numbers, and the commands are those for its kind."""
    config = tiny_config(mode="--eager", system=name)
    system = build(config, "cpu")
    losses = {key: 1.0 for key in system.step(batch_of(config, 1))}
    records = [{"step": step, "lr": 1.0, **losses} for step in (1, 2)]
    panels = report.figures(records, system.charts)
    known = {chart.title for chart in (*system.charts, *report.GENERAL)}
    assert [panel["title"] for panel in panels if panel["title"] not in known] == []
    assert max(len(panel["legend"]) for panel in panels) <= 3
    shown = {key for chart in system.charts for key in (curve.key for curve in chart.curves)}
    assert set(system.headline) <= shown
    configuration = {"system": {"value": name, "origin": "command line"}}
    page = report.write(write_run(tmp_path / "run", records, configuration)).read_text()
    for command_name, _ in system.kind.next_steps:
        assert f"python -m engine.{command_name} " in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("environment.json", "[1]"),
        ("environment.json", "{}"),
        ("environment.json", '{"cpu": 1, "memory": {}, "gpus": [], "packages": {}}'),
        ("environment.json", "[" * 100_000),
        ("config.json", "[1]"),
        ("config.json", "{"),
        ("config.json", "[" * 100_000),
        ("config.json", '{"lr": NaN}'),
    ],
)
def test_a_damaged_file_is_named(tmp_path, capsys, name, content):
    run = write_run(tmp_path / "run", [record(1)])
    (run / name).write_text(content)
    assert command(main, run) == 2
    told = capsys.readouterr().err
    assert f"{run / name} is damaged" in told and told.count("\n") == 1


SNAPSHOT = json.dumps(environment.snapshot() | {"gpus": [{"name": "a", "memory": None}]})


@pytest.mark.parametrize(
    "path", [(), ("cpu",), ("cpu", "flags"), ("memory",), ("memory", "total"), ("gpus",), ("packages",)]
)
@pytest.mark.parametrize("value", [None, 3, "x", [1], {"a": 1}])
def test_odd_values_of_a_machine(tmp_path, capsys, path, value):
    """The page, or one line."""
    run = write_run(tmp_path / "run", [record(1)])
    machine = place = json.loads(SNAPSHOT)
    for key in path[:-1]:
        place = place[key]
    if path:
        place[path[-1]] = value
    (run / "environment.json").write_text(json.dumps(machine if path else value))
    status = command(main, run)
    assert status == 0 or (status == 2 and "environment.json is damaged" in capsys.readouterr().err)


def test_what_is_being_written_is_no_sample(tmp_path):
    run = write_run(tmp_path / "run", [record(1)], grids=(0, 1))
    picture(5, 200, 100).save(run / "samples" / ".writing-12345.png")
    assert [grid["step"] for grid in report.samples(run / "samples")] == [0, 1]


def test_what_is_no_picture_is_named(tmp_path, capsys):
    run = write_run(tmp_path / "run", [record(1)], grids=(0,))
    os.mkfifo(run / "samples" / "step_00000001.png")
    (run / "samples" / "step_00000002.png").mkdir()
    Image.new("1", (20_000, 20_000)).save(run / "samples" / "step_00000003.png")
    assert [grid["step"] for grid in report.samples(run / "samples")] == [0]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all(
        f"step_0000000{number}.png is left out" in line for number, line in enumerate(told, 1)
    )
