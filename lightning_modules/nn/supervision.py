"""What a classifier of one task or of several learns from a training batch: labels, and photos without any."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.nn.balance import BalancedCrossEntropy
from lightning_modules.nn.heads import TaskDict
from lightning_modules.nn.losses import MISSING, cross_entropy
from lightning_modules.nn.uda import UDA, Agreement

Logits = dict[str, Tensor]


class Learned(NamedTuple):
    """The losses of a batch, sample by sample: what to divide their sums by is the caller's to know.

    Attributes:
        logits: {task: (B, C)} of the labelled photos.
        losses: {task: (B,)}, 0 where a sample is not counted.
        counted: {task: (B,)}, which samples are.
        agreements: {task: consistency on the unlabelled photos}; empty without `uda`.
    """

    logits: Logits
    losses: dict[str, Tensor]
    counted: dict[str, Tensor]
    agreements: dict[str, Agreement]

    @property
    def inconsistency(self) -> dict[str, Tensor]:
        """{task: losses (U,) on the unlabelled photos}."""
        return {task: each.losses for task, each in self.agreements.items()}

    @property
    def everyone(self) -> dict[str, Tensor]:
        """{task: all (U,) of them}: a photo without a clear answer counts with a loss of 0, as published."""
        return {task: torch.ones_like(each.confident) for task, each in self.agreements.items()}

    def scalars(self) -> dict[str, Tensor]:
        """What is logged, by every process: the share of its unlabelled photos with a confident answer."""
        if not self.agreements:
            return {}
        confident = torch.cat([each.confident for each in self.agreements.values()])
        return {"unlabelled/confident": confident.float().sum() / max(1, len(confident))}


def judged(logits: Logits, labels: Mapping[str, Tensor]) -> Learned:
    """The plain cross entropy by which every technique is evaluated."""
    losses = {task: cross_entropy(scores, labels[task]) for task, scores in logits.items()}
    return Learned(logits, losses, {task: labels[task] != MISSING for task in logits}, {})


class Supervision(nn.Module):
    """Cross entropy of each task, balanced or not, and consistency on unlabelled photos where there are any.

    Args:
        classes: {task: names of its classes}.
        label_smoothing: of the cross entropy.
        balance: over the classes of each task, see `BalancedCrossEntropy`.
        strength: of the balance.
        counts: {task: training labels of each class}, which balance needs.
        uda: consistency; None does not look at unlabelled photos.

    Raises:
        ValueError: a setting of the balance is out of range.
    """

    def __init__(
        self,
        classes: Mapping[str, Sequence[str]],
        label_smoothing: float,
        balance: str,
        strength: float,
        counts: Mapping[str, Sequence[int]] | None,
        uda: UDA | None,
    ) -> None:
        super().__init__()
        self.label_smoothing, self.uda = label_smoothing, uda
        sizes = counts or {}
        self.losses = TaskDict({task: BalancedCrossEntropy(balance, strength, sizes.get(task)) for task in classes})

    @property
    def weight(self) -> float:
        """Of the consistency beside the cross entropy."""
        return 0.0 if self.uda is None else self.uda.weight

    def forward(
        self,
        score: Callable[[Mapping[str, Any]], Logits],
        batch: Mapping[str, Any],
        epoch: int,
        progress: Callable[[], float],
    ) -> Learned:
        """The losses of a training batch.

        Args:
            score: {task: logits} of a batch.
            batch: `labels`, what `score` reads, and `unlabelled` where there is consistency.
            epoch: from 0.
            progress: tells the share of the fit that is over.

        Raises:
            ValueError: consistency without unlabelled photos.
        """
        labels: Mapping[str, Tensor] = batch["labels"]
        counted = {task: labels[task] != MISSING for task, _ in self.losses.items()}
        agreements: dict[str, Agreement] = {}
        if self.uda is None:
            logits = score(batch)
        else:
            if "unlabelled" not in batch:
                raise ValueError(
                    "uda learns from unlabelled photos, and the data bring none: set unlabelled of the data."
                )
            logits, agreements = self.uda(score, batch["image"], batch["unlabelled"], epoch)
            over = progress()
            counted = {t: known & self.uda.still_learned(logits[t], labels[t], over) for t, known in counted.items()}
        losses = {t: loss(logits[t], labels[t], self.label_smoothing) * counted[t] for t, loss in self.losses.items()}
        return Learned(logits, losses, counted, agreements)
