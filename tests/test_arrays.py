"""Splits of arrays: what a batch holds, random changes on the device, equal images, subsets, resume, several ranks."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from datamodules.array_splits import carve, in_proportion, number_contents
from datamodules.array_transforms import BatchAugment, uniform
from datamodules.arrays import Arrays, Block
from datamodules.features import FeatureData
from datamodules.samplers import Draw, TrainSampler
from engine.features import obstacle
from tests.toy_arrays import AUGMENT, CLASSES, SIDE, Recorder, Toy, images

TRAINER = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "use_distributed_sampler": False,
}  # fmt: skip


def refused(root: Path, words: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=words) as error:
        Toy(root, **changes).setup()
    assert "\n" not in str(error.value), "one sentence"


def epoch(data: Toy, number: int = 0) -> list[dict[str, Any]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


# --- what a batch holds


def test_batch(tmp_path: Path) -> None:
    data = Toy(tmp_path)
    assert (data.splits, data.facts) == ({}, {}), "building it reads nothing"
    (batch, *_) = epoch(data)
    assert batch["image"].shape == (4, 3, SIDE, SIDE)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert set(batch) == {"image", "labels", "index"}
    split = data.splits["train"]
    for image, label, index in zip(batch["image"], batch["labels"]["class"], batch["index"], strict=True):
        row = int(data.name("train", int(index)).removeprefix("train.bin/"))
        assert np.array_equal(image.permute(1, 2, 0), images(40, 1)[row])
        assert label == row % CLASSES == split.labels["class"][index]
        assert torch.equal(data.picture("train", int(index)), image)


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_several_blocks_of_any_layout(tmp_path: Path, planes: bool, mapped: bool) -> None:
    whole, blocks = images(30, 3), []
    for name, part in {"a": whole[:11], "b": whole[11:]}.items():
        pixels = np.ascontiguousarray(part.transpose(0, 3, 2, 1) if planes else part)
        if mapped:
            pixels.tofile(tmp_path / name)
            pixels = np.memmap(tmp_path / name, np.uint8, "r").reshape(pixels.shape)
        pixels = pixels.transpose(0, 3, 2, 1) if planes else pixels
        blocks.append(Block(pixels, [(tmp_path / name, 5), (tmp_path / f"{name}2", len(part) - 5)]))
    split = Arrays(blocks, np.arange(30), {}, BatchAugment()).keep(np.array([29, 3, 11, 10, 3, 16]))
    batch = split.blank(range(6))
    for slots in ([0, 2, 4], [1, 3, 5]):
        split.fill(batch, range(6), slots)
    assert np.array_equal(batch["image"].permute(0, 2, 3, 1), whole[[29, 3, 11, 10, 3, 16]])
    assert [split.name(at) for at in range(6)] == ["b2/13", "a/3", "b/0", "a2/5", "a/3", "b2/0"]
    assert np.array_equal(split.column(), whole[[29, 3, 11, 10, 3, 16]][:, :, SIDE // 2, 1])


def test_survey(tmp_path: Path) -> None:
    survey = Toy(tmp_path).survey(deep=True)
    assert survey["counts"] == {"train": 30, "val": 10, "test": 12}
    assert set(survey["classes"]["val"]["class"].values()) <= {2, 3}
    assert survey["classes"]["test"]["class"] == {f"kind {k}": 3 for k in range(CLASSES)}
    assert survey["notes"] == ["val: 10 images of train set aside (seed 0)"]
    assert survey["root"] == str(tmp_path)


# --- random changes


def slowly(augment: BatchAugment, image: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """One image by torchvision's own functions."""
    down, right, mirror, y, x = draws.tolist()
    mode = {"zero": "constant", "reflect": "reflect"}[augment.border]
    image = tv.crop(tv.pad(image, [augment.pad] * 4, padding_mode=mode), down, right, SIDE, SIDE)
    image = tv.horizontal_flip(image) if mirror else image.clone()
    top, left = y - augment.cutout // 2, x - augment.cutout // 2
    image[:, max(0, top) : max(0, top + augment.cutout), max(0, left) : max(0, left + augment.cutout)] = 128
    return image


