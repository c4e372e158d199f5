"""Measures that come out the same, to the last digit, however the samples are spread over processes."""

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
