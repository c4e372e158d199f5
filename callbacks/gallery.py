"""The index that similar photos are looked up in: a folder of memory-mapped files."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from callbacks.groups import groups
from callbacks.nearest import Codes, Floats, Places, nearest

FORMAT = 1


class Gallery:
    """Embeddings of photos with the photos' names: opened at once, searched exactly.

    `about.json` names the folder beside it that holds the arrays, and is replaced last. So a reader, who needs no lock,
    sees the old content or the new, whenever a writer is killed.

        about.json           format, model, root, count, width, content, sizes of the files, and what a writer adds
        <content>/vectors    float32 (n, D), length 1
                  codes      int8 (P, n, 128), what a scan reads; see `nearest.Codes`, also for
                  terms      float32 (4, n) and
                  centre     float32 (D,)
                  stamps     int64 (n, 2), size and time of each file when it was embedded; −1 where there is no file
                  names      uint8, all names as UTF-8 in one row, and
                  ends       int64 (n,), where in it each ends

    Args:
        folder: that holds `about.json`.

    Attributes:
        about: what `about.json` says.
        model: checksum of the model that made the embeddings, see `fingerprint`.
        vectors: the embeddings.
        names: of the photos, relative to `root`.
        stamps: size and time of the files.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged, or written in another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = read_about(folder)
        while not self._whole():
            pass

    def _whole(self) -> bool:
        """Opens the content; False if a writer finished meanwhile and took it away, with `about` read anew."""
        try:
            self._open()
        except ValueError:
            before, self.about = self.about, read_about(self.folder)
            if self.about["content"] == before["content"]:
                raise
            return False
        return True

    def _open(self) -> None:
        self.model, self.root = str(self.about["model"]), Path(self.about["root"])
        count, width = self.about["count"], self.about["width"]
        self.vectors: Floats = self._map("vectors", (count, width))
        terms, centre = self._map("terms", (4, count)), self._map("centre", (width,))
        self.codes = Codes(self._map("codes"), terms, centre)
        self.stamps: Places = self._map("stamps", (count, 2))
        self.names = Names(self._map("names"), self._map("ends", (count,)))

    def _map(self, name: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        path = self.folder / self.about["content"] / f"{name}.npy"
        try:
            size, wanted = path.stat().st_size, self.about["sizes"][name]
            if size != wanted:
                raise ValueError(f"it has {size:,} bytes, not {wanted:,}")
            # Copy on write, though nobody writes: torch warns about arrays that are read-only.
            array: NDArray[Any] = np.load(path, mmap_mode="c")
            if shape not in (None, array.shape):
                raise ValueError(f"it holds {array.shape}, not {shape}")
        except (OSError, ValueError, KeyError) as error:
            raise damaged(self.folder, f"{path.name} is cut short, changed or gone ({error})") from error
        return array

    def __len__(self) -> int:
        return len(self.vectors)

    def path(self, index: int) -> Path:
        """Where a photo lies, or lay when it was embedded."""
        return self.root / self.names[index]

    def of(self, model: str) -> Self:
        """The index itself, if that model made it.

        Raises:
            ValueError: another one did.
        """
        if model != self.model:
            raise ValueError(
                f"{self.folder} was made by another model (checksum {self.model[:12]}, this one has {model[:12]}), so "
                "its vectors mean something else: name another folder for the index, or delete this one"
            )
        return self

    def search(self, queries: Floats, k: int) -> tuple[Floats, Places]:
        """The k nearest photos of each query by cosine, exactly, nearest first.

        Args:
            queries: embeddings (Q, D), of any length.
            k: at most the number of photos.

        Returns:
            Similarities and indices, (Q, k) each; equally near photos in the order of the index.

        Raises:
            ValueError: k or the width of the queries does not fit.
        """
        self.check(queries, k)
        return nearest(unit(queries), self.vectors, self.codes, k)

    def check(self, queries: Floats, k: int) -> None:
        """Whether the index can answer.

        Raises:
            ValueError: it cannot.
        """
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1] or not len(queries):
            width = self.vectors.shape[1]
            raise ValueError(f"queries of shape {queries.shape} do not fit {self.folder}: (Q, {width}) is wanted")
        if not np.isfinite(queries).all():
            raise ValueError("the embedding of a query is not finite: look at the encoder's weights")
        if not 1 <= k <= len(self):
            raise ValueError(f"the {k} nearest photos were asked for, {self.folder} has {len(self):,}")

    def groups(self, threshold: float) -> list[list[int]]:
        """Photos that are at least that similar to another of their group, see `groups`; largest group first."""
        return groups(self.vectors, self.codes, threshold)


class Names(Sequence[str]):
    """Texts in one row of bytes, read when asked for; a name that is no valid UTF-8 on disk keeps its bytes."""

    def __init__(self, row: NDArray[np.uint8], ends: Places) -> None:
        self.row, self.ends = row, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        at = range(len(self))[index]
        begin = self.ends[at - 1] if at else 0
        return self.row[begin : self.ends[at]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        row, begin = self.row.tobytes(), 0
        for end in self.ends.tolist():
            yield row[begin:end].decode("utf-8", "surrogateescape")
            begin = end


def read_about(folder: Path) -> dict[str, Any]:
    """What `about.json` of an index says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or is of another format.
    """
    path = folder / "about.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no index (there is no about.json in it)")
    try:
        about = dict(json.loads(path.read_text(encoding="utf-8")))
        found = about["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise damaged(folder, f"about.json cannot be read ({error!r})") from error
    if found != FORMAT:
        raise damaged(folder, f"it was written in format {found} by another version, this one reads format {FORMAT}")
    return about


def damaged(folder: Path, why: str) -> ValueError:
    """What to say about an index that cannot be used."""
    return ValueError(f"{folder} cannot be used as an index: {why}; delete it, it is made again from the photos")


def unit(vectors: Floats) -> Floats:
    """Vectors (n, D) at length 1; one of length 0 stays, and is similar to nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def fingerprint(module: nn.Module, transform: object) -> str:
    """A checksum of what embeddings depend on: the technique, its weights, and what evaluation makes of a photo.

    Weights count as float32, so that a stage that trained in half precision is known again when it is loaded.

    Args:
        module: the technique.
        transform: its `repr` says what evaluation sees.
    """
    digest = hashlib.sha256(f"{type(module).__name__} {transform!r}".encode())
    for name, value in sorted(module.state_dict().items()):
        plain = value.detach().cpu()
        plain = plain.float() if plain.is_floating_point() else plain
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