@pytest.mark.parametrize("border", ["zero", "reflect"])
@pytest.mark.parametrize("flip", [0.5, "alternate"])
@pytest.mark.parametrize("cutout", [0, 3, 4])
def test_changes_equal_those_of_torchvision_one_by_one(border: str, flip: float | str, cutout: int) -> None:
    augment = BatchAugment.of({"pad": 3, "border": border, "flip": flip, "cutout": cutout}, SIDE)
    image = torch.from_numpy(images(200, 0)).permute(0, 3, 1, 2)
    draws = augment.draw([Draw(at, (0, 0, at)) for at in range(200)], SIDE)
    changed = augment(image, draws)
    expected = torch.stack([slowly(augment, *pair) for pair in zip(image, draws, strict=True)])
    assert torch.equal(changed, expected)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(image.contiguous(), draws), expected), "in any layout"


def test_draws_cover_their_ranges_evenly() -> None:
    draws = BatchAugment(pad=2, flip=0.25, cutout=1).draw([Draw(at, (0, 0, at)) for at in range(20_000)], SIDE).numpy()
    for column, sides in ((0, 5), (1, 5), (3, SIDE), (4, SIDE)):
        shares = np.bincount(draws[:, column]) / len(draws)
        assert len(shares) == sides
        assert shares == pytest.approx(1 / sides, rel=0.1)
    assert draws[:, 2].mean() == pytest.approx(0.25, abs=0.01)
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.03, "independent of each other"


def test_uniform_streams_differ_between_keys_and_slots() -> None:
    keys = np.array([[seed, epoch, at] for seed in range(3) for epoch in range(3) for at in range(2000)], np.uint64)
    numbers = uniform(keys, 2)
    assert len(np.unique(numbers)) == numbers.size
    streams = numbers.reshape(9, 2000, 2).transpose(0, 2, 1).reshape(18, 2000)
    assert np.abs(np.corrcoef(streams) - np.eye(18)).max() < 0.1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(uniform(keys[5:7], 2), numbers[5:7]), "each key for itself"


def test_alternating_flip_shows_the_other_side_in_the_next_epoch() -> None:
    augment = BatchAugment(flip="alternate")
    order = np.random.default_rng(0).permutation(500)
    sides = []
    for number in range(4):
        items = [Draw(int(sample), (7, number, at)) for at, sample in enumerate(order)]
        sides.append(augment.draw(items, SIDE)[:, 2].numpy()[np.argsort(order)])
    assert 200 < sides[0].sum() < 300
    assert np.array_equal(sides[1], 1 - sides[0])
    assert np.array_equal(sides[2], sides[0])
    assert np.array_equal(sides[3], sides[1])


def test_changes_depend_on_seed_epoch_and_position_only(tmp_path: Path) -> None:
    def pixels(number: int = 0, **settings: Any) -> torch.Tensor:
        return torch.cat([batch["image"] for batch in epoch(Toy(tmp_path, augment=AUGMENT, **settings), number)])

    assert torch.equal(pixels(), pixels())
    assert torch.equal(pixels(threads=1), pixels(threads=3))
    assert not torch.equal(pixels(0), pixels(1))
    assert not torch.equal(pixels(), pixels(seed=1))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_make_the_batches_of_one_process(tmp_path: Path, world_size: int) -> None:
    data = Toy(tmp_path, augment=AUGMENT)
    whole = epoch(data, 3)
    shares = []
    for rank in range(world_size):
        sampler = TrainSampler(len(data.splits["train"]), 4, 0, rank, world_size)
        sampler.set_epoch(3)
        batches = data.loader("train", sampler, 4 // world_size)
        shares.append([data.on_after_batch_transfer(batch, 0) for batch in batches])
    for number, batch in enumerate(whole):
        for key in ("image", "index"):
            assert torch.equal(torch.cat([share[number][key] for share in shares]), batch[key])


def test_resumed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    data = Toy(tmp_path, augment=AUGMENT)
    whole = epoch(data)
    loader = data.train_dataloader()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    again = data.train_dataloader()
    again.load_state_dict(loader.state_dict())
    rest = [data.on_after_batch_transfer(batch, 0) for batch in again]
    assert len(rest) == len(whole) - 3
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(rest, whole[3:], strict=True))


