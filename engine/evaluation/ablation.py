"""The ablation of a system's paper: its rows trained, measured on the same images, and put into one table."""

import dataclasses
import gc
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from engine import checkpoint
from engine.config import Origins, TrainConfig, flag, saved_fields, show
from engine.data import ImageSet, avatars
from engine.errors import InputError
from engine.evaluation import ablation_table, figures
from engine.evaluation.base import Evaluation, Means
from engine.evaluation.measures import UNITS, Measures, panels, skipped
from engine.evaluation.model import Choices, evaluate, open_set
from engine.host import atomic_files
from engine.host.environment import pick_device
from engine.inference.faces import FaceFinder
from engine.inference.trained import load_trained
from engine.systems.kinds import DRIVE
from engine.systems.registry import SYSTEMS, config_class, system_class
from engine.training.loop import train
from engine.training.resolve import resolve
from engine.version import __version__

# avatars that are measured on where there is no data set: other people than those trained on, and how many
HELD_OUT_SEED, HELD_OUT = 1, 128
TEST = "test"  # the split of --data that is measured on
FRAMES = 8  # of each, for systems that need two images of a person
# what rows may differ in without being another experiment, and what a longer budget changes
_FREE = {"out", "steps", "device", "threads", "cuda_graph", "loader", "log_every", "sample_every", "checkpoint_every",
         "keep"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AblateOptions(Choices):
    """What `kiln ablate` takes besides the options of `python -m engine.train`."""

    system: str
    """Whose ablation; the other options of its training may follow, for all rows."""
    out: Path
    """Folder to write: one run folder for each row, the table and the figure."""
    eval_data: Path | None = None
    """Images that were not trained on, to measure on; without it, the split test of --data where --split train is
    trained on, and other avatars where there is no --data."""
    eval_split: str = ""
    """Only the images of this split of --eval-data."""
    rows: str = ""
    """Only these rows, separated by commas; all without."""


Found = dict[str, tuple[Evaluation, Measures]]  # label of a row -> what was found


@dataclass(frozen=True)
class Row:
    """One run: its label in the table, its folder, its configuration."""

    label: str
    config: TrainConfig
    origins: Origins


def ablation(system: str) -> dict[str, dict[str, Any]]:
    """Label -> fields that differ, of a system's module. Raises InputError for a system without one."""
    table = getattr(import_module(system_class(system).__module__), "ABLATION", None)
    if not table:
        have = [name for name in SYSTEMS if hasattr(import_module(system_class(name).__module__), "ABLATION")]
        raise InputError(f"the system {system} has no ablation; these have one: {', '.join(have)}")
    return table


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line's own words and those for training. -n, --system and --out are its own.

    A word without dashes goes where the option before it went.
    """
    own_names = {field.name for field in dataclasses.fields(AblateOptions)}
    own, rest = [], []
    place = own
    for word in argv:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+(e-?\d+)?", word):
            name = word.split("=")[0].lstrip("-").replace("-", "_")
            place = own if name in own_names or name in ("h", "help") else rest
        place.append(word)
    return own, rest


def chosen(table: Mapping[str, dict[str, Any]], asked: str) -> dict[str, dict[str, Any]]:
    """The rows that were asked for, in the table's order. Raises InputError for a label that is not there."""
    labels = [label.strip() for label in asked.split(",") if label.strip()]
    for label in labels:
        if label not in table:
            raise InputError(f"--rows: there is no row {label!r}; the rows are: {', '.join(table)}")
    return {label: fields for label, fields in table.items() if not labels or label in labels}


def plan(options: AblateOptions, words: Sequence[str]) -> list[Row]:
    """Every row with its complete, checked configuration. Raises InputError before anything is trained."""
    table = ablation(options.system)
    varied = {name for fields in table.values() for name in fields}
    given = {word.split("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_") for word in words}
    for name in ("resume", "dry_run"):
        if name in given:
            raise InputError(f"{flag(name)} is not for ablate: the same command goes on where it stopped")
    if clash := sorted(varied & given):
        raise InputError(f"{flag(clash[0])} is what the ablation of {options.system} varies; leave it out")
    rows = []
    for label, fields in chosen(table, options.rows).items():
        folder = options.out / re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        own = [word for name, value in fields.items() for word in _words(name, value)]
        try:
            config, origins = resolve(["--system", options.system, *words, *own, "--out", str(folder)])
        except InputError as error:
            raise InputError(f"row {label!r}: {error}") from None
        rows.append(Row(label, config, origins))
    return rows


def _words(name: str, value: Any) -> list[str]:
    """A field's value as on the command line."""
    if isinstance(value, bool):
        return [flag(name) if value else flag("no_" + name)]
    return [flag(name), repr(value) if isinstance(value, float) else show(value)]


def standing(row: Row) -> int:
    """Steps that the row's folder has done. Raises InputError when it is the folder of something else."""
    folder = row.config.out
    if not folder.exists() or not any(folder.iterdir()):
        return 0
    try:
        saved = checkpoint.read_config(folder)
    except (OSError, InputError):
        raise InputError(f"{folder} is not the folder of a run; choose another --out") from None
    if type(saved) is not type(row.config):
        raise InputError(f"{folder} holds a run of the system {saved.system}; choose another --out")
    for name in saved_fields(type(saved)):
        old, new = getattr(saved, name), getattr(row.config, name)
        if name not in _FREE and old != new:
            raise InputError(
                f"{folder} was begun with {flag(name)} {show(old)}, not {show(new)}: give the same options, or "
                "another --out"
            )
    found = checkpoint.latest(folder)
    done = 0 if found is None else int(found.name.removeprefix("step_"))
    if done > row.config.steps:
        raise InputError(f"{folder} has done {done} steps, more than --steps {row.config.steps}: rows need the same")
    return done


def train_all(rows: Sequence[Row], done: Sequence[int]) -> int:
    """Train the rest of each row; done: steps before. Returns 0, or the exit status of the row a signal stopped."""
    for place, (row, steps) in enumerate(zip(rows, done, strict=True), start=1):
        print(f"\nrow {place} of {len(rows)}: {row.label}", flush=True)
        if steps == row.config.steps:
            print(f"done before: {row.config.out}")
            continue
        started = row.config.out.exists() and any(row.config.out.iterdir())
        status = train(dataclasses.replace(row.config, resume=started), row.origins)
        _forget()
        if status:
            print("the same command goes on from there", flush=True)
            return status
    return 0


def _forget() -> None:
    """Give back what a run held, so that rows do not pile up."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def held_out(config: TrainConfig, options: AblateOptions) -> tuple[Path, str]:
    """Images to measure on, and their split: what was given, the test split, or other avatars. Raises InputError."""
    if options.eval_data is not None:
        return options.eval_data, options.eval_split
    if config.data is not None and config.split and config.split != (options.eval_split or TEST):
        return config.data, options.eval_split or TEST
    if config.data is not None:
        raise InputError(
            "images to measure on, that are not trained on, are needed: --eval-data PATH, or --split train where the "
            f"data have a split {TEST!r} too"
        )
    system, folder = system_class(config.system), options.out / "held-out"
    if not folder.is_dir():
        print(f"rendering {HELD_OUT} avatars that are not trained on into {folder}", flush=True)
        frames = FRAMES if system.kind is DRIVE else 1
        avatars.write(folder, HELD_OUT // frames, 128 if config.resolution <= 128 else 256, HELD_OUT_SEED, frames)
    return folder / system.needs(config)[-1].look, ""


def measure_all(rows: Sequence[Row], dataset: ImageSet, options: AblateOptions, finder: FaceFinder) -> Found:
    """Every row on the same images, from the same noise."""
    found = {}
    for row in rows:
        print(f"\nmeasuring {row.label} on {dataset.summary()}", flush=True)
        device = pick_device(row.config.device)
        model = load_trained(row.config.out, device, fused=row.config.fused, ema=options.weights == "ema")
        evaluation = evaluate(model, dataset, options, seed=model.config.seed)
        means = Means(finder, options.inception_weights, device, model.config.seed)
        found[row.label] = evaluation, evaluation.measure(means)
    return found


def write(options: AblateOptions, rows: Sequence[Row], dataset: ImageSet, found: Found) -> str:
    """Write table.md, table.csv, figure.png and (last) table.json; returns the table for the terminal."""
    out, labels = options.out, [row.label for row in rows]
    results = {label: measures[evaluation.result] for label, (evaluation, measures) in found.items()}
    table = ablation_table.columns(results)
    notes = skipped(results)
    atomic_files.write_text(out / "table.md", ablation_table.markdown(table, labels, notes))
    atomic_files.write_text(out / "table.csv", ablation_table.comma_separated(table, labels))
    first, fields = found[labels[0]][0], ablation(options.system)
    places = first.examples()
    # the row that was given most shows what all were given
    given = max((evaluation.rows(places) for evaluation, _ in found.values()), key=len)
    images = given | {label: evaluation.results[places] for label, (evaluation, _) in found.items()}
    atomic_files.write_bytes(out / "figure.png", figures.comparison(images, panels(results)))
    measured = {key for values in results.values() for key in values}
    about = {
        "system": options.system,
        "steps": rows[0].config.steps,
        "seed": rows[0].config.seed,
        "data": str(dataset.root),
        **first.about(),
        "weights": options.weights,
        "rows": {row.label: {"run": str(row.config.out), "fields": fields[row.label]} for row in rows},
        "kiln": __version__,
        "torch": torch.__version__,
        "units": {key: unit for key, unit in UNITS.items() if key in measured},
        "measures": {label: measures for label, (_, measures) in found.items()},
    }
    atomic_files.write_text(out / "table.json", json.dumps(about, indent=2) + "\n")
    return ablation_table.text(table, labels, notes)


def ablate(options: AblateOptions, words: Sequence[str]) -> int:
    """Train and measure the rows of an ablation, print its table; returns the exit status. Raises InputError.

    words: options of training, as on the command line, that hold for every row
    """
    config_class(options.system)
    options.check()
    finder = FaceFinder()
    rows = plan(options, words)
    dataset = open_set(rows[0].config, *held_out(rows[0].config, options))
    done = [standing(row) for row in rows]
    # an earlier table must not look like the result of this command
    for name in ("table.md", "table.csv", "table.json", "figure.png"):
        (options.out / name).unlink(missing_ok=True)
    if status := train_all(rows, done):
        return status
    found = measure_all(rows, dataset, options, finder)
    print(f"\n{write(options, rows, dataset, found)}\n{options.out / 'table.json'}")
    return 0
