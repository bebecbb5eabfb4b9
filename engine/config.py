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
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from engine import atomic
from engine.errors import InputError

Origins = dict[str, str]

PRESETS: dict[str, dict[str, Any]] = {
    # for 2 CPU cores and a few minutes. Runs this short need a quick, tight balance: a soft G(z) is reconstructed
    # better than a photo, L(G(z)) is about 0.7 L(x), so with gamma 0.5 k stays 0 and nothing sharpens, and with the
    # paper's lambda_k of 0.001 k would need tens of thousands of steps to rise. A few thousand steps bear gamma 0.9 and
    # lambda_r 0.3 (sharper); 1,200 do not
    "quick": {
        "steps": 1200,
        "model": "C",
        "batch_size": 16,
        "filters": 32,
        "hidden": 128,
        "gamma": 0.8,
        "lambda_k": 0.02,
        "lambda_r": 0.5,
        "lr": 1e-3,
        "lr_schedule": "cosine",
        "ema": 0.995,
        "sample_every": 200,
        "checkpoint_every": 200,
    },
    # the refiner paper, section 3, and the decisions of SYSTEMS.md
    "paper": {
        "steps": 1_000_000,
        "batch_size": 25,
        "filters": 64,
        "lr": 1e-3,
        "ema": 0.999,
        "sample_every": 2000,
        "checkpoint_every": 5000,
    },
}
MODELS = {"A": (8,), "B": (8, 16), "C": (8, 16, 32)}


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
Switch = tyro.conf.FlagCreatePairsOff[bool]


_NOT_SAVED = {"saved": False}  # of the command line alone


@dataclass(frozen=True)
class TrainConfig:
    """Values of one run; every field is an option of `python -m engine.train`."""

    fused: Switch = False
    """Train with Kiln's fused operators (give this or --eager)."""
    eager: Switch = field(default=False, metadata=_NOT_SAVED)
    """Train with the plain PyTorch references: same results, slower."""
    system: str = "refiner"
    """What to train."""
    data: Path | None = None
    """Folder or zip of images; without it, the embedded avatars."""
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
    """Images per step."""
    resolution: int = 64
    """Side of the images: 16, 32, 64, 128 or 256."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour."""
    filters: int = 16
    """n, the width of the networks."""
    hidden: int = 64
    """h, the numbers at the discriminator's waist."""
    seed: int = 0
    """Start values and the order of the images."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to train; default cuda when there is one."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of the networks; tf32 needs cuda."""
    cuda_graph: bool = True
    """On cuda: record the step as one CUDA graph and launch it whole; without, kernel by kernel."""
    threads: int = 0
    """CPU threads; 0 = all that PyTorch would use. The same number gives the same bits."""

    model: Literal["A", "B", "C", "custom"] = "B"
    """Where the generator sees the image: A at 8x8, B also at 16x16, C also at 32x32."""
    inject: Sizes = ()
    """The same as a list of sizes, instead of --model."""
    gamma: float = 0.5
    """BEGAN's balance L(G(z)) / L(x): higher gives more variety."""
    lambda_k: float = 0.001
    """Rate of k, the weight of L(G(z)) in the discriminator's loss."""
    lambda_r: float = 0.5
    """Share of the content loss in the generator's loss: how much of the input stays."""
    landmarks: bool = False
    """Give the generator 68 landmark heatmaps beside the 8x8 image (data with landmarks only)."""
    landmark_weight: float = 0.0
    """Weight of the loss between the landmarks of the result and of the original (data with landmarks only)."""

    lr: float = 1e-3
    """Learning rate (Adam)."""
    lr_schedule: Literal["constant", "step", "cosine"] = "constant"
    """constant; step: times --lr-decay every --lr-every steps; cosine: down to 0 at the last step."""
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
        return {name: {"value": _plain(getattr(self, name)), "origin": origins.get(name, "default")} for name in _SAVED}

    @classmethod
    def from_json(cls, saved: dict[str, dict[str, Any]]) -> "TrainConfig":
        """The configuration in a config.json. Raises InputError when it cannot be one."""
        try:
            values = {name: _typed(name, entry["value"]) for name, entry in saved.items() if name in _SAVED}
        except (TypeError, KeyError, ValueError, AttributeError):
            raise InputError("config.json is not the configuration of a Kiln run") from None
        return cls(**values)


_FIELDS = {f.name: f for f in dataclasses.fields(TrainConfig)}
_SAVED = [name for name, f in _FIELDS.items() if f.metadata.get("saved", True)]
_TYPES = get_type_hints(TrainConfig)


