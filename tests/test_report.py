"""The report shows what a run folder holds, whatever is missing, and loads nothing from anywhere."""

import base64
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from engine import plots, sections
from engine.record import read_run
from engine.report import write_answers, write_report
from engine.results import constant_answer, figure, majority, split_key

CLASSES = {"종류": ["상의", "하의", "<script>alert('x')</script>"], "Gender": ["men", "$wo_men$"]}
MATRICES = {"종류": [[8, 1, 1], [2, 5, 3], [0, 0, 4]], "Gender": [[9, 3], [2, 10]]}
SCORES = {"종류": {"top1": 0.7083, "f1": 0.7}, "Gender": {"top1": 0.7917, "f1": 0.79}}
FILES = ("metrics.jsonl", "data.json", "parameters.json", "confusion.json", "examples.json")


class Page(HTMLParser):
    """A page taken apart: elements with attributes, text, table rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.style = ""
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] == "style":
            self.style += data
            return
        self.words.append(data)
        if {"td", "th"} & set(self.inside) and self.rows:
            self.rows[-1][-1] += data.strip()

    def row(self, first: str) -> list[str]:
        """The first row that begins with this cell."""
        return next(row for row in self.rows if row and row[0] == first)

    def pictures(self) -> list[bytes]:
        """The content of every embedded picture."""
        sources = [attrs["src"] or "" for tag, attrs in self.elements if tag == "img"]
        return [base64.b64decode(source.partition(",")[2]) for source in sources]


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_stage(run: Path, name: str, epochs: int = 3) -> None:
    """What engine and callbacks leave of one finished stage."""
    folder = run / name
    scores = {f"{task}/{metric}": value for task, each in SCORES.items() for metric, value in each.items()}
    scores |= {"top1": 0.75, "f1": 0.745, "loss": 0.9}
    rows: list[dict[str, Any]] = []
    for epoch in range(epochs):
        rows += [
            {"step": 4 * epoch + i, "epoch": epoch, "time": 1.0, "train/loss": 2 / (1 + epoch + i)} for i in range(4)
        ]
        last = {f"val/{key}": value * (epoch + 1) / epochs for key, value in scores.items()}
        rows.append({"step": 4 * epoch + 3, "epoch": epoch, "time": 1.0} | last)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    put(folder / "confusion.json", {"test": {t: {"classes": CLASSES[t], "matrix": m} for t, m in MATRICES.items()}})
    modules = [("encoder", 1234567, 0), ("heads", 4321, 4321)]
    table = [
        {"module": m, "parameters": n, "trainable": t, "frozen": n - t, "normalisation_locked": 0}
        for m, n, t in modules
    ]
    put(folder / "parameters.json", table)
    counts = {task: {name: 10 + i for i, name in enumerate(names)} for task, names in CLASSES.items()}
    notes = ["3 groups of exact duplicates <kept>"]
    data = {"root": "data/옷", "counts": {"train": 1200, "test": 24}, "classes": {"train": counts}, "notes": notes}
    put(folder / "data.json", data | {"target": "datamodules.fascode.FASCODE", "sample": True})
    (folder / "examples").mkdir()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(folder / "examples" / "0001.png")
    answers = [{"task": "종류", "truth": "상의", "guess": CLASSES["종류"][2], "confidence": 0.875}]
    answers += [{"task": "Gender", "truth": None, "guess": "men", "confidence": 0.5}]
    put(
        folder / "examples.json",
        [{"image": "examples/0001.png", "name": "Test/사진.jpg", "right": False, "answers": answers}],
    )
    metrics = {f"{split}/{key}": value for split in ("val", "test") for key, value in scores.items()}
    done = {"stage": name, "metrics": metrics, "seconds": {"build": 1.5, "fit": 75.0, "test": 2.0}, "epochs": epochs}
    put(run / f"{name}.json", done | {"best": {"epoch": 1, "metric": "val/top1", "value": 0.8125}, "data_wait": 0.04})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two stages on samples."""
    folder = tmp_path / "run"
    for name in ("probe", "tune"):
        write_stage(folder, name)
    theirs = {
        "cite": "Kim & Lee, 2022",
        "note": "Their data.",
        "figures": {"test/top1": 0.61672, "test/Gender/top1": 0.59},
    }
    module = {
        "_target_": "lightning_modules.fashion_mtl.FashionMTL",
        "encoder": {"name": "resnet18", "weights": "none"},
    }
    stage = {"module": module, "data": {"_target_": "datamodules.fascode.FASCODE"}, "trainer": {"max_epochs": 3}}
    config = {"experiment": "fashion_mtl", "metric": "val/top1", "mode": "max", "theirs": theirs, "only": None}
    text = yaml.safe_dump(config | {"stages": {"probe": stage, "tune": stage}}, allow_unicode=True, sort_keys=False)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    known = {
        "command": "python run.py experiment=fashion_mtl 'x=<b>'",
        "created": "2026-01-02T03:04:05+09:00",
        "seed": 7,
    }
    known |= {"git": {"commit": "abc1234", "dirty": True}, "versions": {"torch": "2.14.1"}, "device": "cpu"}
    put(
        folder / "environment.json",
        known | {"python": "3.11.7", "sample": True, "experiment": "fashion_mtl", "world_size": 2},
    )
    return folder


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_report_tells_the_run(run: Path) -> None:
    page = page_of(run)
    told_of_run = ["fashion_mtl", "0.8125", "Chosen after epoch 2 of 3 in stage tune", "DRAWN SAMPLES", "FashionMTL"]
    told_of_data = [
        "data/옷",
        "1,200 pictures",
        "3 groups of exact duplicates <kept>",
        "Test/사진.jpg",
        "88%",
        "no label",
    ]
    told_of_machine = [
        "1 min 15 s",
        "4.0%",
        "torch 2.14.1",
        "abc1234 with uncommitted changes",
        "resnet18, weights none",
    ]
    command = "python run.py experiment=fashion_mtl 'x=<b>'"
    for told in (*told_of_run, *told_of_data, *told_of_machine, command, "claims on its own data", "Kim & Lee, 2022"):
        assert told in page.text, told
    assert page.row("encoder") == ["encoder", "1,234,567", "0", "1,234,567", "0"]
    assert page.row("all") == ["all", "1,238,888", "4,321", "1,234,567", "0"]


