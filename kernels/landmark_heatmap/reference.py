"""landmark_heatmap in plain differentiable PyTorch: the oracle, the baseline and the --eager path."""

import torch
from torch import Tensor


def landmark_heatmap(
    landmarks: Tensor,
    height: int,
    width: int,
    *,
    sigma: float = 1.0,
    radius: int = 3,
    subpixel: bool = False,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """The same signature and result as the public operator; computes in at least float32."""
    at = landmarks.float() if landmarks.dtype.itemsize < 4 else landmarks
    along_x, reaches_x = _axis(at[..., 0], width, sigma, radius, subpixel)
    along_y, reaches_y = _axis(at[..., 1], height, sigma, radius, subpixel)
    along_y = along_y * (reaches_x & reaches_y).unsqueeze(-1)
    maps = (along_y.unsqueeze(3) * along_x.unsqueeze(2)).to(dtype or landmarks.dtype)
    if memory_format is torch.contiguous_format:
        return maps.contiguous()
    return maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap knows no memory_format


def _axis(at: Tensor, size: int, sigma: float, radius: int, subpixel: bool) -> tuple[Tensor, Tensor]:
    """The Gaussian along one axis (B, N, size), zero outside its window, and whether it reaches the image (B, N)."""
    pixel = at.detach().round() if subpixel else at.detach().trunc()
    reaches = (pixel >= -radius) & (pixel <= size - 1 + radius)  # false for NaN
    # what does not reach the image is moved to 0, so that no infinity meets the gradient's zero
    pixel, centre = (torch.where(reaches, t, 0).unsqueeze(-1) for t in (pixel, at if subpixel else pixel))
    grid = torch.arange(size, dtype=at.dtype, device=at.device)
    inside = ((grid - pixel).abs() <= radius) & reaches.unsqueeze(-1)
    return torch.where(inside, torch.exp(-((grid - centre) ** 2) / (2 * sigma**2)), 0), reaches
