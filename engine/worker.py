"""What each rank runs: `python -m engine.worker <stage folder>/<spec>.json`, started by `engine.launch`."""

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path


def die_with_parent() -> None:
    """Have Linux end this rank when its parent is killed (prctl PR_SET_PDEATHSIG); elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(spec_path: str) -> None:
    """Run the stage of one spec file as the rank that the environment says."""
    die_with_parent()
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(_run)(Path(spec_path))
    except Exception:  # recorded for the parent, which names this rank; the traceback is in the log
        sys.exit(1)
    finally:  # it is leaving anyway; an exit raised in the middle of the interpreter's end would print a traceback
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _run(path: Path) -> None:
    from engine.console import log_to
    from engine.devices import share_cores
    from engine.stage import read_spec, run_spec
    from engine.suggest import explain

    spec = read_spec(path)
    rank = int(os.environ["RANK"])
    log_to(Path(spec["out"]) / "run.log" if rank == 0 else path.parent / f"rank{rank}.log", console=rank == 0)
    share_cores(int(os.environ["LOCAL_WORLD_SIZE"]))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run_spec(spec)
    except Exception as error:
        logging.getLogger("nunchi").debug("rank %d failed", rank, exc_info=True)
        raise RuntimeError(explain(error)) from error


if __name__ == "__main__":
    main(sys.argv[1])
