"""A data set of small random images in two arrays, and everything of a batch that a test may want to compare."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from datamodules.array_base import TASK, ArrayDataModule
from datamodules.array_splits import ArraySplits
from datamodules.arrays import Arrays, Block

SIDE, CLASSES = 8, 4
AUGMENT = {"pad": 2, "flip": 0.5, "cutout": 3}
PLAIN = {"batch_size": 4, "seed": 0, "threads": 2, "on_leak": "error", "val_share": 0.25}


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


class Toy(ArrayDataModule):
    """40 training and 12 test images; the labels run through the classes."""

    def __init__(self, root: Path, change: Any = None, **settings: Any) -> None:
        super().__init__(root, SIDE, **{**PLAIN, **settings})
        self.change = change

    def read(self) -> ArraySplits:
        self.facts = {"classes": {TASK: [f"kind {k}" for k in range(CLASSES)]}}
        arrays = {"train": images(40, 1), "test": images(12, 2)}
        labels = {name: np.arange(len(array)) % CLASSES for name, array in arrays.items()}
        if self.change:
            self.change(arrays, labels)
        for name, array in arrays.items():
            (self.root / f"{name}.bin").write_bytes(array.tobytes())
        return {name: self._split(name, array, labels[name]) for name, array in arrays.items()}

    def _split(self, name: str, array: np.ndarray, labels: np.ndarray) -> Arrays:
        block = Block(array, [(self.root / f"{name}.bin", len(array))])
        return Arrays([block], np.arange(len(array)), {TASK: labels}, self.augment)


class Recorder(pl.LightningModule):
    """Trains nothing and writes down what each step gets."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.seen = folder, {"train": [], "val": []}
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def _note(self, split: str, batch: Mapping[str, Any]) -> None:
        self.seen[split].append({"image": batch["image"].clone(), "index": batch["index"], "keys": sorted(batch)})

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        self._note("train", batch)
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        self._note("val", batch)

    def on_fit_end(self) -> None:
        torch.save(self.seen, self.folder / f"seen.{self.global_rank}.pt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
