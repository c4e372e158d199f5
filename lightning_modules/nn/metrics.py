"""Measures that come out the same, to the last digit, however the samples are spread over processes."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric


class ExactMean(Metric):
    """The mean of one number for each sample, whatever the order in which they are added.

    A sum of floats depends on its order, and so on the number of processes; a sum of integers does not. Each value is
    rounded to a multiple of 2⁻²⁰ (about 1e-6) first. Values that are not finite are counted, and make the mean NaN.
    """

    STEP = 2.0**-20
    full_state_update = False
    total: Tensor
    count: Tensor
    broken: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count", "broken"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, " b"], counted: Bool[Tensor, " b"]) -> None:
        """Adds those values that are counted."""
        finite = values.isfinite()
        steps = torch.where(counted & finite, values.float() / self.STEP, 0.0)
        self.total += steps.round().to(torch.int64).sum()
        self.count += counted.sum()
        self.broken += (counted & ~finite).sum()

    def compute(self) -> Tensor:
        """The mean; NaN if nothing was counted or something was not finite."""
        mean = self.total.cpu().double() * self.STEP / self.count.cpu()
        return torch.where(self.broken.cpu() > 0, torch.nan, mean)


def classification_scores(confusion: Int[Tensor, "c c"]) -> dict[str, float]:
    """top-1, and precision, recall and F1 as macro means over the classes that have support.

    A class without a sample has no recall, and counting it as 0 would punish a small split. Its row is left out of the
    means; guesses of it remain errors, since the class that they should have been misses them.

    precision = hits / guessed (0 if never guessed), recall = hits / support, F1 = 2 hits / (guessed + support)

    Args:
        confusion: counts; row = truth, column = guess.

    Returns:
        {} if there is no sample at all.
    """
    counts = confusion.cpu().double()
    support, guessed, hits = counts.sum(1), counts.sum(0), counts.diag()
    present = support > 0
    if not present.any():
        return {}
    support, guessed, hits = support[present], guessed[present], hits[present]
    return {
        "top1": (hits.sum() / support.sum()).item(),
        "precision": (hits / guessed.clamp(min=1)).mean().item(),
        "recall": (hits / support).mean().item(),
        "f1": (2 * hits / (guessed + support)).mean().item(),
    }


class HitAtK(Metric):
    """The share of images that have a true tag among their k best ones, for several k and groups of images at once.

    An image with several tags is a hit if any of them is. One whose tags are all unknown to the model (id −1) is never
    a hit, and counts. One without tags is not counted.

    hit@k = (1 / n) Σ_i [some tag of image i is among the k highest of logits_i]

    Args:
        ks: the k, in any order; above the number of tags everything but −1 is a hit.
        groups: names of groups of images that are counted apart too.

    Raises:
        ValueError: no k, or one below 1.
    """

    ALL = "all"
    full_state_update = False
    hits: Tensor
    total: Tensor

    def __init__(self, ks: Sequence[int], groups: Sequence[str] = ()) -> None:
        super().__init__()
        if not ks or min(ks) < 1:
            raise ValueError(f"ks={list(ks)} must be numbers from 1, at least one.")
        self.ks, self.groups = sorted(set(ks)), (self.ALL, *groups)
        self.add_state("hits", torch.zeros(len(self.groups), len(self.ks), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(len(self.groups), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        logits: Float[Tensor, "b c"],
        tags: Int[Tensor, " t"],
        offsets: Int[Tensor, " b+1"],
        groups: Mapping[str, Bool[Tensor, " b"]] | None = None,
    ) -> None:
        """Counts a batch.

        Args:
            logits: scores of all tags.
            tags: true tags of all images, one image after the other; −1 is a tag that the model does not know.
            offsets: those of image i are `tags[offsets[i]:offsets[i + 1]]`.
            groups: which images belong to a group; a group that is not named has none.
        """
        ranks = best_ranks(logits, tags, offsets, self.ks[-1])
        counted = {self.ALL: offsets.diff() > 0}
        counted |= {name: members & counted[self.ALL] for name, members in (groups or {}).items()}
        for row, name in enumerate(self.groups):
            if name in counted:
                hit = [((ranks < k) & counted[name]).sum() for k in self.ks]
                self.hits[row] += torch.stack(hit)
                self.total[row] += counted[name].sum()

    def compute(self) -> dict[str, dict[int, float]]:
        """{group: {k: share}}; `all` is every image. A group without images is left out."""
        shares = (self.hits.double() / self.total.double()[:, None]).tolist()
        rows = zip(self.groups, shares, self.total.tolist(), strict=True)
        return {name: dict(zip(self.ks, row, strict=True)) for name, row, total in rows if total}


def best_ranks(
    logits: Float[Tensor, "b c"], tags: Int[Tensor, " t"], offsets: Int[Tensor, " b+1"], depth: int
) -> Int[Tensor, " b"]:
    """The place, from 0, of each image's best-placed true tag among its `depth` best; `depth` if none is among them.

    Counting the logits above the true one would be quicker, but a model that scores all tags alike would be perfect.
    """
    scores, best = logits.topk(min(depth, logits.shape[1]))
    image = torch.repeat_interleave(torch.arange(len(best), device=tags.device), offsets.diff(), output_size=len(tags))
    places = torch.arange(best.shape[1], device=tags.device)
    ranks = torch.where(best[image] == tags[:, None], places, depth).amin(1)
    first = torch.full((len(best),), depth, device=tags.device).scatter_reduce_(0, image, ranks, "amin")
    return torch.where(scores[:, 0].isnan(), depth, first)  # not a number comes first of all, and is no answer
