import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.fascode import FASCODE
from datamodules.samples import fascode as sample
from tests.conftest import ROOT
from tests.photos import BOX, COLUMNS, COUNTS, csv_of, hurt, layout, module, pixels, rows, save, table


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set as it should be; only read."""
    return layout(tmp_path_factory.mktemp("fascode"))


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(clean, tmp_path / "fascode"))


def change(root: Path, split: str, row: int, column: str, value: object) -> None:
    """Write a value into a CSV, rows counted as messages count them (the header is row 1)."""
    lines = rows(split)
    lines[row - 2][COLUMNS.index(column)] = value
    table(csv_of(root, split), lines)


def refused(root: Path, words: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=words) as error:
        module(root, **changes).setup()
    assert "\n" not in str(error.value), "one sentence"


def batches(data: FASCODE, epoch: int = 0) -> list[dict[str, Any]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a["image"], b["image"]) and torch.equal(a["index"], b["index"]) for a, b in pairs)


# --- what a batch holds


def test_batch(clean: Path) -> None:
    data = module(clean)
    (batch, *_) = batches(data)
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert set(batch) == {"image", "labels", "index"}
    for task, ids in batch["labels"].items():
        assert ids.dtype == batch["index"].dtype == torch.int64
        column = [row[COLUMNS.index(task)] for row in rows("train")]
        assert ids.tolist() == [column[index] for index in batch["index"].tolist()]


def test_splits_facts_and_survey(clean: Path) -> None:
    data = module(clean)
    assert (data.splits, data.facts) == ({}, {}), "building it reads nothing"
    data.setup()
    splits = data.splits
    data.setup("test")
    assert data.splits is splits, "read once"
    assert {name: len(photos) for name, photos in splits.items()} == {"train": 14, "val": 6, "test": 5}
    names = {"Daily": list("0123456"), "Gender": list("012345"), "Embellishment": list("012")}
    counts = {"Daily": [2] * 7, "Gender": [3, 3, 2, 2, 2, 2], "Embellishment": [5, 5, 4]}
    assert data.facts == {"classes": names, "counts": counts}
    survey = data.survey(deep=True)
    assert survey["root"] == str(clean)
    assert survey["counts"] == {"train": 14, "val": 6, "test": 5}
    assert survey["classes"]["train"]["Daily"] == dict.fromkeys("0123456", 2)
    assert survey["notes"] == []
    assert data.name("test", 4) == "Test/001/4.jpg"


def test_picture_is_the_box_of_the_photo(clean: Path) -> None:
    data = module(clean, fit="squash", margin=0.0, image_size=54)
    left, top, right, bottom = BOX
    wanted = pixels(203)[top:bottom, left:right]
    wanted = np.asarray(Image.fromarray(wanted).resize((54, 54), Image.Resampling.BILINEAR))
    found = data.picture("test", 3).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - wanted).mean() < 4
    whole = module(clean, crop="photo", fit="squash", margin=0.0, image_size=54).picture("test", 3)
    assert np.abs(whole.permute(1, 2, 0).numpy().astype(int) - wanted).mean() > 8


def test_whole_photos_need_no_boxes(root: Path) -> None:
    for split in COUNTS:
        table(csv_of(root, split), [[row[0], *row[5:]] for row in rows(split)], [COLUMNS[0], *COLUMNS[5:]])
    assert len(module(root, crop="photo").train_dataloader()) == 3
    refused(root, "has none of the columns BBox_xmin, .*: add them, or set crop=photo")


# --- randomness and order


def test_augmentation_depends_on_seed_epoch_and_position_only(clean: Path) -> None:
    first = batches(module(clean, threads=1))
    assert equal(first, batches(module(clean, threads=3)))
    assert equal(first, batches(module(clean)))
    assert not equal(first, batches(module(clean, seed=1)))
    twice = {
        index: image for batch in first for index, image in zip(batch["index"].tolist(), batch["image"], strict=True)
    }
    later = [
        pair
        for batch in batches(module(clean), epoch=1)
        for pair in zip(batch["index"].tolist(), batch["image"], strict=True)
    ]
    assert not any(torch.equal(image, twice[index]) for index, image in later if index in twice)


class Ranked:
    """As much of a trainer as the loaders ask for."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size = rank, world_size


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_make_the_batches_of_one_process(clean: Path, world_size: int) -> None:
    one = batches(module(clean))
    parts = []
    for rank in range(world_size):
        data = module(clean)
        data.trainer = Ranked(rank, world_size)
        parts.append(batches(data))
    for number, batch in enumerate(one):
        assert torch.equal(torch.cat([part[number]["image"] for part in parts]), batch["image"])
        assert torch.equal(torch.cat([part[number]["labels"]["Daily"] for part in parts]), batch["labels"]["Daily"])


