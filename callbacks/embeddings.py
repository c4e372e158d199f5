"""Embeddings of a split's pictures, computed by all ranks together."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from callbacks.predictions import datamodule

CHUNK = 2048  # pictures of a rank between two exchanges


# Without gradients, but not in inference mode, which a test is in: the loader's threads are not, and so they could not
# mark a photo that they cannot read.
@torch.inference_mode(False)
@torch.no_grad()
def embed(trainer: Trainer, module: Any, split: str, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """What a technique's `embed` makes of some pictures, as evaluation sees them and in full precision.

    Pictures are read even where the stage trains on kept features. A collective: every rank must call it with the same
    index, rank 0 gets the embeddings (n, D), the others none of them. A picture that cannot be read is a row of NaN.

    Args:
        trainer: whose DataModule has the split.
        module: the technique.
        split: name of the split.
        index: places of the pictures in it.
    """
    data, rank, world = datamodule(trainer), trainer.global_rank, trainer.world_size
    pictures = data.splits[split].pictures()
    parts = []
    with evaluating(module):
        for begin in range(0, len(index), CHUNK * world):
            some = index[begin : begin + CHUNK * world]
            # Every rank brings as many rows; those beyond the last picture are cut off again.
            mine = np.resize(some, -(-len(some) // world) * world)[rank::world]
            found = [module.embed(batch) for batch in on(trainer.strategy.root_device, data.exactly(split, mine))]
            rows = torch.cat(found).float()
            rows[[place for place, at in enumerate(mine) if lost(pictures, at)]] = torch.nan
            everyone = trainer.strategy.all_gather(rows).view(world, *rows.shape)
            if trainer.is_global_zero:
                parts.append(everyone.transpose(0, 1).flatten(0, 1)[: len(some)].cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def lost(pictures: Any, index: int) -> bool:
    """Whether a picture turned out broken when it was read."""
    return bool(pictures.broken) and pictures.paths[index] in pictures.broken


def on(device: torch.device, batches: Any) -> Iterator[dict[str, Any]]:
    """Batches whose tensors are on a device."""
    for batch in batches:
        yield {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards each part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def classes(trainer: Trainer, split: str, index: NDArray[np.int64]) -> list[str | None]:
    """The class name of each picture in the first task, None where nobody knows it."""
    data = datamodule(trainer)
    names: Mapping[str, Sequence[str]] = data.facts.get("classes", {})
    labels = data.splits[split].labels
    task = next((task for task in names if task in labels), None)
    if task is None:
        return [None] * len(index)
    return [names[task][at] if at >= 0 else None for at in labels[task][index].tolist()]
