import numpy as np
import pytest
from torch.utils.data import BatchSampler

from datamodules.samplers import Draw, EvalSampler, TrainSampler, Weights, balance_weights, global_order


def batches(world_size: int, epoch: int, n: int = 50, size: int = 12, **options: object) -> list[list[list[Draw]]]:
    """[rank][batch][draw]"""
    found = []
    for rank in range(world_size):
        sampler = TrainSampler(n, size, 3, rank, world_size, **options)
        sampler.set_epoch(epoch)
        found.append(list(BatchSampler(sampler, size // world_size, drop_last=True)))
        assert len(sampler) == sum(map(len, found[-1]))
    return found


@pytest.mark.parametrize("weights", [None, Weights(np.linspace(0.2, 2.5, 50), np.arange(50) % 4)])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_all_ranks_together_see_the_batch_of_one(world_size: int, weights: Weights | None) -> None:
    (one,) = batches(1, epoch=5, weights=weights)
    several = batches(world_size, epoch=5, weights=weights)
    for number, batch in enumerate(one):
        together = [draw for rank in several for draw in rank[number]]
        assert together == batch, "same photos and same keys of their randomness, rank after rank"


def test_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch() -> None:
    assert sorted(global_order(100, 1, 0)) == list(range(100))
    assert (global_order(100, 1, 0) == global_order(100, 1, 0)).all()
    others = [global_order(100, 1, 1), global_order(100, 2, 0), global_order(100, 0, 1)]
    assert all((global_order(100, 1, 0) != other).any() for other in others)


def test_keys_name_seed_epoch_and_position_and_never_repeat() -> None:
    keys = [draw.key for epoch in (0, 1) for (rank,) in [batches(1, epoch)] for batch in rank for draw in batch]
    assert keys[:3] == [(3, 0, 0), (3, 0, 1), (3, 0, 2)]
    assert len(set(keys)) == len(keys) == 2 * 48


def test_what_fills_no_batch_is_left_for_other_epochs() -> None:
    seen = {draw.sample for epoch in range(6) for batch in batches(1, epoch)[0] for draw in batch}
    assert seen == set(range(50))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [4, 7, 10])
def test_evaluation_takes_each_sample_once(n: int, world_size: int) -> None:
    shards = [list(EvalSampler(n, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for shard in shards for index in shard) == list(range(n))
    assert [len(EvalSampler(n, rank, world_size)) for rank in range(world_size)] == [len(shard) for shard in shards]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((100, 64, 0, 0, 3), r"batch_size=64 .* multiple of 3, such as 63 or 66"),
        ((100, 2, 0, 0, 4), "multiple of 4, such as 4"),
        ((20, 32, 0), r"batch_size=32 is larger than the training data \(20 samples"),
    ],
)
def test_batches_that_cannot_be(arguments: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainSampler(*arguments)


def test_fewer_samples_than_ranks() -> None:
    with pytest.raises(ValueError, match="3 samples are too few for 4 devices"):
        EvalSampler(3, 0, 4)


def skewed(seed: int = 0, n: int = 3000) -> dict[str, np.ndarray]:
    """Two imbalanced tasks that hang together."""
    rng = np.random.default_rng(seed)
    first = rng.choice(4, n, p=[0.7, 0.2, 0.07, 0.03])
    return {"a": first, "b": np.where(rng.random(n) < 0.5, np.minimum(first, 2), rng.choice(3, n, p=[0.8, 0.15, 0.05]))}


def test_balance_fills_small_classes_and_cuts_large_ones_in_all_tasks_at_once() -> None:
    labels = skewed()
    weights = balance_weights(labels, {"floor": 400, "ceiling": 900})
    for ids in labels.values():
        before, wanted = np.bincount(ids), np.bincount(ids, weights.each)
        target = np.clip(before, 400, 900)
        assert wanted == pytest.approx(target * wanted.sum() / target.sum(), rel=1e-3)
        drawn = np.bincount(ids[global_order(3000, 0, 0, weights)])
        assert np.abs(drawn - wanted).max() <= 4, "an epoch hardly strays from what is wanted"
        assert np.ptp(drawn) < np.ptp(before) / 3


def test_resampling_is_fair_to_each_sample() -> None:
    weights = balance_weights(skewed(), {"floor": 400, "ceiling": 900})
    drawn = np.array([np.bincount(global_order(3000, 0, e, weights), minlength=3000) for e in range(200)])
    assert (drawn >= np.floor(weights.each)).all()
    assert (drawn <= np.ceil(weights.each)).all()
    assert len({counts.sum() for counts in drawn}) == 1, "each epoch is as long as the others"
    assert np.abs(drawn.mean(0) - weights.each).max() < 0.2


def test_bounds_as_shares_and_either_left_out() -> None:
    labels = {"a": skewed()["a"]}
    shares, images = {"floor": 0.1, "ceiling": 0.3}, {"floor": 300, "ceiling": 900}
    assert (balance_weights(labels, shares).each == balance_weights(labels, images).each).all()
    low = np.bincount(labels["a"], balance_weights(labels, {"floor": 500}).each)
    assert low == pytest.approx(np.maximum(np.bincount(labels["a"]), 500), abs=1)


def test_missing_labels_and_absent_classes_do_no_harm() -> None:
    labels = skewed()
    labels["b"][::7] = -1
    labels["c"] = np.full(3000, -1)
    labels["d"] = np.where(labels["a"] == 2, 5, labels["a"])  # ids 2 and 4 are absent
    weights = balance_weights(labels, {"floor": 400, "ceiling": 900})
    assert np.isfinite(weights.each).all()
    assert weights.each.min() > 0


def test_a_class_of_one_photo_is_drawn_again_and_again() -> None:
    labels = {"a": np.array([0] * 99 + [1])}
    order = global_order(100, 0, 0, balance_weights(labels, {"floor": 20}))
    assert 19 <= (order == 99).sum() <= 21


@pytest.mark.parametrize(
    ("balance", "words"),
    [({"flor": 3}, "no setting 'flor'"), ({"floor": -1}, "balance.floor=-1"), ({"ceiling": "many"}, "balance.ceiling"),
     ({"floor": 100, "ceiling": 50}, "floor=100 images lies above ceiling=50")],
)  # fmt: skip
def test_settings_of_balance(balance: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        balance_weights(skewed(), balance)