def test_evaluation_shards_are_exact_and_not_augmented(clean: Path) -> None:
    seen = {}
    for rank in range(4):
        data = module(clean, batch_size=8)
        data.trainer = Ranked(rank, 4)
        for batch in data.test_dataloader():
            for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
                assert index not in seen
                seen[index] = image
                assert torch.equal(image, data.picture("test", index))
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_sizes_that_cannot_be_shared(clean: Path) -> None:
    data = module(clean)
    data.trainer = Ranked(0, 3)
    with pytest.raises(ValueError, match=r"batch_size=4 .* multiple of 3"):
        data.train_dataloader()
    data.trainer = Ranked(0, 8)
    with pytest.raises(ValueError, match="6 samples are too few for 8 devices"):
        data.val_dataloader()
    with pytest.raises(ValueError, match="batch_size=16 is larger than the training data"):
        module(clean, batch_size=16).train_dataloader()


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_loader_goes_on_with_the_next_batch_of_its_epoch(clean: Path, done: int) -> None:
    data = module(clean)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    running = iter(loader)
    for _ in range(done):
        next(running)
    state = loader.state_dict()
    assert not done or state == {"epoch": 2, "done": done}, "handed out, not decoded ahead"
    other = data.train_dataloader()
    other.load_state_dict(state)
    assert other.state_dict() == state
    resumed = iter(other)  # as Lightning does: iter() first, then the epoch
    other.sampler.set_epoch(2)
    assert equal(list(resumed), batches(data, epoch=2)[done:])
    other.sampler.set_epoch(3)
    assert equal(list(other), batches(data, epoch=3)), "the next epoch is whole"


def test_state_of_a_finished_epoch_does_not_touch_the_next(clean: Path) -> None:
    loader = module(clean).train_dataloader()
    list(loader)
    other = module(clean).train_dataloader()
    other.load_state_dict(loader.state_dict())
    other.sampler.set_epoch(1)
    assert len(list(other)) == 3


