"""Photos with tags: what becomes a word, what a batch holds, what bad tables are told, and what the drawn set shows."""

import csv
import inspect
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from datamodules.samplers import Draw, EvalSampler
from datamodules.samples.folder import write_rows, write_whole
from datamodules.sns_tags import SNSTags
from datamodules.tags import TaggedPhotos, Tags, words
from datamodules.transforms import Augment, Transform
from tests.conftest import ROOT

DECOMPOSED = unicodedata.normalize("NFD", "고양이")
POSTS = [  # (file, tags): cat 5, 고양이 4, sea 3, "a,b" 2, ☕ 2
    ("1", "#cat #고양이 #once"), ("2", f"#cat #{DECOMPOSED} #sea"), ("3", "#고양이 #cat #cat"),
    ("4", "＃cat #sea #a,b"), ("5", "cat #고양이 #☕"), ("6", "#sea #☕ #a,b"), ("7", "#once2 #rare"), ("8", "  "),
]  # fmt: skip
LABELS = [
    ("11", "#cat", "train"), ("12", "cat", "train"), ("13", "sea", "train"), ("14", "sea", "train"),
    ("21", "cat", "test"), ("22", DECOMPOSED, "test"), ("23", "a,b", "test"),
]  # fmt: skip
Rows = Sequence[tuple[str, ...]]


def paint(path: Path, colour: int) -> None:
    """A flat picture; different numbers give different files."""
    Image.new("RGB", (16, 16), (colour * 7 % 256, colour * 31 % 256, 128)).save(path)


def lay(root: Path, posts: Rows = POSTS, labels: Rows = LABELS) -> Path:
    """A small set; the picture `12` lies in images/12.png."""
    (root / "images").mkdir(parents=True)
    for name in {name for name, *_ in [*posts, *labels]}:
        paint(root / f"images/{name}.png", int(name))
    write_rows(root / "multi.csv", ("image", "tags"), [(f"images/{name}.png", *rest) for name, *rest in posts])
    single = [(f"images/{name}.png", *rest) for name, *rest in labels]
    write_rows(root / "single.csv", ("image", "label", "split"), single)
    return root


def opened(root: Path, **changes: Any) -> SNSTags:
    """The set at `root`, looked at."""
    settings = {"batch_size": 2, "seed": 0, "threads": 2, "on_leak": "error", "on_bad_image": "error", "image_size": 16}
    settings |= {"fit": "squash", "phase": "multi", "min_count": 2, "val_share": 0.0}
    data = SNSTags(root, **(settings | changes))
    data.setup()
    return data


def tags_of(batch: dict[str, Any], data: SNSTags) -> list[list[str]]:
    """Words of each image of a batch, by a loop."""
    names, ends = data.facts["words"], batch["offsets"].tolist()
    return [[names[at] for at in batch["tags"][a:b].tolist()] for a, b in pairwise(ends)]


def notes(data: SNSTags) -> str:
    return "\n".join(data.survey()["notes"])


def test_targets_equal_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 50, rng.integers(0, 6)).tolist() for _ in range(40)]
    rows[3] = rows[39] = []
    photos = TaggedPhotos([Path(str(at)) for at in range(40)], [""] * 40, Tags.of(rows), Transform(8, "squash"))
    for index in (rng.integers(0, 40, 25), np.array([3, 39, 3]), np.array([], np.int64), np.array([39, 0, 0])):
        batch = photos.targets(index)
        flat = [tag for at in index for tag in rows[at]]
        ends = np.cumsum([0, *(len(rows[at]) for at in index)])
        assert batch["tags"].tolist() == flat
        assert batch["offsets"].tolist() == ends.tolist()
        assert batch["index"].tolist() == index.tolist()
        assert {value.dtype for value in batch.values()} == {torch.int64}
        kept = photos.keep(index)
        assert kept.targets(np.arange(len(index)))["tags"].tolist() == flat


def test_a_cell_becomes_words() -> None:
    cell = f" #cat  dog\t##bird #{DECOMPOSED} #고양이 # #cat #a,b ＃☕ \u3000c# "
    assert words(cell) == ["cat", "dog", "bird", "고양이", "a,b", "☕", "c#"]
    assert words("") == words(" # ") == []


