"""SimCLR: what images are like, learned from images alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_modules.base import Answer, Batch, Technique, likeliest, mean_over_ranks
from lightning_modules.nn.heads import TaskDict
from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.losses import MISSING, cross_entropy
from lightning_modules.nn.metrics import classification_scores
from lightning_modules.nn.nt_xent import Precision, check_settings, nt_xent
from lightning_modules.nn.projector import projector as build_projector
from lightning_modules.nn.representation import alignment, effective_rank, knn_top1, spread, uniformity
from lightning_modules.nn.retrieval import Embeddings
from lightning_modules.nn.tasks import one_task
from lightning_modules.optimisers import Optimiser

FIXED = -1  # the epoch whose views evaluation sees, which no training has
CHUNK = 256  # images whose views are told apart in `val/loss`, whatever the batch


class SimCLR(Technique):
    """Contrastive learning: two random views of an image are to be found among those of the rest of the batch.

    What stays the same through crop, colour and blur is what an image shows, so an encoder that can tell whose view it
    sees has learned to look at that. It needs no labels; where the data have some, they are read out but never
    learned from: a linear layer on detached features and the vote of nearest neighbours say how the encoder does.

    loss = mean over all views a of −log( exp(s(a, a⁺) / τ) / Σ_{b ≠ a} exp(s(a, b) / τ) ),  s = cosine of projections

    The sum runs over the views of all processes' batches together. Accumulated gradients do not enlarge it: each
    micro-batch is told apart by itself.

    Reference: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020.

    Args:
        encoder: (B, 3, H, W) images to (B, D) features; has `features` = D.
        views: an image and `slots` random numbers to a view.
        projector: widths of the MLP between features and loss; it is not used afterwards.
        projector_norm: batch normalisation in it.
        temperature: τ.
        precision: of the loss's matrix products, `float32` or `bfloat16`.
        joint_views: pass both views through the network in one batch, which batch normalisation then has statistics of,
            as the paper's and the reference implementation do; False passes one after the other, as lightly does.
        classes: {task: names of its classes} if there are labels to read out; null in YAML, filled in from the data.
        task: which of them; null is the first.
        neighbours: that vote.
        seed: of the views, which are a function of it, of the epoch and of the image's place in its split.
        optimiser: optimiser and schedule.

    Attributes:
        projector: the MLP.
        readout: a linear layer on features that are detached; None without classes.
        taught: in how many steps the readout was shown a label; before the first it has nothing to say.

    Raises:
        ValueError: a setting out of range, no such task; at the start of a fit, a batch of one image.
    """

    taught: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        views: nn.Module,
        projector: Sequence[int],
        projector_norm: bool,
        temperature: float,
        precision: Precision,
        joint_views: bool,
        classes: Mapping[str, Sequence[str]] | None,
        task: str | None,
        neighbours: int,
        seed: int,
        optimiser: Optimiser,
    ) -> None:
        super().__init__(optimiser)
        check_settings(temperature, precision)
        if neighbours < 1:
            raise ValueError(f"neighbours={neighbours}: one or more must vote.")
        self.temperature, self.precision, self.joint_views = temperature, precision, joint_views
        self.neighbours, self.seed = neighbours, seed
        width = int(encoder.features)  # type: ignore[arg-type]  # nn.Module declares its attributes as modules
        self.encoder, self.views = encoder, views
        self.projector = build_projector(width, projector, projector_norm)
        self.widths = [width, *[projector[-1] if projector else width] * 2]
        self.task, names = one_task(classes, task) if classes else ("", [])
        self.classes = {self.task: names} if classes else {}
        self.readout = nn.Linear(width, len(names)) if classes else None
        self.register_buffer("taught", torch.zeros((), dtype=torch.int64))
        self.metrics = nn.ModuleDict({split: measures(self.classes) for split in ("val", "test")})

    def setup(self, stage: str) -> None:
        """Refuses a batch of one image, before the first epoch."""
        size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", 2)
        if stage == "fit" and size < 2:
            raise ValueError(
                f"batch_size={size}: a view has the other images' views to be told from; give two or more."
            )

    def step(self, batch: Batch, split: str) -> dict[str, Any]:
        """In training the contrastive `loss`, and `readout/loss`; in evaluation what callbacks may read."""
        if split != "train":
            return self.evaluate(batch, split)
        features, first, second = self.project(self.draw_views(batch, self.current_epoch))
        loss = nt_xent(first, second, self.temperature, self.precision)
        if self.readout is None:
            return {"loss": loss}
        readout_loss = self.teach(features.detach(), self.labels(batch).repeat(2))
        # The readout learns along, but the loss that is logged and judged is the contrastive one.
        return {"loss": loss + (readout_loss - readout_loss.detach()), "readout/loss": readout_loss.detach()}

    @torch.no_grad()
    def draw_views(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Two views (B, 3, side, side) of each image, the same whenever they are drawn for an epoch."""
        if "image" not in batch:
            raise ValueError(
                "views are drawn from images, which kept features are not: set features=off for this stage."
            )
        image, index, slots = batch["image"], batch["index"], int(self.views.slots)  # type: ignore[arg-type]
        first, second = (self.views(image, uniform(self.seed, epoch, 2 * index + view, slots)) for view in (0, 1))
        return first, second

    def project(self, views: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Features of both views (2B, D), and their projections (B, P) each."""
        features, projections = [], []
        for image in [torch.cat(views)] if self.joint_views else views:
            features.append(self.encoder(image))
            projections.append(self.projector(features[-1]))
        first, second = torch.cat(projections).chunk(2)
        return torch.cat(features), first, second

    def labels(self, batch: Batch) -> Tensor:
        """The labels that are read out (B,), −1 where there are none."""
        missing = torch.full_like(batch["index"], MISSING)
        return batch.get("labels", {}).get(self.task, missing)

    def teach(self, features: Tensor, labels: Tensor) -> Tensor:
        """The readout's loss, over the labelled samples of all processes."""
        assert self.readout is not None
        count = mean_over_ranks((labels != MISSING).sum().float())
        self.taught += (count > 0).long()
        return cross_entropy(self.readout(features), labels).sum() / torch.where(count > 0, count, 1.0)

    def evaluate(self, batch: Batch, split: str) -> dict[str, Any]:
        """Adds a batch to the split's metrics: features of its images as they are, projections of two fixed views."""
        features, labels = self.encode(batch), self.labels(batch)
        _, first, second = self.project(self.draw_views(batch, FIXED))
        self.metrics[split]["rows"].update(torch.cat([features, first, second], dim=1), labels, batch["index"])
        if self.readout is None:
            return {"index": batch["index"]}
        logits = self.readout(features).float()
        self.metrics[split]["confusion"][self.task].update(logits.argmax(1), labels)
        return {"logits": {self.task: logits}, "labels": {self.task: labels}, "index": batch["index"]}

    def results(self, split: str) -> dict[str, float]:
        """`val/loss`; of the labelled `val/knn` and `val/linear`; and what shows a collapse."""
        rows, labels, _ = self.metrics[split]["rows"].rows()
        if len(rows) < 2:
            return {}
        features, first, second = rows.split(self.widths, dim=1)
        found = {
            "loss": self.contrast(first, second),
            "spread": spread(first),
            "effective_rank": effective_rank(first),
            "alignment": alignment(first, second),
            "uniformity": uniformity(first),
        }
        if (labels != MISSING).sum() > 1:
            found["knn"] = knn_top1(features, labels, self.neighbours)
            if self.taught:
                confusion = self.metrics[split]["confusion"][self.task].compute()
                found["linear"] = classification_scores(confusion)["top1"]
        return {f"{split}/{key}": value for key, value in found.items()}

    def contrast(self, first: Tensor, second: Tensor) -> float:
        """The mean loss of all views, each told from those of the same `CHUNK` images or a few less.

        The batches of an evaluation are the business of its loader and of the number of processes; these are not.
        """
        parts = -(-len(first) // CHUNK)
        chunks = zip(first.tensor_split(parts), second.tensor_split(parts), strict=True)
        losses = [len(a) * nt_xent(a, b, self.temperature, gathered=True) for a, b in chunks]
        return (torch.stack(losses).sum() / len(first)).item()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """The readout's `logits` by task, and `index`; needs no labels."""
        if self.readout is None:
            raise ValueError(
                "without labels SimCLR has no names to give: train a probe on its encoder, or search by it."
            )
        return {"logits": {self.task: self.readout(self.encode(batch)).float()}, "index": batch["index"]}

    @torch.no_grad()
    def answers(self, batch: Batch, top_k: int) -> list[Answer]:
        """For each image the readout's `top_k` likeliest (class, probability) pairs, best first."""
        logits = self.predict_step(batch, 0)["logits"][self.task]
        return [{self.task: row} for row in likeliest(logits.softmax(1), self.classes[self.task], top_k)]


def measures(classes: Mapping[str, Sequence[str]]) -> nn.ModuleDict:
    """The metrics of one split; in the readout's confusion matrix row = truth, column = guess."""
    confusion = {
        task: MulticlassConfusionMatrix(len(names), ignore_index=MISSING, validate_args=False)
        for task, names in classes.items()
    }
    return nn.ModuleDict({"rows": Embeddings(), "confusion": TaskDict(confusion)})
