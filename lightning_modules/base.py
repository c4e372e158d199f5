"""What every technique is to the engine: a few questions, and the wiring that is the same for all of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from lightning_modules.optimisers import Optimiser

Batch = Mapping[str, Any]
Answer = dict[str, list[tuple[str, float]]]


class Technique(LightningModule, ABC):
    """A way of learning from images; a subclass answers `step`, `results` and `answers`.

    Training, validation and test are one `step` told which split it sees. Nothing is logged while training: the engine
    reads the loss, and every other scalar, from what `step` returns. In evaluation the step updates `metrics[split]`,
    and `results` turns them into numbers once, at the epoch's end.

    Args:
        optimiser: optimiser and schedule.

    Attributes:
        strategy: the Trainer's strategy that the technique needs on several devices.
        encoder: the trunk.
        metrics: nn.ModuleDict {"val": ..., "test": ...} of modules that hold torchmetrics; emptied when an epoch of
            their split starts.
    """

    strategy: ClassVar[str] = "ddp"
    encoder: nn.Module
    metrics: Any  # nn.ModuleDict, whose items type checkers take for plain modules

    def __init__(self, optimiser: Optimiser) -> None:
        super().__init__()
        self.optimiser = optimiser

    @abstractmethod
    def step(self, batch: Batch, split: str) -> dict[str, Any]:
        """One batch: `loss`, a scalar; other scalars to log; and, detached, what callbacks may read."""

    @abstractmethod
    def results(self, split: str) -> dict[str, float]:
        """What the epoch's metrics come to: {"val/loss": ..., "val/top1": ...}. Every rank must call it."""

    @abstractmethod
    def answers(self, batch: Batch, top_k: int) -> list[Answer]:
        """For each image, for each task, the `top_k` likeliest (class, probability) pairs, best first."""

    @classmethod
    def check_trainer(cls, trainer: Mapping[str, Any]) -> None:
        """Refuses, with a `ValueError`, Trainer arguments that the technique would not obey; asked before any stage."""

    def encode(self, batch: Batch) -> Tensor:
        """The trunk's features (B, D) of a batch's images.

        A batch may bring features that were computed before instead: the trunk's own, or, of a trunk that is frozen in
        part, the maps (B, C, H, W) that its frozen beginning ends with.
        """
        if "features" not in batch:
            return self.encoder(batch["image"])
        features = batch["features"].float()
        return features if features.ndim == 2 else self.encoder.above(features)  # type: ignore[operator]

    def embed(self, batch: Batch) -> Tensor:
        """What similarity search compares (B, D), by cosine: the trunk's features, unless a technique has better."""
        return self.encode(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self.train_group(batch["group"]) if "group" in batch else self.step(batch, "train")

    def train_group(self, batches: Sequence[Batch]) -> dict[str, Any]:
        """Several steps at once, for cached features: a step on them is shorter than what the Trainer does around it.

        Optimisation is manual then, and never with a gradient scaler (16-mixed). Lightning counts the group as one
        step; its schedule advances with each minibatch.

        Returns:
            The mean of each scalar over the minibatches, and in `steps` what else each of them returned, for callbacks.
        """
        optimizer, schedule = cast(LightningOptimizer, self.optimizers()), self.lr_schedulers()
        # Without other processes to reduce with, Lightning's backward adds its hooks' time only.
        backward = Tensor.backward if self.trainer.world_size == 1 else self.manual_backward
        scalars: list[dict[str, Tensor]] = []
        steps: list[dict[str, Any]] = []
        for number, batch in enumerate(batches, 1):
            found = self.step(batch, "train")
            optimizer.zero_grad()
            backward(found["loss"])
            (optimizer if number == len(batches) else optimizer.optimizer).step()
            if schedule is not None:
                schedule.step()  # type: ignore[union-attr]
            scalars.append({k: v.detach() for k, v in found.items() if isinstance(v, Tensor) and v.ndim == 0})
            steps.append({k: v for k, v in found.items() if k not in scalars[-1]})
        means = {key: torch.stack([each[key] for each in scalars]).mean() for key in scalars[0]}
        return {**means, "steps": steps}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self.step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self.step(batch, "test")

    def on_validation_epoch_start(self) -> None:
        self.reset_metrics("val")

    def on_test_epoch_start(self) -> None:
        self.reset_metrics("test")

    def on_validation_epoch_end(self) -> None:
        self.report("val")

    def on_test_epoch_end(self) -> None:
        self.report("test")

    def reset_metrics(self, split: str) -> None:
        """Empties a split's metrics. At the start of an epoch, so that callbacks can read them after its end."""
        for module in self.metrics[split].modules():
            if isinstance(module, Metric):
                module.reset()

    def report(self, split: str) -> None:
        """Logs the epoch's results.

        They are the same on every rank already. Lightning wants a reduction all the same, and the maximum of equal
        numbers is the one that leaves each digit alone.
        """
        self.log_dict(self.results(split), sync_dist=True, reduce_fx="max")

    def progress(self) -> float:
        """Share of the fit that is over."""
        return min(1.0, self.trainer.global_step / self.count_steps()[1])

    @property
    def may_fuse(self) -> bool:
        """Whether an optimiser's step may be fused.

        A fused step unscales the gradients of mixed precision itself, too late for what clips them: Lightning refuses
        the two together, and a technique that clips by itself (16-mixed) would clip scaled ones.
        """
        precision = str(self.trainer.precision)
        return precision != "16-mixed" and not (precision.endswith("-mixed") and self.trainer.gradient_clip_val)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimiser.build(self.named_parameters(), fused=self.may_fuse)
        if self.optimiser.steady:
            return optimizer
        epoch_steps, steps = self.count_steps()
        schedule = LambdaLR(optimizer, lambda step: self.optimiser.factor(step, epoch_steps, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def count_steps(self) -> tuple[int, int]:
        """Optimiser steps in an epoch and in the whole fit."""
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(f"optimiser.schedule={self.optimiser.schedule} needs trainer.max_epochs or max_steps.")
        batches = self.trainer.num_training_batches
        if not self.automatic_optimization:  # groups of minibatches, see `train_group`
            batches = cast(Any, self.trainer.train_dataloader).minibatches
            steps = batches * (self.trainer.max_epochs or 1)
        return max(1, math.ceil(batches / self.trainer.accumulate_grad_batches)), int(steps)


def labels_of(batch: Batch) -> Mapping[str, Tensor]:
    """A batch's labels, {task: (B,)}.

    Raises:
        ValueError: it has none, as training batches of data that are learned from without labels.
    """
    if "labels" not in batch:
        raise ValueError(
            "the training batches of this data set have no labels: take a data set that has, or a technique that needs "
            "none, such as simclr or triplet"
        )
    return cast(Mapping[str, Tensor], batch["labels"])


def mean_over_ranks(counts: Tensor) -> Tensor:
    """Each count's mean over the processes: what DDP's averaging of gradients wants a local sum to be divided by."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
        counts = counts / dist.get_world_size()
    return counts


def task_means(losses: Mapping[str, Tensor], counted: Mapping[str, Tensor], train: bool) -> dict[str, Tensor]:
    """Each task's mean over the samples that count; 0 if there are none.

    Args:
        losses: {task: (B,)}, 0 where a sample does not count.
        counted: {task: (B,)}, which do.
        train: whether those of the other processes count too, so that any number of them gives the same gradient.
    """
    if not losses:
        return {}
    counts = torch.stack([counted[task].sum() for task in losses]).float()
    if train:
        counts = mean_over_ranks(counts)
    divisors = torch.where(counts > 0, counts, 1.0)
    return {task: losses[task].sum() / n for task, n in zip(losses, divisors, strict=True)}


def likeliest(probabilities: Tensor, names: Sequence[str], top_k: int) -> list[list[tuple[str, float]]]:
    """The `top_k` best (class, probability) pairs of each row of (B, C)."""
    values, ids = probabilities.topk(min(top_k, len(names)))
    rows = zip(ids.tolist(), values.tolist(), strict=True)
    return [[(names[i], value) for i, value in zip(*row, strict=True)] for row in rows]
