"""What the callbacks about similar photos write, and how the report shows pictures."""

import base64
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import embedding_map, embeddings
from callbacks.embedding_map import EmbeddingMap, apart, on_page, principal
from callbacks.embeddings import embed
from callbacks.gallery import Gallery, fingerprint
from callbacks.index import Index
from callbacks.neighbours import Neighbours, others
from callbacks.pictures import Picture, sheet, thumbnail, write_pictures
from datamodules.fascode import FASCODE
from datamodules.features import FeatureData
from engine.report import write_report
from tests import photos, toy_fashion

MAP = {"method": "pca", "photos": 100, "thumbnails": 3, "side": 12, "seed": 0}
NEAR = {"queries": 2, "count": 3, "gallery": 100, "seed": 0}


@pytest.fixture
def data(tmp_path: Path) -> FASCODE:
    return photos.ready(tmp_path)


@pytest.fixture
def module(data: FASCODE) -> Any:
    return toy_fashion.technique(classes=data.facts["classes"])


def evaluate(folder: Path, data: Any, module: Any, *callbacks: pl.Callback) -> None:
    toy_fashion.trainer(folder, *callbacks).test(module, datamodule=data, verbose=False)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def pixels_of(data: FASCODE, split: str, index: np.ndarray) -> torch.Tensor:
    return torch.stack([data.picture(split, at) for at in index.tolist()])


def test_index_holds_every_photo_of_every_split(tmp_path: Path, data: FASCODE, module: Any) -> None:
    evaluate(tmp_path, data, module, Index())
    gallery = Gallery(tmp_path / "index").of(fingerprint(module, data.transform))
    assert gallery.about["splits"] == [["train", 14], ["val", 6], ["test", 5]]
    assert gallery.names[14] == data.name("val", 0) == "Valid/000/0.jpg"
    assert gallery.path(14).is_file()
    assert (gallery.stamps[:, 0] > 0).all()
    with torch.no_grad():
        module.eval()
        alone = module.embed({"image": pixels_of(data, "val", np.array([2]))})
    cosine, place = gallery.search(alone.numpy(), 1)
    assert (place[0, 0], cosine[0, 0]) == (16, pytest.approx(1, abs=1e-5))


def test_index_takes_the_splits_it_is_told(tmp_path: Path, data: FASCODE, module: Any) -> None:
    evaluate(tmp_path, data, module, Index(["test"]))
    assert len(Gallery(tmp_path / "index")) == 5
    with pytest.raises(ValueError, match=r"no split 'tests', there are train, val, test"):
        evaluate(tmp_path, data, module, Index(["tests"]))


def test_index_leaves_out_a_photo_that_cannot_be_read(tmp_path: Path, data: FASCODE, module: Any) -> None:
    photos.hurt(tmp_path / "data/Train/002/2.jpg")
    with pytest.raises(ValueError, match=r"2\.jpg"):
        evaluate(tmp_path, data, module, Index())
    data = photos.module(tmp_path / "data", on_bad_image="skip")
    data.setup("fit")
    evaluate(tmp_path, data, module, Index())
    gallery = Gallery(tmp_path / "index")
    assert gallery.about["splits"][0] == ["train", 13]
    assert "Train/002/2.jpg" not in list(gallery.names)
    assert np.isfinite(gallery.vectors).all()


@pytest.mark.parametrize("count", [1, 5, 6])
def test_two_ranks_embed_what_one_does(data: FASCODE, module: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "CHUNK", 2)
    index = np.arange(count) % 5
    rows: list[list[torch.Tensor]] = [[], []]

    def trainer(rank: int, world: int) -> Any:
        def gather(own: torch.Tensor) -> torch.Tensor:
            rows[rank].append(own)
            return torch.stack([own, rows[1][len(rows[0]) - 1]]) if (rank, world) == (0, 2) else own.repeat(world, 1, 1)

        strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=gather)
        places = {"global_rank": rank, "world_size": world, "is_global_zero": rank == 0}
        return SimpleNamespace(datamodule=data, strategy=strategy, **places)

    module.train()
    one = embed(trainer(0, 1), module, "test", index)
    rows[0].clear()
    assert embed(trainer(1, 2), module, "test", index).size == 0
    np.testing.assert_allclose(embed(trainer(0, 2), module, "test", index), one, atol=1e-5)
    assert len(one) == count
    assert len(rows[0]) == len(rows[1])
    assert all(part.training for part in module.modules()), "each part is in the mode that it was in"


