"""Judges a representation without training anything on it: the vote of the nearest training photos."""

from typing import Any

import numpy as np
from lightning import Callback, Trainer
from numpy.typing import NDArray

from callbacks.embeddings import embed
from callbacks.gallery import unit
from callbacks.nearest import encode, nearest
from callbacks.predictions import datamodule

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


class KNN(Callback):
    """Logs `test/knn`, the share of test photos whose class their nearest training photos vote for.

    A linear probe has rates and epochs that can be chosen well or badly; this has nothing to choose. A vote weighs
    exp(cosine / τ), of classes with equal votes the first wins, and a photo without a label neither votes nor is asked.

    Reference: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018, section 3.4.

    Args:
        neighbours: how many vote, or all where there are fewer.
        temperature: τ.
    """

    def __init__(self, neighbours: int, temperature: float) -> None:
        if neighbours < 1 or temperature <= 0:
            raise ValueError(f"knn.neighbours={neighbours} must be 1 or more, knn.temperature={temperature} above 0")
        self.neighbours, self.temperature = neighbours, temperature

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        (voters, known), (asked, truth) = (labelled(trainer, pl_module, split) for split in ("train", "test"))
        share = np.nan
        if trainer.is_global_zero and len(voters) and len(asked):
            cosine, place = nearest(asked, voters, encode(voters), min(self.neighbours, len(voters)))
            share = float((elect(known[place], cosine / self.temperature) == truth).mean())
        if not np.isnan(share := trainer.strategy.broadcast(share)):
            pl_module.log("test/knn", share, sync_dist=True, reduce_fx="max")


def elect(votes: Labels, logits: Floats) -> Labels:
    """The class with the greatest sum of exp(logit) in each row, of equal ones the first.

    Args:
        votes: class ids (Q, k).
        logits: of each vote (Q, k).
    """
    weights = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    sums = np.zeros((len(votes), int(votes.max()) + 1))
    np.add.at(sums, (np.arange(len(votes))[:, None], votes), weights)
    return sums.argmax(1)


def labelled(trainer: Trainer, module: Any, split: str) -> tuple[Floats, Labels]:
    """On rank 0 the directions and class ids of a split's photos that can be read and have a label of the first task.

    Features that the stage keeps are not computed again.
    """
    data = datamodule(trainer)
    labels = np.asarray(data.splits[split].labels[next(iter(data.facts["classes"]))])
    index = np.flatnonzero(labels >= 0)
    store = getattr(data, "store", None)
    vectors = store.rows(split)[index] if store and len(data.shape) == 1 else embed(trainer, module, split, index)
    if not trainer.is_global_zero:
        return np.empty((0, 0), np.float32), labels[:0]
    readable = np.isfinite(vectors).all(1)
    return unit(vectors[readable]), labels[index][readable]
