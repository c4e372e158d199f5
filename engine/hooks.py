"""What every fit has, whatever its technique: step log, exact resume, orderly stop. Written for Lightning 2.6."""

import math
import random
import signal
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

from engine.progress import Progress

Batch = Any
# What a queue sends before it takes a machine away: SLURM's --signal=USR1@180, submitit's USR2.
PREEMPTION = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
SAME_REQUEST = 2.0  # seconds in which a signal may arrive again by another way


class StepLog(Callback):
    """Writes each step's losses to the metrics file, stops at the first that is not finite, and shows progress.

    On an accelerator values are read one step late, when the device has long finished them, so that logging never makes
    it wait. Under several processes one small all-reduce a step carries the mean of the losses and whether any process
    was asked to stop, so that all of them learn of it at the same step.

    Args:
        progress: What shows each step and each validation to the person who waits.
        judged: The validation metric that the stage is judged by, shown after each epoch.
    """

    def __init__(self, progress: Progress, judged: str) -> None:
        self.progress, self.judged = progress, judged
        self.last_row = -1
        self.asked_to_stop = False
        self.signal = 0
        self._asked_at = 0.0
        self._pending: deque[tuple[_Step, list[str], Tensor, Any]] = deque()  # still on the device, or on their way
        self._wait = self._total = self._last = 0.0
        self._handlers: dict[int, Any] = {}

    @property
    def data_wait(self) -> float:
        """Share of the training time spent waiting for the next batch; 0 before the first step is over."""
        return self._wait / self._total if self._total else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"last_row": self.last_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_row = state_dict["last_row"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take signals over from Lightning, whose own handler broadcasts inside it and hangs two ranks."""
        for number in (signal.SIGTERM, signal.SIGINT, *PREEMPTION):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._asked_at = number, time.monotonic()
        elif time.monotonic() - self._asked_at > SAME_REQUEST:  # asked again: at once
            sys.exit(128 + number)

    def _restore_handlers(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if not self._last:  # a fit that goes on in the middle of an epoch
            self._last = time.perf_counter()
        self._wait += time.perf_counter() - self._last

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        outputs = {"loss": outputs} if isinstance(outputs, Tensor) else outputs
        scalars = {k: v for k, v in (outputs or {}).items() if isinstance(v, Tensor) and v.ndim == 0}
        step = _Step(trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.current_epoch, batch_idx)
        if trainer.world_size == 1 and trainer.strategy.root_device.type == "cpu":
            self._record(trainer, step, bool(self.signal), {key: value.item() for key, value in scalars.items()})
        else:
            self._submit(trainer, step, scalars)
            while len(self._pending) > 1:
                self._write(trainer)
        now = time.perf_counter()
        self._total += now - self._last
        self._last = now

    def _submit(self, trainer: pl.Trainer, step: "_Step", scalars: dict[str, Tensor]) -> None:
        asked = torch.tensor([float(self.signal)], device=trainer.strategy.root_device)
        packed = torch.cat([asked, *(v.detach().float().reshape(1) for v in scalars.values())])
        work = None
        if trainer.world_size > 1:
            packed /= trainer.world_size
            work = dist.all_reduce(packed, async_op=True)
        self._pending.append((step, list(scalars), packed, work))

    def _write(self, trainer: pl.Trainer) -> None:
        step, names, packed, work = self._pending.popleft()
        if work is not None:
            work.wait()
        asked, *numbers = packed.tolist()
        self._record(trainer, step, bool(asked), dict(zip(names, numbers, strict=True)))

    def _record(self, trainer: pl.Trainer, step: "_Step", asked: bool, scalars: dict[str, float]) -> None:
        self.last_row, self.asked_to_stop = step.number, asked
        self._log(trainer, {f"train/{key}": value for key, value in scalars.items()}, step)
        _refuse_nan(scalars, step)
        loop = trainer.fit_loop
        loss = scalars.get("loss")
        self.progress(step.epoch, loop.max_epochs, step.batch_idx + 1, loop.max_batches, loss, self.data_wait)

    def _log(self, trainer: pl.Trainer, row: dict[str, float], step: "_Step") -> None:
        metrics_file, *others = trainer.loggers
        metrics_file.log_metrics(row | {"epoch": step.epoch}, step.number)
        if step.number % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for logger in others:
                logger.log_metrics(row | {"epoch": step.epoch, "data_wait": self.data_wait}, step.number)

    def flush(self, trainer: pl.Trainer) -> None:
        """Read what is pending; a checkpoint must not replace a good one after a loss that is not finite."""
        while self._pending:
            self._write(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.flush(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = time.perf_counter()  # validation is not time spent waiting for training data
        if trainer.is_global_zero:
            metrics = trainer.callback_metrics
            shown = {key: float(metrics[key]) for key in ("val/loss", self.judged) if key in metrics}
            self.progress.epoch_line(trainer.current_epoch, shown)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.close()
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.progress.close()
        self._restore_handlers()


class _Step(NamedTuple):
    """Where a row of numbers belongs: optimiser step of the fit, epoch, batch of the epoch."""

    number: int
    epoch: int
    batch_idx: int


def _refuse_nan(scalars: dict[str, float], step: _Step) -> None:
    for key, value in scalars.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"train/{key} became {value} at step {step.number} (epoch {step.epoch}): training stopped and the last "
                "good checkpoint is kept; a smaller lr, trainer.gradient_clip_val=1 or 32-true precision may help"
            )


class Stopped(SystemExit):
    """Training was asked to stop by a signal; the exit code is 128 + its number, as a shell reports it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: at the end of every epoch, every `seconds` within one, and when a signal asks to stop.

    None is saved between a batch and the validation that follows it: Lightning would skip that validation on a resume.

    Args:
        path: The file; it is written aside and renamed, so that a kill leaves the one before.
        seconds: Time between two within an epoch.
        step_log: Its pending losses are looked at first.
    """

    def __init__(self, path: Path, seconds: float, step_log: StepLog) -> None:
        self.path, self.seconds, self.step_log = path, seconds, step_log
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand the loaders their saved state, if Lightning did not.

        A schedule that asks for `trainer.estimated_stepping_batches` has the loaders made before the loops' state is
        restored, and Lightning 2.6 then never passes that state on: the epoch would silently begin anew.
        """
        trainer.fit_loop._load_combined_loader_states()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % (trainer.val_check_batch or done) == 0 or done == trainer.num_training_batches:
            return
        if self.step_log.asked_to_stop or self._due(trainer, done):
            self.save(trainer)
            self._stop_if_asked()

    def _due(self, trainer: pl.Trainer, done: int) -> bool:
        due = time.monotonic() - self._saved_at >= self.seconds
        if trainer.world_size == 1:
            return due
        return bool(done % 20 == 0 and trainer.strategy.broadcast(due))  # clocks differ: the first process's counts

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.step_log.asked_to_stop:
            raise Stopped(self.step_log.signal or signal.SIGTERM)

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint, unless a loss before it was not finite."""
        self.step_log.flush(trainer)
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()


class RandomState(Callback):
    """Saves every process's random state with the checkpoint, so that dropout and noise go on where they were.

    Batch order and augmentation do not need it: they are functions of seed, epoch and position.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        states: list[Any] = [_random_state()]
        if dist.is_available() and dist.is_initialized():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, _random_state())
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        if rank < len(state_dict["ranks"]):
            self._restored = state_dict["ranks"][rank]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Late, so that nothing that is built between loading and training moves it again."""
        if self._restored is not None:
            _set_random_state(self._restored)
            self._restored = None


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what libraries draw from
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
