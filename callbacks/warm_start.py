"""Starts a stage from the weights of another one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from callbacks.freeze import part


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a stage's `.ckpt` file, or of one that Lightning wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"warm_start.checkpoint={path}: there is no such file; the stage that makes it must run first, or take it "
            "from a finished run with start_from=<run>."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling what is no checkpoint can raise anything
        reason = str(error).splitlines()[0]
        raise ValueError(f"warm_start.checkpoint={path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"warm_start.checkpoint={path} has no `state_dict`; the checkpoint of a stage is wanted.")
    return content["state_dict"]


def load_part(target: nn.Module, tensors: Mapping[str, Tensor], name: str, source: str) -> None:
    """Loads the tensors below `source` into a module, name to name, each with its shape.

    Args:
        target: the module to fill.
        tensors: a whole checkpoint's.
        name: the module's name here, for the error message.
        source: its name in the checkpoint.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape.
    """
    theirs = {key[len(source) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{source}.")}
    ours = target.state_dict()
    if not theirs:
        there = ", ".join(dict.fromkeys(key.split(".")[0] for key in tensors))
        raise ValueError(f"the checkpoint has no {source!r}, it has: {there}; is it one of another experiment?")
    wrong = [
        *(f"{key} is missing there" for key in ours if key not in theirs),
        *(f"{key} is unknown here" for key in theirs if key not in ours),
        *(
            f"{key} is {tuple(theirs[key].shape)} there and {tuple(ours[key].shape)} here"
            for key in ours
            if key in theirs and theirs[key].shape != ours[key].shape
        ),
    ]
    if wrong:
        fitting = len(ours) - sum(not problem.endswith("unknown here") for problem in wrong)
        raise ValueError(f"{name!r} does not fit: {fitting} of its {len(ours)} tensors do, but {wrong[0]}.")
    target.load_state_dict(theirs, strict=True)


class WarmStart(Callback):
    """Takes parts of a technique over from a checkpoint before the fit, strictly and by name.

    It runs in every fit, a resumed one too; there the checkpoint that is resumed from is loaded later and wins.

    Args:
        checkpoint: the file that a stage left.
        modules: names of the parts to take over.
        rename: {name here: name in the checkpoint} of those parts that are called otherwise there.

    Raises:
        FileNotFoundError: there is no checkpoint (in `setup`).
        ValueError: a part is not in the checkpoint, or does not fit (in `setup`).
    """

    def __init__(self, checkpoint: str, modules: Sequence[str], rename: Mapping[str, str] | None = None) -> None:
        self.checkpoint = checkpoint
        self.modules = list(modules)
        self.rename = dict(rename or {})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        tensors = read_checkpoint(self.checkpoint)
        for name in self.modules:
            target = part(pl_module, name)
            try:
                load_part(target, tensors, name, self.rename.get(name, name))
            except ValueError as error:
                raise ValueError(f"warm_start.checkpoint={self.checkpoint}: {error}") from error
