"""Features of a frozen trunk, computed once: where they are kept, and the DataModule whose batches carry them.

A trunk that does not change and a transform that is not random give the same features in every epoch. They are computed
once, kept in a memory map under a key that names everything they depend on, and the epochs read them instead of photos.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from datamodules.loader import Loaders, Split
from datamodules.photos import Batch, Item
from datamodules.samplers import Draw, EvalSampler, TrainSampler

CHUNK = 256  # rows that are computed together and marked as done together
LOADED = ("train", "val", "test", "predict")  # of other splits no feature is kept


class FeatureStore:
    """Feature rows of some splits on disk; building them can be killed and goes on.

    While it is built it lies in `<key>.part`, and a row of `<split>.done` says of each chunk whether it is whole; when
    all are, the folder is renamed to `<key>`: a store with its final name is complete.

    Args:
        home: folder of all stores.
        key: what the features depend on, as plain values; its digest is the store's name.
        lengths: rows of each split.
        width: numbers in a row.
        dtype: numpy's name of what is stored, `float32` or `float16`.
    """

    def __init__(self, home: Path, key: Mapping[str, Any], lengths: Mapping[str, int], width: int, dtype: str) -> None:
        self.key, self.lengths, self.width, self.dtype = dict(key), dict(lengths), width, dtype
        name = sha256(json.dumps(self.key, sort_keys=True, default=str).encode()).hexdigest()[:20]
        self.folder, self.part = home / name, home / f"{name}.part"

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return self.folder.is_dir()

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return sum(self.lengths.values()) * self.width * np.dtype(self.dtype).itemsize

    def begin(self) -> None:
        """Make the empty files, or find those that an earlier attempt left; one process does it before any writes."""
        self.part.mkdir(parents=True, exist_ok=True)
        (self.part / "key.json").write_text(json.dumps(self.key, indent=1, default=str), encoding="utf-8")
        for split, length in self.lengths.items():
            rows, done = self.part / f"{split}.npy", self.part / f"{split}.done"
            if not self._usable(rows, done, length):
                open_memmap(rows, "w+", self.dtype, (length, self.width)).flush()
                done.write_bytes(bytes(-(-length // CHUNK)))

    def _usable(self, rows: Path, done: Path, length: int) -> bool:
        """Whether files that an earlier attempt left have the right shape; a half-written header is thrown away."""
        try:
            shape = np.load(rows, mmap_mode="r").shape
            return shape == (length, self.width) and done.stat().st_size == -(-length // CHUNK)
        except (OSError, ValueError):
            return False

    def missing(self, split: str, rank: int = 0, world_size: int = 1) -> list[NDArray[np.int64]]:
        """Rows still to be computed, chunk by chunk; of several processes each gets every `world_size`-th chunk."""
        done = (self.part / f"{split}.done").read_bytes()
        starts = [at * CHUNK for at in range(rank, len(done), world_size) if not done[at]]
        return [np.arange(start, min(start + CHUNK, self.lengths[split])) for start in starts]

    def write(self, split: str, index: NDArray[np.int64], features: NDArray[Any]) -> None:
        """Store one chunk, then mark it: a kill in between costs the chunk, never a wrong row.

        Raises:
            ValueError: a feature is no finite number in the store's type.
        """
        with np.errstate(over="ignore"):
            kept = features.astype(self.dtype)
        if not np.isfinite(kept).all():
            raise ValueError(
                f"a feature of {split} is not a finite {self.dtype} number, so features cannot be kept: set "
                "features=off for this stage, or look at the encoder's weights"
            )
        rows = open_memmap(self.part / f"{split}.npy", "r+")
        rows[index] = kept
        rows.flush()
        with open(self.part / f"{split}.done", "r+b") as file:
            file.seek(int(index[0]) // CHUNK)
            file.write(b"\1")

    def finish(self) -> None:
        """Give the complete store its name."""
        if any(self.missing(split) for split in self.lengths):
            raise RuntimeError(f"{self.part} is not complete")
        for split in self.lengths:
            (self.part / f"{split}.done").unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self.part, self.folder)

    def rows(self, split: str) -> NDArray[Any]:
        """The features (n, width) of a split, as a read-only memory map.

        Raises:
            ValueError: the file was cut short or changed.
        """
        path = self.folder / f"{split}.npy"
        try:
            rows: NDArray[Any] = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete {self.folder}, it will be computed again") from error
        if rows.shape != (self.lengths[split], self.width):
            raise ValueError(
                f"{path} holds {rows.shape}, not {(self.lengths[split], self.width)}: delete {self.folder}"
            )
        return rows


class FeatureLoader:
    """Batches of features in the order of a sampler, `group` minibatches at a time when training.

    A step on cached features takes less than the Trainer spends around it, so a training step gets several minibatches.
    Like the photos' loader it continues mid-epoch: `state_dict` counts the groups handed out in this epoch.

    Args:
        rows: features (n, width) of the split.
        split: for everything else that a batch has.
        sampler: order of this rank.
        batch_size: samples a minibatch on this rank.
        group: minibatches handed out together as `{"group": [batch, ...]}`; 0 hands out plain batches.
        drop_last: leave out a last minibatch that is not full.
        shape: of one picture's features, if a flat row stands for maps.
    """

    def __init__(
        self, rows: NDArray[Any], split: Split, sampler: TrainSampler | EvalSampler, batch_size: int,
        group: int = 0, drop_last: bool = False, shape: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.rows, self.split, self.sampler, self.batch_size, self.group = rows, split, sampler, batch_size, group
        self.shape = tuple(shape or rows.shape[1:])
        self.batch_sampler = None  # Lightning asks for it before it asks whether an evaluation is shuffled
        whole, rest = divmod(len(sampler), batch_size)
        self.minibatches = whole + bool(rest and not drop_last)
        self._state = {"epoch": 0, "done": 0}
        self._resume: dict[str, int] | None = None

    def __len__(self) -> int:
        return -(-self.minibatches // max(self.group, 1))

    def __iter__(self) -> Iterator[Batch]:
        # A generator: after a resume Lightning calls iter() first and tells the sampler its epoch afterwards.
        epoch = getattr(self.sampler, "epoch", 0)
        before, self._resume = self._resume or {"epoch": epoch, "done": 0}, None
        done = before["done"] if before["epoch"] == epoch else 0
        order: list[Item] = list(self.sampler)
        size = max(self.group, 1)
        for at in range(done, len(self)):
            self._state = {"epoch": epoch, "done": at + 1}
            parts = range(at * size, min((at + 1) * size, self.minibatches))
            batches = [self.batch(order[i * self.batch_size : (i + 1) * self.batch_size]) for i in parts]
            yield {"group": batches} if self.group else batches[0]

    def batch(self, items: Sequence[Item]) -> Batch:
        """Everything of these samples but their pixels, and their features (B, ...)."""
        items = self.split.expand(items)
        index = np.fromiter((item.sample if isinstance(item, Draw) else item for item in items), np.int64)
        features = torch.from_numpy(self.rows[index]).view(-1, *self.shape)
        return {**self.split.targets(index), "features": features}

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of groups handed out in it."""
        return dict(self._resume or self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after the groups that `state` says were handed out."""
        self._resume = {"epoch": int(state["epoch"]), "done": int(state["done"])}


class FeatureData(Loaders):
    """A DataModule whose batches carry stored features instead of photos; everything else is the wrapped one's.

    Args:
        data: the DataModule of the photos, set up.
        shape: of one picture's features: (D,), or the (C, H, W) maps of a trunk that is frozen in part.
        group: minibatches of a training step, see `FeatureLoader`; 0 for plain batches.
    """

    def __init__(self, data: Loaders, shape: Sequence[int], group: int) -> None:
        super().__init__()
        self.data, self.shape, self.group = data, tuple(shape), group
        self.store: FeatureStore | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["data"], name)  # splits, facts, picture, survey, ...

    def name(self, split: str, index: int) -> str:  # type: ignore[override]
        """Path of a photo, relative to the root; defined here because Lightning's own `name` is None."""
        return cast(Any, self.data).name(split, index)

    def setup(self, stage: str | None = None) -> None:
        """Nothing: the wrapped one has looked at its files."""

    def files(self) -> dict[str, list[str]]:
        """What the pixels of each split's pictures come from."""
        return {name: list(self.splits[name].pictures().files()) for name in self.lengths()}

    def lengths(self) -> dict[str, int]:
        """Number of pictures of each split that is trained or judged on."""
        return {name: len(split.pictures()) for name, split in self.splits.items() if name in LOADED}

    def loader(self, split: str, sampler: TrainSampler | EvalSampler, batch_size: int) -> FeatureLoader:
        """Batches of features in the order of a sampler, in groups when training."""
        assert self.store is not None
        train = isinstance(sampler, TrainSampler)
        rows, group = self.store.rows(split), self.group if train else 0
        return FeatureLoader(rows, self.splits[split], sampler, batch_size, group, train, self.shape)