def test_results_stand_beside_baseline_and_source(run: Path) -> None:
    page = page_of(run)
    tables = [row for row in page.rows if row and row[0] == "top-1"]
    assert tables[0][1:] == ["0.7500", "0.7500", figure((10 / 24 + 12 / 24) / 2)]
    assert tables[1][-1] == "0.6167", "the source's figure belongs to the stage that the run is judged by"
    genders = [row for row in page.rows if row and row[0] == "Gender"]
    assert genders[0] == ["Gender", "0.7917", "0.5000", "0.7900"]
    assert genders[2] == ["Gender", "0.7917", "0.5000", "0.5900", "0.7900"], "with the source's own column"


def test_a_summed_loss_is_not_called_a_mean(run: Path) -> None:
    done = json.loads((run / "tune.json").read_text(encoding="utf-8"))
    done["metrics"] |= {"test/종류/loss": 0.5, "test/Gender/loss": 0.4}
    put(run / "tune.json", done)
    page = page_of(run)
    assert page.row("loss of all")[1] == "0.9000"
    means = [row for row in page.rows if row and row[0] == "mean"]
    assert [row[-1] for row in means] == ["0.7450", "0.7450", "", ""]


def test_page_loads_nothing(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attrs.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attrs)
        assert "url(" not in (attrs.get("style") or "")
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert "prefers-color-scheme: dark" in page.style
    for picture in page.pictures():
        if picture.startswith(b"<svg"):
            assert b"prefers-color-scheme:dark" in picture
            assert not re.findall(rb'(?:href|src)="(?!#)', picture)


