"""An embedding in which similar photos are near, learned without labels from triplets."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.base import Answer, Batch, Technique
from lightning_modules.nn.chain import evaluating
from lightning_modules.nn.gather import collect, gather
from lightning_modules.nn.keyed import uniform
from lightning_modules.nn.losses import MISSING
from lightning_modules.nn.projector import projector
from lightning_modules.nn.retrieval import Embeddings, Rows, retrieval_scores
from lightning_modules.nn.triplet import Distance, Mining, apart, mine, place, triplet_loss
from lightning_modules.optimisers import Optimiser


class Triplets(NamedTuple):
    """One triplet for each of n photos.

    Args:
        near: (n,) distance of the photo from its positive.
        far: (n,) its distance from the negative.
        negatives: (n,) which photo the negative is a picture of, by its place among the n.
    """

    near: Tensor
    far: Tensor
    negatives: Tensor


class TripletEmbedder(Technique):
    """Learns from triplets that a photo is nearer to a changed picture of itself than to any other photo.

    Nobody says what is similar. But a photo's own middle, mirrored and with another contrast, still shows the same
    thing, while most other photos do not: to tell the two apart, the embedding must keep what a photo shows and drop
    how it was taken. A batch holds each photo and its positive; every other photo's two pictures may be its negative,
    on whatever process they are, so that each picture passes the trunk once a step.

    loss = mean over photos of max(d(A, P) − d(A, N) + margin, 0)

    Labels, where there are any, judge only. Evaluation searches each photo among the others of its split, and takes the
    loss in groups of as many photos as a step has, always the same ones; `false_negatives` is the share of negatives
    there that show the same class, which training would push away wrongly. Beside the figures of each epoch stand those
    of the embedding before training (`untrained`) and of the trunk's own features before training (`encoder`).

    Reference: Schroff, Kalenichenko and Philbin, FaceNet, 2015; for photos without labels, with the layers of a
    well-known Keras example (Image similarity estimation using a Siamese Network with a triplet loss, 2021).

    Args:
        encoder: (B, 3, H, W) images to (B, D) features; has `features` = D. Meant to be frozen in part.
        widths: of the dense layers on it, the embedding's last.
        batch_norm: between the dense layers; several processes each have their own.
        normalise: embeddings have length 1, which is how search sees them.
        distance: `euclidean`, squared, or `cosine`, 1 − cos.
        margin: how much further a negative should be, in units of the distance.
        mining: how negatives are chosen: `random`, `semi_hard` or `batch_hard`.
        group: photos of a step, over all processes.
        ks: the k of precision@k and recall@k.
        seed: of random negatives.
        optimiser: optimiser and schedule.

    Attributes:
        head: the dense layers.
        metrics: {split: Embeddings}.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        widths: Sequence[int],
        batch_norm: bool,
        normalise: bool,
        distance: Distance,
        margin: float,
        mining: Mining,
        group: int,
        ks: Sequence[int],
        seed: int,
        optimiser: Optimiser,
    ) -> None:
        super().__init__(optimiser)
        for key, value, accepted in (("distance", distance, Distance), ("mining", mining, Mining)):
            if value not in get_args(accepted):
                raise ValueError(f"{key}={value!r} is not one of: {', '.join(get_args(accepted))}.")
        if margin <= 0:
            raise ValueError(f"margin={margin} must be above 0: without one, an embedding of zeros has no loss.")
        if not widths or min(widths) < 1 or not ks or min(ks) < 1:
            raise ValueError(f"widths={list(widths)} and ks={list(ks)} must be numbers from 1, at least one of each.")
        check_group(group)
        self.normalise, self.distance, self.margin, self.mining = normalise, distance, margin, mining
        self.group, self.ks, self.seed = group, list(ks), seed
        self.encoder = encoder
        self.head = projector(int(encoder.features), widths, batch_norm)  # type: ignore[arg-type]
        self.metrics = nn.ModuleDict({split: Embeddings() for split in ("val", "test")})
        self.before: dict[str, float] = {}  # the figures of the untrained embedding

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings (B, widths[-1]), float32, of (B, D) features of the trunk."""
        embeddings = self.head(features).float()
        return F.normalize(embeddings, dim=1) if self.normalise else embeddings

    def embed(self, batch: Batch) -> Tensor:
        """What similarity search compares (B, widths[-1])."""
        return self(self.encode(batch))

    def step(self, batch: Batch, split: str) -> dict[str, Any]:
        """The batch's loss, the share of triplets that lack anything, and mean distances; evaluation only collects.

        Raises:
            ValueError: the batch holds no pairs.
        """
        if "positive" not in batch:
            raise ValueError("Triplets need batches of pairs: take a DataModule that gives them, such as flowers.")
        pairs, index = paired(self.embed(batch)), anchors_of(batch["index"])
        if split != "train":
            self.metrics[split].update(pairs, labels_of(batch), index)
            return {"index": index}
        near, far, _ = self.triplets(gather(pairs), collect(index), self.current_epoch)
        losses = triplet_loss(near, far, self.margin)
        figures = {"active": (losses > 0).float(), "near": near, "far": far}
        return {"loss": losses.mean(), **{key: value.detach().mean() for key, value in figures.items()}}

    def triplets(self, pairs: Tensor, index: Tensor, epoch: int) -> Triplets:
        """A triplet for each photo, its negative among the pictures of the others.

        Args:
            pairs: (n, 2, D) embeddings of the photos and their positives, in the same order on every process.
            index: (n,) places of the photos in their split.
            epoch: what random negatives are drawn from, beside seed and photo.
        """
        check_group(len(index))
        points = place(pairs, self.distance)
        anchors, positives, candidates = points[:, 0], points[:, 1], points.flatten(0, 1)
        own = index[:, None] == index.repeat_interleave(2)
        draws = uniform(self.seed, epoch, index, 1)[:, 0]
        chosen = mine(anchors, positives, candidates, own, self.mining, draws)
        return Triplets(apart(anchors, positives), apart(anchors, candidates[chosen]), chosen // 2)

    def results(self, split: str) -> dict[str, float]:
        """`val/loss`, `val/precision@5` …, and what they were before training, `val/untrained/precision@5` …."""
        figures = {f"{split}/{key}": value for key, value in self.judge(self.metrics[split].rows()).items()}
        return figures | {key: value for key, value in self.before.items() if key.startswith(f"{split}/")}

    def judge(self, rows: Rows) -> dict[str, float]:
        """Loss, false negatives and retrieval scores of a split's pairs."""
        losses, false = [], []
        for members in self.groups(rows.places):
            near, far, negatives = self.triplets(rows.embeddings[members], rows.places[members], epoch=0)
            ours = rows.labels[members]
            theirs = ours[negatives]
            losses.append(triplet_loss(near, far, self.margin))
            false.append((ours == theirs)[(ours != MISSING) & (theirs != MISSING)])
        figures = {"loss": torch.cat(losses).double().mean().item()}
        if len(shares := torch.cat(false)):
            figures["false_negatives"] = shares.double().mean().item()
        return figures | retrieval_scores(rows.embeddings[:, 0], rows.labels, self.ks)

    def groups(self, places: Tensor) -> tuple[Tensor, ...]:
        """The rows of a split in groups of about as many as a training step has, mixed once and for all."""
        order = uniform(self.seed, 0, places, 2)[:, 1].argsort(stable=True)
        return order.tensor_split(max(1, len(order) // self.group))

    def on_train_start(self) -> None:
        """Judges what there is before training. A fit that is resumed has the figures in its checkpoint."""
        data = getattr(self.trainer, "datamodule", None)
        if self.before or data is None:
            return
        with torch.no_grad(), evaluating(self):
            for split in self.metrics:  # in the same order on every process, which exchange what they have
                if split in data.splits:
                    self.before |= self.baseline(split, getattr(data, f"{split}_dataloader")())

    def baseline(self, split: str, loader: Iterable[Batch]) -> dict[str, float]:
        """The figures of the trunk's features and of the embedding as they are now."""
        trunk, whole = Embeddings().to(self.device), Embeddings().to(self.device)
        for batch in loader:
            batch = self.trainer.strategy.batch_to_device(batch)
            with self.trainer.precision_plugin.forward_context():
                features = self.encode(batch)
                embeddings = self(features)
            labels, index = labels_of(batch), anchors_of(batch["index"])
            trunk.update(anchors_of(features), labels, index)
            whole.update(paired(embeddings), labels, index)
        rows = trunk.rows()
        figures = {f"encoder/{k}": v for k, v in retrieval_scores(rows.embeddings, rows.labels, self.ks).items()}
        figures |= {f"untrained/{k}": v for k, v in self.judge(whole.rows()).items()}
        return {f"{split}/{key}": value for key, value in figures.items() if not key.endswith("/queries")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["before"] = self.before

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.before = checkpoint["before"]

    def answers(self, batch: Batch, top_k: int) -> list[Answer]:
        """Refused: there are no classes to answer with.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "This run learned what is similar, not what anything is called: instead of predict, take "
            "`python use.py search RUN PHOTO --gallery FOLDER`."
        )


def check_group(photos: int) -> None:
    """Refuses a group of photos in which there is no negative."""
    if photos < 2:
        raise ValueError(f"{photos} photo in a batch has no other as its negative: take a batch_size of 2 or more.")


def anchors_of(rows: Tensor) -> Tensor:
    """The first half of a batch: the photos, without their positives."""
    return rows[: len(rows) // 2]


def paired(rows: Tensor) -> Tensor:
    """(B, 2, D) photos with their positives, from (2B, D), photos first."""
    return torch.stack(rows.chunk(2), dim=1)


def labels_of(batch: Batch) -> Tensor:
    """The photos' labels (B,) of the only task there is; -1 if there is none."""
    for labels in batch.get("labels", {}).values():
        return anchors_of(labels)
    return torch.full_like(anchors_of(batch["index"]), MISSING)
