"""Jobs of a multirun: a failing one is told at once and does not end the others; at the end there is a table."""

import logging
import math
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from engine.suggest import explain

log = logging.getLogger("nunchi")


def run_job(cfg: DictConfig, hydra: HydraConf) -> float | None:
    """One job of a sweep; its failure is a red line, a `failure.json` and a value that is not a number."""
    from engine.session import start

    try:
        return start(cfg, hydra)
    except Exception as error:
        out = Path(hydra.sweep.dir) / hydra.sweep.subdir
        out.mkdir(parents=True, exist_ok=True)
        sentence = explain(error)
        if not (out / "failure.json").is_file():
            from engine.runs import write_json

            write_json(out / "failure.json", {"stage": None, "error": sentence, "where": str(out)})
        Console(stderr=True).print(f"[bold red]job {hydra.job.num} failed[/] in {escape(str(out))}: {escape(sentence)}")
        return math.nan


class SweepTable(Callback):
    """Hydra's hook at the end of a multirun: a table of all jobs, and an exit code that tells whether all went well."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from engine.table import write_table

        folder = Path(config.hydra.sweep.dir)
        jobs = [path for path in folder.iterdir() if path.is_dir()]
        write_table(folder)
        failed = [job for job in jobs if (job / "failure.json").is_file()]
        if failed:
            raise SystemExit(f"error: {len(failed)} of {len(jobs)} jobs failed; see {folder}")
