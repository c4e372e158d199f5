"""Random numbers that are a function of a key, so that no generator has a state to share, to store or to resume.

What a sample gets depends on seed, epoch and its place in its split alone: not on the batch it came in, nor on the
number of processes, nor on the device, for all of it is integer arithmetic.
"""

from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOW = 0xFFFFFFFF
Number = TypeVar("Number", int, Tensor)


def scramble(numbers: Number) -> Number:
    """A 32-bit integer hash, one to one, of an int or an int64 tensor (of whose elements it takes the low 32 bits)."""
    numbers = numbers & LOW
    for _ in range(2):
        numbers = ((numbers >> 16) ^ numbers) * 0x45D9F3B & LOW
    return (numbers >> 16) ^ numbers


def keys(seed: int, epoch: int, index: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """32 random bits for each sample; different indices never share them in an epoch."""
    return scramble(index + scramble(epoch + scramble(seed)))


def uniform(seed: int, epoch: int, index: Int[Tensor, " b"], slots: int) -> Float[Tensor, "b s"]:
    """Numbers in [0, 1) for each sample, uniform, and independent between slots, samples and epochs.

    Args:
        seed: of the whole run.
        epoch: from 0.
        index: the samples' places in their split, int64; for view v of several, `index * views + v`.
        slots: how many numbers a sample wants, each with a meaning of its own.

    Returns:
        (B, slots) float32, multiples of 2⁻²⁴: 1 itself is never among them.
    """
    slot = scramble(torch.arange(1, slots + 1, device=index.device))
    bits = scramble(keys(seed, epoch, index)[:, None] + slot)
    return (bits >> 8).float() * 2.0**-24
