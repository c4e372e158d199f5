"""Photos in class folders and their positives: what is chosen, split, paired and told, and what a batch never holds."""

import inspect
import sys
from collections import Counter
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision import datasets

from datamodules.features import FeatureData
from datamodules.flowers import Flowers
from datamodules.flowers102 import Flowers102
from datamodules.samplers import Draw
from datamodules.samples import flowers as sample
from datamodules.samples import flowers102 as sample102
from datamodules.transforms import Augment, Transform
from tests.conftest import ROOT
from tests.photos import hurt, save

KINDS = ("daisy", "rose", "tulip")


def lay(root: Path, photos: int = 10, kinds: tuple[str, ...] = KINDS) -> Path:
    """Photos in class folders, no two of them the same."""
    for number, kind in enumerate(kinds):
        for at in range(photos):
            save(root / kind / f"{at:02d}.png", 100 * number + at)
    return root


def opened(root: Path, **changes: Any) -> Flowers:
    """The set at `root` with the settings of its YAML, small, and some changed."""
    settings = yaml.safe_load((ROOT / "conf/datamodules/flowers.yaml").read_text(encoding="utf-8"))
    settings.pop("_target_")
    plain = {"root": root, "seed": 0, "on_leak": "error", "on_bad_image": "error", "batch_size": 4, "image_size": 24}
    data = Flowers(**{**settings, **plain, "per_class": None, **changes})
    data.setup()
    return data


def names(data: Flowers) -> dict[str, list[str]]:
    return data.survey()["photos"]


def notes(data: Flowers) -> str:
    return "\n".join(data.notes)


def test_the_yaml_has_every_setting() -> None:
    settings = yaml.safe_load((ROOT / "conf/datamodules/flowers.yaml").read_text(encoding="utf-8"))
    assert settings.keys() - {"_target_"} == inspect.signature(Flowers).parameters.keys()


def test_each_class_has_its_share_of_each_split_and_no_photo_is_in_two(tmp_path: Path) -> None:
    data = opened(lay(tmp_path, 20), val_share=0.2, test_share=0.1)
    for split, each in {"train": 14, "val": 4, "test": 2}.items():
        assert Counter(name.split("/")[0] for name in names(data)[split]) == dict.fromkeys(KINDS, each)
        ids = data.splits[split].labels["class"]
        assert [KINDS[i] for i in ids] == [name.split("/")[0] for name in names(data)[split]]
    assert len({name for split in names(data).values() for name in split}) == 60
    assert data.facts["classes"] == {"class": list(KINDS)}
    assert sum(data.facts["counts"]["class"]) == len(data.splits["train"])
    assert data.survey()["classes"]["train"] == {"class": dict.fromkeys(KINDS, 14)}, "labels are there to be counted"


def test_the_split_is_the_seeds(tmp_path: Path) -> None:
    lay(tmp_path, 20)
    assert names(opened(tmp_path)) == names(opened(tmp_path))
    assert names(opened(tmp_path)) != names(opened(tmp_path, seed=1))
    few = [opened(tmp_path, per_class=10, seed=seed) for seed in (0, 0, 1)]
    chosen = [sorted(name for split in names(data).values() for name in split) for data in few]
    assert chosen[0] == chosen[1] != chosen[2]
    assert Counter(name.split("/")[0] for name in chosen[0]) == dict.fromkeys(KINDS, 10)


def test_no_test_share_is_the_80_to_20_of_the_source(tmp_path: Path) -> None:
    data = opened(lay(tmp_path), val_share=0.2, test_share=0)
    assert {split: len(photos) for split, photos in data.splits.items()} == {"train": 24, "val": 6}


def test_classes_are_the_first_folders_that_differ(tmp_path: Path) -> None:
    lay(tmp_path / "flowers" / "flowers")
    (tmp_path / "flowers" / "__MACOSX").mkdir()
    save(tmp_path / "flowers" / "__MACOSX" / "00.png", 7)
    save(tmp_path / "flowers" / "flowers" / "rose" / "red" / "00.jpg", 8)
    data = opened(tmp_path)
    assert data.facts["classes"]["class"] == list(KINDS)
    assert sum(map(len, names(data).values())) == 31


