"""What every DataModule of photos shares: checks between a table and the first epoch, loaders, and the survey."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from datamodules import images
from datamodules.companions import Mixture
from datamodules.loader import Loaders
from datamodules.photos import Photos, describe
from datamodules.revision import Revision
from datamodules.splits import (
    Splits,
    carve,
    class_counts,
    count,
    label_notes,
    leak_sentence,
    leaks,
    one_class,
    settle_leak,
    twin_notes,
    without,
)
from datamodules.tables import refuse
from datamodules.transforms import Transform

POLICIES = {"on_leak": ("error", "drop", "warn"), "on_bad_image": ("error", "skip")}
BAD_IMAGE_CURE = "replace these files, take out their rows, or set on_bad_image=skip"
OUTSIDE = 0.5  # a box with less of its area than this inside the photo is a mistake, not a box at the edge


class ImageDataModule(Loaders):
    """Photos in splits, checked before the first epoch; a subclass says in `read` where they are.

    Building one touches no disk.
    After `setup`: `splits` (name to Photos), `facts` (what only the data knows) and `notes` (sentences on what was
    found and done).

    Args:
        root: folder of the data set.
        transform: pixels to the square that a network sees, with the random changes of training.
        batch_size: of the whole, over all devices.
        seed: of order, augmentation and carved splits.
        threads: that decode.
        on_leak: what to do about a photo in two splits: error, drop (from train, then val, never test) or warn.
        on_bad_image: what to do about a broken photo: error, or skip it and count it.
        val_share: share of train that becomes val where the data set has no val; 0 for none.
        labels: what becomes of the labels of train, see `Revision`; null leaves them alone.
        unlabelled: photos beside those of each training batch, see `Mixture`; null for none.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Transform,
        batch_size: int,
        seed: int,
        threads: int,
        on_leak: str,
        on_bad_image: str,
        val_share: float = 0.0,
        labels: Mapping[str, Any] | None = None,
        unlabelled: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, size in {"batch_size": batch_size, "threads": threads}.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}={size!r} is not a whole number of at least 1")
        for name, policy in {"on_leak": on_leak, "on_bad_image": on_bad_image}.items():
            if policy not in POLICIES[name]:
                raise ValueError(f"{name}={policy!r} is not one of {', '.join(POLICIES[name])}")
        if not isinstance(val_share, int | float) or not 0 <= val_share < 1:
            raise ValueError(f"val_share={val_share!r} is not a share of train between 0 and 1")
        self.root, self.transform = Path(root), transform
        self.batch_size, self.seed, self.threads = batch_size, seed, threads
        self.on_leak, self.on_bad_image, self.val_share = on_leak, on_bad_image, val_share
        self.splits: Splits = {}
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []
        self.weights = None
        self.revision, self.planted, self.mixture = Revision.of(labels), {}, Mixture.of(unlabelled)
        self.fake_class = self.dropped = None

    def read(self) -> Splits:
        """The splits as the data set lists them, before any look at the photos; sets `facts`."""
        raise NotImplementedError

    @classmethod
    def draw_sample(cls, root: Path, seed: int = 0) -> None:
        """Draw a small set in the data set's layout into `root`."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the tables and check every photo cheaply; done once.

        Raises:
            FileNotFoundError: the data set is not there.
            ValueError: anything wrong with it, by file and row.
        """
        if self.splits:
            return
        self.notes = []
        splits = self.read()
        scans = images.scan_all((path for photos in splits.values() for path in photos.paths), self.threads)
        splits = {name: self._sound(name, photos, scans) for name, photos in splits.items()}
        keys = images.same_content({path: scans[path] for photos in splits.values() for path in photos.paths})
        for name, photos in splits.items():
            self.notes += twin_notes(name, photos, keys)
        if "val" not in splits and self.val_share:
            splits = self.carve_val(splits, keys)
        splits = self.disjoint(splits, keys)
        paths = [path.relative_to(self.root).as_posix() for path in splits["train"].paths]
        splits = self.view({**splits, "train": self.revise(splits["train"], paths)})
        self.check(splits)
        self.splits = self.mix(splits)

    def check(self, splits: Splits) -> None:
        """Last look at the splits before they are used.

        Raises:
            ValueError: a split is empty, or a task has one class only.
        """
        for name, photos in splits.items():
            if not len(photos):
                raise ValueError(f"{name} is empty: no photo of it is listed or left in {self.root}")
            self.notes += label_notes(name, photos, self.facts.get("classes", {}))
        one_class(splits["train"], self.facts.get("classes", {}))

    def _sound(self, name: str, photos: Photos, scans: Mapping[Path, images.Scan]) -> Photos:
        """The split without broken photos (or an error), its boxes cut off at the photos' edges."""
        bad = [at for at, path in enumerate(photos.paths) if scans[path].fault]
        faults = [describe(photos, at, scans[photos.paths[at]].fault) for at in bad]
        if self.on_bad_image == "error":
            refuse(faults, BAD_IMAGE_CURE)
        elif bad:
            self.notes.append(f"{name}: {count(len(bad), 'broken photo')} skipped, first {faults[0]}")
            photos = without(photos, bad)
        return photos if photos.boxes is None else self._boxed(name, photos, scans)

    def _boxed(self, name: str, photos: Photos, scans: Mapping[Path, images.Scan]) -> Photos:
        sizes = np.array([scans[path].size for path in photos.paths], dtype=float).reshape(-1, 2)
        inside = np.clip(photos.boxes, 0, np.tile(sizes, 2)) if photos.boxes is not None else np.zeros((0, 4))
        share = _areas(inside) / _areas(cast(Any, photos.boxes))
        faults = [
            f"{photos.origin[at]}: the box {photos.box(at)} lies outside of {photos.paths[at].name}, which has "
            f"{sizes[at, 0]:g} x {sizes[at, 1]:g} pixels"
            for at in np.flatnonzero(share < OUTSIDE).tolist()
        ]
        refuse(faults, "boxes are in pixels of the upright photo; correct these rows")
        over = np.flatnonzero(share < 1)
        if len(over):
            first = photos.origin[over[0]]
            self.notes.append(f"{name}: boxes that reach over the photo's edge were cut: {len(over):,}, first {first}")
        photos.boxes = inside
        return photos

    def carve_val(self, splits: Splits, keys: Mapping[Path, bytes]) -> Splits:
        """The splits with a seeded share of train as val."""
        train = splits["train"]
        kept, held = carve(train.labels, [keys[path] for path in train.paths], self.val_share, self.seed)
        aside = f"{count(len(held), 'photo')} of train set aside (seed {self.seed})"
        self.notes.append(f"val: there is no validation file, so it is {aside}")
        return {**splits, "train": train.keep(kept), "val": train.keep(held)}

    def disjoint(self, splits: Splits, keys: Mapping[Path, bytes]) -> Splits:
        """The splits after `on_leak`."""
        found = leaks(splits, keys)
        if not found:
            return splits
        self.notes.append(settle_leak(leak_sentence(splits, keys, found), self.on_leak))
        if self.on_leak == "warn":
            return splits
        return {name: without(photos, found.get(name, [])) for name, photos in splits.items()}

    def view(self, splits: Splits) -> Splits:
        """What of the splits, or of their labels, is wanted, where a data set has several views."""
        return splits

    def strangers(self, paths: Sequence[Path], splits: Mapping[str, Photos]) -> Photos:
        """Photos of some folder as a split: sound ones, and none that is held out."""
        photos = Photos(paths, None, {}, [str(path) for path in paths], self.transform, self.on_bad_image == "skip")
        held_out = {name: splits[name] for name in ("val", "test", "predict") if name in splits}
        files = [path for split in (photos, *held_out.values()) for path in split.paths]
        scans = images.scan_all(files, self.threads)
        photos = self._sound("unlabelled", photos, scans)
        found = leaks({"unlabelled": photos, **held_out}, images.same_content(scans))
        if not found.get("unlabelled"):
            return photos
        found = {"unlabelled": found["unlabelled"]}
        sentence = leak_sentence({"unlabelled": photos, **held_out}, images.same_content(scans), found)
        self.notes.append(settle_leak(sentence, self.on_leak))
        return photos if self.on_leak == "warn" else without(photos, found["unlabelled"])

    def name(self, split: str, index: int) -> str:  # type: ignore[override]  # Lightning leaves its `name` unused
        """Path of a photo, relative to the root."""
        return self.split(split).paths[index].relative_to(self.root).as_posix()

    def survey(self, deep: bool = False) -> dict[str, Any]:
        """What there is and what was done about it.

        Args:
            deep: decode every photo whole, to name those that only look sound.

        Raises:
            ValueError: such a photo, unless broken ones are to be skipped.
        """
        self.setup()
        names: Mapping[str, Sequence[str]] = self.facts.get("classes", {})
        classes = {split: class_counts(photos.labels, names) for split, photos in self.splits.items()}
        counts = {split: len(photos) for split, photos in self.splits.items()}
        notes = [*self.notes, *(self._decode_all() if deep else [])]
        return {"root": str(self.root), "counts": counts, "classes": classes, "notes": notes}

    def _decode_all(self) -> list[str]:
        with ThreadPoolExecutor(self.threads) as pool:
            found = {name: list(pool.map(images.fault, photos.paths)) for name, photos in self.splits.items()}
        faults = ((self.splits[name], at, fault) for name, all_ in found.items() for at, fault in enumerate(all_))
        broken = [describe(photos, at, fault) for photos, at, fault in faults if fault]
        if self.on_bad_image == "error":
            refuse(broken, BAD_IMAGE_CURE)
        return broken


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)
