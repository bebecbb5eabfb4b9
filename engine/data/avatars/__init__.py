"""avatars: the embedded data set. A deterministic parametric face renderer with exact landmarks, in two looks.

render(identity, frame, look, size, seed)  one picture and its 68 landmarks
write(out, count, size, seed, frames)      a set of files: OUT/photo and OUT/game

Every pixel is a function of (seed, identity, frame, look, size) alone. Importing this package loads neither torch
nor OpenCV. The files, in the order in which a picture is made:

identity     who is drawn and how, from seeds alone       palette, noise, shapes   what the others are made of
contours     curves of eyelids, brows and lips            geometry, hair           surfaces in space
accessories  glasses and earrings                         raster                   surfaces to pixels
material, paint   colours of skin, clothes and features   shading                  light
film         backgrounds, and what a camera adds          picture                  all of it, for one avatar
writing, worker, record   the set as files, by several processes
"""

from engine.data.avatars.picture import LOOKS, render
from engine.data.avatars.writing import write

# raise it whenever a picture changes: rendered sets in the cache folder are named after it
VERSION = 3

__all__ = ["LOOKS", "VERSION", "render", "write"]
