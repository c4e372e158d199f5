"""Multiruns: the page of a sweep, a failure told at once, Ctrl-C, and several jobs at a time with a device each."""

import json
import math
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from threading import Thread

import pytest
import torch
from omegaconf import OmegaConf

from engine.devices import own_device, settle_trainer, world_size
from engine.parallel import axis_of
from engine.summary import collect, summarise
from engine.sweep_page import sweep_view
from engine.table import write_table
from tests.conftest import TINY
from tests.test_resume import SLOW, until
from tests.test_table import THEIRS, write_run

Cli = Callable[..., tuple[int, str]]
Start = Callable[..., Popen[str]]


def page_of(folder: Path) -> str:
    write_table(folder)
    return (folder / "sweep.html").read_text(encoding="utf-8")


def rows_of(page: str, table: int) -> list[list[str]]:
    body = re.findall(r"<tbody>(.*?)</tbody>", page, re.S)[table]
    strip = re.compile(r"<[^>]+>")
    return [
        [strip.sub(" ", cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.S)] for row in body.split("</tr>")
    ][:-1]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two encoders by three seeds; one failed with a log."""
    folder = tmp_path / "sweep"
    for job, value in enumerate([0.50, 0.52, 0.57, 0.81, 0.84, None]):
        write_run(folder / str(job), seed=job % 3, val=value, name="r18" if job < 3 else "r<50>", theirs=THEIRS)
        rows = [f'{{"step": {e}, "epoch": {e}, "val/top1": {(value or 0) * e / 2}}}' for e in range(3)]
        (folder / str(job) / "fit").mkdir()
        (folder / str(job) / "fit/metrics.jsonl").write_text("\n".join(rows))
    (folder / "5/failure.json").write_text('{"stage": "fit", "error": "out of <memory>", "where": "x"}')
    (folder / "5/run.log").write_text("\n".join(f"line {i}" for i in range(30)))
    return folder


def test_the_page_has_tables_coordinates_curves_and_failures(sweep: Path) -> None:
    page = page_of(sweep)
    settings, runs = rows_of(page, 0), rows_of(page, 1)
    assert settings[0][:3] == ["r18", "3", "0.5300 ± 0.0361"]
    assert settings[1][1:3] == ["2", "0.8250 ± 0.0212"]
    assert len(runs) == 6
    assert runs[5][:2] == ["5", "failed"]
    assert "The best mean of 2 settings, over 2 runs" in page
    assert "sample standard deviation (n − 1) over the n seeds" in page
    assert 'alt="Parallel coordinates of 5 runs over encoder.name, val/top1"' in page
    assert 'alt="val/top1 over epoch: r&lt;50&gt;, r18"' in page, "the best setting first"
    assert "out of &lt;memory&gt;" in page
    assert "line 29" in page
    assert "line 17" not in page, "the log's end alone"
    assert "<script src" not in page
    assert "http" not in page.replace("http://www.w3.org", ""), "it loads nothing"


def test_a_page_of_one_setting_has_no_coordinates(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / str(seed), seed=seed, val=0.5 + seed / 10)
    view = sweep_view(summarise(collect(sorted(tmp_path.iterdir()))))
    assert view["coordinates"] is None
    assert view["curves"] is None, "no history was written"


def test_settings_stand_side_by_side_with_what_the_source_says(sweep: Path) -> None:
    """The test figure of each setting, its spread, and the source's own in a mark of its own; none that diverged."""
    write_run(sweep / "6", seed=5, val=0.84, name="r50", theirs={"note": "about +3 %"})
    write_run(sweep / "7", seed=5, val=math.nan, name="r101")
    view = sweep_view(summarise(collect(sorted(sweep.iterdir()))))["settings"]
    assert view["alt"] == (
        "test/top1 of 3 settings: r18 0.4300 ± 0.0361 (source 0.6167); "
        "r<50> 0.7250 ± 0.0212 (source 0.6167); r50 0.7400"
    )
    assert view["theirs"]
    assert view["notes"] == ["r50: about +3 %"]
    page = page_of(sweep)
    assert "A diamond is the source" in page
    assert "source: r50: about +3 %" in page


def test_single_runs_have_no_spread_to_show(tmp_path: Path) -> None:
    for job, name in enumerate(("r18", "r50")):
        write_run(tmp_path / str(job), seed=0, val=0.5, name=name)
    assert sweep_view(summarise(collect(sorted(tmp_path.iterdir()))))["settings"] is None


def test_stages_that_the_data_made_are_folded_away(tmp_path: Path) -> None:
    """The last stage's table comes first, then that of each stage with a name; all of a kind are one table."""
    stages: dict[str, dict[str, str]] = {"expert/nike": {}, "expert/눈치": {}, "router": {}, "fit": {}}
    for job in range(2):
        write_run(tmp_path / str(job), seed=0, val=0.5, lr=0.1 + job, stages=stages)
        (tmp_path / str(job) / "expert").mkdir()
        for at, name in enumerate(list(stages)[:3]):
            metrics = {"val/top1": 0.9, "test/top1": 0.1 * at + job, "test/f1": 0.7}
            (tmp_path / str(job) / f"{name}.json").write_text(json.dumps({"metrics": metrics}), encoding="utf-8")
    summary = summarise(collect(sorted(tmp_path.iterdir())))
    first, second = summary.tables
    assert first[:2] == ["val/top1", "test/top1"]
    assert second == ["router: test/top1", "router: test/f1"]
    assert summary.made == {"expert": {"nike": "expert/nike: test/top1", "눈치": "expert/눈치: test/top1"}}
    page = page_of(tmp_path)
    assert "<details><summary>expert: 2 stages, a row each</summary>" in page
    assert rows_of(page, 2) == [["nike", "0.0000", "1.0000"], ["눈치", "0.1000", "1.1000"]]
    assert "expert: 2 stages; sweep.csv has their figures." in write_table(tmp_path)
    assert "expert/nike: val/top1" in (tmp_path / "sweep.csv").read_text(encoding="utf-8").partition("\n")[0]


