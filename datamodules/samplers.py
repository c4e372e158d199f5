"""Orders of samples that mean the same for any number of processes.

Training: one global order, a pure function of (seed, epoch); rank r takes its slice of every global batch, so that W
ranks together see exactly the batch that one process would see. Evaluation: rank r takes r, r + W, ...: every sample
once, none twice. Both are torch `DistributedSampler`s by type, since Lightning silently replaces any other sampler
under DDP.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

ROUNDS = 50  # of proportional fitting; three tasks settle to 1e-3 within about ten


class Weights(NamedTuple):
    """How often each sample is wanted in an epoch, on average, and which samples share their classes in every task."""

    each: NDArray[np.float64]
    strata: NDArray[np.int64]


class Draw(NamedTuple):
    """One sample to load: its place in the split, and the key of its randomness (seed, epoch, place in the order)."""

    sample: int
    key: tuple[int, int, int]


def global_order(n: int, seed: int, epoch: int, weights: Weights | None = None) -> NDArray[np.int64]:
    """Indices of one epoch in the order in which they are trained on.

    With weights the epoch is drawn by systematic resampling: sample i occurs floor(w_i) or ceil(w_i) times, and which
    of the two changes from epoch to epoch. Samples of the same classes lie side by side in the drawing, so that
    classes keep their sums.

    Args:
        n: number of samples.
        seed: of the run.
        epoch: number of the epoch.
        weights: how often each sample is wanted in an epoch, on average.
    """
    rng = np.random.default_rng((seed, epoch))
    if weights is None:
        return rng.permutation(n)
    line = np.lexsort((rng.random(n), weights.strata))
    ends = np.cumsum(weights.each[line])
    total = max(1, round(float(ends[-1])))
    marks = (np.arange(total) + rng.random()) * (ends[-1] / total)
    drawn = line[np.minimum(np.searchsorted(ends, marks, side="right"), n - 1)]
    return rng.permutation(drawn)


class TrainSampler(DistributedSampler[Draw]):
    """Rank `rank`'s part of the shuffled epoch; what does not fill a last global batch is left for other epochs.

    Args:
        n: number of samples in the split.
        batch_size: of the whole, over all ranks.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        weights: from `balance_weights`, or None for every sample once.

    Raises:
        ValueError: the batch cannot be shared by the ranks, or there is not one whole batch.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, weights: Weights | None = None
    ) -> None:
        if batch_size % world_size:
            low = batch_size // world_size * world_size
            near = f"{low} or {low + world_size}" if low else f"{world_size}"
            raise ValueError(
                f"batch_size={batch_size} is the batch of all {world_size} devices together and does not divide among "
                f"them: take a multiple of {world_size}, such as {near}"
            )
        length = n if weights is None else max(1, round(float(weights.each.sum())))
        if length < batch_size:
            raise ValueError(
                f"batch_size={batch_size} is larger than the training data ({length} samples an epoch), so there is "
                f"not one batch: take a batch_size of at most {length}"
            )
        super().__init__(cast(Any, range(n)), world_size, rank, shuffle=True, seed=seed, drop_last=True)
        self.n, self.batch_size, self.weights = n, batch_size, weights
        self.batches = length // batch_size

    def __iter__(self) -> Iterator[Draw]:
        order = global_order(self.n, self.seed, self.epoch, self.weights)[: self.batches * self.batch_size]
        positions = np.arange(len(order)).reshape(self.batches, self.num_replicas, -1)[:, self.rank].ravel()
        for position in positions.tolist():
            yield Draw(int(order[position]), (self.seed, self.epoch, position))

    def __len__(self) -> int:
        return self.batches * self.batch_size // self.num_replicas


class EvalSampler(DistributedSampler[int]):
    """Every sample once over all ranks, in order: rank, rank + world_size, ...

    Args:
        n: number of samples in the split.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ValueError: there are fewer samples than ranks, so that some would have nothing to do (and the others wait for
            them).
    """

    def __init__(self, n: int, rank: int = 0, world_size: int = 1) -> None:
        if n < world_size:
            raise ValueError(f"{n} samples are too few for {world_size} devices, each needs one: use at most {n}")
        super().__init__(cast(Any, range(n)), world_size, rank, shuffle=False)
        self.share = range(rank, n, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)

    def __len__(self) -> int:
        return len(self.share)


def _bound(name: str, value: float | None, n: int, default: float) -> float:
    """A bound in images: a whole number is one already, a number below 1 is a share of the n samples."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"balance.{name}={value!r} is neither a number of images nor a share of the data below 1")
    return value * n if value < 1 else float(value)


def balance_weights(labels: Mapping[str, NDArray[np.int64]], balance: Mapping[str, float | None]) -> Weights:
    """How often each sample is wanted in an epoch, to fill small classes and cut large ones in all tasks at once.

    Each task wants its class counts n_c clipped to [floor, ceiling]. Iterative proportional fitting scales the
    weights of the samples, one task after the other, until every class of every task sums to its target; the tasks'
    totals are first made equal (their mean), because one epoch has one length. Samples without a label in a task are
    left alone by that task.

    Reference: Deming and Stephan, 1940 (proportional fitting).

    Args:
        labels: class id of each sample for each task, -1 where it is missing.
        balance: `floor` and `ceiling` of a class: images, or a share of the data below 1; either may be left out.

    Raises:
        ValueError: an unknown name, a bound that is no number, or a floor above the ceiling.
    """
    if set(balance) - {"floor", "ceiling"}:
        raise ValueError(f"balance has no setting {min(set(balance) - {'floor', 'ceiling'})!r}; it has floor, ceiling")
    n = len(next(iter(labels.values())))
    floor, ceiling = _bound("floor", balance.get("floor"), n, 0), _bound("ceiling", balance.get("ceiling"), n, n)
    if floor > ceiling:
        raise ValueError(f"balance: floor={floor:g} images lies above ceiling={ceiling:g}")
    known = {task: ids[ids >= 0] for task, ids in labels.items()}
    counts = {task: np.bincount(ids).astype(float) for task, ids in known.items() if len(ids)}
    wanted = {task: np.where(count > 0, np.clip(count, floor, ceiling), 0) for task, count in counts.items()}
    free = {task: n - count.sum() for task, count in counts.items()}  # samples without a label
    length = np.mean([wanted[task].sum() + free[task] for task in wanted])
    weights = np.ones(n)
    for _ in range(ROUNDS):
        for task, target in wanted.items():
            has = labels[task] >= 0
            now = np.bincount(labels[task][has], weights[has], minlength=len(target))
            goal = target * (length - weights[~has].sum()) / target.sum()
            factor = np.divide(goal, now, out=np.ones_like(now), where=now > 0)
            weights[has] *= factor[labels[task][has]]
    strata = np.unique(np.stack(list(labels.values())), axis=1, return_inverse=True)[1]
    return Weights(weights * (max(1, round(float(length))) / weights.sum()), strata.reshape(-1))
