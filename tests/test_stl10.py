"""STL-10: the published binary files read exactly, what is trained on, folds, few labels, files that are wrong."""

import inspect
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml

from datamodules import stl10
from datamodules.stl10 import STL10
from tests.conftest import ROOT

FOLDER = "stl10_binary"
NAMES = [f"kind {k}" for k in range(10)]
COUNTS = {"train": 60, "test": 20, "unlabeled": 30}
SETTINGS = {
    "batch_size": 8, "seed": 0, "threads": 2, "on_leak": "error", "split": "train", "fold": None, "val_share": 0.2,
}  # fmt: skip


def bytes_of(name: str) -> np.ndarray:
    """Random bytes of a file of images."""
    return np.random.default_rng(len(name)).integers(0, 256, (COUNTS[name], 3, 96, 96), dtype=np.uint8)


def layout(root: Path) -> Path:
    """The published files, small, with random pixels; fold k has the images k, k + 10, ... and one more."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    for name, n in COUNTS.items():
        bytes_of(name).tofile(folder / f"{name}_X.bin")
        if name != "unlabeled":
            (np.arange(n) // 2 % 10 + 1).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    folds = [[*range(k, 60, 10), (k + 1) % 10] for k in range(10)]
    (folder / "fold_indices.txt").write_text("".join(" ".join(map(str, fold)) + " \n" for fold in folds))
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n")
    return root


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set as it should be; only read."""
    return layout(tmp_path_factory.mktemp("stl10"))


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(clean, tmp_path / "stl10"))


def opened(root: Path, **changes: Any) -> STL10:
    data = STL10(root, **{**SETTINGS, **changes})
    data.prepare_data()
    data.setup()
    return data


def refused(root: Path, words: str, error: type[Exception] = ValueError, **changes: Any) -> None:
    with pytest.raises(error, match=words) as found:
        opened(root, **changes)
    assert "\n" not in str(found.value), "one sentence"


def names(data: STL10, split: str) -> list[str]:
    return [data.name(split, at) for at in range(len(data.splits[split]))]


def labels(data: STL10, split: str) -> list[int]:
    return data.splits[split].labels["class"].tolist()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> type[torchvision.datasets.STL10]:
    """Torchvision's reader, which is made to believe that the files are the published ones."""
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    return torchvision.datasets.STL10


# --- the files as published


@pytest.mark.parametrize("split", ["train", "train+unlabeled", "unlabeled"])
@pytest.mark.parametrize("fold", [None, 4])
def test_read_as_torchvision_reads_it(clean: Path, split: str, fold: int | None, published: Any) -> None:
    data = opened(clean, split=split, fold=fold, val_share=0)
    for name, theirs in {"train": split, "test": "test"}.items():
        expected = published(clean, split=theirs, folds=fold if name == "train" else None)
        assert data.facts["classes"]["class"] == expected.classes
        order = np.arange(len(expected))
        if fold is not None and name == "train" and split != "unlabeled":
            own = [int(at) for at in (clean / FOLDER / "fold_indices.txt").read_text().splitlines()[fold].split()]
            order[: len(own)] = np.argsort(own)  # folds are in random order there, in the file's order here
        ours = data.exactly(name, np.arange(len(expected)))
        assert labels(data, name) == expected.labels[order].astype(np.int64).tolist()
        assert np.array_equal(torch.cat([batch["image"] for batch in ours]), expected.data[order])


