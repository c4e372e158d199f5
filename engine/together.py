"""Jobs of a multirun in joblib's worker processes: asked to stop, all write their checkpoints, and no other begins.

By itself joblib kills its workers when the launching process is interrupted, and leaves them training when that process
is ended. So the launching process hands SIGTERM on to the workers, and once their jobs have stopped the sweep ends by
itself. A worker listens only while a job runs in it: if an idle one ended, joblib would take that for a crash and kill
the others.
"""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1

_asked = 0  # the exit code once this process, launching or working, was asked to stop


def watch() -> None:
    """Have the launching process and the workers that it starts from now on stop together."""
    for number in STOPS:
        signal.signal(number, _hand_on)
    resource_tracker.ensure_running()  # now, for in Python 3.11 its start opens both signals again
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # for the workers, which inherit it
    threading.Thread(target=_listen, daemon=True).start()


def _listen() -> None:
    """Be the thread that the system may give the signals to; Python then calls the handler in the main one."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    threading.Event().wait()


def _hand_on(number: int, frame: FrameType | None) -> None:
    global _asked
    workers = multiprocessing.active_children()
    if _asked:  # asked again: at once
        for worker in workers:
            worker.kill()
        os._exit(_asked)
    _asked = 128 + number
    for worker in workers:
        worker.terminate()
    if not workers:  # joblib runs one job at a time in this process
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def leave_if_asked() -> None:
    """End the launching process, after its jobs, if it was asked to stop.

    Raises:
        SystemExit: It was; the code is 128 + the signal's number.
    """
    if _asked:
        raise SystemExit(_asked)


def run_beside(job: Callable[[], float | None]) -> float | None:
    """Run one of the jobs; its value is not a number if it, or one before it in this process, was asked to stop."""
    global _asked
    if _asked:
        return math.nan
    if sys.platform == "linux" and multiprocessing.parent_process():  # if the launching process is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _leave)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # one that waits arrives here
        return job()
    except SystemExit as stop:
        _asked = _asked or int(stop.code or 1)
        return math.nan
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
