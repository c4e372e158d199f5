"""`use.py search` and `use.py duplicates`: what is found, what is kept, and what is said when something is wrong."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.gallery import Gallery
from callbacks.gallery_writing import Rows, stamp, write
from engine import galleries
from engine.checkpoints import find_checkpoint
from tests.conftest import TINY, only_run
from tests.test_report import Page
from use import command_line


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A run without galleries, which this test may change."""
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("galleries", "index"))
    return tmp_path / "run"


@pytest.fixture
def photos(run: Path, tmp_path: Path) -> Path:
    """A folder of eight photos, two of them below it."""
    folder = tmp_path / "내 사진"
    (folder / "below").mkdir(parents=True)
    for at, path in enumerate(sorted((run.parent / "photos").rglob("*.jpg"))[:8]):
        shutil.copy(path, folder / ("below" if at > 5 else "") / f"사진 {at}.jpg")
    return folder


def use(command: str, run: Path, *arguments: object) -> tuple[int, Any]:
    """Run a command; its exit code and its JSON."""
    out = run.parent / "out.json"
    out.unlink(missing_ok=True)
    code = command_line([command, str(run), *map(str, arguments), "--device", "cpu", "--json", str(out)])
    return code, json.loads(out.read_text(encoding="utf-8")) if out.is_file() else None


def found(run: Path, *arguments: object) -> list[list[tuple[str, float]]]:
    """Names and similarities of what a search finds for each query."""
    code, content = use("search", run, *arguments)
    assert code == 0
    return [[(Path(hit["path"]).name, hit["cosine"]) for hit in each["nearest"]] for each in content["answers"]]


def gallery_of(run: Path) -> Gallery:
    """The only gallery that a run keeps."""
    (folder,) = (run / "fit/galleries").iterdir()
    return Gallery(folder)


