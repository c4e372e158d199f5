"""What a person sees and what the log file keeps: short plain lines on the terminal, everything in `run.log`."""

import logging
import sys
from pathlib import Path

log = logging.getLogger("nunchi")


def log_to(path: Path | None, console: bool = True) -> None:
    """Send our lines to the terminal, and these, warnings and tracebacks to `path`.

    Args:
        path: The log file, continued if it is there; `None` for none.
        console: Whether this process speaks to the terminal; of several ranks only the first does.
    """
    root = logging.getLogger()
    for handler in [*root.handlers, *log.handlers]:
        handler.close()
    root.handlers, log.handlers, log.propagate = [], [], False
    log.setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    for noisy in ("lightning.pytorch", "lightning.fabric", "torch"):
        logger = logging.getLogger(noisy)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.WARNING)
    if console:
        terminal = logging.StreamHandler(sys.stdout)
        terminal.setLevel(logging.INFO)
        log.addHandler(terminal)
    if path is not None:
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(file)
        root.addHandler(file)
