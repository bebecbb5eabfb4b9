"""Augmentation: each image turned, scaled and shifted a little, and lit otherwise, anew in every epoch.

What an image becomes depends on the random word of its draw alone (engine.data.shuffling): it is the same on every
device, with every loader and after a resume, and all frames of a sample change alike. Landmarks move with the image.
The pixels are taken from squares of twice the resolution and shrunk as the decoder shrinks, so they stay as sharp.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FINER = 2  # side of the squares that pixels are taken from, in sides of the result
# at strength 1, the largest change to either side: degrees, natural logarithm of the scale, shares of the side
_TURN, _SCALE, _SHIFT = 15.0, 0.15, 0.08
# at strength 1: natural logarithms of the exponent of all values, of their factor, of each channel's factor; how much
# of the colour may go or come; how much one side may be darker than the middle
_EXPONENT, _FACTOR, _TINT, _SATURATION, _SIDE = 0.6, 0.3, 0.2, 0.7, 0.5


@dataclass(frozen=True)
class Augmentation:
    """How strongly images change; 0 leaves them as they are, 1 is the most.

    geometry: turns by up to 15 degrees, scales by up to 16 %, shifts by up to 8 % of the side
    light:    exponents, brightness, colour of the light, saturation, and light from a side
    """

    geometry: float = 0.0
    light: float = 0.0

    def __call__(self, squares: Tensor, landmarks: Tensor | None, words: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The images of a batch, and their landmarks.

        squares:   (B, C, S, S) float in [-1, 1]; S is twice the side R of the result with geometry, else R
        landmarks: (B, K, 2) in pixels of the squares, or None
        words:     (B,) int64 of random bits on the device of the squares; None changes nothing
        returns:   (B, C, R, R) in [-1, 1], channels_last, and (B, K, 2) in pixels of R
        """
        if not (self.geometry or self.light):
            return squares, landmarks
        chances = None if words is None else uniform(words, 11) * 2 - 1
        images = squares
        if self.geometry:
            affine = self._affine(chances, len(squares), squares.device)
            images, landmarks = _moved(squares, landmarks, affine)
        if self.light and chances is not None:
            images = self._lit(images, chances[:, 4:])
        return images.contiguous(memory_format=torch.channels_last), landmarks

    def _affine(self, chances: Tensor | None, count: int, device: torch.device) -> Tensor:
        """The matrix (B, 2, 3) from places in the result to places in the square, both from -1 to 1."""
        if chances is None:
            return torch.eye(2, 3, device=device).expand(count, 2, 3)
        strength = self.geometry
        turn = chances[:, 0] * math.radians(strength * _TURN)
        scale = torch.exp(chances[:, 1] * strength * _SCALE)
        shift = chances[:, 2:4] * (2 * strength * _SHIFT)
        cosine, sine = scale * turn.cos(), scale * turn.sin()
        return torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1), shift], 2)

    def _lit(self, images: Tensor, chances: Tensor) -> Tensor:
        """The images in another light; chances: (B, 7) in [-1, 1)."""
        strength, (count, channels, height, width) = self.light, images.shape
        column = (count, 1, 1, 1)
        values = ((images + 1) / 2).clamp_min(1e-6)
        exponent, factor, saturation = (
            (chances[:, place] * strength * most).view(column)
            for place, most in enumerate((_EXPONENT, _FACTOR, _SATURATION))
        )
        values = values ** exponent.exp() * factor.exp()
        if channels == 3:
            # red against blue, and green against both: white light stays about as bright
            warm, green = (chances[:, place] * strength * _TINT for place in (3, 4))
            tint = torch.stack([warm - green / 2, green, -warm - green / 2], 1)
            grey = values.mean(1, keepdim=True)
            values = (grey + (values - grey) * (1 + saturation)) * tint.exp().view(count, 3, 1, 1)
        # the light comes from any direction in the plane of the picture; a chance of 0 is light from the front
        angle = (chances[:, 6] * math.pi).view(column)
        across = torch.linspace(-1, 1, width, device=images.device).view(1, 1, 1, width)
        down = torch.linspace(-1, 1, height, device=images.device).view(1, 1, height, 1)
        side = (chances[:, 5] * strength * _SIDE).view(column)
        values = values * (1 + side * (across * angle.cos() + down * angle.sin()))
        return values.clamp(0, 1) * 2 - 1


def uniform(words: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) from each random word, (B, count) float32: the same on every device.

    words: (B,) int64. The numbers of a word are SplitMix64's (Steele et al. 2014), its upper 24 bits each.
    """
    steps = torch.arange(1, count + 1, device=words.device)
    mixed = words[:, None] + steps * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 40).float() / (1 << 24)


def _signed(word: int) -> int:
    """The same 64 bits as a number with a sign, as torch has them."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(words: Tensor, bits: int) -> Tensor:
    """The words moved right, with zeros from the left."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _moved(squares: Tensor, landmarks: Tensor | None, affine: Tensor) -> tuple[Tensor, Tensor | None]:
    """Images of half the squares' side, taken through `affine`, and their landmarks."""
    count, channels, side, _ = squares.shape
    result = side // FINER
    grid = F.affine_grid(affine, [count, channels, side, side], align_corners=False)
    moved = F.grid_sample(squares, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    images = F.interpolate(moved, size=(result, result), mode="bilinear", antialias=True).clamp(-1, 1)
    if landmarks is not None:
        places = (landmarks + 0.5) * (2 / side) - 1 - affine[:, None, :, 2]
        # a turn and a scale together: the inverse is the transpose over the square of the scale
        turn = affine[:, :, :2]
        places = places @ (turn / torch.linalg.det(turn)[:, None, None])
        landmarks = (places + 1) * (result / 2) - 0.5
    return images, landmarks
