"""`python -m engine.train`: train a system from image files, in one process or in several started by torchrun."""

from engine import distributed
from engine.cli import run
from engine.training.loop import train
from engine.training.memory import describe
from engine.training.resolve import resolve


def main(argv: list[str]) -> int:
    """Train, or with --dry-run say what would be trained. Returns the exit status.

    Of the processes that torchrun started, the first reads the command line for all.
    """
    with distributed.joined():
        config, origins = distributed.from_first(lambda: resolve(argv))
        if config.dry_run:
            print(distributed.from_first(lambda: describe(config, origins)))
            return 0
        return train(config, origins)


if __name__ == "__main__":
    run("train", main)
