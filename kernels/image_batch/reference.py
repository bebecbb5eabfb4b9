"""image_batch in plain PyTorch: the oracle, the baseline and the --eager path."""

import torch
from torch import Tensor


def image_batch(
    store: Tensor,
    rows: Tensor,
    offsets: Tensor,
    mirror: Tensor,
    resolution: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The same signature and result as the public operator, computed in at least float32."""
    count, side, _, channels = store.shape
    steps = torch.arange(resolution, device=store.device)
    down = offsets[:, 1:] + steps
    across = offsets[:, :1] + torch.where(mirror[:, None], resolution - 1 - steps, steps)
    pixels = (rows[:, None, None] * side + down[:, :, None]) * side + across[:, None, :]
    flat = store.reshape(count * side * side, channels).index_select(0, pixels.reshape(-1))
    values = (flat.to(torch.promote_types(dtype, torch.float32)) / 127.5 - 1).to(dtype)
    return values.reshape(rows.shape[0], resolution, resolution, channels).permute(0, 3, 1, 2)
