"""Shows what a contrastive technique is asked to tell apart."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from callbacks.pictures import Picture, sheet, write_pictures
from callbacks.predictions import datamodule


class Views(Callback):
    """Writes, before a fit, some training images and the two views of each that its first epoch learns from.

    Whether a view still shows what its image shows is soon seen and hard to measure, and a crop too small or a colour
    too wild costs a pretraining more than any other setting.

    Args:
        count: images, taken evenly from the training split.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        data = datamodule(trainer)
        size = len(data.splits["train"])
        index = torch.linspace(0, size - 1, min(self.count, size)).long()
        image = torch.stack([data.picture("train", place) for place in index.tolist()])
        batch = {"image": image.to(pl_module.device), "index": index.to(pl_module.device)}
        views = [pixels(view) for view in pl_module.draw_views(batch, 0)]
        caption = f"{len(index)} training images (above), and the two views of each that epoch 1 learns from."
        picture = Picture("Two views", sheet([list(row) for row in (image, *views)]), caption)
        write_pictures(Path(trainer.default_root_dir), "views", [picture])


def pixels(view: Tensor) -> Tensor:
    """Floats in 0..1 as bytes."""
    return (view.clamp(0, 1) * 255).round().to("cpu", torch.uint8)
