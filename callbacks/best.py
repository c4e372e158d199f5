"""Keeps the weights of the epoch that the experiment is judged by."""

import difflib
import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class Best(ModelCheckpoint):
    """Saves the weights after each validation that is better than all before, to `best.ckpt` in the stage's folder.

    The first of equals stays, and NaN never wins. Where nothing is validated (`val_share: 0`) none is chosen: the
    weights of the last epoch are the stage's. Only weights are saved; what a resume needs is in other checkpoints,
    which carry this callback's record too.

    Args:
        monitor: key of a validation metric, such as `val/top1`.
        mode: `max` or `min`.

    Attributes:
        best_epoch: the epoch of `best_model_score`, counted from 0; None before the first.

    Raises:
        ValueError: a wrong mode; or the key was not logged by the first validation, or never became a number.
    """

    def __init__(self, monitor: str, mode: Literal["max", "min"]) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"best.mode={mode!r} is not one of: max, min.")
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_weights_only=True,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        self.best_epoch: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not ModelCheckpoint's: it warns of a folder that is not empty, which a resumed one never is.
        if stage == "fit":
            self.dirpath = str(trainer.default_root_dir)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = float(self.read(trainer.callback_metrics))
        if math.isnan(value):
            return
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        if self.best_model_score is not before:
            self.best_epoch = trainer.current_epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        unjudged = trainer.fast_dev_run or not sum(trainer.num_val_batches)  # type: ignore[attr-defined]
        if self.best_model_score is None and not unjudged:
            self.read(trainer.callback_metrics)
            raise ValueError(f"best.monitor={self.monitor} was not a number in any epoch, so there is no best one.")

    def read(self, metrics: dict[str, torch.Tensor]) -> torch.Tensor:
        """The monitored value, or an error that names the nearest keys."""
        key = str(self.monitor)
        if key not in metrics:
            logged = sorted(name for name in metrics if name.startswith("val/")) or sorted(metrics)
            nearest = difflib.get_close_matches(key, logged, n=3) or logged
            raise ValueError(f"best.monitor={key} was never logged; the nearest are: {', '.join(nearest)}.")
        return metrics[key]

    def state_dict(self) -> dict[str, Any]:
        score = None if self.best_model_score is None else float(self.best_model_score)
        return {"score": score, "epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The path is made anew: a run's folder may have been moved since.
        if state_dict["score"] is None:
            return
        self.best_epoch = state_dict["epoch"]
        self.best_model_score = self.kth_value = self.current_score = torch.tensor(state_dict["score"])
        self.best_model_path = self.kth_best_model_path = str(Path(str(self.dirpath)) / "best.ckpt")
        self.best_k_models = {self.best_model_path: self.best_model_score}
