"""The configuration of a training run: its options, their checks, and how it is printed and saved.

Each system adds its options in its own subclass (engine.systems); engine.training.resolve turns a command line into the
complete configuration.
"""

import dataclasses
import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import torch
import tyro

from engine.errors import InputError
from engine.host import atomic_files
from engine.networks.layers import level_sizes

Origins = dict[str, str]
DEFAULT_SYSTEM = "refiner"


def _sizes(words: list[str]) -> tuple[int, ...]:
    """(8, 16) for ["8,16"]."""
    try:
        return tuple(int(word) for word in words[0].replace(" ", "").split(","))
    except ValueError:
        raise ValueError(f"expected sizes such as 8,16; got {words[0]!r}") from None


Sizes = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="8,16,...",
        instance_from_str=_sizes,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value)) or "as described"],
    ),
]

if TYPE_CHECKING:
    Switch = bool
    Hidden = int
else:
    Switch = tyro.conf.FlagCreatePairsOff[bool]
    Hidden = tyro.conf.SuppressFixed[tyro.conf.Fixed[int]]  # a field without an option

_NOT_SAVED = {"saved": False}  # of a field that only the command line has; config.json does not keep it


@dataclass(frozen=True)
class TrainConfig:
    """The options of a run that all systems have; every field is an option of `python -m engine.train`.

    A system's subclass adds its own options, their checks, and:
    PRESETS:  preset -> {field: value}
    FIXED:    the fields that a resumed run cannot change, because its saved weights or state depend on them
    SMALL:    field -> value of a small run in which every part of the system works from its first step; `kiln verify`
              and the tests train it
    JUDGED:   whether its discriminators heed --augment-judged
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"quick": {}, "paper": {}}
    FIXED: ClassVar[tuple[str, ...]] = ("system", "seed", "resolution", "channels", "filters", "hold_out")
    SMALL: ClassVar[dict[str, Any]] = {"resolution": 32, "filters": 8, "batch_size": 4}
    JUDGED: ClassVar[bool] = False

    fused: Switch = False
    """Train with Kiln's fused operators (give this or --eager)."""
    eager: Switch = field(default=False, metadata=_NOT_SAVED)
    """Train with the plain PyTorch references: same results, slower."""
    system: str = DEFAULT_SYSTEM
    """What to train; `--system S --help` shows the options of S."""
    data: Path | None = None
    """Folder or zip of images; default the embedded avatars."""
    split: str = ""
    """Train only on this split of --data, for example train; default all of it."""
    hold_out: int = 0
    """Leave every Nth image out of the training, with all others of its person or clip, to measure on; 0 = none."""
    out: Path | None = None
    """Run folder to write; default runs/SYSTEM-TIME."""
    init: str = ""
    """Start from the networks of this run, checkpoint, exported folder or shipped model (`kiln models`): with its
    options, a quarter of its learning rate, and fresh optimisers."""
    freeze_d: int = 0
    """Leave the first N layers of each discriminator as they are; with --init for small data sets."""
    resume: Switch = field(default=False, metadata=_NOT_SAVED)
    """Go on from the newest good checkpoint in --out, or start a run there when it has none."""
    dry_run: Switch = field(default=False, metadata=_NOT_SAVED)
    """Print parameters, memory, data and configuration; train and write nothing."""
    preset: Literal["quick", "good", "paper"] = "quick"
    """quick: values that train in minutes on 2 CPU cores; good: in an hour or more there, or in minutes on a GPU, with
    what was found to help; paper: the values of the paper."""

    steps: int = 1000
    """Training steps in total, including those before a resume."""
    batch_size: int = 16
    """Images per step, of all ranks together (processes that train together)."""
    resolution: int = 64
    """Side of the images: 16, 32, 64, 128 or 256."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour."""
    filters: int = 16
    """n, the width of the networks."""
    seed: int = 0
    """Seed of the initial weights and of the order of the images."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to train; default cuda when there is one."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of the networks; tf32 needs cuda."""
    cuda_graph: bool = True
    """On cuda, record the step as one CUDA graph and launch it whole; --no-cuda-graph launches kernel by kernel."""
    threads: int = 0
    """CPU threads of each rank; 0 = as many as PyTorch would use, or with several ranks an equal share of the cores.
    The same number of threads gives the same bits."""
    ranks: Hidden = 1
    """Processes that train together; torchrun starts them."""

    lr: float = 1e-3
    """Learning rate (Adam)."""
    lr_schedule: Literal["constant", "step", "cosine", "linear"] = "constant"
    """constant; step: times --lr-decay every --lr-every steps; cosine: down to 0 at the last step; linear: constant in
    the first half, then straight down to 0."""
    lr_warmup: int = 0
    """Steps in which the learning rate rises from 0."""
    lr_every: int = 2000
    """Steps between two decays of the step schedule."""
    lr_decay: float = 0.9
    """Factor of each decay of the step schedule."""
    lr_floor: float = 0.0
    """The learning rate does not fall below this share of --lr."""
    ema: float = 0.999
    """Decay of the generator's moving average (the weights that refine uses); 0 = the last weights."""

    loader: Literal["auto", "resident", "dali"] = "auto"
    """How images are read: resident keeps the decoded set in memory."""
    mirror: bool = True
    """Mirror half of the images."""
    mirror_swap: bool = True
    """Swap left and right landmarks in mirrored images; the code of the reenactment paper does not."""
    crop: Literal["center", "random"] = "center"
    """Which square to cut out of an image that is not square."""
    augment_geometry: float = 0.0
    """How strongly images are turned, scaled and shifted, anew each time: 0 to 1 (15 degrees, 16 %, 8 %)."""
    augment_light: float = 0.0
    """How strongly their brightness, colours and the direction of their light change: 0 to 1."""
    augment_judged: float = 0.0
    """How differently discriminators see every image, real and generated alike: 0 to 1, for small data sets. Colours,
    place, a square left out; the autoencoder of refiner and began and the parts of simgan see them as they are."""

    eval_every: int = 0
    """Steps between two measurements on images that are not trained on (--hold-out or --eval-split); 0 = none. The
    best step is kept as checkpoints/best, which refine, sample, reenact and export take."""
    eval_split: str = ""
    """Measure on this split of --data instead of the images of --hold-out."""
    best_by: Literal["auto", "swd", "ssim", "l1"] = "auto"
    """What makes a step the best: the smallest sliced Wasserstein distance or L1, or the largest SSIM; auto: swd, and
    ssim for systems that reenact."""
    patience: int = 0
    """Stop after so many measurements in a row that were no better than the best one; 0 = never."""

    log_every: int = 20
    """Steps between two readings of the losses."""
    sample_every: int = 200
    """Steps between two sample grids; 0 = none."""
    checkpoint_every: int = 200
    """Steps between two checkpoints; the last step always writes one."""
    keep: int = 3
    """Checkpoints to keep."""

    def to_json(self, origins: Origins | None = None) -> dict[str, dict[str, Any]]:
        """The content of config.json: name -> {"value", "origin"} of every saved field."""
        origins = origins or {}
        return {
            name: {"value": _plain(getattr(self, name)), "origin": origins.get(name, "default")}
            for name in saved_fields(type(self))
        }

    @classmethod
    def from_json(cls, saved: Any) -> "TrainConfig":
        """The configuration of this class that a config.json holds.

        saved: name -> {"value", "origin"}; the origins are ignored.
        Raises InputError, which names no file, for a value that is not of its field's type.
        """
        hints = get_type_hints(cls)
        values = {
            name: _typed(name, saved_value(saved, name), hints[name]) for name in saved_fields(cls) if name in saved
        }
        return cls(**values)

    def completed(self, given: set[str], origins: Origins) -> "TrainConfig":
        """The configuration with the fields that follow from other fields filled in; updates `origins`.

        given: the fields that the command line names. Raises InputError where they contradict each other.
        """
        return self

    def check(self) -> None:
        """Raise InputError for values that cannot train. A system's class checks its own fields too."""
        level_sizes(self.resolution)
        self.at_least(1, "steps", "batch_size", "filters", "lr_every", "log_every", "checkpoint_every", "keep")
        self.at_least(
            0, "threads", "lr_warmup", "sample_every", "seed", "hold_out", "eval_every", "patience", "freeze_d"
        )
        if self.hold_out == 1:
            raise InputError("--hold-out 1 leaves nothing to train on; --hold-out 20 leaves out every 20th image")
        if self.eval_every and not self.hold_out and not self.eval_split:
            raise InputError(
                "--eval-every needs images that are not trained on: add --hold-out 20 (every 20th image of --data), or "
                "--eval-split with a split that --split leaves out"
            )
        if self.eval_split and (self.data is None or self.eval_split == self.split or not self.split):
            raise InputError(
                "--eval-split needs --data with splits, and another split to train on: --split train --eval-split test"
            )
        if self.eval_every and self.eval_split and hasattr(self, "synthetic") and not self.hold_out:
            raise InputError(
                "--eval-split is of --data; the synthetic images that are measured would be trained on: "
                "add --hold-out 20"
            )
        if self.patience and not self.eval_every:
            raise InputError("--patience counts measurements: add --eval-every")
        # a run file of a stranger with a number that no network has costs neither memory nor time
        self.at_most(1 << 14, "filters")
        if self.batch_size % self.ranks:
            near = -(-self.batch_size // self.ranks) * self.ranks
            raise InputError(
                f"--batch-size {self.batch_size} is of all {self.ranks} ranks together and does not divide among them; "
                f"take {near}"
            )
        if not 0 <= self.ema < 1:
            raise InputError(f"--ema must be at least 0 and below 1, got {self.ema}")
        if not 0 < self.lr < float("inf") or not 0 < self.lr_decay <= 1:
            raise InputError(f"--lr must be positive and --lr-decay in (0, 1], got {self.lr} and {self.lr_decay}")
        self.between(0, 1, "lr_floor", "augment_geometry", "augment_light", "augment_judged")
        if self.augment_judged and not self.JUDGED:
            raise InputError(f"--augment-judged is not for {self.system}; leave it out")
        if self.augment_geometry and self.crop == "random":
            raise InputError("--crop random and --augment-geometry both move the image; leave one of them out")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("no CUDA device here; use --device cpu")
        if self.precision == "tf32" and self.device != "cuda":
            raise InputError("tf32 exists on NVIDIA GPUs only; use --precision fp32 or bf16 on the CPU")

    def images(self, *, held: bool = False) -> dict[str, Any]:
        """Which images of --data are trained on, or with `held` measured on, as options of engine.data.open_dataset."""
        if held and self.eval_split:
            return {"split": self.eval_split}
        return {"split": self.split, "hold_out": self.hold_out, "held": held}

    def of_rank(self) -> "TrainConfig":
        """The configuration of one rank: its batch size is the rank's share of the global batch."""
        return self if self.ranks == 1 else dataclasses.replace(self, batch_size=self.batch_size // self.ranks)

    def check_resumed(self, saved: "TrainConfig") -> None:
        """Raise InputError for values that a run which was started with `saved` cannot go on with."""
        for name in self.FIXED:
            old, new = getattr(saved, name), getattr(self, name)
            if old != new:
                raise InputError(
                    f"the run in {self.out} has {flag(name)} {show(old)}, which cannot become {show(new)}; "
                    "leave it out or start another run with another --out"
                )
        if self.preset != saved.preset:
            raise InputError(f"a resumed run keeps its preset ({saved.preset}); give the values to change instead")

    def at_least(self, least: int, *names: str) -> None:
        """Raise InputError for the first of these fields that is smaller than `least` (or NaN)."""
        for name in names:
            if not getattr(self, name) >= least:
                must = "be at least 1" if least else "not be negative"
                raise InputError(f"{flag(name)} must {must}, got {getattr(self, name)}")

    def at_most(self, most: int, *names: str) -> None:
        """Raise InputError for the first of these fields that is larger than `most`."""
        for name in names:
            if getattr(self, name) > most:
                raise InputError(f"{flag(name)} must be at most {most}, got {getattr(self, name)}")

    def between(self, low: float, high: float, *names: str) -> None:
        """Raise InputError for the first of these fields outside [low, high]."""
        for name in names:
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{flag(name)} must be between {low:g} and {high:g}, got {getattr(self, name)}")


def saved_fields(kind: type[TrainConfig]) -> list[str]:
    """Names of the fields that config.json keeps, in the order of the help."""
    return [f.name for f in dataclasses.fields(kind) if f.metadata.get("saved", True)]


def _plain(value: Any) -> Any:
    """The value of a field as JSON stores it."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def saved_value(saved: Any, name: str) -> Any:
    """The value that a config.json holds for a field. Raises InputError where the file is of another kind."""
    try:
        return saved[name]["value"]
    except (TypeError, KeyError):
        raise InputError("this is not the configuration of a Kiln run") from None


def _typed(name: str, value: Any, hint: Any) -> Any:
    """A value of JSON as the field of that name and type has it. Raises InputError where it is of another type."""
    if not _fits(value, hint):
        raise InputError(f"{name} is {json.dumps(value)[:60]}, which no run has there")
    if isinstance(value, list):
        return tuple(value)
    if hint is float:
        return float(value)
    return Path(value) if value is not None and Path in get_args(hint) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON can stand for one of the type `hint`, as the options have them."""
    kind = get_origin(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if kind is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    if kind is tuple:
        return isinstance(value, list) and len(value) < 100 and all(_fits(one, get_args(hint)[0]) for one in value)
    if hint is Path:
        return isinstance(value, str) and "\0" not in value
    if hint is float and type(value) is float:
        return True
    if hint in (int, float):
        return type(value) is int and abs(value) < 1 << 63
    return type(value) is hint


def flag(name: str) -> str:
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")


def show(value: Any) -> str:
    """A value as a user types it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "embedded" if value is None else str(value) or '""'


def table(config: TrainConfig, origins: Origins) -> str:
    """The resolved configuration for the terminal, one group per origin."""
    groups: dict[str, list[str]] = {}
    for name in saved_fields(type(config)):
        value = getattr(config, name)
        text = show(value) if value is not None or name in ("data", "synthetic") else "none"
        groups.setdefault(origins.get(name, "default"), []).append(f"{name} {text}")
    width = max(map(len, groups)) + 4
    lines = ["configuration"]
    for origin in sorted(groups, key=_place):
        lines += textwrap.wrap(
            ", ".join(groups[origin]),
            118,
            initial_indent=f"  {origin:<{width - 2}}",
            subsequent_indent=" " * width,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _place(origin: str) -> int:
    """Where the group of an origin stands in the table."""
    return ("default", "preset", "init", "checkpoint", "launcher", "command").index(origin.split()[0])


def write(config: TrainConfig, origins: Origins, path: Path) -> None:
    """Write config.json. Raises OSError."""
    atomic_files.write_text(path, json.dumps(config.to_json(origins), indent=1) + "\n")
