"""What this machine can do: how many processes a stage gets, in which precision, on how many threads."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig

log = logging.getLogger("nunchi")


def settle_trainer(trainer: dict[str, Any], strategy: str) -> dict[str, Any]:
    """A stage's trainer with every `auto` that depends on the machine decided.

    Args:
        trainer: The stage's Trainer arguments.
        strategy: What the technique needs when there are several processes.

    Raises:
        ValueError: More devices are asked for than there are, or what they cannot do.
    """
    accelerator = trainer["accelerator"]
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    devices = _count(trainer["devices"], accelerator)
    chosen = isinstance(trainer["devices"], list) and accelerator != "cpu"  # which GPUs, not only how many
    settled = trainer | {"accelerator": accelerator, "devices": trainer["devices"] if chosen else devices}
    if trainer["precision"] == "auto":
        settled["precision"] = "bf16-mixed" if computes_bf16(accelerator) else "32-true"
    if trainer["strategy"] == "auto" and world_size(settled) > 1:
        settled["strategy"] = strategy
    if trainer.get("sync_batchnorm") and accelerator == "cpu":
        raise ValueError("trainer.sync_batchnorm=true needs GPUs: torch has it for them alone")
    return settled


def world_size(trainer: dict[str, Any]) -> int:
    """How many processes train together."""
    return processes_here(trainer) * int(trainer.get("num_nodes", 1))


def processes_here(trainer: dict[str, Any]) -> int:
    """How many processes train on this machine: one for each device, which are counted or listed."""
    devices = trainer["devices"]
    return len(devices) if isinstance(devices, list) else int(devices)


def _count(asked: Any, accelerator: str) -> int:
    there = torch.cuda.device_count() if accelerator in ("gpu", "cuda") else 1
    if asked in ("auto", -1, "-1"):
        return there
    count = len(asked) if isinstance(asked, list) else int(asked)
    if isinstance(asked, list) and accelerator in ("gpu", "cuda") and not set(asked) <= set(range(there)):
        raise ValueError(f"trainer.devices={asked}: this machine has {there} GPU(s), counted from 0")
    if count < 1:
        raise ValueError(f"trainer.devices={asked}: at least one device is needed")
    if accelerator in ("gpu", "cuda") and not there:
        raise ValueError(
            f"trainer.accelerator={accelerator}: torch finds no GPU on this machine; take trainer.accelerator=cpu, or "
            "auto, and see that the driver and a build of torch for it are installed"
        )
    if accelerator in ("gpu", "cuda") and count > there:
        raise ValueError(
            f"trainer.devices={asked}: this machine has {there} GPU(s); ask for fewer, or run on the processor with "
            "trainer.accelerator=cpu"
        )
    return count


def computes_bf16(accelerator: str) -> bool:
    """Whether bf16 products run in hardware here; without that, bf16 is slower than float32."""
    if accelerator in ("gpu", "cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def share_cores(processes: int) -> None:
    """Give each of several processes on this machine its part of the cores, instead of all of them to each."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


@contextmanager
def own_device(cfg: DictConfig, sweep: Path, alone: bool) -> Iterator[None]:
    """Give one of several jobs that run at the same time a GPU of its own, for as long as the job lasts.

    A GPU is taken by a lock on a file of the sweep's folder, which the system gives back however the job ends; a job
    that finds none free waits. Jobs that ask for several devices, or for certain ones, keep what they ask for.

    Args:
        cfg: The job's config; its `trainer.devices` becomes a list of one.
        sweep: The sweep's folder.
        alone: Whether the jobs run one after the other: then each has the whole machine.
    """
    count = torch.cuda.device_count()
    if alone or cfg.trainer.devices != 1 or cfg.trainer.accelerator == "cpu" or count < 2:
        yield
        return
    device, lock = _free_device(sweep / ".devices", count)
    try:
        cfg.trainer.devices = [device]
        yield
    finally:
        lock.release()


def _free_device(home: Path, count: int, pause: float = 1.0) -> tuple[int, FileLock]:
    home.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        for device in range(count):
            lock = FileLock(home / f"{device}.lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            return device, lock
        if not told:
            log.info("all %d GPUs are taken by other jobs of this sweep; waiting for one", count)
            told = True
        time.sleep(pause)
