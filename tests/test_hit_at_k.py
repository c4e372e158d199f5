"""hit@k against loops and torchmetrics, its edges, and two processes against one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_modules.nn.metrics import HitAtK

KS = [1, 3, 5, 40]


def tagged(images=30, words=25, seed=0, fewest=0):
    """Logits, tags and offsets; some tags are unknown (−1), and some images have none where `fewest` is 0."""
    random = torch.Generator().manual_seed(seed)
    counts = torch.randint(fewest, 4, (images,), generator=random)
    tags = torch.randint(-1, words, (int(counts.sum()),), generator=random)
    return torch.randn(images, words, generator=random), tags, F.pad(counts.cumsum(0), (1, 0))


def share(rows, k, logits, tags, offsets):
    """hit@k of some rows, by sorting."""
    hits = []
    for row in rows:
        own = tags[offsets[row] : offsets[row + 1]].tolist()
        best = sorted(range(logits.shape[1]), key=lambda tag, row=row: -logits[row, tag].item())[:k]
        hits += [any(tag in best for tag in own)] if own else []
    return sum(hits) / len(hits)


def rows_of(start, stop, logits, tags, offsets):
    return logits[start:stop], tags[offsets[start] : offsets[stop]], offsets[start : stop + 1] - offsets[start]


@pytest.mark.parametrize("seed", range(10))
def test_shares_by_hand_in_whole_and_by_group(seed):
    data = tagged(seed=seed)
    seen = torch.arange(30) % 3 == 0
    metric = HitAtK(KS, ("seen", "unseen"))
    for start, stop in ((0, 7), (7, 8), (8, 30)):
        groups = {"seen": seen[start:stop], "unseen": ~seen[start:stop]}
        metric.update(*rows_of(start, stop, *data), groups)
    found = metric.compute()
    for name, rows in (("all", range(30)), ("seen", range(0, 30, 3)), ("unseen", [i for i in range(30) if i % 3])):
        assert found[name] == {k: pytest.approx(share(rows, k, *data)) for k in KS}
    assert metric.total[0] == (data[2].diff() > 0).sum() < 30


def test_one_label_an_image_is_torchmetrics_accuracy():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 100, generator=random), torch.randint(0, 100, (200,), generator=random)
    metric = HitAtK([1, 5, 10, 20, 30, 50])
    metric.update(logits, labels, torch.arange(201))
    for k, found in metric.compute()["all"].items():
        assert found == pytest.approx(multiclass_accuracy(logits, labels, 100, "micro", top_k=k).item())


def test_a_model_that_says_the_same_of_all_tags_or_nothing_at_all_is_not_right():
    labels, offsets = torch.arange(100), torch.arange(101)
    for logits, highest in ((torch.zeros(100, 100), 0.05), (torch.full((100, 100), torch.nan), 0.0)):
        metric = HitAtK([1, 5])
        metric.update(logits, labels, offsets)
        assert metric.compute()["all"][5] <= highest


def test_groups_without_images_and_images_without_tags_are_left_out():
    metric = HitAtK([1], ("seen", "unseen"))
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    metric.update(logits, torch.tensor([1]), torch.tensor([0, 1, 1]), {"seen": torch.tensor([True, True])})
    assert metric.compute() == {"all": {1: 1.0}, "seen": {1: 1.0}}
    metric.reset()
    metric.update(logits, torch.tensor([], dtype=torch.int64), torch.tensor([0, 0, 0]))
    assert metric.compute() == {}


def test_k_in_any_order_and_larger_than_the_vocabulary():
    metric = HitAtK([9, 2, 2])
    metric.update(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([2]), torch.tensor([0, 1]))
    assert metric.compute() == {"all": {2: 0.0, 9: 1.0}}
    metric.update(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([-1]), torch.tensor([0, 1]))
    assert metric.compute() == {"all": {2: 0.0, 9: 0.5}}, "an unknown tag is a miss however large k is"


@pytest.mark.parametrize("ks", [[], [0, 1], [-5]])
def test_k_that_make_no_sense_are_refused(ks):
    with pytest.raises(ValueError, match="must be numbers from 1, at least one"):
        HitAtK(ks)


def one_of_two(rank, folder):
    """Each process judges every other image, one more of them than the other process does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data, metric = tagged(31), HitAtK(KS, ("seen", "unseen"))
    for row in range(rank, 31, 2):
        groups = {"seen": torch.tensor([row < 9]), "unseen": torch.tensor([row >= 9])}
        metric.update(*rows_of(row, row + 1, *data), groups)
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_very_same_figures_as_one(tmp_path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    metric, seen = HitAtK(KS, ("seen", "unseen")), torch.arange(31) < 9
    metric.update(*tagged(31), {"seen": seen, "unseen": ~seen})
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [metric.compute()] * 2
