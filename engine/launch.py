"""Runs a stage: in this process on one device, as one rank set through torch's elastic launcher on several.

Lightning's own subprocess launcher would replay the command line in each rank, so that under `--multirun` ranks train
different jobs or half of the data (Lightning-AI/pytorch-lightning#11300). Our ranks get a resolved spec file instead
and never see Hydra.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.cluster import meeting_point
from engine.devices import processes_here, world_size
from engine.hooks import PREEMPTION
from engine.runs import write_json
from engine.stage import Spec, run_spec

ROOT = Path(__file__).resolve().parent.parent
GRACE = 60  # seconds that ranks have to write a checkpoint after SIGTERM
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, *PREEMPTION)  # handed on to the ranks


class RankFailed(ChildProcessError):
    """A rank of a stage ended with an error; the others were ended with it."""


def launch(spec: Spec) -> None:
    """Run one stage to its done-file.

    Raises:
        RankFailed: A rank failed; the message names it, its exit code and its error.
        SystemExit: A signal asked to stop; the code is 128 + its number.
    """
    path = write_spec(spec) if spec.get("cluster", {}).get("node", 0) == 0 else spec_path(spec)
    if world_size(spec["stage"]["trainer"]) == 1:
        run_spec(spec)
    else:
        _launch_ranks(spec, path)
    if not (Path(spec["out"]) / f"{spec['name']}.json").is_file():
        raise RankFailed(f"stage {spec['name']} ended without its done-file {spec['name']}.json")


def write_spec(spec: Spec) -> Path:
    """Leave the spec in the stage's folder, for other processes and as a record."""
    path = spec_path(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, spec)
    return path


def spec_path(spec: Spec) -> Path:
    """Where a spec lies; an evaluation leaves the fit's record."""
    return Path(spec["out"]) / spec["name"] / ("spec.json" if spec["do"] == "fit" else f"{spec['do']}.json")


def _launch_ranks(spec: Spec, path: Path) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    trainer = spec["stage"]["trainer"]
    nodes = int(trainer.get("num_nodes", 1))
    config = LaunchConfig(
        min_nodes=nodes, max_nodes=nodes, nproc_per_node=processes_here(trainer),
        run_id=f"{Path(spec['out']).name}-{spec['name']}", max_restarts=0, monitor_interval=0.2,
        shutdown_timeout=GRACE, signals_to_handle=",".join(signal.Signals(number).name for number in SIGNALS),
        **meeting_point(spec),
    )  # fmt: skip
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says, RankFailed says better
    try:
        with _own_signals(), _importable():
            elastic_launch(config, sys.executable)("-m", "engine.worker", str(path))
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    except ChildFailedError as error:
        rank, failure = _cause(error.failures)
        raise RankFailed(f"rank {rank} failed with exit code {failure.exitcode}: {_first_line(failure)}") from error


def _cause(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """The rank that took the others with it; their own errors (a connection closed by a peer) follow within moments.

    One that was killed or left without an error could write no record, and its time is only that of its discovery, so
    it comes first; records carry whole seconds, so their files' times decide. Last come those that ended by SIGTERM:
    on a busy machine the launcher, which sent it, may find them together with the one that failed.
    """

    def order(rank: int) -> tuple[bool, bool, float]:
        failure = failures[rank]
        record = Path(failure.error_file)
        ended = failure.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM)
        return ended, record.is_file(), record.stat().st_mtime if record.is_file() else failure.timestamp

    rank = min(failures, key=order)
    return rank, failures[rank]


def _first_line(failure: Any) -> str:
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", message)
    return str(message).strip().splitlines()[0].removeprefix("RuntimeError: ")


@contextmanager
def _own_signals() -> Iterator[None]:
    """The launcher leaves its handlers installed; a stage that runs in this process afterwards must not meet them."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _importable() -> Iterator[None]:
    """Ranks import our packages from wherever the command was started."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
