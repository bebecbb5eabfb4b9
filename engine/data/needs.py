"""What a system takes from an image set in each step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Needs:
    """samples  per step
    batches  that these are, one after the other; of each, every rank takes its share
    points   68 landmarks or 18 key points of every image; 0: none needed
    members  images of a sample: 1; 2, a pair of the set's pairs file or two frames of one clip; 3, frames of one clip
    look     of the embedded avatars where no folder is given, "photo" or "game"
    """

    samples: int
    batches: int = 1
    points: int = 0
    members: int = 1
    look: str = "photo"
