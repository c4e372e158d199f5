"""Tags for a photo, learned from many noisy multi-tag photos and few clean single-label ones."""

import difflib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.base import Answer, Batch, Technique, likeliest, mean_over_ranks
from lightning_modules.nn.keyed import keys
from lightning_modules.nn.losses import MISSING, mean_softmax_loss
from lightning_modules.nn.metrics import ExactMean, HitAtK
from lightning_modules.optimisers import Optimiser

Activation = Literal["relu", "tanh", "identity"]
Labels = Literal["mean", "first", "random"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}
GROUPS = ("seen", "unseen")


class SPUAnnotator(Technique):
    """Selective partial update: meaning from noisy tags, then precision from clean labels.

    A hidden layer H between the trunk's features and the words learns what a photo means (`w1`), and the words learn
    which meanings they go with (`w2`): words that occur together come to lie together. A first stage trains both on
    multi-tag photos (normal update, NU). A second one goes on with single-label photos and `w2` frozen by the freeze
    callback (partial update, PU), so that words which the clean labels never show keep their place among the meanings.

    logits = W2 · f(W1 · encoder(image) + b1) + b2,  loss = mean over images of −(1 / n_i) Σ_t log softmax(logits_i)_t

    Reference: Kim and Kim, Improving a CNN-based Image Annotation System Using Multi-Labeled Images.

    Args:
        encoder: (B, 3, H, W) images to (B, D) features; has `features` = D. Meant to be frozen.
        words: the word of each id; null in YAML, filled in from the data.
        hidden_dim: units of H; None is the plain classifier, `w2` on the features, and leaves nothing for PU to train.
        activation: f, `relu`, `tanh` or `identity`.
        labels: what is learned of an image's tags: their `mean` loss, the `first` alone, or a `random` one, drawn anew
            each epoch as a function of seed, epoch and image. Evaluation always takes all tags, so that it is the same
            measure for the three.
        ks: the k of hit@k.
        seed: of the random tags.
        optimiser: optimiser and schedule.

    Attributes:
        w1: features to H; identity without H.
        w2: H, or the features, to words.
        classes: {"tags": words}, for callbacks.

    Raises:
        ValueError: fewer than two words, or a word twice, or a setting out of range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        words: Sequence[str] | None,
        hidden_dim: int | None,
        activation: Activation,
        labels: Labels,
        ks: Sequence[int],
        seed: int,
        optimiser: Optimiser,
    ) -> None:
        super().__init__(optimiser)
        check_words(words or ())
        for key, value, accepted in (("activation", activation, Activation), ("labels", labels, Labels)):
            if value not in get_args(accepted):
                raise ValueError(f"{key}={value!r} is not one of: {', '.join(get_args(accepted))}.")
        if hidden_dim is not None and hidden_dim < 1:
            raise ValueError(f"hidden_dim={hidden_dim} must be 1 or more, or null for no hidden layer.")
        self.words = list(words or ())
        self.classes = {"tags": self.words}
        self.labels, self.seed = labels, seed
        width = int(encoder.features)  # type: ignore[arg-type]  # nn.Module declares its attributes as modules
        self.encoder = encoder
        self.w1 = nn.Linear(width, hidden_dim) if hidden_dim else nn.Identity()
        self.activation = ACTIVATIONS[activation]() if hidden_dim else nn.Identity()
        self.w2 = nn.Linear(hidden_dim or width, len(self.words))
        self.metrics = nn.ModuleDict(
            {split: nn.ModuleDict({"loss": ExactMean(), "hits": HitAtK(ks, GROUPS)}) for split in ("val", "test")}
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, words) of (B, D) features."""
        return self.w2(self.activation(self.w1(features)))

    def step(self, batch: Batch, split: str) -> dict[str, Any]:
        """The batch's loss; in evaluation also `logits` and `labels` of the task "tags", and `index`, for callbacks."""
        logits = self(self.encode(batch))
        if split != "train":
            return self.evaluate(batch, logits, split)
        tags, offsets = self.learned(batch)
        losses = mean_softmax_loss(logits, tags, offsets, overwrite=True)  # nobody looks at the logits after this
        images = mean_over_ranks((offsets.diff() > 0).sum().float())
        return {"loss": losses.sum() / torch.where(images > 0, images, 1.0), "index": batch["index"]}

    def learned(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tags and offsets that a training step learns."""
        tags, offsets = batch["tags"], batch["offsets"]
        if self.labels == "mean":
            return tags, offsets
        counts = offsets.diff()
        places = torch.zeros_like(counts)
        if self.labels == "random":
            places = draw(self.seed, self.current_epoch, batch["index"], counts)
        return tags[(offsets[:-1] + places)[counts > 0]], F.pad((counts > 0).cumsum(0), (1, 0))

    def evaluate(self, batch: Batch, logits: Tensor, split: str) -> dict[str, Any]:
        """Adds a batch to the split's metrics. The loss is that of the known tags: no finite one has the others."""
        tags, offsets = batch["tags"], batch["offsets"]
        known, metrics = tags != MISSING, self.metrics[split]
        known_offsets = F.pad(known.cumsum(0), (1, 0))[offsets]
        losses = mean_softmax_loss(logits, tags[known], known_offsets)
        counted = known_offsets.diff() > 0
        seen = batch.get("seen")
        metrics["loss"].update(losses, counted)
        metrics["hits"].update(logits, tags, offsets, None if seen is None else {"seen": seen, "unseen": ~seen})
        return {
            "loss": losses.sum() / counted.sum().clamp(min=1),
            "logits": {"tags": logits.detach().float()},
            "labels": {"tags": one_truth(logits.argmax(1), tags, offsets)},
            "index": batch["index"],
        }

    def results(self, split: str) -> dict[str, float]:
        """`val/loss`, `val/hit@5`, and by whether single-label training shows the label `val/unseen/hit@5`."""
        shares = self.metrics[split]["hits"].compute()
        if not shares:
            return {}
        results = {f"{split}/loss": self.metrics[split]["loss"].compute().item()}
        for group, row in shares.items():
            prefix = split if group == HitAtK.ALL else f"{split}/{group}"
            results |= {f"{prefix}/hit@{k}": share for k, share in row.items()}
        return results

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """`logits` of the task "tags", and `index`; needs no labels."""
        return {"logits": {"tags": self(self.encode(batch)).float()}, "index": batch["index"]}

    @torch.no_grad()
    def answers(self, batch: Batch, top_k: int) -> list[Answer]:
        """For each image the `top_k` likeliest (tag, probability) pairs, best first, as the task "tags"."""
        probabilities = self(self.encode(batch)).float().softmax(1)
        return [{"tags": row} for row in likeliest(probabilities, self.words, top_k)]

    @torch.no_grad()
    def nearest_words(self, word: str, k: int) -> list[tuple[str, float]]:
        """The `k` words whose rows of W2 point most nearly the way of `word`'s, with the cosine of the angle.

        Raises:
            ValueError: the word is not in the vocabulary; the nearest by spelling are told.
        """
        if word not in self.words:
            close = difflib.get_close_matches(word, self.words, n=3, cutoff=0.5)
            hint = f"the nearest are: {', '.join(close)}" if close else f"it has {len(self.words)} others"
            raise ValueError(f"{word!r} is not in the vocabulary; {hint}.")
        rows, place = F.normalize(self.w2.weight.float(), dim=1), self.words.index(word)
        cosines = rows @ rows[place]
        cosines[place] = -torch.inf
        values, ids = cosines.topk(min(k, len(self.words) - 1))
        return [(self.words[i], value) for i, value in zip(ids.tolist(), values.tolist(), strict=True)]


def check_words(words: Sequence[str]) -> None:
    """Refuses a vocabulary in which nothing can be told apart."""
    if len(words) < 2:
        raise ValueError(f"words={list(words)}: give two words or more, or leave it null for the data to fill in.")
    if len(set(words)) < len(words):
        twice = next(word for place, word in enumerate(words) if word in words[:place])
        raise ValueError(f"words has {twice!r} twice.")


def one_truth(guesses: Tensor, tags: Tensor, offsets: Tensor) -> Tensor:
    """One true tag an image: its guess (B,) if that is among its tags, else its first tag, −1 if it has none."""
    counts = offsets.diff()
    image = torch.repeat_interleave(torch.arange(len(counts), device=tags.device), counts, output_size=len(tags))
    right = torch.zeros_like(guesses).index_add_(0, image, (tags == guesses[image]).long()) > 0
    first = torch.where(counts > 0, F.pad(tags, (0, 1), value=MISSING)[offsets[:-1]], MISSING)
    return torch.where(right, guesses, first)


def draw(seed: int, epoch: int, index: Tensor, counts: Tensor) -> Tensor:
    """A number in 0..counts − 1 for each image, a function of seed, epoch and the image's place in its split (B,)."""
    return keys(seed, epoch, index) * counts >> 32