@pytest.mark.parametrize("devices", [1, 2])
def test_lightning_changes_training_images_and_no_others(tmp_path: Path, devices: int) -> None:
    data = Toy(tmp_path, augment=AUGMENT)
    strategy = "ddp_fork" if devices > 1 else "auto"
    trainer = pl.Trainer(max_epochs=2, devices=devices, strategy=strategy, **TRAINER)
    trainer.fit(Recorder(tmp_path), datamodule=data)
    seen = [torch.load(tmp_path / f"seen.{rank}.pt") for rank in range(devices)]
    plain = Toy(tmp_path, augment=AUGMENT)
    for number in range(2):
        for at, batch in enumerate(epoch(plain, number)):
            steps = [one["train"][number * 7 + at] for one in seen]
            assert torch.equal(torch.cat([step["image"] for step in steps]), batch["image"])
            assert all(step["keys"] == ["image", "index", "labels"] for step in steps)
    for batch in (batch for one in seen for batch in one["val"]):
        for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            assert torch.equal(image, plain.picture("val", index))


def test_evaluation_shares_are_exact(tmp_path: Path) -> None:
    data = Toy(tmp_path, augment=AUGMENT)
    batches = list(data.test_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(12))
    assert np.array_equal(torch.cat([batch["image"] for batch in batches]).permute(0, 2, 3, 1), images(12, 2))
    again = data.exactly("train", np.array([5, 1, 8]))
    assert torch.equal(next(iter(again))["image"], torch.stack([data.picture("train", at) for at in (5, 1, 8)]))


# --- features that are kept


def test_features_can_be_kept_only_without_random_changes(tmp_path: Path) -> None:
    for augment, random in ((None, False), ({}, False), ({"pad": 0, "flip": 0}, False), ({"flip": 0.5}, True)):
        data = Toy(tmp_path, augment=augment)
        data.setup()
        assert data.splits["train"].is_random is random
    module = pl.LightningModule()
    module.encoder = torch.nn.Flatten()
    module.encoder.features = 3 * SIDE * SIDE
    freeze = {"freeze": {"_target_": "callbacks.freeze.Freeze", "modules": ["encoder"]}}
    stage = {"callbacks": freeze, "features_gb": 1}
    assert "augment" in (obstacle(stage, module, data) or "")
    plain = Toy(tmp_path)
    plain.setup()
    assert obstacle(stage, module, plain) is None


class Means:
    """A store that holds each image's mean."""

    def __init__(self, data: Toy) -> None:
        self.data = data

    def rows(self, split: str) -> np.ndarray:
        batches = self.data.exactly(split, np.arange(len(self.data.splits[split])))
        return torch.cat([batch["image"].float().mean((1, 2, 3)) for batch in batches])[:, None].numpy()


def test_kept_features_come_in_the_order_of_the_images(tmp_path: Path) -> None:
    data = Toy(tmp_path)
    data.setup()
    kept = FeatureData(data, (1,), 0)
    kept.store = Means(data)  # type: ignore[assignment]
    for batch, other in zip(kept.train_dataloader(), data.train_dataloader(), strict=True):
        assert torch.equal(batch["index"], other["index"])
        assert torch.equal(batch["features"][:, 0], other["image"].float().mean((1, 2, 3)))
        assert torch.equal(batch["labels"]["class"], other["labels"]["class"])


def test_a_touched_file_or_another_subset_is_another_store(tmp_path: Path) -> None:
    whole, few = Toy(tmp_path), Toy(tmp_path, train_images=8)
    file, rows = whole.split("train").files()
    assert str(tmp_path / "train.bin") in file
    assert list(few.split("train").files())[1] != rows
    os.utime(tmp_path / "train.bin", (1, 1))
    touched, same_rows = whole.split("train").files()
    assert touched != file
    assert same_rows == rows


# --- equal images


