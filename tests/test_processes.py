"""Several processes: the same numbers as one, and no way to fail in silence."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import pytest

from engine.devices import settle_trainer
from engine.launch import _cause
from engine.record import read_rows
from tests.conftest import TINY, only_run
from tests.test_resume import SLOW, losses, until

Cli = Callable[..., tuple[int, str]]
Start = Callable[..., Popen[str]]
TWO = [*TINY, "trainer.devices=2"]
FAIL = "+stages.fit.callbacks.fail={_target_: tests.toys.FailAt, step: 3, how: %s, rank: 1}"


def ranks_of(folder: Path) -> list[str]:
    """Command lines of the rank processes that work below a folder."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "engine.worker" in line and str(folder) in line]


def test_a_checkpoint_evaluates_the_same_on_one_two_and_four(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli(*TWO)
    assert code == 0, printed
    run = only_run(tmp_path)
    results = []
    for devices in ("1", "2", "4"):
        code, printed = cli("evaluate", str(run), "--devices", devices, "--accelerator", "cpu", script="use.py")
        assert code == 0, printed
        results.append(json.loads((run / "fit/evaluation.json").read_text()))
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        exact = not key.endswith("loss")  # a loss is a sum of floats, whose order differs
        for other in results[1:]:
            assert other[key] == (value if exact else pytest.approx(value, rel=1e-5)), key


def test_two_processes_train_as_one(cli: Cli, tmp_path: Path) -> None:
    """The same losses at every step, so the same batches and gradients: with a network that has no BatchNorm."""
    short = ["stages.fit.module.encoder.name=test_vit", "stages.fit.data.image_size=160", "trainer.max_epochs=1"]
    curves = []
    for devices in (1, 2):
        where = [f"trainer.devices={devices}", f"out_dir={tmp_path / str(devices)}"]
        code, printed = cli(*TINY, *short, "trainer.limit_train_batches=3", *where)
        assert code == 0, printed
        curves.append([loss for _, loss in losses(only_run(tmp_path / str(devices)))])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_two_processes_learn_from_unlabelled_photos_as_one(cli: Cli, tmp_path: Path) -> None:
    """Consistency too: the same photos beside each batch, changed in the same way, and means over both processes."""
    consistent = [
        "+uda@stages.fit.module.uda=published", "stages.fit.module.uda.confidence=0.3",
        "stages.fit.module.uda.annealing=linear", "stages.fit.data.unlabelled={source: train, ratio: 0.75}",
        "stages.fit.module.encoder.name=test_vit", "stages.fit.data.image_size=160", "trainer.max_epochs=1",
    ]  # fmt: skip
    curves = []
    for devices in (1, 2):
        where = [f"trainer.devices={devices}", f"out_dir={tmp_path / str(devices)}"]
        code, printed = cli(*TINY, *consistent, "trainer.limit_train_batches=3", *where)
        assert code == 0, printed
        rows = list(read_rows(only_run(tmp_path / str(devices)) / "fit/metrics.jsonl"))
        names = ("train/loss", "train/unlabelled/loss", "train/unlabelled/confident")
        curves.append([row[name] for row in rows for name in names if name in row])
    assert len(curves[0]) == 9
    assert all(value > 0 for value in curves[0])
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.parametrize(("how", "said"), [("raise", "failed on purpose"), ("exit", "exit code 7"), ("kill", "-9")])
def test_the_failing_rank_is_named_and_none_is_left(how: str, said: str, cli: Cli, tmp_path: Path) -> None:
    code, printed = cli(*TWO, FAIL % how)
    assert code == 1
    assert "rank 1 failed" in printed
    assert said in printed
    assert "Traceback" not in printed
    assert not ranks_of(tmp_path)
    failure = json.loads((only_run(tmp_path) / "failure.json").read_text())
    assert "rank 1" in failure["error"]
    assert (only_run(tmp_path) / "report.html").is_file()


def test_statistics_of_all_processes_together_need_gpus() -> None:
    trainer = {"accelerator": "cpu", "devices": 2, "precision": "32-true", "strategy": "auto", "sync_batchnorm": True}
    with pytest.raises(ValueError, match="sync_batchnorm=true needs GPUs"):
        settle_trainer(trainer, "ddp")


def test_the_cause_is_the_rank_that_could_say_nothing_then_the_first_to_record(tmp_path: Path) -> None:
    records = [tmp_path / "first.json", tmp_path / "later.json"]
    for at, record in enumerate(records):
        record.write_text("{}")
        os.utime(record, (1e9, 1e9 + at / 10))  # the same whole second, which is all that a record's own time says
    first, later = (SimpleNamespace(error_file=str(record), timestamp=int(1e9), exitcode=1) for record in records)
    killed = SimpleNamespace(error_file="<N/A>", timestamp=int(1e9) + 2, exitcode=-signal.SIGKILL)
    ended = SimpleNamespace(error_file="<N/A>", timestamp=int(1e9), exitcode=128 + signal.SIGTERM)
    assert _cause({0: later, 1: first})[0] == 1
    assert _cause({0: first, 1: later, 2: killed})[0] == 2
    assert _cause({0: ended, 1: later})[0] == 1, "the launcher ended it because of the other"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["TERM", "INT", "KILL"]
)
def test_a_signal_to_the_parent_ends_all(number: int, code: int, start: Start, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    process = start(*TWO, SLOW % sign, "trainer.max_epochs=50")
    until(lambda: Path(f"{sign}.0").exists() and Path(f"{sign}.1").exists())
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == code, printed
    until(lambda: not ranks_of(tmp_path), 10)
    if number != signal.SIGKILL:
        assert (only_run(tmp_path) / "fit/last.ckpt").is_file(), "a graceful stop leaves a checkpoint"


def test_a_sweep_mixes_device_counts_and_goes_on_after_a_failure(cli: Cli, tmp_path: Path) -> None:
    swept = ["-m", "trainer.devices=2,1", "stages.fit.callbacks.fail.step=-1,2"]
    code, printed = cli(*TINY, "trainer.max_epochs=1", FAIL.replace("rank: 1", "rank: 0") % "poison", *swept)
    assert code == 1, printed
    (sweep,) = (tmp_path / "sweeps").iterdir()
    done = {int(path.parent.name): json.loads(path.read_text()) for path in sweep.glob("*/fit.json")}
    failed = {int(path.parent.name): json.loads(path.read_text()) for path in sweep.glob("*/failure.json")}
    assert done.keys() == {0, 2}
    assert failed.keys() == {1, 3}
    assert all("train/loss became nan at step 2" in failure["error"] for failure in failed.values())
    steps = {number: len(losses(sweep / str(number))) for number in done}
    assert steps == {0: 6, 2: 6}, "two processes make as many steps as one, on the same global batches"
    assert (sweep / "sweep.csv").is_file()
    assert "2 of 4 jobs failed" in printed


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(cli: Cli, tmp_path: Path) -> None:
    fail = FAIL.replace("step: 3", "step: 8").replace("rank: 1", "rank: 0") % "poison"
    code, printed = cli(*TINY, fail)
    assert code == 1
    assert "train/loss became nan at step 8 (epoch 1)" in printed
    assert (only_run(tmp_path) / "fit/last.ckpt").is_file()
    assert not (only_run(tmp_path) / "fit.json").exists()


def test_more_devices_or_an_odd_batch_are_refused(cli: Cli) -> None:
    code, printed = cli(*TINY, "trainer.devices=3")
    assert code == 1
    assert "take a multiple of 3" in printed
    code, printed = cli(*TINY, "trainer.accelerator=gpu", "trainer.devices=99")
    assert code == 1
    assert re.search("this machine has [0-9]+ GPU|finds no GPU on this machine", printed)


def test_a_sweep_in_the_folder_of_one_run_is_refused_once(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli("-m", *TINY, "seed=0,1", f"folder={tmp_path / 'mine'}")
    assert code == 1
    assert printed.count("is for one run") == 1
    assert f"hydra.sweep.dir={tmp_path / 'mine'}" in printed
    assert not list(tmp_path.iterdir()), "no job was begun"


def test_the_same_sweep_resumed_runs_only_what_is_missing_or_failed(cli: Cli, tmp_path: Path) -> None:
    command = ["-m", *TINY, "seed=0,1,2"]
    assert cli(*command)[0] == 0
    (sweep,) = (tmp_path / "sweeps").iterdir()
    before = (sweep / "0/fit.json").stat().st_mtime_ns
    (sweep / "1/fit.json").unlink()
    (sweep / "1/failure.json").write_text('{"stage": "fit", "error": "no memory", "where": ""}', encoding="utf-8")
    shutil.rmtree(sweep / "2")
    code, printed = cli(*command, "resume=latest")
    assert code == 0, printed
    assert list((tmp_path / "sweeps").iterdir()) == [sweep]
    assert printed.count("finished before, skipped") == 1
    assert (sweep / "0/fit.json").stat().st_mtime_ns == before
    assert all((sweep / str(number) / "fit.json").is_file() for number in range(3))
    assert not (sweep / "1/failure.json").exists()
    code, printed = cli(*command, "resume=nowhere")
    assert code == 1
    assert "error: resume=nowhere: there is no such sweep" in printed
