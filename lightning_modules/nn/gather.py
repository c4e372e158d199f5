"""What the processes of a run hold together, seen by each of them, with gradients that flow back to their owners."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def gather(own: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "all ..."]:
    """The rows of all processes, rank after rank; the same tensor if there is one process.

    Every process computes its loss from everybody's rows, and so has a gradient for everybody's. Backward sums them
    over the processes, and each one goes on with its own rows. Whether the loss is a mean over all rows or over a
    process's own ones, DDP's average of the gradients is then what one process with all rows has.

    Raises:
        ValueError: on every process, if they do not have equally many rows.
    """
    if ranks() == 1:
        return own
    check_equal(own)
    return Gather.apply(own)


class Gather(torch.autograd.Function):
    """`gather` of equally many rows."""

    @staticmethod
    def forward(ctx: Any, own: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "all ..."]:
        return collect(own)

    @staticmethod
    def backward(ctx: Any, gradient: Shaped[Tensor, "all ..."]) -> Shaped[Tensor, "b ..."]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(ranks())[rank()]


def collect(own: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "all ..."]:
    """The rows of all processes, rank after rank, without gradients; they must be equally many on each."""
    if ranks() == 1:
        return own
    rows = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(ranks())]
    dist.all_gather(rows, own.contiguous())
    return torch.cat(rows)


def check_equal(own: Shaped[Tensor, "b ..."]) -> None:
    """Refuses processes with unequally many rows, on each of them: the exchange itself would hang or mix them up."""
    counts = collect(torch.tensor([len(own)], device=own.device)).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"the processes have batches of {', '.join(map(str, counts))}: a loss that compares samples of all of them "
            "needs equally many on each; drop the last batch of an epoch, or choose one that the processes divide."
        )


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if ranks() > 1 else 0
