"""Writes an index, or brings it up to date with a folder of photos: aside first, then renamed, one writer at a time."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from callbacks.gallery import FORMAT, Gallery, unit
from callbacks.nearest import PLANE, Codes, Floats, Places

ROWS = 1 << 14  # written together

Embed = Callable[[Sequence[str]], tuple[Sequence[str], Floats]]


class Rows(NamedTuple):
    """What an index is made of.

    Args:
        names: of the photos.
        vectors: their embeddings (n, D), of any length.
        stamps: (n, 2) size and time of the files, −1 where there is no file.
    """

    names: Sequence[str]
    vectors: Floats
    stamps: Places


def write(folder: Path, rows: Rows, model: str, root: Path, more: Mapping[str, Any] | None = None) -> Gallery:
    """Writes an index in place of any that is there.

    Args:
        folder: of the index.
        rows: its content.
        model: checksum of what embedded the photos.
        root: folder that the names are relative to.
        more: plain values to be kept with it.

    Raises:
        ValueError: there is no photo, an embedding is no number, or the folder is in use or cannot be written.
    """
    with writing(folder):
        return _replace(folder, rows, {**(more or {}), "model": model, "root": str(root)})


def refresh(folder: Path, root: Path, names: Sequence[str], model: str, embed: Embed) -> Gallery:
    """The index of some photos: new and changed ones are embedded, vanished ones go, the others stay as they are.

    Where nothing changed nothing is written, so an index on a read-only disk can be used.

    Args:
        folder: of the index; it need not be there yet.
        root: folder of the photos.
        names: of the photos, relative to it.
        model: checksum of what `embed` runs.
        embed: called with names, returns those that could be read, and their embeddings.

    Raises:
        ValueError: another model made the index, no photo can be read, or the folder is in use or cannot be written.
    """
    now = {name: stamp(root / name) for name in names}
    old = Gallery(folder).of(model) if (folder / "about.json").is_file() else None
    before = zip(old.names, map(tuple, old.stamps.tolist()), strict=True) if old else ()
    known = {name: at for at, (name, then) in enumerate(before) if now.get(name) == then}
    new = [name for name in names if name not in known]
    if old and not new and len(known) == len(old):
        return old
    with writing(folder):
        read, added = embed(new) if new else ([], old.vectors[:0] if old else np.empty((0, 0), np.float32))
        if old and not read and len(known) == len(old):
            return old  # all that is not in it cannot be read
        vectors = np.concatenate([old.vectors[list(known.values())], added]) if old and known else added
        place = {name: at for at, name in enumerate([*known, *read])}
        there = [name for name in names if name in place]
        order = [place[name] for name in there]
        stamps = np.array([now[name] for name in there], np.int64)
        return _replace(folder, Rows(there, vectors[order], stamps), {"model": model, "root": str(root)})


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file; −1 where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold an index for writing.

    Raises:
        ValueError: another process writes it, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{folder} is being written by another process: try again when it has finished") from error
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): name another folder for the index") from error
    try:
        yield
    finally:
        lock.release()


def _replace(folder: Path, rows: Rows, about: dict[str, Any]) -> Gallery:
    """Write the content aside, name it in `about.json`, and take away what is not named there."""
    if not len(rows.names):
        raise ValueError(f"{folder}: there is no photo to put into the index")
    content = secrets.token_hex(6)
    home = folder / content
    home.mkdir()
    try:
        _write_arrays(home, rows)
        sizes = {path.stem: path.stat().st_size for path in home.iterdir()}
        about |= {"format": FORMAT, "content": content, "sizes": sizes}
        about |= {"count": len(rows.names), "width": rows.vectors.shape[1]}
        aside = home / "about.json"
        aside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    os.replace(aside, folder / "about.json")
    for other in folder.iterdir():
        if other.is_dir() and other.name != content:
            shutil.rmtree(other, ignore_errors=True)
    return Gallery(folder)


def _write_arrays(home: Path, rows: Rows) -> None:
    count, width = rows.vectors.shape
    vectors = _create(home, "vectors", np.float32, (count, width))
    for begin in range(0, count, ROWS):
        some = unit(rows.vectors[begin : begin + ROWS])
        if not np.isfinite(some).all():
            bad = rows.names[begin + int(np.flatnonzero(~np.isfinite(some).all(1))[0])]
            raise ValueError(f"the embedding of {bad} is not finite: look at the encoder's weights")
        vectors[begin : begin + ROWS] = some
    centre = _create(home, "centre", np.float32, (width,))
    centre[:] = vectors.mean(0, dtype=np.float64)
    planes = _create(home, "codes", np.int8, (-(-width // PLANE), count, PLANE))
    codes = Codes(planes, _create(home, "terms", np.float32, (4, count)), centre)
    for begin in range(0, count, ROWS):
        codes.fill(begin, vectors[begin : begin + ROWS])
    texts = [name.encode("utf-8", "surrogateescape") for name in rows.names]
    text, ends = np.frombuffer(b"".join(texts), np.uint8), np.cumsum([len(each) for each in texts])
    _create(home, "names", np.uint8, text.shape)[:] = text
    _create(home, "ends", np.int64, ends.shape)[:] = ends
    _create(home, "stamps", np.int64, rows.stamps.shape)[:] = rows.stamps


def _create(home: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    return open_memmap(home / f"{name}.npy", "w+", dtype, shape)