def test_pictures_are_embedded_though_the_stage_trains_on_features(data: FASCODE, module: Any) -> None:
    strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=lambda rows: rows)
    alone = {"global_rank": 0, "world_size": 1, "is_global_zero": True, "strategy": strategy}
    index = np.array([3, 1])
    plain, wrapped = (
        embed(SimpleNamespace(datamodule=each, **alone), module, "test", index)
        for each in (data, FeatureData(data, (96,), 4))
    )
    np.testing.assert_array_equal(plain, wrapped)


def test_neighbours_before_and_after(tmp_path: Path, data: FASCODE, module: Any) -> None:
    callback = Neighbours(**NEAR)
    trainer = toy_fashion.trainer(tmp_path, callback, max_epochs=1)
    trainer.fit(module, datamodule=data)
    before = callback.before
    trainer.test(module, datamodule=data, verbose=False)
    first, second = read(tmp_path / "pictures/neighbours.json")
    assert [first["title"], second["title"]] == ["Neighbours before training", "Neighbours after training"]
    assert first["cosine"] == before["cosine"] != second["cosine"]
    assert first["query"] == second["query"]
    for found in (first, second):
        assert np.shape(found["neighbours"]) == (2, 3)
        assert all(query not in near for query, near in zip(found["query"], found["neighbours"], strict=True))
        assert all(row == sorted(row, reverse=True) for row in found["cosine"])
        assert found["names"][0][0] == data.name("test", found["query"][0])
        assert "the nearest of 5" in found["caption"]
        with Image.open(tmp_path / found["image"]) as image:
            assert image.width > image.height > 96


def test_neighbours_are_those_of_the_embedding(tmp_path: Path, data: FASCODE, module: Any) -> None:
    evaluate(tmp_path, data, module, Neighbours(**NEAR | {"queries": 5, "count": 10}))
    (found,) = read(tmp_path / "pictures/neighbours.json")
    with torch.no_grad():
        rows = torch.nn.functional.normalize(module.eval().embed({"image": pixels_of(data, "test", np.arange(5))}))
    alike, labels = (rows @ rows.T).fill_diagonal_(-1), data.splits["test"].labels["Daily"]
    best = alike.argsort(descending=True)[:, :4]
    assert found["neighbours"] == best[found["query"]].tolist(), "all four others, though ten were asked for"
    assert found["precision"] == pytest.approx(np.mean(labels[best.numpy()] == labels[:, None]))


def test_neighbours_of_a_resumed_fit_are_those_from_before_it(tmp_path: Path, data: FASCODE, module: Any) -> None:
    callback = Neighbours(**NEAR)
    toy_fashion.trainer(tmp_path, callback, max_epochs=1).fit(module, datamodule=data)
    resumed = Neighbours(**NEAR)
    resumed.load_state_dict(callback.state_dict())
    toy_fashion.trainer(tmp_path, resumed, max_epochs=1).fit(module, datamodule=data)
    assert resumed.before is callback.before


def test_others_leave_the_photo_itself_out() -> None:
    place = np.array([[0, 2], [0, 1], [0, 1]])  # the third is not even among its equals
    cosine = np.array([[1, 0.5], [1, 0.9], [1, 0.8]], np.float32)
    values, places = others(cosine, place)
    assert places.tolist() == [[2], [0], [0]]
    assert values[:, 0].tolist() == pytest.approx([0.5, 1, 1])


def test_map_shows_where_photos_lie(tmp_path: Path, data: FASCODE, module: Any) -> None:
    evaluate(tmp_path, data, module, EmbeddingMap(**MAP))
    (found,) = read(tmp_path / "pictures/embedding_map.json")
    assert {point["name"] for point in found["points"]} == {data.name("test", at) for at in range(5)}
    assert "5 test photos, the first two principal components" in found["caption"]
    assert re.search(r"orange: \S", found["caption"])
    with Image.open(tmp_path / found["image"]) as image:
        assert max(image.size) == embedding_map.SIDE
        assert len(image.getcolors(100_000)) > 20, "thumbnails, not dots alone"


def test_principal_components_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    spread = np.array([5, 3, 0.1, 0.1], np.float32)
    some = rng.standard_normal((400, 4), dtype=np.float32) * spread + 7
    points, said = principal(some)
    assert np.abs(np.corrcoef(points.T, some[:, :2].T)[:2, 2:]).diagonal().min() > 0.99
    assert "100%" in said
    assert principal(np.ones((4, 3), np.float32))[0].tolist() == [[0, 0]] * 4