def test_names_are_text_not_markup(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
    for korean in ("상의", "하의", "종류"):
        assert korean in html


@pytest.mark.parametrize(
    "missing", [*FILES, "examples/0001.png", "../config.yaml", "../environment.json", "../tune.json"]
)
def test_a_missing_file_costs_only_its_section(run: Path, missing: str) -> None:
    for stage in ("probe", "tune"):
        (run / stage / missing).unlink(missing_ok=True)
    page = page_of(run)
    gone = {"metrics.jsonl": "Learning curves", "data.json": "exact duplicates", "parameters.json": "What was trained"}
    gone |= {"confusion.json": "commonest mistakes", "examples.json": "answered wrong"}
    for file, told in gone.items():
        assert (told in page.text) == (file != missing), told
    assert ("UNFINISHED" in page.text) == (missing == "../tune.json")
    assert ("no picture" in page.text) == (missing == "examples/0001.png")


@pytest.mark.parametrize("file", ["tune/confusion.json", "environment.json", "config.yaml", "tune.json"])
def test_a_damaged_file_is_named(run: Path, file: str) -> None:
    (run / file).write_text('{"half": [1, ', encoding="utf-8")
    assert f"{Path(file).name}:" in page_of(run).text


def test_a_file_of_another_shape_is_named(run: Path) -> None:
    put(run / "tune/examples.json", {"not": "a list"})
    assert "examples.json: holds a dict, not a list" in page_of(run).text


def test_empty_folder_gets_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "UNFINISHED" in page.text
    assert "No result was written" in page.text


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder; a run folder"):
        write_report(tmp_path / "nowhere")


def test_failure_is_shown_with_what_there_is(run: Path) -> None:
    (run / "tune.json").unlink()
    put(run / "failure.json", {"stage": "tune", "error": "the loss is nan <here>", "where": "epoch 2"})
    page = page_of(run)
    assert "Failed in tune the loss is nan <here> epoch 2" in page.text
    assert "The best so far, after epoch 3 in stage tune; not finished." in page.text
    assert page.row("probe")[-1] == "finished"
    assert page.row("tune")[-1] == "failed"


def test_failure_before_any_stage(tmp_path: Path) -> None:
    put(tmp_path / "failure.json", {"stage": None, "error": "no data in data/fascode", "where": "x"})
    assert "Failed no data in data/fascode" in page_of(tmp_path).text


def test_killed_run_shows_its_last_validation(run: Path) -> None:
    (run / "tune.json").unlink()
    rows = run / "tune/metrics.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8") + '{"step": 12, "epoch": 3, "train/lo', encoding="utf-8")
    page = page_of(run)
    assert "so far: last validation, in epoch 3" in page.text
    assert "UNFINISHED" in page.text


def test_numbers_that_are_none(run: Path) -> None:
    done = json.loads((run / "tune.json").read_text(encoding="utf-8"))
    done |= {"best": {"epoch": 0, "metric": "val/top1", "value": None}, "data_wait": math.nan}
    done["metrics"] |= {"test/loss": math.nan, "val/loss": math.inf}
    put(run / "tune.json", done)
    with (run / "tune/metrics.jsonl").open("a", encoding="utf-8") as rows:
        rows.write('{"step": 12, "epoch": 3, "train/loss": NaN}\n{"step": 13, "epoch": 3, "val/loss": Infinity}\n')
    page = page_of(run)
    assert ["loss of all", "nan", "inf"] in [row[:3] for row in page.rows]


