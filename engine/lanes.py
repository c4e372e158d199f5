"""Runs independent stages side by side, one a device: the next one begins where one has ended.

The stages exchange nothing, so that unequal ones wait for each other only at the end. One that fails lets those that
run finish, so that nothing is lost, and keeps others from being begun.
"""

import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from engine.launch import GRACE, ROOT, RankFailed, write_spec
from engine.stage import Spec

log = logging.getLogger("nunchi")
Process = subprocess.Popen[str]


def run_side_by_side(specs: Sequence[Spec], devices: Sequence[int]) -> None:
    """Run all stages to their done-files.

    Args:
        specs: Of the stages, in the order in which they begin.
        devices: Those that run a stage each at a time; on a processor only their number counts.

    Raises:
        RankFailed: Stages failed; the message names the first with its error.
        SystemExit: A signal asked to stop.
    """
    with ExitStack() as stack:  # at its end each lane's input is closed, which ends it, and it is waited for
        lanes = [stack.enter_context(_start(device, len(devices), specs[0])) for device in devices[: len(specs)]]
        try:
            failures = _serve(lanes, specs)
        except BaseException:
            _stop(lanes)
            raise
    if failures:
        others = f" (and {len(failures) - 1} more)" if failures[1:] else ""
        raise RankFailed(f"{failures[0]}{others}")


def _start(device: int, lanes: int, spec: Spec) -> Process:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path}
    if spec["stage"]["trainer"]["accelerator"] in ("gpu", "cuda"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        env["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device] if visible else str(device)
    command = [sys.executable, "-m", "engine.lane", str(lanes)]
    return subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _serve(lanes: Sequence[Process], specs: Sequence[Spec]) -> list[str]:
    """Hand the stages out and wait for the answers; what went wrong, a sentence a stage."""
    todo, failures, running = list(specs), list[str](), dict[Process, tuple[str, float]]()
    with selectors.DefaultSelector() as selector:
        for lane in lanes:
            selector.register(lane.stdout, selectors.EVENT_READ, lane)  # type: ignore[arg-type]
            _hand(lane, todo.pop(0), running)
        while running:
            for key, _ in selector.select():
                name, begun = running.pop(key.data)
                if trouble := _answer(key.data):
                    failures.append(f"{name}: {trouble}")
                    log.error("%s failed: %s", name, trouble)
                else:
                    log.info("%s: finished in %.0f s, %d to go", name, time.monotonic() - begun, len(todo))
                if key.data.poll() is not None:
                    selector.unregister(key.fileobj)
                elif todo and not failures:
                    _hand(key.data, todo.pop(0), running)
    return failures


def _hand(lane: Process, spec: Spec, running: dict[Process, tuple[str, float]]) -> None:
    assert lane.stdin is not None
    lane.stdin.write(f"{write_spec(spec)}\n")
    lane.stdin.flush()
    running[lane] = spec["name"], time.monotonic()


def _answer(lane: Process) -> str:
    """What a lane says of the stage that it ran: nothing, or why it failed."""
    assert lane.stdout is not None
    line = lane.stdout.readline()
    return line.strip() if line else f"its process ended with exit code {lane.wait()}"


def _stop(lanes: Sequence[Process]) -> None:
    """Ask all to stop, as the run was asked; they have time to write a checkpoint."""
    for lane in lanes:
        if lane.poll() is None:
            lane.send_signal(signal.SIGTERM)
    end = time.monotonic() + GRACE
    for lane in lanes:
        try:
            lane.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            lane.kill()
