"""Measures a trained model on a data set and writes metrics.json and figures: the work of `kiln evaluate`."""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from engine.config import TrainConfig
from engine.data import ImageSet, open_dataset
from engine.errors import InputError
from engine.evaluation import fidelity
from engine.evaluation.base import Evaluation, Tools, Window
from engine.evaluation.driven import Driven
from engine.evaluation.generated import Generated
from engine.evaluation.likeness import require_torchmetrics
from engine.evaluation.measures import UNITS, Measures, table
from engine.evaluation.refined import Refined
from engine.host import atomic_files
from engine.host.environment import pick_device
from engine.inference.faces import FaceFinder, Framing
from engine.inference.trained import Trained, load_trained
from engine.systems.kinds import DRIVE, GENERATE, REFINE
from engine.systems.registry import system_class
from engine.version import __version__


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """The options that `kiln evaluate` and `kiln ablate` share."""

    real: Path | None = None
    """Real photos to compare refined images with, as a set; default for the refiner: the images of --data."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000
    """How many images a generator makes."""
    limit: int = 0
    """How many images or samples of a data set to take, spread evenly over it; 0 = all."""
    inception_weights: Path | None = None
    """File weights-inception-2015-12-05-6726825d.pth of torch-fidelity, for the Inception Score and the FID."""
    weights: Literal["ema", "raw"] = "ema"
    """ema: the moving average of the generator's weights; raw: the last weights."""

    def check(self) -> None:
        """Raise InputError for values and files that cannot be used."""
        if self.limit < 0 or self.n < 1:
            raise InputError("--limit must not be negative and -n at least 1")
        if self.inception_weights is not None:
            fidelity.check_weights(self.inception_weights)
        require_torchmetrics()


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MeasureOptions):
    """The options of `kiln evaluate`."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder (its best checkpoint, or its newest good one), checkpoint folder, exported folder, or the name of a
    shipped model (`kiln models`)."""
    data: Path | None = None
    """Folder or zip of images that were not trained on; pairs or clips for ggb and reenact."""
    split: str = ""
    """Measure only on the images of this split of --data, for example test."""
    held_out: tyro.conf.FlagCreatePairsOff[bool] = False
    """Measure on the images that the run held out (its --hold-out or --eval-split); --data then only says where the
    run's images are now."""
    face_crop: tyro.conf.FlagCreatePairsOff[bool] = False
    """Frame the largest face as in the model's photos, as `kiln refine --face-crop` does; for systems that refine."""
    training: Path | None = None
    """The images that a generator was trained on, to look for copies of them; default the data of the run."""
    out: Path | None = None
    """Folder to write; default a folder named after the data and the step, in evaluation/ of the run folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes cuda when there is one."""
    batch_size: int = 32
    """Images per pass."""
    seed: int = 0
    """Seed of the noise, and of the patches and directions of the sliced Wasserstein distance."""
    eager: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the plain PyTorch references instead of the fused operators."""


def open_set(config: TrainConfig, path: Path | None, *, single: bool = False, **part: Any) -> ImageSet:
    """The images at `path` that a trained system can be measured on: with landmarks or in pairs where it needs them.

    path:   None takes the embedded avatars
    single: accept images without landmarks and pairs
    part:   which of them, as options of open_dataset; none: all
    Raises InputError.
    """
    system = system_class(config.system)
    need = system.needs(config)[0]
    points, members = 0, 1
    if not single and system.kind is DRIVE:
        points, members = need.points, 2
    elif not single and getattr(config, "landmarks", False):
        points = need.points
    shape = {"channels": config.channels, "resolution": config.resolution}
    return open_dataset(path, **shape, points=points, members=members, look=need.look, **part)


def training_set(model: Trained, given: Path | None, fallback: ImageSet) -> ImageSet:
    """The images that a generator was trained on.

    given:    the option --training; None takes the data of the run
    fallback: taken where the data of the run no longer exist, and for an exported model, which does not name them
    """
    config, note = model.config, ""
    if given is None and model.step is None:
        note = "an exported model does not say where the images of its training are"
    elif given is None and config.data is not None and not config.data.exists():
        note = f"{config.data} is gone"
    if note:
        print(f"kiln evaluate: note: {note}: copies are looked for in --data; or give --training", file=sys.stderr)
        return fallback
    return open_set(config, config.data, **config.images()) if given is None else open_set(config, given)


def apply_model(model: Trained, dataset: ImageSet, options: MeasureOptions, *, training: Path | None = None,
                batch_size: int = 32, seed: int = 0, window: Window | None = None) -> Evaluation:  # fmt: skip
    """The evaluation of a model on a data set; the kind of its system decides which. Raises InputError."""
    kind = system_class(model.config.system).kind
    if options.real is not None and kind is not REFINE:
        raise InputError(f"--real is for systems that refine images, not for {model.config.system}")
    if kind is REFINE:
        real = None if options.real is None else open_set(model.config, options.real, single=True)
        return Refined(model, dataset, real=real, limit=options.limit, batch_size=batch_size, window=window)
    if window is not None:
        raise InputError(f"--face-crop is for systems that refine images, not for {model.config.system}")
    if kind is GENERATE:
        known = training_set(model, training, dataset)
        return Generated(model, dataset, known, count=options.n, limit=options.limit, batch_size=batch_size, seed=seed)
    return Driven(model, dataset, limit=options.limit, batch_size=batch_size)


def describe(model: Trained, evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json says about the model, before the measures."""
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
    """Write metrics.json: `about`, the units of the measures, and the measures; returns its path."""
    measured = {key for values in measures.values() for key in values}
    units = {key: unit for key, unit in UNITS.items() if key in measured}
    path = out / "metrics.json"
    atomic_files.write_text(path, json.dumps({**about, "units": units, **measures}, indent=2) + "\n")
    return path