def test_batches_are_copies_of_what_is_mapped(clean: Path) -> None:
    data = opened(clean, split="train+unlabeled")
    assert all(isinstance(block.pixels, np.memmap) for block in data.splits["train"].blocks), "not read into memory"
    for batch in data.train_dataloader():
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        for image, index, label in zip(batch["image"], batch["index"].tolist(), batch["labels"]["class"], strict=True):
            file, _, row = data.name("train", index).partition("_X.bin/")
            assert np.array_equal(image, bytes_of(file)[int(row)].transpose(0, 2, 1))
            assert label == (-1 if file == "unlabeled" else int(row) // 2 % 10)


def test_survey(clean: Path) -> None:
    survey = opened(clean, split="train+unlabeled").survey()
    assert survey["counts"] == {"train": 78, "val": 12, "test": 20}
    assert survey["classes"]["train"]["class"] != survey["classes"]["test"]["class"] == dict.fromkeys(NAMES, 2)
    assert survey["notes"] == [
        "train_X.bin has 60 images (5,000 as published), test_X.bin has 20 images (8,000 as published), "
        "unlabeled_X.bin has 30 images (100,000 as published), so results need not compare with those of others",
        "val: 12 images of train set aside (seed 0)",
        "train: 30 class labels missing, left out of the task's loss and metrics",
    ]
    assert opened(clean, split="unlabeled").notes[-1] == "train: no image has a label"


def test_config_names_every_argument() -> None:
    settings = yaml.safe_load((ROOT / "conf/datamodules/stl10.yaml").read_text(encoding="utf-8"))
    assert settings.pop("_target_") == "datamodules.stl10.STL10"
    assert settings.keys() == inspect.signature(STL10).parameters.keys()


# --- what is trained on


def test_validation_images_are_never_trained_on(clean: Path) -> None:
    sets = {split: opened(clean, split=split) for split in stl10.TRAINED}
    val = names(sets["train"], "val")
    assert len(val) == 12
    assert all(name.startswith("train_X.bin/") for name in val)
    for split, data in sets.items():
        assert names(data, "val") == val, "the same, whatever is trained on"
        assert not set(val) & set(names(data, "train"))
        assert len(names(data, "train")) == {"train": 48, "train+unlabeled": 78, "unlabeled": 30}[split]
    assert labels(sets["unlabeled"], "train") == [-1] * 30


def test_validation_of_a_fold_comes_from_the_fold(clean: Path) -> None:
    data = opened(clean, fold=3)
    fold = {f"train_X.bin/{at}" for at in (*range(3, 60, 10), 4)}
    assert set(names(data, "train")) | set(names(data, "val")) == fold
    assert len(names(data, "val")) == 1
    assert len(opened(clean, fold=3, split="train+unlabeled").splits["train"]) == 36


def test_shares_of_the_labels_are_balanced_and_nested(clean: Path) -> None:
    def known(share: float, **changes: Any) -> set[str]:
        data = opened(clean, label_share=share, **changes)
        pairs = zip(names(data, "train"), labels(data, "train"), strict=True)
        return {name for name, label in pairs if label >= 0}

    tenth, half, whole = known(0.01), known(0.5), known(1)
    assert (len(tenth), len(half), len(whole)) == (10, 24, 48)
    assert tenth < half < whole
    assert Counter(int(name.partition("/")[2]) // 2 % 10 for name in tenth) == dict.fromkeys(range(10), 1)
    assert known(0.01, seed=1) != tenth
    for split in ("train", "train+unlabeled"):
        data = opened(clean, label_share=0.5, split=split)
        assert known(0.5, split=split) == half, "the same labels, whatever else is trained on"
        assert len(data.splits["train"]) == {"train": 24, "train+unlabeled": 78}[split]
        assert "train: 24 of 48 labels used (seed 0)" in data.notes


def test_an_unlabelled_image_that_is_held_out_leaks(root: Path) -> None:
    test, unlabeled = (root / FOLDER / f"{name}_X.bin" for name in ("test", "unlabeled"))
    unlabeled.write_bytes(unlabeled.read_bytes()[:27648] + test.read_bytes()[27648 : 2 * 27648] * 2)
    words = "2 images of train also held out in another split, first unlabeled_X.bin/1 = test_X.bin/1"
    refused(root, words, split="train+unlabeled")
    dropped = opened(root, split="unlabeled", on_leak="drop")
    assert names(dropped, "train") == ["unlabeled_X.bin/0"]
    assert any(note.startswith("train: 1 image there more than once") for note in dropped.notes)
    opened(root)


def test_subset_of_train_and_unlabeled_keeps_their_proportion(clean: Path) -> None:
    data = opened(clean, split="train+unlabeled", train_images=39)
    assert sum(label < 0 for label in labels(data, "train")) == pytest.approx(30 / 78 * 39, abs=3)


# --- files that are wrong


def test_missing_files(root: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "No STL-10 in .*nowhere: expected stl10_binary/ with train_X.bin", FileNotFoundError)
    (root / FOLDER / "unlabeled_X.bin").unlink()
    (root / FOLDER / "fold_indices.txt").unlink()
    opened(root)  # neither is needed for this
    refused(root, "has no unlabeled_X.bin: copy", FileNotFoundError, split="unlabeled")
    refused(root, "has no fold_indices.txt: copy", FileNotFoundError, fold=0)


@pytest.mark.parametrize("name", ["train", "test", "unlabeled"])
@pytest.mark.parametrize("size", [0, 27_647, 3 * 64 * 64 * 20])
def test_truncated_files_and_other_sizes(root: Path, name: str, size: int) -> None:
    path = root / FOLDER / f"{name}_X.bin"
    path.write_bytes(path.read_bytes()[:size])
    refused(root, rf"{name}_X.bin has {size:,} bytes, where images of 3 x 96 x 96 = 27,648 bytes", split="unlabeled")


@pytest.mark.parametrize("part", ["X", "y"])
def test_images_and_labels_that_do_not_fit(root: Path, part: str) -> None:
    path = root / FOLDER / f"test_{part}.bin"
    path.write_bytes(path.read_bytes()[: -27_648 if part == "X" else -1])
    images, known = (19, 20) if part == "X" else (20, 19)
    refused(root, f"test_X.bin has {images} images and test_y.bin {known} labels: one of them was cut short")


@pytest.mark.parametrize(("label", "at"), [(0, 0), (11, 7), (255, 59)])
def test_labels_out_of_range(root: Path, label: int, at: int) -> None:
    path = root / FOLDER / "train_y.bin"
    content = bytearray(path.read_bytes())
    content[at] = label
    path.write_bytes(content)
    refused(root, f"train_y.bin/{at}: label {label}: labels run from 1 to 10")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("3 4 60", "fold_indices.txt line 2: '60': places run from 0 to 59"),
        ("3 -4 5", "fold_indices.txt line 2: '-4'"),
        ("3 \xff 5", "fold_indices.txt line 2: "),
        ("3 x 5.0", "fold_indices.txt line 2: 'x'; fold_indices.txt line 2: '5.0'"),
        ("", "fold_indices.txt has no line 2 for fold=1"),
    ],
)
def test_wrong_folds(root: Path, line: str, words: str) -> None:
    path = root / FOLDER / "fold_indices.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    refused(root, words, fold=1)
    opened(root, fold=0)


