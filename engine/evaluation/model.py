"""What is measured of a trained model, by what it is for: refined, generated, driven; and the files that say it."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from engine.config import TrainConfig
from engine.data import ImageSet, open_dataset
from engine.errors import InputError
from engine.evaluation import fidelity
from engine.evaluation.base import Evaluation, Means
from engine.evaluation.driven import Driven
from engine.evaluation.generated import Generated
from engine.evaluation.likeness import require_torchmetrics
from engine.evaluation.measures import UNITS, Measures, table
from engine.evaluation.refined import Refined
from engine.host import atomic_files
from engine.host.environment import pick_device
from engine.inference.exported import is_exported
from engine.inference.faces import FaceFinder
from engine.inference.trained import Trained, load_trained
from engine.systems.kinds import DRIVE, GENERATE, REFINE
from engine.systems.registry import system_class
from engine.version import __version__


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What an evaluation and an ablation have in common."""

    real: Path | None = None
    """Real photos that refined images are compared to as a set (for the refiner, --data itself by default)."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000
    """Images that a generator makes."""
    limit: int = 0
    """Take this many images or samples of a data set, spread evenly over it; 0 = all."""
    inception_weights: Path | None = None
    """torch-fidelity's weights-inception-2015-12-05-6726825d.pth, for the Inception Score and the FID."""
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the generator's weights, or the last ones."""

    def check(self) -> None:
        """Raises InputError for values and files that cannot be used."""
        if self.limit < 0 or self.n < 1:
            raise InputError("--limit must not be negative and -n at least 1")
        if self.inception_weights is not None:
            fidelity.check_weights(self.inception_weights)
        require_torchmetrics()


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Choices):
    """What `kiln evaluate` takes."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_CHECKPOINT")]
    """Run folder (its newest good checkpoint) or checkpoint folder."""
    data: Path
    """Folder or zip of images that were not trained on (pairs or clips for ggb and reenact)."""
    split: str = ""
    """Only the images of this split of --data, for example test."""
    training: Path | None = None
    """The images a generator was trained on, to find copies of them; default the run's own data."""
    out: Path | None = None
    """Folder to write; default evaluation/ in the run folder, in a folder named after the data and the step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes cuda when there is one."""
    batch_size: int = 32
    """Images per pass."""
    seed: int = 0
    """Of the noise, and of the patches and directions of the sliced Wasserstein distance."""
    eager: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the plain PyTorch references instead of the fused operators."""


def open_set(config: TrainConfig, path: Path | None, split: str = "", *, single: bool = False) -> ImageSet:
    """The images at `path` (None: embedded) with what using the system needs; single: any images. Raises InputError."""
    system = system_class(config.system)
    need = system.needs(config)[0]
    points, members = 0, 1
    if not single and system.kind is DRIVE:
        points, members = need.points, 2
    elif not single and getattr(config, "landmarks", False):
        points = need.points
    shape = {"channels": config.channels, "resolution": config.resolution}
    return open_dataset(path, **shape, points=points, members=members, split=split, look=need.look)


def training_set(config: TrainConfig, given: Path | None, fallback: ImageSet) -> ImageSet:
    """What a generator was trained on: what was given, the run's own data, or (where that is gone) `fallback`."""
    if given is None and config.data is not None and not config.data.exists():
        print(f"kiln evaluate: note: {config.data} is gone: copies are looked for in --data; or give --training",
              file=sys.stderr)  # fmt: skip
        return fallback
    return open_set(config, given or config.data, config.split if given is None else "")


def evaluate(model: Trained, dataset: ImageSet, choices: Choices, *, training: Path | None = None,
             batch_size: int = 32, seed: int = 0) -> Evaluation:  # fmt: skip
    """The results of a model on a data set, by what its system does. Raises InputError."""
    kind = system_class(model.config.system).kind
    if choices.real is not None and kind is not REFINE:
        raise InputError(f"--real is for systems that refine images, not for {model.config.system}")
    if kind is REFINE:
        real = None if choices.real is None else open_set(model.config, choices.real, single=True)
        return Refined(model, dataset, real=real, limit=choices.limit, batch_size=batch_size)
    if kind is GENERATE:
        known = training_set(model.config, training, dataset)
        return Generated(model, dataset, known, count=choices.n, limit=choices.limit, batch_size=batch_size, seed=seed)
    return Driven(model, dataset, limit=choices.limit, batch_size=batch_size)


def describe(model: Trained, evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json says before the measures."""
    config = model.config
    return {
        "model": str(model.path),
        "system": config.system,
        "step": model.step,
        "resolution": config.resolution,
        **evaluation.about(),
        "device": str(model.device),
        "kiln": __version__,
        "torch": torch.__version__,
    }


def write(out: Path, about: dict[str, Any], measures: Measures) -> Path:
    """metrics.json: about, the units of what was measured, the measures."""
    measured = {key for values in measures.values() for key in values}
    units = {key: unit for key, unit in UNITS.items() if key in measured}
    path = out / "metrics.json"
    atomic_files.write_text(path, json.dumps({**about, "units": units, **measures}, indent=2) + "\n")
    return path


def evaluate_model(arguments: EvaluateOptions) -> str:
    """Measure a trained model, write metrics.json and the figures; returns the table. Raises InputError."""
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    arguments.check()
    finder, device = FaceFinder(), pick_device(arguments.device)
    if is_exported(arguments.model):
        raise InputError(f"{arguments.model} holds no checkpoint; give a run folder or one of its checkpoints")
    model = load_trained(arguments.model, device, fused=not arguments.eager, ema=arguments.weights == "ema")
    dataset = open_set(model.config, arguments.data, arguments.split)
    run_dir = model.path.absolute().parent.parent
    name = "-".join(filter(None, (Path(dataset.name).stem, arguments.split)))
    out = arguments.out or run_dir / "evaluation" / f"{name}-step_{model.step:08d}"
    print(f"data    {dataset.summary()}", flush=True)
    evaluation = evaluate(model, dataset, arguments, training=arguments.training, batch_size=arguments.batch_size,
                          seed=arguments.seed)  # fmt: skip
    atomic_files.make_folder(out)
    # an earlier evaluation must not look like the result of this one
    (out / "metrics.json").unlink(missing_ok=True)
    measures = evaluation.measure(
        Means(finder, arguments.inception_weights, device, arguments.seed, arguments.batch_size)
    )
    evaluation.draw(measures, out)
    about = describe(model, evaluation)
    about |= {"weights": arguments.weights, "data": str(arguments.data), "split": arguments.split}
    about["seed"] = arguments.seed
    written = write(out, about, measures)
    return f"{table(measures)}\n{written}"
