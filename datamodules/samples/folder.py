"""How a drawn set comes to lie on disk: complete or not at all."""

import csv
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path

DRAWN = ".drawn"  # in a drawn folder: by which version of the writers


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_whole(root: Path, sign: str, write: Callable[[Path], None]) -> None:
    """Fill `root`, unless it is there already as these writers draw it; what other versions of them drew is replaced.

    It is filled as a folder of this process beside `root` and renamed, so that of two processes at once the first to
    finish wins. A folder that no writer drew is left alone.

    Args:
        root: folder to make.
        sign: a file below it that says that it is there.
        write: fills the folder that it is given.
    """
    version = writers()
    drawn = root / DRAWN
    if (root / sign).is_file() and not (drawn.is_file() and drawn.read_text(encoding="utf-8") != version):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (root.with_name(f".{root.name}.{os.getpid()}.{end}") for end in ("drawing", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        write(aside)
        (aside / DRAWN).write_text(version, encoding="utf-8")
        if drawn.is_file():
            root.rename(old)
        aside.rename(root)
    except OSError:
        if not (root / sign).is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def writers() -> str:
    """A digest of all sample writers' code: what another version drew is another set."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
