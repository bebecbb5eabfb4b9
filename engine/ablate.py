"""`python -m engine.ablate --system S --out DIR`: the ablation of a system's paper, trained, measured and drawn.

Every row of the system's ABLATION is one training run in its own folder below DIR, with the same seed and the same
budget; any option of `python -m engine.train` holds for all of them. Every row is then measured on images that were not
trained on. Written: table.md, table.csv, table.json and figure.png. Interrupted, the same command goes on; rows that
are done are not trained again.
"""

from engine.cli import parse, run
from engine.evaluation.ablation import AblateOptions, ablate, split


def main(argv: list[str]) -> int:
    """Train and measure the rows of an ablation."""
    own, words = split(argv)
    what = "Train and measure the ablation of a system. All options of `kiln train` hold for every row."
    return ablate(parse(AblateOptions, own, prog="kiln ablate", description=what), words)


if __name__ == "__main__":
    run("ablate", main)
