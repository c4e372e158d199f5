"""Keeps parts of a technique exactly as they are."""

import difflib
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn


def part(root: nn.Module, name: str) -> nn.Module:
    """The submodule that YAML names, such as `encoder` or `encoder.model.layer1`.

    Raises:
        ValueError: there is none; the nearest names are told.
    """
    names = [known for known, _ in root.named_modules() if known]
    if name not in names:
        children = [child for child, _ in root.named_children()]
        nearest = difflib.get_close_matches(name, names, n=3) or children
        raise ValueError(f"{type(root).__name__} has no module {name!r}; the nearest are: {', '.join(nearest)}.")
    return root.get_submodule(name)


def freeze(module: nn.Module) -> None:
    """No gradient, and evaluation mode: batch normalisation uses its stored statistics and leaves them alone."""
    module.requires_grad_(False)
    module.eval()


def fingerprint(module: nn.Module) -> dict[str, str]:
    """A hash of every parameter and buffer, by name: two are equal only if the module is, bit for bit."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: hashlib.sha256(memory(tensor)).hexdigest() for name, tensor in tensors.items()}


def memory(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, whatever its type, shape and device."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class Freeze(Callback):
    """Freezes parts of a technique for a whole fit, and proves afterwards that they did not move.

    A technique or Lightning may put a frozen part back into training mode, where batch normalisation goes on learning
    without any gradient. So its mode is looked at before every step, and the fingerprint taken when training starts,
    which is kept in checkpoints, must be found again at the end.

    Args:
        modules: names of parts; an empty list freezes nothing, which is full fine-tuning.

    Raises:
        ValueError: an unknown name, or nothing left to train (in `setup`).
        RuntimeError: a frozen part changed (at the end of training).
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = list(modules)
        self.parts: dict[str, nn.Module] = {}
        self.fingerprint: dict[str, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Here and not later: DDP and the optimiser must already find the parameters frozen.
        if stage != "fit":
            return
        self.parts = {name: part(pl_module, name) for name in self.modules}
        for module in self.parts.values():
            freeze(module)
        if self.modules and not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise ValueError(f"freeze.modules={self.modules} leaves nothing of {type(pl_module).__name__} to train.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A resumed fit has its weights from the checkpoint by now, and must go on from what was frozen at first.
        self.verify()
        self.fingerprint = self.take()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for module in self.parts.values():
            if module.training:
                module.eval()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.verify()

    def take(self) -> dict[str, str]:
        """The fingerprint of all frozen parts."""
        return {f"{name}.{key}": value for name in self.parts for key, value in fingerprint(self.parts[name]).items()}

    def verify(self) -> None:
        """Compares with the fingerprint taken before, if there is one."""
        now = self.take() if self.fingerprint else {}
        moved = [name for name, value in self.fingerprint.items() if now.get(name, value) != value]
        if moved:
            raise RuntimeError(
                f"{len(moved)} of {len(now)} frozen tensors changed, the first is {moved[0]}: something put a frozen "
                "module into training mode, or wrote to it."
            )

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fingerprint = state_dict["fingerprint"]
