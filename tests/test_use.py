"""`use.py` and `check=true`: what a person does after, and before, a run."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules.fascode import FASCODE
from engine.checkpoints import load_stage
from engine.commands.predict import find_photos, read_boxes
from tests.conftest import TINY
from use import command_line

Cli = Callable[..., tuple[int, str]]


def photos_of(run: Path) -> list[Path]:
    return sorted((run.parent / "photos").rglob("*.jpg"))


def test_predict_answers_files_folders_and_globs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = photos_of(run)
    outputs = ["--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv"), "--html", str(tmp_path / "a.html")]
    glob = str(second.parent / f"{second.stem}.*")
    assert command_line(["predict", str(run), str(first), glob, "--top-k", "2", "--device", "cpu", *outputs]) == 0
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [row["path"] for row in found["answers"]] == [str(first), str(second)]
    assert "whole photo was used" in found["note"]
    for row in found["answers"]:
        assert row["answers"].keys() == {"Daily", "Gender", "Embellishment"}
        for classes in row["answers"].values():
            assert len(classes) == 2
            assert classes[0][1] >= classes[1][1] > 0
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 3 * 2
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert first.name in page
    assert "data:image" in page
    assert "Daily" in capsys.readouterr().out
    assert command_line(["predict", str(run), str(first.parent), "--device", "cpu", "--json", "-"]) == 0


def test_answers_do_not_depend_on_the_batch(run: Path, tmp_path: Path) -> None:
    files = [str(path) for path in photos_of(run)[:5]]
    answers = []
    for size in ("1", "5"):
        out = tmp_path / f"{size}.json"
        assert (
            command_line(["predict", str(run), *files, "--batch-size", size, "--device", "cpu", "--json", str(out)])
            == 0
        )
        answers.append(json.loads(out.read_text(encoding="utf-8"))["answers"])
    for one, five in zip(*answers, strict=True):
        for task, classes in one["answers"].items():
            assert [name for name, _ in classes] == [name for name, _ in five["answers"][task]]
            assert [p for _, p in classes] == pytest.approx([p for _, p in five["answers"][task]], abs=1e-4)


def test_a_broken_photo_is_named_and_the_others_are_answered(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, torn, text = photos_of(run)[0], tmp_path / "torn.jpg", tmp_path / "text.jpg"
    torn.write_bytes(good.read_bytes()[:500])
    text.write_text("no photo")
    Image.new("CMYK", (40, 60)).save(tmp_path / "cmyk.jpg")
    names = [str(path) for path in (good, torn, text, tmp_path / "cmyk.jpg", tmp_path / "absent.jpg")]
    out = tmp_path / "a.json"
    assert command_line(["predict", str(run), *names, "--device", "cpu", "--json", str(out)]) == 1
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["path"] for row in found["answers"]] == [names[0], names[3]]
    assert found["broken"].keys() == {names[1], names[2], names[4]}
    assert "torn.jpg" in capsys.readouterr().err


def test_boxes_change_what_is_looked_at(run: Path, tmp_path: Path) -> None:
    photo = photos_of(run)[0]
    with Image.open(photo) as image:
        width, height = image.size
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(f"image,xmin,ymin,xmax,ymax\n{photo.name},0,0,{width // 2},{height // 2}\n", encoding="utf-8")
    found = []
    for extra in ([], ["--boxes", str(boxes)]):
        out = tmp_path / "a.json"
        assert command_line(["predict", str(run), str(photo), "--device", "cpu", "--json", str(out), *extra]) == 0
        found.append(json.loads(out.read_text(encoding="utf-8")))
    assert found[0]["answers"] != found[1]["answers"]
    assert "Boxes were given" in found[1]["note"]


@pytest.mark.parametrize(
    ("text", "said"), [("image,xmin\na.jpg,1\n", "columns"), ("image,xmin,ymin,xmax,ymax\na.jpg,x,0,1,1\n", "row 2")]
)
def test_wrong_boxes_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_boxes(tmp_path / "boxes.csv")


def test_nothing_found_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no photo in this folder"):
        find_photos([str(tmp_path)])


def test_a_run_answers_without_what_was_said_of_its_training_labels(run: Path, tmp_path: Path) -> None:
    """A moved run has no verdicts where they were, and they would not fit other data."""
    content = torch.load(run / "fit.ckpt", weights_only=True)
    verdicts = {"flip": 0.1, "kept": "/gone/second/kept.csv", "unit": "label", "threshold": None}
    content["stage"]["data"] |= {"labels": verdicts, "unlabelled": {"source": "dropped", "ratio": 1.0}}
    torch.save(content, tmp_path / "fit.ckpt")
    _, data, _ = load_stage(tmp_path / "fit.ckpt")
    FASCODE.draw_sample(tmp_path / "other")
    data.root = tmp_path / "other"
    data.setup("test")
    assert len(data.splits["test"]) == 150
    assert data.planted, "what does not hang on files stays"


@pytest.mark.parametrize(
    "arguments", [["predict", "nowhere", "x.jpg"], ["evaluate", "nowhere"], ["tags", "nowhere", "x"]]
)
def test_a_run_that_is_not_there_is_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_tags_of_a_fashion_run_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["tags", str(run), "x"]) == 1
    assert "FashionMTL" in capsys.readouterr().err


def test_check_looks_and_trains_nothing(cli: Cli, tmp_path: Path, data_dir: Path) -> None:
    code, printed = cli(*TINY, "check=true")
    assert code == 0, printed
    for word in ("DRAWN SAMPLES", "photos", "Daily", "GiB free", "on cpu"):
        assert word in printed
    assert not (tmp_path / "fashion_mtl").exists()


def test_check_names_what_stands_in_the_way(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli("experiment=fashion_mtl", "check=true", f"data_dir={tmp_path}")
    assert code == 1
    assert "problem" in printed
    assert "sample=true" in printed


def test_missing_data_are_one_sentence_with_the_ways_on(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli("experiment=fashion_mtl", "trainer.accelerator=cpu", f"data_dir={tmp_path}")
    assert code == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    for word in (str(tmp_path), "info_etri20_emotion_train.csv", "data_dir=", "sample=true"):
        assert word in line
    assert "Traceback" not in printed
