"""The table of many runs groups what belongs together, and names every run that is not in it."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from engine.summary import collect, summarise
from engine.table import write_table
from engine.variation import differing, short_names

THEIRS = {"cite": "Kim & Lee, [2022]", "figures": {"test/top1": 0.61672}}


def write_run(folder: Path, seed: int, val: float | None, **settings: Any) -> None:
    """A run's config, and its done-file if it has a result; `lr` also stands where it is interpolated."""
    folder.mkdir(parents=True)
    name, lr = settings.pop("name", "r18"), settings.pop("lr", 0.1)
    stage = {"module": {"encoder": {"name": name}, "lr": lr, "warm": f"{folder}/x.ckpt"}, "data": {"seed": seed}}
    config = {"experiment": "e", "metric": "val/top1", "mode": "max", "seed": seed, "lr": lr, "out": str(folder)}
    config |= {"stages": {"fit": stage}} | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    if val is not None:
        metrics = {
            "val/top1": val,
            "test/top1": val - 0.1,
            "test/f1": val / 2,
            "test/Daily/top1": val,
            "test/loss": 1.0,
        }
        (folder / "fit.json").write_text(json.dumps({"stage": "fit", "metrics": metrics}), encoding="utf-8")


def table_of(folder: Path) -> str:
    return write_table(folder, Console(file=io.StringIO(), width=200))


