"""Jobs of a multirun: a failing one is told at once and does not end the others; at the end there is a table."""

import atexit
import gc
import math
import signal
import sys
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from engine.schema import register
from engine.suggest import explain
from engine.together import leave_if_asked, run_beside, watch

LAST_LINES = 6
WIDE = 200  # where there is no terminal whose edge to wrap at


def run_job(cfg: DictConfig, hydra: HydraConf) -> float | None:
    """One job of a sweep; its failure is a red line, a `failure.json` and a value that is not a number."""
    return run_beside(lambda: _run(cfg, hydra)) if _are_together(hydra) else _run(cfg, hydra)


def _are_together(hydra: HydraConf) -> bool:
    return "joblib" in str(hydra.launcher.get("_target_"))


def _run(cfg: DictConfig, hydra: HydraConf) -> float | None:
    from engine.devices import own_device
    from engine.session import start

    folder = Path(hydra.sweep.dir)
    try:
        with own_device(cfg, folder, alone="BasicLauncher" in str(hydra.launcher.get("_target_"))):
            return start(cfg, hydra)
    except SystemExit as stop:
        _hand_back(stop)
        raise
    except Exception as error:
        _tell_failure(folder / hydra.sweep.subdir, hydra.job.num, explain(error))
    _free_memory()
    return math.nan


def _hand_back(stop: SystemExit) -> None:
    """A queue's signal stopped the job, which has written its checkpoint: now to the queue's own handler, if any.

    submitit has one, that puts the job into the queue again; it must not come first, for it ends the process.
    """
    number = stop.code - 128 if isinstance(stop.code, int) else 0
    for name in ("SIGUSR1", "SIGUSR2"):
        if number == getattr(signal, name, None) and callable(signal.getsignal(number)):
            signal.raise_signal(number)


def _tell_failure(out: Path, number: int, sentence: str) -> None:
    """In red, with the job's folder and the end of its log; into its folder if it did not get as far as that."""
    from engine.runs import write_json
    from engine.summary import last_lines

    out.mkdir(parents=True, exist_ok=True)
    if not (out / "failure.json").is_file():
        write_json(out / "failure.json", {"stage": None, "error": sentence, "where": str(out)})
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(f"[bold red]job {number} failed[/][red] in {escape(str(out))}: {escape(sentence)}[/]")
    for line in last_lines(out, LAST_LINES):
        console.print(f"[dim]  {escape(line)}[/]", overflow="ellipsis", no_wrap=True)


def _free_memory() -> None:
    """What a job that failed held, above all on a GPU, must not be missing to the next one in this process."""
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class SweepTable(Callback):
    """Hydra's hook around a multirun: a table of all jobs, and an exit code that tells whether all went well.

    A sweep that is stopped, by Ctrl-C or because a launcher's worker died, leaves the table of what it had.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A launcher's worker process unpickles this hook before it composes: our `${...:}` must be known there too."""
        register()
        self.__dict__.update(state)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.folder:  # Hydra makes a warning of any other exception
            raise SystemExit(
                f"error: folder={config.folder} is for one run: take it out, or name the sweep's own folder with "
                f"hydra.sweep.dir={config.folder}, in which each job has one"
            )
        if config.check:
            raise SystemExit("error: check=true looks at one run: leave out -m, and give each setting one value")
        try:
            self.folder = Path(config.hydra.sweep.dir)
        except OmegaConfBaseException as error:  # resume= of a sweep that is not there
            raise SystemExit(f"error: {explain(error)}") from error
        atexit.register(self._tell_stop)
        if _are_together(config.hydra):
            watch()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from engine.summary import jobs_of
        from engine.table import write_table

        leave_if_asked()
        atexit.unregister(self._tell_stop)
        folder = Path(config.hydra.sweep.dir)
        jobs = jobs_of(folder)
        write_table(folder)
        failed = [job for job in jobs if (job / "failure.json").is_file()]
        if failed:
            raise SystemExit(f"error: {len(failed)} of {len(jobs)} jobs failed; see {folder}")

    def _tell_stop(self) -> None:
        from engine.summary import jobs_of
        from engine.table import write_table

        if self.folder is None or not self.folder.is_dir() or not jobs_of(self.folder):
            return  # nothing was begun: a wrong word on the command line
        write_table(self.folder)
        print(f"the sweep was stopped; the same command with resume={self.folder} runs what is missing")