def test_stages_of_each_item_stand_in_the_place_of_their_parent(run: Path) -> None:
    for brand in ("나이키", "adidas"):
        write_stage(run, f"expert/{brand}")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["stages"] = {"expert": config["stages"]["probe"], "tune": config["stages"]["tune"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    names = [stage.name for stage in read_run(run).stages]
    assert names == ["expert/adidas", "expert/나이키", "tune", "probe"]
    assert read_run(run).stages[0].metrics["test/top1"] == 0.75


def test_many_stages_are_folded_and_a_rule_that_answers_is_no_mean(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    names = [f"expert/{item}" for item in "abc"]
    for name in names:
        write_stage(run, name)
    joined = config["stages"]["tune"] | {"module": {"_target_": "x.BrandExperts", "decoding": "scaled"}}
    config["stages"] = {"expert": config["stages"]["probe"], "tune": joined}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.rmtree(run / "probe")
    (run / "probe.json").unlink()
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert page.text.index("tune By the rule that answers, scaled") < page.text.index("expert/a: top-1 0.7500 (test)")
    assert "By each rule" in page.text
    assert "Mean over the tasks" in page.text, "those of the experts"
    assert not any(row[:1] == ["mean"] for row in page.rows[: page.rows.index(page.row("종류")) + 4])
    assert html.count("<details open>") == html.count("<summary>tune</summary>")
    assert "3 more stages" in page.text


def test_stages_not_asked_for_do_not_make_a_run_unfinished(run: Path) -> None:
    shutil.rmtree(run / "tune")
    (run / "tune.json").unlink()
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"only": ["probe"]}, sort_keys=False), encoding="utf-8")
    assert read_run(run).state == "finished"
    assert page_of(run).row("tune")[-1] == "not asked for"


def test_pictures_outside_the_run_are_not_embedded(run: Path) -> None:
    Image.new("RGB", (4, 4)).save(run.parent / "private.png")
    examples = json.loads((run / "tune/examples.json").read_text(encoding="utf-8"))
    put(run / "tune/examples.json", [examples[0] | {"image": "../../private.png"}])
    assert sections.examples(read_run(run).stages[1])["wrong"][0]["uri"] is None


