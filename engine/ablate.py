"""`python -m engine.ablate --system S --out DIR`: trains, measures and draws the ablation of a system's paper.

Every row of the system's ABLATION is one training run in its own folder below DIR. All rows have the same seed and the
same number of steps, and any option of `python -m engine.train` applies to all of them. Every row is then measured on
images that were not trained on. The command writes table.md, table.csv, table.json and figure.png. After an
interruption the same command goes on; it does not train again the rows that are done.
"""

from engine.ablation.running import AblateOptions, ablate, split_words
from engine.cli import parse, run


def main(argv: list[str]) -> int:
    """Train and measure the rows of an ablation."""
    own, training = split_words(argv)
    what = "Train and measure the ablation of a system. All options of `kiln train` apply to every row."
    return ablate(parse(AblateOptions, own, prog="kiln ablate", description=what), training)


if __name__ == "__main__":
    run("ablate", main)
