"""Unlabelled photos beside labelled ones: which, how many, in what order, and what is refused."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.companions import Companions, Mixture
from datamodules.samplers import Draw
from tests.photos import layout, module, save
from tests.toy_arrays import AUGMENT, Toy, images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "fascode").mkdir()
    return layout(tmp_path / "fascode")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(5):
        save(tmp_path / f"more/{n % 2}/{n}.jpg", 1000 + n)
    return tmp_path / "more"


def batches(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_a_batch_brings_its_share_as_evaluation_sees_it_and_labels_unseen(root: Path, folder: Path) -> None:
    data = module(root, unlabelled={"source": str(folder), "ratio": 0.5}, augment={"rotate": 30})
    (first, *rest) = batches(data)
    assert len(rest) == 2
    assert set(first["unlabelled"]) == {"image", "index", "position"}
    assert first["image"].shape[0] == 4
    photos = data.splits["train"].unlabelled
    for image, index in zip(first["unlabelled"]["image"], first["unlabelled"]["index"], strict=True):
        assert torch.equal(image, photos[int(index)]["image"])
    positions = [p for batch in (first, *rest) for p in batch["unlabelled"]["position"].tolist()]
    assert positions == list(range(6))
    indices = [i for batch in (first, *rest) for i in batch["unlabelled"]["index"].tolist()]
    assert sorted(indices[:5]) == list(range(5)), "each once before one comes again"
    assert any("unlabelled: 5 photos" in note for note in data.notes)


def test_other_batches_have_none(root: Path, folder: Path) -> None:
    data = module(root, unlabelled={"source": str(folder)})
    assert all("unlabelled" not in batch for batch in [*data.val_dataloader(), *data.test_dataloader()])
    assert "unlabelled" not in next(iter(data.exactly("train", np.arange(3))))
    assert data.picture("train", 0).shape == (3, 32, 32)
    assert data.survey()["counts"] == {"train": 14, "val": 6, "test": 5}
    assert data.splits["train"].is_random, "no feature is kept of changed photos"


def test_what_an_epoch_brings_is_a_function_of_seed_and_place_alone(root: Path, folder: Path) -> None:
    split = Companions(range(10), range(5), 1.5)
    whole = [split.beside((7, 2, at)) for at in range(10)]
    again = Companions(range(10), range(5), 1.5)
    assert [again.beside((7, 2, at)) for at in reversed(range(10))] == whole[::-1], "in any order, after any resume"
    assert [len(each) for each in whole] == [1, 2] * 5
    assert [split.beside((7, 3, at)) for at in range(10)] != whole
    assert [split.beside((8, 2, at)) for at in range(10)] != whole
    halves = [[c for at in part for c in whole[at]] for part in ((0, 1, 4, 5), (2, 3, 6, 7))]  # two processes
    assert sorted(c.position for half in halves for c in half) == list(range(12))


def test_dropped_photos_are_learned_from_without_their_labels(root: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    with kept.open("w", newline="") as file:
        rows = [["Train/000/0.jpg", "Daily", "0", "drop"], ["Train/001/1.jpg", "Gender", "1", "drop"]]
        csv.writer(file).writerows([["photo", "task", "label", "action"], *rows])
    data = module(root, labels={"kept": str(kept), "unit": "photo"}, unlabelled={"source": "dropped"})
    first = batches(data)[0]
    assert {p.name for p in data.splits["train"].unlabelled.paths} == {"0.jpg", "1.jpg"}
    assert len(data.splits["train"]) == 12
    assert set(first["unlabelled"]["index"].tolist()) == {0, 1}
    everything = module(root, unlabelled={"source": "train"})
    everything.setup()
    assert len(everything.splits["train"].unlabelled) == 14


def test_without_a_dropped_label_batches_bring_no_photo(root: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    kept.write_text("photo,task,label,action\nTrain/000/0.jpg,Daily,0,keep\n")
    data = module(root, labels={"kept": str(kept)}, unlabelled={"source": "dropped"})
    assert batches(data)[0]["unlabelled"]["image"].shape == (0, 3, 32, 32)
    assert any("unlabelled: 0 photos" in note for note in data.notes)


def test_arrays_bring_photos_too_unchanged_while_their_own_images_are_changed(tmp_path: Path, folder: Path) -> None:
    data = Toy(tmp_path, unlabelled={"source": str(folder), "ratio": 1}, augment=AUGMENT)
    batch = batches(data)[0]
    assert "draws" in batch
    assert batch["unlabelled"]["image"].shape == (4, 3, 8, 8)
    changed = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(changed["unlabelled"]["image"], batch["unlabelled"]["image"])
    mine = Toy(tmp_path, unlabelled={"source": "train"}, augment=AUGMENT)
    assert "draws" not in batches(mine)[0]["unlabelled"]


@pytest.mark.parametrize("on_leak", ["error", "drop", "warn"])
def test_a_folder_with_photos_of_test_is_named(root: Path, folder: Path, on_leak: str) -> None:
    shutil.copy(root / "Test/001/1.jpg", folder / "new name.jpg")
    shutil.copy(root / "Train/001/1.jpg", folder / "of train.jpg")
    data = module(root, unlabelled={"source": str(folder)}, on_leak=on_leak)
    if on_leak == "error":
        with pytest.raises(
            ValueError, match=r"1 photo of unlabelled also .*new name.jpg = .*test.csv row 3: set on_leak"
        ):
            data.setup()
        return
    data.setup()
    assert len(data.splits["train"].unlabelled) == (6 if on_leak == "drop" else 7)


def test_arrays_compare_pixels(tmp_path: Path, folder: Path) -> None:
    Image.fromarray(images(12, 2)[5]).save(folder / "seen.png")
    with pytest.raises(ValueError, match=r"seen.png = test test.bin/5: set on_leak=drop"):
        Toy(tmp_path, unlabelled={"source": str(folder)}).setup()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sauce": "train"}, "unlabelled has no setting 'sauce'; it has source, ratio"),
        ({}, "unlabelled.source must be dropped, train, or a folder of photos"),
        ({"source": "train", "ratio": 0}, "unlabelled.ratio=0 is not a number above 0"),
    ],
)
def test_wrong_settings(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Mixture.of(settings)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"source": "dropped"}, ValueError, "needs verdicts on labels: set labels.kept"),
        ({"source": "train", "ratio": 0.25}, ValueError, "of batch_size=4 is not two photos"),
        ({"source": "nowhere"}, FileNotFoundError, "unlabelled.source=nowhere is no folder"),
    ],
)
def test_sources_that_bring_nothing(root: Path, settings: dict[str, object], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        module(root, unlabelled=settings).setup()


def test_a_broken_photo_of_a_folder_is_named(root: Path, folder: Path) -> None:
    (folder / "torn.jpg").write_bytes(b"\xff\xd8 nothing more")
    with pytest.raises(ValueError, match=r"torn.jpg"):
        module(root, unlabelled={"source": str(folder)}).setup()
    data = module(root, unlabelled={"source": str(folder)}, on_bad_image="skip")
    data.setup()
    assert len(data.splits["train"].unlabelled) == 5


def test_evaluation_reads_single_pictures(root: Path, folder: Path) -> None:
    data = module(root, unlabelled={"source": str(folder)})
    data.setup()
    assert data.splits["train"].expand([3, 4]) == [3, 4]
    assert len(data.splits["train"].expand([Draw(3, (0, 0, 0))])) == 2
