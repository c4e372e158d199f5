"""Queues and several machines: a job that is taken away goes on, and two machines train as one does."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from engine.cluster import first_host, meet, meeting_point
from engine.hooks import StepLog
from tests.conftest import ROOT, TINY
from tests.test_processes import ranks_of
from tests.test_resume import SLOW, losses, until

Cli = Callable[..., tuple[int, str]]
Start = Callable[..., Popen[str]]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("devices", [1, 2])
def test_a_preempted_run_writes_a_checkpoint_and_goes_on_in_its_folder(
    devices: int, start: Start, cli: Cli, tmp_path: Path
) -> None:
    sign, folder = tmp_path / "sign", tmp_path / "job 7"
    command = [*TINY, SLOW % sign, f"trainer.devices={devices}", f"folder={folder}"]
    process = start(*command)
    until(lambda: len(losses(folder)) >= 3)
    process.send_signal(signal.SIGUSR1)
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGUSR1, printed
    assert not ranks_of(folder)
    assert (folder / "fit/last.ckpt").is_file()
    done = len(losses(folder))
    assert done < 12
    code, printed = cli(*command)
    assert code == 0, printed
    steps = [step for step, _ in losses(folder)]
    assert steps == list(range(steps[0], steps[0] + 12)), "each step once"
    assert not (folder / "failure.json").exists()


def test_two_machines_train_as_one(start: Start, cli: Cli, tmp_path: Path) -> None:
    """Two agents that meet at a port; a network without BatchNorm, so that the losses must be those of one process."""
    short = ["stages.fit.module.encoder.name=test_vit", "stages.fit.data.image_size=160", "trainer.max_epochs=1"]
    command = [*TINY, *short, "trainer.limit_train_batches=3"]
    alone, folder = tmp_path / "alone", tmp_path / "together"
    code, printed = cli(*command, f"folder={alone}")
    assert code == 0, printed
    place = [f"folder={folder}", "trainer.num_nodes=2", f"cluster.rendezvous=localhost:{free_port()}"]
    machines = [start(*command, *place, f"cluster.node={node}") for node in (1, 0)]
    outputs = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert [loss for _, loss in losses(folder)] == pytest.approx([loss for _, loss in losses(alone)], rel=1e-4)
    ours, theirs = (json.loads((run / "fit.json").read_text())["metrics"] for run in (folder, alone))
    assert ours == pytest.approx(theirs, rel=1e-3, abs=0.02), "one photo that lies between two classes may change sides"
    assert (folder / "report.html").is_file()
    assert (folder / "node1.log").is_file()
    assert "report:" in outputs[1]
    assert "report:" not in outputs[0], "the first machine speaks"


def plan(nodes: int = 2, folder: str | None = "x", **cluster: Any) -> dict[str, Any]:
    stages = {"fit": {"trainer": {"num_nodes": nodes}}}
    return {"stages": stages, "folder": folder, "resume": None, "cluster": {"node": 0, "rendezvous": None} | cluster}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (plan(), "needs cluster.rendezvous=HOST:PORT"),
        (plan(rendezvous="a:1", folder=None), "needs folder=PATH"),
        (plan(rendezvous="a:1", node=2), "cluster.node=2"),
    ],
)
def test_what_several_machines_lack_is_said(asked: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(ValueError, match=said):
        meet(asked)


def test_one_machine_is_always_the_first() -> None:
    asked = plan(nodes=1, node=5)
    meet(asked)
    assert asked["cluster"]["node"] == 0
    assert meeting_point({"cluster": asked["cluster"]})["rdzv_endpoint"] == "localhost:0"


def test_slurm_says_where_to_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$3" = "gpu[3-4]" ] && printf "gpu3\\ngpu4\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[3-4]")
    monkeypatch.setenv("SLURM_JOB_ID", "4000123")
    assert first_host() == "gpu3:20123"
    asked = plan(node=1)
    meet(asked)
    assert asked["cluster"]["rendezvous"] == "gpu3:20123"
    point = meeting_point({"cluster": asked["cluster"]})
    assert point["rdzv_configs"]["is_host"] is False


def test_a_signal_that_arrives_twice_at_once_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = StepLog(None, "val/top1"), 100.0  # type: ignore[arg-type]
    monkeypatch.setattr("engine.hooks.time.monotonic", lambda: now)
    log._on_signal(signal.SIGUSR1, None)
    log._on_signal(signal.SIGTERM, None)
    assert log.signal == signal.SIGUSR1
    now = 110.0
    with pytest.raises(SystemExit):
        log._on_signal(signal.SIGTERM, None)


def test_folder_and_resume_exclude_each_other(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli(*TINY, f"folder={tmp_path / 'a'}", "resume=latest")
    assert code == 1
    assert "leave out resume=latest" in printed


def job_of(folder: Path) -> int:
    """The process id of the submitit job that works below a folder."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    (found,) = [line for line in listed.splitlines() if "submitit.core._submit" in line and str(folder) in line]
    return int(found.split()[0])


def test_a_queued_job_that_is_taken_away_is_queued_again_and_goes_on(start: Start, tmp_path: Path) -> None:
    """submitit's own executor on this machine; its signal is what SLURM would send before the time is over."""
    sign = tmp_path / "sign"
    longer = ["trainer.max_epochs=4", "trainer.limit_train_batches=10"]
    process = start("-m", *TINY, *longer, SLOW % sign, "launcher=slurm_local")
    until(Path(f"{sign}.0").exists)
    (job,) = (tmp_path / "sweeps").glob("*/0")
    until(lambda: len(losses(job)) >= 3)
    os.kill(job_of(tmp_path), signal.SIGUSR2)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 0, printed
    assert len(losses(job)) == 40, "each step once"
    logs = "".join(path.read_text() for path in job.parent.glob(".submitit/*/*.err"))
    assert "Caught signal SIGUSR2" in logs
    assert (job / "fit.json").is_file()
    assert not (job / "failure.json").exists()


@pytest.mark.parametrize(("code", "queued"), [(138, True), (1, False), (0, False)])
def test_the_slurm_script_goes_back_into_the_queue_when_preempted(code: int, queued: bool, tmp_path: Path) -> None:
    for name, line in (
        ("srun", 'shift; exec "$@"'),
        ("scontrol", 'echo "$@" >> said'),
        ("python", 'echo "$@" > typed'),
    ):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{line}\n" + (f"exit {code}\n" if name == "python" else ""))
        tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    script = ["bash", str(ROOT / "clusters/train.sbatch"), "experiment=simclr", "seed=1"]
    assert subprocess.run(script, cwd=tmp_path, env=environment, check=False).returncode == code
    typed = (tmp_path / "typed").read_text()
    assert typed == "run.py experiment=simclr seed=1 folder=outputs/slurm/7 trainer.num_nodes=2 trainer.devices=4\n"
    assert (tmp_path / "said").exists() is queued