def test_writing_leaves_nothing_aside(run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    write_report(run)
    first = (run / "report.html").read_bytes()
    write_report(run)
    assert {path.name for path in run.iterdir()} == before | {"report.html"}
    assert (run / "report.html").read_bytes() == first, "the same files make the same page"


@pytest.mark.parametrize("font", [True, False])
def test_names_that_no_font_draws_get_a_legend(run: Path, monkeypatch: pytest.MonkeyPatch, font: bool) -> None:
    """Warnings are errors here, so a glyph that is missing in the font fails the test as well."""
    if font and plots.hangul_font() is None:
        pytest.skip("no font with Hangul on this machine")
    if not font:
        monkeypatch.setattr(plots, "hangul_font", lambda: None)
    text = page_of(run).text
    assert ("0 = 상의 1 = 하의" in text) is not font
    assert "= men" not in text
    assert "No font at hand" not in text or not font


def test_unknown_scripts_are_numbered_too() -> None:
    names, legend = plots.labels(["men", "\U000e0041\uf8ff", "a\u0000b"])
    assert names == ["men", "1", "2"]
    assert [number for number, _ in legend] == ["1", "2"]


def test_decomposed_hangul_is_composed() -> None:
    if plots.hangul_font() is None:
        pytest.skip("no font with Hangul on this machine")
    assert plots.labels(["\u1109\u1161\u11bc"])[0] == ["상"]


def test_running_mean_is_the_mean_of_the_window() -> None:
    values = [3.0, 1.0, math.nan, 4.0, 10.0, 0.0]
    for i, mean in enumerate(plots.smooth(values, 3)):
        window = [v for v in values[max(0, i - 1) : i + 2] if not math.isnan(v)]
        assert mean == pytest.approx(sum(window) / len(window))


def test_thinned_curve_keeps_its_end() -> None:
    thinned = plots.thin(list(range(10_001)), most=100)
    assert len(thinned) <= 101
    assert thinned[-1] == 10_000


def test_many_classes_are_reduced_without_losing_a_count() -> None:
    size = 50
    matrix = [[(40 if i == j else (i * j) % 5) for j in range(size)] for i in range(size)]
    matrix[7][9] = 1000
    small, names = plots.reduced(matrix, [f"c{i}" for i in range(size)])
    assert len(small) == len(names) == plots.MOST_CLASSES
    assert sum(map(sum, small)) == sum(map(sum, matrix))
    assert {"c7", "c9"} <= set(names)
    assert names[-1] == f"others ({size - plots.MOST_CLASSES + 1})"
    assert sum(small[names.index("c7")]) == sum(matrix[7])
    assert small[names.index("c7")][names.index("c9")] == 1000


def test_small_matrix_shows_counts_and_a_large_one_does_not() -> None:
    sizes = {n: plots.confusion([[n] * n for _ in range(n)], [str(i) for i in range(n)], "t").svg for n in (3, 30)}
    cells = {n: svg.count("text_") - 2 * n - 1 for n, svg in sizes.items()}
    assert cells == {3: 9, 30: 0}


def test_dollars_are_not_mathematics() -> None:
    name = r"$\nosuchcommand{$"
    assert plots.confusion([[1, 2], [3, 4]], [name, "b"], name).svg
    assert plots.curves([plots.Curve(name, [1, 2], [0.1, 0.2])], "epoch", name).svg


def test_majority_is_the_largest_true_class(run: Path) -> None:
    stage = read_run(run).stages[0]
    assert majority(stage, "test") == {"종류": 10 / 24, "Gender": 12 / 24}
    assert constant_answer(stage, "test") == pytest.approx((10 / 24 + 12 / 24) / 2)
    del stage.confusion["test"]["Gender"]
    assert constant_answer(stage, "test") is None, "a mean over fewer tasks would stand beside another one's mean"


def test_keys_come_apart() -> None:
    assert split_key("test/top1") == ("test", "", "top1")
    assert split_key("val/상의/하의/f1") == ("val", "상의/하의", "f1")


def test_answers_page(tmp_path: Path) -> None:
    Image.new("L", (400, 100), 200).save(tmp_path / "밝은.png")
    Image.new("I;16", (30, 40), 65535).save(tmp_path / "deep.png")
    best = {"종류": [("상의", 0.9), ("<script>", 0.1)]}
    answers = [
        {"path": tmp_path / "밝은.png", "answers": best, "box": (10, 10, 90, 60)},
        {"path": str(tmp_path / "deep.png"), "answers": best},
        {"path": "vanished.jpg", "answers": best},
        {"path": "broken <img>.jpg", "error": "the file ends early"},
    ]
    page = Page(
        write_answers(tmp_path / "answers.html", answers, "The whole photo was used.").read_text(encoding="utf-8")
    )
    assert "The whole photo was used." in page.text
    assert "1 could not be read broken <img>.jpg the file ends early" in page.text
    assert page.text.index("ends early") < page.text.index("상의 90%")
    assert "no picture" in page.text
    assert "script" not in {tag for tag, _ in page.elements}
    widths = [attrs["style"] for tag, attrs in page.elements if tag == "span" and attrs.get("class") == "bar"]
    assert widths[:2] == ["width:90.0%", "width:10.0%"]
    for number, picture in enumerate(page.pictures()):
        (tmp_path / f"{number}.jpg").write_bytes(picture)
        with Image.open(tmp_path / f"{number}.jpg") as thumbnail:
            assert max(thumbnail.size) <= 320
            if number == 0:
                assert thumbnail.getpixel((8, 20))[0] > thumbnail.getpixel((8, 20))[2] + 40, "the box is drawn"
            if number == 1:
                assert thumbnail.getpixel((5, 5))[0] > 240, "16 bits are scaled, not clipped to black"


def test_report_opens_in_a_browser(run: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    address = write_report(run).as_uri()
    shot = tmp_path / "page.png"
    command = [browser, *flags, "--window-size=900,1200", f"--screenshot={shot}", "--dump-dom", address]
    result = subprocess.run(command, capture_output=True, timeout=90, check=True)
    page = Page(result.stdout.decode())
    assert "DRAWN SAMPLES" in page.text
    assert "<script>alert('x')</script>" in page.text
    assert page.row("encoder")[1] == "1,234,567"
    assert len(page.pictures()) == len(page_of(run).pictures()) > 8
