"""Callbacks that make a run fail, or last, on purpose."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch


class FailAt(pl.Callback):
    """At step `step` of rank `rank`: raise, exit, be killed, or poison the weights, so that the loss is no number."""

    def __init__(self, step: int, how: str, rank: int = 0) -> None:
        self.step, self.how, self.rank = step, how, rank

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self.step or trainer.global_rank != self.rank:
            return
        if self.how == "raise":
            raise ValueError("failed on purpose")
        if self.how == "exit":
            os._exit(7)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "poison":
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))


class Slow(pl.Callback):
    """Each step takes at least `seconds`; the first one leaves a file, so that a test knows that training goes on."""

    def __init__(self, seconds: float, sign: str) -> None:
        self.seconds, self.sign = seconds, sign

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        time.sleep(self.seconds)
        Path(f"{self.sign}.{trainer.global_rank}").touch()
