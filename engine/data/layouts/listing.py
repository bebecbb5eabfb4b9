"""Listing: what a data layout offers, by image name, before any image has been decoded."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Listing:
    """What a layout tells of its images.

    names       sorted image names
    layout      which layout it is, in a few words
    points      how many points `landmarks` holds for each image; 0: the layout has none
    landmarks   name -> (points, 2) float32, x and y in pixels of the file as displayed; NaN: a missing key point
    unmarked    name -> why it has no landmarks, where there is more to say than that it has none
    frames      name -> (clip, frame number), for the images that are frames of a clip
    pairs       (source name, target name) in the order of the file; None: there is no pairs file
    splits      name -> split
    identities  name -> number of the person
    attributes  name -> (A,) bool, whether it has each of attribute_names
    missing     (name, reason) of what the layout names and cannot be used
    tables      names of the tables and arrays that the layout has read
    unused      (name, reason) of tables and arrays that are there and tell nothing
    ignored     how many files are neither images nor tables of the layout
    nested      folders inside that hold sets of their own
    archives    zips inside, which are not opened
    """

    names: list[str]
    layout: str = "images"
    points: int = 0
    landmarks: dict[str, np.ndarray] = field(default_factory=dict)
    unmarked: dict[str, str] = field(default_factory=dict)
    frames: dict[str, tuple[str, int]] = field(default_factory=dict)
    pairs: list[tuple[str, str]] | None = None
    splits: dict[str, str] = field(default_factory=dict)
    identities: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    attribute_names: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    unused: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0
    nested: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
