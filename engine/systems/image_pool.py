"""Images that a generator made earlier, kept on the device for its discriminator.

Everything is tensors of fixed shapes: no step reads from the device, and a CUDA graph can hold it. Random choices come
from the device's default generator, so that a resumed run goes on exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine import distributed


class ImagePool:
    """Up to `capacity` samples; a sample is one or more tensors (an image, its landmarks).

    like:     one tensor (...) for each tensor of a sample: its shape, dtype and device.
    capacity: at least as many as ever come or go at once; 0 keeps nothing.

    `mix` is SimGAN's history buffer, `exchange` CycleGAN's image pool. Of several ranks each brings its share of the
    batch, all keep the same, and each gets its share of the result. Both write each place at most once a call, so
    that results are the same in every run.
    """

    def __init__(self, capacity: int, like: Sequence[Tensor]):
        self.capacity = capacity
        device = like[0].device
        self.kept = [torch.zeros(capacity, *t.shape, dtype=t.dtype, device=device) for t in like]
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(capacity, device=device)

    def mix(self, samples: Sequence[Tensor], learning: Tensor) -> list[Tensor]:
        """The samples with the last half of them replaced by older ones; half of the new ones are kept for later.

        samples:  tensors (B, ...); what is kept of them has no gradient.
        learning: () bool; where it is False nothing is kept (the returned samples are mixed all the same).

        While there is room new samples are added; then they replace others at random. An empty buffer gives nothing:
        the samples come back as they are. Source: Shrivastava et al. 2017, section 2.3 and figure 4.
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
        """Each sample goes in and comes back while there is room; then, with probability 1/2, an older one comes back
        and the new one takes its place.

        Source: CycleGAN, section 4 (after SimGAN); the older ones of a batch are distinct.
        """
        if not self.capacity:
            return list(samples)
        samples = [distributed.gather(new) for new in samples]
        batch = len(samples[0])
        arriving = self.count + self._places[:batch]
        adding = arriving < self.capacity
        # the last of the batch are the first that find no room, and get the places that are surely taken
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
        """The share () float32 of the capacity that is in use."""
        return self.count.float() / max(1, self.capacity)

    def state_dict(self) -> dict[str, Tensor | list[Tensor]]:
        """Copies of what is kept and how much it is."""
        return {"count": self.count.clone(), "kept": [kept.clone() for kept in self.kept]}

    def load_state_dict(self, state: dict[str, Tensor | list[Tensor]]) -> None:
        """Take what state_dict gave, into the tensors that are there."""
        self.count.copy_(state["count"])
        for kept, saved in zip(self.kept, state["kept"], strict=True):
            kept.copy_(saved)

    def _distinct(self, wanted: int, among: Tensor) -> Tensor:
        """`wanted` different places at random, those below `among` first, (wanted,) int64."""
        chances = torch.rand(self.capacity, device=among.device)
        return chances.masked_fill(self._places >= among, -1).topk(wanted).indices

    @staticmethod
    def _write(kept: Tensor, places: Tensor, samples: Tensor, where: Tensor) -> None:
        """kept[places] = samples for those with where (n,), in place."""
        values = torch.where(_columns(where, samples), samples.detach().to(kept.dtype), kept[places])
        kept.index_copy_(0, places, values)


def _columns(flags: Tensor, like: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, ...) with the dimensions of `like`."""
    return flags.view(-1, *[1] * (like.dim() - 1))
