"""Three tasks on drawn 32 x 32 pictures, in memory: what the tests of techniques and callbacks train on."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.fashion_mtl import FashionMTL
from lightning_modules.nn.backbones import Encoder
from lightning_modules.optimisers import Optimiser

# `type` is an attribute of every nn.Module, and a name may hold a dot: both are columns that somebody's table has.
CLASSES = {"색조": ["red", "green", "blue"], "type": ["plain", "striped"], "a.b": ["left", "right"]}


def draw(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pictures whose three attributes can be seen; every fifth has no label of `type`."""
    random = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(count):
        tone, kind, side = (int(torch.randint(n, (), generator=random)) for n in (3, 2, 2))
        image = torch.randint(0, 60, (3, 32, 32), generator=random, dtype=torch.uint8)
        image[tone, :, 16 * side : 16 * side + 16] += 150
        if kind:
            image[:, ::4] = 0
        labels = {"색조": tone, "type": -1 if index % 5 == 4 else kind, "a.b": side}
        samples.append({"image": image, "labels": {k: torch.tensor(v) for k, v in labels.items()}, "index": index})
    return samples


def batch(count: int = 8, seed: int = 0) -> dict[str, Any]:
    """One batch of them."""
    return torch.utils.data.default_collate(draw(count, seed))


class Toy(pl.LightningDataModule):
    """The data module's side of the contract, as far as callbacks use it."""

    def __init__(self, train: int = 16, test: int = 12) -> None:
        super().__init__()
        self.splits = {"train": draw(train, 1), "val": draw(test, 2), "test": draw(test, 3)}
        unlabelled = [{key: sample[key] for key in ("image", "index")} for sample in self.splits["test"]]
        self.splits["predict"] = unlabelled

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["train"], batch_size=8)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["val"], batch_size=8)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["test"], batch_size=5)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["predict"], batch_size=5)

    def picture(self, split: str, index: int) -> Tensor:
        return self.splits[split][index]["image"]

    def name(self, split: str, index: int) -> str:
        return f"{split}/{index:03d} 사진.jpg"


OPTIMISER = {
    **{"name": "adamw", "lr": 3e-3, "weight_decay": 0.01, "encoder_lr_scale": 1.0, "schedule": "constant"},
    **{"warmup_epochs": 0, "decay": 0.1, "decay_epochs": 1, "momentum": 0.9},
}
small_resnet = partial(Encoder, "test_resnet", "none", stem="default")


def optimiser(**changes: Any) -> Optimiser:
    """Plain settings with some changed."""
    return Optimiser(**{**OPTIMISER, **changes})


def technique(seed: int = 0, **changes: Any) -> FashionMTL:
    """A small FashionMTL; the encoder is timm's smallest ResNet, which has batch normalisation."""
    torch.manual_seed(seed)
    settings = {"classes": CLASSES, "shared": True, "loss_weights": None, "label_smoothing": 0.0, "dropout": 0.0}
    settings |= {"encoder": small_resnet(), "optimiser": optimiser()} | changes
    return FashionMTL(**settings)


def trainer(folder: Path, *callbacks: pl.Callback, **changes: Any) -> pl.Trainer:
    """A quiet Trainer on the CPU."""
    settings = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    if any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks):
        settings["enable_checkpointing"] = True
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(settings | changes))
