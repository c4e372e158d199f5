"""Brand experts as whole runs: what a finished one answers, on how many processes, and experts of several runs."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, only_run
from tests.test_each import TINY
from tests.test_shoes import draw
from use import command_line

Cli = Callable[..., tuple[int, str]]
BRANDS = {"Nike": 2, "Inc 5": 2, "눈치": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three brands."""
    home = tmp_path_factory.mktemp("brands")
    draw(home / "shoes", BRANDS)
    return home


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three experts."""
    out = tmp_path_factory.mktemp("finished")
    command = [sys.executable, str(ROOT / "run.py"), *TINY, f"out_dir={out}", f"data_dir={data}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(out, "brand_experts")


def test_every_photo_is_looked_up_in_once(finished: Path) -> None:
    about = json.loads((finished / "joined/index/about.json").read_text(encoding="utf-8"))
    counts = json.loads((finished / "joined/data.json").read_text(encoding="utf-8"))["counts"]
    assert [name for name, _ in about["splits"]] == ["learned", "val", "test"]
    assert counts["train"] == counts["val"], "calibration learns from these"
    assert about["count"] == sum(counts[name] for name in ("learned", "val", "test")) == 35


def test_two_processes_measure_as_one(finished: Path, cli: Cli) -> None:
    results = []
    for devices in ("1", "2"):
        code, printed = cli("evaluate", str(finished), "--devices", devices, "--accelerator", "cpu", script="use.py")
        assert code == 0, printed
        results.append(json.loads((finished / "joined/evaluation.json").read_text(encoding="utf-8")))
    exact = [{key: value for key, value in each.items() if not key.endswith("loss")} for each in results]
    assert exact[0] == exact[1], "counts: the same to the last digit"
    assert {"test/top1", "test/raw/ece", "test/scaled/known_brand", "test/other/brand"} <= exact[0].keys()
    assert results[1]["test/loss"] == pytest.approx(results[0]["test/loss"], rel=1e-5)


def test_two_processes_calibrate_as_one(finished: Path, data: Path, tmp_path: Path) -> None:
    """From the same experts, with a batch that both share."""
    learned = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        places = [f"out_dir={out}", f"data_dir={data}", f"start_from={finished}", "only=joined"]
        command = [sys.executable, str(ROOT / "run.py"), *TINY, *places, f"+stages.joined.trainer.devices={devices}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        metrics = json.loads((only_run(out, "brand_experts") / "joined.json").read_text(encoding="utf-8"))["metrics"]
        learned.append([metrics["val/loss"], metrics["test/loss"]])
    assert learned[1] == pytest.approx(learned[0], rel=1e-4)


def test_an_answer_names_product_brand_and_similar_products_with_pictures(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = data / "shoes/Inc 5/model 0/0.jpg"
    asked = ["predict", str(finished), str(photo), "--similar", "3", "--device", "cpu", "--top-k", "2"]
    written = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
    assert command_line([*asked, *written]) == 0
    (row,) = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["answers"]
    assert list(row["answers"]) == ["product", "brand", "an expert's own best", "familiar"]
    products, brands = row["answers"]["product"], row["answers"]["brand"]
    assert [len(each) for each in (products, brands)] == [2, 2]
    assert {name.partition("/")[0] for name, _ in products} | {name for name, _ in brands} <= BRANDS.keys()
    for answers in (products, brands):
        assert 1 >= answers[0][1] >= answers[1][1] > 0
    assert brands[0][1] >= products[0][1] - 1e-6, "a brand is as likely as its products together"
    assert len({near["name"] for near in row["similar"]}) == 3, "products, each once"
    assert row["similar"][0]["name"] == "Inc 5/model 0"
    assert row["similar"][0]["cosine"] == pytest.approx(1, abs=1e-3), "the photo itself"
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert len(re.findall(r'src="data:image/', page)) == 1 + 3, "the photo and one of each similar product"
    assert "Inc 5/model 0" in page
    assert "similar" in capsys.readouterr().out


def test_experts_of_several_runs_are_joined_once_all_are_there(cli: Cli, data: Path, tmp_path: Path) -> None:
    """Two brands by one sweep, the third by another; the joining run has no expert of its own."""
    here = [*TINY, f"data_dir={data}", f"out_dir={tmp_path}"]
    code, printed = cli("-m", *here, "only=nike,inc-5")
    assert code == 0, printed
    (sweep,) = (tmp_path / "sweeps").iterdir()
    found = sorted(path.relative_to(sweep).as_posix() for path in sweep.glob("*/expert/*.ckpt"))
    assert found == ["0/expert/nike.ckpt", "1/expert/inc-5.ckpt"], "each job trained its brand alone"
    joins = ["only=joined", f"stages.joined.joins.experts={tmp_path}/sweeps/*/*/expert"]
    code, printed = cli(*here, *joins)
    assert code == 1
    assert "joins.experts: the data have 눈치, of which" in printed
    code, printed = cli("-m", *here, "only='눈치'")
    assert code == 0, printed
    code, printed = cli(*here, *joins, "resume=latest")
    assert code == 0, printed
    run = only_run(tmp_path, "brand_experts")
    assert json.loads((run / "joined.json").read_text(encoding="utf-8"))["metrics"]["test/top1"] >= 0
    code, printed = cli(*here, *joins, "resume=latest")
    assert "joined: finished before, skipped" in printed