def test_too_few_folds_or_names(root: Path) -> None:
    path = root / FOLDER / "fold_indices.txt"
    path.write_text(path.read_text().splitlines()[0])
    refused(root, "has no line 10 for fold=9", fold=9)
    (root / FOLDER / "class_names.txt").write_text("one\ntwo\n")
    refused(root, "train_y.bin/4: label 3; .*labels run from 1 to 2")
    (root / FOLDER / "class_names.txt").write_text("\n")
    refused(root, "class_names.txt has 0 class name")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "test"}, "split='test' is not one of train, train\\+unlabeled, unlabeled"),
        ({"fold": 10}, "fold=10 is not one of 0 to 9"),
        ({"fold": True}, "fold=True is not one of 0 to 9"),
        ({"label_share": 0}, "label_share=0 is not a share above 0"),
        ({"label_share": 1.5}, "label_share=1.5 is not a share"),
        ({"augment": {"pad": 96}}, "augment.pad=96 is not a whole number of pixels from 0 to 95"),
    ],
)
def test_settings(clean: Path, changes: dict[str, Any], words: str) -> None:
    refused(clean, words, **changes)


# --- the drawn set


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "stl10"
    STL10.draw_sample(root)
    return root


@pytest.mark.parametrize("split", ["train", "unlabeled"])
def test_drawn_set_is_read_as_torchvision_reads_it(drawn: Path, split: str, published: Any) -> None:
    data = opened(drawn, split=split, val_share=0)
    assert {name: len(each) for name, each in data.splits.items()} == {
        "train": 500 if split == "train" else 1000,
        "test": 400,
    }
    theirs = published(drawn, split=split)
    for at in (0, 77, 499):
        assert np.array_equal(data.picture("train", at).permute(1, 2, 0), np.asarray(theirs[at][0]))
        assert labels(data, "train")[at] == theirs[at][1]
    assert len(data.notes) == 1 + (split == "unlabeled")


def test_drawn_folds_are_balanced(drawn: Path) -> None:
    for fold in range(10):
        data = opened(drawn, fold=fold, val_share=0)
        assert set(data.survey()["classes"]["train"]["class"].values()) == {10}


def test_drawing_is_a_function_of_its_seed(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pixels(seed: int) -> bytes:
        stl10.sample.write_split(tmp_path, "test", seed)
        return (tmp_path / "test_X.bin").read_bytes()

    before = (drawn / FOLDER / "train_X.bin").stat().st_mtime_ns
    STL10.draw_sample(drawn, seed=5)
    assert (drawn / FOLDER / "train_X.bin").stat().st_mtime_ns == before, "what is there is kept"
    monkeypatch.setitem(stl10.sample.IMAGES, "test", 20)
    assert len(pixels(0)) == 20 * 27_648
    assert pixels(0) == pixels(0) != pixels(1)
