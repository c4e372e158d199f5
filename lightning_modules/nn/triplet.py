"""The triplet loss, and the choice of the third photo: the one that the other two should leave behind."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Distance = Literal["euclidean", "cosine"]
Mining = Literal["random", "semi_hard", "batch_hard"]


def triplet_loss(near: Float[Tensor, " b"], far: Float[Tensor, " b"], margin: float) -> Float[Tensor, " b"]:
    """What each triplet still lacks: an anchor should be nearer to its positive than to its negative, by a margin.

    Not reduced, so that the caller can also tell how many triplets lack anything.

    loss = max(d(A, P) − d(A, N) + margin, 0)

    Reference: Schroff, Kalenichenko and Philbin, FaceNet, 2015, formula (3).

    Args:
        near: d(A, P).
        far: d(A, N).
        margin: how much further the negative should be.
    """
    return F.relu(near - far + margin)


def place(embeddings: Float[Tensor, "*b d"], distance: Distance) -> Float[Tensor, "*b d"]:
    """Points whose squared Euclidean distance is the one that is asked for, so that only this one is ever computed.

    1 − cos(a, b) = ‖a/‖a‖ − b/‖b‖‖² / 2

    Args:
        embeddings: as the network made them.
        distance: `euclidean`, squared: the embeddings themselves; `cosine`: on a sphere of radius 1/√2.
    """
    return F.normalize(embeddings, dim=-1) / math.sqrt(2) if distance == "cosine" else embeddings


def apart(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """The squared distance of each point of the one row of points from its partner in the other."""
    return (first - second).square().sum(1)


@torch.no_grad()
def mine(
    anchors: Float[Tensor, "b d"],
    positives: Float[Tensor, "b d"],
    candidates: Float[Tensor, "c d"],
    own: Bool[Tensor, "b c"],
    mining: Mining,
    draws: Float[Tensor, " b"],
) -> Int[Tensor, " b"]:
    """The negative of each anchor, as its place among the candidates; never one of the anchor's own pictures.

    Without labels nobody knows whether a near candidate is the same kind of thing: the harder the negatives, the more
    of them are false. `random` asks little and is seldom wrong, `batch_hard` asks most.

    * `random`: any candidate.
    * `semi_hard`: the nearest that is further away than the positive; if all are nearer, the furthest of them, so that
      every anchor has a triplet.
    * `batch_hard`: the nearest.

    Reference: semi-hard, Schroff, Kalenichenko and Philbin, FaceNet, 2015, section 3.2, which says nothing of anchors
    without one; batch-hard, Hermans, Beyer and Leibe, In Defense of the Triplet Loss, 2017, formula (5), with the one
    positive that there is without labels.

    Args:
        anchors: points, see `place`.
        positives: a partner of each.
        candidates: all pictures that may be a negative.
        own: which candidates show an anchor's own photo; some candidate must not.
        mining: how to choose.
        draws: a number in [0, 1) for each anchor; what `random` chooses is a function of it.
    """
    if mining == "random":
        rank = (draws * (~own).sum(1)).long()  # among those that are not own
        return ((~own).cumsum(1) > rank[:, None]).int().argmax(1)
    # Differences, not products: with |a|² + |b|² − 2ab near neighbours, who decide here, would be rounded away.
    distances = torch.cdist(anchors, candidates, compute_mode="donot_use_mm_for_euclid_dist").square()
    if mining == "batch_hard":
        return distances.masked_fill(own, math.inf).argmin(1)
    beyond = distances.masked_fill(own | (distances <= apart(anchors, positives)[:, None]), math.inf)
    furthest = distances.masked_fill(own, -math.inf).argmax(1)
    return torch.where(beyond.isinf().all(1), furthest, beyond.argmin(1))
