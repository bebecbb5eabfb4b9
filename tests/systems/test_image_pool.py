"""The history buffer and the image pool: they fill, and return images that they were given before."""

import copy

import pytest
import torch

from engine.systems.image_pool import ImagePool
from tests.support.tape import NoWaiting

ON = torch.ones((), dtype=torch.bool)


def pool_of(capacity: int, **options) -> ImagePool:
    return ImagePool(capacity, [torch.empty(1, 2, 2, **options)])


def numbered(*numbers: int) -> list[torch.Tensor]:
    """Make images whose pixels all hold the image's number."""
    return [torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()]


def numbers(images: torch.Tensor) -> list[int]:
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].int().tolist()


def test_the_history_fills_by_half_a_batch_and_stays_full() -> None:
    pool, counts = pool_of(10), []
    for step in range(8):
        pool.mix(numbered(*range(4 * step, 4 * step + 4)), ON)
        counts.append(int(pool.count))
    assert counts == [2, 4, 6, 8, 10, 10, 10, 10] and pool.fill() == 1
    assert pool.fill().dtype == torch.float32


def test_while_it_fills_every_first_half_is_kept() -> None:
    pool = pool_of(10)
    for step in range(5):
        pool.mix(numbered(*range(4 * step, 4 * step + 4)), ON)
    assert sorted(numbers(pool.kept[0])) == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17]


def test_an_empty_history_gives_the_batch_back() -> None:
    assert numbers(pool_of(10).mix(numbered(1, 2, 3, 4), ON)[0]) == [1, 2, 3, 4]


@pytest.mark.parametrize("batch", [2, 4, 5])
def test_half_of_a_batch_is_old_and_was_once_given(batch: int) -> None:
    torch.manual_seed(0)
    pool, given = pool_of(20), set()
    ages = []
    for step in range(400):
        new = range(batch * step, batch * (step + 1))
        mixed = numbers(pool.mix(numbered(*new), ON)[0])
        half = batch // 2
        assert mixed[: batch - half] == list(new)[: batch - half]
        if step:
            old = mixed[batch - half :]
            assert set(old) <= given and len(set(old)) == half
            ages += [step - number // batch for number in old if step > 100]
        given |= set(list(new)[:half])
    # each step replaces half of a batch in 20 places, so the mean age of a kept image is 20 / half steps
    assert sum(ages) / len(ages) == pytest.approx(20 / half, rel=0.3)
    assert max(ages) > 20 / half


def test_a_full_history_replaces_at_random() -> None:
    torch.manual_seed(0)
    pool = pool_of(8)
    for step in range(4):
        pool.mix(numbered(*[step] * 4), ON)
    before = pool.kept[0].clone()
    pool.mix(numbered(*[9] * 4), ON)
    changed = (pool.kept[0] != before)[:, 0, 0, 0].nonzero().flatten().tolist()
    assert len(changed) == 2
    replaced = set()
    for step in range(60):
        before = pool.kept[0].clone()
        pool.mix(numbered(*[10 + step] * 4), ON)
        replaced |= set((pool.kept[0] != before)[:, 0, 0, 0].nonzero().flatten().tolist())
    assert replaced == set(range(8))


def test_nothing_is_kept_while_the_discriminator_does_not_learn() -> None:
    pool = pool_of(6)
    pool.mix(numbered(1, 2, 3, 4), ON)
    before = copy.deepcopy(pool.state_dict())
    assert set(numbers(pool.mix(numbered(5, 6, 7, 8), ~ON)[0])) == {5, 6, 1, 2}
    after = pool.state_dict()
    assert torch.equal(after["count"], before["count"]) and torch.equal(after["kept"][0], before["kept"][0])


def test_what_is_mixed_has_gradients_for_the_new_half_only() -> None:
    pool = pool_of(6)
    pool.mix(numbered(1, 2, 3, 4), ON)
    new = numbered(5, 6, 7, 8)[0].requires_grad_()
    pool.mix([new], ON)[0].sum().backward()
    assert new.grad[:, 0, 0, 0].tolist() == [1, 1, 0, 0] and not pool.kept[0].requires_grad


def test_tensors_of_one_sample_stay_together_and_keep_their_dtype() -> None:
    torch.manual_seed(0)
    pool = ImagePool(8, [torch.empty(1, 2, 2, dtype=torch.float16), torch.empty(3, 2)])
    for step in range(20):
        images = numbered(*range(4 * step, 4 * step + 4))[0]
        points = images[:, 0, :1, :1].expand(4, 3, 2)
        mixed, landmarks = pool.mix([images, points], ON)
        assert mixed.dtype == torch.float32 and pool.kept[0].dtype == torch.float16
        assert torch.equal(mixed[:, 0, 0, 0], landmarks[:, 0, 0])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_pool_of_cyclegan_fills_then_exchanges_half(batch: int) -> None:
    torch.manual_seed(0)
    pool, inside, old_ones, asked = pool_of(10), [], 0, 0
    for step in range(300):
        new = list(range(batch * step, batch * (step + 1)))
        back = numbers(pool.exchange(numbered(*new))[0])
        for number, returned in zip(new, back, strict=True):
            if len(inside) < 10:
                assert returned == number
                inside.append(number)
                continue
            asked += 1
            if returned != number:
                assert returned in inside
                inside[inside.index(returned)] = number
                old_ones += 1
        assert sorted(inside) == sorted(numbers(pool.kept[0])[: len(inside)])
    assert old_ones / asked == pytest.approx(0.5, abs=0.1)


def test_no_capacity_gives_everything_back() -> None:
    pool = pool_of(0)
    assert numbers(pool.exchange(numbered(1, 2))[0]) == numbers(pool.mix(numbered(1, 2), ON)[0]) == [1, 2]
    assert pool.fill() == 0


def test_a_batch_of_one_has_no_half() -> None:
    pool = pool_of(4)
    assert numbers(pool.mix(numbered(1), ON)[0]) == [1] and pool.count == 0


@pytest.mark.parametrize("call", ["mix", "exchange"])
def test_a_loaded_state_goes_on_exactly_in_the_same_tensors(call: str) -> None:
    torch.manual_seed(0)
    pool, twin = pool_of(6), pool_of(6)

    def run(which: ImagePool, first: int, last: int) -> list[list[int]]:
        further = (ON,) if call == "mix" else ()
        return [numbers(getattr(which, call)(numbered(4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3), *further)[0])
                for i in range(first, last)]  # fmt: skip

    run(pool, 0, 7)
    saved, place = pool.state_dict(), twin.kept[0].data_ptr()
    twin.load_state_dict(saved)
    torch.manual_seed(1)
    expected = run(pool, 7, 20)
    torch.manual_seed(1)
    assert run(twin, 7, 20) == expected and twin.kept[0].data_ptr() == place
    assert saved["count"] == 6 and not torch.equal(saved["kept"][0], pool.kept[0])


@pytest.mark.parametrize("call", ["mix", "exchange"])
def test_the_host_never_waits(call: str) -> None:
    pool, images = pool_of(6), numbered(1, 2, 3, 4)
    with NoWaiting():
        for _ in range(5):
            getattr(pool, call)(images, *((ON,) if call == "mix" else ()))
    assert pool.count == 6
