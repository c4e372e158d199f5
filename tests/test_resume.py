"""`resume=latest`: what was finished is skipped, and what was killed ends as if it never had been."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch

from engine.record import read_rows
from tests.conftest import TINY, only_run

DROPOUT = "stages.fit.module.dropout=0.3"  # so that the saved random state matters
SLOW = "+stages.fit.callbacks.slow={_target_: tests.toys.Slow, seconds: 0.15, sign: %s}"


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in read_rows(run / "fit/metrics.jsonl") if "train/loss" in row]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "fit.ckpt", weights_only=True)["state_dict"]


def until(there: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def stop_mid_epoch(start: Callable[..., Popen[str]], out_dir: Path, number: int, command: list[str]) -> int:
    """Start a slow run, end it with a signal in the middle of its second epoch, return its exit code."""
    process = start(*command)

    def mid_epoch() -> bool:
        assert process.poll() is None, process.communicate()[0]
        rows = [row for path in out_dir.glob("fashion_mtl/*/fit/metrics.jsonl") for row in read_rows(path)]
        return sum("train/loss" in row for row in rows) >= 9

    until(mid_epoch)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_killed_and_resumed_equals_uninterrupted(
    number: signal.Signals, start: Callable[..., Popen[str]], cli: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    # A checkpoint at every step, so that the killed run goes on in the middle of the epoch.
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [*TINY, DROPOUT, SLOW % (tmp_path / "sign"), "checkpoint_every=0"]
    code, printed = cli(*command, f"out_dir={whole}")
    assert code == 0, printed
    code = stop_mid_epoch(start, broken, number, [*command, f"out_dir={broken}"])
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    code, printed = cli(*command, f"out_dir={broken}", "resume=latest")
    assert code == 0, printed
    ours, theirs = only_run(broken), only_run(whole)
    assert losses(ours) == losses(theirs), "each step once, with the same loss to the last bit"
    expected = weights(theirs)
    assert all(torch.equal(value, expected[key]) for key, value in weights(ours).items())
    done = [json.loads((run / "fit.json").read_text())["metrics"] for run in (ours, theirs)]
    assert done[0] == done[1]


def test_a_finished_stage_is_skipped_and_a_changed_one_refused(cli: Callable[..., Any], tmp_path: Path) -> None:
    assert cli(*TINY)[0] == 0
    run = only_run(tmp_path)
    before = (run / "fit.ckpt").stat().st_mtime_ns
    code, printed = cli(*TINY, "resume=latest")
    assert code == 0
    assert "skipped" in printed
    code, printed = cli(*TINY, "resume=latest", "stages.fit.module.dropout=0.5")
    assert code == 1
    assert "stages.fit.module.dropout" in printed
    assert "changes the meaning" in printed
    assert (run / "fit.ckpt").stat().st_mtime_ns == before
    code, printed = cli(*TINY, "resume=latest", "trainer.max_epochs=3")
    assert code == 0, printed
    assert json.loads((run / "fit.json").read_text())["epochs"] == 3, "more epochs are a safe change: the stage goes on"
    assert len(losses(run)) == 18
    code, printed = cli(*TINY, "resume=latest", "stages.fit.module.dropout=0.5", "force=true")
    assert code == 0, printed
    assert "made anew" in printed
    assert len(losses(run)) == 12, "from the first step, not on top of the weights that another config left"


def test_a_run_folder_in_use_is_refused(
    start: Callable[..., Popen[str]], cli: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    process = start(*TINY, SLOW % sign, "trainer.max_epochs=50")
    until(Path(f"{sign}.0").exists)
    code, printed = cli(*TINY, SLOW % sign, "trainer.max_epochs=50", "resume=latest")
    process.kill()
    process.communicate()
    assert code == 1
    assert "in use by another run" in printed


def test_resume_without_a_run_says_so(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, printed = cli(*TINY, "resume=latest")
    assert code == 1
    assert "there is no run" in printed
    code, printed = cli(*TINY, f"resume={tmp_path / 'nowhere'}")
    assert code == 1
    assert "no run lies there" in printed
