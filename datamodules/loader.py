"""The loader of all DataModules: decodes in threads, some batches ahead, and goes on mid-epoch where it was stopped."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from math import floor
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datamodules.companions import Companions, Mixture
from datamodules.photos import Batch, Item, Photos, Unlabelled, each_tensor
from datamodules.revision import THRESHOLD, Implied, Revision
from datamodules.samplers import EvalSampler, TrainSampler, Weights
from datamodules.transforms import Box, Transform
from datamodules.verdicts import distinct


class Split(Protocol):
    """What a split of any kind (files, arrays, pairs) answers to the loaders; `Photos` says what each means."""

    labels: dict[str, NDArray[np.int64]]
    broken: dict[Path, str]

    def __len__(self) -> int: ...
    @property
    def is_random(self) -> bool: ...
    def expand(self, items: Sequence[Item]) -> Sequence[Item]: ...
    def pictures(self) -> "Split": ...
    def files(self) -> Iterator[str]: ...
    def targets(self, index: NDArray[np.int64]) -> Batch: ...
    def blank(self, items: Sequence[Item]) -> Batch: ...
    def fill(self, batch: Batch, items: Sequence[Item], slots: Iterable[int]) -> None: ...
    def finish(self, batch: Batch) -> Batch | None: ...


class Loader(DataLoader[Batch]):
    """Batches decoded by threads of this process, some batches ahead of the training.

    Decoding and resizing release Python's lock, so threads do the work of worker processes without copying batches
    between them. `state_dict` counts the batches handed out in this epoch, not those decoded ahead: after
    `load_state_dict` the same epoch goes on with exactly the next batch. A state of another epoch says nothing about
    this one and is passed over.

    Args:
        dataset: split to read; it makes batches by `blank`, `fill` and `finish` (see `Photos`).
        sampler: order of this rank; a `TrainSampler` knows its epoch.
        batch_size: samples a batch on this rank.
        drop_last: leave out a last batch that is not full.
        threads: that decode.
        ahead: batches decoded in advance.
    """

    def __init__(
        self,
        dataset: Split,
        sampler: TrainSampler | EvalSampler | None = None,
        batch_size: int = 1,
        drop_last: bool = False,
        threads: int = 2,
        ahead: int = 2,
    ) -> None:
        pin, source, order = torch.cuda.is_available(), cast(Any, dataset), cast(Any, sampler)
        super().__init__(source, batch_size, sampler=order, drop_last=drop_last, pin_memory=pin)
        self.threads, self.ahead = threads, ahead
        self._state = {"epoch": 0, "done": 0}
        self._resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so that nothing below runs before the first batch is asked for: after a resume Lightning calls
        # iter() first and tells the sampler its epoch afterwards.
        epoch = getattr(self.sampler, "epoch", 0)
        before, self._resume = self._resume or {"epoch": epoch, "done": 0}, None
        self._state = before if before["epoch"] == epoch else {"epoch": epoch, "done": 0}
        todo = islice(iter(cast(Any, self.batch_sampler)), self._state["done"], None)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        try:
            started = deque(self._start(pool, items) for items in islice(todo, self.ahead + 1))
            while started:
                batch = self._wait(*started.popleft())
                started.extend(self._start(pool, items) for items in islice(todo, 1))
                self._state = {"epoch": epoch, "done": self._state["done"] + 1}
                if batch is not None:
                    yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, items: Sequence[Item]) -> tuple[Batch, list[Future[None]]]:
        """A batch whose pixels the pool is about to write, each thread every `threads`-th of them."""
        photos = cast(Split, self.dataset)
        items = photos.expand(items)
        batch = photos.blank(items)
        if self.pin_memory:
            batch = each_tensor(batch, torch.Tensor.pin_memory)
        slots = [range(at, len(items), self.threads) for at in range(min(self.threads, len(items)))]
        return batch, [pool.submit(photos.fill, batch, items, part) for part in slots]

    def _wait(self, batch: Batch, parts: list[Future[None]]) -> Batch | None:
        for part in parts:
            part.result()
        return cast(Split, self.dataset).finish(batch)

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches handed out in it."""
        return dict(self._resume or self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after the batches that `state` says were handed out."""
        self._resume = {"epoch": int(state["epoch"]), "done": int(state["done"])}


def label_counts(labels: Mapping[str, NDArray[np.int64]], classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The fact `counts`: training labels of each class of each task, for losses that balance by them."""
    known = {task: ids[ids >= 0] for task, ids in labels.items() if task in classes}
    counts = {task: np.bincount(ids, minlength=len(classes[task])).tolist() for task, ids in known.items()}
    return {"counts": counts} if counts else {}


class Loaders(LightningDataModule):
    """The loaders of a DataModule, the same for every kind of split and for any number of processes.

    A subclass has `root`, `splits` (name to split, after `setup`), `transform` (what evaluation sees), `batch_size` (of
    all processes together), `seed`, `threads`, and `weights` where an epoch is balanced.

    Attributes:
        revision: what becomes of the labels of train, see `Revision`.
        planted: for each task which labels of train were made wrong on purpose; empty if none were.
        fake_class: name of the last class of each task where it is that of threshold samples.
        dropped: photos of train of which a verdict dropped a label; None if there were no verdicts.
        mixture: where unlabelled photos of training batches come from; None for none.
    """

    root: Path
    transform: Transform
    splits: Mapping[str, Any]
    batch_size: int
    seed: int
    threads: int
    weights: Weights | None
    facts: dict[str, Any]
    notes: list[str]
    revision: Revision
    planted: dict[str, NDArray[np.bool_]]
    fake_class: str | None
    dropped: Any
    mixture: Mixture | None

    def loader(self, split: str, sampler: TrainSampler | EvalSampler, batch_size: int) -> Any:
        """Batches of a split in the order of a sampler; a training epoch leaves out a last batch that is not full."""
        train = isinstance(sampler, TrainSampler)
        return Loader(self.split(split), sampler, batch_size, drop_last=train, threads=self.threads)

    def split(self, name: str) -> Any:
        """A split by name, read if it was not.

        Raises:
            ValueError: there is none of that name.
        """
        self.setup("fit")
        if name not in self.splits:
            raise ValueError(f"{self.root} has no {name} split; it has {', '.join(self.splits)}")
        return self.splits[name]

    def names(self, split: str) -> list[str]:
        """A name for each picture of a split that no other one has: by these, tables of verdicts speak of them."""
        return distinct([cast(Any, self).name(split, index) for index in range(len(self.split(split)))])

    def implied(self) -> Implied:
        """The tasks whose label another's decides, see `Revision.apply`."""
        return {}

    def revise(self, train: Any, names: Sequence[str]) -> Any:
        """The training split with its labels as they are to be learned; `facts` then has the classes that they are of.

        Args:
            train: the split.
            names: of its pictures, as `name` gives them.
        """
        if self.revision == Revision():
            return train
        classes = self.facts["classes"]
        done = self.revision.apply(train.labels, distinct(names), classes, self.seed, self.implied())
        left = np.flatnonzero(~done.gone)
        if self.revision.kept is not None:
            self.dropped = train.keep(np.flatnonzero(done.dropped))
        self.notes += done.notes
        self.planted = {task: wrong[left] for task, wrong in done.planted.items()}
        if self.revision.threshold is not None:
            self.fake_class = THRESHOLD
            self.facts = {**self.facts, "classes": {task: [*known, THRESHOLD] for task, known in classes.items()}}
        train = train.keep(left)
        train.labels = {task: ids[left] for task, ids in done.labels.items()}
        return train

    def mix(self, splits: Mapping[str, Any]) -> dict[str, Any]:
        """The splits with unlabelled photos beside those of train, if there are to be any.

        Raises:
            FileNotFoundError: the folder of them is not there.
            ValueError: a source or a ratio with which there are none, or a folder that holds photos of val or test.
        """
        self.facts |= label_counts(splits["train"].labels, self.facts.get("classes", {}))
        if self.mixture is None:
            return dict(splits)
        source, ratio = self.mixture.source, self.mixture.ratio
        if source == "dropped" and self.dropped is None:
            raise ValueError("unlabelled.source=dropped needs verdicts on labels: set labels.kept, or another source")
        if floor(self.batch_size * ratio) < 2 * self._place()[1]:
            raise ValueError(f"unlabelled.ratio={ratio} of batch_size={self.batch_size} is not two photos: raise one")
        known = {"dropped": self.dropped, "train": splits["train"]}
        photos = known[source] if source in known else self.strangers(self.mixture.photos(), splits)
        self.notes.append(f"unlabelled: {len(photos):,} photos ({source}), {ratio:g} for each labelled one of a batch")
        return {**splits, "train": Companions(splits["train"], photos, ratio)}

    def strangers(self, paths: Sequence[Path], splits: Mapping[str, Any]) -> Photos:
        """Photos of some folder as a split, checked as those of the data set are."""
        raise NotImplementedError

    def exactly(self, split: str, index: NDArray[np.int64]) -> Loader:
        """These pictures of a split, in this order, as evaluation sees them."""
        return Loader(self.split(split).pictures(), index.tolist(), min(64, len(index)), False, self.threads)

    def answering(self, paths: Sequence[Path], boxes: Mapping[str, Box] | None = None) -> Loader:
        """Batches of any photos as evaluation sees them; needs no data set.

        Args:
            paths: photos; a broken one is left out and named in the loader's `dataset.broken`.
            boxes: by path as given, or by file name; a photo without one is shown whole.
        """
        given = boxes or {}
        found = [given.get(str(path), given.get(path.name, (np.nan,) * 4)) for path in paths]
        frames = np.array(found, dtype=float).reshape(-1, 4)
        photos = Unlabelled(paths, frames, {}, [str(path) for path in paths], self.transform)
        return Loader(photos, EvalSampler(len(photos)), self.batch_size, False, self.threads)

    def picture(self, split: str, index: int) -> torch.Tensor:
        """One picture (3, H, W) as evaluation sees it, uint8."""
        return cast(torch.Tensor, self.split(split)[index]["image"])

    def train_dataloader(self) -> Any:
        """This rank's share of the shuffled epoch, changed at random where the transform is."""
        rank, world = self._place()
        n = len(self.split("train"))
        sampler = TrainSampler(n, self.batch_size, self.seed, rank, world, self.weights)
        return self.loader("train", sampler, self.batch_size // world)

    def val_dataloader(self) -> Any:
        """This rank's share of the validation photos, each exactly once over all ranks; nothing where none are held."""
        return self._held_out("val") if "val" in self.splits else []

    def test_dataloader(self) -> Any:
        """This rank's share of the test photos, each exactly once over all ranks."""
        return self._held_out("test")

    def predict_dataloader(self) -> Any:
        """This rank's share of the test photos that came without labels."""
        return self._held_out("predict")

    def _held_out(self, name: str) -> Any:
        return self.loader(name, EvalSampler(len(self.split(name)), *self._place()), self.batch_size)

    def _place(self) -> tuple[int, int]:
        """Rank and world size."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