class Recorder(pl.LightningModule):
    """Notes what it is trained on; may break off, as a killed run does."""

    def __init__(self, folder: Path, stop: int | None = None) -> None:
        super().__init__()
        self.weight, self.folder, self.stop = torch.nn.Parameter(torch.zeros(())), folder, stop
        self.seen: list[tuple[list[int], int]] = []

    def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
        if self.global_step == self.stop:
            raise KeyboardInterrupt
        self.seen.append((batch["index"].tolist(), int(batch["image"].sum())))
        return self.weight * 1.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.trainer.save_checkpoint(self.folder / "last.ckpt")

    def validation_step(self, batch: dict[str, Any], number: int) -> None:
        assert batch["image"].shape[1:] == (3, 32, 32)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data: FASCODE, folder: Path, stop: int | None = None, checkpoint: Path | None = None) -> Recorder:
    recorder = Recorder(folder, stop)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, enable_checkpointing=False,
    )  # fmt: skip
    try:
        trainer.fit(recorder, data, ckpt_path=checkpoint, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        assert stop is not None
    return recorder


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_lightning_resumes_in_the_middle_and_at_the_end_of_an_epoch(clean: Path, tmp_path: Path, stop: int) -> None:
    whole = fit(module(clean), tmp_path / "whole").seen
    before = fit(module(clean), tmp_path / "cut", stop=stop).seen
    after = fit(module(clean), tmp_path / "rest", checkpoint=tmp_path / "cut" / "last.ckpt").seen
    assert len(whole) == 9
    assert before + after == whole


# --- names of files and folders


@pytest.mark.parametrize(
    ("csv_name", "folder"),
    [("valid", "Valid"), ("validation", "Validation"), ("val", "val"), ("Val", "VALID"), ("valid", "validation")],
)
def test_spellings(root: Path, csv_name: str, folder: str) -> None:
    csv_of(root, "valid").rename(csv_of(root, csv_name))
    (root / "Valid").rename(root / "aside")
    (root / "aside").rename(root / folder)
    (root / "Train").rename(root / "train")
    (root / "Test").rename(root / "test")
    data = module(root)
    data.setup()
    assert {name: len(photos) for name, photos in data.splits.items()} == {"train": 14, "val": 6, "test": 5}
    assert data.notes == []


def test_two_spellings_of_one_split(root: Path) -> None:
    shutil.copy(csv_of(root, "valid"), csv_of(root, "validation"))
    refused(root, "both spell the val split")


def without_val(root: Path) -> Path:
    csv_of(root, "valid").unlink()
    shutil.rmtree(root / "Valid")
    return root


def test_val_is_carved_from_train_only_where_there_is_none(root: Path) -> None:
    data = module(without_val(root), val_share=0.5, classes={"Gender": 6, "Embellishment": 3})
    data.setup()
    assert {name: len(photos) for name, photos in data.splits.items()} == {"train": 7, "val": 7, "test": 5}
    train, val = ({path.name for path in data.splits[name].paths} for name in ("train", "val"))
    assert len(train | val) == 14
    for task, ids in data.splits["train"].labels.items():
        assert set(ids) == set(range(len(data.facts["classes"][task]))), "no class is lost"
    assert any("7 photos of train set aside (seed 0)" in note for note in data.notes)
    again, other = module(root, val_share=0.5), module(root, val_share=0.5, seed=1)
    for new in (again, other):
        new.setup()
    first = module(root, val_share=0.5)
    first.setup()
    assert first.splits["val"].paths == again.splits["val"].paths != other.splits["val"].paths


def test_equal_photos_stay_on_one_side_of_a_carved_split(root: Path) -> None:
    for n in range(0, 14, 2):
        shutil.copy(root / "Train" / rows("train")[n][0], root / "Train" / rows("train")[n + 1][0])
    for seed in range(4):
        module(without_val(root) if not seed else root, val_share=0.4, seed=seed, classes={"Gender": 6}).setup()


@pytest.mark.parametrize("found", ["info_etri20_emotion_eval.csv", "holdout.csv", "Evaluation", "Valid"])
def test_a_split_under_an_unknown_name_is_not_carved_away(root: Path, found: str) -> None:
    csv_of(root, "valid").rename(root / (found if found.endswith(".csv") else "aside.txt"))
    if not found.endswith(".csv"):
        (root / "Valid").rename(root / found)
    else:
        shutil.rmtree(root / "Valid")
    refused(root, rf"has {found} but no info_etri20_emotion_valid.csv or .*name it so .*move it away")


def test_something_unknown_beside_a_known_val_is_said(root: Path) -> None:
    shutil.copy(csv_of(root, "test"), root / "info_etri20_emotion_extra.csv")
    (root / "notes").mkdir()
    data = module(root)
    data.setup()
    assert [note for note in data.notes if "not used" in note and "extra.csv" in note and "notes" not in note]


def test_a_folder_of_photos_that_is_not_there(root: Path) -> None:
    shutil.rmtree(root / "Test")
    with pytest.raises(FileNotFoundError, match=r"no folder Test/ or Testing/"):
        module(root).setup()


@pytest.mark.parametrize("there", [True, False])
def test_wrong_folder(tmp_path: Path, there: bool) -> None:
    place = tmp_path / "fascode"
    if there:
        save(place / "somewhere" / "1.jpg", 1)
    with pytest.raises(FileNotFoundError) as error:
        module(place).setup()
    text = str(error.value)
    parts = [
        str(place),
        "info_etri20_emotion_train.csv",
        "image_name, BBox_xmin",
        "Daily, Gender, Embellishment",
        "Train/",
    ]
    for part in [*parts, "ETRI", "data_dir=", "sample=true", "somewhere" if there else "no such folder"]:
        assert part in text
    assert "\n" not in text


# --- a test file without labels


@pytest.mark.parametrize("empty", [True, False])
def test_unlabelled_test_is_predicted(root: Path, empty: bool) -> None:
    lines = [[*row[:5], "", "", ""] if empty else row[:5] for row in rows("test")]
    table(csv_of(root, "test"), lines, COLUMNS if empty else COLUMNS[:5])
    data = module(root)
    data.setup()
    assert list(data.splits) == ["train", "val", "predict"]
    seen = [index for batch in data.predict_dataloader() for index in batch["index"].tolist()]
    assert seen == list(range(5))
    assert [data.name("predict", n) for n in seen] == [row[0] for row in rows("test")], "as the file lists them"
    assert "labels" not in next(iter(data.predict_dataloader()))
    with pytest.raises(ValueError, match="has no test split; it has train, val, predict"):
        data.test_dataloader()
    assert any("has no labels" in note for note in data.notes)
    assert data.survey()["counts"]["predict"] == 5


def test_no_test_file_at_all(root: Path) -> None:
    csv_of(root, "test").unlink()
    shutil.rmtree(root / "Test")
    data = module(root)
    data.setup()
    assert list(data.splits) == ["train", "val"]


# --- tables with something wrong in them


@pytest.mark.parametrize("column", ["image_name", "BBox_ymax", "Gender"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_column(root: Path, column: str, split: str) -> None:
    at = COLUMNS.index(column)
    lines = [[cell for n, cell in enumerate(row) if n != at] for row in rows(split)]
    table(csv_of(root, split), lines, [name for name in COLUMNS if name != column])
    refused(root, rf"info_etri20_emotion_{split}.csv has no column '{column}'; it has .*")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("Daily", 7, "Daily = '7' is out of range"),
        ("Gender", -1, "Gender = '-1' is out of range"),
        ("Gender", 1.5, "Gender = '1.5' is out of range"),
        ("Daily", "shirt", "Daily = 'shirt' is neither an id nor a name"),
        ("BBox_xmin", "left", "BBox_xmin = 'left' is not a number"),
        ("BBox_xmin", "", "BBox_xmin = '' is not a number"),
        ("BBox_xmin", "nan", "BBox_xmin = 'nan' is not a number"),
        ("BBox_xmax", 4, r"the box \(4, 6, 4, 60\) is empty"),
        ("BBox_ymax", 1, r"the box \(4, 6, 40, 1\) is empty"),
        ("BBox_xmax", 4000, r"lies outside of 2.jpg, which has 48 x 64 pixels"),
    ],
)
def test_wrong_values_are_named_by_file_and_row(root: Path, column: str, value: object, words: str) -> None:
    change(root, "valid", 4, column, value)
    refused(root, f"info_etri20_emotion_valid.csv row 4: .*{words}")


def test_a_box_beside_the_photo(root: Path) -> None:
    lines = rows("train")
    lines[3][1:5] = [100, 100, 140, 140]
    table(csv_of(root, "train"), lines)
    refused(root, "row 5: .*lies outside of 3.jpg")


def test_a_box_a_little_over_the_edge_is_cut_and_counted(root: Path) -> None:
    change(root, "train", 3, "BBox_xmax", 50)
    data = module(root)
    data.setup()
    assert data.splits["train"].box(1) == (4, 6, 48, 60)
    assert data.notes == [
        "train: boxes that reach over the photo's edge were cut: 1, first info_etri20_emotion_train.csv row 3"
    ]


def test_the_first_faults_are_spelt_out_and_the_rest_counted(root: Path) -> None:
    table(csv_of(root, "train"), [[*row[:5], 9, *row[6:]] for row in rows("train")])
    refused(root, "row 2: .*row 3: .*row 4: .*; and 11 more: Daily has the 7 classes 0, 1, 2, 3, 4, 5, 6; correct")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        ("image_name,Daily\n가.jpg,1\n".encode("utf-16"), "is not UTF-8"),
        ("image_name,Daily\n\uac00.jpg,1\n".encode("euc-kr"), "is not UTF-8"),
        (b"image_name,Daily,Daily\nx,1,1\n", "names column 'Daily' twice"),
        (b"image_name;Daily;Gender\nx;1;1\n", "has ';' between its columns: save it as comma-separated"),
        (b"image_name,Daily\nx.jpg\n", "row 2 has 1 cells where the header has 2"),
        (b'image_name,Daily\n"x.jpg,1\n', "is not a CSV file"),
        ((",".join(COLUMNS) + "\n").encode(), "train is empty"),
    ],
)
def test_files_that_are_no_tables(root: Path, content: bytes, words: str) -> None:
    csv_of(root, "train").write_bytes(content)
    refused(root, words)


