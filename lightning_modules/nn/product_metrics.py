"""How well products are named, how far an answer's probability can be believed; exact on any number of processes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

TOP = 5
BINS = 15


class ProductScores(Metric):
    """Counts of right answers, by product and by brand, and of answers by the confidence that they came with.

    ECE = Σ_bins (n_bin / n) · |share of right answers − mean confidence|, over bins of equal width.

    Reference: calibration error, Guo et al., On Calibration of Modern Neural Networks, 2017.

    Args:
        brand_of: brand (p,) of each product.
    """

    STEP = 2.0**20  # confidences are summed as integers, so that their order does not matter
    full_state_update = False
    brand_of: Tensor
    hits: Tensor
    bins: Tensor

    def __init__(self, brand_of: Int[Tensor, " p"]) -> None:
        super().__init__()
        self.register_buffer("brand_of", brand_of, persistent=False)
        self.add_state("hits", torch.zeros(6, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bins", torch.zeros(BINS, 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Float[Tensor, "b p"], products: Int[Tensor, " b"]) -> None:
        """Counts a batch.

        Args:
            scores: logarithms of the probabilities that are claimed.
            products: the true ones; −1 is not known, and not counted.
        """
        scores, products = scores[products >= 0], products[products >= 0]
        best, order = scores.topk(min(TOP, scores.shape[1]))
        found = order == products[:, None]
        brands = self.brand_of[products]
        right_brand = self.brand_of[order[:, 0]] == brands
        own = scores.masked_fill(self.brand_of[None] != brands[:, None], -torch.inf).argmax(1) == products
        right = found[:, 0]
        counts = [torch.ones_like(right), right, found.any(1), right_brand, right & right_brand, own]
        self.hits += torch.stack([each.sum() for each in counts])
        confidence = best[:, 0].float().exp().clamp(0, 1)
        at = (confidence * BINS).long().clamp(max=BINS - 1)
        rows = torch.stack([torch.ones_like(at), right.long(), (confidence * self.STEP).round().long()], 1)
        self.bins.index_add_(0, at, rows)

    def compute(self) -> dict[str, float]:
        """The figures by name; {} if nothing was counted.

        `top1`, `top5`, `brand`; `right_brand`: top-1 of those whose brand was right; `known_brand`: top-1 among the
        products of the true brand; `ece`.
        """
        n, top1, top5, brand, both, own = self.hits.tolist()
        if not n:
            return {}
        _, right, confidence = self.bins.double().T
        gap = (right - confidence / self.STEP).abs().sum().item() / n
        found = {"top1": top1 / n, "top5": top5 / n, "brand": brand / n, "known_brand": own / n, "ece": gap}
        return found | ({"right_brand": both / brand} if brand else {})


class Energies(Metric):
    """How much evidence there is for any product at all, log Σ exp z: its distribution over photos of known products.

    Reference: Liu et al., Energy-based Out-of-distribution Detection, 2020.
    """

    QUANTILES = 101
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, energies: Float[Tensor, " b"]) -> None:
        """Adds a batch's."""
        self.values.append(energies.detach().float())  # type: ignore[union-attr, operator]

    def compute(self) -> Float[Tensor, " q"]:
        """The quantiles 0, 0.01, ..., 1."""
        values = self.values if isinstance(self.values, Tensor) else torch.cat(self.values)  # type: ignore[arg-type]
        return values.quantile(torch.linspace(0, 1, self.QUANTILES, device=values.device))
