"""What every DataModule of arrays shares: splits and their checks, loaders, changes on the device, and the survey."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from datamodules.array_splits import (
    ArraySplits,
    carve,
    equal_pictures,
    in_proportion,
    leak_sentence,
    leaks,
    number_contents,
    twin_notes,
)
from datamodules.array_transforms import BatchAugment
from datamodules.arrays import Arrays
from datamodules.base import POLICIES
from datamodules.companions import Mixture
from datamodules.loader import Loaders
from datamodules.photos import Batch, Photos
from datamodules.revision import Revision
from datamodules.splits import HELD_OUT, class_counts, count, label_notes, one_class, settle_leak, without
from datamodules.transforms import Transform

TASK = "class"


class ArrayDataModule(Loaders):
    """Images of one size in arrays, one class each; a subclass says in `read` which arrays.

    Building one touches no disk. After `setup`: `splits` (name to Arrays), `facts` and `notes`.

    Args:
        root: folder of the data set.
        side: of the images, in pixels.
        batch_size: of the whole, over all devices.
        seed: of order, augmentation, validation split and subsets.
        threads: that gather images into batches.
        on_leak: what to do about an image in two splits: error, drop (from train, then val, never test) or warn.
        val_share: share of the labelled training images that becomes val; 0 for none.
        train_images: size of a subset to train on, classes in proportion; null for all.
        test_images: size of a subset to test on; null for all.
        augment: random changes of training, see `BatchAugment`; null for none.
        labels: what becomes of the labels of train, see `Revision`; null leaves them alone.
        unlabelled: images beside those of each training batch, see `Mixture`; null for none.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        root: str | Path,
        side: int,
        batch_size: int,
        seed: int,
        threads: int,
        on_leak: str,
        val_share: float,
        train_images: int | None = None,
        test_images: int | None = None,
        augment: Mapping[str, Any] | None = None,
        labels: Mapping[str, Any] | None = None,
        unlabelled: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.subsets = {"train": train_images, "test": test_images}
        sizes = {"batch_size": batch_size, "threads": threads, "train_images": train_images, "test_images": test_images}
        for name, size in sizes.items():
            everything = size is None and name.endswith("_images")
            if not everything and (type(size) is not int or size < 1):
                raise ValueError(f"{name}={size!r} is not a whole number of at least 1")
        if on_leak not in POLICIES["on_leak"]:
            raise ValueError(f"on_leak={on_leak!r} is not one of {', '.join(POLICIES['on_leak'])}")
        if isinstance(val_share, bool) or not isinstance(val_share, int | float) or not 0 <= val_share < 1:
            raise ValueError(f"val_share={val_share!r} is not a share of train between 0 and 1")
        self.root, self.augment = Path(root), BatchAugment.of(augment, side)
        self.transform = Transform(side, "crop")  # of photos that are not in the set
        self.batch_size, self.seed, self.threads = batch_size, seed, threads
        self.on_leak, self.val_share = on_leak, val_share
        self.splits: ArraySplits = {}
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []
        self.weights = None
        self.revision, self.planted, self.mixture = Revision.of(labels), {}, Mixture.of(unlabelled)
        self.fake_class = self.dropped = None

    def read(self) -> ArraySplits:
        """`train` and `test` as the data set has them, checked; sets `facts`."""
        raise NotImplementedError

    def folder(self, title: str, name: str, files: Sequence[str]) -> Path:
        """The folder of the set's files, all of which are there.

        Raises:
            FileNotFoundError: it is missing, or some of them are.
        """
        folder = self.root / name
        missing = [file for file in files if not (folder / file).is_file()]
        if folder.is_dir() and missing:
            raise FileNotFoundError(
                f"{folder} has no {', '.join(missing)}: copy them there, or move the folder away and set download=true"
            )
        if missing:
            raise FileNotFoundError(
                f"No {title} in {self.root.absolute()}: expected {name}/ with {', '.join(files)}; set download=true in "
                f"its data config to fetch it, data_dir=<folder that holds {self.root.name}/>, or sample=true to go on "
                "with drawn images"
            )
        return folder

    def trained(self, train: Arrays) -> Arrays:
        """What of the training split is trained on, after val was set aside."""
        return train

    @classmethod
    def draw_sample(cls, root: Path, seed: int = 0) -> None:
        """Draw a small set in the data set's layout into `root`."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read and check the arrays; done once.

        Raises:
            FileNotFoundError: the data set is not there.
            ValueError: anything wrong with it, by file and place.
        """
        if self.splits:
            return
        self.notes = []
        splits = self.read()
        number_contents(splits)
        for name, split in splits.items():
            self.notes += twin_notes(name, split)
        splits = self._carved(splits)
        splits["train"] = self.trained(splits["train"])
        splits = self._disjoint(splits)
        splits = {name: self._subset(name, split) for name, split in splits.items()}
        train = splits["train"]
        splits["train"] = self.revise(train, [train.name(at) for at in range(len(train))])
        self._check(splits)
        self.splits = self.mix(splits)

    def _carved(self, splits: ArraySplits) -> ArraySplits:
        """The splits with a seeded share of train as val, each class in proportion."""
        if not self.val_share:
            return splits
        train = splits["train"]
        kept, aside = carve(train, train.labels[TASK], self.val_share, self.seed)
        self.notes.append(f"val: {count(len(aside), 'image')} of train set aside (seed {self.seed})")
        return {"train": train.keep(kept), "val": train.keep(aside), "test": splits["test"]}

    def _disjoint(self, splits: ArraySplits) -> ArraySplits:
        """The splits after `on_leak`."""
        found = leaks(splits)
        if not found:
            return splits
        self.notes.append(settle_leak(leak_sentence(splits, found), self.on_leak))
        if self.on_leak == "warn":
            return splits
        left = {name: np.delete(np.arange(len(split)), found.get(name, [])) for name, split in splits.items()}
        return {name: split.keep(left[name]) for name, split in splits.items()}

    def _subset(self, name: str, split: Arrays) -> Arrays:
        """As many images as asked for, each class in proportion, in the order of the files."""
        wanted = self.subsets.get(name)
        if wanted is None:
            return split
        if wanted > len(split):
            raise ValueError(f"{name}_images={wanted} is more than the {count(len(split), 'image')} that {name} has")
        self.notes.append(f"{name}: {wanted:,} of {count(len(split), 'image')} used (seed {self.seed})")
        return split.keep(np.sort(in_proportion(split.labels[TASK], self.seed)[:wanted]))

    def _check(self, splits: ArraySplits) -> None:
        for name, split in splits.items():
            if not len(split):
                raise ValueError(f"{name} is empty: no image of it is left in {self.root}")
            if (split.labels[TASK] >= 0).any():
                self.notes += label_notes(name, split, self.facts["classes"])
            else:
                self.notes.append(f"{name}: no image has a label")
        if (splits["train"].labels[TASK] >= 0).any():
            one_class(splits["train"], self.facts["classes"])

    def strangers(self, paths: Sequence[Path], splits: Mapping[str, Any]) -> Photos:
        """Photos of some folder as a split, made as small as the images; none that is held out, pixel by pixel."""
        photos = Photos(paths, None, {}, [str(path) for path in paths], self.transform)
        held_out = {name: split for name, split in splits.items() if name in HELD_OUT["unlabelled"]}
        pairs = equal_pictures(photos, held_out)
        if not pairs:
            return photos
        first = min(pairs)
        sentence = f"{count(len(pairs), 'photo')} of unlabelled also held out, first {paths[first]} = {pairs[first]}"
        self.notes.append(settle_leak(sentence, self.on_leak))
        return photos if self.on_leak == "warn" else without(photos, list(pairs))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Change training images at random, all at once, on the device; batches of evaluation carry no draws."""
        if "draws" not in batch:
            return batch
        rest = {key: value for key, value in batch.items() if key != "draws"}
        return rest | {"image": self.augment(batch["image"], batch["draws"])}

    def name(self, split: str, index: int) -> str:  # type: ignore[override]  # Lightning leaves its `name` unused
        """File of an image and its place in the file, counted from 0, such as `test_batch/17`."""
        return cast(str, self.split(split).name(index))

    def survey(self, deep: bool = False) -> dict[str, Any]:
        """What there is and what was done about it; `deep` finds nothing more, for every image was looked at."""
        self.setup()
        names: Mapping[str, Sequence[str]] = self.facts["classes"]
        classes = {name: class_counts(split.labels, names) for name, split in self.splits.items()}
        counts = {name: len(split) for name, split in self.splits.items()}
        return {"root": str(self.root), "counts": counts, "classes": classes, "notes": list(self.notes)}
