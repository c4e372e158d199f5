"""Keyed random numbers: uniform, independent, and a function of their key and of nothing else."""

import pytest
import torch
from torch.testing import assert_close

from lightning_modules.nn.keyed import keys, scramble, uniform

N, SLOTS = 50_000, 12


@pytest.fixture(scope="module")
def numbers():
    return uniform(3, 5, torch.arange(N), SLOTS).double()


def correlation(first, second):
    return torch.corrcoef(torch.stack([first, second]))[0, 1].abs()


def test_known_values():
    """Frozen: another hash would silently give every resumed run other pictures."""
    expected = [[9_285_374, 7_047_172], [4_449_910, 11_832_029]]
    assert (uniform(1, 2, torch.tensor([0, 9]), 2) * 2**24).tolist() == expected
    assert [scramble(number) for number in (0, 1, 2**32 + 1, -1)] == [0, 824_515_495, 824_515_495, 539_527_247]
    assert keys(1, 2, torch.tensor([3])).item() == scramble(3 + scramble(2 + scramble(1)))


def test_integers_and_tensors_hash_alike():
    plain = [0, 1, 77, 2**31, 2**32 - 1, 2**40 + 3, -1, -(2**50)]
    assert scramble(torch.tensor(plain)).tolist() == [scramble(number) for number in plain]


def test_the_hash_is_one_to_one():
    assert len(scramble(torch.arange(300_000)).unique()) == 300_000


def test_a_sample_gets_the_same_whatever_batch_it_is_in():
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = uniform(0, 1, torch.arange(1000), SLOTS)
    assert torch.equal(uniform(0, 1, index, SLOTS), whole[index])
    assert torch.equal(uniform(0, 1, index[:7], 3), whole[index[:7], :3])  # more slots leave the first ones alone
    assert uniform(0, 1, index[:0], SLOTS).shape == (0, SLOTS)


def test_no_generator_is_touched():
    before = torch.get_rng_state()
    uniform(0, 0, torch.arange(9), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_uniform_in_every_slot(numbers):
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for power in (1, 2, 3, 4):
        assert_close((numbers**power).mean(0), torch.full((SLOTS,), 1 / (power + 1)).double(), atol=0.006, rtol=0)
    filled = (numbers * 100).long()
    for slot in range(SLOTS):
        counts = torch.bincount(filled[:, slot], minlength=100).double()
        chi_squared = ((counts - N / 100) ** 2 / (N / 100)).sum()
        assert 45 < chi_squared < 170  # 99 degrees of freedom: five standard deviations


def test_slots_and_neighbours_are_independent(numbers):
    limit = 5 / N**0.5
    between_slots = torch.corrcoef(numbers.T) - torch.eye(SLOTS)
    assert between_slots.abs().max() < limit
    for distance in (1, 2, 3, 64, 4096):
        for slot in range(SLOTS):
            assert correlation(numbers[distance:, slot], numbers[:-distance, slot]) < limit
            assert correlation(numbers[distance:, slot], numbers[:-distance, (slot + 1) % SLOTS]) < limit


@pytest.mark.parametrize("key", [(3, 6), (3, 7), (4, 5), (5, 3), (2**40, 5), (-1, 5)])
def test_epochs_and_seeds_are_independent(numbers, key):
    other = uniform(*key, torch.arange(N), SLOTS).double()
    assert (other != numbers).float().mean() > 0.999
    assert correlation(other.flatten(), numbers.flatten()) < 5 / (N * SLOTS) ** 0.5
    assert correlation(other[1:].flatten(), numbers[:-1].flatten()) < 5 / (N * SLOTS) ** 0.5


def test_every_bit_of_the_key_counts():
    """Flipping one bit of the index flips half of the bits that come out."""
    index = torch.arange(2000)
    for bit in range(20):
        changed = keys(0, 0, index) ^ keys(0, 0, index ^ (1 << bit))
        flipped = sum((changed >> place & 1).double().mean() for place in range(32)) / 32
        assert 0.48 < flipped < 0.52
