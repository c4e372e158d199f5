"""The table of verdicts on labels, `kept.csv`: written by the margins callback, edited by people, obeyed here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.tables import MISSING, Table, read_table, refuse

ACTIONS = ("keep", "drop", "relabel")
SAME_DATA = "take the file that was made from these data, with the same seed, val_share, subset and on_leak"

Labels = dict[str, NDArray[np.int64]]


class Verdicts(NamedTuple):
    """Labels of train after relabelling, and for each task which of them are to be dropped."""

    labels: Labels
    drop: dict[str, NDArray[np.bool_]]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, each once: a photo that is listed again, with another box perhaps, becomes `photo.jpg#2`."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def read_verdicts(
    path: Path, names: Sequence[str], labels: Mapping[str, NDArray[np.int64]], classes: Mapping[str, Sequence[str]]
) -> Verdicts:
    """Read what is to become of the labels of train; what the file does not mention is kept.

    Args:
        path: of a CSV with the columns photo, task, label, action and, where an action is relabel, relabel_to.
        names: of the photos of train, each once.
        labels: class ids (n,) of each task.
        classes: names of the classes of each task.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row names a photo, task, action or class that is not there, a label that the data have no more,
            or the same label as another row.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"labels.kept={path}: there is no such file; run the stage that writes it (its callback is margins) first"
        )
    table = read_table(path)
    places = {name: at for at, name in enumerate(names)}
    _refuse_strangers(table, places)
    revised = {task: ids.copy() for task, ids in labels.items()}
    drop = {task: np.zeros(len(ids), bool) for task, ids in labels.items()}
    said: dict[tuple[str, str], int] = {}
    faults = []
    for at, row in enumerate(_rows(table)):
        if fault := row.fault(labels, classes, places) or _again(table, said, (row.photo, row.task), at):
            faults.append(f"{table.where(at)}: {fault}")
        elif row.action == "relabel":
            revised[row.task][places[row.photo]] = list(classes[row.task]).index(row.relabel_to)
        elif row.action == "drop":
            drop[row.task][places[row.photo]] = True
    refuse(faults, f"correct these rows of {path}, or {SAME_DATA}")
    return Verdicts(revised, drop)


class _Row(NamedTuple):
    """One verdict."""

    photo: str
    task: str
    label: str
    action: str
    relabel_to: str

    def fault(
        self, labels: Mapping[str, NDArray[np.int64]], classes: Mapping[str, Sequence[str]], places: Mapping[str, int]
    ) -> str:
        """What is wrong with it, or nothing."""
        if self.task not in classes:
            return f"task {self.task!r} is none of {', '.join(classes)}"
        ident = labels[self.task][places[self.photo]]
        label = classes[self.task][ident] if ident != MISSING else ""
        if self.label != label:
            return f"it says that {self.photo} is labelled {self.task} {self.label!r}, the data say {label!r}"
        if self.action not in ACTIONS:
            return f"action {self.action!r} is none of {', '.join(ACTIONS)}"
        if self.action == "relabel" and self.relabel_to not in classes[self.task]:
            return f"relabel_to {self.relabel_to!r} is no class of {self.task} ({', '.join(classes[self.task])})"
        return ""


def _rows(table: Table) -> list[_Row]:
    columns = [table.column(name) for name in ("photo", "task", "label", "action")]
    target = table.column("relabel_to") if "relabel_to" in table.columns else [""] * len(table.rows)
    return [_Row(*cells) for cells in zip(*columns, target, strict=True)]


def _again(table: Table, said: dict[tuple[str, str], int], key: tuple[str, str], at: int) -> str:
    """Two rows may say two things of one label: then nobody knows which is meant."""
    before = said.setdefault(key, at)
    return f"{' '.join(key)} stands in row {table.rows[before]} too" if before != at else ""


def _refuse_strangers(table: Table, places: Mapping[str, int]) -> None:
    """Photos that train does not have: a few are mistakes of whoever edited the file, many are those of other data."""
    photos = table.column("photo")
    strange = [at for at, photo in enumerate(photos) if photo not in places]
    if len(strange) > len(photos) / 2:
        raise ValueError(
            f"{table.path} is of other data: {len(strange):,} of its {len(photos):,} rows name photos that are not in "
            f"train, first {photos[strange[0]]!r} ({table.where(strange[0])}): {SAME_DATA}"
        )
    faults = [f"{table.where(at)}: photo {photos[at]!r} is not in train" for at in strange]
    refuse(faults, f"correct or take out these rows of {table.path}, or {SAME_DATA}")
