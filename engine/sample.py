"""`python -m engine.sample MODEL OUTPUT`: makes images from noise with a trained generator.

OUTPUT gets sample_00000.png, ..., a contact sheet of them and, if asked for, interpolations between two noises as a
strip of frames and an animation. Image i depends only on the seed and on i. Every file is marked as synthetic in its
metadata (engine.inference.marking) and is either whole or absent.
"""

from engine.cli import parse, run
from engine.inference.sampling import SampleOptions, sample_files


def main(argv: list[str]) -> int:
    """Make images from noise with a trained generator."""
    what = "Make images from noise with a trained generator."
    print(sample_files(parse(SampleOptions, argv, prog="kiln sample", description=what)))
    return 0


if __name__ == "__main__":
    run("sample", main)
