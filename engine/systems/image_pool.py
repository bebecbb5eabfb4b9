"""Images that a generator made in earlier steps, kept on the device for its discriminator: simgan, cyclegan.

A pool is made of tensors of fixed shapes, so no step reads from the device, and a CUDA graph can hold its calls. Random
choices come from the device's default generator, so a resumed run goes on exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine import distributed


class ImagePool:
    """A store of up to `capacity` samples; a sample is one tensor or several, such as an image and its landmarks.

    like:     for each tensor of a sample, a tensor (...) of the same shape, dtype and device
    capacity: at least the number of samples of one call; 0 keeps nothing

    `mix` is SimGAN's history buffer, `exchange` CycleGAN's image pool. Each of several ranks brings its share of the
    batch, all ranks keep the same samples, and each rank gets its share of the result. Both calls write each place at
    most once, so results are the same in every run.
    """

    def __init__(self, capacity: int, like: Sequence[Tensor]):
        self.capacity = capacity
        device = like[0].device
        self.kept = [torch.zeros(capacity, *t.shape, dtype=t.dtype, device=device) for t in like]
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(capacity, device=device)

    def mix(self, samples: Sequence[Tensor], learning: Tensor) -> list[Tensor]:
        """Replace the last half of the samples by older ones, and keep the first half for later calls.

        samples:  tensors (B, ...); the kept copies have no gradient
        learning: () bool; when it is False nothing is kept, and the returned samples are mixed all the same
        returns:  tensors (B, ...)
        While there is room, new samples are added; afterwards they replace kept ones at random. An empty pool returns
        the samples as they are. Source: Shrivastava et al. 2017, section 2.3 and figure 4.
        """
        batch = len(samples[0]) * distributed.size()
        half = batch // 2
        if not self.capacity or not half:
            return list(samples)
        samples = [distributed.gather(new) for new in samples]
        drawn = self._distinct(half, among=self.count)
        filled = self.count > 0
        mixed = []
        for new, kept in zip(samples, self.kept, strict=True):
            old = torch.where(filled, kept[drawn].to(new.dtype), new[-half:])
            mixed.append(torch.cat([new[:-half], old]))
        room = self.count < self.capacity
        fresh = (self.count + self._places[:half]) % self.capacity
        places = torch.where(room, fresh, self._distinct(half, among=self.count))
        for new, kept in zip(samples, self.kept, strict=True):
            self._write(kept, places, new[:half], learning.expand(half))
        self.count.copy_(torch.where(learning, (self.count + half).clamp(max=self.capacity), self.count))
        return [distributed.share(rows) for rows in mixed]

    def exchange(self, samples: Sequence[Tensor]) -> list[Tensor]:
        """Return each sample, or with probability 1/2 an older one whose place the new sample takes.

        samples: tensors (B, ...); the kept copies have no gradient
        returns: tensors (B, ...)
        While there is room, every sample is kept and returned. The older samples of one call are distinct.
        Source: Zhu et al. 2017 (CycleGAN), section 4, after SimGAN.
        """
        if not self.capacity:
            return list(samples)
        samples = [distributed.gather(new) for new in samples]
        batch = len(samples[0])
        arriving = self.count + self._places[:batch]
        adding = arriving < self.capacity
        # when the pool gets full within a batch, the last samples find no room; flip gives them the places that
        # _distinct draws first, which are all in use
        taken = self._distinct(batch, among=self.count).flip(0)
        swapping = ~adding & (torch.rand(batch, device=self.count.device) < 0.5)
        places = torch.where(adding, arriving, taken)
        returned = []
        for new, kept in zip(samples, self.kept, strict=True):
            old = kept[places].to(new.dtype)
            returned.append(torch.where(_columns(swapping, new), old, new))
            self._write(kept, places, new, adding | swapping)
        self.count.copy_((self.count + batch).clamp(max=self.capacity))
        return [distributed.share(rows) for rows in returned]

    def fill(self) -> Tensor:
        """The share of the capacity that is in use, () float32."""
        return self.count.float() / max(1, self.capacity)

    def state_dict(self) -> dict[str, Tensor | list[Tensor]]:
        """Copies of the kept samples, and their number."""
        return {"count": self.count.clone(), "kept": [kept.clone() for kept in self.kept]}

    def load_state_dict(self, state: dict[str, Tensor | list[Tensor]]) -> None:
        """Copy what state_dict gave into the tensors that exist."""
        self.count.copy_(state["count"])
        for kept, saved in zip(self.kept, state["kept"], strict=True):
            kept.copy_(saved)

    def _distinct(self, wanted: int, among: Tensor) -> Tensor:
        """Draw `wanted` different places, (wanted,) int64: at random, those below `among` before all others."""
        chances = torch.rand(self.capacity, device=among.device)
        return chances.masked_fill(self._places >= among, -1).topk(wanted).indices

    @staticmethod
    def _write(kept: Tensor, places: Tensor, samples: Tensor, where: Tensor) -> None:
        """Set kept[places] = samples, in place, for the samples at which `where` (n,) is True."""
        values = torch.where(_columns(where, samples), samples.detach().to(kept.dtype), kept[places])
        kept.index_copy_(0, places, values)


def _columns(flags: Tensor, like: Tensor) -> Tensor:
    """Give flags (n,) as many dimensions as `like`: (n, 1, 1, ...)."""
    return flags.view(-1, *[1] * (like.dim() - 1))
