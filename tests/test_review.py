"""The report's part on suspicious labels, and the way from a run's verdicts to the next stage."""

import base64
import csv
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from engine import review
from engine.record import Stage
from engine.report import write_report

CURVE = [-2.0, -1.0, 0.5]
SUMMARY = {
    "Daily": {
        "judged": 30, "suspicious": 4, "threshold": -0.5, "planted": 5, "precision": 0.75, "recall": 0.6,
        "classes": {"coat": {"judged": 20, "suspicious": 1}, "<b>dress</b>": {"judged": 10, "suspicious": 3}},
    }
}  # fmt: skip
WORST = {"image": "review/0001.png", "name": "Train/1.jpg", "task": "Daily", "label": "<b>dress</b>", "guess": "coat"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run/second"
    (folder / "review").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "review/0001.png")
    (folder / "margins.json").write_text(json.dumps(SUMMARY))
    shown = [{**WORST, "aum": -1.25, "threshold": -0.5, "margins": CURVE}]
    (folder / "review.json").write_text(json.dumps(shown))
    (folder / "metrics.jsonl").write_text('{"step": 0, "epoch": 0, "train/loss": 1.0}\n')
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump({"stages": {"second": {}, "fit": {}}}))
    return tmp_path / "run"


def test_the_report_shows_the_worst_labels_and_how_many_each_class_has(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert "Daily: 4 of 30 labels suspicious" in page
    assert "5 errors were planted: 60% of them found, 75% of the suspicious are planted." in page
    assert "labelled: &lt;b&gt;dress&lt;/b&gt;" in page
    assert "<b>dress</b>" not in page
    assert "Train/1.jpg" in page
    assert page.index("&lt;b&gt;dress") < page.index(">coat<"), "the class with the largest share comes first"


def test_a_run_without_margins_has_no_such_part(run: Path) -> None:
    for name in ("margins.json", "review.json"):
        (run / "second" / name).unlink()
    assert "Labels to look at" not in write_report(run).read_text(encoding="utf-8")


def test_a_damaged_list_leaves_the_rest(run: Path) -> None:
    (run / "second/review.json").write_text("[{")
    page = write_report(run).read_text(encoding="utf-8")
    assert "Daily: 4 of 30 labels suspicious" in page
    assert "review.json" in page, "named among what could not be read"


def test_curves_hold_every_epoch_and_the_threshold() -> None:
    for margins, threshold in ((CURVE, -0.5), ([0.0], 0.0), ([], 1.0)):
        picture = review.curve(margins, threshold)
        svg = base64.b64decode(picture.partition(",")[2]).decode()
        assert svg.count(",") == len(margins)
        assert "nan" not in svg
        assert "stroke-dasharray" in svg


def test_a_picture_that_is_gone_is_none(run: Path) -> None:
    (run / "second/review/0001.png").unlink()
    (suspect,) = review.suspects(Stage("second", run / "second", {}, []))
    assert suspect["uri"] is None


def edit(path: Path) -> list[dict[str, str]]:
    """What a person does: the first suspicious label gets another class, everything else is kept."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["action"] = "keep"
    rows[0] |= {"action": "relabel", "relabel_to": rows[0]["guess"]}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_the_next_run_obeys_what_a_person_edited(cli, tmp_path: Path) -> None:
    small = [
        "experiment=fashion_clean", "sample=true", "logger=none", "trainer.accelerator=cpu", "trainer.max_epochs=1",
        "stages.fit.module.encoder.name=test_resnet", "stages.fit.data.image_size=32", "stages.fit.data.batch_size=64",
        "trainer.limit_train_batches=6", "stages.fit.data.unlabelled=null", "stages.fit.module.uda=null",
        "stages.fit.data.balance=null",
    ]  # fmt: skip
    code, printed = cli(*small, "only=[first,second]")
    assert code == 0, printed
    (made,) = (tmp_path / "fashion_clean").iterdir()
    rows = edit(made / "second/kept.csv")
    code, printed = cli(*small, "only=[fit]", f"start_from={made}")
    assert code == 0, printed
    (other,) = (path for path in (tmp_path / "fashion_clean").iterdir() if path != made)
    notes = json.loads((other / "fit/data.json").read_text())["notes"]
    assert any(note.startswith("labels: no labels dropped, 1 changed") for note in notes), (rows[0], notes)
    assert (other / "second/kept.csv").read_bytes() == (made / "second/kept.csv").read_bytes()
    rows[0]["action"] = "remove"
    with (made / "second/kept.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    code, printed = cli(*small, "only=[fit]", f"start_from={made}")
    assert code == 1
    assert "action 'remove' is none of keep, drop, relabel" in printed
    assert "Traceback" not in printed


def test_the_preflight_does_not_miss_what_an_earlier_stage_will_write(cli, tmp_path: Path) -> None:
    tiny = ["stages.fit.module.encoder.name=test_resnet", "stages.fit.data.image_size=32", "logger=none"]
    code, printed = cli("experiment=fashion_clean", "sample=true", "check=true", "trainer.accelerator=cpu", *tiny)
    assert code == 0, printed
    assert "second/kept.csv" in printed
    code, printed = cli("experiment=fashion_clean", "sample=true", "check=true", "stages.fit.data.labels.kept=no.csv")
    assert code == 1
    assert "labels.kept=no.csv" in printed