def test_a_photo_of_the_gallery_finds_itself_first(own: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = own.parent / "page.html"
    queries = [photos / "사진 3.jpg", photos / "below/사진 6.jpg"]
    answers = found(own, *queries, "--gallery", photos, "--top", 4, "--html", page)
    for query, hits in zip(queries, answers, strict=True):
        assert hits[0] == (query.name, 1.0)
        assert len(hits) == 4
        cosines = [cosine for _, cosine in hits]
        assert cosines == sorted(cosines, reverse=True)
        assert cosines[1] < 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "사진 3.jpg" in printed.replace(" │ │ ", "")
    assert "1.000" in printed
    assert "Looked in 8 photos" in printed
    shown = Page(page.read_text(encoding="utf-8"))
    assert len(shown.pictures()) == 2 * (1 + 4)
    assert shown.text.index("query: ") < shown.text.index("cosine 1.000")
    assert not {tag for tag, _ in shown.elements} & {"script", "link", "iframe"}
    assert all(attrs["src"].startswith("data:") for tag, attrs in shown.elements if tag == "img")


def test_search_agrees_with_cosines_of_the_embedding(own: Path, photos: Path) -> None:
    embedding = galleries.Embedding(find_checkpoint(own), "cpu", 3)
    paths = sorted(photos.rglob("*.jpg"))
    read, vectors, broken = embedding(paths)
    assert (read, broken) == (paths, {})
    rows = torch.nn.functional.normalize(torch.from_numpy(vectors))
    (hits,) = found(own, paths[2], "--gallery", photos, "--top", 8)
    cosines = (rows @ rows[2]).tolist()
    assert dict(hits) == pytest.approx({path.name: c for path, c in zip(paths, cosines, strict=True)}, abs=1e-5)


def test_later_searches_embed_new_photos_only(own: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query, asked, true = photos / "사진 0.jpg", [], galleries.Embedding.__call__
    monkeypatch.setattr(
        galleries.Embedding,
        "__call__",
        lambda self, paths, boxes=None: asked.append(len(paths)) or true(self, paths, boxes),
    )
    found(own, query, "--gallery", photos)
    assert asked == [8, 0], "the query is in the gallery, so its embedding is there"
    first = gallery_of(own).about
    found(own, query, "--gallery", photos)
    assert gallery_of(own).about == first
    shutil.copy(query, photos / "copy.jpg")
    (photos / "사진 1.jpg").unlink()
    asked.clear()
    (hits,) = found(own, query, "--gallery", photos, "--top", 2)
    assert hits == [("사진 0.jpg", 1.0), ("copy.jpg", pytest.approx(1, abs=1e-5))]
    assert asked == [1, 0]
    assert "사진 1.jpg" not in list(gallery_of(own).names)


def test_a_moved_run_keeps_its_galleries_and_another_place_can_be_named(own: Path, photos: Path) -> None:
    query = photos / "사진 0.jpg"
    before = found(own, query, "--gallery", photos, "--index", own.parent / "elsewhere")
    assert not (own / "fit/galleries").exists()
    moved = own.rename(own.parent / "moved")
    assert found(moved, query, "--gallery", photos, "--index", own.parent / "elsewhere") == before


def test_the_index_of_another_model_is_refused(own: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (photos / "사진 0.jpg", "--gallery", photos, "--index", own.parent / "shared")
    found(own, *arguments)
    content = torch.load(own / "fit.ckpt", weights_only=True)
    content["state_dict"]["encoder.std"] *= 2
    torch.save(content, own / "fit.ckpt")
    assert use("search", own, *arguments)[0] == 1
    assert "was made by another model" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_one_sentence(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "fit/galleries").write_text("in the way")
    assert use("search", own, photos, "--gallery", photos)[0] == 1
    assert re.fullmatch(
        r"error: .*cannot be written \(.*\): name another folder for the index\n", capsys.readouterr().err
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_run_is_searched_if_its_index_is_up_to_date(own: Path, photos: Path) -> None:
    found(own, photos, "--gallery", photos)
    for path in (own / "fit/galleries").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert found(own, photos, "--gallery", photos)


def test_broken_queries_are_named_and_the_others_answered(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = own.parent / "text.jpg"
    text.write_text("no photo")
    code, content = use("search", own, photos / "사진 0.jpg", text, "absent.jpg", "--gallery", photos)
    assert code == 1
    assert [Path(each["path"]).name for each in content["answers"]] == ["사진 0.jpg"]
    assert content["broken"].keys() == {str(text), "absent.jpg"}
    assert "not answered: absent.jpg: there is no such file" in capsys.readouterr().err
    code, content = use("search", own, text, "--gallery", photos, "--html", own.parent / "page.html")
    assert (code, content["answers"]) == (1, [])


def test_broken_and_equal_photos_in_a_gallery(own: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for at in range(13):
        (photos / f"broken {at:02d}.jpg").write_bytes(b"\xff\xd8 and no more")
    for at in range(6):
        shutil.copy(photos / "사진 0.jpg", photos / f"00 copy {at}.jpg")
    code, content = use("search", own, photos / "사진 0.jpg", "--gallery", photos, "--top", 2)
    assert code == 0, "the gallery's own broken photos do not spoil an answer"
    assert [Path(hit["path"]).name for hit in content["answers"][0]["nearest"]] == ["사진 0.jpg", "00 copy 0.jpg"]
    said = capsys.readouterr().err
    assert "not in the gallery: " in said
    assert "broken 09.jpg" in said
    assert "3 more" in said
    assert len(gallery_of(own)) == 14


def test_small_galleries(own: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(photos / "사진 5.jpg", tmp_path / "one")
    code, content = use("search", own, photos / "사진 0.jpg", "--gallery", tmp_path / "one", "--top", 3)
    assert code == 0
    assert len(content["answers"][0]["nearest"]) == 1
    assert "Looked in 1 photo of" in content["note"]
    assert "fewer than the 3 asked for" in content["note"]
    (tmp_path / "none").mkdir()
    for gallery, said in {
        tmp_path / "none": "no photo in this folder", tmp_path / "absent": "no such file",
        photos / "사진 0.jpg": "is no folder",
    }.items():  # fmt: skip
        assert use("search", own, photos, "--gallery", gallery)[0] == 1
        assert said in capsys.readouterr().err
    assert use("search", own, photos, "--gallery", photos, "--top", 0)[0] == 1
    assert "--top=0" in capsys.readouterr().err


def own_index(run: Path, names: list[str], root: Path) -> None:
    """The index that a run's test writes, of these photos as a split `test`, each turned upside down, as with a box."""
    embedding = galleries.Embedding(find_checkpoint(run), "cpu", 8)
    vectors = []
    for name in names:
        Image.open(root / name).rotate(180).save(run / "turned.png")
        vectors.append(embedding([run / "turned.png"])[1])
    stamps = np.array([stamp(root / name) for name in names])
    more = {"splits": [["train", 1], ["test", len(names) - 1]]}
    write(run / "fit/index", Rows(names, np.concatenate(vectors), stamps), embedding.model, root, more)


def test_without_a_gallery_the_runs_own_photos_are_searched(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert use("search", own, photos / "사진 0.jpg")[0] == 1
    assert "holds no index" in capsys.readouterr().err
    own_index(own, [f"사진 {at}.jpg" for at in range(5)], photos)
    (hits,) = found(own, photos / "사진 2.jpg")
    assert hits[0] == ("사진 2.jpg", 1.0), "compared as the run saw it, not as a whole"
    stranger = shutil.copy(photos / "사진 2.jpg", own.parent)
    code, content = use("search", own, stranger)
    assert code == 0
    assert content["answers"][0]["nearest"][0]["cosine"] < 1
    assert "boxes around the subject" in content["note"]
    boxes = own.parent / "boxes.csv"
    boxes.write_text("image,xmin,ymin,xmax,ymax\n사진 2.jpg,0,0,30,60\n", encoding="utf-8")
    code, boxed = use("search", own, stranger, "--boxes", boxes)
    assert boxed["answers"] != content["answers"]
    assert "Boxes were given" in boxed["note"]


def test_photos_that_lie_in_no_file_are_shown_from_the_data(own: Path, photos: Path) -> None:
    own_index(own, [f"사진 {at}.jpg" for at in range(5)], photos)
    gallery = Gallery(own / "fit/index")
    (own / "nowhere").mkdir()
    names = [f"batch/{at}" for at in range(5)]
    rows = Rows(names, gallery.vectors, np.full((5, 2), -1))
    gallery = write(own / "fit/index", rows, gallery.model, own / "nowhere", {"splits": [["train", 2], ["test", 3]]})
    assert galleries.shown_name(gallery, 3) == "batch/3"
    asked = []

    def picture(split: str, index: int) -> torch.Tensor:
        asked.append((split, index))
        return torch.full((3, 4, 4), 7, dtype=torch.uint8)

    embedding: Any = SimpleNamespace(pictures=SimpleNamespace(picture=picture))
    images = [galleries.picture_of(gallery, place, embedding) for place in (0, 1, 2, 4)]
    assert asked == [("train", 0), ("train", 1), ("test", 0), ("test", 2)]
    assert all(isinstance(image, Image.Image) for image in images)
    page = own.parent / "page.html"
    assert len(found(own, photos / "사진 0.jpg", "--html", page)[0]) == 5
    assert "no picture" in page.read_text(encoding="utf-8"), "the data of the moved run are gone"


def test_a_name_that_is_no_text_is_found_and_shown(own: Path, photos: Path) -> None:
    shutil.copy(photos / "사진 0.jpg", photos / os.fsdecode(b"caf\xe9.jpg"))
    page = own.parent / "page.html"
    (hits,) = found(own, photos / "사진 0.jpg", "--gallery", photos, "--top", 2, "--html", page)
    assert hits[1][0] == "caf\ufffd.jpg"
    assert len(Page(page.read_text(encoding="utf-8")).pictures()) == 3


def test_a_technique_without_one_encoder_is_refused(
    own: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(galleries, "load_stage", lambda path: (torch.nn.Linear(1, 1), None, {}))
    assert use("search", own, photos, "--gallery", photos)[0] == 1
    assert "a Linear without a single encoder" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # faiss' SWIG classes have no __module__
def test_faiss_is_an_extra(own: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    code, content = use("search", own, photos / "사진 0.jpg", "--gallery", photos, "--faiss", "--top", 3)
    assert code == 0
    assert content["answers"][0]["nearest"][0]["cosine"] == 1
    assert "a near photo may be missing" in content["note"]
    assert (
        content["answers"] == use("search", own, photos / "사진 0.jpg", "--gallery", photos, "--top", 3)[1]["answers"]
    )


def test_duplicates_are_found_in_groups(own: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(photos / "사진 1.jpg", photos / "copy.jpg")
    with Image.open(photos / "사진 1.jpg") as photo:
        photo.save(photos / "again.png")  # the same pixels in another file
    shutil.copy(photos / "below/사진 6.jpg", photos / "twin.jpg")
    page = own.parent / "page.html"
    code, content = use("duplicates", own, "--gallery", photos, "--above", 0.9999, "--html", page)
    assert code == 0
    names = [[Path(photo["path"]).name for photo in group] for group in content["groups"]]
    assert names == [["again.png", "copy.jpg", "사진 1.jpg"], ["사진 6.jpg", "twin.jpg"]]
    assert content["groups"][1][1]["cosine"] == pytest.approx(1, abs=1e-5)
    assert "5 of 11 photos" in content["note"]
    shown = Page(page.read_text(encoding="utf-8"))
    assert len(shown.pictures()) == 5
    assert "3 photos" in shown.text
    (photos / "copy.jpg").unlink()
    assert sum(map(len, use("duplicates", own, "--gallery", photos, "--above", 1)[1]["groups"])) == 4
    capsys.readouterr()
    for above in ("1.01", "-1"):
        assert use("duplicates", own, "--gallery", photos, "--above", above)[0] == 1
        assert f"--above={float(above)}" in capsys.readouterr().err


def test_a_gallery_without_duplicates(own: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, content = use("duplicates", own, "--gallery", photos, "--above", 0.9999999)
    assert (code, content["groups"]) == (0, [])
    assert "0 of 8 photos" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_callback_writes_what_the_command_reads(cli: Any, tmp_path: Path) -> None:
    """A whole run with the callback, on two processes, then a search for one of its photos."""
    index = "+stages.fit.callbacks.index={_target_: callbacks.index.Index, splits: null}"
    code, printed = cli(*TINY, index, "trainer.max_epochs=1", "trainer.devices=2")
    assert code == 0, printed
    run = only_run(tmp_path)
    gallery = Gallery(run / "fit/index")
    query = gallery.path(700)
    assert query.is_file()
    (hits,) = found(run, query)
    assert hits[0] == (query.name, 1.0)


def test_the_sheet_opens_in_a_browser(own: Path, photos: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = tmp_path / "page.html"
    found(own, photos / "사진 0.jpg", "--gallery", photos, "--html", page)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    shot = tmp_path / "page.png"
    command = [browser, *flags, "--window-size=1200,700", f"--screenshot={shot}", "--dump-dom", page.as_uri()]
    result = subprocess.run(command, capture_output=True, timeout=90, check=True)
    shown = Page(result.stdout.decode())
    assert [base64.b64encode(picture)[:4] for picture in shown.pictures()] == [b"/9j/"] * 6
    with Image.open(shot) as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 1000, "photos can be seen"
