"""`python -m engine.refine MODEL INPUT OUTPUT`: refines images of any size and format with a trained model.

INPUT is an image, a folder (with everything below it) or a zip. Names and sub-folders are kept. An image that cannot be
refined gets one line on standard error, the others are refined, and the exit status is then 2. Every output is marked
as synthetic in its metadata (engine.inference.marking) and is either whole or absent.
"""

from engine.cli import parse, run
from engine.inference.refining import RefineOptions, refine_files


def main(argv: list[str]) -> int:
    """Refine images with a trained model."""
    what = "Refine images with a trained model."
    print(refine_files(parse(RefineOptions, argv, prog="kiln refine", description=what)))
    return 0


if __name__ == "__main__":
    run("refine", main)
