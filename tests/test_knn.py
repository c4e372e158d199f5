"""The vote of the nearest training photos: as scikit-learn counts it, on pictures as on kept features."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from callbacks.embeddings import embed
from callbacks.knn import KNN, elect
from tests import photos, toy_fashion


@pytest.fixture
def data(tmp_path: Any) -> Any:
    return photos.ready(tmp_path)


def judged(folder: Any, data: Any, module: Any) -> float:
    trainer = toy_fashion.trainer(folder, KNN(5, 0.1))
    return trainer.test(module, datamodule=data, verbose=False)[0]["test/knn"]


def expected(trainer: Any, data: Any, module: Any) -> float:
    task = next(iter(data.facts["classes"]))
    known, vectors = {}, {}
    for split in ("train", "test"):
        labels = np.asarray(data.splits[split].labels[task])
        known[split] = labels[labels >= 0]
        vectors[split] = embed(trainer, module, split, np.flatnonzero(labels >= 0))
    vote = KNeighborsClassifier(5, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1))
    vote.fit(vectors["train"], known["train"])
    return float((vote.predict(vectors["test"]) == known["test"]).mean())


def test_the_vote_is_that_of_scikit_learn(tmp_path: Any, data: Any) -> None:
    module = toy_fashion.technique(classes=data.facts["classes"])
    trainer = toy_fashion.trainer(tmp_path)
    trainer.test(module, datamodule=data, verbose=False)
    assert judged(tmp_path, data, module) == pytest.approx(expected(trainer, data, module))


def test_kept_features_are_not_computed_again(tmp_path: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = toy_fashion.technique(classes=data.facts["classes"])
    task = next(iter(data.facts["classes"]))
    # Each class's photos point their own way: the vote is right about every photo whose class some training photo has.
    rows = {name: np.eye(8)[np.asarray(split.labels[task]) % 8] for name, split in data.splits.items()}
    data.store, data.shape = SimpleNamespace(rows=rows.__getitem__), (8,)
    monkeypatch.setattr("callbacks.knn.embed", None)
    seen, asked = (np.asarray(data.splits[name].labels[task]) for name in ("train", "test"))
    share = np.isin(asked[asked >= 0], seen).mean()
    assert judged(tmp_path, data, module) == pytest.approx(share)


def test_a_near_vote_outweighs_two_far_ones_and_the_first_of_equals_wins() -> None:
    votes, cosine = np.array([[1, 0, 0], [2, 1, 1]]), np.array([[0.9, 0.1, 0.1], [0.5, 0.5, 0.0]], np.float32)
    assert elect(votes, cosine / 0.1).tolist() == [1, 1]
    assert elect(votes, 1000 * cosine).tolist() == [1, 1], "no vote overflows"
    assert elect(np.array([[3, 1]]), np.zeros((1, 2), np.float32)).tolist() == [1]


def test_without_labels_nothing_is_said(tmp_path: Any, data: Any) -> None:
    module = toy_fashion.technique(classes=data.facts["classes"])
    for labels in data.splits["train"].labels.values():
        labels[:] = -1
    trainer = toy_fashion.trainer(tmp_path, KNN(5, 0.1))
    assert "test/knn" not in trainer.test(module, datamodule=data, verbose=False)[0]


@pytest.mark.parametrize(("neighbours", "temperature"), [(0, 0.1), (5, 0.0)])
def test_settings_that_make_no_sense_are_refused(neighbours: int, temperature: float) -> None:
    with pytest.raises(ValueError, match=r"knn\.neighbours"):
        KNN(neighbours, temperature)