def test_byte_order_mark_spaces_blank_rows_and_line_ends(root: Path) -> None:
    text = csv_of(root, "train").read_text(encoding="utf-8").replace("\n", "\r\n").replace(",Daily,", ", Daily ,")
    csv_of(root, "train").write_bytes(("\ufeff" + text.replace("0/0.jpg,", "0/0.jpg, ") + "\r\n,,,,,,,\r\n").encode())
    data = module(root)
    data.setup()
    assert len(data.splits["train"]) == 14


@pytest.mark.parametrize("split", ["valid", "test"])
def test_empty_split(root: Path, split: str) -> None:
    table(csv_of(root, split), [])
    refused(root, "(val|predict|test) is empty")


def test_one_class_only(root: Path) -> None:
    table(csv_of(root, "train"), [[*row[:6], 2, row[7]] for row in rows("train")])
    refused(root, r"Gender has one class only \(2\) in train, nothing to learn: take Gender out of classes")


def test_no_label_at_all(root: Path) -> None:
    table(csv_of(root, "train"), [[*row[:6], "", row[7]] for row in rows("train")])
    refused(root, "Gender has no label at all in train")


# --- photos with something wrong


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": data[: len(data) // 2], "no image": b"<html>not found</html>", "empty": b""}[how]
        )


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "there is no such file"),
        ("truncated", "truncated"),
        ("no image", "not an image"),
        ("empty", "empty"),
    ],
)
def test_broken_photos(root: Path, how: str, words: str) -> None:
    spoil(root / "Train" / "002" / "5.jpg", how)
    refused(root, f"info_etri20_emotion_train.csv row 7: .*5.jpg: .*{words}.*on_bad_image=skip")
    data = module(root, on_bad_image="skip")
    data.setup()
    assert len(data.splits["train"]) == 13
    assert all(path.name != "5.jpg" for path in data.splits["train"].paths)
    assert any("1 broken photo skipped" in note and "row 7" in note for note in data.notes)


