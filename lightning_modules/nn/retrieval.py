"""How well embeddings find photos of the same kind: each photo searched for among the others, by cosine similarity."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_modules.nn.losses import MISSING

BLOCK = 2**22  # similarities that exist at once: 16 MB of them, and a few times that while they are sorted


class Rows(NamedTuple):
    """What was collected of a split, in the order of the split.

    Args:
        embeddings: (N, …) float32.
        labels: (N,) class ids, −1 where nobody knows.
        places: (N,) in the split.
    """

    embeddings: Tensor
    labels: Tensor
    places: Tensor


class Embeddings(Metric):
    """Collects what a split's photos look like to a network, from all processes, in the order of the split.

    What is computed from it afterwards is then the same however the photos were spread over batches and processes.
    """

    full_state_update = False
    embeddings: list[Tensor]
    labels: list[Tensor]
    places: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in Rows._fields:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, embeddings: Float[Tensor, "b ..."], labels: Int[Tensor, " b"], index: Int[Tensor, " b"]) -> None:
        """Adds a batch."""
        self.embeddings.append(embeddings.detach().float())
        self.labels.append(labels)
        self.places.append(index)

    def compute(self) -> Rows:
        """Everything, in the order of the split; see `rows`."""
        places = dim_zero_cat(self.places)
        order = places.argsort()
        return Rows(dim_zero_cat(self.embeddings)[order], dim_zero_cat(self.labels)[order], places[order])

    def rows(self) -> Rows:
        """Everything, in the order of the split. Every rank must call it."""
        embeddings, labels, places = self.compute()
        return Rows(embeddings, labels.reshape(-1), places.reshape(-1))  # torchmetrics squeezes a single number


def retrieval_scores(
    embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], ks: Sequence[int], block: int = BLOCK
) -> dict[str, float]:
    """Each photo that has a label is a query; all others that have one are ranked by cosine similarity to it.

    Those with the query's label are relevant, R of them. A query without any has nothing to find and is left out. Of
    equally similar photos the first in the split counts as the nearer, so that an embedding that is the same for all
    photos does not look good.

    * `recall@k`: 1 if any of the k nearest is relevant, as the word is used in metric learning.
    * `precision@k`: share of the k nearest that are relevant; for k = 1 it is recall@1, and left out.
    * `R-precision`: share of the R nearest that are relevant.
    * `mAP`: (1/R) Σ over the relevant of the precision at their rank, over the whole ranking.
    * `queries`: how many were counted; the others are means over them.

    Reference: recall@k, Jégou, Douze and Schmid, Product Quantization for Nearest Neighbor Search, 2011; the others,
    Manning, Raghavan and Schütze, Introduction to Information Retrieval, 2008, section 8.4.

    Args:
        embeddings: of all photos.
        labels: class ids, −1 where nobody knows: such a photo is neither searched for nor found.
        ks: the k; where there are fewer others than that, all of them.
        block: similarities that are computed at once.

    Returns:
        {} if no photo has anything to find; NaN everywhere if an embedding is not finite.
    """
    known = labels != MISSING
    points, labels = F.normalize(embeddings[known].float(), dim=1), labels[known]
    if len(points) < 2:
        return {}
    parts = [judge(hits, ks) for hits in ranked(points, labels, block)]
    scores = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if not (queries := len(scores["mAP"])):
        return {}
    sound = bool(points.isfinite().all())
    means = {name: values.mean().item() if sound else torch.nan for name, values in scores.items()}
    return means | {"queries": float(queries)}


def ranked(points: Float[Tensor, "n d"], labels: Int[Tensor, " n"], block: int) -> Iterator[Bool[Tensor, "b m"]]:
    """For some queries at a time, whether the others, the most similar first, have the query's label."""
    step = max(1, block // len(points))
    for start in range(0, len(points), step):
        queries = torch.arange(start, min(start + step, len(points)), device=points.device)
        similarity = points[queries] @ points.T
        similarity.scatter_(1, queries[:, None], -torch.inf)  # the query itself comes last, and is cut off
        order = similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]
        yield labels[order] == labels[queries, None]


def judge(hits: Bool[Tensor, "b m"], ks: Sequence[int]) -> dict[str, Float[Tensor, " q"]]:
    """The scores of those queries that have something to find."""
    hits = hits[hits.any(1)]
    found = hits.cumsum(1).double()  # by rank
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    relevant = hits.sum(1)
    scores = {}
    for k in ks:
        among = min(k, hits.shape[1])
        scores[f"recall@{k}"] = (found[:, among - 1] > 0).double()
        if k > 1:
            scores[f"precision@{k}"] = found[:, among - 1] / among
    scores["R-precision"] = found.gather(1, relevant[:, None] - 1)[:, 0] / relevant
    scores["mAP"] = (found / ranks * hits).sum(1) / relevant
    return scores
