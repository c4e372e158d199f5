"""Splits of images that lie in arrays, in memory or memory-mapped: a batch of them is one gather."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.array_transforms import BatchAugment
from datamodules.images import Pixels
from datamodules.photos import Batch, Item, first
from datamodules.samplers import Draw

Places = NDArray[np.int64]


class Block(NamedTuple):
    """Images (n, H, W, 3), of any strides, and the files that they were read from with the number in each."""

    pixels: NDArray[np.uint8]
    files: Sequence[tuple[Path, int]]


class Arrays(Dataset[Batch]):
    """Images of one size that are rows of some blocks, with their labels.

    Answers to the loaders as `Photos` does. Of a training batch only the random numbers are drawn here (`draws`); the
    DataModule applies them where the batch ends up.

    Args:
        blocks: where the pixels lie; splits share them.
        rows: (n,) place of each image, counted through all blocks.
        labels: class ids (n,) of each task, -1 where one is missing.
        augment: random changes of training.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        rows: Places,
        labels: Mapping[str, Places],
        augment: BatchAugment,
    ) -> None:
        self.blocks, self.rows, self.labels, self.augment = blocks, rows, dict(labels), augment
        self.starts = np.cumsum([0, *(len(block.pixels) for block in blocks)])
        self.content = rows  # numbers that are equal where images are; see `number_contents`
        self.broken: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_random(self) -> bool:
        """Whether no two epochs of training see the same pixels."""
        return self.augment.is_random

    def keep(self, places: Places) -> Self:
        """The images at these places, in this order, as a split of their own."""
        labels = {task: ids[places] for task, ids in self.labels.items()}
        kept = type(self)(self.blocks, self.rows[places], labels, self.augment)
        kept.content = self.content[places]
        return kept

    def name(self, index: int) -> str:
        """File of an image, and its place in the file, counted from 0."""
        row = int(self.rows[index])
        for path, count in (file for block in self.blocks for file in block.files):
            if row < count:
                return f"{path.name}/{row}"
            row -= count
        raise IndexError(index)

    def expand(self, items: Sequence[Item]) -> Sequence[Item]:
        """What is loaded for these samples of an epoch: themselves."""
        return items

    def pictures(self) -> Self:
        """The split of all single pictures: itself."""
        return self

    def files(self) -> Iterator[str]:
        """What the pixels come from: path, size and time of each file, and which of their images these are."""
        for path, _ in (file for block in self.blocks for file in block.files):
            found = path.stat()
            yield f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"
        yield sha256(self.rows.tobytes()).hexdigest()

    def targets(self, index: Places) -> Batch:
        """Everything of a batch of these samples but the pixels."""
        labels = {task: torch.from_numpy(ids[index]) for task, ids in self.labels.items()}
        return {"index": torch.tensor(index), "labels": labels}

    def blank(self, items: Sequence[Item]) -> Batch:
        """A batch with everything but its pixels; `image` is (B, 3, H, W), in memory channels last."""
        drawn = [item for item in items if isinstance(item, Draw)]
        at = np.array([item.sample if isinstance(item, Draw) else item for item in items], dtype=np.int64)
        height, width = self.blocks[0].pixels.shape[1:3]
        image = torch.empty((len(items), height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        draws = {"draws": self.augment.draw(drawn, height)} if drawn and self.is_random else {}
        return {"image": image, **self.targets(at), **draws}

    def fill(self, batch: Batch, items: Sequence[Item], slots: Iterable[int]) -> None:
        """Write the pixels of some slots of a batch."""
        at = np.fromiter(slots, np.int64)
        self.read(batch["index"].numpy()[at], batch["image"].permute(0, 2, 3, 1).numpy(), at)

    def read(self, index: Places, out: Pixels, slots: Places) -> None:
        """Write the pixels of these images into `slots` of `out` (B, H, W, 3)."""
        for pixels, rows, mine in self._parts(self.rows[index]):
            _put(pixels[rows], out, slots[mine])

    def column(self) -> NDArray[np.uint8]:
        """The green values (n, H) of each image's middle column; of memory-mapped images little else is read."""
        found = np.empty((len(self), self.blocks[0].pixels.shape[1]), np.uint8)
        for pixels, rows, mine in self._parts(self.rows):
            found[mine] = pixels[:, :, pixels.shape[2] // 2, 1][rows]
        return found

    def _parts(self, rows: Places) -> Iterator[tuple[Pixels, Places, Places]]:
        """For each block that some rows lie in: its pixels, the rows in it, and which of the given ones they are."""
        for block, start in zip(self.blocks, self.starts, strict=False):
            mine = np.flatnonzero((start <= rows) & (rows < start + len(block.pixels)))
            if len(mine):
                yield block.pixels, rows[mine] - start, mine

    def finish(self, batch: Batch) -> Batch:
        """The batch once all its slots are filled."""
        return batch

    def __getitem__(self, item: Item) -> Batch:
        batch = self.blank([item])
        self.fill(batch, [item], [0])
        return first(batch)


def _put(found: Pixels, out: Pixels, slots: Places) -> None:
    """Copy images in; those that lie in planes plane by plane, which takes a quarter of a transposed copy's time."""
    if found.flags.c_contiguous:
        out[slots] = found
    else:
        for channel in range(3):
            out[..., channel][slots] = found[..., channel]
