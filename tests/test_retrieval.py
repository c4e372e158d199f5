"""Retrieval scores against loops and pytorch-metric-learning, their edges, and two processes against one."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from lightning_modules.nn.retrieval import Embeddings, retrieval_scores

KS = [1, 3, 5, 100]


def collected(photos=41, kinds=5, seed=0, unknown=0.0):
    """Embeddings in which kinds lie somewhat together, and labels."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, kinds, (photos,), generator=random)
    embeddings = torch.randn(kinds, 6, generator=random)[labels] + 1.5 * torch.randn(photos, 6, generator=random)
    return embeddings, torch.where(torch.rand(photos, generator=random) < unknown, -1, labels)


def by_loops(embeddings, labels, ks):
    """The scores by their definitions, a query at a time."""
    known = [row for row in range(len(labels)) if labels[row] >= 0]
    rows: dict[str, list[float]] = {}
    for query in known:
        others = [row for row in known if row != query]
        similarity = {row: torch.cosine_similarity(embeddings[query], embeddings[row], dim=0).item() for row in others}
        order = sorted(others, key=lambda row, similarity=similarity: -similarity[row])
        hits = [bool(labels[row] == labels[query]) for row in order]
        if not any(hits):
            continue
        at = [rank for rank, hit in enumerate(hits, 1) if hit]
        scores = {f"precision@{k}": sum(hits[:k]) / min(k, len(hits)) for k in ks if k > 1}
        scores |= {f"recall@{k}": float(any(hits[:k])) for k in ks}
        scores["R-precision"] = sum(hits[: len(at)]) / len(at)
        scores["mAP"] = sum(number / rank for number, rank in enumerate(at, 1)) / len(at)
        for name, value in scores.items():
            rows.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in rows.items()} | {"queries": len(rows["mAP"])}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_scores_by_loops_whatever_the_block(seed, block):
    embeddings, labels = collected(seed=seed, unknown=0.2)
    assert retrieval_scores(embeddings, labels, KS, block) == pytest.approx(by_loops(embeddings, labels, KS))


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_pytorch_metric_learning(seed):
    embeddings, labels = collected(200, seed=seed)
    names = ("precision_at_1", "r_precision", "mean_average_precision")
    calculator = AccuracyCalculator(include=names, k=199, knn_func=CustomKNN(CosineSimilarity()))
    theirs = calculator.get_accuracy(embeddings, labels)
    ours = retrieval_scores(embeddings, labels, [1])
    found = [ours["recall@1"], ours["R-precision"], ours["mAP"]]
    assert found == pytest.approx([theirs[name] for name in names], rel=1e-5)


def test_a_query_with_nothing_to_find_is_left_out_and_not_counted():
    embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, -1])
    embeddings[1] += embeddings[0]
    scores = retrieval_scores(embeddings, labels, [1])
    assert scores == {"recall@1": 1, "R-precision": 1, "mAP": 1, "queries": 2}


@pytest.mark.parametrize("labels", [[], [0], [-1, -1, -1], [0, 1, 2], [0, -1, 1]])
def test_nothing_to_find_at_all_gives_no_score(labels):
    assert retrieval_scores(torch.randn(len(labels), 3), torch.tensor(labels, dtype=torch.int64), [5]) == {}


def test_a_collapsed_embedding_finds_no_more_than_chance():
    """Also where photos of a kind lie side by side in the split, as in class folders."""
    scores = retrieval_scores(torch.ones(100, 8), torch.arange(100) // 20, [5])
    assert scores["precision@5"] == pytest.approx(0.2)
    assert scores["R-precision"] == pytest.approx(0.2, abs=0.01)
    assert retrieval_scores(torch.zeros(100, 8), torch.arange(100) // 20, [5]) == scores


def test_what_is_not_a_number_is_not_hidden():
    embeddings, labels = collected()
    embeddings[3, 1] = torch.nan
    scores = retrieval_scores(embeddings, labels, [5])
    assert math.isnan(scores["precision@5"])
    assert math.isnan(scores["mAP"])


def test_only_the_direction_of_an_embedding_counts():
    embeddings, labels = collected()
    stretched = embeddings * torch.rand(len(labels), 1).add(0.1)
    assert retrieval_scores(stretched, labels, KS) == pytest.approx(retrieval_scores(embeddings, labels, KS))


def one_of_two(rank, folder):
    """Each process sees every other photo, one more of them than the other process does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    embeddings, labels = collected()
    metric = Embeddings()
    for row in range(rank, 41, 2):
        metric.update(embeddings[[row]], labels[[row]], torch.tensor([row]))
    rows = metric.rows()
    torch.save([*rows, retrieval_scores(rows.embeddings, rows.labels, KS)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_very_same_figures_as_one(tmp_path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    embeddings, labels = collected()
    metric = Embeddings()
    for rows in torch.arange(41).flip(0).split(7):
        metric.update(embeddings[rows], labels[rows], rows)
    found = metric.rows()
    assert torch.equal(found.embeddings, embeddings)
    expected = retrieval_scores(found.embeddings, found.labels, KS)
    for rank in range(2):
        theirs, their_labels, places, scores = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(theirs, embeddings)
        assert torch.equal(their_labels, labels)
        assert places.tolist() == list(range(41))
        assert scores == expected, "to the last digit"


def test_pairs_are_collected_as_they_come():
    metric = Embeddings()
    pairs = torch.randn(4, 2, 3)
    for rows in ([2, 0], [3, 1]):
        metric.update(pairs[rows], torch.tensor(rows), torch.tensor(rows))
    assert torch.equal(metric.rows().embeddings, pairs)
    metric.reset()
    metric.update(pairs[:1], torch.tensor([5]), torch.tensor([0]))
    assert metric.rows().labels.tolist() == [5]