def test_axes_of_numbers_powers_and_names() -> None:
    assert axis_of("x", ["1", "3", "2"]).places == [0.0, 1.0, 0.5]
    assert axis_of("lr", ["0.001", "0.1", "0.01"]).places == pytest.approx([0.0, 1.0, 0.5])
    assert axis_of("name", ["b", None, "a"]).places == [0.0, None, 1.0]
    assert axis_of("same", ["4", "4"]).places == [0.5, 0.5]
    assert axis_of("odd", ["1", "nan"]).places == [0.0, 1.0], "what is no number is a name"


def test_ctrl_c_once_ends_a_sweep_with_its_table(start: Start, cli: Cli, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    command = ["-m", *TINY, SLOW % sign, "seed=0,1", "stages.fit.module.dropout=2,0.1"]
    process = start(*command)
    until(Path(f"{sign}.0").exists)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert f"job 0 failed in {sweep}/0: dropout=2 must be at least 0 and below 1" in printed
    assert f"resume={sweep} runs what is missing" in printed
    assert "Traceback" not in printed.replace("  Traceback", ""), "but for the end of the failed job's log"
    assert (sweep / "1/fit/last.ckpt").is_file()
    assert not (sweep / "2").exists()
    assert "stopped by a signal" in (sweep / "sweep.html").read_text(encoding="utf-8")


def test_joblib_runs_jobs_side_by_side_and_survives_a_failure(cli: Cli, tmp_path: Path) -> None:
    together = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    code, printed = cli("-m", *TINY, *together, "trainer.max_epochs=1", "stages.fit.module.dropout=0.1,2")
    assert code == 1, printed
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert (sweep / "0/fit.json").is_file()
    assert "1 of 2 jobs failed" in printed
    assert "dropout=2 must be" in (sweep / "1/failure.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(("number", "to_all", "code"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)])
def test_jobs_side_by_side_stop_as_one(
    cli: Cli, start: Start, tmp_path: Path, number: signal.Signals, to_all: bool, code: int
) -> None:
    """Ctrl-C reaches the workers too, another signal the launching process alone; the third job is never begun."""
    together = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "hydra.launcher.pre_dispatch=2"]
    process = start("-m", *TINY, *together, SLOW % (tmp_path / "sign"), "seed=0,1,2", "trainer.max_epochs=500")
    logs = [f"sweeps/*/{job}/fit/metrics.jsonl" for job in (0, 1)]
    until(lambda: all(any(path.stat().st_size for path in tmp_path.glob(log)) for log in logs))
    for target in [process.pid, *(children(process.pid) if to_all else [])]:
        os.kill(target, number)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == code, printed
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert (sweep / "0/fit/last.ckpt").is_file()
    assert (sweep / "1/fit/last.ckpt").is_file()
    assert not (sweep / "2/fit").exists()
    assert f"resume={sweep} runs what is missing" in printed
    assert "Traceback" not in printed


def children(pid: int) -> list[int]:
    """Of a process, on Linux."""
    return [int(found) for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_jobs_at_the_same_time_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, second, third = (OmegaConf.create({"trainer": {"devices": 1, "accelerator": "auto"}}) for _ in range(3))
    with own_device(first, tmp_path, alone=False):
        assert first.trainer.devices == [0]
        with own_device(second, tmp_path, alone=False):
            assert second.trainer.devices == [1]
            waiting = Thread(target=lambda: own_device(third, tmp_path, alone=False).__enter__(), daemon=True)
            waiting.start()
            time.sleep(0.2)
            assert third.trainer.devices == 1, "both are taken"
        waiting.join(5)
        assert third.trainer.devices == [1]


def test_a_job_alone_and_one_with_several_devices_keep_theirs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for devices, alone in ((1, True), (2, False)):
        cfg = OmegaConf.create({"trainer": {"devices": devices, "accelerator": "auto"}})
        with own_device(cfg, tmp_path, alone=alone):
            assert cfg.trainer.devices == devices
    assert not list(tmp_path.iterdir())


def test_listed_gpus_are_kept_and_those_that_are_not_there_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    trainer = {"accelerator": "gpu", "devices": [1], "precision": "32-true", "strategy": "auto"}
    assert settle_trainer(trainer, "ddp")["devices"] == [1]
    assert world_size(settle_trainer(trainer | {"devices": [0, 1]}, "ddp")) == 2
    with pytest.raises(ValueError, match=r"devices=\[2\]: this machine has 2 GPU"):
        settle_trainer(trainer | {"devices": [2]}, "ddp")


def test_the_memory_of_a_failed_job_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.sweep import _free_memory

    emptied = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    _free_memory()
    assert emptied
