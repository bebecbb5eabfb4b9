"""Measures a system between its training steps, on images that it does not train on: --eval-every.

The measures are those of `kiln evaluate` that take a second or two. Which of them decides about the best step follows
from the system's kind, or is told by --best-by.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.data import ImageSet
from engine.errors import InputError
from engine.evaluation.base import Evaluation, Tools
from engine.evaluation.driven import Driven
from engine.evaluation.generated import Generated
from engine.evaluation.likeness import require_torchmetrics
from engine.evaluation.measures import MEASURES, number
from engine.evaluation.refined import Refined
from engine.inference.faces import FaceFinder
from engine.inference.trained import Trained
from engine.systems.base import System
from engine.systems.kinds import GENERATE, REFINE
from engine.training.metrics import HELD_OUT

_SAMPLES, _GENERATED = 256, 512  # images that are measured, at most


@dataclass
class Best:
    """The best measurement of a run so far.

    by:    the measure that decides, "swd", "ssim" or "l1"
    value: of that measure; None before the first measurement
    step:  when it was measured
    later: how many measurements followed, none of which was better
    """

    by: str
    value: float | None = None
    step: int = 0
    later: int = 0

    @classmethod
    def of(cls, system: System) -> "Best":
        """For a run of this system, before its first measurement.

        Raises InputError for a measure that compares images with originals, where there are none.
        """
        by = system.config.best_by
        if system.kind is GENERATE and by not in ("auto", "swd"):
            raise InputError(
                f"--best-by {by} compares with originals, and {system.name} makes images of noise: take swd"
            )
        return cls(system.kind.best_by if by == "auto" else by)

    def take(self, measured: Mapping[str, float], step: int) -> bool:
        """Take what HeldOut.measure gave for a step; returns whether it is the best so far."""
        value = measured[HELD_OUT + self.by]
        if math.isfinite(value) and (self.value is None or self._better(value, self.value)):
            self.value, self.step, self.later = value, step, 0
            return True
        self.later += 1
        return False

    def _better(self, value: float, other: float) -> bool:
        return value > other if self.by == "ssim" else value < other

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a state that was kept; where another measure decides from now on, nothing was measured yet."""
        if state["by"] == self.by:
            self.value, self.step, self.later = state["value"], state["step"], state["later"]


class HeldOut:
    """Measures a system as it stands.

    sets: the image sets of the system, of which it trains on other images
    Raises InputError where a package that measuring needs is missing.
    """

    def __init__(self, system: System, sets: Sequence[ImageSet]):
        require_torchmetrics()
        self._system, self._sets = system, sets
        config = system.config
        self._tools = Tools(FaceFinder(), None, system.device, config.seed, thorough=False)
        self._module = type(system).trained(config).requires_grad_(False).to(system.device).eval()

    def measure(self) -> dict[str, float]:
        """The measures, by the names that metrics.jsonl has."""
        evaluation = self._apply()
        measured = evaluation.measure(self._tools)[evaluation.result]
        found = {measure.key: number(measured, measure) for measure in MEASURES}
        return {HELD_OUT + key: value[0] for key, value in found.items() if value is not None}

    @torch.no_grad()
    def _apply(self) -> Evaluation:
        """The evaluation of the weights that a user would get from this step."""
        system, config = self._system, self._system.config
        averaged: nn.Module = system.averaged()["ema"]
        self._module.get_submodule("generator").load_state_dict(averaged.state_dict())
        model = Trained(self._module, config, system.device, config.out, system.steps_done)
        images, *others = self._sets
        shared: dict[str, Any] = {"limit": _SAMPLES, "batch_size": 32, "progress": False}
        if system.kind is REFINE:
            # of two sets the first holds the photos, the second the images that are refined
            dataset, real = (others[0], images) if others else (images, None)
            return Refined(model, dataset, real=real, **shared)
        if system.kind is GENERATE:
            return Generated(model, images, images, count=_GENERATED, seed=config.seed, **shared)
        return Driven(model, images, **shared)