def test_damage_found_while_training(root: Path) -> None:
    hurt(root / "Train" / "002" / "5.jpg")
    data = module(root)
    assert data.survey()["notes"] == [], "it looks sound"
    with pytest.raises(ValueError, match=r"row 7: .*damaged.*on_bad_image=skip"):
        data.survey(deep=True)
    with pytest.raises(ValueError, match=r"row 7: .*damaged.*on_bad_image=skip"):
        batches(data), batches(data, 1)
    data = module(root, on_bad_image="skip", batch_size=14)
    assert [note for note in data.survey(deep=True)["notes"] if "row 7" in note and "damaged" in note]
    (batch,) = batches(data)
    slot = batch["index"].tolist().index(5)
    assert (batch["image"][slot] == 128).all()
    assert {task: ids[slot].item() for task, ids in batch["labels"].items()} == dict.fromkeys(batch["labels"], -1)
    assert (batch["labels"]["Daily"] >= 0).sum() == 13
    assert list(data.splits["train"].broken) == [root / "Train" / "002" / "5.jpg"]


def test_odd_photos_are_read(root: Path) -> None:
    folder, exif = root / "Train", Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(pixels(77, (64, 48)))
    photo.save(folder / "000/0.jpg", exif=exif)  # stored lying, seen upright: 48 x 64
    Image.fromarray(pixels(78)).convert("CMYK").save(folder / "001/1.jpg")
    Image.fromarray(pixels(79)).convert("L").save(folder / "002/2.jpg")
    deep = io.BytesIO()
    Image.fromarray(np.asarray(Image.fromarray(pixels(80)).convert("L")).astype(np.uint16) * 257).save(deep, "PNG")
    (folder / "000/3.jpg").write_bytes(deep.getvalue())  # the name lies, the content counts
    frames = io.BytesIO()
    Image.fromarray(pixels(81)).save(frames, "GIF", save_all=True, append_images=[Image.fromarray(pixels(82))])
    (folder / "001/4.jpg").write_bytes(frames.getvalue())
    data = module(root, fit="squash", crop="photo", image_size=64)
    assert data.survey(deep=True)["notes"] == []
    for index, seed in {0: 77, 1: 78, 4: 81}.items():
        wanted = np.rot90(pixels(77, (64, 48)), -1) if seed == 77 else pixels(seed)
        wanted = np.asarray(Image.fromarray(wanted).resize((64, 64), Image.Resampling.BILINEAR))
        found = data.picture("train", index).permute(1, 2, 0).numpy()
        assert np.abs(found.astype(int) - wanted).mean() < 14


