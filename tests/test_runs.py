"""`use.py runs` and `use.py compare`: finding runs again, and what sets two of them apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_table import write_run
from use import command_line


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two runs of an experiment, and a sweep of three with one that failed."""
    for name, lr, value in (("a", 0.1, 0.5), ("b", 0.01, 0.7)):
        write_run(tmp_path / "e" / name, seed=0, val=value, lr=lr)
    for job, val in enumerate((0.6, None, 0.9)):
        write_run(tmp_path / "sweeps" / "s" / str(job), seed=job, val=val, name="resnet18")
    (tmp_path / "sweeps/s/1/failure.json").write_text('{"stage": "fit", "error": "no memory", "where": ""}')
    (tmp_path / "e/a/wandb/files").mkdir(parents=True)
    (tmp_path / "e/a/wandb/files/config.yaml").write_text("a: 1")  # not a run
    return tmp_path


def found(home: Path, *options: str) -> list[dict[str, Any]]:
    file = home / "list.json"
    command_line(["runs", str(home), "--json", str(file), *options])
    return json.loads(file.read_text(encoding="utf-8"))


def test_runs_of_experiments_and_sweeps_are_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {row["run"] for row in found(home)} == {"e/a", "e/b", "sweeps/s/0", "sweeps/s/1", "sweeps/s/2"}
    printed = capsys.readouterr().out
    assert "5 of 5 runs" in printed
    assert "failed" in printed


@pytest.mark.parametrize(
    ("where", "runs"),
    [
        (["state=failed"], ["sweeps/s/1"]),
        (["encoder.name=resnet*", "state=finished"], ["sweeps/s/0", "sweeps/s/2"]),
        (["lr=0.01"], ["e/b"]),
        (["run=sweeps/*", "seed=2"], ["sweeps/s/2"]),
        (["lr=7"], []),
    ],
)
def test_filters(home: Path, where: list[str], runs: list[str]) -> None:
    assert sorted(row["run"] for row in found(home, "--where", *where)) == runs


def test_sorted_by_a_metric_with_what_has_none_last(home: Path) -> None:
    rows = found(home, "--sort", "test/top1")
    assert [row["run"] for row in rows] == ["sweeps/s/2", "e/b", "sweeps/s/0", "e/a", "sweeps/s/1"]
    rows = found(home, "--sort", "test/top1", "--ascending", "--last", "2")
    assert [row["run"] for row in rows] == ["e/a", "sweeps/s/0"]
    assert rows[0]["test/top1"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--where", "stat=failed"], "no run has a setting or a metric 'stat'; did you mean 'state'"),
        (["--sort", "test/top"], "'test/top1'"),
        (["--where", "state"], "KEY=VALUE is wanted"),
    ],
)
def test_bad_words_are_one_sentence(
    home: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(["runs", str(home), *options]) == 1
    assert said in capsys.readouterr().err


def test_no_folder_and_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["runs", str(tmp_path / "nowhere")]) == 1
    assert command_line(["runs", str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "nowhere is not a folder" in said[0]
    assert "there is no run below it" in said[1]


def test_compare_shows_what_differs_and_marks_the_better(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(home / "e/a"), str(home / "e/b")]
    assert command_line(["compare", *pair, "--json", str(home / "c.json")]) == 0
    told = json.loads((home / "c.json").read_text(encoding="utf-8"))
    assert told["settings"] == {"lr": ["0.1", "0.01"]}
    assert told["metrics"]["val/top1"] == [0.5, 0.7]
    assert "test/Daily/top1" not in told["metrics"]
    printed = capsys.readouterr().out
    assert "0.7000 *" in printed
    assert "0.5000 *" not in printed
    assert "made with: no difference" in printed
    assert command_line(["compare", *pair, "--all", "--json", str(home / "c.json")]) == 0
    told = json.loads((home / "c.json").read_text(encoding="utf-8"))
    assert told["settings"].keys() == {"lr", "stages.fit.module.lr"}, "also the one that is interpolated"
    assert "test/Daily/top1" in told["metrics"]


def test_compare_says_what_failed_and_refuses_what_is_no_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["compare", str(home / "sweeps/s/0"), str(home / "sweeps/s/1")]) == 0
    assert "no memory" in capsys.readouterr().out
    for runs, said in (([home / "e/a"], "name two or more"), ([home / "e/a", home], "is not a run's folder")):
        assert command_line(["compare", *map(str, runs)]) == 1
        assert said in capsys.readouterr().err