def plant(arrays: dict[str, np.ndarray], labels: dict[str, np.ndarray], *pairs: tuple[str, int, str, int]) -> None:
    for name, at, other, place in pairs:
        arrays[other][place] = arrays[name][at]


def leak(arrays: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    plant(arrays, labels, ("test", 7, "train", 3), ("test", 2, "train", 30))


def test_a_leak_is_an_error(tmp_path: Path) -> None:
    refused(tmp_path, "2 images of train .*first train.bin/3 = test.bin/7: set on_leak=drop", change=leak, val_share=0)


@pytest.mark.parametrize(("policy", "left"), [("drop", 38), ("warn", 40)])
def test_a_leak_is_dropped_from_train_or_kept_with_a_warning(tmp_path: Path, policy: str, left: int) -> None:
    data = Toy(tmp_path, leak, on_leak=policy, val_share=0)
    data.setup()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": left, "test": 12}
    assert any("2 images of train also held out" in note and "train.bin/3 = test.bin/7" in note for note in data.notes)
    assert policy == "drop" or "KEPT" in data.notes[-1]


def test_val_gives_way_to_test(tmp_path: Path) -> None:
    data = Toy(tmp_path)
    data.setup()
    place = int(data.name("val", 0).partition("/")[2])
    held = Toy(tmp_path, lambda a, labels: plant(a, labels, ("test", 0, "train", place)), on_leak="drop")
    held.setup()
    assert {name: len(split) for name, split in held.splits.items()} == {"train": 30, "val": 9, "test": 12}


def test_equal_images_are_named_and_stay_on_one_side(tmp_path: Path) -> None:
    def twins(arrays: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
        plant(arrays, labels, *(("train", at, "train", at + 20) for at in range(20)))
        labels["train"][25] = 0  # its twin, 5, is of class 1

    data = Toy(tmp_path, twins)
    data.setup()
    assert "train: 20 images there more than once, first train.bin/0 = train.bin/20" in data.notes
    assert "train: 1 image there with different labels of class, first train.bin/5 = train.bin/25" in data.notes
    rows = {int(data.name("val", at).partition("/")[2]) % 20 for at in range(len(data.splits["val"]))}
    others = {int(data.name("train", at).partition("/")[2]) % 20 for at in range(len(data.splits["train"]))}
    assert not rows & others
    assert len(rows) == 5


def test_images_that_differ_in_one_pixel_are_not_equal(tmp_path: Path) -> None:
    pixels = np.repeat(images(1, 0), 6, axis=0)
    pixels[2, 0, 0, 0] ^= 1
    pixels[3, SIDE - 1, SIDE - 1, 2] ^= 1
    split = Arrays([Block(pixels, [(tmp_path / "x", 6)])], np.arange(6), {}, BatchAugment())
    number_contents({"train": split, "test": split.keep(np.array([3, 0]))})
    a, b, c, d, e, f = split.content.tolist()
    assert a == b == e == f
    assert len({a, c, d}) == 3


# --- shares with the classes in proportion


@pytest.mark.parametrize("sizes", [[50, 50, 50, 50], [100, 10, 1, 39]])
def test_every_beginning_has_the_classes_in_proportion(sizes: list[int]) -> None:
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(4), sizes))
    order = in_proportion(classes, seed=3)
    assert sorted(order) == list(range(len(classes)))
    assert set(classes[order[:4]]) == {0, 1, 2, 3}
    for end in range(4, len(order) + 1, 7):
        found = np.bincount(classes[order[:end]], minlength=4)
        assert np.abs(found - end * np.array(sizes) / len(order)).max() <= 2
    assert np.array_equal(order, in_proportion(classes, seed=3))
    assert not np.array_equal(order, in_proportion(classes, seed=4))


