"""CIFAR-10: 60,000 images of 32 x 32 pixels in ten classes, in the six pickled batches in which they are published."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10 as Published  # for the published files' names, checksums and address

from datamodules.array_base import TASK, ArrayDataModule
from datamodules.array_splits import ArraySplits
from datamodules.arrays import Arrays, Block
from datamodules.downloads import fetch
from datamodules.images import Pixels
from datamodules.pickles import read_pickle, text
from datamodules.samples import cifar10 as sample
from datamodules.tables import refuse

SIDE = 32
ROW = 3 * SIDE * SIDE  # bytes of an image: its red, green and blue plane, row by row
FOLDER = Published.base_folder
NAMES = Published.meta["filename"]
SPLITS = {"train": dict(Published.train_list), "test": dict(Published.test_list)}  # file to md5


class CIFAR10(ArrayDataModule):
    """The files of `cifar-10-batches-py/`: data_batch_1 to 5, test_batch, batches.meta; all images held in memory.

    A copy that differs from the published files is read all the same if it has their layout, with a note. The pickles
    are read by a reader that runs nothing.

    Reference: Krizhevsky, 2009.

    Args:
        root: folder that holds `cifar-10-batches-py/`.
        batch_size: of the whole, over all devices.
        seed: of order, augmentation, validation split and subsets.
        threads: that gather images into batches.
        on_leak: error, drop or warn about an image in two splits.
        val_share: share of the training images that becomes val; 0 for none.
        train_images: size of a subset to train on, classes in proportion; null for all.
        test_images: size of a subset to test on; null for all.
        download: fetch the published files if there is no folder of them.
        augment: random changes of training, see `BatchAugment`; null for none.
        labels: what becomes of the labels of train, see `Revision`; null leaves them alone.
        unlabelled: photos beside those of each training batch, see `Mixture`; null for none.

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
        val_share: float,
        train_images: int | None = None,
        test_images: int | None = None,
        download: bool = False,
        augment: Mapping[str, Any] | None = None,
        labels: Mapping[str, Any] | None = None,
        unlabelled: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            root, SIDE, batch_size, seed, threads, on_leak, val_share, train_images, test_images, augment,
            labels, unlabelled,
        )  # fmt: skip
        self.download = download

    @classmethod
    def draw_sample(cls, root: Path, seed: int = 0) -> None:
        """Draw a small set in this layout into `root`; one that is there is kept."""
        sample.draw(Path(root), seed)

    def prepare_data(self) -> None:
        """Download the published files, if that was asked for and they are not there."""
        if self.download:
            fetch(Published.url, Published.tgz_md5, self.root, FOLDER)

    def read(self) -> ArraySplits:
        """The training and the test images.

        Raises:
            FileNotFoundError: the folder or a file of it is missing.
            ValueError: a file that is no batch of images.
        """
        folder = self.folder("CIFAR-10", FOLDER, [*SPLITS["train"], *SPLITS["test"], NAMES])
        names = self._class_names(folder / NAMES)
        self.facts = {"classes": {TASK: names}}
        splits = {split: self._split(folder, files, len(names)) for split, files in SPLITS.items()}
        files = {folder / name: md5 for split in SPLITS.values() for name, md5 in split.items()}
        other = sum(md5_of(path) != md5 for path, md5 in files.items())
        if other:
            self.notes.append(
                f"{other} of {len(files)} batch files are not as published (md5), so results need not compare with "
                "those of others"
            )
        return splits

    @staticmethod
    def _class_names(path: Path) -> list[str]:
        names = read_pickle(path).get("label_names")
        if not isinstance(names, list) or len(names) < 2:
            raise ValueError(f"{path} has no list label_names of the classes: copy it again")
        return [text(name) for name in names]

    def _split(self, folder: Path, files: Iterable[str], classes: int) -> Arrays:
        """The images of some batch files as one block."""
        paths = [folder / name for name in files]
        pixels, labels = zip(*(read_batch(path, classes) for path in paths), strict=True)
        sizes = [(path, len(ids)) for path, ids in zip(paths, labels, strict=True)]
        block = Block(np.concatenate(pixels), sizes)
        return Arrays([block], np.arange(len(block.pixels)), {TASK: np.concatenate(labels)}, self.augment)


def md5_of(path: Path) -> str:
    """Checksum of a file's content, as the publishers give it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def read_batch(path: Path, classes: int) -> tuple[Pixels, NDArray[np.int64]]:
    """Images (n, 32, 32, 3) and class ids (n,) of a batch file.

    Args:
        path: of the file.
        classes: number of classes that there are.

    Raises:
        ValueError: it is no batch, or a label is out of range.
    """
    found = read_pickle(path)
    data, labels = found.get("data"), np.asarray(found.get("labels", ()))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (ROW,):
        what = f"a {data.dtype} array of shape {data.shape}" if isinstance(data, np.ndarray) else "no array"
        raise ValueError(f"{path}: its data are {what}, where rows of {ROW} bytes (3 x 32 x 32) are due: copy it again")
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu" or not len(data):
        raise ValueError(f"{path} has {labels.size:,} labels for {len(data):,} images: copy it again")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    refuse([f"{path.name}/{at}: label {labels[at]}" for at in wrong], f"labels run from 0 to {classes - 1} in {path}")
    planes = data.reshape(-1, 3, SIDE, SIDE)
    pixels = np.empty((len(data), SIDE, SIDE, 3), np.uint8)
    for channel in range(3):  # a quarter of a transposed copy's time
        pixels[..., channel] = planes[:, channel]
    return pixels, labels.astype(np.int64)