@pytest.mark.parametrize("folder", ["", "all", "a/b"])
def test_any_photos_will_do(tmp_path: Path, folder: str) -> None:
    for at in range(20):
        save(tmp_path / folder / f"{at}.png", at)
    data = opened(tmp_path)
    assert data.facts == {}
    assert "labels" not in next(iter(data.val_dataloader()))
    assert data.survey()["classes"] == {name: {} for name in data.splits}
    with pytest.raises(ValueError, match="lie in no class folders: set per_class=null"):
        opened(tmp_path, per_class=3)


def test_photos_beside_the_class_folders_have_no_label(tmp_path: Path) -> None:
    lay(tmp_path)
    for at in range(10):
        save(tmp_path / f"{at}.png", 1000 + at)
    data = opened(tmp_path)
    unknown = [s.origin[at] for s in data.splits.values() for at in np.flatnonzero(s.labels["class"] < 0)]
    assert len(unknown) == 10
    assert not any("/" in name for name in unknown)
    assert "class labels missing" in notes(data)


def test_each_photo_is_taken_once_and_a_copy_under_another_class_has_none(tmp_path: Path) -> None:
    lay(tmp_path)
    copy(tmp_path / "daisy/00.png", tmp_path / "daisy/99.png")
    copy(tmp_path / "rose/01.png", tmp_path / "tulip/99.png")
    data = opened(tmp_path, on_leak="error")
    everything = [name for split in names(data).values() for name in split]
    assert len(everything) == 30
    assert not {"daisy/99.png", "tulip/99.png"} & set(everything)
    labels = {n: i for split in data.splits.values() for n, i in zip(split.origin, split.labels["class"], strict=True)}
    assert labels["rose/01.png"] == -1
    assert labels["daisy/00.png"] == 0
    assert "2 photos listed more than once" in notes(data)
    assert "2 left out), and 1 of them, which lie in several class folders, have no class" in notes(data)


def test_no_label_reaches_a_training_batch(tmp_path: Path) -> None:
    data = opened(lay(tmp_path))
    for batch in data.train_dataloader():
        assert batch.keys() == {"image", "index", "positive"}
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert all(batch["labels"]["class"].shape == batch["index"].shape for batch in loader)
    kept = FeatureData(data, (3,), 0)
    kept.store = type("Store", (), {"rows": lambda self, split: np.zeros((2 * len(data.splits[split]), 3))})()
    assert all(batch.keys() == {"features", "index", "positive"} for batch in kept.train_dataloader())


def test_a_batch_is_its_photos_and_then_a_positive_of_each(tmp_path: Path) -> None:
    data = opened(lay(tmp_path))
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 3, 24, 24)
    assert batch["positive"].tolist() == [False] * 4 + [True] * 4
    assert batch["index"][:4].tolist() == batch["index"][4:].tolist()
    for row, place in enumerate(batch["index"][:4].tolist()):
        assert torch.equal(batch["image"][row], data.picture("train", place)), "an anchor is as evaluation sees it"
        positive = data.splits["train"].pictures()[place + len(data.splits["train"])]["image"]
        assert torch.equal(batch["image"][row + 4], positive)
        assert not torch.equal(batch["image"][row + 4], batch["image"][row])


def epoch(data: Flowers, number: int, split: str = "train") -> dict[int, torch.Tensor]:
    """The positive of each photo in an epoch."""
    loader = data.train_dataloader() if split == "train" else data.val_dataloader()
    if split == "train":
        loader.sampler.set_epoch(number)
    rows = {}
    for batch in loader:
        half = len(batch["index"]) // 2
        rows |= dict(zip(batch["index"][half:].tolist(), batch["image"][half:], strict=True))
    return rows


def test_fixed_positives_stay_and_fresh_ones_change_with_the_epoch_but_not_in_evaluation(tmp_path: Path) -> None:
    lay(tmp_path)
    fixed, fresh = opened(tmp_path, positives="fixed"), opened(tmp_path, positives="fresh")
    assert (fixed.splits["train"].is_random, fresh.splits["train"].is_random) == (False, True)
    first, second = epoch(fixed, 0), epoch(fixed, 1)
    assert all(torch.equal(first[place], second[place]) for place in first)
    first, second, again = epoch(fresh, 0), epoch(fresh, 1), epoch(fresh, 0)
    assert not any(torch.equal(first[place], second[place]) for place in first)
    assert all(torch.equal(first[place], again[place]) for place in first)
    seen, unchanged = epoch(fresh, 0, "val"), epoch(fixed, 0, "val")
    assert all(torch.equal(seen[place], unchanged[place]) for place in unchanged)


