"""One class for each image: the plain classifier, which with a frozen encoder is a linear probe."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_modules.base import Answer, Batch, Technique, labels_of, likeliest, task_means
from lightning_modules.nn.balance import Balance
from lightning_modules.nn.heads import TaskDict
from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.losses import MISSING
from lightning_modules.nn.metrics import ExactMean, HitAtK, classification_scores
from lightning_modules.nn.supervision import Learned, Supervision, judged
from lightning_modules.nn.tasks import one_task
from lightning_modules.nn.uda import UDA
from lightning_modules.optimisers import Optimiser

TOP = 5


class Classifier(Technique):
    """One linear layer on an encoder, for one task.

    What is trained makes it three techniques, told apart by callbacks alone. With the encoder frozen it is a linear
    probe, which asks how well a plane through the features separates the classes, and so what an encoder has learned.
    With an encoder taken over but free it is fine-tuning, and with a random one training from scratch.

    loss = mean of CE over the samples that have a label, over those of all processes together

    Reference: linear probes, Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2017.

    Args:
        encoder: (B, 3, H, W) images to (B, D) features; has `features` = D.
        classes: {task: names of its classes}; null in YAML, filled in from the data.
        task: which of them; null is the first.
        label_smoothing: of the training loss alone; `val/loss` and `test/loss` are plain cross entropy.
        dropout: on the features.
        augment: changes training images, on their device, before the encoder sees them; None changes nothing. It has
            `slots`, the random numbers that it wants for an image, and takes images and these numbers (B, slots). It
            learns nothing here: what has parameters, such as a generator, is frozen by its callback.
        seed: of those numbers, which are a function of it, of the epoch and of the image's place in its split.
        optimiser: optimiser and schedule.
        balance: of the training loss over the classes, see `BalancedCrossEntropy`.
        balance_strength: of it.
        counts: {task: training labels of each class}; null in YAML, filled in from the data.
        uda: consistency on the unlabelled photos that training batches bring, see `UDA`; None for none.

    Attributes:
        classes: the one task with its classes.
        head: the linear layer.
        metrics: {split: {"loss", "confusion", and with six classes or more "top5"}}.

    Raises:
        ValueError: no such task, a task of fewer than two classes, a number out of range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        classes: Mapping[str, Sequence[str]] | None,
        task: str | None,
        label_smoothing: float,
        dropout: float,
        augment: nn.Module | None,
        seed: int,
        optimiser: Optimiser,
        balance: Balance = "none",
        balance_strength: float = 1.0,
        counts: Mapping[str, Sequence[int]] | None = None,
        uda: UDA | None = None,
    ) -> None:
        super().__init__(optimiser)
        for key, value in (("label_smoothing", label_smoothing), ("dropout", dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{key}={value} must be at least 0 and below 1.")
        self.task, names = one_task(classes, task)
        self.classes = {self.task: names}
        self.seed = seed
        self.encoder, self.augment = encoder, augment
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(int(encoder.features), len(names))  # type: ignore[arg-type]
        self.supervision = Supervision(self.classes, label_smoothing, balance, balance_strength, counts, uda)
        self.metrics = nn.ModuleDict({split: measures(self.task, len(names)) for split in ("val", "test")})

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, H, W) images, uint8 or in 0..1."""
        return self.score({"image": image})

    def score(self, batch: Batch) -> Tensor:
        """Logits of a batch's images, or of its features."""
        return self.head(self.dropout(self.encode(batch)))

    def step(self, batch: Batch, split: str) -> dict[str, Any]:
        """The batch's loss; and `logits` and `labels` by task, and `index`, for callbacks."""
        train, labels = split == "train", labels_of(batch)[self.task]
        if train:
            found = self.supervision(self.answer, self.augmented(batch), self.current_epoch, self.progress)
        else:
            found = judged(self.answer(batch), batch["labels"])
            self.measure(split, found, labels)
        loss = task_means(found.losses, found.counted, train)[self.task]
        apart = task_means(found.inconsistency, found.everyone, train)
        return {
            "loss": loss + self.supervision.weight * apart.get(self.task, 0.0),
            **({"unlabelled/loss": apart[self.task].detach()} if apart else {}),
            **found.scalars(),
            "logits": {self.task: found.logits[self.task].detach().float()},
            "labels": {self.task: labels},
            "index": batch["index"],
        }

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """`score` by task."""
        return {self.task: self.score(batch)}

    @torch.no_grad()
    def augmented(self, batch: Batch) -> Batch:
        """The batch with its images changed at random, if there is something that changes them.

        Raises:
            ValueError: it brings features that were computed once, which no change of images can reach.
        """
        if self.augment is None:
            return batch
        if "image" not in batch:
            raise ValueError("augment changes the images of each epoch, which kept features do not show: features=off.")
        draws = uniform(self.seed, self.current_epoch, batch["index"], int(self.augment.slots))  # type: ignore[arg-type]
        return {**batch, "image": self.augment(batch["image"], draws)}

    def measure(self, split: str, found: Learned, labels: Tensor) -> None:
        """Adds a batch to the split's metrics; a sample without a label counts nowhere."""
        metrics, known, logits = self.metrics[split], labels != MISSING, found.logits[self.task]
        metrics["loss"].update(found.losses[self.task], known)
        metrics["confusion"][self.task].update(logits.argmax(1), labels)
        if "top5" in metrics:
            metrics["top5"].update(logits, labels[known], F.pad(known.cumsum(0), (1, 0)))

    def results(self, split: str) -> dict[str, float]:
        """`val/loss`, `val/top1`, `val/top5`, and macro means `val/precision`, `val/recall`, `val/f1`."""
        metrics = self.metrics[split]
        scores = classification_scores(metrics["confusion"][self.task].compute())
        if not scores:
            return {}
        if "top5" in metrics:
            scores["top5"] = metrics["top5"].compute()[HitAtK.ALL][TOP]
        scores["loss"] = metrics["loss"].compute().item()
        return {f"{split}/{key}": value for key, value in scores.items()}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """`logits` by task, and `index`; needs no labels."""
        return {"logits": {self.task: self.score(batch).float()}, "index": batch["index"]}

    @torch.no_grad()
    def answers(self, batch: Batch, top_k: int) -> list[Answer]:
        """For each image the `top_k` likeliest (class, probability) pairs, best first."""
        rows = likeliest(self.score(batch).float().softmax(1), self.classes[self.task], top_k)
        return [{self.task: row} for row in rows]


def measures(task: str, classes: int) -> nn.ModuleDict:
    """The metrics of one split; in the confusion matrix row = truth, column = guess."""
    confusion = MulticlassConfusionMatrix(classes, ignore_index=MISSING, validate_args=False)
    found = nn.ModuleDict({"loss": ExactMean(), "confusion": TaskDict({task: confusion})})
    if classes > TOP:  # among fewer every answer is right
        found["top5"] = HitAtK([TOP])
    return found
