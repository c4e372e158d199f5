"""Several attributes of a photo from one network: a shared trunk and one head for each task."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_modules.base import Answer, Batch, Technique, labels_of, likeliest, task_means
from lightning_modules.nn.balance import Balance
from lightning_modules.nn.heads import TaskDict
from lightning_modules.nn.losses import MISSING
from lightning_modules.nn.metrics import ExactMean, classification_scores
from lightning_modules.nn.supervision import Learned, Supervision, judged
from lightning_modules.nn.uda import UDA
from lightning_modules.optimisers import Optimiser


class FashionMTL(Technique):
    """Multi-task classification with a shared trunk.

    What is seen of a garment (shape, texture, colour) serves every question about it, so the tasks share one encoder,
    and each has a fully connected layer of its own: all answers for the cost of one network.

    loss = Σ_t w_t · mean of CE_t over the samples that have a label of task t

    The mean is over the whole batch, the other processes' part included, so that any number of processes gives the same
    gradient. A task without a label in the batch contributes 0.

    Reference: Caruana, Multitask Learning, 1997 (hard parameter sharing). The recipe, a frozen ImageNet ResNet and one
    new layer a task, is an entry to the ETRI fashion attribute challenge of 2022; the freezing is a callback.

    Args:
        encoder: (B, 3, H, W) images to (B, D) features; has `features` = D, and `twin()` if nothing is shared.
        classes: {task: names of its classes}; null in YAML, filled in from the data.
        shared: one encoder for all tasks. False gives each task a network of its own, which the claim is measured
            against.
        loss_weights: {task: w}; a task that is not named has 1.
        label_smoothing: of the training loss alone; `val/loss` and `test/loss` are plain cross entropy.
        dropout: on the features.
        optimiser: optimiser and schedule.
        balance: of the training loss over the classes of each task, see `BalancedCrossEntropy`.
        balance_strength: of it.
        counts: {task: training labels of each class}; null in YAML, filled in from the data.
        uda: consistency on the unlabelled photos that training batches bring, see `UDA`; None for none.

    Attributes:
        encoder: the trunk, or a `TaskDict` of trunks.
        heads: a `TaskDict` of linear layers.
        metrics: {split: {"loss": ..., "confusion": ...}}, `TaskDict`s of torchmetrics.

    Raises:
        ValueError: no tasks, a task of fewer than two classes, a weight for an unknown task, a number out of range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        classes: Mapping[str, Sequence[str]] | None,
        shared: bool,
        loss_weights: Mapping[str, float] | None,
        label_smoothing: float,
        dropout: float,
        optimiser: Optimiser,
        balance: Balance = "none",
        balance_strength: float = 1.0,
        counts: Mapping[str, Sequence[int]] | None = None,
        uda: UDA | None = None,
    ) -> None:
        super().__init__(optimiser)
        check_tasks(classes or {}, loss_weights or {})
        for key, value in (("label_smoothing", label_smoothing), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{key}={value} must be at least 0 and below 1.")
        self.classes = {task: [str(name) for name in names] for task, names in (classes or {}).items()}
        self.loss_weights = {task: float((loss_weights or {}).get(task, 1.0)) for task in self.classes}
        width = int(encoder.features)  # type: ignore[arg-type]  # nn.Module declares its attributes as modules
        self.encoder = encoder if shared else separate(encoder, self.classes)
        self.dropout = nn.Dropout(dropout)
        self.heads = TaskDict({task: nn.Linear(width, len(names)) for task, names in self.classes.items()})
        self.supervision = Supervision(self.classes, label_smoothing, balance, balance_strength, counts, uda)
        self.metrics = nn.ModuleDict({split: measures(self.classes) for split in ("val", "test")})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """{task: logits (B, classes of the task)} of (B, 3, H, W) images, uint8 or in 0..1."""
        return self.score({"image": image})

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """{task: logits} of a batch's images, or of its features where one trunk serves all tasks."""
        if isinstance(self.encoder, TaskDict):
            return {task: self.heads[task](self.dropout(trunk(batch["image"]))) for task, trunk in self.encoder.items()}
        features = self.dropout(self.encode(batch))
        return {task: head(features) for task, head in self.heads.items()}

    def step(self, batch: Batch, split: str) -> dict[str, Any]:
        """The batch's losses; and `logits` and `labels` by task, and `index`, for callbacks."""
        train, labels = split == "train", labels_of(batch)
        if train:
            found = self.supervision(self.score, batch, self.current_epoch, self.progress)
        else:
            found = judged(self.score(batch), batch["labels"])
            self.measure(split, found, labels)
        means = task_means(found.losses, found.counted, train)
        apart = task_means(found.inconsistency, found.everyone, train)
        return {
            "loss": self.weigh(means) + self.supervision.weight * self.weigh(apart),
            **{f"{task}/loss": mean.detach() for task, mean in means.items()},
            **({"unlabelled/loss": self.weigh(apart).detach()} if apart else {}),
            **found.scalars(),
            "logits": {task: scores.detach().float() for task, scores in found.logits.items()},
            "labels": labels,
            "index": batch["index"],
        }

    def measure(self, split: str, found: Learned, labels: Mapping[str, Tensor]) -> None:
        """Adds a batch to the split's metrics."""
        for task in self.classes:
            self.metrics[split]["loss"][task].update(found.losses[task], found.counted[task])
            self.metrics[split]["confusion"][task].update(found.logits[task].argmax(1), labels[task])

    def results(self, split: str) -> dict[str, float]:
        """Scores of each task (`val/Daily/top1`), and their means over the tasks that have labels (`val/top1`)."""
        matrices = self.metrics[split]["confusion"].items()
        scores = {task: found for task, metric in matrices if (found := classification_scores(metric.compute()))}
        losses = {task: metric.compute().item() for task, metric in self.metrics[split]["loss"].items()}
        if not scores:
            return {}
        results = {f"{split}/loss": self.weigh({task: losses[task] for task in scores})}
        for key in next(iter(scores.values())):
            results[f"{split}/{key}"] = sum(each[key] for each in scores.values()) / len(scores)
        for task, each in scores.items():
            results |= {f"{split}/{task}/loss": losses[task]}
            results |= {f"{split}/{task}/{key}": value for key, value in each.items()}
        return results

    def weigh(self, losses: Mapping[str, Any]) -> Any:
        """Σ_t w_t · loss_t, of numbers or of tensors."""
        return sum(self.loss_weights[task] * loss for task, loss in losses.items())

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """`logits` by task, and `index`; needs no labels."""
        return {"logits": {task: x.float() for task, x in self.score(batch).items()}, "index": batch["index"]}

    @torch.no_grad()
    def answers(self, batch: Batch, top_k: int) -> list[Answer]:
        """For each image, for each task, the `top_k` likeliest (class, probability) pairs, best first."""
        logits = self.score(batch)
        columns = [likeliest(logits[task].float().softmax(1), self.classes[task], top_k) for task in self.classes]
        return [dict(zip(self.classes, row, strict=True)) for row in zip(*columns, strict=True)]


def check_tasks(classes: Mapping[str, Sequence[str]], loss_weights: Mapping[str, float]) -> None:
    """Refuses tasks that cannot be learned, and weights of tasks that do not exist."""
    if not classes:
        raise ValueError("classes is empty: give {task: [class names]}, or leave it null for the data to fill in.")
    for task, names in classes.items():
        if len(names) < 2:
            raise ValueError(f"classes.{task}={list(names)}: a task needs two classes or more to be learned.")
    for task, weight in loss_weights.items():
        if task not in classes:
            nearest = difflib.get_close_matches(task, classes, n=1) or list(classes)
            raise ValueError(f"loss_weights.{task}: there is no such task; did you mean {', '.join(nearest)}?")
        if weight < 0:
            raise ValueError(f"loss_weights.{task}={weight} must not be negative.")


def separate(encoder: nn.Module, tasks: Iterable[str]) -> TaskDict:
    """One encoder a task: the given one for the first task, twins of it for the others."""
    first, *others = tasks
    return TaskDict({first: encoder, **{task: encoder.twin() for task in others}})  # type: ignore[operator]


def measures(classes: Mapping[str, Sequence[str]]) -> nn.ModuleDict:
    """The metrics of one split; in a confusion matrix row = truth, column = guess."""
    confusion = {
        task: MulticlassConfusionMatrix(len(names), ignore_index=MISSING, validate_args=False)
        for task, names in classes.items()
    }
    return nn.ModuleDict({"loss": TaskDict({task: ExactMean() for task in classes}), "confusion": TaskDict(confusion)})
