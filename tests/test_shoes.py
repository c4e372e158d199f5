"""Shoes: the two layouts, splits that belong to each brand alone, the views, and what is wrong with a shop's photos."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.product_views import OTHERS
from datamodules.products import coprime, mappings, near_duplicates, share_out
from datamodules.shoes import Shoes
from tests.conftest import only_run

BRANDS = {"Nike": 4, "Inc 5": 3, "눈치": 2}  # products, of five photos each


def shoes(root: Path, **changes: Any) -> Shoes:
    settings: dict[str, Any] = {
        "batch_size": 4, "seed": 0, "threads": 1, "on_leak": "error", "on_bad_image": "error", "image_size": 16,
        "fit": "letterbox", "min_photos": 1, "val_share": 0.2, "test_share": 0.2, "near_duplicates": None,
        "brand": None, "others": 0, "mapping": {"index": None, "functions": 2, "classes": 3}, "train_on": "train",
        "augment": None,
    }  # fmt: skip
    return Shoes(root, **(settings | changes))


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path, quality=95)


def draw(root: Path, brands: Mapping[str, int]) -> Path:
    """Five photos of noise for each of so many products of each brand."""
    number = 0
    for brand, products in brands.items():
        for product in range(products):
            for photo in range(5):
                picture(root / brand / f"model {product}" / f"{photo}.jpg", number := number + 1)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw(tmp_path / "shoes", BRANDS)


def names(data: Shoes) -> dict[str, set[str]]:
    data.setup()
    return {split: {data.name(split, at) for at in range(len(photos))} for split, photos in data.splits.items()}


def test_every_product_is_in_train_and_no_photo_in_two_splits(root: Path) -> None:
    data = shoes(root)
    found = names(data)
    assert {split: len(each) for split, each in found.items()} == {"train": 27, "val": 9, "test": 9}
    assert set(data.splits["train"].labels["product"].tolist()) == set(range(9))
    assert len(set.union(*found.values())) == 45
    assert data.facts["classes"]["brand"] == ["Inc 5", "Nike", "눈치"]
    assert data.facts["classes"]["product"][0] == "Inc 5/model 0"
    brand_of = np.array(data.facts["brand_of"])
    for photos in data.splits.values():
        assert (brand_of[photos.labels["product"]] == photos.labels["brand"]).all()


def test_a_brand_that_is_added_moves_no_photo_of_another(root: Path) -> None:
    before = names(shoes(root))
    for photo in range(5):
        picture(root / "Adidas" / "one" / f"{photo}.jpg", 900 + photo)
    after = names(shoes(root))
    assert all(before[split] <= after[split] for split in before)
    assert names(shoes(root, seed=1)) != after


def test_an_expert_sees_the_split_of_its_brand_and_nothing_else(root: Path) -> None:
    whole, expert = names(shoes(root)), shoes(root, brand="Nike")
    assert names(expert) == {split: {n for n in each if n.startswith("Nike/")} for split, each in whole.items()}
    assert expert.facts["classes"]["product"] == [f"Nike/model {at}" for at in range(4)]
    assert expert.facts["others"] == []


def test_others_are_a_class_of_their_own_out_of_the_same_split(root: Path) -> None:
    whole, expert = names(shoes(root)), shoes(root, brand="Nike", others=1)
    found = names(expert)
    for split, each in found.items():
        labels, strange = expert.splits[split].labels["product"], [not n.startswith("Nike/") for n in sorted(each)]
        assert each <= whole[split]
        assert (labels == 4).sum() == sum(strange) == min(len(each) / 2, len(whole[split]) - len(each) / 2)
    assert expert.facts["classes"]["product"][-1] == OTHERS
    assert expert.facts["others"] == ["Inc 5", "눈치"]


def test_a_table_says_the_same_as_folders_and_may_say_the_split(root: Path) -> None:
    rows = []
    for at, path in enumerate(sorted(root.rglob("*.jpg"))):
        brand, product, _ = path.relative_to(root).parts
        rows.append([path.relative_to(root).as_posix(), brand, product, ("train", "validation", "test")[at % 3]])
    folders = names(shoes(root))

    def table(columns: list[str]) -> None:
        with (root / "photos.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *(row[: len(columns)] for row in rows)])

    table(["image", "brand", "product"])
    assert names(shoes(root)) == folders
    table(["image", "brand", "product", "split"])
    assert names(shoes(root))["val"] == {row[0] for row in rows if row[3] == "validation"}
    rows[0][3] = "training set"
    table(["image", "brand", "product", "split"])
    with pytest.raises(ValueError, match=r"photos.csv row 2: split='training set' is none of train, val, test"):
        names(shoes(root))
    rows[0] = [rows[1][0], "Nike", "", "train"]
    table(["image", "brand", "product", "split"])
    with pytest.raises(
        ValueError, match=r"row 2: image, brand and product must not be empty; .*row 3: .* listed before"
    ):
        names(shoes(root))


def test_a_brand_name_may_hold_a_slash_in_a_table(root: Path) -> None:
    rows = [
        [p.relative_to(root).as_posix(), "A/B" if "Nike" in p.parts else "C", p.parts[-2]] for p in root.rglob("*.jpg")
    ]
    with (root / "photos.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image", "brand", "product"], *rows])
    assert shoes(root).choices("brand") == ["A/B", "C"]
    assert shoes(root, brand="A/B").split("train").labels["product"].max() == 3


def test_a_product_with_one_photo_is_learned_and_not_judged_or_left_out(root: Path) -> None:
    picture(root / "Nike" / "rare" / "0.jpg", 500)
    data = shoes(root)
    rare = data.split("train") and data.facts["classes"]["product"].index("Nike/rare")
    assert (data.splits["train"].labels["product"] == rare).sum() == 1
    assert "test: no photo of 1 product, which have none to spare" in data.notes
    fewer = shoes(root, min_photos=2)
    assert "Nike/rare" not in (fewer.split("train") and fewer.facts["classes"]["product"])
    assert "left out, fewer than min_photos=2: 1 product, first Nike/rare" in fewer.notes
    with pytest.raises(ValueError, match="min_photos=9 leaves no product"):
        names(shoes(root, min_photos=9))


def test_a_photo_of_two_products_is_refused_or_dropped(root: Path) -> None:
    shutil.copy(root / "Nike/model 0/0.jpg", root / "Nike/model 1/again.jpg")
    shutil.copy(root / "Nike/model 2/0.jpg", root / "Nike/model 2/copy.jpg")
    with pytest.raises(ValueError, match=r"1 photo shown as more than one product, first Nike/model 0/0.jpg = Nike/"):
        names(shoes(root))
    data = shoes(root, on_leak="drop")
    assert sum(map(len, names(data).values())) == 45 - 1
    assert "copies of photos of the same product left out: 1" in data.notes


def test_a_brand_of_one_product_needs_others(root: Path) -> None:
    shutil.rmtree(root / "눈치/model 1")
    with pytest.raises(ValueError, match=r"눈치 has one product only.*set others=1"):
        shoes(root).choices("brand")
    assert shoes(root, others=1).choices("brand") == ["Inc 5", "Nike", "눈치"]
    assert len(shoes(root, brand="눈치", others=1).split("train")) == 6
    with pytest.raises(ValueError, match="each=colour"):
        shoes(root).choices("colour")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"brand": "Nikee"}, "brand='Nikee': .* has Inc 5, Nike, 눈치"),
        ({"test_share": 0.9}, "val_share=0.2 and test_share=0.9"),
        ({"others": -1}, "others=-1"),
        ({"train_on": "test"}, "train_on='test' is neither train nor val"),
        ({"mapping": {"index": 2, "functions": 2, "classes": 3}}, "mapping.index=2 is none of 0 to 1"),
        ({"mapping": {"index": 0, "functions": 2, "classes": 2}}, "tell 6 products apart, there are 9"),
        ({"mapping": {"index": 0}}, "classes, functions"),
    ],
)
def test_wrong_settings_are_one_sentence(root: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        names(shoes(root, **changes))


def test_nothing_there_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected <brand>/<product>/\*.jpg, or a CSV"):
        shoes(tmp_path / "shoes").setup()


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    for product in range(2):
        for view in range(4):
            path = tmp_path / "shoes" / "Nike" / str(product) / f"{view}.png"
            picture(path, 10 * product + view)
            shifted = np.clip(np.asarray(Image.open(path), dtype=int) + 3, 0, 255).astype(np.uint8)
            Image.fromarray(shifted).save(path.with_name(f"{view}-lighter.png"))
    shutil.copytree(tmp_path / "shoes/Nike", tmp_path / "shoes/Puma")
    for path in (tmp_path / "shoes/Puma").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    data = shoes(tmp_path / "shoes", near_duplicates=4)
    for each in names(data).values():
        assert all(name.replace(".png", "-lighter.png") in each for name in each if "lighter" not in name)


def test_share_out_gives_each_part_its_share_and_every_product_to_the_first() -> None:
    rng = np.random.default_rng(0)
    products = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    part = share_out(products, np.arange(len(products)), [0.2, 0.15], rng)
    assert [(part == at).sum() for at in (1, 2)] == [round(0.2 * len(part)), round(0.15 * len(part))]
    assert set(products[part == 0]) == set(range(40))
    assert len(near_duplicates([], np.zeros(0, dtype=np.int64), 3, 1)) == 0


@pytest.mark.parametrize(("products", "functions", "classes"), [(9, 2, 3), (358, 3, 20), (600, 2, 24)])
def test_every_pair_of_products_is_told_apart_by_some_mapping(products: int, functions: int, classes: int) -> None:
    tables = np.stack(mappings(products, functions, classes, seed=3))
    assert len(np.unique(tables, axis=1).T) == products
    assert all(np.gcd(a, b) == 1 for a, b in combinations(coprime(functions, classes), 2))
    assert all(table.max() < classes + 8 for table in tables)


def test_a_mapping_is_a_view_on_the_same_split(root: Path) -> None:
    whole, mapped = shoes(root), shoes(root, mapping={"index": 1, "functions": 2, "classes": 3})
    assert names(whole) == names(mapped)
    table = np.array(mapped.facts["mapping"])
    for split, photos in mapped.splits.items():
        assert (table[whole.splits[split].labels["product"]] == photos.labels["product"]).all()
    assert mapped.facts["products"] == whole.facts["classes"]["product"]
    assert len(mapped.facts["classes"]["product"]) == table.max() + 1


def test_calibration_trains_on_val_and_the_samples_have_every_script(tmp_path: Path) -> None:
    Shoes.draw_sample(tmp_path / "shoes")
    data = shoes(tmp_path / "shoes", train_on="val")
    data.setup()
    assert data.splits["train"] is data.splits["val"]
    assert len(data.splits["learned"]) > len(data.splits["val"])
    assert data.facts["classes"]["brand"] == ["Aurora", "Bolt & Sons", "Volta 5", "눈치"]
    assert not set(data.facts["held_out"]) & set(data.facts["trained_on"])


def test_a_planted_error_shows_another_product_and_its_brand_in_every_view(root: Path) -> None:
    plain, wrong = shoes(root), shoes(root, labels={"flip": 0.3})
    assert names(plain) == names(wrong)
    before, after = plain.splits["train"].labels, wrong.splits["train"].labels
    assert (before["product"] != after["product"]).sum() == round(0.3 * 27)
    assert (np.array(wrong.facts["brand_of"])[after["product"]] == after["brand"]).all()
    for task in ("product", "brand"):
        assert (wrong.planted[task] == (before[task] != after[task])).all()
    for split in ("val", "test"):
        assert (plain.splits[split].labels["product"] == wrong.splits[split].labels["product"]).all()
    for brand in BRANDS:
        expert = shoes(root, brand=brand, labels={"flip": 0.3})
        here = {wrong.name("train", at) for at in np.flatnonzero(after["brand"] == brands(wrong).index(brand))}
        assert names(expert)["train"] == here
        assert any(note.startswith("labels: ") and note.endswith(", of all brands") for note in expert.notes)
    mapped = shoes(root, mapping={"index": 0, "functions": 2, "classes": 3}, labels={"flip": 0.3})
    mapped.setup()
    table = np.array(mapped.facts["mapping"])
    assert (mapped.splits["train"].labels["product"] == table[after["product"]]).all()


def brands(data: Shoes) -> list[str]:
    found: list[str] = data.facts["classes"]["brand"]
    return found


def verdicts(path: Path, *rows: str) -> dict[str, str]:
    path.write_text("\n".join(["photo,task,label,action,relabel_to", *rows]), encoding="utf-8")
    return {"kept": str(path)}


def test_verdicts_are_obeyed_by_every_expert(root: Path, tmp_path: Path) -> None:
    """One photo of Nike is thought to show a product of another brand, one to show nothing that is known."""
    first, second = sorted(name for name in names(shoes(root))["train"] if name.startswith("Nike/"))[:2]
    said = [f"{name},product,{name.rpartition('/')[0]}" for name in (first, second)]
    kept = verdicts(tmp_path / "kept.csv", f"{said[0]},relabel,Inc 5/model 0", f"{said[1]},drop,")
    whole = shoes(root, labels=kept)
    photos = whole.split("train")
    at = [whole.names("train").index(name) for name in (first, second)]
    assert brands(whole)[photos.labels["brand"][at[0]]] == "Inc 5"
    assert photos.labels["product"][at[1]] == -1
    assert brands(whole)[photos.labels["brand"][at[1]]] == "Nike", "only the label of the suspicious task is masked"
    for others in (0, 1):
        nike, inc = (shoes(root, brand=brand, labels=kept, others=others) for brand in ("Nike", "Inc 5"))
        assert second not in names(nike)["train"] | names(inc)["train"]
        moved = inc.splits["train"].labels["product"][inc.names("train").index(first)]
        assert inc.facts["classes"]["product"][moved] == "Inc 5/model 0"
    mapped = shoes(root, labels=kept, mapping={"index": 0, "functions": 2, "classes": 3})
    assert (mapped.split("train").labels["product"] == -1).nonzero()[0].tolist() == [at[1]]
    beside = shoes(root, brand="Nike", labels=kept, unlabelled={"source": "dropped", "ratio": 1})
    assert "unlabelled: 1 photos (dropped), 1 for each labelled one of a batch" in (beside.setup() or beside.notes)
    with pytest.raises(ValueError, match="none of keep, drop, relabel"):
        names(shoes(root, labels=verdicts(tmp_path / "kept.csv", f"{said[0]},move,")))


def test_labels_are_judged_where_all_products_are_learned(root: Path) -> None:
    data = shoes(root, labels={"threshold": 0})
    data.setup()
    assert data.fake_class == data.facts["classes"]["product"][-1] == data.facts["classes"]["brand"][-1]
    for view in ({"brand": "Nike"}, {"mapping": {"index": 0, "functions": 2, "classes": 3}}):
        with pytest.raises(ValueError, match=r"labels.threshold=0 judges labels where all products are learned"):
            shoes(root, labels={"threshold": 0}, **view)
    with pytest.raises(ValueError, match=r"labels.threshold=0 judges labels where all products are learned"):
        data.choices("brand")
    for setting in ({"labels": {"flip": 0.1}}, {"unlabelled": {"source": "train"}}):
        with pytest.raises(ValueError, match="train_on=val calibrates on photos as they are labelled"):
            shoes(root, train_on="val", **setting)


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def test_margins_judge_products_and_the_next_run_obeys(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    common = [
        "experiment=supervised", "sample=true", "logger=none", "trainer.accelerator=cpu", "trainer.precision=32-true",
        "datamodules@stages.fit.data=shoes", "stages.fit.module.encoder.name=test_resnet", "trainer.max_epochs=2",
        "stages.fit.data.image_size=32", "stages.fit.data.batch_size=16", "stages.fit.data.labels.flip=0.2",
    ]  # fmt: skip
    margins = ["callbacks@stages.fit.callbacks=[best,margins]", "stages.fit.data.labels.threshold=0"]
    code, printed = cli(*common, *margins, f"out_dir={tmp_path / 'judged'}")
    assert code == 0, printed
    judged = only_run(tmp_path / "judged", "supervised") / "fit"
    assert {row["task"] for row in rows_of(judged / "margins.csv")} == {"product"}
    summary = json.loads((judged / "margins.json").read_text(encoding="utf-8"))["product"]
    assert 0.1 * summary["judged"] < summary["planted"] < 0.3 * summary["judged"]
    dropped = sum(row["action"] == "drop" for row in rows_of(judged / "kept.csv"))
    assert dropped == summary["suspicious"] > 0
    obeyed = [f"stages.fit.data.labels.kept={judged / 'kept.csv'}", "callbacks@stages.fit.callbacks=[best]"]
    code, printed = cli(*common, *obeyed, f"out_dir={tmp_path / 'obeyed'}")
    assert code == 0, printed
    assert f"labels: {dropped} product labels dropped, 0 changed" in printed
