"""What finished stages left: which file it is, what is in it, and the module that it builds again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from torch import Tensor

from engine.runs import read_plan


def find_checkpoint(run: Path, stage: str | None = None) -> Path:
    """The checkpoint of a run's last finished stage, or of the one named.

    Raises:
        ValueError: There is no such run or stage, or the stage has not finished.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise ValueError(f"{run}: there is no such run folder; `python use.py runs` lists those there are")
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is not a run's folder (there is no config.yaml in it)")
    finished = [name for name in read_plan(run)["stages"] if (run / f"{name}.ckpt").is_file()]
    chosen = [name for name in finished if stage in (None, name)]
    if not chosen:
        there = f"; finished are {', '.join(finished)}" if finished else ""
        raise ValueError(f"{run} has no finished stage{f' {stage!r}' if stage else ''}{there}")
    return run / f"{chosen[-1]}.ckpt"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a finished stage left: `state_dict`, `stage` (module and data config), `facts`, `experiment`.

    Raises:
        ValueError: The file is not a stage's checkpoint.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling what is no checkpoint can raise anything
        raise ValueError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if "stage" not in content:
        raise ValueError(f"{path} is not a finished stage's checkpoint (it has no 'stage'): name <run>/<stage>.ckpt")
    return content


def load_stage(checkpoint: Path) -> tuple[pl.LightningModule, Any, dict[str, Any]]:
    """A finished stage's module (in eval mode, with its weights), its DataModule (not set up), and its config.

    Needs the checkpoint file alone: pretrained weights that the module was started from are not read again, and the
    data are those that are answered and judged, see `_to_answer`.

    Raises:
        ValueError: The file is not a stage's checkpoint.
    """
    content = read_checkpoint(checkpoint)
    module = instantiate(_without_weights(content["stage"]["module"]), _convert_="all")
    module.load_state_dict(content["state_dict"])
    data = instantiate(_to_answer(content["stage"]["data"]), _convert_="all")
    return module.eval(), data, content


def _without_weights(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: "none" if key == "weights" else _without_weights(value) for key, value in node.items()}
    return node


def _to_answer(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of data less what training alone asks for, and what may have gone since.

    These are verdicts on the labels of train, which would not fit other data either, and unlabelled photos.
    """
    settings = dict(data)
    if settings.get("unlabelled"):
        settings["unlabelled"] = None
    labels = settings.get("labels")
    if isinstance(labels, dict) and labels.get("kept"):
        settings["labels"] = labels | {"kept": None}
    return settings


def add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Take tensors into a digest in their order: names, types, shapes and bytes."""
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
