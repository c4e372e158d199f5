"""Tags of photos: read from a cell, kept as flat ids with offsets, handed out in batches without any dense row.

Photo i has the tags ids[starts[i]:starts[i + 1]], in the order in which they were written. For 400,000 photos and
22,808 words that is some megabytes, where one dense row a photo would be 36 GB.
"""

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.photos import Batch, Item, Photos, first
from datamodules.transforms import Transform

HASHES = "#\uff03"  # the second is the wide sign of East Asian keyboards
SPOILT = (
    -2
)  # marks the tags of a photo that turned out broken, until the batch is finished; -1 is a word of no vocabulary


def word(text: str) -> str:
    """A tag as it is kept: without leading #, and in composed Unicode (NFC), since Korean is spelt in two ways."""
    return sys.intern(unicodedata.normalize("NFC", text.strip().lstrip(HASHES)))  # one string a word, not one a use


def words(cell: str) -> list[str]:
    """Tags of a cell, separated by spaces, each once, in the order in which they are written."""
    return list(dict.fromkeys(tag for tag in map(word, cell.split()) if tag))


class Tags(NamedTuple):
    """Tags of n photos: flat ids, and the n + 1 places between which each photo has its own."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Self:
        """From one list of ids a photo."""
        starts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=starts[1:])
        return cls(np.fromiter(chain.from_iterable(rows), np.int32, starts[-1]), starts)

    def take(self, photos: NDArray[np.int64]) -> "Tags":
        """The tags of these photos, in this order."""
        begins = self.starts[photos]
        sizes = self.starts[photos + 1] - begins
        starts = np.zeros(len(photos) + 1, np.int64)
        np.cumsum(sizes, out=starts[1:])
        places = np.repeat(begins - starts[:-1], sizes) + np.arange(starts[-1])
        return Tags(self.ids[places], starts)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of tags of each photo."""
        return np.diff(self.starts)


class TaggedPhotos(Photos):
    """Photos of one split with any number of tags each.

    A batch carries `tags`, flat ids, and `offsets` (B + 1): image i has tags[offsets[i]:offsets[i + 1]]. A single
    label is one tag; the id -1 is a word outside the vocabulary. A photo that turns out broken (`on_bad_image: skip`)
    is left with no tag at all, which counts neither in a loss nor in a metric.

    Args:
        paths: file of each sample.
        origin: where each sample is listed, for messages.
        tags: of each sample.
        transform: pixels to the square that a network sees.
        skip: go on after a photo that cannot be decoded, instead of raising.
        shown: (words + 1) whether the single-label training data has this label, False at the end for the id -1; with
            it, batches of single labels carry `seen` (B).
    """

    def __init__(
        self,
        paths: Sequence[Path],
        origin: Sequence[str],
        tags: Tags,
        transform: Transform,
        skip: bool = False,
        shown: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__(paths, None, {}, origin, transform, skip)
        self.tags, self.shown = tags, shown

    def keep(self, places: Iterable[int]) -> "TaggedPhotos":
        """The samples at these places, in this order, as a split of their own."""
        at = np.asarray(list(places), dtype=np.int64)
        paths, origin = [self.paths[i] for i in at], [self.origin[i] for i in at]
        return TaggedPhotos(paths, origin, self.tags.take(at), self.transform, self.skip, self.shown)

    def targets(self, index: NDArray[np.int64]) -> Batch:
        """Everything of a batch of these samples but the pixels."""
        ids, starts = self.tags.take(index)
        batch = super().targets(index)
        batch |= {"tags": torch.from_numpy(ids.astype(np.int64)), "offsets": torch.from_numpy(starts)}
        if self.shown is not None:
            batch["seen"] = torch.from_numpy(self.shown[ids])
        return batch

    def spoil(self, batch: Batch, slot: int, index: int, reason: str) -> None:
        """Mark the photo's tags: threads share the batch, so `finish` takes them out."""
        super().spoil(batch, slot, index, reason)
        begin, end = batch["offsets"][slot : slot + 2].tolist()
        batch["tags"][begin:end] = SPOILT

    def finish(self, batch: Batch) -> Batch:
        """The batch without the tags of broken photos."""
        good = batch["tags"] != SPOILT
        if good.all():
            return batch
        before = torch.cat([good.new_zeros(1, dtype=torch.int64), good.cumsum(0)])
        return {**batch, "tags": batch["tags"][good], "offsets": before[batch["offsets"]]}

    def __getitem__(self, item: Item) -> Batch:
        batch = self.blank([item])
        self.fill(batch, [item], [0])
        tags = self.finish(batch)["tags"]
        return first({key: value for key, value in batch.items() if key not in ("tags", "offsets")}) | {"tags": tags}