def test_vocabulary_is_one_for_both_phases_and_every_split(tmp_path: Path) -> None:
    root = lay(tmp_path / "set")
    found = [
        opened(root, phase=phase, seed=seed, val_share=share, batch_size=1).facts
        for phase in ("multi", "single")
        for seed, share in ((0, 0.0), (1, 0.3))
    ]
    assert found[0] == {"words": ["cat", "고양이", "sea", "a,b", "☕"], "counts": [5, 4, 3, 2, 2]}
    assert all(facts == found[0] for facts in found)
    assert opened(root, min_count=3).facts["words"] == ["cat", "고양이", "sea"]


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    data = opened(lay(tmp_path / "set"))
    said = notes(data)
    assert data.survey()["counts"] == {"train": 6, "test": 3}
    assert "vocabulary: 5 tags with at least 2 photos" in said
    assert "cat (5), 고양이 (4)" in said
    assert "3 rarer tags dropped (3 uses)" in said
    assert "1 photo with no tag at all dropped, first multi.csv row 9" in said
    assert "1 photo with tags below min_count only dropped, first multi.csv row 8" in said
    assert "6 photos with 2 to 3 tags of the vocabulary, 2.7 on average" in said


@pytest.mark.parametrize("phase", ["multi", "single"])
def test_batches_hold_flat_ids_and_offsets(tmp_path: Path, phase: str) -> None:
    data = opened(lay(tmp_path / "set"), phase=phase)
    truth = {
        "1": ["cat", "고양이"],
        "4": ["cat", "sea", "a,b"],
        "6": ["sea", "☕", "a,b"],
        "13": ["sea"],
        "12": ["cat"],
    }
    seen = 0
    for batch in data.train_dataloader():
        assert batch.keys() == {"image", "index", "tags", "offsets"}
        assert batch["image"].shape == (2, 3, 16, 16)
        for index, found in zip(batch["index"].tolist(), tags_of(batch, data), strict=True):
            name = Path(data.name("train", index)).stem
            assert found == truth.get(name, found)
            seen += name in truth
    assert seen >= 2


def test_test_batches_say_which_labels_training_shows(tmp_path: Path) -> None:
    data = opened(lay(tmp_path / "set"), batch_size=3)
    (batch,) = data.test_dataloader()
    assert tags_of(batch, data) == [["cat"], ["고양이"], ["a,b"]]
    assert batch["seen"].tolist() == [True, False, False]
    assert "2 of 3 labels never in single.csv's train rows (2 of 3 photos)" in notes(data)
    one = data.splits["test"][1]
    assert (one["tags"].tolist(), one["seen"].item(), one["image"].shape) == ([1], False, (3, 16, 16))
    assert "offsets" not in one


def test_labels_outside_the_vocabulary(tmp_path: Path) -> None:
    labels = [*LABELS, ("15", "narwhal", "train"), ("16", "rare", "train"), ("24", "narwhal", "test")]
    data = opened(lay(tmp_path / "set", labels=labels), phase="single", batch_size=4)
    assert len(data.splits["train"]) == 4, "what has no word cannot be trained"
    test = data.splits["test"].targets(np.arange(4))
    assert test["tags"].tolist() == [0, 1, 3, -1]
    assert test["seen"].tolist() == [True, False, False, False]
    said = notes(data)
    assert (
        "train: 2 labels outside the vocabulary (2 photos) dropped: narwhal (1 here, 0 in multi.csv), rare (1 here, 1"
        in said
    )
    assert "test: 1 label outside the vocabulary (1 photo) counted as misses: narwhal" in said


def test_validation_comes_from_what_trains(tmp_path: Path) -> None:
    labels = [(str(100 + at), ("cat", "sea", "고양이")[at % 3], "train") for at in range(30)] + LABELS[4:]
    root = lay(tmp_path / "set", labels=labels)
    multi, single = opened(root, val_share=0.3), opened(root, phase="single", val_share=0.2)
    assert multi.survey()["counts"] == {"train": 5, "val": 1, "test": 3}
    assert single.survey()["counts"] == {"train": 24, "val": 6, "test": 3}
    held = single.splits["val"]
    assert set(held.paths).isdisjoint(single.splits["train"].paths)
    assert set(held.targets(np.arange(6))["tags"].tolist()) == {0, 1, 2}, "each label is on both sides"
    assert held.targets(np.arange(6))["seen"].all()
    assert "seen" not in multi.splits["val"].targets(np.array([0]))
    assert opened(root, phase="single", val_share=0.2).splits["val"].paths == held.paths
    assert opened(root, phase="single", val_share=0.2, seed=1).splits["val"].paths != held.paths


