"""The whole configuration of a training run, and where each value came from.

Precedence: default < preset < checkpoint (with --resume) < command line.
"""

import dataclasses
import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_type_hints

import tyro

from engine.distributed import torchrun
from engine.errors import InputError
from engine.host import atomic_files

Origins = dict[str, str]
DEFAULT_SYSTEM = "refiner"


def _sizes(words: list[str]) -> tuple[int, ...]:
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
        str_from_instance=lambda value: [",".join(map(str, value)) or "of the model"],
    ),
]

if TYPE_CHECKING:
    Switch = bool
    Hidden = int
else:
    Switch = tyro.conf.FlagCreatePairsOff[bool]
    Hidden = tyro.conf.SuppressFixed[tyro.conf.Fixed[int]]  # no option

_NOT_SAVED = {"saved": False}  # of the command line alone


@dataclass(frozen=True)
class TrainConfig:
    """Values of one run that all systems have; every field is an option of `python -m engine.train`.

    A system's own class adds its options and PRESETS: preset -> {field: value}.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"quick": {}, "paper": {}}

    fused: Switch = False
    """Train with Kiln's fused operators (give this or --eager)."""
    eager: Switch = field(default=False, metadata=_NOT_SAVED)
    """Train with the plain PyTorch references: same results, slower."""
    system: str = DEFAULT_SYSTEM
    """What to train; `--system S --help` shows the options of S."""
    data: Path | None = None
    """Folder or zip of images; without it, the embedded avatars."""
    split: str = ""
    """Train on this split of --data only, for example train; without, on all of it."""
    out: Path | None = None
    """Run folder to write; default runs/SYSTEM-TIME."""
    resume: Switch = field(default=False, metadata=_NOT_SAVED)
    """Go on from the latest good checkpoint in --out (start there when it has none)."""
    dry_run: Switch = field(default=False, metadata=_NOT_SAVED)
    """Print parameters, memory, data and configuration; train and write nothing."""
    preset: Literal["quick", "paper"] = "quick"
    """Values for 2 CPU cores and minutes, or those of the paper."""

    steps: int = 1000
    """Training steps in all, those before a resume included."""
    batch_size: int = 16
    """Images per step, of all ranks together."""
    resolution: int = 64
    """Side of the images: 16, 32, 64, 128 or 256."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour."""
    filters: int = 16
    """n, the width of the networks."""
    seed: int = 0
    """Start values and the order of the images."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to train; default cuda when there is one."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of the networks; tf32 needs cuda."""
    cuda_graph: bool = True
    """On cuda: record the step as one CUDA graph and launch it whole; without, kernel by kernel."""
    threads: int = 0
    """CPU threads of each rank; 0 = all that PyTorch would use, and of several ranks an equal share of the cores. The
    same number gives the same bits."""
    ranks: Hidden = 1
    """Processes that train together, as torchrun started them."""

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
    ema: float = 0.999
    """Decay of the generator's moving average (the weights that refine uses); 0 = the last weights."""

    loader: Literal["auto", "resident", "dali"] = "auto"
    """How images are read: resident keeps the decoded set in memory."""
    mirror: bool = True
    """Mirror half of the images."""
    mirror_swap: bool = True
    """Left and right landmarks change places in mirrored images; without, as in the code of the reenactment paper."""
    crop: Literal["center", "random"] = "center"
    """Which square of an image that is not square."""

    log_every: int = 20
    """Steps between two readings of the losses."""
    sample_every: int = 200
    """Steps between two sample grids; 0 = none."""
    checkpoint_every: int = 200
    """Steps between two checkpoints (there is always one at the end)."""
    keep: int = 3
    """Checkpoints to keep."""

    def to_json(self, origins: Origins | None = None) -> dict[str, dict[str, Any]]:
        """name -> {"value", "origin"} for every saved field; the content of config.json."""
        origins = origins or {}
        return {
            name: {"value": _plain(getattr(self, name)), "origin": origins.get(name, "default")}
            for name in saved_fields(type(self))
        }

    @staticmethod
    def from_json(saved: dict[str, dict[str, Any]]) -> "TrainConfig":
        """The configuration in a config.json, of its system's class. Raises InputError when it cannot be one."""
        try:
            kind = config_class(saved["system"]["value"])
            values = {name: _typed(kind, name, saved[name]["value"]) for name in saved_fields(kind) if name in saved}
        except (TypeError, KeyError, ValueError, AttributeError):
            raise InputError("config.json is not the configuration of a Kiln run") from None
        return kind(**values)

    def completed(self, given: set[str], origins: Origins) -> "TrainConfig":
        """The configuration with the fields that follow from others; origins is kept up to date.

        given: fields named on the command line. Raises InputError where they contradict each other.
        """
        return self

    def check(self) -> None:
        """Raise InputError for values that cannot train. A system's class checks its own fields too."""
        import torch

        from engine.networks.layers import level_sizes

        level_sizes(self.resolution)
        self.at_least(1, "steps", "batch_size", "filters", "lr_every", "log_every", "checkpoint_every", "keep")
        self.at_least(0, "threads", "lr_warmup", "sample_every", "seed")
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
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("no CUDA device here; use --device cpu")
        if self.precision == "tf32" and self.device != "cuda":
            raise InputError("tf32 exists on NVIDIA GPUs only; use --precision fp32 or bf16 on the CPU")

    def of_rank(self) -> "TrainConfig":
        """The configuration as one of its ranks' systems has it: with its share of a batch."""
        return self if self.ranks == 1 else dataclasses.replace(self, batch_size=self.batch_size // self.ranks)

    def check_resumed(self, saved: "TrainConfig") -> None:
        """Raise InputError for values that a run begun with `saved` cannot go on with."""
        from engine.systems.registry import system_class

        for name in system_class(saved.system).fixed:
            old, new = getattr(saved, name), getattr(self, name)
            if old != new:
                raise InputError(
                    f"the run in {self.out} has {flag(name)} {show(old)}, which cannot become {show(new)}; "
                    "leave it out or start another run with another --out"
                )
        if self.preset != saved.preset:
            raise InputError(f"a resumed run keeps its preset ({saved.preset}); give the values to change instead")

    def at_least(self, least: int, *names: str) -> None:
        """Raise InputError for the first of these fields that is smaller (or NaN)."""
        for name in names:
            if not getattr(self, name) >= least:
                must = "be at least 1" if least else "not be negative"
                raise InputError(f"{flag(name)} must {must}, got {getattr(self, name)}")

    def between(self, low: float, high: float, *names: str) -> None:
        """Raise InputError for the first of these fields outside [low, high]."""
        for name in names:
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{flag(name)} must be between {low:g} and {high:g}, got {getattr(self, name)}")


def config_class(system: str) -> type[TrainConfig]:
    """The configuration of a system. Raises InputError for an unknown name."""
    from engine.systems.registry import system_class

    return system_class(system).config_class


def saved_fields(kind: type[TrainConfig]) -> list[str]:
    """Names of the fields that config.json keeps, in the order of the help."""
    return [f.name for f in dataclasses.fields(kind) if f.metadata.get("saved", True)]


def _description(kind: type[TrainConfig]) -> str:
    from engine.systems.registry import SYSTEMS

    head = f"Train a system on a folder of images. Systems: {', '.join(SYSTEMS)} (--system S --help for its options)."
    presets = (
        f"--preset {name}: {', '.join(f'{field} {show(value)}' for field, value in values.items())}."
        for name, values in kind.PRESETS.items()
    )
    return "\n\n".join([head, *presets])


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _typed(kind: type[TrainConfig], name: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if value is not None and Path in get_args(get_type_hints(kind)[name]) else value


def resolve(argv: Sequence[str]) -> tuple[TrainConfig, Origins]:
    """The configuration of a command line, complete and checked, and the origin of each value.

    origins: "default", "preset quick", "preset paper", "checkpoint", "launcher" or "command line".
    Raises InputError for wrong usage. With --resume, and after a restart by the launcher, the
    newest good checkpoint of --out is read.
    """
    from engine.cli import parse

    out = _word(argv, "out")
    if out is not None and "--resume" not in argv and torchrun.restarted(Path(out)):
        argv = [*argv, "--resume"]
    kind, saved = _kind(argv)
    parsed = parse(kind, argv, prog="kiln train", description=_description(kind))
    fields = [f.name for f in dataclasses.fields(kind)]
    kept = saved_fields(kind)
    given = _given(argv, fields)
    config, origins = kind(), dict.fromkeys(fields, "default")
    preset = parsed.preset if saved is None or "preset" in given else saved.preset
    config = dataclasses.replace(config, preset=preset, **kind.PRESETS[preset])
    origins |= dict.fromkeys(kind.PRESETS[preset], f"preset {preset}")
    if saved is not None:
        config = dataclasses.replace(saved, **{name: getattr(config, name) for name in fields if name not in kept})
        origins |= dict.fromkeys(kept, "checkpoint")
    config = dataclasses.replace(config, **{name: getattr(parsed, name) for name in given})
    origins |= dict.fromkeys(given, "command line")
    config = _count_ranks(config, origins)
    config = _choose_mode(config, given, origins).completed(given, origins)
    config = _fill(config)
    config.check()
    if "cuda_graph" in given and config.cuda_graph and config.device != "cuda":
        raise InputError("--cuda-graph needs an NVIDIA GPU: add --device cuda, or leave it out")
    if saved is not None:
        config.check_resumed(saved)
    return config, origins


def _kind(argv: Sequence[str]) -> tuple[type[TrainConfig], TrainConfig | None]:
    """The class that a command line is parsed with, and the configuration of the checkpoint that --resume goes on from.

    The system is --system, else that of the checkpoint, else the refiner.
    """
    system, out = _word(argv, "system"), _word(argv, "out")
    asking = {"-h", "--help"} & set(argv)
    saved = None
    if "--resume" in argv and not asking:
        if out is None:
            raise InputError("--resume needs the run folder: add --out RUN")
        saved = _saved_config(Path(out))
    if saved is not None and system not in (None, saved.system):
        raise InputError(f"the run in {out} is of --system {saved.system}, which cannot become {system}")
    return config_class(system or (saved.system if saved else DEFAULT_SYSTEM)), saved


def _word(argv: Sequence[str], option: str) -> str | None:
    """The value of --option in a command line that is not parsed yet."""
    for word, following in zip(argv, [*argv[1:], None], strict=False):
        if word == f"--{option}":
            return following
        if word.startswith(f"--{option}="):
            return word.split("=", 1)[1]
    return None


def _given(argv: Sequence[str], fields: Sequence[str]) -> set[str]:
    """The fields named on the command line."""
    words = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    return {name for name in fields if name in words or f"no_{name}" in words}


def _saved_config(out: Path) -> TrainConfig | None:
    from engine import checkpoint

    found = checkpoint.latest(out)
    return None if found is None else checkpoint.load(found).config


def _choose_mode(config: TrainConfig, given: set[str], origins: Origins) -> TrainConfig:
    if {"fused", "eager"} <= given:
        raise InputError("--fused and --eager exclude each other; give one")
    if not {"fused", "eager"} & given and origins["fused"] != "checkpoint":
        raise InputError("say how to train: --fused (Kiln's operators) or --eager (plain PyTorch)")
    if "eager" in given:
        origins["fused"] = "command line"
        return dataclasses.replace(config, fused=False)
    return dataclasses.replace(config, eager=not config.fused)


def _count_ranks(config: TrainConfig, origins: Origins) -> TrainConfig:
    """With as many ranks as there are; threads that another number of ranks shared the cores among are chosen anew."""
    if (ranks := torchrun.size()) == config.ranks:
        return config
    origins["ranks"] = "launcher"
    threads = config.threads if origins["threads"] == "command line" else 0
    return dataclasses.replace(config, ranks=ranks, threads=threads)


def _fill(config: TrainConfig) -> TrainConfig:
    """Replace the values that depend on the machine by what they mean here."""
    import torch

    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    # a launcher sets OMP_NUM_THREADS=1, whatever the machine
    threads = config.threads or (torchrun.cores() if torchrun.local_size() > 1 else torch.get_num_threads())
    if config.out is None and torchrun.may_restart():
        raise InputError("torchrun may start this run again (--max-restarts): add --out RUN, so that it goes on")
    out = config.out or Path("runs") / f"{config.system}-{time.strftime('%Y%m%d-%H%M%S')}"
    return dataclasses.replace(config, device=device, threads=threads, out=out)


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def show(value: Any) -> str:
    """A value as one would type it."""
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
    for origin in sorted(groups, key=_rank):
        lines += textwrap.wrap(
            ", ".join(groups[origin]),
            118,
            initial_indent=f"  {origin:<{width - 2}}",
            subsequent_indent=" " * width,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _rank(origin: str) -> int:
    return ("default", "preset", "checkpoint", "launcher", "command").index(origin.split()[0])


def write(config: TrainConfig, origins: Origins, path: Path) -> None:
    """Write config.json. Raises OSError."""
    atomic_files.write_text(path, json.dumps(config.to_json(origins), indent=1) + "\n")
