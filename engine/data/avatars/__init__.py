"""avatars: the embedded data set. A deterministic parametric face renderer with exact landmarks, in two looks.

render(identity, frame, look, size, seed)  one picture and its 68 landmarks
write(out, count, size, seed, frames)      a set of files: OUT/photo and OUT/game

Every pixel is a function of (seed, identity, frame, look, size) alone. Importing this package loads neither torch
nor OpenCV.
"""

from engine.data.avatars.picture import LOOKS, render
from engine.data.avatars.writing import write

# raise it whenever a picture changes: caches of rendered sets are named after it
VERSION = 3

__all__ = ["LOOKS", "VERSION", "render", "write"]
