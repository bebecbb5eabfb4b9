"""`python -m engine.reenact MODEL SOURCE DRIVING OUTPUT`: moves a face image with the landmarks of a clip.

OUTPUT becomes a folder with frames/00000.png ..., driven.gif, driven.mp4 (with OpenCV) and sheet.png, which shows
source, driving landmarks and result below each other. Every file is marked as synthetic (engine.inference.marking).
"""

from engine.cli import parse, run
from engine.inference.reenacting import ReenactOptions, reenact_files


def main(argv: list[str]) -> int:
    """Drive a face image with the landmarks of a clip."""
    what = "Drive a face image with the landmarks of a clip."
    print(reenact_files(parse(ReenactOptions, argv, prog="kiln reenact", description=what)))
    return 0


if __name__ == "__main__":
    run("reenact", main)
