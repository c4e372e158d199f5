"""What this machine can do: how many processes a stage gets, in which precision, on how many threads."""

import os
from typing import Any

import torch


def settle_trainer(trainer: dict[str, Any], strategy: str) -> dict[str, Any]:
    """A stage's trainer with every `auto` that depends on the machine decided.

    Args:
        trainer: The stage's Trainer arguments.
        strategy: What the technique needs when there are several processes.

    Raises:
        ValueError: More devices are asked for than there are.
    """
    accelerator = trainer["accelerator"]
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    devices = _count(trainer["devices"], accelerator)
    settled = trainer | {"accelerator": accelerator, "devices": devices}
    if trainer["precision"] == "auto":
        settled["precision"] = "bf16-mixed" if computes_bf16(accelerator) else "32-true"
    if trainer["strategy"] == "auto" and world_size(settled) > 1:
        settled["strategy"] = strategy
    return settled


def world_size(trainer: dict[str, Any]) -> int:
    """How many processes train together."""
    return int(trainer["devices"]) * int(trainer.get("num_nodes", 1))


def _count(asked: Any, accelerator: str) -> int:
    there = torch.cuda.device_count() if accelerator in ("gpu", "cuda") else 1
    if asked in ("auto", -1, "-1"):
        return there
    count = len(asked) if isinstance(asked, list) else int(asked)
    if count < 1:
        raise ValueError(f"trainer.devices={asked}: at least one device is needed")
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