def lines_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "sweep.csv").read_text(encoding="utf-8"))))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two encoders by three seeds; one failed, one still running, one that left no folder."""
    folder = tmp_path / "sweep"
    values = [0.50, 0.52, 0.57, 0.81, 0.84, None, None]
    for job, value in enumerate(values):
        place = job if job < 6 else 7
        write_run(folder / str(place), seed=job % 3, val=value, name="r18" if job < 3 else "r50", theirs=THEIRS)
    failure = {"stage": "fit", "error": "the loss is nan [epoch 3]", "where": "x"}
    (folder / "5" / "failure.json").write_text(json.dumps(failure), encoding="utf-8")
    return folder


def test_groups_are_all_keys_but_the_seed(sweep: Path) -> None:
    summary = summarise(collect(sorted(sweep.iterdir())))
    assert summary.names == {"stages.fit.module.encoder.name": "encoder.name"}
    assert [(group.settings, len(group.rows)) for group in summary.groups] == [(("r18",), 3), (("r50",), 2)]
    for group, values in zip(summary.groups, ([0.50, 0.52, 0.57], [0.81, 0.84]), strict=True):
        assert group.mean("val/top1") == pytest.approx(np.mean(values))
        assert group.spread("val/top1") == pytest.approx(np.std(values, ddof=1))
    assert summary.best is summary.groups[1]


def test_printed_table_tells_means_spread_source_and_who_is_absent(sweep: Path) -> None:
    text = table_of(sweep)
    figures = ["5 of 8 runs finished", "0.5300 ± 0.0361", "0.8250 ± 0.0212", "source 0.6167", "best mean val/top1"]
    notes = ["sample standard deviation (n − 1)", "claimed by Kim & Lee, [2022] for its own data"]
    absent = [
        "failed 5: the loss is nan [epoch 3] (encoder.name=r50)",
        "unfinished 7: no result of fit",
        "missing 6: left",
    ]
    for told in (*figures, *notes, *absent):
        assert told in text, told
    assert "test/Daily/top1" not in text, "the terminal shows means over the tasks; the CSV has the rest"
    assert "test/loss" not in text


def test_table_is_printed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_table(sweep) == capsys.readouterr().out


def test_csv_holds_every_run_and_every_group(sweep: Path) -> None:
    table_of(sweep)
    lines = lines_of(sweep)
    kinds = [line["kind"] for line in lines]
    assert kinds == ["run"] * 8 + ["mean", "sd", "source"] * 2
    assert [line["state"] for line in lines[:8]] == ["finished"] * 5 + ["failed", "unfinished", "missing"]
    assert [line["job"] for line in lines[:8]] == ["0", "1", "2", "3", "4", "5", "7", "6"]
    assert [line["seed"] for line in lines[:3]] == ["0", "1", "2"]
    mean = lines[8]
    assert (mean["n"], mean["stages.fit.module.encoder.name"]) == ("3", "r18")
    assert float(mean["test/Daily/top1"]) == pytest.approx(0.53)
    assert (lines[10]["test/top1"], lines[10]["val/top1"]) == ("0.61672", "")
    assert not list(sweep.glob("*.tmp"))


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    for job, lr in enumerate((0.1, 0.01)):
        write_run(tmp_path / str(job), seed=0, val=0.5 + job / 10, lr=lr)
    text = table_of(tmp_path)
    assert "±" not in text
    assert [line["kind"] for line in lines_of(tmp_path)] == ["run", "run", "mean", "sd", "mean", "sd"]
    assert lines_of(tmp_path)[3]["val/top1"] == ""


def test_only_seeds_differ(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / str(seed), seed=seed, val=0.5)
    text = table_of(tmp_path)
    assert "experiment" in text
    assert "0.5000 ± 0.0000" in text
    assert "bold" not in text, "nothing is the best of one"


def test_smaller_is_better_where_it_is(tmp_path: Path) -> None:
    for job, lr in enumerate((0.1, 0.01)):
        write_run(tmp_path / str(job), seed=0, val=0.5 + job, lr=lr, mode="min")
    best = summarise(collect(sorted(tmp_path.iterdir()))).best
    assert best is not None
    assert best.settings == ("0.1",)


def test_a_run_that_diverged_is_neither_hidden_nor_best(tmp_path: Path) -> None:
    for job, value in enumerate((0.4, math.nan, 0.3)):
        write_run(tmp_path / str(job), seed=job % 2, val=value, lr=0.1 if job < 2 else 0.01)
    assert "nan ± nan" in table_of(tmp_path)
    assert "bold" not in table_of(tmp_path), "one finite mean has nothing to be better than"


def test_a_seed_that_occurs_twice_is_told(tmp_path: Path) -> None:
    for job in range(2):
        write_run(tmp_path / str(job), seed=0, val=0.5)
    assert "jobs 0, 1: a seed occurs twice" in table_of(tmp_path)


def test_keys_that_follow_another_are_one_column(tmp_path: Path) -> None:
    for job, lr in enumerate((0.1, 0.01)):
        write_run(tmp_path / str(job), seed=0, val=0.5, lr=lr)
    summary = summarise(collect(sorted(tmp_path.iterdir())))
    assert summary.names == {"lr": "lr"}, (
        "stages.fit.module.lr is interpolated from it, warm lies in the run's own folder"
    )


def test_a_setting_that_equals_the_seed_is_not_taken_for_one() -> None:
    assert differing([{"seed": "0", "fold": "0"}, {"seed": "1", "fold": "1"}]) == ["seed", "fold"]


def test_experiments_stand_for_what_they_settle() -> None:
    rows = [{"experiment": e, "a": e * 2, "lr": lr} for e in "xy" for lr in ("1", "2")]
    assert differing(rows) == ["experiment", "lr"]


def test_names_are_as_short_as_they_can_be() -> None:
    keys = ["stages.fit.module.lr", "stages.probe.module.lr", "stages.fit.data.size", "stages.fit.module.encoder.name"]
    assert list(short_names(keys).values()) == ["fit.module.lr", "probe.module.lr", "size", "encoder.name"]


def test_a_job_that_failed_before_its_config_was_written(tmp_path: Path) -> None:
    write_run(tmp_path / "0", seed=0, val=0.5)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "failure.json").write_text('{"stage": null, "error": "no such encoder: r5O", "where": ""}')
    (tmp_path / "2").mkdir()
    text = table_of(tmp_path)
    assert "failed 1: no such encoder: r5O" in text
    assert "unfinished 2: nothing was written" in text


def test_earlier_stages_keep_their_figures_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "0", seed=0, val=0.5, stages={"pre": {}, "fit": {}})
    (tmp_path / "0" / "pre.json").write_text('{"metrics": {"val/top1": 0.2}}')
    row = collect([tmp_path / "0"])[0]
    assert (row.metrics["val/top1"], row.metrics["pre: val/top1"]) == (0.5, 0.2)


def test_samples_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "0", seed=0, val=0.5, sample=True)
    assert "DRAWN SAMPLES" in table_of(tmp_path)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        write_table(tmp_path / "nowhere")


def test_no_jobs(tmp_path: Path) -> None:
    assert "0 of 0 runs finished" in table_of(tmp_path)


@pytest.mark.parametrize(("starts", "groups"), [("aabb", 2), ("abba", 4)])
def test_a_run_may_start_from_the_earlier_one_of_its_seed(tmp_path: Path, starts: str, groups: int) -> None:
    """Seeds 0, 0, 1, 1 and two rates: where it starts goes with the seed, or is a setting of its own."""
    for job, start in enumerate(starts):
        write_run(tmp_path / str(job), seed=job // 2, val=0.5, lr=0.1 + job % 2, start_from=start)
    assert len(summarise(collect(sorted(tmp_path.iterdir()))).groups) == groups
