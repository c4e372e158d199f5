"""Photos with a positive each: a changed picture of the same photo, which is all that is known to be similar to it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.base import ImageDataModule
from datamodules.images import Pixels
from datamodules.photos import Batch, Item, Photos
from datamodules.samplers import Draw
from datamodules.splits import Splits
from datamodules.transforms import Augment, Transform

Positives = Literal["fixed", "fresh"]


class Pictures(Photos):
    """The photos of a split and, after all of them, a positive of each: photo i is also picture n + i, changed.

    Photos look as in evaluation. Without a generator a positive is the same at any time: its changes are drawn from the
    seed and from what the photo is called, so they depend neither on the split it lies in nor on the other photos.

    Args:
        photos: of the split.
        change: how a positive differs.
        seed: of the positives.
    """

    def __init__(self, photos: Photos, change: Transform, seed: int) -> None:
        labels = {task: np.tile(ids, 2) for task, ids in photos.labels.items()}
        boxes = None if photos.boxes is None else np.tile(photos.boxes, (2, 1))
        super().__init__(photos.paths * 2, boxes, labels, photos.origin * 2, change, photos.skip)
        self.photos, self.seed = len(photos), seed

    def key(self, index: int) -> tuple[int, int]:
        """What the changes of a photo's fixed positive are drawn from."""
        return self.seed, int.from_bytes(blake2b(self.origin[index].encode(), digest_size=8).digest(), "big")

    def write(self, index: int, rng: Generator | None, out: Pixels) -> None:
        """Decode one picture into `out` (side, side, 3); only of a positive does the `rng` change anything."""
        is_positive = index >= self.photos
        super().write(index, (rng or np.random.default_rng(self.key(index))) if is_positive else None, out)

    def files(self) -> Iterator[str]:
        """What the pixels of each picture come from; of a positive also its changes."""
        for at, line in enumerate(super().files()):
            yield line if at < self.photos else f"{line} {self.transform.augment} {self.key(at)}"


class Pairs(Photos):
    """Photos of one split whose batches hold each photo twice: B anchors, then their B positives.

    `image` is (2B, 3, side, side), `index` (2B,) the photo's place in the split, `positive` (2B,) tells which is which.
    Labels are there to judge by: a split that is trained on keeps them out of its batches.

    Args:
        photos: of the split.
        change: how a positive differs from its photo.
        seed: of fixed positives.
        fresh: training draws new positives in each epoch; evaluation always has the fixed ones.
        judged: batches carry labels.
    """

    def __init__(self, photos: Photos, change: Transform, seed: int, fresh: bool, judged: bool) -> None:
        super().__init__(photos.paths, photos.boxes, photos.labels, photos.origin, photos.transform, photos.skip)
        self.fresh, self.judged = fresh, judged
        self._pictures = Pictures(photos, change, seed)

    @property
    def is_random(self) -> bool:
        """Whether no two epochs of training see the same pixels."""
        return self.fresh

    def keep(self, places: Iterable[int]) -> "Pairs":
        """The samples at these places, in this order, as a split of their own."""
        return Pairs(super().keep(places), self._pictures.transform, self._pictures.seed, self.fresh, self.judged)

    def pictures(self) -> Pictures:
        """The 2n single pictures, photos first; `expand` speaks of their places."""
        return self._pictures

    def expand(self, items: Sequence[Item]) -> list[Item]:
        """The pictures that are loaded for these samples: their photos, then their positives."""
        photos = [item.sample if isinstance(item, Draw) else item for item in items]
        return [*photos, *(self._positive(item) for item in items)]

    def _positive(self, item: Item) -> Item:
        if not isinstance(item, Draw):
            return item + len(self)
        place = item.sample + len(self)
        return Draw(place, item.key) if self.fresh else place

    def targets(self, index: NDArray[np.int64]) -> Batch:
        """Everything of a batch of these pictures but the pixels."""
        batch = super().targets(index % len(self))
        if not self.judged:
            batch.pop("labels", None)
        return batch | {"positive": torch.from_numpy(index >= len(self))}

    def write(self, index: int, rng: Generator | None, out: Pixels) -> None:
        """Decode one picture into `out` (side, side, 3)."""
        self._pictures.write(index, rng, out)

    def spoil(self, batch: Batch, slot: int, index: int, reason: str) -> None:
        """What to do about a picture whose photo turned out broken only now."""
        super().spoil(batch, slot, index % len(self), reason)


class PairDataModule(ImageDataModule):
    """Photos in splits, each with a positive; a subclass says in `read` where they are.

    Photos are split first and then paired, so that no photo is in one split and its positive in another.

    Args:
        root: folder of the data set.
        batch_size: photos of a batch over all devices; with their positives twice as many pictures.
        seed: of order, positives and carved splits.
        threads: that decode.
        on_leak: error, drop or warn about a photo in two splits.
        on_bad_image: error, or skip a broken photo.
        image_size: side of the square, in pixels.
        fit: letterbox, squash or crop.
        positives: `fixed` makes each photo's positive once, `fresh` anew in each epoch.
        change: strengths of what makes a positive, see `Augment`.
        val_share: share of the photos that becomes val where the data set has none.

    Raises:
        ValueError: a setting outside its range, or positives that are their photos again.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        seed: int,
        threads: int,
        on_leak: str,
        on_bad_image: str,
        image_size: int,
        fit: str,
        positives: Positives,
        change: Mapping[str, float],
        val_share: float = 0.0,
    ) -> None:
        transform = Transform(image_size, fit)
        super().__init__(root, transform, batch_size, seed, threads, on_leak, on_bad_image, val_share)
        self.change = Transform(image_size, fit, augment=Augment.of(change))
        if positives not in get_args(Positives):
            raise ValueError(f"positives={positives!r} is not one of {', '.join(get_args(Positives))}")
        if not self.change.is_random:
            raise ValueError("change has no strength but those that are off: a positive would be its photo again")
        self.positives = positives

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the photos, then pair them; done once.

        Raises:
            FileNotFoundError: the data set is not there.
            ValueError: anything wrong with it.
        """
        if self.splits:
            return
        super().setup(stage)
        fresh = self.positives == "fresh"
        self.splits = {
            name: Pairs(photos, self.change, self.seed, fresh, judged=name != "train")
            for name, photos in self.splits.items()
        }

    def check(self, splits: Splits) -> None:
        """Last look at the splits before they are used.

        Raises:
            ValueError: a split that nothing can be learned or judged on.
        """
        super().check(splits)
        for name, photos in splits.items():
            if len(photos) < 2:
                raise ValueError(
                    f"{name} has one photo, and none for it to differ from: add photos, or make its share larger"
                )
