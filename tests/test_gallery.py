"""The index on disk and what is found in it: exact, and never half of one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks import approximate, gallery, gallery_writing, nearest
from callbacks.gallery import FORMAT, Gallery, fingerprint, unit
from callbacks.gallery_writing import Rows, refresh, write, writing
from callbacks.groups import groups
from callbacks.nearest import Codes, Nearest, encode, has_fast_int8, scan
from tests.conftest import ROOT
from tests.toy_fashion import technique

KINDS = ("random", "clustered", "after a ReLU", "narrow", "equal", "sparse")
NAMES = ["장미/ㅏ.jpg", "rose & <b>.jpg", "line\nbreak.png", "café.jpg", os.fsdecode(b"caf\xe9.jpg")]


def vectors(kind: str, count: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit vectors as networks make them, well spread or not."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, width), dtype=np.float32)
    if kind == "clustered":
        noise = rng.standard_normal((9, width), dtype=np.float32)[rng.integers(0, 9, count)] + 0.3 * noise
    elif kind == "after a ReLU":
        noise = np.maximum(0, rng.random(width, dtype=np.float32) + 0.3 * noise)
    elif kind == "narrow":
        noise = 1 + 0.01 * noise
    elif kind == "equal":
        noise[:] = noise[0]
    elif kind == "sparse":
        noise *= rng.random((count, width)) < 0.03
    return unit(noise)


def beside(some: np.ndarray, count: int, seed: int = 1) -> np.ndarray:
    """Unit vectors near some of these, and one that is near none."""
    rng = np.random.default_rng(seed)
    chosen = some[rng.integers(0, len(some), count)]
    chosen[-1] = rng.standard_normal(chosen.shape[1])
    return unit(chosen + np.float32(0.01) * rng.standard_normal(chosen.shape, dtype=np.float32))


@pytest.fixture(params=["codes", "float32"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either kind of scan, in small blocks, and no short cut for few vectors."""
    if request.param == "codes" and not has_fast_int8():
        pytest.skip("no fast 8-bit products on this processor")
    monkeypatch.setattr(nearest, "has_fast_int8", lambda: request.param == "codes")
    monkeypatch.setattr(nearest, "FEW", 0)
    monkeypatch.setattr(nearest, "ROWS", 256)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "k"), [(256, 5), (200, 1), (48, 100), (300, 1500)])
def test_search_is_exact(way: str, kind: str, width: int, k: int) -> None:
    some = vectors(kind, 1500, width)
    queries = beside(some, 7)
    cosine, place = nearest.nearest(queries, some, encode(some), k)
    exact = queries.astype(np.float64) @ some.T.astype(np.float64)
    np.testing.assert_allclose(cosine, -np.sort(-exact, 1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(cosine, np.take_along_axis(exact, place, 1), atol=1e-6)
    assert all(len(set(row)) == k for row in place.tolist())


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_recall_at_5_of_many_at_once(kind: str) -> None:
    some = vectors(kind, 20_000, 64)
    queries = beside(some, 50)
    _, place = nearest.nearest(queries, some, encode(some), 5)
    best = np.argsort(-(queries @ some.T), 1)[:, :5]
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(place.tolist(), best.tolist(), strict=True)])
    assert recall >= 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_no_similarity_lies_outside_its_bounds(way: str, kind: str) -> None:
    some = vectors(kind, 700, 200)
    queries = beside(some, 5)
    exact = queries.astype(np.float64) @ some.T.astype(np.float64)
    seen = 0
    for block in scan(queries, some, encode(some), 64):
        rows = slice(block.begin, min(block.begin + block.scores.shape[1], len(some)))
        scores = block.scores[:, : rows.stop - rows.start].numpy()
        assert (exact[:, rows] >= scores + block.low.numpy()).all()
        assert (exact[:, rows] <= scores + block.high.numpy()).all()
        assert (block.scores[:, rows.stop - rows.start :] == -torch.inf).all()
        seen += rows.stop - rows.start
    assert seen == len(some)


def test_most_rows_are_never_compared_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_fast_int8():
        pytest.skip("no fast 8-bit products on this processor")
    compared, true = [], nearest.similarities
    monkeypatch.setattr(nearest, "similarities", lambda *args: compared.append(len(args[2])) or true(*args))
    some = vectors("after a ReLU", 20_000, 256)
    nearest.nearest(beside(some, 2)[:1], some, encode(some), 5)
    assert sum(compared) < 200


