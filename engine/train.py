"""`python -m engine.train`: train a system from image files."""

from engine.cli import run


def main(argv: list[str]) -> int:
    """Train, or with --dry-run say what would be trained. Returns the exit status."""
    from engine.config import resolve

    config, origins = resolve(argv)
    if config.dry_run:
        from engine.estimate import describe

        print(describe(config, origins))
        return 0
    from engine.loop import train

    return train(config, origins)


if __name__ == "__main__":
    run("train", main)
