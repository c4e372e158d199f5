"""Writes what of a technique is trained and what is not."""

import json
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMALISATION = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Parameters(Callback):
    """Writes `parameters.json` when training starts.

    For each part of the technique: its parameters, trained and frozen, and how many of its normalisation layers are
    locked, so that a reader sees what a stage trained.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            rows = [count(name, part) for name, part in pl_module.named_children()]
            path = Path(trainer.default_root_dir) / "parameters.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([row for row in rows if row["parameters"]], indent=1), encoding="utf-8")


def count(name: str, module: nn.Module) -> dict[str, str | int]:
    """The figures of one part."""
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in module.parameters())
    return {
        "module": name,
        "parameters": everything,
        "trainable": trained,
        "frozen": everything - trained,
        "normalisation_locked": sum(locked(layer) for layer in module.modules()),
    }


def locked(layer: nn.Module) -> bool:
    """Whether a layer is a normalisation that neither learns nor gathers statistics."""
    if not isinstance(layer, NORMALISATION) or layer.training:
        return False
    return not any(parameter.requires_grad for parameter in layer.parameters())
