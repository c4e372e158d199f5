"""What is said of a representation, derived again with loops; and the projector."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_modules.nn import representation
from lightning_modules.nn.projector import projector
from lightning_modules.nn.representation import alignment, effective_rank, knn_top1, spread, uniformity


def directions(points):
    return [row / row.norm() for row in points.double()]


def knn_by_hand(features, labels, neighbours, temperature=0.07):
    """Each labelled sample asks its nearest labelled others, one after the other."""
    labels = labels.tolist()
    known = [i for i, label in enumerate(labels) if label >= 0]
    unit, hits = directions(features), 0
    for asked in known:
        near = sorted((i for i in known if i != asked), key=lambda i: -(unit[i] @ unit[asked]).item())[:neighbours]
        votes = [0.0] * (max(labels) + 1)
        for i in near:
            votes[labels[i]] += math.exp((unit[i] @ unit[asked]).item() / temperature)
        hits += votes.index(max(votes)) == labels[asked]
    return hits / len(known)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("neighbours", [1, 5, 99])
def test_knn_by_hand(seed, neighbours, monkeypatch):
    monkeypatch.setattr(representation, "BLOCK", 100)  # a few samples at a time
    torch.manual_seed(seed)
    labels = torch.randint(-1, 3, (30,))
    features = torch.randn(30, 4) + labels[:, None]
    assert knn_top1(features, labels, neighbours) == pytest.approx(knn_by_hand(features, labels, neighbours), abs=1e-9)


def test_knn_asks_the_others_and_nobody_without_a_label():
    alone = torch.eye(4)
    assert knn_top1(alone, torch.arange(4), 1) == 0, "its own vote would be right"
    pairs = alone.repeat(2, 1)
    assert knn_top1(pairs, torch.arange(4).repeat(2), 1) == 1
    crowd = torch.cat([pairs, pairs, pairs])
    unknown = torch.full((16,), -1)
    assert knn_top1(crowd, torch.cat([torch.arange(4).repeat(2), unknown]), 1) == 1
    assert math.isnan(knn_top1(alone, torch.tensor([0, -1, -1, -1]), 1)), "one alone has nobody to ask"
    assert math.isnan(knn_top1(torch.full((4, 2), math.nan), torch.arange(4), 1))


def test_collapsed_points_show():
    same = torch.randn(1, 16).expand(200, -1)
    line = torch.randn(200, 1) * torch.randn(1, 16)
    sphere = torch.randn(4000, 16)
    assert [spread(same), effective_rank(same), uniformity(same)] == pytest.approx([0, 1, 0], abs=1e-3)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert spread(sphere) == pytest.approx(1, abs=0.02)
    assert effective_rank(sphere) == pytest.approx(16, abs=0.1)
    assert uniformity(sphere) < -3
    assert math.isnan(effective_rank(torch.full((4, 2), math.nan)))


def test_measures_by_hand(monkeypatch):
    monkeypatch.setattr(representation, "BLOCK", 50)
    torch.manual_seed(0)
    first, second = torch.randn(12, 5) + 0.3, torch.randn(12, 5)
    a, b = directions(first), directions(second)
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    values = torch.linalg.svdvals(torch.stack(a))
    shares = values / values.sum()
    deviations = [torch.stack(a)[:, k].std().item() for k in range(5)]
    assert alignment(first, second) == pytest.approx(
        sum((x - y).square().sum().item() for x, y in zip(a, b, strict=True)) / 12
    )
    assert uniformity(first) == pytest.approx(
        math.log(sum(math.exp(-2 * (a[i] - a[j]).square().sum()) for i, j in pairs) / len(pairs)), abs=1e-5
    )
    assert effective_rank(first) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares.tolist())))
    assert spread(first) == pytest.approx(math.sqrt(5) * sum(deviations) / 5, abs=1e-5)


def test_projector_is_layers_with_relu_between_them():
    torch.manual_seed(0)
    features = torch.randn(6, 4)
    plain = projector(4, [5, 3], False)
    by_hand = (features @ plain[0].weight.T + plain[0].bias).clamp(min=0) @ plain[2].weight.T + plain[2].bias
    assert_close(plain(features), by_hand)
    assert [type(layer) for layer in projector(4, [5, 6, 3], True)] == [
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    assert torch.equal(projector(4, [], True)(features), features)
    with pytest.raises(ValueError, match=r"projector=\[5, 0\]"):
        projector(4, [5, 0], True)
