"""Splits of photos: where each sample comes from, what it is labelled, and how a batch of them is filled by threads."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.images import BadImage, Pixels, decode, read_header
from datamodules.samplers import Draw
from datamodules.tables import MISSING
from datamodules.transforms import FILL, Box, Transform

Batch = dict[str, Any]
Labels = Mapping[str, NDArray[np.int64]]
Item = Draw | int  # a plain index has no randomness


class Photos(Dataset[Batch]):
    """Photos of one split, one a row of its table; decoded when asked for.

    A batch is made in two steps, so that several threads can work on it: `blank` makes everything but the pixels,
    `fill` writes the pixels of some of its slots. A photo that turns out broken stays grey and loses its labels (-1),
    so that every process keeps its share of every batch; it is named in `broken`.

    Args:
        paths: file of each sample.
        boxes: (n, 4) xmin, ymin, xmax, ymax in pixels of the upright photo; None, or a row of NaN, is the whole photo.
        labels: class ids (n,) of each task, -1 where one is missing.
        origin: where each sample is listed, such as "info_train.csv row 7", for messages.
        transform: pixels to the square that a network sees.
        skip: go on after a photo that cannot be decoded, instead of raising.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        boxes: NDArray[np.float64] | None,
        labels: Labels,
        origin: Sequence[str],
        transform: Transform,
        skip: bool = False,
    ) -> None:
        self.paths, self.boxes, self.labels, self.origin = list(paths), boxes, dict(labels), list(origin)
        self.transform, self.skip = transform, skip
        self.broken: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def is_random(self) -> bool:
        """Whether no two epochs of training see the same pixels."""
        return self.transform.is_random

    def keep(self, places: Iterable[int]) -> "Photos":
        """The samples at these places, in this order, as a split of their own."""
        at = np.asarray(list(places), dtype=np.int64)
        boxes = None if self.boxes is None else self.boxes[at]
        labels = {task: ids[at] for task, ids in self.labels.items()}
        paths, origin = [self.paths[i] for i in at], [self.origin[i] for i in at]
        return Photos(paths, boxes, labels, origin, self.transform, self.skip)

    def box(self, index: int) -> Box | None:
        """The sample's box in pixels, or None for the whole photo."""
        if self.boxes is None or np.isnan(self.boxes[index, 0]):
            return None
        left, top, right, bottom = self.boxes[index].tolist()
        return left, top, right, bottom

    def write(self, index: int, rng: Generator | None, out: Pixels) -> None:
        """Decode one sample into `out` (side, side, 3): as training sees it if there is an `rng`, else exactly.

        Raises:
            BadImage: the file cannot be read as a photo.
        """
        try:
            data = self.paths[index].read_bytes()
        except OSError as error:
            raise BadImage(f"it cannot be opened ({error.strerror})") from error
        header = read_header(data)
        size = header.width, header.height
        region = self.transform.region(self.box(index), size)
        if rng is None or not self.transform.is_random:
            self.transform.exact(decode(data, header), region, out)
        else:
            self.transform.random(decode(data, header, self.transform.needed(region, size)), region, rng, out)

    def expand(self, items: Sequence[Item]) -> Sequence[Item]:
        """What is loaded for these samples of an epoch: themselves; a split of pairs adds their partners."""
        return items

    def pictures(self) -> "Photos":
        """The split of all single pictures, for whoever wants each once: itself."""
        return self

    def files(self) -> Iterator[str]:
        """What the pixels of each picture come from: path, size, time and box. Kept features are found again by it."""
        for at, path in enumerate(self.paths):
            found = path.stat()
            yield f"{path.resolve()} {found.st_size} {found.st_mtime_ns} {self.box(at)}"

    def targets(self, index: NDArray[np.int64]) -> Batch:
        """Everything of a batch of these samples but the pixels."""
        batch: Batch = {"index": torch.tensor(index)}
        if self.labels:
            batch["labels"] = {task: torch.from_numpy(ids[index]) for task, ids in self.labels.items()}
        return batch

    def blank(self, items: Sequence[Item]) -> Batch:
        """A batch with everything but its pixels; `image` is (B, 3, side, side), in memory channels last."""
        at = np.array([item.sample if isinstance(item, Draw) else item for item in items], dtype=np.int64)
        side = self.transform.side
        image = torch.empty((len(items), side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        return {"image": image, **self.targets(at)}

    def fill(self, batch: Batch, items: Sequence[Item], slots: Iterable[int]) -> None:
        """Write the pixels of some slots of a batch.

        Raises:
            ValueError: a photo is broken and broken photos are not to be skipped.
        """
        pixels = batch["image"].permute(0, 2, 3, 1).numpy()
        for slot in slots:
            item = items[slot]
            index, rng = (item.sample, np.random.default_rng(item.key)) if isinstance(item, Draw) else (item, None)
            try:
                self.write(index, rng, pixels[slot])
            except BadImage as bad:
                self.spoil(batch, slot, index, str(bad))

    def spoil(self, batch: Batch, slot: int, index: int, reason: str) -> None:
        """What to do about a photo that turned out broken only now, when it was decoded."""
        if not self.skip:
            raise ValueError(f"{describe(self, index, reason)}: replace it, take out its row, or set on_bad_image=skip")
        self.broken[self.paths[index]] = reason
        batch["image"][slot] = FILL
        for ids in batch.get("labels", {}).values():
            ids[slot] = MISSING

    def finish(self, batch: Batch) -> Batch | None:
        """The batch once all its slots are filled; None would leave it out."""
        return batch

    def __getitem__(self, item: Item) -> Batch:
        batch = self.blank([item])
        self.fill(batch, [item], [0])
        return first(batch)


class Unlabelled(Photos):
    """Any photos to be answered: a broken one is left out of its batch and named in `broken`; nothing is raised."""

    def spoil(self, batch: Batch, slot: int, index: int, reason: str) -> None:
        """Mark the slot; `finish` takes it out."""
        self.broken[self.paths[index]] = reason
        batch["index"][slot] = MISSING

    def finish(self, batch: Batch) -> Batch | None:
        """The batch without its broken photos; None if none is left."""
        good = batch["index"] >= 0
        if good.all():
            return batch
        return {key: value[good] for key, value in batch.items()} if good.any() else None


def describe(photos: Photos, index: int, reason: str) -> str:
    """Name a sample and what is wrong with it: listed where, which file, why."""
    return f"{photos.origin[index]}: {photos.paths[index]}: {reason}"


def first(batch: Mapping[str, Any]) -> Batch:
    """The first sample of a batch, without the batch dimension."""
    return {key: first(value) if isinstance(value, Mapping) else value[0] for key, value in batch.items()}


def each_tensor(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The batch with every tensor in it changed."""
    if isinstance(batch, Mapping):
        return {key: each_tensor(value, change) for key, value in batch.items()}
    return change(batch)
