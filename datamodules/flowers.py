"""Photos in class folders (Kaggle's Flowers Recognition), or in none, to learn without labels what is similar."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.pairs import PairDataModule, Positives
from datamodules.photos import Photos
from datamodules.samples import flowers as sample
from datamodules.splits import Keys, Splits, count, twins, without
from datamodules.tables import MISSING

PHOTO = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
TASK = "class"


class Flowers(PairDataModule):
    """Photos below a folder; where they lie in folders of their own, these are their classes.

    A class is the first folder that tells photos apart, so `daisy/1.jpg` and `flowers/daisy/1.jpg` both say daisy. The
    classes are there to judge by, and to have each of them in every split; photos without any are learned from just as
    well, and only what needs labels is then not measured. Each photo counts once: a copy would be drawn as a negative
    of itself, and a photo in two class folders has no class.

    Reference: Mamaev, Flowers Recognition, Kaggle, 2018; five kinds, about 4,300 photos.

    Args:
        root: folder of the photos.
        batch_size: photos of a batch over all devices; with their positives twice as many pictures.
        seed: of order, positives, and the choice and splitting of the photos.
        threads: that decode.
        on_leak: what all DataModules take; photos are told apart by their content here, so there is no leak.
        on_bad_image: error, or skip a broken photo.
        image_size: side of the square, in pixels.
        fit: letterbox, squash or crop.
        per_class: photos of each class, chosen by seed; null for all there are.
        val_share: share of the photos by which an epoch is chosen.
        test_share: share of the photos that the chosen epoch is judged on; 0 for none.
        positives: `fixed` makes each photo's positive once, `fresh` anew in each epoch.
        change: strengths of what makes a positive, see `Augment`.

    Raises:
        ValueError: a setting outside its range.
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
        per_class: int | None,
        val_share: float,
        test_share: float,
        positives: Positives,
        change: Mapping[str, float],
    ) -> None:
        super().__init__(
            root, batch_size, seed, threads, on_leak, on_bad_image, image_size, fit, positives, change, val_share
        )
        if per_class is not None and (isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1):
            raise ValueError(f"per_class={per_class!r} is neither a number of photos nor null for all")
        if not isinstance(test_share, int | float) or not (val_share > 0 <= test_share and val_share + test_share < 1):
            raise ValueError(
                f"val_share={val_share!r} and test_share={test_share!r} must be shares of the photos that leave some "
                "to train on, val_share above 0"
            )
        self.per_class, self.test_share = per_class, test_share

    @classmethod
    def draw_sample(cls, root: Path, seed: int = 0) -> None:
        """Draw flowers of five kinds in this layout into `root`; a set that is there is kept."""
        sample.draw(Path(root), seed)

    def read(self) -> Splits:
        """All photos as one split, `photos`, which `carve_val` splits.

        Raises:
            FileNotFoundError: there is no photo.
        """
        files = [path for path in sorted(self.root.rglob("*")) if path.is_file()]
        places = [path.relative_to(self.root) for path in files]
        places = [place for place in places if not any(part.startswith((".", "__")) for part in place.parts)]
        photos = [place for place in places if place.suffix.lower() in PHOTO]
        if not photos:
            raise FileNotFoundError(self._nothing_here())
        if other := len(places) - len(photos):
            self.notes.append(f"not used, since their names are not those of photos: {count(other, 'file')}")
        names, ids = classes(photos)
        self.facts = {"classes": {TASK: names}} if names else {}
        labels = {TASK: ids} if names else {}
        paths, origin = [self.root / place for place in photos], [place.as_posix() for place in photos]
        return {"photos": Photos(paths, None, labels, origin, self.transform, self.on_bad_image == "skip")}

    def _nothing_here(self) -> str:
        """The one sentence for a folder without photos."""
        inside = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        there = f"there is: {', '.join(inside[:8]) or 'nothing'}" if self.root.is_dir() else "there is no such folder"
        return (
            f"No photos in {self.root.absolute()} ({there}): expected photos in a folder for each class, such as "
            "daisy/1.jpg, as Kaggle's Flowers Recognition has them, or any photos; set data_dir=<folder that holds "
            f"{self.root.name}/>, or sample=true to go on with drawn flowers"
        )

    def carve_val(self, splits: Splits, keys: Keys) -> Splits:
        """Train, val and test out of all photos: each once, as many of each class as are wanted, by seed."""
        photos = self._chosen(self._once(splits["photos"], keys))
        rest, test = aside(photos, self.test_share, self.seed)
        train, val = aside(rest, self.val_share / (1 - self.test_share), self.seed)
        self.notes.append(f"set aside by seed {self.seed}: {count(len(val), 'photo')} for val, {len(test):,} for test")
        return {"train": train, "val": val} | ({"test": test} if self.test_share else {})

    def _once(self, photos: Photos, keys: Keys) -> Photos:
        """The photos without copies; of one that lies in several class folders nobody knows the class."""
        groups = twins(photos, keys)
        if not groups:
            return photos
        torn = [group[0] for group in groups for ids in photos.labels.values() if len(np.unique(ids[group])) > 1]
        for ids in photos.labels.values():
            ids[torn] = MISSING
        copies = [place for group in groups for place in group[1:]]
        unsure = f", and {len(torn)} of them, which lie in several class folders, have no class" if torn else ""
        self.notes.append(f"these are taken once ({len(copies)} left out){unsure}")
        return without(photos, copies)

    def _chosen(self, photos: Photos) -> Photos:
        """`per_class` photos of each class, drawn by seed, or all there are."""
        if self.per_class is None:
            return photos
        if not photos.labels:
            raise ValueError(
                f"per_class={self.per_class}, but the photos in {self.root} lie in no class folders: set per_class=null"
            )
        ids, rng = photos.labels[TASK], np.random.default_rng((self.seed, len(photos)))
        for kind, name in enumerate(self.facts["classes"][TASK]):
            if (there := int((ids == kind).sum())) < self.per_class:
                self.notes.append(f"{name} has {count(there, 'photo')}, fewer than per_class={self.per_class}")
        order = rng.permutation(len(photos))
        chosen = [order[ids[order] == kind][: self.per_class] for kind in range(ids.max() + 1)]
        return photos.keep(np.sort(np.concatenate(chosen)))

    def survey(self, deep: bool = False) -> dict[str, Any]:
        """What there is and what was done about it; `photos` names those of each split, so that a run keeps its own."""
        names = {name: split.origin for name, split in self.splits.items()}
        return super().survey(deep) | {"photos": names}