def test_a_fixed_positive_is_the_photos_own_whatever_split_it_is_in(tmp_path: Path) -> None:
    lay(tmp_path)
    found: list[dict[str, torch.Tensor]] = []
    for changes in ({}, {"val_share": 0.5}, {"seed": 1}):
        splits = opened(tmp_path, **changes).splits.values()
        found.append({n: s.pictures()[i + len(s)]["image"] for s in splits for i, n in enumerate(s.origin)})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not any(torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_two_processes_see_the_pairs_that_one_sees(tmp_path: Path) -> None:
    from datamodules.loader import Loader
    from datamodules.samplers import TrainSampler

    data = opened(lay(tmp_path), positives="fresh")
    split = data.splits["train"]
    (whole, *_), *parts = (
        list(Loader(split, TrainSampler(len(split), 4, 0, rank, world), 4 // world, True))
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    for key in ("image", "index"):
        halves = [part[0][key].unflatten(0, (2, 2)) for part in parts]
        assert torch.equal(torch.cat(halves, 1).flatten(0, 1), whole[key])


def test_the_change_is_the_middle_mirrored_or_not_with_less_or_more_contrast() -> None:
    ramp = np.zeros((80, 80, 3), dtype=np.uint8)
    ramp[:] = np.arange(80)[None, :, None] + 60
    middle = Transform(40, "squash", augment=Augment(centre=0.5))
    region = middle.region(None, (80, 80))
    out, rows = np.empty((40, 40, 3), np.uint8), []
    middle.random(ramp, region, np.random.default_rng(0), out)
    assert np.array_equal(out[0, :, 0], np.arange(20, 60) + 60)
    assert middle.needed(region, (160, 160)) == 0.5, "a scaled photo must still have the middle's pixels"
    whole = Transform(40, "squash", augment=Augment(centre=0.5, flip=0.5, contrast=0.8))
    for seed in range(200):
        whole.random(ramp, region, np.random.default_rng(seed), out)
        rows.append(out[0, :, 0].astype(float))
    slopes = np.array([(row[-5] - row[4]) / 31 for row in rows])
    assert 70 < (slopes < 0).sum() < 130
    assert 0.19 < np.abs(slopes).min() < 0.3
    assert 1.7 < np.abs(slopes).max() < 1.81


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_the_middle_takes_the_place_of_the_whole(fit: str) -> None:
    transform = Transform(40, fit, augment=Augment(centre=0.5))
    pixels = np.full((40, 80, 3), 200, np.uint8)
    region = transform.region(None, (80, 40))
    plain, out = np.empty((40, 40, 3), np.uint8), np.empty((40, 40, 3), np.uint8)
    transform.exact(pixels, region, plain)
    transform.random(pixels, region, np.random.default_rng(0), out)
    assert np.array_equal(plain, out)


def test_kept_features_are_keyed_by_what_makes_the_positives(tmp_path: Path) -> None:
    lay(tmp_path)
    keys = [list(opened(tmp_path, **c).splits["val"].pictures().files()) for c in ({}, {"change": {"centre": 0.7}})]
    half = len(keys[0]) // 2
    assert keys[0][:half] == keys[1][:half]
    assert not set(keys[0][half:]) & set(keys[1][half:])


def test_keep_is_a_split_of_pairs(tmp_path: Path) -> None:
    data = opened(lay(tmp_path))
    train = data.splits["train"]
    part = train.keep([3, 1])
    assert part.origin == [train.origin[3], train.origin[1]]
    assert torch.equal(part.pictures()[2]["image"], train.pictures()[3 + len(train)]["image"])


def test_a_photo_that_breaks_only_when_decoded_is_named_or_skipped(tmp_path: Path) -> None:
    hurt(save(lay(tmp_path) / "rose/77.jpg", 5))
    with pytest.raises(ValueError, match=r"rose/77.jpg: .*77.jpg: it is truncated or damaged"):
        opened(tmp_path).survey(deep=True)
    data = opened(tmp_path, on_bad_image="skip")
    assert sum(len(batch["index"]) for name in data.splits for batch in data.loader(name, None, 4)) == 62
    assert [path.name for split in data.splits.values() for path in split.broken] == ["77.jpg"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val_share": 0}, "val_share=0 and test_share=0.1 must be shares"),
        ({"val_share": 0.6, "test_share": 0.5}, "leave some to train on"),
        ({"per_class": 0}, "per_class=0 is neither"),
        ({"per_class": True}, "per_class=True is neither"),
        ({"positives": "often"}, "positives='often' is not one of fixed, fresh"),
        ({"change": {}}, "would be its photo again"),
        ({"change": {"centre": 0}}, "augment.centre=0 is not a number between 0.01 and 1"),
        ({"val_share": 0.01}, "val is empty"),
        ({"val_share": 0.05, "test_share": 0}, "val has"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    kinds = ("one", "two") if "val has" in said else KINDS
    with pytest.raises(ValueError, match=said):
        opened(lay(tmp_path, 10, kinds), **changes)


def test_no_photos_are_told_with_both_ways_on(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(FileNotFoundError, match=r"there is: readme.txt.*data_dir=.*sample=true"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        opened(tmp_path / "nowhere")


def test_files_that_are_no_photos_are_counted(tmp_path: Path) -> None:
    lay(tmp_path)
    (tmp_path / "rose/readme.txt").write_text("x")
    assert "not used, since their names are not those of photos: 1 file" in notes(opened(tmp_path))


def test_a_class_with_fewer_photos_is_told(tmp_path: Path) -> None:
    lay(tmp_path, 10)
    lay(tmp_path, 20, ("daisy",))
    assert "rose has 10 photos, fewer than per_class=15" in notes(opened(tmp_path, per_class=15))


def test_drawn_flowers_are_five_kinds_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "PHOTOS", 4)
    Flowers.draw_sample(tmp_path / "a")
    sample.draw(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jpg"))
    assert Counter(path.parts[0] for path in files) == dict.fromkeys(sample.KINDS, 4)
    contents = {(tmp_path / "a" / path).read_bytes() for path in files}
    assert len(contents) == 20
    assert contents == {(tmp_path / "b" / path).read_bytes() for path in files}
    with Image.open(tmp_path / "a" / files[0]) as first:
        assert first.size == (sample.SIDE, sample.SIDE)


def test_items_of_an_epoch_are_expanded_to_pictures(tmp_path: Path) -> None:
    split = opened(lay(tmp_path), positives="fresh").splits["train"]
    n, key = len(split), (0, 1, 2)
    assert split.expand([5, Draw(3, key)]) == [5, 3, 5 + n, Draw(3 + n, key)]


def opened102(root: Path, **changes: Any) -> Flowers102:
    settings = yaml.safe_load((ROOT / "conf/datamodules/flowers102.yaml").read_text(encoding="utf-8"))
    settings.pop("_target_")
    plain = {"root": root, "seed": 0, "on_leak": "error", "on_bad_image": "error", "batch_size": 4, "image_size": 24}
    data = Flowers102(**{**settings, **plain, **changes})
    data.setup()
    return data


def test_flowers_102_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drawn set has the splits and labels that its files say, and is read as torchvision reads it."""
    monkeypatch.setattr(sample102, "EACH", {"trnid": 2, "valid": 2, "tstid": 3})
    root = tmp_path / "flowers-102"
    Flowers102.draw_sample(root)
    data = opened102(root)
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    for split, each in {"train": 2, "val": 2, "test": 3}.items():
        theirs = datasets.Flowers102(tmp_path, split)
        expected = dict(zip([path.name for path in theirs._image_files], theirs._labels, strict=True))
        photos = data.splits[split]
        assert dict(zip([path.name for path in photos.paths], photos.labels["class"].tolist(), strict=True)) == expected
        assert len(photos) == 5 * each
    names = data.facts["classes"]["class"]
    found = {names[label] for label in data.splits["test"].labels["class"]}
    assert found == {"oxeye daisy", "common dandelion", "rose", "sunflower", "siam tulip"}
    assert "labels" not in next(iter(data.train_dataloader()))


def test_flowers_102_that_are_not_there_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"No imagelabels.mat in .*download=true.*sample=true"):
        opened102(tmp_path / "flowers-102")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match="pip install scipy"):
        Flowers102.draw_sample(tmp_path / "flowers-102")

    def offline(*args: object, **named: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(datasets, "Flowers102", offline)
    data = Flowers102(tmp_path, 4, 0, 2, "error", "error", 24, "crop", "fixed", {"centre": 0.5}, True)
    with pytest.raises(ValueError, match=r"cannot be downloaded .no network.: fetch 102flowers.tgz"):
        data.prepare_data()