def test_a_photo_listed_twice_has_the_tags_of_both_rows(tmp_path: Path) -> None:
    data = opened(lay(tmp_path / "set", posts=[*POSTS, ("6", "#cat #sea #rare"), ("7", "#rare")]))
    batch = data.splits["train"].targets(np.arange(len(data.splits["train"])))
    assert data.facts["counts"][data.facts["words"].index("cat")] == 6
    assert tags_of(batch, data)[5] == ["sea", "☕", "a,b", "cat", "rare"]
    assert "2 rows of a photo listed before, tags merged: images/6.png (multi.csv row 7 = multi.csv row 10)" in notes(
        data
    )
    assert data.facts["counts"][data.facts["words"].index("rare")] == 2, "a photo counts once"


def test_leaks_are_found_by_content(tmp_path: Path) -> None:
    root = lay(tmp_path / "set")
    paint(root / "images/21.png", 4)  # the test photo 21 is now the tagged photo 4
    with pytest.raises(ValueError, match=r"1 photo of train .*multi\.csv row 5 = single\.csv row 6.*on_leak=drop"):
        opened(root)
    dropped = opened(root, on_leak="drop")
    assert dropped.survey()["counts"] == {"train": 5, "test": 3}
    assert root / "images/4.png" not in dropped.splits["train"].paths
    assert dropped.facts["counts"][0] == 5, "the words do not depend on what was dropped"
    assert opened(root, on_leak="warn").survey()["counts"]["train"] == 6
    assert opened(root, phase="single").survey()["counts"]["train"] == 4, "no photo of phase multi is in this one"


def test_equal_photos_with_different_single_labels_are_named(tmp_path: Path) -> None:
    root = lay(tmp_path / "set")
    paint(root / "images/12.png", 13)
    said = notes(opened(root, phase="single"))
    assert "train: 1 duplicate with different labels, first single.csv row 3 = single.csv row 4" in said


def test_photos_of_both_tables_are_named(tmp_path: Path) -> None:
    root = lay(tmp_path / "set", labels=[*LABELS, ("5", "cat", "train")])
    assert "1 train photo also in multi.csv" in notes(opened(root, phase="single"))


def test_words_that_only_validation_has_are_named(tmp_path: Path) -> None:
    root = lay(tmp_path / "set")
    lost = [opened(root, seed=seed, val_share=0.5, min_count=1) for seed in range(4)]
    assert any("never learned: " in notes(data) for data in lost)


def test_a_hash_inside_a_tag_is_named(tmp_path: Path) -> None:
    assert "1 tag with a # inside" in notes(opened(lay(tmp_path / "set", posts=[*POSTS, ("9", "#cat#sea #cat")])))


