"""What can be said of a representation without training on it: its neighbourhoods, and whether it has collapsed."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.nn.losses import MISSING

BLOCK = 2**22  # similarities that exist at once: 16 MB of them


def knn_top1(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], neighbours: int, temperature: float = 0.07
) -> float:
    """The share of samples whose class their nearest neighbours vote for, each sample asked of all others.

    A vote weighs exp(cosine / τ). Of classes with equal votes the first wins.

    Reference: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018, section 3.4.

    Args:
        features: of all samples.
        labels: class ids, −1 where nobody knows: such a sample neither votes nor is asked.
        neighbours: how many vote, or all others where there are fewer.
        temperature: τ.

    Returns:
        NaN if fewer than two samples have a label, or if a feature of one is not finite.
    """
    known = labels != MISSING
    points, labels = F.normalize(features[known].float(), dim=1), labels[known]
    if len(points) < 2 or not points.isfinite().all():
        return torch.nan
    hits = torch.zeros((), dtype=torch.int64, device=points.device)
    for asked, similarity in others(points):
        closeness, voters = similarity.topk(min(neighbours, len(points) - 1))
        votes = points.new_zeros(len(asked), int(labels.max()) + 1)
        votes.scatter_add_(1, labels[voters], (closeness / temperature).exp())
        hits += (votes.argmax(1) == labels[asked]).sum()
    return hits.item() / len(points)


def others(points: Float[Tensor, "n d"]) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "b n"]]]:
    """Some samples at a time: their places, and their cosines with all samples, −∞ with themselves."""
    step = max(1, BLOCK // len(points))
    for start in range(0, len(points), step):
        places = torch.arange(start, min(start + step, len(points)), device=points.device)
        yield places, (points[places] @ points.T).scatter_(1, places[:, None], -torch.inf)


def spread(points: Float[Tensor, "n d"]) -> float:
    """√d times the standard deviation of a coordinate of the normalised points, averaged over the coordinates.

    1 if they lie all over the sphere, 0 if they are all the same.

    Reference: Chen and He, Exploring Simple Siamese Representation Learning, 2021, section 4.1.
    """
    directions = F.normalize(points.float(), dim=1)
    return (directions.std(dim=0).mean() * directions.shape[1] ** 0.5).item()


def effective_rank(points: Float[Tensor, "n d"]) -> float:
    """How many dimensions the normalised points really use: 1 if they are all the same, at most d.

    exp(−Σ_k p_k log p_k)  with  p_k = σ_k / Σ_j σ_j, the singular values of the matrix of points

    Reference: Roy and Vetterli, The Effective Rank, 2007.
    """
    directions = F.normalize(points.double(), dim=1)
    if not directions.isfinite().all():
        return torch.nan
    # The singular values are the roots of the eigenvalues of the small square matrix.
    values = torch.linalg.eigvalsh(directions.T @ directions).clamp(min=0).sqrt()
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> float:
    """The mean squared distance of the two views of an image on the unit sphere: 0 if a view says nothing of itself.

    Reference: Wang and Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity, 2020.
    """
    return (2 - 2 * F.cosine_similarity(first.float(), second.float())).mean().item()


def uniformity(points: Float[Tensor, "n d"]) -> float:
    """How evenly points lie on the unit sphere: 0 if all are the same, towards −4 if they are spread.

    log of the mean over all pairs a, b of exp(−2 ‖a − b‖²)

    Reference: Wang and Isola, 2020, as above.
    """
    directions = F.normalize(points.float(), dim=1)
    # ‖a − b‖² = 2 − 2 cos, so that a pair's term is exp(4 cos − 4).
    terms = [(4 * similarity - 4).logsumexp(1) for _, similarity in others(directions)]
    count = len(points)
    return (torch.cat(terms).logsumexp(0) - torch.log(torch.tensor(count * (count - 1.0)))).item()
