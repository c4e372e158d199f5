"""CSV tables of labels and boxes; what is wrong in one is named by file and row, as a spreadsheet counts rows."""

import csv
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MISSING = -1  # the id of a label that is not there
SHOWN = 3  # faults that are spelt out; the rest is counted

# A number of ids, names in the order of their ids, or None for whatever the training file holds.
Classes = int | Sequence[str] | None


def refuse(faults: Sequence[str], cure: str) -> None:
    """Raise one sentence that spells out the first faults, counts the rest and says what to do.

    Raises:
        ValueError: there are faults.
    """
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ValueError(f"{'; '.join(faults[:SHOWN])}{more}: {cure}")


@dataclass(frozen=True)
class Table:
    """A CSV file: columns and, for each row that is not blank, its cells and its row in the file (the header is 1)."""

    path: Path
    columns: list[str]
    cells: list[list[str]]
    rows: list[int]

    def column(self, name: str) -> list[str]:
        """All cells of a column, without spaces around them.

        Raises:
            ValueError: there is no such column.
        """
        if name not in self.columns:
            raise ValueError(
                f"{self.path} has no column {name!r}; it has {', '.join(self.columns)}: name the column in row 1"
            )
        at = self.columns.index(name)
        return [cells[at].strip() for cells in self.cells]

    def where(self, at: int) -> str:
        """File and row of the `at`-th row, for messages."""
        return f"{self.path.name} row {self.rows[at]}"


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Row number and cells of each row of a CSV in UTF-8, with or without a byte order mark."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            begin = 1
            for cells in reader:
                yield begin, cells
                begin = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {_first_bad(path)} cannot be read): save it as CSV UTF-8"
        ) from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file ({error}): save it as comma-separated CSV UTF-8") from error


def _first_bad(path: Path) -> int:
    """Place of the first byte in a file that is not UTF-8; the reader's own error counts from its last chunk."""
    try:
        path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def read_table(path: Path) -> Table:
    """Read a CSV file with a header row; blank rows are passed over.

    Raises:
        ValueError: not UTF-8, not CSV, not commas, no header, a column named twice, or a row with too many or too few
            cells.
    """
    lines = [(number, cells) for number, cells in _lines(path) if any(cell.strip() for cell in cells)]
    if not lines:
        raise ValueError(f"{path} is empty: its first row must name the columns")
    columns = [name.strip() for name in lines[0][1]]
    if len(columns) == 1 and (between := re.search("[;\t|]", columns[0])):
        raise ValueError(f"{path} has {between[0]!r} between its columns: save it as comma-separated CSV UTF-8")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ValueError(f"{path} names column {twice[0]!r} twice: keep one of them")
    ragged = [
        f"{path.name} row {row} has {len(cells)} cells where the header has {len(columns)}"
        for row, cells in lines[1:]
        if len(cells) != len(columns)
    ]
    refuse(ragged, "correct these rows (a comma inside a cell needs quotes around the cell)")
    return Table(path, columns, [cells for _, cells in lines[1:]], [row for row, _ in lines[1:]])


def number(text: str) -> float | None:
    """The finite number a cell holds, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_boxes(table: Table, columns: Sequence[str]) -> NDArray[np.float64]:
    """Boxes (n, 4) as xmin, ymin, xmax, ymax in pixels.

    Raises:
        ValueError: a column is missing, a cell is not a number, or a box is empty.
    """
    faults = []
    boxes = np.zeros((len(table.rows), 4))
    for at, texts in enumerate(zip(*(table.column(name) for name in columns), strict=True)):
        values = [value for text in texts if (value := number(text)) is not None]
        if len(values) < len(columns):
            name, text = next(pair for pair in zip(columns, texts, strict=True) if number(pair[1]) is None)
            faults.append(f"{table.where(at)}: {name} = {text!r} is not a number")
            continue
        left, top, right, bottom = values
        boxes[at] = values
        if right <= left or bottom <= top:
            faults.append(f"{table.where(at)}: the box ({left:g}, {top:g}, {right:g}, {bottom:g}) is empty")
    refuse(faults, f"a box needs {columns[0]} < {columns[2]} and {columns[1]} < {columns[3]}, in pixels")
    return boxes


def class_names(task: str, classes: Classes, cells: Collection[str]) -> list[str]:
    """Names of a task's classes in the order of their ids.

    Args:
        task: for messages.
        classes: the setting: a number, names, or None to take what the training file holds.
        cells: the training file's cells of this task.

    Raises:
        ValueError: fewer than two classes, or a name twice.
    """
    if isinstance(classes, bool) or not isinstance(classes, int | None | Sequence) or isinstance(classes, str):
        raise ValueError(f"classes.{task}={classes!r} is neither a number of classes nor a list of names nor null")
    if classes is None:
        found = {cell for cell in cells if cell}
        numeric = {text: number(text) for text in found}
        whole = all(value is not None and value == int(value) for value in numeric.values())
        classes = sorted({str(int(value or 0)) for value in numeric.values()}, key=int) if whole else sorted(found)
    names = [str(name) for name in (range(classes) if isinstance(classes, int) else classes)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"classes.{task} names {twice[0]!r} twice: each class needs a name of its own")
    if len(names) < 2:
        raise ValueError(f"classes.{task} comes to {len(names)} class(es): a task to learn needs at least two")
    return names


def read_labels(table: Table, task: str, names: Sequence[str]) -> NDArray[np.int64]:
    """Class ids (n,) of a column that holds ids or names; an empty cell is a missing label, -1.

    Raises:
        ValueError: the column is missing, or a cell is none of the classes.
    """
    known: Mapping[str, int] = {name: at for at, name in enumerate(names)}
    by_id = any(number(name) is None for name in names)  # where the names are numbers themselves, a number is a name
    ids = np.full(len(table.rows), MISSING, dtype=np.int64)
    faults = []
    for at, cell in enumerate(table.column(task)):
        value = number(cell)
        # pandas writes 3 as 3.0 in a column that has gaps
        whole = int(value) if value is not None and value == int(value) else MISSING
        if cell in known or str(whole) in known:
            ids[at] = known.get(cell, known.get(str(whole), MISSING))
        elif by_id and 0 <= whole < len(names):
            ids[at] = whole
        elif cell:
            why = "is out of range" if value is not None else "is neither an id nor a name"
            faults.append(f"{table.where(at)}: {task} = {cell!r} {why}")
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    refuse(faults, f"{task} has the {len(names)} classes {listed}; correct the file or set classes.{task}")
    return ids