def test_map_keeps_its_proportions_and_points_up() -> None:
    places = on_page(np.array([[0, 0], [10, 0], [5, 2]], np.float32))
    inner = embedding_map.SIDE - 2 * embedding_map.MARGIN
    assert (places - embedding_map.MARGIN).tolist() == [
        [0, round(inner / 5)],
        [inner, round(inner / 5)],
        [inner // 2, 0],
    ]
    assert apart(np.array([[0, 0], [5, 9], [10, 0], [3, 30]]), 10) == [0, 2, 3]


class Umap:
    """Stands in for the package."""

    def __init__(self, **settings: Any) -> None:
        assert settings["n_neighbors"] == 4

    def fit_transform(self, vectors: np.ndarray) -> np.ndarray:
        return vectors[:, :2]


def test_umap_is_used_if_it_is_there(
    tmp_path: Path, data: FASCODE, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_map.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install umap-learn"):
        EmbeddingMap(**MAP | {"method": "umap"})
    monkeypatch.setattr(embedding_map.util, "find_spec", lambda name: True)
    monkeypatch.setattr(embedding_map, "import_module", lambda name: SimpleNamespace(UMAP=Umap))
    evaluate(tmp_path, data, module, EmbeddingMap(**MAP | {"method": "umap"}))
    assert "UMAP by cosine with 4 neighbours" in read(tmp_path / "pictures/embedding_map.json")[0]["caption"]


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [(EmbeddingMap, MAP | {"method": "tsne"}, "not one of pca, umap"), (EmbeddingMap, MAP | {"photos": 2}, "3 or more"),
     (Neighbours, NEAR | {"count": 0}, r"neighbours\.count=0"), (Neighbours, NEAR | {"gallery": 1}, "2 or more")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**settings)


def test_sheet_puts_each_picture_into_its_cell() -> None:
    red = torch.zeros(3, 8, 4, dtype=torch.uint8)
    red[0] = 200
    page = sheet([[red, None], [None, red.repeat(1, 40, 40)]], [["a", ""], ["", "0.5"]], side=16, gap=2)
    assert page.size == (2 + 2 * 18, 2 + 2 * (16 + 14 + 2))
    assert page.getpixel((2 + 8, 2 + 8)) == (200, 0, 0)
    assert page.getpixel((2 + 1, 2 + 8)) == (255, 255, 255), "a narrow picture keeps its shape"
    assert page.getpixel((20 + 8, 2 + 8)) == (255, 255, 255)
    assert page.getpixel((20 + 8, 34 + 8)) == (200, 0, 0)
    assert thumbnail(red, 16).size == (8, 16)


def some_picture(title: str, colour: str) -> Picture:
    return Picture(title, Image.new("RGB", (6, 4), colour), "caption & <b>", {"figures": [1.5]})


def test_report_shows_the_pictures_of_all_callbacks(tmp_path: Path) -> None:
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit/data.json").write_text('{"root": "x"}')
    write_pictures(tmp_path / "fit", "b", [some_picture("from b", "red")])
    write_pictures(tmp_path / "fit", "a", [some_picture("from <a>", "blue"), some_picture("second", "green")])
    write_pictures(tmp_path / "fit", "b", [some_picture("from b again", "red")])
    assert read(tmp_path / "fit/pictures/b.json")[0]["figures"] == [1.5]
    Image.new("RGB", (4, 4)).save(tmp_path / "private.png")
    entry = {"title": "outside", "image": "../private.png", "caption": ""}
    (tmp_path / "fit/pictures/c.json").write_text(json.dumps([entry]))
    (tmp_path / "fit/pictures/d.json").write_text('[{"title": "cut sh')
    page = write_report(tmp_path).read_text(encoding="utf-8")
    section = page[page.index("<h2>Pictures</h2>") : page.index("</section>", page.index("<h2>Pictures</h2>"))]
    titles = [section.index(word) for word in ("from &lt;a&gt;", "second", "from b again", "outside")]
    assert titles == sorted(titles)
    assert section.count("caption &amp; &lt;b&gt;") == 3
    shown = [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([^\"]+)", section)]
    assert shown == [(tmp_path / f"fit/pictures/{name}.png").read_bytes() for name in ("a-1", "a-2", "b-1")]
    assert "no picture" in section
    assert "d.json:" in page


def test_report_without_pictures_has_no_such_section(tmp_path: Path) -> None:
    assert "<h2>Pictures</h2>" not in write_report(tmp_path).read_text(encoding="utf-8")