BAD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("no word", {}, {"min_count": 9}, r"0 tags with at least min_count=9 .*cat \(5\), 고양이 \(4\).*: lower min_count"),
    ("one word", {}, {"min_count": 5}, r"multi\.csv has 1 tag with at least min_count=5 .*needs two"),
    ("no tag", {"posts": [("1", ""), ("2", "#")]}, {}, r"it lists no tag at all"),
    ("split", {"labels": [*LABELS, ("31", "cat", "tset")]}, {}, r"single\.csv row 9: .*split 'tset': .*train or test"),
    ("label", {"labels": [*LABELS, ("31", "#", "train")]}, {}, r"single\.csv row 9: label '#'.*needs a label"),
    ("no test", {"labels": LABELS[:4]}, {}, r"single\.csv has no row whose split is test"),
    ("no train", {"labels": LABELS[4:]}, {"phase": "single"}, r"no row whose split is train: phase single"),
    ("all unknown", {"labels": [("21", "x", "test")]}, {}, r"test has 1 label outside .*x \(1 here, 0 in multi"),
    ("phase", {}, {"phase": "mutli"}, r"phase='mutli' is not one of multi, single"),
    ("min_count", {}, {"min_count": 0}, r"min_count=0 is not a whole number"),
    ("batch", {}, {"batch_size": 0}, r"batch_size=0"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "rows", "changes", "sentence"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_said_in_one_sentence(
    tmp_path: Path, what: str, rows: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    root = lay(tmp_path / "set", **rows)
    with pytest.raises(ValueError, match=sentence) as caught:
        opened(root, **changes)
    assert "\n" not in str(caught.value)


def test_bad_files_are_said_in_one_sentence(tmp_path: Path) -> None:
    root = lay(tmp_path / "set")
    text = (root / "multi.csv").read_text(encoding="utf-8")
    (root / "multi.csv").write_bytes("image,tags\nimages/1.png,#고양이\n".encode("cp949"))
    with pytest.raises(ValueError, match=r"multi\.csv is not UTF-8.*byte 25 .*save it as CSV UTF-8"):
        opened(root)
    (root / "multi.csv").write_text(text.replace('"＃cat #sea #a,b"', "＃cat #sea #a,b"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"multi\.csv row 5 has 3 cells .*a comma inside a cell needs quotes"):
        opened(root)
    (root / "multi.csv").write_text(text.replace("tags", "hashtags", 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"multi\.csv has no column 'tags'; it has image, hashtags"):
        opened(root)
    (root / "multi.csv").write_text(text, encoding="utf-8")
    (root / "images/3.png").unlink()
    with pytest.raises(ValueError, match=r"multi\.csv row 4: .*3\.png: there is no such file"):
        opened(root)
    (root / "single.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"No single\.csv in .*there is: images, multi\.csv.*sample=true"):
        opened(root)
    with pytest.raises(FileNotFoundError, match=r"No multi\.csv in .*there is no such folder"):
        opened(tmp_path / "nowhere")


def test_a_photo_that_breaks_later_loses_its_tags(tmp_path: Path) -> None:
    root = lay(tmp_path / "set")
    data = opened(root, on_bad_image="skip", batch_size=6)
    (whole,) = data.train_dataloader()
    (root / "images/2.png").write_bytes(b"\x89PNG no more")
    (batch,) = data.train_dataloader()
    before, after = tags_of(whole, data), tags_of(batch, data)
    assert (batch["index"] == whole["index"]).all()
    slot = batch["index"].tolist().index(1)
    assert after == [[] if at == slot else tags for at, tags in enumerate(before)]
    assert batch["image"][slot].unique().tolist() == [128]
    with pytest.raises(ValueError, match=r"2\.png"):
        opened(root)


def test_ranks_share_the_test_photos(tmp_path: Path) -> None:
    data = opened(lay(tmp_path / "set"))
    photos = data.splits["test"]
    parts = [photos.blank(list(EvalSampler(3, rank, 2))) for rank in (0, 1)]
    assert [tags_of(part, data) for part in parts] == [[["cat"], ["a,b"]], [["고양이"]]]
    drawn = photos.blank([Draw(2, (0, 0, 0)), Draw(0, (0, 0, 1))])
    assert tags_of(drawn, data) == [["a,b"], ["cat"]]


def test_answering_needs_no_data(tmp_path: Path) -> None:
    paint(tmp_path / "mine.png", 3)
    settings = {"batch_size": 2, "seed": 0, "threads": 1, "on_leak": "error", "on_bad_image": "error", "image_size": 16}
    data = SNSTags(tmp_path / "nowhere", **settings, fit="squash", phase="multi", min_count=5, val_share=0.1)
    (batch,) = data.answering([tmp_path / "mine.png"])
    assert batch["image"].shape == (1, 3, 16, 16)


def test_augment_says_whether_pixels_are_random() -> None:
    for settings, expected in (
        (None, False),
        ({"area": 1, "rotate": 0}, False),
        ({"flip": 0.5}, True),
        ({"area": 0.5}, True),
    ):
        assert Transform(16, "squash", augment=Augment.of(settings)).is_random is expected


def test_config_names_every_argument() -> None:
    settings = yaml.safe_load((ROOT / "conf/datamodules/sns_tags.yaml").read_text(encoding="utf-8"))
    assert settings.pop("_target_") == "datamodules.sns_tags.SNSTags"
    assert settings.keys() == inspect.signature(SNSTags).parameters.keys()


# The drawn set


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "sns_tags"
    SNSTags.draw_sample(root)
    return root


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_drawing_is_deterministic_and_whole(drawn: Path, tmp_path: Path) -> None:
    assert [path.name for path in drawn.parent.iterdir()] == ["sns_tags"], "nothing is left beside it"
    SNSTags.draw_sample(tmp_path / "again")
    for name in ("multi.csv", "single.csv", "planted.csv", "images/00007.jpg", "images/01399.jpg"):
        assert (tmp_path / "again" / name).read_bytes() == (drawn / name).read_bytes()
    assert len(list((drawn / "images").iterdir())) == 1400
    before = (drawn / "multi.csv").stat().st_mtime_ns
    SNSTags.draw_sample(drawn, seed=5)
    assert (drawn / "multi.csv").stat().st_mtime_ns == before, "what is there is kept"


def test_a_drawing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "set", "sign", fails)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("phase", ["multi", "single"])
def test_drawn_set_opens(drawn: Path, phase: str) -> None:
    data = opened(drawn, phase=phase, min_count=5, val_share=0.1)
    labels = {row["label"] for row in table(drawn / "single.csv") if row["split"] == "test"}
    known = {row["label"] for row in table(drawn / "single.csv") if row["split"] == "train"}
    assert labels <= set(data.facts["words"])
    assert 0.25 <= len(labels - known) / len(labels) <= 0.35
    seen = data.splits["test"].targets(np.arange(300))["seen"].float().mean()
    assert 0.6 <= seen <= 0.8
    assert len(data.facts["words"]) > 100


def test_planted_truth(drawn: Path) -> None:
    posts = {row["image"]: words(row["tags"]) for row in table(drawn / "multi.csv")}
    planted = {row["image"]: row for row in table(drawn / "planted.csv")}
    for image, tags in posts.items():
        fitting, noise = planted[image]["fitting"].split(), planted[image]["noise"].split()
        assert set(tags) == (set(tags) & set(fitting)) | set(noise)
        assert not set(noise) & set(fitting)
    for row in table(drawn / "single.csv"):
        assert row["label"] in planted[row["image"]]["fitting"].split()
    counts = Counter(tag for tags in posts.values() for tag in tags)
    assert sum(n <= 2 for n in counts.values()) > 150, "a long tail"
    cats = [tags for tags in posts.values() if "cat" in tags]
    together = sum("고양이" in tags for tags in cats) / len(cats)
    assert together > 3 * counts["고양이"] / len(posts), "words of one thing go together"
    text = (drawn / "multi.csv").read_text(encoding="utf-8")
    assert DECOMPOSED in text, "some phones spell Korean in parts"


def pixels(data: SNSTags, split: str) -> tuple[NDArray[np.float64], list[list[int]]]:
    """Very small pictures and the tags of each, in order."""
    photos = data.splits[split]
    batch = photos.blank(range(len(photos)))
    photos.fill(batch, range(len(photos)), range(len(photos)))
    x = batch["image"].numpy().reshape(len(photos), -1) / 255
    return x, np.split(batch["tags"].numpy(), batch["offsets"].numpy()[1:-1])


def test_tags_can_be_learned_from_the_pictures(drawn: Path) -> None:
    """Ridge regression from 12 x 12 pixels: far above what the most frequent words would hit, unseen ones too."""
    data = opened(drawn, min_count=5, image_size=12)
    x, tags = pixels(data, "train")
    y = np.zeros((len(x), len(data.facts["words"])))
    for row, own in zip(y, tags, strict=True):
        row[own] = 1
    test, truth = pixels(data, "test")
    centre = x.mean(0)
    weights = np.linalg.solve((x - centre).T @ (x - centre) + 5 * np.eye(x.shape[1]), (x - centre).T @ (y - y.mean(0)))
    scores = (test - centre) @ weights + y.mean(0)
    label = np.concatenate(truth)
    rank = (scores > scores[np.arange(len(label)), label][:, None]).sum(1)
    seen = data.splits["test"].targets(np.arange(len(label)))["seen"].numpy()
    usual = (y.sum(0)[None] > y.sum(0)[label][:, None]).sum(1)  # rank by frequency alone
    for part in (seen, ~seen):
        assert (rank[part] < 10).mean() > max(0.4, 3 * (usual[part] < 10).mean())
