"""The loader of all DataModules: decodes in threads, some batches ahead, and goes on mid-epoch where it was stopped."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from datamodules.photos import Batch, Item, Photos, each_tensor
from datamodules.samplers import EvalSampler, TrainSampler


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
        dataset: Photos,
        sampler: TrainSampler | EvalSampler | None = None,
        batch_size: int = 1,
        drop_last: bool = False,
        threads: int = 2,
        ahead: int = 2,
    ) -> None:
        pin = torch.cuda.is_available()
        super().__init__(dataset, batch_size, sampler=cast(Any, sampler), drop_last=drop_last, pin_memory=pin)
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

    def _start(self, pool: ThreadPoolExecutor, items: list[Item]) -> tuple[Batch, list[Future[None]]]:
        """A batch whose pixels the pool is about to write, each thread every `threads`-th of them."""
        photos = cast(Photos, self.dataset)
        batch = photos.blank(items)
        if self.pin_memory:
            batch = each_tensor(batch, torch.Tensor.pin_memory)
        slots = [range(at, len(items), self.threads) for at in range(min(self.threads, len(items)))]
        return batch, [pool.submit(photos.fill, batch, items, part) for part in slots]

    def _wait(self, batch: Batch, parts: list[Future[None]]) -> Batch | None:
        for part in parts:
            part.result()
        return cast(Photos, self.dataset).finish(batch)

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches handed out in it."""
        return dict(self._resume or self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after the batches that `state` says were handed out."""
        self._resume = {"epoch": int(state["epoch"]), "done": int(state["done"])}
