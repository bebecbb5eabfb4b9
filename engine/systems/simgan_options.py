"""The options of simgan, their checks and presets; the system is in simgan.py, which would be too long with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from engine.config import TrainConfig
from engine.errors import InputError
from engine.networks.resnet import Padding


@dataclass(frozen=True)
class SimganConfig(TrainConfig):
    """Options of simgan."""

    FIXED: ClassVar[tuple[str, ...]] = (*TrainConfig.FIXED, "blocks", "padding", "history")
    SMALL: ClassVar[dict[str, Any]] = {**TrainConfig.SMALL, "pretrain_refiner": 0, "pretrain_discriminator": 0}
    JUDGED: ClassVar[bool] = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # for 2 CPU cores and a few minutes. With lambda_reg 4, renders take the light and colours of photos and keep
        # their faces; in runs this short, with 2 highlights get harsh, and with 1 edges get coloured fringes. The two
        # looks of the embedded avatars are so close that they hardly change, a little more with lambda_reg 1
        "quick": {
            "steps": 800,
            "batch_size": 8,
            "filters": 16,
            "lr": 5e-4,
            "lr_schedule": "cosine",
            "ema": 0.99,
            "lambda_reg": 4.0,
            "history": 512,
            "pretrain_refiner": 100,
            "pretrain_discriminator": 50,
            "sample_every": 200,
            "checkpoint_every": 200,
        },
        # ten minutes of one core. D sees photos and refined images in other light, colours and places each time, and
        # both sets are lit anew: else R learns the photos' light. l2, because l1 forgives a large change of few pixels:
        # in longer runs R paints bright spots on dark skin
        "good": {
            "steps": 2500,
            "batch_size": 8,
            "filters": 24,
            "padding": "reflect",
            "lr": 5e-4,
            "lr_schedule": "cosine",
            "ema": 0.998,
            "reg": "l2",
            "lambda_reg": 10.0,
            "history": 2048,
            "pretrain_refiner": 100,
            "pretrain_discriminator": 50,
            "augment_judged": 1.0,
            "augment_light": 0.5,
            "sample_every": 500,
            "checkpoint_every": 500,
        },
        "paper": {
            "steps": 50_000,
            "batch_size": 32,
            "filters": 64,
            "lr": 1e-3,
            "ema": 0.999,
            "lambda_reg": 4.0,
            "history": 12_800,
            "pretrain_refiner": 500,
            "pretrain_discriminator": 200,
            "sample_every": 1000,
            "checkpoint_every": 2000,
        },
    }

    system: str = "simgan"
    synthetic: Path | None = None
    """Folder or zip of the synthetic images to refine; without it, the embedded avatars in their plain look."""
    blocks: int = 4
    """Residual blocks of the refiner."""
    padding: Padding = "zero"
    """How the refiner pads images: with zeros it knows where the border is, and may draw a frame there."""
    refiner_steps: int = 2
    """Updates of the refiner in each step, each on fresh images."""
    discriminator_steps: int = 1
    """Updates of the discriminator in each step, each on fresh images."""
    pretrain_refiner: int = 500
    """Steps at the start in which only the refiner learns, from the self-regularisation."""
    pretrain_discriminator: int = 200
    """Steps after --pretrain-refiner in which only the discriminator learns."""
    lambda_reg: float = 4.0
    """Weight of the self-regularisation: how much of the input stays."""
    reg: Literal["l1", "l2", "features"] = "l1"
    """Measure of the self-regularisation: pixels, or features of a fixed ResNet-18."""
    reg_channels: Literal["each", "mean"] = "each"
    """l1 and l2: mean of the differences of each channel, or difference of the means of the channels."""
    feature_weights: Path | None = None
    """File with weights of a ResNet-18 for --reg features; without it, fixed random weights."""
    history: int = 2048
    """Refined images kept for the discriminator; half of its refined images come from there. 0 = none."""
    cycle_weight: float = 0.0
    """Weight of the cycle consistency; above 0 a second refiner, with its own discriminator, learns the way back."""
    part_weight: float = 0.0
    """Weight of the discriminators of eyes, nose and mouth (both sets with 68 landmarks)."""

    def check(self) -> None:
        super().check()
        self.at_least(1, "blocks", "refiner_steps", "discriminator_steps")
        self.at_most(1 << 10, "blocks")
        self.at_least(0, "pretrain_refiner", "pretrain_discriminator", "history")
        self.at_least(0, "lambda_reg", "cycle_weight", "part_weight")
        if self.history and self.history < self.batch_size:
            raise InputError(f"--history must be 0 or at least --batch-size ({self.batch_size}), got {self.history}")
        if self.feature_weights and self.reg != "features":
            raise InputError(f"--feature-weights is for --reg features, not for --reg {self.reg}")

    def check_resumed(self, saved: "SimganConfig") -> None:
        super().check_resumed(saved)
        for name, what in (("cycle_weight", "cycle consistency"), ("part_weight", "discriminators of face parts")):
            if bool(getattr(self, name)) != bool(getattr(saved, name)):
                raise InputError(f"{what} cannot be switched on or off in a resumed run; start another --out")
