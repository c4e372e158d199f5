"""Unlabelled photos beside the labelled ones of every training batch: from which source, how many, in what order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from math import floor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.photos import Batch, Item
from datamodules.samplers import Draw

PHOTO = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
ORDER = 3  # keeps the order of the unlabelled photos apart from that of the labelled ones


@dataclass(frozen=True)
class Mixture:
    """Where a training batch's unlabelled photos come from.

    Args:
        source: `dropped` (photos of train of which `labels.kept` drops a label), `train` (all of them, labels unseen),
            or a folder with any photos.
        ratio: of unlabelled photos to labelled ones.
    """

    source: str
    ratio: float = 1.0

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> Self | None:
        """From a mapping in YAML; None for no unlabelled photos.

        Raises:
            ValueError: an unknown name, no source, or a ratio that is no number above 0.
        """
        if settings is None:
            return None
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(f"unlabelled has no setting {name!r}; it has {', '.join(known)}")
        if not isinstance(settings.get("source"), str):
            raise ValueError("unlabelled.source must be dropped, train, or a folder of photos")
        mixture = cls(**settings)
        if isinstance(mixture.ratio, bool) or not isinstance(mixture.ratio, int | float) or mixture.ratio <= 0:
            raise ValueError(f"unlabelled.ratio={mixture.ratio!r} is not a number above 0")
        return mixture

    def photos(self) -> list[Path]:
        """The photos of a folder, those of its folders included.

        Raises:
            FileNotFoundError: there is no such folder, or no photo in it.
        """
        folder = Path(self.source)
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO and path.is_file())
        if not found:
            what = "holds no photo" if folder.is_dir() else "is no folder"
            raise FileNotFoundError(
                f"unlabelled.source={self.source} {what}: give dropped, train, or a folder with photos"
            )
        return found


class Companion(NamedTuple):
    """An unlabelled photo: its place among these, and its turn in the epoch."""

    place: int
    position: int


class Companions(Dataset[Batch]):
    """The training split with unlabelled photos beside it: a batch of B photos has B · ratio of them.

    `unlabelled` of a batch holds their `image`, as evaluation sees it, `index` and `position`. The photo with the
    number p of an epoch brings the unlabelled ones from ⌊p · ratio⌋ up to ⌊(p + 1) · ratio⌋; these go through all of
    them in a random order, then through all of them in another. So what a batch holds depends neither on the number of
    processes nor on a resume.

    Args:
        labelled: the training split.
        unlabelled: a split of photos, whose labels are not looked at.
        ratio: of unlabelled photos to labelled ones.
    """

    def __init__(self, labelled: Any, unlabelled: Any, ratio: float) -> None:
        self.labelled, self.unlabelled, self.ratio = labelled, unlabelled, ratio
        self.is_random = True  # no feature is kept of them
        self._order = lru_cache(maxsize=4)(self._drawn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["labelled"], name)  # labels, pictures, files, keep, name, paths, broken, ...

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, item: Item) -> Batch:
        return self.labelled[item]

    def _drawn(self, seed: int, epoch: int, cycle: int) -> NDArray[np.int64]:
        return np.random.default_rng((seed, ORDER, epoch, cycle)).permutation(len(self.unlabelled))

    def expand(self, items: Sequence[Item]) -> list[Any]:
        """The samples themselves, then the unlabelled photos that they bring."""
        brought = [companion for item in items if isinstance(item, Draw) for companion in self.beside(item.key)]
        return [*self.labelled.expand(items), *brought]

    def beside(self, key: tuple[int, int, int]) -> list[Companion]:
        """The unlabelled photos of one place (seed, epoch, position) in the order."""
        seed, epoch, at = key
        size = len(self.unlabelled)
        positions = range(floor(at * self.ratio), floor((at + 1) * self.ratio)) if size else ()
        return [Companion(int(self._order(seed, epoch, p // size)[p % size]), p) for p in positions]

    def blank(self, items: Sequence[Any]) -> Batch:
        """A batch with everything but its pixels."""
        own, beside = apart(items)
        batch: Batch = self.labelled.blank(own)
        if len(own) == len(items) and not (own and isinstance(own[0], Draw)):
            return batch  # evaluation looks at some pictures of train
        more = self.unlabelled.blank([item.place for item in beside])
        more.pop("labels", None)
        more["position"] = torch.tensor([item.position for item in beside], dtype=torch.int64)
        return {**batch, "unlabelled": more}

    def fill(self, batch: Batch, items: Sequence[Any], slots: Iterable[int]) -> None:
        """Write the pixels of some slots of a batch, the unlabelled photos coming last."""
        own, beside = apart(items)
        slots = list(slots)
        self.labelled.fill(batch, own, [slot for slot in slots if slot < len(own)])
        more = [slot - len(own) for slot in slots if slot >= len(own)]
        if more:
            self.unlabelled.fill(batch["unlabelled"], [item.place for item in beside], more)


def apart(items: Sequence[Any]) -> tuple[list[Item], list[Companion]]:
    """Samples of the labelled split, and the unlabelled photos after them."""
    own = [item for item in items if not isinstance(item, Companion)]
    return own, list(items[len(own) :])
