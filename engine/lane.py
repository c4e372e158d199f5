"""One of several processes that run stages side by side: `python -m engine.lane COUNT`, started by `engine.lanes`.

It reads the path of a stage's spec from its input, runs the stage, answers with an empty line or with one sentence on
what went wrong, and reads the next.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TextIO

from engine.worker import die_with_parent


def main(lanes: int) -> None:
    """Run stages until the input ends; `lanes` processes share this machine's cores."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    from engine.devices import share_cores

    share_cores(lanes)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        for line in sys.stdin:
            print(_run(Path(line.strip())), file=answers, flush=True)
    except (SystemExit, KeyboardInterrupt) as stop:
        _leave(stop, answers)


def _run(path: Path) -> str:
    from engine.console import log_to
    from engine.stage import read_spec, run_spec
    from engine.suggest import explain

    spec = read_spec(path)
    log_to(path.parent / "run.log", console=False)
    try:
        run_spec(spec)
    except Exception as error:
        logging.getLogger("nunchi").debug("%s failed", spec["name"], exc_info=True)
        return " ".join(explain(error).split())
    return ""


def _leave(stop: BaseException, answers: TextIO) -> None:
    """Go at once, the checkpoint being written: an interpreter's orderly end may wait for threads that decode."""
    answers.close()
    code = stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
    os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
