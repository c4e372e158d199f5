"""The triplet loss and its miners against slow loops and pytorch-metric-learning, and at their edges."""

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch.testing import assert_close

from lightning_modules.nn.triplet import apart, mine, place, triplet_loss

SQUARED = LpDistance(normalize_embeddings=False, p=2, power=2)
THEIRS = {"euclidean": SQUARED, "cosine": CosineSimilarity()}
DRAWS = torch.linspace(0, 0.999, 6)


def pairs(photos=6, width=5, seed=0, spread=1.0):
    """Anchors, positives, the candidates (a0, p0, a1, p1, …), and which of these are an anchor's own."""
    random = torch.Generator().manual_seed(seed)
    anchors = torch.randn(photos, width, generator=random)
    positives = anchors + spread * torch.randn(photos, width, generator=random)
    candidates = torch.stack([anchors, positives], 1).flatten(0, 1)
    own = torch.arange(photos)[:, None] == torch.arange(2 * photos) // 2
    return anchors, positives, candidates, own


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_loss_by_a_loop(seed):
    anchors, positives, candidates, own = pairs(seed=seed)
    negatives = candidates[mine(anchors, positives, candidates, own, "random", DRAWS)]
    ours = triplet_loss(apart(anchors, positives), apart(anchors, negatives), 0.5)
    rows = zip(anchors, positives, negatives, strict=True)
    assert ours.tolist() == pytest.approx([max(squared(a, p) - squared(a, n) + 0.5, 0) for a, p, n in rows], rel=1e-4)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("mining", ["random", "semi_hard", "batch_hard"])
def test_value_and_gradient_are_those_of_pytorch_metric_learning(mining, distance):
    rows = torch.stack(pairs()[:2], 1).flatten(0, 1).double()
    own, labels = pairs()[3], torch.arange(12) // 2
    ours, theirs = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    points = place(ours, distance)
    negatives = mine(points[::2], points[1::2], points, own, mining, DRAWS.double())
    loss = triplet_loss(apart(points[::2], points[1::2]), apart(points[::2], points[negatives]), 2.0).mean()
    triplets = (torch.arange(0, 12, 2), torch.arange(1, 12, 2), negatives)
    expected = TripletMarginLoss(2.0, distance=THEIRS[distance], reducer=MeanReducer())(theirs, labels, triplets)
    loss.backward()
    expected.backward()
    assert loss > 0
    assert_close(loss, expected)
    assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("seed", range(5))
def test_batch_hard_is_that_of_pytorch_metric_learning(seed):
    anchors, positives, candidates, own = pairs(seed=seed)
    ours = mine(anchors, positives, candidates, own, "batch_hard", DRAWS)
    asked, positive, theirs = BatchHardMiner(distance=SQUARED)(candidates, torch.arange(12) // 2)
    chosen = {int(a): int(n) for a, p, n in zip(asked, positive, theirs, strict=True) if a % 2 == 0 and p == a + 1}
    assert ours.tolist() == [chosen[2 * row] for row in range(6)]


@pytest.mark.parametrize("seed", range(10))
def test_semi_hard_is_the_nearest_of_those_beyond_the_positive(seed):
    anchors, positives, candidates, own = pairs(seed=seed, spread=0.8)
    ours = mine(anchors, positives, candidates, own, "semi_hard", DRAWS).tolist()
    for row in range(6):
        apart_from = {n: squared(anchors[row], candidates[n]) for n in range(12) if n // 2 != row}
        beyond = {n: d for n, d in apart_from.items() if d > squared(anchors[row], positives[row])}
        assert ours[row] == (min(beyond, key=beyond.get) if beyond else max(apart_from, key=apart_from.get))
    # Theirs lists every triplet that is semi-hard for a margin: ours, where it costs anything, is one of these.
    margin = 2.0
    asked, positive, theirs = TripletMarginMiner(margin, "semihard", distance=SQUARED)(
        candidates, torch.arange(12) // 2
    )
    listed = {(int(a), int(n)) for a, p, n in zip(asked, positive, theirs, strict=True) if a % 2 == 0 and p == a + 1}
    near, far = apart(anchors, positives), apart(anchors, candidates[ours])
    for row in range(6):
        assert ((2 * row, ours[row]) in listed) == (0 < far[row] - near[row] <= margin)


def test_an_anchor_whose_positive_is_furthest_of_all_takes_the_furthest_negative():
    anchors, positives, candidates, own = pairs()
    positives = positives + 100
    candidates = torch.stack([anchors, positives[[0] * 6] * 0], 1).flatten(0, 1)
    ours = mine(anchors, positives, candidates, own, "semi_hard", DRAWS)
    far = torch.stack([apart(anchors[[row] * 12], candidates) for row in range(6)]).masked_fill(own, -1)
    assert ours.tolist() == far.argmax(1).tolist()


def test_random_reaches_every_other_picture_and_never_an_own_one():
    anchors, positives, candidates, own = (x[:1] if x.shape[0] == 6 else x for x in pairs())
    steps = torch.arange(1000) / 1000
    found = [mine(anchors, positives, candidates, own, "random", draw[None]).item() for draw in steps]
    counts = torch.bincount(torch.tensor(found), minlength=12)
    assert counts.tolist() == [0, 0] + [100] * 10, "each of the ten others as often"


@pytest.mark.parametrize("mining", ["random", "semi_hard", "batch_hard"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_embedding_has_a_finite_gradient(mining, distance, value):
    rows = torch.full((12, 5), value, requires_grad=True)
    points, own = place(rows, distance), pairs()[3]
    chosen = mine(points[::2], points[1::2], points, own, mining, DRAWS)
    assert not own[torch.arange(6), chosen].any()
    loss = triplet_loss(apart(points[::2], points[1::2]), apart(points[::2], points[chosen]), 0.5).mean()
    loss.backward()
    assert loss.item() == 0.5
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("mining", ["random", "semi_hard", "batch_hard"])
def test_what_is_not_a_number_is_not_hidden(mining):
    anchors, positives, candidates, own = pairs()
    anchors = anchors.clone()
    anchors[2] = torch.nan
    chosen = mine(anchors, positives, candidates, own, mining, DRAWS)
    loss = triplet_loss(apart(anchors, positives), apart(anchors, candidates[chosen]), 0.5)
    assert loss.isnan().tolist() == [row == 2 for row in range(6)]


def test_the_margin_is_where_the_loss_ends():
    near, far = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.5, 1.499, 3.0])
    assert triplet_loss(near, far, 0.5).tolist() == pytest.approx([0, 0.001, 0], abs=1e-6)
    loss = triplet_loss(near.requires_grad_(), far, 0.5).sum()
    loss.backward()
    assert near.grad.tolist() == [0, 1, 0]


def test_cosine_is_one_minus_the_cosine():
    first, second = torch.randn(20, 7), torch.randn(20, 7)
    assert_close(
        apart(place(first, "cosine"), place(second, "cosine")), 1 - torch.cosine_similarity(first, second, dim=1)
    )
