"""FASCODE: clothed people with a box and three attributes (ETRI, 2022), and any other set in the same layout."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import ImageDataModule
from datamodules.photos import Photos
from datamodules.samplers import balance_weights
from datamodules.samples import fascode as sample
from datamodules.splits import Splits, count
from datamodules.tables import Classes, Table, class_names, number, read_boxes, read_labels, read_table
from datamodules.transforms import Augment, Transform

BOX = ("BBox_xmin", "BBox_ymin", "BBox_xmax", "BBox_ymax")
SPELLINGS = {"train": ("train", "training"), "val": ("valid", "validation", "val"), "test": ("test", "testing")}
TABLE_NAME = "info_etri20_emotion_{}.csv"
TABLE = re.compile(re.escape(TABLE_NAME).replace(re.escape("{}"), "(.+)"), re.IGNORECASE)
NAMES = "classes.csv"  # optional: task, id, name
CROPS = ("box", "photo")
PHOTO = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def _split_of(name: str) -> str | None:
    """Which split a file or folder name spells."""
    return next((split for split, spellings in SPELLINGS.items() if name.casefold() in spellings), None)


def _only(root: Path, found: Mapping[str, Sequence[Path]]) -> dict[str, Path]:
    """The one path of each split; two spellings of one split are refused."""
    for split, paths in found.items():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            raise ValueError(f"{root} has {both}, which both spell the {split} split: keep one of them")
    return {split: paths[0] for split, paths in found.items() if paths}


def _spelt(split: str, form: str) -> str:
    """All accepted names of a split's file or folder."""
    return " or ".join(form.format(name if ".csv" in form else name.capitalize()) for name in SPELLINGS[split])


def _holds_a_split(path: Path) -> bool:
    """Whether something of an unknown name looks like a split: a CSV of photos, or a folder with photos in it."""
    if path.name.startswith((".", "__")):
        return False
    if path.is_dir():
        return any(file.suffix.lower() in PHOTO for pattern in ("*", "*/*") for file in path.glob(pattern))
    if path.suffix.lower() != ".csv":
        return False
    with path.open("rb") as file:
        return b"image_name" in file.readline()


