"""How a drawn set comes to lie on disk: complete or not at all."""

import csv
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_whole(root: Path, sign: str, write: Callable[[Path], None]) -> None:
    """Fill `root`, unless its file `sign` is there already.

    It is filled as a folder of this process beside `root` and renamed, so that of two processes at once the first to
    finish wins.

    Args:
        root: folder to make.
        sign: a file below it that says that it is there.
        write: fills the folder that it is given.
    """
    if (root / sign).is_file():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    aside = root.with_name(f".{root.name}.{os.getpid()}.drawing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        write(aside)
        aside.rename(root)
    except OSError:
        if not (root / sign).is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
