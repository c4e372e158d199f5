"""W&B without a network: its files hold every figure, and `use.py sync` sends them in order."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from engine.commands import sync
from engine.compose import make_plan
from engine.dashboard import Dashboard, read_dashboards, report_of, workspace_of
from engine.loggers import finish_wandb, show_pictures, wandb_logger
from engine.record import read_rows
from engine.suggest import composed, flatten
from tests.conftest import ROOT, TINY, only_run
from use import command_line

Cli = Callable[..., tuple[int, str]]
WITH = [word for word in TINY if not word.startswith("logger")]


def records(segment: Path, kind: str) -> list[dict[str, Any]]:
    """What an offline segment holds of one kind, as W&B's own reader gives it."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [record[kind] for record in found if record.get("type") == kind]


def history(segment: Path) -> list[dict[str, Any]]:
    """The logged rows of an offline segment."""
    return [record["item"] for record in records(segment, "history")]


def figures(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key.split("/")[0] in ("train", "val", "test") and isinstance(value, int | float):
                found.setdefault(key, []).append(value)
    return found


def test_the_offline_files_hold_every_metric(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli(*WITH, "trainer.log_every_n_steps=1", "variant=mine")
    assert code == 0, printed
    run = only_run(tmp_path)
    (segment,) = sync.find_segments(run)
    ours = figures(list(read_rows(run / "fit/metrics.jsonl")))
    theirs = figures(history(segment.folder))
    assert len(ours["train/loss"]) == 12
    assert ours.keys() <= theirs.keys(), "beside them are the confusion matrices"
    for key, values in ours.items():
        assert theirs[key] == pytest.approx(values), key
    told = [record["update"] for record in records(segment.folder, "config")]
    assert any((config.get("experiment"), config.get("variant")) == ("fashion_mtl", "mine") for config in told)


def segment(home: Path, run: str, name: str, sent: bool = False) -> Path:
    folder = home / run / "wandb" / name
    folder.mkdir(parents=True)
    if sent:
        (folder / "run-x.wandb.synced").touch()
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A run in two segments around another run, and one that was sent."""
    segment(tmp_path, "e/a", "offline-run-20260102_120000-aaaa")
    segment(tmp_path, "e/a", "offline-run-20260104_120000-aaaa")
    segment(tmp_path, "e/b", "offline-run-20260103_120000-bbbb")
    segment(tmp_path, "e/c", "offline-run-20260101_120000-cccc", sent=True)
    return tmp_path


def sent(home: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[str]:
    calls: list[list[str]] = []

    def call(words: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        calls.append(words)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(sync, "has_key", lambda: True)
    monkeypatch.setattr(sync.subprocess, "run", call)
    assert command_line(["sync", str(home), *options]) == 0
    return calls[0] if calls else []


def test_segments_of_a_run_are_sent_together_and_in_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = sent(home, monkeypatch, "--project", "p")
    names = [Path(word).name for word in words if "offline-run" in word]
    assert names == [
        "offline-run-20260102_120000-aaaa",
        "offline-run-20260104_120000-aaaa",
        "offline-run-20260103_120000-bbbb",
    ]
    assert "--project=p" in words
    assert len([word for word in sent(home, monkeypatch, "--again") if "offline-run" in word]) == 4


def test_without_a_key_it_shows_what_it_would_send(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sync, "has_key", lambda: False)
    assert command_line(["sync", str(home)]) == 1
    said = capsys.readouterr()
    assert "3 of 4 segments are to be sent" in said.out
    assert "aaaa" in said.out
    assert "run `wandb login` once" in said.err
    assert command_line(["sync", str(home), "--dry-run"]) == 0


def test_nothing_to_send_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["sync", str(tmp_path)]) == 1
    assert command_line(["sync", str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr().err
    assert "no offline run of W&B lies there" in said
    assert "nowhere is not a folder" in said


@pytest.mark.parametrize("path", sorted((ROOT / "conf/wandb").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_an_agent_types_is_what_our_parser_reads(path: Path) -> None:
    """Every end of every range, in the agent's own words, composed; judged by what the experiment is judged by."""
    asked = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert asked["command"][-1] == "${args_no_hyphens}"
    ends = {key: parameter.get("values") or ends_of(parameter) for key, parameter in asked["parameters"].items()}
    for place in range(max(map(len, ends.values()))):
        chosen = {key: {"value": values[place % len(values)]} for key, values in ends.items()}
        typed = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
        experiment = chosen["experiment"]["value"]
        plan = make_plan(composed(typed), typed, experiment, Path("OUT"))
        last = list(plan["stages"].values())[-1]
        for key, value in chosen.items():
            if key.startswith("stages."):
                assert flatten(plan)[key] == value["value"], f"{key} is a number in YAML and for us"
        assert asked["metric"]["name"] == last["metric"]
        assert asked["metric"]["goal"] == {"max": "maximize", "min": "minimize"}[last["mode"]]
        assert plan["logger"]["mode"] == "online"


def ends_of(parameter: dict[str, Any]) -> list[Any]:
    return [parameter["value"]] if "value" in parameter else [parameter["min"], parameter["max"]]


def test_a_run_of_a_wandb_sweep_keeps_the_agents_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"project": "p", "mode": "offline", "entity": None, "group": None, "tags": []}
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    (tmp_path / "a").mkdir()
    wandb_logger(tmp_path / "a", "fit", **settings)
    assert (tmp_path / "a/wandb_id").read_text() != "agents1", "the id alone may be left over from anything"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    (tmp_path / "b").mkdir()
    wandb_logger(tmp_path / "b", "fit", **settings)
    assert (tmp_path / "b/wandb_id").read_text() == "agents1"


BOARDS = read_dashboards([])


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_dashboards_build_without_a_network(board: Dashboard) -> None:
    for experiment in board.experiments:
        assert (ROOT / "conf/experiment" / f"{experiment}.yaml").is_file()
    built = workspace_of(board, "me", "nunchi")._to_model().model_dump_json(by_alias=True)
    values = [value for panels in board.sections.values() for panel in panels for value in panel.values()]
    keys = [key for value in values for key in ([value] if isinstance(value, str) else value)]
    assert all(f'"{key}"' in built for key in keys if key.startswith(("train/", "val/", "test/", "pictures/")))
    assert all(f'"{experiment}"' in built for experiment in board.experiments), "runs are found by their tags"
    assert len(report_of(board, "me", "nunchi").blocks) == 1 + 2 * len(board.sections)


def test_every_experiment_has_a_dashboard() -> None:
    shown = {experiment for board in BOARDS for experiment in board.experiments}
    assert shown == {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")}


def test_the_fashion_dashboard_shows_what_a_run_logs(run: Path) -> None:
    logged = {key for row in read_rows(run / "fit/metrics.jsonl") for key in row} | {"data_wait"}
    for panels in read_dashboards(["fashion"])[0].sections.values():
        for panel in panels:
            for key in panel.get("line", []) + panel.get("bar", []):
                assert key in logged


def test_without_push_nothing_is_created(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_line(["dashboard"]) == 0
    printed = capsys.readouterr().out
    assert "nothing was created" in printed
    assert all(f"nunchi/{board.name}" in printed for board in BOARDS)
    assert command_line(["dashboard", "spo"]) == 1
    assert "did you mean 'spu'" in capsys.readouterr().err
    monkeypatch.setattr(sync, "has_key", lambda: False)
    assert command_line(["dashboard", "spu", "--push"]) == 1
    assert "no W&B key" in capsys.readouterr().err


def test_an_unknown_panel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# x\nexperiments: [spu]\nsections: {a: [{lines: [val/loss]}]}\n")
    with pytest.raises(ValueError, match="a panel is one of line, bar"):
        read_dashboards([], tmp_path)


def test_pictures_of_callbacks_are_given_to_wandb(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures/views-1.png")
    entries = [{"title": "t", "image": "pictures/views-1.png"}, {"title": "gone", "image": "pictures/views-2.png"}]
    (tmp_path / "pictures/views.json").write_text(json.dumps(entries))
    (logger,) = wandb_logger(tmp_path, "fit", "p", "offline", None, None, [])
    logger.experiment  # noqa: B018 - starts the run
    show_pictures([logger], tmp_path)
    finish_wandb(0)
    (written,) = sync.find_segments(tmp_path)
    (row,) = [row for row in history(written.folder) if any(key.startswith("pictures/views") for key in row)]
    assert row
