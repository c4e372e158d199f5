"""STL-10: few labelled and many unlabelled images of 96 x 96 pixels, in binary files that are mapped, not read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import STL10 as Published  # for the published files' names, checksum and address

from datamodules.array_base import TASK, ArrayDataModule
from datamodules.array_splits import ArraySplits, in_proportion
from datamodules.arrays import Arrays, Block, Places
from datamodules.downloads import fetch
from datamodules.images import Pixels
from datamodules.samples import stl10 as sample
from datamodules.splits import count
from datamodules.tables import MISSING, refuse

SIDE = 96
SIZE = 3 * SIDE * SIDE  # bytes of an image: its red, green and blue plane, column by column
FOLDER = Published.base_folder
NAMES, FOLDS = Published.class_names_file, Published.folds_list_file
TRAINED = ("train", "train+unlabeled", "unlabeled")
PUBLISHED = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}  # images


class STL10(ArrayDataModule):
    """The files of `stl10_binary/`: train and test with labels, unlabeled without, all memory-mapped.

    `split` says what is trained on. Validation is a seeded share of the labelled training images (of the fold, where
    one is chosen) and is kept out of the training split also where labels are not used, since splits are disjoint
    here. Images without a label have the label -1, as have those whose label `label_share` takes away; where only
    labelled images are trained on, these are left out instead.

    Reference: Coates, Ng and Lee, 2011.

    Args:
        root: folder that holds `stl10_binary/`.
        batch_size: of the whole, over all devices.
        seed: of order, augmentation, validation split and subsets.
        threads: that gather images into batches.
        on_leak: error, drop or warn about an image in two splits.
        split: what is trained on: train, train+unlabeled or unlabeled.
        fold: one of the ten published folds of 1,000 training images, 0 to 9; null for all 5,000.
        val_share: share of the labelled training images that becomes val; 0 for none.
        label_share: share of the labels left after that which may be used, each class in proportion and at least once.
        train_images: size of a subset to train on; null for all.
        test_images: size of a subset to test on; null for all.
        download: fetch the published files if there is no folder of them.
        augment: random changes of training, see `BatchAugment`; null for none.

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
        split: str,
        fold: int | None,
        val_share: float,
        label_share: float = 1.0,
        train_images: int | None = None,
        test_images: int | None = None,
        download: bool = False,
        augment: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(root, SIDE, batch_size, seed, threads, on_leak, val_share, train_images, test_images, augment)
        if split not in TRAINED:
            raise ValueError(f"split={split!r} is not one of {', '.join(TRAINED)}")
        if fold is not None and (type(fold) is not int or not 0 <= fold <= 9):
            raise ValueError(f"fold={fold!r} is not one of 0 to 9, nor null for all labelled images")
        if isinstance(label_share, bool) or not isinstance(label_share, int | float) or not 0 < label_share <= 1:
            raise ValueError(f"label_share={label_share!r} is not a share above 0 and at most 1")
        self.trained_on, self.fold, self.label_share, self.download = split, fold, label_share, download

    @classmethod
    def draw_sample(cls, root: Path, seed: int = 0) -> None:
        """Draw a small set in this layout into `root`; one that is there is kept."""
        sample.draw(Path(root), seed)

    def prepare_data(self) -> None:
        """Download the published files (2.6 GB), if that was asked for and they are not there."""
        if self.download:
            fetch(Published.url, Published.tgz_md5, self.root, FOLDER)

    def read(self) -> ArraySplits:
        """The training images (with or without the unlabelled ones) and the test images.

        Raises:
            FileNotFoundError: the folder or a file of it is missing.
            ValueError: a file of a wrong size, a label or a place in a fold out of range.
        """
        labelled = [f"{name}_{part}.bin" for name in ("train", "test") for part in "Xy"]
        others = ["unlabeled_X.bin"] * (self.trained_on != "train") + [FOLDS] * (self.fold is not None)
        folder = self.folder("STL-10", FOLDER, [*labelled, NAMES, *others])
        lines = (folder / NAMES).read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        if len(names) < 2:
            raise ValueError(f"{folder / NAMES} has {len(names)} class name(s), a line for each is due: copy it again")
        self.facts = {"classes": {TASK: names}}
        splits = {name: self._labelled(folder, name, len(names)) for name in ("train", "test")}
        if self.fold is not None:
            splits["train"] = splits["train"].keep(read_fold(folder / FOLDS, self.fold, len(splits["train"])))
        if self.trained_on != "train":
            splits["train"] = self._with_unlabeled(splits["train"], folder / "unlabeled_X.bin")
        self._note_sizes(splits)
        return splits

    def _labelled(self, folder: Path, name: str, classes: int) -> Arrays:
        pixels, labels = map_images(folder / f"{name}_X.bin"), read_labels(folder / f"{name}_y.bin", classes)
        if len(pixels) != len(labels):
            raise ValueError(
                f"{folder}: {name}_X.bin has {count(len(pixels), 'image')} and {name}_y.bin "
                f"{count(len(labels), 'label')}: one of them was cut short, copy them again"
            )
        block = Block(pixels, [(folder / f"{name}_X.bin", len(pixels))])
        return Arrays([block], np.arange(len(pixels)), {TASK: labels}, self.augment)

    def _with_unlabeled(self, train: Arrays, path: Path) -> Arrays:
        pixels = map_images(path)
        (block,) = train.blocks
        rows = np.concatenate([train.rows, len(block.pixels) + np.arange(len(pixels))])
        labels = np.concatenate([train.labels[TASK], np.full(len(pixels), MISSING)])
        return Arrays([block, Block(pixels, [(path, len(pixels))])], rows, {TASK: labels}, self.augment)

    def _note_sizes(self, splits: ArraySplits) -> None:
        """A copy of another size is read, but said."""
        files = {path.name: n for split in splits.values() for block in split.blocks for path, n in block.files}
        other = [
            f"{name}_X.bin has {count(files[f'{name}_X.bin'], 'image')} ({n:,} as published)"
            for name, n in PUBLISHED.items()
            if files.get(f"{name}_X.bin", n) != n
        ]
        if other:
            self.notes.append(f"{', '.join(other)}, so results need not compare with those of others")

    def trained(self, train: Arrays) -> Arrays:
        """The images of `split`, with the labels that `label_share` leaves."""
        labels = train.labels[TASK]
        labelled = np.flatnonzero(labels >= 0)
        if self.trained_on == "unlabeled":
            return train.keep(np.flatnonzero(labels < 0))
        if self.label_share == 1:
            return train
        few = max(len(np.unique(labels[labelled])), round(self.label_share * len(labelled)))
        chosen = np.sort(labelled[in_proportion(labels[labelled], self.seed)[:few]])
        self.notes.append(f"train: {few:,} of {count(len(labelled), 'label')} used (seed {self.seed})")
        if self.trained_on == "train":
            return train.keep(chosen)
        known = np.isin(np.arange(len(train)), chosen)
        fewer = train.keep(np.arange(len(train)))
        fewer.labels = {TASK: np.where(known, labels, MISSING)}
        return fewer