_DESCRIPTION = "Train a system on a folder of images.\n\n" + "\n\n".join(
    f"--preset {name}: {', '.join(f'{field} {value}' for field, value in values.items())}."
    for name, values in PRESETS.items()
)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _typed(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if value is not None and Path in get_args(_TYPES[name]) else value


def resolve(argv: Sequence[str]) -> tuple[TrainConfig, Origins]:
    """The configuration of a command line, complete and checked, and the origin of each value.

    origins: "default", "preset quick", "preset paper", "checkpoint" or "command line".
    Raises InputError for wrong usage. With --resume the newest good checkpoint of --out is read.
    """
    from engine.cli import parse

    parsed = parse(TrainConfig, argv, prog="kiln train", description=_DESCRIPTION)
    given = _given(argv)
    saved = _saved_config(parsed) if parsed.resume else None
    config, origins = TrainConfig(), dict.fromkeys(_FIELDS, "default")
    preset = parsed.preset if saved is None or "preset" in given else saved.preset
    config = dataclasses.replace(config, preset=preset, **PRESETS[preset])
    origins |= dict.fromkeys(PRESETS[preset], f"preset {preset}")
    if saved is not None:
        config = dataclasses.replace(saved, **{name: getattr(config, name) for name in _FIELDS if name not in _SAVED})
        origins |= dict.fromkeys(_SAVED, "checkpoint")
    config = dataclasses.replace(config, **{name: getattr(parsed, name) for name in given})
    origins |= dict.fromkeys(given, "command line")
    config = _choose_mode(config, given, origins)
    config = _choose_sizes(config, given, origins)
    config = _fill(config, origins)
    check(config)
    if "cuda_graph" in given and config.cuda_graph and config.device != "cuda":
        raise InputError("--cuda-graph needs an NVIDIA GPU: add --device cuda, or leave it out")
    if saved is not None:
        _check_resumable(config, saved)
    return config, origins


def _given(argv: Sequence[str]) -> set[str]:
    """The fields named on the command line."""
    words = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    return {name for name in _FIELDS if name in words or f"no_{name}" in words}


def _saved_config(parsed: TrainConfig) -> TrainConfig | None:
    from engine import checkpoint

    if parsed.out is None:
        raise InputError("--resume needs the run folder: add --out RUN")
    found = checkpoint.latest(parsed.out)
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


def _choose_sizes(config: TrainConfig, given: set[str], origins: Origins) -> TrainConfig:
    """Make `model` and `inject` say the same."""
    if {"model", "inject"} <= given:
        raise InputError("--model and --inject say the same; give one")
    if "inject" in given or (origins["inject"] == "checkpoint" and "model" not in given):
        inject = tuple(sorted(set(config.inject)))
        origins["model"] = origins["inject"]
    elif config.model == "custom":
        raise InputError("--model custom needs its sizes: give --inject 8,16 instead")
    else:
        origins["inject"] = origins["model"]
        # a model that nobody asked for fits itself to a small resolution
        inject = tuple(size for size in MODELS[config.model] if "model" in given or size < config.resolution)
    model = {sizes: name for name, sizes in MODELS.items()}.get(inject, "custom")
    return dataclasses.replace(config, inject=inject, model=model)


def _fill(config: TrainConfig, origins: Origins) -> TrainConfig:
    """Replace the values that depend on the machine by what they mean here."""
    import torch

    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = config.threads or torch.get_num_threads()
    out = config.out or Path("runs") / f"{config.system}-{time.strftime('%Y%m%d-%H%M%S')}"
    return dataclasses.replace(config, device=device, threads=threads, out=out)


def check(config: TrainConfig) -> None:
    """Raise InputError for values that cannot train."""
    import torch

    from engine.networks.layers import level_sizes
    from engine.networks.refiner import check_inject
    from engine.systems import system_class

    system_class(config.system)
    level_sizes(config.resolution)
    check_inject(config.inject, config.resolution)
    for name in ("steps", "batch_size", "filters", "hidden", "lr_every", "log_every", "checkpoint_every", "keep"):
        if getattr(config, name) < 1:
            raise InputError(f"{flag(name)} must be at least 1, got {getattr(config, name)}")
    for name in ("threads", "lr_warmup", "sample_every", "lambda_k", "landmark_weight", "seed"):
        if not getattr(config, name) >= 0:
            raise InputError(f"{flag(name)} must not be negative, got {getattr(config, name)}")
    for name in ("gamma", "lambda_r"):
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"{flag(name)} must be between 0 and 1, got {getattr(config, name)}")
    if not 0 <= config.ema < 1:
        raise InputError(f"--ema must be at least 0 and below 1, got {config.ema}")
    if not 0 < config.lr < float("inf") or not 0 < config.lr_decay <= 1:
        raise InputError(f"--lr must be positive and --lr-decay in (0, 1], got {config.lr} and {config.lr_decay}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here; use --device cpu")
    if config.precision == "tf32" and config.device != "cuda":
        raise InputError("tf32 exists on NVIDIA GPUs only; use --precision fp32 or bf16 on the CPU")


def _check_resumable(config: TrainConfig, saved: TrainConfig) -> None:
    from engine.systems import system_class

    for name in system_class(saved.system).fixed:
        old, new = getattr(saved, name), getattr(config, name)
        if old != new:
            raise InputError(
                f"the run in {config.out} has {flag(name)} {show(old)}, which cannot become {show(new)}; "
                "leave it out or start another run with another --out"
            )
    if bool(config.landmark_weight) != bool(saved.landmark_weight):
        raise InputError("the landmark loss cannot be switched on or off in a resumed run; start another --out")
    if config.preset != saved.preset:
        raise InputError(f"a resumed run keeps its preset ({saved.preset}); give the values to change instead")


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def show(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "embedded" if value is None else str(value)


def table(config: TrainConfig, origins: Origins) -> str:
    """The resolved configuration for the terminal, one group per origin."""
    groups: dict[str, list[str]] = {}
    for name in _SAVED:
        groups.setdefault(origins.get(name, "default"), []).append(f"{name} {show(getattr(config, name))}")
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
    return ("default", "preset", "checkpoint", "command").index(origin.split()[0])


def write(config: TrainConfig, origins: Origins, path: Path) -> None:
    """Write config.json. Raises OSError."""
    atomic.write_text(path, json.dumps(config.to_json(origins), indent=1) + "\n")
