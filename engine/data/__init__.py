"""Image sets and loaders. Importing this package loads neither torch, Pillow nor DALI.

from engine.data import open_dataset, open_loader

images = open_dataset(Path("photos"), channels=3, resolution=64)
loader = open_loader(images, batch_size=16, resolution=64, channels=3, device="cpu", seed=0)
batch = loader.next()        # batch.images: (16, 3, 64, 64) in [-1, 1]
"""

from importlib import import_module

# the submodule that each public name comes from: it is imported when the name is first used
_HOME = {
    "Batch": "batch",
    "ImageSet": "dataset",
    "Loader": "loader",
    "Needs": "needs",
    "Together": "loader",
    "open_dataset": "opening",
    "open_loader": "opening",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
