"""What a system takes from an image set in each step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Needs:
    """What a system takes from one image set in each step.

    samples  of a step (a rank's share of them where several ranks train)
    batches  how many batches, one after the other, these samples are; every rank takes its share of each batch
    points   68 landmarks or 18 key points that every image must have; 0: none needed
    members  images of a sample: 1; 2, a pair of the set's pairs file or two frames of one clip; 3, frames of one clip
    look     of the embedded avatars where no folder is given, "photo" or "game"
    """

    samples: int
    batches: int = 1
    points: int = 0
    members: int = 1
    look: str = "photo"