def classes(places: Sequence[Path]) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the classes, and each photo's id: the first folder in which the paths differ.

    Args:
        places: of the photos, relative to their root.

    Returns:
        No names if there are no two such folders. The id is -1 for a photo that lies beside these folders.
    """
    folders = [place.parent.parts for place in places]
    depth = len(Path(os.path.commonpath([place.parent for place in places])).parts)
    kinds = [parts[depth] if len(parts) > depth else "" for parts in folders]
    names = sorted(set(kinds) - {""})
    ids = {name: at for at, name in enumerate(names)}
    return (names if len(names) > 1 else []), np.array([ids.get(kind, MISSING) for kind in kinds], dtype=np.int64)


def aside(photos: Photos, share: float, seed: int) -> tuple[Photos, Photos]:
    """The photos in two, the second with a share of each class (of all photos, if there are no classes), by seed.

    Classes lie side by side, their photos in random order, and every so many are taken: no class is off by more than 1.
    """
    rng = np.random.default_rng((seed, len(photos)))
    kinds = photos.labels.get(TASK, np.zeros(len(photos), dtype=np.int64))
    line, wanted = np.lexsort((rng.random(len(photos)), kinds)), round(share * len(photos))
    steps = (np.arange(wanted) + rng.random()) * (len(photos) / max(1, wanted))
    held = np.sort(line[steps.astype(int)])
    return without(photos, held.tolist()), photos.keep(held)
