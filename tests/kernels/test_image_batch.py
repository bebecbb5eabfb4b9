"""image_batch: to the bit what numpy computes on every window, from stores past 2^31 bytes too, and what it refuses."""

import os

import numpy as np
import pytest
import torch

from engine import ops
from engine.data.decoding.assemble import assemble_images, assemble_landmarks
from engine.data.landmarks import MIRROR_ORDER

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"


def arguments(batch: int = 5, count: int = 9, side: int = 20, channels: int = 3, resolution: int = 16) -> dict:
    generator = torch.Generator().manual_seed(0)

    def draw(end: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, end, shape, generator=generator)

    return {
        "store": draw(256, count, side, side, channels).to(torch.uint8),
        "rows": draw(count, batch),
        "offsets": draw(side - resolution + 1, batch, 2),
        "mirror": draw(2, batch).bool(),
        "resolution": resolution,
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_value_is_the_rounded_quotient_less_one(dtype):
    values = torch.arange(256).to(torch.uint8).reshape(1, 16, 16, 1)
    nothing = {"rows": torch.zeros(2).long(), "offsets": torch.zeros(2, 2).long(), "resolution": 16}
    images = ops.image_batch(values, mirror=torch.tensor([False, True]), dtype=dtype, **nothing)
    exact = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    exact = torch.from_numpy(exact).to(dtype).reshape(16, 16)
    assert torch.equal(images[0, 0], exact) and torch.equal(images[1, 0], exact.flip(1))


@pytest.mark.parametrize("shape", [(5, 9, 20, 3, 16), (1, 1, 1, 1, 1), (3, 2, 33, 1, 33), (4, 3, 31, 4, 7)])
def test_windows(shape):
    made = arguments(*shape)
    images = ops.image_batch(**made)
    side = made["resolution"]
    for image, row, (x, y), mirrored in zip(
        images, made["rows"], made["offsets"].tolist(), made["mirror"].tolist(), strict=True
    ):
        window = made["store"][row].numpy()[y : y + side, x : x + side]
        window = window[:, ::-1] if mirrored else window
        exact = window.astype(np.float32) / np.float32(127.5) - np.float32(1)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), exact)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_reference_is_the_same_to_the_bit():
    for made in (arguments(), arguments(batch=0), arguments(channels=1, resolution=20)):
        images, plain = (assemble_images(**made, fused=fused) for fused in (True, False))
        assert torch.equal(images, plain) and images.stride() == plain.stride()


def test_strided_indices():
    made = arguments(batch=6)
    spread = {name: made[name].repeat_interleave(2, dim=0)[::2] for name in ("rows", "offsets", "mirror")}
    assert not spread["rows"].is_contiguous()
    assert torch.equal(ops.image_batch(**(made | spread)), ops.image_batch(**made))


def test_offsets_past_2_to_the_31():
    """The last square of a store of 2.1 GB; nothing else of it is ever touched, so it takes no memory."""
    count, side = 33_000, 256
    store = torch.empty((count, side, side, 1), dtype=torch.uint8)
    assert store.numel() > 2**31
    store[-1, :, :, 0] = torch.arange(256).to(torch.uint8)
    rows, offsets = torch.tensor([count - 1]), torch.tensor([[240, 250]])
    image = ops.image_batch(store, rows, offsets, torch.tensor([False]), 6)
    exact = torch.arange(240.0, 246.0) / 127.5 - 1
    assert torch.equal(image, exact.expand(1, 1, 6, 6))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"store": torch.zeros(2, 20, 20, 3)}, "store is torch.float32"),
        ({"store": torch.zeros(2, 20, 21, 3, dtype=torch.uint8)}, "store must be (M, S, S, C)"),
        ({"store": torch.zeros(2, 3, 20, 20, dtype=torch.uint8).permute(0, 2, 3, 1)}, "store must be contiguous"),
        ({"rows": torch.zeros(5)}, "rows is torch.float32"),
        ({"rows": torch.tensor(3)}, "rows is ()"),
        ({"offsets": torch.zeros(4, 2).long()}, "offsets is (4, 2)"),
        ({"offsets": torch.zeros(5, 2).int()}, "offsets is torch.int32"),
        ({"mirror": torch.zeros(5).long()}, "mirror is torch.int64"),
        ({"resolution": 21}, "from 1 to 20"),
        ({"resolution": 0}, "from 1 to 20"),
        ({"dtype": torch.float64}, "dtype is torch.float64"),
        ({"rows": torch.zeros(5, dtype=torch.int64, device="meta")}, "rows is on meta"),
    ],
)
def test_bad_arguments(change, words):
    with pytest.raises(ValueError, match=r"^image_batch: ") as caught:
        ops.image_batch(**(arguments() | change))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rows": torch.tensor([0, 1, 9, 2, 3])}, "rows hold 0 to 9; they must lie in 0 .. 8"),
        ({"rows": torch.tensor([0, 1, -1, 2, 3])}, "rows hold -1 to 3"),
        ({"offsets": torch.tensor([[0, 0], [0, 0], [0, 5], [0, 0], [0, 0]])}, "offsets hold 0 to 5"),
        ({"offsets": torch.tensor([[0, 0], [0, 0], [-1, 0], [0, 0], [0, 0]])}, "offsets hold -1 to 0"),
    ],
)
def test_outside_the_store(change, words):
    """An error on the CPU; on a GPU (or interpreted), which cannot wait to look, NaN in that image only."""
    made = arguments() | change
    if not INTERPRETED:
        with pytest.raises(ValueError, match=r"^image_batch: ") as caught:
            ops.image_batch(**made)
        assert words in str(caught.value) and "\n" not in str(caught.value)
        return
    images = ops.image_batch(**made)
    assert images[2].isnan().all() and not images[[0, 1, 3, 4]].isnan().any()


def test_opcheck_and_one_graph():
    made = arguments()
    torch.library.opcheck(torch.ops.kiln.image_batch.default, (*made.values(), torch.float32))

    def double(store, rows, offsets, mirror):
        return ops.image_batch(store, rows, offsets, mirror, 16, dtype=torch.bfloat16) * 2

    tensors = [made[name] for name in ("store", "rows", "offsets", "mirror")]
    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), double(*tensors))


def test_mirrored_landmarks_change_places():
    stored = torch.rand(3, 68, 2) * 20
    offsets, mirror = torch.tensor([[0, 0], [3, 1], [2, 4]]), torch.tensor([False, True, True])
    found = assemble_landmarks(stored, offsets, mirror, 16)
    for i in range(3):
        points = stored[i] - offsets[i]
        if mirror[i]:
            points = torch.stack([15 - points[:, 0], points[:, 1]], dim=1)[list(MIRROR_ORDER)]
        assert torch.equal(found[i], points)
