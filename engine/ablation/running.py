"""Trains the rows of the ablation of a system's paper, measures them on the same images, and writes one table."""

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
from engine.ablation import table as tables
from engine.config import Origins, TrainConfig, flag, saved_fields, show
from engine.data import ImageSet, avatars
from engine.errors import InputError
from engine.evaluation import figures
from engine.evaluation.base import Evaluation, Tools
from engine.evaluation.evaluating import MeasureOptions, apply_model, open_set
from engine.evaluation.measures import UNITS, Measures, panels, skipped
from engine.host import atomic_files
from engine.host.environment import pick_device
from engine.inference.faces import FaceFinder
from engine.inference.trained import load_trained
from engine.systems.kinds import DRIVE
from engine.systems.registry import SYSTEMS, config_class, system_class
from engine.training.loop import train
from engine.training.resolve import resolve
from engine.training.setup import contents
from engine.version import __version__

# without a data set, rows are measured on so many avatars, of a seed whose people nobody is trained on
HELD_OUT_SEED, HELD_OUT = 1, 128
TEST = "test"  # the split of --data that rows are measured on
FRAMES = 8  # images of each avatar, for systems that need two images of a person
# fields that may change when the command runs again in the same folder: they do not change the experiment
_FREE = {"out", "steps", "device", "threads", "cuda_graph", "loader", "log_every", "sample_every", "checkpoint_every",
         "keep"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AblateOptions(MeasureOptions):
    """The options of `kiln ablate` besides those of `kiln train`."""

    system: str
    """The system whose ablation to run; further options of its training apply to all rows."""
    out: Path
    """Folder to write: a run folder for each row, the table and the figure."""
    eval_data: Path | None = None
    """Images to measure on, which were not trained on; default the split test of --data with --split train, and other
    avatars without --data."""
    eval_split: str = ""
    """Measure only on the images of this split of --eval-data."""
    rows: str = ""
    """Only these rows, separated by commas; default all."""
    seeds: int = 1
    """Train every row with so many seeds, from --seed on upwards; the table then gives means and spreads."""

    def check(self) -> None:
        super().check()
        if self.seeds < 1:
            raise InputError(f"--seeds must be at least 1, got {self.seeds}")


@dataclass(frozen=True)
class Measured:
    """What was measured of the rows.

    shown:   label of a row -> the results of its first seed, for the images of the figure
    by_seed: seed -> label -> the measures of the run
    """

    shown: dict[str, Evaluation]
    by_seed: dict[int, dict[str, Measures]]

    def results(self) -> dict[str, list[Measures]]:
        """Label of a row -> the measures of its model's results, for each seed."""
        runs = self.by_seed.values()
        return {label: [of[label][evaluation.result] for of in runs] for label, evaluation in self.shown.items()}


@dataclass(frozen=True)
class Row:
    """One run: its label in the table, which all seeds of a row share, its configuration, the origin of each value."""

    label: str
    config: TrainConfig
    origins: Origins


def ablation(system: str) -> dict[str, dict[str, Any]]:
    """The ablation that a system's module holds: label of a row -> {field: value}. Raises InputError for none."""
    table = getattr(import_module(system_class(system).__module__), "ABLATION", None)
    if not table:
        have = [name for name in SYSTEMS if hasattr(import_module(system_class(name).__module__), "ABLATION")]
        raise InputError(f"the system {system} has no ablation; these have one: {', '.join(have)}")
    return table


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that are for `kiln ablate`, and the words that are for `kiln train`.

    -n, --system and --out are for `kiln ablate`. A word without dashes goes with the option before it.
    """
    own_names = {field.name for field in dataclasses.fields(AblateOptions)}
    own, training = [], []
    place = own
    for word in argv:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+(e-?\d+)?", word):
            name = word.split("=")[0].lstrip("-").replace("-", "_")
            place = own if name in own_names or name in ("h", "help") else training
        place.append(word)
    return own, training


def select_rows(table: Mapping[str, dict[str, Any]], rows: str) -> dict[str, dict[str, Any]]:
    """The rows of an ablation that the option --rows names, in the table's order; all for "".

    Raises InputError for a label that does not exist.
    """
    labels = [label.strip() for label in rows.split(",") if label.strip()]
    for label in labels:
        if label not in table:
            raise InputError(f"--rows: there is no row {label!r}; the rows are: {', '.join(table)}")
    return {label: fields for label, fields in table.items() if not labels or label in labels}


def plan(options: AblateOptions, words: Sequence[str]) -> list[Row]:
    """The runs to train, each with its complete and checked configuration; with several seeds first all rows of one.

    words: the options of training that apply to every row. Raises InputError before anything is trained.
    """
    table = ablation(options.system)
    varied = {name for fields in table.values() for name in fields}
    given = {word.split("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_") for word in words}
    for name in ("resume", "dry_run"):
        if name in given:
            raise InputError(f"{flag(name)} is not for ablate: the same command goes on where it stopped")
    if clash := sorted(varied & given):
        raise InputError(f"{flag(clash[0])} is what the ablation of {options.system} varies; leave it out")
    rows = []
    for label, fields in select_rows(table, options.rows).items():
        folder = options.out / re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        own = [word for name, value in fields.items() for word in _words(name, value)]
        try:
            config, origins = resolve(["--system", options.system, *words, *own, "--out", str(folder)])
        except InputError as error:
            raise InputError(f"row {label!r}: {error}") from None
        rows.append(Row(label, config, origins))
    return [_with_seed(row, more) for more in range(options.seeds) for row in rows]


def _with_seed(row: Row, more: int) -> Row:
    """The run of a row with a seed that is higher by `more`, in a folder of its own."""
    if not more:
        return row
    seed = row.config.seed + more
    folder = row.config.out.with_name(f"{row.config.out.name}-seed-{seed}")
    return Row(row.label, dataclasses.replace(row.config, seed=seed, out=folder), row.origins)


def _words(name: str, value: Any) -> list[str]:
    """The words of a command line that give a field this value."""
    if isinstance(value, bool):
        return [flag(name) if value else flag("no_" + name)]
    return [flag(name), repr(value) if isinstance(value, float) else show(value)]


def steps_done(row: Row) -> int:
    """The steps that the row's folder has already trained. Raises InputError when the folder holds another run."""
    folder = row.config.out
    if not contents(folder):
        return 0
    try:
        saved = checkpoint.read_config(folder)
    except InputError:
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
    newest = checkpoint.latest(folder)
    done = 0 if newest is None else int(newest.name.removeprefix("step_"))
    if done > row.config.steps:
        raise InputError(f"{folder} has done {done} steps, more than --steps {row.config.steps}: rows need the same")
    return done


def train_all(rows: Sequence[Row], done: Sequence[int]) -> int:
    """Train the remaining steps of each row; returns 0, or the exit status of the row that a signal stopped.

    done: the steps that each row has already trained
    """
    for place, (row, steps) in enumerate(zip(rows, done, strict=True), start=1):
        print(f"\nrun {place} of {len(rows)}: {row.label}, seed {row.config.seed}", flush=True)
        if steps == row.config.steps:
            print(f"done before: {row.config.out}")
            continue
        status = train(dataclasses.replace(row.config, resume=bool(contents(row.config.out))), row.origins)
        _free_memory()
        if status:
            print("the same command goes on from there", flush=True)
            return status
    return 0


def _free_memory() -> None:
    """Free the memory of a run, so that the runs of all rows do not add up."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def held_out(config: TrainConfig, options: AblateOptions) -> tuple[Path, str]:
    """The images to measure on, and their split: --eval-data, else the test split of --data, else other avatars.

    Raises InputError when --data has no other split than the one that is trained on.
    """
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


def measure_all(rows: Sequence[Row], dataset: ImageSet, options: AblateOptions, finder: FaceFinder) -> Measured:
    """Measure every run on the same images, and all rows of a seed from the same noise."""
    measured = Measured({}, {})
    for row in rows:
        print(f"\nmeasuring {row.label}, seed {row.config.seed}, on {dataset.summary()}", flush=True)
        device = pick_device(row.config.device)
        model = load_trained(row.config.out, device, fused=row.config.fused, ema=options.weights == "ema")
        evaluation = apply_model(model, dataset, options, seed=model.config.seed)
        tools = Tools(finder, options.inception_weights, device, model.config.seed)
        measured.shown.setdefault(row.label, evaluation)
        measured.by_seed.setdefault(row.config.seed, {})[row.label] = evaluation.measure(tools)
    return measured


def write(options: AblateOptions, rows: Sequence[Row], dataset: ImageSet, measured: Measured) -> str:
    """Write table.md, table.csv, figure.png and, last, table.json; returns the table for the terminal."""
    out, results = options.out, measured.results()
    table, labels = tables.columns(results), list(results)
    first_seed = {label: of[0] for label, of in results.items()}
    notes = skipped(first_seed)
    if options.seeds > 1:
        notes.append(f"means of {options.seeds} seeds ± the standard deviation between them")
    atomic_files.write_text(out / "table.md", tables.markdown(table, labels, notes))
    atomic_files.write_text(out / "table.csv", tables.comma_separated(table, labels))
    first, fields = measured.shown[labels[0]], ablation(options.system)
    places = first.examples()
    # rows see different inputs of the same images; the row with the most inputs shows them all
    inputs = max((evaluation.rows(places) for evaluation in measured.shown.values()), key=len)
    images = inputs | {label: evaluation.results[places] for label, evaluation in measured.shown.items()}
    atomic_files.write_bytes(out / "figure.png", figures.comparison(images, panels(results, tables.over_seeds)))
    keys = {key for values in first_seed.values() for key in values}
    about = {
        "system": options.system,
        "steps": rows[0].config.steps,
        "seed": rows[0].config.seed,
        "data": str(dataset.root),
        **first.about(),
        "weights": options.weights,
        "rows": {row.label: {"run": str(row.config.out), "fields": fields[row.label]} for row in rows[: len(labels)]},
        "kiln": __version__,
        "torch": torch.__version__,
        "units": {key: unit for key, unit in UNITS.items() if key in keys},
        "measures": measured.by_seed[rows[0].config.seed],
    }
    if options.seeds > 1:
        about["seeds"] = measured.by_seed
    atomic_files.write_text(out / "table.json", json.dumps(about, indent=2) + "\n")
    return tables.text(table, labels, notes)


def ablate(options: AblateOptions, words: Sequence[str]) -> int:
    """Train and measure the rows of an ablation, and print its table; returns the exit status. Raises InputError.

    words: the options of training that apply to every row, as on the command line
    """
    config_class(options.system)
    options.check()
    finder = FaceFinder()
    rows = plan(options, words)
    path, split = held_out(rows[0].config, options)
    dataset = open_set(rows[0].config, path, split=split)
    done = [steps_done(row) for row in rows]
    # an earlier table must not look like the result of this command
    for name in ("table.md", "table.csv", "table.json", "figure.png"):
        (options.out / name).unlink(missing_ok=True)
    if status := train_all(rows, done):
        return status
    measured = measure_all(rows, dataset, options, finder)
    print(f"\n{write(options, rows, dataset, measured)}\n{options.out / 'table.json'}")
    return 0
