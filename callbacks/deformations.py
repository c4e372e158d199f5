"""Shows what a generator of changed pictures makes of them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from callbacks.pictures import Picture, sheet, write_pictures
from callbacks.predictions import datamodule

log = logging.getLogger("nunchi")
ROWS = 5  # epochs that are shown of a fit


class Deformations(Callback):
    """Writes pictures before and after the generator: those of some epochs while it learns, and those of the test.

    Input above output is how the source shows that its generator learned to change nothing. The caption, and after the
    test the log, say in numbers whether this one did. Of an epoch only the parameters are remembered. They are saved
    with the checkpoints, so that a resumed fit shows its first epochs, too.

    Args:
        count: pictures, taken evenly from their split.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.thetas: dict[int, Tensor] = {}
        self.shown: list[Picture] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        image, _, theta = self.make(trainer, pl_module, "val")
        self.thetas[trainer.current_epoch] = theta.cpu()
        some = chosen(self.thetas)
        rows = [image, *(pl_module.generator.apply_to(image, each.to(image.device)) for each in some.values())]
        epochs = ", ".join(str(epoch + 1) for epoch in some)
        caption = f"Validation pictures, and below what the generator made of them after epoch {epochs}."
        page = sheet([as_bytes(row) for row in rows])
        self.shown = [Picture("While it learned", page, f"{caption} {pl_module.verdict('val')}")]
        self.write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        image, changed, theta = self.make(trainer, pl_module, "test")
        distances = (theta.cpu() - torch.eye(2, 3)).abs().mean((1, 2)).tolist()
        labels = [[""] * len(distances), [f"{distance:.2f}" for distance in distances]]
        page = sheet([as_bytes(image), as_bytes(changed)], labels)
        caption = "Test pictures (above), what the generator makes of them, and the mean |θ − I| of each."
        picture = Picture(
            "Input above output", page, f"{caption} {pl_module.verdict('test')}", {"theta": theta.tolist()}
        )
        self.shown = [picture, *self.shown[-1:]]
        log.info("%s: %s", Path(trainer.default_root_dir).name, pl_module.verdict("test"))
        self.write(trainer)

    @torch.no_grad()
    def make(self, trainer: Trainer, pl_module: Any, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Some pictures of a split in 0..1, what the generator makes of them, and with which parameters."""
        data = datamodule(trainer)
        size = len(data.splits[split])
        index = torch.linspace(0, size - 1, min(self.count, size)).long()
        image = torch.stack([data.picture(split, place) for place in index.tolist()])
        made = pl_module.make({"image": image.to(pl_module.device), "index": index.to(pl_module.device)}, 0)
        return made.image, made.changed, made.theta

    def write(self, trainer: Trainer) -> None:
        """Puts what is shown into the stage's folder."""
        write_pictures(Path(trainer.default_root_dir), "deformations", self.shown)

    def state_dict(self) -> dict[str, Any]:
        return {"thetas": self.thetas}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.thetas = dict(state_dict["thetas"])


def chosen(thetas: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The parameters of a few epochs: the last, and before it more of the first ones, when most happens."""
    epochs = sorted(thetas)
    places = {round((len(epochs) - 1) * (step / (ROWS - 1)) ** 2) for step in range(ROWS)}
    return {epochs[place]: thetas[epochs[place]] for place in sorted(places)}


def as_bytes(image: Tensor) -> list[Tensor]:
    """Pictures in 0..1 as uint8, one by one."""
    return list((image.clamp(0, 1) * 255).round().to("cpu", torch.uint8))