# --- duplicates and leaks


def leaky(root: Path) -> Path:
    """train row 2 = val row 3; val row 4 = test row 5; train rows 8 and 9 are the same photo with different labels."""
    shutil.copy(root / "Valid" / "001/1.jpg", root / "Train" / "000/0.jpg")
    shutil.copy(root / "Test" / "000/3.jpg", root / "Valid" / "002/2.jpg")
    shutil.copy(root / "Train" / "000/6.jpg", root / "Train" / "001/7.jpg")
    return root


def test_a_leak_is_an_error(root: Path) -> None:
    pair = "info_etri20_emotion_train.csv row 2 = info_etri20_emotion_valid.csv row 3"
    refused(
        leaky(root), f"1 photo of train also held out in another split, first {pair}; 1 photo of val .*on_leak=drop"
    )


def test_a_leak_is_dropped_from_train_then_val_and_never_from_test(root: Path) -> None:
    data = module(leaky(root), on_leak="drop")
    data.setup()
    assert {name: len(photos) for name, photos in data.splits.items()} == {"train": 13, "val": 5, "test": 5}
    assert data.splits["train"].paths[0].name == "1.jpg"
    assert [path.name for path in data.splits["val"].paths] == ["0.jpg", "1.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert any("leak: 1 photo of train" in note and "dropped" in note for note in data.notes)


def test_a_leak_is_kept_with_a_warning(root: Path) -> None:
    data = module(leaky(root), on_leak="warn")
    data.setup()
    assert {name: len(photos) for name, photos in data.splits.items()} == {"train": 14, "val": 6, "test": 5}
    assert any("leak: 1 photo of train" in note and "KEPT" in note for note in data.notes)


def test_a_leak_into_an_unlabelled_test_counts(root: Path) -> None:
    table(csv_of(root, "test"), [row[:5] for row in rows("test")], COLUMNS[:5])
    refused(leaky(root), "1 photo of val also held out")


def test_duplicates_within_a_split_are_named(root: Path) -> None:
    data = module(leaky(root), on_leak="warn")
    data.setup()
    where = "first info_etri20_emotion_train.csv row 8 = info_etri20_emotion_train.csv row 9"
    assert f"train: 1 photo listed more than once, {where}" in data.notes
    assert f"train: 1 duplicate with different labels, {where}" in data.notes


def test_two_people_on_one_photo_are_no_duplicate(root: Path) -> None:
    lines = [*rows("train"), ["000/0.jpg", 0, 0, 20, 60, 3, 3, 1]]
    table(csv_of(root, "train"), lines)
    data = module(root)
    data.setup()
    assert len(data.splits["train"]) == 15
    assert data.notes == []


# --- other sets of attributes by settings alone


def test_names_missing_labels_and_other_tasks(root: Path) -> None:
    columns = [*COLUMNS[:5], "계절", "Fit", "Style"]
    seasons = ["봄", "여름", "", "겨울"]
    for split in COUNTS:
        lines = [
            [*row[:5], seasons[n % 4], ("slim", "1")[n % 2], ("b", "a", "")[n % 3]] for n, row in enumerate(rows(split))
        ]
        table(csv_of(root, split), lines, columns)
    data = module(root, classes={"계절": ["봄", "여름", "가을", "겨울"], "Fit": ["slim", "wide"], "Style": None})
    data.setup()
    assert data.facts["classes"] == {
        "계절": ["봄", "여름", "가을", "겨울"],
        "Fit": ["slim", "wide"],
        "Style": ["a", "b"],
    }
    labels = data.splits["train"].labels
    assert labels["계절"][:4].tolist() == [0, 1, -1, 3]
    assert labels["Fit"][:4].tolist() == [0, 1, 0, 1]
    assert labels["Style"][:4].tolist() == [1, 0, -1, 1]
    assert data.survey()["classes"]["train"]["계절"] == {"봄": 4, "여름": 4, "가을": 0, "겨울": 3}
    assert "train: no photo of 계절 가을, which cannot be learned" in data.notes
    assert any("3 계절 labels missing" in note for note in data.notes)


def test_ids_that_leave_gaps_are_names(root: Path) -> None:
    for split in COUNTS:
        table(csv_of(root, split), [[*row[:5], f"{10 * (n % 2)}.0", *row[6:]] for n, row in enumerate(rows(split))])
    data = module(root, classes={"Daily": None})
    data.setup()
    assert data.facts["classes"] == {"Daily": ["0", "10"]}
    assert data.splits["train"].labels["Daily"][:3].tolist() == [0, 1, 0]
    change(root, "valid", 2, "Daily", 1)
    refused(root, "Daily = '1' is out of range", classes={"Daily": None})


def test_names_beside_the_data(root: Path) -> None:
    (root / "classes.csv").write_text("task,id,name\nGender,0,남자\nGender,1,여자\nOther,0,x\n", encoding="utf-8")
    change(root, "train", 2, "Gender", "여자")
    data = module(root)
    data.setup()
    assert data.facts["classes"]["Gender"] == ["남자", "여자", "2", "3", "4", "5"]
    assert data.splits["train"].labels["Gender"][:3].tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": {}}, "classes is empty"),
        ({"classes": {"Daily": "seven"}}, "classes.Daily='seven'"),
        ({"classes": {"Daily": 1}}, r"classes.Daily comes to 1 class"),
        ({"classes": {"Daily": ["a", "a"]}}, "names 'a' twice"),
        ({"crop": "face"}, "crop='face' is not one of box, photo"),
        ({"fit": "stretch"}, "fit='stretch'"),
        ({"on_leak": "ignore"}, "on_leak='ignore' is not one of error, drop, warn"),
        ({"on_bad_image": "drop"}, "on_bad_image='drop'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"threads": 0}, "threads=0"),
        ({"val_share": 1.5}, "val_share=1.5"),
        ({"augment": {"rotation": 3}}, "augment has no setting 'rotation'"),
        ({"balance": {"floor": 0.5, "ceiling": 0.1}}, "lies above ceiling"),
    ],
)
def test_settings(clean: Path, changes: dict[str, Any], words: str) -> None:
    refused(clean, words, **changes)


