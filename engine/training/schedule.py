"""The learning rate of each step."""

import math

from engine.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of step 1, 2, ..., config.steps. It depends on the step alone, for exact resumes."""
    lr = config.lr
    if config.lr_schedule == "step":
        lr *= config.lr_decay ** ((step - 1) // config.lr_every)
    elif config.lr_schedule == "cosine":
        length = max(1, config.steps - config.lr_warmup)
        done = min(max(0, step - config.lr_warmup), length)
        lr *= 0.5 * (1 + math.cos(math.pi * done / length))
    elif config.lr_schedule == "linear":
        lr *= min(1.0, 2 * (1 - step / config.steps))  # CycleGAN, section 4: 100 epochs, then 100 of decay
    lr = max(lr, config.lr_floor * config.lr)
    if step < config.lr_warmup:
        lr *= step / config.lr_warmup
    return lr
