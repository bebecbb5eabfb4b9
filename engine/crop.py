"""`python -m engine.crop INPUT OUTPUT`: crops the largest face of each picture, framed as in other photos.

INPUT is an image, a folder (with everything below it) or a zip. Names and sub-folders are kept. A picture without a
face gets one line on standard error and is left out; one that cannot be read too, and the exit status is then 2.
"""

from engine.cli import parse, run
from engine.inference.cropping import CropOptions, crop_files


def main(argv: list[str]) -> int:
    """Crop the faces of pictures."""
    what = "Crop the largest face of each picture to a square, framed as in other photos."
    print(crop_files(parse(CropOptions, argv, prog="kiln crop", description=what)))
    return 0


if __name__ == "__main__":
    run("crop", main)