def test_equal_vectors_come_in_order_and_do_not_fill_the_memory(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "PAIRS", 1000)
    waiting, true = [], Nearest.settle
    monkeypatch.setattr(
        Nearest, "settle", lambda seen: waiting.append(sum(len(p.query) for p in seen.waiting)) or true(seen)
    )
    some = vectors("equal", 3000, 32)
    cosine, place = nearest.nearest(some[:3], some, encode(some), 4)
    assert place.tolist() == [[0, 1, 2, 3]] * 3
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    assert max(waiting) <= 1000 + 3 * 256


def test_a_vector_of_zeros_is_like_nothing(tmp_path: Path) -> None:
    some = vectors("random", 20, 8)
    some[3] = 0
    cosine, place = write(tmp_path, rows_of(some), "m", tmp_path).search(some[3:4], 20)
    assert not cosine.any()
    assert sorted(place[0]) == list(range(20))


def rows_of(some: np.ndarray, names: list[str] | None = None) -> Rows:
    return Rows(names or [f"{at}.jpg" for at in range(len(some))], some, np.zeros((len(some), 2), np.int64))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The folder of an index of five photos."""
    write(tmp_path / "index", rows_of(3 * vectors("random", 5, 140), NAMES), "model", tmp_path, {"splits": [["a", 5]]})
    return tmp_path / "index"


def test_an_index_is_opened_as_it_was_written(index: Path) -> None:
    gallery = Gallery(index)
    assert list(gallery.names) == [gallery.names[at] for at in range(5)] == NAMES
    assert gallery.names[-1] == NAMES[-1]
    with pytest.raises(IndexError):
        gallery.names[5]
    assert (gallery.model, gallery.about["splits"], len(gallery)) == ("model", [["a", 5]], 5)
    assert gallery.path(0) == index.parent / NAMES[0]
    np.testing.assert_allclose(gallery.vectors, vectors("random", 5, 140), atol=1e-6)
    assert all(isinstance(each, np.memmap) for each in (gallery.vectors, gallery.codes.planes, gallery.names.row))
    cosine, place = gallery.search(7 * gallery.vectors[2:3], 2)
    assert place[0, 0] == 2
    assert cosine[0, 0] == pytest.approx(1, abs=1e-6)
    assert {path.name for path in index.iterdir()} == {"about.json", ".lock", gallery.about["content"]}


def test_codes_on_disk_are_those_in_memory(index: Path) -> None:
    gallery = Gallery(index)
    for stored, made in zip(gallery.codes, encode(np.array(gallery.vectors)), strict=True):
        np.testing.assert_allclose(stored, made, atol=1e-6)
    assert Codes(*gallery.codes).planes.shape == (2, 5, 128)


def test_a_query_that_is_no_number_is_refused(index: Path) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Gallery(index).search(np.full((1, 140), np.nan, np.float32), 1)


@pytest.mark.parametrize(
    ("queries", "k", "said"), [((1, 140), 6, "has 5"), ((1, 140), 0, "0 nearest"), ((1, 8), 1, r"\(Q, 140\)")]
)
def test_what_does_not_fit_is_refused(index: Path, queries: tuple[int, int], k: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Gallery(index).search(np.ones(queries, np.float32), k)


def test_damage_is_one_sentence(index: Path) -> None:
    content = index / json.loads((index / "about.json").read_text())["content"]
    for path in sorted(content.glob("*.npy")):
        whole = path.read_bytes()
        for data in (whole[:-1], whole[:50], b"", whole + b"x"):
            path.write_bytes(data)
            with pytest.raises(ValueError, match=rf"{path.name} is cut short.*delete it, it is made again"):
                Gallery(index)
        path.unlink()
        with pytest.raises(ValueError, match=path.name):
            Gallery(index)
        path.write_bytes(whole)
    assert len(Gallery(index)) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", r"about\.json cannot be read"), ("[]", "cannot be read"), ("{}", "cannot be read"),
     ('{"format": 99}', f"format 99 by another version, this one reads format {FORMAT}")],
)  # fmt: skip
def test_another_about_is_one_sentence(index: Path, text: str, said: str) -> None:
    (index / "about.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        Gallery(index)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        Gallery(index.parent)


def test_the_index_of_another_model_is_refused(index: Path) -> None:
    assert len(Gallery(index).of("model")) == 5
    with pytest.raises(ValueError, match="made by another model"):
        Gallery(index).of("other")


def test_fingerprint_knows_weights_and_transform() -> None:
    module = technique()
    first = fingerprint(module, "side=32")
    assert first == fingerprint(technique(), "side=32") != fingerprint(module, "side=64")
    assert first == fingerprint(technique().double(), "side=32"), "the precision that holds the same weights"
    with torch.no_grad():
        next(module.encoder.parameters()).mul_(2)
    assert first != fingerprint(module, "side=32")


class Album:
    """Files that stand for photos; embedding one reads its text, and what does not start with a digit is broken."""

    def __init__(self, root: Path) -> None:
        self.root, self.embedded = root, []

    def put(self, name: str, text: str, time: int = 10) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (time, time))

    def embed(self, names: list[str]) -> tuple[list[str], np.ndarray]:
        self.embedded.append(list(names))
        texts = {name: (self.root / name).read_text() for name in names}
        read = [name for name, text in texts.items() if text[0].isdigit()]
        return read, np.array([[1, float(texts[name])] for name in read], np.float32).reshape(-1, 2)

    def refresh(self, model: str = "m") -> Gallery:
        self.embedded.clear()
        names = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return refresh(self.root.parent / "index", self.root, names, model, self.embed)


@pytest.fixture
def album(tmp_path: Path) -> Album:
    made = Album(tmp_path / "사진")
    for number in range(4):
        made.put(f"{number}.jpg", str(number))
    return made


def values(gallery: Gallery) -> dict[str, float]:
    """What each photo of an album said when it was embedded."""
    return {name: round(float(v[1] / v[0]), 3) for name, v in zip(gallery.names, gallery.vectors, strict=True)}


def test_only_new_and_changed_photos_are_embedded(album: Album) -> None:
    first = album.refresh()
    assert values(first) == {"0.jpg": 0, "1.jpg": 1, "2.jpg": 2, "3.jpg": 3}
    assert album.refresh().about == first.about
    assert album.embedded == []
    album.put("a/0.jpg", "7")  # new, and sorted into the middle
    album.put("1.jpg", "5", 11)  # changed: another time
    album.put("2.jpg", "66", 10)  # another size
    (album.root / "0.jpg").unlink()
    assert values(album.refresh()) == {"1.jpg": 5, "2.jpg": 66, "3.jpg": 3, "a/0.jpg": 7}
    assert album.embedded == [["1.jpg", "2.jpg", "a/0.jpg"]]
    (album.root / "a/0.jpg").unlink()
    assert values(album.refresh()) == {"1.jpg": 5, "2.jpg": 66, "3.jpg": 3}
    assert album.embedded == []


def test_broken_photos_are_left_out_and_tried_again(album: Album) -> None:
    album.put("broken.jpg", "no photo")
    first = album.refresh()
    assert list(first.names) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert album.refresh().about == first.about, "nothing new could be read, so nothing was written"
    assert album.embedded == [["broken.jpg"]]
    album.put("broken.jpg", "9", 11)
    assert values(album.refresh())["broken.jpg"] == 9
    for path in album.root.iterdir():
        path.write_text("all broken")
    with pytest.raises(ValueError, match="no photo to put into the index"):
        album.refresh()
    assert len(Gallery(album.root.parent / "index")) == 5, "the old index is still there"


def test_refresh_refuses_another_model(album: Album) -> None:
    album.refresh()
    with pytest.raises(ValueError, match="another model"):
        album.refresh("n")


def test_a_second_writer_is_told_so(album: Album) -> None:
    gallery = album.refresh()
    album.put("4.jpg", "4")
    with writing(gallery.folder), pytest.raises(ValueError, match="being written by another process"):
        album.refresh()
    assert values(album.refresh())["4.jpg"] == 4


def test_a_folder_that_cannot_be_written_is_one_sentence(album: Album, tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file is in the way")
    with pytest.raises(ValueError, match=r"cannot be written .*name another folder"):
        album.refresh()


def test_an_index_that_is_up_to_date_needs_no_writing(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    album.refresh()
    monkeypatch.setattr(gallery_writing, "writing", None)
    assert len(album.refresh()) == 4


def test_an_embedding_that_is_no_number_is_named(tmp_path: Path) -> None:
    some = vectors("random", 3, 8)
    some[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"the embedding of 1\.jpg is not finite"):
        write(tmp_path / "index", rows_of(some), "m", tmp_path)
    assert not list((tmp_path / "index").glob("*/")), "nothing is left of it"


WRITER = """
import sys, numpy as np
from pathlib import Path
from callbacks.gallery_writing import Rows, write
for number in range(10**6):
    some = np.full((300, 64), 1 + number, np.float32) + np.arange(300, dtype=np.float32)[:, None] % 7
    names = [f"{number} {at}" for at in range(300)]
    write(Path(sys.argv[1]), Rows(names, some, np.full((300, 2), number)), "m", Path("/"), {"number": number})