def test_subsets_are_seeded_balanced_and_nested(tmp_path: Path) -> None:
    def names(split: str = "train", **settings: Any) -> set[str]:
        data = Toy(tmp_path, **settings)
        data.setup()
        assert data.splits[split].rows.tolist() == sorted(data.splits[split].rows)
        return {data.name(split, at) for at in range(len(data.splits[split]))}

    small, large = names(train_images=8), names(train_images=20)
    assert len(small) == 8
    assert small < large < names()
    assert names(train_images=8, seed=1) != small
    assert not large & names("val", train_images=8), "val is the same for every subset"
    assert names("val", train_images=8) == names("val")
    assert len(names("test", test_images=5)) == 5
    counts = Toy(tmp_path, train_images=8).survey()
    assert set(counts["classes"]["train"]["class"].values()) == {2}
    assert "train: 8 of 30 images used (seed 0)" in counts["notes"]


def test_each_class_keeps_an_image_to_train_on(tmp_path: Path) -> None:
    def rare(arrays: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
        labels["train"][:] = 0
        labels["train"][[4, 9]] = [1, 2]

    data = Toy(tmp_path, rare, val_share=0.9)
    data.setup()
    assert set(data.splits["train"].labels["class"].tolist()) == {0, 1, 2}
    assert len(data.splits["val"]) == 36


def test_nothing_can_be_set_aside_where_each_class_has_one_image() -> None:
    split = Arrays([Block(images(5, 0), [(Path("x"), 5)])], np.arange(5), {}, BatchAugment())
    with pytest.raises(ValueError, match=r"val_share=0\.5 of 5 images leaves nothing to train on"):
        carve(split, np.arange(5), 0.5, seed=0)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size=0 is not a whole number"),
        ({"threads": True}, "threads=True is not a whole number"),
        ({"train_images": 2.5}, "train_images=2.5 is not a whole number"),
        ({"test_images": 0}, "test_images=0 is not a whole number"),
        ({"train_images": 31}, "train_images=31 is more than the 30 images that train has"),
        ({"on_leak": "ignore"}, "on_leak='ignore' is not one of error, drop, warn"),
        ({"val_share": 1}, "val_share=1 is not a share"),
        ({"augment": {"crop": 4}}, "augment has no setting 'crop'; it has pad, border, flip, cutout"),
        ({"augment": {"pad": 8}}, "augment.pad=8 is not a whole number of pixels from 0 to 7"),
        ({"augment": {"cutout": -1}}, "augment.cutout=-1 is not a whole number"),
        ({"augment": {"border": "edge"}}, "augment.border='edge' is not one of zero, reflect"),
        ({"augment": {"flip": 1.5}}, "augment.flip=1.5 is neither a probability from 0 to 1 nor alternate"),
        ({"augment": {"flip": "always"}}, "augment.flip='always' is neither"),
    ],
)
def test_settings(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    refused(tmp_path, words, **changes)


def test_one_class_or_nothing_left(tmp_path: Path) -> None:
    refused(tmp_path, "class has one class only", change=lambda arrays, labels: labels["train"].fill(2))
    refused(
        tmp_path,
        "train is empty: no image of it is left",
        change=lambda arrays, labels: arrays["train"].__setitem__(slice(None), arrays["test"][0]),
        on_leak="drop",
        val_share=0,
    )


def test_there_is_no_split_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no predict split; it has train, test"):
        Toy(tmp_path, val_share=0).predict_dataloader()
    assert Toy(tmp_path, val_share=0).val_dataloader() == [], "a fit without validation"


# --- photos that are not in the set


def test_answering_shows_middle_squares_at_the_sets_size(tmp_path: Path) -> None:
    photo = np.zeros((40, 80, 3), np.uint8)
    photo[:, 20:60] = (200, 100, 50)
    Image.fromarray(photo).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(b"no photo")
    loader = Toy(tmp_path / "nowhere").answering([tmp_path / "broken.png", tmp_path / "wide.png"])
    (batch,) = loader
    assert batch["index"].tolist() == [1]
    assert batch["image"].shape == (1, 3, SIDE, SIDE)
    assert (batch["image"] == torch.tensor([200, 100, 50])[:, None, None]).all()
    assert list(loader.dataset.broken) == [tmp_path / "broken.png"]
    (boxed,) = Toy(tmp_path).answering([tmp_path / "wide.png"], {"wide.png": (0, 0, 20, 40)})
    assert (boxed["image"] == 0).all()