class FASCODE(ImageDataModule):
    """Clothed people, several attributes each, in the layout of the ETRI fashion challenge.

    `info_etri20_emotion_{train,valid,test}.csv` list image_name (under `Train/`, `Valid/`, `Test/`, sub-folders
    allowed), the person's box, and a column of class ids or names for each task. A test file without labels becomes
    the split `predict`. An optional `classes.csv` (task, id, name) names the ids.

    Reference: ETRI fashion attribute challenge, 2022; handed out by ETRI under terms of its own.

    Args:
        root: folder that holds the CSV files.
        batch_size: of the whole, over all devices.
        seed: of order, augmentation and a carved validation split.
        threads: that decode.
        on_leak: error, drop or warn about a photo in two splits.
        on_bad_image: error, or skip a broken photo.
        image_size: side of the square, in pixels.
        crop: `box` shows the box, `photo` the whole photo (box columns are then not needed).
        margin: around the box on each side, as a share of its size.
        fit: letterbox, squash or crop.
        val_share: share of train that is set aside where there is no validation file.
        classes: for each task a number of ids, names in the order of the ids, or null for those in the training file.
        balance: floor and ceiling of a class in an epoch (images, or a share of train); null for every photo once.
        augment: strengths of the random changes, see `Augment`.
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
        on_bad_image: str,
        image_size: int,
        crop: str,
        margin: float,
        fit: str,
        val_share: float,
        classes: Mapping[str, Classes],
        balance: Mapping[str, float | None] | None = None,
        augment: Mapping[str, float] | None = None,
        labels: Mapping[str, Any] | None = None,
        unlabelled: Mapping[str, Any] | None = None,
    ) -> None:
        transform = Transform(image_size, fit, margin if crop == "box" else 0.0, Augment.of(augment))
        super().__init__(
            root, transform, batch_size, seed, threads, on_leak, on_bad_image, val_share, labels, unlabelled
        )
        if crop not in CROPS:
            raise ValueError(f"crop={crop!r} is not one of {', '.join(CROPS)}")
        if not classes:
            raise ValueError("classes is empty: name at least one task, such as classes={Daily: 7}")
        self.crop, self.classes, self.balance = crop, dict(classes), balance
        self.folders: dict[str, Path] = {}

    @classmethod
    def draw_sample(cls, root: Path, seed: int = 0) -> None:
        """Draw a small set in this layout, with planted wrong labels, into `root`; one that is there is kept."""
        sample.draw(Path(root), seed)

    def read(self) -> Splits:
        """The splits as the CSV files list them.

        Raises:
            FileNotFoundError: no training file or no folder of photos.
            ValueError: a file with something wrong in it, or a split under a name that is not known.
        """
        files = self._files()
        tables = {split: read_table(path) for split, path in files.items()}
        given = self._given_names()
        train = tables["train"]
        settings = {**self.classes, **given}
        names = {task: class_names(task, settings[task], train.column(task)) for task in self.classes}
        self.facts = {"classes": names}
        if "test" in tables and not self._labelled(tables["test"]):
            tables["predict"] = tables.pop("test")
            self.notes.append(f"{files['test'].name} has no labels, so it is predicted and there are no test figures")
        return {split: self._photos(split, table, names) for split, table in tables.items()}

    def _files(self) -> dict[str, Path]:
        """CSV file of each split; also finds the folders of photos."""
        inside = sorted(self.root.iterdir()) if self.root.is_dir() else []
        files: dict[str, list[Path]] = {split: [] for split in SPELLINGS}
        folders: dict[str, list[Path]] = {split: [] for split in SPELLINGS}
        strange = []
        for path in inside:
            table = TABLE.fullmatch(path.name)
            split = _split_of(table[1] if table else path.name)
            if split and (table or path.is_dir()):
                (files if table else folders)[split].append(path)
            elif table or _holds_a_split(path):
                strange.append(path.name)
        found, self.folders = _only(self.root, files), _only(self.root, folders)
        if "train" not in found:
            raise FileNotFoundError(self._nothing_here([path.name for path in inside]))
        self._refuse_strange(found, strange)
        for split in found.keys() - self.folders.keys():
            raise FileNotFoundError(f"{found[split]} is there, but no folder {_spelt(split, '{}/')} with its photos")
        return found

    def _refuse_strange(self, files: Mapping[str, Path], strange: list[str]) -> None:
        """A validation split under an unknown name must not end in one that is silently carved from train."""
        idle = [*strange, *(folder.name for split, folder in self.folders.items() if split not in files)]
        if "val" not in files and (strange or "val" in self.folders):
            raise ValueError(
                f"{self.root} has {', '.join(idle)} but no {_spelt('val', TABLE_NAME)}: if this is its validation "
                f"split, name it so (and its folder {_spelt('val', '{}/')}); if not, move it away, and "
                f"{self.val_share:.0%} of train will be set aside (val_share)"
            )
        if idle:
            self.notes.append(f"not used, since there is no known split of this name: {', '.join(idle)}")

    def _nothing_here(self, inside: Sequence[str]) -> str:
        """The one sentence for a folder that is not the data set."""
        there = f"there is: {', '.join(inside[:8]) or 'nothing'}" if self.root.is_dir() else "there is no such folder"
        boxes = f"{', '.join(BOX)}, " if self.crop == "box" else ""
        return (
            f"No FASCODE data in {self.root.absolute()} ({there}): expected {TABLE_NAME.format('train')} (also _valid, "
            f"_test) with the columns image_name, {boxes}{', '.join(self.classes)}, beside the folders Train/, Valid/, "
            "Test/ with the photos; FASCODE is handed out by ETRI (fashion-how.org) under terms of its own; set "
            f"data_dir=<folder that holds {self.root.name}/>, or sample=true to go on with drawn photos"
        )

    def _given_names(self) -> dict[str, list[str]]:
        """Class names from the optional file beside the data, for the tasks whose setting is a number."""
        path = self.root / NAMES
        names = {task: [str(at) for at in range(n)] for task, n in self.classes.items() if isinstance(n, int)}
        if not path.is_file():
            return names
        table = read_table(path)
        columns = [table.column(key) for key in ("task", "id", "name")]
        for at, (task, ident, name) in enumerate(zip(*columns, strict=True)):
            value = number(ident)
            if value is None or value != int(value) or not name:
                raise ValueError(f"{table.where(at)}: id {ident!r} is named {name!r}: give a whole number and a name")
            if 0 <= value < len(names.get(task, [])):
                names[task][int(value)] = name
        return names

    def _labelled(self, table: Table) -> bool:
        """Whether a test file says anything about any task."""
        tasks = [task for task in self.classes if task in table.columns]
        return any(cell for task in tasks for cell in table.column(task))

    def _photos(self, split: str, table: Table, names: Mapping[str, Sequence[str]]) -> Photos:
        folder = self.folders["test" if split == "predict" else split]
        paths = [folder / name.replace("\\", "/") for name in table.column("image_name")]
        if self.crop == "box" and not set(BOX) & set(table.columns):
            raise ValueError(
                f"{table.path} has none of the columns {', '.join(BOX)}: add them, or set crop=photo in the stage's "
                "data to look at whole photos"
            )
        boxes = read_boxes(table, BOX) if self.crop == "box" else None
        labels = {} if split == "predict" else {task: read_labels(table, task, names[task]) for task in names}
        origin = [table.where(at) for at in range(len(paths))]
        return Photos(paths, boxes, labels, origin, self.transform, skip=self.on_bad_image == "skip")

    def check(self, splits: Splits) -> None:
        """Last look at the splits; also weighs the classes of train."""
        super().check(splits)
        if self.balance is None:
            return
        labels = splits["train"].labels
        self.weights = balance_weights(labels, self.balance)
        each = self.weights.each
        for task, ids in labels.items():
            before = np.bincount(ids[ids >= 0])
            after = np.round(np.bincount(ids[ids >= 0], each[ids >= 0])[before > 0]).astype(int)
            before = before[before > 0]
            self.notes.append(
                f"balance: {task} had {before.min():,} to {before.max():,} photos a class in train (largest difference "
                f"{np.ptp(before):,}), an epoch has {after.min():,} to {after.max():,} ({np.ptp(after):,})"
            )
        length = count(round(float(each.sum())), "photo")
        self.notes.append(f"balance: an epoch has {length} instead of {len(each):,}")

    def name(self, split: str, index: int) -> str:  # type: ignore[override]  # see ImageDataModule
        """Path of a photo, relative to the root; for `predict` as the test file lists it, since answers go back so."""
        path = self.split(split).paths[index]
        return path.relative_to(self.folders["test"] if split == "predict" else self.root).as_posix()