def test_balance(clean: Path) -> None:
    table_rows = rows("train")
    data = module(clean, balance={"floor": 3, "ceiling": 3}, classes={"Embellishment": 3}, batch_size=3)
    data.setup()
    assert len(table_rows) == 14
    ids = torch.cat([batch["labels"]["Embellishment"] for batch in batches(data)])
    assert torch.bincount(ids).tolist() == [3, 3, 3]
    assert any(
        "had 4 to 5 photos a class in train (largest difference 1), an epoch has 3 to 3 (0)" in n for n in data.notes
    )


# --- answering


def test_answering_any_photos_without_a_data_set(tmp_path: Path) -> None:
    good = [save(tmp_path / f"사진 {n}.png", n) for n in range(5)]
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    data = module(tmp_path / "nowhere", batch_size=2, fit="squash", image_size=64, margin=0.0)
    paths = [*good[:2], broken, missing, *good[2:]]
    loader = data.answering(paths, {"사진 3.png": (0, 0, 24, 64), str(good[4]): (1000, 0, 1100, 10)})
    found = {
        index: image for batch in loader for index, image in zip(batch["index"].tolist(), batch["image"], strict=True)
    }
    assert sorted(found) == [0, 1, 4, 5]
    assert set(loader.dataset.broken) == {broken, missing, good[4]}
    assert "does not meet" in loader.dataset.broken[good[4]]
    whole = np.asarray(Image.open(good[2]).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(found[4].permute(1, 2, 0).numpy().astype(int) - whole).mean() < 3
    half = np.asarray(Image.open(good[3]).crop((0, 0, 24, 64)).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(found[5].permute(1, 2, 0).numpy().astype(int) - half).mean() < 3


# --- the sample


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("drawn") / "fascode"
    FASCODE.draw_sample(place)
    return place


def test_sample_is_read_without_a_word(drawn: Path) -> None:
    data = module(drawn)
    survey = data.survey(deep=True)
    assert survey["counts"] == {"train": 700, "val": 150, "test": 150}
    assert survey["notes"] == []
    assert survey["classes"]["train"].keys() == {"Daily", "Gender", "Embellishment"}
    for counts in survey["classes"]["train"].values():
        assert min(counts.values()) > 30
    assert "hanbok 한복" in data.facts["classes"]["Daily"]


def test_planted_labels_are_wrong_and_listed(drawn: Path) -> None:
    with (drawn / "planted.csv").open(encoding="utf-8", newline="") as file:
        planted = list(csv.DictReader(file))
    with csv_of(drawn, "train").open(encoding="utf-8", newline="") as file:
        written = {row["image_name"]: row for row in csv.DictReader(file)}
    assert len(planted) == 42
    for row in planted:
        assert written[row["file"]][row["task"]] == row["written"] != row["true"]


def test_sample_is_a_function_of_its_seed(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "SPLITS", {"train": ("Train", 40), "valid": ("Valid", 8), "test": ("Test", 8)})
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        sample.draw(tmp_path / name, seed)
    files = {name: [p.read_bytes() for p in sorted((tmp_path / name).rglob("*.*"))] for name in "abc"}
    assert files["a"] == files["b"] != files["c"]
    assert len({*files["a"]}) == len(files["a"]), "no picture twice"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    sample.draw(tmp_path / "a", 5)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}, "left alone once it is there"


def test_a_drawing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "SPLITS", {"train": ("Train", 4), "valid": ("Valid", 2), "test": ("Test", 0)})
    monkeypatch.setattr(sample, "CLASSES", {**sample.CLASSES, "Daily": None})
    with pytest.raises(TypeError):
        sample.draw(tmp_path / "fascode")
    assert list(tmp_path.iterdir()) == []


DRAW = """
import sys, pathlib
from datamodules.samples import fascode
fascode.SPLITS = {"train": ("Train", 60), "valid": ("Valid", 8), "test": ("Test", 8)}
fascode.draw(pathlib.Path(sys.argv[1]))
"""


def test_two_processes_draw_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRAW, str(tmp_path / "fascode")]
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["fascode"]
    assert len(list((tmp_path / "fascode").rglob("*.jpg"))) == 76