def map_images(path: Path) -> Pixels:
    """All images (n, 96, 96, 3) of a file, memory-mapped.

    Raises:
        ValueError: its size is not that of a number of images.
    """
    size = path.stat().st_size
    if not size or size % SIZE:
        raise ValueError(
            f"{path} has {size:,} bytes, where images of 3 x {SIDE} x {SIDE} = {SIZE:,} bytes are due: it was cut "
            "short or has images of another size, so copy or download it again"
        )
    return np.memmap(path, np.uint8, "r").reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)


def read_labels(path: Path, classes: int) -> Places:
    """Class ids (n,) from 0 of a file that has a byte for each, counting from 1.

    Raises:
        ValueError: a label is out of range.
    """
    labels = np.fromfile(path, np.uint8)
    wrong = np.flatnonzero((labels < 1) | (labels > classes))
    refuse([f"{path.name}/{at}: label {labels[at]}" for at in wrong], f"labels run from 1 to {classes} in {path}")
    return labels.astype(np.int64) - 1


def read_fold(path: Path, fold: int, images: int) -> Places:
    """Places of the training images of a published fold, in rising order.

    Raises:
        ValueError: no such line, something in it that is no number, or a place where there is no image.
    """
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    words = lines[fold].split() if fold < len(lines) else []
    if not words:
        raise ValueError(f"{path} has no line {fold + 1} for fold={fold}: copy it again, or set fold=null")
    wrong = [word for word in words if not (word.isascii() and word.isdigit() and int(word) < images)]
    where = f"{path.name} line {fold + 1}"
    refuse([f"{where}: {word!r}" for word in wrong], f"places run from 0 to {images - 1} in train_X.bin; copy it again")
    return np.unique(np.array(words, dtype=np.int64))
