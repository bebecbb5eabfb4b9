"""A trained model and the pictures that go through it.

trained.py loads a model (`engine.load`); exported.py reads the folders that exporting.py writes. pictures.py lays a
picture into the network's square and takes it out again, faces.py finds faces, driving.py reads the landmarks of clips,
sample_grid.py draws grids of images, and marking.py saves images marked as synthetic. picture_files.py lists the images
that a command takes. refining.py, cropping.py, sampling.py and reenacting.py do the work of `kiln refine`, `crop`,
`sample` and `reenact`.
"""

from engine.inference.trained import Trained, load, load_trained

__all__ = ["Trained", "load", "load_trained"]
