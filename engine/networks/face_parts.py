"""Eyes, nose and mouth, cut out of faces by their landmarks, and a discriminator for each: an option of simgan."""

import torch
from torch import Tensor, nn

from engine.networks.patchgan import LocalDiscriminator

# part -> the landmarks of each of its crops, and the side of a crop as a share of the face's side, which is the longer
# side of the box around all landmarks
PARTS = {
    "eyes": ([slice(36, 42), slice(42, 48)], 0.35),
    "nose": ([slice(27, 36)], 0.4),
    "mouth": ([slice(48, 68)], 0.5),
}


def cut_parts(images: Tensor, landmarks: Tensor, size: int) -> dict[str, Tensor]:
    """Cut square crops around each part and resize them to `size`; differentiable in the images.

    images:    (B, C, R, R)
    landmarks: (B, 68, 2) x, y in pixels of R (0 = centre of the first pixel)
    returns:   part -> (number of its crops * B, C, size, size); beyond the border a crop repeats the border's pixels
    """
    landmarks = landmarks.to(images.dtype)
    face = (landmarks.amax(1) - landmarks.amin(1)).amax(1)
    crops = {}
    for name, (groups, share) in PARTS.items():
        centres = [landmarks[:, group].mean(1) for group in groups]
        crops[name] = torch.cat([crop(images, centre, share * face, size) for centre in centres])
    return crops


def crop(images: Tensor, centre: Tensor, side: Tensor, size: int) -> Tensor:
    """Cut one square out of each image and resize it: (B, C, R, R) -> (B, C, size, size).

    centre: (B, 2) x, y of the squares in pixels
    side:   (B,) of the squares in pixels
    A pixel of the result is a mean of pixels that are weighted by a triangle: linear interpolation. Where the crop
    shrinks, the triangle is as wide as the distance of two pixels of the result. The weights of rows and columns are
    matrices, so a crop is two matrix products, and its gradient has the same bits in every run.
    """
    columns, rows = (_weights(centre[:, axis], side, size, images.shape[-1]) for axis in (0, 1))
    return rows.unsqueeze(1) @ images @ columns.unsqueeze(1).transpose(-1, -2)


def _weights(centre: Tensor, side: Tensor, size: int, pixels: int) -> Tensor:
    """How much each pixel of an image's axis counts in each pixel of the crop, (B, size, pixels); rows sum to 1."""
    steps = (torch.arange(size, device=centre.device, dtype=centre.dtype) + 0.5) / size - 0.5
    places = (centre[:, None] + side[:, None] * steps).clamp(0, pixels - 1)
    distance = (places[:, :, None] - torch.arange(pixels, device=centre.device, dtype=centre.dtype)).abs()
    width = (side / size).clamp(min=1)[:, None, None]
    weights = (1 - distance / width).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)


class PartDiscriminators(nn.Module):
    """A LocalDiscriminator for each part, on crops of a quarter of the image's side, at least 8 pixels."""

    def __init__(self, resolution: int, filters: int, channels: int, *, fused: bool = True):
        super().__init__()
        self.size = max(8, resolution // 4)
        judges = {name: LocalDiscriminator(filters, channels, fused=fused) for name in PARTS}
        self.judges = nn.ModuleDict(judges)

    def forward(self, images: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
        """images (B, C, R, R), landmarks (B, 68, 2) in pixels of R -> part -> logits as of LocalDiscriminator."""
        crops = cut_parts(images, landmarks, self.size)
        return {name: self.judges[name](crop) for name, crop in crops.items()}
