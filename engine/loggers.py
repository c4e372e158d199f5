"""Where metrics go: always the run's own `metrics.jsonl`, and beside it what `conf/logger` names."""

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from engine.record import read_json, read_rows


class MetricsFile(Logger):
    """One JSON object a line, flushed line by line, so that a killed run loses at most the step it was in.

    Args:
        path: The file, made or continued.
        last_row: Rows beyond this step are cut off when the file is continued: they belong to steps made again.
    """

    def __init__(self, path: Path, last_row: int = -1) -> None:
        super().__init__()
        self.path, self.last_row = path, last_row
        self._file: TextIO | None = None

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml is the record."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; `epoch` is a whole number however Lightning hands it over."""
        if self._file is None:
            self._file = self._open()
        row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        row |= {key: int(value) if key == "epoch" else value for key, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _open(self) -> TextIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_rows(self.path) if row["step"] <= self.last_row]
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(aside, self.path)
        return open(self.path, "a", encoding="utf-8")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file; a later row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file, self.last_row = None, sys.maxsize


def wandb_logger(
    out: Path, stage: str, project: str, mode: str, entity: str | None, group: str | None, tags: list[str]
) -> list[Logger]:
    """Weights & Biases: one run a job; its id lies in the run folder, so that a resume or a later stage continues it.

    Args:
        out: The run's folder.
        stage: The stage's name, the run's job type.
        project: W&B's project.
        mode: `offline`, `online` or `disabled`.
        entity: W&B's team or user; `None` is the account's own.
        group: Runs that belong together, such as those of a sweep.
        tags: W&B's tags.

    Raises:
        ValueError: Another mode; or `online` without a key where nobody can be asked for one.
    """
    if mode not in ("offline", "online", "disabled"):
        raise ValueError(f"logger.mode={mode}: W&B knows offline, online and disabled")
    if mode == "disabled":
        return []
    if mode == "online":
        _refuse_login_prompt()
    os.environ.setdefault("WANDB_SILENT", "true")
    id_file = out / "wandb_id"
    if is_first_process() and not id_file.is_file():
        agents = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None  # a W&B sweep's own
        id_file.write_text(agents or secrets.token_hex(4), encoding="utf-8")
    run_id = id_file.read_text(encoding="utf-8") if id_file.is_file() else None
    logger = WandbLogger(
        save_dir=str(out), project=project, entity=entity, id=run_id, name=f"{out.parent.name}/{out.name}",
        resume="allow", offline=mode == "offline", group=group, job_type=stage, tags=tags,
    )  # fmt: skip
    logger._wandb_init.pop("anonymous", None)  # wandb 0.31 warns of it, Lightning 2.6 passes it even unset
    return [logger]


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of several: the one that writes files."""
    return int(os.environ.get("RANK", 0)) == 0


def _refuse_login_prompt() -> None:
    import wandb

    if not wandb.api.api_key and not sys.stdin.isatty():
        raise ValueError("logger.mode=online needs a W&B key: run `wandb login` once, or leave the mode at offline")


def tensorboard_logger(out: Path, stage: str) -> list[Logger]:
    """TensorBoard event files in `<out>/<stage>/tensorboard`."""
    return [TensorBoardLogger(save_dir=str(out / stage), name="tensorboard", version="")]


def no_logger(out: Path, stage: str) -> list[Logger]:
    """Nothing beside the run's own metrics file."""
    return []


def introduce_run(loggers: list[Logger], config: dict[str, Any], metric: str, mode: str) -> None:
    """Tell W&B what runs, and to summarise each metric by its best value instead of its last.

    Args:
        loggers: Those of a stage; only W&B's on the first process is spoken to.
        config: What the run's config page shows, whether it ran on drawn samples included.
        metric: The validation metric that the stage is judged by.
        mode: `max` or `min`, which is better.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger) or not is_first_process():
            continue
        run = logger.experiment
        run.config.update(config, allow_val_change=True)
        for name, best in {"train/loss": "min", "val/loss": "min", metric: mode}.items():
            run.define_metric(name, summary=best, step_metric="trainer/global_step")


def show_pictures(loggers: list[Logger], home: Path) -> None:
    """Give W&B what callbacks drew in a stage's folder: `pictures/<name>.json` as `pictures/<name>`."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger) or not is_first_process():
            continue
        for path in sorted((home / "pictures").glob("*.json")):
            entries = [entry for entry in read_json(path, [], []) if (home / str(entry.get("image"))).is_file()]
            titles = [str(entry.get("title", "")) for entry in entries]
            logger.log_image(f"pictures/{path.stem}", [str(home / entry["image"]) for entry in entries], caption=titles)


def finish_wandb(exit_code: int) -> None:
    """End the W&B run of this process, if any, so that the next job of a sweep does not go on with it."""
    if (wandb := sys.modules.get("wandb")) and wandb.run is not None:
        wandb.finish(exit_code=exit_code)
