"""What becomes of the labels of train: planted errors, verdicts of a CSV, threshold samples; and what is refused."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from datamodules.revision import THRESHOLD, Revision
from datamodules.verdicts import distinct
from tests.photos import layout, module
from tests.toy_arrays import Toy

HEADING = ["photo", "task", "label", "action", "relabel_to"]
TASKS = ["Daily", "Gender", "Embellishment"]


def labels_of(data, split="train"):
    return {task: ids.tolist() for task, ids in data.splits[split].labels.items()}


def set_up(data):
    data.setup()
    return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "fascode").mkdir()
    return layout(tmp_path / "fascode")


def verdicts(path: Path, rows: list[list[str]], heading: list[str] = HEADING) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([heading, *rows])
    return str(path)


def test_off_by_default(root: Path) -> None:
    plain, other = set_up(module(root)), set_up(module(root, labels=None))
    assert labels_of(plain) == labels_of(other)
    assert plain.planted == {}
    assert plain.fake_class is None


def test_names_are_those_of_the_pictures_and_each_once(root: Path, tmp_path: Path) -> None:
    data = set_up(module(root))
    assert data.names("train") == [data.name("train", at) for at in range(14)]
    assert set_up(Toy(tmp_path)).names("test")[3] == "test.bin/3"
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_flips_are_as_many_as_asked_for_known_and_only_in_train(root: Path, share: float) -> None:
    clean, wrong = set_up(module(root)), set_up(module(root, labels={"flip": share}))
    for task in TASKS:
        was, now = clean.splits["train"].labels[task], wrong.splits["train"].labels[task]
        assert (was != now).sum() == round(share * 14)
        assert ((was != now) == wrong.planted[task]).all()
        assert now.min() >= 0
        assert now.max() < len(wrong.facts["classes"][task])
    for split in ("val", "test"):
        assert labels_of(clean, split) == labels_of(wrong, split)
    assert labels_of(wrong) == labels_of(set_up(module(root, labels={"flip": share})))
    assert labels_of(wrong) != labels_of(set_up(module(root, labels={"flip": share}, seed=1)))
    assert any("made wrong on purpose" in note for note in wrong.notes)


def test_flips_reach_every_other_class_alike(tmp_path: Path) -> None:
    def many(arrays, labels):
        arrays["train"] = np.random.default_rng(0).integers(0, 256, (4000, 8, 8, 3), dtype=np.uint8)
        labels["train"] = np.zeros(4000, dtype=np.int64)
        labels["train"][:4] = range(4)

    data = set_up(Toy(tmp_path, many, labels={"flip": 0.6}, val_share=0))
    counts = np.bincount(data.splits["train"].labels["class"], minlength=4)
    assert abs(counts[1:] - 800).max() < 90


def test_the_two_passes_set_different_labels_apart_as_many_as_the_paper_says(tmp_path: Path) -> None:
    passes = [set_up(Toy(tmp_path, labels={"threshold": part}, val_share=0)) for part in (0, 1)]
    fakes = []
    for data in passes:
        ids = data.splits["train"].labels["class"]
        assert data.facts["classes"]["class"] == ["kind 0", "kind 1", "kind 2", "kind 3", THRESHOLD]
        fakes.append(set(np.flatnonzero(ids == 4).tolist()))
        assert len(fakes[-1]) == 40 / 5
        assert data.splits["test"].labels["class"].max() < 4
    assert not fakes[0] & fakes[1]


def test_each_task_has_threshold_samples_of_its_own(root: Path) -> None:
    data = set_up(module(root, labels={"threshold": 0}))
    sizes = {"Daily": 2, "Gender": 2, "Embellishment": 4}  # 14 / (c + 1), rounded
    for task, classes in data.facts["classes"].items():
        assert (data.splits["train"].labels[task] == len(classes) - 1).sum() == sizes[task]


def test_a_verdict_drops_the_label_of_its_task_alone(root: Path, tmp_path: Path) -> None:
    kept = verdicts(tmp_path / "kept.csv", [["Train/000/0.jpg", "Daily", "0", "drop", ""]])
    data, clean = set_up(module(root, labels={"kept": kept})), set_up(module(root))
    expected = labels_of(clean)
    expected["Daily"][0] = -1
    assert labels_of(data) == expected
    assert [path.name for path in data.dropped.paths] == ["0.jpg"]
    assert any(note.startswith("labels: 1 Daily labels dropped, 0 changed") for note in data.notes)


def test_or_the_whole_photo(root: Path, tmp_path: Path) -> None:
    kept = verdicts(tmp_path / "kept.csv", [["Train/000/0.jpg", "Daily", "0", "drop", ""]])
    data = set_up(module(root, labels={"kept": kept, "unit": "photo"}))
    assert len(data.splits["train"]) == 13
    assert "Train/000/0.jpg" not in data.names("train")
    assert data.dropped.paths[0].name == "0.jpg"
    assert data.survey()["counts"]["train"] == 13


def test_a_person_may_relabel_and_leave_rows_out(root: Path, tmp_path: Path) -> None:
    rows = [["Train/000/0.jpg", "Daily", "0", "relabel", "3"], ["Train/001/1.jpg", "Gender", "1", "keep", ""]]
    data = set_up(module(root, labels={"kept": verdicts(tmp_path / "kept.csv", rows)}))
    expected = labels_of(set_up(module(root)))
    expected["Daily"][0] = 3
    assert labels_of(data) == expected


def test_verdicts_speak_of_the_labels_as_they_were_planted(tmp_path: Path) -> None:
    wrong = set_up(Toy(tmp_path, labels={"flip": 0.2}, val_share=0))
    names, ids = wrong.names("train"), wrong.splits["train"].labels["class"]
    rows = [[names[at], "class", f"kind {ids[at]}", "drop", ""] for at in np.flatnonzero(wrong.planted["class"])]
    kept = verdicts(tmp_path / "kept.csv", rows)
    clean = set_up(Toy(tmp_path, labels={"flip": 0.2, "kept": kept, "unit": "photo"}, val_share=0))
    truth = set_up(Toy(tmp_path, val_share=0)).splits["train"].labels["class"]
    assert len(clean.splits["train"]) == 32
    assert (clean.splits["train"].labels["class"] == truth[~wrong.planted["class"]]).all()
    assert not clean.planted["class"].any()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["Train/000/0.jpg", "Daily", "0", "delete", ""], "row 2: action 'delete' is none of keep, drop, relabel"),
        (["Train/000/0.jpg", "Daily", "0", "relabel", ""], "row 2: relabel_to '' is no class of Daily"),
        (["Train/000/0.jpg", "Daily", "0", "relabel", "9"], "row 2: relabel_to '9' is no class of Daily (0, 1, 2"),
        (["Train/000/0.jpg", "Colour", "0", "keep", ""], "row 2: task 'Colour' is none of Daily, Gender"),
        (["Train/000/0.jpg", "Daily", "5", "keep", ""], "labelled Daily '5', the data say '0'"),
        (["Train/9.jpg", "Daily", "0", "keep", ""], "row 2: photo 'Train/9.jpg' is not in train"),
    ],
)
def test_a_wrong_row_is_named(root: Path, tmp_path: Path, row: list[str], said: str) -> None:
    rows = [row, ["Train/001/1.jpg", "Daily", "1", "keep", ""], ["Train/002/2.jpg", "Daily", "2", "keep", ""]]
    kept = verdicts(tmp_path / "kept.csv", rows)
    with pytest.raises(ValueError, match=re.escape(said)):
        set_up(module(root, labels={"kept": kept}))


def test_two_verdicts_on_one_label_are_refused(root: Path, tmp_path: Path) -> None:
    row = ["Train/000/0.jpg", "Daily", "0", "keep", ""]
    kept = verdicts(tmp_path / "kept.csv", [row, [*row[:3], "drop", ""]])
    with pytest.raises(ValueError, match=r"kept.csv row 3: Train/000/0.jpg Daily stands in row 2 too"):
        set_up(module(root, labels={"kept": kept}))


def test_a_file_of_other_data_is_refused_as_such(root: Path, tmp_path: Path) -> None:
    kept = verdicts(tmp_path / "kept.csv", [[f"elsewhere/{n}.jpg", "Daily", "0", "keep", ""] for n in range(5)])
    with pytest.raises(ValueError, match="is of other data: 5 of its 5 rows name photos that are not in train"):
        set_up(module(root, labels={"kept": kept}))


def test_a_file_that_is_not_there_or_not_of_verdicts(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stage that writes it"):
        set_up(module(root, labels={"kept": str(tmp_path / "nowhere.csv")}))
    kept = verdicts(tmp_path / "kept.csv", [["Train/000/0.jpg", "Daily", "0"]], ["photo", "task", "label"])
    with pytest.raises(ValueError, match="has no column 'action'; it has photo, task, label"):
        set_up(module(root, labels={"kept": kept}))


@pytest.mark.parametrize("unit", ["label", "photo"])
def test_everything_or_a_whole_class_dropped_is_refused(root: Path, tmp_path: Path, unit: str) -> None:
    plain = set_up(module(root))
    names, daily = plain.names("train"), plain.splits["train"].labels["Daily"]
    all_of_it = [[name, "Daily", str(ident), "drop", ""] for name, ident in zip(names, daily, strict=True)]
    kept = verdicts(tmp_path / "kept.csv", all_of_it)
    with pytest.raises(ValueError, match=r"kept.csv drops all 14 Daily labels of train: keep some"):
        set_up(module(root, labels={"kept": kept, "unit": unit}))
    kept = verdicts(tmp_path / "kept.csv", [row for row in all_of_it if row[2] in "23"])
    with pytest.raises(ValueError, match=r"kept.csv leaves no label of Daily 2 \(2\), 3 \(2\): keep some"):
        set_up(module(root, labels={"kept": kept, "unit": unit}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"flips": 0.1}, "labels has no setting 'flips'; it has flip, kept, unit, threshold"),
        ({"flip": 1}, "labels.flip=1 is not a share"),
        ({"unit": "box"}, "labels.unit='box' is not one of label, photo"),
        ({"threshold": 2}, "labels.threshold=2 is neither 0 nor 1"),
        ({"threshold": 0, "kept": "k.csv"}, "set one of them"),
    ],
)
def test_wrong_settings(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Revision.of(settings)


def test_too_few_labels_for_threshold_samples(tmp_path: Path) -> None:
    def few(arrays, labels):
        arrays["train"], labels["train"] = arrays["train"][:2], labels["train"][:2]

    with pytest.raises(ValueError, match="class has 2 labels in train, too few for threshold samples of its 4 classes"):
        set_up(Toy(tmp_path, few, labels={"threshold": 0}, val_share=0, batch_size=1))
