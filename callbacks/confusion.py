"""Writes which class was taken for which."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import nn


class Confusion(Callback):
    """Writes the test's confusion matrices to `confusion.json`, and to W&B if it is on; row = truth, column = guess.

    They are the technique's own metric objects (`metrics["test"]["confusion"]`), so they agree with its figures.
    """

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Refuses a technique that has no such metrics.

        Raises:
            ValueError: always then.
        """
        tests = pl_module.metrics["test"]
        if not isinstance(tests, nn.ModuleDict) or "confusion" not in tests:
            raise ValueError(
                f"callbacks.confusion: {type(pl_module).__name__} has no metrics['test']['confusion'], "
                "{task: confusion matrix}: give it one, or leave the callback out."
            )

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        # compute() adds the ranks' counts up: a collective, so all ranks pass here.
        matrices = {
            task: {"classes": pl_module.classes[task], "matrix": metric.compute().tolist()}
            for task, metric in pl_module.metrics["test"]["confusion"].items()
        }
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "confusion.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"test": matrices}, ensure_ascii=False), encoding="utf-8")
            log_tables(trainer, matrices)


def log_tables(trainer: Trainer, matrices: Mapping[str, Mapping[str, Any]]) -> None:
    """One table a task, a row for each pair of classes, to each W&B logger."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb  # not before it is known to be used: it costs half a second

            for task, entry in matrices.items():
                table = wandb.Table(columns=["truth", "guess", "count"])
                for truth, row in zip(entry["classes"], entry["matrix"], strict=True):
                    for guess, count in zip(entry["classes"], row, strict=True):
                        table.add_data(truth, guess, count)
                logger.experiment.log({f"test/{task}/confusion": table})