def chosen_set(options: EvaluateOptions, config: TrainConfig) -> ImageSet:
    """The images that the options name. Raises InputError for options that contradict each other."""
    if not options.held_out:
        if options.data is None:
            raise InputError("give the images to measure on: --data PATH, or --held-out for those the run held out")
        return open_set(config, options.data, split=options.split)
    if options.split:
        raise InputError("--held-out and --split both say which images to take; give one")
    if not config.hold_out and not config.eval_split:
        raise InputError(f"{options.model} held nothing out: it was trained without --hold-out; give --data PATH")
    return open_set(config, options.data or config.data, **config.images(held=True))


def _default_folder(options: EvaluateOptions, model: Trained, dataset: ImageSet) -> Path:
    """Where an evaluation is written: in its run's folder, or below the current one for an exported model."""
    part = "held-out" if options.held_out else options.split
    name = "-".join(filter(None, (Path(dataset.name).stem, part)))
    if model.step is None:
        return Path("evaluation") / f"{model.path.name}-{name}"
    return model.path.absolute().parent.parent / "evaluation" / f"{name}-step_{model.step:08d}"


def evaluate_model(options: EvaluateOptions) -> str:
    """Measure a trained model, write metrics.json and the figures, and return the table. Raises InputError."""
    if options.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {options.batch_size}")
    options.check()
    finder, device = FaceFinder(), pick_device(options.device)
    model = load_trained(options.model, device, fused=not options.eager, ema=options.weights == "ema")
    dataset = chosen_set(options, model.config)
    out = options.out or _default_folder(options, model, dataset)
    print(f"data    {dataset.summary()}", flush=True)
    window = None
    if options.face_crop:
        window = partial(finder.portrait, framing=Framing.of(model.path))
    evaluation = apply_model(model, dataset, options, training=options.training, batch_size=options.batch_size,
                             seed=options.seed, window=window)  # fmt: skip
    atomic_files.make_folder(out)
    # an earlier evaluation must not look like the result of this one
    (out / "metrics.json").unlink(missing_ok=True)
    tools = Tools(finder, options.inception_weights, device, options.seed, options.batch_size)
    measures = evaluation.measure(tools)
    evaluation.draw(measures, out)
    about = describe(model, evaluation)
    about |= {
        "weights": options.weights,
        "data": str(options.data or model.config.data),
        "split": options.split,
        "held_out": options.held_out,
        "face_crop": options.face_crop,
        "seed": options.seed,
    }
    return f"{table(measures)}\n{write(out, about, measures)}"
