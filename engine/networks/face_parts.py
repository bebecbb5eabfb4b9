"""Eyes, nose and mouth cut out of faces by their landmarks, and a local discriminator for each."""

import torch
from torch import Tensor, nn

from engine.networks.patchgan import LocalDiscriminator

# part -> landmarks of each crop of it, and the crop's side as a share of the face's (the longer side of all landmarks)
PARTS = {
    "eyes": ([slice(36, 42), slice(42, 48)], 0.35),
    "nose": ([slice(27, 36)], 0.4),
    "mouth": ([slice(48, 68)], 0.5),
}


def cut_parts(images: Tensor, landmarks: Tensor, size: int) -> dict[str, Tensor]:
    """Square crops around each part, resized to `size`; differentiable in the images.

    images:    (B, C, R, R)
    landmarks: (B, 68, 2) x, y in pixels of R (0 = centre of the first pixel)
    returns:   part -> (crops of it * B, C, size, size); a crop beyond the border repeats the border's pixels.
    """
    landmarks = landmarks.to(images.dtype)
    face = (landmarks.amax(1) - landmarks.amin(1)).amax(1)
    found = {}
    for name, (groups, share) in PARTS.items():
        centres = [landmarks[:, group].mean(1) for group in groups]
        found[name] = torch.cat([crop(images, centre, share * face, size) for centre in centres])
    return found


def crop(images: Tensor, centre: Tensor, side: Tensor, size: int) -> Tensor:
    """The square of each image with that centre (B, 2) and side (B,), in pixels, as (B, C, size, size).

    Every result is a mean of pixels weighted by a triangle (linear interpolation; where the crop shrinks the triangle
    is as wide as a step), so that the crop is two matrix products: its gradient has the same bits in every run.
    """
    columns, rows = (_weights(centre[:, axis], side, size, images.shape[-1]) for axis in (0, 1))
    return rows.unsqueeze(1) @ images @ columns.unsqueeze(1).transpose(-1, -2)


def _weights(centre: Tensor, side: Tensor, size: int, pixels: int) -> Tensor:
    """(B, size, pixels): how much each pixel of an axis counts in each of the crop's; rows sum to 1."""
    steps = (torch.arange(size, device=centre.device, dtype=centre.dtype) + 0.5) / size - 0.5
    places = (centre[:, None] + side[:, None] * steps).clamp(0, pixels - 1)
    distance = (places[:, :, None] - torch.arange(pixels, device=centre.device, dtype=centre.dtype)).abs()
    width = (side / size).clamp(min=1)[:, None, None]
    weights = (1 - distance / width).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)


class PartDiscriminators(nn.Module):
    """One LocalDiscriminator for each part, on crops of a quarter of the image's side (at least 8)."""

    def __init__(self, resolution: int, filters: int, channels: int, *, fused: bool = True):
        super().__init__()
        self.size = max(8, resolution // 4)
        judges = {name: LocalDiscriminator(filters, channels, fused=fused) for name in PARTS}
        self.judges = nn.ModuleDict(judges)

    def forward(self, images: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
        """(B, C, R, R) and (B, 68, 2) in pixels -> part -> logits, as LocalDiscriminator gives them."""
        crops = cut_parts(images, landmarks, self.size)
        return {name: self.judges[name](crop) for name, crop in crops.items()}
