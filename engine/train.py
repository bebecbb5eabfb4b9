"""`python -m engine.train`: trains a system on images, in one process or in several that torchrun starts."""

import shlex

from engine import distributed
from engine.cli import run
from engine.training.loop import train
from engine.training.memory import describe
from engine.training.resolve import resolve


def main(argv: list[str]) -> int:
    """Train, or with --dry-run print what would be trained; returns the exit status.

    When torchrun has started several processes, rank 0 reads the command line, which is the same for all of them.
    """
    with distributed.joined():
        distributed.require_alike(f"the options {shlex.join(argv)}", "start every machine with the same command")
        config, origins = distributed.from_first(lambda: resolve(argv))
        if config.dry_run:
            print(distributed.from_first(lambda: describe(config, origins)))
            return 0
        return train(config, origins)


if __name__ == "__main__":
    run("train", main)