"""


def test_a_reader_outruns_any_number_of_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = []
    for number in range(4):
        write(tmp_path, rows_of(vectors("random", 3 + number, 8)), "m", tmp_path)
        stale.append(gallery.read_about(tmp_path))
    monkeypatch.setattr(gallery, "read_about", lambda _: stale.pop(0))
    assert len(Gallery(tmp_path)) == 6, "each content but the last was taken away between two reads"


def test_readers_see_whole_content_while_a_writer_works_and_after_it_was_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT)
    try:
        seen, until = set(), time.monotonic() + 60
        while len(seen) < 5 and time.monotonic() < until:
            if (tmp_path / "about.json").is_file():
                gallery = Gallery(tmp_path)
                number = gallery.about["number"]
                assert gallery.names[299] == f"{number} 299"
                assert (gallery.stamps == number).all()
                seen.add(number)
        assert len(seen) == 5
    finally:
        process.kill()
        process.wait()
    number = Gallery(tmp_path).about["number"]
    (tmp_path / "left-over").mkdir(exist_ok=True)
    gallery = write(tmp_path, rows_of(vectors("random", 3, 8)), "m", tmp_path)
    assert number >= 4
    assert len(gallery) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"about.json", ".lock", gallery.about["content"]}


def brute(some: np.ndarray, threshold: float) -> list[list[int]]:
    """Groups by loops."""
    alike, left, found = some @ some.T >= threshold - 1e-6, set(range(len(some))), []
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {int(b) for a in edge for b in np.flatnonzero(alike[a])} - group
        left -= group
        found.append(sorted(group))
    return sorted((group for group in found if len(group) > 1), key=lambda group: (-len(group), group[0]))


@pytest.mark.parametrize(("kind", "threshold"), [("clustered", 0.93), ("random", 0.4), ("equal", 0.999), ("narrow", 1)])
def test_groups_are_those_of_all_pairs(way: str, kind: str, threshold: float) -> None:
    some = vectors(kind, 600, 48)
    some[[70, 500]] = some[3]
    assert groups(some, encode(some), threshold) == brute(some, threshold)


def test_without_faiss_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = vectors("clustered", 4000, 32)
    gallery = write(tmp_path, rows_of(some), "m", tmp_path)
    monkeypatch.setattr(approximate.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        approximate.search(gallery, some[:1], 5)


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # faiss' SWIG classes have no __module__
def test_faiss_finds_most(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    some = vectors("clustered", 4000, 32)
    gallery = write(tmp_path, rows_of(some), "m", tmp_path)
    queries = beside(some, 40)
    cosine, place = approximate.search(gallery, queries, 5)
    exact, best = gallery.search(queries, 5)
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(place.tolist(), best.tolist(), strict=True)])
    assert recall > 0.9
    same = place == best
    np.testing.assert_allclose(cosine[same], exact[same], atol=1e-6)
    made = gallery.folder / gallery.about["content"] / "lists.faiss"
    before = made.stat().st_mtime_ns
    approximate.search(Gallery(tmp_path), queries, 5)
    assert made.stat().st_mtime_ns == before, "the lists are made once"
    assert approximate.search(write(tmp_path, rows_of(some[:3]), "m", tmp_path), queries, 3)[1].min() == 0
