"""Seven kinds of shape in random colours on 32 x 32 pictures, in memory; some may lack a label."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

KINDS = ["disc", "ring", "square", "cross", "bars", "beams", "dots"]
CLASSES = {"class": KINDS}


def pictures(count: int, seed: int = 0, unlabelled: float = 0.0) -> dict[str, Any]:
    """A batch of pictures that differ in kind, place, size, colours and noise; the first share of them has no label."""
    random = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, len(KINDS), (count,), generator=random)
    size = 6 + 5 * torch.rand(count, 1, 1, generator=random)
    centre = 13 + 6 * torch.rand(count, 2, 1, 1, generator=random)
    ahead = (torch.arange(32.0).view(1, 32, 1) - centre[:, 0]).expand(-1, -1, 32)
    aside = (torch.arange(32.0).view(1, 1, 32) - centre[:, 1]).expand(-1, 32, -1)
    masks = torch.stack([shape(kind, ahead[i], aside[i], size[i]) for i, kind in enumerate(kinds.tolist())])
    paint, ground = (torch.rand(count, 3, 1, 1, generator=random) for _ in range(2))
    paint = torch.where((paint - ground).abs().amax(1, keepdim=True) < 0.4, (ground + 0.5) % 1, paint)
    noise = 0.05 * torch.randn(count, 3, 32, 32, generator=random)
    image = torch.where(masks[:, None], paint, ground) + noise
    labels = torch.where(torch.arange(count) < unlabelled * count, -1, kinds)
    pixels = (image.clamp(0, 1) * 255).to(torch.uint8)
    return {"image": pixels, "labels": {"class": labels}, "index": torch.arange(count), "kinds": kinds}


def shape(kind: int, ahead: Tensor, aside: Tensor, size: Tensor) -> Tensor:
    """Which pixels (32, 32) a shape covers."""
    radius, square = (ahead**2 + aside**2).sqrt(), torch.maximum(ahead.abs(), aside.abs())
    return {
        "disc": radius < size,
        "ring": (radius < size) & (radius > 0.6 * size),
        "square": square < 0.85 * size,
        "cross": (square < size) & (torch.minimum(ahead.abs(), aside.abs()) < 0.3 * size),
        "bars": (square < size) & (ahead.div(3, rounding_mode="floor") % 2 == 0),
        "beams": (square < size) & (aside.div(3, rounding_mode="floor") % 2 == 0),
        "dots": (square < size)
        & (ahead.div(3, rounding_mode="floor") % 2 == 0)
        & (aside.div(3, rounding_mode="floor") % 2 == 0),
    }[KINDS[kind]]


def rows(whole: dict[str, Any], chosen: Any) -> dict[str, Any]:
    """Some samples of a batch."""
    return {key: rows(value, chosen) if isinstance(value, dict) else value[chosen] for key, value in whole.items()}


class Pictures(pl.LightningDataModule):
    """Train, validation and test pictures; `unlabelled` is the share of the training pictures without a label."""

    def __init__(self, train: int = 64, held_out: int = 40, batch_size: int = 32, unlabelled: float = 0.0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.whole = {"train": pictures(train, 1, unlabelled), "val": pictures(held_out, 2)}
        self.whole["test"] = pictures(held_out, 3)
        self.splits = {split: range(len(whole["index"])) for split, whole in self.whole.items()}

    def loader(self, split: str) -> DataLoader:
        whole = self.whole[split]
        generator = torch.Generator().manual_seed(0)
        return DataLoader(
            TensorDataset(whole["index"]), self.batch_size, shuffle=split == "train", drop_last=split == "train",
            generator=generator, collate_fn=lambda items: rows(whole, torch.stack([item[0] for item in items])),
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")

    def picture(self, split: str, index: int) -> Tensor:
        return self.whole[split]["image"][index]
